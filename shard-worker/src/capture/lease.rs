//! Rule 4, the worker's half: who may answer from a cache, and the markers that
//! prove to a router that its watermark is current. Pure: time is an argument.

use std::collections::HashMap;
use std::time::Instant;

use tenancy::changes::{HOLDING, Lsn, RouterRun};

use super::Connection;

/// Routers that are known at most; a further one gets no lease.
const ROUTERS_MAX: usize = 10_000;

/// Pings that wait, and routers that are counted.
#[derive(Default)]
pub(super) struct Leases {
    /// The newest ping of each connection that no marker has begun after.
    waiting: HashMap<Connection, u64>,
    /// Those that the marker under way answers. A later ping of the connection
    /// takes nothing from them: with markers slower than pings, none would ever
    /// be answered.
    covered: HashMap<Connection, u64>,
    routers: HashMap<RouterRun, Router>,
    /// Number of the next marker.
    next: u64,
    /// One marker at a time serves all who wait.
    under_way: bool,
}

struct Router {
    /// Counted as a holder until then, connected or not.
    until: Instant,
    /// What it has applied.
    applied: Lsn,
}

impl Leases {
    /// A ping came: its router counts from now on (rule 8), and its answer
    /// waits for the next marker. False: there are too many routers.
    pub(super) fn ping(
        &mut self,
        connection: Connection,
        run: RouterRun,
        id: u64,
        now: Instant,
    ) -> bool {
        if self.routers.len() >= ROUTERS_MAX && !self.routers.contains_key(&run) {
            self.routers.retain(|_, router| router.until > now);
            if self.routers.len() >= ROUTERS_MAX {
                return false;
            }
        }
        let until = now + HOLDING;
        let router = self.routers.entry(run).or_insert(Router {
            until,
            applied: Lsn(0),
        });
        router.until = router.until.max(until);
        self.waiting.insert(connection, id);
        true
    }

    /// Whether pings wait for a marker that has not begun.
    pub(super) fn wants_marker(&self) -> bool {
        !self.under_way && !self.waiting.is_empty()
    }

    /// Whether a marker can begin.
    pub(super) fn is_idle(&self) -> bool {
        !self.under_way
    }

    /// A marker begins: it serves all pings that came before, for only a marker
    /// that began after a ping proves anything.
    pub(super) fn begin_marker(&mut self) -> u64 {
        self.under_way = true;
        self.covered.extend(self.waiting.drain());
        self.next += 1;
        self.next - 1
    }

    /// A marker was published: the pings that it answers.
    pub(super) fn marker_published(&mut self, marker: u64) -> Vec<(Connection, u64)> {
        if marker + 1 != self.next {
            return Vec::new();
        }
        self.under_way = false;
        self.covered.drain().collect()
    }

    /// A router's watermark. One that has not pinged holds nothing, but its
    /// watermark is kept for when it does.
    pub(super) fn applied(&mut self, run: RouterRun, lsn: Lsn, now: Instant) {
        if self.routers.len() >= ROUTERS_MAX && !self.routers.contains_key(&run) {
            return;
        }
        let router = self.routers.entry(run).or_insert(Router {
            until: now,
            applied: lsn,
        });
        router.applied = router.applied.max(lsn);
    }

    /// The connection is gone: its pings are not answered. Its router still counts.
    pub(super) fn forget(&mut self, connection: Connection) {
        self.covered.remove(&connection);
        self.waiting.remove(&connection);
    }

    /// The watermark that every counted router has reached; none is counted: none.
    pub(super) fn slowest(&self, now: Instant) -> Option<Lsn> {
        self.holders(now).map(|router| router.applied).min()
    }

    /// How many are counted.
    pub(super) fn count(&self, now: Instant) -> usize {
        self.holders(now).count()
    }

    /// When the next of them stops being counted.
    pub(super) fn next_end(&self, now: Instant) -> Option<Instant> {
        self.holders(now).map(|router| router.until).min()
    }

    fn holders(&self, now: Instant) -> impl Iterator<Item = &Router> {
        self.routers
            .values()
            .filter(move |router| router.until > now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const A: RouterRun = RouterRun(1);
    const B: RouterRun = RouterRun(2);

    #[test]
    fn a_ping_is_answered_by_a_marker_that_began_after_it() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        assert!(!leases.wants_marker());
        leases.ping(1, A, 10, now);
        assert!(leases.wants_marker());
        let first = leases.begin_marker();
        leases.ping(2, B, 20, now);
        assert!(!leases.wants_marker(), "one at a time");
        assert_eq!(leases.marker_published(first), [(1, 10)]);
        assert!(leases.wants_marker());
        let second = leases.begin_marker();
        assert!(leases.marker_published(first).is_empty(), "once");
        assert_eq!(leases.marker_published(second), [(2, 20)]);
        assert!(!leases.wants_marker());
    }

    #[test]
    fn pings_that_come_faster_than_markers_are_answered_all_the_same() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.ping(1, A, 10, now);
        for round in 0..5 {
            let marker = leases.begin_marker();
            // Of those that wait for the next marker the newest is enough.
            leases.ping(1, A, 100 + round, now);
            leases.ping(1, A, 200 + round, now);
            let answered = if round == 0 { 10 } else { 200 + round - 1 };
            assert_eq!(leases.marker_published(marker), [(1, answered)]);
            assert!(leases.wants_marker());
        }
        leases.begin_marker();
        leases.ping(1, A, 300, now);
        leases.forget(1);
        assert!(leases.marker_published(5).is_empty());
        assert!(!leases.wants_marker());
    }

    #[test]
    fn routers_count_from_their_ping_for_the_whole_time() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.applied(A, Lsn(5), now);
        assert_eq!(leases.slowest(now), None, "no ping, no holder");
        leases.ping(1, A, 1, now);
        leases.ping(2, B, 1, now);
        assert_eq!(leases.slowest(now), Some(Lsn(0)), "B has said nothing");
        leases.applied(B, Lsn(7), now);
        leases.applied(B, Lsn(3), now);
        assert_eq!(leases.slowest(now), Some(Lsn(5)));
        // Gone or not, it may hold a lease.
        leases.forget(1);
        let almost = now + HOLDING - Duration::from_millis(1);
        assert_eq!(leases.slowest(almost), Some(Lsn(5)));
        assert_eq!(leases.next_end(almost), Some(now + HOLDING));
        assert_eq!(leases.slowest(now + HOLDING), None);
        assert_eq!(leases.count(now + HOLDING), 0);
    }

    #[test]
    fn strangers_without_end_are_refused() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        for n in 0..ROUTERS_MAX as u128 {
            assert!(leases.ping(n as u64, RouterRun(n), 1, now));
        }
        assert!(!leases.ping(1, RouterRun(u128::MAX), 1, now));
        assert!(leases.ping(1, RouterRun(u128::MAX), 1, now + HOLDING));
    }
}
