//! Change capture (DESIGN.md §6, rules 1 to 4 and 8): one worker per shard reads
//! its log from one slot and tells routers, in commit order, what has changed.
//!
//! ```text
//!                 slot is free                      slot is lost, or another generation
//!   searching ──────────────────▶ capturing ◀────────────────────────────── creating
//!       │  ▲                          │  connection, primary or slot lost       ▲
//!       │  └──────────────────────────┘                                         │
//!       │ slot is another worker's        no slot for this server and timeline  │
//!       └─▶ standing by ──────────────────────────────────────────────────────▶─┘
//! ```
//!
//! Nothing of it is kept by the worker: generation and slot are on the shard, the
//! rest may be lost, and costs cached answers for a moment. Several workers may
//! run; the slot itself admits one.
//!
//! What is decided is pure and has no clock: `decode`, `visible`, `publish`,
//! `lease`, `barrier`. `slot` and `follow` talk to Postgres, `stream` to routers,
//! `shard` is what they share.

mod barrier;
pub(crate) mod decode;
mod follow;
mod lease;
mod listener;
mod metric;
mod outlet;
mod publish;
mod shard;
pub(crate) mod slot;
mod stream;
mod visible;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tenancy::chain;
use tenancy::changes::Lsn;
use tenancy::control::Control;
use tenancy::id::ShardId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::listener::RouterListener;
pub use self::metric::describe as describe_metrics;
use self::outlet::Outlets;
pub use self::shard::{Condition, SlotSize, Status};
pub(crate) use self::stream::upgrade;
use crate::reconcile;
use crate::shard::{Address, Logins};

/// One router's stream, by a number that is not used again.
type Connection = u64;

/// How often the control database is asked which shards and nodes there are.
const LOOK: Duration = Duration::from_secs(1);

/// Between two looks whether a position is visible everywhere.
const VISIBLE_LOOK: Duration = Duration::from_millis(1);

/// What this worker captures, or would.
pub struct Capture {
    shards: RwLock<BTreeMap<ShardId, Arc<shard::Shard>>>,
    outlets: Arc<Outlets>,
    secret: Option<String>,
    stop: CancellationToken,
}

/// Where a shard's nodes are.
#[derive(Clone, Debug, Default)]
struct Nodes {
    addresses: Vec<Address>,
    /// The newest timeline that a primary was seen on.
    timeline: Option<i64>,
}

impl Capture {
    /// `secret` is what routers open the stream with; without one, none is let in.
    pub fn new(secret: Option<String>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            shards: RwLock::default(),
            outlets: Arc::default(),
            secret,
            stop,
        })
    }

    /// Whether routers are let in.
    pub fn is_open(&self) -> bool {
        self.secret.is_some()
    }

    /// Every shard's state, for operators.
    pub fn status(&self) -> Vec<Status> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.values().map(|shard| shard.status()).collect()
    }

    /// What the captures are now, in Prometheus' text format.
    pub fn exposition(&self) -> String {
        metric::exposition(&self.status(), self.outlets.count())
    }

    /// Whether this worker captures a shard's changes.
    pub fn captures(&self, shard: &str) -> bool {
        let shard = self.shard(&ShardId::from(shard));
        shard.is_some_and(|shard| shard.status().condition == Condition::Captures)
    }

    /// Shards whose changes another worker captures.
    pub fn elsewhere(&self) -> Vec<String> {
        let mut all = self.status();
        all.retain(|status| status.condition == Condition::StandsBy);
        let names = all.iter().map(|status| status.shard.as_str().to_owned());
        names.collect()
    }

    /// Captures all shards that are free, until it is told to stop. While the
    /// control database is down, it goes on with those that it knows.
    pub async fn run(self: Arc<Self>, control: Control, logins: Logins, worker: String) {
        let tasks = TaskTracker::new();
        let mut running: BTreeMap<ShardId, (watch::Sender<Nodes>, CancellationToken)> =
            BTreeMap::new();
        loop {
            match control.shards().await {
                Ok(found) => {
                    running.retain(|id, (_, stop)| {
                        let kept = found.iter().any(|info| info.id == id.as_str());
                        if !kept {
                            stop.cancel();
                            self.write().remove(id);
                        }
                        kept
                    });
                    for info in found.iter().filter(|info| info.state != "preparing") {
                        let id = ShardId::from(info.id.as_str());
                        let primaries = info.nodes.iter().filter(|node| {
                            node.role.as_deref() == Some("primary") && node.error.is_none()
                        });
                        let nodes = Nodes {
                            addresses: reconcile::addresses(info),
                            timeline: primaries
                                .filter_map(|node| node.timeline.map(i64::from))
                                .max(),
                        };
                        let (sender, _) = running.entry(id.clone()).or_insert_with(|| {
                            let shard =
                                Arc::new(shard::Shard::new(id.clone(), self.outlets.clone()));
                            self.write().insert(id, shard.clone());
                            let (sender, nodes) = watch::channel(nodes.clone());
                            let stop = self.stop.child_token();
                            tasks.spawn(follow::run(
                                shard,
                                nodes,
                                logins.clone(),
                                worker.clone(),
                                stop.clone(),
                            ));
                            (sender, stop)
                        });
                        sender.send_replace(nodes);
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %chain(&error), "shards can't be read");
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Waits until no router answers any longer from what it knew of a shard
    /// before this position (rule 11). False at once where this worker does not
    /// capture that server's changes; the caller bounds it.
    pub async fn wait_visible(&self, shard: &str, server: (u64, u32), lsn: u64) -> bool {
        let Some(shard) = self.shard(&ShardId::from(shard)) else {
            return false;
        };
        loop {
            match shard.is_visible(server, Lsn(lsn)) {
                None => return false,
                Some(true) => return true,
                Some(false) => tokio::time::sleep(VISIBLE_LOOK).await,
            }
        }
    }

    fn shard(&self, id: &ShardId) -> Option<Arc<shard::Shard>> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.get(id).cloned()
    }

    fn all(&self) -> Vec<Arc<shard::Shard>> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.values().cloned().collect()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ShardId, Arc<shard::Shard>>> {
        self.shards.write().unwrap_or_else(PoisonError::into_inner)
    }
}
