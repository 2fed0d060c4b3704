//! Stage 2: whom a request speaks for.

use std::time::SystemTime;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tenancy::auth::{AuthError, TenantContext};

use crate::app::App;
use crate::error::Error;

/// Checks the headers `apikey` and `Authorization`.
pub fn identify(app: &App, headers: &HeaderMap) -> Result<TenantContext, Error> {
    let snapshot = app.placements.load();
    let authenticated = app.authenticator.authenticate(
        &snapshot,
        text(headers, "apikey")?,
        text(headers, AUTHORIZATION.as_str())?,
        SystemTime::now(),
    );
    authenticated.map_err(Error::Auth)
}

/// A header's value; one that is not text is no credential.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Error> {
    let value = headers.get(name).map(|value| value.to_str());
    value
        .transpose()
        .map_err(|_| Error::Auth(AuthError::KeyInvalid))
}
