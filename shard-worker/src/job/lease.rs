//! A job's lease while it runs: renewed in a task of its own, so that a busy
//! step does not lose it, and given up by this worker's own clock when the
//! control database can't be asked.

use std::time::Duration;

use tenancy::control::Control;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::store::{LEASE, Renewed, renew};

const RENEW: Duration = Duration::from_millis(1_000);
/// Given up so long before others may take it.
const MARGIN: Duration = Duration::from_millis(1_000);

/// A lease that is being renewed until this is dropped.
pub(super) struct Lease {
    /// Cancelled when it is lost.
    pub(super) lost: CancellationToken,
    /// True once someone asked for the job's end.
    pub(super) cancel: watch::Receiver<bool>,
    renewer: JoinHandle<()>,
}

impl Lease {
    /// Renews the lease that `owner` has just taken.
    pub(super) fn hold(control: Control, id: Uuid, owner: String) -> Self {
        let lost = CancellationToken::new();
        let (asked, cancel) = watch::channel(false);
        let given_up = lost.clone();
        let renewer = tokio::spawn(async move {
            renew_until_lost(&control, id, &owner, &asked).await;
            given_up.cancel();
        });
        Self {
            lost,
            cancel,
            renewer,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewer.abort();
    }
}

async fn renew_until_lost(control: &Control, id: Uuid, owner: &str, cancel: &watch::Sender<bool>) {
    let mut holds_until = Instant::now() + LEASE - MARGIN;
    loop {
        let asked_at = Instant::now();
        let left = holds_until.saturating_duration_since(asked_at);
        match timeout(left, renew(control, id, owner)).await {
            Ok(Ok(Renewed::Kept { cancel: asked })) => {
                holds_until = asked_at + LEASE - MARGIN;
                if asked {
                    cancel.send_replace(true);
                }
                sleep(RENEW).await;
            }
            Ok(Ok(Renewed::Lost)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%id, error = tenancy::chain(&error), "lease not renewed yet");
                sleep(RENEW / 4).await;
            }
        }
    }
}
