//! API keys: opaque text that carries its tenant, and a MAC over all it says.
//!
//! `rf_` + base64url(version 1 · tenant 16 · key id 8 · end 8 · role length 1 · role · MAC 16),
//! numbers big-endian, the end in Unix seconds (0: none), the MAC
//! HMAC-SHA256 cut to 16 bytes (RFC 2104 §5).

use std::sync::Arc;

use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::id::{KeyId, TenantId};

const PREFIX: &str = "rf_";
const VERSION: u8 = 1;
const MAC: usize = 16;
const HEAD: usize = 1 + 16 + 8 + 8 + 1;
/// Longer than any key: role names have 63 bytes at most.
const TEXT_MAX: usize = 256;

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its number.
    pub id: KeyId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The role of requests that present it.
    pub role: Arc<str>,
    /// Its end in Unix seconds.
    pub expires_at: Option<u64>,
}

/// The text is not a key of this deployment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key of this deployment")]
pub struct KeyError;

/// Mints and verifies keys.
pub struct KeyRing {
    secret: hmac::Key,
}

impl KeyRing {
    /// All routers and workers of a deployment share `secret`.
    pub fn new(secret: &str) -> Self {
        Self {
            secret: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
        }
    }

    /// A key for another purpose, that no API key says anything of.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        // An API key's bytes begin with its version; no purpose begins so.
        let tag = hmac::sign(&self.secret, format!("derived: {purpose}").as_bytes());
        let mut key = [0; 32];
        for (to, from) in key.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        key
    }

    /// What workers show to routers that are to forget answers.
    pub fn purge_token(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.derive("purge"))
    }

    /// Whether the text has the form of a key; says nothing of its worth.
    pub fn looks_like_key(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The key's text. A role name longer than Postgres allows is refused.
    pub fn mint(&self, key: &ApiKey) -> Result<String, KeyError> {
        let role = key.role.as_bytes();
        let length = u8::try_from(role.len()).ok().filter(|n| *n <= 63);
        let mut bytes = Vec::with_capacity(HEAD + role.len() + MAC);
        bytes.push(VERSION);
        bytes.extend(key.tenant.0.as_bytes());
        bytes.extend(key.id.0.to_be_bytes());
        bytes.extend(key.expires_at.unwrap_or(0).to_be_bytes());
        bytes.push(length.ok_or(KeyError)?);
        bytes.extend(role);
        let tag = hmac::sign(&self.secret, &bytes);
        bytes.extend(&tag.as_ref()[..MAC]);
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// What the text says, if it is a key of this deployment.
    pub fn verify(&self, text: &str) -> Result<ApiKey, KeyError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(KeyError)?;
        if text.len() > TEXT_MAX {
            return Err(KeyError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| KeyError)?;
        let split = bytes.len().checked_sub(MAC).ok_or(KeyError)?;
        let (said, mac) = bytes.split_at(split);
        let tag = hmac::sign(&self.secret, said);
        constant_time::verify_slices_are_equal(&tag.as_ref()[..MAC], mac).map_err(|_| KeyError)?;
        parse(said).ok_or(KeyError)
    }
}

fn parse(said: &[u8]) -> Option<ApiKey> {
    let (version, rest) = said.split_first()?;
    let (tenant, rest) = rest.split_first_chunk::<16>()?;
    let (id, rest) = rest.split_first_chunk::<8>()?;
    let (end, rest) = rest.split_first_chunk::<8>()?;
    let (length, role) = rest.split_first()?;
    if *version != VERSION || role.len() != usize::from(*length) {
        return None;
    }
    Some(ApiKey {
        id: KeyId(i64::from_be_bytes(*id)),
        tenant: TenantId(Uuid::from_bytes(*tenant)),
        role: std::str::from_utf8(role).ok()?.into(),
        expires_at: Some(u64::from_be_bytes(*end)).filter(|end| *end != 0),
    })
}
