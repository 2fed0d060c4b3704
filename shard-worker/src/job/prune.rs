//! Removes the rows of jobs that ended long ago. What they did, and what came of it,
//! stays in the audit log.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tenancy::chain;
use tenancy::control::{Control, ControlError};
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// Between two looks; the first is at the start.
const EVERY: Duration = Duration::from_secs(3_600);
/// Rows removed at once.
const BATCH: i64 = 1_000;

/// Runs until `stop`. Two workers may do it at once: each skips what the other locks.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    loop {
        match prune(&app.control, app.jobs.keep_days).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "jobs that ended long ago are forgotten"),
            Err(error) => tracing::warn!(
                error = chain(&error),
                "jobs that ended long ago are not forgotten"
            ),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Returns how many there were.
async fn prune(control: &Control, keep_days: NonZeroU32) -> Result<u64, ControlError> {
    let mut count = 0;
    loop {
        // None ends before it began: the index by age finds them.
        let sql = "delete from ringfence.job where id in (
               select id from ringfence.job
               where done and changed_at < now() - $1 * interval '1 day'
                 and created_at < now() - $1 * interval '1 day'
               order by created_at limit $2 for update skip locked)";
        let days = f64::from(keep_days.get());
        let removed = control
            .client()
            .await?
            .execute(sql, &[&days, &BATCH])
            .await?;
        count += removed;
        if removed < BATCH.unsigned_abs() {
            return Ok(count);
        }
    }
}
