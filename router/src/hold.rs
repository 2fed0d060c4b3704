//! Requests that wait: while their tenant is being cut over, or until this
//! router has learnt where it moved to.
//!
//! They wait off the pools, bounded in number and in time, and re-enter the
//! pipeline at Placement.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The place where requests wait.
pub struct HoldRoom {
    seats: Semaphore,
    held_max: Duration,
}

/// A request's stay: made at its first refusal, dropped with its answer.
pub struct Held<'a> {
    _seat: SemaphorePermit<'a>,
    until: Instant,
    pause: Duration,
}

/// The wait was not granted, or is over.
#[derive(Debug, PartialEq, Eq)]
pub struct NoLonger;

/// First pause between two tries; a cut-over takes about 10 ms.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_millis(100);

impl HoldRoom {
    /// At most `seats` requests wait at once, each for `held_max` at most.
    pub fn new(seats: usize, held_max: Duration) -> Self {
        Self {
            seats: Semaphore::new(seats.min(Semaphore::MAX_PERMITS)),
            held_max,
        }
    }

    /// Begins a stay, unless the room is full.
    pub fn enter(&self, deadline: Instant) -> Result<Held<'_>, NoLonger> {
        Ok(Held {
            _seat: self.seats.try_acquire().map_err(|_| NoLonger)?,
            until: deadline.min(Instant::now() + self.held_max),
            pause: PAUSE_FIRST,
        })
    }
}

impl Held<'_> {
    /// Waits before the next try: for `news`, for a pause that doubles, or
    /// until the stay is over.
    pub async fn pause(&mut self, news: impl Future<Output = ()>) -> Result<(), NoLonger> {
        if Instant::now() >= self.until {
            return Err(NoLonger);
        }
        let wake = self.until.min(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let _ = tokio::time::timeout_at(wake, news).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stay_is_bounded_in_time_and_in_number() {
        let room = HoldRoom::new(1, Duration::from_millis(50));
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut held = room.enter(deadline).unwrap();
        assert!(room.enter(deadline).is_err(), "the only seat is taken");
        let started = Instant::now();
        while held.pause(std::future::pending()).await.is_ok() {}
        assert_eq!(started.elapsed(), Duration::from_millis(50));
        drop(held);
        assert!(room.enter(deadline).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn news_ends_a_pause() {
        let room = HoldRoom::new(1, Duration::from_secs(1));
        let mut held = room.enter(Instant::now() + Duration::from_secs(1)).unwrap();
        let started = Instant::now();
        held.pause(std::future::ready(())).await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
