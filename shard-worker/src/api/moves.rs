//! `/admin/v1/moves`: jobs that move tenants, with what is particular to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tenancy::control::{ControlError, ShardInfo, TenantInfo};
use uuid::Uuid;

use super::Caller;
use crate::app::App;
use crate::error::Error;
use crate::job::store::{self, Wanted};
use crate::job::{JobInfo, Kind};
use crate::move_tenant::{self, BUDGET_MAX_MS, BUDGET_MS, Checked, Move, Moving, Wish};

/// The way back is kept for so long, unless said otherwise.
const KEEP_HOURS: f64 = 24.0;
/// And for so long at most: the source's log is kept for it.
const KEEP_HOURS_MAX: f64 = 24.0 * 30.0;
/// Most tenants that one request names.
const NAMED_MAX: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    /// Slugs or ids.
    tenants: Vec<String>,
    to: String,
    budget_ms: Option<u64>,
    keep_hours: Option<f64>,
}

/// A move as people and programs see it.
#[derive(Serialize)]
pub(super) struct MoveInfo {
    #[serde(flatten)]
    job: JobInfo,
    from: String,
    to: String,
    budget_ms: u64,
    tenants: Vec<Moving>,
    /// What the last comparison of all rows came to.
    checked: Option<Checked>,
    /// Why it can't be rolled back any longer.
    way_back_gone: Option<String>,
    /// The state with all that it holds.
    state: move_tenant::State,
    /// What someone wants of it: `pause`, `rollback` or `complete`.
    wish: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Moves {
    items: Vec<MoveInfo>,
}

/// 202 with the moves: one for each shard that tenants come from, of at most
/// 1,000 tenants each. Nothing is begun where one of them can't be.
pub(super) async fn start(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    body: Result<Json<Start>, JsonRejection>,
) -> Result<(StatusCode, Json<Moves>), Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let budget_ms = body.budget_ms.unwrap_or(BUDGET_MS);
    if !(1..=BUDGET_MAX_MS).contains(&budget_ms) {
        let why = format!("budget_ms must be from 1 to {BUDGET_MAX_MS}");
        return Err(Error::BadRequest(why));
    }
    let keep = body.keep_hours.unwrap_or(KEEP_HOURS);
    if !(0.0..=KEEP_HOURS_MAX).contains(&keep) {
        let why = format!("keep_hours must be from 0 to {KEEP_HOURS_MAX}");
        return Err(Error::BadRequest(why));
    }
    if body.tenants.is_empty() || body.tenants.len() > NAMED_MAX {
        let why = format!("tenants must name 1 to {NAMED_MAX} of them");
        return Err(Error::BadRequest(why));
    }
    let shards = app.control.shards().await?;
    let mut tenants = Vec::new();
    let mut named = BTreeSet::new();
    for name in &body.tenants {
        let tenant = app.control.tenant(name).await?;
        require_movable(&tenant, &shards, &body.to)?;
        if named.insert(tenant.id) {
            tenants.push(tenant);
        }
    }
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    let how = (budget_ms, (keep * 3_600.0).round() as u64);
    let started = move_tenant::start(&transaction, &actor, &tenants, &body.to, how).await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    let mut items = Vec::new();
    for id in started {
        items.push(describe(&app, store::show(&app.control, id).await?).await?);
    }
    Ok((StatusCode::ACCEPTED, Json(Moves { items })))
}

/// Refuses what can be seen from the control database alone; the job looks at
/// the shards themselves.
fn require_movable(tenant: &TenantInfo, shards: &[ShardInfo], to: &str) -> Result<(), Error> {
    let conflict = |why: String| Err(Error::Control(ControlError::Conflict(why)));
    let Some(target) = shards.iter().find(|shard| shard.id == to) else {
        return Err(Error::Control(ControlError::NotFound {
            kind: "shard",
            name: to.to_owned(),
        }));
    };
    let slug = &tenant.slug;
    if tenant.shard == to {
        return conflict(format!("tenant {slug} is on shard {to} already"));
    }
    if target.state != "active" {
        return conflict(format!(
            "shard {to} is {}: nothing is moved to it",
            target.state
        ));
    }
    if target.region != tenant.region {
        return conflict(format!(
            "shard {to} is in region {}, but the data of tenant {slug} stays in {}",
            target.region, tenant.region
        ));
    }
    if !matches!(tenant.state.as_str(), "active" | "suspended") {
        return conflict(format!("tenant {slug} is {}", tenant.state));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    open: Option<bool>,
    limit: Option<i64>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<List>, QueryRejection>,
) -> Result<Json<Moves>, Error> {
    let Query(query) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    let wanted = Wanted {
        open: query.open.unwrap_or(false),
        kind: Some(Kind::Move.name()),
        limit: query.limit.unwrap_or(50),
    };
    let mut items = Vec::new();
    for job in store::list(&app.control, &wanted).await? {
        items.push(describe(&app, job).await?);
    }
    Ok(Json(Moves { items }))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<MoveInfo>, Error> {
    let id = find(&app, &name).await?;
    Ok(Json(
        describe(&app, store::show(&app.control, id).await?).await?,
    ))
}

/// `pause`, `resume`, `cancel`, `verify`, `rollback` or `complete`.
pub(super) async fn change(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path((name, verb)): Path<(String, String)>,
) -> Result<Json<MoveInfo>, Error> {
    let id = find(&app, &name).await?;
    let before = describe(&app, store::show(&app.control, id).await?).await?;
    let phase = before.job.phase.as_str();
    let refuse = |what: &str| {
        Error::Control(ControlError::Conflict(format!(
            "the move of {} is {phase}: {what}",
            before.job.object
        )))
    };
    if let Some(why) = &before.way_back_gone
        && matches!(verb.as_str(), "rollback" | "verify")
    {
        return Err(refuse(&format!(
            "its way back is gone: {why}; `ringfence move complete` ends it, and another move leads back"
        )));
    }
    let (control, by) = (&app.control, &actor);
    let wish =
        |action, wish: Option<Wish>| store::set_wish(control, by, id, action, wish.map(Wish::name));
    let job = match verb.as_str() {
        "pause" if is_before(phase) => wish("move.pause", Some(Wish::Pause)).await?,
        "resume" if is_before(phase) => wish("move.resume", None).await?,
        "pause" | "resume" => {
            return Err(refuse("it can be paused before it is cut over"));
        }
        "cancel" if is_before(phase) => store::cancel(control, by, id).await?,
        "cancel" => return Err(refuse("it can be cancelled before it is cut over")),
        "rollback" if phase == "retained" => wish("move.rollback", Some(Wish::RollBack)).await?,
        "rollback" => return Err(refuse("it can be rolled back while it is retained")),
        "verify" if phase == "retained" => wish("move.verify", Some(Wish::Verify)).await?,
        "verify" => return Err(refuse("it is verified by itself before it is cut over")),
        // Nor is a rollback waited for that does not come about, or a comparison.
        "complete" if matches!(phase, "retained" | "verifying_back" | "rolling_back") => {
            wish("move.complete", Some(Wish::Complete)).await?
        }
        "complete" => return Err(refuse("it can be completed while it is retained")),
        _ => return Err(Error::NoRoute),
    };
    Ok(Json(describe(&app, job).await?))
}

/// Nobody is on the target yet.
fn is_before(phase: &str) -> bool {
    matches!(
        phase,
        "planned" | "preparing" | "copying" | "verifying" | "catching_up"
    )
}

/// The move of that id, or the newest of that tenant, open ones first.
async fn find(app: &App, name: &str) -> Result<Uuid, Error> {
    if let Ok(id) = Uuid::parse_str(name)
        && let Ok(job) = store::show(&app.control, id).await
        && job.kind == Kind::Move.name()
    {
        return Ok(id);
    }
    let newest = store::newest(&app.control, Kind::Move, name).await?;
    newest.ok_or_else(|| {
        Error::Control(ControlError::NotFound {
            kind: "move of",
            name: name.chars().take(80).collect(),
        })
    })
}

async fn describe(app: &App, job: JobInfo) -> Result<MoveInfo, Error> {
    let state = store::state(&app.control, job.id).await?;
    let wish = store::wish(&app.control, job.id).await?;
    let read: Move = serde_json::from_value(state).map_err(|error| {
        Error::Control(ControlError::Invalid(format!(
            "the state of move {} can't be read: {error}",
            job.id
        )))
    })?;
    Ok(MoveInfo {
        job,
        from: read.plan.from,
        to: read.plan.to,
        budget_ms: read.plan.budget_ms,
        tenants: read.plan.tenants,
        checked: read.checked,
        way_back_gone: read.way_back_gone,
        state: read.state,
        wish,
    })
}
