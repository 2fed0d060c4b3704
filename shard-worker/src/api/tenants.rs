//! `/admin/v1/tenants`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tenancy::control::{
    Actor, ControlError, NewTenant, TenantInfo, TenantPage, begin_import, close_tenant,
};
use tokio::time::timeout;
use uuid::Uuid;

use super::Caller;
use crate::app::App;
use crate::error::Error;
use crate::job::{self, JobError, JobInfo, Kind, NewJob};
use crate::reconcile;
use crate::tenant_delete::TenantDelete;
use crate::tenant_import::source::{self, Source};
use crate::tenant_import::{TenantImport, plan};

/// Most tenants that one bulk request makes.
const BULK_MAX: u32 = 1_000_000;
/// Longest look at the source of an import.
const LOOK_MAX: Duration = Duration::from_secs(30);

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
    Caller(actor): Caller,
    body: Result<Json<Create>, JsonRejection>,
) -> Result<(StatusCode, Json<TenantInfo>), Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let new = NewTenant {
        id: body.id,
        slug: body.slug,
        name: body.name,
        region: body.region,
    };
    let (tenant, is_new) = app.control.insert_tenant(&actor, &new).await?;
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
    Caller(actor): Caller,
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
        .insert_tenants(&actor, &body.prefix, body.count)
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
    Caller(actor): Caller,
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
    let closed = close_tenant(&transaction, &actor, &tenant).await?;
    let new = NewJob {
        kind: Kind::TenantDelete,
        object: &closed.slug,
        tenant: Some(closed.id),
        shards: std::slice::from_ref(&closed.shard),
        state: &TenantDelete::of(&closed),
    };
    let id = job::store::insert(&transaction, &actor, &new).await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    let job = job::store::show(&app.control, id).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportFrom {
    /// The address of the database.
    from: String,
}

/// 202 with the job that loads a database's rows as this tenant's, which is
/// not served meanwhile. What can be seen to go wrong is refused at once.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(tenant): Path<String>,
    body: Result<Json<ImportFrom>, JsonRejection>,
) -> Result<(StatusCode, Json<JobInfo>), Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let known = app.control.tenant(&tenant).await?;
    let looked = timeout(LOOK_MAX, look(&app, &known, &body.from)).await;
    looked.map_err(|_| Error::BadRequest("the source did not answer in time".into()))??;
    let sealed = source::seal(&app.keys, &body.from)
        .map_err(|error| Error::BadRequest(error.to_string()))?;
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    let shards = [known.shard];
    job::store::refuse_beside(&transaction, &[Kind::Migrate], &shards).await?;
    let before = begin_import(&transaction, &actor, &tenant).await?;
    let new = NewJob {
        kind: Kind::TenantImport,
        object: &before.slug,
        tenant: Some(before.id),
        shards: std::slice::from_ref(&before.shard),
        state: &TenantImport::of(&before, sealed),
    };
    let id = job::store::insert(&transaction, &actor, &new).await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    let job = job::store::show(&app.control, id).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// Whether the source can be reached, and its tables fit.
async fn look(app: &App, tenant: &TenantInfo, from: &str) -> Result<(), Error> {
    let refused = |error: JobError| match error {
        error @ (JobError::Wait(_) | JobError::Unclear(_) | JobError::Refused(_)) => {
            Error::BadRequest(error.to_string())
        }
        error => error.into(),
    };
    let source = Source::connect(app, from).await.map_err(refused)?;
    let shards = app.control.shards().await?;
    let shard = shards.iter().find(|shard| shard.id == tenant.shard);
    let nodes = shard.map(reconcile::addresses).unwrap_or_default();
    let session = app.logins.as_mover(&tenant.shard, &nodes).await?;
    let plan = plan::read(&source, &session).await.map_err(refused)?;
    match plan.problem() {
        None => Ok(()),
        Some(problem) => Err(Error::BadRequest(problem)),
    }
}

pub(super) async fn suspend(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    set_suspended(&app, &actor, &tenant, true).await
}

pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    set_suspended(&app, &actor, &tenant, false).await
}

/// Control row first, then the fence, whichever way: called again after a
/// failure in between, it writes the fence.
async fn set_suspended(
    app: &App,
    actor: &Actor,
    name: &str,
    suspended: bool,
) -> Result<Json<TenantInfo>, Error> {
    let (tenant, _) = app.control.set_suspended(actor, name, suspended).await?;
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
    Caller(actor): Caller,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    app.control.pin(&actor, &tenant, true).await?;
    Ok(Json(app.control.tenant(&tenant).await?))
}

pub(super) async fn unpin(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(tenant): Path<String>,
) -> Result<Json<TenantInfo>, Error> {
    app.control.pin(&actor, &tenant, false).await?;
    Ok(Json(app.control.tenant(&tenant).await?))
}
