//! A timer that is exact to tens of microseconds. The runtime's own rounds up
//! to whole milliseconds, which would show up as latency of the target.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One timer of the kernel, reused for every wait of the task that owns it.
#[derive(Debug)]
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// Makes a timer; call it inside the runtime that will wait on it.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        // The successor is an unsafe function because a type may hand out and
        // close its descriptor while it is registered; an OwnedFd that never
        // leaves this type does not.
        #[expect(
            deprecated,
            reason = "unsafe code is forbidden here, and this use is sound"
        )]
        Ok(Timer(AsyncFd::with_interest(fd, Interest::READABLE)?))
    }

    /// Waits until `moment`; returns at once when it has passed.
    ///
    /// # Errors
    /// When the kernel refuses the timer; it has no reason to.
    pub async fn until(&self, moment: Instant) -> io::Result<()> {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            it_value: timespec(left),
        };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        self.0
            .async_io(Interest::READABLE, |fd| {
                let mut expirations = [0u8; 8];
                rustix::io::read(fd, &mut expirations)
                    .map(|_| ())
                    .map_err(io::Error::from)
            })
            .await
    }
}

fn timespec(duration: Duration) -> Timespec {
    // A day at most: a run's gaps are far shorter, and the casts stay exact.
    let duration = duration.min(Duration::from_secs(86_400));
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_until_the_moment_and_not_for_a_past_one() {
        let timer = Timer::new().unwrap();
        let mut quickest = Duration::MAX;
        // The machine does not stand still each time.
        for _ in 0..10 {
            let begin = Instant::now();
            for step in 1..=20 {
                timer
                    .until(begin + Duration::from_micros(500 * step))
                    .await
                    .unwrap();
                assert!(begin.elapsed() >= Duration::from_micros(500 * step));
            }
            timer.until(begin).await.unwrap();
            quickest = quickest.min(begin.elapsed());
        }
        // Twenty waits of the runtime's timer would take 20 ms at least.
        assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    }
}
