//! Whether the way back of a move is still open: the source is equal to the target
//! only as long as all that is written there comes in.

use std::time::Duration;

use super::side::Side;
use super::{Move, Way, copy, names};
use crate::job::{Context, JobError};

/// A stream that had errors is tried for so long.
const MARKER_MAX: Duration = Duration::from_secs(2);

/// Why the target's changes don't come back to the source any longer; none: they do.
pub(super) async fn gone(
    context: &Context,
    job: &Move,
    sends: &Side,
    receives: &Side,
) -> Result<Option<String>, JobError> {
    let id = context.job().id;
    let stream = names::stream(id, Way::Back);
    if !sends.has_slot(&stream).await? {
        let shard = &sends.shard;
        let why = format!("shard {shard} has lost the slot of the way back, as by a failover");
        return Ok(Some(why));
    }
    if let Some(table) = sends
        .published_otherwise(&job.publications(id, Way::Back))
        .await?
    {
        let why = format!(
            "what is written to table {table} of shard {} is not sent back: it was not there when the move began, or is no tenants' any longer",
            sends.shard
        );
        return Ok(Some(why));
    }
    let errors = copy::errors(receives, &stream).await?;
    if errors <= copy::ERRORS_MAX {
        return Ok(None);
    }
    // It may have been mended since.
    let marker = sends.mark(id, names::way(Way::Back)).await?;
    let arrived = receives.arrived(marker, MARKER_MAX).await?;
    Ok((!arrived).then(|| {
        format!(
            "what shard {} sends back could not be applied on {} {errors} times: its log says why",
            sends.shard, receives.shard
        )
    }))
}
