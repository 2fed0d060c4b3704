//! Checks for wrong answers, and what they found.

use serde::{Deserialize, Serialize};

use crate::report::terminal::count;

/// What `--check` found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Writes that were acknowledged, refused, and of unknown outcome.
    pub acknowledged: u64,
    /// Writes that were definitely not done.
    pub failed: u64,
    /// Writes of unknown outcome.
    pub indeterminate: u64,
    /// Reads of watched rows that were verified.
    pub reads: u64,
    /// Watched rows in all.
    pub registers: u64,
    /// Inserted rows that the journal had no room for.
    pub unjournaled: u64,
    /// The final audit, place by place.
    pub audits: Vec<Audit>,
    /// What was wrong.
    pub violations: Vec<Violation>,
}

/// One place that the final audit looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// A router's address or a shard's name.
    pub place: String,
    /// How many rows of this run were found there.
    pub rows: u64,
    /// Why it could not be audited.
    pub problem: Option<String>,
}

/// A wrong answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Of which kind.
    pub kind: Kind,
    /// In one sentence.
    pub summary: String,
    /// The fewest events that show it, in order.
    pub history: Vec<String>,
}

/// Kinds of wrong answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A tenant was shown another tenant's row.
    Leak,
    /// An acknowledged write is missing.
    Lost,
    /// A write is there more than once.
    Doubled,
    /// A write that was refused, or never sent, is there.
    Phantom,
    /// A client did not see its own acknowledged write.
    ReadYourWrites,
    /// A read missed a write that was acknowledged longer ago than declared.
    Stale,
    /// A session saw a newer version, then an older one.
    Monotonic,
}

impl CheckReport {
    /// Whether a tenant was shown another's row.
    pub fn leaked(&self) -> bool {
        self.violations
            .iter()
            .any(|violation| violation.kind == Kind::Leak)
    }

    /// Whether every place could be audited and every write was journaled.
    pub fn complete(&self) -> bool {
        self.unjournaled == 0
            && !self.audits.is_empty()
            && self.audits.iter().all(|audit| audit.problem.is_none())
    }

    /// The findings in words, without the violations.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} writes acknowledged, {} failed, {} indeterminate; {} reads of {} watched rows verified",
            count(self.acknowledged),
            count(self.failed),
            count(self.indeterminate),
            count(self.reads),
            count(self.registers)
        )];
        if self.unjournaled > 0 {
            lines.push(format!(
                "{} inserted rows were not journaled: the journal was full",
                count(self.unjournaled)
            ));
        }
        for audit in &self.audits {
            lines.push(match &audit.problem {
                None => format!(
                    "audit of {}: {} rows of this run",
                    audit.place,
                    count(audit.rows)
                ),
                Some(problem) => format!("audit of {} was not possible: {problem}", audit.place),
            });
        }
        lines
    }
}
