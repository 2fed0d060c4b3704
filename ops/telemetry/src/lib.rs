//! What a process tells of itself beside its log and its metrics: traces by
//! OpenTelemetry, errors to Sentry, CPU profiles on demand.
//!
//! All of it is off unless configured, bounded, and may be lost: no request
//! waits for it, and none fails with it. What is lost is counted. This crate
//! must not know tenants, SQL or jobs. Modules in reading order.

pub mod fault;
mod outbox;
pub mod profile;
pub mod settings;
pub mod trace;

use std::time::Duration;

use outbox::Post;
use settings::{Dsn, Sentry, Traces};
use tokio::task::JoinSet;
use tokio::time::timeout;

use fault::Faults;
use trace::Tracer;

/// A process that tells of itself.
#[derive(Clone, Debug)]
pub struct Service {
    /// What it is, such as `ringfence-router`.
    pub name: &'static str,
    /// Which of them it is.
    pub instance: String,
    /// Its release.
    pub version: &'static str,
}

/// Why traces or reports can't be begun.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `traces.otlp_url` is no address.
    #[error("traces.otlp_url is no http or https address: {0}")]
    Url(String),
    /// `traces.sample_ratio` is no part of one.
    #[error("traces.sample_ratio is {0}, which is not between 0 and 1")]
    Ratio(f64),
    /// The address of a Sentry project can't be read.
    #[error("the DSN of Sentry can't be used: {0}")]
    Dsn(String),
    /// The HTTP client can't be made.
    #[error("there is no HTTP client for traces and reports")]
    Client(#[source] reqwest::Error),
    /// The exporter can't be made.
    #[error("the exporter of traces can't be made: {0}")]
    Exporter(String),
}

/// Where spans and faults go, and what takes them there.
pub struct Telemetry {
    /// Where spans go.
    pub tracer: Tracer,
    /// Where faults go.
    pub faults: Faults,
    posts: Vec<Post>,
}

impl Telemetry {
    /// Begins what is configured, in tasks of the current runtime. The metrics'
    /// recorder is installed before.
    ///
    /// # Errors
    /// The settings can't be meant.
    pub fn start(
        service: &Service,
        traces: &Traces,
        sentry: &Sentry,
        dsn: Option<Dsn>,
    ) -> Result<Self, TelemetryError> {
        let client = reqwest::Client::builder()
            .timeout(outbox::DELIVERY_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(TelemetryError::Client)?;
        outbox::describe();
        let (tracer, spans) = Tracer::start(service, traces, client.clone())?;
        let (faults, reports) = Faults::start(service, sentry, dsn, client)?;
        let posts = [spans, reports].into_iter().flatten().collect();
        Ok(Self {
            tracer,
            faults,
            posts,
        })
    }

    /// Sends what is still queued, for `longest` at most.
    pub async fn finish(self, longest: Duration) {
        // Side by side: a receiver that hangs must not take the other's time.
        let mut posts: JoinSet<()> = self.posts.into_iter().map(Post::finish).collect();
        let all = async { while posts.join_next().await.is_some() {} };
        let _ = timeout(longest, all).await;
    }
}
