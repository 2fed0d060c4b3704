//! Which tables are worth keeping answers of: those whose entries answer at
//! least once before they are of no use. Counted per (tenant, first table) in a
//! fixed array; two that share a place share a verdict.

use std::sync::atomic::{AtomicU32, Ordering};

use tenancy::changes::Cell;

/// Hits and fills of late, by cell.
pub struct Worth {
    counts: Box<[Count]>,
}

#[derive(Default)]
struct Count {
    hits: AtomicU32,
    fills: AtomicU32,
    skipped: AtomicU32,
}

/// Places.
const PLACES: usize = 4_096;
/// Fills that are always made before anything is judged.
const FIRST: u32 = 64;
/// Beyond as many fills both numbers are halved, so that the past fades.
const FADE: u32 = 1_024;
/// Of the fills that are not worth it one in so many is made, to see whether
/// that has changed.
const TRY_EVERY: u32 = 32;

impl Default for Worth {
    fn default() -> Self {
        Self {
            counts: (0..PLACES).map(|_| Count::default()).collect(),
        }
    }
}

impl Worth {
    /// An entry answered.
    pub fn hit(&self, table: Cell) {
        self.at(table).hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a miss is worth a fill; counts it if so.
    pub fn fill(&self, table: Cell) -> bool {
        let count = self.at(table);
        let fills = count.fills.load(Ordering::Relaxed);
        let hits = count.hits.load(Ordering::Relaxed);
        if fills >= FIRST && hits < fills {
            let skipped = count.skipped.fetch_add(1, Ordering::Relaxed);
            if !skipped.is_multiple_of(TRY_EVERY) {
                return false;
            }
        }
        if count.fills.fetch_add(1, Ordering::Relaxed) >= FADE {
            // Races lose a count or two, which decides nothing.
            count.fills.store(fills / 2, Ordering::Relaxed);
            count.hits.store(hits / 2, Ordering::Relaxed);
        }
        true
    }

    fn at(&self, table: Cell) -> &Count {
        &self.counts[table.index() % self.counts.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(worth: &Worth, table: Cell, of: u32) -> usize {
        (0..of).filter(|_| worth.fill(table)).count()
    }

    #[test]
    fn what_is_never_hit_stops_being_filled_and_is_tried_again() {
        let worth = Worth::default();
        assert_eq!(filled(&worth, Cell(1), 64), 64);
        assert_eq!(filled(&worth, Cell(1), 3_200), 100);
        // Read more often than written from now on.
        for _ in 0..10_000 {
            worth.hit(Cell(1));
        }
        assert_eq!(filled(&worth, Cell(1), 500), 500);
        assert_eq!(filled(&worth, Cell(2), 64), 64, "another table's verdict");
    }
}
