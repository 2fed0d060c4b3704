//! What browsers on other origins may do: everything that other clients may.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method, Response};

const METHODS: &str = "GET, POST, PATCH, PUT, DELETE, OPTIONS, HEAD";
const ALWAYS_ALLOWED: &str = "Accept, Accept-Language, Content-Language";
const EXPOSED: &str = "Content-Encoding, Content-Location, Content-Range, Content-Type, Date, \
     Location, Server, Transfer-Encoding, Range-Unit, Preference-Applied, Proxy-Status, \
     Retry-After, RateLimit, RateLimit-Policy, ETag, \
     Idempotency-Replayed";

/// The answer to a preflight request; none where it is no such request.
pub fn preflight(method: &Method, headers: &HeaderMap) -> Option<Response<Bytes>> {
    let asks = headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if *method != Method::OPTIONS || !asks {
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
    let mut response = Response::new(Bytes::new());
    let out = response.headers_mut();
    out.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
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
pub fn allow(request: &HeaderMap, response: &mut HeaderMap) {
    if request.contains_key(ORIGIN) {
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        response.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED),
        );
    }
}
