//! Who is let in, as whom, and who is not.
//!
//! Signing keys are made anew in each run.

mod keys;
mod rules;
mod tokens;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ApiKey, AuthError, AuthSettings, Authenticator, DefaultIssuer, KeyRing, TenantContext,
};
use crate::id::{KeyId, TenantId};
use crate::snapshot::{Delta, Fleet, IssuerRow, Snapshot};

const KEY_SECRET: &str = "a key secret that only this test knows";
const JWT_SECRET: &str = "a token secret that only this test knows";
/// Every test's clock, in Unix seconds.
const NOW: u64 = 1_800_000_000;

const ACME: TenantId = TenantId(Uuid::from_u128(0xacce));
const GLOBEX: TenantId = TenantId(Uuid::from_u128(0x910b));

/// An authenticator, and the snapshot that it asks.
struct Door {
    authenticator: Authenticator,
    snapshot: Snapshot,
}

impl Door {
    /// One HS256 secret for all tenants, no registered issuers.
    fn new() -> Self {
        Self::with(|_| {}, |_| {})
    }

    fn with(settings: impl FnOnce(&mut AuthSettings), delta: impl FnOnce(&mut Delta)) -> Self {
        let mut chosen = AuthSettings {
            keys: KeyRing::new(KEY_SECRET),
            default_issuer: DefaultIssuer::new(Some(JWT_SECRET.as_bytes()), None, None).unwrap(),
            anonymous_tenant: None,
            anonymous_role: "anon".into(),
            roles: ["anon", "authenticated", "service_role"]
                .map(Arc::from)
                .into(),
        };
        settings(&mut chosen);
        let mut first = Delta {
            version: 1,
            ..Delta::default()
        };
        delta(&mut first);
        Self {
            authenticator: Authenticator::new(chosen),
            snapshot: Snapshot::empty().with(first),
        }
    }

    fn with_default_issuer(issuer: DefaultIssuer) -> Self {
        Self::with(|settings| settings.default_issuer = issuer, |_| {})
    }

    fn with_issuers(issuers: Vec<IssuerRow>) -> Self {
        let fleet = Fleet {
            issuers,
            ..Fleet::default()
        };
        Self::with(|_| {}, |delta| delta.fleet = Some(fleet))
    }

    fn enter(
        &self,
        apikey: Option<&str>,
        authorization: Option<&str>,
    ) -> Result<TenantContext, AuthError> {
        self.enter_at(NOW, apikey, authorization)
    }

    fn enter_at(
        &self,
        now: u64,
        apikey: Option<&str>,
        authorization: Option<&str>,
    ) -> Result<TenantContext, AuthError> {
        let now: SystemTime = UNIX_EPOCH + Duration::from_secs(now);
        self.authenticator
            .authenticate(&self.snapshot, apikey, authorization, now)
    }

    fn enter_with_token(&self, token: &str) -> Result<TenantContext, AuthError> {
        self.enter(None, Some(&format!("Bearer {token}")))
    }
}

fn api_key(tenant: TenantId) -> ApiKey {
    ApiKey {
        id: KeyId(7),
        tenant,
        role: "authenticated".into(),
        expires_at: None,
    }
}

fn minted(key: &ApiKey) -> String {
    KeyRing::new(KEY_SECRET).mint(key).unwrap()
}

/// A token of the default issuer's secret.
fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    signed(Algorithm::HS256, None, &key, claims)
}

fn signed(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey, claims: &Value) -> String {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

/// An RSA key; one is enough for a run, they are slow to make.
static RSA: LazyLock<EncodingKey> = LazyLock::new(|| {
    let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8 = AsDer::<Pkcs8V1Der>::as_der(&pair).unwrap();
    // jsonwebtoken wants the PKCS #1 key inside: 26 bytes of wrapping for this size.
    EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..])
});

fn elliptic_key() -> EncodingKey {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let pkcs8 = pair.to_pkcs8v1().unwrap();
    EncodingKey::from_ec_der(pkcs8.as_ref())
}

/// The public half of keys, as a JWKS document.
fn jwks(keys: &[(&EncodingKey, Algorithm, Option<&str>)]) -> Value {
    let keys: Vec<Jwk> = keys
        .iter()
        .map(|(key, algorithm, kid)| {
            let mut jwk = Jwk::from_encoding_key(key, *algorithm).unwrap();
            jwk.common.key_id = kid.map(str::to_owned);
            jwk
        })
        .collect();
    json!({ "keys": keys })
}

fn claims_of(context: &TenantContext) -> Value {
    serde_json::from_str(context.claims()).unwrap()
}
