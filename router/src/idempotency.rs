//! Idempotency-Key: a write that is sent again is answered, not done, again.
//!
//! The key, a fingerprint of the request, and the answer are stored in the
//! write's own transaction on the tenant's shard (schema/shard/010_idempotency.sql).
//! So they are there exactly if the write is, and go wherever the tenant goes.
//! Pure: what is read of a request, and what the shard's refusals mean.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, IF_MATCH};
use http::{HeaderMap, HeaderValue, Response};
use serde_json::Value;

use crate::config::Limits;
use crate::error::Error;
use crate::execute::Claim;
use crate::plan::Form;
use crate::request::RequestParts;
use crate::sql::Statement;

/// The request's header.
pub const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The answer's header: it was made for an earlier request.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// SQLSTATE: the key belongs to another request.
pub const OTHER_REQUEST: &str = "RF031";
/// Longest key.
const KEY_BYTES_MAX: usize = 255;

/// Headers that shape what a write does or answers.
const SHAPING: [HeaderName; 5] = [
    ACCEPT,
    CONTENT_TYPE,
    IF_MATCH,
    HeaderName::from_static("content-profile"),
    HeaderName::from_static("prefer"),
];

/// Claims that differ between two tokens of the same session.
const FLEETING: [&str; 4] = ["exp", "iat", "jti", "nbf"];
/// The claim that an export and import change; keys are each tenant's own anyway.
const TENANT: &str = "tenant_id";

/// The key of a write, and what is kept with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The key.
    pub key: Bytes,
    /// Digest of the request and of who asks, as a Postgres bytea literal.
    pub fingerprint: Bytes,
    /// What earlier versions made of the same request, with the tenant in it: they
    /// may have stored it a day ago.
    earlier: Option<Bytes>,
    /// How long the answer is kept.
    pub seconds: u32,
    /// Largest body that is kept.
    pub body_bytes_max: usize,
    /// Keys of one tenant that are kept at once, more or less.
    pub keys_max: u64,
}

impl Keep {
    /// Reads the key of a request, if it has one; `claims` say who asks.
    ///
    /// # Errors
    /// Where the header is no key.
    pub fn read(
        parts: &RequestParts<'_>,
        body: &[u8],
        claims: &str,
        limits: &Limits,
    ) -> Result<Option<Self>, Error> {
        let Some(key) = key(parts.headers)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            key,
            fingerprint: fingerprint(parts, body, &lasting(claims, false)),
            earlier: Some(fingerprint(parts, body, &lasting(claims, true))),
            seconds: limits.idempotency_seconds,
            body_bytes_max: limits.idempotency_body_bytes_max,
            keys_max: limits.idempotency_keys_max,
        }))
    }

    /// The same by its earlier fingerprint, if this is not it: for a key that seems
    /// to be another request's.
    pub fn earlier(&self) -> Option<Self> {
        let fingerprint = self.earlier.clone()?;
        Some(Self {
            fingerprint,
            earlier: None,
            ..self.clone()
        })
    }

    /// What is claimed before the write.
    pub fn claim(&self) -> Claim {
        Claim {
            key: self.key.clone(),
            fingerprint: self.fingerprint.clone(),
            keys_max: self.keys_max.to_string().into(),
        }
    }

    /// Reads what was answered; the columns are those of every statement. As a
    /// write, so that the primary answers, and with a token to read on by.
    pub fn kept(&self) -> Statement {
        Statement {
            text: "select k.* from ringfence.kept($5::text, $6::bytea) k".into(),
            params: vec![Some(self.key.clone()), Some(self.fingerprint.clone())],
            form: Form::Write,
            calls: true,
        }
    }
}

/// Marks an answer that was made for an earlier request.
pub fn replayed(mut response: Response<Bytes>) -> Response<Bytes> {
    let yes = HeaderValue::from_static("true");
    response.headers_mut().insert(REPLAYED, yes);
    response
}

/// The key is taken as it is; quotes around it, which the standard's draft asks
/// for and hardly a client sends, make no other key.
fn key(headers: &HeaderMap) -> Result<Option<Bytes>, Error> {
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let bytes = value.as_bytes().trim_ascii();
    let bytes = match bytes {
        [b'"', inner @ .., b'"'] => inner,
        other => other,
    };
    let plain = |byte: &u8| (0x20..0x7f).contains(byte);
    let fits = !bytes.is_empty() && bytes.len() <= KEY_BYTES_MAX && bytes.iter().all(plain);
    if !fits || values.next().is_some() {
        return Err(Error::IdempotencyKey { max: KEY_BYTES_MAX });
    }
    Ok(Some(Bytes::copy_from_slice(bytes)))
}

/// A hash of all that makes two requests the same one; `person` is who asks.
fn fingerprint(parts: &RequestParts<'_>, body: &[u8], person: &str) -> Bytes {
    let mut hash = blake3::Hasher::new();
    // Each part with its length, so that none can run into the next.
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(parts.method.as_str().as_bytes());
    part(parts.path.as_bytes());
    part(parts.query.as_bytes());
    for name in &SHAPING {
        for value in parts.headers.get_all(name) {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
    }
    part(person.as_bytes());
    part(body);
    format!("\\x{}", hash.finalize().to_hex()).into()
}

/// The claims without those that a renewed token changes, in order.
fn lasting(claims: &str, with_tenant: bool) -> String {
    let all: BTreeMap<String, Value> = match serde_json::from_str(claims) {
        Ok(all) => all,
        Err(_) => return claims.to_owned(),
    };
    let lasting = all
        .iter()
        .filter(|(name, _)| !FLEETING.contains(&name.as_str()) && (with_tenant || *name != TENANT));
    let lasting: Vec<String> = lasting.map(|(name, v)| format!("{name:?}:{v}")).collect();
    lasting.join(",")
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::try_from(*name).unwrap();
            map.append(name, value.parse().unwrap());
        }
        map
    }

    fn print(method: Method, path: &str, query: &str, pairs: &[(&str, &str)], body: &str) -> Bytes {
        let parts = RequestParts {
            method: &method,
            path,
            query,
            headers: &headers(pairs),
        };
        fingerprint(&parts, body.as_bytes(), "someone")
    }

    #[test]
    fn a_key_is_text_of_bounded_length() {
        let read = |value: &str| key(&headers(&[("idempotency-key", value)]));
        assert_eq!(read("a-1").unwrap().unwrap(), "a-1");
        assert_eq!(read("\"a-1\"").unwrap().unwrap(), "a-1");
        assert_eq!(read(&"k".repeat(255)).unwrap().unwrap().len(), 255);
        for bad in ["", " ", "\"\"", &"k".repeat(256), "ключ"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
        let twice = headers(&[("idempotency-key", "a"), ("idempotency-key", "a")]);
        assert!(key(&twice).is_err());
    }

    #[test]
    fn a_fingerprint_tells_requests_apart() {
        let base = print(Method::POST, "/t", "a=1", &[("prefer", "tx=commit")], "{}");
        assert_eq!(base.len(), 2 + 64);
        let same = [("prefer", "tx=commit"), ("x-retry-count", "1")];
        assert_eq!(base, print(Method::POST, "/t", "a=1", &same, "{}"));
        let prefer = &[("prefer", "tx=commit")];
        for other in [
            print(Method::PUT, "/t", "a=1", prefer, "{}"),
            print(Method::POST, "/t/a=1", "", prefer, "{}"),
            print(Method::POST, "/t", "a=2", prefer, "{}"),
            print(Method::POST, "/t", "a=1", &[], "{}"),
            print(Method::POST, "/t", "a=1", &[("accept", "tx=commit")], "{}"),
            print(Method::POST, "/t", "a=1", prefer, "{} "),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_renewed_token_is_the_same_person() {
        let one = r#"{"role":"a","sub":"1","exp":1,"iat":1,"jti":"x"}"#;
        let renewed = r#"{"exp":9,"sub":"1","role":"a","iat":8}"#;
        let other = r#"{"role":"a","sub":"2","exp":1}"#;
        assert_eq!(lasting(one, true), lasting(renewed, true));
        assert_ne!(lasting(one, false), lasting(other, false));
    }

    #[test]
    fn a_tenant_that_got_another_id_is_the_same_and_earlier_fingerprints_are_known() {
        let claims = |tenant: &str| format!(r#"{{"role":"a","tenant_id":"{tenant}"}}"#);
        assert_eq!(lasting(&claims("1"), false), lasting(&claims("2"), false));
        let parts = RequestParts {
            method: &Method::POST,
            path: "/t",
            query: "",
            headers: &headers(&[("idempotency-key", "k")]),
        };
        let keep = Keep::read(&parts, b"{}", &claims("1"), &Limits::default());
        let keep = keep.unwrap().unwrap();
        let earlier = keep.earlier().unwrap();
        let person = r#""role":"a","tenant_id":"1""#;
        assert_eq!(earlier.fingerprint, fingerprint(&parts, b"{}", person));
        assert_ne!(earlier.fingerprint, keep.fingerprint);
        assert_eq!(earlier.earlier(), None);
    }
}
