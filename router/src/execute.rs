//! Stage 8: a statement on a connection, behind the shard's own guard.
//!
//! The one place that knows the two forms in which a request is sent, each one
//! network round trip:
//!
//! - a **read** is one statement whose first step is `ringfence.enter`; the
//!   lateral reference and `offset 0` keep it first,
//! - **what can write** is `BEGIN READ WRITE`, enter, statement, `COMMIT` in one
//!   message. As one statement an UPDATE would scan before `enter` ran. The
//!   place in the log is asked for behind COMMIT, in the same message (rule 7).
//!
//! Behind a step that fails Postgres skips the rest of its message, `COMMIT` too:
//! nothing runs for a tenant that the shard refuses.
//!
//! A function of the schema may have changed its session for good, by
//! `set_config(…, false)` say, or a lock of the session. Behind whatever may have
//! called one, the session is made what it was, in the same round trip; where
//! that can't be seen to be done, the connection is closed.
//!
//! A COMMIT that Postgres calls done is not always one: cancelled while it waits
//! for its synchronous standbys, it answers as if nothing were the matter, with
//! a warning, and may be lost in a failover. Such an outcome is unknown.

use std::borrow::Cow;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::pool::{LeaseError, Leased};
use crate::wire::{DbError, Prepared, Row, TooLarge, Value};

/// Whom a statement runs for. Its four values are `$1` to `$4` of every statement.
#[derive(Clone, Debug)]
pub struct Guard {
    /// The tenant.
    pub tenant: uuid::Uuid,
    /// The placement number that this router believes.
    pub epoch: i64,
    /// JSON text for `request.jwt.claims`.
    pub claims: Bytes,
    /// A function, as it stands in SQL, that a transaction calls once it has entered.
    pub before: Option<Arc<str>>,
    /// Further settings, as a Postgres array literal of names and values.
    pub settings: Option<Bytes>,
    /// The key of a write: whether it was answered already is looked up first.
    pub claim: Option<Claim>,
}

/// An Idempotency-Key that is to be claimed behind the guard.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The key.
    pub key: Bytes,
    /// The request's digest, as a bytea literal.
    pub fingerprint: Bytes,
    /// Keys that a tenant may have, in decimal.
    pub keys_max: Bytes,
}

/// A value in Postgres' text format, of whatever type the server infers.
#[derive(Clone, Debug)]
pub struct Text(pub Option<Bytes>);

/// One result row of fixed, named columns.
#[derive(Debug)]
pub struct Answer {
    statement: Prepared,
    row: Row,
    /// Of what was committed: its place in the log. None also where the
    /// connection broke right behind COMMIT.
    pub position: Option<Position>,
    /// The further lines of a plan.
    explanation: Vec<Row>,
}

/// A place in the log of the node that was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The timeline.
    pub timeline: u32,
    /// Bytes of WAL; what was committed is at or before it.
    pub lsn: u64,
}

impl Position {
    fn of(statement: &Prepared, row: &Row) -> Option<Self> {
        let timeline = i32::try_from(statement.number(row, "timeline")?).ok()?;
        let lsn = statement.number(row, "lsn")?;
        Some(Self {
            timeline: timeline.cast_unsigned(),
            lsn: lsn.cast_unsigned(),
        })
    }
}

/// Postgres' own name for the column of an explanation.
const EXPLANATION: &str = "QUERY PLAN";

impl Answer {
    /// A text column's bytes, NULL as none. The column's presence is part of
    /// the contract with `sql`, so a missing one reads as NULL.
    pub fn text(&self, column: &str) -> Option<&[u8]> {
        self.statement.value(&self.row, column)
    }

    /// The plan, where the statement was an EXPLAIN.
    pub fn explanation(&self) -> Option<Bytes> {
        if !self.statement.begins_with(EXPLANATION) {
            return None;
        }
        let rows = std::iter::once(&self.row).chain(&self.explanation);
        let lines: Vec<&[u8]> = rows
            .filter_map(|row| self.statement.value(row, EXPLANATION))
            .collect();
        Some(lines.join(&b'\n').into())
    }

    /// A bigint column.
    pub fn number(&self, column: &str) -> Option<i64> {
        self.statement.number(&self.row, column)
    }
}

/// How a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// Postgres refused it; nothing was written.
    #[error("Postgres refused the statement")]
    Refused(#[source] Box<DbError>),
    /// The deadline passed; the statement was cancelled and nothing was written.
    #[error("the deadline passed")]
    Deadline,
    /// The connection was lost before anything was committed.
    #[error("the connection to the shard was lost")]
    Lost(#[source] Option<io::Error>),
    /// The answer is larger than the connection was leased for; nothing was written.
    #[error("the answer is too large to be read")]
    TooLarge,
    /// The node is a standby, or shuts down: nothing was begun.
    #[error("the node takes no transaction")]
    NotBegun(#[source] Box<DbError>),
    /// The connection was lost around COMMIT, or its wait for standbys was cut
    /// short: it may have been written or not, or be lost yet.
    #[error("COMMIT was not confirmed: the outcome is unknown")]
    Unknown,
}

impl ExecuteError {
    /// Whether the node is at fault and surely nothing was written: another node,
    /// or this one later, can be asked again.
    pub fn is_the_nodes(&self) -> bool {
        match self {
            Self::Lost(_) | Self::NotBegun(_) => true,
            Self::Refused(error) => shuts_down(error.code()),
            Self::Deadline | Self::TooLarge | Self::Unknown => false,
        }
    }

    /// What Postgres refused it with.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Refused(error) => Some(error.code().code()),
            Self::Deadline | Self::Lost(_) | Self::TooLarge | Self::NotBegun(_) | Self::Unknown => {
                None
            }
        }
    }

    /// The same, for another who waited for it; without the connection's own words.
    pub fn again(&self) -> Self {
        match self {
            Self::Refused(error) => Self::Refused(error.clone()),
            Self::Deadline => Self::Deadline,
            Self::Lost(_) => Self::Lost(None),
            Self::TooLarge => Self::TooLarge,
            Self::NotBegun(error) => Self::NotBegun(error.clone()),
            Self::Unknown => Self::Unknown,
        }
    }

    /// Whether a model older than the schema can be the cause.
    pub fn may_be_stale_plan(&self) -> bool {
        matches!(self, Self::Refused(error) if [
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNDEFINED_OBJECT,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::DATATYPE_MISMATCH,
        ].contains(error.code()))
    }
}

/// What a transaction may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Write, and commit.
    Write,
    /// Write, and roll back at the end (`Prefer: tx=rollback`).
    WriteAndRollBack,
    /// A function that might try to write, called in a way that must not.
    ReadOnly,
}

impl Access {
    fn begin(self) -> &'static str {
        match self {
            Self::Write | Self::WriteAndRollBack => "BEGIN READ WRITE",
            Self::ReadOnly => "BEGIN READ ONLY",
        }
    }

    fn enter(self, claims: bool) -> &'static str {
        match self {
            // The key is looked up behind the lock and the fence, hence the nesting.
            Self::Write if claims => {
                "select ringfence.claim(\
                 ringfence.enter($1::uuid, $2::bigint, 'write', $3::text, $4::text[]), \
                 $5::text, $6::bytea, $7::bigint)"
            }
            Self::Write | Self::WriteAndRollBack => {
                "select ringfence.enter($1::uuid, $2::bigint, 'write', $3::text, $4::text[])"
            }
            Self::ReadOnly => {
                "select ringfence.enter($1::uuid, $2::bigint, 'read', $3::text, $4::text[])"
            }
        }
    }

    /// Enters, and then calls the function `before`, with its caller's rights.
    fn enter_and_call(self, guard: &Guard) -> Cow<'static, str> {
        let enter = self.enter(guard.claim.is_some());
        match &guard.before {
            None => Cow::Borrowed(enter),
            Some(function) => Cow::Owned(format!(
                "select {function}() from ({enter} as tenant offset 0) entered where tenant is not null"
            )),
        }
    }

    /// Deferred constraints are checked before a rollback too, so that a dry
    /// run reports what a real one would.
    fn check(self) -> Option<&'static str> {
        match self {
            Self::Write | Self::ReadOnly => None,
            Self::WriteAndRollBack => Some("SET CONSTRAINTS ALL IMMEDIATE"),
        }
    }

    fn end(self) -> &'static str {
        match self {
            Self::Write | Self::ReadOnly => "COMMIT",
            Self::WriteAndRollBack => "ROLLBACK",
        }
    }
}

/// How long a cancelled transaction may take to say how it ended.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// Makes a session what it was when it began, but for its prepared statements.
/// The role's own reset goes back to the one that the connection was made with.
const TIDY: &str = "reset role; reset all; close all; unlisten *; \
    select pg_catalog.pg_advisory_unlock_all()";

/// Runs a read as one guarded statement, on a session that is read-only;
/// `calls` says that functions of the schema may take part.
pub async fn read(
    connection: &mut Leased,
    guard: &Guard,
    text: &str,
    params: &[Text],
    calls: bool,
    deadline: Instant,
) -> Result<Answer, ExecuteError> {
    // Pinned where it is made: moved, it would have room in this future twice.
    let run = pin!(async {
        let row = read_once(connection, guard, text, params, calls).await;
        match row {
            Err(FailedStep::Refused(error)) if plan_is_stale(&error) => {
                connection.forget(text);
                read_once(connection, guard, text, params, calls).await
            }
            row => row,
        }
    });
    match timeout_at(deadline, run).await {
        Ok(done) => done.map_err(before_commit),
        // Dropping the lease cancels the query and closes the connection.
        Err(_) => Err(ExecuteError::Deadline),
    }
}

async fn read_once(
    connection: &mut Leased,
    guard: &Guard,
    text: &str,
    params: &[Text],
    calls: bool,
) -> Result<Answer, FailedStep> {
    let statement = connection
        .prepare(text, &GUARD_TYPES, || guarded_read(text))
        .await?;
    let values = guard.values(params);
    if !calls {
        return ask(connection, statement, &values).await;
    }
    let session = connection.start()?;
    session.add(&statement, &values)?;
    session.sync();
    session.add_query(TIDY)?;
    session.send().await?;
    let said = session.answer().await?;
    // Lost behind its answer, it is closed, and nobody has to know.
    let _ = tidied(connection).await;
    said.refused.map_or(Ok(()), Err)?;
    Answer::of(statement, said.done.into_iter().next())
}

/// Runs one statement, behind which the server is idle again.
async fn ask(
    connection: &mut Leased,
    statement: Prepared,
    values: &[Value<'_>],
) -> Result<Answer, FailedStep> {
    let session = connection.start()?;
    session.add(&statement, values)?;
    session.sync();
    session.send().await?;
    let said = session.answer().await?;
    if session.is_idle() {
        connection.finished();
    }
    said.refused.map_or(Ok(()), Err)?;
    Answer::of(statement, said.done.into_iter().next())
}

/// Reads the answer to [`TIDY`], the last that was sent: with it the server is
/// idle, and the session as it was. Else nobody else gets the connection.
async fn tidied(connection: &mut Leased) -> Result<(), FailedStep> {
    let session = connection.start()?;
    let said = session.answer().await?;
    if session.is_idle() {
        connection.finished();
    }
    if said.refused.is_some() {
        connection.spoil();
    }
    Ok(())
}

/// A statement that was prepared before a table got another shape answers so
/// for ever (PostgreSQL, `RevalidateCachedQuery`); or somebody deallocated it.
fn plan_is_stale(error: &DbError) -> bool {
    let reshaped = *error.code() == SqlState::FEATURE_NOT_SUPPORTED
        && error.routine() == Some("RevalidateCachedQuery");
    reshaped || *error.code() == SqlState::INVALID_SQL_STATEMENT_NAME
}

/// Whether nobody has the capture's slot, and how often it was acquired.
///
/// See schema/shard/011_capture_look.sql.
pub async fn slot(connection: &mut Leased) -> Result<(bool, i64), ExecuteError> {
    const TEXT: &str = "select free, term from ringfence.capture_look()";
    let asked = async {
        let statement = connection.prepare(TEXT, &[], || TEXT.to_owned()).await?;
        ask(connection, statement, &[]).await
    };
    let answer = asked.await.map_err(before_commit)?;
    let free = answer.statement.is_true(&answer.row, "free");
    let found = free.zip(answer.number("term"));
    found.ok_or(ExecuteError::Lost(None))
}

/// Runs what may write as one transaction in one message.
///
/// To be called in a task that outlives the request: a client that hangs up
/// must never leave a COMMIT half sent.
pub async fn transact(
    mut connection: Leased,
    guard: Guard,
    access: Access,
    text: String,
    params: Vec<Text>,
    deadline: Instant,
) -> Result<Answer, ExecuteError> {
    let done = transact_once(&mut connection, &guard, access, &text, &params, deadline).await;
    match done {
        // The transaction was rolled back: nothing was written.
        Err(ExecuteError::Refused(error)) if plan_is_stale(&error) && !connection.is_spoilt() => {
            connection.forget(&text);
            connection.forget(&access.enter_and_call(&guard));
            transact_once(&mut connection, &guard, access, &text, &params, deadline).await
        }
        done => done,
    }
}

async fn transact_once(
    connection: &mut Leased,
    guard: &Guard,
    access: Access,
    text: &str,
    params: &[Text],
    deadline: Instant,
) -> Result<Answer, ExecuteError> {
    let prepare = async {
        let enter = access.enter_and_call(guard);
        let enter = connection
            .prepare(&enter, &GUARD_TYPES, || enter.clone().into_owned())
            .await?;
        let statement = connection
            .prepare(text, &GUARD_TYPES, || text.to_owned())
            .await?;
        let position = match access {
            Access::Write => Some(
                connection
                    .prepare(POSITION, &[], || POSITION.to_owned())
                    .await?,
            ),
            Access::WriteAndRollBack | Access::ReadOnly => None,
        };
        Ok(Steps {
            enter,
            statement,
            position,
        })
    };
    let steps = match timeout_at(deadline, prepare).await {
        Ok(prepared) => prepared.map_err(before_commit)?,
        Err(_) => return Err(ExecuteError::Deadline),
    };
    let canceller = connection.canceller();
    let mut run = Box::pin(run_transaction(connection, guard, access, &steps, params));
    if let Ok(done) = timeout_at(deadline, &mut run).await {
        return done;
    }
    // Once cancelled, the transaction ends soon, and its answer says whether it
    // was stopped in time. Without an answer nobody knows.
    if let Some(canceller) = canceller {
        canceller.send();
    }
    let ended = timeout_at(Instant::now() + CANCEL_GRACE, run).await;
    // The request to cancel may reach the server only now: nobody else's
    // statement must be what it finds.
    connection.spoil();
    match ended {
        Ok(Err(ExecuteError::Refused(error))) if *error.code() == SqlState::QUERY_CANCELED => {
            Err(ExecuteError::Deadline)
        }
        // It may be what ended the wait for the standbys, and Postgres' word on
        // that, a warning, is the session's to suppress.
        Ok(Ok(_)) if access == Access::Write => Err(ExecuteError::Unknown),
        Ok(done) => done,
        Err(_) => Err(ExecuteError::Unknown),
    }
}

/// The statements of a transaction between BEGIN and its end, and behind it.
struct Steps {
    enter: Prepared,
    statement: Prepared,
    position: Option<Prepared>,
}

/// See schema/shard/006_position.sql.
const POSITION: &str = "select timeline, lsn from ringfence.position()";

async fn run_transaction(
    connection: &mut Leased,
    guard: &Guard,
    access: Access,
    steps: &Steps,
    params: &[Text],
) -> Result<Answer, ExecuteError> {
    let session = connection.start().map_err(|e| before_commit(e.into()))?;
    // The check is part of what can fail before the end.
    let before_end = 3 + usize::from(access.check().is_some());
    let said = async {
        session.add_text(access.begin())?;
        session.add(&steps.enter, &guard.claiming_values())?;
        session.add(&steps.statement, &guard.tenant_values(params))?;
        if let Some(check) = access.check() {
            session.add_text(check)?;
        }
        session.add_text(access.end())?;
        if let Some(position) = &steps.position {
            session.add(position, &[])?;
        }
        session.sync();
        session.add_query(TIDY)?;
        session.send().await?;
        session.answer().await
    };
    let said = match said.await {
        Ok(said) => said,
        // All was sent at once, COMMIT too: without the server's word it may have been
        // carried out.
        Err(_) if access == Access::Write && !session.is_unsent() => {
            return Err(ExecuteError::Unknown);
        }
        Err(error) => return Err(before_commit(error.into())),
    };
    let unconfirmed = access == Access::Write && session.standbys_were_not_awaited();
    // Lost behind its answer, it is closed, and nobody has to know.
    let _ = match session.is_idle() {
        true => tidied(connection).await,
        false => rolled_back(connection).await,
    };
    let ended = said.done.len() > before_end;
    match said.refused {
        Some(refused) if said.done.is_empty() => {
            // One that can't begin is in no state to be used again.
            connection.spoil();
            return Err(ExecuteError::NotBegun(refused));
        }
        // The steps went through and the end did not: a deferred constraint
        // refused it, or the connection was lost around COMMIT.
        Some(refused) if said.done.len() == before_end && shuts_down(refused.code()) => {
            return Err(ExecuteError::Unknown);
        }
        Some(refused) if !ended => return Err(ExecuteError::Refused(refused)),
        Some(_) | None => {}
    }
    if unconfirmed {
        return Err(ExecuteError::Unknown);
    }
    let mut done = said.done.into_iter();
    let answer = Answer::of(steps.statement.clone(), done.nth(2)).map_err(before_commit)?;
    let position = steps.position.as_ref().and_then(|statement| {
        // The end came first.
        let row = done.nth(1)?.into_iter().next()?;
        Position::of(statement, &row)
    });
    Ok(Answer { position, ..answer })
}

/// Behind a step that failed the transaction is still open, and the session could
/// not be tidied.
async fn rolled_back(connection: &mut Leased) -> Result<(), FailedStep> {
    let session = connection.start()?;
    session.answer().await?;
    session.add_query("rollback")?;
    session.add_query(TIDY)?;
    session.send().await?;
    session.answer().await?;
    tidied(connection).await
}

/// Postgres ends the session of its own accord (class 57P). Before COMMIT
/// nothing was written then; at COMMIT nobody can say.
fn shuts_down(code: &SqlState) -> bool {
    code.code().starts_with("57P")
}

/// Types of `$1` to `$4`, declared because a text need not use them all.
const GUARD_TYPES: [Type; 4] = [Type::UUID, Type::INT8, Type::TEXT, Type::TEXT_ARRAY];

/// A read as Postgres gets it.
pub fn guarded_read(text: &str) -> String {
    format!(
        "with g as materialized (select ringfence.enter($1, $2, 'read', $3, $4) as tenant) \
         select q.* from g, lateral ({text} offset 0) q"
    )
}

impl Guard {
    /// The same under a name of the connection's that holds for the transaction.
    /// A setting like the others, so no statement's text differs for it.
    pub fn named(&self, application: &str) -> Self {
        // A name of this program's: nothing in it has to be quoted.
        let name = format!("{{application_name,\"{application}\"");
        let settings = match &self.settings {
            Some(others) => [name.as_bytes(), b",", &others[1..]].concat(),
            None => [name.as_bytes(), b"}"].concat(),
        };
        Self {
            settings: Some(settings.into()),
            ..self.clone()
        }
    }

    /// `$1` alone is real: the statement behind `enter` needs no more.
    fn tenant_values<'a>(&'a self, params: &'a [Text]) -> Vec<Value<'a>> {
        let mut values = Vec::with_capacity(4 + params.len());
        values.extend([
            Value::Uuid(&self.tenant),
            Value::Null,
            Value::Null,
            Value::Null,
        ]);
        values.extend(params.iter().map(Text::value));
        values
    }

    /// What `enter` takes, and `claim` where there is a key.
    fn claiming_values(&self) -> Vec<Value<'_>> {
        let mut values = self.values(&[]);
        if let Some(claim) = &self.claim {
            let claimed = [&claim.key, &claim.fingerprint, &claim.keys_max];
            values.extend(claimed.map(|bytes| Value::Text(bytes)));
        }
        values
    }

    fn values<'a>(&'a self, params: &'a [Text]) -> Vec<Value<'a>> {
        let mut values = Vec::with_capacity(4 + params.len());
        values.extend([
            Value::Uuid(&self.tenant),
            Value::Bigint(self.epoch),
            Value::Text(&self.claims),
            self.settings
                .as_ref()
                .map_or(Value::Null, |s| Value::Text(s)),
        ]);
        values.extend(params.iter().map(Text::value));
        values
    }
}

impl Text {
    fn value(&self) -> Value<'_> {
        match &self.0 {
            Some(bytes) => Value::Text(bytes),
            None => Value::Null,
        }
    }
}

/// A step that failed.
enum FailedStep {
    Refused(Box<DbError>),
    Lost(io::Error),
    TooLarge,
    Gone,
    NoRow,
}

impl From<LeaseError> for FailedStep {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Refused(refused) => Self::Refused(refused),
            LeaseError::Lost(error) => error.into(),
            LeaseError::Gone => Self::Gone,
        }
    }
}

impl From<io::Error> for FailedStep {
    fn from(error: io::Error) -> Self {
        match error.get_ref() {
            Some(source) if source.is::<TooLarge>() => Self::TooLarge,
            _ => Self::Lost(error),
        }
    }
}

impl From<Box<DbError>> for FailedStep {
    fn from(error: Box<DbError>) -> Self {
        Self::Refused(error)
    }
}

impl Answer {
    /// The one row of a statement; of an explanation all, which are as many as the
    /// plan has lines.
    fn of(statement: Prepared, rows: Option<Vec<Row>>) -> Result<Self, FailedStep> {
        let mut rows = rows.into_iter().flatten();
        let row = rows.next().ok_or(FailedStep::NoRow)?;
        Ok(Self {
            explanation: match statement.begins_with(EXPLANATION) {
                true => rows.collect(),
                false => Vec::new(),
            },
            statement,
            row,
            position: None,
        })
    }
}

fn before_commit(error: FailedStep) -> ExecuteError {
    match error {
        FailedStep::Refused(refused) => ExecuteError::Refused(refused),
        FailedStep::Lost(error) => ExecuteError::Lost(Some(error)),
        FailedStep::TooLarge => ExecuteError::TooLarge,
        FailedStep::Gone | FailedStep::NoRow => ExecuteError::Lost(None),
    }
}
