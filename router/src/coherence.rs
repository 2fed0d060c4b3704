//! What this router knows of each shard's changes, and what it asks the workers
//! that capture them (DESIGN.md §6, the router's side of rules 1, 3, 4 and 8).
//!
//! One stream to every worker ([`stream`]); for each shard a pure state machine
//! ([`follow`]) that decides what to say and what to believe; and the result, in
//! memory that requests read without a lock ([`cells`]).

pub mod alone;
pub mod barrier;
pub mod cells;
pub mod clock;
pub mod follow;
pub mod stream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tenancy::changes::{Generation, Lsn, RouterRun};
pub use tenancy::changes::{HOLDING, LEASE};
use tenancy::id::ShardId;

use self::cells::Heard;
use self::clock::Boot;
use self::follow::Follow;

/// A shard's cached traffic keeps its lease alive for so long.
const DEMAND: Duration = Duration::from_secs(5);

/// A place in a shard's history that this router had applied: a read that begins
/// afterwards, on a node of that history, has all up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The history.
    pub generation: Generation,
    /// The watermark.
    pub at: Lsn,
}

/// One history of a shard, and what was heard of it.
#[derive(Debug)]
pub struct View {
    /// The history.
    pub generation: Generation,
    /// Cells, watermark and lease.
    pub heard: Heard,
}

/// All shards, as far as workers tell of them.
pub struct Coherence {
    /// This run of this router.
    pub run: RouterRun,
    /// Its name, for people.
    pub name: String,
    shards: ArcSwap<HashMap<ShardId, Arc<Followed>>>,
    /// What is said to each worker goes through its own queue.
    workers: stream::Workers,
    barriers: barrier::Waiting,
}

/// One shard.
pub struct Followed {
    /// Its id.
    pub id: ShardId,
    /// The current history; none before a worker told of it.
    view: ArcSwapOption<View>,
    /// When a lease was last wanted, by the boot clock.
    wanted: AtomicU64,
    follow: Mutex<Follow>,
    /// What looks at the primary saw of the slot, while no worker is heard of.
    alone: tokio::sync::Mutex<alone::Alone>,
}

impl Coherence {
    /// Knows no shard, and no worker, yet.
    pub fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            run: RouterRun(uuid::Uuid::new_v4().as_u128()),
            name,
            shards: ArcSwap::default(),
            workers: stream::Workers::default(),
            barriers: barrier::Waiting::default(),
        })
    }

    /// What is known of a shard.
    pub fn shard(&self, id: &ShardId) -> Arc<Followed> {
        if let Some(known) = self.shards.load().get(id) {
            return known.clone();
        }
        let new = Arc::new(Followed {
            id: id.clone(),
            view: ArcSwapOption::empty(),
            wanted: AtomicU64::new(0),
            follow: Mutex::new(Follow::new(id.clone())),
            alone: tokio::sync::Mutex::default(),
        });
        self.shards.rcu(|shards| {
            let mut shards = HashMap::clone(shards);
            shards.entry(id.clone()).or_insert_with(|| new.clone());
            shards
        });
        self.shards.load().get(id).cloned().unwrap_or(new)
    }

    /// All shards that were asked for or heard of.
    pub fn all(&self) -> Vec<Arc<Followed>> {
        self.shards.load().values().cloned().collect()
    }

    /// Times that a lease ended while it was wanted, of the shards that are known.
    pub fn leases_lost(&self) -> u64 {
        let shards = self.all();
        shards
            .iter()
            .map(|shard| shard.follow().leases_lost())
            .sum()
    }

    /// Forgets shards that no longer are. Not those that a worker claims: it may
    /// have heard of them before this router has, and says so but once.
    pub fn retain(&self, keep: impl Fn(&ShardId) -> bool) {
        let kept = |id: &ShardId, shard: &Followed| keep(id) || shard.follow().is_claimed();
        if self.shards.load().iter().all(|(id, shard)| kept(id, shard)) {
            return;
        }
        self.shards.rcu(|shards| {
            let kept = shards.iter().filter(|(id, shard)| kept(id, shard));
            kept.map(|(id, shard)| (id.clone(), shard.clone()))
                .collect::<HashMap<_, _>>()
        });
    }

    /// The current history of a shard, whose lease is kept alive from now on: it
    /// has cached traffic.
    pub fn wanted(&self, shard: &Followed, now: Boot) -> Option<Arc<View>> {
        let before = shard.wanted.swap(now.nanos(), Ordering::Relaxed);
        if now.since(Boot::from_nanos(before)) > DEMAND {
            self.workers.wake.notify_one();
        }
        shard.view.load_full()
    }
}

impl Followed {
    /// The current history, without asking for a lease.
    pub fn view(&self) -> Option<Arc<View>> {
        self.view.load_full()
    }

    /// Where this router is in the shard's history.
    pub fn place(&self) -> Option<Place> {
        let view = self.view()?;
        Some(Place {
            generation: view.generation,
            at: view.heard.watermark(),
        })
    }

    /// A worker tells of the shard's changes.
    pub fn is_heard(&self) -> bool {
        self.follow().source().is_some()
    }

    /// Somebody has asked for a lease of late.
    pub fn is_wanted(&self, now: Boot) -> bool {
        let last = self.wanted.load(Ordering::Relaxed);
        last != 0 && now.since(Boot::from_nanos(last)) <= DEMAND
    }

    fn follow(&self) -> MutexGuard<'_, Follow> {
        self.follow.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
impl Coherence {
    /// A shard whose history is known, as if a worker had told of it.
    pub(crate) fn heard_for_test(
        &self,
        shard: &ShardId,
        generation: Generation,
        watermark: Lsn,
    ) -> Arc<View> {
        let view = Arc::new(View {
            generation,
            heard: Heard::begin(tenancy::changes::CELLS, watermark),
        });
        self.shard(shard).view.store(Some(view.clone()));
        view
    }
}

#[cfg(test)]
mod tests {
    use super::follow::Connection;
    use super::*;

    #[test]
    fn shards_that_are_gone_are_forgotten_once_no_worker_claims_them() {
        let coherence = Coherence::new("router-1".into());
        let ids = || {
            let mut ids: Vec<_> = coherence.all().iter().map(|s| s.id.to_string()).collect();
            ids.sort();
            ids.join(" ")
        };
        let [kept, gone, claimed] = ["s1", "s2", "s3"].map(|id| coherence.shard(&id.into()));
        let generation = Generation {
            system: 7,
            timeline: 1,
            incarnation: 1,
        };
        let worker = Connection(1);
        claimed
            .follow()
            .captures(worker, generation, Boot::from_nanos(1));
        coherence.retain(|id| *id == kept.id);
        assert_eq!(ids(), "s1 s3", "{} is gone", gone.id);
        claimed.follow().gone(worker, Boot::from_nanos(2));
        coherence.retain(|id| *id == kept.id);
        assert_eq!(ids(), "s1");
        assert!(Arc::ptr_eq(&coherence.shard(&"s1".into()), &kept));
    }
}
