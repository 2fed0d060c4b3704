//! Cut-overs, one tenant after another, and how they are undone. All decisions
//! are [`super::crossing`]'s; here they are done, within a budget.

use std::sync::Arc;
use std::time::Duration;

use schema::tenant_tables::{TenantTable, tenant_tables};
use tenancy::changes::HOLDING;
use tenancy::control::{Place, move_tenant};
use tokio::time::{Instant, timeout, timeout_at};

use super::crossing::{self, Fence, Next, Seen, Undo};
use super::side::Side;
use super::touched::Touched;
use super::verify::{alike, compare_held, recheck};
use super::{
    BUDGET_MAX_MS, Checked, Ended, Move, Moving, State, Way, again, failpoint, names, now_s,
};
use crate::job::{Context, JobError, Step};
use crate::shard::ShardError;

/// Between two looks for a marker while requests are held.
const LOOK: Duration = Duration::from_micros(700);
/// A stream that takes longer for one marker is not quick enough.
const QUICK: Duration = Duration::from_millis(150);
/// Longest comparison of rows that were written to, before anybody is held.
const RECHECK_MAX: Duration = Duration::from_secs(1);
/// Longest wait for one statement of an undo.
const UNDO_MAX: Duration = Duration::from_secs(10);

/// A tenant's way from one shard to another.
struct Crossing<'a> {
    context: &'a Context,
    way: Way,
    tenant: &'a Moving,
    source: Side,
    target: Side,
    /// The tenant's publication on the source.
    out: String,
    /// That on the target.
    back: String,
    /// Routers may have had cached answers since before the source was closed.
    captured: bool,
    /// What was written since rows were compared; none: it is not known.
    touched: Option<Arc<Touched>>,
    /// The source's tables.
    tables: Vec<TenantTable>,
    /// When requests began to be held; none: they are not.
    closed: Option<Instant>,
    /// When the source's fence was seen committed: no router has begun a lease
    /// since that leaves it out.
    fenced: Option<Instant>,
}

/// How a try ended.
enum Tried {
    Crossed {
        pause: Option<Duration>,
    },
    Undone {
        epoch: i64,
        why: String,
    },
    /// Undone, since rows differ.
    Differs {
        epoch: i64,
        why: String,
    },
}

/// One tenant's cut-over; or, where all have crossed, what comes then.
pub(super) async fn cut_over(
    context: &Context,
    job: &Move,
    way: Way,
    tries: u32,
) -> Result<Step<Move>, JobError> {
    let crossed = way == Way::Forward;
    let waiting = job
        .plan
        .tenants
        .iter()
        .position(|tenant| tenant.crossed != crossed);
    let Some(index) = waiting else {
        let mut next = job.clone();
        next.state = match way {
            Way::Forward => {
                next.retained_until = now_s() + job.plan.keep_s;
                State::Retained {
                    until: next.retained_until,
                }
            }
            Way::Back => State::CleaningUp {
                why: Ended::RolledBack,
                rows: 0,
            },
        };
        return Ok(Step::Next(next));
    };
    let tenant = &job.plan.tenants[index];
    let (from, to) = ends(job, way);
    let tried = attempt(context, job, way, index).await?;
    let mut next = job.clone();
    let after = match &tried {
        Tried::Crossed { .. } => Place {
            shard: to,
            epoch: tenant.epoch + 1,
        },
        Tried::Undone { epoch, .. } | Tried::Differs { epoch, .. } => Place {
            shard: from,
            epoch: *epoch,
        },
    };
    next.plan.tenants[index].epoch = after.epoch;
    let step = match tried {
        Tried::Crossed { pause } => {
            next.plan.tenants[index].crossed = crossed;
            if let Some(pause) = pause {
                let ms = (pause.as_secs_f64() * 1e6).round() / 1e3;
                next.plan.tenants[index].pauses_ms.push(ms);
            }
            context.app().move_metrics.crossed(pause);
            next.state = State::CuttingOver { way, tries: 0 };
            Step::Next(next.clone())
        }
        Tried::Undone { why, .. } => {
            tracing::info!(tenant = tenant.slug, why, tries, "cut-over undone");
            context.app().move_metrics.undone();
            next.state = match way {
                Way::Forward => State::CatchingUp {
                    tries: tries + 1,
                    why: Some(why),
                },
                Way::Back => State::CuttingOver {
                    way,
                    tries: tries + 1,
                },
            };
            Step::Later(next.clone(), again(tries))
        }
        Tried::Differs { why, .. } => {
            tracing::error!(tenant = tenant.slug, why, "shards differ: cut-over undone");
            context.app().move_metrics.undone();
            next.checked = Some(Checked {
                rows: job.checked.as_ref().map_or(0, |checked| checked.rows),
                differ: Some(why.clone()),
            });
            next.state = next.given_up(Ended::Failed(why));
            Step::Next(next.clone())
        }
    };
    let before = Place {
        shard: from,
        epoch: tenant.epoch,
    };
    if before != after {
        failpoint(context, "control");
        let mut client = context.control().client().await?;
        let transaction = client.transaction().await?;
        move_tenant(&transaction, &context.job().actor, tenant.id, before, after).await?;
        context.commit(transaction, &next).await?;
    }
    Ok(step)
}

/// Takes back what a move has begun, before any of its tenants is on the target.
pub(super) async fn undo(
    context: &Context,
    job: &Move,
    why: &Ended,
) -> Result<Step<Move>, JobError> {
    failpoint(context, "undoing");
    for index in 0..job.plan.tenants.len() {
        let mut crossing = match open(context, job, Way::Forward, index).await {
            Ok(crossing) => crossing,
            // A target that can't be reached must not keep the source closed.
            Err(error) => {
                release(context, job, Way::Forward, index).await?;
                return Err(error);
            }
        };
        let seen = crossing.seen().await?;
        let untouched = seen.source == Fence::Active(crossing.tenant.epoch)
            && (seen.out.is_none() || seen.back.is_none());
        if untouched {
            // It came to nothing, or is being cleaned up: nobody was ever held.
            continue;
        }
        let epoch = crossing.take_back().await?;
        if epoch != job.plan.tenants[index].epoch {
            let mut next = job.clone();
            next.plan.tenants[index].epoch = epoch;
            let mut client = context.control().client().await?;
            let transaction = client.transaction().await?;
            let place = |epoch| Place {
                shard: &job.plan.from,
                epoch,
            };
            let (before, after) = (place(job.plan.tenants[index].epoch), place(epoch));
            let tenant = job.plan.tenants[index].id;
            move_tenant(&transaction, &context.job().actor, tenant, before, after).await?;
            context.commit(transaction, &next).await?;
            return Ok(Step::Next(next));
        }
    }
    Ok(job.next(State::CleaningUp {
        why: why.clone(),
        rows: 0,
    }))
}

async fn attempt(context: &Context, job: &Move, way: Way, index: usize) -> Result<Tried, JobError> {
    let budget = Duration::from_millis(job.plan.budget_ms.min(BUDGET_MAX_MS));
    let tried = match open(context, job, way, index).await {
        Ok(mut crossing) => crossing.run(job, budget).await,
        Err(error) => Err(error),
    };
    if tried.is_err() {
        // What can be opened again without the other side is.
        context.drop_sessions().await;
        release(context, job, way, index).await?;
    }
    tried
}

async fn open<'a>(
    context: &'a Context,
    job: &'a Move,
    way: Way,
    index: usize,
) -> Result<Crossing<'a>, JobError> {
    let (from, to) = ends(job, way);
    let id = context.job().id;
    let source = Side::open(context, from).await?;
    let target = Side::open(context, to).await?;
    let captured = source.look().await?.captured;
    let tables = match way {
        Way::Forward => {
            alike(&source, &target).await?;
            tenant_tables(&*source.client).await?
        }
        Way::Back => Vec::new(),
    };
    Ok(Crossing {
        touched: context.app().watches.get(id),
        tables,
        context,
        way,
        tenant: &job.plan.tenants[index],
        source,
        target,
        out: names::tenant(id, index, way),
        back: names::tenant(id, index, way.opposite()),
        captured,
        closed: None,
        fenced: None,
    })
}

/// Serves a held tenant again from its source alone: as long as its changes
/// are still sent, nothing but its fence has been changed there, and the target
/// can't be activated.
async fn release(context: &Context, job: &Move, way: Way, index: usize) -> Result<(), JobError> {
    let (from, _) = ends(job, way);
    let tenant = &job.plan.tenants[index];
    let source = Side::open(context, from).await?;
    let out = names::tenant(context.job().id, index, way);
    let (fence, _, out) = source.fence(tenant.id, &out).await?;
    if fence == Fence::Fenced(tenant.epoch) && out == Some(true) {
        source.reopen(tenant.id, tenant.epoch, tenant.epoch).await?;
    }
    Ok(())
}

/// The shards that a cut-over goes from and to.
fn ends(job: &Move, way: Way) -> (&str, &str) {
    match way {
        Way::Forward => (&job.plan.from, &job.plan.to),
        Way::Back => (&job.plan.to, &job.plan.from),
    }
}

impl Crossing<'_> {
    async fn run(&mut self, job: &Move, budget: Duration) -> Result<Tried, JobError> {
        // Most of it before anybody is held.
        let sequences = self.source.sequences().await?;
        self.target.raise_sequences(&sequences).await?;
        let epoch = self.tenant.epoch;
        match self.not_quick(job).await {
            Ok(None) => {}
            Ok(Some(why)) => return Ok(Tried::Undone { epoch, why }),
            Err(JobError::Refused(why)) => return Ok(Tried::Differs { epoch, why }),
            Err(error) => return Err(error),
        }
        let began = Instant::now();
        loop {
            let look_until = match self.closed {
                // Who is held waits for this look, too.
                Some(closed) => closed + budget,
                None => Instant::now() + UNDO_MAX,
            };
            let Ok(seen) = timeout_at(look_until, self.seen()).await else {
                if self.closed.is_none() {
                    return Err(ShardError::Slow.into());
                }
                return self.give_up(job, "looking at the shards").await;
            };
            let seen = seen?;
            let next = crossing::next(&seen, self.tenant.epoch).map_err(stop)?;
            if matches!(seen.source, Fence::Fenced(_) | Fence::Moved(_)) {
                self.fenced.get_or_insert_with(Instant::now);
                // Someone before may have closed it.
                self.closed.get_or_insert(began);
            }
            let until = self.closed.unwrap_or(began) + budget;
            let done = match next {
                Next::Over => {
                    let pause = self.closed.map(|closed| closed.elapsed());
                    return Ok(Tried::Crossed { pause });
                }
                Next::Undo => Err(Stopped::OverBudget("an undo had begun")),
                // The budget is for who is held: arming holds nobody.
                Next::Arm => self.arm().await.map_err(Stopped::from),
                Next::Close => self.close().await,
                Next::Drain if self.way == Way::Forward && self.touched.is_none() => {
                    Err(Stopped::OverBudget("comparing what another worker knew of"))
                }
                Next::Drain => bounded(until, "draining", self.drain(until)).await,
                Next::TurnBack => {
                    failpoint(self.context, "drained");
                    let on = self.target.switch(&self.back, true);
                    bounded(until, "turning the stream", on).await
                }
                Next::Leave => {
                    failpoint(self.context, "turned");
                    let epoch = self.tenant.epoch;
                    let to = &self.target.shard;
                    let left = self
                        .source
                        .leave(self.tenant.id, seen.source, to, epoch + 1);
                    bounded(until, "leaving", left).await
                }
                Next::Activate => {
                    failpoint(self.context, "left");
                    bounded(until, "waiting for standbys and caches", self.settle()).await
                }
            };
            // Not bounded: whether it was done must be known.
            let done = match (next, done) {
                (Next::Activate, Ok(())) => {
                    let suspended = self.source.fence(self.tenant.id, &self.out).await?.1;
                    let epoch = self.tenant.epoch + 1;
                    let active = self.target.activate(self.tenant.id, epoch, suspended).await;
                    failpoint(self.context, "activated");
                    active.map_err(Stopped::from)
                }
                (_, done) => done,
            };
            match done {
                Ok(()) => {}
                Err(Stopped::OverBudget(why)) => return self.give_up(job, why).await,
                Err(Stopped::Differs(why)) => {
                    self.refresh().await?;
                    let epoch = self.take_back().await?;
                    return Ok(Tried::Differs { epoch, why });
                }
                Err(Stopped::Error(error)) => return Err(error),
            }
        }
    }

    /// It took too long: the source serves again.
    async fn give_up(&mut self, job: &Move, why: &str) -> Result<Tried, JobError> {
        let held = self.closed.map_or(0, |closed| closed.elapsed().as_millis());
        let why = format!(
            "{why} took too long: requests were held for {held} ms of {} ms",
            job.plan.budget_ms
        );
        self.refresh().await?;
        let epoch = self.take_back().await?;
        Ok(Tried::Undone { epoch, why })
    }

    /// Nobody is held for a stream that stands still: why it is not begun. One
    /// that was held before is drained, or not, by what the shards show.
    async fn not_quick(&self, job: &Move) -> Result<Option<String>, JobError> {
        let (fence, _, _) = self.source.fence(self.tenant.id, &self.out).await?;
        if !matches!(fence, Fence::Active(_)) {
            return Ok(None);
        }
        if self.way == Way::Forward {
            let Some(touched) = &self.touched else {
                let why = "what was written since rows were compared is not known here";
                return Ok(Some(why.into()));
            };
            let sides = (&self.source, &self.target, &self.tables[..]);
            let until = Instant::now() + RECHECK_MAX;
            recheck(self.context, job, touched, sides, until).await?;
        }
        let way = names::way(self.way);
        let marker = self.source.mark(self.context.job().id, way).await?;
        match timeout(QUICK, self.target.wait_for_marker(marker, LOOK)).await {
            Ok(arrived) => arrived.map(|()| None),
            Err(_) => Ok(Some(format!(
                "what shard {} sends does not arrive on {} within {} ms: no cut-over is begun",
                self.source.shard,
                self.target.shard,
                QUICK.as_millis()
            ))),
        }
    }

    async fn seen(&self) -> Result<Seen, JobError> {
        let id = self.tenant.id;
        let (source, target) = tokio::join!(
            self.source.fence(id, &self.out),
            self.target.fence(id, &self.back)
        );
        let ((source, _, out), (target, _, back)) = (source?, target?);
        Ok(Seen {
            source,
            target,
            out,
            back,
        })
    }

    async fn arm(&self) -> Result<(), JobError> {
        failpoint(self.context, "begun");
        let armed = self.target.arm(self.tenant.id, self.tenant.epoch + 1);
        armed.await?;
        failpoint(self.context, "armed");
        Ok(())
    }

    async fn close(&mut self) -> Result<(), Stopped> {
        self.closed = Some(Instant::now());
        self.source.close(self.tenant.id, self.tenant.epoch).await?;
        self.fenced = Some(Instant::now());
        failpoint(self.context, "closed");
        Ok(())
    }

    /// Writes under way end, all of them arrive, no number is given twice, what
    /// was written since rows were compared is equal; and the source sends no
    /// more: the proof that it was so.
    async fn drain(&self, until: Instant) -> Result<(), JobError> {
        let job = self.context.job().id;
        let way = names::way(self.way);
        let left = until.saturating_duration_since(Instant::now());
        let marker = self
            .source
            .mark_when_written(self.tenant.id, job, way, left)
            .await?;
        failpoint(self.context, "marked");
        let (arrived, sequences) = tokio::join!(
            self.target.wait_for_marker(marker, LOOK),
            self.source.sequences()
        );
        arrived?;
        self.target.raise_sequences(&sequences?).await?;
        if let Some(touched) = self.touched.as_ref().filter(|_| self.way == Way::Forward) {
            touched.wait_for(marker).await?;
            let sides = (&self.source, &self.target, &self.tables[..]);
            compare_held(self.context, self.tenant, touched, sides).await?;
        }
        self.source.switch(&self.out, false).await
    }

    /// Rule 11: what the source has committed is on every node that may become
    /// its primary, what came in is on the target's, and no router answers from
    /// what it had cached before.
    async fn settle(&self) -> Result<(), JobError> {
        let (source, target) = tokio::join!(
            self.source.wait_for_standbys(LOOK),
            self.target.wait_for_standbys(LOOK)
        );
        source.and(target)?;
        let look = self.source.look().await?;
        let capture = &self.context.app().capture;
        let (server, lsn) = (look.server, look.lsn);
        if (self.captured || look.captured)
            && !capture.wait_visible(&self.source.shard, server, lsn).await
        {
            // Another worker captures it, or nobody any longer.
            let fenced = self.fenced.unwrap_or_else(Instant::now);
            tokio::time::sleep_until(fenced + HOLDING).await;
        }
        Ok(())
    }

    /// New sessions: on the old ones a statement may still be under way.
    async fn refresh(&mut self) -> Result<(), JobError> {
        self.context.drop_sessions().await;
        // Each has the old one ended, which is still held here; requests wait.
        let (source, target) = tokio::join!(
            Side::open(self.context, &self.source.shard),
            Side::open(self.context, &self.target.shard)
        );
        (self.source, self.target) = (source?, target?);
        Ok(())
    }

    /// Undoes what was begun; the epoch that the source serves at then.
    async fn take_back(&mut self) -> Result<i64, JobError> {
        let (id, epoch) = (self.tenant.id, self.tenant.epoch);
        loop {
            let seen = timeout(UNDO_MAX, self.seen()).await;
            let seen = seen.map_err(|_| ShardError::Slow)??;
            let step = crossing::undo(&seen, epoch).map_err(stop)?;
            let done = async {
                match step {
                    Undo::TooLate => {
                        Err(JobError::Wait("the tenant is on the target already".into()))
                    }
                    Undo::Disarm => {
                        let source = &self.source.shard;
                        let armed = Fence::Fenced(epoch + 1);
                        // Who was sent here is sent back, by a later number.
                        let at = match seen.source {
                            Fence::Moved(_) => epoch + 2,
                            Fence::None | Fence::Active(_) | Fence::Fenced(_) => epoch,
                        };
                        self.target.leave(id, armed, source, at).await
                    }
                    Undo::CloseBack => self.target.switch(&self.back, false).await,
                    Undo::OpenOut => self.source.switch(&self.out, true).await,
                    Undo::Reopen(at) => {
                        let was = match seen.source {
                            Fence::Moved(at) | Fence::Fenced(at) => at,
                            Fence::None | Fence::Active(_) => epoch,
                        };
                        self.source.reopen(id, was, at).await
                    }
                    Undo::Undone(_) => Ok(()),
                }
            };
            timeout(UNDO_MAX, done)
                .await
                .map_err(|_| ShardError::Slow)??;
            if let Undo::Undone(at) = step {
                return Ok(at);
            }
            failpoint(self.context, "taking_back");
        }
    }
}

/// Work of a cut-over, up to the end of its budget.
async fn bounded(
    until: Instant,
    what: &'static str,
    work: impl Future<Output = Result<(), JobError>>,
) -> Result<(), Stopped> {
    match timeout_at(until, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if is_lock_timeout(&error) => Err(Stopped::OverBudget(what)),
        Ok(Err(JobError::Refused(why))) => Err(Stopped::Differs(why)),
        Ok(Err(error)) => Err(Stopped::Error(error)),
        Err(_) => Err(Stopped::OverBudget(what)),
    }
}

/// Why a step of a cut-over was not done.
enum Stopped {
    OverBudget(&'static str),
    /// Rows differ.
    Differs(String),
    Error(JobError),
}

impl From<JobError> for Stopped {
    fn from(error: JobError) -> Self {
        Self::Error(error)
    }
}

/// Someone has to look.
fn stop(contradiction: crossing::Contradiction) -> JobError {
    JobError::Unclear(contradiction.to_string())
}

fn is_lock_timeout(error: &JobError) -> bool {
    let JobError::Shard(ShardError::Postgres(error)) = error else {
        return false;
    };
    error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE)
}
