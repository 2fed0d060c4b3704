//! Who may use the admin API: bearer tokens, each with the name of who has it,
//! which is what the audit log calls them. Files are read again and again, so that
//! a token is changed without a restart. Who shows none that is known is counted,
//! and told of in the log: the audit log is not for strangers to fill.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use metrics::Counter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Longest name.
const NAME_MAX: usize = 63;
/// Tokens' files are read so often.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Strangers fill one line of the log in this time, however many they are.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Longest path that is told.
const PATH_CHARS_MAX: usize = 200;

/// Names with their tokens.
#[derive(PartialEq)]
pub struct Admins(Vec<(String, String)>);

/// Why tokens can't be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AdminsError {
    /// A name that would not be told apart in the audit log.
    #[error(
        "an admin's name must be of 1 to {NAME_MAX} letters, digits, dots, dashes, underscores and @: {0:?} is not"
    )]
    Name(String),
    /// Anybody could show it.
    #[error("the admin token of {0} is empty")]
    Empty(String),
    /// Nobody could tell whose it is.
    #[error("{0} and {1} have the same admin token")]
    Same(String, String),
    /// A name has two tokens.
    #[error("there are two admin tokens of {0}")]
    Twice(String),
}

impl Admins {
    /// Tokens by name.
    ///
    /// # Errors
    /// Where a caller could not be told by its token.
    pub fn new(tokens: Vec<(String, String)>) -> Result<Self, AdminsError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
        for (place, (name, token)) in tokens.iter().enumerate() {
            if !(1..=NAME_MAX).contains(&name.len()) || !name.chars().all(fits) {
                return Err(AdminsError::Name(name.clone()));
            }
            if token.is_empty() {
                return Err(AdminsError::Empty(name.clone()));
            }
            for (other, known) in tokens.iter().take(place) {
                if other == name {
                    return Err(AdminsError::Twice(name.clone()));
                }
                if known == token {
                    return Err(AdminsError::Same(other.clone(), name.clone()));
                }
            }
        }
        Ok(Self(tokens))
    }

    /// Whose token it is, if it is one.
    pub fn name_of(&self, token: &[u8]) -> Option<&str> {
        let mut tokens = self.0.iter();
        let found =
            tokens.find(|(_, known)| verify_slices_are_equal(token, known.as_bytes()).is_ok());
        found.map(|(name, _)| name.as_str())
    }
}

/// Keeps tokens as the files have them, until `stop`. What can't be read, or can't be
/// used, changes none: nobody is locked out by a file that is being written.
pub async fn follow(config: Config, admins: watch::Sender<Admins>, stop: CancellationToken) {
    metrics::describe_gauge!(
        "ringfence_admin_tokens_stale",
        "1 while the admin tokens' files can't be used, so that earlier tokens count."
    );
    let stale = metrics::gauge!("ringfence_admin_tokens_stale");
    let mut said = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(READ_EVERY) => {}
        }
        let files = config.clone();
        let read = tokio::task::spawn_blocking(move || files.admins()).await;
        let problem = match read {
            Ok(Ok(new)) => {
                if replace(&admins, new) {
                    tracing::info!("admin tokens have changed");
                }
                None
            }
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(error) => Some(error.to_string()),
        };
        stale.set(f64::from(u8::from(problem.is_some())));
        if let Some(error) = problem.as_ref().filter(|_| problem != said) {
            tracing::warn!(%error, "admin tokens stay as they were");
        }
        said = problem;
    }
}

/// Whether they are others.
fn replace(admins: &watch::Sender<Admins>, new: Admins) -> bool {
    admins.send_if_modified(|now| {
        let changed = *now != new;
        *now = new;
        changed
    })
}

/// Callers without a token that is known.
pub struct Strangers {
    refused: Counter,
    untold: Mutex<Untold>,
}

#[derive(Default)]
struct Untold {
    /// When a line was written last.
    told: Option<Instant>,
    /// Callers that it does not count.
    count: u64,
}

impl Strangers {
    /// Describes and makes the metric; the recorder must be installed.
    pub fn new() -> Self {
        metrics::describe_counter!(
            "ringfence_admin_refused_total",
            "Requests for the admin API without a token that is known."
        );
        Self {
            refused: metrics::counter!("ringfence_admin_refused_total"),
            untold: Mutex::default(),
        }
    }

    /// Counts one that is refused.
    pub fn refuse(&self, from: Option<SocketAddr>, method: &str, path: &str) {
        self.refused.increment(1);
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let count = untold.another(Instant::now());
        drop(untold);
        if let Some(count) = count {
            let from = from.map(|from| from.ip().to_string()).unwrap_or_default();
            let path: String = path.chars().take(PATH_CHARS_MAX).collect();
            tracing::warn!(from, method, path, count, "no known admin token was shown");
        }
    }
}

impl Default for Strangers {
    fn default() -> Self {
        Self::new()
    }
}

impl Untold {
    /// How many a line is to count, where it is time for one.
    fn another(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let recent = |told: Instant| now.duration_since(told) < TOLD_EVERY;
        if self.told.is_some_and(recent) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[(&str, &str)]) -> Result<Admins, AdminsError> {
        let owned = |(name, token): &(&str, &str)| ((*name).to_owned(), (*token).to_owned());
        Admins::new(tokens.iter().map(owned).collect())
    }

    #[test]
    fn a_token_tells_whose_it_is() {
        let admins = of(&[("admin", "one"), ("alice@crm", "two")]).unwrap();
        assert_eq!(admins.name_of(b"two"), Some("alice@crm"));
        for stranger in ["", "tw", "two2", "alice@crm"] {
            assert_eq!(admins.name_of(stranger.as_bytes()), None);
        }
    }

    #[test]
    fn strangers_fill_a_line_at_a_time() {
        let (mut untold, begin) = (Untold::default(), Instant::now());
        let mut at = |ms: u64| untold.another(begin + Duration::from_millis(ms));
        assert_eq!([at(0), at(1), at(9_999)], [Some(1), None, None]);
        assert_eq!([at(10_000), at(10_001)], [Some(3), None]);
        assert_eq!(at(60_000), Some(2));
    }

    #[test]
    fn tokens_that_would_not_tell_are_refused() {
        let refused = |tokens: &[(&str, &str)]| of(tokens).err().unwrap();
        let name = AdminsError::Name("a (b)".into());
        assert_eq!(refused(&[("a (b)", "one")]), name);
        assert_eq!(refused(&[("a", "")]), AdminsError::Empty("a".into()));
        let same = AdminsError::Same("a".into(), "b".into());
        assert_eq!(refused(&[("a", "one"), ("b", "one")]), same);
        let twice = AdminsError::Twice("a".into());
        assert_eq!(refused(&[("a", "one"), ("a", "two")]), twice);
    }
}
