//! `/admin/v1/migrations`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use schema::lint::{Finding, Level, lint};
use schema::migration::{Migration, Phase, ordered};
use serde::{Deserialize, Serialize};

use super::Caller;
use crate::app::App;
use crate::error::Error;
use crate::job::{self, JobError, JobInfo, Problem};
use crate::migrate::status::{self, Directory, Status};
use crate::migrate::{self, Plan, Stop, store};

/// Shards changed at once, where nobody says.
const PARALLEL: usize = 4;
const PARALLEL_MAX: usize = 64;
/// Findings that a refusal names.
const NAMED: usize = 5;

/// A file as it is on the operator's disk.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    file: String,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Apply {
    files: Vec<File>,
    parallel: Option<usize>,
    canary: Option<String>,
    #[serde(default)]
    contract: bool,
    #[serde(default)]
    baseline: bool,
}

#[derive(Serialize)]
pub(super) struct Started {
    #[serde(flatten)]
    job: JobInfo,
    /// Files that wait for `contract`.
    held: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Directories {
    items: Vec<Directory>,
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Directories>, Error> {
    let items = status::directories(&app).await?;
    Ok(Json(Directories { items }))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(directory): Path<String>,
) -> Result<Json<Status>, Error> {
    Ok(Json(status::status(&app, &directory).await?))
}

/// 202 with the job that applies the files, which are all that the directory
/// holds; those that shards have already are not run again.
pub(super) async fn apply(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(directory): Path<String>,
    body: Result<Json<Apply>, JsonRejection>,
) -> Result<(StatusCode, Json<Started>), Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    check_name(&directory)?;
    let parallel = body.parallel.unwrap_or(PARALLEL);
    if !(1..=PARALLEL_MAX).contains(&parallel) {
        return Err(Error::BadRequest(format!(
            "parallel must be from 1 to {PARALLEL_MAX}"
        )));
    }
    let shards = app.control.shards().await?;
    if let Some(canary) = &body.canary
        && !shards.iter().any(|shard| shard.id == *canary)
    {
        return Err(Error::BadRequest(format!("there is no shard {canary}")));
    }
    let mut files = parsed(&body.files)?;
    let known = store::applied_numbers(&app.control, &directory)
        .await
        .map_err(Stop::from)?;
    let applied = known.len() as u32;
    let mut held = Vec::new();
    if !body.contract && !body.baseline {
        held = hold_contract(&mut files, applied);
        if let (Some(file), true) = (held.first(), files.len() == known.len()) {
            let file = file.clone();
            return Err(Stop::Contract { file }.into());
        }
    }
    let Some(last) = files.last() else {
        return Err(Error::BadRequest("there are no files".into()));
    };
    if !body.baseline {
        let findings = judged(&app, &files, applied, body.canary.as_deref()).await?;
        refuse_findings(findings.iter())?;
    }
    let plan = Plan {
        directory,
        last: last.number,
        parallel,
        canary: body.canary,
        baseline: body.baseline,
    };
    let id = store::start(&app.control, &actor, &plan, &files).await?;
    let job = job::store::show(&app.control, id).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { job, held })))
}

/// What the rules find in files that not all shards have yet: what all have was
/// judged when it was applied, or is there already.
async fn judged(
    app: &App,
    files: &[Migration],
    applied: u32,
    canary: Option<&str>,
) -> Result<Vec<Finding>, Stop> {
    let mut findings = lint(files, migrate::known(app, canary).await?);
    findings.retain(|finding| {
        let mut pending = files.iter().filter(|file| file.number > applied);
        pending.any(|file| file.file() == finding.file)
    });
    Ok(findings)
}

/// Leaves out what removes, and all after it, until someone says that no
/// application uses it any longer. Returns what is left out.
fn hold_contract(files: &mut Vec<Migration>, applied: u32) -> Vec<String> {
    let removes = |file: &Migration| file.number > applied && file.header.phase == Phase::Contract;
    let place = files.iter().position(removes);
    let held = place.map(|place| files.split_off(place));
    let held = held.unwrap_or_default();
    held.iter().map(Migration::file).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plans {
    files: Vec<File>,
}

#[derive(Serialize)]
pub(super) struct Planned {
    #[serde(flatten)]
    status: Status,
    findings: Vec<Finding>,
    /// What would stop a run now.
    refusals: Vec<Problem>,
    /// Files that wait for `contract`.
    held: Vec<String>,
    /// Shards that are changed at once where nobody says.
    parallel: usize,
}

/// What shards have of files that need not be known to the fleet, what the rules
/// find in those that they lack, and what would stop a run.
pub(super) async fn plan(
    State(app): State<Arc<App>>,
    Path(directory): Path<String>,
    body: Result<Json<Plans>, JsonRejection>,
) -> Result<Json<Planned>, Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    check_name(&directory)?;
    let known = store::applied_numbers(&app.control, &directory)
        .await
        .map_err(Stop::from)?;
    let files = parsed(&body.files)?;
    let findings = judged(&app, &files, known.len() as u32, None).await?;
    let mut refusals = store::refusals(&app.control, &directory, &files).await?;
    if let Err(stop) = refuse_findings(findings.iter()) {
        refusals.push(stop.problem());
    }
    let held = hold_contract(&mut files.clone(), known.len() as u32);
    let files: Vec<(Migration, bool)> = files
        .into_iter()
        .map(|file| {
            let applied = known.contains(&file.number);
            (file, applied)
        })
        .collect();
    let status = status::of(&app, &directory, &files).await?;
    // What all shards have is said once.
    let of_all = |stop: &&Stop| {
        let code = stop.code();
        !refusals.iter().any(|said| said.code == code)
    };
    let of_shards = status.shards.iter().filter_map(|shard| shard.stop.as_ref());
    let more: Vec<Problem> = of_shards.filter(of_all).map(Stop::problem).collect();
    refusals.extend(more);
    Ok(Json(Planned {
        status,
        findings,
        refusals,
        held,
        parallel: PARALLEL,
    }))
}

fn parsed(files: &[File]) -> Result<Vec<Migration>, Stop> {
    let parsed = files
        .iter()
        .map(|file| Migration::parse(&file.file, &file.text))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ordered(parsed)?)
}

fn refuse_findings<'a>(findings: impl Iterator<Item = &'a Finding>) -> Result<(), Stop> {
    let errors: Vec<String> = findings
        .filter(|finding| finding.level == Level::Error)
        .map(|finding| {
            format!(
                "{}, line {}: {}: {}",
                finding.file, finding.line, finding.rule, finding.what
            )
        })
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    let more = errors.len().saturating_sub(NAMED);
    let mut named = errors;
    named.truncate(NAMED);
    let mut text = named.join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    Err(Stop::Lint(text))
}

fn check_name(directory: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let good = (1..=63).contains(&directory.len()) && directory.chars().all(plain);
    match good {
        true => Ok(()),
        false => Err(Error::BadRequest(
            "a directory's name has 1 to 63 letters, digits, dots, dashes and underscores".into(),
        )),
    }
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Control(error) => Self::Control(error),
            JobError::Shard(error) => Self::Shard(error),
            error => Self::Migration(Stop::Job(error)),
        }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Job(error) => error.into(),
            stop => Self::Migration(stop),
        }
    }
}
