//! A tenant's time on the shards: a bucket that fills by so many milliseconds a
//! second, and from which every statement under way takes one a millisecond.
//!
//! It is never known beforehand how long a statement takes, so one begins as long
//! as anything is left, and what it takes beyond that is a debt. While a tenant is
//! in debt none of its statements begins; the first one that does is alone.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// A bucket of time.
pub(super) struct TimeBudget(Mutex<State>);

struct State {
    /// Seconds that come in a second.
    income: f64,
    /// Seconds, below zero for a debt, as of `at`.
    left: f64,
    at: Instant,
    /// Statements under way.
    running: u32,
}

/// A statement under way, until it is dropped.
pub struct Running(Option<Arc<TimeBudget>>);

impl TimeBudget {
    /// Full: with a second's worth.
    pub(super) fn new(ms_per_second: u32) -> Self {
        let income = f64::from(ms_per_second) / 1_000.0;
        Self(Mutex::new(State {
            income,
            left: income,
            at: Instant::now(),
            running: 0,
        }))
    }

    /// From now on so much comes in; a debt stays one.
    pub(super) fn change(&self, ms_per_second: u32) {
        let mut state = self.now();
        state.income = f64::from(ms_per_second) / 1_000.0;
        state.left = state.left.min(state.income);
    }

    /// Whether a statement may begin; if not, how long it takes until one may.
    pub(super) fn check(&self) -> Result<(), Duration> {
        self.may_begin(&self.now())
    }

    /// Begins a statement, where one may begin.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Running, Duration> {
        let mut state = self.now();
        self.may_begin(&state)?;
        state.running += 1;
        Ok(Running(Some(self.clone())))
    }

    fn may_begin(&self, state: &State) -> Result<(), Duration> {
        match state.left > 0.0 {
            true => Ok(()),
            false => {
                let seconds = -state.left / state.income;
                Err(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
            }
        }
    }

    fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(|p| p.into_inner());
        let now = Instant::now();
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        let change = (state.income - f64::from(state.running)) * passed;
        state.left = (state.left + change).min(state.income);
        state.at = now;
        state
    }
}

impl Running {
    /// Of a tenant whose time is not limited.
    pub(super) fn free() -> Self {
        Self(None)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(budget) = &self.0 {
            let mut state = budget.now();
            state.running = state.running.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(1);
    const SLOW: Duration = Duration::from_millis(400);

    /// Statements one after another for so long, each as soon as one may begin.
    async fn done(budget: &Arc<TimeBudget>, each: Duration, lasts: Duration) -> usize {
        let until = Instant::now() + lasts;
        let mut done = 0;
        while Instant::now() < until {
            match budget.begin() {
                Ok(_running) => {
                    tokio::time::sleep(each).await;
                    done += 1;
                }
                Err(wait) => tokio::time::sleep(wait.max(QUICK)).await,
            }
        }
        done
    }

    /// A fifth of ten seconds, and the bucket: quick ones or slow ones.
    #[tokio::test(start_paused = true)]
    async fn statements_have_the_tenants_time_however_long_they_are() {
        let lasts = Duration::from_secs(10);
        let slow = done(&Arc::new(TimeBudget::new(200)), SLOW, lasts).await;
        assert!((5..=6).contains(&slow), "{slow}");
        let quick = done(&Arc::new(TimeBudget::new(200)), QUICK, lasts).await;
        assert!((1_500..=2_300).contains(&quick), "{quick}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_burst_slow_statements_run_alone() {
        let budget = Arc::new(TimeBudget::new(200));
        let burst: Vec<_> = (0..4).map(|_| budget.begin().ok()).collect();
        assert!(burst.iter().all(Option::is_some));
        tokio::time::sleep(SLOW).await;
        drop(burst);
        // Of 1,600 ms that were used, 200 were there and 80 came in meanwhile.
        let wait = budget.check().unwrap_err();
        assert!((6_500..6_700).contains(&wait.as_millis()), "{wait:?}");
        tokio::time::sleep(wait + QUICK).await;
        let _alone = budget.begin().ok();
        tokio::time::sleep(QUICK * 2).await;
        assert!(budget.begin().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_outlasts_a_change_of_the_limit() {
        let budget = Arc::new(TimeBudget::new(200));
        let running = budget.begin().ok();
        budget.change(400);
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(running);
        // Of a second 200 ms were there, and 400 came in.
        let wait = budget.check().unwrap_err();
        assert!((990..1_010).contains(&wait.as_millis()), "{wait:?}");
        budget.change(800);
        let wait = budget.check().unwrap_err();
        assert!((495..505).contains(&wait.as_millis()), "{wait:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_fills_no_more_than_a_seconds_worth() {
        let budget = Arc::new(TimeBudget::new(200));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let one = budget.begin().ok();
        tokio::time::sleep(Duration::from_millis(240)).await;
        assert!(budget.check().is_ok());
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(budget.check().is_err());
        drop(one);
    }
}
