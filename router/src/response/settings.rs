//! What functions set by `response.headers` and `response.status`.

use std::collections::BTreeMap;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::Row;
use crate::error::Error;

/// Lets them override what was decided here.
pub(super) fn apply(
    status: &mut StatusCode,
    headers: &mut HeaderMap,
    row: &Row,
) -> Result<(), Error> {
    if let Some(text) = &row.headers {
        let list: Vec<BTreeMap<String, String>> =
            serde_json::from_str(text).map_err(|_| Error::ResponseHeaders)?;
        let mut given = HeaderMap::new();
        for one in list {
            if one.len() != 1 {
                return Err(Error::ResponseHeaders);
            }
            for (name, value) in one {
                let name = HeaderName::try_from(name).map_err(|_| Error::ResponseHeaders)?;
                let value = HeaderValue::try_from(value).map_err(|_| Error::ResponseHeaders)?;
                given.append(name, value);
            }
        }
        for name in given.keys() {
            headers.remove(name);
        }
        headers.extend(given);
    }
    if let Some(text) = &row.status {
        let code = text.parse().ok();
        let code = code.and_then(|code| StatusCode::from_u16(code).ok());
        *status = code.ok_or(Error::ResponseStatus)?;
    }
    Ok(())
}
