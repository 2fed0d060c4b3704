//! The admin port: `/live`, `/ready`, `/metrics`, `/usage`, `/cache` and
//! `/debug/pprof/profile`.

mod access;

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tenancy::changes::TableHash;
use tenancy::id::TenantId;
use tenancy::usage::{By, Totals, Usages};
use uuid::Uuid;

pub use self::access::Access;
use crate::app::App;
use crate::cache::Report;
use crate::quota::RECENT;

/// Routes of the admin port.
pub fn routes(app: Arc<App>, access: Arc<Access>, metrics: PrometheusHandle) -> Router {
    let only = |may: access::May| from_fn_with_state((access.clone(), may), access::pass);
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(render))
        .route("/usage", get(usage))
        .route("/cache", get(cache))
        .route("/cache/purge", post(purge).layer(only(Access::may_purge)))
        .with_state(Admin { app, metrics })
        .merge(telemetry::profile::routes().layer(only(Access::may_profile)))
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

/// What is left, and what went from Redis; null where there is none.
#[derive(Serialize)]
struct Left {
    #[serde(flatten)]
    report: Report,
    redis_removed: Option<u64>,
}

/// Forgets answers; 200 with what is left. 503 where some may be left in Redis.
async fn purge(
    State(admin): State<Admin>,
    Query(of): Query<Purged>,
) -> Result<Json<Left>, (StatusCode, String)> {
    let table = of.table.as_deref().map(|table| {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        TableHash::of(schema, name)
    });
    let cache = &admin.app.cache;
    let purged = cache.purge(of.tenant.map(TenantId), table).await;
    let redis_removed = purged.map_err(|error| {
        let text = format!("some may be left in Redis: {}\n", tenancy::chain(&error));
        (StatusCode::SERVICE_UNAVAILABLE, text)
    })?;
    Ok(Json(Left {
        report: cache.report(),
        redis_removed,
    }))
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
    app.cache.measure();
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (
        headers,
        admin.metrics.render() + &nodes(app) + &busiest(app),
    )
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

/// Name, help text, and what it shows.
type OfNode = (&'static str, &'static str, fn(&Looked) -> f64);

const OF_NODES: [OfNode; 6] = [
    ("up", "Whether the node answers", |node| f64::from(node.up)),
    (
        "primary",
        "Whether the node says that it takes writes",
        |node| f64::from(node.primary),
    ),
    (
        "follows",
        "Whether the node is on the primary's timeline",
        |node| f64::from(node.follows),
    ),
    (
        "lag_bytes",
        "WAL that the node has still to replay",
        |node| node.lag_bytes as f64,
    ),
    (
        "breaker_open",
        "Whether requests are kept away from the node",
        |node| f64::from(node.breaker_open),
    ),
    ("reads_in_flight", "Reads in flight at a replica", |node| {
        node.reads as f64
    }),
];

/// What is known of a node just now.
struct Looked {
    shard: Arc<str>,
    node: String,
    up: bool,
    primary: bool,
    follows: bool,
    lag_bytes: u64,
    breaker_open: bool,
    reads: usize,
}

/// One gauge a node: there are few. Nor are they kept in the registry, where a
/// node that was taken away would stay as it was last seen, and be alerted of.
fn nodes(app: &App) -> String {
    let mut all = Vec::new();
    for shard in app.shards.all() {
        let reign = shard.reign();
        let written = shard.primary_lsn();
        for watched in shard.nodes() {
            let seen = watched.seen();
            let seen = seen.as_ref().as_ref().ok();
            let lag = seen.map(|seen| written.unwrap_or(seen.lsn).saturating_sub(seen.lsn));
            all.push(Looked {
                shard: shard.id.clone(),
                node: watched.node.name.to_string(),
                up: seen.is_some(),
                primary: seen.is_some_and(|seen| seen.identity.primary),
                follows: seen
                    .zip(reign.as_ref())
                    .is_some_and(|(seen, reign)| seen.identity.generation == reign.generation),
                lag_bytes: lag.unwrap_or(0),
                breaker_open: watched.breaker.is_open(),
                reads: watched.reads(),
            });
        }
    }
    of_nodes(&all)
}

fn of_nodes(nodes: &[Looked]) -> String {
    let mut text = String::new();
    for (name, help, value) in OF_NODES.iter().filter(|_| !nodes.is_empty()) {
        let name = format!("ringfence_node_{name}");
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} gauge");
        for node in nodes {
            let (shard, label) = (&node.shard, &node.node);
            let value = value(node);
            let _ = writeln!(text, "{name}{{shard=\"{shard}\",node=\"{label}\"}} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_shown_as_they_are_now_and_others_not_at_all() {
        assert_eq!(of_nodes(&[]), "");
        let text = of_nodes(&[Looked {
            shard: "s1".into(),
            node: "s1-replica1".into(),
            up: true,
            primary: false,
            follows: true,
            lag_bytes: 8_192,
            breaker_open: false,
            reads: 3,
        }]);
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let of = |name: &str, value: &str| {
            format!("ringfence_node_{name}{{shard=\"s1\",node=\"s1-replica1\"}} {value}")
        };
        let expected = [
            of("up", "1"),
            of("primary", "0"),
            of("follows", "1"),
            of("lag_bytes", "8192"),
            of("breaker_open", "0"),
            of("reads_in_flight", "3"),
        ];
        assert_eq!(lines, expected);
        assert!(text.starts_with("# HELP ringfence_node_up Whether the node answers.\n# TYPE "));
    }
}
