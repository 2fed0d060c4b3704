//! Requests that wait: while their tenant is being cut over, or until this
//! router has learnt where it moved to.
//!
//! They wait off the pools, bounded in number, in all and by tenant, and in time,
//! and re-enter the pipeline at Placement.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

/// The place where requests wait.
pub struct HoldRoom {
    seats: usize,
    tenant_seats: usize,
    held_max: Duration,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Uuid, usize>,
}

/// A request's stay: made at its first refusal, dropped with its answer.
pub struct Held<'a> {
    room: &'a HoldRoom,
    tenant: Uuid,
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
    /// At most `seats` requests wait at once, `tenant_seats` of one tenant, each
    /// for `held_max` at most.
    pub fn new(seats: usize, tenant_seats: usize, held_max: Duration) -> Self {
        Self {
            seats,
            tenant_seats,
            held_max,
            taken: Mutex::default(),
        }
    }

    /// Begins a stay of a tenant's request, unless the room, or the tenant's part
    /// of it, is full.
    pub fn enter(&self, tenant: Uuid, deadline: Instant) -> Result<Held<'_>, NoLonger> {
        let mut taken = self.taken();
        let own = taken.by_tenant.get(&tenant).copied().unwrap_or(0);
        if taken.all >= self.seats || own >= self.tenant_seats {
            return Err(NoLonger);
        }
        taken.all += 1;
        taken.by_tenant.insert(tenant, own + 1);
        Ok(Held {
            room: self,
            tenant,
            until: deadline.min(Instant::now() + self.held_max),
            pause: PAUSE_FIRST,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.by_tenant.get_mut(&self.tenant) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.by_tenant.remove(&self.tenant);
            }
        }
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

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    #[tokio::test(start_paused = true)]
    async fn a_stay_is_bounded_in_time_and_in_number() {
        let room = HoldRoom::new(1, 1, Duration::from_millis(50));
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut held = room.enter(ONE, deadline).unwrap();
        assert!(
            room.enter(OTHER, deadline).is_err(),
            "the only seat is taken"
        );
        let started = Instant::now();
        while held.pause(std::future::pending()).await.is_ok() {}
        assert_eq!(started.elapsed(), Duration::from_millis(50));
        drop(held);
        assert!(room.enter(OTHER, deadline).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_leaves_seats_to_others() {
        let room = HoldRoom::new(4, 3, Duration::from_secs(1));
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut held: Vec<_> = (0..3).map(|_| room.enter(ONE, deadline).unwrap()).collect();
        assert!(room.enter(ONE, deadline).is_err(), "its part is taken");
        let other = room.enter(OTHER, deadline).unwrap();
        held.pop();
        held.push(room.enter(ONE, deadline).unwrap());
        drop((held, other));
        let taken = room.taken();
        assert_eq!((taken.all, taken.by_tenant.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn news_ends_a_pause() {
        let room = HoldRoom::new(1, 1, Duration::from_secs(1));
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut held = room.enter(ONE, deadline).unwrap();
        let started = Instant::now();
        held.pause(std::future::ready(())).await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
