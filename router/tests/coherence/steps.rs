//! What may happen next, and what it changes. Each condition is a rule.

use super::world::*;
use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    // Writes.
    Enter(usize),
    Log(usize),
    Show(usize),
    AcknowledgeLate(usize),
    AcknowledgeByWorker(usize, usize),
    Vouch(usize),
    AcknowledgeVouched(usize),
    Crash(usize),
    // The worker.
    Publish(usize),
    Forget(usize),
    Settle(usize),
    // The router.
    Raise(usize, usize),
    Advance(usize),
    SendPing(usize),
    Receive(usize, usize),
    Answer(usize),
    TakeLease(usize),
    LeaseEnds(usize),
    PingEnds(usize),
    Restart,
    Attach(usize),
    Hear,
    // The story.
    TakeSlot(usize, Lsn),
    SayTerm(usize),
    LoseSlot,
    Look,
    MakeSlot,
    BeginSlot,
    Promote(Lsn),
    LoseFence,
    // The watched read.
    ReadBegins,
    ReadLoads,
    ReadFinds(Lsn),
    ReadsLeaseEnds,
    ReadAnswers,
}
use Step::*;

impl Rules {
    pub(super) fn possible(&self, world: &World, steps: &mut Vec<Step>) {
        for i in 0..WRITES {
            self.of_write(world, i, steps);
        }
        for v in 0..LINES {
            self.of_worker(world, v, steps);
        }
        self.of_router(world, steps);
        self.of_story(world, steps);
        if self.by_steps {
            self.of_read(world, steps);
        }
    }

    /// Steps that lead on to a hit, the most useful first; for liveness.
    pub(super) fn helpful(&self, world: &World) -> Option<Step> {
        let mut steps = Vec::new();
        self.possible(world, &mut steps);
        let rank = |step: &Step| match step {
            Show(_) => 0,
            SayTerm(_) | BeginSlot | Hear => 1,
            Attach(v) if world.slot == Some(*v) || self.story == Story::Takeover => 2,
            Log(_) => 3,
            Publish(_) => 4,
            Raise(..) => 5,
            Advance(_) => 6,
            TakeLease(_) => 7,
            Answer(_) => 8,
            Receive(_, v) if world.slot == Some(*v) || self.story != Story::Unattended => 9,
            AcknowledgeByWorker(..) => 10,
            SendPing(g) if *g == self.placements()[world.believed] => 11,
            TakeSlot(..) if self.story == Story::Unattended => 12,
            // What waits for a time that never ends in a world without a clock.
            PingEnds(_) | Settle(_) | Forget(_) => 13,
            LeaseEnds(_) | AcknowledgeLate(_) => 14,
            _ => 99,
        };
        steps.sort_by_key(rank);
        steps.first().copied().filter(|step| rank(step) < 99)
    }

    fn of_write(&self, world: &World, i: usize, steps: &mut Vec<Step>) {
        match world.writes[i] {
            Write::Ahead if self.may_begin(world, i) => {
                let enters = self.moves() && !self.is_the_jobs(i);
                steps.push(if enters { Enter(i) } else { Log(i) });
            }
            Write::Entered(_) => steps.push(Log(i)),
            Write::Logged(line, _) if self.serves(world, line) => steps.push(Show(i)),
            Write::Visible(..) if world.acknowledged & bit(i) == 0 => {
                self.acknowledging(world, i, steps);
            }
            _ => {}
        }
        // Rule 7: what is visible is on disk, so that a crash takes none of it back.
        if !self.keeps(R7CrashTakesBackACommit) && world.is_visible(i) {
            let (line, lsn) = world.place(i).unwrap_or_default();
            steps.extend((lsn == world.end(line)).then_some(Crash(i)));
        }
        let early = !self.keeps(R8AloneLookedTooEarly) && i < self.writes;
        let late_enough = world.is_visible(i) || early;
        let new = world.acknowledged & bit(i) == 0 && world.vouched & bit(i) == 0;
        if self.story == Story::Unattended && late_enough && new && self.nobody_could(world) {
            steps.push(Vouch(i));
        }
    }

    /// Rule 8 without a worker: nobody has the slot, nobody has had it since a
    /// look so long ago that every lease from before it is over.
    fn nobody_could(&self, world: &World) -> bool {
        let old = world.leases().any(|lease| lease.before & bit(LOOK) != 0);
        let same = world.looked == Some(world.term) || !self.keeps(R8AloneTermNotCompared);
        world.slot.is_none()
            && world.looked.is_some()
            && same
            && (!old || !self.keeps(R8AloneLookedTooLate))
    }

    fn may_begin(&self, world: &World, i: usize) -> bool {
        if self.is_the_jobs(i) {
            return self.jobs_turn(world, i);
        }
        // Writes that touch the same are alike: they begin in order.
        let in_order = i == 0
            || self.is_the_jobs(i - 1)
            || world.writes[i - 1] != Write::Ahead
            || self.touches[i - 1] != self.touches[i];
        i < self.writes && in_order && (!self.moves() || self.home(world).is_some())
    }

    /// §7, step 4: the fence, its barrier (rule 11), the writers in flight, then
    /// the other side's fence.
    fn jobs_turn(&self, world: &World, i: usize) -> bool {
        let fence = match i {
            FENCE => return true,
            FENCE_BACK => return world.is_visible(ACTIVATE) && world.believed > 0,
            ACTIVATE => FENCE,
            _ => FENCE_BACK,
        };
        let line = usize::from(fence == FENCE_BACK);
        let barrier = world.acknowledged & bit(fence) != 0 || !self.keeps(R11NotWaited);
        let writing = world.those(|w| match w {
            Write::Entered(l) | Write::Logged(l, _) => l == line,
            _ => false,
        });
        let ended = writing == 0 || !self.keeps(R11WritersInFlight);
        world.is_visible(fence) && barrier && ended
    }

    /// The database whose fence lets a write through now.
    fn home(&self, world: &World) -> Option<usize> {
        if self.story == Story::MoveThenPromotion && world.turned {
            return Some(2);
        }
        let order = [FENCE, ACTIVATE, FENCE_BACK, ACTIVATE_BACK];
        let passed = order.iter().take_while(|job| world.is_visible(**job));
        match passed.count() {
            0 | 4 => Some(0),
            2 => Some(1),
            _ => None,
        }
    }

    /// Rule 8: no lease is left that could answer without the write.
    fn acknowledging(&self, world: &World, i: usize, steps: &mut Vec<Step>) {
        let Some((line, lsn)) = world.place(i) else {
            return;
        };
        let lacks = |lease: Lease| lease.knows & bit(i) == 0;
        if !world.leases().any(lacks) || !self.keeps(R8NotWaited) {
            steps.push(AcknowledgeLate(i));
        }
        if world.vouched & bit(i) != 0 {
            steps.push(AcknowledgeVouched(i));
        }
        for (v, worker) in world.workers.iter().enumerate() {
            let generation = self.generation_of_worker(v);
            let view = &world.views[generation];
            let of_line = self.line_of(generation) == line || !self.keeps(R8OtherTimeline);
            let knows = worker.published >= lsn || !self.keeps(R8NotPublishedByTheWorker);
            let settled = worker.settled || !self.keeps(R8NewWorkerSpeaksAtOnce);
            let applied = !worker.counts || view.watermark >= lsn;
            if worker.runs && of_line && knows && settled && applied {
                steps.push(AcknowledgeByWorker(i, v));
            }
        }
    }

    fn of_worker(&self, world: &World, v: usize, steps: &mut Vec<Step>) {
        let worker = &world.workers[v];
        if !worker.runs {
            return;
        }
        let line = self.line_of(self.generation_of_worker(v));
        let decoded = worker.cut_off_at.unwrap_or(world.end(line));
        // Rules 1 and 2: in the log's order, and only what a snapshot has.
        let seen = match world.at(line, worker.published + 1) {
            Some(next) => world.is_visible(next) || !self.keeps(R2PublishedUnseen),
            None => true,
        };
        if worker.published < decoded && seen {
            steps.push(Publish(v));
        }
        let holds = world.leases().any(|lease| lease.by == Some(v));
        if worker.counts && !self.coarse() && (!holds || !self.keeps(R8HolderForgotten)) {
            steps.push(Forget(v));
        }
        if !worker.settled && !world.leases().any(|lease| lease.before & bit(v) != 0) {
            steps.push(Settle(v));
        }
    }

    /// A move has many states: what other stories take apart it takes at once.
    fn coarse(&self) -> bool {
        self.moves()
    }

    fn of_router(&self, world: &World, steps: &mut Vec<Step>) {
        let here = self.placements()[world.believed];
        let mut generations: Vec<usize> = self.placements().to_vec();
        generations.sort_unstable();
        generations.dedup();
        for g in generations {
            // A lease is a shard's, whoever lives there.
            let v = self.worker_of(world, g);
            let known = g == here || (self.moves() && g < 2);
            if known && world.workers[v].runs {
                self.of_view(world, g, v, steps);
            }
        }
        match self.story {
            Story::Quiet if !self.by_steps => steps.push(Restart),
            Story::Takeover if world.turned && world.followed == 0 => steps.push(Attach(1)),
            Story::Unattended => {
                let behind = |v: &usize| world.views[0].watermark < world.workers[*v].start;
                let runs = (0..2).filter(|v| world.workers[*v].runs);
                let others = runs.filter(|v| *v != world.followed || behind(v));
                steps.extend(others.map(Attach));
            }
            _ => {}
        }
    }

    fn of_view(&self, world: &World, g: usize, v: usize, steps: &mut Vec<Step>) {
        let (view, worker) = (&world.views[g], &world.workers[v]);
        // Rule 3: the next commit, its cells first.
        let next = view.watermark + 1;
        let delivered = view.watermark >= worker.start && next <= worker.published;
        let commit = world.at(self.line_of(g), self.raising(view));
        let touched = commit.map_or(0, |i| self.touched_by(i));
        let pending = if self.coarse() {
            0
        } else {
            touched & !view.raised
        };
        if delivered || !self.keeps(R3WatermarkFirst) {
            let cells = (0..CELLS).filter(|&c| pending & bit(c) != 0);
            steps.extend(cells.map(|c| Raise(g, c)));
        }
        if delivered && pending == 0 {
            steps.push(Advance(g));
        }
        match view.ping {
            None if self.has_leases(g) => steps.push(SendPing(g)),
            None => {}
            Some((Ping::Sent, _)) => {
                let takers = (0..LINES).filter(|&v| self.can_receive(world, g, v));
                steps.extend(takers.map(|v| Receive(g, v)));
            }
            Some((Ping::Marked(marker), lease)) => {
                let by = lease.by.map(|v| &world.workers[v]);
                let published = by.is_some_and(|w| w.runs && w.published >= marker);
                if published || !self.keeps(R4AnsweredWithoutMarker) {
                    steps.push(Answer(g));
                }
            }
            Some((Ping::Answered(marker), _))
                if view.watermark >= marker || !self.keeps(R4AnsweredWithoutMarker) =>
            {
                steps.push(TakeLease(g));
            }
            Some((Ping::Answered(_), _)) => {}
        }
        steps.extend(view.lease.map(|_| LeaseEnds(g)));
        let lost = view.ping.filter(|_| !self.coarse() || g == 0);
        steps.extend(lost.map(|_| PingEnds(g)));
    }

    /// The longer moves would have too many states, were every shard's history
    /// leased: here it is the one whose answers come back, or the promoted one's.
    fn has_leases(&self, g: usize) -> bool {
        match self.story {
            Story::MoveBack => g == 0,
            Story::MoveThenPromotion => g > 0,
            _ => true,
        }
    }

    fn raising(&self, view: &View) -> Lsn {
        view.watermark + Lsn::from(self.keeps(R3WatermarkFirst))
    }

    /// The marker is committed on a primary, by who has its slot.
    fn can_receive(&self, world: &World, g: usize, v: usize) -> bool {
        let worker = &world.workers[v];
        let mut takes = worker.runs && worker.takes_pings && worker.cut_off_at.is_none();
        if self.story == Story::Unattended && v < 2 {
            takes |= !self.keeps(R8AlonePingBeforeSlot) && !worker.runs;
        }
        takes && self.generation_of_worker(v) == g && self.serves(world, self.line_of(g))
    }

    fn of_story(&self, world: &World, steps: &mut Vec<Step>) {
        let moved = world.believed + 1 < self.placements().len();
        match self.story {
            Story::Takeover if !world.turned => {
                // Rule 1: a slot is confirmed up to what is published, and no further.
                let confirmed = match self.keeps(R1SlotConfirmedTooFar) {
                    true => world.workers[0].published,
                    false => world.end(0),
                };
                steps.extend((0..=confirmed).map(|start| TakeSlot(1, start)));
            }
            Story::NewSlot if !world.turned => steps.push(MakeSlot),
            Story::NewSlot => {
                // Rule 1: all that ran when the slot was made has ended.
                let start = world.workers[1].start;
                let older = world.those(|w| matches!(w, Write::Logged(0, lsn) if lsn <= start));
                let waited = older == 0 || !self.keeps(R1FirstWatermarkTooEarly);
                if !world.workers[1].runs && waited {
                    steps.push(BeginSlot);
                }
                if world.workers[1].runs && moved {
                    steps.push(Hear);
                }
            }
            Story::Promotion if !world.turned => {
                steps.extend((0..=world.end(0)).map(Promote));
            }
            Story::Promotion if moved => steps.push(Hear),
            Story::Unattended => self.of_slot(world, steps),
            Story::Move | Story::MoveBack | Story::MoveThenPromotion => {
                let next = match world.believed {
                    0 => world.is_visible(ACTIVATE),
                    _ if self.story == Story::MoveBack => world.is_visible(ACTIVATE_BACK),
                    _ => world.turned,
                };
                if moved && next {
                    steps.push(Hear);
                }
                let fenced = world.is_visible(FENCE) && world.is_visible(ACTIVATE);
                if !self.keeps(R11FenceLostWithItsNode) && fenced && world.believed == 0 {
                    steps.push(LoseFence);
                }
                let promotes = self.story == Story::MoveThenPromotion && !world.turned;
                if promotes && world.is_visible(ACTIVATE) {
                    steps.extend((0..=world.end(1)).map(Promote));
                }
            }
            _ => {}
        }
    }

    /// Two workers, each with its one time.
    fn of_slot(&self, world: &World, steps: &mut Vec<Step>) {
        for v in 0..2 {
            let worker = &world.workers[v];
            if world.slot.is_none() && !worker.runs {
                let confirmed = world.workers[1 - v].published;
                steps.push(TakeSlot(v, confirmed));
            }
            let has = world.slot == Some(v);
            let early = !self.keeps(R8AloneTermRaisedLate);
            if has && worker.runs && (!worker.takes_pings || early) && world.term < 2 {
                steps.push(SayTerm(v));
            }
        }
        if world.slot.is_some() {
            steps.push(LoseSlot);
        } else if world.looked != Some(world.term) || !world.turned {
            steps.push(Look);
        }
    }

    fn of_read(&self, world: &World, steps: &mut Vec<Step>) {
        match world.read {
            None => steps.push(ReadBegins),
            Some(Read::Begun { .. }) => steps.push(ReadLoads),
            Some(Read::Leased { lease, .. }) => {
                let fit: Vec<Lsn> = self.hits(world).map(|hit| hit.1).collect();
                let entries = &world.cache[world.believed];
                let any = (0..PLACES as Lsn).filter(|a| entries[*a as usize] != NOTHING);
                let trusted = !self.keeps(R6JoinedFillTrusted);
                steps.extend(any.filter(|a| trusted || fit.contains(a)).map(ReadFinds));
                steps.extend(lease.map(|_| ReadsLeaseEnds));
            }
            Some(Read::Found { lease, .. }) => {
                let now = match self.keeps(R6LeaseLoadedLast) {
                    true => lease,
                    false => world.views[self.placements()[world.believed]].lease,
                };
                steps.extend(now.map(|_| ReadAnswers));
                steps.extend(lease.map(|_| ReadsLeaseEnds));
            }
        }
    }

    pub(super) fn take(&self, world: &mut World, step: Step) {
        match step {
            Enter(i) => world.writes[i] = Write::Entered(self.home(world).unwrap_or(0)),
            Log(i) => self.log(world, i),
            Show(i) => {
                if let Some((line, lsn)) = world.place(i) {
                    world.writes[i] = Write::Visible(line, lsn);
                }
            }
            AcknowledgeLate(i) | AcknowledgeByWorker(i, _) | AcknowledgeVouched(i) => {
                world.acknowledged |= bit(i);
            }
            Crash(i) => world.writes[i] = Write::Ahead,
            Vouch(i) => world.vouched |= bit(i),
            Publish(v) => world.workers[v].published += 1,
            Forget(v) => world.workers[v].counts = false,
            Settle(v) => world.workers[v].settled = true,
            Raise(g, c) => {
                let lsn = self.raising(&world.views[g]);
                let view = &mut world.views[g];
                view.cells[c] = view.cells[c].max(lsn);
                view.raised |= bit(c);
            }
            Advance(g) => self.advance(world, g),
            SendPing(g) => {
                let lease = Lease {
                    knows: world.any_visible(),
                    by: None,
                    before: 0,
                };
                world.views[g].ping = Some((Ping::Sent, lease));
            }
            Receive(g, v) => self.receive(world, g, v),
            Answer(g) => {
                if let Some((ping @ Ping::Marked(_), _)) = &mut world.views[g].ping
                    && let Ping::Marked(marker) = *ping
                {
                    *ping = Ping::Answered(marker);
                }
            }
            TakeLease(g) => self.take_lease(world, g),
            LeaseEnds(g) => world.views[g].lease = None,
            PingEnds(g) => world.views[g].ping = None,
            Restart => {
                let watermark = world.workers[0].published;
                let floor = match self.keeps(R3BegunWithoutFloor) {
                    true => watermark,
                    false => 0,
                };
                world.views[0] = View {
                    watermark,
                    cells: [floor; CELLS],
                    ..View::default()
                };
            }
            Attach(v) => self.attach(world, v),
            Hear => self.hear(world),
            TakeSlot(v, start) => {
                world.slot = Some(v);
                if self.story == Story::Takeover {
                    world.workers[0].cut_off_at = Some(world.end(0));
                }
                world.turn(v);
                let takes_pings =
                    self.story == Story::Takeover || !self.keeps(R8AloneTermRaisedLate);
                let counts = world.workers[v].counts;
                world.workers[v] = Worker {
                    runs: true,
                    takes_pings,
                    start,
                    published: start,
                    counts,
                    ..Worker::default()
                };
            }
            SayTerm(v) => {
                world.term += 1;
                world.workers[v].takes_pings = true;
            }
            LoseSlot => {
                if let Some(v) = world.slot.take() {
                    world.workers[v].cut_off_at = Some(world.end(0));
                }
            }
            Look => {
                world.looked = Some(world.term);
                world.turn(LOOK);
            }
            MakeSlot => {
                let end = world.end(0);
                if self.keeps(R1OldSlotGoesOn) {
                    world.workers[0].cut_off_at = Some(end);
                }
                world.turn(1);
                world.workers[1] = Worker {
                    takes_pings: true,
                    start: end,
                    published: end,
                    ..Worker::default()
                };
            }
            BeginSlot => world.workers[1].runs = true,
            Promote(at) => self.promote(world, at),
            LoseFence => {
                world.writes[FENCE] = Write::Ahead;
                world.views[0] = View::default();
            }
            read => self.take_read(world, read),
        }
    }

    fn log(&self, world: &mut World, i: usize) {
        let line = match world.writes[i] {
            Write::Entered(line) => line,
            _ if self.is_the_jobs(i) => usize::from(i == ACTIVATE || i == FENCE_BACK),
            _ => usize::from(self.story == Story::Promotion && world.turned),
        };
        let jobs = bit(FENCE) | bit(ACTIVATE) | bit(FENCE_BACK) | bit(ACTIVATE_BACK);
        // Drained: the one side has all that the other has.
        if self.is_the_jobs(i) && i == ACTIVATE {
            world.began_with[1] = world.snapshot(0) & !jobs;
        }
        if self.is_the_jobs(i) && i == ACTIVATE_BACK {
            world.brought_back = world.snapshot(1) & !jobs;
        }
        world.writes[i] = Write::Logged(line, world.end(line) + 1);
    }

    fn advance(&self, world: &mut World, g: usize) {
        let next = world.views[g].watermark + 1;
        let commit = world.at(self.line_of(g), next);
        let touched = commit.map_or(0, |i| self.touched_by(i));
        let view = &mut world.views[g];
        if self.coarse() {
            for c in (0..CELLS).filter(|&c| touched & bit(c) != 0) {
                view.cells[c] = next;
            }
        }
        view.watermark = next;
        view.raised = 0;
    }

    fn receive(&self, world: &mut World, g: usize, v: usize) {
        let marker = match self.keeps(R4MarkerBeforePing) {
            true => world.end(self.line_of(g)),
            false => world.workers[v].published,
        };
        if let Some((ping, lease)) = &mut world.views[g].ping {
            *ping = Ping::Marked(marker);
            lease.by = Some(v);
        }
        // Rule 8: from its arrival on, connected or not.
        world.workers[v].counts |= self.keeps(R8HolderKnownTooLate);
    }

    fn take_lease(&self, world: &mut World, g: usize) {
        let Some((_, mut lease)) = world.views[g].ping.take() else {
            return;
        };
        if !self.keeps(R4CountedFromAnswer) {
            lease.knows = world.any_visible();
        }
        if let Some(v) = lease.by {
            world.workers[v].counts = true;
        }
        world.views[g].lease = Some(lease);
    }

    /// Rule 3: from another worker on from what was applied; what can't be had
    /// again costs every entry.
    fn attach(&self, world: &mut World, v: usize) {
        world.followed = v;
        let start = world.workers[v].start;
        let view = &mut world.views[0];
        if start > view.watermark && self.keeps(R3GapNeverClosed) {
            view.watermark = start;
            view.raised = 0;
            if self.keeps(R3GapPassedOver) {
                view.cells = [start; CELLS];
            }
        }
    }

    /// Rule 1: another generation, and all state of the older one is gone. (In a
    /// move: another placement; the shard's history goes on.)
    fn hear(&self, world: &mut World) {
        world.believed += 1;
        let g = self.placements()[world.believed];
        let begins = !self.moves() || g == 2;
        if begins {
            let start = world.workers[g].start;
            let before = self.placements()[world.believed - 1];
            world.views[before] = View::default();
            world.views[g] = View {
                watermark: start,
                cells: [start; CELLS],
                ..View::default()
            };
        }
    }

    fn promote(&self, world: &mut World, at: Lsn) {
        let (old, new) = match self.moves() {
            true => (1, 2),
            false => (0, 1),
        };
        let mut kept = world.replayed(old, at);
        if !self.keeps(R11TargetsStandbyBehind) {
            kept &= !world.began_with[old];
        }
        // What the source had acknowledged is no loss that a promotion may cause.
        let beyond = world.replayed(old, Lsn::MAX) & !world.replayed(old, at);
        world.lost |= beyond;
        world.began_with[new] = kept;
        world.began_at[new] = at;
        world.turn(new);
        world.workers[new] = Worker {
            runs: true,
            takes_pings: true,
            start: at,
            published: at,
            ..Worker::default()
        };
    }

    fn take_read(&self, world: &mut World, step: Step) {
        let here = self.placements()[world.believed];
        world.read = match (step, world.read) {
            (ReadBegins, _) => Some(Read::Begun {
                owed: world.acknowledged,
            }),
            (ReadLoads, Some(Read::Begun { owed })) => Some(Read::Leased {
                owed,
                lease: world.views[here].lease,
            }),
            (ReadFinds(a), Some(Read::Leased { owed, lease })) => Some(Read::Found {
                owed,
                lease,
                answer: world.cache[world.believed][a as usize],
            }),
            (ReadsLeaseEnds, Some(Read::Leased { owed, .. })) => {
                Some(Read::Leased { owed, lease: None })
            }
            (ReadsLeaseEnds, Some(Read::Found { owed, answer, .. })) => Some(Read::Found {
                owed,
                lease: None,
                answer,
            }),
            (_, Some(Read::Found { owed, answer, .. })) => {
                world.wrong |= owed & !answer & !world.lost != 0;
                None
            }
            (_, other) => other,
        };
    }
}
