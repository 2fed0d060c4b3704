//! `/admin/v1/tenants`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tenancy::control::{ControlError, NewTenant, TenantInfo, TenantPage, close_tenant};
use uuid::Uuid;

use super::actor;
use crate::app::App;
use crate::error::Error;
use crate::job::{self, JobInfo, Kind, NewJob};
use crate::reconcile;
use crate::tenant_delete::TenantDelete;

/// Most tenants that one bulk request makes.
const BULK_MAX: u32 = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    slug: String,
    name: Option<String>,
    id: Option<Uuid>,
    region: Option<String>,
}

/// 201 with the new tenant, or 200 with the one that is there already. The
/// tenant is served when this returns; should its shard be down, the row stays
/// `creating` and the reconciler finishes it.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    body: Result<Json<Create>, JsonRejection>,
) -> Result<(StatusCode, Json<TenantInfo>), Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let new = NewTenant {
        id: body.id,
        slug: body.slug,
        name: body.name,
        region: body.region,
    };
    let (tenant, is_new) = app.control.insert_tenant(&actor(), &new).await?;
    if tenant.state == "creating" {
        let shards = app.control.shards().await?;
        let shard = shards.iter().find(|shard| shard.id == tenant.shard);
        let nodes = shard.map(reconcile::addresses).unwrap_or_default();
        app.logins
            .admit(&tenant.shard, &nodes, &[(tenant.id, tenant.epoch)])
            .await?;
        app.control.activate_tenants(&[tenant.id]).await?;
    }
    let tenant = app.control.tenant(&tenant.id.to_string()).await?;
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(tenant)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateMany {
    prefix: String,
    count: u32,
}

#[derive(Serialize)]
pub(super) struct Created {
    created: u64,
}

/// Makes `prefix-1` to `prefix-count`, those that are missing.
pub(super) async fn create_many(
    State(app): State<Arc<App>>,
    body: Result<Json<CreateMany>, JsonRejection>,
) -> Result<(StatusCode, Json<Created>), Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    if body.count == 0 || body.count > BULK_MAX {
        return Err(Error::BadRequest(format!(
            "count must be from 1 to {BULK_MAX}"
        )));
    }
    let created = app
        .control
        .insert_tenants(&actor(), &body.prefix, body.count)
        .await?;
    reconcile::admit_tenants(&app).await?;
    Ok((StatusCode::CREATED, Json(Created { created })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    limit: Option<i64>,
    after: Option<String>,
    search: Option<String>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<List>, QueryRejection>,
) -> Result<Json<TenantPage>, Error> {
    let Query(query) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    let page = app
        .control
        .tenants(
            query.search.as_deref().unwrap_or_default(),
            query.after.as_deref().unwrap_or_default(),
            query.limit.unwrap_or(100),
        )
        .await?;
    Ok(Json(page))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    Ok(Json(app.control.tenant(&tenant).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    /// The tenant's slug or id once more.
    confirm: String,
}

/// 202 with the job that deletes it. The tenant is refused with 404 from now on.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    query: Result<Query<Delete>, QueryRejection>,
) -> Result<(StatusCode, Json<JobInfo>), Error> {
    let Query(query) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    if query.confirm != tenant {
        return Err(Error::BadRequest(format!(
            "to delete {tenant} and all its data, say confirm={tenant}"
        )));
    }
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    // No move of it begins meanwhile, however many tenants it is of.
    job::store::lock_starts(&transaction).await?;
    let closed = close_tenant(&transaction, &actor(), &tenant).await?;
    let new = NewJob {
        kind: Kind::TenantDelete,
        object: &closed.slug,
        tenant: Some(closed.id),
        shards: std::slice::from_ref(&closed.shard),
        state: &TenantDelete::of(&closed),
    };
    let id = job::store::insert(&transaction, &actor(), &new).await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    let job = job::store::show(&app.control, id).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn suspend(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    set_suspended(&app, &tenant, true).await
}

pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    set_suspended(&app, &tenant, false).await
}

/// Control row first, then the fence, whichever way: called again after a
/// failure in between, it writes the fence.
async fn set_suspended(app: &App, name: &str, suspended: bool) -> Result<Json<TenantInfo>, Error> {
    let (tenant, _) = app.control.set_suspended(&actor(), name, suspended).await?;
    let shards = app.control.shards().await?;
    let shard = shards.iter().find(|shard| shard.id == tenant.shard);
    let nodes = shard.map(reconcile::addresses).unwrap_or_default();
    app.logins
        .suspend(&tenant.shard, &nodes, tenant.id, suspended)
        .await?;
    Ok(Json(tenant))
}

/// Has it stay where it is, whatever plans of balance say.
pub(super) async fn pin(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    app.control.pin(&actor(), &tenant, true).await?;
    Ok(Json(app.control.tenant(&tenant).await?))
}

pub(super) async fn unpin(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    app.control.pin(&actor(), &tenant, false).await?;
    Ok(Json(app.control.tenant(&tenant).await?))
}
