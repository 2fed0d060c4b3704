//! The files in the control database.

use std::sync::{Arc, Mutex, PoisonError};

use schema::migration::{Migration, checksum};
use tenancy::control::{Actor, Control, ControlError};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{Migrate, Plan, Stop};
use crate::job::store::{insert, refuse_beside};
use crate::job::{Context, JobError, Kind, NewJob, Problem};

/// The files of the run that is under way, parsed once: they don't change
/// while its job is open, and there is one such job at a time.
#[derive(Default)]
pub struct RunFiles(Mutex<Option<(Uuid, Arc<[Migration]>)>>);

/// A job's files, in order.
pub(super) async fn files(context: &Context, plan: &Plan) -> Result<Arc<[Migration]>, JobError> {
    let job = context.job().id;
    let run = || {
        let RunFiles(kept) = &context.app().run_files;
        kept.lock().unwrap_or_else(PoisonError::into_inner)
    };
    let kept = run().as_ref().filter(|(of, _)| *of == job).cloned();
    if let Some((_, files)) = kept {
        return Ok(files);
    }
    let files: Arc<[Migration]> = read(context.control(), &plan.directory, plan.last)
        .await?
        .into();
    *run() = Some((job, files.clone()));
    Ok(files)
}

/// A directory's files up to a number, in order.
async fn read(control: &Control, directory: &str, last: u32) -> Result<Vec<Migration>, JobError> {
    let rows = control
        .client()
        .await?
        .query(
            "select number, name, text from ringfence.migration
             where directory = $1 and number <= $2 order by number",
            &[&directory, &(last as i32)],
        )
        .await?;
    rows.iter().map(parsed).collect()
}

/// A directory's files, and whether all shards have each.
pub async fn listed(
    control: &Control,
    directory: &str,
) -> Result<Vec<(Migration, bool)>, JobError> {
    let rows = control
        .client()
        .await?
        .query(
            "select number, name, text, applied from ringfence.migration
             where directory = $1 order by number",
            &[&directory],
        )
        .await?;
    let listed = |row: &tokio_postgres::Row| Ok((parsed(row)?, row.get("applied")));
    rows.iter().map(listed).collect()
}

/// The numbers of files that all shards have.
pub async fn applied_numbers(control: &Control, directory: &str) -> Result<Vec<u32>, JobError> {
    let rows = control
        .client()
        .await?
        .query(
            "select number from ringfence.migration where directory = $1 and applied order by number",
            &[&directory],
        )
        .await?;
    let number = |row: &tokio_postgres::Row| row.get::<_, i32>(0).unsigned_abs();
    Ok(rows.iter().map(number).collect())
}

/// What all shards have: files by directory, in the order in which the fleet got
/// them.
pub async fn applied(control: &Control) -> Result<Vec<(String, Vec<Migration>)>, JobError> {
    let rows = control
        .client()
        .await?
        .query(
            "select directory, number, name, text from ringfence.migration
             where applied order by created_at, directory, number",
            &[],
        )
        .await?;
    let mut all: Vec<(String, Vec<Migration>)> = Vec::new();
    for row in &rows {
        let directory: String = row.get("directory");
        let file = parsed(row)?;
        match all.last_mut() {
            Some((last, files)) if *last == directory => files.push(file),
            _ => all.push((directory, vec![file])),
        }
    }
    Ok(all)
}

fn parsed(row: &tokio_postgres::Row) -> Result<Migration, JobError> {
    let (number, name): (i32, String) = (row.get("number"), row.get("name"));
    let file = format!("{number:03}_{name}.sql");
    // It was read once already, by this version or an earlier one.
    Migration::parse(&file, row.get("text")).map_err(|error| JobError::State(error.to_string()))
}

/// What can't run beside a change of the schema. A retained move counts: the
/// stream that keeps its way back would break where one side changes first, and
/// what is kept for a day is not ended behind the operator's back.
const BESIDE: [Kind; 4] = [
    Kind::Migrate,
    Kind::Move,
    Kind::TenantImport,
    Kind::TenantRestore,
];

/// Takes a directory's files in, and starts the job that applies them. What all
/// shards have must be among them as it was; the rest may have changed.
///
/// # Errors
/// [`Stop::Changed`], [`Stop::Order`]; [`ControlError::Conflict`] while another
/// run is under way.
pub async fn start(
    control: &Control,
    actor: &Actor,
    plan: &Plan,
    files: &[Migration],
) -> Result<Uuid, Stop> {
    let mut client = control.client().await.map_err(JobError::from)?;
    let transaction = client.transaction().await.map_err(control_error)?;
    let shards = transaction
        .query("select id from ringfence.shard order by id", &[])
        .await
        .map_err(control_error)?;
    let shards: Vec<String> = shards.iter().map(|row| row.get(0)).collect();
    refuse_beside(&transaction, &BESIDE, &shards)
        .await
        .map_err(JobError::from)?;
    fits(&transaction, &plan.directory, files).await?;
    take_in(&transaction, &plan.directory, files).await?;
    let new = NewJob {
        kind: Kind::Migrate,
        object: &plan.directory,
        tenant: None,
        shards: &shards,
        state: &Migrate::Checking {
            plan: plan.clone(),
            tries: 0,
            away: Vec::new(),
        },
    };
    let id = insert(&transaction, actor, &new)
        .await
        .map_err(JobError::from)?;
    transaction.commit().await.map_err(control_error)?;
    Ok(id)
}

/// What [`start`] would refuse, as things are now; nothing is written.
///
/// # Errors
/// The control database's.
pub async fn refusals(
    control: &Control,
    directory: &str,
    files: &[Migration],
) -> Result<Vec<Problem>, JobError> {
    let mut client = control.client().await?;
    let transaction = client.transaction().await?;
    let shards = transaction
        .query("select id from ringfence.shard", &[])
        .await?;
    let shards: Vec<String> = shards.iter().map(|row| row.get(0)).collect();
    let mut found = Vec::new();
    match refuse_beside(&transaction, &BESIDE, &shards).await {
        Err(ControlError::Conflict(message)) => found.push(Problem {
            code: "RF413".into(),
            message,
            advice: String::new(),
        }),
        other => other?,
    }
    match fits(&transaction, directory, files).await {
        Err(Stop::Job(error)) => return Err(error),
        Err(stop) => found.push(stop.problem()),
        Ok(()) => {}
    }
    Ok(found)
}

/// What all shards have must be among the files, as it was.
async fn fits(
    transaction: &Transaction<'_>,
    directory: &str,
    files: &[Migration],
) -> Result<(), Stop> {
    let rows = transaction
        .query(
            "select number, name, checksum from ringfence.migration
             where directory = $1 and applied order by number",
            &[&directory],
        )
        .await
        .map_err(control_error)?;
    let place = format!("directory {directory}");
    for row in &rows {
        let number = row.get::<_, i32>("number").unsigned_abs();
        let (name, applied): (&str, &str) = (row.get("name"), row.get("checksum"));
        let file = format!("{number:03}_{name}.sql");
        match files.iter().find(|file| file.number == number) {
            Some(found) if found.checksum == applied && found.name == name => {}
            Some(_) => return Err(Stop::Changed { place, file }),
            None => {
                let why = format!("all shards have {file}, which is not among the files");
                return Err(Stop::Order { place, why });
            }
        }
    }
    Ok(())
}

async fn take_in(
    transaction: &Transaction<'_>,
    directory: &str,
    files: &[Migration],
) -> Result<(), Stop> {
    // What failed before may have been changed, renamed or removed since.
    transaction
        .execute(
            "delete from ringfence.migration where directory = $1 and not applied",
            &[&directory],
        )
        .await
        .map_err(control_error)?;
    for file in files {
        transaction
            .execute(
                "insert into ringfence.migration (directory, number, name, checksum, phase, text, created_at)
                 values ($1, $2, $3, $4, $5, $6, clock_timestamp())
                 on conflict (directory, number) do nothing",
                &[
                    &directory,
                    &(file.number as i32),
                    &file.name,
                    &checksum(&file.text),
                    &file.header.phase.as_str(),
                    &file.text,
                ],
            )
            .await
            .map_err(control_error)?;
    }
    Ok(())
}

fn control_error(error: tokio_postgres::Error) -> Stop {
    Stop::Job(JobError::Control(ControlError::Postgres(error)))
}
