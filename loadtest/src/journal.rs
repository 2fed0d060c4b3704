//! What became of every insert that carries a canary: acknowledged, refused,
//! or unknown. The final audit compares it with what is really there.

use std::collections::HashMap;

use crate::token::{Tag, Token};

/// What is known of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// The service said that it is done.
    Acknowledged,
    /// The service said that it is not done, or it was never sent.
    Failed,
    /// No answer, or one that does not say.
    Indeterminate,
}

impl Fate {
    /// What an answer says of a write. Only success and a refusal of the
    /// request itself are definite; a failure of the server may have come
    /// before or after the commit.
    pub fn of_status(status: u16) -> Self {
        match status {
            200..300 => Fate::Acknowledged,
            // 408: the server gave up waiting; it may have begun.
            408 => Fate::Indeterminate,
            300..500 => Fate::Failed,
            _ => Fate::Indeterminate,
        }
    }
}

/// A journaled insert: one request, one row or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The number of its first canary.
    pub first: u64,
    /// How many rows, their numbers `step` apart.
    pub rows: u32,
    /// The tenant's place in the population.
    pub tenant: u32,
    /// The operation.
    pub operation: u16,
    /// The router that it was sent to.
    pub target: u16,
    /// What became of it.
    pub fate: Fate,
    /// The status, 0 without an answer.
    pub status: u16,
    /// When it was sent, in microseconds from the begin of the run.
    pub sent_us: u64,
    /// When its outcome was known, likewise.
    pub done_us: u64,
}

/// The journal of a thread, or of all.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Vec<Entry>,
    rows: usize,
    limit: usize,
    /// Rows that were not journaled because the journal was full.
    pub unjournaled: u64,
    /// The step between the canaries of one request.
    pub step: u64,
}

impl Journal {
    /// A journal of at most `limit` rows.
    pub fn new(limit: usize, step: u64) -> Self {
        Journal {
            entries: Vec::new(),
            rows: 0,
            limit,
            unjournaled: 0,
            step,
        }
    }

    /// Notes a write before it is sent, as indeterminate; returns its place,
    /// or `None` when the journal is full.
    pub fn begin(&mut self, entry: Entry) -> Option<usize> {
        if self.rows + entry.rows as usize > self.limit {
            self.unjournaled += u64::from(entry.rows);
            return None;
        }
        self.rows += entry.rows as usize;
        self.entries.push(entry);
        Some(self.entries.len() - 1)
    }

    /// Notes what became of it.
    pub fn end(&mut self, place: usize, fate: Fate, status: u16, done_us: u64) {
        if let Some(entry) = self.entries.get_mut(place) {
            (entry.fate, entry.status, entry.done_us) = (fate, status, done_us);
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: Journal) {
        self.rows += other.rows;
        self.unjournaled += other.unjournaled;
        self.step = other.step;
        self.entries.extend(other.entries);
    }

    /// All writes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many requests met each fate: acknowledged, failed, indeterminate.
    pub fn counts(&self) -> [u64; 3] {
        let mut counts = [0; 3];
        for entry in &self.entries {
            counts[entry.fate as usize] += 1;
        }
        counts
    }

    /// Finds the write of a canary.
    pub fn index(&self) -> HashMap<u64, &Entry> {
        self.entries
            .iter()
            .flat_map(|entry| {
                (0..u64::from(entry.rows)).map(move |row| (entry.first + row * self.step, entry))
            })
            .collect()
    }
}

/// An answer that holds another tenant's canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// What was found.
    pub token: Token,
    /// Who asked.
    pub reader: Tag,
    /// The request.
    pub request: String,
    /// The router that answered.
    pub target: String,
    /// When the request was sent, in microseconds from the begin of the run.
    pub sent_us: u64,
    /// When the answer was there, likewise.
    pub done_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_definite_answers_are_definite() {
        for (status, fate) in [
            (201, Fate::Acknowledged),
            (204, Fate::Acknowledged),
            (409, Fate::Failed),
            (429, Fate::Failed),
            (408, Fate::Indeterminate),
            (500, Fate::Indeterminate),
            (503, Fate::Indeterminate),
        ] {
            assert_eq!(Fate::of_status(status), fate, "{status}");
        }
    }

    #[test]
    fn a_full_journal_counts_what_it_leaves_out() {
        let entry = Entry {
            first: 5,
            rows: 2,
            tenant: 0,
            operation: 0,
            target: 0,
            fate: Fate::Indeterminate,
            status: 0,
            sent_us: 0,
            done_us: 0,
        };
        let mut journal = Journal::new(3, 4);
        let place = journal.begin(entry).unwrap();
        journal.end(place, Fate::Acknowledged, 201, 9);
        assert_eq!(journal.begin(entry), None);
        assert_eq!((journal.unjournaled, journal.counts()), (2, [1, 0, 0]));
        let index = journal.index();
        assert!(index.contains_key(&5) && index.contains_key(&9) && index.len() == 2);
    }
}
