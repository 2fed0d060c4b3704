//! Keys and tokens together, issuers and their tenants: every line of the
//! table in `auth.rs`.

use super::*;

fn bearer(claims: &Value) -> String {
    format!("Bearer {}", token(claims))
}

fn issuer(name: &str, secret: &str, tenants: Option<Vec<Uuid>>) -> IssuerRow {
    IssuerRow {
        name: name.into(),
        secret: Some(secret.into()),
        jwks: None,
        jwks_url: None,
        audience: None,
        tenants,
    }
}

fn token_by(secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    signed(Algorithm::HS256, None, &key, claims)
}

#[test]
fn neither_key_nor_token_is_refused() {
    let error = Door::new().enter(None, None).unwrap_err();
    assert_eq!(error, AuthError::Anonymous);
    assert_eq!(error.code(), "PGRST302");
    assert_eq!(error.challenge(), "Bearer");
}

#[test]
fn neither_is_the_anonymous_tenant_where_there_is_one() {
    let door = Door::with(|settings| settings.anonymous_tenant = Some(GLOBEX), |_| {});
    let context = door.enter(None, None).unwrap();
    assert_eq!(context.tenant(), GLOBEX);
    assert_eq!(&**context.role(), "anon");
    assert!(context.is_anonymous());
    let expected = json!({ "role": "anon", "tenant_id": GLOBEX });
    assert_eq!(claims_of(&context), expected);
}

/// The anonymous tenant is for those who present nothing: who presents
/// something bad must not fall back to it.
#[test]
fn something_bad_is_never_anonymous() {
    let door = Door::with(|settings| settings.anonymous_tenant = Some(GLOBEX), |_| {});
    for (apikey, authorization) in [
        (Some("rf_bad"), None),
        (Some(""), None),
        (None, Some("Bearer bad")),
        (None, Some("Bearer ")),
        (None, Some("Bearer rf_bad")),
    ] {
        let entered = door.enter(apikey, authorization);
        assert!(entered.is_err(), "{apikey:?} {authorization:?}");
    }
}

#[test]
fn a_token_without_tenant_takes_the_keys() {
    let key = minted(&api_key(ACME));
    let claims = json!({ "role": "service_role", "sub": "ann" });
    let context = Door::new()
        .enter(Some(&key), Some(&bearer(&claims)))
        .unwrap();
    assert_eq!(context.tenant(), ACME);
    assert_eq!(&**context.role(), "service_role");
    assert_eq!(context.key(), Some(KeyId(7)));
    let expected = json!({ "role": "service_role", "sub": "ann", "tenant_id": ACME });
    assert_eq!(claims_of(&context), expected);
}

#[test]
fn a_token_without_tenant_or_key_is_refused() {
    let claims = json!({ "role": "authenticated" });
    let error = Door::new().enter(None, Some(&bearer(&claims))).unwrap_err();
    assert_eq!(error, AuthError::NoTenant);
}

/// A tenant of its own must not be taken from an anonymous tenant either.
#[test]
fn a_token_without_tenant_does_not_take_the_anonymous_one() {
    let door = Door::with(|settings| settings.anonymous_tenant = Some(GLOBEX), |_| {});
    let claims = json!({ "role": "authenticated" });
    let error = door.enter(None, Some(&bearer(&claims))).unwrap_err();
    assert_eq!(error, AuthError::NoTenant);
}

#[test]
fn key_and_token_of_one_tenant_take_the_tokens_role() {
    let key = minted(&api_key(ACME));
    let claims = json!({ "tenant_id": ACME, "role": "anon" });
    let context = Door::new()
        .enter(Some(&key), Some(&bearer(&claims)))
        .unwrap();
    assert_eq!(&**context.role(), "anon");
}

#[test]
fn key_and_token_of_two_tenants_are_refused() {
    let key = minted(&api_key(ACME));
    let claims = json!({ "tenant_id": GLOBEX, "role": "authenticated" });
    let error = Door::new()
        .enter(Some(&key), Some(&bearer(&claims)))
        .unwrap_err();
    assert_eq!(error, AuthError::Disagree);
}

#[test]
fn a_bad_token_beside_a_good_key_is_refused() {
    let key = minted(&api_key(ACME));
    let mut claims = json!({ "tenant_id": ACME });
    claims["exp"] = (NOW - 3600).into();
    let error = Door::new()
        .enter(Some(&key), Some(&bearer(&claims)))
        .unwrap_err();
    assert_eq!(error, AuthError::Claims("JWT expired".into()));
}

#[test]
fn a_bad_key_beside_a_good_token_is_refused() {
    let claims = json!({ "tenant_id": ACME });
    let error = Door::new()
        .enter(Some("rf_bad"), Some(&bearer(&claims)))
        .unwrap_err();
    assert_eq!(error, AuthError::KeyInvalid);
}

#[test]
fn a_token_without_role_is_anonymous_even_beside_a_key() {
    let key = minted(&api_key(ACME));
    let door = Door::new();
    for apikey in [None, Some(key.as_str())] {
        let claims = bearer(&json!({ "tenant_id": ACME }));
        let context = door.enter(apikey, Some(&claims)).unwrap();
        assert_eq!(&**context.role(), "anon");
        assert_eq!(claims_of(&context)["role"], "anon");
    }
}

#[test]
fn the_role_may_be_another_claim() {
    let issuer = DefaultIssuer::new(Some(JWT_SECRET.as_bytes()), None, None).unwrap();
    let issuer = issuer.with_role_claim(".app.roles[0]".parse().unwrap());
    let door = Door::with_default_issuer(issuer);
    let claims =
        json!({ "tenant_id": ACME, "role": "anon", "app": { "roles": ["authenticated"] } });
    let context = door.enter_with_token(&token(&claims)).unwrap();
    assert_eq!(&**context.role(), "authenticated");
    // Policies read the one that counts.
    assert_eq!(claims_of(&context)["role"], "authenticated");
    let odd = json!({ "tenant_id": ACME, "app": { "roles": [7] } });
    let error = door.enter_with_token(&token(&odd)).unwrap_err();
    assert_eq!(error.code(), "PGRST303");
}

#[test]
fn a_tokens_role_must_be_allowed() {
    let claims = json!({ "tenant_id": ACME, "role": "ringfence_mover" });
    let error = Door::new().enter(None, Some(&bearer(&claims))).unwrap_err();
    assert_eq!(error, AuthError::Role("ringfence_mover".into()));
}

/// Clients put their key into either header, or into both.
#[test]
fn a_key_is_a_key_in_either_header() {
    let door = Door::new();
    let key = minted(&api_key(ACME));
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let authorization = format!("{scheme} {key}");
        for apikey in [None, Some(key.as_str())] {
            let context = door.enter(apikey, Some(&authorization)).unwrap();
            assert_eq!((context.tenant(), context.key()), (ACME, Some(KeyId(7))));
        }
    }
}

/// supabase-js with a legacy project key, before its user signs in and after.
#[test]
fn a_token_as_key_names_the_tenant_of_the_one_beside_it() {
    let secret = "the secret of a registered issuer, long enough";
    let door = Door::with_issuers(vec![issuer("https://acme", secret, Some(vec![ACME.0]))]);
    let project = |tenant| token(&json!({ "tenant_id": tenant, "role": "anon" }));
    let session = |claims| door.enter(Some(&project(ACME)), Some(&bearer(&claims)));
    let before = door.enter(Some(&project(ACME)), None).unwrap();
    assert_eq!((before.tenant(), &**before.role()), (ACME, "anon"));
    for claims in [
        json!({ "role": "authenticated", "sub": "ann" }),
        json!({ "role": "authenticated", "sub": "ann", "tenant_id": ACME }),
    ] {
        let context = session(claims).unwrap();
        assert_eq!(context.tenant(), ACME);
        assert_eq!(&**context.role(), "authenticated");
        assert_eq!(claims_of(&context)["sub"], "ann");
    }
    let others = json!({ "role": "authenticated", "tenant_id": GLOBEX });
    assert_eq!(session(others).unwrap_err(), AuthError::Disagree);
    // It must be valid, and its issuer may name that tenant.
    let ann = bearer(&json!({ "role": "authenticated", "sub": "ann" }));
    let enter = |project: &str| door.enter(Some(project), Some(&ann)).unwrap_err();
    assert_eq!(enter("a.b.c").code(), "PGRST301");
    let ended = json!({ "tenant_id": ACME, "role": "anon", "exp": NOW - 3600 });
    assert_eq!(enter(&token(&ended)).code(), "PGRST303");
    let foreign = json!({ "iss": "https://acme", "tenant_id": GLOBEX });
    assert_eq!(enter(&token_by(secret, &foreign)), AuthError::IssuerTenant);
    assert_eq!(
        enter(&token(&json!({ "role": "anon" }))),
        AuthError::NoTenant
    );
}

#[test]
fn two_different_keys_are_refused() {
    let (one, other) = (minted(&api_key(ACME)), minted(&api_key(GLOBEX)));
    let entered = Door::new().enter(Some(&one), Some(&format!("Bearer {other}")));
    assert_eq!(entered.unwrap_err(), AuthError::TwoKeys);
}

#[test]
fn other_schemes_are_ignored() {
    let door = Door::new();
    let key = minted(&api_key(ACME));
    for authorization in ["Basic dXNlcjpwYXNz", "Digest x", "Token"] {
        let error = door.enter(None, Some(authorization)).unwrap_err();
        assert_eq!(error, AuthError::Anonymous);
        let context = door.enter(Some(&key), Some(authorization)).unwrap();
        assert_eq!(context.tenant(), ACME);
    }
}

#[test]
fn an_empty_bearer_is_refused_even_beside_a_key() {
    let key = minted(&api_key(ACME));
    for authorization in ["Bearer", "Bearer ", "bearer   "] {
        let error = Door::new()
            .enter(Some(&key), Some(authorization))
            .unwrap_err();
        let text = "Empty JWT is sent in Authorization header";
        assert_eq!(error, AuthError::Token(text.into()));
        assert_eq!(
            error.challenge(),
            format!("Bearer error=\"invalid_token\", error_description=\"{text}\"")
        );
    }
}

#[test]
fn an_issuer_names_its_tenants_only() {
    let secret = "the secret of a registered issuer, long enough";
    let door = Door::with_issuers(vec![issuer("https://acme", secret, Some(vec![ACME.0]))]);
    let names = |tenant| {
        token_by(
            secret,
            &json!({ "iss": "https://acme", "tenant_id": tenant }),
        )
    };
    assert_eq!(door.enter_with_token(&names(ACME)).unwrap().tenant(), ACME);
    let error = door.enter_with_token(&names(GLOBEX)).unwrap_err();
    assert_eq!(error, AuthError::IssuerTenant);
}

/// A token that names no tenant must not be carried to another's by a key.
#[test]
fn an_issuer_is_held_to_its_tenants_when_the_key_names_one() {
    let secret = "the secret of a registered issuer, long enough";
    let door = Door::with_issuers(vec![issuer("https://acme", secret, Some(vec![ACME.0]))]);
    let authorization = format!(
        "Bearer {}",
        token_by(secret, &json!({ "iss": "https://acme" }))
    );
    let enter = |tenant| door.enter(Some(&minted(&api_key(tenant))), Some(&authorization));
    assert_eq!(enter(ACME).unwrap().tenant(), ACME);
    assert_eq!(enter(GLOBEX).unwrap_err(), AuthError::IssuerTenant);
}

/// A registered issuer's tokens are verified by its own key alone: neither the
/// default secret nor another issuer's may speak in its name.
#[test]
fn an_issuer_is_verified_by_its_own_key() {
    let (ours, theirs) = (
        "the secret of one registered issuer, long enough",
        "the secret of another registered issuer, long enough",
    );
    let door = Door::with_issuers(vec![issuer("one", ours, None), issuer("two", theirs, None)]);
    let claims = json!({ "iss": "one", "tenant_id": ACME });
    assert!(door.enter_with_token(&token_by(ours, &claims)).is_ok());
    for secret in [theirs, JWT_SECRET] {
        let error = door
            .enter_with_token(&token_by(secret, &claims))
            .unwrap_err();
        assert_eq!(error.code(), "PGRST301");
    }
}

#[test]
fn an_unknown_issuer_is_the_default_one() {
    let claims = json!({ "iss": "https://somewhere", "tenant_id": ACME });
    let context = Door::new().enter_with_token(&token(&claims)).unwrap();
    assert_eq!(context.tenant(), ACME);
}

#[test]
fn an_issuer_may_have_public_keys_and_an_audience() {
    let key = elliptic_key();
    let door = Door::with_issuers(vec![IssuerRow {
        secret: None,
        jwks: Some(jwks(&[(&key, Algorithm::ES256, Some("k"))])),
        audience: Some("here".into()),
        ..issuer("one", "", None)
    }]);
    let with = |audience| {
        let claims = json!({ "iss": "one", "tenant_id": ACME, "aud": audience });
        let token = signed(Algorithm::ES256, Some("k"), &key, &claims);
        door.enter_with_token(&token)
            .map(|context| context.tenant())
    };
    assert_eq!(with("here"), Ok(ACME));
    assert_eq!(
        with("there"),
        Err(AuthError::Claims("JWT not in audience".into()))
    );
}

/// An issuer that is removed or changes its key takes its tokens with it, also
/// those that were verified before.
#[test]
fn a_changed_issuer_ends_its_remembered_tokens() {
    let secret = "the secret of a registered issuer, long enough";
    let mut door = Door::with_issuers(vec![issuer("one", secret, None)]);
    let token = token_by(secret, &json!({ "iss": "one", "tenant_id": ACME }));
    assert!(door.enter_with_token(&token).is_ok());
    let changed = "another secret of the registered issuer, as long";
    door.snapshot = door.snapshot.with(Delta {
        version: 2,
        fleet: Some(Fleet {
            issuers: vec![issuer("one", changed, None)],
            ..Fleet::default()
        }),
        ..Delta::default()
    });
    let error = door.enter_with_token(&token).unwrap_err();
    assert_eq!(error.code(), "PGRST301");
}

/// Keys that are published come from whoever fetches them. One that is not known
/// may have been published since, one that is known and does not fit was not.
#[test]
fn an_issuer_may_publish_its_keys() {
    const URL: &str = "https://one.example/keys";
    let (first, second) = (elliptic_key(), elliptic_key());
    let door = Door::with_issuers(vec![IssuerRow {
        secret: None,
        jwks_url: Some(URL.into()),
        ..issuer("one", "", Some(vec![ACME.0]))
    }]);
    assert_eq!(door.authenticator.urls(&door.snapshot), [URL.into()]);
    let enter = |key, kid| {
        let claims = json!({ "iss": "one", "tenant_id": ACME });
        let token = signed(Algorithm::ES256, kid, key, &claims);
        door.enter_with_token(&token)
            .map(|context| context.tenant())
    };
    let unknown = Err(AuthError::KeyUnknown { url: URL.into() });
    let publish = |keys: &[(&EncodingKey, Algorithm, Option<&str>)]| {
        let document = jwks(keys).to_string();
        door.authenticator.published().put(URL, &document).unwrap()
    };
    assert_eq!(enter(&first, Some("1")), unknown);
    assert!(publish(&[(&first, Algorithm::ES256, Some("1"))]));
    assert!(
        !publish(&[(&first, Algorithm::ES256, Some("1"))]),
        "no news"
    );
    assert_eq!(enter(&first, Some("1")), Ok(ACME));
    assert_eq!(enter(&second, Some("2")), unknown);
    assert_eq!(enter(&second, None), unknown);
    let forged = enter(&second, Some("1")).unwrap_err();
    assert_eq!(
        forged,
        AuthError::Token("JWT cryptographic operation failed".into())
    );
    // What is withdrawn takes the tokens along that were verified before.
    assert!(publish(&[(&second, Algorithm::ES256, Some("2"))]));
    assert_eq!(enter(&first, Some("1")), unknown);
    assert_eq!(enter(&second, Some("2")), Ok(ACME));
    assert!(door.authenticator.published().put(URL, "nonsense").is_err());
    assert_eq!(enter(&second, Some("2")), Ok(ACME));

    // A secret in the document is known to everybody.
    let document = r#"{"keys":[{"kty":"oct","kid":"3","k":"YSBzZWNyZXQgdGhhdCBpcyBwdWJsaXNoZWQgZm9yIGFsbA"}]}"#;
    door.authenticator.published().put(URL, document).unwrap();
    let key = EncodingKey::from_secret(b"a secret that is published for all");
    let claims = json!({ "iss": "one", "tenant_id": ACME });
    let token = signed(Algorithm::HS256, Some("3"), &key, &claims);
    assert!(door.enter_with_token(&token).is_err());
}

/// The words that a client sees name no tenant and no secret.
#[test]
fn errors_have_stable_codes() {
    let errors = [
        AuthError::Anonymous,
        AuthError::NoIssuer,
        AuthError::Token("t".into()),
        AuthError::KeyUnknown { url: "u".into() },
        AuthError::Claims("c".into()),
        AuthError::Role("r".into()),
        AuthError::KeyInvalid,
        AuthError::KeyRevoked,
        AuthError::KeyExpired,
        AuthError::Disagree,
        AuthError::NoTenant,
        AuthError::IssuerTenant,
        AuthError::TwoKeys,
    ];
    let lines: Vec<String> = errors
        .iter()
        .map(|error| format!("{} {error} | {}", error.code(), error.challenge()))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}
