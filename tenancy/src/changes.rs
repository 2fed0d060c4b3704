//! What workers and routers tell each other about a shard's changes: the terms
//! of the cache's protocol, and the messages of its stream.
//!
//! Pure: no I/O, no clock. Both sides depend on it and on nothing of each other.
//!
//! The stream is a WebSocket at [`PATH`] on a worker's listener, opened by the
//! router with the fleet's stream secret as bearer token; a frame holds one
//! message. A router keeps one to every live worker:
//!
//! ```text
//! router                                       worker
//!   Hello{router}                        →
//!                                        ←     Captures{shard, generation}      for each of its shards, and later ones
//!   Follow{shard, resume}                →
//!                                        ←     Start{shard, generation, watermark, resumed}
//!                                        ←     Changes{shard, generation, prev, lsn, cells} …
//!   Applied{shard, generation, lsn}      →
//!   Ping{shard, id}                      →
//!                                        ←     Lease{shard, id, generation, lsn}
//!   Barrier{shard, id, system, …, lsn}   →
//!                                        ←     BarrierDone{shard, id}
//!                                        ←     Gone{shard}                      another worker has it, or none
//! ```

mod cell;
mod wire;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::cell::{CELLS, Cell, CellSet, TableHash};
pub use self::wire::{FRAME_MAX, Message, NAME_MAX, PATH, WireError, decode, encode};
use crate::id::ShardId;

/// How long a lease lasts, from when its ping was sent: `D`, the longest that a
/// cached answer may be behind.
pub const LEASE: Duration = Duration::from_millis(250);
/// How long a worker counts a router as the holder of a lease, from when its
/// ping came; and how long a write waits that no worker vouches for: `D⁺`, a
/// lease and the drift of clocks, 1 %, rounded up.
pub const HOLDING: Duration = Duration::from_millis(253);

/// A position in a shard's write-ahead log, as Postgres counts it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl std::str::FromStr for Lsn {
    type Err = std::num::ParseIntError;

    /// Reads Postgres' `16/B374D848`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').unwrap_or(("", text));
        let high = u64::from(u32::from_str_radix(high, 16)?);
        let low = u64::from(u32::from_str_radix(low, 16)?);
        Ok(Self(high << 32 | low))
    }
}

/// One uninterrupted history of a shard's changes. Positions of different
/// generations can't be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The primary's system identifier.
    pub system: u64,
    /// Its timeline.
    pub timeline: u32,
    /// Which of the slots made for this shard; rises with each.
    pub incarnation: u64,
}

impl Generation {
    /// Whether `self` is known to have ended before `other` began. Of two
    /// systems, neither is older: the node watch knows the shard's primary.
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.system == other.system
            && (self.timeline, self.incarnation) < (other.timeline, other.incarnation)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.system, self.timeline, self.incarnation)
    }
}

/// One run of a router's process. A restarted router is another one: the leases
/// of the earlier run count until they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouterRun(pub u128);

/// What a router tells a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRouter {
    /// Always first, once.
    Hello {
        /// Drawn at random at the router's start.
        run: RouterRun,
        /// Its configured name, for people.
        name: String,
    },
    /// Asks for a shard's changes; answered by `Start` or `Gone`.
    Follow {
        /// The shard.
        shard: ShardId,
        /// What it has applied, where it has.
        resume: Option<(Generation, Lsn)>,
    },
    /// Asks for a lease (rule 4); answered by `Lease`, or never.
    Ping {
        /// The shard.
        shard: ShardId,
        /// Repeated in the answer. Of a connection's pings for one shard that one
        /// marker answers, the newest alone is answered.
        id: u64,
    },
    /// Its watermark (rule 8). Sent after each `Start` and each
    /// `Changes` of a shard.
    Applied {
        /// The shard.
        shard: ShardId,
        /// The watermark's generation.
        generation: Generation,
        /// The watermark.
        lsn: Lsn,
    },
    /// Asks to be told when all routers have applied a write (rule 8); answered
    /// by `BarrierDone`, or never: then the write waits for its full time.
    Barrier {
        /// The shard.
        shard: ShardId,
        /// Repeated in the answer.
        id: u64,
        /// System identifier of the node that committed.
        system: u64,
        /// Its timeline at the commit.
        timeline: u32,
        /// A position behind the commit.
        lsn: Lsn,
    },
}

/// What a worker tells a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// This worker captures the shard now. The router may `Follow`.
    Captures {
        /// The shard.
        shard: ShardId,
        /// Its generation.
        generation: Generation,
    },
    /// Begins a shard's changes.
    Start {
        /// The shard.
        shard: ShardId,
        /// Its generation. Another than the router's: all state goes (rule 1).
        generation: Generation,
        /// `prev` of the first `Changes`.
        watermark: Lsn,
        /// Nothing was missed since `resume`; `watermark` is its position.
        /// Else every cell is set to `watermark` (rule 3).
        resumed: bool,
    },
    /// Commits after `prev`, up to and including `lsn`, all visible on the
    /// primary. May stand for several commits, or for none.
    Changes {
        /// The shard.
        shard: ShardId,
        /// Its generation.
        generation: Generation,
        /// The watermark that this follows; another is a gap (rule 3).
        prev: Lsn,
        /// The new watermark; more than `prev`.
        lsn: Lsn,
        /// What they touched.
        cells: CellSet,
    },
    /// The answer to a ping: a lease from when the ping was sent, once the
    /// router's watermark is at `lsn`.
    Lease {
        /// The shard.
        shard: ShardId,
        /// The ping's.
        id: u64,
        /// Its generation.
        generation: Generation,
        /// Behind all that was visible when the ping came.
        lsn: Lsn,
    },
    /// Every router that may answer from its cache has applied the write.
    BarrierDone {
        /// The shard.
        shard: ShardId,
        /// The barrier's.
        id: u64,
    },
    /// This worker does not capture the shard, or does no longer.
    Gone {
        /// The shard.
        shard: ShardId,
    },
}
