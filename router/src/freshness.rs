//! Which nodes may answer a read (DESIGN.md §6, rules 5, 9 and 10). Pure.
//!
//! A replica answers only where that can't break what the client was promised:
//! that a read sees every write acknowledged before it began. A router can vouch
//! for that while it holds a *lease* on the shard; without one it asks the
//! primary, unless the client, or the operator for all of them, has said how old
//! an answer may be. A token and the tenant's own writes through this router are
//! minded in every case.

use std::time::Duration;

use tokio::time::Instant;

use crate::timeline::Ancestors;
use crate::token::{Generation, Token};

/// Where reads go that say nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// To replicas under a lease, else to the primary.
    Current,
    /// To replicas, also without a lease, if they have what was committed
    /// longer ago than this.
    Replica {
        /// So much may be missed.
        stale_max: Duration,
    },
    /// To the primary, whatever the client says.
    Primary,
}

/// What a read asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// It must see this write.
    pub token: Option<Token>,
    /// It may miss others' writes of the last so long (`Prefer: max-staleness`).
    pub stale_max: Option<Duration>,
    /// It wants the primary (`Prefer: read=primary`).
    pub primary: bool,
}

/// What is known of the shard's log and of the tenant.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The log that the primary writes.
    pub generation: Generation,
    /// Its timeline's ancestors.
    pub ancestors: &'a Ancestors,
    /// The tenant's epoch.
    pub epoch: i64,
    /// The tenant's last write through this router, in this generation; or 0.
    pub written: u64,
    /// This router's lease, if it holds one.
    pub lease: Option<Lease>,
}

/// While it holds, a node at or past `lsn` shows every acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The watermark.
    pub lsn: u64,
}

/// Who may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The primary only.
    Primary,
    /// Also a replica of the same generation that is this far.
    Replica(Needed),
}

/// How far a replica must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// It has replayed up to here at least.
    pub lsn: u64,
    /// It has what was committed before, where that matters.
    pub since: Option<Instant>,
}

/// Why no node may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSource {
    /// The token's write is beyond the point at which its timeline was left.
    Lost {
        /// That point, or 0 where the timeline is no ancestor at all.
        left_at: u64,
    },
    /// The token is from a later timeline: this router's primary was replaced.
    Replaced,
}

/// Who may answer a read now.
pub fn source(
    reads: Reads,
    wanted: &Wanted,
    known: &Known<'_>,
    now: Instant,
) -> Result<Source, NoSource> {
    let here = known.generation;
    let mut lsn = known.written.max(known.ancestors.began_at());
    if let Some(token) = wanted.token.filter(|t| t.generation.system == here.system) {
        if token.generation.timeline > here.timeline {
            return Err(NoSource::Replaced);
        }
        if token.generation.timeline < here.timeline {
            let left_at = known.ancestors.left_at(token.generation.timeline);
            let left_at = left_at.unwrap_or_default();
            // A shard whose history can't be read tells of no loss.
            let kept = token.lsn <= left_at || known.ancestors.is_unknown();
            return match kept {
                true => Ok(Source::Primary),
                false => Err(NoSource::Lost { left_at }),
            };
        }
        lsn = lsn.max(token.lsn);
    }
    let elsewhere = |t: Token| t.generation.system != here.system || t.epoch != known.epoch;
    if wanted.primary || reads == Reads::Primary || wanted.token.is_some_and(elsewhere) {
        return Ok(Source::Primary);
    }
    if let Some(lease) = known.lease {
        let lsn = lsn.max(lease.lsn);
        return Ok(Source::Replica(Needed { lsn, since: None }));
    }
    let always = match reads {
        Reads::Replica { stale_max } => Some(stale_max),
        Reads::Current | Reads::Primary => None,
    };
    let allowed = wanted.stale_max.or(always);
    Ok(
        match allowed.and_then(|stale_max| now.checked_sub(stale_max)) {
            Some(since) => Source::Replica(Needed {
                lsn,
                since: Some(since),
            }),
            None => Source::Primary,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Generation = Generation {
        system: 7,
        timeline: 3,
    };
    const SECOND: Duration = Duration::from_secs(1);

    fn token(system: u64, timeline: u32, epoch: i64, lsn: u64) -> Wanted {
        let generation = Generation { system, timeline };
        Wanted {
            token: Some(Token {
                generation,
                epoch,
                lsn,
            }),
            stale_max: Some(SECOND),
            primary: false,
        }
    }

    fn ask(reads: Reads, wanted: Wanted, lease: Option<u64>) -> Result<Source, NoSource> {
        let ancestors = Ancestors::parse("1 0/64 x\n2 0/C8 x");
        let known = Known {
            generation: HERE,
            ancestors: &ancestors,
            epoch: 1,
            written: 500,
            lease: lease.map(|lsn| Lease { lsn }),
        };
        source(reads, &wanted, &known, Instant::now() + 10 * SECOND)
    }

    fn lsn(source: Result<Source, NoSource>) -> Option<u64> {
        match source {
            Ok(Source::Replica(needed)) => Some(needed.lsn),
            _ => None,
        }
    }

    #[test]
    fn without_a_lease_only_who_said_so_reads_from_replicas() {
        let plain = Wanted::default();
        assert_eq!(ask(Reads::Current, plain, None), Ok(Source::Primary));
        assert_eq!(lsn(ask(Reads::Current, plain, Some(400))), Some(500));
        assert_eq!(lsn(ask(Reads::Current, plain, Some(600))), Some(600));
        let stale = Wanted {
            stale_max: Some(SECOND),
            ..plain
        };
        assert_eq!(lsn(ask(Reads::Current, stale, None)), Some(500));
        assert_eq!(
            lsn(ask(Reads::Replica { stale_max: SECOND }, plain, None)),
            Some(500)
        );
        assert_eq!(ask(Reads::Primary, stale, Some(1)), Ok(Source::Primary));
        let primary = Wanted {
            primary: true,
            ..stale
        };
        assert_eq!(ask(Reads::Current, primary, Some(1)), Ok(Source::Primary));
    }

    #[test]
    fn a_token_alone_is_no_leave_to_miss_others_writes() {
        let wanted = Wanted {
            stale_max: None,
            ..token(7, 3, 1, 900)
        };
        assert_eq!(ask(Reads::Current, wanted, None), Ok(Source::Primary));
        assert_eq!(lsn(ask(Reads::Current, wanted, Some(1))), Some(900));
    }

    #[test]
    fn tokens_of_this_generation_say_how_far_a_replica_must_be() {
        assert_eq!(
            lsn(ask(Reads::Current, token(7, 3, 1, 900), None)),
            Some(900)
        );
        assert_eq!(lsn(ask(Reads::Current, token(7, 3, 1, 9), None)), Some(500));
    }

    #[test]
    fn tokens_of_another_generation_or_epoch_ask_the_primary() {
        for wanted in [
            token(8, 9, 1, 9),
            token(7, 3, 2, 9),
            token(7, 1, 1, 100),
            token(7, 2, 1, 200),
        ] {
            assert_eq!(
                ask(Reads::Current, wanted, Some(1)),
                Ok(Source::Primary),
                "{wanted:?}"
            );
        }
    }

    #[test]
    fn a_write_beyond_the_switch_point_is_lost() {
        let lost = |left_at| Err(NoSource::Lost { left_at });
        assert_eq!(ask(Reads::Primary, token(7, 1, 1, 101), None), lost(100));
        assert_eq!(ask(Reads::Current, token(7, 2, 1, 201), None), lost(200));
    }

    #[test]
    fn a_later_timeline_says_that_this_routers_primary_is_an_old_one() {
        assert_eq!(
            ask(Reads::Primary, token(7, 4, 1, 9), None),
            Err(NoSource::Replaced)
        );
    }
}
