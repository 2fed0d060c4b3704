//! Writes that wait until every router sees them (DESIGN.md §6, rule 8).

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tenancy::changes::{FromRouter, Lsn};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::{Coherence, Followed, LEASE_PLUS};

/// A write that was committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// System identifier of the node that committed it.
    pub system: u64,
    /// Its timeline.
    pub timeline: u32,
    /// A place behind the commit.
    pub lsn: Lsn,
    /// When this router had the node's word.
    pub at: Instant,
}

/// How it became visible everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// A worker has seen that every router applied it.
    Confirmed,
    /// Every lease that a router could have held without it has ended.
    LeasesEnded,
}

/// Barriers that were asked for and not answered.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    next: AtomicU64,
    asked: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Coherence {
    /// Waits until no router can answer from its cache without the write: for a
    /// worker's word, and at most `D⁺` from when COMMIT returned.
    pub async fn visible_everywhere(&self, shard: &Followed, write: Committed) -> Waited {
        let ended = sleep_until(write.at + LEASE_PLUS);
        let source = shard.follow().source();
        let Some(connection) = source else {
            ended.await;
            return Waited::LeasesEnded;
        };
        let (asked, answer) = self.barriers.ask();
        let barrier = FromRouter::Barrier {
            shard: shard.id.clone(),
            id: asked.id,
            system: write.system,
            timeline: write.timeline,
            lsn: write.lsn,
        };
        self.workers.say(connection, barrier);
        tokio::select! {
            biased;
            Ok(()) = answer => Waited::Confirmed,
            () = ended => Waited::LeasesEnded,
        }
    }
}

impl Waiting {
    fn ask(&self) -> (Asked<'_>, oneshot::Receiver<()>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, answer) = oneshot::channel();
        let mut asked = self.asked.lock().unwrap_or_else(|p| p.into_inner());
        asked.insert(id, tell);
        (Asked { id, waiting: self }, answer)
    }

    /// A worker has answered.
    pub(super) fn done(&self, id: u64) {
        let mut asked = self.asked.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(tell) = asked.remove(&id) {
            let _ = tell.send(());
        }
    }
}

/// Forgets the question when nobody waits for its answer any longer.
struct Asked<'a> {
    id: u64,
    waiting: &'a Waiting,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut asked = self.waiting.asked.lock().unwrap_or_else(|p| p.into_inner());
        asked.remove(&self.id);
    }
}
