//! `/admin/v1/cache/purge`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tenancy::control::{ControlError, write_audit};

use super::Caller;
use super::fleet::Items;
use crate::app::App;
use crate::error::Error;
use crate::purge::{self, Of};

/// Which answers are forgotten; neither means all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Purge {
    /// A slug or an id.
    tenant: Option<String>,
    /// `schema.table`, or a table of `public`.
    table: Option<String>,
}

/// What a router did.
#[derive(Serialize)]
pub(super) struct Purged {
    name: String,
    redis_removed: Option<u64>,
    /// Why some of what it had may be left.
    error: Option<String>,
}

/// Has every live router forget answers; with what each of them did.
pub(super) async fn purge(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    body: Result<Json<Purge>, JsonRejection>,
) -> Result<Json<Items<Purged>>, Error> {
    let Json(body) = body.map_err(|error| Error::BadRequest(error.body_text()))?;
    let tenant = match &body.tenant {
        Some(name) => Some(app.control.tenant(name).await?),
        None => None,
    };
    let object = tenant.as_ref().map_or("all", |tenant| &tenant.slug);
    let of = Of {
        tenant: tenant.as_ref().map(|tenant| tenant.id),
        table: body.table,
    };
    // Nothing is purged while it can't be written down.
    drop(app.control.client().await?);
    let purged = purge::everywhere(&app, &of).await;
    let left: Vec<&str> = purged
        .iter()
        .filter(|purged| purged.removed.is_err())
        .map(|purged| purged.router.as_str())
        .collect();
    let asked =
        json!({ "tenant": of.tenant, "table": of.table, "routers": purged.len(), "left": left });
    let result = match left.is_empty() {
        true => "done",
        false => "partly",
    };
    let mut client = app.control.client().await?;
    let transaction = client.transaction().await.map_err(ControlError::Postgres)?;
    write_audit(
        &transaction,
        &actor,
        "cache.purge",
        object,
        None,
        Some(asked),
        result,
    )
    .await?;
    transaction.commit().await.map_err(ControlError::Postgres)?;
    let items = purged.into_iter().map(|purged| {
        let (redis_removed, error) = match purged.removed {
            Ok(removed) => (removed, None),
            Err(why) => (None, Some(why)),
        };
        Purged {
            name: purged.router,
            redis_removed,
            error,
        }
    });
    Ok(Json(Items {
        items: items.collect(),
    }))
}
