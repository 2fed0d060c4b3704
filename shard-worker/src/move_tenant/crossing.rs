//! What a cut-over does next, from what its two shards show. Pure.
//!
//! ```text
//!          source fence   target fence   out   back       then
//!          active e       any other      on    off        arm the target
//!          active e       fenced e+1     on    off        close the source
//!          fenced e       fenced e+1     on    off        drain, then leave
//!          moved e+1      fenced e+1     off   off        activate: the point of no return
//!          moved e+1      active e+1     off   on         over
//! ```
//!
//! `out` is the tenant's publication on the source, `back` that on the target.
//! Each step is one transaction on one shard, for all tenants of a group. Out goes
//! off when the source names the target, only after the drain was proven: so a
//! successor does not wait for a marker that can't come any longer. Back goes on
//! when the target becomes active: nothing was written there before. The target is
//! armed before anything is closed, and activation needs it armed: whoever undoes
//! disarms it first, so a worker that was thought dead can't activate it after.
//! What fits no line is nobody's to guess: the move stops there.

/// A tenant's fence, as one shard shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// There is none.
    None,
    /// The shard serves the tenant at this epoch.
    Active(i64),
    /// It holds the tenant's requests.
    Fenced(i64),
    /// It names another shard.
    Moved(i64),
}

/// What both shards show of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its fence on the source.
    pub source: Fence,
    /// Its fence on the target.
    pub target: Fence,
    /// The publication on the source is on; none where there is none.
    pub out: Option<bool>,
    /// That on the target.
    pub back: Option<bool>,
}

/// The next step of a cut-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The target's fence is prepared: fenced, at the next epoch.
    Arm,
    /// The source's fence holds requests.
    Close,
    /// All that was written arrives; then the source's fence names the target, and
    /// out goes off.
    Leave,
    /// The target's fence is active, and back goes on: what the target will write
    /// is sent to the source.
    Activate,
    /// The tenant is on the target.
    Over,
    /// An undo has begun: it is to be ended.
    Undo,
}

/// The next step of undoing a cut-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// The tenant is on the target already.
    TooLate,
    /// The target's fence is made to name the source: nobody can activate it.
    Disarm,
    /// Out goes on.
    OpenOut,
    /// The source is active, at this epoch.
    Reopen(i64),
    /// The source is active, at this epoch; nothing is left to undo.
    Undone(i64),
}

/// The shards show what no step of a move leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the shards show what no step of this move leaves behind, so nothing is done: at epoch {epoch}, {seen:?}"
)]
pub struct Contradiction {
    /// The epoch that the cut-over began at.
    pub epoch: i64,
    /// What they show.
    pub seen: Seen,
}

/// What comes next of a cut-over that began at `epoch`.
pub fn next(seen: &Seen, epoch: i64) -> Result<Next, Contradiction> {
    const ON: Option<bool> = Some(true);
    const OFF: Option<bool> = Some(false);
    let contradiction = || Contradiction {
        epoch,
        seen: seen.clone(),
    };
    let switches = (seen.out, seen.back);
    let armed = seen.target == Fence::Fenced(epoch + 1);
    match &seen.source {
        Fence::Active(at) if *at == epoch && switches == (ON, OFF) => match seen.target {
            Fence::Active(_) => Err(contradiction()),
            _ if armed => Ok(Next::Close),
            Fence::None | Fence::Fenced(_) | Fence::Moved(_) => Ok(Next::Arm),
        },
        // Reopened at a later epoch, or reopened before its switches: an undo.
        Fence::Active(at) if *at == epoch + 2 => match seen.target {
            Fence::Active(_) => Err(contradiction()),
            Fence::None | Fence::Fenced(_) | Fence::Moved(_) => Ok(Next::Undo),
        },
        Fence::Fenced(at) if *at == epoch => match (switches, &seen.target) {
            (_, Fence::Active(_)) => Err(contradiction()),
            (_, _) if !armed => Ok(Next::Undo),
            ((ON, OFF), _) => Ok(Next::Leave),
            _ => Err(contradiction()),
        },
        Fence::Moved(at) if *at == epoch + 1 => match (switches, &seen.target) {
            ((OFF, ON), Fence::Active(at)) if *at == epoch + 1 => Ok(Next::Over),
            (_, Fence::Active(_)) => Err(contradiction()),
            ((OFF, OFF), _) if armed => Ok(Next::Activate),
            (_, _) if !armed => Ok(Next::Undo),
            _ => Err(contradiction()),
        },
        Fence::None | Fence::Active(_) | Fence::Fenced(_) | Fence::Moved(_) => Err(contradiction()),
    }
}

/// What the shards show once a step is done.
pub fn after(seen: &Seen, step: Next, epoch: i64) -> Seen {
    let mut seen = seen.clone();
    match step {
        Next::Arm => seen.target = Fence::Fenced(epoch + 1),
        Next::Close => seen.source = Fence::Fenced(epoch),
        Next::Leave => (seen.source, seen.out) = (Fence::Moved(epoch + 1), Some(false)),
        Next::Activate => (seen.target, seen.back) = (Fence::Active(epoch + 1), Some(true)),
        Next::Over | Next::Undo => {}
    }
    seen
}

/// What comes next of undoing a cut-over that began at `epoch`.
pub fn undo(seen: &Seen, epoch: i64) -> Result<Undo, Contradiction> {
    let contradiction = || Contradiction {
        epoch,
        seen: seen.clone(),
    };
    let ours = match &seen.source {
        Fence::Active(at) => *at == epoch || *at == epoch + 2,
        Fence::Fenced(at) => *at == epoch,
        Fence::Moved(at) => *at == epoch + 1,
        Fence::None => false,
    };
    match &seen.target {
        Fence::Active(at) if *at == epoch + 1 && seen.source == Fence::Moved(epoch + 1) => {
            return Ok(Undo::TooLate);
        }
        Fence::Active(_) => return Err(contradiction()),
        _ if !ours => return Err(contradiction()),
        Fence::Fenced(at) if *at == epoch + 1 => return Ok(Undo::Disarm),
        Fence::None | Fence::Fenced(_) | Fence::Moved(_) => {}
    }
    // It goes on with the target's activation only.
    if seen.back == Some(true) {
        return Err(contradiction());
    }
    if seen.out == Some(false) {
        return match matches!(seen.source, Fence::Active(_)) {
            // Written and not sent: the target's copy is worth nothing.
            true => Err(contradiction()),
            false => Ok(Undo::OpenOut),
        };
    }
    Ok(match seen.source {
        Fence::Active(at) => Undo::Undone(at),
        Fence::Fenced(at) => Undo::Reopen(at),
        // Routers may have heard of the target at epoch + 1: a later number
        // is what leads them back.
        Fence::Moved(_) | Fence::None => Undo::Reopen(epoch + 2),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two shards as a cut-over changes them.
    #[derive(Clone, Debug)]
    struct World {
        seen: Seen,
        epoch: i64,
    }

    impl World {
        fn new(epoch: i64, target: Fence) -> Self {
            let seen = Seen {
                source: Fence::Active(epoch),
                target,
                out: Some(true),
                back: Some(false),
            };
            Self { seen, epoch }
        }

        fn forward(&mut self, next: Next) {
            self.seen = after(&self.seen, next, self.epoch);
        }

        fn backward(&mut self, undo: Undo) {
            match undo {
                Undo::Disarm => self.seen.target = Fence::Moved(self.epoch),
                Undo::OpenOut => self.seen.out = Some(true),
                Undo::Reopen(at) => self.seen.source = Fence::Active(at),
                Undo::TooLate | Undo::Undone(_) => {}
            }
        }

        fn owners(&self) -> usize {
            let fences = [&self.seen.source, &self.seen.target];
            let active = fences.iter().filter(|f| matches!(f, Fence::Active(_)));
            active.count()
        }
    }

    fn starts() -> [World; 3] {
        [Fence::None, Fence::Moved(6), Fence::Fenced(5)].map(|target| World::new(7, target))
    }

    #[test]
    fn step_by_step_the_tenant_is_on_the_target() {
        for mut world in starts() {
            let mut steps = Vec::new();
            loop {
                let step = next(&world.seen, world.epoch).unwrap();
                steps.push(step);
                assert!(world.owners() <= 1);
                if step == Next::Over {
                    break;
                }
                world.forward(step);
            }
            assert_eq!(
                steps,
                [
                    Next::Arm,
                    Next::Close,
                    Next::Leave,
                    Next::Activate,
                    Next::Over
                ]
            );
            assert_eq!(world.seen.target, Fence::Active(8));
        }
    }

    #[test]
    fn undone_anywhere_and_stopped_anywhere_in_that_the_source_serves_again() {
        for start in starts() {
            for steps in 0..=4 {
                for undone in 0..=4 {
                    let mut world = start.clone();
                    for _ in 0..steps {
                        world.forward(next(&world.seen, world.epoch).unwrap());
                    }
                    for _ in 0..undone {
                        world.backward(undo(&world.seen, world.epoch).unwrap());
                        assert!(world.owners() <= 1);
                    }
                    if steps == 4 {
                        assert_eq!(undo(&world.seen, 7), Ok(Undo::TooLate));
                        continue;
                    }
                    // A successor looks, and goes on whichever way it was going.
                    loop {
                        match next(&world.seen, world.epoch).unwrap() {
                            Next::Over => {
                                assert_eq!(world.seen.target, Fence::Active(8));
                                break;
                            }
                            Next::Undo => {
                                let back = undo(&world.seen, world.epoch).unwrap();
                                world.backward(back);
                                if let Undo::Undone(at) = back {
                                    assert_eq!(world.seen.source, Fence::Active(at));
                                    assert_eq!(world.owners(), 1);
                                    break;
                                }
                            }
                            step => world.forward(step),
                        }
                        assert!(world.owners() <= 1);
                    }
                }
            }
        }
    }

    #[test]
    fn a_worker_thought_dead_finds_the_target_disarmed() {
        let mut world = World::new(7, Fence::None);
        for _ in 0..3 {
            world.forward(next(&world.seen, 7).unwrap());
        }
        assert_eq!(next(&world.seen, 7), Ok(Next::Activate));
        world.backward(undo(&world.seen, 7).unwrap());
        assert_ne!(world.seen.target, Fence::Fenced(8));
        assert_eq!(next(&world.seen, 7), Ok(Next::Undo));
    }

    #[test]
    fn what_no_step_leaves_behind_is_nobodys_to_guess() {
        let world = World::new(7, Fence::None);
        for seen in [
            Seen {
                target: Fence::Active(7),
                ..world.seen.clone()
            },
            Seen {
                out: Some(false),
                ..world.seen.clone()
            },
            Seen {
                source: Fence::None,
                ..world.seen.clone()
            },
            Seen {
                source: Fence::Active(9),
                target: Fence::Active(8),
                ..world.seen.clone()
            },
            Seen {
                source: Fence::Fenced(7),
                target: Fence::Fenced(8),
                out: Some(true),
                back: Some(true),
            },
        ] {
            assert!(next(&seen, 7).is_err(), "{seen:?}");
        }
    }
}
