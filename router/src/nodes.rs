//! What this router sees of a shard's nodes, several times a second: role,
//! system identifier, timeline and position. Who is primary is observed, never
//! configured: the nodes say it, and the highest timeline decides between two
//! that do (DESIGN.md §12: the HA manager chooses, a stale primary is refused).

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, NoTls};

use crate::pool::NodeAddress;

/// How often a node is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Longest wait for its answer; a frozen or cut off node is out after it.
pub const ANSWER_MAX: Duration = Duration::from_millis(800);

/// A shard's node as the control database names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, e.g. `s1-primary`.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: NodeAddress,
}

/// What a node last said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Takes writes: it is not in recovery.
    pub primary: bool,
    /// System identifier: the same on all nodes of a shard.
    pub system: u64,
    /// The timeline it writes, or receives.
    pub timeline: u32,
    /// Written so far on a primary, replayed so far on a standby; bytes of WAL.
    pub lsn: u64,
    /// When it was asked, so what it said is at least as new.
    pub asked: Instant,
}

/// A node and what was last seen of it.
pub struct Watched {
    /// The node.
    pub node: Node,
    seen: ArcSwap<Result<Sighting, String>>,
    look: Notify,
}

impl Watched {
    /// Not seen yet.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            seen: ArcSwap::from_pointee(Err("not seen yet".into())),
            look: Notify::new(),
        }
    }

    /// What was last seen, or why nothing was.
    pub fn seen(&self) -> Arc<Result<Sighting, String>> {
        self.seen.load_full()
    }

    /// Looks at once: a request found that something is wrong with the node.
    pub fn look_now(&self) {
        self.look.notify_one();
    }

    /// Looks at the node for ever, and calls `changed` after each look.
    pub async fn watch(&self, config: &tokio_postgres::Config, changed: impl Fn()) {
        let mut client = None;
        loop {
            let asked = Instant::now();
            let seen = match timeout(ANSWER_MAX, self.ask(config, &mut client)).await {
                Ok(Ok((primary, system, timeline, lsn))) => Ok(Sighting {
                    primary,
                    system,
                    timeline,
                    lsn,
                    asked,
                }),
                Ok(Err(error)) => Err(tenancy::chain(&error)),
                Err(_) => Err(format!("no answer within {ANSWER_MAX:?}")),
            };
            if seen.is_err() {
                client = None;
            }
            self.seen.store(Arc::new(seen));
            changed();
            let _ = timeout(LOOK, self.look.notified()).await;
        }
    }

    async fn ask(
        &self,
        config: &tokio_postgres::Config,
        client: &mut Option<Client>,
    ) -> Result<(bool, u64, u32, u64), tokio_postgres::Error> {
        let connected = match client.take() {
            Some(client) => client,
            None => {
                let mut config = config.clone();
                let address = &self.node.address;
                config.host(&*address.host).port(address.port);
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(connection);
                client
            }
        };
        let row = connected.query_one(QUESTION, &[]).await?;
        let number = |column| row.get::<_, &str>(column).parse().unwrap_or(0);
        let answer = (
            row.get("is_primary"),
            number("system_id"),
            row.get::<_, i32>("timeline").cast_unsigned(),
            number("lsn"),
        );
        *client = Some(connected);
        Ok(answer)
    }
}

/// See schema/shard/005_node.sql.
const QUESTION: &str = "select is_primary, system_id, timeline, lsn from ringfence.node()";

/// The highest timeline ever seen of a shard, by its system identifier: a
/// primary below it was replaced, and what it takes would be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    system: u64,
    timeline: u32,
}

/// Which of a shard's nodes is its primary, and the new floor.
///
/// A shard restored under another system identifier is followed once none of
/// the nodes that answer has the old one.
pub fn elect(seen: &[Option<Sighting>], floor: Floor) -> (Option<usize>, Floor) {
    let answering = || {
        let numbered = seen.iter().enumerate();
        numbered.filter_map(|(index, seen)| seen.map(|seen| (index, seen)))
    };
    let known = answering().any(|(_, seen)| seen.system == floor.system);
    let floor = match answering().find(|(_, seen)| seen.primary) {
        Some((_, other)) if !known => Floor {
            system: other.system,
            timeline: 0,
        },
        _ => floor,
    };
    let own = || answering().filter(|(_, seen)| seen.system == floor.system);
    let timeline = own()
        .map(|(_, seen)| seen.timeline)
        .fold(floor.timeline, u32::max);
    let primary = own().find(|(_, seen)| seen.primary && seen.timeline == timeline);
    (primary.map(|(index, _)| index), Floor { timeline, ..floor })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(primary: bool, system: u64, timeline: u32) -> Option<Sighting> {
        Some(Sighting {
            primary,
            system,
            timeline,
            lsn: 0,
            asked: Instant::now(),
        })
    }

    #[test]
    fn the_primary_of_the_highest_timeline_is_followed() {
        let first = [seen(true, 7, 1), seen(false, 7, 1)];
        let (primary, floor) = elect(&first, Floor::default());
        assert_eq!(primary, Some(0));
        let failed_over = [None, seen(true, 7, 2)];
        let (primary, floor) = elect(&failed_over, floor);
        assert_eq!(primary, Some(1));
        // The old one returns, first beside the new one, then without it.
        let both = [seen(true, 7, 1), seen(true, 7, 2)];
        assert_eq!(elect(&both, floor), (Some(1), floor));
        let only_the_old = [seen(true, 7, 1), None];
        assert_eq!(elect(&only_the_old, floor), (None, floor));
    }

    #[test]
    fn a_standby_that_follows_a_newer_primary_condemns_the_older_one() {
        let (_, floor) = elect(&[seen(true, 7, 1), None, None], Floor::default());
        let seen = [seen(true, 7, 1), None, seen(false, 7, 2)];
        assert_eq!(elect(&seen, floor).0, None);
    }

    #[test]
    fn another_system_counts_once_none_of_the_old_one_answers() {
        let (_, floor) = elect(&[seen(true, 7, 3), None], Floor::default());
        let beside = [seen(false, 7, 3), seen(true, 8, 1)];
        assert_eq!(elect(&beside, floor).0, None);
        let restored = [None, seen(true, 8, 1)];
        assert_eq!(elect(&restored, floor).0, Some(1));
    }
}
