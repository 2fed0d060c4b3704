//! Stage 5, where it meets the others: a read through both caches, or past them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Response;
use tenancy::auth::TenantContext;
use tenancy::changes::{Cell, Lsn, TableHash};
use tenancy::id::ShardId;
use tenancy::quota;
use tokio::time::{Instant, timeout_at};

use super::serve::{self, Failed, Work};
use super::{Incoming, Seen, Stage, Stages, answer_max};
use crate::app::App;
use crate::cache::control::Control;
use crate::cache::entry::Entry;
use crate::cache::fill::Part;
use crate::cache::key::Key;
use crate::cache::shared::Patience;
use crate::cache::validity::{UnderLease, Written};
use crate::cache::{Front, Hit, Level, Question, StaleModel, label, made_of};
use crate::coherence::Place;
use crate::config::{TableCache, TableCacheName};
use crate::execute::{ExecuteError, Guard};
use crate::freshness::Wanted;
use crate::placement::{self, Target};
use crate::plan::Plan;
use crate::response::{self, Row};
use crate::shards::Loaded;
use crate::sql::Statement;
use crate::token::Token;

/// What came of a fill.
#[derive(Clone)]
pub(crate) struct Filled {
    brought: Result<Brought, Arc<Failed>>,
    /// How long a connection to the shard was busy with it.
    busy: Duration,
}

/// The row, and the entry where it is one.
#[derive(Clone)]
struct Brought {
    row: Row,
    entry: Option<Arc<Entry>>,
    level: Level,
}

/// An answer, and where it came from.
pub(super) struct Got {
    pub(super) row: Row,
    pub(super) hit: Option<Hit>,
    pub(super) level: Level,
}

/// What a planned read asks the caches; none where its answer can't be kept.
pub(super) fn question(
    app: &App,
    tenant: &TenantContext,
    target: &Target,
    loaded: &Loaded,
    plan: &Plan,
    statement: &Statement,
    guard: &Guard,
) -> Option<Question> {
    let catalog = loaded.model.catalog();
    // A function that runs before may look at anything; a plan is of now.
    if !app.cache.is_on() || guard.before.is_some() || plan.explain.is_some() {
        return None;
    }
    let cells = made_of::cells(plan, catalog, tenant.tenant()).ok()?;
    let mut max_age = None;
    for name in &plan.relations {
        match app.cache.policy(&name.schema, &name.name) {
            TableCache::Current | TableCache::Named(TableCacheName::Current) => {}
            TableCache::Named(TableCacheName::Off) => return None,
            // Of several tables only what all allow.
            TableCache::Seconds(_) if plan.relations.len() > 1 => {}
            TableCache::Seconds(n) => max_age = Some(Duration::from_secs(n)),
        }
    }
    let first = plan.relations.first()?;
    let table = TableHash::of(first.schema.as_str(), first.name.as_str());
    Some(Question {
        key: Key::of_plan(tenant, target.epoch, catalog, guard, plan, statement),
        tenant: tenant.tenant(),
        shard: ShardId(target.shard.id.clone()),
        epoch: target.epoch,
        cells,
        table: Cell::rows(tenant.tenant(), table),
        schema: loaded.since,
        max_age,
    })
}

/// Whether a request is of a kind that [`at_once`] answers.
pub(super) fn may_be_at_once(app: &App, incoming: &Incoming<'_>) -> bool {
    let reads = matches!(*incoming.method, http::Method::GET | http::Method::HEAD);
    reads && app.cache.is_on() && !incoming.headers.contains_key(crate::token::HEADER)
}

/// A read that was planned before, whose plan holds: no stage but authentication
/// and placement need run again.
pub(super) struct Known {
    front: Arc<Front>,
    under: UnderLease,
    /// Of its schema model.
    loaded: Option<Place>,
    /// Bytes at most of its answer's body.
    answer_max: usize,
    /// An answer up to so old will do.
    longest: Option<Duration>,
}

/// What is known of a request before it is planned.
pub(super) fn known(
    app: &App,
    incoming: &Incoming<'_>,
    tenant: &TenantContext,
    own: &quota::Limits,
    seen: &mut Seen,
) -> Option<Known> {
    if !may_be_at_once(app, incoming) {
        return None;
    }
    let control = Control::parse(incoming.headers);
    let target = placement::locate(app, tenant.tenant(), None).ok()?;
    let loaded = target.shard.loaded()?;
    let key = Key::of_request(
        tenant,
        target.epoch,
        loaded.model.catalog(),
        incoming.method,
        incoming.path,
        incoming.query,
        incoming.headers,
    );
    let front = app.cache.front(&key)?;
    if control.reads_past() || front.request.prefer.read_primary || front.own != *own {
        return None;
    }
    let shard = &front.question.shard;
    // A model that is too old is counted where the shard is asked.
    let under = app.cache.under_lease(shard)?;
    if !under.knows_schema(loaded.since) {
        return None;
    }
    seen.shard = Some(target.shard.id.clone());
    Some(Known {
        under,
        loaded: loaded.since,
        answer_max: answer_max(&app.config.limits, own, front.plan.form),
        longest: longest(&control, &front.question, front.request.wanted()),
        front,
    })
}

/// Its answer, if it is in this process's memory.
pub(super) fn at_once(app: &App, known: &Known, seen: &mut Seen) -> Option<Response<bytes::Bytes>> {
    let hit = app.cache.local(&known.front.question, &known.under, None)?;
    answered(app, known, &hit, seen)
}

/// Its answer, if it is in Redis; else what is left of the request's wait for that,
/// if it was asked.
pub(super) async fn from_redis(
    app: &App,
    known: &Known,
    seen: &mut Seen,
) -> Result<Response<bytes::Bytes>, Option<Patience>> {
    // Who takes old answers takes one of this process's memory first.
    if known.longest.is_some() || !app.cache.is_worth_a_look(&known.front.question) {
        return Err(None);
    }
    let patience = Patience::begin();
    let question = &known.front.question;
    let hit = app.cache.look(question, known.loaded, patience).await;
    seen.stages.mark(Stage::Cache);
    let answer = hit.and_then(|hit| answered(app, known, &hit, seen));
    answer.ok_or(Some(patience))
}

/// The answer that an entry makes for the request.
fn answered(
    app: &App,
    known: &Known,
    hit: &Hit,
    seen: &mut Seen,
) -> Option<Response<bytes::Bytes>> {
    let Known { front, .. } = known;
    if hit.entry.row.body.len() > known.answer_max {
        return None;
    }
    seen.from = hit.level.into();
    seen.rows = u64::try_from(hit.entry.row.page).unwrap_or(0);
    // What was just found in Redis has been in no answer yet.
    let in_memory = hit.level == Level::Local;
    let head = in_memory.then(|| front.head(&hit.entry)).flatten();
    let answer = match head {
        Some((status, headers)) => {
            let body = match front.plan.body {
                true => hit.entry.row.body.clone(),
                false => bytes::Bytes::new(),
            };
            let mut answer = Response::new(body);
            *answer.status_mut() = status;
            *answer.headers_mut() = headers;
            answer
        }
        None => {
            let row = hit.entry.row.clone();
            let made = response::build(&app.config.api, &front.request, &front.plan, row);
            let mut made = made.ok()?;
            let headers = made.headers_mut();
            app.cache.name(headers, front.question.tenant, &front.plan);
            label::put(headers, hit.level, None);
            if in_memory {
                front.keep_head(&hit.entry, made.status(), made.headers());
            }
            made
        }
    };
    seen.stages.mark(Stage::Cache);
    Some(answer)
}

/// A read whose answer may be kept.
pub(super) async fn read(
    question: &Arc<Question>,
    work: &Work<'_>,
    control: &Control,
    stages: &mut Stages,
) -> Result<Got, Failed> {
    let cache = &work.app.cache;
    let token = work.wanted.token.map(written);
    let reads_past = control.reads_past() || work.wanted.primary;
    let under = match cache.under_lease_of_schema(&question.shard, question.schema) {
        Ok(None) => {
            cache.unleased();
            None
        }
        Ok(under) => under,
        Err(StaleModel) => {
            work.target.shard.model_is_stale();
            None
        }
    };
    let patience = work.looked.unwrap_or_else(Patience::begin);
    if !reads_past {
        let current = under
            .as_ref()
            .and_then(|under| cache.local(question, under, token));
        let longest = longest(control, question, work.wanted);
        let found = match current.or_else(|| cache.local_old(question, longest, token)) {
            Some(hit) => Some(hit),
            None => cache.shared_old(question, longest, token, patience).await,
        };
        if let Some(hit) = found {
            stages.mark(Stage::Cache);
            return Ok(got(hit));
        }
    }
    // Rule 10: without a lease nothing is kept, and nobody waits for another's read.
    let fills = under.is_some() && !control.no_store && token.is_none();
    let done = if fills && reads_past {
        // What is read past the caches is as good for them as any other read.
        let brought = from_shard(question, work, stages).await;
        brought.map(|brought| Got {
            level: Level::Bypassed,
            row: brought.row,
            hit: None,
        })
    } else if fills {
        joined(question, work, stages, patience).await
    } else {
        direct(
            work,
            stages,
            match reads_past {
                true => Level::Bypassed,
                false => Level::Missed,
            },
        )
        .await
    };
    match done {
        Err(failed) if is_the_shards_fault(&failed) => {
            let longest = control.stale_if_error;
            let old = match cache.local_old(question, longest, token) {
                Some(hit) => Some(hit),
                None => {
                    let patience = Patience::begin();
                    cache.shared_old(question, longest, token, patience).await
                }
            };
            old.map(got).ok_or(failed)
        }
        done => done,
    }
}

/// How old an answer may be, whatever was written since.
fn longest(control: &Control, question: &Question, wanted: Wanted) -> Option<Duration> {
    control.longest(question.max_age).or(wanted.stale_max)
}

/// Errors that `stale-if-error` is for: the answer was not to be had, or not in
/// time. What the statement itself was refused with is the answer.
fn is_the_shards_fault(failed: &Failed) -> bool {
    match failed {
        Failed::NoPrimary | Failed::Busy => true,
        Failed::Execute(error) => error.is_the_nodes() || matches!(error, ExecuteError::Deadline),
        Failed::LostWrite { .. } | Failed::Limited(_) => false,
    }
}

/// Fills that a read waits for, one after another, while what they bring is out
/// of date by then; the next it does for itself alone.
const JOINED_MAX: usize = 4;

/// The shard's own answer, which nobody else gets.
pub(super) async fn direct(
    work: &Work<'_>,
    stages: &mut Stages,
    level: Level,
) -> Result<Got, Failed> {
    let served = serve::serve(work, stages).await?;
    stages.mark(Stage::Transaction);
    work.app.cache.answered_by_shard(level);
    Ok(Got {
        row: Row::read(&served.answer),
        hit: None,
        level,
    })
}

/// One fill for all who ask the same now.
async fn joined(
    question: &Arc<Question>,
    work: &Work<'_>,
    stages: &mut Stages,
    first: Patience,
) -> Result<Got, Failed> {
    let cache = &work.app.cache;
    for asked in 0..JOINED_MAX {
        let (patience, looked) = match asked {
            0 => (first, work.looked.is_some()),
            _ => (Patience::begin(), false),
        };
        // Asked of who would begin one, and of nobody who finds one: of a thousand
        // who come at once one makes a fill, and the others its hits.
        let begin = || cache.is_worth_a_fill(question);
        let run = cache.fills.run(question.key, begin, || {
            let owned = Owned::of(work);
            let question = question.clone();
            async move { fill(&question, &owned, patience, looked).await }
        });
        let Ok(run) = timeout_at(work.deadline, run).await else {
            return Err(Failed::Execute(ExecuteError::Deadline));
        };
        stages.mark(Stage::Cache);
        let Some((part, filled)) = run else {
            break;
        };
        // Its task broke off.
        let Some(Filled { brought, busy }) = filled else {
            break;
        };
        match (part, brought) {
            // Its read began after this request did: it is this request's own.
            (Part::Started, brought) => {
                stages.was_for(Stage::Transaction, busy);
                let brought = brought.map_err(|failed| failed.again())?;
                // The others are counted where they are found.
                if brought.level != Level::Local {
                    cache.answered_by_shard(brought.level);
                }
                return Ok(Got {
                    hit: brought.entry.map(|entry| Hit {
                        entry,
                        level: brought.level,
                        old: None,
                    }),
                    row: brought.row,
                    level: brought.level,
                });
            }
            // Rule 5: who joins a fill treats its result as an entry.
            (
                Part::Joined,
                Ok(Brought {
                    entry: Some(entry), ..
                }),
            ) => {
                let under = cache.under_lease_of_schema(&question.shard, question.schema);
                let Some(under) = under.ok().flatten() else {
                    break;
                };
                let token = work.wanted.token.map(written);
                if cache.judge(question, &under, token, &entry).is_ok() {
                    cache.joined(question);
                    cache.answered_by_shard(Level::Local);
                    return Ok(got(Hit {
                        entry,
                        level: Level::Local,
                        old: None,
                    }));
                }
                // Something changed while it was read. All who waited would ask
                // the shard at once: again one of them does, for the others, too.
            }
            // Read without a proof: of use to nobody else.
            (Part::Joined, Ok(Brought { entry: None, .. })) => break,
            // Another's deadline is not this request's.
            (Part::Joined, Err(failed)) => match *failed {
                Failed::Execute(ExecuteError::Deadline) => {}
                _ => return Err(failed.again()),
            },
        }
    }
    direct(work, stages, Level::Missed).await
}

/// A fill, in a task of its own. `looked`: Redis has nothing.
async fn fill(question: &Arc<Question>, owned: &Owned, patience: Patience, looked: bool) -> Filled {
    if let Some(hit) = from_caches(question, owned, patience, looked).await {
        return Filled {
            brought: Ok(brought(hit)),
            busy: Duration::ZERO,
        };
    }
    owned.app.cache.fills_from_shard(question);
    let mut stages = Stages::default();
    let brought = from_shard(question, &owned.work(), &mut stages).await;
    Filled {
        brought: brought.map_err(Arc::new),
        busy: stages.spent(Stage::Transaction),
    }
}

/// What another fill, here or elsewhere, has brought meanwhile.
async fn from_caches(
    question: &Question,
    owned: &Owned,
    patience: Patience,
    looked: bool,
) -> Option<Hit> {
    let cache = &owned.app.cache;
    let under = cache.under_lease_of_schema(&question.shard, question.schema);
    // Another fill may have ended between its caller's look and this one.
    let under = under.ok()?;
    let here = under.and_then(|under| cache.local(question, &under, None));
    match here {
        Some(hit) => Some(hit),
        None => cache.shared(question, patience, looked).await,
    }
}

/// Reads from the shard, and keeps the answer where it can be proved (rule 5).
async fn from_shard(
    question: &Arc<Question>,
    work: &Work<'_>,
    stages: &mut Stages,
) -> Result<Brought, Failed> {
    let cache = &work.app.cache;
    let under = cache.under_lease_of_schema(&question.shard, question.schema);
    let stamp = under.ok().flatten();
    let stamp = stamp.map(|under| under.stamp(question.epoch));
    let read_at = SystemTime::now();
    let served = serve::serve(work, stages).await;
    stages.mark(Stage::Transaction);
    let served = served?;
    let row = Row::read(&served.answer);
    let proved = stamp.filter(|stamp| {
        let log = served.by.generation;
        stamp.fits_node(log.system, log.timeline) && served.has >= stamp.at.0
    });
    Ok(match proved {
        Some(stamp) => Brought {
            entry: Some(cache.keep(question, stamp, read_at, row.clone())),
            row,
            level: Level::Filled,
        },
        None => Brought {
            row,
            entry: None,
            level: Level::Missed,
        },
    })
}

fn brought(hit: Hit) -> Brought {
    Brought {
        row: hit.entry.row.clone(),
        level: hit.level,
        entry: Some(hit.entry),
    }
}

fn got(hit: Hit) -> Got {
    Got {
        row: hit.entry.row.clone(),
        level: hit.level,
        hit: Some(hit),
    }
}

fn written(token: Token) -> Written {
    Written {
        system: token.generation.system,
        timeline: token.generation.timeline,
        epoch: token.epoch,
        lsn: Lsn(token.lsn),
    }
}

/// A read that outlives its request.
struct Owned {
    app: Arc<App>,
    target: Target,
    tenant: TenantContext,
    guard: Guard,
    statement: Statement,
    wanted: Wanted,
    deadline: Instant,
    answer_max: usize,
    application: Option<Arc<str>>,
}

impl Owned {
    fn of(work: &Work<'_>) -> Self {
        Self {
            app: work.app.clone(),
            target: work.target.clone(),
            tenant: work.tenant.clone(),
            guard: work.guard.clone(),
            statement: work.statement.clone(),
            wanted: work.wanted,
            deadline: work.deadline,
            answer_max: work.answer_max,
            application: work.application.clone(),
        }
    }

    fn work(&self) -> Work<'_> {
        Work {
            app: &self.app,
            target: &self.target,
            tenant: &self.tenant,
            guard: self.guard.clone(),
            statement: &self.statement,
            wanted: self.wanted,
            deadline: self.deadline,
            answer_max: self.answer_max,
            application: self.application.clone(),
            looked: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_answer_stands_in_for_whatever_keeps_the_shard_from_answering() {
        let token = Token {
            generation: crate::token::Generation {
                system: 1,
                timeline: 1,
            },
            epoch: 1,
            lsn: 1,
        };
        for (failed, expected) in [
            (Failed::NoPrimary, true),
            (Failed::Busy, true),
            (Failed::Execute(ExecuteError::Deadline), true),
            (Failed::Execute(ExecuteError::Lost(None)), true),
            // It might be a write's.
            (Failed::Execute(ExecuteError::Unknown), false),
            (Failed::LostWrite { token, left_at: 0 }, false),
        ] {
            assert_eq!(is_the_shards_fault(&failed), expected);
        }
    }
}
