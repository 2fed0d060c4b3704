//! What a request brings along into its transaction: the tenant and its epoch,
//! and the settings that policies and functions may read.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::COOKIE;
use schema::catalog::Catalog;
use serde_json::{Map, Value};
use telemetry::trace::Place;
use tenancy::auth::TenantContext;

use crate::config::Api;
use crate::execute::Guard;
use crate::plan::{Action, Plan};
use crate::request::ApiRequest;

/// What of a request its transaction may see.
pub struct Visible<'a> {
    /// Method.
    pub method: &'a http::Method,
    /// Path behind the prefix.
    pub path: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
}

/// The guard's values for a request.
///
/// `request.method` and its like cost more than a small read; they are sent
/// only where something in the shard's schema reads them.
pub fn guard(
    tenant: &TenantContext,
    epoch: i64,
    request: &ApiRequest,
    visible: &Visible<'_>,
    catalog: &Catalog,
    api: &Api,
    plan: &Plan,
) -> Guard {
    let mut settings: Vec<(&str, String)> = Vec::new();
    if catalog.reads_request_settings {
        let (headers, cookies) = headers_and_cookies(visible.headers);
        settings.push(("request.method", visible.method.to_string()));
        settings.push(("request.path", visible.path.to_owned()));
        settings.push(("request.headers", headers));
        settings.push(("request.cookies", cookies));
    }
    if request.schema != api.default_schema() {
        settings.push(("search_path", api.search_path(&request.schema)));
    }
    if let Action::Call(call) = &plan.action {
        let hoisted = call.settings.iter();
        settings.extend(hoisted.map(|(name, value)| (name.as_str(), value.clone())));
    }
    for (name, value) in request.settings() {
        settings.push((name, value.to_owned()));
    }
    Guard {
        tenant: tenant.tenant().0,
        epoch,
        before: api.before().map(|function| function.to_string().into()),
        claims: Bytes::copy_from_slice(tenant.claims().as_bytes()),
        settings: (!settings.is_empty()).then(|| array_literal(&settings)),
        claim: None,
    }
}

/// What Postgres calls the connection while it works for a traced request: found
/// in `pg_stat_activity` and in the server's log (`%a`), at most 63 bytes.
pub fn application(place: &Place) -> Arc<str> {
    format!("ringfence-router trace={}", place.trace_id()).into()
}

/// Two JSON objects; a header that comes several times is joined by commas.
fn headers_and_cookies(headers: &HeaderMap) -> (String, String) {
    let mut others = Map::new();
    let mut cookies = Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let text: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        if *name != COOKIE {
            others.insert(name.as_str().to_owned(), Value::from(text.join(", ")));
            continue;
        }
        for pair in text.iter().flat_map(|text| text.split(';')) {
            if let Some((name, value)) = pair.trim().split_once('=') {
                cookies.insert(name.to_owned(), Value::from(value));
            }
        }
    }
    (
        Value::Object(others).to_string(),
        Value::Object(cookies).to_string(),
    )
}

/// A Postgres array of names and values.
fn array_literal(settings: &[(&str, String)]) -> Bytes {
    let mut text = String::from("{");
    let items = settings
        .iter()
        .flat_map(|(name, value)| [*name, value.as_str()]);
    for (position, item) in items.enumerate() {
        if position > 0 {
            text.push(',');
        }
        text.push('"');
        // A zero byte can't be in a Postgres text.
        for c in item.chars().filter(|c| *c != '\0') {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_items_are_quoted() {
        let literal = array_literal(&[("a", "x\"y\\z,{}\0".into())]);
        assert_eq!(literal, Bytes::from_static(b"{\"a\",\"x\\\"y\\\\z,{}\"}"));
    }

    #[test]
    fn cookies_are_told_apart() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "1".parse().unwrap());
        headers.append("x-a", "2".parse().unwrap());
        headers.insert("cookie", "k=v; l=w".parse().unwrap());
        let (others, cookies) = headers_and_cookies(&headers);
        assert_eq!(others, r#"{"x-a":"1, 2"}"#);
        assert_eq!(cookies, r#"{"k":"v","l":"w"}"#);
    }
}
