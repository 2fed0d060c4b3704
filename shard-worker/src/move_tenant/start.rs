//! How moves begin: their jobs' rows, in the caller's transaction.

use std::collections::BTreeMap;

use tenancy::control::{Actor, ControlError, TenantInfo};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{Move, Plan, TENANTS_MAX};
use crate::job::{Kind, NewJob, store};

/// Those who begin moves queue for this lock: no tenant is in two of them.
const START_LOCK: i64 = crate::job::store::START_LOCK;

/// Starts moves of these tenants to a shard: one for each shard that they come
/// from, of at most [`TENANTS_MAX`]. `how`: the budget of a cut-over, ms, and
/// how long the way back is kept, seconds.
///
/// # Errors
/// [`ControlError::Conflict`] where another job is about one of them, or a
/// migration is under way; the caller's transaction is to be rolled back then.
pub async fn start(
    transaction: &Transaction<'_>,
    actor: &Actor,
    tenants: &[TenantInfo],
    to: &str,
    (budget_ms, keep_s): (u64, u64),
) -> Result<Vec<Uuid>, ControlError> {
    transaction
        .execute("select pg_advisory_xact_lock($1)", &[&START_LOCK])
        .await?;
    let migrating = transaction
        .query_opt(
            "select from ringfence.job where kind = $1 and not done limit 1",
            &[&Kind::Migrate.name()],
        )
        .await?;
    if migrating.is_some() {
        return Err(ControlError::Conflict(
            "a migration is under way: moves wait for its end".into(),
        ));
    }
    let mut by_shard: BTreeMap<&str, Vec<TenantInfo>> = BTreeMap::new();
    for tenant in tenants {
        by_shard
            .entry(&tenant.shard)
            .or_default()
            .push(tenant.clone());
    }
    let mut started = Vec::new();
    for (from, tenants) in by_shard {
        for group in tenants.chunks(TENANTS_MAX) {
            require_free(transaction, group).await?;
            let (object, tenant) = match group {
                [one] => (one.slug.clone(), Some(one.id)),
                many => (format!("{} tenants", many.len()), None),
            };
            let new = NewJob {
                kind: Kind::Move,
                object: &object,
                tenant,
                shards: &[from.to_owned(), to.to_owned()],
                state: &Move::of(Plan::new(group, from, to, budget_ms, keep_s)),
            };
            started.push(store::insert(transaction, actor, &new).await?);
        }
    }
    Ok(started)
}

/// Refuses tenants that another open job is about.
async fn require_free(
    transaction: &Transaction<'_>,
    tenants: &[TenantInfo],
) -> Result<(), ControlError> {
    let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.id).collect();
    let row = transaction
        .query_opt(
            "select t.slug from ringfence.tenant t where t.id = any($1) and exists (
               select from ringfence.job j
               left join lateral jsonb_array_elements(j.state -> 'plan' -> 'tenants') m on j.kind = 'move'
               where not j.done and (j.tenant = t.id or (m ->> 'id')::uuid = t.id))
             limit 1",
            &[&ids],
        )
        .await?;
    match row {
        None => Ok(()),
        Some(row) => Err(ControlError::Conflict(format!(
            "tenant {} has another job under way: `ringfence job list --open` shows it",
            row.get::<_, &str>(0)
        ))),
    }
}
