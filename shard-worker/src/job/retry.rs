//! What can go wrong in a job's step, and what then: one table.

use std::time::Duration;

use schema::archive::ArchiveError;
use tenancy::chain;
use tenancy::control::ControlError;
use tokio_postgres::error::SqlState;

use super::Problem;
use crate::shard::ShardError;

/// Why a step did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The control database did not do it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A shard did not do it.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Another worker has the job by now.
    #[error("the job's lease was lost")]
    Lost,
    /// What the job is about is not as it must be, and will not become so by itself.
    #[error("{0}")]
    Refused(String),
    /// Something is in the way that goes away by itself.
    #[error("{0}")]
    Wait(String),
    /// What shards show can't be explained: nothing is done before someone looked.
    #[error("{0}")]
    Unclear(String),
    /// An archive is not taken, or not given.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The state was written by another version of this program.
    #[error("the job's state can't be read: {0}")]
    State(String),
}

impl From<tokio_postgres::Error> for JobError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Shard(ShardError::Postgres(error))
    }
}

/// What follows an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is tried again, for as long as it takes.
    Retry,
    /// It is tried again a few times, then waits for a person.
    RetryFew,
    /// It waits for a person.
    Person,
    /// The job ends.
    End,
    /// The job is another worker's: nothing is written.
    Leave,
}

/// Tries of [`Verdict::RetryFew`].
const FEW: i32 = 8;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(15);
const URGENT_MAX: Duration = Duration::from_millis(500);

impl JobError {
    /// The table.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Control(error) => match error {
                ControlError::Unreachable(_) => Verdict::Retry,
                ControlError::Dsn(_) => Verdict::Person,
                ControlError::Postgres(error) => of_postgres(error),
                ControlError::NotFound { .. }
                | ControlError::Conflict(_)
                | ControlError::Invalid(_) => Verdict::End,
            },
            Self::Shard(error) => match error {
                ShardError::NoPrimary { .. } | ShardError::Slow | ShardError::Changed { .. } => {
                    Verdict::Retry
                }
                ShardError::Postgres(error) => of_postgres(error),
                ShardError::Install(_) | ShardError::NotTaken { .. } => Verdict::RetryFew,
            },
            Self::Archive(ArchiveError::Postgres(error)) => of_postgres(error),
            Self::Archive(error) => match error.is_final() {
                true => Verdict::End,
                false => Verdict::Retry,
            },
            Self::Lost => Verdict::Leave,
            Self::Wait(_) => Verdict::Retry,
            Self::Refused(_) => Verdict::End,
            Self::Unclear(_) | Self::State(_) => Verdict::Person,
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Control(_) => "RF500",
            Self::Shard(_) => "RF501",
            Self::Lost => "RF502",
            Self::Refused(_) => "RF503",
            Self::Wait(_) => "RF504",
            Self::State(_) => "RF505",
            Self::Unclear(_) => "RF506",
            Self::Archive(error) => error.code(),
        }
    }

    /// As it is shown at the job.
    pub fn problem(&self, verdict: Verdict) -> Problem {
        let advice = match verdict {
            Verdict::Retry | Verdict::RetryFew => "It is tried again by itself.",
            Verdict::Person => {
                "Mend what the message names, then `ringfence job retry`; or `ringfence job cancel`."
            }
            Verdict::End | Verdict::Leave => "",
        };
        Problem {
            code: self.code().to_owned(),
            message: chain(self),
            advice: advice.to_owned(),
        }
    }
}

impl Verdict {
    /// The same after so many tries without progress.
    pub fn after(self, attempt: i32) -> Self {
        match self {
            Self::RetryFew if attempt >= FEW => Self::Person,
            other => other,
        }
    }
}

/// How long the next try waits after so many: doubling, bounded; less so where
/// someone waits for it.
pub fn wait(attempt: i32, is_urgent: bool) -> Duration {
    let doublings = attempt.clamp(1, 16).unsigned_abs() - 1;
    let max = if is_urgent { URGENT_MAX } else { WAIT_MAX };
    max.min(FIRST_WAIT * 2_u32.pow(doublings))
}

/// By SQLSTATE; an error without one is a lost connection.
pub(crate) fn of_postgres(error: &tokio_postgres::Error) -> Verdict {
    match error.code() {
        None => Verdict::Retry,
        Some(code) => of_state(code),
    }
}

fn of_state(code: &SqlState) -> Verdict {
    let text = code.code();
    match text.get(..2).unwrap_or_default() {
        // Connections; serialization and deadlocks; too many connections; shutdown, cancel.
        "08" | "40" | "57" => Verdict::Retry,
        "53" if *code == SqlState::DISK_FULL => Verdict::Person,
        "53" => Verdict::Retry,
        // A lock that was not had in time.
        "55" => Verdict::Retry,
        // Rights are missing: someone took them away.
        "42" if *code == SqlState::INSUFFICIENT_PRIVILEGE => Verdict::Person,
        // The primary that was found is a standby by now.
        "25" if *code == SqlState::READ_ONLY_SQL_TRANSACTION => Verdict::Retry,
        // A schema changed under the statement: the next try reads it anew.
        "42" => Verdict::RetryFew,
        // Data that can't be.
        "22" | "23" => Verdict::End,
        // Damage, limits and what nobody thought of.
        _ => Verdict::RetryFew,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for (code, verdict) in [
            ("08006", Verdict::Retry),
            ("40P01", Verdict::Retry),
            ("57P01", Verdict::Retry),
            ("53300", Verdict::Retry),
            ("53100", Verdict::Person),
            ("55P03", Verdict::Retry),
            ("25006", Verdict::Retry),
            ("42501", Verdict::Person),
            ("42703", Verdict::RetryFew),
            ("22P02", Verdict::End),
            ("23505", Verdict::End),
            ("XX001", Verdict::RetryFew),
        ] {
            assert_eq!(of_state(&SqlState::from_code(code)), verdict, "{code}");
        }
        assert_eq!(Verdict::RetryFew.after(FEW), Verdict::Person);
        assert_eq!(Verdict::Retry.after(1_000), Verdict::Retry);
        assert_eq!(JobError::Lost.verdict(), Verdict::Leave);
    }

    #[test]
    fn waits_double_up_to_a_bound() {
        assert_eq!(wait(0, false), FIRST_WAIT);
        assert_eq!(wait(1, true), FIRST_WAIT);
        assert_eq!(wait(3, false), FIRST_WAIT * 4);
        assert_eq!(wait(i32::MAX, false), WAIT_MAX);
        assert_eq!(wait(i32::MAX, true), URGENT_MAX);
    }
}
