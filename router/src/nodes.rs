//! What this router sees of a shard's nodes, several times a second: role,
//! system identifier, timeline and position. Who is primary is observed, never
//! configured: the nodes say it, and the highest timeline decides between two
//! that do (DESIGN.md §12: the HA manager chooses, a stale primary is refused).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tenancy::timelines::Timelines;
use tenancy::tls::Tls;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::pool::{Identity, NodeAddress};
use crate::timeline::Ancestors;
use crate::token::Generation;

/// How often a node is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Longest wait for its answer; a frozen or cut off node is out after it.
pub const ANSWER_MAX: Duration = Duration::from_millis(800);
/// A replica whose answer takes longer gets no reads until it comes: others can
/// answer them, so there is no reason to be patient.
const LATE: Duration = Duration::from_millis(500);
/// What a replica said counts for so long: the pause, a late answer, and slack.
const COUNTS: Duration = Duration::from_millis(900);

/// A shard's node as the control database names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, e.g. `s1-primary`.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: NodeAddress,
}

/// What a node last said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Who it is.
    pub identity: Identity,
    /// Written so far on a primary, replayed so far on a standby; bytes of WAL.
    pub lsn: u64,
    /// When it was asked, so what it said is at least as new.
    pub asked: Instant,
    /// Of a primary: the timelines that its own descends from.
    pub ancestors: Arc<Ancestors>,
}

/// A node and what was last seen of it.
pub struct Watched {
    /// The node.
    pub node: Node,
    /// Keeps requests away from a node that fails them.
    pub breaker: Breaker,
    seen: ArcSwap<Result<Sighting, String>>,
    stay: Mutex<Stay>,
    look: Notify,
    reads: AtomicUsize,
}

/// The time for which a node is one and the same, and answers.
#[derive(Debug, Default)]
struct Stay {
    identity: Option<Identity>,
    over: CancellationToken,
}

/// Counts a read at its node for as long as it lives.
pub struct ReadAt<'a>(&'a Watched);

impl Drop for ReadAt<'_> {
    fn drop(&mut self) {
        self.0.reads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watched {
    /// Not seen yet.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            breaker: Breaker::default(),
            seen: ArcSwap::from_pointee(Err("not seen yet".into())),
            stay: Mutex::default(),
            look: Notify::new(),
            reads: AtomicUsize::new(0),
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

    /// Ends when the node answers no longer, or is another than `identity`; none
    /// where that is so already.
    pub fn gone(&self, identity: Identity) -> Option<CancellationToken> {
        let stay = self.stay.lock().unwrap_or_else(|p| p.into_inner());
        (stay.identity == Some(identity)).then(|| stay.over.clone())
    }

    /// Reads in flight there.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// Counts one more.
    pub fn begin_read(&self) -> ReadAt<'_> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        ReadAt(self)
    }

    /// Looks at the node for ever, and calls `changed` after each look.
    pub async fn watch(&self, config: &tokio_postgres::Config, tls: &Tls, changed: impl Fn()) {
        let login = (config, tls);
        let mut link = None;
        loop {
            let asked = Instant::now();
            let look = self.look(login, &mut link, asked, &changed);
            let seen = match timeout(ANSWER_MAX, look).await {
                Ok(Ok(sighting)) => Ok(sighting),
                Ok(Err(error)) => Err(tenancy::chain(&error)),
                Err(_) => Err(format!("no answer within {ANSWER_MAX:?}")),
            };
            if seen.is_err() {
                link = None;
            }
            self.stays(seen.as_ref().ok().map(|seen| seen.identity));
            self.seen.store(Arc::new(seen));
            changed();
            let _ = timeout(LOOK, self.look.notified()).await;
        }
    }

    /// One look. If the answer is late, nothing is known of the node meanwhile,
    /// unless it is a primary: it has the whole of the time.
    async fn look(
        &self,
        login: (&tokio_postgres::Config, &Tls),
        link: &mut Option<Link>,
        asked: Instant,
        changed: &impl Fn(),
    ) -> Result<Sighting, tokio_postgres::Error> {
        let mut ask = std::pin::pin!(self.ask(login, link, asked));
        if let Ok(answered) = timeout(LATE, &mut ask).await {
            return answered;
        }
        if matches!(&**self.seen.load(), Ok(seen) if !seen.identity.primary) {
            self.stays(None);
            let late = format!("no answer within {LATE:?}");
            self.seen.store(Arc::new(Err(late)));
            changed();
        }
        ask.await
    }

    async fn ask(
        &self,
        login: (&tokio_postgres::Config, &Tls),
        link: &mut Option<Link>,
        asked: Instant,
    ) -> Result<Sighting, tokio_postgres::Error> {
        let mut connected = match link.take() {
            Some(link) => link,
            None => {
                let (config, tls) = login;
                let mut config = config.clone();
                let address = &self.node.address;
                config.host(&*address.host).port(address.port);
                let (client, connection) = tls.connect(&config).await?;
                tokio::spawn(connection);
                Link {
                    question: client.prepare(QUESTION).await?,
                    client,
                    ancestors: Arc::default(),
                    timeline: 0,
                }
            }
        };
        let row = connected.client.query_one(&connected.question, &[]).await?;
        let number = |column| row.get::<_, &str>(column).parse().unwrap_or(0);
        let identity = Identity {
            generation: Generation {
                system: number("system_id"),
                timeline: row.get::<_, i32>("timeline").cast_unsigned(),
            },
            primary: row.get("is_primary"),
        };
        connected.read_ancestors(&identity).await?;
        let ancestors = connected.ancestors.clone();
        *link = Some(connected);
        Ok(Sighting {
            identity,
            lsn: number("lsn"),
            asked,
            ancestors,
        })
    }

    /// Who the node is from now on; ends the stay of who it was.
    fn stays(&self, identity: Option<Identity>) {
        let mut stay = self.stay.lock().unwrap_or_else(|p| p.into_inner());
        if stay.identity != identity {
            stay.over.cancel();
            if identity.is_some() {
                // It has just been proven to answer.
                self.breaker.succeeded();
            }
            *stay = Stay {
                identity,
                over: CancellationToken::new(),
            };
        }
    }
}

/// A watcher's own connection to its node.
struct Link {
    client: Client,
    question: tokio_postgres::Statement,
    /// As read on `timeline`.
    ancestors: Arc<Ancestors>,
    timeline: u32,
}

impl Link {
    /// Reads a new primary's ancestors, once a timeline.
    async fn read_ancestors(&mut self, identity: &Identity) -> Result<(), tokio_postgres::Error> {
        let timeline = identity.generation.timeline;
        if !identity.primary || timeline <= 1 || timeline == self.timeline {
            return Ok(());
        }
        let read = self.client.query_one("select ringfence.timelines()", &[]);
        self.ancestors = match read.await {
            Ok(row) => Arc::new(Ancestors::parse(row.get(0))),
            // A shard that was prepared by an older version.
            Err(error) if error.as_db_error().is_some() => Arc::default(),
            Err(error) => return Err(error),
        };
        self.timeline = timeline;
        Ok(())
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

/// Which of a shard's nodes is its primary, and the new floor; `known` are timelines
/// that others have seen.
///
/// A shard restored under another system identifier is followed once none of
/// the nodes that answer has the old one.
pub fn elect(seen: &[Option<Sighting>], floor: Floor, known: &Timelines) -> (Option<usize>, Floor) {
    let answering = || {
        let numbered = seen.iter().enumerate();
        numbered.filter_map(|(index, seen)| Some((index, seen.as_ref()?.identity)))
    };
    let answers = answering().any(|(_, seen)| seen.generation.system == floor.system);
    let floor = match answering().find(|(_, seen)| seen.primary) {
        Some((_, other)) if !answers => Floor {
            system: other.generation.system,
            timeline: 0,
        },
        _ => floor,
    };
    let own = || answering().filter(|(_, seen)| seen.generation.system == floor.system);
    let told = known.newest(&floor.system.to_string()).unsigned_abs();
    let timeline = own()
        .map(|(_, seen)| seen.generation.timeline)
        .fold(floor.timeline.max(told), u32::max);
    let primary = own().find(|(_, seen)| seen.primary && seen.generation.timeline == timeline);
    (primary.map(|(index, _)| index), Floor { timeline, ..floor })
}

/// Up to when the primary's log is known: that which was committed before it
/// was asked is at or before the LSN that it answered.
#[derive(Debug, Default)]
pub struct Positions(std::collections::VecDeque<(Instant, u64)>);

/// Ten seconds of looks, and more where hardly anything is written.
const POSITIONS_MAX: usize = 50;

impl Positions {
    /// The primary said that it is at `lsn` when `asked`.
    pub fn saw(&mut self, asked: Instant, lsn: u64) {
        match self.0.back_mut() {
            Some((last, _)) if asked <= *last => return,
            // Nothing was written since: the first of the two says less.
            Some((last, same)) if *same == lsn => *last = asked,
            _ => self.0.push_back((asked, lsn)),
        }
        if self.0.len() > POSITIONS_MAX {
            self.0.pop_front();
        }
    }

    /// The latest time for which it is certain that all that was committed
    /// before it is at or before `lsn`.
    pub fn complete_until(&self, lsn: u64) -> Option<Instant> {
        let mut newest_first = self.0.iter().rev();
        let passed = newest_first.find(|(_, at)| *at <= lsn);
        passed.map(|(asked, _)| *asked)
    }
}

/// A standby of the primary's own log, as it was last seen.
pub struct Replica {
    /// The node.
    pub watched: Arc<Watched>,
    /// Who it was.
    pub identity: Identity,
    /// Replayed up to here.
    pub lsn: u64,
    /// It has all that was committed before.
    pub since: Option<Instant>,
    asked: Instant,
}

impl Replica {
    /// It may be asked for what needs `lsn` and `since`.
    pub fn serves(&self, lsn: u64, since: Option<Instant>, now: Instant) -> bool {
        let complete = match since {
            Some(since) => self.since.is_some_and(|until| until >= since),
            None => true,
        };
        let seen = now.saturating_duration_since(self.asked) <= COUNTS;
        seen && complete && self.lsn >= lsn
    }
}

/// The standbys among a shard's nodes that follow the primary's generation.
pub fn replicas(
    nodes: &[Arc<Watched>],
    seen: &[Option<Sighting>],
    generation: Generation,
    positions: &Positions,
) -> Vec<Replica> {
    let pairs = nodes.iter().zip(seen);
    let replicas = pairs.filter_map(|(watched, seen)| {
        let seen = seen.as_ref()?;
        let follows = !seen.identity.primary && seen.identity.generation == generation;
        follows.then(|| Replica {
            watched: watched.clone(),
            identity: seen.identity,
            lsn: seen.lsn,
            since: positions.complete_until(seen.lsn),
            asked: seen.asked,
        })
    });
    replicas.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(primary: bool, system: u64, timeline: u32) -> Option<Sighting> {
        let generation = Generation { system, timeline };
        Some(Sighting {
            identity: Identity {
                generation,
                primary,
            },
            lsn: 0,
            asked: Instant::now(),
            ancestors: Arc::default(),
        })
    }

    #[test]
    fn the_primary_of_the_highest_timeline_is_followed() {
        let first = [seen(true, 7, 1), seen(false, 7, 1)];
        let none = Timelines::default();
        let (primary, floor) = elect(&first, Floor::default(), &none);
        assert_eq!(primary, Some(0));
        let failed_over = [None, seen(true, 7, 2)];
        let (primary, floor) = elect(&failed_over, floor, &none);
        assert_eq!(primary, Some(1));
        // The old one returns, first beside the new one, then without it.
        let both = [seen(true, 7, 1), seen(true, 7, 2)];
        assert_eq!(elect(&both, floor, &none), (Some(1), floor));
        let only_the_old = [seen(true, 7, 1), None];
        assert_eq!(elect(&only_the_old, floor, &none), (None, floor));
        // Nor is it followed by who has seen nothing else yet, and was told.
        let told = Timelines::of([(Some("7"), Some(2)), (Some("7"), Some(1))]);
        assert_eq!(elect(&only_the_old, Floor::default(), &told).0, None);
        assert_eq!(elect(&both, Floor::default(), &told).0, Some(1));
    }

    #[test]
    fn a_standby_that_follows_a_newer_primary_condemns_the_older_one() {
        let none = Timelines::default();
        let (_, floor) = elect(&[seen(true, 7, 1), None, None], Floor::default(), &none);
        let seen = [seen(true, 7, 1), None, seen(false, 7, 2)];
        assert_eq!(elect(&seen, floor, &none).0, None);
    }

    #[test]
    fn another_system_counts_once_none_of_the_old_one_answers() {
        let told = Timelines::of([(Some("7"), Some(3))]);
        let (_, floor) = elect(&[seen(true, 7, 3), None], Floor::default(), &told);
        let beside = [seen(false, 7, 3), seen(true, 8, 1)];
        assert_eq!(elect(&beside, floor, &told).0, None);
        let restored = [None, seen(true, 8, 1)];
        assert_eq!(elect(&restored, floor, &told).0, Some(1));
    }

    #[test]
    fn what_a_replica_has_for_sure_is_told_by_the_primarys_positions() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut positions = Positions::default();
        assert_eq!(positions.complete_until(100), None);
        positions.saw(at(0), 100);
        positions.saw(at(200), 150);
        positions.saw(at(400), 150);
        positions.saw(at(600), 170);
        // An answer that was overtaken.
        positions.saw(at(300), 999);
        assert_eq!(positions.complete_until(99), None);
        assert_eq!(positions.complete_until(149), Some(at(0)));
        assert_eq!(positions.complete_until(150), Some(at(400)));
        assert_eq!(positions.complete_until(5_000), Some(at(600)));
        for n in 0..1_000 {
            positions.saw(at(1_000 + n), 1_000 + n);
        }
        assert_eq!(positions.0.len(), POSITIONS_MAX);
        assert_eq!(positions.complete_until(500), None, "too long ago to know");
    }

    #[test]
    fn only_standbys_of_the_same_log_are_replicas() {
        let nodes: Vec<_> = (0..5)
            .map(|n| Node {
                name: format!("n{n}").into(),
                address: NodeAddress {
                    host: "h".into(),
                    port: n,
                },
            })
            .map(|node| Arc::new(Watched::new(node)))
            .collect();
        let seen = [
            seen(true, 7, 2),
            seen(false, 7, 2),
            seen(false, 7, 1),
            seen(false, 8, 2),
            None,
        ];
        let generation = Generation {
            system: 7,
            timeline: 2,
        };
        let found = replicas(&nodes, &seen, generation, &Positions::default());
        let names: Vec<_> = found.iter().map(|r| &*r.watched.node.name).collect();
        assert_eq!(names, ["n1"]);
        let now = Instant::now();
        assert!(found[0].serves(0, None, now));
        assert!(!found[0].serves(1, None, now), "not far enough");
        assert!(
            !found[0].serves(0, Some(now), now),
            "nothing is certain yet"
        );
        assert!(
            !found[0].serves(0, None, now + 2 * COUNTS),
            "not heard of for long"
        );
    }
}
