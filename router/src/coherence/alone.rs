//! Writes on a shard that no worker captures: when they need not wait (DESIGN.md
//! §6, rule 8, for issue's "without a worker"; the model's `Unattended`). Pure.
//!
//! A lease is granted only by who has the slot, and every worker raises the
//! capture's *term* on the primary after it has acquired the slot and before it
//! takes a ping. So if two looks at one primary see nobody have the slot, and the
//! same term, then nobody had it in between: no lease is younger than the first
//! look, and `D⁺` after it none is left at all. A worker that comes after the
//! second look marks its leases behind what was committed before that look.
//!
//! So a write need not wait if the second look began after its COMMIT, and the
//! first is `D⁺` ago.

use tokio::time::Instant;

use super::HOLDING;
use crate::token::Generation;

/// What one look at a primary saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The log that the node writes.
    pub of: Generation,
    /// Nobody has the slot; or there is none.
    pub free: bool,
    /// How often it was acquired.
    pub term: i64,
    /// Before the question was sent.
    pub begun: Instant,
    /// After the answer came.
    pub ended: Instant,
}

/// What looks have seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone {
    last: Option<Look>,
    /// The first of those that saw the same as the last.
    since: Option<Instant>,
}

impl Alone {
    /// Takes a look's result.
    pub fn saw(&mut self, look: Look) {
        let same = |last: Look| last.free && last.of == look.of && last.term == look.term;
        let goes_on = self.last.is_some_and(same) && look.free;
        self.since = match (look.free, self.since.filter(|_| goes_on)) {
            (false, _) => None,
            (true, Some(since)) => Some(since),
            (true, None) => Some(look.ended),
        };
        self.last = Some(look);
    }

    /// A look that began at or after `committed` is there already.
    pub fn has_looked_since(&self, committed: Instant) -> bool {
        self.last.is_some_and(|look| look.begun >= committed)
    }

    /// From when on a write committed at `committed` in the log `of` needs no
    /// barrier; none where nothing is proved.
    pub fn free_from(&self, of: Generation, committed: Instant) -> Option<Instant> {
        let look = self.last?;
        let fits = look.free && look.of == of && look.begun >= committed;
        fits.then_some(self.since? + HOLDING)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HERE: Generation = Generation {
        system: 7,
        timeline: 1,
    };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test(start_paused = true)]
    async fn two_looks_of_one_term_prove_that_nobody_was_there() {
        let start = Instant::now();
        let look = |at: u64, free, term| Look {
            of: HERE,
            free,
            term,
            begun: start + ms(at),
            ended: start + ms(at + 1),
        };
        let free_from = |looks: &[Look], committed: u64| {
            let mut alone = Alone::default();
            looks.iter().for_each(|look| alone.saw(*look));
            alone.free_from(HERE, start + ms(committed))
        };
        let proved = Some(start + ms(1) + HOLDING);
        let (first, second) = (look(0, true, 4), look(900, true, 4));
        assert_eq!(free_from(&[first, second], 890), proved);
        assert_eq!(free_from(&[first, look(500, true, 4), second], 890), proved);
        // A first look alone counts from itself.
        assert_eq!(free_from(&[first], 0), proved);
        // Not looked since the commit; somebody has it; somebody had it.
        assert_eq!(free_from(&[first, second], 901), None);
        assert_eq!(free_from(&[first, look(900, false, 4)], 890), None);
        let had = Some(start + ms(901) + HOLDING);
        assert_eq!(free_from(&[first, look(900, true, 5)], 890), had);
        assert_eq!(
            free_from(&[first, look(500, false, 4), second], 890),
            had,
            "acquired and not said yet"
        );
        // Another primary knows nothing of this one's slot.
        let promoted = Look {
            of: Generation {
                timeline: 2,
                ..HERE
            },
            ..second
        };
        assert_eq!(free_from(&[first, promoted], 890), None);
    }
}
