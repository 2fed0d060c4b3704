//! What can be observed of a router: one enum, read by log, metrics, traces and
//! reports.

pub mod access_log;
mod fault;
pub mod metrics;
mod span;

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use telemetry::fault::Faults;
use telemetry::trace::{Place, Tracer};

use self::access_log::AccessLog;
use self::metrics::Metrics;
use crate::cache::Level;
use crate::config::RequestLog;
use crate::gate::Refused;
use crate::quota::Limited;

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A tenant's request was answered.
    Answered(&'a RequestDone<'a>),
    /// A request waits, to be tried again.
    Held {
        /// Why it has to wait.
        reason: HoldReason,
    },
    /// A read was answered.
    Read {
        /// By a node of this role.
        by: NodeRole,
    },
    /// A read that a replica might have answered was given to the primary.
    FellBack {
        /// Why.
        reason: FallBack,
    },
    /// An Idempotency-Key had an effect.
    Key(KeyUse),
    /// A client's copy of an answer was still good: 304.
    NotModified,
    /// A tenant's request was refused for a limit of the tenant.
    Limited(Limited),
    /// A request got none of a node's connections.
    NotAdmitted(Refused),
    /// A shard's schema model was loaded.
    SchemaLoaded {
        /// The shard.
        shard: &'a str,
        /// Its model's fingerprint.
        fingerprint: &'a str,
        /// Relations in it.
        relations: usize,
        /// Time that it took.
        took: Duration,
    },
    /// A shard's schema model could not be loaded; the last one stays in use.
    SchemaFailed {
        /// The shard.
        shard: &'a str,
        /// Why, with its causes.
        error: String,
    },
    /// A shard's primary was found, or found to be another one.
    PrimaryFound {
        /// The shard.
        shard: &'a str,
        /// The node's name.
        node: &'a str,
    },
    /// None of a shard's nodes is a reachable primary.
    PrimaryLost {
        /// The shard.
        shard: &'a str,
        /// What each of its nodes says.
        error: String,
    },
    /// An issuer's keys were fetched.
    KeysFetched {
        /// From where.
        url: &'a str,
        /// They are other ones than before.
        news: bool,
    },
    /// An issuer's keys could not be fetched; the last known ones stay in use.
    KeysFailed {
        /// From where.
        url: &'a str,
        /// Why, with its causes.
        error: String,
    },
    /// A worker tells of its shards' changes from now on.
    StreamOpened {
        /// Its address.
        worker: &'a str,
    },
    /// A worker's stream could not be opened, or ended; it is tried again.
    StreamLost {
        /// Its address.
        worker: &'a str,
        /// Why, with its causes.
        error: String,
    },
}

/// Why a request has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// Its tenant is fenced for a cut-over.
    Fenced,
    /// Its tenant has moved to another shard.
    Moved,
    /// This router's placement is not the shard's.
    StalePlacement,
    /// The shard has no primary just now, or lost it under the request.
    NoPrimary,
    /// A request with the same Idempotency-Key is still being answered.
    SameKey,
    /// The shard's schema has not been read yet.
    NoSchema,
}

/// What an Idempotency-Key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// The first answer was given again.
    Replayed,
    /// It was another request's key.
    Refused,
    /// A write of unknown outcome was tried again under its key.
    Resolved,
}

/// What a node is to its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// Takes writes.
    Primary,
    /// Follows.
    Replica,
}

/// Why a replica did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallBack {
    /// None is known to be far enough.
    NoneFresh,
    /// Its connections were all in use.
    Busy,
    /// It could not be connected to.
    Unreachable,
    /// It was lost under the read.
    Lost,
    /// It refused what the primary may do.
    Refused,
}

impl FallBack {
    /// The replica had begun, so the primary's work comes on top of it.
    pub fn is_a_retry(self) -> bool {
        matches!(self, Self::Lost | Self::Refused)
    }

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoneFresh => "none_fresh",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// What is known of a request once it is answered.
#[derive(Debug)]
pub struct RequestDone<'a> {
    /// Its id, also in the response's `X-Request-Id`.
    pub id: &'a str,
    /// Tenant, once known.
    pub tenant: Option<uuid::Uuid>,
    /// Shard, once known.
    pub shard: Option<&'a str>,
    /// Method.
    pub method: &'a Method,
    /// Path without the query string, which can hold personal data.
    pub path: &'a str,
    /// Kind of resource.
    pub route: Route,
    /// Where the answer came from.
    pub from: Source,
    /// Status of the answer.
    pub status: StatusCode,
    /// Code of the error, where it is one.
    pub code: Option<&'a str>,
    /// From the request's headers to the answer.
    pub took: Duration,
    /// Body bytes of the answer.
    pub bytes: usize,
    /// Where it was a slow one.
    pub slow: Option<Slow<'a>>,
    /// Its place in a trace, where it has one.
    pub trace: Option<&'a Place>,
    /// What it did when, where that is recorded.
    pub did: &'a [Did],
    /// Its last statement's text, where that is recorded. It holds no value of
    /// the request.
    pub statement: Option<&'a str>,
    /// What went wrong that must not, where something did.
    pub fault: Option<&'static str>,
}

/// What made a request slow.
#[derive(Debug)]
pub struct Slow<'a> {
    /// Its last statement's text, which holds no value of the request: the
    /// plan's shape, to be given to EXPLAIN.
    pub statement: Option<&'a str>,
    /// What its time went to.
    pub stages: Vec<(&'static str, Duration)>,
}

/// A stage of a request, once.
#[derive(Clone, Copy, Debug)]
pub struct Did {
    /// The stage's name.
    pub stage: &'static str,
    /// When it began.
    pub from: Instant,
    /// When it ended.
    pub to: Instant,
}

/// What a request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A table or view.
    Relation,
    /// A function.
    Rpc,
    /// The description of the API.
    Root,
    /// Nothing of the API.
    Other,
}

impl Route {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relation => "relation",
            Self::Rpc => "rpc",
            Self::Root => "root",
            Self::Other => "other",
        }
    }
}

/// Where a request's answer came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The router itself: a refusal, an error, what describes the API.
    #[default]
    Router,
    /// An entry in the router's memory.
    Memory,
    /// An entry in Redis.
    Redis,
    /// The shard.
    Shard,
}

impl Source {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Shard => "shard",
        }
    }
}

impl From<Level> for Source {
    fn from(level: Level) -> Self {
        match level {
            Level::Local => Self::Memory,
            Level::Shared => Self::Redis,
            Level::Filled | Level::Missed | Level::Bypassed => Self::Shard,
        }
    }
}

/// Where events go.
pub struct Events {
    /// The metrics.
    pub metrics: Metrics,
    /// The traces.
    pub tracer: Tracer,
    faults: Faults,
    access_log: AccessLog,
    requests: RequestLog,
}

impl Events {
    /// Logs requests as `requests` says.
    pub fn new(metrics: Metrics, requests: RequestLog) -> std::io::Result<Self> {
        Ok(Self {
            metrics,
            tracer: Tracer::default(),
            faults: Faults::default(),
            access_log: AccessLog::start()?,
            requests,
        })
    }

    /// Also traces requests, and reports faults.
    pub fn with(self, tracer: Tracer, faults: Faults) -> Self {
        Self {
            tracer,
            faults,
            ..self
        }
    }

    /// Tells log, metrics, traces and reports.
    pub fn emit(&self, event: &Event<'_>) {
        self.metrics.observe(event);
        match event {
            Event::Answered(done) => {
                let wanted = match self.requests {
                    RequestLog::All => true,
                    RequestLog::Errors => done.status.is_server_error() || done.slow.is_some(),
                };
                if wanted && !self.access_log.write(done) {
                    self.metrics.log_lines_dropped.increment(1);
                }
                span::record(&self.tracer, done);
                fault::report(&self.faults, done);
            }
            Event::Held { reason } => tracing::debug!(?reason, "request held"),
            Event::Read { .. } => {}
            Event::FellBack { reason } => tracing::debug!(?reason, "read given to the primary"),
            Event::Key(used) => tracing::debug!(?used, "idempotency key"),
            Event::NotModified | Event::Limited(_) | Event::NotAdmitted(_) => {}
            Event::SchemaLoaded {
                shard,
                fingerprint,
                relations,
                took,
            } => {
                let took_ms = took.as_millis();
                tracing::info!(shard, fingerprint, relations, took_ms, "schema loaded");
            }
            Event::SchemaFailed { shard, error } => {
                tracing::error!(shard, error, "schema could not be loaded");
            }
            Event::PrimaryFound { shard, node } => tracing::info!(shard, node, "primary found"),
            Event::PrimaryLost { shard, error } => tracing::warn!(shard, error, "primary lost"),
            Event::KeysFetched { url, news } => tracing::debug!(url, news, "issuer's keys fetched"),
            Event::KeysFailed { url, error } => {
                tracing::warn!(url, error, "issuer's keys could not be fetched");
            }
            Event::StreamOpened { worker } => tracing::info!(worker, "change stream opened"),
            Event::StreamLost { worker, error } => {
                tracing::info!(worker, error, "change stream lost");
            }
        }
    }
}
