//! Who calls the admin API: the name of the token that was shown, and, marked as
//! such, what the caller says of itself besides.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tenancy::control::Actor;

use crate::app::App;
use crate::error::Error;

/// What a caller says of itself: nobody has checked it.
const CLAIM: &str = "ringfence-actor";
/// Longest claim.
const CLAIM_MAX: usize = 128;

/// Who called, as the audit log has it.
#[derive(Clone)]
pub(super) struct Caller(pub(super) Actor);

/// Lets only those in who show a token, and says who they are to what follows.
pub(super) async fn authorize(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let name = given.and_then(|token| app.admins.borrow().name_of(token).map(str::to_owned));
    let Some(name) = name else {
        let from = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let (method, path) = (request.method().as_str(), request.uri().path());
        app.strangers.refuse(from.map(|from| from.0), method, path);
        return Error::Unauthorized.into_response();
    };
    match claim(request.headers()) {
        Ok(claim) => {
            let actor = match claim {
                Some(claim) => format!("{name} (says: {claim})"),
                None => name,
            };
            request.extensions_mut().insert(Caller(Actor(actor)));
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// What can't be taken for more than a claim: it ends no bracket.
fn claim(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let Some(value) = headers.get(CLAIM) else {
        return Ok(None);
    };
    let fits = |text: &&str| {
        (1..=CLAIM_MAX).contains(&text.len()) && text.chars().all(|c| !matches!(c, '(' | ')' | '"'))
    };
    // `to_str` lets visible ASCII through alone.
    let text = value.to_str().ok().filter(fits);
    text.map(Some).ok_or_else(|| {
        Error::BadRequest(format!(
            "{CLAIM} must be of 1 to {CLAIM_MAX} visible ASCII characters without brackets and quotes"
        ))
    })
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let caller = parts.extensions.get::<Self>().cloned();
        // All routes that take a caller are behind `authorize`.
        Ok(caller.unwrap_or_else(|| Self(Actor("unknown".into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<String>, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CLAIM, text.parse().unwrap());
        claim(&headers).map(|claim| claim.map(str::to_owned))
    }

    #[test]
    fn a_claim_can_be_taken_for_nothing_else() {
        assert!(claim(&HeaderMap::new()).unwrap().is_none());
        assert_eq!(of("alice@laptop").unwrap().unwrap(), "alice@laptop");
        for bad in ["", "x) admin (says: y", "\u{e9}", &"x".repeat(129)] {
            assert!(matches!(of(bad), Err(Error::BadRequest(_))), "{bad}");
        }
    }
}
