//! `/admin/v1/shards`, `/nodes`, `/members`, `/ring` and `/issuers`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use tenancy::control::{MemberInfo, NewShard, NodeInfo, ShardInfo};
use tenancy::snapshot::IssuerRow;

use super::Caller;
use crate::app::App;
use crate::capture::Status;
use crate::error::Error;
use crate::{nodes, reconcile};

/// A list as every route answers it.
#[derive(Serialize)]
pub(super) struct Items<T> {
    pub(super) items: Vec<T>,
}

pub(super) async fn shards(State(app): State<Arc<App>>) -> Result<Json<Items<ShardInfo>>, Error> {
    let items = app.control.shards().await?;
    Ok(Json(Items { items }))
}

/// Writes the shard, prepares its own SQL, and puts it on the ring. Should the
/// shard be down, its row stays `preparing` and the reconciler goes on. One that is in
/// use is told of nodes that answer, or left as it is.
pub(super) async fn add_shard(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    body: Result<Json<NewShard>, JsonRejection>,
) -> Result<(StatusCode, Json<ShardInfo>), Error> {
    let Json(new) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let shards = app.control.shards().await?;
    let mut in_use = shards.iter().filter(|shard| shard.state != "preparing");
    if let Some(shard) = in_use.find(|shard| shard.id == new.id) {
        nodes::look_before_use(&app.logins, shard, &new.nodes).await?;
    }
    app.control.insert_shard(&actor, &new).await?;
    reconcile::prepare_shard(&app, &find(&app, &new.id).await?).await?;
    Ok((StatusCode::CREATED, Json(find(&app, &new.id).await?)))
}

/// Takes it off the ring; a plan of policy `drain` empties it.
pub(super) async fn drain_shard(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(shard): Path<String>,
) -> Result<Json<ShardInfo>, Error> {
    app.control.drain_shard(&actor, &shard).await?;
    Ok(Json(find(&app, &shard).await?))
}

/// 204 once it is forgotten: its servers are left as they are.
pub(super) async fn remove_shard(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(shard): Path<String>,
) -> Result<StatusCode, Error> {
    app.control.remove_shard(&actor, &shard).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn find(app: &App, id: &str) -> Result<ShardInfo, Error> {
    let shards = app.control.shards().await?;
    let found = shards.into_iter().find(|shard| shard.id == id);
    found.ok_or_else(|| {
        Error::Control(tenancy::control::ControlError::NotFound {
            kind: "shard",
            name: id.to_owned(),
        })
    })
}

pub(super) async fn nodes(State(app): State<Arc<App>>) -> Result<Json<Items<NodeInfo>>, Error> {
    let items = app.control.nodes().await?;
    Ok(Json(Items { items }))
}

pub(super) async fn members(State(app): State<Arc<App>>) -> Result<Json<Items<MemberInfo>>, Error> {
    let items = app.control.members().await?;
    Ok(Json(Items { items }))
}

#[derive(Serialize)]
pub(super) struct RingInfo {
    items: Vec<Member>,
}

/// A shard's part of its region's ring.
#[derive(Serialize)]
struct Member {
    region: String,
    shard: String,
    weight: f64,
    /// Share of the region's weight that it asks for.
    share: f64,
    /// Tenants that live on it.
    tenants: i64,
}

pub(super) async fn ring(State(app): State<Arc<App>>) -> Result<Json<RingInfo>, Error> {
    let mut shards = app.control.shards().await?;
    shards.retain(|shard| shard.state == "active");
    let whole = |region: &str| -> f64 {
        let own = shards.iter().filter(|shard| shard.region == region);
        own.map(|shard| shard.weight).sum()
    };
    let items = shards
        .iter()
        .map(|shard| Member {
            region: shard.region.clone(),
            shard: shard.id.clone(),
            weight: shard.weight,
            share: shard.weight / whole(&shard.region),
            tenants: shard.tenants,
        })
        .collect();
    Ok(Json(RingInfo { items }))
}

pub(super) async fn issuers(State(app): State<Arc<App>>) -> Result<Json<Items<IssuerRow>>, Error> {
    let items = app.control.issuers().await?;
    Ok(Json(Items { items }))
}

pub(super) async fn put_issuer(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    body: Result<Json<IssuerRow>, JsonRejection>,
) -> Result<StatusCode, Error> {
    let Json(issuer) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    app.control.put_issuer(&actor, &issuer).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 204 once its tokens are refused.
pub(super) async fn remove_issuer(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    app.control.remove_issuer(&actor, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What this worker captures, or stands by for.
pub(super) async fn captures(State(app): State<Arc<App>>) -> Json<Items<Status>> {
    let items = app.capture.status();
    Json(Items { items })
}
