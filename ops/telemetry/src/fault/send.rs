//! To Sentry: envelopes over HTTP.

use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use sentry_types::protocol::v7::{Envelope, Event};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::TelemetryError;
use crate::outbox::Server;
use crate::settings::Dsn;

const AGENT: &str = concat!("ringfence/", env!("CARGO_PKG_VERSION"));
/// How long a project that takes no more is left alone, unless it says so itself.
const PAUSE: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3_600);

pub(super) struct Project {
    dsn: sentry_types::Dsn,
    client: reqwest::Client,
    /// Until then it wants nothing.
    paused: Mutex<Option<Instant>>,
}

impl Project {
    pub(super) fn new(dsn: &Dsn, client: reqwest::Client) -> Result<Self, TelemetryError> {
        let dsn: sentry_types::Dsn = dsn.0.trim().parse().map_err(
            // Its words name no part of the DSN, which holds a key.
            |error: sentry_types::ParseDsnError| TelemetryError::Dsn(error.to_string()),
        )?;
        Ok(Self {
            dsn,
            client,
            paused: Mutex::new(None),
        })
    }

    async fn send(&self, event: Event<'static>) -> Result<(), String> {
        let mut body = Vec::new();
        let envelope = Envelope::from(event);
        envelope.to_writer(&mut body).map_err(|e| e.to_string())?;
        let sent = self
            .client
            .post(self.dsn.envelope_api_url().as_str())
            .header("x-sentry-auth", self.dsn.to_auth(Some(AGENT)).to_string())
            .header(CONTENT_TYPE, "application/x-sentry-envelope")
            .body(body)
            .send()
            .await;
        let answer = sent.map_err(|error| error.without_url().to_string())?;
        let status = answer.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let told = answer.headers().get(RETRY_AFTER);
            let told = told.and_then(|value| value.to_str().ok()?.parse().ok());
            let pause = told.map_or(PAUSE, Duration::from_secs).min(PAUSE_MAX);
            *self.paused.lock().await = Some(Instant::now() + pause);
        }
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("it answers {status}")),
        }
    }
}

impl Server for Project {
    type Item = Event<'static>;
    const KIND: &'static str = "faults";
    const QUEUE_MAX: usize = 64;
    // An envelope holds one event, and a batch is dropped as a whole.
    const BATCH_MAX: usize = 1;

    fn count(_: &Event<'static>) -> u64 {
        1
    }

    async fn deliver(&self, batch: Vec<Event<'static>>) -> Result<(), String> {
        let until = *self.paused.lock().await;
        if until.is_some_and(|until| Instant::now() < until) {
            return Err("it asked for a pause".to_owned());
        }
        for event in batch {
            self.send(event).await?;
        }
        Ok(())
    }
}
