//! Who answered: read from `Cache-Status` (RFC 9211) and `Server-Timing`.

use http::{HeaderMap, HeaderName};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The router's own memory.
    L1,
    /// The shared cache.
    L2,
    /// A replica of the shard.
    Replica,
    /// The shard's primary.
    Primary,
    /// The answer does not say.
    Unknown,
}

impl Origin {
    /// All, in the order of reports.
    pub const ALL: [Origin; 5] = [
        Origin::L1,
        Origin::L2,
        Origin::Replica,
        Origin::Primary,
        Origin::Unknown,
    ];

    /// As reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Origin::L1 => "L1",
            Origin::L2 => "L2",
            Origin::Replica => "replica",
            Origin::Primary => "primary",
            Origin::Unknown => "unknown",
        }
    }

    /// Its place in [`Origin::ALL`].
    pub fn place(self) -> usize {
        self as usize
    }

    /// Where the answer with these headers came from. A cache that reports a
    /// hit says its level in its name or detail; else the timing entry of a
    /// node says which kind it is.
    pub fn of(headers: &HeaderMap) -> Origin {
        let cache = headers.get(CACHE_STATUS).map(http::HeaderValue::as_bytes);
        if let Some(cache) = cache
            && has_word(cache, b"hit")
        {
            return if has_word(cache, b"l2") {
                Origin::L2
            } else {
                Origin::L1
            };
        }
        let timing = headers
            .get(SERVER_TIMING)
            .map(http::HeaderValue::as_bytes)
            .unwrap_or_default();
        let said =
            |word| has_word(timing, word) || cache.is_some_and(|cache| has_word(cache, word));
        if said(b"replica") {
            Origin::Replica
        } else if said(b"primary") {
            Origin::Primary
        } else {
            Origin::Unknown
        }
    }
}

/// Whether a header has a word that stands alone, in any case.
fn has_word(text: &[u8], word: &[u8]) -> bool {
    let is_letter = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.windows(word.len()).enumerate().any(|(at, window)| {
        window.eq_ignore_ascii_case(word)
            && !is_letter(at.checked_sub(1).and_then(|before| text.get(before)))
            && !is_letter(text.get(at + word.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_headers_of_routers() {
        for (cache, timing, origin) in [
            ("ringfence; hit; ttl=1; detail=l1", "", Origin::L1),
            ("Ringfence-L2; hit", "auth;dur=0.1, l2;dur=0.4", Origin::L2),
            (
                "ringfence; fwd=miss; stored",
                "plan;dur=0.01, replica;dur=1.2",
                Origin::Replica,
            ),
            (
                "ringfence; fwd=bypass",
                "execute;dur=1.2;desc=\"primary\"",
                Origin::Primary,
            ),
            ("ringfence; fwd=miss; detail=primary", "", Origin::Primary),
            ("", "db;dur=53, architecture;dur=1", Origin::Unknown),
            ("white; fwd=uri-miss", "", Origin::Unknown),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_STATUS, cache.parse().unwrap());
            headers.insert(SERVER_TIMING, timing.parse().unwrap());
            assert_eq!(Origin::of(&headers), origin, "{cache} | {timing}");
        }
        assert_eq!(Origin::of(&HeaderMap::new()), Origin::Unknown);
    }
}
