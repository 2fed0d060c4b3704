//! What every request of the admin API and every task shares.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use telemetry::fault::Faults;
use telemetry::trace::Tracer;
use tenancy::auth::KeyRing;
use tenancy::control::Control;
use tenancy::members::Members;
use tokio::sync::Semaphore;
use tokio::sync::watch;

use crate::admins::{Admins, Strangers};
use crate::capture::Capture;
use crate::config::Jobs;
use crate::failpoint::Failpoints;
use crate::job::News;
use crate::job::metrics::JobMetrics;
use crate::migrate::store::RunFiles;
use crate::move_tenant::Watches;
use crate::move_tenant::metrics::MoveMetrics;
use crate::shard::Logins;

/// Shared handles.
pub struct App {
    /// This worker's name.
    pub name: String,
    /// This process, as the owner of leases: the name, and what no other process has.
    pub owner: String,
    /// Who may use the admin API.
    pub admins: watch::Receiver<Admins>,
    /// Who tried to without being one of them.
    pub strangers: Strangers,
    /// The control database.
    pub control: Control,
    /// Shards' logins.
    pub logins: Logins,
    /// Asks routers.
    pub http: reqwest::Client,
    /// The live routers and workers.
    pub members: watch::Receiver<Arc<Members>>,
    /// The changes that routers are told of.
    pub capture: Arc<Capture>,
    /// Shards whose own SQL was brought up to date since this worker started.
    pub upgraded: Mutex<BTreeSet<String>>,
    /// Mints API keys.
    pub keys: KeyRing,
    /// How jobs are run.
    pub jobs: Jobs,
    /// Wakes who waits for a job.
    pub job_news: News,
    /// Places of those who watch a job over HTTP.
    pub job_watchers: Arc<Semaphore>,
    /// Places of archives that are written or read.
    pub archives: Arc<Semaphore>,
    /// Places of shards that are asked by SQL.
    pub queries: Semaphore,
    /// What is counted of jobs.
    pub job_metrics: JobMetrics,
    /// Traces of the admin API's requests and of jobs.
    pub tracer: Tracer,
    /// Reports of what must not happen.
    pub faults: Faults,
    /// What is counted of moves.
    pub move_metrics: MoveMetrics,
    /// What is written while moves compare rows.
    pub watches: Watches,
    /// The files of the migration that is under way.
    pub run_files: RunFiles,
    /// Where tests let this worker die.
    pub failpoints: Failpoints,
}
