//! `/admin/v1/usage` and `/admin/v1/tenants/{tenant}/usage`: what the live
//! routers have counted, and what a shard holds.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tenancy::members::Member;
use tenancy::usage::{By, Usage, Usages, merge};
use tokio::time::timeout;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::reconcile;
use crate::shard::TableSize;

/// Longest wait for a router's answer; it is told of as silent then.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Largest answer of a router.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Tenants named at most.
const TOP_MAX: usize = 250;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    by: By,
    limit: Option<usize>,
}

/// What some tenants use.
#[derive(Serialize)]
pub(super) struct Top {
    recent_seconds: u64,
    /// Routers that were asked.
    routers: usize,
    /// Those of them that did not answer.
    silent: Vec<String>,
    items: Vec<Named>,
}

/// A tenant's use, with what people call it.
#[derive(Serialize)]
struct Named {
    slug: Option<String>,
    shard: Option<String>,
    #[serde(flatten)]
    usage: Usage,
}

/// Who uses most just now. Each router tells its own first; one that is far
/// behind on every router may be missing.
pub(super) async fn top(
    State(app): State<Arc<App>>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Top>, Error> {
    let Query(wanted) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    let limit = wanted.limit.unwrap_or(20).clamp(1, TOP_MAX);
    let asked = format!("by={}&limit={}", wanted.by.name(), limit * 4);
    let heard = ask(&app, &asked).await;
    let items = merge(heard.answers.iter().cloned(), wanted.by, limit);
    let ids: Vec<Uuid> = items.iter().map(|usage| usage.tenant).collect();
    let mut names = app.control.tenant_names(&ids).await?;
    let named = |usage: Usage| {
        let (slug, shard) = names.remove(&usage.tenant).unzip();
        Named { slug, shard, usage }
    };
    Ok(Json(Top {
        recent_seconds: heard.recent_seconds(),
        routers: heard.routers,
        silent: heard.silent,
        items: items.into_iter().map(named).collect(),
    }))
}

/// What one tenant uses, and what it has stored.
#[derive(Serialize)]
pub(super) struct OfTenant {
    slug: String,
    shard: String,
    recent_seconds: u64,
    silent: Vec<String>,
    /// None where it asked no router lately.
    usage: Option<Usage>,
    rows: i64,
    bytes: i64,
    /// Tables that hold rows of it, largest first.
    tables: Vec<TableSize>,
}

pub(super) async fn of_tenant(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<OfTenant>, Error> {
    let tenant = app.control.tenant(&tenant).await?;
    let heard = ask(&app, &format!("tenant={}", tenant.id)).await;
    let shards = app.control.shards().await?;
    let shard = shards.iter().find(|shard| shard.id == tenant.shard);
    let nodes = shard.map(reconcile::addresses).unwrap_or_default();
    let sizes = app.logins.tenant_sizes(&tenant.shard, &nodes, tenant.id);
    let mut tables = sizes.await?;
    tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    Ok(Json(OfTenant {
        slug: tenant.slug,
        shard: tenant.shard,
        recent_seconds: heard.recent_seconds(),
        usage: merge(heard.answers, By::Requests, 1).pop(),
        silent: heard.silent,
        rows: tables.iter().map(|table| table.rows).sum(),
        bytes: tables.iter().map(|table| table.bytes).sum(),
        tables,
    }))
}

/// What the routers said.
struct Heard {
    routers: usize,
    answers: Vec<Usages>,
    silent: Vec<String>,
}

impl Heard {
    fn recent_seconds(&self) -> u64 {
        self.answers.first().map_or(0, |first| first.recent_seconds)
    }
}

/// Asks all live routers at once.
async fn ask(app: &App, query: &str) -> Heard {
    let routers = app.members.borrow().routers.clone();
    let answers = routers.iter().map(|router| ask_one(app, router, query));
    let mut heard = Heard {
        routers: routers.len(),
        answers: Vec::new(),
        silent: Vec::new(),
    };
    for (router, answer) in routers.iter().zip(join_all(answers).await) {
        match answer {
            Some(answer) => heard.answers.push(answer),
            None => heard.silent.push(router.name.clone()),
        }
    }
    heard
}

async fn ask_one(app: &App, router: &Member, query: &str) -> Option<Usages> {
    let url = format!("{}/usage?{query}", router.admin_url.trim_end_matches('/'));
    let answer = async {
        let mut response = app.http.get(url).send().await.ok()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.ok()? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return None;
            }
        }
        serde_json::from_slice(&body).ok()
    };
    timeout(ANSWER_MAX, answer).await.ok().flatten()
}
