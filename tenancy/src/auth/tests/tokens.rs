//! Signatures and claims of tokens.

use super::*;

fn refused(door: &Door, token: &str) -> AuthError {
    door.enter_with_token(token).unwrap_err()
}

fn token_error(text: &str) -> AuthError {
    AuthError::Token(text.into())
}

fn claims_error(text: &str) -> AuthError {
    AuthError::Claims(text.into())
}

fn acme() -> Value {
    json!({ "tenant_id": ACME, "role": "authenticated" })
}

#[test]
fn a_token_of_the_secret_is_accepted_with_all_its_claims() {
    let claims = json!({ "tenant_id": ACME, "role": "authenticated", "sub": "ann", "app": { "team": [1, 2] } });
    let context = Door::new().enter_with_token(&token(&claims)).unwrap();
    assert_eq!(context.tenant(), ACME);
    assert_eq!(&**context.role(), "authenticated");
    assert_eq!(context.key(), None);
    assert_eq!(claims_of(&context), claims);
}

#[test]
fn another_secrets_token_is_refused() {
    let key = EncodingKey::from_secret(b"another secret, long enough to be one");
    let token = signed(Algorithm::HS256, None, &key, &acme());
    let expected = token_error("JWT cryptographic operation failed");
    assert_eq!(refused(&Door::new(), &token), expected);
}

#[test]
fn a_token_with_changed_claims_is_refused() {
    let (good, other) = (token(&acme()), token(&json!({ "tenant_id": GLOBEX })));
    let part = |text: &str, n: usize| text.split('.').nth(n).unwrap().to_owned();
    let forged = [part(&good, 0), part(&other, 1), part(&good, 2)].join(".");
    let expected = token_error("JWT cryptographic operation failed");
    assert_eq!(refused(&Door::new(), &forged), expected);
}

/// RFC 8725 §2.1: "none", and a public key used as an HMAC secret.
#[test]
fn algorithms_that_are_not_offered_are_refused() {
    let door = Door::new();
    let encode = |value: &Value| {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let none = format!("{}.{}.", encode(&json!({ "alg": "none" })), encode(&acme()));
    assert_eq!(refused(&door, &none).code(), "PGRST301");
    let secret = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let token = signed(algorithm, None, &secret, &acme());
        assert_eq!(refused(&door, &token).code(), "PGRST301");
    }

    let document = jwks(&[(&RSA, Algorithm::RS256, None)]);
    let public = document["keys"][0]["n"].as_str().unwrap().to_owned();
    let issuer = DefaultIssuer::new(None, Some(&document.to_string()), None).unwrap();
    let door = Door::with_default_issuer(issuer);
    let confused = EncodingKey::from_secret(public.as_bytes());
    let token = signed(Algorithm::HS256, None, &confused, &acme());
    let expected = token_error("No suitable key or wrong key type");
    assert_eq!(refused(&door, &token), expected);
}

#[test]
fn public_keys_verify_rs256_and_es256() {
    let elliptic = elliptic_key();
    let document = jwks(&[
        (&RSA, Algorithm::RS256, Some("r")),
        (&elliptic, Algorithm::ES256, Some("e")),
    ]);
    let issuer = DefaultIssuer::new(None, Some(&document.to_string()), None).unwrap();
    let door = Door::with_default_issuer(issuer);
    for (algorithm, key, kid) in [
        (Algorithm::RS256, &*RSA, "r"),
        (Algorithm::ES256, &elliptic, "e"),
    ] {
        for kid in [Some(kid), None] {
            let token = signed(algorithm, kid, key, &acme());
            assert_eq!(door.enter_with_token(&token).unwrap().tenant(), ACME);
        }
        let token = signed(algorithm, Some("unknown"), key, &acme());
        let expected = token_error("No suitable key or wrong key type");
        assert_eq!(refused(&door, &token), expected);
    }
}

/// Without a `kid` each key is tried; with one, only that of its name.
#[test]
fn a_key_id_picks_the_key() {
    let (old, new) = (elliptic_key(), elliptic_key());
    let document = jwks(&[
        (&old, Algorithm::ES256, Some("old")),
        (&new, Algorithm::ES256, Some("new")),
    ]);
    let issuer = DefaultIssuer::new(None, Some(&document.to_string()), None).unwrap();
    let door = Door::with_default_issuer(issuer);
    let by_new = |kid| signed(Algorithm::ES256, kid, &new, &acme());
    assert!(door.enter_with_token(&by_new(Some("new"))).is_ok());
    assert!(door.enter_with_token(&by_new(None)).is_ok());
    let expected = token_error("JWT cryptographic operation failed");
    assert_eq!(refused(&door, &by_new(Some("old"))), expected);
}

#[test]
fn a_key_for_encryption_does_not_verify() {
    let key = elliptic_key();
    let mut document = jwks(&[(&key, Algorithm::ES256, None)]);
    document["keys"][0]["use"] = "enc".into();
    let issuer = DefaultIssuer::new(None, Some(&document.to_string()), None).unwrap();
    let token = signed(Algorithm::ES256, None, &key, &acme());
    let error = refused(&Door::with_default_issuer(issuer), &token);
    assert_eq!(error, token_error("No suitable key or wrong key type"));
}

#[test]
fn a_damaged_jwks_document_is_reported() {
    assert!(DefaultIssuer::new(None, Some("{"), None).is_err());
}

#[test]
fn without_an_issuer_tokens_are_refused() {
    let door = Door::with_default_issuer(DefaultIssuer::default());
    let error = refused(&door, &token(&acme()));
    assert_eq!(error, AuthError::NoIssuer);
    assert_eq!(error.code(), "PGRST300");
}

#[test]
fn what_is_no_token_is_refused() {
    let door = Door::new();
    assert_eq!(
        refused(&door, "abc"),
        token_error("Expected 3 parts in JWT; got 1")
    );
    assert_eq!(refused(&door, "a.b.c").code(), "PGRST301");
    let long = "a".repeat(20_000);
    assert_eq!(refused(&door, &long), token_error("JWT is too long"));
}

#[test]
fn times_are_held_to_30_seconds() {
    let door = Door::new();
    let with = |name: &str, time: u64| {
        let mut claims = acme();
        claims[name] = time.into();
        door.enter_with_token(&token(&claims)).map(|_| ())
    };
    assert_eq!(with("exp", NOW - 29), Ok(()));
    assert_eq!(with("exp", NOW - 30), Err(claims_error("JWT expired")));
    assert_eq!(with("nbf", NOW + 30), Ok(()));
    assert_eq!(
        with("nbf", NOW + 31),
        Err(claims_error("JWT not yet valid"))
    );
    assert_eq!(with("iat", NOW + 30), Ok(()));
    assert_eq!(
        with("iat", NOW + 31),
        Err(claims_error("JWT issued at future"))
    );
}

/// A verified token is remembered; its times are looked at each time.
#[test]
fn a_remembered_token_still_ends() {
    let door = Door::new();
    let mut claims = acme();
    claims["exp"] = (NOW + 100).into();
    let authorization = format!("Bearer {}", token(&claims));
    let at = |now| {
        let entered = door.enter_at(now, None, Some(&authorization));
        entered.map(|context| context.tenant())
    };
    assert_eq!(at(NOW), Ok(ACME));
    assert_eq!(at(NOW + 129), Ok(ACME));
    assert_eq!(at(NOW + 130), Err(claims_error("JWT expired")));
    assert_eq!(at(NOW), Ok(ACME));
}

#[test]
fn claims_of_the_wrong_type_are_refused() {
    let door = Door::new();
    let cases = [
        ("exp", json!("soon"), "The JWT 'exp' claim must be a number"),
        ("nbf", json!([1]), "The JWT 'nbf' claim must be a number"),
        ("iat", json!(true), "The JWT 'iat' claim must be a number"),
        ("role", json!(1), "The JWT 'role' claim must be a string"),
        (
            "tenant_id",
            json!(1),
            "The JWT 'tenant_id' claim must be a string",
        ),
        (
            "tenant_id",
            json!("acme"),
            "The JWT 'tenant_id' claim must be a UUID",
        ),
        (
            "aud",
            json!(1),
            "The JWT 'aud' claim must be a string or an array of strings",
        ),
        (
            "aud",
            json!(["a", 1]),
            "The JWT 'aud' claim must be a string or an array of strings",
        ),
    ];
    for (name, value, text) in cases {
        let mut claims = acme();
        claims[name] = value;
        let error = refused(&door, &token(&claims));
        assert_eq!(error, claims_error(text), "{name}");
        assert_eq!(error.code(), "PGRST303");
    }
}

#[test]
fn an_audience_counts_only_where_one_is_configured() {
    let with = |audience: Option<&str>, aud: Value| {
        let issuer = DefaultIssuer::new(
            Some(JWT_SECRET.as_bytes()),
            None,
            audience.map(str::to_owned),
        );
        let mut claims = acme();
        claims["aud"] = aud;
        Door::with_default_issuer(issuer.unwrap())
            .enter_with_token(&token(&claims))
            .map(|_| ())
    };
    for accepted in [
        json!("here"),
        json!(["there", "here"]),
        json!(null),
        json!([]),
    ] {
        assert_eq!(with(Some("here"), accepted), Ok(()));
    }
    for refused in [json!("there"), json!(["there"])] {
        assert_eq!(
            with(Some("here"), refused.clone()),
            Err(claims_error("JWT not in audience"))
        );
        assert_eq!(with(None, refused), Ok(()));
    }
}
