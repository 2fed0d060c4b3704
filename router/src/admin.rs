//! The admin port: `/live`, `/ready`, `/metrics`, `/usage`, `/cache` and
//! `/debug/pprof/profile`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use tenancy::changes::TableHash;
use tenancy::id::TenantId;
use tenancy::usage::{By, Totals, Usages};
use uuid::Uuid;

use crate::app::App;
use crate::quota::RECENT;

/// Routes of the admin port.
pub fn routes(app: Arc<App>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(render))
        .route("/usage", get(usage))
        .route("/cache", get(cache))
        .route("/cache/purge", post(purge))
        .with_state(Admin { app, metrics })
        .merge(telemetry::profile::routes())
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

/// Which tenants, in which order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// This one alone.
    tenant: Option<Uuid>,
    #[serde(default)]
    by: By,
    limit: Option<usize>,
}

/// What tenants use of this router.
async fn usage(State(admin): State<Admin>, Query(wanted): Query<Wanted>) -> Json<Usages> {
    let quotas = &admin.app.quotas;
    let mut tenants = match wanted.tenant {
        Some(tenant) => quotas.of(tenant).into_iter().collect(),
        None => quotas.top(wanted.by, wanted.limit.unwrap_or(20)),
    };
    for usage in &mut tenants {
        usage.cached_bytes = admin.app.cache.bytes_of(TenantId(usage.tenant));
    }
    Json(Usages {
        recent_seconds: RECENT.as_secs(),
        tenants,
    })
}

/// Of what the caches forget; neither means everything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Purged {
    tenant: Option<Uuid>,
    /// `schema.table`, or a table of `public`.
    table: Option<String>,
}

/// Forgets answers; 200 with what is left.
async fn purge(State(admin): State<Admin>, Query(of): Query<Purged>) -> impl IntoResponse {
    let table = of.table.as_deref().map(|table| {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        TableHash::of(schema, name)
    });
    admin.app.cache.purge(of.tenant.map(TenantId), table);
    axum::Json(admin.app.cache.report())
}

/// What the caches hold and know, as JSON.
async fn cache(State(admin): State<Admin>) -> impl IntoResponse {
    axum::Json(admin.app.cache.report())
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    let app = &admin.app;
    let usage = app.pools.usages();
    let metrics = &app.events.metrics;
    metrics.connections_used.set(usage.used as f64);
    metrics.connections_open.set(usage.open as f64);
    metrics.connections_max.set(usage.max as f64);
    metrics.requests_waiting.set(usage.waiting as f64);
    nodes(app);
    app.cache.measure();
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (headers, admin.metrics.render() + &busiest(app))
}

/// Tenants that `/metrics` names.
const BUSIEST: usize = 10;

/// Name, help text, and what it shows.
type OfTenant = (&'static str, &'static str, fn(&Totals) -> f64);

const OF_TENANTS: [OfTenant; 5] = [
    ("requests_total", "Requests, those refused included", |t| {
        t.requests as f64
    }),
    (
        "refused_total",
        "Requests refused for the tenant's limits",
        |t| t.refused as f64,
    ),
    ("rows_total", "Rows read or written", |t| t.rows as f64),
    (
        "answer_bytes_total",
        "Bytes of answers, before compression",
        |t| t.bytes as f64,
    ),
    (
        "busy_seconds_total",
        "Time of its statements on shards",
        |t| t.busy_us as f64 / 1e6,
    ),
];

/// Counters of the tenants that ask for most just now. Not kept in the registry,
/// where every tenant that was ever among them would stay for good; who leaves
/// the list and comes back goes on where it was.
fn busiest(app: &App) -> String {
    let top = app.quotas.top(By::Requests, BUSIEST);
    let mut text = String::new();
    for (name, help, value) in OF_TENANTS.iter().filter(|_| !top.is_empty()) {
        let name = format!("ringfence_tenant_{name}");
        let _ = writeln!(
            text,
            "# HELP {name} {help}; the busiest {BUSIEST} tenants.\n# TYPE {name} counter"
        );
        for usage in &top {
            let _ = writeln!(
                text,
                "{name}{{tenant=\"{}\"}} {}",
                usage.tenant,
                value(&usage.total)
            );
        }
    }
    text
}

/// One gauge a node: there are few, and they come and go.
fn nodes(app: &App) {
    for shard in app.shards.all() {
        let reign = shard.reign();
        let written = shard.primary_lsn();
        for watched in shard.nodes() {
            let labels = [
                ("shard", shard.id.to_string()),
                ("node", watched.node.name.to_string()),
            ];
            let seen = watched.seen();
            let seen = seen.as_ref().as_ref().ok();
            let lag = seen.map(|seen| written.unwrap_or(seen.lsn).saturating_sub(seen.lsn));
            let follows = seen
                .zip(reign.as_ref())
                .is_some_and(|(seen, reign)| seen.identity.generation == reign.generation);
            let set = |name: &'static str, value: f64| metrics::gauge!(name, &labels).set(value);
            set("ringfence_node_up", f64::from(seen.is_some()));
            set("ringfence_node_follows", f64::from(follows));
            set(
                "ringfence_node_primary",
                f64::from(seen.is_some_and(|seen| seen.identity.primary)),
            );
            set("ringfence_node_lag_bytes", lag.unwrap_or(0) as f64);
            set(
                "ringfence_node_breaker_open",
                f64::from(watched.breaker.is_open()),
            );
            set("ringfence_node_reads_in_flight", watched.reads() as f64);
        }
    }
}
