//! Copies wait while a shard has enough to do. Postgres can't slow a table's copy
//! down: none is begun then, and one under way is begun anew only where standbys
//! have fallen far behind. Deciding is pure.

use super::side::Side;
use crate::config::Jobs;
use crate::job::{Context, JobError};

/// Behind by so many times the limit, copies under way are stopped, too.
const FAR: u64 = 8;

/// How busy a primary is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Bytes that its slowest standby has still to replay.
    pub(super) standby_lag: u64,
    /// Bytes that the capture has still to publish.
    pub(super) capture_lag: u64,
    /// Sessions at work.
    pub(super) busy: u64,
}

/// Why copies wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy {
    pub(super) why: String,
    /// So much that those under way are stopped.
    pub(super) far: bool,
}

/// Whether a copy from one shard to another has to wait.
pub(super) async fn busy(
    context: &Context,
    source: &Side,
    target: &Side,
) -> Result<Option<Busy>, JobError> {
    let limits = &context.app().jobs;
    let (there, here) = tokio::join!(source.load(), target.load());
    let (there, mut here) = (there?, here?);
    // Rows that come in are not its tenants' waiting.
    here.busy = 0;
    Ok(of((&source.shard, there), limits).or_else(|| of((&target.shard, here), limits)))
}

fn of((shard, load): (&str, Load), limits: &Jobs) -> Option<Busy> {
    let max = limits.copy_lag_bytes_max;
    let mib = |bytes: u64| bytes >> 20;
    let lags = [
        (load.standby_lag, "a standby"),
        (load.capture_lag, "the capture"),
    ];
    for (lag, who) in lags {
        if lag > max {
            return Some(Busy {
                why: format!("{who} of shard {shard} is {} MiB behind", mib(lag)),
                far: lag / FAR > max,
            });
        }
    }
    (load.busy > limits.copy_busy_sessions_max).then(|| Busy {
        why: format!("{} sessions of shard {shard} are at work", load.busy),
        far: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_and_work_hold_copies_up() {
        let limits = Jobs::default();
        let of = |load| of(("s1", load), &limits);
        assert_eq!(of(Load::default()), None);
        let lag = limits.copy_lag_bytes_max + (1 << 20);
        let standby = of(Load {
            standby_lag: lag,
            ..Load::default()
        })
        .unwrap();
        assert_eq!(standby.why, "a standby of shard s1 is 65 MiB behind");
        assert!(!standby.far);
        assert!(
            of(Load {
                capture_lag: 9 * lag,
                ..Load::default()
            })
            .unwrap()
            .far
        );
        let busy = limits.copy_busy_sessions_max;
        assert_eq!(
            of(Load {
                busy,
                ..Load::default()
            }),
            None
        );
        assert!(
            of(Load {
                busy: busy + 1,
                ..Load::default()
            })
            .is_some()
        );
    }
}
