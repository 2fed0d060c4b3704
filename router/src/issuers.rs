//! Issuers' keys that are published at a URL (JWKS): fetched at the start, then
//! every few minutes, and at once when a token names a key that is not known. The
//! last of these is what a stranger can cause, so it happens once in a while at
//! most. While a URL can't be read its last known keys stay in use; a file keeps
//! them over a restart.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenancy::auth::{JwksError, Published};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::event::{Event, Events};

/// Keys are looked at again after this time.
const EVERY: Duration = Duration::from_secs(300);
/// The same, where the last look failed.
const EVERY_FAILED: Duration = Duration::from_secs(15);
/// Time between two fetches that tokens of unknown keys ask for.
const COOL_DOWN: Duration = Duration::from_secs(10);
/// Longest wait for a document.
const FETCH_MAX: Duration = Duration::from_secs(3);
/// Requests that wait for one URL; more are told at once that the key is unknown.
const WAITING_MAX: usize = 64;
/// Largest document.
const BYTES_MAX: usize = 1 << 20;

/// What fetches issuers' keys.
pub struct Issuers {
    http: reqwest::Client,
    published: Arc<Published>,
    events: Arc<Events>,
    file: Option<PathBuf>,
    cool_down: Duration,
    urls: Mutex<HashMap<Box<str>, Arc<Url>>>,
    /// Held by who writes the file.
    writing: tokio::sync::Mutex<()>,
}

/// One URL's state; who fetches holds the lock, so that others wait for it.
struct Url {
    looks: tokio::sync::Mutex<Looks>,
    waiting: Semaphore,
}

impl Default for Url {
    fn default() -> Self {
        Self {
            looks: tokio::sync::Mutex::default(),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }
}

#[derive(Default)]
struct Looks {
    /// When it is due, but for tokens of unknown keys.
    next: Option<Instant>,
    /// When a token of an unknown key asked last.
    asked: Option<Instant>,
}

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It could not be read.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    /// It has more bytes than a document of keys has.
    #[error("the document has more than {BYTES_MAX} bytes")]
    TooLarge,
    /// It is none.
    #[error(transparent)]
    Jwks(#[from] JwksError),
}

impl Issuers {
    /// Puts keys into `published`; first those that `file` holds.
    ///
    /// # Errors
    /// Where this system has no certificates to verify servers by.
    pub fn new(
        published: Arc<Published>,
        events: Arc<Events>,
        file: Option<PathBuf>,
    ) -> Result<Arc<Self>, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(FETCH_MAX)
            .timeout(FETCH_MAX)
            // Keys are what they are for the URL that was registered.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let kept = file.as_deref().map(read_file).unwrap_or_default();
        for (url, text) in &kept {
            // A damaged file holds no keys.
            let _ = published.put(url, text);
        }
        Ok(Arc::new(Self {
            http,
            published,
            events,
            file,
            cool_down: COOL_DOWN,
            urls: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// Fetches what is new or due among `urls`, and forgets all others. Returns
    /// when the next one is due.
    pub async fn keep(self: &Arc<Self>, urls: &[Box<str>]) -> Instant {
        self.published.retain(urls);
        self.urls().retain(|url, _| urls.contains(url));
        let looks = urls.iter().map(|url| self.look_if_due(url));
        let next = futures_util::future::join_all(looks).await;
        let latest = Instant::now() + EVERY;
        next.into_iter().min().unwrap_or(latest)
    }

    async fn look_if_due(&self, url: &str) -> Instant {
        let state = self.url(url);
        let mut looks = state.looks.lock().await;
        match looks.next {
            Some(next) if next > Instant::now() => next,
            _ => self.look(url, &mut looks).await,
        }
    }

    /// A token names a key of `url` that is not known: fetches its keys, if that
    /// was not done lately, or waits for who does.
    pub async fn ask(self: &Arc<Self>, url: &str, until: Instant) {
        let state = self.url(url);
        // Anybody can name an unknown key, and each of them has a place of the
        // router's while it waits.
        let Ok(_place) = state.waiting.try_acquire() else {
            return;
        };
        let (issuers, state, url) = (self.clone(), state.clone(), url.to_owned());
        // In a task of its own: who asks and goes away must not have used up the turn.
        let look = tokio::spawn(async move {
            let mut looks = state.looks.lock().await;
            let lately = looks.asked.map(|asked| asked.elapsed());
            if lately.is_some_and(|lately| lately < issuers.cool_down) {
                return;
            }
            looks.asked = Some(Instant::now());
            issuers.look(&url, &mut looks).await;
        });
        let _ = timeout_at(until, look).await;
    }

    async fn look(&self, url: &str, looks: &mut Looks) -> Instant {
        let found = self.fetch(url).await;
        let again = match &found {
            Ok(_) => EVERY,
            Err(_) => EVERY_FAILED,
        };
        match found {
            Ok(news) => {
                self.events.emit(&Event::KeysFetched { url, news });
                if news {
                    self.write_file().await;
                }
            }
            Err(error) => self.events.emit(&Event::KeysFailed {
                url,
                error: tenancy::chain(&error),
            }),
        }
        let next = Instant::now() + again;
        looks.next = Some(next);
        next
    }

    async fn fetch(&self, url: &str) -> Result<bool, FetchError> {
        let request = self.http.get(url);
        let request = request.header(http::header::ACCEPT, "application/json");
        let mut answer = request.send().await?.error_for_status()?;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if text.len() + chunk.len() > BYTES_MAX {
                return Err(FetchError::TooLarge);
            }
            text.extend_from_slice(&chunk);
        }
        Ok(self.published.put(url, &String::from_utf8_lossy(&text))?)
    }

    async fn write_file(&self) {
        let Some(path) = self.file.clone() else {
            return;
        };
        // One after another: they share the file beside.
        let _alone = self.writing.lock().await;
        let texts = self.published.texts();
        let written = tokio::task::spawn_blocking(move || {
            // Not `.new`: that is the snapshot's.
            let beside = path.with_extension("keys-new");
            let text = serde_json::to_vec(&texts)?;
            std::fs::write(&beside, text)?;
            std::fs::rename(beside, path)
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "issuers' keys can't be kept in their file");
        }
    }

    fn url(&self, url: &str) -> Arc<Url> {
        self.urls().entry(url.into()).or_default().clone()
    }

    fn urls(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, Arc<Url>>> {
        self.urls.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Its keys, by URL; none of a file that is missing or damaged.
fn read_file(path: &Path) -> HashMap<Box<str>, Box<str>> {
    let text = std::fs::read(path).ok();
    let texts = text.and_then(|text| serde_json::from_slice(&text).ok());
    texts.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::http::StatusCode;

    use super::*;
    use crate::config::RequestLog;
    use crate::event::metrics::Metrics;

    /// A server of documents that counts who asks; none: it is out of order.
    #[derive(Clone, Default)]
    struct Server {
        document: Arc<Mutex<Option<String>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Server {
        async fn start(&self) -> Box<str> {
            let server = self.clone();
            let answer = move || {
                server.asked.fetch_add(1, Ordering::SeqCst);
                let document = server.document.lock().unwrap().clone();
                std::future::ready(document.ok_or(StatusCode::SERVICE_UNAVAILABLE))
            };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/keys", listener.local_addr().unwrap());
            let routes = axum::Router::new().route("/keys", axum::routing::get(answer));
            tokio::spawn(async move { axum::serve(listener, routes).await });
            url.into()
        }

        fn publish(&self, kid: Option<&str>) {
            let key = |kid| format!(r#"{{"keys":[{{"kty":"oct","k":"AA","kid":"{kid}"}}]}}"#);
            *self.document.lock().unwrap() = kid.map(key);
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn issuers(file: Option<PathBuf>) -> Arc<Issuers> {
        let events = Events::new(Metrics::handles(), RequestLog::Errors).unwrap();
        Issuers::new(Arc::default(), Arc::new(events), file).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn text(issuers: &Issuers, url: &str) -> String {
        issuers.published.texts()[url].to_string()
    }

    #[tokio::test]
    async fn keys_are_fetched_once_for_many_tokens_of_unknown_keys() {
        let server = Server::default();
        server.publish(Some("one"));
        let url = server.start().await;
        let issuers = issuers(None);
        issuers.keep(std::slice::from_ref(&url)).await;
        issuers.keep(std::slice::from_ref(&url)).await;
        assert_eq!(server.asked(), 1, "it is not due");
        server.publish(Some("two"));
        let asks = (0..50).map(|_| issuers.ask(&url, soon()));
        futures_util::future::join_all(asks).await;
        assert_eq!(server.asked(), 2);
        assert!(text(&issuers, &url).contains("two"));
        issuers.keep(&[]).await;
        assert!(!issuers.published.knows(&url));
    }

    #[tokio::test]
    async fn the_last_known_keys_stay_while_the_url_is_down_or_says_nonsense() {
        let folder = std::env::temp_dir().join(format!("ringfence-keys-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("keys.json");
        let server = Server::default();
        server.publish(Some("one"));
        let url = server.start().await;
        let first = issuers(Some(file.clone()));
        first.keep(std::slice::from_ref(&url)).await;
        server.publish(None);
        first.ask(&url, soon()).await;
        assert_eq!(server.asked(), 2);
        assert!(text(&first, &url).contains("one"));

        // Also over a restart.
        let second = issuers(Some(file));
        second.keep(std::slice::from_ref(&url)).await;
        assert!(text(&second, &url).contains("one"));
        *server.document.lock().unwrap() = Some("no keys".into());
        second.ask(&url, soon()).await;
        assert_eq!(server.asked(), 4);
        assert!(text(&second, &url).contains("one"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
