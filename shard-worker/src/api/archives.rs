//! `/admin/v1/tenants/{tenant}/export` and `/admin/v1/tenants:import`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use uuid::Uuid;

use super::Caller;
use crate::app::App;
use crate::archive::{self, Intake};
use crate::error::Error;
use crate::job::JobInfo;

/// About as many bytes of rows come; for showing progress.
const ESTIMATE: HeaderName = HeaderName::from_static("ringfence-bytes-estimate");

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Compression {
    #[default]
    None,
    Zstd,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum From {
    /// A replica that is fresh enough, or the primary.
    #[default]
    Any,
    Primary,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Export {
    #[serde(default)]
    compression: Compression,
    #[serde(default)]
    from: From,
}

/// The tenant's archive, as it is written. One that breaks off is not whole.
pub(super) async fn export(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(tenant): Path<String>,
    query: Result<Query<Export>, QueryRejection>,
) -> Result<impl IntoResponse, Error> {
    let Query(query) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    let tenant = app.control.tenant(&tenant).await?;
    let compress = query.compression == Compression::Zstd;
    let on_primary = query.from == From::Primary;
    let export = archive::export(&app, &actor, &tenant, compress, on_primary).await?;
    let kind = match compress {
        true => "application/zstd",
        false => "application/x-tar",
    };
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (ESTIMATE, export.estimate.to_string()),
    ];
    Ok((headers, export.body))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    /// The new tenant's slug.
    #[serde(rename = "as")]
    slug: Option<String>,
    id: Option<Uuid>,
    shard: Option<String>,
    region: Option<String>,
}

/// 202 with the job that makes a tenant of the archive in the body, once all
/// of it is there. The same request again goes on where it was broken off.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    query: Result<Query<Import>, QueryRejection>,
    body: Body,
) -> Result<(StatusCode, Json<JobInfo>), Error> {
    let Query(query) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    let intake = Intake {
        slug: query.slug,
        id: query.id,
        shard: query.shard,
        region: query.region,
    };
    let job = archive::import(&app, &actor, &intake, body).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}
