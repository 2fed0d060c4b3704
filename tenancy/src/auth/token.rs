//! JSON Web Tokens (RFC 7519): HS256 by a shared secret, RS256/ES256 and their
//! kin by a JWKS document. Signatures of tokens seen before are not computed
//! again; their times are looked at on every request.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto};
use moka::sync::Cache;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::AuthError;
use super::published::{Document, Published};
use super::role_claim::RoleClaim;
use crate::id::TenantId;
use crate::snapshot::{Fleet, IssuerRow};

/// How far clocks may differ.
const SKEW_SECONDS: f64 = 30.0;
/// Verified tokens that are kept.
const CACHED_MAX: u64 = 10_000;
/// A verified token is verified again after this time.
const CACHED_FOR: Duration = Duration::from_secs(300);
/// Longer tokens are refused unread.
const TEXT_MAX: usize = 16 << 10;

/// The JWKS document can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the JWKS document is not valid: {0}")]
pub struct JwksError(pub(super) String);

/// The issuer of tokens that name no registered one; it may name any tenant.
#[derive(Default)]
pub struct DefaultIssuer {
    secret: Option<DecodingKey>,
    jwks: Option<JwkSet>,
    jwks_url: Option<Box<str>>,
    audience: Option<String>,
    role: RoleClaim,
}

impl DefaultIssuer {
    /// With an HS256 secret, a JWKS document, both, or none.
    pub fn new(
        secret: Option<&[u8]>,
        jwks: Option<&str>,
        audience: Option<String>,
    ) -> Result<Self, JwksError> {
        let jwks = jwks
            .map(|text| serde_json::from_str(text).map_err(|error| JwksError(error.to_string())))
            .transpose()?;
        Ok(Self {
            secret: secret.map(DecodingKey::from_secret),
            jwks,
            jwks_url: None,
            audience,
            role: RoleClaim::default(),
        })
    }

    /// The same, its tokens' role being another claim than `role`.
    pub fn with_role_claim(self, role: RoleClaim) -> Self {
        Self { role, ..self }
    }

    /// The same, also with the keys that are published at `url`.
    pub fn with_url(self, url: Option<&str>) -> Self {
        Self {
            jwks_url: url.map(Box::from),
            ..self
        }
    }

    /// Where its keys are published.
    pub fn url(&self) -> Option<&str> {
        self.jwks_url.as_deref()
    }
}

/// A token whose signature and claims were found to be right.
pub(super) struct Verified {
    pub(super) tenant: Option<TenantId>,
    pub(super) role: Option<String>,
    claims: Map<String, Value>,
    tenants: Option<Vec<Uuid>>,
    /// Where its issuer publishes its keys.
    url: Option<Box<str>>,
    times: Times,
}

impl Verified {
    /// The tenant that it names, which its issuer may name.
    pub(super) fn named(&self) -> Result<Option<TenantId>, AuthError> {
        match self.tenant {
            Some(tenant) if !self.may_name(tenant) => Err(AuthError::IssuerTenant),
            tenant => Ok(tenant),
        }
    }

    /// Whether the issuer was registered with this tenant.
    pub(super) fn may_name(&self, tenant: TenantId) -> bool {
        let tenants = self.tenants.as_ref();
        tenants.is_none_or(|tenants| tenants.contains(&tenant.0))
    }

    /// The claims as policies read them.
    pub(super) fn claims_for(&self, role: &str, tenant: TenantId) -> Arc<str> {
        let mut claims = self.claims.clone();
        claims.insert("role".into(), role.into());
        claims.insert("tenant_id".into(), tenant.to_string().into());
        Value::Object(claims).to_string().into()
    }
}

/// Verifies tokens.
pub(super) struct Tokens {
    verified: Cache<Box<str>, CacheEntry>,
}

#[derive(Clone)]
struct CacheEntry {
    /// The fleet that named the issuer: another one may have other keys.
    fleet: Arc<Fleet>,
    /// The document that held the key, of an issuer that publishes its keys.
    document: Option<Arc<Document>>,
    token: Arc<Verified>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            verified: Cache::builder()
                .max_capacity(CACHED_MAX)
                .time_to_live(CACHED_FOR)
                .build(),
        }
    }

    pub(super) fn verify(
        &self,
        text: &str,
        fleet: &Arc<Fleet>,
        default: &DefaultIssuer,
        published: &Published,
        now: Duration,
    ) -> Result<Arc<Verified>, AuthError> {
        if let Some(entry) = self.verified.get(text)
            && Arc::ptr_eq(&entry.fleet, fleet)
            && entry.is_by_what_is_published(published)
        {
            entry.token.times.check(now)?;
            return Ok(entry.token);
        }
        let (token, document) = verify(text, fleet, default, published)?;
        let token = Arc::new(token);
        token.times.check(now)?;
        let entry = CacheEntry {
            fleet: fleet.clone(),
            document,
            token: token.clone(),
        };
        self.verified.insert(text.into(), entry);
        Ok(token)
    }
}

impl CacheEntry {
    fn is_by_what_is_published(&self, published: &Published) -> bool {
        let Some(document) = &self.document else {
            return true;
        };
        let now = self.token.url.as_deref().and_then(|url| published.get(url));
        now.is_some_and(|now| Arc::ptr_eq(&now, document))
    }
}

/// The token, and the published document that it was verified by.
fn verify(
    text: &str,
    fleet: &Fleet,
    default: &DefaultIssuer,
    published: &Published,
) -> Result<(Verified, Option<Arc<Document>>), AuthError> {
    let parts = text.split('.').count();
    if text.len() > TEXT_MAX {
        return Err(AuthError::Token("JWT is too long".into()));
    }
    if parts != 3 {
        return Err(AuthError::Token(format!(
            "Expected 3 parts in JWT; got {parts}"
        )));
    }
    let header = jsonwebtoken::decode_header(text)
        .map_err(|_| AuthError::Token("JWT header is not valid".into()))?;
    // `iss` says which keys to try; nothing else is believed before one of them fits.
    let claims: Map<String, Value> = jsonwebtoken::dangerous::insecure_decode_claims(text)
        .map_err(|_| AuthError::Token("JWT payload is not valid".into()))?;
    let issuer = claims
        .get("iss")
        .and_then(Value::as_str)
        .and_then(|name| fleet.issuers.iter().find(|issuer| issuer.name == name));
    let kid = header.kid.as_deref();
    let url = match issuer {
        Some(issuer) => issuer.jwks_url.as_deref(),
        None => default.url(),
    };
    let document = url.and_then(|url| published.get(url));
    let mut keys = match issuer {
        Some(issuer) => registered_keys(issuer, header.alg, kid),
        None => default_keys(default, header.alg, kid)?,
    };
    // A secret that is published is none.
    let published = document
        .as_ref()
        .filter(|_| header.alg.family() != AlgorithmFamily::Hmac);
    if let Some(document) = published {
        keys.extend(jwks_keys(&document.keys, header.alg, kid));
    }
    if !keys.iter().any(|key| is_signed_by(text, key, header.alg)) {
        // A key that is not known may have been published since; without an id
        // nobody can say which one it is.
        return Err(match url {
            Some(url) if keys.is_empty() || kid.is_none() => {
                AuthError::KeyUnknown { url: url.into() }
            }
            _ => AuthError::Token(no_key_text(&keys)),
        });
    }
    let audience = match issuer {
        Some(issuer) => issuer.audience.as_deref(),
        None => default.audience.as_deref(),
    };
    check_audience(&claims, audience)?;
    let verified = Verified {
        times: Times::of(&claims)?,
        tenant: tenant_claim(&claims)?,
        role: match issuer {
            Some(_) => text_claim(&claims, "role")?,
            None => text_of(default.role.of(&claims), "role")?,
        },
        tenants: issuer.and_then(|issuer| issuer.tenants.clone()),
        url: url.map(Box::from),
        claims,
    };
    Ok((verified, document))
}

fn no_key_text(tried: &[DecodingKey]) -> String {
    if tried.is_empty() {
        "No suitable key or wrong key type".into()
    } else {
        "JWT cryptographic operation failed".into()
    }
}

fn registered_keys(
    issuer: &IssuerRow,
    algorithm: Algorithm,
    kid: Option<&str>,
) -> Vec<DecodingKey> {
    let secret = issuer
        .secret
        .as_ref()
        .filter(|_| algorithm == Algorithm::HS256)
        .map(|secret| DecodingKey::from_secret(secret.as_bytes()));
    let jwks = issuer
        .jwks
        .as_ref()
        .and_then(|jwks| serde_json::from_value::<JwkSet>(jwks.clone()).ok());
    let keys = jwks.iter().flat_map(|jwks| jwks_keys(jwks, algorithm, kid));
    keys.chain(secret).collect()
}

fn default_keys(
    issuer: &DefaultIssuer,
    algorithm: Algorithm,
    kid: Option<&str>,
) -> Result<Vec<DecodingKey>, AuthError> {
    if issuer.secret.is_none() && issuer.jwks.is_none() && issuer.jwks_url.is_none() {
        return Err(AuthError::NoIssuer);
    }
    let secret = issuer
        .secret
        .iter()
        .filter(|_| algorithm == Algorithm::HS256)
        .cloned();
    let jwks = issuer.jwks.iter();
    Ok(jwks
        .flat_map(|jwks| jwks_keys(jwks, algorithm, kid))
        .chain(secret)
        .collect())
}

/// The keys that could have signed: of the algorithm's family, for signatures,
/// and of that id where the token names one.
fn jwks_keys(jwks: &JwkSet, algorithm: Algorithm, kid: Option<&str>) -> Vec<DecodingKey> {
    let suitable = |jwk: &&Jwk| {
        let id = kid.is_none_or(|kid| jwk.common.key_id.as_deref() == Some(kid));
        let signs = !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
        id && signs
    };
    jwks.keys
        .iter()
        .filter(suitable)
        .filter_map(|jwk| DecodingKey::from_jwk(jwk).ok())
        .filter(|key| key.family() == algorithm.family())
        .collect()
}

/// Whether `key`, which is of the algorithm's family, signed the token.
///
/// The signature alone: the library's own look at the claims would call a claim
/// of the wrong type a signature that does not fit.
fn is_signed_by(text: &str, key: &DecodingKey, algorithm: Algorithm) -> bool {
    if algorithm.family() == AlgorithmFamily::Hmac && algorithm != Algorithm::HS256 {
        return false;
    }
    text.rsplit_once('.').is_some_and(|(message, signature)| {
        crypto::verify(signature, message.as_bytes(), key, algorithm).unwrap_or(false)
    })
}

fn check_audience(claims: &Map<String, Value>, wanted: Option<&str>) -> Result<(), AuthError> {
    let named = match claims.get("aud") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(list)) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.ok_or_else(audience_type)?
        }
        Some(_) => return Err(audience_type()),
    };
    match wanted {
        Some(wanted) if !named.is_empty() && !named.contains(&wanted) => {
            Err(AuthError::Claims("JWT not in audience".into()))
        }
        _ => Ok(()),
    }
}

fn audience_type() -> AuthError {
    AuthError::Claims("The JWT 'aud' claim must be a string or an array of strings".into())
}

fn tenant_claim(claims: &Map<String, Value>) -> Result<Option<TenantId>, AuthError> {
    text_claim(claims, "tenant_id")?
        .map(|text| {
            text.parse()
                .map_err(|_| AuthError::Claims("The JWT 'tenant_id' claim must be a UUID".into()))
        })
        .transpose()
}

fn text_claim(claims: &Map<String, Value>, name: &str) -> Result<Option<String>, AuthError> {
    text_of(claims.get(name), name)
}

fn text_of(claim: Option<&Value>, name: &str) -> Result<Option<String>, AuthError> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(AuthError::Claims(format!(
            "The JWT '{name}' claim must be a string"
        ))),
    }
}

/// The claims that depend on the clock, in Unix seconds.
struct Times {
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
}

impl Times {
    fn of(claims: &Map<String, Value>) -> Result<Self, AuthError> {
        let number = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(_) => Err(AuthError::Claims(format!(
                "The JWT '{name}' claim must be a number"
            ))),
        };
        Ok(Self {
            exp: number("exp")?,
            nbf: number("nbf")?,
            iat: number("iat")?,
        })
    }

    fn check(&self, now: Duration) -> Result<(), AuthError> {
        let now = now.as_secs_f64();
        let text = if self.exp.is_some_and(|exp| now - SKEW_SECONDS >= exp) {
            "JWT expired"
        } else if self.nbf.is_some_and(|nbf| now + SKEW_SECONDS < nbf) {
            "JWT not yet valid"
        } else if self.iat.is_some_and(|iat| now + SKEW_SECONDS < iat) {
            "JWT issued at future"
        } else {
            return Ok(());
        };
        Err(AuthError::Claims(text.into()))
    }
}
