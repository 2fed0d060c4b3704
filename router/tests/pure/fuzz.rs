//! Whatever a client sends is answered, with a fault of its own at most: no
//! panic, no status of 500, no text of it in SQL.
//!
//! Each target takes bytes. `cargo test` feeds it random ones for a bounded
//! number of times, more with `BOLERO_RANDOM_ITERATIONS`, and `cargo bolero
//! test pure::fuzz::…` with a fuzzing engine for as long as it is let. A million
//! malformed requests, which take some twenty seconds of a core:
//!
//! ```sh
//! RINGFENCE_MALFORMED=1000000 cargo test --release -p router --test pure malformed -- --nocapture
//! ```

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use router::config::Api;
use router::error::Error;
use router::plan::{Model, plan};
use router::request::{ApiRequest, RequestParts, body};
use router::sql;

use super::model;

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW",
];

/// A text that neither the catalog nor the router's own SQL has.
const MARK: &str = "zq9";

/// What requests are made of; the malformed ones of pieces of these.
const PIECES: [&str; 93] = [
    "companies",
    "contacts",
    "deals",
    "rpc/",
    "search",
    "echo",
    "nothing",
    "/",
    "?",
    "&",
    "=",
    ".",
    ",",
    "(",
    ")",
    "!",
    ":",
    "::",
    "->",
    "->>",
    "*",
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    " ",
    "%",
    "%2C",
    "%22",
    "%00",
    "%ff",
    "+",
    "select=",
    "order=",
    "limit=",
    "offset=",
    "columns=",
    "on_conflict=",
    "and=",
    "or=",
    "not.",
    "eq.",
    "neq.",
    "gt.",
    "like.",
    "ilike(any).",
    "in.(",
    "is.null",
    "is.",
    "fts(english).",
    "cs.",
    "ov.",
    "eq(all).{",
    "id",
    "name",
    "data",
    "tags",
    "email",
    "amount",
    "company_id",
    "tenant_id",
    "parent",
    "inner",
    "left",
    "...",
    "count()",
    "sum()",
    "asc",
    "desc",
    "nullsfirst",
    "null",
    "true",
    "-1",
    "0",
    "1",
    "99999999999999999999",
    "1e9",
    "é",
    "🦀",
    "{\"id\":1}",
    "[{\"name\":\"x\"}]",
    "{\"\":null}",
    "\u{0}",
    "int",
    "zq9",
    "\"zq9\"",
    "zq9:",
    "'zq9;--",
    "\"zq9\"\"/*",
    "text;drop",
    "--",
];

const HEADERS: [(&str, &str); 14] = [
    ("accept", "application/vnd.pgrst.object+json"),
    (
        "accept",
        "text/csv;q=0.1, application/vnd.pgrst.plan+json; for=\"text/csv\"; options=analyze|x;",
    ),
    ("accept", "x/y"),
    ("prefer", "return=representation, count=exact, tx=rollback"),
    ("prefer", "handling=strict, max-affected=-1, what=ever"),
    (
        "prefer",
        "resolution=merge-duplicates,missing=default,timezone=No/Where",
    ),
    (
        "prefer",
        "max-affected=99999999999999999999999, handling=strict",
    ),
    ("range", "5-1"),
    ("range", "0-18446744073709551616"),
    ("accept-profile", "secret"),
    ("content-profile", "public"),
    ("content-type", "text/csv"),
    ("content-type", "application/x-www-form-urlencoded"),
    ("content-type", "text/plain; charset=\"\\\""),
];

/// A request out of bytes, decided as far as it goes without a server.
fn decide(model: &Model, config: &Api, parts: &RequestParts<'_>, sent: Bytes) -> Result<(), Error> {
    let request = ApiRequest::parse(parts, config)?;
    let content_type = parts
        .headers
        .get("content-type")
        .and_then(|v| v.to_str().ok());
    let payload = body::parse(&request, content_type, sent)?;
    let plan = plan(model, config, &request, &payload)?;
    if let Some(statement) = sql::statement(&plan, None, None) {
        check(&statement.text);
    }
    Ok(())
}

/// Nothing that requests are marked with is in the text, and it is one statement:
/// its quotes are closed, and what stands outside of them ends or hides nothing.
fn check(sql: &str) {
    assert!(!sql.contains(MARK), "{sql}");
    let mut open = None;
    let mut last = ' ';
    for c in sql.chars() {
        match open {
            Some(quote) if c == quote => open = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => open = Some(c),
            None => {
                let comment = matches!((last, c), ('-', '-') | ('/', '*'));
                assert!(c != ';' && !comment, "{sql}");
            }
        }
        last = c;
    }
    assert_eq!(open, None, "{sql}");
}

/// The answer's status, which must never be the router's own fault.
fn answered(model: &Model, config: &Api, parts: &RequestParts<'_>, sent: &[u8]) {
    if let Err(error) = decide(model, config, parts, Bytes::copy_from_slice(sent)) {
        let status = error.report().status;
        assert!(
            status.is_client_error() || status == 300,
            "{status} {error} for {} {}?{}",
            parts.method,
            parts.path,
            parts.query
        );
    }
}

fn config() -> Api {
    Api {
        aggregates: true,
        plans: true,
        tx_rollback: true,
        ..Api::default()
    }
}

/// A small generator of its own (SplitMix64), so that a seed names a request for ever.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn pieces(&mut self, most: usize) -> String {
        (0..self.roll(most + 1))
            .map(|_| PIECES[self.roll(PIECES.len())])
            .collect()
    }
}

fn malformed(model: &Model, config: &Api, seed: u64) {
    let mut dice = Dice(seed);
    let method = Method::from_bytes(METHODS[dice.roll(METHODS.len())].as_bytes()).unwrap();
    let path = match dice.roll(4) {
        0 => format!("/{}", dice.pieces(3)),
        1 => "/rpc/search".to_owned(),
        _ => format!("/{}", PIECES[dice.roll(3)]),
    };
    let query = dice.pieces(24);
    let mut headers = HeaderMap::new();
    for _ in 0..dice.roll(3) {
        let (name, value) = HEADERS[dice.roll(HEADERS.len())];
        headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    let sent = dice.pieces(6);
    let parts = RequestParts {
        method: &method,
        path: &path,
        query: &query,
        headers: &headers,
    };
    answered(model, config, &parts, sent.as_bytes());
}

#[test]
fn malformed_requests_are_answered() {
    let count = std::env::var("RINGFENCE_MALFORMED").ok();
    let count: u64 = count
        .and_then(|count| count.parse().ok())
        .unwrap_or(500_000);
    let (model, config) = (model::crm(), config());
    let started = std::time::Instant::now();
    for seed in 0..count {
        malformed(&model, &config, seed);
    }
    println!(
        "{count} requests, {:?} each",
        started.elapsed() / count.max(1) as u32
    );
}

#[test]
fn query_strings_of_any_bytes() {
    let (model, config) = (model::crm(), config());
    bolero::check!()
        .with_type::<(u8, Vec<u8>)>()
        .for_each(|(choice, bytes)| {
            let query = String::from_utf8_lossy(bytes);
            let parts = RequestParts {
                method: &[Method::GET, Method::PATCH][usize::from(choice % 2)],
                path: ["/companies", "/rpc/search"][usize::from(choice / 2 % 2)],
                query: &query,
                headers: &HeaderMap::new(),
            };
            answered(&model, &config, &parts, b"{}");
        });
}

#[test]
fn bodies_of_any_bytes() {
    let (model, config) = (model::crm(), config());
    bolero::check!()
        .with_type::<(u8, Vec<u8>)>()
        .for_each(|(choice, bytes)| {
            let mut headers = HeaderMap::new();
            let kind = [
                "application/json",
                "text/csv",
                "application/x-www-form-urlencoded",
                "text/plain",
            ][usize::from(choice % 4)];
            headers.insert("content-type", HeaderValue::from_static(kind));
            let parts = RequestParts {
                method: &Method::POST,
                path: ["/companies", "/rpc/echo", "/rpc/search"][usize::from(choice / 4 % 3)],
                query: "",
                headers: &headers,
            };
            answered(&model, &config, &parts, bytes);
        });
}

#[test]
fn headers_of_any_bytes() {
    let (model, config) = (model::crm(), config());
    bolero::check!()
        .with_type::<(u8, Vec<u8>)>()
        .for_each(|(choice, bytes)| {
            let name = [
                "accept",
                "prefer",
                "range",
                "accept-profile",
                "content-type",
            ];
            let Ok(value) = HeaderValue::from_bytes(bytes) else {
                return;
            };
            let mut headers = HeaderMap::new();
            headers.insert(name[usize::from(*choice) % name.len()], value);
            let parts = RequestParts {
                method: &Method::GET,
                path: "/companies",
                query: "select=*",
                headers: &headers,
            };
            answered(&model, &config, &parts, b"");
        });
}
