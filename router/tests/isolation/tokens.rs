//! Keys and tokens that lie.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};
use tenancy::auth::{ApiKey, KeyRing};
use tenancy::id::{KeyId, TenantId};

use crate::stage::{Stage, Tenant};

/// What the attacker signs with.
pub(crate) const ATTACKERS_SECRET: &str = "a secret that only the attacker knows, 32+";

fn token(secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::default(), claims, &key).unwrap()
}

fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or(Duration::ZERO).as_secs() as i64 + seconds
}

/// Every lie is refused with 401, and the truth is let in.
pub(crate) async fn are_checked(stage: &Stage) {
    let (victim, attacker) = (&stage.victim, &stage.attacker);
    let own = stage.cluster.jwt_secret().to_owned();
    let of = |tenant: &Tenant| json!({ "tenant_id": tenant.id, "role": "authenticated" });
    let with = |mut claims: Value, name: &str, value: Value| {
        claims[name] = value;
        claims
    };
    let cases = [
        (
            "signed by the attacker",
            token(ATTACKERS_SECRET, &of(victim)),
            None,
            401,
        ),
        (
            "another tenant's than the key's",
            token(&own, &of(victim)),
            Some(attacker),
            401,
        ),
        (
            "expired",
            token(&own, &with(of(victim), "exp", in_seconds(-120).into())),
            None,
            401,
        ),
        (
            "not valid yet",
            token(&own, &with(of(victim), "nbf", in_seconds(120).into())),
            None,
            401,
        ),
        (
            "without a tenant",
            token(&own, &json!({ "role": "authenticated" })),
            None,
            401,
        ),
        (
            "a role that does not exist",
            token(&own, &with(of(victim), "role", "postgres".into())),
            None,
            401,
        ),
        (
            "the router's own role",
            token(&own, &with(of(victim), "role", "ringfence_router".into())),
            None,
            401,
        ),
        (
            "the tenant as another type",
            token(&own, &with(of(victim), "tenant_id", json!([victim.id]))),
            None,
            401,
        ),
        ("the truth", token(&own, &of(victim)), None, 200),
        (
            "the truth, beside its key",
            token(&own, &of(victim)),
            Some(victim),
            200,
        ),
    ];
    let url = format!(
        "{}/rest/v1/companies?select=id&limit=1",
        stage.cluster.router_url(0)
    );
    for (what, token, key, expected) in cases {
        let mut request = stage.http.request(Method::GET, &url).bearer_auth(&token);
        if let Some(tenant) = key {
            request = request.header("apikey", &tenant.key);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let challenged = response.headers().contains_key("www-authenticate");
        let body = response.text().await.unwrap();
        assert_eq!(status, expected, "{what}: {body}");
        assert_eq!(challenged, expected == 401, "{what}");
    }
    // A key whose one character differs.
    let mut forged = Tenant {
        id: victim.id,
        slug: victim.slug.clone(),
        key: victim.key.clone(),
    };
    let last = forged.key.pop();
    forged.key.push(if last == Some('A') { 'B' } else { 'A' });
    let (status, _) = stage.get(&forged, "companies").await;
    assert_eq!(status, 401, "a changed key");
}

/// What a deployment with the key secret `secret` makes of a key for the victim
/// that the attacker signed: the key, if it is believed.
pub(crate) fn forged_key(stage: &Stage, secret: &str) -> Option<ApiKey> {
    let forged = ApiKey {
        id: KeyId(1),
        tenant: TenantId(stage.victim.id),
        role: Arc::from("service_role"),
        expires_at: None,
    };
    let text = KeyRing::new(ATTACKERS_SECRET).mint(&forged).unwrap();
    KeyRing::new(secret).verify(&text).ok()
}
