//! Rule 8, the worker's half: when a write is visible through every router.
//! Pure: time is an argument.

use std::time::{Duration, Instant};

use tenancy::changes::{HOLDING, Lsn};

use super::Connection;

/// Barriers that wait at most; a further one is not answered.
const WAITING_MAX: usize = 65_536;
/// Its router has given up by then.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// Barriers that wait, in order of their coming.
#[derive(Default)]
pub(super) struct Barriers {
    waiting: Vec<Barrier>,
}

struct Barrier {
    connection: Connection,
    id: u64,
    lsn: Lsn,
    came: Instant,
}

/// What a shard's worker knows now.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Up to where it has itself published.
    pub(super) published: Lsn,
    /// The watermark that all routers have reached that it counts; none: it
    /// counts no router.
    pub(super) slowest: Option<Lsn>,
    /// When it took its slot: leases given by an earlier holder last for
    /// [`HOLDING`] from then at most.
    pub(super) since: Instant,
}

/// A barrier that is done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) connection: Connection,
    pub(super) id: u64,
    pub(super) waited: Duration,
}

impl Barriers {
    /// A barrier came.
    pub(super) fn insert(&mut self, connection: Connection, id: u64, lsn: Lsn, now: Instant) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(Barrier {
                connection,
                id,
                lsn,
                came: now,
            });
        }
    }

    /// Takes out those that are done, and forgets those that came too long ago.
    pub(super) fn done(&mut self, view: View, now: Instant) -> Vec<Done> {
        let settled = now >= view.since + HOLDING;
        let mut done = Vec::new();
        self.waiting.retain(|barrier| {
            let seen = view.slowest.is_none_or(|slowest| slowest >= barrier.lsn);
            if settled && view.published >= barrier.lsn && seen {
                done.push(Done {
                    connection: barrier.connection,
                    id: barrier.id,
                    waited: now.saturating_duration_since(barrier.came),
                });
                return false;
            }
            now < barrier.came + FORGOTTEN
        });
        done
    }

    /// The highest position that one waits for, and when the oldest came.
    pub(super) fn wanted(&self) -> Option<(Lsn, Instant)> {
        let highest = self.waiting.iter().map(|barrier| barrier.lsn).max()?;
        Some((highest, self.waiting.first()?.came))
    }

    /// Whether any waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(done: &[Done]) -> Vec<u64> {
        done.iter().map(|done| done.id).collect()
    }

    #[test]
    fn a_write_is_seen_when_it_is_published_and_every_holder_has_applied_it() {
        let (mut barriers, start) = (Barriers::default(), Instant::now());
        let now = start + HOLDING;
        let view = |published, slowest: Option<u64>| View {
            published: Lsn(published),
            slowest: slowest.map(Lsn),
            since: start,
        };
        barriers.insert(1, 1, Lsn(10), now);
        barriers.insert(1, 2, Lsn(20), now);
        barriers.insert(1, 3, Lsn(30), now);
        assert!(ids(&barriers.done(view(9, None), now)).is_empty());
        assert_eq!(ids(&barriers.done(view(25, Some(15)), now)), [1]);
        assert_eq!(barriers.wanted(), Some((Lsn(30), now)));
        assert_eq!(ids(&barriers.done(view(25, None), now)), [2]);
        assert_eq!(ids(&barriers.done(view(30, Some(30)), now)), [3]);
        assert!(barriers.is_empty());
    }

    #[test]
    fn a_worker_that_has_just_taken_the_slot_vouches_for_nothing() {
        let (mut barriers, since) = (Barriers::default(), Instant::now());
        let view = View {
            published: Lsn(10),
            slowest: None,
            since,
        };
        barriers.insert(1, 1, Lsn(10), since);
        let almost = since + HOLDING - Duration::from_millis(1);
        assert!(ids(&barriers.done(view, almost)).is_empty());
        assert_eq!(ids(&barriers.done(view, since + HOLDING)), [1]);
    }

    #[test]
    fn what_waits_too_long_is_forgotten() {
        let (mut barriers, since) = (Barriers::default(), Instant::now());
        let view = View {
            published: Lsn(1),
            slowest: None,
            since,
        };
        barriers.insert(1, 1, Lsn(10), since);
        assert!(ids(&barriers.done(view, since + FORGOTTEN)).is_empty());
        assert!(barriers.is_empty());
    }
}
