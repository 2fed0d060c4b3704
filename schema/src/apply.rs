//! Applies one file to one shard, bit by bit; called again after whatever ended
//! the call before, it goes on where the shard's own history says.
//!
//! ```text
//!   not there ──► running (step, begun, after_key) ──► done
//!        └─────────── in one transaction ───────────────▲
//! ```
//!
//! A file's statements and the row that records them commit together. What
//! can't be part of a transaction is announced first (`begun`), so that what is
//! found of it later is known to be this file's. Changes of the schema run as
//! `ringfence_owner`, changes of rows as the migrator, whom row level security
//! does not stop.

mod backfill;
mod outside;

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use crate::history::{self, Entry};
use crate::lint;
use crate::migration::{Migration, Statement, StatementKind};

/// Key of the advisory lock that a session has while it changes a shard.
const LOCK: i64 = 0x7269_6e67_0005;
/// A session whose worker has died stops what it does after this.
const GONE_CHECK: &str = "2s";

/// How much is done in one call.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// No further statement or chunk is begun after this time.
    pub slice: Duration,
    /// Back-fills wait while a follower is this many bytes behind.
    pub lag_max: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            slice: Duration::from_secs(1),
            lag_max: 16 << 20,
        }
    }
}

/// How far a file is on a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// All is done.
    pub done: bool,
    /// Statements done.
    pub step: u32,
    /// Rows that back-fills changed.
    pub rows: i64,
    /// Nothing was done because a follower is this many bytes behind.
    pub lag: Option<i64>,
}

/// Why a file did not go on. What was committed before stays, and is known.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another session changes this shard.
    #[error("another session changes the schema of this shard")]
    Busy,
    /// The text is not the one that was begun.
    #[error("{0} was changed after it was begun")]
    Changed(String),
    /// A lock was not had in time: who waits for one stops all who come after.
    #[error("{file}, line {line}: no lock within {waited_ms} ms{}", by(.blockers))]
    Locked {
        /// The file.
        file: String,
        /// The statement's line.
        line: u32,
        /// How long it waited.
        waited_ms: u128,
        /// The oldest transactions.
        blockers: Option<String>,
    },
    /// A back-fill's table has no primary key, or is not there.
    #[error("{file}, line {line}: {table} has no primary key to go through by")]
    NoKey {
        /// The file.
        file: String,
        /// The statement's line.
        line: u32,
        /// The table.
        table: String,
    },
    /// A table that no rule looked at would be left unscoped.
    #[error("{file} makes {table}, which is neither distributed nor a reference table")]
    Unscoped {
        /// The file.
        file: String,
        /// The table.
        table: String,
    },
    /// Postgres refused a statement.
    #[error("{file}, line {line}")]
    Statement {
        /// The file.
        file: String,
        /// The statement's line.
        line: u32,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// The connection, or a statement around the file's.
    #[error("the shard's history can't be read or written")]
    Postgres(#[from] tokio_postgres::Error),
}

fn by(blockers: &Option<String>) -> String {
    match blockers {
        Some(blockers) => format!("; open transactions: {blockers}"),
        None => String::new(),
    }
}

/// Does a part of `file`, which must be the next one by the shard's history.
///
/// `client` is a session of `ringfence_migrator` or a superuser on the shard's
/// primary, with nothing under way.
///
/// # Errors
/// Every [`ApplyError`]. The call may be dropped at any await.
pub async fn advance(
    client: &mut Client,
    directory: &str,
    file: &Migration,
    limits: &Limits,
) -> Result<Advance, ApplyError> {
    enter(client).await?;
    let place = Place { directory, file };
    let mut entry = place.entry(client).await?;
    if let Some(entry) = &entry {
        if entry.checksum != file.checksum {
            return Err(ApplyError::Changed(file.file()));
        }
        if entry.done {
            return Ok(advanced(entry));
        }
    }
    if file.header.transaction {
        place.whole(client).await?;
        entry = place.entry(client).await?;
    } else {
        let until = Instant::now() + limits.slice;
        place.begin(client).await?;
        loop {
            entry = place.entry(client).await?;
            let Some(now) = &entry else { break };
            let Some(statement) = file.statements.get(now.step as usize) else {
                break;
            };
            if let StatementKind::Backfill(backfill) = &statement.kind {
                let lag = backfill::lag(client).await?;
                if lag.is_some_and(|lag| lag > limits.lag_max) {
                    return Ok(Advance {
                        lag,
                        ..advanced(now)
                    });
                }
                let work = Instant::now();
                let chunk = backfill::chunk(&place, client, statement, backfill, now).await;
                place.unless_refused(client, statement, chunk).await?;
                // Half of the time is the others'.
                tokio::time::sleep(work.elapsed().min(limits.slice)).await;
            } else {
                let alone = place.alone(client, statement, now).await;
                place.unless_refused(client, statement, alone).await?;
            }
            if Instant::now() >= until {
                entry = place.entry(client).await?;
                break;
            }
        }
    }
    Ok(entry.as_ref().map_or(
        Advance {
            done: false,
            step: 0,
            rows: 0,
            lag: None,
        },
        advanced,
    ))
}

fn advanced(entry: &Entry) -> Advance {
    Advance {
        done: entry.done,
        step: entry.step,
        rows: entry.rows,
        lag: None,
    }
}

/// Takes the shard's lock for this session, and undoes what the last file set.
async fn enter(client: &Client) -> Result<(), ApplyError> {
    client
        .batch_execute(&format!(
            "reset role; reset all; set client_connection_check_interval = '{GONE_CHECK}'"
        ))
        .await?;
    let locked = client
        .query_one(
            "select case when exists (select from pg_locks l
               where l.locktype = 'advisory' and l.objsubid = 1 and l.granted and l.pid = pg_backend_pid()
                 and l.classid::bigint = ($1::bigint >> 32) and l.objid::bigint = ($1::bigint & 4294967295))
             then true else pg_try_advisory_lock($1) end",
            &[&LOCK],
        )
        .await?;
    match locked.get(0) {
        true => Ok(()),
        false => Err(ApplyError::Busy),
    }
}

/// A file on a shard.
struct Place<'a> {
    directory: &'a str,
    file: &'a Migration,
}

impl Place<'_> {
    async fn entry(&self, client: &Client) -> Result<Option<Entry>, ApplyError> {
        let entries = history::read(client, self.directory).await?;
        Ok(entries
            .into_iter()
            .find(|entry| entry.number == self.file.number))
    }

    /// All statements and the row, or nothing.
    async fn whole(&self, client: &mut Client) -> Result<(), ApplyError> {
        let transaction = client.transaction().await?;
        transaction.batch_execute(&self.bounds(true)).await?;
        let before = tables(&transaction).await?;
        self.insert(&transaction, "done").await?;
        for statement in &self.file.statements {
            let done = run(&transaction, statement).await;
            if let Err(error) = done {
                transaction.rollback().await?;
                return Err(self.refused(client, statement, error).await);
            }
        }
        self.refuse_unscoped(&transaction, &before).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The row, before the first statement.
    async fn begin(&self, client: &mut Client) -> Result<(), ApplyError> {
        let transaction = client.transaction().await?;
        let state = match self.file.statements.len() {
            0 => "done",
            _ => "running",
        };
        self.insert(&transaction, state).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn insert(&self, transaction: &Transaction<'_>, state: &str) -> Result<(), ApplyError> {
        let file = self.file;
        let step = match state {
            "done" => file.statements.len() as i32,
            _ => 0,
        };
        transaction
            .execute(
                "insert into ringfence.migration (directory, number, name, checksum, phase, state, step)
                 values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
                &[
                    &self.directory,
                    &(file.number as i32),
                    &file.name,
                    &file.checksum,
                    &file.header.phase.as_str(),
                    &state,
                    &step,
                ],
            )
            .await?;
        Ok(())
    }

    /// One statement with its step, in a transaction where it can be.
    async fn alone(
        &self,
        client: &mut Client,
        statement: &Statement,
        entry: &Entry,
    ) -> Result<(), ApplyError> {
        match &statement.kind {
            StatementKind::ConcurrentIndex { index } => {
                return outside::build(self, client, statement, index.as_deref(), entry).await;
            }
            StatementKind::OutsideTransaction => {
                return outside::run(self, client, statement, entry).await;
            }
            StatementKind::Ddl | StatementKind::Dml | StatementKind::Backfill(_) => {}
        }
        let transaction = client.transaction().await?;
        transaction.batch_execute(&self.bounds(true)).await?;
        let before = tables(&transaction).await?;
        if let Err(error) = run(&transaction, statement).await {
            transaction.rollback().await?;
            // It can't be run in one: only Postgres knows of each statement.
            if error.code() == Some(&SqlState::ACTIVE_SQL_TRANSACTION) {
                return outside::run(self, client, statement, entry).await;
            }
            return Err(self.refused(client, statement, error).await);
        }
        self.refuse_unscoped(&transaction, &before).await?;
        self.passed(&transaction, entry.step).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// A table that was made where no rule could see it, in a DO block say, must belong
    /// to tenants by now, or be allowed: else nothing of this is kept.
    async fn refuse_unscoped(
        &self,
        transaction: &Transaction<'_>,
        before: &[u32],
    ) -> Result<(), ApplyError> {
        let unscoped = transaction
            .query(
                "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
                   and c.oid <> all($1) and n.nspname !~ '^pg_' and n.nspname <> 'ringfence'
                   and not exists (select from ringfence.relation r where r.relid = c.oid)
                   and not exists (select from pg_depend d
                     where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
                 order by 1",
                &[&before],
            )
            .await?;
        let judged = lint::judged(self.file);
        let unscoped = unscoped.iter().map(|row| row.get::<_, String>(0));
        let unseen =
            |table: &String| !judged.contains(table) && !lint::may_be_unscoped(self.file, table);
        match unscoped.into_iter().find(unseen) {
            None => Ok(()),
            Some(table) => Err(ApplyError::Unscoped {
                file: self.file.file(),
                table,
            }),
        }
    }

    /// Forgets a file whose first statement was refused for what it says or what rows
    /// hold: the shard has nothing of it, so that it may be mended.
    async fn unless_refused(
        &self,
        client: &Client,
        statement: &Statement,
        outcome: Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let is_final = match &outcome {
            Err(ApplyError::Statement { source, .. }) => source.code().is_some_and(|state| {
                ["0A", "22", "23", "42"]
                    .iter()
                    .any(|class| state.code().starts_with(class))
            }),
            Err(ApplyError::NoKey { .. } | ApplyError::Unscoped { .. }) => true,
            _ => false,
        };
        if is_final {
            let is_undone = matches!(statement.kind, StatementKind::ConcurrentIndex { .. });
            client
                .execute(
                    "delete from ringfence.migration where directory = $1 and number = $2
                       and state = 'running' and step = 0 and after_key is null and (begun is null or $3)",
                    &[&self.directory, &(self.file.number as i32), &is_undone],
                )
                .await?;
        }
        outcome
    }

    /// Records that the statement of that index is done.
    async fn passed(
        &self,
        client: &impl tokio_postgres::GenericClient,
        step: u32,
    ) -> Result<(), tokio_postgres::Error> {
        let (done, of) = (step as i32 + 1, self.file.statements.len() as i32);
        client
            .execute(
                "update ringfence.migration set step = $3, begun = null, after_key = null, changed_at = now(),
                   state = case when $3 = $4::int then 'done' else state end
                 where directory = $1 and number = $2",
                &[&self.directory, &(self.file.number as i32), &done, &of],
            )
            .await?;
        Ok(())
    }

    /// Time limits: of the transaction, or of the session.
    fn bounds(&self, local: bool) -> String {
        let header = &self.file.header;
        let scope = if local { "local" } else { "session" };
        format!(
            "set {scope} lock_timeout = {}; set {scope} statement_timeout = {}",
            header.lock_timeout.as_millis(),
            header.statement_timeout.map_or(0, |time| time.as_millis()),
        )
    }

    /// What a failed statement means; the transaction has ended.
    async fn refused(
        &self,
        client: &Client,
        statement: &Statement,
        source: tokio_postgres::Error,
    ) -> ApplyError {
        let (file, line) = (self.file.file(), statement.line);
        if source.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return ApplyError::Statement { file, line, source };
        }
        let wait = self.file.header.lock_timeout;
        let older = wait.as_secs_f64();
        let blockers = client
            .query_one(
                "select ringfence.old_transactions(make_interval(secs => $1))",
                &[&older],
            )
            .await;
        ApplyError::Locked {
            file,
            line,
            waited_ms: wait.as_millis(),
            blockers: blockers.ok().and_then(|row| row.get(0)),
        }
    }
}

/// All tables that are there.
async fn tables(transaction: &Transaction<'_>) -> Result<Vec<u32>, tokio_postgres::Error> {
    let tables = "select coalesce(array_agg(oid), '{}') from pg_class where relkind in ('r', 'p')";
    Ok(transaction.query_one(tables, &[]).await?.get(0))
}

/// Runs a statement in the role that its kind takes.
async fn run(
    transaction: &Transaction<'_>,
    statement: &Statement,
) -> Result<(), tokio_postgres::Error> {
    let role = match statement.kind {
        StatementKind::Dml | StatementKind::Backfill(_) => "none",
        StatementKind::Ddl
        | StatementKind::ConcurrentIndex { .. }
        | StatementKind::OutsideTransaction => "ringfence_owner",
    };
    transaction
        .batch_execute(&format!("set local role {role}"))
        .await?;
    transaction.batch_execute(&statement.text).await?;
    transaction.batch_execute("set local role none").await
}
