//! Stage 2: whom a request speaks for.

use std::time::SystemTime;

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};
use tenancy::auth::{AuthError, TenantContext};
use tokio::time::Instant;

use crate::app::App;
use crate::error::Error;

const APIKEY: HeaderName = HeaderName::from_static("apikey");

/// Checks the headers `apikey` and `Authorization`. Waits, until then at most, only
/// where a token names a key that its issuer may have published just now.
pub async fn identify(
    app: &App,
    headers: &HeaderMap,
    until: Instant,
) -> Result<TenantContext, Error> {
    match once(app, headers) {
        Err(Error::Auth(AuthError::KeyUnknown { url })) => {
            // Boxed: it is rare, and each request's state would have room for it.
            Box::pin(app.issuers.ask(&url, until)).await;
            once(app, headers)
        }
        known => known,
    }
}

fn once(app: &App, headers: &HeaderMap) -> Result<TenantContext, Error> {
    let snapshot = app.placements.load();
    let authenticated = app.authenticator.authenticate(
        &snapshot,
        text(headers, &APIKEY)?,
        text(headers, &AUTHORIZATION)?,
        SystemTime::now(),
    );
    authenticated.map_err(Error::Auth)
}

/// A header's value; one that is not text is no credential.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Error> {
    let value = headers.get(name).map(|value| value.to_str());
    value
        .transpose()
        .map_err(|_| Error::Auth(AuthError::KeyInvalid))
}
