//! What browsers on other origins may do: everything that other clients may, from
//! any origin, or from those of a list and then with credentials, too.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response};

const METHODS: &str = "GET, POST, PATCH, PUT, DELETE, OPTIONS, HEAD";
const ALWAYS_ALLOWED: &str = "Accept, Accept-Language, Content-Language";
const EXPOSED: &str = "Content-Encoding, Content-Location, Content-Range, Content-Type, Date, \
     Location, Server, Transfer-Encoding, Range-Unit, Preference-Applied, Proxy-Status, \
     Retry-After, RateLimit, RateLimit-Policy, ETag, Idempotency-Replayed, Ringfence-Token, \
     Ringfence-Cache, Cache-Status, Age, X-Request-Id";

/// The answer to a preflight request; none where it is no such request, or comes
/// from an origin that is not of the list. An empty list is of all.
pub fn preflight(
    origins: &[String],
    method: &Method,
    headers: &HeaderMap,
) -> Option<Response<Bytes>> {
    if *method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut response = Response::new(Bytes::new());
    let out = response.headers_mut();
    if !admit(origins, headers, out) {
        return None;
    }
    let requested = headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    let requested = requested
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let allowed = match requested {
        "" => format!("Authorization, {ALWAYS_ALLOWED}"),
        requested => {
            let names: Vec<&str> = requested.split(',').map(str::trim).collect();
            format!("Authorization, {}, {ALWAYS_ALLOWED}", names.join(", "))
        }
    };
    out.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(METHODS),
    );
    // Made of header values, so it is one.
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        out.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    out.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    Some(response)
}

/// Lets a page on another origin read an answer; `request` are the request's headers.
pub fn allow(origins: &[String], request: &HeaderMap, response: &mut HeaderMap) {
    if admit(origins, request, response) {
        response.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED),
        );
    }
}

/// Names the origin that may read the answer, if the request's is one.
fn admit(origins: &[String], request: &HeaderMap, response: &mut HeaderMap) -> bool {
    let origin = request.get(ORIGIN);
    if origins.is_empty() {
        if origin.is_some() {
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        return origin.is_some();
    }
    response.append(VARY, HeaderValue::from_static("Origin"));
    response.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
    let listed = |origin: &&HeaderValue| origins.iter().any(|one| *one == **origin);
    let Some(origin) = origin.filter(listed) else {
        return false;
    };
    response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    response.insert(
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        HeaderValue::from_static("true"),
    );
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn shown<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
        headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    const ASKED: [(&str, &str); 3] = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "apikey,prefer"),
    ];

    #[test]
    fn a_preflight_is_told_that_all_is_allowed() {
        let told = preflight(&[], &Method::OPTIONS, &headers(&ASKED)).unwrap();
        let told = told.headers();
        assert_eq!(shown(told, "access-control-allow-origin"), "*");
        assert_eq!(shown(told, "access-control-allow-credentials"), "");
        assert_eq!(shown(told, "access-control-allow-methods"), METHODS);
        assert_eq!(
            shown(told, "access-control-allow-headers"),
            "Authorization, apikey, prefer, Accept, Accept-Language, Content-Language"
        );
        assert_eq!(shown(told, "access-control-max-age"), "86400");
        let bare = preflight(&[], &Method::OPTIONS, &headers(&ASKED[..2])).unwrap();
        assert_eq!(
            shown(bare.headers(), "access-control-allow-headers"),
            "Authorization, Accept, Accept-Language, Content-Language"
        );
        for (method, asked) in [
            (Method::POST, &ASKED[..]),
            (Method::OPTIONS, &ASKED[..1]),
            (Method::OPTIONS, &ASKED[1..]),
        ] {
            assert!(preflight(&[], &method, &headers(asked)).is_none());
        }
    }

    #[test]
    fn pages_may_read_what_the_router_adds() {
        let mut answer = HeaderMap::new();
        allow(&[], &headers(&ASKED[..1]), &mut answer);
        let exposed: Vec<&str> = shown(&answer, "access-control-expose-headers")
            .split(", ")
            .collect();
        for name in [
            "Content-Range",
            "ETag",
            "Ringfence-Token",
            "Ringfence-Cache",
            "Cache-Status",
            "Age",
            "X-Request-Id",
        ] {
            assert!(exposed.contains(&name), "{name}");
        }
        let mut answer = HeaderMap::new();
        allow(&[], &HeaderMap::new(), &mut answer);
        assert!(answer.is_empty());
    }

    #[test]
    fn with_a_list_its_origins_alone_may_and_with_credentials() {
        let list = ["https://app.example".to_owned()];
        let told = preflight(&list, &Method::OPTIONS, &headers(&ASKED)).unwrap();
        assert_eq!(
            shown(told.headers(), "access-control-allow-origin"),
            "https://app.example"
        );
        assert_eq!(
            shown(told.headers(), "access-control-allow-credentials"),
            "true"
        );
        let others = ["https://app.example.evil".to_owned()];
        assert!(preflight(&others, &Method::OPTIONS, &headers(&ASKED)).is_none());
        // What an OPTIONS request is answered without regard to the origin.
        let mut answer = headers(&[("access-control-allow-origin", "*")]);
        allow(&others, &headers(&ASKED[..1]), &mut answer);
        assert_eq!(answer, headers(&[("vary", "Origin")]));
    }
}
