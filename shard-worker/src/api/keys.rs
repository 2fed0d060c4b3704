//! `/admin/v1/tenants/{tenant}/keys` and `/admin/v1/keys`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tenancy::auth::ApiKey;
use tenancy::control::{KeyInfo, NewKey};
use tenancy::id::{KeyId, TenantId};

use super::Caller;
use crate::app::App;
use crate::error::Error;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Create {
    role: Option<String>,
    name: Option<String>,
    expires_in_seconds: Option<i64>,
}

#[derive(Serialize)]
pub(super) struct Created {
    /// The key itself: shown once, stored nowhere.
    key: String,
    #[serde(flatten)]
    info: KeyInfo,
}

#[derive(Serialize)]
pub(super) struct Keys {
    items: Vec<KeyInfo>,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(tenant): Path<String>,
    body: Result<Json<Create>, JsonRejection>,
) -> Result<(StatusCode, Json<Created>), Error> {
    let body = match body {
        Ok(Json(body)) => body,
        Err(JsonRejection::MissingJsonContentType(_)) => Create::default(),
        Err(error) => return Err(Error::BadRequest(error.body_text())),
    };
    let new = NewKey {
        role: body.role.unwrap_or_else(|| "authenticated".into()),
        name: body.name,
        expires_in_seconds: body.expires_in_seconds,
    };
    let info = app.control.insert_key(&actor, &tenant, &new).await?;
    let key = app.keys.mint(&ApiKey {
        id: KeyId(info.id),
        tenant: TenantId(info.tenant),
        role: info.role.as_str().into(),
        expires_at: info.expires_epoch.and_then(|end| u64::try_from(end).ok()),
    });
    let key = key.map_err(|_| Error::BadRequest("a role has 1 to 63 bytes".into()))?;
    Ok((StatusCode::CREATED, Json(Created { key, info })))
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> Result<Json<Keys>, Error> {
    let items = app.control.keys(&tenant).await?;
    Ok(Json(Keys { items }))
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(key): Path<String>,
) -> Result<Json<KeyInfo>, Error> {
    let id = key
        .parse()
        .map_err(|_| Error::BadRequest("a key is named by its number".into()))?;
    Ok(Json(app.control.revoke_key(&actor, id).await?))
}
