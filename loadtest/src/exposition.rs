//! A small server while a run goes: `GET /metrics` for Prometheus, and
//! `POST /mark` with a line of text, which puts a mark into the report's
//! plots (`curl -d 'failover of s1' 127.0.0.1:7690/mark`).

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::answer::Origin;
use crate::error::{Error, Result};
use crate::record::{Fault, Interval, histogram};
use crate::report::Mark;

/// A mark is a line, not a document.
const MARK_BYTES_MAX: usize = 1_024;
/// So many marks are kept.
const MARKS_MAX: usize = 1_000;
/// A client that does not send its request is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The run's counters so far; readers see whole seconds.
#[derive(Debug)]
struct Counters {
    due: u64,
    expected: u64,
    faults: [u64; Fault::ALL.len()],
    origins: [u64; Origin::ALL.len()],
    late: u64,
    dropped: u64,
    latency: Histogram<u64>,
    latency_sum_us: f64,
}

/// What the run and its server share.
#[derive(Debug)]
pub struct Exposition {
    counters: Mutex<Counters>,
    marks: Mutex<Vec<Mark>>,
    begin: Arc<OnceLock<Instant>>,
}

impl Exposition {
    /// Nothing counted yet.
    pub fn new(begin: Arc<OnceLock<Instant>>) -> Self {
        Exposition {
            counters: Mutex::new(Counters {
                due: 0,
                expected: 0,
                faults: Default::default(),
                origins: Default::default(),
                late: 0,
                dropped: 0,
                latency: histogram(3),
                latency_sum_us: 0.0,
            }),
            marks: Mutex::default(),
            begin,
        }
    }

    /// Adds a thread's second.
    pub fn add(&self, interval: &Interval) {
        let mut counters = lock(&self.counters);
        counters.due += interval.due;
        counters.expected += interval.tally.expected;
        counters.late += interval.late;
        counters.dropped += interval.dropped;
        for (own, other) in counters.faults.iter_mut().zip(&interval.tally.faults) {
            *own += other;
        }
        for (own, other) in counters.origins.iter_mut().zip(&interval.tally.origins) {
            *own += other;
        }
        let _ = counters.latency.add(&interval.tally.latency);
        counters.latency_sum_us +=
            interval.tally.latency.mean() * interval.tally.latency.len() as f64;
    }

    /// Notes that something happened now.
    pub fn mark(&self, text: &str) {
        let at = self
            .begin
            .get()
            .map_or(0.0, |begin| begin.elapsed().as_secs_f64());
        let mut marks = lock(&self.marks);
        if marks.len() < MARKS_MAX {
            marks.push(Mark {
                at,
                text: text.trim().to_owned(),
            });
        }
    }

    /// All marks, by time.
    pub fn marks(&self) -> Vec<Mark> {
        let mut marks = lock(&self.marks).clone();
        marks.sort_by(|a, b| a.at.total_cmp(&b.at));
        marks
    }

    /// The counters in Prometheus' text format.
    pub fn render(&self) -> String {
        let counters = lock(&self.counters);
        let mut out = String::new();
        let mut family = |name: &str, help: &str, values: &[(String, u64)]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, value) in values {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let plain = |value: u64| [(String::new(), value)];
        family(
            "loadtest_due_total",
            "Requests that fell due.",
            &plain(counters.due),
        );
        family(
            "loadtest_answers_total",
            "Answers as expected.",
            &plain(counters.expected),
        );
        let faults: Vec<_> = Fault::ALL
            .iter()
            .zip(counters.faults)
            .map(|(fault, count)| (format!("{{fault=\"{}\"}}", fault.name()), count))
            .collect();
        family("loadtest_errors_total", "Requests that failed.", &faults);
        let origins: Vec<_> = Origin::ALL
            .iter()
            .zip(counters.origins)
            .map(|(origin, count)| (format!("{{origin=\"{}\"}}", origin.name()), count))
            .collect();
        family(
            "loadtest_answers_by_origin_total",
            "Answers by who gave them.",
            &origins,
        );
        family(
            "loadtest_late_total",
            "Arrivals sent late.",
            &plain(counters.late),
        );
        family(
            "loadtest_dropped_total",
            "Arrivals dropped because too many waited.",
            &plain(counters.dropped),
        );
        latency(&mut out, &counters);
        out
    }
}

fn latency(out: &mut String, counters: &Counters) {
    let name = "loadtest_latency_seconds";
    let _ = writeln!(
        out,
        "# HELP {name} Latency from the moment a request was due.\n# TYPE {name} histogram"
    );
    // From 0.25 ms to 65 s, each twice the one before.
    for power in 0..19 {
        let edge_us = 250u64 << power;
        let below = counters.latency.count_between(0, edge_us);
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"{}\"}} {below}",
            edge_us as f64 / 1e6
        );
    }
    let all = counters.latency.len();
    let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {all}");
    let _ = writeln!(
        out,
        "{name}_sum {}\n{name}_count {all}",
        counters.latency_sum_us / 1e6
    );
}

/// A panic while the lock was held leaves counters that are still worth
/// reading.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Opens the port, so that a busy one is known before the run begins.
///
/// # Errors
/// [`Error::Listen`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, exposition: Arc<Exposition>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: wait for some to be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let exposition = exposition.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &exposition));
            // A client that breaks the connection is no concern of ours.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    exposition: &Exposition,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, exposition.render()),
        (&Method::POST, "/mark") => match Limited::new(request.into_body(), MARK_BYTES_MAX)
            .collect()
            .await
        {
            Ok(body) => {
                exposition.mark(&String::from_utf8_lossy(&body.to_bytes()));
                (StatusCode::NO_CONTENT, String::new())
            }
            Err(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "a mark is one line of text\n".to_owned(),
            ),
        },
        _ => (
            StatusCode::NOT_FOUND,
            "GET /metrics or POST /mark\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_is_cumulative() {
        let exposition = Exposition::new(Arc::default());
        for second in 0..2 {
            let mut interval = Interval::new(second, false);
            interval.tally.expected = 3;
            for latency in [200, 400, 9_000] {
                interval.tally.latency.record(latency).unwrap();
            }
            exposition.add(&interval);
        }
        let text = exposition.render();
        for line in [
            "loadtest_answers_total 6",
            "loadtest_latency_seconds_bucket{le=\"0.00025\"} 2",
            "loadtest_latency_seconds_bucket{le=\"0.0005\"} 4",
            "loadtest_latency_seconds_bucket{le=\"+Inf\"} 6",
            "loadtest_latency_seconds_count 6",
            "loadtest_errors_total{fault=\"timeout\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
