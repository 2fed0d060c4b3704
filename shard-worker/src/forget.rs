//! Removes Idempotency-Keys that expired (schema/shard/010_idempotency.sql).
//!
//! In small steps, so that none holds locks for long, and a bounded number of
//! them a round. Two workers may do it at once: each skips what the other locks.

use std::sync::Arc;
use std::time::Duration;

use tenancy::chain;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::reconcile::addresses;

/// Between two rounds over all shards.
const EVERY: Duration = Duration::from_secs(30);

/// Runs until `stop`.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = round(&app) => {}
        }
    }
}

/// One round; a shard that can't be reached is left for the next one.
async fn round(app: &App) {
    let shards = match app.control.shards().await {
        Ok(shards) => shards,
        Err(error) => {
            tracing::debug!(error = %chain(&error), "no list of shards to forget keys on");
            return;
        }
    };
    for shard in shards.iter().filter(|shard| shard.state != "preparing") {
        let nodes = addresses(shard);
        match app.logins.forget_expired_keys(&shard.id, &nodes).await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(shard = shard.id, count, "expired keys forgotten"),
            Err(error) => {
                tracing::debug!(shard = shard.id, error = %chain(&error), "keys not forgotten");
            }
        }
    }
}
