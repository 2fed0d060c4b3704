//! How much may be tried again: a tenth of what was asked for, so that a node in
//! trouble is never asked for much more because it is in trouble.

use std::sync::atomic::{AtomicU32, Ordering};

/// In tenths of a retry.
#[derive(Debug)]
pub struct RetryBudget(AtomicU32);

const RETRY: u32 = 10;
/// Retries that may be saved up: what is in flight at a node that dies.
const SAVED_MAX: u32 = 100 * RETRY;

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(SAVED_MAX))
    }
}

impl RetryBudget {
    /// A request came in: a tenth of a retry more.
    pub fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < SAVED_MAX {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes one retry, if there is one.
    pub fn spend(&self) -> bool {
        let left = |saved: u32| saved.checked_sub(RETRY);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_tenth_of_the_requests_and_some_saved() {
        let budget = RetryBudget::default();
        let spend_all = || (0..10_000).filter(|_| budget.spend()).count();
        assert_eq!(spend_all(), 100);
        for _ in 0..500 {
            budget.earn();
        }
        assert_eq!(spend_all(), 50);
        for _ in 0..100_000 {
            budget.earn();
        }
        assert_eq!(spend_all(), 100);
    }
}
