//! Faults of our own, reported to Sentry: what nobody expected, in words that
//! hold nothing of a request. But for ids, of which a request's may be its
//! client's choice, there is no field for a header, a query string, a row or an
//! error's free text, so none can be sent.

mod send;

use std::backtrace::Backtrace;
use std::borrow::Cow;
use std::num::NonZeroU32;
use std::panic::PanicHookInfo;
use std::sync::Arc;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use sentry_types::protocol::v7::{
    Context, Event, Exception, Frame, Level, Map, Stacktrace, TraceContext,
};

use crate::outbox::{Outbox, Post};
use crate::settings::{Dsn, Sentry};
use crate::trace::Place;
use crate::{Service, TelemetryError};
use send::Project;

/// Frames of a panic that are reported.
const FRAMES_MAX: usize = 100;
/// What a panic's code is.
const PANIC: &str = "panic";

/// Reports faults.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<On>>);

struct On {
    service: Service,
    environment: String,
    budget: DefaultDirectRateLimiter,
    outbox: Outbox<Project>,
}

/// Something that must not happen.
#[derive(Debug)]
pub struct Fault<'a> {
    /// Its stable code.
    pub code: &'a str,
    /// What it is, in words of the program's own.
    pub what: &'static str,
    /// Where: a kind of request or of job.
    pub place: &'a str,
    /// Ids and other words of few letters: tenant, shard, request.
    pub tags: &'a [(&'static str, &'a str)],
    /// As part of which trace.
    pub trace: Option<&'a Place>,
}

impl Faults {
    pub(crate) fn start(
        service: &Service,
        sentry: &Sentry,
        dsn: Option<Dsn>,
        client: reqwest::Client,
    ) -> Result<(Self, Option<Post>), TelemetryError> {
        let Some(dsn) = dsn else {
            return Ok((Self(None), None));
        };
        let (outbox, post) = Outbox::open(Project::new(&dsn, client)?);
        let most = NonZeroU32::new(sentry.per_minute_max).unwrap_or(NonZeroU32::MIN);
        let on = On {
            service: service.clone(),
            environment: sentry.environment.clone(),
            budget: RateLimiter::direct(Quota::per_minute(most)),
            outbox,
        };
        Ok((Self(Some(Arc::new(on))), Some(post)))
    }

    /// Reports a fault, unless there were too many lately.
    pub fn report(&self, fault: &Fault<'_>) {
        if let Some(on) = self.granted() {
            on.outbox.put(on.event(fault, None));
        }
    }

    /// Also reports each panic of this process: its place in the program and the
    /// functions that led there. Its message only where it is a literal, for a
    /// formatted one can hold anything.
    pub fn report_panics(&self) {
        if self.0.is_none() {
            return;
        }
        let faults = self.clone();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            faults.panicked(panic);
        }));
    }

    fn panicked(&self, panic: &PanicHookInfo<'_>) {
        // First: to name a backtrace's functions takes long, and holds a lock.
        let Some(on) = self.granted() else { return };
        let what = panic.payload().downcast_ref::<&'static str>();
        let at = panic.location().map(|location| {
            let file = inside(location.file());
            format!("{file}:{}", location.line())
        });
        let at = at.unwrap_or_default();
        let frames = frames(&Backtrace::force_capture().to_string());
        let fault = Fault {
            code: PANIC,
            what: what
                .copied()
                .unwrap_or("its message was formatted, and is in the log"),
            place: &at,
            tags: &[],
            trace: None,
        };
        on.outbox.put(on.event(&fault, Some(frames)));
    }

    /// Where reports go, unless there were too many lately.
    fn granted(&self) -> Option<&On> {
        let on = self.0.as_deref()?;
        if on.budget.check().is_err() {
            on.outbox.drop_one();
            return None;
        }
        Some(on)
    }
}

impl On {
    fn event(&self, fault: &Fault<'_>, frames: Option<Vec<Frame>>) -> Event<'static> {
        let mut tags: Map<String, String> = Map::new();
        for (name, value) in fault.tags {
            tags.insert((*name).to_owned(), (*value).to_owned());
        }
        let mut contexts = Map::new();
        if let Some(place) = fault.trace {
            let context = TraceContext {
                trace_id: place.trace_id().to_string().parse().unwrap_or_default(),
                span_id: place.span_id().to_string().parse().unwrap_or_default(),
                ..TraceContext::default()
            };
            contexts.insert("trace".to_owned(), Context::from(context));
        }
        // What is the same fault: not its ids.
        let same = [self.service.name, fault.code, fault.what, fault.place];
        let same: Vec<Cow<'static, str>> = same
            .into_iter()
            .map(|part| part.to_owned().into())
            .collect();
        Event {
            level: match fault.code {
                PANIC => Level::Fatal,
                _ => Level::Error,
            },
            fingerprint: same.into(),
            logger: Some(self.service.name.to_owned()),
            transaction: Some(fault.place.to_owned()),
            platform: "native".into(),
            server_name: Some(self.service.instance.clone().into()),
            release: Some(format!("{}@{}", self.service.name, self.service.version).into()),
            environment: Some(self.environment.clone().into()),
            tags,
            contexts,
            exception: vec![Exception {
                ty: fault.code.to_owned(),
                value: Some(fault.what.to_owned()),
                stacktrace: frames.map(|frames| Stacktrace {
                    frames,
                    ..Stacktrace::default()
                }),
                ..Exception::default()
            }]
            .into(),
            ..Event::default()
        }
    }
}

/// A file's path from its package on: not where it was compiled.
fn inside(file: &str) -> &str {
    let registry = file.split_once("/registry/src/");
    let package = registry.and_then(|(_, rest)| Some(rest.split_once('/')?.1));
    package.unwrap_or(match file.starts_with('/') {
        true => file.rsplit('/').next().unwrap_or_default(),
        false => file,
    })
}

/// The functions of a printed backtrace, outermost first as Sentry wants them.
fn frames(backtrace: &str) -> Vec<Frame> {
    let lines = backtrace.lines();
    let functions = lines.filter_map(|line| {
        let (number, function) = line.trim_start().split_once(": ")?;
        number.parse::<u32>().ok()?;
        Some(Frame {
            function: Some(function.to_owned()),
            ..Frame::default()
        })
    });
    let mut frames: Vec<Frame> = functions.take(FRAMES_MAX).collect();
    frames.reverse();
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_of_the_building_machine_is_told() {
        for (file, told) in [
            ("router/src/pipeline.rs", "router/src/pipeline.rs"),
            (
                "/home/me/.cargo/registry/src/index.crates.io-1/tokio-1.0.0/src/lib.rs",
                "tokio-1.0.0/src/lib.rs",
            ),
            ("/rustc/abc/library/core/src/option.rs", "option.rs"),
        ] {
            assert_eq!(inside(file), told);
        }
    }

    #[test]
    fn a_backtrace_is_read_outermost_first() {
        let text =
            "   0: inner::function\n             at ./src/lib.rs:1:2\n   1: outer: strange\n";
        let frames = frames(text);
        let functions: Vec<_> = frames.iter().map(|f| f.function.as_deref()).collect();
        assert_eq!(functions, [Some("outer: strange"), Some("inner::function")]);
    }
}
