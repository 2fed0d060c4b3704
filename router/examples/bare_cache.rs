//! What ./ops/bench compares answers out of the caches with: an axum handler that
//! returns the same bytes, and one that gets them from Redis Cluster, under names
//! on all its masters by turns, without tenants, plans or proofs.
//! `bare_cache ADDRESS BODY REDIS…`, with the password in `REDIS_PASSWORD`.

#![allow(clippy::unwrap_used, reason = "a benchmark stops where it can't go on")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use bytes::Bytes;
use redis::AsyncCommands;
use redis::cluster::ClusterClientBuilder;

/// As many as there are rows in the demo that a router gets by their keys.
const NAMES: usize = 2_000;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap();
    let body = Bytes::from(args.next().unwrap());
    let builder = ClusterClientBuilder::new(args);
    let builder = builder.password(std::env::var("REDIS_PASSWORD").unwrap_or_default());
    let client = builder.build().unwrap();
    let mut connection = client.get_async_connection().await.unwrap();
    let names: Arc<[String]> = (0..NAMES).map(|n| format!("ringfence-bench:{n}")).collect();
    for name in names.iter() {
        let _: () = connection.set(name, body.as_ref()).await.unwrap();
    }
    let next = Arc::new(AtomicUsize::new(0));
    const JSON: &str = "application/json; charset=utf-8";
    let from_redis = move || {
        let (mut connection, names) = (connection.clone(), names.clone());
        let turn = next.fetch_add(1, Ordering::Relaxed) % NAMES;
        async move {
            let body: Vec<u8> = connection.get(&names[turn]).await.unwrap();
            ([(CONTENT_TYPE, JSON)], body)
        }
    };
    let same = move || async move { ([(CONTENT_TYPE, JSON)], body) };
    let routes = Router::new()
        .route("/redis/{*rest}", get(from_redis.clone()))
        .route("/redis/", get(from_redis))
        .fallback(get(same));
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    axum::serve(listener, routes).await.unwrap();
}
