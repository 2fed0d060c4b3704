//! The rules of DESIGN.md §6 and the cut-over of §7, checked state by state.
//!
//! A small world of databases, workers and one router, in which everything that
//! may happen does happen, in every order. Rules are conditions on steps
//! ([`steps`]), what must never be otherwise stands in [`promises`], and for
//! every rule there is a [`Weak`] form of it that some promise must catch: a
//! model that nothing can break proves nothing.
//!
//! What is left out of the world, and why no wrong answer hides there:
//!
//! - *One router is watched.* No rule speaks of two, so what holds for one holds
//!   for each. The others are what fills the cache.
//! - *The cache is an adversary.* Whatever any router could have read under some
//!   stamp may be in it, and come back at any time. All promises are of the form
//!   "the answer has at least …", so of all answers under one stamp only what
//!   they have in common is remembered.
//! - *There is no clock.* A lease knows which writes were visible when its ping
//!   left. "D⁺ is over" means that no lease from before is alive; how long that
//!   takes is anybody's guess.
//!
//! The suite runs small bounds. The large ones take minutes:
//! `RINGFENCE_MODEL=full cargo test --release -p router --test coherence`.

mod promises;
mod steps;
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};

use self::steps::Step;
use self::world::World;

/// A place in a log. A set of writes, or of cells, as bits.
type Lsn = u8;
type Set = u8;

/// What goes on besides reads, writes and leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// Nothing; but the router may start again.
    Quiet,
    /// Another worker takes the slot; the first lives on and does not know.
    Takeover,
    /// The slot is lost, and made again on the same primary.
    NewSlot,
    /// A standby is promoted at any place; commits behind it are lost.
    Promotion,
    /// Workers come and go, so that at times nobody has the slot.
    Unattended,
    /// A tenant moves from shard 0 to shard 1.
    Move,
    /// And back again.
    MoveBack,
    /// And shard 1 then promotes a standby.
    MoveThenPromotion,
}

/// A rule weakened, by the rule's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weak {
    R1SlotConfirmedTooFar,
    R1FirstWatermarkTooEarly,
    R1OldSlotGoesOn,
    R2PublishedUnseen,
    R3WatermarkFirst,
    R3GapPassedOver,
    R3GapNeverClosed,
    R3BegunWithoutFloor,
    R4AnsweredWithoutMarker,
    R4MarkerBeforePing,
    R4CountedFromAnswer,
    R5StampedAfterReading,
    R5StampedByTheServersLog,
    R5ReplicaNotFarEnough,
    R5OtherTimeline,
    R6CellsNotCompared,
    R6OneCellOnly,
    R6GenerationNotCompared,
    R6NoLeaseNeeded,
    R6LeaseLoadedLast,
    R6JoinedFillTrusted,
    R7CrashTakesBackACommit,
    R8NotWaited,
    R8HolderForgotten,
    R8HolderKnownTooLate,
    R8NewWorkerSpeaksAtOnce,
    R8NotPublishedByTheWorker,
    R8OtherTimeline,
    R8AloneTermNotCompared,
    R8AloneLookedTooLate,
    R8AloneLookedTooEarly,
    R8AloneTermRaisedLate,
    R8AlonePingBeforeSlot,
    R9TokenNotCompared,
    R9OtherTimeline,
    R10ReplicaWithoutLease,
    R11NotWaited,
    R11FenceNoCell,
    R11FencedReads,
    R11ReplicaUnfenced,
    R11WritersInFlight,
    R11FenceLostWithItsNode,
    R11TargetsStandbyBehind,
    R12DdlRaisesNoCell,
    TheOldPrimaryLives,
}
use Weak::*;

/// A world with its rules.
#[derive(Clone, Copy)]
struct Rules {
    story: Story,
    /// Ordinary writes.
    writes: usize,
    /// What each of them touches.
    touches: [Set; world::WRITES],
    /// What is asked: the cells that an entry has.
    questions: &'static [Set],
    replicas: bool,
    /// The watched read is taken step by step.
    by_steps: bool,
    weak: Option<Weak>,
}

impl Rules {
    fn of(story: Story, writes: usize) -> Self {
        Self {
            story,
            writes,
            touches: [world::TABLE_A; world::WRITES],
            questions: &[world::TABLE_A],
            replicas: false,
            by_steps: false,
            weak: None,
        }
    }

    fn with_replicas(self) -> Self {
        Self {
            replicas: true,
            ..self
        }
    }

    fn keeps(&self, rule: Weak) -> bool {
        self.weak != Some(rule)
    }
}

impl Model for Rules {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::begin(self);
        self.fill(&mut world);
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.possible(world, steps);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        self.take(&mut world, step);
        self.fill(&mut world);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::all()
    }
}

/// Checks the rules in one setting, and that each weak form of them is caught.
fn check(rules: Rules, weak: &[Weak]) {
    let whole = rules.checker().threads(2).spawn_bfs().join();
    let states = whole.unique_state_count();
    let found = whole.discoveries();
    for property in rules.properties() {
        let name = property.name;
        let reached = name.starts_with("can ");
        match found.get(name) {
            Some(path) if !reached => {
                let steps = path.clone().into_actions();
                panic!("{:?}: \"{name}\" is broken by {steps:?}", rules.story);
            }
            None if reached => panic!("{:?}: nothing shows that it {name}", rules.story),
            _ => {}
        }
    }
    println!(
        "{:?}, {} writes: {states} states",
        rules.story, rules.writes
    );
    for weak in weak {
        let weaker = Rules {
            weak: Some(*weak),
            ..rules
        };
        let checker = weaker.checker().threads(2);
        let checker = checker.finish_when(HasDiscoveries::AnyFailures);
        let found = checker.spawn_bfs().join().discoveries();
        let mut broken = found.iter().filter(|(name, _)| !name.starts_with("can "));
        let (promise, path) = broken
            .next()
            .unwrap_or_else(|| panic!("{weak:?} is not caught"));
        let steps = path.clone().into_actions().len();
        println!("    {weak:?} breaks \"{promise}\" in {steps} steps");
    }
}

/// As many writes as time allows.
fn bound(small: usize, large: usize) -> usize {
    match std::env::var("RINGFENCE_MODEL").as_deref() {
        Ok("full") => large,
        _ => small,
    }
}

#[test]
fn every_acknowledged_write_is_seen_by_every_later_read() {
    check(
        Rules::of(Story::Quiet, bound(2, 3)),
        &[
            R2PublishedUnseen,
            R3WatermarkFirst,
            R3BegunWithoutFloor,
            R4AnsweredWithoutMarker,
            R4MarkerBeforePing,
            R4CountedFromAnswer,
            R5StampedAfterReading,
            R5StampedByTheServersLog,
            R6CellsNotCompared,
            R6NoLeaseNeeded,
            R7CrashTakesBackACommit,
            R8NotWaited,
            R8HolderForgotten,
            R8HolderKnownTooLate,
            R9TokenNotCompared,
        ],
    );
}

#[test]
fn a_read_taken_step_by_step_is_right() {
    let rules = Rules {
        by_steps: true,
        ..Rules::of(Story::Quiet, bound(2, 3))
    };
    check(rules, &[R6LeaseLoadedLast, R6JoinedFillTrusted]);
}

#[test]
fn answers_made_of_several_tables_compare_all_their_cells() {
    let rules = Rules {
        touches: [1, 2, 3, 0, 0, 0],
        questions: &[1, 2, 3],
        ..Rules::of(Story::Quiet, bound(2, 3))
    };
    check(rules, &[R6OneCellOnly, R3WatermarkFirst]);
}

#[test]
fn a_change_of_the_schema_makes_all_answers_old() {
    let rules = Rules {
        touches: [world::ALL_TABLES; world::WRITES],
        questions: &[1, 2, 3],
        ..Rules::of(Story::Quiet, 1)
    };
    check(rules, &[R12DdlRaisesNoCell]);
}

#[test]
fn replicas_answer_only_under_a_lease_and_when_far_enough() {
    check(
        Rules::of(Story::Quiet, bound(2, 3)).with_replicas(),
        &[R5ReplicaNotFarEnough, R10ReplicaWithoutLease],
    );
}

#[test]
fn a_worker_that_takes_over_goes_on_where_the_other_was() {
    check(
        Rules::of(Story::Takeover, bound(2, 3)),
        &[
            R1SlotConfirmedTooFar,
            R3GapPassedOver,
            R3GapNeverClosed,
            R4MarkerBeforePing,
            R8NewWorkerSpeaksAtOnce,
            R8NotPublishedByTheWorker,
            R8HolderForgotten,
            R8HolderKnownTooLate,
        ],
    );
}

#[test]
fn a_new_slot_is_a_new_generation() {
    check(
        Rules::of(Story::NewSlot, bound(2, 3)),
        &[
            R1FirstWatermarkTooEarly,
            R1OldSlotGoesOn,
            R8NewWorkerSpeaksAtOnce,
        ],
    );
}

#[test]
fn a_promoted_standby_is_a_new_generation() {
    check(
        Rules::of(Story::Promotion, bound(2, 3)),
        &[
            R5OtherTimeline,
            R6GenerationNotCompared,
            R8OtherTimeline,
            R8NewWorkerSpeaksAtOnce,
            R9OtherTimeline,
            TheOldPrimaryLives,
        ],
    );
}

#[test]
fn without_a_worker_writes_need_not_wait() {
    check(
        Rules::of(Story::Unattended, bound(1, 2)),
        &[
            R8AloneTermNotCompared,
            R8AloneLookedTooLate,
            R8AloneLookedTooEarly,
            R8AloneTermRaisedLate,
            R8AlonePingBeforeSlot,
        ],
    );
}

#[test]
fn a_moved_tenants_old_answers_are_never_given() {
    check(
        Rules::of(Story::Move, bound(1, 2)).with_replicas(),
        &[
            R11NotWaited,
            R11FenceNoCell,
            R11FencedReads,
            R11ReplicaUnfenced,
            R11WritersInFlight,
            R11FenceLostWithItsNode,
            R6GenerationNotCompared,
            R10ReplicaWithoutLease,
        ],
    );
}

#[test]
fn a_tenant_that_moves_back_finds_none_of_its_old_answers() {
    check(
        Rules::of(Story::MoveBack, bound(1, 2)),
        &[R11NotWaited, R11FenceNoCell, R11WritersInFlight],
    );
}

#[test]
fn what_the_source_acknowledged_survives_the_targets_failover() {
    check(
        Rules::of(Story::MoveThenPromotion, bound(1, 2)),
        &[R11TargetsStandbyBehind, R6GenerationNotCompared],
    );
}
