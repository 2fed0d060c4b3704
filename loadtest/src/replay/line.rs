//! One line of an access log. Pure.

use http::Method;
use serde_json::Value;

use crate::calendar;

/// A request as a log has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// When it arrived, in seconds.
    pub at: f64,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Whose it was, in the log's own words.
    pub tenant: Option<String>,
}

/// Understands a line; none when it is not of a request.
pub(super) fn parse(line: &str) -> Option<Request> {
    let line = line.trim();
    if line.starts_with('{') {
        json(line)
    } else {
        combined(line)
    }
}

/// `address - user [time] "GET /path HTTP/1.1" status bytes …`
fn combined(line: &str) -> Option<Request> {
    let (client, rest) = line.split_once(" [")?;
    let (time, rest) = rest.split_once("] \"")?;
    let (request, _) = rest.split_once('"')?;
    let mut fields = client.split(' ');
    let address = fields.next()?;
    let user = fields.nth(1).filter(|user| *user != "-");
    let (method, path) = request_line(request)?;
    Some(Request {
        at: calendar::parse_common_log(time)?,
        method,
        path,
        tenant: Some(user.unwrap_or(address).to_owned()),
    })
}

/// A JSON object; the names of Nginx' variables and of the router's own log.
fn json(line: &str) -> Option<Request> {
    let object: Value = serde_json::from_str(line).ok()?;
    let field = |names: &[&str]| {
        names
            .iter()
            .map(|name| &object[*name])
            .find(|value| !value.is_null())
    };
    let text = |names: &[&str]| field(names).and_then(Value::as_str);
    let (method, mut path) = match (
        text(&["method", "request_method"]),
        text(&["path", "request_uri", "uri"]),
    ) {
        (Some(method), Some(path)) => {
            (Method::from_bytes(method.as_bytes()).ok()?, path.to_owned())
        }
        _ => request_line(text(&["request"])?)?,
    };
    if let Some(query) = text(&["query", "args"])
        && !query.is_empty()
        && !path.contains('?')
    {
        path = format!("{path}?{query}");
    }
    if !path.starts_with('/') {
        return None;
    }
    // Logs are written when a request ends; what is replayed is its begin.
    let number = |names: &[&str]| field(names).and_then(number);
    let took = number(&["duration_ms"])
        .map(|ms| ms / 1_000.0)
        .or_else(|| number(&["request_time"]));
    let end = moment(field(&[
        "time",
        "msec",
        "timestamp",
        "ts",
        "@timestamp",
        "time_iso8601",
        "time_local",
    ])?)?;
    Some(Request {
        at: end - took.unwrap_or(0.0),
        method,
        path,
        tenant: text(&["tenant", "tenant_id", "remote_user", "host", "remote_addr"])
            .filter(|tenant| !tenant.is_empty())
            .map(str::to_owned),
    })
}

fn request_line(request: &str) -> Option<(Method, String)> {
    let mut words = request.split(' ');
    let method = Method::from_bytes(words.next()?.as_bytes()).ok()?;
    let path = words.next().filter(|path| path.starts_with('/'))?;
    Some((method, path.to_owned()))
}

/// Nginx writes numbers as texts.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

/// Seconds since 1970; milliseconds are recognised by their size.
fn moment(value: &Value) -> Option<f64> {
    match number(value) {
        Some(millis) if millis > 1e11 => Some(millis / 1_000.0),
        Some(seconds) => Some(seconds),
        None => calendar::parse_rfc3339(value.as_str()?)
            .or_else(|| calendar::parse_common_log(value.as_str()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(at: f64, path: &str, tenant: Option<&str>) -> Option<Request> {
        Some(Request {
            at,
            method: Method::GET,
            path: path.to_owned(),
            tenant: tenant.map(str::to_owned),
        })
    }

    #[test]
    fn reads_nginx_combined() {
        let line = r#"10.0.0.7 - acme [01/Jan/1970:00:00:09 +0000] "GET /rest/v1/notes?id=eq.1 HTTP/1.1" 200 31 "-" "x""#;
        assert_eq!(
            parse(line),
            request(9.0, "/rest/v1/notes?id=eq.1", Some("acme"))
        );
        let nobody = line.replace("- acme", "- -");
        assert_eq!(
            parse(&nobody),
            request(9.0, "/rest/v1/notes?id=eq.1", Some("10.0.0.7"))
        );
    }

    #[test]
    fn reads_nginx_json() {
        let line = r#"{"msec":"1700000000.500","request":"GET /a HTTP/1.1","request_time":"0.250","remote_user":"acme"}"#;
        assert_eq!(parse(line), request(1_700_000_000.25, "/a", Some("acme")));
        let line = r#"{"time_iso8601":"1970-01-01T00:00:02+00:00","request_method":"GET","uri":"/a","args":"b=1","host":"acme.example"}"#;
        assert_eq!(parse(line), request(2.0, "/a?b=1", Some("acme.example")));
    }

    #[test]
    fn reads_the_routers_own() {
        let line = r#"{"time":1700000000.500,"level":"INFO","message":"request","request_id":"r","tenant":"t-1","shard":"s1","method":"GET","path":"/rest/v1/a","status":200,"code":null,"duration_ms":500.0,"bytes":1}"#;
        assert_eq!(
            parse(line),
            request(1_700_000_000.0, "/rest/v1/a", Some("t-1"))
        );
        assert_eq!(
            parse(&line.replace("\"t-1\"", "null")),
            request(1_700_000_000.0, "/rest/v1/a", None)
        );
    }

    #[test]
    fn other_lines_are_no_requests() {
        for line in [
            "",
            "{",
            r#"{"time":1,"level":"INFO","message":"ready"}"#,
            r#"1.2.3.4 - - [01/Jan/1970:00:00:09 +0000] "\x16\x03" 400 0"#,
            "Jan 1 00:00:00 host kernel: something",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
