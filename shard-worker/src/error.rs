//! What the admin API answers when it can't do what it was asked.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schema::archive::ArchiveError;
use serde_json::json;
use tenancy::chain;
use tenancy::control::ControlError;

use crate::migrate::Stop;
use crate::shard::ShardError;

/// Every way in which a request of the admin API fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bearer token, or another one.
    #[error("the admin token is missing or wrong")]
    Unauthorized,
    /// The body or the path is not what the route takes.
    #[error("{0}")]
    BadRequest(String),
    /// As many watch jobs as may.
    #[error("too many requests watch jobs")]
    TooManyWatchers,
    /// What was asked for ended half-way, by a fault of ours.
    #[error("it ended half-way")]
    Ended(#[from] tokio::task::JoinError),
    /// There is no such route.
    #[error("there is no such route")]
    NoRoute,
    /// The control database did not do it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The shard did not do it.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A tenant's archive can't be made, or is not taken.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An import has ended, and not well.
    #[error("{0}")]
    Import(String),
    /// As many archives as may are being written or read by this worker.
    #[error("too many archives are under way")]
    TooManyArchives,
    /// Migration files can't be applied.
    #[error(transparent)]
    Migration(Stop),
}

impl Error {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Ended(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::TooManyWatchers | Self::TooManyArchives => StatusCode::SERVICE_UNAVAILABLE,
            Self::Import(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Archive(error) => match error {
                ArchiveError::Postgres(_) if !error.is_final() => StatusCode::BAD_GATEWAY,
                ArchiveError::NotHere(_) | ArchiveError::Gone => StatusCode::CONFLICT,
                ArchiveError::Slow(_) => StatusCode::REQUEST_TIMEOUT,
                ArchiveError::Io(_) => StatusCode::BAD_GATEWAY,
                ArchiveError::Postgres(_)
                | ArchiveError::Cut(_)
                | ArchiveError::Damaged(_)
                | ArchiveError::Format(_)
                | ArchiveError::Schema(_)
                | ArchiveError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            },
            Self::Control(error) => match error {
                ControlError::Unreachable(_) | ControlError::Dsn(_) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                ControlError::Postgres(error) if is_lost(error) => StatusCode::SERVICE_UNAVAILABLE,
                ControlError::Postgres(_) => StatusCode::INTERNAL_SERVER_ERROR,
                ControlError::NotFound { .. } => StatusCode::NOT_FOUND,
                ControlError::Conflict(_) => StatusCode::CONFLICT,
                ControlError::Invalid(_) => StatusCode::BAD_REQUEST,
            },
            Self::Shard(_) => StatusCode::BAD_GATEWAY,
            Self::Migration(stop) => match stop {
                Stop::Changed { .. }
                | Stop::Order { .. }
                | Stop::Exists { .. }
                | Stop::Contract { .. }
                | Stop::Read { .. } => StatusCode::CONFLICT,
                Stop::Files(_) | Stop::Lint(_) => StatusCode::UNPROCESSABLE_ENTITY,
                Stop::Refused { .. } | Stop::Locked { .. } | Stop::Down(_) | Stop::Job(_) => {
                    StatusCode::BAD_GATEWAY
                }
            },
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Archive(error) => error.code(),
            Self::Import(_) => "RF440",
            Self::TooManyArchives => "RF441",
            Self::Unauthorized => "RF400",
            Self::BadRequest(_) => "RF401",
            Self::NoRoute => "RF402",
            Self::TooManyWatchers => "RF403",
            Self::Ended(_) => "RF404",
            Self::Control(error) => match error {
                ControlError::Unreachable(_) | ControlError::Dsn(_) => "RF410",
                ControlError::Postgres(error) if is_lost(error) => "RF415",
                ControlError::Postgres(_) => "RF411",
                ControlError::NotFound { .. } => "RF412",
                ControlError::Conflict(_) => "RF413",
                ControlError::Invalid(_) => "RF414",
            },
            Self::Shard(_) => "RF420",
            Self::Migration(stop) => stop.code(),
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unauthorized => Some("Send Authorization: Bearer <admin token>."),
            Self::Control(ControlError::Unreachable(_)) => {
                Some("Nothing was changed. Try again once the control database is back.")
            }
            Self::Control(ControlError::Postgres(error)) if is_lost(error) => Some(
                "The control database went away meanwhile: it may have been done. Look, once it is back.",
            ),
            Self::Ended(_) => Some("A part may have been done: the audit log has it."),
            Self::Migration(stop) => Some(stop.hint()),
            Self::Shard(ShardError::NotTaken { .. }) => Some(
                "Nothing was changed. A shard that is in use gets nodes that answer, and are copies of it.",
            ),
            Self::Shard(_) => Some("What was begun is finished by itself once the shard is back."),
            _ => None,
        }
    }
}

/// The connection ended before the answer: nobody knows what became of it.
fn is_lost(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => code.code().starts_with("57P0"),
        None => {
            error.is_closed()
                || std::error::Error::source(error).is_some_and(|e| e.is::<std::io::Error>())
        }
    }
}

/// The code of an answer that is an error, for whoever passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub &'static str);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        // An operator reads this: the causes belong into the answer.
        let details = std::error::Error::source(&self).map(chain);
        if status.is_server_error() {
            tracing::warn!(code = self.code(), error = %chain(&self), "admin request failed");
        }
        let body = Json(json!({
            "code": self.code(),
            "message": self.to_string(),
            "details": details,
            "hint": self.hint(),
        }));
        let mut response = (status, body).into_response();
        response.extensions_mut().insert(ErrorCode(self.code()));
        if status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
