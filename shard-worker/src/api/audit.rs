//! `/admin/v1/audit`, and the lines of changes that were refused.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use serde::Deserialize;
use tenancy::chain;
use tenancy::control::{AuditFilter, AuditRow};

use super::Caller;
use super::fleet::Items;
use crate::app::App;
use crate::error::{Error, ErrorCode};

/// Longest path that is kept.
const OBJECT_CHARS_MAX: usize = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    object: Option<String>,
    action: Option<String>,
    before: Option<i64>,
    limit: Option<i64>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Items<AuditRow>>, Error> {
    let Query(wanted) = query.map_err(|error| Error::BadRequest(error.body_text()))?;
    let filter = AuditFilter {
        object: wanted.object,
        action: wanted.action,
        before: wanted.before,
        limit: wanted.limit.unwrap_or(100),
    };
    let items = app.control.audit_log(&filter).await?;
    Ok(Json(Items { items }))
}

/// What is changed writes its own line, in its own transaction. What was asked
/// for and refused, or failed, is written here.
pub(super) async fn refusals(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    request: Request,
    next: Next,
) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let action = format!("refused.{}", request.method().as_str().to_ascii_lowercase());
    let object: String = request
        .uri()
        .path()
        .chars()
        .take(OBJECT_CHARS_MAX)
        .collect();
    let response = next.run(request).await;
    let code = response.extensions().get::<ErrorCode>();
    if let (true, Some(ErrorCode(code))) = (changes, code) {
        let written = app.control.audit_refused(&actor, &action, &object, code);
        if let Err(error) = written.await {
            tracing::warn!(%action, %object, code, error = chain(&error), "a refusal is not in the audit log");
        }
    }
    response
}
