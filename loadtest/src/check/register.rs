//! A watched row and what may be read from it. Pure: moments go in, verdicts
//! come out, so every rule is tested without a service.
//!
//! A register has one writer, so its versions have an order: absent, inserted
//! (version 1), updated (2, 3, …), deleted. A read overlaps writes, so it has
//! a range of right answers:
//!
//! - at least the newest version that was acknowledged before the read was
//!   sent, or, for readers other than the writer, so much earlier as the
//!   service declares its answers may be old;
//! - at most the newest version that was sent before the read was answered;
//! - never a version that was definitely refused;
//! - never older than what the same session has seen before, once that was
//!   acknowledged.
//!
//! A write of unknown outcome may take effect at any later time. Its register
//! is therefore given up, and only audited at the end.

use super::{Kind, Violation};
use crate::journal::Fate;
use crate::scenario::Monotonic;

/// A write to a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// Whether it deletes the row.
    pub deletes: bool,
    /// When it was sent, in microseconds from the begin of the run.
    pub sent: u64,
    /// When its outcome was known, likewise; none while it is under way.
    pub done: Option<u64>,
    /// What became of it; meaningless while it is under way.
    pub fate: Fate,
    /// The router.
    pub target: String,
    /// The status, 0 without an answer.
    pub status: u16,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// No row.
    Absent,
    /// One row of this version.
    Version(u32),
    /// More than one row.
    Several(usize),
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// The client that writes the register.
    Writer,
    /// Another client.
    Reader,
}

/// A read of a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    /// Who reads.
    pub session: Session,
    /// When it was sent, in microseconds from the begin of the run.
    pub sent: u64,
    /// When it was answered, likewise.
    pub done: u64,
    /// The router.
    pub target: String,
    /// What was found.
    pub seen: Seen,
}

/// What is declared to hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Declared {
    /// How old an answer to others than the writer may be, in microseconds.
    pub staleness: u64,
    /// Which reads may not go back in time.
    pub monotonic: Monotonic,
}

/// A watched row.
#[derive(Debug, Clone)]
pub(super) struct Register {
    /// Its number.
    pub number: u32,
    /// Its tenant's place in the population.
    pub tenant: usize,
    tenant_name: String,
    /// The nth write makes version n + 1.
    writes: Vec<Written>,
    /// The newest version that each session saw, with the read that saw it.
    newest: [Option<(usize, Read)>; 2],
}

impl Register {
    /// A row that does not exist yet.
    pub(super) fn new(number: u32, tenant: usize, tenant_name: &str) -> Self {
        Register {
            number,
            tenant,
            tenant_name: tenant_name.to_owned(),
            writes: Vec::new(),
            newest: [None, None],
        }
    }

    /// Its tenant's slug.
    pub(super) fn tenant_name(&self) -> &str {
        &self.tenant_name
    }

    /// The version that the next write makes.
    pub(super) fn next_version(&self) -> u32 {
        self.writes.len() as u32 + 1
    }

    /// A write is about to be sent.
    pub(super) fn begin_write(&mut self, deletes: bool, sent: u64, target: &str) {
        self.writes.push(Written {
            deletes,
            sent,
            done: None,
            fate: Fate::Indeterminate,
            target: target.to_owned(),
            status: 0,
        });
    }

    /// The outcome of the last write is known.
    pub(super) fn end_write(&mut self, fate: Fate, status: u16, done: u64) {
        if let Some(write) = self.writes.last_mut() {
            (write.fate, write.status, write.done) = (fate, status, Some(done));
        }
    }

    /// How many writes met each fate: acknowledged, failed, indeterminate.
    pub(super) fn fates(&self) -> [u64; 3] {
        let mut counts = [0; 3];
        for write in &self.writes {
            counts[write.fate as usize] += 1;
        }
        counts
    }

    /// The versions that may be there at the end; 0 for no row.
    pub(super) fn final_versions(&self) -> Vec<u32> {
        let as_version = |place: usize| {
            if self.writes[place].deletes {
                0
            } else {
                place as u32 + 1
            }
        };
        let acknowledged = self
            .writes
            .iter()
            .rposition(|write| write.fate == Fate::Acknowledged);
        let mut versions = vec![acknowledged.map_or(0, as_version)];
        let after = acknowledged.map_or(0, |place| place + 1);
        versions.extend(
            (after..self.writes.len())
                .filter(|place| self.writes[*place].fate == Fate::Indeterminate)
                .map(as_version),
        );
        versions
    }

    /// Judges a read; remembers what its session saw.
    pub(super) fn read(&mut self, read: Read, declared: Declared) -> Option<Violation> {
        let state = match read.seen {
            Seen::Several(rows) => {
                let summary = format!("{} has {rows} rows where one was inserted", self.name());
                return Some(self.violation(
                    Kind::Doubled,
                    summary,
                    vec![self.write_line(1), self.read_line(&read)],
                ));
            }
            // Before the insert and after the deletion look alike; where a
            // deletion was sent, the absence is taken for its effect.
            Seen::Absent => match self.writes.last() {
                Some(last) if last.deletes && last.sent <= read.done => self.writes.len(),
                Some(_) | None => 0,
            },
            Seen::Version(version) => version as usize,
        };
        let violation = self
            .phantom(&read, state)
            .or_else(|| self.old(&read, state, declared))
            .or_else(|| {
                let newest = self.newest[read.session as usize].as_ref()?;
                self.back_in_time(&read, state, newest, declared.monotonic)
            });
        let newest = &mut self.newest[read.session as usize];
        if newest.as_ref().is_none_or(|(seen, _)| *seen <= state) {
            *newest = Some((state, read));
        }
        violation
    }

    /// A version that was refused, or that nobody had sent yet.
    fn phantom(&self, read: &Read, state: usize) -> Option<Violation> {
        let place = state.checked_sub(1)?;
        match self.writes.get(place) {
            Some(write) if write.fate == Fate::Failed && write.done.is_some() => {
                let summary = format!("{}: version {state} was refused, and is there", self.name());
                Some(self.violation(
                    Kind::Phantom,
                    summary,
                    vec![self.write_line(state), self.read_line(read)],
                ))
            }
            Some(write) if write.sent <= read.done => None,
            Some(_) | None => {
                let summary = format!(
                    "{}: version {state} is there before it was written",
                    self.name()
                );
                Some(self.violation(Kind::Phantom, summary, vec![self.read_line(read)]))
            }
        }
    }

    /// A version older than one that had to be seen.
    fn old(&self, read: &Read, state: usize, declared: Declared) -> Option<Violation> {
        let (kind, slack) = match read.session {
            Session::Writer => (Kind::ReadYourWrites, 0),
            Session::Reader => (Kind::Stale, declared.staleness),
        };
        let due = read.sent.checked_sub(slack)?;
        let must = self
            .writes
            .iter()
            .rposition(|write| acknowledged_by(write, due))?
            + 1;
        if state >= must {
            return None;
        }
        let age = read.sent - self.writes[must - 1].done.unwrap_or(read.sent);
        let summary = format!(
            "{}: {} of version {must} {} ms after its acknowledgement{}",
            self.name(),
            match read.session {
                Session::Writer => "the writer itself does not see the effect",
                Session::Reader => "a reader does not see the effect",
            },
            age / 1_000,
            match read.session {
                Session::Writer => String::new(),
                Session::Reader =>
                    format!(", declared are at most {} ms", declared.staleness / 1_000),
            }
        );
        Some(self.violation(
            kind,
            summary,
            vec![self.write_line(must), self.read_line(read)],
        ))
    }

    /// A version older than one that the session has seen.
    fn back_in_time(
        &self,
        read: &Read,
        state: usize,
        (newest, earlier): &(usize, Read),
        rule: Monotonic,
    ) -> Option<Violation> {
        if state >= *newest {
            return None;
        }
        let settled = self
            .writes
            .get(newest.checked_sub(1)?)
            .is_some_and(|write| acknowledged_by(write, read.sent));
        if rule == Monotonic::Acknowledged && !settled {
            return None;
        }
        let summary = format!(
            "{}: a session saw version {newest}, then version {state}",
            self.name()
        );
        let history = vec![
            self.write_line(*newest),
            self.read_line(earlier),
            self.read_line(read),
        ];
        Some(self.violation(Kind::Monotonic, summary, history))
    }

    fn violation(&self, kind: Kind, summary: String, history: Vec<String>) -> Violation {
        Violation {
            kind,
            summary,
            history,
        }
    }

    fn name(&self) -> String {
        format!("watched row {} of {}", self.number, self.tenant_name)
    }

    /// The write that made a version, as a line of a history.
    pub(super) fn write_line(&self, version: usize) -> String {
        let Some(write) = version
            .checked_sub(1)
            .and_then(|place| self.writes.get(place))
        else {
            return format!("version {version} was never written");
        };
        let outcome = match (write.done, write.fate) {
            (None, _) => "under way".to_owned(),
            (Some(_), Fate::Acknowledged) => format!("acknowledged ({})", write.status),
            (Some(_), Fate::Failed) => format!("refused ({})", write.status),
            (Some(_), Fate::Indeterminate) => "outcome unknown".to_owned(),
        };
        let what = match (version, write.deletes) {
            (_, true) => "delete".to_owned(),
            (1, false) => "insert version 1".to_owned(),
            (version, false) => format!("update to version {version}"),
        };
        format!(
            "{}  {} through {}: {what}: {outcome}",
            span(write.sent, write.done),
            self.tenant_name,
            write.target
        )
    }

    fn read_line(&self, read: &Read) -> String {
        let seen = match read.seen {
            Seen::Absent => "no row".to_owned(),
            Seen::Version(version) => format!("version {version}"),
            Seen::Several(rows) => format!("{rows} rows"),
        };
        let who = match read.session {
            Session::Writer => "",
            Session::Reader => " (another client)",
        };
        format!(
            "{}  {} through {}{who}: read: {seen}",
            span(read.sent, Some(read.done)),
            self.tenant_name,
            read.target
        )
    }
}

fn acknowledged_by(write: &Written, moment: u64) -> bool {
    write.fate == Fate::Acknowledged && write.done.is_some_and(|done| done <= moment)
}

/// Two moments of the run as a line of a history begins.
pub(super) fn span(sent: u64, done: Option<u64>) -> String {
    let seconds = |us: u64| us as f64 / 1e6;
    match done {
        Some(done) => format!("{:>10.6} s … {:.6} s", seconds(sent), seconds(done)),
        None => format!("{:>10.6} s …", seconds(sent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECLARED: Declared = Declared {
        staleness: 250_000,
        monotonic: Monotonic::Acknowledged,
    };
    const MS: u64 = 1_000;

    /// A register with writes of (deletes, sent, done, fate), in ms.
    fn register(writes: &[(bool, u64, u64, Fate)]) -> Register {
        let mut register = Register::new(7, 0, "acme");
        for (deletes, sent, done, fate) in writes {
            register.begin_write(*deletes, sent * MS, "r1");
            register.end_write(*fate, 200, done * MS);
        }
        register
    }

    fn read(session: Session, sent: u64, done: u64, seen: Seen) -> Read {
        Read {
            session,
            sent: sent * MS,
            done: done * MS,
            target: "r2".to_owned(),
            seen,
        }
    }

    fn kind(register: &mut Register, read: Read) -> Option<Kind> {
        register
            .read(read, DECLARED)
            .map(|violation| violation.kind)
    }

    #[test]
    fn a_writer_sees_its_own_writes_at_once_and_others_within_the_bound() {
        use Fate::Acknowledged as Ack;
        let mut row = register(&[(false, 0, 10, Ack), (false, 100, 110, Ack)]);
        assert_eq!(
            kind(&mut row, read(Session::Writer, 109, 120, Seen::Version(1))),
            None,
            "overlaps"
        );
        assert_eq!(
            kind(&mut row, read(Session::Writer, 110, 120, Seen::Version(2))),
            None
        );
        let mut row = register(&[(false, 0, 10, Ack), (false, 100, 110, Ack)]);
        assert_eq!(
            kind(&mut row, read(Session::Writer, 111, 120, Seen::Version(1))),
            Some(Kind::ReadYourWrites)
        );
        assert_eq!(
            kind(&mut row, read(Session::Reader, 350, 360, Seen::Version(1))),
            None
        );
        assert_eq!(
            kind(&mut row, read(Session::Reader, 361, 370, Seen::Version(1))),
            Some(Kind::Stale)
        );
        assert_eq!(
            kind(&mut row, read(Session::Reader, 361, 370, Seen::Absent)),
            Some(Kind::Stale)
        );
    }

    #[test]
    fn a_session_does_not_go_back_once_the_write_is_acknowledged() {
        use Fate::Acknowledged as Ack;
        let writes = [(false, 0, 10, Ack), (false, 100, 150, Ack)];
        let mut row = register(&writes);
        assert_eq!(
            kind(&mut row, read(Session::Reader, 110, 120, Seen::Version(2))),
            None
        );
        assert_eq!(
            kind(&mut row, read(Session::Reader, 130, 140, Seen::Version(1))),
            None,
            "not yet acknowledged"
        );
        assert_eq!(
            kind(&mut row, read(Session::Reader, 160, 170, Seen::Version(1))),
            Some(Kind::Monotonic)
        );
        let mut row = register(&writes);
        let strict = Declared {
            monotonic: Monotonic::Strict,
            ..DECLARED
        };
        assert_eq!(
            row.read(read(Session::Reader, 110, 120, Seen::Version(2)), strict),
            None
        );
        let violation = row
            .read(read(Session::Reader, 130, 140, Seen::Version(1)), strict)
            .unwrap();
        assert_eq!(
            (violation.kind, violation.history.len()),
            (Kind::Monotonic, 3)
        );
    }

    #[test]
    fn deletions_are_versions_too() {
        use Fate::Acknowledged as Ack;
        let mut row = register(&[(false, 0, 10, Ack), (true, 100, 110, Ack)]);
        assert_eq!(
            kind(&mut row, read(Session::Writer, 101, 105, Seen::Absent)),
            None
        );
        assert_eq!(
            kind(&mut row, read(Session::Writer, 111, 120, Seen::Absent)),
            None
        );
        assert_eq!(
            kind(&mut row, read(Session::Writer, 130, 140, Seen::Version(1))),
            Some(Kind::ReadYourWrites)
        );
        assert_eq!(row.final_versions(), [0]);
    }

    #[test]
    fn phantoms_and_doubles() {
        use Fate::{Acknowledged as Ack, Failed};
        let mut row = register(&[(false, 0, 10, Ack), (false, 20, 30, Failed)]);
        assert_eq!(
            kind(&mut row, read(Session::Writer, 40, 50, Seen::Version(2))),
            Some(Kind::Phantom)
        );
        assert_eq!(
            kind(&mut row, read(Session::Writer, 40, 50, Seen::Version(3))),
            Some(Kind::Phantom)
        );
        assert_eq!(
            kind(&mut row, read(Session::Writer, 40, 50, Seen::Several(2))),
            Some(Kind::Doubled)
        );
        assert_eq!(row.final_versions(), [1]);
    }

    #[test]
    fn unknown_outcomes_allow_both() {
        use Fate::{Acknowledged as Ack, Indeterminate};
        let row = register(&[(false, 0, 10, Ack), (false, 20, 30, Indeterminate)]);
        assert_eq!(row.final_versions(), [1, 2]);
        let row = register(&[(false, 0, 10, Ack), (true, 20, 30, Indeterminate)]);
        assert_eq!(row.final_versions(), [1, 0]);
        let row = register(&[(false, 0, 10, Indeterminate)]);
        assert_eq!(row.final_versions(), [0, 1]);
    }
}
