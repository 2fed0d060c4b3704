//! API keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::*;

#[test]
fn a_key_says_what_was_minted() {
    let key = ApiKey {
        expires_at: Some(NOW + 60),
        ..api_key(ACME)
    };
    assert_eq!(KeyRing::new(KEY_SECRET).verify(&minted(&key)), Ok(key));
}

#[test]
fn a_key_speaks_for_its_tenant() {
    let context = Door::new()
        .enter(Some(&minted(&api_key(ACME))), None)
        .unwrap();
    assert_eq!(context.tenant(), ACME);
    assert_eq!(&**context.role(), "authenticated");
    assert_eq!(context.key(), Some(KeyId(7)));
    assert!(!context.is_anonymous());
    let expected = json!({ "role": "authenticated", "tenant_id": ACME });
    assert_eq!(claims_of(&context), expected);
}

#[test]
fn another_deployments_key_is_refused() {
    let foreign = KeyRing::new("another secret").mint(&api_key(ACME)).unwrap();
    let error = Door::new().enter(Some(&foreign), None).unwrap_err();
    assert_eq!(error, AuthError::KeyInvalid);
}

#[test]
fn a_key_ends_at_its_second() {
    let key = minted(&ApiKey {
        expires_at: Some(NOW),
        ..api_key(ACME)
    });
    let door = Door::new();
    assert!(door.enter_at(NOW - 1, Some(&key), None).is_ok());
    let error = door.enter_at(NOW, Some(&key), None).unwrap_err();
    assert_eq!(error, AuthError::KeyExpired);
}

#[test]
fn a_revoked_key_is_refused_and_its_sisters_are_not() {
    let door = Door::with(|_| {}, |delta| delta.revoked = vec![KeyId(7)]);
    let error = door.enter(Some(&minted(&api_key(ACME))), None).unwrap_err();
    assert_eq!(error, AuthError::KeyRevoked);
    let sister = minted(&ApiKey {
        id: KeyId(8),
        ..api_key(ACME)
    });
    assert!(door.enter(Some(&sister), None).is_ok());
}

/// A key is refused whichever way in it takes.
#[test]
fn a_revoked_key_is_refused_as_bearer_and_beside_a_token() {
    let door = Door::with(|_| {}, |delta| delta.revoked = vec![KeyId(7)]);
    let key = minted(&api_key(ACME));
    let bearer = format!("Bearer {key}");
    let good = format!("Bearer {}", token(&json!({ "tenant_id": ACME })));
    for (apikey, authorization) in [
        (None, &bearer),
        (Some(key.as_str()), &bearer),
        (Some(key.as_str()), &good),
    ] {
        let error = door.enter(apikey, Some(authorization)).unwrap_err();
        assert_eq!(error, AuthError::KeyRevoked);
    }
}

#[test]
fn a_role_that_is_not_allowed_is_refused() {
    let key = minted(&ApiKey {
        role: "postgres".into(),
        ..api_key(ACME)
    });
    let error = Door::new().enter(Some(&key), None).unwrap_err();
    assert_eq!(error, AuthError::Role("postgres".into()));
    assert_eq!(error.code(), "22023");
}

#[test]
fn a_role_longer_than_postgres_allows_is_not_minted() {
    let of_length = |length| ApiKey {
        role: "r".repeat(length).into(),
        ..api_key(ACME)
    };
    let ring = KeyRing::new(KEY_SECRET);
    assert!(ring.mint(&of_length(63)).is_ok());
    assert!(ring.mint(&of_length(64)).is_err());
    assert!(ring.mint(&of_length(300)).is_err());
}

/// Each bit of a key is covered by the MAC, or is the MAC.
#[test]
fn a_key_with_any_bit_changed_is_refused() {
    let ring = KeyRing::new(KEY_SECRET);
    let text = minted(&api_key(ACME));
    let bytes = URL_SAFE_NO_PAD.decode(&text["rf_".len()..]).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut forged = bytes.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let forged = format!("rf_{}", URL_SAFE_NO_PAD.encode(forged));
        assert!(ring.verify(&forged).is_err(), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn every_key_is_read_back(
        id in any::<i64>(),
        tenant in any::<u128>(),
        role in "[a-z_]{1,63}",
        end in prop::option::of(1_u64..),
    ) {
        let key = ApiKey {
            id: KeyId(id),
            tenant: TenantId(Uuid::from_u128(tenant)),
            role: role.as_str().into(),
            expires_at: end,
        };
        let ring = KeyRing::new(KEY_SECRET);
        let text = ring.mint(&key).unwrap();
        prop_assert!(KeyRing::looks_like_key(&text));
        prop_assert_eq!(ring.verify(&text), Ok(key));
    }

    /// Whatever is sent instead of a key is refused, and nothing panics.
    #[test]
    fn nonsense_is_refused(text in "(rf_)?[A-Za-z0-9_.\\-é ]{0,300}") {
        prop_assert!(KeyRing::new(KEY_SECRET).verify(&text).is_err());
        prop_assert!(Door::new().enter(Some(&text), None).is_err());
    }
}
