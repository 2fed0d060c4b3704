//! Who may do more than look at the admin port: what costs or changes something there
//! is not for whoever can reach it.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tenancy::auth::KeyRing;

use crate::config::{Config, ConfigError};

/// Who may have the caches forget, and take profiles.
pub struct Access {
    /// What workers show.
    purge: String,
    profile: Profile,
}

/// What those are answered who may not.
type Refused = (StatusCode, &'static str);

enum Profile {
    /// Only this machine reaches the listener.
    Open,
    /// Whoever shows it.
    Token(String),
    /// Others reach the listener, and none was named.
    Closed,
}

impl Access {
    /// As the configuration and its secrets say.
    ///
    /// # Errors
    /// A secret that can't be read.
    pub fn new(config: &Config) -> Result<Arc<Self>, ConfigError> {
        let profile = match config.admin_token()? {
            Some(token) => Profile::Token(token.expose().to_owned()),
            None if config.admin_listen.ip().is_loopback() => Profile::Open,
            None => Profile::Closed,
        };
        let keys = KeyRing::new(config.key_secret()?.expose());
        let purge = keys.purge_token();
        Ok(Arc::new(Self { purge, profile }))
    }

    /// Take a profile.
    pub(super) fn may_profile(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match &self.profile {
            Profile::Open => Ok(()),
            Profile::Token(token) if shows(headers, token) => Ok(()),
            Profile::Token(_) => Err((
                StatusCode::UNAUTHORIZED,
                "send Authorization: Bearer <the token of admin_token_file>\n",
            )),
            Profile::Closed => Err((
                StatusCode::FORBIDDEN,
                "others reach admin_listen: set admin_token_file, and show that token\n",
            )),
        }
    }

    /// Have the caches forget.
    pub(super) fn may_purge(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match shows(headers, &self.purge) {
            true => Ok(()),
            false => Err((
                StatusCode::UNAUTHORIZED,
                "only workers may: `ringfence cache purge`\n",
            )),
        }
    }
}

fn shows(headers: &HeaderMap, token: &str) -> bool {
    let shown = headers.get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    shown.is_some_and(|shown| verify_slices_are_equal(shown, token.as_bytes()).is_ok())
}

/// Whether who sends these headers may do it, or what to answer.
pub(super) type May = fn(&Access, &HeaderMap) -> Result<(), Refused>;

/// Lets those through who may.
pub(super) async fn pass(
    State((access, may)): State<(Arc<Access>, May)>,
    request: Request,
    next: Next,
) -> Response {
    match may(&access, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn showing(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {token}").parse().unwrap();
        headers.insert(header::AUTHORIZATION, value);
        headers
    }

    #[test]
    fn who_may_take_a_profile_depends_on_who_can_ask() {
        let answer = |profile: Profile, headers: &HeaderMap| {
            let purge = String::new();
            let refused = Access { purge, profile }.may_profile(headers).err();
            refused.map(|(status, _)| status.as_u16())
        };
        let (none, right) = (HeaderMap::new(), showing("right"));
        let token = || Profile::Token("right".into());
        assert_eq!(answer(Profile::Open, &none), None);
        assert_eq!(answer(Profile::Closed, &right), Some(403));
        assert_eq!(answer(token(), &right), None);
        for wrong in [&none, &showing("wrong"), &showing("")] {
            assert_eq!(answer(token(), wrong), Some(401));
        }
    }

    #[test]
    fn only_who_has_the_secret_of_keys_may_purge() {
        let purge = KeyRing::new("a secret that others do not have").purge_token();
        let profile = Profile::Open;
        let access = Access { purge, profile };
        let by = |secret: &str| access.may_purge(&showing(&KeyRing::new(secret).purge_token()));
        assert!(by("a secret that others do not have").is_ok());
        assert!(by("another").is_err() && access.may_purge(&HeaderMap::new()).is_err());
    }
}
