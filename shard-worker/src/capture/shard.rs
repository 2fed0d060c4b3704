//! One shard as the capture and the routers' streams share it. Every decision
//! is made under one lock, by the pure parts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tenancy::changes::{FromWorker, Generation, HOLDING, Lsn, RouterRun};
use tenancy::id::ShardId;
use tokio::sync::Notify;

use super::Connection;
use super::barrier::{Barriers, View};
use super::decode::Commit;
use super::lease::Leases;
use super::metric;
use super::outlet::{Outlet, Outlets};
use super::publish::{Behind, Log};

/// A shard.
pub(super) struct Shard {
    pub(super) id: ShardId,
    /// Wakes the capture: a router waits for a marker or a barrier.
    pub(super) wanted: Notify,
    outlets: Arc<Outlets>,
    state: Mutex<State>,
}

struct State {
    condition: Condition,
    serving: Option<Serving>,
    generations: u64,
    slot: Option<SlotSize>,
}

/// What a shard's capture is doing here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum Condition {
    /// Looking for the shard's primary.
    Searching,
    /// Another worker has the slot.
    StandsBy,
    /// Making a new slot: waits for the transactions that are running.
    Creating,
    /// Publishing.
    Captures,
    /// Failed, and tries again.
    Failed(String),
}

/// How much of the log the slot holds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SlotSize {
    /// Bytes of the log that it keeps.
    pub held_bytes: i64,
    /// Bytes that may still be written before it is lost; none: no bound is set.
    pub safe_bytes: Option<i64>,
}

/// A shard's capture, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The shard.
    pub shard: ShardId,
    /// What is being done.
    #[serde(flatten)]
    pub condition: Condition,
    /// `system/timeline/incarnation`, while it captures.
    pub generation: Option<String>,
    /// Up to where it has published.
    pub watermark: Option<String>,
    /// Since how many milliseconds it has the slot.
    pub since_ms: Option<u64>,
    /// Routers that follow.
    pub followers: usize,
    /// Routers that may answer from their caches now.
    pub holders: usize,
    /// Generations that began here.
    pub generations: u64,
    /// What the slot holds back.
    pub slot: Option<SlotSize>,
}

/// While this worker has the shard's slot.
struct Serving {
    generation: Generation,
    since: Instant,
    log: Log,
    leases: Leases,
    barriers: Barriers,
    followers: BTreeMap<Connection, (Arc<Outlet>, RouterRun)>,
}

/// When the capture must act next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wants {
    /// Pings wait for a marker, and none is under way.
    pub(super) lease: bool,
    /// A barrier waits for a position that is not published, since then, and no
    /// marker is under way.
    pub(super) barrier: Option<Instant>,
    /// Barriers may be done by then without anything else happening.
    pub(super) look: Option<Instant>,
}

impl Shard {
    pub(super) fn new(id: ShardId, outlets: Arc<Outlets>) -> Self {
        metric::known(&id);
        Self {
            id,
            wanted: Notify::new(),
            outlets,
            state: Mutex::new(State {
                condition: Condition::Searching,
                serving: None,
                generations: 0,
                slot: None,
            }),
        }
    }

    pub(super) fn set(&self, condition: Condition) {
        self.lock().condition = condition;
    }

    /// What its slot holds back, while it is this worker's.
    pub(super) fn set_slot(&self, size: SlotSize) {
        let mut state = self.lock();
        state.slot = state.serving.is_some().then_some(size);
    }

    /// A slot was made: a new generation begins.
    pub(super) fn count_generation(&self) {
        self.lock().generations += 1;
        metric::generation(&self.id);
    }

    /// The slot is this worker's: begins to publish behind `start`.
    pub(super) fn begin(&self, generation: Generation, start: Lsn) {
        let mut state = self.lock();
        state.condition = Condition::Captures;
        state.serving = Some(Serving {
            generation,
            since: Instant::now(),
            log: Log::new(start),
            leases: Leases::default(),
            barriers: Barriers::default(),
            followers: BTreeMap::new(),
        });
        drop(state);
        self.outlets.announce(&FromWorker::Captures {
            shard: self.id.clone(),
            generation,
        });
    }

    /// The slot is not this worker's any longer. Leases that it gave are the
    /// next holder's to wait for (rule 8).
    pub(super) fn end(&self) {
        let ended = {
            let mut state = self.lock();
            state.slot = None;
            state.serving.take()
        };
        let Some(serving) = ended else {
            return;
        };
        for (outlet, _) in serving.followers.values() {
            outlet.reply(self.gone());
        }
    }

    /// A ping (rule 4).
    pub(super) fn ping(&self, outlet: &Outlet, run: RouterRun, id: u64) {
        let now = Instant::now();
        match &mut self.lock().serving {
            Some(serving) => {
                if serving.leases.ping(outlet.connection, run, id, now) {
                    self.wanted.notify_one();
                }
            }
            None => outlet.reply(self.gone()),
        }
    }

    /// A router's watermark (rule 8).
    pub(super) fn applied(&self, run: RouterRun, generation: Generation, lsn: Lsn) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(serving) = of_generation(&mut state, generation) else {
            return;
        };
        if let Some(published) = serving.log.published_at(lsn) {
            metric::delivered(now.saturating_duration_since(published));
        }
        serving.leases.applied(run, lsn, now);
        self.finish_barriers(serving, now);
    }

    /// A write asks whether it is visible everywhere (rule 8). Only a worker of
    /// the same server and timeline can tell.
    pub(super) fn barrier(&self, connection: Connection, id: u64, server: (u64, u32), lsn: Lsn) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(serving) = &mut state.serving else {
            return;
        };
        if (serving.generation.system, serving.generation.timeline) != server {
            return;
        }
        self.await_everywhere(serving, (connection, id), lsn, now);
        self.finish_barriers(serving, now);
        if !serving.barriers.is_empty() {
            self.wanted.notify_one();
        }
    }

    /// Whether this worker can vouch for it that no router answers from what it
    /// knew before `lsn`. Where it can't yet, it sees to it that it will.
    pub(super) fn is_visible(&self, server: (u64, u32), lsn: Lsn) -> Option<bool> {
        let now = Instant::now();
        let mut state = self.lock();
        let serving = state.serving.as_mut()?;
        if (serving.generation.system, serving.generation.timeline) != server {
            return None;
        }
        let slowest = serving.leases.slowest(now);
        let is_visible = now >= serving.since + HOLDING
            && serving.log.watermark() >= lsn
            && slowest.is_none_or(|slowest| slowest >= lsn);
        if !is_visible && serving.barriers.is_empty() {
            // Nobody is answered; it has the position published.
            self.await_everywhere(serving, (Connection::MAX, 0), lsn, now);
            self.wanted.notify_one();
        }
        Some(is_visible)
    }

    /// A router asks for changes (rule 3): from where it was, or from here on.
    pub(super) fn follow(
        &self,
        outlet: &Arc<Outlet>,
        run: RouterRun,
        resume: Option<(Generation, Lsn)>,
    ) -> FromWorker {
        let mut state = self.lock();
        let Some(serving) = &mut state.serving else {
            return self.gone();
        };
        let known = resume.filter(|(generation, lsn)| {
            *generation == serving.generation && serving.log.behind(*lsn) != Behind::Unknown
        });
        let watermark = known.map_or(serving.log.watermark(), |(_, lsn)| lsn);
        serving
            .followers
            .insert(outlet.connection, (outlet.clone(), run));
        outlet.mark(&self.id);
        FromWorker::Start {
            shard: self.id.clone(),
            generation: serving.generation,
            watermark,
            resumed: known.is_some(),
        }
    }

    /// What is to be sent to a router at this position; none: nothing now.
    pub(super) fn next(&self, (generation, position): (Generation, Lsn)) -> Option<FromWorker> {
        let mut state = self.lock();
        let serving = of_generation(&mut state, generation)?;
        let shard = self.id.clone();
        match serving.log.behind(position) {
            Behind::Nothing => None,
            Behind::Changes { lsn, cells } => Some(FromWorker::Changes {
                shard,
                generation,
                prev: position,
                lsn,
                cells,
            }),
            // It was too slow: it begins anew.
            Behind::Unknown => Some(FromWorker::Start {
                shard,
                generation,
                watermark: serving.log.watermark(),
                resumed: false,
            }),
        }
    }

    /// Tells a new router that the shard is captured here, if it is.
    pub(super) fn introduce(&self, outlet: &Outlet) {
        if let Some(serving) = &self.lock().serving {
            outlet.reply(FromWorker::Captures {
                shard: self.id.clone(),
                generation: serving.generation,
            });
        }
    }

    /// The router's stream has ended. It may go on to hold a lease.
    pub(super) fn forget(&self, connection: Connection) {
        if let Some(serving) = &mut self.lock().serving {
            serving.followers.remove(&connection);
            serving.leases.forget(connection);
        }
    }

    /// Publishes commits, all visible, in their order; answers the pings whose
    /// marker is among them. `own` reads the numbers of this worker's markers.
    pub(super) fn publish(&self, commits: Vec<Commit>, own: impl Fn(&[u8]) -> Option<u64>) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(serving) = &mut state.serving else {
            return;
        };
        for commit in commits {
            let lsn = commit.end;
            if !commit.cells.is_empty() {
                metric::published(commit.at_micros);
            }
            serving.log.publish(lsn, commit.cells, now);
            for marker in commit.markers.iter().filter_map(|text| own(text)) {
                for (connection, id) in serving.leases.marker_published(marker) {
                    let lease = FromWorker::Lease {
                        shard: self.id.clone(),
                        id,
                        generation: serving.generation,
                        lsn,
                    };
                    self.outlets.reply(connection, lease);
                }
            }
        }
        for (outlet, _) in serving.followers.values() {
            outlet.mark(&self.id);
        }
        self.finish_barriers(serving, now);
    }

    /// Publishes a position: nothing but what is published came before it.
    pub(super) fn publish_position(&self, lsn: Lsn) {
        let mut state = self.lock();
        let Some(serving) = &mut state.serving else {
            return;
        };
        serving.log.publish(lsn, Default::default(), Instant::now());
        // Routers need it only where somebody waits for them to have it.
        if !serving.barriers.is_empty() {
            for (outlet, _) in serving.followers.values() {
                outlet.mark(&self.id);
            }
            self.finish_barriers(serving, Instant::now());
        }
    }

    /// The watermark, for the slot to be confirmed.
    pub(super) fn watermark(&self) -> Option<Lsn> {
        let state = self.lock();
        state
            .serving
            .as_ref()
            .map(|serving| serving.log.watermark())
    }

    /// What the capture must do for the routers that wait.
    pub(super) fn wants(&self, now: Instant) -> Wants {
        let mut state = self.lock();
        let Some(serving) = &mut state.serving else {
            return Wants::default();
        };
        self.finish_barriers(serving, now);
        let idle = serving.leases.is_idle();
        let wanted = serving.barriers.wanted();
        let unpublished = wanted.filter(|(lsn, _)| idle && *lsn > serving.log.watermark());
        let settled = serving.since + HOLDING;
        let look = match now < settled {
            true => Some(settled),
            false => serving.leases.next_end(now),
        };
        Wants {
            lease: serving.leases.wants_marker(),
            barrier: unpublished.map(|(_, came)| came),
            look: look.filter(|_| wanted.is_some()),
        }
    }

    /// A marker is written now.
    pub(super) fn begin_marker(&self) -> Option<u64> {
        let mut state = self.lock();
        Some(state.serving.as_mut()?.leases.begin_marker())
    }

    pub(super) fn status(&self) -> Status {
        let now = Instant::now();
        let state = self.lock();
        let serving = state.serving.as_ref();
        Status {
            shard: self.id.clone(),
            condition: state.condition.clone(),
            generation: serving.map(|s| s.generation.to_string()),
            watermark: serving.map(|s| s.log.watermark().to_string()),
            since_ms: serving.map(|s| now.duration_since(s.since).as_millis() as u64),
            followers: serving.map_or(0, |s| s.followers.len()),
            holders: serving.map_or(0, |s| s.leases.count(now)),
            generations: state.generations,
            slot: state.slot,
        }
    }

    /// Somebody waits until all routers have a position. They may not have been told of
    /// it, though it is published: a position alone tells them nothing that they miss.
    fn await_everywhere(
        &self,
        serving: &mut Serving,
        (connection, id): (Connection, u64),
        lsn: Lsn,
        now: Instant,
    ) {
        serving.barriers.insert(connection, id, lsn, now);
        if serving.log.watermark() >= lsn {
            for (outlet, _) in serving.followers.values() {
                outlet.mark(&self.id);
            }
        }
    }

    fn finish_barriers(&self, serving: &mut Serving, now: Instant) {
        if serving.barriers.is_empty() {
            return;
        }
        let view = View {
            published: serving.log.watermark(),
            slowest: serving.leases.slowest(now),
            since: serving.since,
        };
        for done in serving.barriers.done(view, now) {
            metric::barrier(done.waited);
            let message = FromWorker::BarrierDone {
                shard: self.id.clone(),
                id: done.id,
            };
            self.outlets.reply(done.connection, message);
        }
    }

    fn gone(&self) -> FromWorker {
        FromWorker::Gone {
            shard: self.id.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_generation(state: &mut State, generation: Generation) -> Option<&mut Serving> {
    let serving = state.serving.as_mut()?;
    (serving.generation == generation).then_some(serving)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn who_waits_for_a_position_that_is_published_has_routers_told_of_it() {
        // A lease must not end meanwhile: nobody waits for a router without one.
        let (write, cut_over) = loop {
            let begun = Instant::now();
            let seen = (told_for_a_write(), told_for_a_cut_over());
            if begun.elapsed() < HOLDING {
                break seen;
            }
        };
        // Of a mere position, by a barrier, and of the next while it waits still.
        assert_eq!(write, [false, true, true]);
        assert_eq!(cut_over, (false, Some(false), true));
    }

    const SERVER: (u64, u32) = (7, 1);
    const GENERATION: Generation = Generation {
        system: SERVER.0,
        timeline: SERVER.1,
        incarnation: 1,
    };

    /// A shard, and what is sent to its one router, which has all that was published.
    fn followed() -> (Shard, Arc<Outlet>) {
        let outlets = Arc::<Outlets>::default();
        let shard = Shard::new(ShardId::from("s1"), outlets.clone());
        shard.begin(GENERATION, Lsn(10));
        let (outlet, run) = (outlets.open().unwrap(), RouterRun(1));
        shard.follow(&outlet, run, None);
        shard.ping(&outlet, run, 1);
        shard.applied(run, GENERATION, Lsn(10));
        assert!(told(&outlet));
        (shard, outlet)
    }

    fn told(outlet: &Outlet) -> bool {
        outlet.take().now_or_never().is_some()
    }

    fn told_for_a_write() -> [bool; 3] {
        let (shard, outlet) = followed();
        shard.publish_position(Lsn(20));
        let before = told(&outlet);
        shard.barrier(outlet.connection, 1, SERVER, Lsn(15));
        let by_barrier = told(&outlet);
        shard.publish_position(Lsn(30));
        [before, by_barrier, told(&outlet)]
    }

    fn told_for_a_cut_over() -> (bool, Option<bool>, bool) {
        let (shard, outlet) = followed();
        shard.publish_position(Lsn(20));
        let before = told(&outlet);
        let visible = shard.is_visible(SERVER, Lsn(20));
        (before, visible, told(&outlet))
    }
}
