//! `ringfence health`: what an image without a shell or curl is probed with.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::error::{Error, Result};
use crate::output::Output;

/// Longest wait for the answer; container engines wait 3 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which service.
#[derive(Debug, Args)]
pub struct Health {
    /// Where it says that it is ready
    #[arg(
        env = "RINGFENCE_HEALTH_URL",
        default_value = "http://127.0.0.1:7500/ready"
    )]
    at: String,
}

impl Health {
    /// Prints what the service says; fails unless that is a 2xx.
    pub(super) async fn run(self) -> Result<Output> {
        let failed = |reason: String| Error::NotReady {
            url: self.at.clone(),
            reason,
        };
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let answer = client.get(&self.at).send().await;
        let answer = answer.map_err(|e| failed(e.to_string()))?;
        let status = answer.status();
        let said = answer.text().await.unwrap_or_default();
        match status.is_success() {
            true => Ok(Output {
                json: json!({ "ready": true }),
                text: format!("{}\n", said.trim()),
                note: None,
                failed: None,
            }),
            false => Err(failed(format!("{status}: {}", said.trim()))),
        }
    }
}
