//! Requests as spans: one for the whole, one below it for each stage. Names and
//! attributes are those of OpenTelemetry's conventions for HTTP and databases.
//!
//! Neither query string nor headers are among them: both can hold what only the
//! tenant may know.

use std::time::{Duration, Instant, SystemTime};

use telemetry::trace::{KeyValue, Span, SpanKind, Tracer};

use super::{Did, RequestDone, Route};

/// Bytes of a text that a span holds.
const TEXT_BYTES_MAX: usize = 4 << 10;
/// The stage in which Postgres works.
const DATABASE: &str = "transaction";

/// Sends the request's spans, if it is recorded.
pub(super) fn record(tracer: &Tracer, done: &RequestDone<'_>) {
    let Some(place) = done.trace.filter(|place| place.is_recorded()) else {
        return;
    };
    let clock = Clock::now();
    let below = done.did.iter().map(|did| stage(did, done, &clock));
    tracer.end(place, whole(done, &clock), below);
}

fn whole(done: &RequestDone<'_>, clock: &Clock) -> Span {
    let route = pattern(done.route);
    let mut attributes = vec![
        KeyValue::new("http.request.method", done.method.as_str().to_owned()),
        KeyValue::new("http.route", route),
        KeyValue::new("url.path", clipped(done.path)),
        KeyValue::new("http.response.status_code", i64::from(done.status.as_u16())),
        KeyValue::new(
            "http.response.body.size",
            i64::try_from(done.bytes).unwrap_or(i64::MAX),
        ),
        KeyValue::new("ringfence.request.id", done.id.to_owned()),
    ];
    if let Some(tenant) = done.tenant {
        attributes.push(KeyValue::new("ringfence.tenant.id", tenant.to_string()));
    }
    if let Some(shard) = done.shard {
        attributes.push(KeyValue::new("ringfence.shard", shard.to_owned()));
    }
    let code = done.code.unwrap_or_default();
    // A refusal of what the client did wrong is no failure of the server's.
    let failed = done.status.is_server_error();
    if failed {
        attributes.push(KeyValue::new("error.type", code.to_owned()));
    }
    Span {
        name: format!("{} {route}", done.method).into(),
        kind: SpanKind::Server,
        started: clock.ended - done.took,
        ended: clock.ended,
        attributes,
        failed: failed.then(|| code.to_owned()),
    }
}

fn stage(did: &Did, done: &RequestDone<'_>, clock: &Clock) -> Span {
    let database = did.stage == DATABASE;
    let mut attributes = Vec::new();
    if database {
        attributes.push(KeyValue::new("db.system.name", "postgresql"));
        if let Some(shard) = done.shard {
            attributes.push(KeyValue::new("db.namespace", shard.to_owned()));
        }
        if let Some(text) = done.statement {
            attributes.push(KeyValue::new("db.query.text", clipped(text)));
        }
    }
    Span {
        name: did.stage.into(),
        kind: match database {
            true => SpanKind::Client,
            false => SpanKind::Internal,
        },
        started: clock.at(did.from),
        ended: clock.at(did.to),
        attributes,
        failed: None,
    }
}

/// Queues of spans are bounded in number: what is in one is, too.
fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// A path with names in place of what differs.
fn pattern(route: Route) -> &'static str {
    match route {
        Route::Relation => "/{relation}",
        Route::Rpc => "/rpc/{function}",
        Route::Root => "/",
        Route::Other => "/{path}",
    }
}

/// What time it was at an earlier instant, by one look at both clocks.
struct Clock {
    now: Instant,
    ended: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self {
            now: Instant::now(),
            ended: SystemTime::now(),
        }
    }

    fn at(&self, instant: Instant) -> SystemTime {
        let ago: Duration = self.now.saturating_duration_since(instant);
        self.ended.checked_sub(ago).unwrap_or(self.ended)
    }
}
