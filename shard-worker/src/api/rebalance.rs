//! `/admin/v1/rebalance`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tenancy::control::{Actor, ControlError};
use uuid::Uuid;

use super::Caller;
use crate::app::App;
use crate::error::Error;
use crate::job::store::{self, Wanted};
use crate::job::{JobInfo, Kind, NewJob};
use crate::move_tenant::{BUDGET_MAX_MS, BUDGET_MS, Wish};
use crate::rebalance::planner::Policy;
use crate::rebalance::{self, Rebalance};

/// Moves at once, unless said otherwise.
const AT_ONCE: usize = 4;
const AT_ONCE_MAX: usize = 16;
const KEEP_HOURS_MAX: f64 = 720.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    /// `ring`, `load`, `drain` or `isolate`.
    policy: String,
    /// The shard to drain.
    shard: Option<String>,
    /// The tenant to isolate.
    tenant: Option<String>,
    at_once: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Proposed {
    hash: String,
    #[serde(flatten)]
    plan: rebalance::Plan,
}

/// A plan; nothing is done.
pub(super) async fn plan(
    State(app): State<Arc<App>>,
    body: Result<Json<Ask>, JsonRejection>,
) -> Result<Json<Proposed>, Error> {
    let Json(ask) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let policy = match (ask.policy.as_str(), ask.shard, ask.tenant) {
        ("ring", None, None) => Policy::Ring,
        ("load", None, None) => Policy::Load,
        ("drain", Some(shard), None) => {
            let shards = app.control.shards().await?;
            match shards.iter().find(|info| info.id == shard) {
                None => {
                    return Err(Error::Control(ControlError::NotFound {
                        kind: "shard",
                        name: shard,
                    }));
                }
                Some(info) if info.state == "active" => {
                    return Err(Error::Control(ControlError::Conflict(format!(
                        "shard {shard} is on the ring: `ringfence shard drain {shard}` first"
                    ))));
                }
                Some(_) => Policy::Drain { shard },
            }
        }
        ("isolate", None, Some(tenant)) => Policy::Isolate {
            tenant: app.control.tenant(&tenant).await?.id,
        },
        _ => {
            let why = "policy must be ring, load, drain with a shard, or isolate with a tenant";
            return Err(Error::BadRequest(why.into()));
        }
    };
    let (hash, plan) = rebalance::plan(&app, policy, at_once(ask.at_once)?).await?;
    Ok(Json(Proposed { hash, plan }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Apply {
    hash: String,
    at_once: Option<usize>,
    budget_ms: Option<u64>,
    keep_hours: Option<f64>,
}

/// 202 with the job that carries a plan out. One at a time.
pub(super) async fn apply(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    body: Result<Json<Apply>, JsonRejection>,
) -> Result<(StatusCode, Json<JobInfo>), Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let budget_ms = body.budget_ms.unwrap_or(BUDGET_MS);
    let keep = body.keep_hours.unwrap_or(0.0);
    if !(1..=BUDGET_MAX_MS).contains(&budget_ms) || !(0.0..=KEEP_HOURS_MAX).contains(&keep) {
        let why = format!(
            "budget_ms must be from 1 to {BUDGET_MAX_MS}, keep_hours from 0 to {KEEP_HOURS_MAX}"
        );
        return Err(Error::BadRequest(why));
    }
    let plan = rebalance::kept(&app, &body.hash).await?;
    let keep_s = (keep * 3_600.0).round() as u64;
    let state = Rebalance::of(&body.hash, &plan, at_once(body.at_once)?, budget_ms, keep_s);
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    let new = NewJob {
        kind: Kind::Rebalance,
        object: &body.hash,
        tenant: None,
        shards: &[],
        state: &state,
    };
    let id = store::insert(&transaction, &actor, &new).await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    let job = store::show(&app.control, id).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// How far the plan is that is being applied, or was applied last.
#[derive(Serialize)]
pub(super) struct Status {
    #[serde(flatten)]
    job: JobInfo,
    /// `pause`, where that was asked for.
    wish: Option<String>,
    /// Groups whose moves have not begun.
    waiting: usize,
    /// Moves under way.
    running: Vec<JobInfo>,
    /// What could not be moved, and why.
    failed: Vec<String>,
    /// Seconds until the last move begins, as it has gone so far; none before that is known.
    eta_seconds: Option<f64>,
}

pub(super) async fn status(State(app): State<Arc<App>>) -> Result<Json<Status>, Error> {
    let wanted = Wanted {
        open: false,
        kind: Some(Kind::Rebalance.name()),
        limit: 1,
    };
    let job = store::list(&app.control, &wanted).await?.pop();
    describe(&app, job.ok_or_else(none)?).await.map(Json)
}

/// No further move begins; those under way go on.
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Json<Status>, Error> {
    wish(&app, &actor, "rebalance.pause", Some(Wish::Pause)).await
}

pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Json<Status>, Error> {
    wish(&app, &actor, "rebalance.resume", None).await
}

/// No further move begins, for good; those under way come to their end.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Json<Status>, Error> {
    let id = open(&app).await?;
    let job = store::cancel(&app.control, &actor, id).await?;
    describe(&app, job).await.map(Json)
}

async fn wish(
    app: &App,
    actor: &Actor,
    action: &str,
    wish: Option<Wish>,
) -> Result<Json<Status>, Error> {
    let id = open(app).await?;
    let job = store::set_wish(&app.control, actor, id, action, wish.map(Wish::name)).await?;
    describe(app, job).await.map(Json)
}

/// The job that applies a plan now.
async fn open(app: &App) -> Result<Uuid, Error> {
    let wanted = Wanted {
        open: true,
        kind: Some(Kind::Rebalance.name()),
        limit: 1,
    };
    let job = store::list(&app.control, &wanted).await?.pop();
    Ok(job.ok_or_else(none)?.id)
}

fn none() -> Error {
    Error::Control(ControlError::NotFound {
        kind: "plan",
        name: "being applied".into(),
    })
}

async fn describe(app: &App, job: JobInfo) -> Result<Status, Error> {
    let state = store::state(&app.control, job.id).await?;
    let read: Rebalance = serde_json::from_value(state).map_err(|error| {
        Error::Control(ControlError::Invalid(format!(
            "the state of job {} can't be read: {error}",
            job.id
        )))
    })?;
    let mut running = Vec::new();
    for id in &read.running {
        running.push(store::show(&app.control, *id).await?);
    }
    Ok(Status {
        wish: store::wish(&app.control, job.id).await?,
        eta_seconds: (!job.done).then(|| read.eta(job.seconds)).flatten(),
        waiting: read.waiting(),
        failed: read.failed,
        running,
        job,
    })
}

fn at_once(asked: Option<usize>) -> Result<usize, Error> {
    match asked.unwrap_or(AT_ONCE) {
        some @ 1..=AT_ONCE_MAX => Ok(some),
        _ => Err(Error::BadRequest(format!(
            "at_once must be from 1 to {AT_ONCE_MAX}"
        ))),
    }
}
