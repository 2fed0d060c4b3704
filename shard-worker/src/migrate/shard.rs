//! One shard's part of a run: checked, then advanced slice by slice.

use std::time::Duration;

use futures_util::future::join_all;
use schema::apply::{self, ApplyError, Limits};
use schema::history;
use schema::migration::Migration;
use schema::retire::{self, Removal};
use serde::{Deserialize, Serialize};
use tenancy::chain;
use tenancy::members::Member;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::error::Reach;
use super::{Plan, Stop};
use crate::job::retry::{Verdict, of_postgres};
use crate::job::{Context, JobError, Login};

/// Tries for one lock; with the pauses between them about five minutes.
const LOCK_TRIES: u32 = 70;
/// Tries to reach a shard before and while it is changed.
const CHECK_TRIES: u32 = 4;
const DOWN_TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest wait for routers to load a model without what is to be removed.
const READERS_MAX: Duration = Duration::from_secs(15);
/// Longest wait for a shard that is to show again what was hidden.
const REVEAL_MAX: Duration = Duration::from_secs(5);
const READERS_LOOK: Duration = Duration::from_millis(100);
/// A pause for followers to catch up.
const LAG_PAUSE: Duration = Duration::from_millis(500);

/// How far a shard is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRun {
    /// The shard.
    pub shard: String,
    /// It has all files.
    pub done: bool,
    /// The file that it is at.
    pub file: Option<String>,
    /// That file's statements that are done.
    pub step: u32,
    /// Rows that the file's back-fills changed.
    pub rows: i64,
    /// Files applied in this run.
    pub applied: u32,
    /// Tries without success.
    pub tries: u32,
    /// What it waits for, or why it stopped.
    pub note: Option<String>,
}

impl ShardRun {
    /// Nothing is done yet.
    pub fn of(shard: String) -> Self {
        Self {
            shard,
            ..Self::default()
        }
    }
}

impl ShardRun {
    /// `s2: 002_owner.sql, 1 statements done, 4500 rows`.
    pub(super) fn at(&self) -> Option<String> {
        let mut text = format!("{}: {}", self.shard, self.file.as_ref()?);
        if self.step > 0 {
            text.push_str(&format!(", {} statements done", self.step));
        }
        if self.rows > 0 {
            text.push_str(&format!(", {} rows", self.rows));
        }
        Some(text)
    }
}

/// Whether another shard has the file at which `run` stopped, or a part of it.
pub(super) fn has_past(shards: &[ShardRun], run: &ShardRun) -> bool {
    let number =
        |file: &Option<String>| -> Option<u32> { file.as_deref()?.split('_').next()?.parse().ok() };
    let (others, at) = (
        shards.iter().filter(|o| o.shard != run.shard),
        number(&run.file),
    );
    let mut past = others.filter(|o| {
        let is_within = o.file == run.file && o.step > 0;
        o.done || is_within || number(&o.file) > at
    });
    past.next().is_some()
}

/// Which shards are worked on now: the first alone until it is done, then as
/// many as may at once.
pub(super) fn wave(shards: &[ShardRun], parallel: usize) -> Vec<usize> {
    let open = shards.iter().enumerate().filter(|(_, run)| !run.done);
    let canary = shards.first().is_some_and(|run| !run.done);
    let width = if canary { 1 } else { parallel.max(1) };
    open.map(|(place, _)| place).take(width).collect()
}

/// The pause before another try: doubling, bounded.
fn pause(tries: u32) -> Duration {
    match tries {
        0 => Duration::ZERO,
        _ => PAUSE_MAX.min(PAUSE * 2_u32.pow((tries - 1).min(16))),
    }
}

/// The pause before shards are asked again that did not answer; none where it was
/// tried often enough.
pub(super) fn ask_again(tries: u32) -> Option<Duration> {
    (tries < CHECK_TRIES).then(|| pause(tries + 2))
}

/// Whether the shard answers, and holds a beginning of the files.
pub(super) async fn check(
    context: &Context,
    plan: &Plan,
    files: &[Migration],
    shard: &str,
) -> Result<ShardRun, Stop> {
    match looked(context, plan, files, shard).await {
        Ok(run) => {
            // A thousand shards are not a thousand open sessions.
            context.release(shard, Login::Migrator).await;
            Ok(run)
        }
        Err(Stop::Job(error)) if passes_by_itself(&error) => Err(down(shard, &error)),
        Err(stop) => Err(stop),
    }
}

async fn looked(
    context: &Context,
    plan: &Plan,
    files: &[Migration],
    shard: &str,
) -> Result<ShardRun, Stop> {
    let session = context.session(shard, Login::Migrator).await?;
    let entries = history::read(&*session, &plan.directory)
        .await
        .map_err(JobError::from)?;
    let place = format!("shard {shard}");
    let next = history::next(files, &entries).map_err(|error| Stop::history(&place, error))?;
    Ok(ShardRun {
        done: next.is_none(),
        file: next.map(Migration::file),
        ..ShardRun::of(shard.to_owned())
    })
}

/// Works for a slice. Locks that were not had, followers that lag, and a shard
/// that is away are noted, and waited for, within bounds.
pub(super) async fn advance(
    context: &Context,
    plan: &Plan,
    files: &[Migration],
    run: &ShardRun,
) -> Result<ShardRun, Stop> {
    tokio::time::sleep(pause(run.tries)).await;
    let tries = run.tries + 1;
    within_bounds(context, plan, files, run, tries).await
}

async fn within_bounds(
    context: &Context,
    plan: &Plan,
    files: &[Migration],
    run: &ShardRun,
    tries: u32,
) -> Result<ShardRun, Stop> {
    match worked(context, plan, files, run).await {
        Err(Stop::Refused {
            shard,
            source: source @ ApplyError::Locked { .. },
            ..
        }) => {
            if tries >= LOCK_TRIES {
                return Err(Stop::Locked {
                    shard,
                    tries,
                    source,
                });
            }
            tracing::info!(shard, tries, "a change of the schema waits: {source}");
            Ok(ShardRun {
                tries,
                note: Some(source.to_string()),
                ..run.clone()
            })
        }
        Err(Stop::Job(error)) if passes_by_itself(&error) => {
            if tries >= DOWN_TRIES {
                return Err(down(&run.shard, &error));
            }
            Ok(ShardRun {
                tries,
                note: Some(chain(&error)),
                ..run.clone()
            })
        }
        outcome => outcome,
    }
}

async fn worked(
    context: &Context,
    plan: &Plan,
    files: &[Migration],
    run: &ShardRun,
) -> Result<ShardRun, Stop> {
    let mut session = context.session(&run.shard, Login::Migrator).await?;
    let limits = Limits::default();
    let until = Instant::now() + limits.slice;
    let mut now = ShardRun {
        tries: 0,
        note: None,
        ..run.clone()
    };
    loop {
        let entries = history::read(&*session, &plan.directory)
            .await
            .map_err(JobError::from)?;
        let place = format!("shard {}", run.shard);
        let next = history::next(files, &entries).map_err(|error| Stop::history(&place, error))?;
        let Some(file) = next else {
            return Ok(ShardRun {
                done: true,
                file: None,
                step: 0,
                ..now
            });
        };
        now.file = Some(file.file());
        if plan.baseline {
            let recorded = history::baseline(&*session, &plan.directory, files)
                .await
                .map_err(JobError::from)?;
            if recorded == 0 {
                let why = format!("{} can't be recorded as applied", file.file());
                return Err(Stop::Order { place, why });
            }
            continue;
        }
        let removals = retire::removals(file);
        if !removals.is_empty() {
            unread(context, &session, &run.shard, file, &removals).await?;
        }
        let advanced = apply::advance(&mut session, &plan.directory, file, &limits).await;
        let reach = Reach {
            elsewhere: false,
            in_part: !file.header.transaction,
        };
        let advanced = advanced.map_err(|error| stop(&run.shard, error, reach))?;
        (now.step, now.rows) = (advanced.step, advanced.rows);
        if advanced.done {
            now.applied += 1;
            if !removals.is_empty() {
                retire::show(&session).await.map_err(JobError::from)?;
            }
        }
        if let Some(lag) = advanced.lag {
            now.note = Some(format!("waits for a follower that is {lag} bytes behind"));
            tokio::time::sleep(LAG_PAUSE).await;
            return Ok(now);
        }
        if Instant::now() >= until {
            return Ok(now);
        }
    }
}

/// Hides what the file removes, and waits until every live router has loaded
/// the schema without it.
async fn unread(
    context: &Context,
    session: &Client,
    shard: &str,
    file: &Migration,
    removals: &[Removal],
) -> Result<(), Stop> {
    let version = retire::hide(session, removals)
        .await
        .map_err(JobError::from)?;
    let until = Instant::now() + READERS_MAX;
    loop {
        let readers = retire::readers(session).await.map_err(JobError::from)?;
        let routers = context.app().members.borrow().routers.clone();
        let live: Vec<String> = routers
            .iter()
            .map(|router| router.instance.simple().to_string())
            .collect();
        let behind = retire::behind(&readers, &live, version);
        if behind.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let name = |instance: &String| {
                let of = |router: &&Member| router.instance.simple().to_string() == *instance;
                match routers.iter().find(of) {
                    Some(router) => format!("{} ({})", router.name, router.admin_url),
                    None => format!("a router that sends no heartbeat ({instance})"),
                }
            };
            let who: Vec<String> = behind.iter().map(name).collect();
            return Err(Stop::Read {
                file: file.file(),
                shard: shard.to_owned(),
                who: who.join(", "),
            });
        }
        tokio::time::sleep(READERS_LOOK).await;
    }
}

/// Shows again what is hidden on shards that a run leaves before their end, as
/// far as they answer; of the others the reconciler does ([`super::sweep`]).
pub(super) async fn reveal_all(context: &Context, shards: &[ShardRun]) {
    let left = shards.iter().filter(|run| !run.done);
    let shown = left.map(|run| timeout(REVEAL_MAX, reveal(context, &run.shard)));
    for shown in join_all(shown).await {
        if !matches!(shown, Ok(Ok(()))) {
            tracing::info!("a shard does not show again yet what a migration hid");
        }
    }
}

/// Shows again what is hidden on a shard.
async fn reveal(context: &Context, shard: &str) -> Result<(), JobError> {
    let session = context.session(shard, Login::Migrator).await?;
    Ok(retire::show(&session).await?)
}

/// What an error of a shard means for the run.
pub(super) fn stop(shard: &str, error: ApplyError, reach: Reach) -> Stop {
    let shard = shard.to_owned();
    match error {
        ApplyError::Postgres(error) => Stop::Job(error.into()),
        ApplyError::Busy => Stop::Job(JobError::Wait(format!(
            "another session changes the schema of shard {shard}"
        ))),
        ApplyError::Statement { source, .. }
            if source.code().is_none_or(may_pass) && of_postgres(&source) == Verdict::Retry =>
        {
            Stop::Job(source.into())
        }
        error @ (ApplyError::Statement { .. }
        | ApplyError::Locked { .. }
        | ApplyError::NoKey { .. }
        | ApplyError::Unscoped { .. }
        | ApplyError::Changed(_)) => Stop::Refused {
            shard,
            source: error,
            reach,
        },
    }
}

/// Whether what hindered a statement may be gone the next time: not a statement that
/// takes too long, nor one that its own transaction hinders (a value that is too new
/// for its enumeration, triggers that wait for the commit).
fn may_pass(state: &SqlState) -> bool {
    let of_itself = state.code().starts_with("55") && *state != SqlState::LOCK_NOT_AVAILABLE;
    *state != SqlState::QUERY_CANCELED && !of_itself
}

fn passes_by_itself(error: &JobError) -> bool {
    let of_shard = matches!(error, JobError::Shard(_) | JobError::Wait(_));
    of_shard && error.verdict() == Verdict::Retry
}

fn down(shard: &str, error: &JobError) -> Stop {
    Stop::down(shard, chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canary_goes_alone_then_as_many_as_may() {
        let mut shards: Vec<ShardRun> = ["a", "b", "c", "d"]
            .map(|id| ShardRun::of(id.to_owned()))
            .to_vec();
        assert_eq!(wave(&shards, 2), [0]);
        shards[0].done = true;
        assert_eq!(wave(&shards, 2), [1, 2]);
        shards[1].done = true;
        assert_eq!(wave(&shards, 2), [2, 3]);
        shards[2].done = true;
        shards[3].done = true;
        assert!(wave(&shards, 2).is_empty());
    }

    #[test]
    fn where_a_shard_is_can_be_read() {
        let mut run = ShardRun::of("s2".into());
        assert_eq!(run.at(), None);
        run.file = Some("002_owner.sql".into());
        assert_eq!(run.at().as_deref(), Some("s2: 002_owner.sql"));
        (run.step, run.rows) = (1, 4500);
        let wanted = "s2: 002_owner.sql, 1 statements done, 4500 rows";
        assert_eq!(run.at().as_deref(), Some(wanted));
        let mut other = ShardRun::of("s1".into());
        assert!(!has_past(&[run.clone(), other.clone()], &run));
        other.file = run.file.clone();
        assert!(!has_past(&[run.clone(), other.clone()], &run));
        other.step = 1;
        assert!(has_past(&[run.clone(), other.clone()], &run));
        (other.file, other.step) = (Some("003_more.sql".into()), 0);
        assert!(has_past(&[run.clone(), other.clone()], &run));
        (other.file, other.done) = (None, true);
        assert!(has_past(&[run.clone(), other], &run));
    }

    #[test]
    fn what_a_statement_itself_hinders_is_not_tried_again() {
        for (code, may) in [
            ("55P03", true),
            ("40P01", true),
            ("08006", true),
            ("55P04", false),
            ("55006", false),
            ("57014", false),
        ] {
            assert_eq!(may_pass(&SqlState::from_code(code)), may, "{code}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        assert_eq!(pause(0), Duration::ZERO);
        assert_eq!(pause(1), PAUSE);
        assert_eq!(pause(3), PAUSE * 4);
        assert_eq!(pause(LOCK_TRIES), PAUSE_MAX);
    }
}
