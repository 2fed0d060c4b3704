//! What a client says of how old its answer may be: `Cache-Control` of the
//! request (RFC 9111 §5.2.1, RFC 5861 §4). Pure.

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

/// A client's words. Without any, every acknowledged write is in the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// `max-age=N`: an answer up to so old will do, whatever was written since.
    pub max_age: Option<Duration>,
    /// `stale-if-error=N`: so will one up to so old, when the shard can't answer.
    pub stale_if_error: Option<Duration>,
    /// `no-cache`: the shard itself is to answer.
    pub no_cache: bool,
    /// `no-store`: the same, and the answer is not kept.
    pub no_store: bool,
}

impl Control {
    /// Reads the request's headers. What is not understood is ignored, and of
    /// several the strictest counts, as RFC 9111 asks.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            let Ok(text) = value.to_str() else { continue };
            for directive in text.split(',').map(str::trim) {
                found.take(directive);
            }
        }
        found
    }

    /// The caches are not asked.
    pub fn reads_past(&self) -> bool {
        self.no_cache || self.no_store
    }

    fn take(&mut self, directive: &str) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        let seconds = || {
            value
                .trim_matches('"')
                .parse()
                .ok()
                .map(Duration::from_secs)
        };
        let strictest = |old: Option<Duration>, new: Option<Duration>| match (old, new) {
            (Some(old), Some(new)) => Some(old.min(new)),
            (old, new) => old.or(new),
        };
        match name.to_ascii_lowercase().as_str() {
            "max-age" => self.max_age = strictest(self.max_age, seconds()),
            "stale-if-error" => {
                self.stale_if_error = strictest(self.stale_if_error, seconds());
            }
            "no-cache" => self.no_cache = true,
            "no-store" => self.no_store = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&'static str]) -> Control {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CACHE_CONTROL, value.parse().unwrap());
        }
        Control::parse(&headers)
    }

    #[test]
    fn words_are_read_and_others_ignored() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(parse(&[]), Control::default());
        let found = parse(&[
            "Max-Age=\"60\", stale-if-error=5",
            "max-age=30, foo, max-age=x",
        ]);
        let expected = Control {
            max_age: seconds(30),
            stale_if_error: seconds(5),
            ..Control::default()
        };
        assert_eq!(found, expected);
        assert!(parse(&["no-cache"]).reads_past() && parse(&["no-store"]).reads_past());
        // A browser's reload: what the caches answer is as of now anyway.
        assert!(!parse(&["max-age=0"]).reads_past());
    }
}
