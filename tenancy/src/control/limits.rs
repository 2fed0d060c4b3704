//! Plans, and what tenants may use.

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio_postgres::{GenericClient, Row};

use super::tenants::{find, not_found};
use super::{Actor, Control, ControlError, audit, check_name, next_version};
use crate::quota::Limits;

/// Plans at most: all routers know all of them.
const PLANS_MAX: i64 = 1_000;

/// A plan as DBAs see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanInfo {
    /// Its name.
    pub id: String,
    /// Its limits.
    pub limits: Limits,
    /// Tenants that have it.
    pub tenants: i64,
}

/// What a tenant may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TenantLimits {
    /// The tenant.
    pub slug: String,
    /// Its plan.
    pub plan: String,
    /// What it has of its own.
    pub own: Limits,
    /// What counts: its own limits, else the plan's.
    pub limits: Limits,
}

impl Control {
    /// All plans, in order of their names.
    pub async fn plans(&self) -> Result<Vec<PlanInfo>, ControlError> {
        let client = self.client().await?;
        let rows = client
            .query(
                "select p.id, p.limits, (select count(*) from ringfence.tenant t
                   where t.plan = p.id and t.state <> 'deleted') as tenants
                 from ringfence.plan p order by p.id",
                &[],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| PlanInfo {
                id: row.get("id"),
                limits: limits(row, "limits"),
                tenants: row.get("tenants"),
            })
            .collect())
    }

    /// Changes a plan's limits, or makes the plan. Every router knows within a second.
    pub async fn set_plan(
        &self,
        actor: &Actor,
        id: &str,
        changes: &Map<String, Value>,
    ) -> Result<PlanInfo, ControlError> {
        check_name("plan", id)?;
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        next_version(&transaction, true).await?;
        let before = plan_limits(&*transaction, id).await?;
        let changed = before
            .unwrap_or_default()
            .changed(changes)
            .map_err(invalid)?;
        let row = transaction
            .query_opt(
                "insert into ringfence.plan as p (id, limits)
                 select $1::text, $2::jsonb
                 where $3::boolean or (select count(*) from ringfence.plan) < $4::bigint
                 on conflict (id) do update set limits = excluded.limits
                 returning (select count(*) from ringfence.tenant t
                   where t.plan = p.id and t.state <> 'deleted') as tenants",
                &[&id, &json!(changed), &before.is_some(), &PLANS_MAX],
            )
            .await?
            .ok_or_else(|| {
                ControlError::Conflict(format!("there are {PLANS_MAX} plans already"))
            })?;
        audit(
            &transaction,
            actor,
            "plan.set",
            id,
            before.map(|limits| json!(limits)),
            Some(json!(changed)),
        )
        .await?;
        transaction.commit().await?;
        Ok(PlanInfo {
            id: id.to_owned(),
            limits: changed,
            tenants: row.get("tenants"),
        })
    }

    /// What the tenant of that slug or id may use.
    pub async fn tenant_limits(&self, name: &str) -> Result<TenantLimits, ControlError> {
        let client = self.client().await?;
        tenant_limits(&**client, name).await
    }

    /// Gives a tenant another plan, or limits of its own, or takes them back.
    /// Every router knows within a second.
    pub async fn set_tenant_limits(
        &self,
        actor: &Actor,
        name: &str,
        plan: Option<&str>,
        changes: &Map<String, Value>,
    ) -> Result<TenantLimits, ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let version = next_version(&transaction, false).await?;
        let before = tenant_limits(&*transaction, name).await?;
        if let Some(plan) = plan {
            let known = plan_limits(&*transaction, plan).await?;
            known.ok_or_else(|| ControlError::NotFound {
                kind: "plan",
                name: plan.chars().take(80).collect(),
            })?;
        }
        let own = before.own.changed(changes).map_err(invalid)?;
        let stored = (own != Limits::default()).then(|| json!(own));
        transaction
            .execute(
                "update ringfence.tenant set plan = coalesce($2, plan), limits = $3,
                   version = $4, exceptional = true where slug = $1",
                &[&before.slug, &plan, &stored, &version],
            )
            .await?;
        let after = tenant_limits(&*transaction, &before.slug).await?;
        audit(
            &transaction,
            actor,
            "tenant.limit",
            &before.slug,
            Some(json!(before)),
            Some(json!(after)),
        )
        .await?;
        transaction.commit().await?;
        Ok(after)
    }
}

async fn plan_limits(
    client: &impl GenericClient,
    id: &str,
) -> Result<Option<Limits>, ControlError> {
    let row = client
        .query_opt("select limits from ringfence.plan where id = $1", &[&id])
        .await?;
    Ok(row.map(|row| limits(&row, "limits")))
}

async fn tenant_limits(
    client: &impl GenericClient,
    name: &str,
) -> Result<TenantLimits, ControlError> {
    let tenant = find(client, name).await?.ok_or_else(|| not_found(name))?;
    let row = client
        .query_one(
            "select t.plan, t.limits as own, p.limits from ringfence.tenant t
             join ringfence.plan p on p.id = t.plan where t.id = $1",
            &[&tenant.id],
        )
        .await?;
    let own = limits(&row, "own");
    Ok(TenantLimits {
        slug: tenant.slug,
        plan: row.get("plan"),
        own,
        limits: limits(&row, "limits").overridden(own),
    })
}

fn invalid(error: crate::quota::LimitError) -> ControlError {
    ControlError::Invalid(error.to_string())
}

fn limits(row: &Row, column: &str) -> Limits {
    Limits::stored(row.get(column))
}
