//! Requests of the admin API and jobs as spans.
//!
//! A job's trace has the job's own id, so that every worker that goes on with it
//! continues it, and who has the one has the other. The span of the request that
//! began it names it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use telemetry::fault::Fault;
use telemetry::trace::{Array, KeyValue, Parent, Span, SpanKind, Value};
use uuid::Uuid;

use crate::app::App;
use crate::error::ErrorCode;
use crate::job::{Context, End, JobError, Machine, Step as After};

/// Jobs of one request that its span names.
const JOBS_MAX: usize = 16;

tokio::task_local! {
    /// Jobs that the request under way began.
    static BEGUN: RefCell<Vec<Uuid>>;
}

/// A request of the admin API: its span, and the report where it failed for a
/// fault of the worker's.
pub(crate) async fn request(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = SystemTime::now();
    let since = Instant::now();
    let place = app.tracer.begin(Parent::of(request.headers()));
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or_else(|| "/admin/v1".to_owned(), |m| m.as_str().to_owned());
    let run = async {
        let response = next.run(request).await;
        (response, BEGUN.with(RefCell::take))
    };
    let (response, jobs) = BEGUN.scope(RefCell::default(), run).await;
    let status = response.status();
    let code = response.extensions().get::<ErrorCode>();
    let code = code.map_or("", |code| code.0);
    let name = format!("{method} {route}");
    // 502 and 503 are another server's loss.
    if status == axum::http::StatusCode::INTERNAL_SERVER_ERROR {
        app.faults.report(&Fault {
            code,
            what: "The admin API failed",
            place: &name,
            tags: &[],
            trace: place.as_ref(),
        });
    }
    let Some(place) = place else { return response };
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("http.route", route),
        KeyValue::new("url.path", path),
        KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
    ];
    if !jobs.is_empty() {
        let ids = jobs.iter().map(|job| job.to_string().into()).collect();
        attributes.push(KeyValue::new(
            "ringfence.job.ids",
            Value::Array(Array::String(ids)),
        ));
    }
    let failed = status.is_server_error();
    if failed {
        attributes.push(KeyValue::new("error.type", code));
    }
    let span = Span {
        name: name.into(),
        kind: SpanKind::Server,
        started,
        ended: started + since.elapsed(),
        attributes,
        failed: failed.then(|| code.to_owned()),
    };
    app.tracer.end(&place, span, []);
    response
}

/// The request under way, if it is one, began this job.
pub(crate) fn began(job: Uuid) {
    // Elsewhere a job is begun by no request.
    let _ = BEGUN.try_with(|begun| {
        let mut begun = begun.borrow_mut();
        if begun.len() < JOBS_MAX {
            begun.push(job);
        }
    });
}

/// A step of a job that is under way.
pub(crate) struct Step<'a> {
    context: &'a Context,
    phase: &'static str,
    started: SystemTime,
    since: Instant,
}

impl<'a> Step<'a> {
    pub(crate) fn begin(context: &'a Context, phase: &'static str) -> Self {
        Self {
            context,
            phase,
            started: SystemTime::now(),
            since: Instant::now(),
        }
    }

    /// Without an outcome it was given up, since someone cancelled the job. One
    /// that found nothing to do yet is no span: some look for days.
    pub(crate) fn end<M: Machine>(self, outcome: Option<&Result<After<M>, JobError>>) {
        let (id, ms) = (self.context.job().id, self.since.elapsed().as_millis());
        tracing::debug!(%id, phase = self.phase, ms, "a job's step is done");
        let failed = match outcome {
            Some(Ok(After::Later(next, _))) if next.phase().0 == self.phase => return,
            Some(Ok(After::Next(_) | After::Written(_) | After::Later(..) | After::End(..))) => {
                None
            }
            Some(Err(error)) => Some(error.code()),
            None => Some("cancelled"),
        };
        let job = self.context.job();
        let tracer = &self.context.app().tracer;
        let Some(root) = tracer.root(job.id.as_u128()) else {
            return;
        };
        let span = Span {
            name: format!("{} {}", job.kind.name(), self.phase).into(),
            kind: SpanKind::Internal,
            started: self.started,
            ended: self.started + self.since.elapsed(),
            attributes: attributes(self.context, failed),
            failed: failed.map(str::to_owned),
        };
        tracer.end(&root.below(), span, []);
    }
}

/// A job is over: the span of the whole.
pub(crate) fn ended(context: &Context, end: &End) {
    let job = context.job();
    let tracer = &context.app().tracer;
    let Some(root) = tracer.root(job.id.as_u128()) else {
        return;
    };
    let failed = match end {
        End::Done => None,
        End::Failed(problem) => Some(problem.code.as_str()),
        End::Cancelled => Some("cancelled"),
    };
    let ended = SystemTime::now();
    let span = Span {
        name: job.kind.name().into(),
        kind: SpanKind::Internal,
        // The control database's clock is another one.
        started: job.created.min(ended),
        ended,
        attributes: attributes(context, failed),
        failed: failed.map(str::to_owned),
    };
    tracer.end(&root, span, []);
}

/// A job waits for a person: a report.
pub(crate) fn stuck(context: &Context, error: &JobError) {
    let job = context.job();
    context.app().faults.report(&Fault {
        code: error.code(),
        what: "A job waits for a person",
        place: job.kind.name(),
        tags: &[("job", &job.id.to_string()), ("object", &job.object)],
        trace: None,
    });
}

fn attributes(context: &Context, failed: Option<&str>) -> Vec<KeyValue> {
    let job = context.job();
    let mut attributes = vec![
        KeyValue::new("ringfence.job.id", job.id.to_string()),
        KeyValue::new("ringfence.job.kind", job.kind.name()),
        KeyValue::new("ringfence.job.object", job.object.clone()),
        KeyValue::new("ringfence.job.attempt", i64::from(job.attempt)),
    ];
    if let Some(code) = failed {
        attributes.push(KeyValue::new("error.type", code.to_owned()));
    }
    attributes
}
