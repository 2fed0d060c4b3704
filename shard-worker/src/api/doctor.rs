//! `/admin/v1/doctor` and `/admin/v1/shards/{shard}/query`: looks at the shards
//! themselves; `/admin/v1/doctor/fix` deletes what is certainly nobody's.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use tenancy::control::{Actor, ControlError, write_audit};

use super::Caller;
use crate::app::App;
use crate::doctor::{self, Fixed, Report, examine};
use crate::error::Error;
use crate::fleet_query::{self, Answer, Ask, ROWS_MAX, SECONDS_MAX};

/// Rows of an answer, unless said otherwise.
const ROWS: usize = 1_000;
/// Longest statement, unless said otherwise, s.
const SECONDS: u64 = 10;
/// Longest text.
const SQL_MAX: usize = 64 << 10;
/// So much of a text is kept in the audit log, characters.
const AUDITED_MAX: usize = 2_000;

pub(super) async fn report(State(app): State<Arc<App>>) -> Result<Json<Report>, Error> {
    Ok(Json(examine(&app).await?))
}

pub(super) async fn fix(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
) -> Result<Json<Fixed>, Error> {
    // It goes on though the caller hangs up.
    let fixing = tokio::spawn(async move { doctor::fix(&app, &actor).await });
    Ok(Json(fixing.await??))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// One statement that gives rows.
    sql: String,
    rows_max: Option<usize>,
    seconds_max: Option<u64>,
    /// Replicas are not asked.
    #[serde(default)]
    primary: bool,
}

/// One shard's answer to a statement that only reads.
pub(super) async fn query(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(shard): Path<String>,
    body: Result<Json<Query>, JsonRejection>,
) -> Result<Json<Answer>, Error> {
    let Json(query) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let rows_max = query.rows_max.unwrap_or(ROWS);
    let seconds = query.seconds_max.unwrap_or(SECONDS);
    if !(1..=ROWS_MAX).contains(&rows_max) || !(1..=SECONDS_MAX).contains(&seconds) {
        return Err(Error::BadRequest(format!(
            "rows_max must be from 1 to {ROWS_MAX}, seconds_max from 1 to {SECONDS_MAX}"
        )));
    }
    if query.sql.trim().is_empty() || query.sql.len() > SQL_MAX {
        return Err(Error::BadRequest(format!(
            "sql must be a statement of at most {SQL_MAX} bytes"
        )));
    }
    let shards = app.control.shards().await?;
    let found = shards.iter().find(|info| info.id == shard);
    let info = found.ok_or(Error::Control(ControlError::NotFound {
        kind: "shard",
        name: shard,
    }))?;
    audit(&app, &actor, &info.id, &query.sql).await?;
    let ask = Ask {
        sql: &query.sql,
        rows_max,
        time_max: Duration::from_secs(seconds),
        primary: query.primary,
    };
    Ok(Json(fleet_query::ask(&app, info, &ask).await?))
}

/// Who reads all tenants' rows is written down first.
async fn audit(app: &App, actor: &Actor, shard: &str, sql: &str) -> Result<(), Error> {
    let text: String = sql.chars().take(AUDITED_MAX).collect();
    let asked = Some(serde_json::json!({ "sql": text }));
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    write_audit(
        &transaction,
        actor,
        "shard.query",
        shard,
        None,
        asked,
        "begun",
    )
    .await?;
    Ok(transaction.commit().await.map_err(ControlError::Postgres)?)
}
