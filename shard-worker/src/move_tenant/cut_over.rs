//! Cut-overs, a group of tenants after another, and how they are undone. All
//! decisions are [`super::crossing`]'s; here they are done, within a budget.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{try_join, try_join3};
use schema::tenant_tables::{TenantTable, tenant_tables};
use tenancy::changes::HOLDING;
use tenancy::control::{Place, move_tenants};
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::crossing::{self, Contradiction, Fence, Next, Seen, Undo};
use super::prepare::same_tables;
use super::servers::Servers;
use super::side::{Look, Side};
use super::touched::Touched;
use super::verify::{alike, compare_held, recheck};
use super::{
    BUDGET_MAX_MS, Checked, Ended, Move, Moving, PAUSED_LOOK, State, Way, Wish, again, failpoint,
    names, now_s, way_back, wish,
};
use crate::job::{Context, JobError, Step, store};
use crate::shard::ShardError;

/// Most tenants that change shards at once. Where they took too long together, each
/// bundle goes by itself.
const GROUP_MAX: usize = 50;
/// A stream that takes longer for one marker is not quick enough.
const QUICK: Duration = Duration::from_millis(150);
/// No wait at all.
const AT_ONCE: Duration = Duration::from_millis(1);
/// Rows that are compared in a millisecond on both sides, where a cut-over is predicted.
const ROWS_A_MS: usize = 50;
/// Longest comparison of rows that were written to, before anybody is held.
const RECHECK_MAX: Duration = Duration::from_secs(1);
/// Longest wait for one statement of an undo.
const UNDO_MAX: Duration = Duration::from_secs(10);

/// Tenants' way from one shard to another, all at once.
struct Crossing<'a> {
    context: &'a Context,
    way: Way,
    members: Vec<Member<'a>>,
    source: Side,
    target: Side,
    /// Routers may have had cached answers since before the source was closed.
    captured: bool,
    /// What was written since rows were compared; none: it is not known.
    touched: Option<Arc<Touched>>,
    /// A shard has failed over since rows were compared.
    failed_over: bool,
    /// The source's tables.
    tables: Vec<TenantTable>,
    /// When requests began to be held; none: they are not.
    closed: Option<Instant>,
    /// When the source's fences were seen committed: no router has begun a lease
    /// since that leaves them out.
    fenced: Option<Instant>,
    /// What the source showed behind the last of the tenants' writes.
    behind: Option<Behind>,
    /// Who is suspended, once the source was left and all nodes know.
    suspended: Option<Vec<bool>>,
    /// What was done while requests were held, and when it was done.
    done: Mutex<Vec<(&'static str, Instant)>>,
}

/// The source, once the tenants' writes have ended.
struct Behind {
    /// It was written then.
    marker: Uuid,
    look: Look,
    /// The application's sequences.
    sequences: (Vec<String>, Vec<i64>),
}

/// One of them.
struct Member<'a> {
    tenant: &'a Moving,
    /// The publication of its bundle on the source.
    out: String,
    /// That on the target.
    back: String,
}

/// How a try ended; epochs are the source's, in the group's order.
enum Tried {
    Crossed {
        pause: Option<Duration>,
    },
    Undone {
        epochs: Vec<i64>,
        why: String,
    },
    /// Undone, since rows differ.
    Differs {
        epochs: Vec<i64>,
        why: String,
    },
    /// None was begun.
    Paused,
    /// None was begun: the move is retained again.
    Stays {
        /// Why it can't be rolled back any longer.
        gone: Option<String>,
    },
    /// None was begun: all rows are compared first.
    Unsure,
}

/// One group's cut-over; or, where all have crossed, what comes then.
pub(super) async fn cut_over(
    context: &Context,
    job: &Move,
    way: Way,
    tries: u32,
) -> Result<Step<Move>, JobError> {
    let crossed = way == Way::Forward;
    let tenants = job.plan.tenants.iter().enumerate();
    let group: Vec<usize> = tenants
        .filter(|(_, tenant)| tenant.crossed != crossed)
        .map(|(index, _)| index)
        .take(job.plan.together(if tries == 0 { GROUP_MAX } else { 1 }))
        .collect();
    if group.is_empty() {
        return Ok(Step::Next(all_crossed(job, way)));
    }
    let (from, to) = job.plan.ends(way);
    let tried = attempt(context, job, way, &group).await?;
    let mut next = job.clone();
    let mut changed: Vec<(Uuid, Place<'_>, Place<'_>)> = Vec::new();
    for (position, index) in group.iter().enumerate() {
        let tenant = &job.plan.tenants[*index];
        let before = Place {
            shard: from,
            epoch: tenant.epoch,
        };
        let after = match &tried {
            Tried::Crossed { .. } => Place {
                shard: to,
                epoch: tenant.epoch + 1,
            },
            Tried::Undone { epochs, .. } | Tried::Differs { epochs, .. } => Place {
                shard: from,
                epoch: epochs.get(position).copied().unwrap_or(tenant.epoch),
            },
            Tried::Paused | Tried::Stays { .. } | Tried::Unsure => before,
        };
        next.plan.tenants[*index].epoch = after.epoch;
        if before != after {
            changed.push((tenant.id, before, after));
        }
    }
    let slugs = || {
        let slugs = group.iter().map(|i| job.plan.tenants[*i].slug.as_str());
        slugs.collect::<Vec<_>>().join(", ")
    };
    let step = match tried {
        Tried::Crossed { pause } => {
            for index in &group {
                let tenant = &mut next.plan.tenants[*index];
                tenant.crossed = crossed;
                if let Some(pause) = pause {
                    let ms = (pause.as_secs_f64() * 1e6).round() / 1e3;
                    tenant.pauses_ms.push(ms);
                }
                context.app().move_metrics.crossed(pause);
            }
            next.state = State::cutting_over(way);
            Step::Written(next.clone())
        }
        Tried::Undone { why, .. } => {
            tracing::info!(tenants = slugs(), why, tries, "cut-over undone");
            context.app().move_metrics.undone();
            next.state = match way {
                Way::Forward => State::CatchingUp {
                    tries: tries + 1,
                    why: Some(why),
                },
                Way::Back => State::CuttingOver {
                    way,
                    tries: tries + 1,
                    why: Some(why),
                },
            };
            Step::Later(next.clone(), again(tries))
        }
        Tried::Differs { why, .. } => {
            tracing::error!(tenants = slugs(), why, "shards differ: cut-over undone");
            context.app().move_metrics.undone();
            next.checked = Some(Checked {
                rows: job.checked.as_ref().map_or(0, |checked| checked.rows),
                differ: Some(why.clone()),
            });
            next.state = match way {
                Way::Forward => next.given_up(Ended::Failed(why)),
                Way::Back => {
                    let (control, id) = (context.control(), context.job().id);
                    store::clear_wish(control, id, Wish::RollBack.name()).await?;
                    retained(&mut next)
                }
            };
            Step::Next(next.clone())
        }
        Tried::Stays { gone } => {
            if let Some(why) = &gone {
                tracing::error!(why, "the way back is gone");
                let (control, id) = (context.control(), context.job().id);
                store::clear_wish(control, id, Wish::RollBack.name()).await?;
            }
            next.way_back_gone = gone;
            next.state = retained(&mut next);
            Step::Next(next.clone())
        }
        Tried::Unsure => Step::Next(job.to(State::verifying(way))),
        Tried::Paused => {
            let why = Some("it is paused".into());
            Step::Later(job.to(State::CatchingUp { tries, why }), PAUSED_LOOK)
        }
    };
    if !changed.is_empty() {
        let mut client = context.control().client().await?;
        let transaction = client.transaction().await?;
        move_tenants(&transaction, &context.job().actor, &changed).await?;
        failpoint(context, "control")?;
        context.commit(transaction, &next).await?;
    }
    Ok(step)
}

fn all_crossed(job: &Move, way: Way) -> Move {
    let mut next = job.clone();
    next.state = match way {
        Way::Forward => {
            next.retained_until = 0;
            retained(&mut next)
        }
        Way::Back => State::CleaningUp {
            why: Ended::RolledBack,
            rows: 0,
        },
    };
    next
}

/// The way back is open, for as long as it was to be kept.
fn retained(job: &mut Move) -> State {
    if job.retained_until == 0 {
        job.retained_until = now_s() + job.plan.keep_s;
    }
    State::Retained {
        until: job.retained_until,
    }
}

/// Takes back what a move has begun, before any of its tenants is on the target.
pub(super) async fn undo(
    context: &Context,
    job: &Move,
    why: &Ended,
) -> Result<Step<Move>, JobError> {
    failpoint(context, "undoing")?;
    let all: Vec<usize> = (0..job.plan.tenants.len()).collect();
    for group in all.chunks(job.plan.together(GROUP_MAX)) {
        let mut crossing = match open(context, job, Way::Forward, group).await {
            Ok(crossing) => crossing,
            // A target that can't be reached must not keep the source closed.
            Err(error) => {
                release(context, job, Way::Forward, group).await?;
                return Err(error);
            }
        };
        let seen = crossing.seen().await?;
        let mut seen = seen.iter();
        crossing.members.retain(|member| {
            // Else it came to nothing, or is being cleaned up: nobody was ever held.
            seen.next().is_some_and(|seen| {
                seen.source != Fence::Active(member.tenant.epoch)
                    || (seen.out.is_some() && seen.back.is_some())
            })
        });
        if crossing.members.is_empty() {
            continue;
        }
        let epochs = crossing.take_back().await?;
        let mut next = job.clone();
        let mut changed = Vec::new();
        let place = |epoch| Place {
            shard: &job.plan.from,
            epoch,
        };
        for (member, epoch) in crossing.members.iter().zip(epochs) {
            let tenant = next.plan.tenants.iter_mut();
            let tenant = tenant.filter(|tenant| tenant.id == member.tenant.id).last();
            if let Some(tenant) = tenant.filter(|tenant| tenant.epoch != epoch) {
                changed.push((tenant.id, place(tenant.epoch), place(epoch)));
                tenant.epoch = epoch;
            }
        }
        if !changed.is_empty() {
            let mut client = context.control().client().await?;
            let transaction = client.transaction().await?;
            move_tenants(&transaction, &context.job().actor, &changed).await?;
            context.commit(transaction, &next).await?;
            return Ok(Step::Written(next));
        }
    }
    Ok(job.next(State::CleaningUp {
        why: why.clone(),
        rows: 0,
    }))
}

async fn attempt(
    context: &Context,
    job: &Move,
    way: Way,
    group: &[usize],
) -> Result<Tried, JobError> {
    let budget = Duration::from_millis(job.plan.budget_ms.min(BUDGET_MAX_MS));
    let tried = match open(context, job, way, group).await {
        Ok(mut crossing) => crossing.run(job, budget).await,
        Err(error) => Err(error),
    };
    if tried.is_err() {
        // What can be opened again without the other side is.
        context.drop_sessions().await;
        release(context, job, way, group).await?;
    }
    tried
}

async fn open<'a>(
    context: &'a Context,
    job: &'a Move,
    way: Way,
    group: &[usize],
) -> Result<Crossing<'a>, JobError> {
    let (from, to) = job.plan.ends(way);
    let id = context.job().id;
    let source = Side::open(context, from).await?;
    let target = Side::open(context, to).await?;
    let (sends, receives, (), tables) = tokio::try_join!(
        source.look(),
        target.look(),
        alike(&source, &target),
        async { Ok(tenant_tables(&*source.client).await?) }
    )?;
    let captured = sends.captured;
    let servers = Servers::new(way, sends.server, receives.server);
    let failed_over = job.servers.as_ref() != Some(&servers);
    let member = |index: &usize| Member {
        tenant: &job.plan.tenants[*index],
        out: job.publication(id, *index, way),
        back: job.publication(id, *index, way.opposite()),
    };
    Ok(Crossing {
        // A server may lack what was equal.
        touched: context.app().watches.get(id, way).filter(|_| !failed_over),
        failed_over,
        tables,
        context,
        way,
        members: group.iter().map(member).collect(),
        source,
        target,
        captured,
        closed: None,
        fenced: None,
        behind: None,
        suspended: None,
        done: Mutex::default(),
    })
}

/// Serves held tenants again from their source alone: as long as their changes
/// are still sent, nothing but their fences has been changed there, and the target
/// can't be activated.
async fn release(context: &Context, job: &Move, way: Way, group: &[usize]) -> Result<(), JobError> {
    let (from, _) = job.plan.ends(way);
    let source = Side::open(context, from).await?;
    let tenants = group.iter().map(|index| &job.plan.tenants[*index]);
    let ids: Vec<Uuid> = tenants.clone().map(|tenant| tenant.id).collect();
    let id = context.job().id;
    let out = group.iter().map(|index| job.publication(id, *index, way));
    let fences = source.fences(&ids, &out.collect::<Vec<_>>()).await?;
    let held = tenants.zip(fences).filter(|(tenant, (fence, _, out))| {
        *fence == Fence::Fenced(tenant.epoch) && *out == Some(true)
    });
    let (held, epochs): (Vec<Uuid>, Vec<i64>) = held.map(|(t, _)| (t.id, t.epoch)).unzip();
    if !held.is_empty() {
        source.reopen(&held, &epochs, &epochs).await?;
    }
    Ok(())
}

impl Crossing<'_> {
    async fn run(&mut self, job: &Move, budget: Duration) -> Result<Tried, JobError> {
        // Most of it before anybody is held.
        let sequences = self.source.sequences().await?;
        self.target.raise_sequences(&sequences).await?;
        match self.not_yet(job, budget).await {
            Ok(None) => {}
            Ok(Some(not_yet)) => return Ok(not_yet),
            Err(JobError::Refused(why)) => {
                let epochs = self.epochs();
                return Ok(Tried::Differs { epochs, why });
            }
            Err(error) => return Err(error),
        }
        let began = Instant::now();
        let Ok(seen) = timeout(UNDO_MAX, self.seen()).await else {
            return Err(ShardError::Slow.into());
        };
        // Nobody else changes anything: this job's sessions have its locks.
        let mut seen = seen?;
        loop {
            let next = self.next(&seen).map_err(stop)?;
            if seen
                .iter()
                .any(|seen| !matches!(seen.source, Fence::Active(_)))
            {
                self.fenced.get_or_insert_with(Instant::now);
                // Someone before may have closed it.
                self.closed.get_or_insert(began);
            }
            let until = self.closed.unwrap_or_else(Instant::now) + budget;
            let done = match next {
                Next::Over => {
                    let pause = self.closed.map(|closed| closed.elapsed());
                    self.tell();
                    return Ok(Tried::Crossed { pause });
                }
                Next::Undo => Err(Stopped::OverBudget("an undo had begun")),
                // The budget is for who is held: arming holds nobody.
                Next::Arm => self.arm().await.map_err(Stopped::from),
                Next::Close => self.close(budget).await,
                Next::Leave if self.touched.is_none() => {
                    Err(Stopped::OverBudget("comparing what another worker knew of"))
                }
                Next::Leave => self.leave(until).await,
                Next::Activate => self.activate(until).await,
            };
            match done {
                Ok(()) => {
                    let members = self.members.iter().zip(&seen);
                    seen = members
                        .map(|(member, seen)| crossing::after(seen, next, member.tenant.epoch))
                        .collect();
                }
                Err(Stopped::OverBudget(why)) => return self.give_up(job, why).await,
                Err(Stopped::Differs(why)) => {
                    self.refresh().await?;
                    let epochs = self.take_back().await?;
                    return Ok(Tried::Differs { epochs, why });
                }
                Err(Stopped::Error(error)) => return Err(error),
            }
        }
    }

    /// What comes next of all of them. They go step by step together: where they
    /// are not equally far one was being taken back.
    fn next(&self, seen: &[Seen]) -> Result<Next, Contradiction> {
        let mut step = None;
        for (member, seen) in self.members.iter().zip(seen) {
            let own = crossing::next(seen, member.tenant.epoch)?;
            step = match step {
                None => Some(own),
                Some(step) if step == own => Some(step),
                // Arming again changes nothing.
                Some(Next::Arm | Next::Close) if matches!(own, Next::Arm | Next::Close) => {
                    Some(Next::Arm)
                }
                Some(_) => Some(Next::Undo),
            };
        }
        Ok(step.unwrap_or(Next::Over))
    }

    /// It took too long: the source serves again.
    async fn give_up(&mut self, job: &Move, why: &str) -> Result<Tried, JobError> {
        let held = self.closed.map_or(0, |closed| closed.elapsed().as_millis());
        let why = format!(
            "{why} took too long: requests were held for {held} ms of {} ms",
            job.plan.budget_ms
        );
        self.tell();
        self.refresh().await?;
        let epochs = self.take_back().await?;
        Ok(Tried::Undone { epochs, why })
    }

    /// Nobody is held for a stream that stands still: why it is not begun. Who was
    /// held before is drained, or not, by what the shards show.
    async fn not_yet(&mut self, job: &Move, budget: Duration) -> Result<Option<Tried>, JobError> {
        let (ids, out) = (self.ids(), self.out());
        let fences = self.source.fences(&ids, &out).await?;
        if fences
            .iter()
            .any(|(fence, _, _)| !matches!(fence, Fence::Active(_)))
        {
            return Ok(None);
        }
        let undone = |why: String| {
            let epochs = self.epochs();
            Ok(Some(Tried::Undone { epochs, why }))
        };
        let (context, way) = (self.context, self.way);
        let wish = wish(context).await?;
        match way {
            Way::Forward if wish == Some(Wish::Pause) => return Ok(Some(Tried::Paused)),
            Way::Forward => {
                same_tables(job, context.job().id, &self.source, &self.target).await?;
            }
            Way::Back => {
                let gone = way_back::gone(context, job, &self.source, &self.target).await?;
                if gone.is_some() || wish == Some(Wish::Complete) {
                    return Ok(Some(Tried::Stays { gone }));
                }
                if self.failed_over {
                    return Ok(Some(Tried::Unsure));
                }
            }
        }
        let touched = match (&self.touched, way) {
            (Some(touched), _) => touched.clone(),
            (None, Way::Forward) => {
                let why = "what was written since rows were compared is not known here";
                return undone(why.into());
            }
            // What is written from now on is compared.
            (None, Way::Back) => context.app().watches.begin(context, job, way).await?,
        };
        let sides = (&self.source, &self.target, &self.tables[..]);
        let until = Instant::now() + RECHECK_MAX;
        recheck(context, job, way, &touched, sides, until).await?;
        // Of nobody: a session's first call of a function takes some milliseconds more.
        tokio::try_join!(
            self.source.leave(&[], &[], &self.target.shard, &[]),
            self.target.activate(&[], &[], &[], &[]),
            self.source.on_standbys(AT_ONCE),
            self.target.on_standbys(AT_ONCE)
        )?;
        let marker = self.source.mark(context.job().id, names::way(way)).await?;
        let began = Instant::now();
        let arrived = self.target.arrived(marker, QUICK).await?;
        let took = began.elapsed();
        if !arrived {
            return undone(format!(
                "what shard {} sends does not arrive on {} within {} ms: no cut-over is begun",
                self.source.shard,
                self.target.shard,
                QUICK.as_millis()
            ));
        }
        let waits = self.captured && !context.app().capture.captures(&self.source.shard);
        let predicted = predicted(took, touched.len(), waits);
        if predicted > budget {
            let because = match waits {
                true => format!(", for this worker does not capture {}", self.source.shard),
                false => String::new(),
            };
            return undone(format!(
                "requests would be held for about {} ms of {} ms{because}: no cut-over is begun",
                predicted.as_millis(),
                budget.as_millis()
            ));
        }
        self.touched = Some(touched);
        Ok(None)
    }

    async fn seen(&self) -> Result<Vec<Seen>, JobError> {
        let ids = self.ids();
        let out = self.out();
        let back = self.back();
        let (source, target) = tokio::try_join!(
            self.source.fences(&ids, &out),
            self.target.fences(&ids, &back)
        )?;
        let both = source.into_iter().zip(target);
        let seen = both.map(|((source, _, out), (target, _, back))| Seen {
            source,
            target,
            out,
            back,
        });
        Ok(seen.collect())
    }

    async fn arm(&self) -> Result<(), JobError> {
        failpoint(self.context, "begun")?;
        self.target.arm(&self.ids(), &self.epochs()).await?;
        failpoint(self.context, "armed")?;
        Ok(())
    }

    async fn close(&mut self, budget: Duration) -> Result<(), Stopped> {
        let now = Instant::now();
        self.closed.get_or_insert(now);
        let closed = self.end_writes(budget);
        let behind = bounded(now + budget, "ending writes", closed).await?;
        self.behind = Some(behind);
        self.fenced = Some(Instant::now());
        self.note("closed");
        failpoint(self.context, "closed")?;
        Ok(())
    }

    /// Holds requests, and looks at the source once their writes have ended: on one
    /// session, in this order, and in one round trip.
    async fn end_writes(&self, wait_max: Duration) -> Result<Behind, JobError> {
        let (ids, epochs) = (self.ids(), self.epochs());
        let marker = (self.context.job().id, names::way(self.way));
        let (marker, look, sequences) = try_join3(
            self.source.close(&ids, &epochs, marker, wait_max),
            self.source.look(),
            self.source.sequences(),
        )
        .await?;
        Ok(Behind {
            marker,
            look,
            sequences,
        })
    }

    /// All that was written arrives, no number is given twice, and what was written
    /// since rows were compared is equal; no router answers from what it had cached
    /// before. Then the source names the target and sends no more: the proof that it
    /// was so.
    async fn leave(&mut self, until: Instant) -> Result<(), Stopped> {
        let (ids, epochs) = (self.ids(), self.epochs());
        let behind = match self.behind.take() {
            Some(behind) => behind,
            // Another worker closed it.
            None => {
                let left = until.saturating_duration_since(Instant::now());
                bounded(until, "ending writes", self.end_writes(left)).await?
            }
        };
        tokio::try_join!(
            bounded(until, "draining", self.drained(&behind, until)),
            bounded(until, "waiting for caches", self.uncached(&behind.look))
        )?;
        failpoint(self.context, "drained")?;
        let out = distinct(self.out());
        let left = self.source.leave(&ids, &epochs, &self.target.shard, &out);
        // On one session, hence behind it: polled in this order.
        let settled = try_join(left, self.settled(until));
        let ((), suspended) = bounded(until, "waiting for standbys", settled).await?;
        self.suspended = Some(suspended);
        self.note("left");
        failpoint(self.context, "left")?;
        Ok(())
    }

    async fn drained(&self, behind: &Behind, until: Instant) -> Result<(), JobError> {
        let Some(touched) = &self.touched else {
            return Err(JobError::Wait("what was written is not known here".into()));
        };
        let left = until.saturating_duration_since(Instant::now());
        let ((), arrived, ()) = try_join3(
            self.target.raise_sequences(&behind.sequences),
            self.target.arrived(behind.marker, left),
            touched.wait_for(behind.marker),
        )
        .await?;
        if !arrived {
            return Err(ShardError::Slow.into());
        }
        self.note("arrived");
        let sides = (&self.source, &self.target, &self.tables[..]);
        for member in &self.members {
            compare_held(self.context, member.tenant, touched, sides).await?;
        }
        self.note("compared");
        Ok(())
    }

    /// Rule 11: no router answers any longer from what it had cached before the
    /// source was closed.
    async fn uncached(&self, look: &Look) -> Result<(), JobError> {
        let capture = &self.context.app().capture;
        if (self.captured || look.captured)
            && !capture
                .wait_visible(&self.source.shard, look.server, look.lsn)
                .await
        {
            // Another worker captures it, or nobody any longer.
            let fenced = self.fenced.unwrap_or_else(Instant::now);
            tokio::time::sleep_until(fenced + HOLDING).await;
        }
        self.note("not cached");
        Ok(())
    }

    /// What both sides have committed is on every node that may become their
    /// primary; who of the tenants is suspended.
    async fn settled(&self, until: Instant) -> Result<Vec<bool>, JobError> {
        let (ids, out) = (self.ids(), self.out());
        let left = until.saturating_duration_since(Instant::now());
        let target = async {
            self.target.flush().await?;
            self.target.on_standbys(left).await
        };
        let (source, fences, target) = tokio::try_join!(
            self.source.on_standbys(left),
            self.source.fences(&ids, &out),
            target
        )?;
        match source && target {
            true => Ok(fences.iter().map(|(_, suspended, _)| *suspended).collect()),
            false => Err(ShardError::Slow.into()),
        }
    }

    async fn activate(&mut self, until: Instant) -> Result<(), Stopped> {
        let suspended = match self.suspended.take() {
            Some(suspended) => suspended,
            // Another worker left.
            None => bounded(until, "waiting for standbys", self.settled(until)).await?,
        };
        let (ids, epochs, back) = (self.ids(), self.epochs(), distinct(self.back()));
        // Not bounded: whether it was done must be known.
        let active = self.target.activate(&ids, &epochs, &suspended, &back).await;
        active?;
        failpoint(self.context, "activated")?;
        self.note("activated");
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

    /// Undoes what was begun; the epochs that the source serves at then.
    async fn take_back(&mut self) -> Result<Vec<i64>, JobError> {
        loop {
            let seen = timeout(UNDO_MAX, self.seen()).await;
            let seen = seen.map_err(|_| ShardError::Slow)??;
            let both = self.members.iter().zip(&seen);
            let steps = both.map(|(m, seen)| crossing::undo(seen, m.tenant.epoch));
            let steps: Vec<Undo> = steps.collect::<Result<_, _>>().map_err(stop)?;
            let done = steps.iter().map(|step| match step {
                Undo::Undone(at) => Some(*at),
                Undo::TooLate | Undo::Disarm | Undo::OpenOut | Undo::Reopen(_) => None,
            });
            if let Some(epochs) = done.collect() {
                return Ok(epochs);
            }
            timeout(UNDO_MAX, self.undo(&seen, &steps))
                .await
                .map_err(|_| ShardError::Slow)??;
            failpoint(self.context, "taking_back")?;
        }
    }

    /// One step of an undo of each, those that are alike together.
    async fn undo(&self, seen: &[Seen], steps: &[Undo]) -> Result<(), JobError> {
        let (mut disarm, mut open, mut reopen) = (Fences::default(), Vec::new(), Fences::default());
        for ((member, seen), step) in self.members.iter().zip(seen).zip(steps) {
            let epoch = member.tenant.epoch;
            match step {
                Undo::TooLate => {
                    let why = "the tenant is on the target already";
                    return Err(JobError::Wait(why.into()));
                }
                // Who was sent here is sent back, by a later number.
                Undo::Disarm if matches!(seen.source, Fence::Moved(_)) => {
                    disarm.push(member, epoch, epoch + 2);
                }
                Undo::Disarm => disarm.push(member, epoch, epoch),
                Undo::OpenOut => open.push(member.out.clone()),
                Undo::Reopen(at) => {
                    let was = match seen.source {
                        Fence::Moved(at) | Fence::Fenced(at) => at,
                        Fence::None | Fence::Active(_) => epoch,
                    };
                    reopen.push(member, was, *at);
                }
                Undo::Undone(_) => {}
            }
        }
        if !disarm.tenants.is_empty() {
            let source = &self.source.shard;
            let Fences { tenants, was, at } = &disarm;
            self.target.disarm(tenants, was, source, at).await?;
        }
        if !open.is_empty() {
            self.source.send_again(&distinct(open)).await?;
        }
        if !reopen.tenants.is_empty() {
            let Fences { tenants, was, at } = &reopen;
            self.source.reopen(tenants, was, at).await?;
        }
        Ok(())
    }

    fn ids(&self) -> Vec<Uuid> {
        self.members.iter().map(|member| member.tenant.id).collect()
    }

    fn epochs(&self) -> Vec<i64> {
        let epochs = self.members.iter().map(|member| member.tenant.epoch);
        epochs.collect()
    }

    fn out(&self) -> Vec<String> {
        self.members.iter().map(|m| m.out.clone()).collect()
    }

    fn back(&self) -> Vec<String> {
        self.members.iter().map(|m| m.back.clone()).collect()
    }

    fn note(&self, what: &'static str) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.push((what, Instant::now()));
    }

    /// Where the pause went: what was done by when.
    fn tell(&self) {
        let Some(closed) = self.closed else {
            return;
        };
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_ms = String::new();
        for (what, at) in done.iter() {
            let ms = at.saturating_duration_since(closed).as_secs_f64() * 1e3;
            let _ = write!(by_ms, "{what} {ms:.1}, ");
        }
        let tenants = self.members.len();
        tracing::info!(tenants, by_ms, "requests were held");
    }
}

/// Fences to be changed: of whom, at which epochs, to which.
#[derive(Default)]
struct Fences {
    tenants: Vec<Uuid>,
    was: Vec<i64>,
    at: Vec<i64>,
}

impl Fences {
    fn push(&mut self, member: &Member<'_>, was: i64, at: i64) {
        self.tenants.push(member.tenant.id);
        self.was.push(was);
        self.at.push(at);
    }
}

/// Publications of members, who follow each other in bundles.
fn distinct(mut publications: Vec<String>) -> Vec<String> {
    publications.dedup();
    publications
}

/// How long a cut-over will hold requests, at least: for a marker to arrive and rows
/// that were written to to be compared, and for the end of a lease where only that
/// shows that no router answers from what it had cached.
fn predicted(marker: Duration, rows: usize, waits: bool) -> Duration {
    let drained = marker + Duration::from_millis((rows / ROWS_A_MS) as u64);
    // Both are waited for at the same time.
    if waits { drained.max(HOLDING) } else { drained }
}

/// Work of a cut-over, up to the end of its budget.
async fn bounded<T>(
    until: Instant,
    what: &'static str,
    work: impl Future<Output = Result<T, JobError>>,
) -> Result<T, Stopped> {
    match timeout_at(until, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(JobError::Shard(ShardError::Slow))) => Err(Stopped::OverBudget(what)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cut_over_will_take_is_told_before() {
        let quick = Duration::from_millis(2);
        assert_eq!(predicted(quick, 10, false), quick);
        assert_eq!(predicted(quick, 1_000, false), Duration::from_millis(22));
        assert_eq!(predicted(quick, 1_000, true), HOLDING);
        assert!(HOLDING < Duration::from_millis(super::super::BUDGET_MS));
    }
}
