//! Where a tenant lives, changed: the control database follows what its shards
//! have decided.

use serde_json::json;
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{Actor, ControlError, next_version, write_audit};

/// A tenant's place: a shard, and the placement's number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The shard.
    pub shard: &'a str,
    /// The epoch.
    pub epoch: i64,
}

/// Moves a tenant's row from one place to the next, if it is in the first or
/// in the second already.
///
/// # Errors
/// [`ControlError::Conflict`] where it is in neither.
pub async fn move_tenant(
    transaction: &Transaction<'_>,
    actor: &Actor,
    tenant: Uuid,
    from: Place<'_>,
    to: Place<'_>,
) -> Result<(), ControlError> {
    let version = next_version(transaction, false).await?;
    let row = transaction
        .query_opt(
            "select slug, shard, epoch from ringfence.tenant where id = $1 for update",
            &[&tenant],
        )
        .await?
        .ok_or_else(|| super::tenants::not_found(&tenant.to_string()))?;
    let (slug, shard, epoch): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
    let is = Place {
        shard: &shard,
        epoch,
    };
    if is == to {
        return Ok(());
    }
    if is != from {
        return Err(ControlError::Conflict(format!(
            "tenant {slug} is on {shard} at epoch {epoch}, but was moved from {} at {} to {} at {}",
            from.shard, from.epoch, to.shard, to.epoch
        )));
    }
    transaction
        .execute(
            "update ringfence.tenant set shard = $2, epoch = $3, version = $4, exceptional = true
             where id = $1",
            &[&tenant, &to.shard, &to.epoch, &version],
        )
        .await?;
    let place = |place: Place<'_>| Some(json!({ "shard": place.shard, "epoch": place.epoch }));
    write_audit(
        transaction,
        actor,
        "tenant.move",
        &slug,
        place(from),
        place(to),
        "done",
    )
    .await
}
