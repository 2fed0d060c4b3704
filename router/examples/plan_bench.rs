//! What it costs to come from HTTP's parts to SQL, without a server; the goal
//! is 10 µs for a typical request. Run by ./ops/bench.

#![allow(clippy::unwrap_used, reason = "a benchmark stops where it can't go on")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use router::config::Api;
use router::plan::{Model, plan};
use router::request::{ApiRequest, RequestParts, body};
use router::sql;

#[path = "../tests/pure/model.rs"]
mod model;

const ROUNDS: u32 = 50_000;

const REQUESTS: [(&str, &str, &str, &str); 5] = [
    ("GET", "/companies", "id=eq.1", ""),
    (
        "GET",
        "/companies",
        "select=id,name&name=like.A*&order=name.desc&limit=20",
        "",
    ),
    (
        "GET",
        "/companies",
        "select=name,contacts(email)&contacts.order=email&limit=20",
        "",
    ),
    (
        "GET",
        "/deals",
        "select=id,amount,company:companies!inner(name),contacts(email)&amount=gt.5&or=(id.lt.9,company_id.is.null)&order=amount.desc.nullslast&limit=50&offset=100",
        "",
    ),
    (
        "POST",
        "/companies",
        "select=id",
        r#"{"name": "Acme", "tags": ["a"]}"#,
    ),
];

fn once(model: &Model, config: &Api, (method, path, query, sent): (&str, &str, &str, &str)) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let headers = HeaderMap::new();
    let parts = RequestParts {
        method: &method,
        path,
        query,
        headers: &headers,
    };
    let request = ApiRequest::parse(&parts, config).unwrap();
    let payload = body::parse(&request, None, Bytes::copy_from_slice(sent.as_bytes())).unwrap();
    let plan = plan(model, config, &request, &payload).unwrap();
    black_box(sql::statement(&plan, None, None).unwrap());
}

fn main() {
    let (model, config) = (model::crm(), Api::default());
    println!("from HTTP's parts to SQL (goal 10 µs):");
    for request in REQUESTS {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let started = Instant::now();
            for _ in 0..ROUNDS / 5 {
                once(&model, &config, request);
            }
            best = best.min(started.elapsed() / (ROUNDS / 5));
        }
        let (method, path, query, _) = request;
        println!(
            "  {:>6.2} µs  {method} {path}?{query}",
            best.as_secs_f64() * 1e6
        );
    }
}
