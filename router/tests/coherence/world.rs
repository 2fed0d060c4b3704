//! What there is: databases with their logs, workers, one router, the cache.

use super::*;

/// Writes in all: up to two or three ordinary ones, and a move's own.
pub(super) const WRITES: usize = 6;
/// Places of one log.
pub(super) const PLACES: usize = 6;
/// Databases that a story may need: a shard's old and new primary, and another shard's.
pub(super) const LINES: usize = 3;
pub(super) const CELLS: usize = 3;
pub(super) const TABLE_A: Set = 1;
/// What a change of the schema touches (rule 12).
pub(super) const ALL_TABLES: Set = 3;
pub(super) const FENCE_CELL: Set = 4;

/// The job's own writes, by their number.
pub(super) const FENCE: usize = 2;
pub(super) const ACTIVATE: usize = 3;
pub(super) const FENCE_BACK: usize = 4;
pub(super) const ACTIVATE_BACK: usize = 5;

/// The last look at a slot, among the workers' turns.
pub(super) const LOOK: usize = 7;

/// Nothing was read under a stamp.
pub(super) const NOTHING: Set = 0xff;

pub(super) fn bit(write: usize) -> Set {
    1 << write
}

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Write {
    Ahead,
    /// It has passed the fence of a database and holds its lock.
    Entered(usize),
    /// Its commit is in the log, and no snapshot has it yet.
    Logged(usize, Lsn),
    Visible(usize, Lsn),
}

/// A lease, or the ping that asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    /// Visible when the ping left.
    pub(super) knows: Set,
    pub(super) by: Option<usize>,
    /// The ping left before these: a worker's turn, by its number, or [`LOOK`].
    pub(super) before: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ping {
    Sent,
    Marked(Lsn),
    Answered(Lsn),
}

/// What the router has heard of one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct View {
    pub(super) watermark: Lsn,
    pub(super) cells: [Lsn; CELLS],
    /// Cells of the next commit that are raised already.
    pub(super) raised: Set,
    pub(super) ping: Option<(Ping, Lease)>,
    pub(super) lease: Option<Lease>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Worker {
    pub(super) runs: bool,
    /// It may take pings: it has the slot and has said so on the primary.
    pub(super) takes_pings: bool,
    pub(super) start: Lsn,
    pub(super) published: Lsn,
    /// It counts the router among those that may hold a lease.
    pub(super) counts: bool,
    /// It may answer barriers: every lease from before its time is over.
    pub(super) settled: bool,
    /// Where its slot was taken from it.
    pub(super) cut_off_at: Option<Lsn>,
}

/// The watched read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Read {
    Begun {
        owed: Set,
    },
    Leased {
        owed: Set,
        lease: Option<Lease>,
    },
    Found {
        owed: Set,
        lease: Option<Lease>,
        answer: Set,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) writes: [Write; WRITES],
    pub(super) acknowledged: Set,
    /// Needs no barrier: nobody had the slot.
    pub(super) vouched: Set,
    /// By a promotion.
    pub(super) lost: Set,
    /// What a database had when it began, and its first place.
    pub(super) began_with: [Set; LINES],
    pub(super) began_at: [Lsn; LINES],
    /// What the stream back has brought to database 0.
    pub(super) brought_back: Set,
    pub(super) workers: [Worker; LINES],
    pub(super) views: [View; LINES],
    /// Which placement, or generation, the router believes in: an index of
    /// [`Rules::placements`].
    pub(super) believed: usize,
    /// The worker that the router follows, where two have the same generation.
    pub(super) followed: usize,
    /// The story has taken its turn.
    pub(super) turned: bool,
    /// Who has the slot; and how often it was taken, as the primary knows.
    pub(super) slot: Option<usize>,
    pub(super) term: u8,
    /// A look that saw nobody have the slot, and the term then.
    pub(super) looked: Option<u8>,
    /// What all answers under a stamp have in common, by placement and place.
    pub(super) cache: [[Set; PLACES]; LINES],
    pub(super) read: Option<Read>,
    pub(super) wrong: bool,
}

impl World {
    pub(super) fn begin(rules: &Rules) -> Self {
        let running = Worker {
            runs: true,
            takes_pings: true,
            settled: true,
            ..Worker::default()
        };
        let mut workers = [Worker::default(); LINES];
        let attended = rules.story != Story::Unattended;
        if attended {
            workers[0] = running;
        }
        if rules.moves() {
            workers[1] = running;
        }
        Self {
            writes: [Write::Ahead; WRITES],
            acknowledged: 0,
            vouched: 0,
            lost: 0,
            began_with: [0; LINES],
            began_at: [0; LINES],
            brought_back: 0,
            workers,
            views: [View::default(); LINES],
            believed: 0,
            followed: 0,
            turned: false,
            slot: attended.then_some(0),
            term: 0,
            looked: None,
            cache: [[NOTHING; PLACES]; LINES],
            read: None,
            wrong: false,
        }
    }

    pub(super) fn place(&self, write: usize) -> Option<(usize, Lsn)> {
        match self.writes[write] {
            Write::Logged(line, lsn) | Write::Visible(line, lsn) => Some((line, lsn)),
            Write::Ahead | Write::Entered(_) => None,
        }
    }

    pub(super) fn those(&self, which: impl Fn(Write) -> bool) -> Set {
        let chosen = (0..WRITES).filter(|&i| which(self.writes[i]));
        chosen.map(bit).sum()
    }

    pub(super) fn is_visible(&self, write: usize) -> bool {
        matches!(self.writes[write], Write::Visible(..))
    }

    pub(super) fn any_visible(&self) -> Set {
        self.those(|w| matches!(w, Write::Visible(..)))
    }

    /// The end of a database's log.
    pub(super) fn end(&self, line: usize) -> Lsn {
        let own = (0..WRITES).filter(|&i| self.place(i).is_some_and(|(l, _)| l == line));
        self.began_at[line] + own.count() as Lsn
    }

    pub(super) fn at(&self, line: usize, lsn: Lsn) -> Option<usize> {
        (0..WRITES).find(|&i| self.place(i) == Some((line, lsn)))
    }

    /// A snapshot of the primary. What is visible need not be a prefix of its log.
    pub(super) fn snapshot(&self, line: usize) -> Set {
        let own = self.those(|w| matches!(w, Write::Visible(l, _) if l == line));
        self.with_brought_back(line, self.began_with[line] | own)
    }

    /// A snapshot of a standby: a prefix of the log, whatever the primary shows.
    pub(super) fn replayed(&self, line: usize, upto: Lsn) -> Set {
        let own = (0..WRITES).filter(|&i| {
            let place = self.place(i);
            place.is_some_and(|(l, lsn)| l == line && lsn <= upto)
        });
        self.with_brought_back(line, self.began_with[line] | own.map(bit).sum::<Set>())
    }

    fn with_brought_back(&self, line: usize, seen: Set) -> Set {
        match line == 0 && seen & bit(ACTIVATE_BACK) != 0 {
            true => seen | self.brought_back,
            false => seen,
        }
    }

    /// Leases that can still answer, and pings that may become one.
    pub(super) fn leases(&self) -> impl Iterator<Item = Lease> + '_ {
        let read = match self.read {
            Some(Read::Leased { lease, .. } | Read::Found { lease, .. }) => lease,
            _ => None,
        };
        let heard = self.views.iter();
        let heard = heard.flat_map(|view| view.lease.into_iter().chain(view.ping.map(|p| p.1)));
        heard.chain(read)
    }

    /// A worker takes its turn, or a look is taken: whatever was asked for until
    /// now was asked for before it.
    pub(super) fn turn(&mut self, mark: usize) {
        self.turned = true;
        let views = self.views.iter_mut();
        let heard = views.flat_map(|view| {
            let ping = view.ping.as_mut().map(|(_, lease)| lease);
            view.lease.as_mut().into_iter().chain(ping)
        });
        let read = match &mut self.read {
            Some(Read::Leased { lease, .. } | Read::Found { lease, .. }) => lease.as_mut(),
            _ => None,
        };
        for lease in heard.chain(read) {
            lease.before |= bit(mark);
        }
    }
}

/// Who is who in each story.
impl Rules {
    pub(super) fn moves(&self) -> bool {
        use Story::*;
        matches!(self.story, Move | MoveBack | MoveThenPromotion)
    }

    pub(super) fn promotes(&self) -> bool {
        matches!(self.story, Story::Promotion | Story::MoveThenPromotion)
    }

    /// The generations that the router comes to believe in, one after another.
    pub(super) fn placements(&self) -> &'static [usize] {
        match self.story {
            Story::Quiet | Story::Takeover | Story::Unattended => &[0],
            Story::NewSlot | Story::Promotion | Story::Move => &[0, 1],
            Story::MoveBack => &[0, 1, 0],
            Story::MoveThenPromotion => &[0, 1, 2],
        }
    }

    /// The database that a generation is a history of.
    pub(super) fn line_of(&self, generation: usize) -> usize {
        match self.story {
            Story::NewSlot => 0,
            _ => generation,
        }
    }

    pub(super) fn generation_of_worker(&self, worker: usize) -> usize {
        match self.story {
            Story::Takeover | Story::Unattended => 0,
            _ => worker,
        }
    }

    pub(super) fn worker_of(&self, world: &World, generation: usize) -> usize {
        match self.story {
            Story::Takeover | Story::Unattended => world.followed,
            _ => generation,
        }
    }

    pub(super) fn is_the_jobs(&self, write: usize) -> bool {
        let own = match self.story {
            Story::MoveBack => FENCE..=ACTIVATE_BACK,
            Story::Move | Story::MoveThenPromotion => FENCE..=ACTIVATE,
            _ => return false,
        };
        own.contains(&write)
    }

    pub(super) fn touched_by(&self, write: usize) -> Set {
        match write {
            // What the stream back applies raises the table's cell, too.
            ACTIVATE_BACK if self.is_the_jobs(write) => FENCE_CELL | TABLE_A,
            _ if self.is_the_jobs(write) => FENCE_CELL,
            _ if self.touches[write] == ALL_TABLES && !self.keeps(R12DdlRaisesNoCell) => 0,
            _ => self.touches[write],
        }
    }

    /// The database that was promoted away from, in stories that do so.
    pub(super) fn deposed(&self, world: &World, line: usize) -> bool {
        let old = usize::from(self.moves());
        self.promotes() && world.turned && line == old
    }

    /// An assumption: who promotes a standby sees to it that the old primary
    /// serves nobody.
    pub(super) fn serves(&self, world: &World, line: usize) -> bool {
        !self.deposed(world, line) || !self.keeps(TheOldPrimaryLives)
    }

    /// Rule 11: every read passes the fence of the node that answers it, with the
    /// epoch of the placement that the router believes in.
    pub(super) fn admits(&self, placement: usize, seen: Set, replica: bool) -> bool {
        if !self.moves() || (replica && !self.keeps(R11ReplicaUnfenced)) {
            return true;
        }
        let has = |write| seen & bit(write) != 0;
        match placement {
            0 => !has(FENCE) || !self.keeps(R11FencedReads),
            1 => has(ACTIVATE) && !has(FENCE_BACK),
            // Moved back; or promoted, the fences set again as they must be.
            _ => self.story != Story::MoveBack || has(ACTIVATE_BACK),
        }
    }

    /// What an answer to `question` has to have of `of`.
    pub(super) fn owed(&self, world: &World, of: Set, question: Set) -> Set {
        let asked = |i: &usize| !self.is_the_jobs(*i) && self.touches[*i] & question != 0;
        (0..WRITES).filter(asked).map(bit).sum::<Set>() & of & !world.lost
    }

    /// Rule 6: none of the entry's cells is beyond its stamp.
    pub(super) fn is_fresh(&self, view: &View, stamp: Lsn, question: Set) -> bool {
        let mut cells = match self.keeps(R6OneCellOnly) {
            true => question,
            false => TABLE_A,
        };
        if self.moves() && self.keeps(R11FenceNoCell) {
            cells |= FENCE_CELL;
        }
        let untouched = |c: usize| cells & bit(c) == 0 || view.cells[c] <= stamp;
        (0..CELLS).all(untouched) || !self.keeps(R6CellsNotCompared)
    }

    /// Everything that the router would answer from the cache now, but for its
    /// lease: (answer, stamp, question).
    pub(super) fn hits<'a>(
        &'a self,
        world: &'a World,
    ) -> impl Iterator<Item = (Set, Lsn, Set)> + 'a {
        let view = &world.views[self.placements()[world.believed]];
        let all = 0..self.placements().len();
        let of = all.filter(|&p| p == world.believed || !self.keeps(R6GenerationNotCompared));
        let entries = of.flat_map(move |p| (0..PLACES).map(move |a| (world.cache[p][a], a as Lsn)));
        let entries = entries.filter(|(answer, _)| *answer != NOTHING);
        entries.flat_map(move |(answer, stamp)| {
            let asked = self.questions.iter();
            let fresh = asked.filter(move |q| self.is_fresh(view, stamp, **q));
            fresh.map(move |q| (answer, stamp, *q))
        })
    }

    /// Rule 5: whatever any router could read now, under any stamp that it may
    /// have taken before.
    pub(super) fn fill(&self, world: &mut World) {
        for (placement, &generation) in self.placements().iter().enumerate() {
            let line = self.line_of(generation);
            let workers = || {
                let all = world.workers.iter().enumerate();
                all.filter(|(v, w)| w.runs && self.generation_of_worker(*v) == generation)
            };
            let Some(newest) = workers().map(|(_, w)| w.published).max() else {
                continue;
            };
            let oldest = workers().map(|(_, w)| w.start).min().unwrap_or(0);
            let newest = match self.keeps(R5StampedByTheServersLog) {
                true => newest,
                false => world.end(line),
            };
            for stamp in oldest..=newest {
                for answer in self.readable(world, placement, line, stamp) {
                    world.cache[placement][stamp as usize] &= answer;
                }
            }
        }
    }

    fn readable(&self, world: &World, placement: usize, line: usize, stamp: Lsn) -> Vec<Set> {
        let mut answers = Vec::new();
        let primary = world.snapshot(line);
        if self.serves(world, line) && self.admits(placement, primary, false) {
            answers.push(primary);
        }
        if self.replicas {
            let from = match self.keeps(R5ReplicaNotFarEnough) {
                true => stamp,
                false => 0,
            };
            let far = (from..=world.end(line)).map(|lsn| world.replayed(line, lsn));
            answers.extend(far.filter(|seen| self.admits(placement, *seen, true)));
        }
        if !self.keeps(R5StampedAfterReading) {
            answers.push(world.began_with[line]);
        }
        if !self.keeps(R5OtherTimeline) && self.story == Story::Promotion && placement == 1 {
            answers.push(world.snapshot(0));
        }
        answers
    }
}
