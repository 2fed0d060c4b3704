//! How one shard is followed: what a worker's message changes, and what is said
//! in return. A state machine without I/O; the clock comes in as a value.
//!
//! ```text
//!             Captures            Start                Changes, Lease
//!   Idle ───────────────▶ Asked ─────────▶ Following ◀──────────────┐
//!    ▲    (send Follow)                        │ └──────────────────┘
//!    └──────────── Gone, connection closed ────┘  (apply, send Applied)
//! ```
//!
//! The history that was heard outlives the connection it came by: another worker
//! that took over the slot resumes it. Only another generation ends it (rule 1).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tenancy::changes::{CELLS, CellSet, FromRouter, Generation, Lsn};
use tenancy::id::ShardId;

use super::cells::Heard;
use super::clock::Boot;
use super::{LEASE, View};

/// One connection to a worker, numbered for this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Connection(pub u64);

/// What is to be sent, and to whom.
pub type Say = Vec<(Connection, FromRouter)>;

/// Pings that may wait for their answer at once; what the oldest would be
/// answered with is over by then.
const PINGS_MAX: usize = 8;
/// Leases that may wait for the watermark at once.
const GRANTED_MAX: usize = 8;

/// What is known of a shard's stream.
#[derive(Debug)]
pub struct Follow {
    shard: ShardId,
    view: Option<Arc<View>>,
    /// Connections whose worker says that it captures the shard, the newest last.
    claims: Vec<(Connection, Generation)>,
    source: Option<Source>,
    pings: VecDeque<Ping>,
    next_ping: u64,
    /// When the source was asked for a lease last.
    asked: Option<Boot>,
    /// It was wanted, and had a lease, when this was looked at last.
    leased: bool,
    leases_lost: u64,
    /// Leases whose place the watermark has not reached: (place, end).
    granted: VecDeque<(Lsn, Boot)>,
}

/// Where changes come from.
#[derive(Clone, Copy, Debug)]
struct Source {
    connection: Connection,
    /// `Start` has come.
    started: bool,
    /// When it was asked, or last gave a lease.
    heard: Boot,
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    id: u64,
    sent: Boot,
}

/// A worker that is asked for leases and gives none for so long is not the one
/// that has the slot, or can't reach it: another that claims it is tried.
const SILENT_MAX: Duration = Duration::from_secs(1);

impl Follow {
    /// Nothing is known.
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            view: None,
            claims: Vec::new(),
            source: None,
            pings: VecDeque::new(),
            next_ping: 0,
            asked: None,
            leased: false,
            leases_lost: 0,
            granted: VecDeque::new(),
        }
    }

    /// The history that requests are to use.
    pub fn view(&self) -> Option<&Arc<View>> {
        self.view.as_ref()
    }

    /// The connection that barriers go to.
    pub fn source(&self) -> Option<Connection> {
        let source = self.source.filter(|source| source.started);
        source.map(|source| source.connection)
    }

    /// A worker says that it captures the shard.
    pub fn is_claimed(&self) -> bool {
        !self.claims.is_empty()
    }

    /// A worker captures the shard. The newest claim is followed, unless it is
    /// to a history that is known to be over.
    pub fn captures(&mut self, from: Connection, generation: Generation, now: Boot) -> Say {
        self.claims.retain(|(connection, _)| *connection != from);
        self.claims.push((from, generation));
        let over = |view: &Arc<View>| generation.is_older_than(&view.generation);
        if self.view.as_ref().is_some_and(over) {
            return Vec::new();
        }
        self.ask(from, now)
    }

    /// A connection's worker begins the shard's changes.
    pub fn start(
        &mut self,
        from: Connection,
        generation: Generation,
        watermark: Lsn,
        resumed: bool,
        now: Boot,
    ) -> Say {
        if !self.is_from_source(from) {
            return Vec::new();
        }
        let known = self.view.clone();
        if known
            .as_ref()
            .is_some_and(|view| generation.is_older_than(&view.generation))
        {
            return self.leave(from, now);
        }
        let same = known.filter(|view| view.generation == generation);
        match same {
            Some(view) if resumed && view.heard.watermark() == watermark => {}
            // Rule 3: what can't be had again costs every entry, not the history:
            // its lease was granted for what it had applied, so it ends too.
            Some(view) if view.heard.watermark() <= watermark => {
                view.heard.end_lease();
                view.heard.raise_schema(watermark);
                view.heard.advance(watermark);
                self.forget_leases();
            }
            // Rule 1: another history. The old one goes with its cells, its lease
            // and its pings; requests that still hold it can't renew it.
            _ => {
                if let Some(old) = &self.view {
                    old.heard.end_lease();
                }
                self.forget_leases();
                self.view = Some(Arc::new(View {
                    generation,
                    heard: Heard::begin(CELLS, watermark),
                }));
            }
        }
        self.source = Some(Source {
            connection: from,
            started: true,
            heard: now,
        });
        self.applied(from)
    }

    /// Commits that followed each other in the shard's log (rule 3).
    pub fn changes(
        &mut self,
        from: Connection,
        generation: Generation,
        prev: Lsn,
        lsn: Lsn,
        cells: &CellSet,
        now: Boot,
    ) -> Say {
        let Some(view) = self.followed(from, generation) else {
            return Vec::new();
        };
        if prev != view.heard.watermark() {
            // A gap: once more, from what has been applied.
            return self.ask(from, now);
        }
        match cells {
            CellSet::All => view.heard.raise_schema(lsn),
            CellSet::Some(cells) => cells.iter().for_each(|cell| view.heard.raise(*cell, lsn)),
        }
        view.heard.advance(lsn);
        while let Some((at, until)) = self.granted.front().copied() {
            if at > lsn {
                break;
            }
            view.heard.take_lease(until);
            self.granted.pop_front();
        }
        self.applied(from)
    }

    /// The answer to a ping (rule 4): a lease from when the ping was sent, once
    /// the watermark is there.
    pub fn lease(
        &mut self,
        from: Connection,
        id: u64,
        generation: Generation,
        lsn: Lsn,
        now: Boot,
    ) {
        let Some(view) = self.followed(from, generation) else {
            return;
        };
        let Some(ping) = self.pings.iter().find(|ping| ping.id == id).copied() else {
            return;
        };
        self.pings.retain(|older| older.id > id);
        if let Some(source) = &mut self.source {
            source.heard = now;
        }
        let until = ping.sent.plus(LEASE);
        if view.heard.watermark() >= lsn {
            view.heard.take_lease(until);
        } else if self.granted.len() < GRANTED_MAX {
            self.granted.push_back((lsn, until));
        }
    }

    /// A worker does not capture the shard, or does no longer.
    pub fn gone(&mut self, from: Connection, now: Boot) -> Say {
        self.claims.retain(|(connection, _)| *connection != from);
        self.leave(from, now)
    }

    /// Whether a lease was asked for within that time.
    pub fn has_asked(&self, now: Boot, within: Duration) -> bool {
        self.asked.is_some_and(|last| now.since(last) < within)
    }

    /// Times that a lease ended while it was wanted.
    pub fn leases_lost(&self) -> u64 {
        self.leases_lost
    }

    /// Time to keep the lease alive, where it is wanted.
    pub fn tick(&mut self, wanted: bool, now: Boot) -> Say {
        let view = self.view.as_ref();
        let leased = wanted && view.is_some_and(|view| view.heard.lease().holds(now));
        let was_leased = std::mem::replace(&mut self.leased, leased);
        self.leases_lost += u64::from(was_leased && wanted && !leased);
        let Some(source) = self.source else {
            return Vec::new();
        };
        if !wanted {
            if let Some(source) = &mut self.source {
                source.heard = now;
            }
            return Vec::new();
        }
        if now.since(source.heard) > SILENT_MAX {
            let moved_on = self.next_claim(source.connection, now);
            if !moved_on.is_empty() {
                return moved_on;
            }
        }
        if !source.started {
            return Vec::new();
        }
        let id = self.next_ping;
        self.next_ping += 1;
        if self.pings.len() == PINGS_MAX {
            self.pings.pop_front();
        }
        self.pings.push_back(Ping { id, sent: now });
        self.asked = Some(now);
        let shard = self.shard.clone();
        vec![(source.connection, FromRouter::Ping { shard, id })]
    }

    /// Another worker that claims the shard, the newest first; of the same or a
    /// later history.
    fn next_claim(&mut self, not: Connection, now: Boot) -> Say {
        let known = self.view.as_ref().map(|view| view.generation);
        let claims = self.claims.iter().rev();
        let mut fit = claims.filter(|(connection, generation)| {
            let over = known.is_some_and(|known| generation.is_older_than(&known));
            *connection != not && !over
        });
        match fit.next().copied() {
            Some((connection, _)) => {
                // So that with three of them each has its turn.
                let turn = self.claims.iter().position(|(c, _)| *c == connection);
                if let Some(turn) = turn {
                    let claim = self.claims.remove(turn);
                    self.claims.insert(0, claim);
                }
                self.ask(connection, now)
            }
            None => Vec::new(),
        }
    }

    /// Asks a connection's worker for the shard, from what has been applied. A
    /// lease stays: it was granted for a history that goes on elsewhere.
    fn ask(&mut self, connection: Connection, now: Boot) -> Say {
        self.source = Some(Source {
            connection,
            started: false,
            heard: now,
        });
        // Pings went to the other worker, and only it can answer them.
        self.forget_leases();
        let resume = self.view.as_ref();
        let resume = resume.map(|view| (view.generation, view.heard.watermark()));
        let shard = self.shard.clone();
        vec![(connection, FromRouter::Follow { shard, resume })]
    }

    fn leave(&mut self, from: Connection, now: Boot) -> Say {
        if !self.is_from_source(from) {
            return Vec::new();
        }
        self.source = None;
        self.forget_leases();
        self.next_claim(from, now)
    }

    fn applied(&self, to: Connection) -> Say {
        let Some(view) = &self.view else {
            return Vec::new();
        };
        let applied = FromRouter::Applied {
            shard: self.shard.clone(),
            generation: view.generation,
            lsn: view.heard.watermark(),
        };
        vec![(to, applied)]
    }

    fn is_from_source(&self, from: Connection) -> bool {
        self.source.is_some_and(|source| source.connection == from)
    }

    /// The history that a message of the source is about; none where it is about
    /// another, or comes from elsewhere.
    fn followed(&self, from: Connection, generation: Generation) -> Option<Arc<View>> {
        let source = self.source.filter(|source| source.connection == from)?;
        let view = self.view.as_ref().filter(|_| source.started)?;
        (view.generation == generation).then(|| view.clone())
    }

    fn forget_leases(&mut self) {
        self.pings.clear();
        self.asked = None;
        self.granted.clear();
    }
}

#[cfg(test)]
mod tests {
    use tenancy::changes::Cell;

    use super::*;

    const A: Connection = Connection(1);
    const B: Connection = Connection(2);
    const G1: Generation = Generation {
        system: 7,
        timeline: 1,
        incarnation: 1,
    };
    const G2: Generation = Generation { timeline: 2, ..G1 };

    fn at(ms: u64) -> Boot {
        Boot::from_nanos(1_000_000 * ms)
    }

    fn changed(cells: &[u16]) -> CellSet {
        let mut set = CellSet::default();
        cells.iter().for_each(|cell| set.insert(Cell(*cell)));
        set
    }

    fn following() -> Follow {
        let mut follow = Follow::new("s1".into());
        follow.captures(A, G1, at(0));
        follow.start(A, G1, Lsn(100), false, at(0));
        follow
    }

    fn heard(follow: &Follow) -> &Heard {
        &follow.view().unwrap().heard
    }

    fn ping(follow: &mut Follow, now: Boot) -> u64 {
        match follow.tick(true, now).as_slice() {
            [(_, FromRouter::Ping { id, .. })] => *id,
            other => panic!("{other:?}"),
        }
    }

    fn resumes_at(say: &Say) -> (Connection, Option<(Generation, Lsn)>) {
        match say.as_slice() {
            [(connection, FromRouter::Follow { resume, .. })] => (*connection, *resume),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn changes_are_applied_in_order_and_told() {
        let mut follow = following();
        let say = follow.changes(A, G1, Lsn(100), Lsn(110), &changed(&[5]), at(1));
        assert!(matches!(
            say[..],
            [(A, FromRouter::Applied { lsn: Lsn(110), .. })]
        ));
        assert_eq!(heard(&follow).watermark(), Lsn(110));
        assert!(!heard(&follow).unchanged(&[Cell(5)], Lsn(109)));
        assert!(heard(&follow).unchanged(&[Cell(6)], Lsn(100)));
        assert!(heard(&follow).same_schema(Lsn(100)));
        follow.changes(A, G1, Lsn(110), Lsn(120), &CellSet::All, at(1));
        assert!(!heard(&follow).unchanged(&[Cell(6)], Lsn(119)));
        assert!(!heard(&follow).same_schema(Lsn(119)), "it may be DDL");
    }

    #[test]
    fn rule_3_a_gap_is_asked_for_again_and_nothing_is_applied() {
        let mut follow = following();
        let say = follow.changes(A, G1, Lsn(105), Lsn(110), &changed(&[5]), at(1));
        assert_eq!(resumes_at(&say), (A, Some((G1, Lsn(100)))));
        assert_eq!(heard(&follow).watermark(), Lsn(100));
        // What comes before the new start is not applied either.
        let say = follow.changes(A, G1, Lsn(100), Lsn(110), &changed(&[5]), at(1));
        assert!(say.is_empty());
        // It could be had again: nothing is lost.
        follow.start(A, G1, Lsn(100), true, at(2));
        assert!(heard(&follow).unchanged(&[Cell(5)], Lsn(100)));
        follow.changes(A, G1, Lsn(100), Lsn(110), &changed(&[5]), at(2));
        assert_eq!(heard(&follow).watermark(), Lsn(110));
    }

    #[test]
    fn rule_3_what_can_not_be_had_again_costs_every_entry_and_the_lease() {
        let mut follow = following();
        let id = ping(&mut follow, at(1));
        follow.lease(A, id, G1, Lsn(100), at(2));
        assert!(heard(&follow).lease().holds(at(200)));
        follow.captures(B, G1, at(3));
        follow.start(B, G1, Lsn(150), false, at(4));
        assert!(!heard(&follow).unchanged(&[Cell(9)], Lsn(149)));
        assert!(!heard(&follow).same_schema(Lsn(149)));
        assert_eq!(heard(&follow).watermark(), Lsn(150));
        assert!(!heard(&follow).lease().holds(at(5)));
    }

    #[test]
    fn rule_4_a_lease_counts_from_its_ping_and_waits_for_the_watermark() {
        let mut follow = following();
        let id = ping(&mut follow, at(10));
        follow.lease(A, id, G1, Lsn(110), at(40));
        assert!(!heard(&follow).lease().holds(at(40)), "W is behind");
        follow.changes(A, G1, Lsn(100), Lsn(109), &changed(&[]), at(41));
        assert!(!heard(&follow).lease().holds(at(41)), "W is still behind");
        follow.changes(A, G1, Lsn(109), Lsn(110), &changed(&[]), at(42));
        assert!(heard(&follow).lease().holds(at(260)));
        assert!(
            !heard(&follow).lease().holds(at(261)),
            "t0 + D, and no more"
        );
    }

    #[test]
    fn rule_4_an_answer_to_no_ping_of_this_stream_is_no_lease() {
        let mut follow = following();
        let id = ping(&mut follow, at(10));
        follow.captures(B, G1, at(11));
        follow.start(B, G1, Lsn(100), true, at(12));
        follow.lease(A, id, G1, Lsn(100), at(13));
        follow.lease(B, id, G1, Lsn(100), at(13));
        follow.lease(B, 99, G1, Lsn(100), at(13));
        assert!(!heard(&follow).lease().holds(at(13)));
    }

    #[test]
    fn rule_1_a_new_generation_drops_all_state_of_the_old() {
        let mut follow = following();
        let id = ping(&mut follow, at(1));
        follow.lease(A, id, G1, Lsn(100), at(2));
        let old = follow.view().unwrap().clone();
        let say = follow.captures(B, G2, at(3));
        assert_eq!(resumes_at(&say), (B, Some((G1, Lsn(100)))));
        follow.start(B, G2, Lsn(90), false, at(4));
        let new = follow.view().unwrap();
        assert_eq!((new.generation, new.heard.watermark()), (G2, Lsn(90)));
        assert!(!new.heard.lease().holds(at(5)));
        assert!(!old.heard.lease().holds(at(5)));
        // The old worker, which lives on, is not listened to.
        assert!(
            follow
                .changes(A, G1, Lsn(100), Lsn(110), &changed(&[1]), at(6))
                .is_empty()
        );
        assert!(follow.captures(A, G1, at(7)).is_empty());
        assert_eq!(follow.source(), Some(B));
    }

    #[test]
    fn a_lease_that_ends_is_lost_only_where_it_is_wanted() {
        let mut follow = following();
        let lease = |follow: &mut Follow, now: u64| {
            let id = ping(follow, at(now));
            follow.lease(A, id, G1, Lsn(100), at(now));
        };
        lease(&mut follow, 1);
        lease(&mut follow, 100);
        assert_eq!(follow.leases_lost(), 0);
        follow.tick(true, at(400));
        follow.tick(true, at(500));
        assert_eq!(follow.leases_lost(), 1);
        // Nobody asks any longer: it ends, and nobody misses it.
        lease(&mut follow, 501);
        follow.tick(true, at(502));
        follow.tick(false, at(2_000));
        follow.tick(true, at(2_100));
        assert_eq!(follow.leases_lost(), 1);
    }

    #[test]
    fn a_stream_that_ends_goes_on_with_another_worker_and_keeps_its_cells() {
        let mut follow = following();
        assert!(follow.captures(B, G1, at(1)).len() == 1);
        follow.start(B, G1, Lsn(100), true, at(1));
        let say = follow.gone(B, at(2));
        assert_eq!(resumes_at(&say), (A, Some((G1, Lsn(100)))));
        assert!(follow.gone(A, at(3)).is_empty());
        assert_eq!(follow.source(), None);
        assert!(follow.view().is_some());
        assert!(follow.tick(true, at(4)).is_empty());
    }

    #[test]
    fn a_worker_that_gives_no_lease_is_left_for_another_that_claims_the_shard() {
        let mut follow = following();
        follow.captures(B, G1, at(1));
        follow.start(B, G1, Lsn(100), true, at(1));
        ping(&mut follow, at(900));
        let say = follow.tick(true, at(1_100));
        assert_eq!(resumes_at(&say).0, A);
        follow.start(A, G1, Lsn(100), true, at(1_101));
        let id = ping(&mut follow, at(1_900));
        follow.lease(A, id, G1, Lsn(100), at(1_901));
        ping(&mut follow, at(2_200));
        // Without traffic nothing is asked, so silence means nothing.
        let mut idle = following();
        idle.captures(B, G1, at(1));
        idle.start(B, G1, Lsn(100), true, at(1));
        assert!(idle.tick(false, at(60_000)).is_empty());
        ping(&mut idle, at(60_100));
    }
}
