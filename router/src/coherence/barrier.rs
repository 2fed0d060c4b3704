//! Writes that wait until every router sees them (DESIGN.md §6, rule 8).

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tenancy::changes::{FromRouter, Lsn};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::alone::Look;
use super::follow::Connection;
use super::{Coherence, Followed, HOLDING};
use crate::token::Generation;

/// A write that was committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// The log that it is in.
    pub log: Generation,
    /// A place behind the commit, where the node said so.
    pub lsn: Option<Lsn>,
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
    /// Nobody could have granted one.
    NoLeases,
}

/// Barriers that were asked for and not answered.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    next: AtomicU64,
    asked: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Coherence {
    /// Waits until no router can answer from its cache without the write: for a
    /// worker's word, and at most `D⁺` from when COMMIT returned. Where no worker
    /// is heard of, `look` asks the primary whether one could have granted leases.
    pub async fn visible_everywhere<F>(
        &self,
        shard: &Followed,
        write: Committed,
        look: impl Fn() -> F,
    ) -> Waited
    where
        F: Future<Output = Option<Look>>,
    {
        let ended = sleep_until(write.at + HOLDING);
        let source = shard.follow().source();
        let proved = async {
            match (source, write.lsn) {
                (Some(connection), Some(lsn)) => {
                    self.word_of(connection, shard, write.log, lsn).await;
                    Waited::Confirmed
                }
                (None, _) => {
                    shard.nobody_could(&write, look).await;
                    Waited::NoLeases
                }
                (Some(_), None) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            waited = proved => waited,
            () = ended => Waited::LeasesEnded,
        }
    }

    /// Returns once the worker has said that every router applied the write.
    async fn word_of(&self, worker: Connection, shard: &Followed, log: Generation, lsn: Lsn) {
        let (asked, answer) = self.barriers.ask();
        let barrier = FromRouter::Barrier {
            shard: shard.id.clone(),
            id: asked.id,
            system: log.system,
            timeline: log.timeline,
            lsn,
        };
        self.workers.say(worker, barrier);
        if answer.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Followed {
    /// Returns once it is proved that no lease lacks the write; see
    /// [`super::alone`]. One look serves all writes that were committed before it.
    async fn nobody_could<F>(&self, write: &Committed, look: impl Fn() -> F)
    where
        F: Future<Output = Option<Look>>,
    {
        let mut alone = self.alone.lock().await;
        if !alone.has_looked_since(write.at)
            && let Some(seen) = look().await
        {
            alone.saw(seen);
        }
        let free_from = alone.free_from(write.log, write.at);
        drop(alone);
        match free_from {
            Some(free_from) => sleep_until(free_from).await,
            None => std::future::pending().await,
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
