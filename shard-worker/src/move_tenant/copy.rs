//! Waiting while Postgres copies, and until changes arrive quickly.

use std::time::Duration;

use schema::tenant_tables::tenant_tables;
use tokio::time::{Instant, sleep};

use super::prepare::{same_schema, same_tables};
use super::servers::Servers;
use super::side::Side;
use super::verify::{HELD_MAX, alike, recheck};
use super::{Move, PAUSED_LOOK, State, Way, Wish, failpoint, names, throttle, wish};
use crate::job::{Context, JobError, Step};

/// A state's progress is written so often.
const SHOWN: Duration = Duration::from_millis(1_500);
/// How often a copy is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A marker is written so often while no rows are copied.
const MARK: Duration = Duration::from_millis(100);
/// How often a copy that waits looks whether it may go on.
const THROTTLED_LOOK: Duration = Duration::from_secs(2);
/// Errors of a stream after which the move is given up: a server that is down
/// for a while costs a few.
pub(super) const ERRORS_MAX: i64 = 100;
/// Markers in a row that must arrive quickly.
const MARKERS: u32 = 3;
/// A marker that takes longer is not quick: a cut-over waits for one.
const QUICK: Duration = Duration::from_millis(60);
/// Longest wait for one marker.
const MARKER_MAX: Duration = Duration::from_secs(10);
/// Longest comparison of rows that were written to, before the progress is written.
const RECHECK_MAX: Duration = Duration::from_secs(3);
/// Pause before another try to catch up.
const AGAIN: Duration = Duration::from_millis(500);

/// How a stream is going.
struct Stream {
    tables: i64,
    ready: i64,
    rows: i64,
    errors: i64,
}

impl Stream {
    /// Postgres tries again for ever what it can't copy or apply, and the source
    /// keeps its log meanwhile.
    fn require_sound(&self, target: &Side) -> Result<(), JobError> {
        match self.errors > ERRORS_MAX {
            false => Ok(()),
            true => Err(JobError::Refused(format!(
                "what is sent to shard {} could not be copied or applied {} times: its log says why",
                target.shard, self.errors
            ))),
        }
    }
}

/// Until all tables are copied.
pub(super) async fn copy(
    context: &Context,
    job: &Move,
    expected: u64,
) -> Result<Step<Move>, JobError> {
    failpoint(context, "copying")?;
    let target = Side::open(context, &job.plan.to).await?;
    let name = names::stream(context.job().id, Way::Forward);
    if wish(context).await? == Some(Wish::Pause) {
        enable(&target, &name, false).await?;
        return Ok(Step::Later(job.clone(), PAUSED_LOOK));
    }
    let source = Side::open(context, &job.plan.from).await?;
    require_slot(&source, context).await?;
    if let Some(busy) = throttle::busy(context, &source, &target).await? {
        let stream = look(&target, &name).await?;
        // A table's copy that is halted begins anew.
        if stream.ready < stream.tables && (stream.rows == 0 || busy.far) {
            enable(&target, &name, false).await?;
            let waits = State::Copying {
                rows: 0,
                expected,
                why: Some(busy.why),
            };
            return Ok(Step::Later(job.to(waits), THROTTLED_LOOK));
        }
    }
    enable(&target, &name, true).await?;
    let until = Instant::now() + SHOWN;
    let mut marked = Instant::now();
    loop {
        let stream = look(&target, &name).await?;
        if stream.tables > 0 && stream.ready == stream.tables {
            failpoint(context, "copied")?;
            return Ok(job.next(State::verifying(Way::Forward)));
        }
        stream.require_sound(&target)?;
        if Instant::now() >= until {
            return Ok(job.next(State::Copying {
                rows: stream.rows.unsigned_abs(),
                expected,
                why: None,
            }));
        }
        // Between two tables' copies the stream waits for news of the source.
        if stream.rows == 0 && marked.elapsed() >= MARK {
            let way = names::way(Way::Forward);
            source.mark(context.job().id, way).await?;
            marked = Instant::now();
        }
        sleep(LOOK).await;
    }
}

/// Until a cut-over will be short; before it, nobody is held.
pub(super) async fn catch_up(
    context: &Context,
    job: &Move,
    tries: u32,
) -> Result<Step<Move>, JobError> {
    failpoint(context, "catching_up")?;
    let name = names::stream(context.job().id, Way::Forward);
    let paused = wish(context).await? == Some(Wish::Pause);
    let source = Side::open(context, &job.plan.from).await?;
    let target = Side::open(context, &job.plan.to).await?;
    let not_yet = |why: String, wait| {
        let why = Some(why);
        Ok(Step::Later(job.to(State::CatchingUp { tries, why }), wait))
    };
    enable(&target, &name, !paused).await?;
    if paused {
        return not_yet("it is paused".into(), PAUSED_LOOK);
    }
    require_slot(&source, context).await?;
    same_schema(&source, &target).await?;
    same_tables(job, context.job().id, &source, &target).await?;
    let touched = context.app().watches.get(context.job().id, Way::Forward);
    let servers = Servers::of(Way::Forward, &source, &target).await?;
    let Some(touched) = touched.filter(|_| job.servers == Some(servers)) else {
        // What was written since rows were compared is not known here, or a shard may
        // lack what had arrived.
        return Ok(job.next(State::verifying(Way::Forward)));
    };
    let stream = look(&target, &name).await?;
    stream.require_sound(&target)?;
    if stream.ready < stream.tables {
        return Ok(job.next(State::Copying {
            rows: 0,
            expected: 0,
            why: None,
        }));
    }
    for _ in 0..MARKERS {
        let took = source
            .arrive_on(&target, context.job().id, Way::Forward, MARKER_MAX)
            .await?;
        if took > QUICK {
            return not_yet(format!("changes take {} ms", took.as_millis()), AGAIN);
        }
    }
    alike(&source, &target).await?;
    let tables = tenant_tables(&*source.client).await?;
    let sides = (&source, &target, &tables[..]);
    let until = Instant::now() + RECHECK_MAX;
    recheck(context, job, Way::Forward, &touched, sides, until).await?;
    let written = touched.len();
    if written > HELD_MAX {
        let why = format!("{written} rows were written to and are to be compared again");
        return not_yet(why, AGAIN);
    }
    let writers = source.look().await?.writers;
    if writers > 0 {
        let why = format!("{writers} transactions on shard {} are long", source.shard);
        return not_yet(why, AGAIN);
    }
    Ok(job.next(State::CuttingOver {
        way: Way::Forward,
        tries,
        why: None,
    }))
}

/// Refuses where what is sent to the target can't be applied there.
pub(super) async fn require_applied(target: &Side, context: &Context) -> Result<(), JobError> {
    let name = names::stream(context.job().id, Way::Forward);
    look(target, &name).await?.require_sound(target)
}

/// Errors of a stream so far.
pub(super) async fn errors(receives: &Side, name: &str) -> Result<i64, JobError> {
    Ok(look(receives, name).await?.errors)
}

/// Without its slot, as after a failover of the source, a stream has a hole.
async fn require_slot(source: &Side, context: &Context) -> Result<(), JobError> {
    let slot = names::stream(context.job().id, Way::Forward);
    match source.has_slot(&slot).await? {
        true => Ok(()),
        false => Err(JobError::Refused(format!(
            "shard {} has lost the stream's slot, as by a failover: start the move again",
            source.shard
        ))),
    }
}

async fn enable(side: &Side, name: &str, is_on: bool) -> Result<(), JobError> {
    side.client
        .execute(
            "select ringfence.move_enable($1, $2)
             where exists (select from pg_subscription where subname = $1 and subenabled <> $2)",
            &[&name, &is_on],
        )
        .await?;
    Ok(())
}

async fn look(target: &Side, name: &str) -> Result<Stream, JobError> {
    let row = target
        .client
        .query_one("select * from ringfence.move_progress($1)", &[&name])
        .await?;
    Ok(Stream {
        tables: row.get("tables"),
        ready: row.get("ready"),
        rows: row.get("rows"),
        errors: row.get("errors"),
    })
}
