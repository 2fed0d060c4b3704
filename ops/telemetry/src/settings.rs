//! The tables `[traces]` and `[sentry]` of a process' configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which requests and steps are traced, and where traces go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// Base address of an OpenTelemetry collector that takes OTLP over HTTP, such
    /// as `http://collector:4318`; none: nothing is traced. Headers that it wants
    /// are in the environment, as OTEL_EXPORTER_OTLP_HEADERS.
    pub otlp_url: Option<String>,
    /// Of the traces that begin here such a part is sampled, 0 to 1. Who sends a
    /// `traceparent` has decided for its own.
    pub sample_ratio: f64,
    /// As many traces a second at most; callers that ask for theirs have half.
    pub per_second_max: u32,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            otlp_url: None,
            sample_ratio: 0.01,
            per_second_max: 100,
        }
    }
}

/// Which faults are reported to Sentry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sentry {
    /// A file with the project's DSN; `RINGFENCE_SENTRY_DSN` overrides it.
    /// Neither: nothing is reported.
    pub dsn_file: Option<PathBuf>,
    /// The environment's name there.
    pub environment: String,
    /// As many reports a minute at most.
    pub per_minute_max: u32,
}

impl Default for Sentry {
    fn default() -> Self {
        Self {
            dsn_file: None,
            environment: "production".into(),
            per_minute_max: 30,
        }
    }
}

/// The address of a Sentry project, with its key.
pub struct Dsn(pub String);
