//! What a shard has published, in commit order, and how far back a router can
//! resume. Pure.
//!
//! A router's stream keeps one position; what lies behind it is merged into as
//! few messages as their bound allows, so a slow one costs no memory.

use std::collections::VecDeque;
use std::time::Instant;

use tenancy::changes::{CellSet, Lsn};

/// Changes kept for routers that resume.
const CHANGES_MAX: usize = 32_768;
/// Cells in them.
const CELLS_MAX: usize = 1 << 18;
/// Cells that one message merges; a single commit may have more.
const MERGED_MAX: usize = 2_048;

/// A shard's published changes, the latest of them with what they touched.
pub(super) struct Log {
    /// Everything up to here is published.
    watermark: Lsn,
    /// Everything after this, up to the watermark, is in `changes`.
    start: Lsn,
    changes: VecDeque<Change>,
    cells: usize,
}

struct Change {
    lsn: Lsn,
    cells: CellSet,
    at: Instant,
}

/// What comes behind a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Nothing yet.
    Nothing,
    /// These, and more if `lsn` is not the watermark.
    Changes {
        /// The new position.
        lsn: Lsn,
        /// What was touched on the way.
        cells: CellSet,
    },
    /// It is no longer known (rule 3: the router sets every cell).
    Unknown,
}

impl Log {
    /// Begins where the slot was confirmed.
    pub(super) fn new(start: Lsn) -> Self {
        Self {
            watermark: start,
            start,
            changes: VecDeque::new(),
            cells: 0,
        }
    }

    /// Up to where everything is published.
    pub(super) fn watermark(&self) -> Lsn {
        self.watermark
    }

    /// Publishes a commit, or with no cells a mere position.
    pub(super) fn publish(&mut self, lsn: Lsn, cells: CellSet, at: Instant) {
        if lsn <= self.watermark {
            return;
        }
        self.watermark = lsn;
        if cells.is_empty() {
            return;
        }
        self.cells += weight(&cells);
        self.changes.push_back(Change { lsn, cells, at });
        while self.changes.len() > CHANGES_MAX || self.cells > CELLS_MAX {
            let Some(oldest) = self.changes.pop_front() else {
                break;
            };
            self.cells -= weight(&oldest.cells);
            self.start = oldest.lsn;
        }
    }

    /// The next message for a router whose watermark is `position`. One that is
    /// ahead of this worker heard it from the slot's earlier holder.
    pub(super) fn behind(&self, position: Lsn) -> Behind {
        if position >= self.watermark {
            return Behind::Nothing;
        }
        if position < self.start {
            return Behind::Unknown;
        }
        let first = self.changes.partition_point(|c| c.lsn <= position);
        let mut cells = CellSet::default();
        let mut merged = 0;
        for (n, change) in self.changes.range(first..).enumerate() {
            merged += weight(&change.cells);
            if n > 0 && merged > MERGED_MAX {
                let lsn = self.changes[first + n - 1].lsn;
                return Behind::Changes { lsn, cells };
            }
            cells.merge(&change.cells);
        }
        Behind::Changes {
            lsn: self.watermark,
            cells,
        }
    }

    /// When the change that a router has applied now was published.
    pub(super) fn published_at(&self, lsn: Lsn) -> Option<Instant> {
        let place = self.changes.partition_point(|c| c.lsn < lsn);
        self.changes
            .get(place)
            .filter(|change| change.lsn == lsn)
            .map(|change| change.at)
    }
}

fn weight(cells: &CellSet) -> usize {
    match cells {
        CellSet::Some(cells) => cells.len(),
        CellSet::All => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tenancy::changes::Cell;

    use super::*;

    fn cells(of: &[u16]) -> CellSet {
        let mut set = CellSet::default();
        of.iter().for_each(|cell| set.insert(Cell(*cell)));
        set
    }

    #[test]
    fn a_position_finds_all_that_came_behind_it() {
        let mut log = Log::new(Lsn(10));
        let now = Instant::now();
        assert_eq!(log.behind(Lsn(10)), Behind::Nothing);
        log.publish(Lsn(20), cells(&[1]), now);
        log.publish(Lsn(30), cells(&[2]), now);
        log.publish(Lsn(40), CellSet::default(), now);
        let to_the_end = |of| Behind::Changes {
            lsn: Lsn(40),
            cells: cells(of),
        };
        assert_eq!(log.behind(Lsn(10)), to_the_end(&[1, 2]));
        assert_eq!(log.behind(Lsn(15)), to_the_end(&[1, 2]));
        assert_eq!(log.behind(Lsn(20)), to_the_end(&[2]));
        assert_eq!(log.behind(Lsn(30)), to_the_end(&[]));
        assert_eq!(log.behind(Lsn(40)), Behind::Nothing);
        assert_eq!(log.behind(Lsn(99)), Behind::Nothing);
        assert_eq!(log.behind(Lsn(9)), Behind::Unknown);
        assert_eq!(log.published_at(Lsn(30)), Some(now));
        assert_eq!(log.published_at(Lsn(40)), None);
    }

    #[test]
    fn memory_is_bounded_and_what_was_dropped_is_unknown() {
        let mut log = Log::new(Lsn(0));
        let many: Vec<u16> = (0..4_000).collect();
        for n in 1..=1_000 {
            log.publish(Lsn(n), cells(&many), Instant::now());
        }
        assert!(log.cells <= CELLS_MAX && !log.changes.is_empty());
        assert_eq!(log.behind(Lsn(1)), Behind::Unknown);
        assert!(matches!(log.behind(log.start), Behind::Changes { .. }));
        for n in 1_001..100_000 {
            log.publish(Lsn(n), cells(&[1]), Instant::now());
        }
        assert!(log.changes.len() <= CHANGES_MAX);
    }

    proptest! {
        /// Whatever is merged, a reader that follows misses nothing and sees it
        /// no later than its position says.
        #[test]
        fn a_reader_misses_nothing(
            commits in prop::collection::vec((1_u64..5, prop::collection::vec(any::<u16>(), 0..900)), 1..30),
            reads in prop::collection::vec(any::<bool>(), 30),
        ) {
            let mut log = Log::new(Lsn(100));
            let mut position = Lsn(100);
            // No CellSet: one of too many cells becomes "all", and can't shrink.
            let mut owed = BTreeSet::new();
            for ((step, touched), read) in commits.iter().zip(reads) {
                let lsn = Lsn(log.watermark().0 + step);
                log.publish(lsn, cells(touched), Instant::now());
                owed.extend(touched.iter().map(|cell| Cell(*cell)));
                while read && position < log.watermark() {
                    match log.behind(position) {
                        Behind::Changes { lsn, cells } => {
                            prop_assert!(lsn > position);
                            position = lsn;
                            owed.retain(|cell| !cells.contains(*cell));
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                if read {
                    prop_assert!(owed.is_empty());
                }
            }
        }
    }
}
