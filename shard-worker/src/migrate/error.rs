//! Why files are not applied: each with its code and what to do.

use std::fmt;

use schema::apply::ApplyError;
use schema::clash::Made;
use schema::history::HistoryError;
use schema::migration::MigrationError;
use serde::{Deserialize, Serialize};
use tenancy::chain;
use tokio_postgres::error::SqlState;

use crate::job::{JobError, Problem};

/// What stops a run.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// A file was changed after it was applied.
    #[error("{place}: {file} was changed after it was applied")]
    Changed {
        /// The shard, or the fleet.
        place: String,
        /// The file.
        file: String,
    },
    /// What was applied and what is to be applied are not one sequence.
    #[error("{place}: {why}")]
    Order {
        /// The shard, or the fleet.
        place: String,
        /// What does not fit.
        why: String,
    },
    /// The files themselves are not as they must be.
    #[error(transparent)]
    Files(#[from] MigrationError),
    /// A rule is broken; nothing was run.
    #[error("the files break rules: {0}")]
    Lint(String),
    /// A shard refused a statement.
    #[error("shard {shard}: {}", chain(.source))]
    Refused {
        /// The shard.
        shard: String,
        /// The statement, and why.
        source: ApplyError,
        /// What there is of the file.
        reach: Reach,
    },
    /// A shard has what files would make.
    #[error("shard {shard} has already {}", listed(.clashes))]
    Exists {
        /// The shard.
        shard: String,
        /// What, and which files would make it.
        clashes: Vec<Made>,
    },
    /// A lock could not be had, however often it was tried.
    #[error("shard {shard}: tried {tries} times: {source}")]
    Locked {
        /// The shard.
        shard: String,
        /// So many times.
        tries: u32,
        /// The statement, and who is in its way.
        source: ApplyError,
    },
    /// Shards do not answer.
    #[error("{}", unreached(.0))]
    Down(Vec<Away>),
    /// What comes next removes, and nobody said that it may.
    #[error("{file} is of the contract phase: it removes what applications may still use")]
    Contract {
        /// The file.
        file: String,
    },
    /// Routers that are alive still read what would be removed.
    #[error("shard {shard}: {file} removes what is still read by {who}")]
    Read {
        /// The shard.
        shard: String,
        /// The file.
        file: String,
        /// The routers.
        who: String,
    },
    /// Not the run's doing: the job's own rules say what then.
    #[error(transparent)]
    Job(#[from] JobError),
}

/// What shards have of a file that one of them refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Another shard has it, or a part of it.
    pub elsewhere: bool,
    /// This one may have a part: its statements commit one by one.
    pub in_part: bool,
}

/// A shard that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// The shard.
    pub shard: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {} can't be reached: {}", self.shard, self.why)
    }
}

fn unreached(shards: &[Away]) -> String {
    let shards: Vec<String> = shards.iter().map(Away::to_string).collect();
    shards.join("; ")
}

/// Most objects that are named.
const NAMED: usize = 5;

fn listed(clashes: &[Made]) -> String {
    let place = |made: &Made| format!("{} ({}, line {})", made.name, made.file, made.line);
    let named: Vec<String> = clashes.iter().take(NAMED).map(place).collect();
    match clashes.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{}, and {more} more", named.join(", ")),
    }
}

impl Stop {
    /// One shard that does not answer.
    pub fn down(shard: &str, why: String) -> Self {
        let shard = shard.to_owned();
        Self::Down(vec![Away { shard, why }])
    }

    /// A history that does not fit.
    pub fn history(place: &str, error: HistoryError) -> Self {
        let place = place.to_owned();
        match error {
            HistoryError::Changed { file } => Self::Changed { place, file },
            error @ (HistoryError::Unknown { .. } | HistoryError::Gap { .. }) => Self::Order {
                place,
                why: error.to_string(),
            },
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "RF510",
            Self::Order { .. } => "RF511",
            Self::Files(_) => "RF512",
            Self::Lint(_) => "RF513",
            Self::Refused { .. } | Self::Exists { .. } => "RF514",
            Self::Locked { .. } => "RF515",
            Self::Down(_) => "RF516",
            Self::Read { .. } => "RF517",
            Self::Contract { .. } => "RF518",
            Self::Job(error) => error.code(),
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Changed { .. } => {
                "Put the file back as it was, and make the change in a new file: `ringfence migrate new NAME`. What can't be run to its end (`half` in `ringfence migrate status`): do by hand on every shard what is missing of it, then `ringfence migrate baseline` records it."
            }
            Self::Order { .. } => {
                "Apply the directory that holds all files which shards have: `ringfence migrate status` shows them."
            }
            Self::Files(_) => "Nothing was run. Mend the directory.",
            Self::Lint(_) => {
                "Nothing was run. `ringfence migrate lint` says the safe way of each; a file may allow a rule with a reason."
            }
            Self::Refused {
                source: ApplyError::Statement { source, .. },
                ..
            } if source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                "Migrations run as ringfence_owner. As a superuser, on every shard: alter … owner to ringfence_owner; then `ringfence migrate apply` goes on from here."
            }
            Self::Refused {
                reach: Reach { elsewhere, in_part },
                ..
            } => match (elsewhere, in_part) {
                (false, false) => {
                    "The shard undid it, and no shard has anything of this file. Mend the file, or what is in its way; then `ringfence migrate apply` goes on from here."
                }
                (true, false) => {
                    "The shard undid it; others have the file, so it can't be changed any longer. Mend on this shard what is in its way (rows, or an object that it alone has); then `ringfence migrate apply` goes on from here. Or do there by hand what the file does, and `ringfence migrate baseline` records it."
                }
                (false, true) => {
                    "The statement was undone, those before it stay (`ringfence migrate status` shows how far the shard is); no other shard has the file. Mend what is in its way; then `ringfence migrate apply` goes on from here. Where nothing of the file was done, mend the file; where a part was, do the rest by hand on every shard, and `ringfence migrate baseline` records it."
                }
                (true, true) => {
                    "The statement was undone, those before it stay (`ringfence migrate status` shows how far the shard is); others have the file, so it can't be changed any longer. Mend on this shard what is in its way; then `ringfence migrate apply` goes on from here. Or do there by hand the rest of the file, and `ringfence migrate baseline` records it."
                }
            },
            Self::Exists { .. } => {
                "Give it another name in the files, or another schema. Where it is what they would make, on every shard, `ringfence migrate baseline` records them without running them."
            }
            Self::Locked { .. } => {
                "Nothing waits any longer. End the transactions that are named, or choose a quieter hour; then `ringfence migrate apply` goes on from here."
            }
            Self::Down(_) => "Start the shard; then `ringfence migrate apply` goes on from here.",
            Self::Read { .. } => {
                "Nothing was removed. Stop or upgrade the routers that are named; then `ringfence migrate apply` goes on from here."
            }
            Self::Contract { .. } => {
                "Once no application uses it any longer: `ringfence migrate apply --contract`, with the same --dir."
            }
            Self::Job(_) => "",
        }
    }

    /// As it is shown at the job.
    pub fn problem(&self) -> Problem {
        Problem {
            code: self.code().to_owned(),
            message: self.to_string(),
            advice: self.hint().to_owned(),
        }
    }
}
