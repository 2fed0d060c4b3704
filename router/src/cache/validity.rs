//! Whether an entry may answer: the rules of DESIGN.md §6 that a read keeps, and
//! nowhere else. Pure, but for the atomics that it looks at.
//!
//! | rule | here |
//! |---|---|
//! | 5, fill | [`UnderLease::stamp`], taken before the read; [`Stamp::fits_node`], of the node that answered it |
//! | 6, use | [`UnderLease::begin`] loads the lease first; [`UnderLease::admits`] looks at it last |
//! | 9, tokens | [`Asked::token`] |
//! | 10, no lease | there is no [`UnderLease`], so nothing that needs one can be called |
//! | 12, DDL | [`UnderLease::knows_schema`], asked before anything else is used |

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenancy::changes::{Cell, Generation, Lsn};

use crate::coherence::cells::Lease;
use crate::coherence::clock::Boot;
use crate::coherence::{Place, View};

/// The proof that an entry carries: what it was read from, and as of when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// `g`: the history that `at` is a place of.
    pub generation: Generation,
    /// `e`: the tenant's placement number.
    pub epoch: i64,
    /// `a`: every change up to here is in the entry.
    pub at: Lsn,
}

impl Stamp {
    /// Rule 5: the node that answered is of the stamp's own history.
    pub fn fits_node(&self, system: u64, timeline: u32) -> bool {
        self.generation.system == system && self.generation.timeline == timeline
    }
}

/// What a read asks of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The tenant's epoch, as this router knows it.
    pub epoch: i64,
    /// Cells of all that the answer is made of, the tenant's fence among them.
    pub cells: &'a [Cell],
    /// The client's own last write.
    pub token: Option<Written>,
}

/// A write that the client has seen acknowledged (rule 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// System identifier of the node that committed it.
    pub system: u64,
    /// Its timeline.
    pub timeline: u32,
    /// The tenant's epoch then.
    pub epoch: i64,
    /// A place behind its commit.
    pub lsn: Lsn,
}

/// Why an entry may not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// It is of another history of the shard.
    Generation,
    /// It is of another placement of the tenant.
    Epoch,
    /// Something it was made of has changed, or shares a cell with what has.
    Changed,
    /// It may lack the client's own write.
    Token,
    /// The lease ended meanwhile.
    LeaseOver,
    /// The model that the read was planned by may be older than the schema: no
    /// entry was looked for.
    Schema,
    /// Only of an old entry that the client would take: what has happened to the
    /// tenant since, or that nothing has, is not known.
    Fence,
}

/// A read that began while this router held a lease on the shard's history.
#[derive(Clone, Debug)]
pub struct UnderLease {
    view: Arc<View>,
    lease: Lease,
}

impl UnderLease {
    /// Rules 6 and 10: loads the lease, before anything else is looked at; none
    /// where there is none that holds `now`.
    pub fn begin(view: Arc<View>, now: Boot) -> Option<Self> {
        let lease = view.heard.lease();
        lease.holds(now).then_some(Self { view, lease })
    }

    /// Rule 5: the stamp of a fill that begins now. Its read must begin after.
    pub fn stamp(&self, epoch: i64) -> Stamp {
        Stamp {
            generation: self.view.generation,
            epoch,
            at: self.view.heard.watermark(),
        }
    }

    /// `W`, and what it is a place of: under the lease, a node that is so far has
    /// every acknowledged write (rules 5 and 10).
    pub fn watermark(&self) -> Lsn {
        self.view.heard.watermark()
    }

    /// The history that the lease is on.
    pub fn generation(&self) -> Generation {
        self.view.generation
    }

    /// Rule 12: whether a schema model still is the shard's, whose loading began
    /// at that place of its history; none where no history was known then. By an
    /// older one keys would not hold what a newer policy tells apart, so under it
    /// nothing is used or kept.
    pub fn knows_schema(&self, loaded: Option<Place>) -> bool {
        loaded.is_some_and(|loaded| {
            loaded.generation == self.view.generation && self.view.heard.same_schema(loaded.at)
        })
    }

    /// Rule 6, for an entry that was found after the lease was loaded. `now` is
    /// asked last.
    ///
    /// # Errors
    /// Why the entry may not answer.
    pub fn admits(
        &self,
        stamp: &Stamp,
        asked: &Asked<'_>,
        now: impl FnOnce() -> Boot,
    ) -> Result<(), Unfit> {
        if stamp.generation != self.view.generation {
            return Err(Unfit::Generation);
        }
        if stamp.epoch != asked.epoch {
            return Err(Unfit::Epoch);
        }
        if !self.view.heard.unchanged(asked.cells, stamp.at) {
            return Err(Unfit::Changed);
        }
        if asked.token.is_some_and(|token| !stamp.has(&token)) {
            return Err(Unfit::Token);
        }
        match self.lease.holds(now()) {
            true => Ok(()),
            false => Err(Unfit::LeaseOver),
        }
    }
}

impl Stamp {
    /// Rule 9: an entry of the write's own history and placement has the write
    /// if it was read at or behind its place. Of any other, nobody can say.
    fn has(&self, written: &Written) -> bool {
        self.fits_node(written.system, written.timeline)
            && self.epoch == written.epoch
            && self.at >= written.lsn
    }
}

/// Rule 10: whether a client that takes answers up to `longest` old, in so many
/// words, takes one that was read `age` ago. No lease is needed, and of the cells
/// only the fence's ([`fence_stands`]). By whose clock it was read in the future,
/// its age is not known: none will do then.
pub fn old_enough_for(age: Option<Duration>, longest: Option<Duration>) -> Option<Duration> {
    age.filter(|age| longest.is_some_and(|longest| *age <= longest))
}

/// Rules 10 and 11: the tenant is served as it was when the entry was read, as
/// far as this router has heard: it was not fenced, moved or suspended, and no
/// DDL took the rows away from who reads them.
pub fn fence_stands(stamp: &Stamp, fence: Cell, view: Option<&View>) -> bool {
    view.is_some_and(|view| {
        view.generation == stamp.generation && view.heard.unchanged(&[fence], stamp.at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::cells::Heard;

    const G: Generation = Generation {
        system: 7,
        timeline: 2,
        incarnation: 1,
    };
    const CELLS: [Cell; 2] = [Cell(1), Cell(2)];

    fn view() -> Arc<View> {
        let view = Arc::new(View {
            generation: G,
            heard: Heard::begin(8, Lsn(100)),
        });
        view.heard.take_lease(Boot::from_nanos(1_000));
        view
    }

    fn stamp(at: u64) -> Stamp {
        Stamp {
            generation: G,
            epoch: 3,
            at: Lsn(at),
        }
    }

    fn asked(token: Option<Written>) -> Asked<'static> {
        Asked {
            epoch: 3,
            cells: &CELLS,
            token,
        }
    }

    #[test]
    fn rule_5_the_stamp_is_the_watermark_before_the_read() {
        let view = view();
        let read = UnderLease::begin(view.clone(), Boot::from_nanos(1)).unwrap();
        let stamp = read.stamp(3);
        view.heard.advance(Lsn(150));
        assert_eq!(stamp.at, Lsn(100));
        assert!(stamp.fits_node(7, 2));
        assert!(!stamp.fits_node(7, 3), "a promoted standby's");
        assert!(!stamp.fits_node(8, 2), "another server's");
    }

    #[test]
    fn rule_6_each_condition_is_needed() {
        let view = view();
        let read = UnderLease::begin(view.clone(), Boot::from_nanos(1)).unwrap();
        let early = || Boot::from_nanos(1_000);
        assert_eq!(read.admits(&stamp(100), &asked(None), early), Ok(()));
        let older = Stamp {
            generation: Generation {
                incarnation: 0,
                ..G
            },
            ..stamp(100)
        };
        assert_eq!(
            read.admits(&older, &asked(None), early),
            Err(Unfit::Generation)
        );
        let moved = Stamp {
            epoch: 2,
            ..stamp(100)
        };
        assert_eq!(read.admits(&moved, &asked(None), early), Err(Unfit::Epoch));
        view.heard.raise(Cell(2), Lsn(120));
        let changed = Err(Unfit::Changed);
        assert_eq!(read.admits(&stamp(119), &asked(None), early), changed);
        assert_eq!(read.admits(&stamp(120), &asked(None), early), Ok(()));
        let late = || Boot::from_nanos(1_001);
        let over = Err(Unfit::LeaseOver);
        assert_eq!(read.admits(&stamp(120), &asked(None), late), over);
    }

    #[test]
    fn rule_6_the_lease_that_counts_is_the_one_loaded_first() {
        let view = view();
        let read = UnderLease::begin(view.clone(), Boot::from_nanos(1)).unwrap();
        view.heard.take_lease(Boot::from_nanos(9_000));
        let late = || Boot::from_nanos(2_000);
        let over = Err(Unfit::LeaseOver);
        assert_eq!(read.admits(&stamp(100), &asked(None), late), over);
    }

    #[test]
    fn rule_9_a_token_wants_its_own_write() {
        let read = UnderLease::begin(view(), Boot::from_nanos(1)).unwrap();
        let now = || Boot::from_nanos(1);
        let token = Written {
            system: 7,
            timeline: 2,
            epoch: 3,
            lsn: Lsn(110),
        };
        let admits = |at, token| read.admits(&stamp(at), &asked(Some(token)), now);
        assert_eq!(admits(109, token), Err(Unfit::Token));
        assert_eq!(admits(110, token), Ok(()));
        let other_line = Written {
            timeline: 1,
            ..token
        };
        assert_eq!(admits(500, other_line), Err(Unfit::Token));
        let before_a_move = Written { epoch: 2, ..token };
        assert_eq!(admits(500, before_a_move), Err(Unfit::Token));
    }

    #[test]
    fn rule_10_without_a_lease_nothing_begins() {
        let view = view();
        assert!(UnderLease::begin(view.clone(), Boot::from_nanos(1_001)).is_none());
        view.heard.end_lease();
        assert!(UnderLease::begin(view, Boot::from_nanos(1)).is_none());
        let second = Duration::from_secs(1);
        assert_eq!(old_enough_for(Some(Duration::ZERO), None), None);
        assert_eq!(old_enough_for(Some(second), Some(second)), Some(second));
        assert_eq!(old_enough_for(Some(second * 2), Some(second)), None);
        assert_eq!(old_enough_for(None, Some(second)), None, "in the future");
    }

    #[test]
    fn rule_10_an_old_answer_is_none_where_the_fence_may_have_changed() {
        let (view, fence) = (view(), Cell(2));
        assert!(fence_stands(&stamp(100), fence, Some(&view)));
        view.heard.raise(Cell(1), Lsn(120));
        assert!(fence_stands(&stamp(100), fence, Some(&view)), "rows only");
        view.heard.raise(fence, Lsn(130));
        assert!(!fence_stands(&stamp(129), fence, Some(&view)));
        assert!(fence_stands(&stamp(130), fence, Some(&view)));
        assert!(!fence_stands(&stamp(130), fence, None));
        let elsewhere = Stamp {
            generation: Generation { timeline: 3, ..G },
            ..stamp(500)
        };
        assert!(!fence_stands(&elsewhere, fence, Some(&view)));
    }

    #[test]
    fn rule_12_a_model_from_before_ddl_is_not_used() {
        let view = view();
        let read = UnderLease::begin(view.clone(), Boot::from_nanos(1)).unwrap();
        let loaded = |at| {
            Some(Place {
                generation: G,
                at: Lsn(at),
            })
        };
        assert!(read.knows_schema(loaded(100)));
        assert!(!read.knows_schema(None));
        view.heard.raise(Cell(1), Lsn(120));
        view.heard.raise_all(Lsn(120));
        assert!(read.knows_schema(loaded(100)), "no DDL");
        view.heard.raise_schema(Lsn(130));
        assert!(!read.knows_schema(loaded(129)) && read.knows_schema(loaded(130)));
        let elsewhere = Place {
            generation: Generation { timeline: 3, ..G },
            at: Lsn(900),
        };
        assert!(!read.knows_schema(Some(elsewhere)));
    }
}
