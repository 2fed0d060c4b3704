//! Spans: what was done when, for whom, as part of which trace.
//!
//! A span is made when its work is over, from times that were noted meanwhile,
//! so that what is not sampled costs nothing but the draw.

mod export;
mod parent;

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use opentelemetry::InstrumentationScope;
pub use opentelemetry::trace::SpanKind;
use opentelemetry::trace::{SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState};
pub use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;

pub use self::parent::Parent;
use crate::outbox::{Outbox, Post};
use crate::settings::Traces;
use crate::{Service, TelemetryError};
use export::Collector;

/// Spans below one at most; more are not recorded.
pub const CHILDREN_MAX: usize = 64;

/// Begins traces, and sends them.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    ratio: f64,
    budget: DefaultDirectRateLimiter,
    asked: DefaultDirectRateLimiter,
    scope: InstrumentationScope,
    outbox: Outbox<Collector>,
}

/// A span that is under way: a place in a trace.
#[derive(Clone, Debug)]
pub struct Place {
    trace: TraceId,
    span: SpanId,
    parent: SpanId,
    parent_is_remote: bool,
    state: TraceState,
    recorded: bool,
}

/// A piece of work that is over.
#[derive(Debug)]
pub struct Span {
    /// What was done, of few different names.
    pub name: Cow<'static, str>,
    /// On whose behalf.
    pub kind: SpanKind,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What else is known of it, by OpenTelemetry's conventions.
    pub attributes: Vec<KeyValue>,
    /// It failed, and why.
    pub failed: Option<String>,
}

impl Tracer {
    pub(crate) fn start(
        service: &Service,
        traces: &Traces,
        client: reqwest::Client,
    ) -> Result<(Self, Option<Post>), TelemetryError> {
        if !(0.0..=1.0).contains(&traces.sample_ratio) {
            return Err(TelemetryError::Ratio(traces.sample_ratio));
        }
        let Some(url) = &traces.otlp_url else {
            return Ok((Self(None), None));
        };
        let collector = Collector::new(service, url, client)?;
        let (outbox, post) = Outbox::open(collector);
        let most = NonZeroU32::new(traces.per_second_max).unwrap_or(NonZeroU32::MIN);
        let half = NonZeroU32::new(traces.per_second_max / 2).unwrap_or(NonZeroU32::MIN);
        let on = On {
            ratio: traces.sample_ratio,
            budget: RateLimiter::direct(Quota::per_second(most)),
            asked: RateLimiter::direct(Quota::per_second(half)),
            scope: InstrumentationScope::builder(service.name)
                .with_version(service.version)
                .build(),
            outbox,
        };
        Ok((Self(Some(Arc::new(on))), Some(post)))
    }

    /// A place below `parent`, or in a new trace. None where there is no parent
    /// and the draw says no; with a parent that was not sampled, one that only
    /// tells the trace's id.
    pub fn begin(&self, parent: Option<Parent>) -> Option<Place> {
        let wanted = |on: &&Arc<On>| match &parent {
            Some(parent) => parent.sampled,
            None => fastrand::f64() < on.ratio,
        };
        let wanted = self.0.as_ref().filter(wanted);
        let recorded = wanted.is_some_and(|on| on.grants(parent.is_some()));
        match parent {
            Some(parent) => Some(Place {
                trace: parent.trace,
                span: new_span(),
                parent: parent.span,
                parent_is_remote: true,
                state: parent.state,
                recorded,
            }),
            None => recorded.then(|| Place {
                trace: TraceId::from(fastrand::u128(1..)),
                span: new_span(),
                parent: SpanId::INVALID,
                parent_is_remote: false,
                state: TraceState::NONE,
                recorded,
            }),
        }
    }

    /// The root of the trace that has this id: whoever knows it, in whichever
    /// process, finds the same place. Not zero in either half.
    pub fn root(&self, id: u128) -> Option<Place> {
        let recorded = self.0.as_ref().is_some_and(|on| on.grants(false));
        recorded.then(|| Place {
            trace: TraceId::from(id),
            // The lower half: as good as any, and known beforehand.
            span: SpanId::from(id as u64),
            parent: SpanId::INVALID,
            parent_is_remote: false,
            state: TraceState::NONE,
            recorded,
        })
    }

    /// Sends a place's span, and spans below it, if it is recorded.
    pub fn end(&self, place: &Place, span: Span, below: impl IntoIterator<Item = Span>) {
        let Some(on) = self.0.as_ref().filter(|_| place.recorded) else {
            return;
        };
        let below = below.into_iter().take(CHILDREN_MAX);
        let below = below.map(|child| place.below().data(on, child));
        let mut spans: Vec<SpanData> = below.collect();
        spans.push(place.data(on, span));
        on.outbox.put(spans);
    }
}

impl On {
    /// Within the budget, of which callers who ask for it by `traceparent` have
    /// half: anybody can, and the draw's must not be used up by them.
    fn grants(&self, asked: bool) -> bool {
        let granted = (!asked || self.asked.check().is_ok()) && self.budget.check().is_ok();
        if !granted {
            self.outbox.drop_one();
        }
        granted
    }
}

impl Place {
    /// Its trace's id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> impl std::fmt::Display + use<> {
        self.trace
    }

    /// Its own id, 16 hexadecimal digits.
    pub fn span_id(&self) -> impl std::fmt::Display + use<> {
        self.span
    }

    /// Whether its span is sent.
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// What others continue it by: a W3C `traceparent`.
    pub fn traceparent(&self) -> String {
        let flags = u8::from(self.recorded);
        format!("00-{}-{}-{flags:02x}", self.trace, self.span)
    }

    /// A new place below it.
    pub fn below(&self) -> Self {
        Self {
            span: new_span(),
            parent: self.span,
            parent_is_remote: false,
            ..self.clone()
        }
    }

    fn data(&self, on: &On, span: Span) -> SpanData {
        SpanData {
            span_context: SpanContext::new(
                self.trace,
                self.span,
                TraceFlags::SAMPLED,
                false,
                self.state.clone(),
            ),
            parent_span_id: self.parent,
            parent_span_is_remote: self.parent_is_remote,
            span_kind: span.kind,
            name: span.name,
            start_time: span.started,
            end_time: span.ended,
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: span.failed.map_or(Status::Unset, Status::error),
            instrumentation_scope: on.scope.clone(),
        }
    }
}

fn new_span() -> SpanId {
    SpanId::from(fastrand::u64(1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_still_tells_a_callers_trace() {
        let tracer = Tracer::default();
        assert!(tracer.begin(None).is_none());
        let parent = Parent::parse(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            None,
        );
        let place = tracer.begin(parent).unwrap();
        assert!(!place.is_recorded());
        assert_eq!(
            place.trace_id().to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        // The next one is told that nothing is recorded, and has a parent here.
        let passed = Parent::parse(&place.traceparent(), None).unwrap();
        assert!(!passed.sampled && passed.span == place.span && passed.trace == place.trace);
    }

    #[test]
    fn a_ratio_is_a_part_of_one() {
        let service = Service {
            name: "test",
            instance: "1".into(),
            version: "0",
        };
        for (ratio, right) in [(0.0, true), (1.0, true), (1.1, false), (f64::NAN, false)] {
            let traces = Traces {
                sample_ratio: ratio,
                ..Traces::default()
            };
            let started = Tracer::start(&service, &traces, reqwest::Client::new());
            assert_eq!(started.is_ok(), right, "{ratio}");
        }
    }
}
