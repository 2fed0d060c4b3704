//! `/admin/v1/plans` and `/admin/v1/tenants/{tenant}/limits`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Map, Value};
use tenancy::control::{PlanInfo, TenantLimits};

use super::Caller;
use super::fleet::Items;
use crate::app::App;
use crate::error::Error;

/// What is to change: names of limits with numbers, or with null to unset them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    /// The tenant's plan from now on.
    plan: Option<String>,
    #[serde(default)]
    limits: Map<String, Value>,
}

pub(super) async fn plans(State(app): State<Arc<App>>) -> Result<Json<Items<PlanInfo>>, Error> {
    let items = app.control.plans().await?;
    Ok(Json(Items { items }))
}

/// Makes a plan, or changes its limits.
pub(super) async fn set_plan(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(plan): Path<String>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<Json<PlanInfo>, Error> {
    let Json(change) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    if change.plan.is_some() {
        return Err(Error::BadRequest("a plan has no plan".into()));
    }
    let limits = &change.limits;
    Ok(Json(app.control.set_plan(&actor, &plan, limits).await?))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<TenantLimits>, Error> {
    Ok(Json(app.control.tenant_limits(&tenant).await?))
}

/// Gives a tenant another plan, or limits of its own.
pub(super) async fn set(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(tenant): Path<String>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<Json<TenantLimits>, Error> {
    let Json(change) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let (plan, limits) = (change.plan.as_deref(), &change.limits);
    let set = app
        .control
        .set_tenant_limits(&actor, &tenant, plan, limits)
        .await?;
    Ok(Json(set))
}
