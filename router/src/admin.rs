//! The admin port: `/live`, `/ready`, `/metrics` and `/cache`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::app::App;

/// Routes of the admin port.
pub fn routes(app: Arc<App>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(render))
        .route("/cache", get(cache))
        .with_state(Admin { app, metrics })
}

#[derive(Clone)]
struct Admin {
    app: Arc<App>,
    metrics: PrometheusHandle,
}

/// 200 when tenants' requests can be answered, else 503 and the reasons.
async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let reasons = admin.app.not_ready();
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".into())
    } else {
        let text = format!("not ready: {}\n", reasons.join("; "));
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

/// What the caches hold and know, as JSON.
async fn cache(State(admin): State<Admin>) -> impl IntoResponse {
    axum::Json(admin.app.cache.report())
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    let app = &admin.app;
    let (used, open) = app.pools.size();
    let metrics = &app.events.metrics;
    metrics.connections_used.set(used as f64);
    metrics.connections_open.set(open as f64);
    app.cache.measure();
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (headers, admin.metrics.render())
}
