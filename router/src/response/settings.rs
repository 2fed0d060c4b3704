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

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(
        headers: Option<&str>,
        status: Option<&str>,
    ) -> Result<(StatusCode, HeaderMap), String> {
        let row = Row {
            headers: headers.map(str::to_owned),
            status: status.map(str::to_owned),
            ..Row::default()
        };
        let mut made = (StatusCode::OK, HeaderMap::new());
        made.1.insert("x-tea", HeaderValue::from_static("none"));
        match apply(&mut made.0, &mut made.1, &row) {
            Ok(()) => Ok(made),
            Err(error) => Err(error.report().code.into_owned()),
        }
    }

    #[test]
    fn what_functions_set_overrides_the_answer() {
        let headers = r#"[{"X-Tea": "green"}, {"Set-Cookie": "a=1"}, {"Set-Cookie": "b=2"}]"#;
        let (status, headers) = applied(Some(headers), Some("418")).unwrap();
        assert_eq!(status, StatusCode::IM_A_TEAPOT);
        assert_eq!(headers["x-tea"], "green");
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn what_is_neither_headers_nor_a_status_is_refused() {
        for bad in [
            "x",
            "{}",
            r#"{"X-Tea": "green"}"#,
            r#"[{"X-Tea": 1}]"#,
            "[{}]",
            r#"[{"a": "1", "b": "2"}]"#,
            r#"[{"no name": "1"}]"#,
            r#"[{"x-tea": "\n"}]"#,
        ] {
            assert_eq!(applied(Some(bad), None), Err("PGRST111".into()), "{bad}");
        }
        for bad in ["", "x", "99", "1000", "2.5"] {
            assert_eq!(applied(None, Some(bad)), Err("PGRST112".into()), "{bad}");
        }
    }
}
