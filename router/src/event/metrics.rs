//! The router's metrics: one struct, whose fields' comments are the help texts.
//!
//! Handles are made once, so that a request looks nothing up. Label values are
//! closed enums; a tenant is never a label.

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{Event, FallBack, HoldReason, KeyUse, Route, Source};
use crate::cache::Level;
use crate::cache::validity::Unfit;
use crate::gate::Refused;
use crate::quota::Limited;

/// Seconds, from a cached answer to the request deadline; 1 ms and 1 s are
/// edges, so that an Apdex of either can be read off.
const DURATION_BUCKETS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0, 30.0,
];

const ROUTES: [Route; 4] = [Route::Relation, Route::Rpc, Route::Root, Route::Other];
const SOURCES: [Source; 4] = [Source::Router, Source::Memory, Source::Redis, Source::Shard];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All handles.
pub struct Metrics {
    /// Requests answered, by kind of resource, where the answer came from, and class
    /// of status.
    requests: [[[Counter; 5]; 4]; 4],
    /// Time from a request's headers to its answer, by kind and source.
    duration: [[Histogram; 4]; 4],
    /// Requests being answered.
    pub in_flight: Gauge,
    /// Times that a request was held, to be tried again, by reason.
    held: [Counter; 6],
    /// Reads answered, by the node's role.
    reads: [Counter; 2],
    /// Reads given to the primary although a replica might have answered, by reason.
    fell_back: [Counter; 5],
    /// What Idempotency-Keys did.
    keys: [Counter; 3],
    /// Answers that a client's copy still equalled: 304.
    not_modified: Counter,
    /// Requests refused for a tenant's limit: of its rate, its concurrency, its time.
    limited: [Counter; 3],
    /// Requests that got none of a node's connections, by reason.
    not_admitted: [Counter; 4],
    /// Tenants that asked for something lately.
    pub tenants: Gauge,
    /// Schema models loaded.
    schemas_loaded: Counter,
    /// Schema models that could not be loaded.
    schemas_failed: Counter,
    /// Times that a shard was found to have no reachable primary.
    primaries_lost: Counter,
    /// Times that a stream to a worker was lost, or could not be opened.
    streams_lost: Counter,
    /// Times that an issuer's keys could not be fetched.
    keys_failed: Counter,
    /// Connections to shards that are open.
    pub connections_open: Gauge,
    /// Connections to shards that are in use.
    pub connections_used: Gauge,
    /// Connections to shards that may be open.
    pub connections_max: Gauge,
    /// Requests that wait for a connection.
    pub requests_waiting: Gauge,
    /// Requests refused because too many were in flight.
    pub shed: Counter,
    /// Requests answered from memory while too many were in flight.
    pub spared: Counter,
    /// Retries that were not made because the budget was spent.
    pub retries_denied: Counter,
    /// Version of the placement snapshot in use.
    pub placement_version: Gauge,
    /// Tenants held as exceptions to the ring.
    pub placement_exceptions: Gauge,
    /// Lines of the request log that were dropped because its queue was full.
    pub log_lines_dropped: Counter,
}

impl Metrics {
    /// Installs the recorder, describes and makes all metrics.
    pub fn install() -> Result<(Self, PrometheusHandle), BuildError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &DURATION_BUCKETS)?
            .install_recorder()?;
        describe();
        Ok((Self::handles(), handle))
    }

    /// Counts where [`Metrics::install`] was called, and nowhere otherwise.
    pub(crate) fn handles() -> Self {
        let requests = ROUTES.map(|route| {
            SOURCES.map(|from| {
                CLASSES.map(|class| {
                    metrics::counter!("ringfence_requests_total", "route" => route.name(), "from" => from.name(), "status" => class)
                })
            })
        });
        let held = [
            HoldReason::Fenced,
            HoldReason::Moved,
            HoldReason::StalePlacement,
            HoldReason::NoPrimary,
            HoldReason::SameKey,
            HoldReason::NoSchema,
        ]
        .map(|reason| metrics::counter!("ringfence_requests_held_total", "reason" => reason_name(reason)));
        Self {
            requests,
            duration: ROUTES.map(|route| {
                SOURCES.map(|from| {
                    metrics::histogram!("ringfence_request_duration_seconds", "route" => route.name(), "from" => from.name())
                })
            }),
            in_flight: metrics::gauge!("ringfence_requests_in_flight"),
            reads: ["primary", "replica"]
                .map(|role| metrics::counter!("ringfence_reads_total", "role" => role)),
            fell_back: [
                FallBack::NoneFresh,
                FallBack::Busy,
                FallBack::Unreachable,
                FallBack::Lost,
                FallBack::Refused,
            ]
            .map(|reason| metrics::counter!("ringfence_reads_fallen_back_total", "reason" => reason.name())),
            held,
            keys: ["replayed", "refused", "resolved"]
                .map(|result| metrics::counter!("ringfence_idempotency_total", "result" => result)),
            not_modified: metrics::counter!("ringfence_not_modified_total"),
            limited: ["rate", "concurrency", "time"]
                .map(|limit| metrics::counter!("ringfence_requests_limited_total", "limit" => limit)),
            not_admitted: [Refused::Full, Refused::TooLong, Refused::PushedOut, Refused::ByNode].map(|why| {
                metrics::counter!("ringfence_requests_not_admitted_total", "reason" => refused_name(why))
            }),
            tenants: metrics::gauge!("ringfence_tenants_active"),
            schemas_loaded: metrics::counter!("ringfence_schema_loads_total", "result" => "ok"),
            schemas_failed: metrics::counter!("ringfence_schema_loads_total", "result" => "failed"),
            primaries_lost: metrics::counter!("ringfence_primaries_lost_total"),
            streams_lost: metrics::counter!("ringfence_change_streams_lost_total"),
            keys_failed: metrics::counter!("ringfence_issuer_keys_failed_total"),
            connections_open: metrics::gauge!("ringfence_pool_connections", "state" => "open"),
            connections_used: metrics::gauge!("ringfence_pool_connections", "state" => "used"),
            connections_max: metrics::gauge!("ringfence_pool_connections", "state" => "max"),
            requests_waiting: metrics::gauge!("ringfence_pool_waiting"),
            shed: metrics::counter!("ringfence_requests_shed_total"),
            spared: metrics::counter!("ringfence_requests_spared_total"),
            retries_denied: metrics::counter!("ringfence_retries_denied_total"),
            placement_version: metrics::gauge!("ringfence_placement_version"),
            placement_exceptions: metrics::gauge!("ringfence_placement_exceptions"),
            log_lines_dropped: metrics::counter!("ringfence_log_lines_dropped_total"),
        }
    }

    /// Counts an event.
    pub fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Answered(done) => {
                let class = usize::from(done.status.as_u16() / 100).clamp(1, 5) - 1;
                let (route, from) = (done.route as usize, done.from as usize);
                self.requests[route][from][class].increment(1);
                self.duration[route][from].record(done.took.as_secs_f64());
            }
            Event::Held { reason } => self.held[*reason as usize].increment(1),
            Event::Read { by } => self.reads[*by as usize].increment(1),
            Event::FellBack { reason } => self.fell_back[*reason as usize].increment(1),
            Event::Key(used) => self.keys[match used {
                KeyUse::Replayed => 0,
                KeyUse::Refused => 1,
                KeyUse::Resolved => 2,
            }]
            .increment(1),
            Event::NotModified => self.not_modified.increment(1),
            Event::Limited(Limited::Rate(_)) => self.limited[0].increment(1),
            Event::Limited(Limited::Concurrency { .. }) => self.limited[1].increment(1),
            Event::Limited(Limited::Time { .. }) => self.limited[2].increment(1),
            Event::NotAdmitted(why) => self.not_admitted[*why as usize].increment(1),
            Event::SchemaLoaded { .. } => self.schemas_loaded.increment(1),
            Event::SchemaFailed { .. } => self.schemas_failed.increment(1),
            Event::PrimaryLost { .. } => self.primaries_lost.increment(1),
            Event::StreamLost { .. } => self.streams_lost.increment(1),
            Event::KeysFailed { .. } => self.keys_failed.increment(1),
            Event::PrimaryFound { .. } | Event::StreamOpened { .. } | Event::KeysFetched { .. } => {
            }
        }
    }
}

fn reason_name(reason: HoldReason) -> &'static str {
    match reason {
        HoldReason::Fenced => "fenced",
        HoldReason::Moved => "moved",
        HoldReason::StalePlacement => "stale_placement",
        HoldReason::NoPrimary => "no_primary",
        HoldReason::SameKey => "same_key",
        HoldReason::NoSchema => "no_schema",
    }
}

fn refused_name(why: Refused) -> &'static str {
    match why {
        Refused::Full => "full",
        Refused::TooLong => "too_long",
        Refused::PushedOut => "pushed_out",
        Refused::ByNode => "by_node",
    }
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge};
    counter!(
        "ringfence_requests_total",
        "Requests answered, by kind of resource, where the answer came from, and class of status."
    );
    metrics::describe_histogram!(
        "ringfence_request_duration_seconds",
        Unit::Seconds,
        "Time from a request's headers to its answer, by kind of resource and where the answer came from."
    );
    gauge!("ringfence_requests_in_flight", "Requests being answered.");
    counter!(
        "ringfence_requests_held_total",
        "Times that a request was held, to be tried again, by reason."
    );
    counter!(
        "ringfence_reads_total",
        "Reads answered, by the role of the node."
    );
    counter!(
        "ringfence_reads_fallen_back_total",
        "Reads given to the primary although a replica might have answered, by reason."
    );
    counter!(
        "ringfence_idempotency_total",
        "Idempotency-Keys whose first answer was given again, which another request had used, or under which a write of unknown outcome was tried again."
    );
    counter!(
        "ringfence_not_modified_total",
        "Answers that a client's copy still equalled: status 304."
    );
    counter!(
        "ringfence_requests_limited_total",
        "Requests refused with 429 for a limit of their tenant, by limit."
    );
    counter!(
        "ringfence_requests_not_admitted_total",
        "Times that a request got none of a node's connections: the queue was full, the wait too long, newer ones of its tenant were served first, or the node took no more."
    );
    gauge!(
        "ringfence_tenants_active",
        "Tenants that asked this router for something in the last ten minutes."
    );
    counter!(
        "ringfence_schema_loads_total",
        "Schema models loaded, by result."
    );
    counter!(
        "ringfence_primaries_lost_total",
        "Times that a shard was found to have no reachable primary."
    );
    counter!(
        "ringfence_change_streams_lost_total",
        "Times that a stream to a worker was lost, or could not be opened."
    );
    counter!(
        "ringfence_issuer_keys_failed_total",
        "Times that an issuer's keys could not be fetched; the last known ones stay in use."
    );
    gauge!(
        "ringfence_pool_connections",
        "Connections to shards: open, in use, and at most."
    );
    gauge!(
        "ringfence_pool_waiting",
        "Requests that wait for a connection."
    );
    counter!(
        "ringfence_requests_shed_total",
        "Requests refused because too many were in flight."
    );
    counter!(
        "ringfence_requests_spared_total",
        "Requests answered from the router's memory although too many were in flight."
    );
    counter!(
        "ringfence_retries_denied_total",
        "Retries that were not made because the budget was spent."
    );
    gauge!(
        "ringfence_placement_version",
        "Version of the placement snapshot in use."
    );
    gauge!(
        "ringfence_placement_exceptions",
        "Tenants held as exceptions to the ring."
    );
    counter!(
        "ringfence_log_lines_dropped_total",
        "Lines of the request log dropped because its queue was full."
    );
}

/// What the caches do.
pub struct CacheMetrics {
    /// Reads answered, by where the answer came from.
    answers: [Counter; 5],
    /// Entries found that could not answer, by reason.
    unfit: [Counter; UNFIT.len()],
    /// Reads that another's fill answered.
    pub joined: Counter,
    /// Fills that were not made because another router's came by Redis meanwhile.
    pub awaited: Counter,
    /// Fills that brought what the entry held already for whose change they were
    /// made: so many of those misses at most were another row's, or a cell's that
    /// two tables share.
    pub refilled_alike: Counter,
    /// Age of answers that may lack what was written since, as the client or the
    /// table's policy allows.
    pub staleness: Histogram,
    /// Times that a shard's lease ended while it was wanted.
    pub leases_lost: Counter,
    /// Reads that found no lease, so that no cache could answer them.
    pub unleased: Counter,
    /// Writes acknowledged, by how they became visible everywhere.
    pub barriers: [Counter; 4],
    /// Time that acknowledged writes waited for that.
    pub barrier_wait: Histogram,
    /// Entries in this process's memory.
    pub entries: Gauge,
    /// Bytes of them.
    pub bytes: Gauge,
    /// Shards on whose history a lease is held.
    pub leases: Gauge,
    /// Workers whose changes are heard.
    pub streams: Gauge,
}

const LEVELS: [&str; 5] = ["local", "shared", "filled", "missed", "bypassed"];
const UNFIT: [&str; 7] = [
    "generation",
    "epoch",
    "changed",
    "token",
    "lease_over",
    "schema",
    "fence",
];
/// By rule 8: a worker's word, the leases' end, no worker that could have
/// granted one, or the client or operator did not want to wait.
const BARRIERS: [&str; 4] = ["confirmed", "leases_ended", "no_leases", "not_wanted"];

impl CacheMetrics {
    /// The handles, described.
    pub fn new() -> Self {
        use metrics::describe_counter as counter;
        counter!(
            "ringfence_cache_answers_total",
            "Reads answered, by where the answer came from."
        );
        counter!(
            "ringfence_cache_unfit_total",
            "Entries found that could not answer, by reason."
        );
        counter!(
            "ringfence_cache_joined_total",
            "Reads that another's fill answered."
        );
        counter!(
            "ringfence_cache_awaited_total",
            "Fills that were not made because another router's came by Redis meanwhile."
        );
        counter!(
            "ringfence_cache_refilled_alike_total",
            "Fills that brought what the changed entry held already: at most so many misses were by cells that tables share."
        );
        metrics::describe_histogram!(
            "ringfence_cache_staleness_seconds",
            Unit::Seconds,
            "Age of answers that may lack what was written since, as client or policy allow."
        );
        counter!(
            "ringfence_cache_leases_lost_total",
            "Times that a shard's lease ended while it was wanted."
        );
        counter!(
            "ringfence_cache_unleased_total",
            "Reads that found no lease, so that no cache could answer them."
        );
        counter!(
            "ringfence_write_barriers_total",
            "Writes acknowledged, by how they became visible everywhere."
        );
        use metrics::describe_gauge as gauge;
        gauge!("ringfence_cache_entries", "Entries in the router's memory.");
        gauge!("ringfence_cache_bytes", "Bytes of entries in memory.");
        gauge!(
            "ringfence_cache_leases",
            "Shards whose answers may come from the caches now."
        );
        gauge!(
            "ringfence_change_streams",
            "Workers whose changes are heard."
        );
        metrics::describe_histogram!(
            "ringfence_write_barrier_seconds",
            Unit::Seconds,
            "Time that acknowledged writes waited to be visible everywhere."
        );
        Self {
            answers: LEVELS
                .map(|level| metrics::counter!("ringfence_cache_answers_total", "from" => level)),
            unfit: UNFIT
                .map(|why| metrics::counter!("ringfence_cache_unfit_total", "reason" => why)),
            joined: metrics::counter!("ringfence_cache_joined_total"),
            awaited: metrics::counter!("ringfence_cache_awaited_total"),
            refilled_alike: metrics::counter!("ringfence_cache_refilled_alike_total"),
            staleness: metrics::histogram!("ringfence_cache_staleness_seconds"),
            leases_lost: metrics::counter!("ringfence_cache_leases_lost_total"),
            unleased: metrics::counter!("ringfence_cache_unleased_total"),
            barriers: BARRIERS
                .map(|how| metrics::counter!("ringfence_write_barriers_total", "by" => how)),
            barrier_wait: metrics::histogram!("ringfence_write_barrier_seconds"),
            entries: metrics::gauge!("ringfence_cache_entries"),
            bytes: metrics::gauge!("ringfence_cache_bytes"),
            leases: metrics::gauge!("ringfence_cache_leases"),
            streams: metrics::gauge!("ringfence_change_streams"),
        }
    }

    /// A read was answered.
    pub fn hit(&self, level: Level) {
        self.answers[level as usize].increment(1);
    }

    /// An entry could not answer.
    pub fn unfit(&self, why: Unfit) {
        self.unfit[why as usize].increment(1);
    }
}

impl Default for CacheMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What happens between this router and Redis.
pub struct SharedMetrics {
    /// Entries found.
    pub found: Counter,
    /// Entries not found.
    pub missed: Counter,
    /// Commands refused.
    pub failed: Counter,
    /// Commands without an answer in time.
    pub timed_out: Counter,
    /// Commands not sent: a breaker is open, or too many are under way.
    pub skipped: Counter,
    /// Connections made, the first included.
    pub connected: Counter,
}

impl SharedMetrics {
    /// The handles, described.
    pub fn new() -> Self {
        metrics::describe_counter!(
            "ringfence_cache_redis_total",
            "Commands to Redis, by what came of them."
        );
        metrics::describe_counter!(
            "ringfence_cache_redis_connects_total",
            "Clients built for Redis: one for each thread at the start, others when commands fail."
        );
        let of = |result: &'static str| metrics::counter!("ringfence_cache_redis_total", "result" => result);
        Self {
            found: of("found"),
            missed: of("missed"),
            failed: of("failed"),
            timed_out: of("timed_out"),
            skipped: of("skipped"),
            connected: metrics::counter!("ringfence_cache_redis_connects_total"),
        }
    }
}

impl Default for SharedMetrics {
    fn default() -> Self {
        Self::new()
    }
}
