//! How moves begin: their jobs' rows, in the caller's transaction.

use std::collections::BTreeMap;

use tenancy::control::{Actor, ControlError, TenantInfo};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::{Move, Plan, TENANTS_MAX};
use crate::job::{Kind, NewJob, store};

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
    // No tenant is in two of them.
    store::lock_starts(transaction).await?;
    if migrates(transaction).await? {
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
            if let Some(slug) = busy(transaction, group).await?.first() {
                return Err(ControlError::Conflict(has_another_job(slug)));
            }
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

/// A migration is under way: moves wait for its end.
pub async fn migrates(transaction: &Transaction<'_>) -> Result<bool, ControlError> {
    let migrating = transaction
        .query_opt(
            "select from ringfence.job where kind = $1 and not done limit 1",
            &[&Kind::Migrate.name()],
        )
        .await?;
    Ok(migrating.is_some())
}

/// Those of these tenants that another open job is about: their slugs.
pub async fn busy(
    transaction: &Transaction<'_>,
    tenants: &[TenantInfo],
) -> Result<Vec<String>, ControlError> {
    let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.id).collect();
    let rows = transaction
        .query(
            // Each open move's state is read once, not once for each tenant.
            "with about as materialized (
               select j.tenant as id from ringfence.job j where not j.done and j.tenant is not null
               union
               select (m ->> 'id')::uuid
               from ringfence.job j, jsonb_array_elements(j.state -> 'plan' -> 'tenants') m
               where not j.done and j.kind = 'move')
             select t.slug from ringfence.tenant t
             where t.id = any($1) and t.id in (select id from about) order by t.slug",
            &[&ids],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Why a tenant can't be moved now.
pub fn has_another_job(slug: &str) -> String {
    format!("tenant {slug} has another job under way: `ringfence job list --open` shows it")
}
