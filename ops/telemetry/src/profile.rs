//! `GET /debug/pprof/profile?seconds=N`: where this process' CPU time goes, in
//! the format of `go tool pprof`. One at a time, for a minute at most.

mod format;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pprof::ProfilerGuardBuilder;
use serde::Deserialize;
use tokio::sync::Semaphore;

/// Samples a second, per thread that is running. Not 100: what runs every 10 ms
/// would be seen always or never.
const FREQUENCY: i32 = 99;
const SECONDS: u64 = 10;
const SECONDS_MAX: u64 = 60;
/// Samples inside these are left out: unwinding from there can take a lock that
/// the interrupted thread holds.
const NOT_IN: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// The route.
pub fn routes() -> Router {
    Router::new()
        .route("/debug/pprof/profile", get(profile))
        .with_state(Arc::new(Semaphore::new(1)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    seconds: Option<u64>,
}

async fn profile(
    State(one): State<Arc<Semaphore>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, (StatusCode, String)> {
    let Query(wanted) = wanted.map_err(|e| (StatusCode::BAD_REQUEST, format!("{e}\n")))?;
    let seconds = wanted.seconds.unwrap_or(SECONDS);
    if !(1..=SECONDS_MAX).contains(&seconds) {
        let why = format!("seconds is between 1 and {SECONDS_MAX}\n");
        return Err((StatusCode::BAD_REQUEST, why));
    }
    let only = one.try_acquire_owned().map_err(|_| {
        let why = "another profile is being taken: try again when it is over\n";
        (StatusCode::CONFLICT, why.to_owned())
    })?;
    let failed = |error: &dyn std::fmt::Display| {
        let why = format!("the profiler failed: {error}\n");
        (StatusCode::INTERNAL_SERVER_ERROR, why)
    };
    let started = SystemTime::now();
    let profiler = ProfilerGuardBuilder::default()
        .frequency(FREQUENCY)
        .blocklist(&NOT_IN)
        .build()
        .map_err(|error| failed(&error))?;
    let time = Duration::from_secs(seconds);
    // A client that hangs up ends it: the guard goes with this future.
    tokio::time::sleep(time).await;
    // Names of functions are looked up here, which takes its time.
    let told = tokio::task::spawn_blocking(move || {
        let report = profiler.report().build();
        drop(profiler);
        let told = report.map(|report| format::encode(&report, FREQUENCY, started, time));
        drop(only);
        told
    });
    let told = told.await.map_err(|error| failed(&error))?;
    let bytes = told.map_err(|error| failed(&error))?;
    let kind = HeaderValue::from_static("application/vnd.google.protobuf");
    Ok(([(header::CONTENT_TYPE, kind)], bytes).into_response())
}
