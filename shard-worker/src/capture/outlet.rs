//! What waits to be sent to a router: replies, and the names of shards that have
//! news. Changes themselves do not wait here, so that a slow router costs no memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tenancy::changes::FromWorker;
use tenancy::id::ShardId;
use tokio::sync::Notify;

use super::Connection;

/// Replies that wait at most; then the router is cut off.
const REPLIES_MAX: usize = 16_384;
/// Streams at most.
const STREAMS_MAX: usize = 2_000;

/// All routers' streams.
#[derive(Default)]
pub(super) struct Outlets(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: Connection,
    outlets: BTreeMap<Connection, Arc<Outlet>>,
}

/// One router's stream.
pub(super) struct Outlet {
    pub(super) connection: Connection,
    waiting: Mutex<Waiting>,
    news: Notify,
}

/// What is to be sent next.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) replies: VecDeque<FromWorker>,
    pub(super) shards: BTreeSet<ShardId>,
    /// Replies were dropped: the stream must end.
    pub(super) overflown: bool,
}

impl Outlets {
    /// A new stream; none where there are too many.
    pub(super) fn open(&self) -> Option<Arc<Outlet>> {
        let mut open = self.lock();
        if open.outlets.len() >= STREAMS_MAX {
            return None;
        }
        open.last += 1;
        let outlet = Arc::new(Outlet {
            connection: open.last,
            waiting: Mutex::default(),
            news: Notify::new(),
        });
        let connection = outlet.connection;
        open.outlets.insert(connection, outlet.clone());
        Some(outlet)
    }

    /// The stream has ended.
    pub(super) fn close(&self, connection: Connection) {
        self.lock().outlets.remove(&connection);
    }

    /// To every router.
    pub(super) fn announce(&self, message: &FromWorker) {
        for outlet in self.lock().outlets.values() {
            outlet.reply(message.clone());
        }
    }

    /// To one, if it is still there.
    pub(super) fn reply(&self, connection: Connection, message: FromWorker) {
        if let Some(outlet) = self.lock().outlets.get(&connection) {
            outlet.reply(message);
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().outlets.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet {
    /// Queues a reply.
    pub(super) fn reply(&self, message: FromWorker) {
        let mut waiting = self.lock();
        if waiting.replies.len() < REPLIES_MAX {
            waiting.replies.push_back(message);
        } else {
            waiting.overflown = true;
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// The shard has changes behind this router's position.
    pub(super) fn mark(&self, shard: &ShardId) {
        let mut waiting = self.lock();
        if !waiting.shards.contains(shard) {
            waiting.shards.insert(shard.clone());
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// Waits until there is something, and takes it.
    pub(super) async fn take(&self) -> Waiting {
        loop {
            let taken = std::mem::take(&mut *self.lock());
            if taken.overflown || !taken.replies.is_empty() || !taken.shards.is_empty() {
                return taken;
            }
            self.news.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
