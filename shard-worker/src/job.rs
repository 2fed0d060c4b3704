//! Jobs: work of many steps that outlives the worker that began it.
//!
//! A job is a row in the control database. A worker takes its lease, reads its
//! state, does one step, and writes the next state with compare-and-set; then
//! the next step. A step may run twice: its worker may have died after the work
//! and before the write. Who lost the lease can't go on: the row refuses its
//! write, and on shards a new holder ends the session of the old one before it
//! begins ([`Context::shard`]).
//!
//! ```text
//!          insert            claim             End
//!            │                 │                │
//!            ▼                 ▼                ▼
//!          open ◄─────────► leased ─────► done | failed | cancelled
//!            ▲   put off,      │
//!            │   lease over    │ an error that waits for a person
//!            └───── retry ── stuck
//! ```
//!
//! A kind of job is a [`Machine`]: a serde enum of its states with its step
//! function. A new one is a variant of [`Kind`] and a line in [`Kind::drive`].

mod context;
mod lease;
pub mod metrics;
mod news;
pub mod prune;
pub mod retry;
mod runner;
pub mod store;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use context::{Context, Login, as_replica, await_writes};
pub use news::News;
pub use retry::JobError;
pub use runner::run;
pub use store::{JobInfo, NewJob};

use crate::migrate::Migrate;
use crate::move_tenant::Move;
use crate::rebalance::Rebalance;
use crate::tenant_delete::TenantDelete;
use crate::tenant_import::TenantImport;
use crate::tenant_restore::TenantRestore;

/// Every kind of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Removes a tenant from everywhere.
    TenantDelete,
    /// Loads an existing database's rows as a tenant's.
    TenantImport,
    /// Applies a directory's files to all shards.
    Migrate,
    /// Moves tenants to another shard.
    Move,
    /// Applies a plan of balance.
    Rebalance,
    /// Takes in a tenant's archive.
    TenantRestore,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::TenantDelete,
        Self::TenantImport,
        Self::Migrate,
        Self::Move,
        Self::Rebalance,
        Self::TenantRestore,
    ];

    /// The word in the control database.
    pub fn name(self) -> &'static str {
        match self {
            Self::TenantDelete => "tenant_delete",
            Self::TenantImport => "tenant_import",
            Self::Migrate => "migrate",
            Self::Move => "move",
            Self::Rebalance => "rebalance",
            Self::TenantRestore => "tenant_restore",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// As many run at once, on all workers together.
    pub fn at_once_max(self) -> i32 {
        match self {
            Self::TenantDelete | Self::TenantImport => 4,
            Self::Migrate => 1,
            Self::Move => 16,
            Self::Rebalance => 1,
            Self::TenantRestore => 8,
        }
    }

    /// Runs a job of this kind until it ends, is put off, or is another worker's.
    async fn drive(self, context: &Context, state: Value) {
        match self {
            Self::TenantDelete => runner::drive::<TenantDelete>(context, state).await,
            Self::TenantImport => runner::drive::<TenantImport>(context, state).await,
            Self::Migrate => runner::drive::<Migrate>(context, state).await,
            Self::Move => runner::drive::<Move>(context, state).await,
            Self::Rebalance => runner::drive::<Rebalance>(context, state).await,
            Self::TenantRestore => runner::drive::<TenantRestore>(context, state).await,
        }
    }
}

/// As many jobs of all kinds run on one shard at once.
pub const SHARD_AT_ONCE_MAX: i64 = 3;

/// A job's states, and what is done in each.
pub trait Machine: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The state's name, for people, and how far it is.
    fn phase(&self) -> (&'static str, Progress);

    /// What it waits for just now, for people.
    fn waits(&self) -> Vec<String> {
        Vec::new()
    }

    /// What it is at just now, for people.
    fn at(&self) -> Vec<String> {
        Vec::new()
    }

    /// Does the next piece of work. May run twice; may be dropped at any await.
    fn step(&self, context: &Context) -> impl Future<Output = Result<Step<Self>, JobError>> + Send;

    /// The state to go on from when someone cancels the job; none where it can
    /// only go forward.
    fn cancelled(&self) -> Option<Self>;

    /// The state to go on from when an error ends the job, to clean up; none
    /// where there is nothing to clean up, or the error is the clean-up's own.
    fn abandoned(&self, _error: &JobError) -> Option<Self> {
        None
    }

    /// Someone waits while a step of this state is not done: after an error it is tried
    /// again soon, however often it has failed.
    fn is_urgent(&self) -> bool {
        false
    }

    /// What the audit log, which is kept for ever, has of a first state: no
    /// secret, be it sealed, and nothing large.
    fn audited(state: Value) -> Value {
        state
    }
}

/// How far a state is. Zeros where it can't be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// So much is done.
    pub done: u64,
    /// Of so much; zero where that is not known.
    pub total: u64,
    /// What is counted.
    pub unit: Unit,
}

/// What a progress counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rows of tables.
    #[default]
    Rows,
    /// Bytes.
    Bytes,
    /// Shards.
    Shards,
    /// Tenants.
    Tenants,
}

/// What comes after a step.
#[derive(Debug)]
pub enum Step<S> {
    /// This state, at once.
    Next(S),
    /// This state, at once; it was written with what it tells of ([`Context::commit`]).
    Written(S),
    /// This state, later: others run meanwhile.
    Later(S, Duration),
    /// Nothing: the job is over. The value is its result, for people and programs.
    End(S, End, Value),
}

/// How a job is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It did what it was made for.
    Done,
    /// It can't; why.
    Failed(Problem),
    /// It was told not to.
    Cancelled,
}

/// Why a job does not go on, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do about it; empty where there is nothing.
    pub advice: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_of_their_own() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()), Some(kind));
            assert!(kind.at_once_max() > 0);
        }
    }
}
