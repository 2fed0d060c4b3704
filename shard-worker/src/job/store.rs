//! Jobs' rows: inserted, claimed, renewed, changed with compare-and-set.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};
use tenancy::control::{Actor, Control, ControlError, write_audit};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::{End, Kind, Machine, Problem, Progress, SHARD_AT_ONCE_MAX};
use crate::traced;

/// A worker that is silent for so long has lost its jobs.
pub const LEASE: Duration = Duration::from_secs(5);
/// Most jobs that one page holds.
const PAGE_MAX: i64 = 500;
/// Claimers queue for this lock, so that bounds hold exactly.
const CLAIM_LOCK: i64 = 0x7269_6e67_0003;
/// Who starts a job that excludes others queues for this lock.
pub const START_LOCK: i64 = 0x7269_6e67_0006;

/// Tries of a job that was given back in order count up to here: enough for the
/// longest wait and for those that are tried a few times. Only one that keeps
/// killing its worker comes to the runner's bound; a shard may be down for days.
const ATTEMPTS_KEPT: i32 = 100;

const COLUMNS: &str = "id, kind, object, tenant, shards, actor,
  case when status = 'open' and lease_until > now() then 'running'
       when status = 'open' then 'waiting' else status end as status,
  phase, progress, attempt, cancel_requested, problem, result, lease_owner, revision, done,
  to_char(created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as created_at,
  to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as changed_at,
  extract(epoch from case when done then changed_at else now() end - created_at)::float8 as seconds";

/// A job to insert.
#[derive(Debug)]
pub struct NewJob<'a, S> {
    /// Its kind.
    pub kind: Kind,
    /// What it is done to, for people.
    pub object: &'a str,
    /// The tenant that has no other open job meanwhile.
    pub tenant: Option<Uuid>,
    /// Shards that it works on.
    pub shards: &'a [String],
    /// Its first state.
    pub state: &'a S,
}

/// A job as people and programs see it.
#[derive(Clone, Debug, Serialize)]
pub struct JobInfo {
    /// Its id.
    pub id: Uuid,
    /// Its kind.
    pub kind: String,
    /// What it is done to.
    pub object: String,
    /// The tenant, where it is about one.
    pub tenant: Option<Uuid>,
    /// Shards that it works on.
    pub shards: Vec<String>,
    /// Who asked for it.
    pub actor: String,
    /// `waiting`, `running`, `stuck`, `done`, `failed` or `cancelled`.
    pub status: String,
    /// The state's name.
    pub phase: String,
    /// How far the state is: `done`, `total`, `unit`; what it is `at`, and `waits` for.
    pub progress: Option<Value>,
    /// Tries since the last progress.
    pub attempt: i32,
    /// Someone asked for its end.
    pub cancel_requested: bool,
    /// The last error: `code`, `message`, `advice`.
    pub problem: Option<Value>,
    /// What came of it.
    pub result: Option<Value>,
    /// The worker that runs it, or ran it last.
    pub worker: Option<String>,
    /// Rises with each transition.
    pub revision: i64,
    /// It is over.
    pub done: bool,
    /// When it was asked for, UTC.
    pub created_at: String,
    /// When its row last changed, UTC.
    pub changed_at: String,
    /// Seconds from `created_at` to its end, or to now.
    pub seconds: f64,
}

impl JobInfo {
    fn from_row(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            kind: row.get("kind"),
            object: row.get("object"),
            tenant: row.get("tenant"),
            shards: row.get("shards"),
            actor: row.get("actor"),
            status: row.get("status"),
            phase: row.get("phase"),
            progress: row.get("progress"),
            attempt: row.get("attempt"),
            cancel_requested: row.get("cancel_requested"),
            problem: row.get("problem"),
            result: row.get("result"),
            worker: row.get("lease_owner"),
            revision: row.get("revision"),
            done: row.get("done"),
            created_at: row.get("created_at"),
            changed_at: row.get("changed_at"),
            seconds: row.get("seconds"),
        }
    }
}

/// A job whose lease was taken.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Its id.
    pub id: Uuid,
    /// Its kind.
    pub kind: Kind,
    /// What it is done to.
    pub object: String,
    /// Who asked for it.
    pub actor: Actor,
    /// Its state, as JSON.
    pub state: Value,
    /// Tries since the last progress, this one included.
    pub attempt: i32,
    /// The row's revision after the claim.
    pub revision: i64,
    /// When it was asked for.
    pub created: SystemTime,
}

/// What a renewal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The lease was prolonged.
    Kept {
        /// Someone asked for the job's end.
        cancel: bool,
    },
    /// It is another's, or the job is over.
    Lost,
}

/// Writes a job's row in the transaction of the intent that it stands for.
///
/// # Errors
/// [`ControlError::Conflict`] where the tenant has an open job already, or the
/// kind has one of which there may be only one.
pub async fn insert<S: Machine>(
    transaction: &Transaction<'_>,
    actor: &Actor,
    new: &NewJob<'_, S>,
) -> Result<Uuid, ControlError> {
    let state = value(new.state)?;
    let (phase, progress) = phase(new.state);
    let row = transaction
        .query_one(
            "insert into ringfence.job (kind, object, tenant, shards, actor, state, phase, progress)
             values ($1, $2, $3, $4, $5, $6, $7, $8) returning id",
            &[
                &new.kind.name(),
                &new.object,
                &new.tenant,
                &new.shards,
                &actor.0,
                &state,
                &phase,
                &progress,
            ],
        )
        .await
        .map_err(|error| match error.code() {
            Some(&SqlState::UNIQUE_VIOLATION) => ControlError::Conflict(match new.tenant {
                Some(_) => format!(
                    "tenant {} has another job under way: `ringfence job list` shows it",
                    new.object
                ),
                None => format!(
                    "another job of kind {} is under way: `ringfence job list --open` shows it",
                    new.kind.name()
                ),
            }),
            _ => ControlError::Postgres(error),
        })?;
    let id: Uuid = row.get(0);
    traced::began(id);
    let after = json!({ "job": id, "state": S::audited(state) });
    let action = format!("{}.start", new.kind.name());
    write_audit(
        transaction,
        actor,
        &action,
        new.object,
        None,
        Some(after),
        "done",
    )
    .await?;
    Ok(id)
}

/// Has whoever starts a job that excludes others wait for this transaction's end.
pub async fn lock_starts(transaction: &Transaction<'_>) -> Result<(), ControlError> {
    transaction
        .execute("select pg_advisory_xact_lock($1)", &[&START_LOCK])
        .await?;
    Ok(())
}

/// Refuses where a job of one of `kinds` is open on one of `shards`. In the
/// transaction that then inserts a job which can't run beside them: who asks
/// at the same time waits for it, so two such jobs never both pass.
///
/// # Errors
/// [`ControlError::Conflict`] names the job.
pub async fn refuse_beside(
    transaction: &Transaction<'_>,
    kinds: &[Kind],
    shards: &[String],
) -> Result<(), ControlError> {
    lock_starts(transaction).await?;
    let kinds: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let found = transaction
        .query_opt(
            "select id, kind, object from ringfence.job
             where not done and kind = any($1) and shards && $2 order by created_at limit 1",
            &[&kinds, &shards],
        )
        .await?;
    match found {
        None => Ok(()),
        Some(row) => Err(ControlError::Conflict(format!(
            "job {} ({} {}) is under way on a shard that this one would change: wait for its end, or end it (`ringfence job cancel`; of a retained move `ringfence move complete`)",
            row.get::<_, Uuid>("id"),
            row.get::<_, String>("kind"),
            row.get::<_, String>("object"),
        ))),
    }
}

/// Takes the lease of the job that has waited longest, if bounds let one run. A move
/// whose cut-over goes from a shard that another worker captures (`elsewhere`) is left
/// to that one for a while: else the end of a lease would be waited for while requests
/// are held.
pub async fn claim(
    control: &Control,
    owner: &str,
    (elsewhere, left_for): (&[String], Duration),
) -> Result<Option<Claimed>, ControlError> {
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let bounds: Vec<i32> = Kind::ALL.iter().map(|kind| kind.at_once_max()).collect();
    let mut client = control.client().await?;
    let transaction = client.transaction().await?;
    let locked = transaction
        .query_one("select pg_try_advisory_xact_lock($1)", &[&CLAIM_LOCK])
        .await?;
    if !locked.get::<_, bool>(0) {
        // Another worker claims just now: what it leaves is for the next look.
        return Ok(None);
    }
    let row = transaction
        .query_opt(
            "with bound as (select * from unnest($1::text[], $2::int[]) as b (kind, at_once)),
               running as (select kind, shards from ringfence.job where not done and lease_until > now())
             update ringfence.job set lease_owner = $3,
               lease_until = now() + $4 * interval '1 millisecond',
               attempt = attempt + 1, revision = revision + 1, changed_at = now()
             where id = (
               select j.id from ringfence.job j join bound using (kind)
               where j.status = 'open' and j.due_at <= now()
                 and (j.lease_until is null or j.lease_until <= now())
                 and (select count(*) from running r where r.kind = j.kind) < bound.at_once
                 and not exists (
                   select from unnest(j.shards) s (shard)
                   where (select count(*) from running r where s.shard = any(r.shards)) >= $5)
                 and not (j.kind = 'move' and j.due_at > now() - $7 * interval '1 millisecond'
                   and j.shards[case when j.phase in ('retained', 'verifying_back', 'rolling_back') then 2 else 1 end] = any($6))
               order by j.due_at, j.created_at limit 1)
             returning id, kind, object, actor, state, attempt, revision, created_at",
            &[
                &kinds,
                &bounds,
                &owner,
                &millis(LEASE),
                &SHARD_AT_ONCE_MAX,
                &elsewhere,
                &millis(left_for),
            ],
        )
        .await?;
    transaction.commit().await?;
    Ok(row.and_then(|row| {
        Some(Claimed {
            id: row.get("id"),
            kind: Kind::parse(row.get("kind"))?,
            object: row.get("object"),
            actor: Actor(row.get("actor")),
            state: row.get("state"),
            attempt: row.get("attempt"),
            revision: row.get("revision"),
            created: row.get("created_at"),
        })
    }))
}

/// Prolongs a lease.
pub async fn renew(control: &Control, id: Uuid, owner: &str) -> Result<Renewed, ControlError> {
    let row = control
        .client()
        .await?
        .query_opt(
            "update ringfence.job set lease_until = now() + $3 * interval '1 millisecond'
             where id = $1 and lease_owner = $2 and status = 'open' returning cancel_requested",
            &[&id, &owner, &millis(LEASE)],
        )
        .await?;
    Ok(match row {
        Some(row) => Renewed::Kept { cancel: row.get(0) },
        None => Renewed::Lost,
    })
}

/// Whether the lease is this owner's, now.
pub async fn is_held(control: &Control, id: Uuid, owner: &str) -> Result<bool, ControlError> {
    let row = control
        .client()
        .await?
        .query_opt(
            "select from ringfence.job
             where id = $1 and lease_owner = $2 and lease_until > now() and status = 'open'",
            &[&id, &owner],
        )
        .await?;
    Ok(row.is_some())
}

/// A holder's place in the row: what its next write is compared with.
#[derive(Clone, Debug)]
pub struct Place {
    /// The job.
    pub id: Uuid,
    /// The holder.
    pub owner: String,
    /// The revision that it wrote or claimed last.
    pub revision: i64,
}

/// How a holder leaves its job.
#[derive(Clone, Copy, Debug)]
pub enum Leave<'a> {
    /// Others may take it, after this time.
    Later(Duration),
    /// Others may try after this time; the error is shown meanwhile.
    Retry(Duration, &'a Problem),
    /// It waits for a person.
    Stuck(&'a Problem),
}

/// Writes a state; false where the row is another's by now.
pub async fn save<S: Machine>(
    client: &impl tokio_postgres::GenericClient,
    place: &mut Place,
    state: &S,
) -> Result<bool, ControlError> {
    let (phase, progress) = phase(state);
    let changed = client
        .execute(
            "update ringfence.job set state = $4, phase = $5, progress = $6, problem = null,
               attempt = 1, revision = revision + 1, changed_at = now()
             where id = $1 and lease_owner = $2 and revision = $3 and not done",
            &[
                &place.id,
                &place.owner,
                &place.revision,
                &value(state)?,
                &phase,
                &progress,
            ],
        )
        .await?;
    place.revision += 1;
    Ok(changed == 1)
}

/// Gives the lease back.
pub async fn leave(
    control: &Control,
    place: &Place,
    leave: Leave<'_>,
) -> Result<bool, ControlError> {
    let (status, wait, problem) = match leave {
        Leave::Later(wait) => ("open", wait, None),
        Leave::Retry(wait, problem) => ("open", wait, Some(problem)),
        Leave::Stuck(problem) => ("stuck", Duration::ZERO, Some(problem)),
    };
    let changed = control
        .client()
        .await?
        .execute(
            "update ringfence.job set status = $4, lease_until = null,
               attempt = least(attempt, $7),
               due_at = now() + $5 * interval '1 millisecond', problem = coalesce($6, problem),
               revision = revision + 1, changed_at = now()
             where id = $1 and lease_owner = $2 and revision = $3 and not done",
            &[
                &place.id,
                &place.owner,
                &place.revision,
                &status,
                &millis(wait),
                &problem.map(|problem| json!(problem)),
                &ATTEMPTS_KEPT,
            ],
        )
        .await?;
    Ok(changed == 1)
}

/// Gives a lease back whose holder was stopped in the middle of a step: what it
/// wrote last is not known.
pub async fn give_back(control: &Control, id: Uuid, owner: &str) -> Result<(), ControlError> {
    control
        .client()
        .await?
        .execute(
            "update ringfence.job set lease_until = null, due_at = now(),
               revision = revision + 1, changed_at = now()
             where id = $1 and lease_owner = $2 and lease_until is not null and not done",
            &[&id, &owner],
        )
        .await?;
    Ok(())
}

/// Writes the last state, how it ended, and the audit log's line of it.
pub async fn finish<S: Machine>(
    control: &Control,
    job: &Claimed,
    place: &mut Place,
    state: &S,
    end: &End,
    result: &Value,
) -> Result<bool, ControlError> {
    let mut client = control.client().await?;
    let transaction = client.transaction().await?;
    if !save(&*transaction, place, state).await? {
        return Ok(false);
    }
    let (status, problem) = match end {
        End::Done => ("done", None),
        End::Cancelled => ("cancelled", None),
        End::Failed(why) => ("failed", Some(json!(why))),
    };
    transaction
        .execute(
            "update ringfence.job set status = $2, done = true, lease_until = null,
               result = $3, problem = $4 where id = $1",
            &[&place.id, &status, &result, &problem],
        )
        .await?;
    let action = format!("{}.end", job.kind.name());
    let outcome = match end {
        End::Failed(why) => format!("failed: {}", why.message),
        End::Done | End::Cancelled => status.to_owned(),
    };
    let after = json!({ "job": place.id, "result": result });
    write_audit(
        &transaction,
        &job.actor,
        &action,
        &job.object,
        None,
        Some(after),
        &outcome,
    )
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// What a list is narrowed to.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Only jobs that are not over.
    pub open: bool,
    /// Only jobs of this kind.
    pub kind: Option<&'a str>,
    /// At most so many, newest first.
    pub limit: i64,
}

/// Jobs, newest first.
pub async fn list(control: &Control, wanted: &Wanted<'_>) -> Result<Vec<JobInfo>, ControlError> {
    let sql = format!(
        "select {COLUMNS} from ringfence.job
         where (not $1 or not done) and ($2::text is null or kind = $2)
         order by created_at desc, id limit $3"
    );
    let limit = wanted.limit.clamp(1, PAGE_MAX);
    let client = control.client().await?;
    let rows = client
        .query(&sql, &[&wanted.open, &wanted.kind, &limit])
        .await?;
    Ok(rows.iter().map(JobInfo::from_row).collect())
}

/// One job.
pub async fn show(control: &Control, id: Uuid) -> Result<JobInfo, ControlError> {
    let sql = format!("select {COLUMNS} from ringfence.job where id = $1");
    let row = control.client().await?.query_opt(&sql, &[&id]).await?;
    row.as_ref()
        .map(JobInfo::from_row)
        .ok_or_else(|| not_found(id))
}

/// What someone wants of a job that runs for long.
pub async fn wish(control: &Control, id: Uuid) -> Result<Option<String>, ControlError> {
    let sql = "select wish from ringfence.job where id = $1";
    let row = control.client().await?.query_opt(sql, &[&id]).await?;
    Ok(row.and_then(|row| row.get(0)))
}

/// The same; whoever wants something else waits for the transaction's end.
pub async fn wish_held(
    transaction: &Transaction<'_>,
    id: Uuid,
) -> Result<Option<String>, ControlError> {
    let sql = "select wish from ringfence.job where id = $1 for no key update";
    let row = transaction.query_opt(sql, &[&id]).await?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Says what is wanted of a job, or nothing any longer, and has it look at once.
pub async fn set_wish(
    control: &Control,
    actor: &Actor,
    id: Uuid,
    action: &str,
    wish: Option<&'static str>,
) -> Result<JobInfo, ControlError> {
    // One of a few words of this program.
    let set = match wish {
        Some(wish) => format!("wish = '{wish}'"),
        None => "wish = null".to_owned(),
    };
    change_open(control, actor, id, action, &set).await?;
    show(control, id).await
}

/// A wish was granted.
pub async fn clear_wish(control: &Control, id: Uuid, wish: &str) -> Result<(), ControlError> {
    let sql = "update ringfence.job set wish = null where id = $1 and wish = $2";
    let client = control.client().await?;
    client.execute(sql, &[&id, &wish]).await?;
    Ok(())
}

/// A job's state, as its machine wrote it.
pub async fn state(control: &Control, id: Uuid) -> Result<Value, ControlError> {
    let sql = "select state from ringfence.job where id = $1";
    let row = control.client().await?.query_opt(sql, &[&id]).await?;
    row.map(|row| row.get(0)).ok_or_else(|| not_found(id))
}

/// A tenant's open job and its state.
pub async fn open_of_tenant(
    control: &Control,
    tenant: Uuid,
) -> Result<Option<(Uuid, Value)>, ControlError> {
    let sql = "select id, state from ringfence.job where tenant = $1 and not done";
    let row = control.client().await?.query_opt(sql, &[&tenant]).await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// The newest job of a kind that is about this object.
pub async fn newest(
    control: &Control,
    kind: Kind,
    object: &str,
) -> Result<Option<Uuid>, ControlError> {
    let row = control
        .client()
        .await?
        .query_opt(
            "select j.id from ringfence.job j where j.kind = $1 and (j.object = $2 or exists (
               select from jsonb_array_elements(j.state -> 'plan' -> 'tenants') t
               where t ->> 'slug' = $2 or t ->> 'id' = $2))
             order by j.done, j.created_at desc limit 1",
            &[&kind.name(), &object],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Asks for a job's end: its own machine says whether it can be had.
pub async fn cancel(control: &Control, actor: &Actor, id: Uuid) -> Result<JobInfo, ControlError> {
    let asked = "cancel_requested = true";
    change_open(control, actor, id, "job.cancel", asked).await?;
    show(control, id).await
}

/// Has a job that waits for a person, or for its next try, tried at once.
pub async fn retry(control: &Control, actor: &Actor, id: Uuid) -> Result<JobInfo, ControlError> {
    let again = "attempt = 0";
    change_open(control, actor, id, "job.retry", again).await?;
    show(control, id).await
}

async fn change_open(
    control: &Control,
    actor: &Actor,
    id: Uuid,
    action: &str,
    set: &str,
) -> Result<(), ControlError> {
    let before = show(control, id).await?;
    let mut client = control.client().await?;
    let transaction = client.transaction().await?;
    // The revision stays: the holder's own writes must not fail for this.
    let sql = format!(
        "update ringfence.job set {set}, status = 'open', due_at = least(due_at, now())
         where id = $1 and not done"
    );
    if transaction.execute(&sql, &[&id]).await? == 0 {
        return Err(ControlError::Conflict(format!(
            "job {id} is {} already",
            before.status
        )));
    }
    transaction
        .execute("select pg_notify('ringfence_job', $1)", &[&id.to_string()])
        .await?;
    let note = json!({ "job": id, "status": before.status, "phase": before.phase });
    write_audit(
        &transaction,
        actor,
        action,
        &before.object,
        Some(note),
        None,
        "done",
    )
    .await?;
    transaction.commit().await?;
    Ok(())
}

fn phase<S: Machine>(state: &S) -> (&'static str, Option<Value>) {
    let (phase, progress) = state.phase();
    let mut is_known = progress != Progress::default();
    let mut shown = json!(progress);
    for (name, lines) in [("waits", state.waits()), ("at", state.at())] {
        if !lines.is_empty() {
            is_known = true;
            shown[name] = json!(lines);
        }
    }
    (phase, is_known.then_some(shown))
}

fn value<S: Machine>(state: &S) -> Result<Value, ControlError> {
    serde_json::to_value(state)
        .map_err(|error| ControlError::Invalid(format!("a job's state can't be written: {error}")))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn not_found(id: Uuid) -> ControlError {
    ControlError::NotFound {
        kind: "job",
        name: id.to_string(),
    }
}
