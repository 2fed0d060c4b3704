//! A circuit breaker per node: what keeps failing is left alone for a while.
//!
//! ```text
//! closed ──failure──▶ open for 100 ms, 200 ms, … 5 s ──over──▶ one request tries
//!    ▲                    ▲                                        │
//!    └──────success───────┼────────────success─────────────────────┤
//!                         └────────────failure, twice as long──────┘
//! ```

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// One node's.
#[derive(Debug, Default)]
pub struct Breaker {
    /// So that a request to a sound node takes no lock.
    tripped: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    next_try: Option<Instant>,
    /// One request was let through, and has not failed yet.
    trying: bool,
}

impl Breaker {
    /// Whether the node may be asked now. Once a pause is over this says yes to
    /// one request, and to the next one after as long again.
    pub fn allows(&self, now: Instant) -> bool {
        if !self.tripped.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state();
        match state.next_try {
            Some(next_try) if now < next_try => false,
            Some(_) => {
                state.next_try = Some(now + state.pause());
                state.trying = true;
                true
            }
            None => true,
        }
    }

    /// The node could not be connected to, or broke off.
    pub fn failed(&self, now: Instant) {
        let mut state = self.state();
        // What was in flight fails at once and counts once.
        let open = state.next_try.is_some_and(|next_try| now < next_try);
        if open && !state.trying {
            return;
        }
        state.trying = false;
        state.failures = state.failures.saturating_add(1);
        state.next_try = Some(now + state.pause());
        self.tripped.store(true, Ordering::Release);
    }

    /// The node answered.
    pub fn succeeded(&self) {
        if self.tripped.swap(false, Ordering::AcqRel) {
            *self.state() = State::default();
        }
    }

    /// Whether requests are being kept away.
    pub fn is_open(&self) -> bool {
        self.tripped.load(Ordering::Acquire)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl State {
    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        FIRST.saturating_mul(1 << doublings).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failing_node_is_tried_by_one_request_a_pause() {
        let breaker = Breaker::default();
        let mut now = Instant::now();
        assert!(breaker.allows(now) && breaker.allows(now));
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            // Twenty requests were in flight.
            for _ in 0..20 {
                breaker.failed(now);
            }
            let pause = Duration::from_millis(pause);
            assert!(!breaker.allows(now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(breaker.allows(now), "after {pause:?}");
            assert!(!breaker.allows(now), "one tries, not all");
            // It takes a moment to fail.
            now += pause / 2;
        }
        breaker.succeeded();
        assert!(breaker.allows(now) && breaker.allows(now) && !breaker.is_open());
    }
}
