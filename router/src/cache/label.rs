//! What an answer says of where it came from: `Cache-Status` (RFC 9211), and the
//! same in one word. Pure.

use std::time::Duration;

use http::header::{AGE, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::Level;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SOURCE: HeaderName = HeaderName::from_static("ringfence-cache");

/// Labels an answer. `old`: it may lack what was written in so long a time.
pub fn put(headers: &mut HeaderMap, level: Level, old: Option<Duration>) {
    let (word, status) = match (level, old) {
        (Level::Local, None) => ("l1", "ringfence; hit; detail=l1"),
        (Level::Local, Some(_)) => ("l1", "ringfence; hit; detail=l1-old"),
        (Level::Shared, None) => ("l2", "ringfence; hit; detail=l2"),
        (Level::Shared, Some(_)) => ("l2", "ringfence; hit; detail=l2-old"),
        (Level::Filled, _) => ("fill", "ringfence; fwd=miss; stored"),
        (Level::Missed, _) => ("miss", "ringfence; fwd=miss"),
        (Level::Bypassed, _) => ("bypass", "ringfence; fwd=bypass"),
    };
    headers.insert(SOURCE, HeaderValue::from_static(word));
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
    if matches!(level, Level::Local | Level::Shared) {
        // What answers without `old` was found to be current just now.
        headers.insert(AGE, HeaderValue::from(old.map_or(0, |old| old.as_secs())));
    }
}
