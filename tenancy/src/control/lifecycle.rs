//! How a tenant ends, and begins by an import. The steps are a job's: each is
//! part of a transaction that also writes the job's row.

use serde_json::json;
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::tenants::versioned;
use super::{Actor, ControlError, TenantInfo, next_version, write_audit};
use crate::placement::TenantState;

/// What was removed from the control database with a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// Its API keys.
    pub keys: u64,
    /// Issuers of tokens that named it.
    pub issuers: u64,
}

/// Closes a tenant for good: from now on routers answer 404. Returns it as it was.
pub async fn close_tenant(
    transaction: &Transaction<'_>,
    actor: &Actor,
    name: &str,
) -> Result<TenantInfo, ControlError> {
    let (version, before) = versioned(transaction, name).await?;
    if before.state == TenantState::Importing.name() {
        return Err(ControlError::Conflict(format!(
            "tenant {} is being imported: cancel that job instead",
            before.slug
        )));
    }
    set_state(transaction, before.id, TenantState::Deleted, version).await?;
    let was = serde_json::to_value(&before).ok();
    write_audit(
        transaction,
        actor,
        "tenant.delete",
        &before.slug,
        was,
        None,
        "begun",
    )
    .await?;
    Ok(before)
}

/// Opens a closed tenant again, as it was before: nothing of it has been deleted.
pub async fn reopen_tenant(
    transaction: &Transaction<'_>,
    id: Uuid,
    state: TenantState,
) -> Result<(), ControlError> {
    let version = next_version(transaction, false).await?;
    set_state(transaction, id, state, version).await
}

/// Removes what the control database knows of a closed tenant, but for a
/// nameless row, by which routers answer 404, and the audit log.
pub async fn forget_tenant(
    transaction: &Transaction<'_>,
    id: Uuid,
) -> Result<Forgotten, ControlError> {
    let version = next_version(transaction, true).await?;
    let keys = transaction
        .execute("delete from ringfence.api_key where tenant = $1", &[&id])
        .await?;
    // An issuer without tenants left names none; only null would mean all.
    let issuers = transaction
        .execute(
            "update ringfence.jwt_issuer set tenants = array_remove(tenants, $1) where $1 = any(tenants)",
            &[&id],
        )
        .await?;
    transaction
        .execute(
            "update ringfence.tenant set slug = 'deleted-' || id, name = '', plan = 'default',
               limits = null, state = 'deleted', version = $2, exceptional = true where id = $1",
            &[&id, &version],
        )
        .await?;
    Ok(Forgotten { keys, issuers })
}

/// Takes a tenant out of service while rows are loaded for it: routers answer
/// 404. Returns it as it was.
pub async fn begin_import(
    transaction: &Transaction<'_>,
    actor: &Actor,
    name: &str,
) -> Result<TenantInfo, ControlError> {
    let (version, before) = versioned(transaction, name).await?;
    let served = [TenantState::Active, TenantState::Suspended];
    if !served.iter().any(|state| state.name() == before.state) {
        return Err(ControlError::Conflict(format!(
            "tenant {} is {}: rows are loaded for an active or suspended one",
            before.slug, before.state
        )));
    }
    set_state(transaction, before.id, TenantState::Importing, version).await?;
    let was = serde_json::to_value(&before).ok();
    let action = "tenant.import";
    write_audit(transaction, actor, action, &before.slug, was, None, "begun").await?;
    Ok(before)
}

/// Serves an imported tenant: its rows and its fence are on the shard.
pub async fn open_import(
    transaction: &Transaction<'_>,
    actor: &Actor,
    slug: &str,
    id: Uuid,
) -> Result<(), ControlError> {
    let version = next_version(transaction, false).await?;
    transaction
        .execute(
            "update ringfence.tenant set state = 'active', version = $2
             where id = $1 and state = 'importing'",
            &[&id, &version],
        )
        .await?;
    let after = json!({ "id": id, "state": "active" });
    write_audit(
        transaction,
        actor,
        "tenant.import",
        slug,
        None,
        Some(after),
        "done",
    )
    .await
}

/// Removes the row of a tenant that was never served.
pub async fn forget_import(transaction: &Transaction<'_>, id: Uuid) -> Result<(), ControlError> {
    next_version(transaction, false).await?;
    transaction
        .execute(
            "delete from ringfence.tenant where id = $1 and state = 'importing'",
            &[&id],
        )
        .await?;
    Ok(())
}

async fn set_state(
    transaction: &Transaction<'_>,
    id: Uuid,
    state: TenantState,
    version: i64,
) -> Result<(), ControlError> {
    transaction
        .execute(
            "update ringfence.tenant set state = $2, version = $3, exceptional = true where id = $1",
            &[&id, &state.name(), &version],
        )
        .await?;
    Ok(())
}
