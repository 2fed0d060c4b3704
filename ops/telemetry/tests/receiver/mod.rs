//! A collector of traces and a Sentry, as far as tests need them: servers that
//! decode what they are sent.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

/// Longest wait for what must come.
const WAIT: Duration = Duration::from_secs(60);

/// Takes OTLP over HTTP.
pub(crate) struct Collector {
    pub(crate) url: String,
    spans: UnboundedReceiver<Seen>,
    /// What came and was not asked for yet.
    pub(crate) came: Vec<Seen>,
}

/// A span that was received.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) service: BTreeMap<String, String>,
    pub(crate) span: Span,
}

impl Seen {
    pub(crate) fn attributes(&self) -> BTreeMap<String, String> {
        texts(&self.span.attributes)
    }

    pub(crate) fn attribute(&self, name: &str) -> String {
        self.attributes().remove(name).unwrap_or_default()
    }

    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(crate) fn nanos(&self) -> u64 {
        self.span.end_time_unix_nano - self.span.start_time_unix_nano
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let (tell, spans) = unbounded_channel();
        let routes = Router::new()
            .route("/v1/traces", post(take_spans))
            .with_state(tell);
        Self {
            url: serve(routes).await,
            spans,
            came: Vec::new(),
        }
    }

    /// Waits for a span that is like this.
    pub(crate) async fn until(&mut self, like: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(found) = self.came.iter().find(|seen| like(seen)) {
                return found.clone();
            }
            match timeout_at(deadline, self.spans.recv()).await {
                Ok(Some(seen)) => self.came.push(seen),
                _ => panic!("it did not come, but these: {:#?}", self.came),
            }
        }
    }
}

async fn take_spans(State(tell): State<UnboundedSender<Seen>>, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for of_process in request.resource_spans {
        let service = texts(&of_process.resource.unwrap().attributes);
        for span in of_process.scope_spans.into_iter().flat_map(|s| s.spans) {
            let _ = tell.send(Seen {
                service: service.clone(),
                span,
            });
        }
    }
    StatusCode::OK
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = attributes.iter().filter_map(|pair| {
        let value = pair.value.as_ref()?.value.as_ref()?;
        Some((pair.key.clone(), text(value)))
    });
    pairs.collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes Sentry's envelopes.
pub(crate) struct Sentry {
    pub(crate) dsn: String,
    envelopes: UnboundedReceiver<(HeaderMap, String)>,
}

impl Sentry {
    pub(crate) async fn start() -> Self {
        let (tell, envelopes) = unbounded_channel();
        let routes = Router::new()
            .route("/api/42/envelope/", post(take_envelope))
            .with_state(tell);
        let url = serve(routes).await;
        Self {
            dsn: url.replacen("://", "://public@", 1) + "/42",
            envelopes,
        }
    }

    /// The next event, and the whole envelope as it came.
    pub(crate) async fn next(&mut self) -> (Value, String) {
        let next = timeout_at(Instant::now() + WAIT, self.envelopes.recv());
        let (headers, text) = next.await.unwrap().unwrap();
        let auth = headers["x-sentry-auth"].to_str().unwrap();
        assert!(auth.contains("sentry_key=public"), "{auth}");
        // The envelope's own line, the item's, the event.
        let event = text.lines().nth(2).unwrap();
        (serde_json::from_str(event).unwrap(), text)
    }

    /// How many came that nobody waited for.
    pub(crate) fn left(&mut self) -> usize {
        std::iter::from_fn(|| self.envelopes.try_recv().ok()).count()
    }
}

async fn take_envelope(
    State(tell): State<UnboundedSender<(HeaderMap, String)>>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let _ = tell.send((headers, body));
    StatusCode::OK
}

pub(crate) async fn serve(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
    format!("http://{address}")
}
