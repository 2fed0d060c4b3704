//! What every shard has, what is under way, and where shards differ: asked of
//! the shards themselves.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use schema::clash::{self, Made};
use schema::drift::{self, Difference, Objects};
use schema::history::{self, Entry};
use schema::migration::{Migration, Phase};
use serde::Serialize;
use tenancy::chain;
use tenancy::control::{ControlError, ShardInfo};

use super::{Stop, store};
use crate::app::App;
use crate::job::store::{Wanted, list};
use crate::job::{JobError, JobInfo};
use crate::reconcile;
use crate::shard::ShardError;

/// Shards asked side by side.
const AT_ONCE: usize = 16;
/// Longest wait for one shard.
const SHARD_MAX: Duration = Duration::from_secs(20);
/// Differing objects that are named.
const DIFFERENCES_MAX: usize = 50;

/// A directory, on all shards.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub directory: String,
    /// Its files, in order.
    pub files: Vec<FileStatus>,
    /// The shards.
    pub shards: Vec<ShardStatus>,
    /// Objects that differ between shards.
    pub drift: Vec<Difference>,
    /// The run that is under way, or the last one.
    pub job: Option<JobInfo>,
}

/// A file.
#[derive(Debug, Serialize)]
pub struct FileStatus {
    /// Its number.
    pub number: u32,
    /// Its name on disk.
    pub file: String,
    /// The checksum of its text.
    pub checksum: String,
    /// Its phase.
    pub phase: Phase,
    /// Its statements.
    pub statements: usize,
    /// All shards have it.
    pub applied: bool,
}

/// What a shard has.
#[derive(Debug, Serialize)]
pub struct ShardStatus {
    /// The shard.
    pub shard: String,
    /// Where it stands.
    pub state: ShardState,
    /// Files that it has whole.
    pub files: u32,
    /// The file that it has in part, or what it lacks first.
    pub next: Option<String>,
    /// Statements of that file that are done.
    pub step: u32,
    /// Rows that the file's back-fills changed.
    pub rows: i64,
    /// Rows that they go through, as the planner estimates them, while they run.
    pub rows_total: Option<i64>,
    /// What a long statement has done, as Postgres reports it.
    pub progress: Option<String>,
    /// A digest of its schema.
    pub fingerprint: Option<String>,
    /// Tables that the files which it lacks go through.
    pub tables: Vec<TableSize>,
    /// What those files would make and is there already.
    pub clashes: Vec<Made>,
    /// What does not fit, or why it does not answer.
    pub problem: Option<String>,
    /// What would stop a run here.
    #[serde(skip)]
    pub stop: Option<Stop>,
}

/// A table on one shard.
#[derive(Clone, Debug, Serialize)]
pub struct TableSize {
    /// Its name.
    pub table: String,
    /// Rows of all tenants, as the planner estimates them.
    pub rows: i64,
    /// Bytes with indexes and TOAST.
    pub bytes: i64,
    /// Bytes without indexes.
    pub heap_bytes: i64,
}

/// Where a shard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    /// It has all files.
    Current,
    /// It lacks files.
    Behind,
    /// It has a part of a file.
    Half,
    /// What it has does not fit the files.
    Differs,
    /// It does not answer.
    Down,
}

/// What a directory's files are, and what shards have of them.
pub async fn status(app: &App, directory: &str) -> Result<Status, Stop> {
    let files = store::listed(&app.control, directory).await?;
    of(app, directory, &files).await
}

/// What shards have of these files, whether the fleet knows them or not.
pub async fn of(app: &App, directory: &str, files: &[(Migration, bool)]) -> Result<Status, Stop> {
    let texts: Vec<Migration> = files.iter().map(|(file, _)| file.clone()).collect();
    let shards = app.control.shards().await.map_err(JobError::from)?;
    let mut asked = Vec::with_capacity(shards.len());
    for shard in &shards {
        asked.push(ask(app, directory, &texts, shard));
    }
    let asked = stream::iter(asked).buffered(AT_ONCE);
    let mut answers: Vec<(ShardStatus, Option<Objects>)> = asked.collect().await;
    for ((status, _), shard) in answers.iter_mut().zip(&shards) {
        // It gets all files before it joins: no run waits for it.
        if shard.state == "preparing" {
            status.stop = None;
        }
    }
    let objects: Vec<(String, Objects)> = answers
        .iter_mut()
        .filter_map(|(status, objects)| Some((status.shard.clone(), objects.take()?)))
        .collect();
    let wanted = Wanted {
        kind: Some("migrate"),
        limit: 50,
        ..Wanted::default()
    };
    let jobs = list(&app.control, &wanted).await.map_err(JobError::from)?;
    Ok(Status {
        directory: directory.to_owned(),
        files: files.iter().map(file).collect(),
        shards: answers.into_iter().map(|(status, _)| status).collect(),
        drift: drift::differences(&objects, DIFFERENCES_MAX),
        job: jobs.into_iter().find(|job| job.object == directory),
    })
}

fn file((file, applied): &(Migration, bool)) -> FileStatus {
    FileStatus {
        number: file.number,
        file: file.file(),
        checksum: file.checksum.clone(),
        phase: file.header.phase,
        statements: file.statements.len(),
        applied: *applied,
    }
}

async fn ask(
    app: &App,
    directory: &str,
    files: &[Migration],
    shard: &ShardInfo,
) -> (ShardStatus, Option<Objects>) {
    let answer = tokio::time::timeout(SHARD_MAX, answer(app, directory, files, shard)).await;
    match answer.unwrap_or(Err(ShardError::Slow)) {
        Ok(Answer {
            entries,
            objects,
            progress,
            tables,
            clashes,
        }) => {
            let mut status = judge(&shard.id, files, &entries);
            let lacks: Vec<String> = files
                .iter()
                .filter(|file| file.number > status.files)
                .flat_map(Migration::tables)
                .collect();
            let next = files.iter().find(|file| Some(file.file()) == status.next);
            status.rows_total = next
                .filter(|_| status.state == ShardState::Half)
                .and_then(|file| rows_of(&file.filled(), &tables));
            status.tables = tables;
            status.tables.retain(|size| lacks.contains(&size.table));
            status.fingerprint = Some(objects.fingerprint());
            status.progress = progress;
            if status.stop.is_none() && !clashes.is_empty() {
                status.stop = Some(Stop::Exists {
                    shard: shard.id.clone(),
                    clashes: clashes.clone(),
                });
            }
            status.clashes = clashes;
            (status, Some(objects))
        }
        Err(error) => {
            let why = chain(&error);
            let status = ShardStatus {
                state: ShardState::Down,
                next: None,
                problem: Some(why.clone()),
                stop: Some(Stop::down(&shard.id, why)),
                ..judge(&shard.id, files, &[])
            };
            (status, None)
        }
    }
}

/// Rows of all these tables, each as often as it is named; none where none is.
fn rows_of(named: &[String], sizes: &[TableSize]) -> Option<i64> {
    let rows = |name: &String| {
        let size = sizes.iter().find(|size| size.table == *name);
        size.map_or(0, |size| size.rows)
    };
    (!named.is_empty()).then(|| named.iter().map(rows).sum())
}

/// What a shard answered.
struct Answer {
    entries: Vec<Entry>,
    objects: Objects,
    progress: Option<String>,
    tables: Vec<TableSize>,
    clashes: Vec<Made>,
}

async fn answer(
    app: &App,
    directory: &str,
    files: &[Migration],
    shard: &ShardInfo,
) -> Result<Answer, ShardError> {
    let nodes = reconcile::addresses(shard);
    let client = app.logins.as_worker(&shard.id, &nodes).await?;
    let entries = history::read(&client, directory).await?;
    let objects = drift::objects(&client).await?;
    let progress = client
        .query_opt(
            "select format('%s of %s: %s', p.command, p.index_relid::regclass,
               concat_ws(', ', p.phase, nullif(format('%s of %s blocks', p.blocks_done, p.blocks_total), '0 of 0 blocks'),
                 nullif(format('%s of %s rows', p.tuples_done, p.tuples_total), '0 of 0 rows'),
                 nullif(format('%s of %s transactions waited for', p.lockers_done, p.lockers_total), '0 of 0 transactions waited for')))
             from pg_stat_progress_create_index p where p.datname = current_database() limit 1",
            &[],
        )
        .await?;
    // A partitioned table's rows are in its partitions.
    let named: Vec<String> = files.iter().flat_map(Migration::tables).collect();
    let tables = client
        .query(
            "select n.nspname || '.' || c.relname as name, coalesce(s.rows, 0) as rows,
               coalesce(s.bytes, 0) as bytes, coalesce(s.heap_bytes, 0) as heap_bytes
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             cross join lateral (
               select sum(greatest(p.reltuples, 0))::bigint as rows, sum(pg_total_relation_size(p.oid))::bigint as bytes,
                 sum(pg_table_size(p.oid))::bigint as heap_bytes
               from pg_class p where p.oid = c.oid or c.relkind = 'p' and p.oid in (select t.relid from pg_partition_tree(c.oid) t)) s
             where n.nspname || '.' || c.relname = any($1) and c.relkind in ('r', 'p')",
            &[&named],
        )
        .await?;
    let entry = |file: &Migration| entries.iter().find(|entry| entry.number == file.number);
    let begun = files
        .iter()
        .find(|file| entry(file).is_some_and(|entry| !entry.done));
    let lacks = files.iter().filter(|file| entry(file).is_none());
    let mut clashes = clash::made(begun, lacks);
    let names: Vec<&str> = clashes.iter().map(|made| made.name.as_str()).collect();
    let there = client
        .query(
            "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname || '.' || c.relname = any($1)
               and not exists (select from pg_index i where i.indexrelid = c.oid and not i.indisvalid)
             union select n.nspname || '.' || t.typname from pg_type t join pg_namespace n on n.oid = t.typnamespace
             where n.nspname || '.' || t.typname = any($1)",
            &[&names],
        )
        .await?;
    let there: Vec<String> = there.iter().map(|row| row.get(0)).collect();
    clashes.retain(|made| there.contains(&made.name));
    let size = |row: &tokio_postgres::Row| TableSize {
        table: row.get("name"),
        rows: row.get("rows"),
        bytes: row.get("bytes"),
        heap_bytes: row.get("heap_bytes"),
    };
    Ok(Answer {
        entries,
        objects,
        progress: progress.map(|row| row.get(0)),
        tables: tables.iter().map(size).collect(),
        clashes,
    })
}

/// Compares a shard's history with the files.
fn judge(shard: &str, files: &[Migration], entries: &[Entry]) -> ShardStatus {
    let (next, problem, stop) = match history::next(files, entries) {
        Ok(next) => (next, None, None),
        Err(error) => {
            let problem = error.to_string();
            let stop = Stop::history(&format!("shard {shard}"), error);
            (None, Some(problem), Some(stop))
        }
    };
    let part = next.and_then(|next| entries.iter().find(|entry| entry.number == next.number));
    let state = match (&problem, next, part) {
        (Some(_), _, _) => ShardState::Differs,
        (None, None, _) => ShardState::Current,
        (None, Some(_), Some(_)) => ShardState::Half,
        (None, Some(_), None) => ShardState::Behind,
    };
    ShardStatus {
        shard: shard.to_owned(),
        state,
        files: entries.iter().filter(|entry| entry.done).count() as u32,
        next: next.map(Migration::file),
        step: part.map_or(0, |entry| entry.step),
        rows: part.map_or(0, |entry| entry.rows),
        rows_total: None,
        progress: None,
        fingerprint: None,
        tables: Vec::new(),
        clashes: Vec::new(),
        problem,
        stop,
    }
}

/// Directories by name, with their numbers of files.
#[derive(Debug, Serialize)]
pub struct Directory {
    /// Its name.
    pub directory: String,
    /// Its files.
    pub files: i64,
    /// Files that all shards have.
    pub applied: i64,
}

/// All directories.
pub async fn directories(app: &App) -> Result<Vec<Directory>, ControlError> {
    let rows = app
        .control
        .client()
        .await?
        .query(
            "select directory, count(*) as files, count(*) filter (where applied) as applied
             from ringfence.migration group by directory order by directory",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Directory {
            directory: row.get("directory"),
            files: row.get("files"),
            applied: row.get("applied"),
        })
        .collect())
}
