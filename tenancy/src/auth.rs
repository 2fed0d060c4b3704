//! From an API key or a token to a [`TenantContext`], without a look-up.
//!
//! | key | token | then |
//! |---|---|---|
//! | – | – | the anonymous tenant, or refused |
//! | ok | – | the key's tenant and role |
//! | – | ok | the token's tenant and role; it must name a tenant |
//! | ok | ok | they must not name different tenants; the token's role |
//! | ok | another key | refused |
//!
//! A token in `apikey` is a token where there is no other, and beside one a key.
//!
//! Whatever is presented must be valid: a bad token beside a good key is refused.

mod key;
mod published;
mod role_claim;
mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use key::{ApiKey, KeyError, KeyRing};
pub use published::Published;
pub use role_claim::{RoleClaim, RoleClaimError};
pub use token::{DefaultIssuer, JwksError};

use crate::id::{KeyId, TenantId};
use crate::snapshot::Snapshot;

/// Whom a request speaks for. Made here only, so that what needs one can't be
/// reached without authentication.
#[derive(Clone, Debug)]
pub struct TenantContext {
    tenant: TenantId,
    role: Arc<str>,
    claims: Arc<str>,
    key: Option<KeyId>,
    anonymous: bool,
}

impl TenantContext {
    /// The tenant.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The database role that the request runs as.
    pub fn role(&self) -> &Arc<str> {
        &self.role
    }

    /// JSON text for `request.jwt.claims`; `role` and `tenant_id` are always in it.
    pub fn claims(&self) -> &Arc<str> {
        &self.claims
    }

    /// The API key, where one was presented.
    pub fn key(&self) -> Option<KeyId> {
        self.key
    }

    /// Neither key nor token was presented.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous
    }
}

/// Why a request is not let in. Texts and codes are PostgREST's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Neither key nor token.
    #[error("Anonymous access is disabled")]
    Anonymous,
    /// The API key is not one of ours.
    #[error("The API key is not valid")]
    KeyInvalid,
    /// The API key was revoked.
    #[error("The API key was revoked")]
    KeyRevoked,
    /// The API key is past its end.
    #[error("The API key has expired")]
    KeyExpired,
    /// A token came, and no issuer is configured.
    #[error("Server lacks JWT secret")]
    NoIssuer,
    /// The token can't be decoded or verified.
    #[error("{0}")]
    Token(String),
    /// None of the keys that its issuer publishes fits: perhaps a newer one does.
    #[error("No suitable key or wrong key type")]
    KeyUnknown {
        /// Where it publishes them.
        url: Box<str>,
    },
    /// The token's claims are not acceptable.
    #[error("{0}")]
    Claims(String),
    /// Key and token name different tenants.
    #[error("The API key and the token name different tenants")]
    Disagree,
    /// Two different API keys, one as `apikey` and one as bearer token.
    #[error("The headers apikey and Authorization hold different API keys")]
    TwoKeys,
    /// The token names no tenant, and there is no key that does.
    #[error("The token names no tenant")]
    NoTenant,
    /// The token's issuer may not name that tenant.
    #[error("The token's issuer may not name this tenant")]
    IssuerTenant,
    /// The role is not one that requests may take.
    #[error("role \"{0}\" does not exist")]
    Role(String),
}

impl AuthError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Anonymous => "PGRST302",
            Self::NoIssuer => "PGRST300",
            Self::Token(_) | Self::KeyUnknown { .. } => "PGRST301",
            Self::Claims(_) => "PGRST303",
            Self::Role(_) => "22023",
            Self::KeyInvalid => "RF100",
            Self::KeyRevoked => "RF101",
            Self::KeyExpired => "RF102",
            Self::Disagree => "RF103",
            Self::NoTenant => "RF104",
            Self::IssuerTenant => "RF105",
            Self::TwoKeys => "RF106",
        }
    }

    /// What a client can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Anonymous => {
                Some("Send an API key in the header apikey, or a token in Authorization.")
            }
            Self::NoTenant => Some("Send an API key too, or a token with the claim tenant_id."),
            Self::TwoKeys => Some("Send one API key, in either header or in both."),
            _ => None,
        }
    }

    /// The value of `WWW-Authenticate` (RFC 6750).
    pub fn challenge(&self) -> String {
        match self {
            Self::Anonymous => "Bearer".into(),
            Self::Token(_) | Self::KeyUnknown { .. } | Self::Claims(_) => format!(
                "Bearer error=\"invalid_token\", error_description=\"{}\"",
                self.to_string().replace(['"', '\\'], "'")
            ),
            _ => "Bearer error=\"invalid_token\"".into(),
        }
    }
}

/// What does not change from request to request.
pub struct AuthSettings {
    /// The secret of API keys.
    pub keys: KeyRing,
    /// The issuer of tokens that name no registered one.
    pub default_issuer: DefaultIssuer,
    /// The tenant of requests with neither key nor token.
    pub anonymous_tenant: Option<TenantId>,
    /// Their role, and that of tokens that name none.
    pub anonymous_role: Arc<str>,
    /// Roles that a key or token may name.
    pub roles: Vec<Arc<str>>,
}

/// Checks keys and tokens.
pub struct Authenticator {
    settings: AuthSettings,
    tokens: token::Tokens,
    published: Arc<Published>,
}

impl Authenticator {
    /// With a bounded cache of verified tokens.
    pub fn new(settings: AuthSettings) -> Self {
        Self {
            tokens: token::Tokens::new(),
            published: Arc::default(),
            settings,
        }
    }

    /// Where the keys are put that issuers publish.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The URLs at which the default issuer and the registered ones publish their keys.
    pub fn urls(&self, snapshot: &Snapshot) -> Vec<Box<str>> {
        let registered = snapshot.fleet().issuers.iter();
        let registered = registered.filter_map(|issuer| issuer.jwks_url.as_deref());
        let all = registered.chain(self.settings.default_issuer.url());
        let mut urls: Vec<Box<str>> = all.map(Box::from).collect();
        urls.sort();
        urls.dedup();
        urls
    }

    /// Lets a request in, or says why not. `authorization` is the header's
    /// value, `apikey` that of the header of that name.
    pub fn authenticate(
        &self,
        snapshot: &Snapshot,
        apikey: Option<&str>,
        authorization: Option<&str>,
        now: SystemTime,
    ) -> Result<TenantContext, AuthError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let bearer = bearer(authorization)?;
        // Clients put their key into either header; both then hold the same.
        let (apikey, token) = match (apikey, bearer) {
            (None, Some(value)) if KeyRing::looks_like_key(value) => (Some(value), None),
            (Some(key), Some(value)) if value == key => (Some(key), None),
            (Some(key), Some(value))
                if KeyRing::looks_like_key(key) && KeyRing::looks_like_key(value) =>
            {
                return Err(AuthError::TwoKeys);
            }
            pair => pair,
        };
        // supabase-js has a legacy in which the project key is a token itself.
        let is_token =
            |value: &&str| !KeyRing::looks_like_key(value) && value.matches('.').count() == 2;
        let (apikey, project) = match apikey.filter(is_token) {
            Some(value) => (None, Some(value)),
            None => (apikey, None),
        };
        let (project, token) = match token {
            Some(token) => (project, Some(token)),
            None => (None, project),
        };
        let key = apikey
            .map(|text| self.check_key(snapshot, text, now))
            .transpose()?;
        let verify = |text: &str| {
            let default = &self.settings.default_issuer;
            self.tokens
                .verify(text, snapshot.fleet(), default, &self.published, now)
        };
        let project = project.map(verify).transpose()?;
        match (key, token.map(verify).transpose()?) {
            (None, None) => self.anonymous(),
            (Some(key), None) => self.with_key(&key),
            (Some(key), Some(token)) => self.with_token(Some(key.tenant), Some(key.id), &token),
            (None, Some(token)) => {
                let of_project = project.map_or(Ok(None), |project| project.named())?;
                self.with_token(of_project, None, &token)
            }
        }
    }

    fn check_key(
        &self,
        snapshot: &Snapshot,
        text: &str,
        now: Duration,
    ) -> Result<ApiKey, AuthError> {
        let key = self
            .settings
            .keys
            .verify(text)
            .map_err(|KeyError| AuthError::KeyInvalid)?;
        if key.expires_at.is_some_and(|end| end <= now.as_secs()) {
            return Err(AuthError::KeyExpired);
        }
        if snapshot.revoked().contains(&key.id) {
            return Err(AuthError::KeyRevoked);
        }
        Ok(key)
    }

    fn anonymous(&self) -> Result<TenantContext, AuthError> {
        let tenant = self.settings.anonymous_tenant.ok_or(AuthError::Anonymous)?;
        let role = self.settings.anonymous_role.clone();
        Ok(TenantContext {
            claims: plain_claims(&role, tenant),
            tenant,
            role,
            key: None,
            anonymous: true,
        })
    }

    fn with_key(&self, key: &ApiKey) -> Result<TenantContext, AuthError> {
        let role = self.role(&key.role)?;
        Ok(TenantContext {
            claims: plain_claims(&role, key.tenant),
            tenant: key.tenant,
            role,
            key: Some(key.id),
            anonymous: false,
        })
    }

    /// `of_key` is the tenant that the key beside the token names.
    fn with_token(
        &self,
        of_key: Option<TenantId>,
        key: Option<KeyId>,
        token: &token::Verified,
    ) -> Result<TenantContext, AuthError> {
        let tenant = match (of_key, token.tenant) {
            (Some(key), Some(token)) if key != token => return Err(AuthError::Disagree),
            (_, Some(tenant)) | (Some(tenant), None) => tenant,
            (None, None) => return Err(AuthError::NoTenant),
        };
        if !token.may_name(tenant) {
            return Err(AuthError::IssuerTenant);
        }
        let role = match &token.role {
            Some(role) => self.role(role)?,
            None => self.settings.anonymous_role.clone(),
        };
        Ok(TenantContext {
            claims: token.claims_for(&role, tenant),
            tenant,
            role,
            key,
            anonymous: false,
        })
    }

    /// The role as this process shares it, if requests may take it.
    fn role(&self, name: &str) -> Result<Arc<str>, AuthError> {
        let known = self.settings.roles.iter().find(|role| &***role == name);
        known
            .cloned()
            .ok_or_else(|| AuthError::Role(name.chars().take(63).collect()))
    }
}

fn bearer(authorization: Option<&str>) -> Result<Option<&str>, AuthError> {
    let Some(value) = authorization else {
        return Ok(None);
    };
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Ok(None);
    }
    match rest.trim() {
        "" => Err(AuthError::Token(
            "Empty JWT is sent in Authorization header".into(),
        )),
        token => Ok(Some(token)),
    }
}

fn plain_claims(role: &str, tenant: TenantId) -> Arc<str> {
    let role = serde_json::Value::from(role);
    format!("{{\"role\":{role},\"tenant_id\":\"{tenant}\"}}").into()
}

#[cfg(test)]
mod tests;
