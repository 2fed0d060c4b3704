//! Why files are not applied: each with its code and what to do.

use schema::apply::ApplyError;
use schema::history::HistoryError;
use schema::migration::MigrationError;
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
    /// A shard does not answer.
    #[error("shard {shard} can't be reached: {why}")]
    Down {
        /// The shard.
        shard: String,
        /// Why.
        why: String,
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

impl Stop {
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
            Self::Refused { .. } => "RF514",
            Self::Locked { .. } => "RF515",
            Self::Down { .. } => "RF516",
            Self::Read { .. } => "RF517",
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
            Self::Refused { .. } => {
                "The statement was undone on this shard, others keep what they have. Mend the data, or the file as long as no shard has any of it; then `ringfence migrate apply` goes on from here. Where a shard has a part (`half` in `ringfence migrate status`): do by hand on every shard what is missing, then `ringfence migrate baseline` records it."
            }
            Self::Locked { .. } => {
                "Nothing waits any longer. End the transactions that are named, or choose a quieter hour; then `ringfence migrate apply` goes on from here."
            }
            Self::Down { .. } => {
                "Start the shard; then `ringfence migrate apply` goes on from here."
            }
            Self::Read { .. } => {
                "Nothing was removed. Stop or upgrade the routers that are named; then `ringfence migrate apply` goes on from here."
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
