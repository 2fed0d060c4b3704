//! The admin API: `/admin/v1`, JSON, a bearer token a caller. It writes intent and
//! reads what is; reconcilers do the rest. Beside it what every process has:
//! `/live`, `/ready`, `/metrics`, and, with the token, `/debug/pprof/profile`.

mod archives;
mod audit;
mod cache;
mod caller;
mod doctor;
mod fleet;
mod jobs;
mod keys;
mod limits;
mod migrations;
mod moves;
mod rebalance;
mod tenants;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;

use self::caller::{Caller, authorize};
use crate::app::App;
use crate::capture;
use crate::error::Error;
use crate::traced;

/// Bytes of all files of a directory together.
const MIGRATIONS_MAX: usize = 64 << 20;

/// The stream of changes, which has a secret of its own.
pub fn stream(app: Arc<App>) -> Router {
    Router::new()
        .route(tenancy::changes::PATH, get(capture::upgrade))
        .with_state(app)
}

/// All other routes of a worker.
pub fn routes(app: Arc<App>, metrics: PrometheusHandle) -> Router {
    let admin = Router::new()
        .route("/tenants", get(tenants::list).post(tenants::create))
        .route("/tenants:bulk", post(tenants::create_many))
        .route("/tenants:import", post(archives::import))
        .route("/tenants/{tenant}/export", get(archives::export))
        .route(
            "/tenants/{tenant}",
            get(tenants::show).delete(tenants::delete),
        )
        .route("/tenants/{tenant}/suspend", post(tenants::suspend))
        .route("/tenants/{tenant}/resume", post(tenants::resume))
        .route("/tenants/{tenant}/import", post(tenants::import))
        .route("/tenants/{tenant}/keys", get(keys::list).post(keys::create))
        .route(
            "/tenants/{tenant}/limits",
            get(limits::show).post(limits::set),
        )
        .route("/tenants/{tenant}/usage", get(usage::of_tenant))
        .route("/usage", get(usage::top))
        .route("/plans", get(limits::plans))
        .route("/plans/{plan}", post(limits::set_plan))
        .route("/keys/{key}/revoke", post(keys::revoke))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{job}", get(jobs::show))
        .route("/jobs/{job}/events", get(jobs::events))
        .route("/jobs/{job}/cancel", post(jobs::cancel))
        .route("/jobs/{job}/retry", post(jobs::retry))
        .route("/migrations", get(migrations::list))
        .route("/migrations/{directory}", get(migrations::show))
        .route(
            "/migrations/{directory}/plan",
            post(migrations::plan).layer(DefaultBodyLimit::max(MIGRATIONS_MAX)),
        )
        .route(
            "/migrations/{directory}/apply",
            post(migrations::apply).layer(DefaultBodyLimit::max(MIGRATIONS_MAX)),
        )
        .route("/moves", get(moves::list).post(moves::start))
        .route("/moves/{name}", get(moves::show))
        .route("/moves/{name}/{verb}", post(moves::change))
        .route("/rebalance", get(rebalance::status))
        .route("/rebalance/plan", post(rebalance::plan))
        .route("/rebalance/apply", post(rebalance::apply))
        .route("/rebalance/pause", post(rebalance::pause))
        .route("/rebalance/resume", post(rebalance::resume))
        .route("/rebalance/cancel", post(rebalance::cancel))
        .route("/doctor", get(doctor::report))
        .route("/doctor/fix", post(doctor::fix))
        .route("/shards/{shard}/query", post(doctor::query))
        .route("/tenants/{tenant}/pin", post(tenants::pin))
        .route("/tenants/{tenant}/unpin", post(tenants::unpin))
        .route("/shards/{shard}/drain", post(fleet::drain_shard))
        .route(
            "/shards/{shard}",
            axum::routing::delete(fleet::remove_shard),
        )
        .route("/shards", get(fleet::shards).post(fleet::add_shard))
        .route("/nodes", get(fleet::nodes))
        .route("/audit", get(audit::list))
        .route("/cache/purge", post(cache::purge))
        .route("/captures", get(fleet::captures))
        .route("/members", get(fleet::members))
        .route("/ring", get(fleet::ring))
        .route("/issuers", get(fleet::issuers).post(fleet::put_issuer))
        .route(
            "/issuers/{name}",
            axum::routing::delete(fleet::remove_issuer),
        )
        .fallback(|| async { Error::NoRoute })
        .layer(from_fn_with_state(app.clone(), audit::refusals))
        .layer(from_fn_with_state(app.clone(), authorize))
        .layer(from_fn_with_state(app.clone(), traced::request))
        .with_state(app.clone());
    // What it shows and costs is nobody's who may not do the rest.
    let profile = telemetry::profile::routes().layer(from_fn_with_state(app.clone(), authorize));
    Router::new()
        .nest("/admin/v1", admin)
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route(
            "/metrics",
            get(move |State(app): State<Arc<App>>| std::future::ready(render(&app, &metrics))),
        )
        .fallback(|| async { Error::NoRoute })
        .with_state(app)
        .merge(profile)
}

/// 200 when the control database answers.
async fn ready(State(app): State<Arc<App>>) -> (StatusCode, String) {
    match app.control.client().await {
        Ok(_) => (StatusCode::OK, "ready\n".into()),
        Err(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {error}\n"),
        ),
    }
}

fn render(app: &App, metrics: &PrometheusHandle) -> impl IntoResponse + use<> {
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (headers, metrics.render() + &app.capture.exposition())
}
