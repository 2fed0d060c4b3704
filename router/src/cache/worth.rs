//! Which tables are worth keeping answers of: those whose entries answer at
//! least once before they are of no use. Counted per (tenant, first table) in a
//! fixed array; two that share a place share a verdict.
//!
//! A fill is one that asked the shard. What is found in Redis cost the shard
//! nothing: it is a hit, or a table that is read more widely than this process'
//! memory holds would never get more hits than fills.

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
/// Fills that are always made before anything is judged: while a cache is cold,
/// each answer is new.
const FIRST: u32 = 1_024;
/// Beyond as many fills both numbers are halved, so that the past fades.
const FADE: u32 = 4_096;
/// Of the fills that are not worth it one in so many is made, to see whether
/// that has changed.
const TRY_EVERY: u32 = 8;

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

    /// Whether answers of the table are worth keeping, as far as is known.
    pub fn pays(&self, table: Cell) -> bool {
        let count = self.at(table);
        let fills = count.fills.load(Ordering::Relaxed);
        fills < FIRST || count.hits.load(Ordering::Relaxed) >= fills
    }

    /// Whether a miss is worth a fill.
    pub fn allows(&self, table: Cell) -> bool {
        if self.pays(table) {
            return true;
        }
        let skipped = self.at(table).skipped.fetch_add(1, Ordering::Relaxed);
        skipped.is_multiple_of(TRY_EVERY)
    }

    /// A fill asks the shard.
    pub fn fill(&self, table: Cell) {
        let count = self.at(table);
        let fills = count.fills.fetch_add(1, Ordering::Relaxed);
        if fills >= FADE {
            // Races lose a count or two, which decides nothing.
            let hits = count.hits.load(Ordering::Relaxed);
            count.fills.store(fills / 2, Ordering::Relaxed);
            count.hits.store(hits / 2, Ordering::Relaxed);
        }
    }

    fn at(&self, table: Cell) -> &Count {
        &self.counts[table.index() % self.counts.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many misses are filled.
    fn filled(worth: &Worth, table: Cell, of: u32) -> u32 {
        let misses = (0..of).filter(|_| worth.allows(table));
        misses.map(|_| worth.fill(table)).count() as u32
    }

    #[test]
    fn what_is_never_hit_stops_being_filled_and_is_tried_again() {
        let worth = Worth::default();
        assert_eq!(filled(&worth, Cell(1), FIRST), FIRST);
        assert_eq!(filled(&worth, Cell(1), 100 * TRY_EVERY), 100);
        // Read more often than written from now on.
        for _ in 0..10_000 {
            worth.hit(Cell(1));
        }
        assert_eq!(filled(&worth, Cell(1), 500), 500);
        assert_eq!(filled(&worth, Cell(2), FIRST), FIRST, "another's verdict");
    }

    /// Nothing stays in this process' memory, but Redis holds it all.
    #[test]
    fn what_only_redis_holds_goes_on_being_looked_for() {
        let worth = Worth::default();
        for _ in 0..2 * FIRST {
            worth.fill(Cell(1));
            worth.hit(Cell(1));
        }
        for _ in 0..10_000 {
            assert!(worth.allows(Cell(1)));
            // Found, and no shard is asked.
            worth.hit(Cell(1));
        }
    }

    #[test]
    fn the_past_fades() {
        let worth = Worth::default();
        for _ in 0..100 * FADE {
            worth.fill(Cell(1));
        }
        for _ in 0..FADE {
            worth.hit(Cell(1));
        }
        assert!(worth.allows(Cell(1)));
    }
}
