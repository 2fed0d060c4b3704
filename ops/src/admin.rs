//! A client of the admin API.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc::Receiver;

use crate::error::{Error, Result};

const TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);
/// Longest stream of events; who wants more asks again.
const EVENTS_MAX: Duration = Duration::from_secs(3_600);
/// Longest stream of an archive, either way.
const STREAM_MAX: Duration = Duration::from_secs(12 * 3_600);
/// Longest claim of who calls.
const CLAIM_MAX: usize = 128;
/// Longest event.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// The admin API of one worker.
#[derive(Clone, Debug)]
pub struct Admin {
    url: String,
    token: String,
    client: reqwest::Client,
}

impl Admin {
    /// `url` is the worker's base address, without `/admin/v1`.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(url: &str, token: &str) -> Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let mut builder = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT)
            .default_headers(claim().into_iter().collect());
        // A proxy's loopback is another machine's.
        if url.starts_with("http://127.") || url.starts_with("http://localhost") {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|source| Error::Unreachable {
            url: url.clone(),
            source,
        })?;
        Ok(Self {
            url,
            token: token.to_owned(),
            client,
        })
    }

    /// Reads `/admin/v1` + `path`; `query` is encoded as needed.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or what the API answered.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        self.send(Method::GET, path, query, None).await
    }

    /// Posts a JSON body to `/admin/v1` + `path`.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or what the API answered.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(Method::POST, path, &[], Some(body)).await
    }

    /// Deletes `/admin/v1` + `path`; `query` is encoded as needed.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or what the API answered.
    pub async fn delete(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        self.send(Method::DELETE, path, query, None).await
    }

    /// Reads server-sent events, each a JSON value, until `on_event` says false
    /// or the other side ends.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or what the API answered instead.
    pub async fn events(&self, path: &str, mut on_event: impl FnMut(Value) -> bool) -> Result<()> {
        let unreachable = |source| self.unreachable(source);
        let url = format!("{}/admin/v1{path}", self.url);
        let request = self.client.get(url).bearer_auth(&self.token);
        let mut response = request
            .timeout(EVENTS_MAX)
            .send()
            .await
            .map_err(unreachable)?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.map_err(unreachable)?;
            return Err(refusal(status, &text));
        }
        let mut lines = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            lines.extend_from_slice(&chunk);
            if lines.len() > EVENT_BYTES_MAX {
                return Ok(());
            }
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = lines.drain(..=end).collect();
                let data = line.strip_prefix(b"data:");
                let event = data.and_then(|data| serde_json::from_slice(data).ok());
                if event.is_some_and(|event| !on_event(event)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Begins to read what `/admin/v1` + `path` streams.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or what the API answered instead.
    pub async fn download(&self, path: &str, query: &[(&str, &str)]) -> Result<Download> {
        let request = self
            .client
            .get(self.address(path, query)?)
            .bearer_auth(&self.token)
            .timeout(STREAM_MAX);
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.map_err(|e| self.unreachable(e))?;
            return Err(refusal(status, &text));
        }
        Ok(Download {
            response,
            url: self.url.clone(),
        })
    }

    /// Posts a stream of bytes to `/admin/v1` + `path`.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or what the API answered.
    pub async fn upload(&self, path: &str, query: &[(&str, &str)], body: Upload) -> Result<Value> {
        let request = self
            .client
            .post(self.address(path, query)?)
            .bearer_auth(&self.token)
            .timeout(STREAM_MAX)
            .body(reqwest::Body::wrap(body));
        self.answer(request, || format!("POST {path}")).await
    }

    fn address(&self, path: &str, query: &[(&str, &str)]) -> Result<reqwest::Url> {
        let mut url = reqwest::Url::parse(&format!("{}/admin/v1{path}", self.url))
            .map_err(|e| Error::Usage(format!("{} is not an address: {e}", self.url)))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn unreachable(&self, source: reqwest::Error) -> Error {
        Error::Unreachable {
            url: self.url.clone(),
            source,
        }
    }

    /// Takes the items out of a list's answer to `request`.
    ///
    /// # Errors
    /// [`Error::Answer`] where there are none.
    pub fn items(&self, answer: &mut Value, request: &str) -> Result<Vec<Value>> {
        match answer["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Err(Error::Answer {
                request: request.into(),
                field: "items",
            }),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        let url = self.address(path, query)?;
        let name = || format!("{method} {path}");
        let request = self.client.request(method.clone(), url);
        let mut request = request.bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.answer(request, name).await
    }

    async fn answer(
        &self,
        request: reqwest::RequestBuilder,
        name: impl Fn() -> String,
    ) -> Result<Value> {
        let unreachable = |source| self.unreachable(source);
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        if !status.is_success() {
            return Err(refusal(status, &text));
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|_| Error::Answer {
            request: name(),
            field: "JSON",
        })
    }
}

/// Who this says that it is, beside the token: for the audit log, which marks it as
/// a claim. `RINGFENCE_ACTOR`, or this machine's user.
fn claim() -> Option<(HeaderName, HeaderValue)> {
    let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = || ["SUDO_USER", "LOGNAME", "USER"].into_iter().find_map(of);
    let here = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let claim =
        of("RINGFENCE_ACTOR").or_else(|| user().map(|user| format!("{user}@{}", here())))?;
    let fits = |c: &char| c.is_ascii_graphic() && !matches!(c, '(' | ')' | '"');
    let claim: String = claim.chars().filter(fits).take(CLAIM_MAX).collect();
    let value = HeaderValue::from_str(&claim).ok()?;
    (!claim.is_empty()).then_some((HeaderName::from_static("ringfence-actor"), value))
}

/// What the API streams.
pub struct Download {
    response: reqwest::Response,
    url: String,
}

impl Download {
    /// A number in the answer's head.
    pub fn number(&self, header: &str) -> Option<u64> {
        let value = self.response.headers().get(header)?;
        value.to_str().ok()?.parse().ok()
    }

    /// The next bytes; none at its end.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where it breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.response.chunk().await;
        chunk.map_err(|source| Error::Unreachable {
            url: self.url.clone(),
            source,
        })
    }
}

/// Bytes that are sent as they come.
pub struct Upload {
    chunks: Receiver<std::io::Result<Vec<u8>>>,
    left: u64,
}

impl Upload {
    /// `length` bytes of `chunks`.
    pub fn new(chunks: Receiver<std::io::Result<Vec<u8>>>, length: u64) -> Self {
        Self {
            chunks,
            left: length,
        }
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Self::Data>>>> {
        let next = std::task::ready!(self.chunks.poll_recv(context));
        Poll::Ready(next.map(|chunk| {
            let chunk = chunk?;
            self.left = self.left.saturating_sub(chunk.len() as u64);
            Ok(Frame::data(Bytes::from(chunk)))
        }))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The API's error as ours; what stands before the API may answer otherwise.
fn refusal(status: StatusCode, text: &str) -> Error {
    let body: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let field = |name: &str| match &body[name] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    Error::Api {
        status,
        code: field("code").unwrap_or_else(|| status.as_u16().to_string()),
        message: field("message").unwrap_or_else(|| {
            format!(
                "the admin API answered {status}: {}",
                text.chars().take(200).collect::<String>()
            )
        }),
        details: field("details"),
        hint: field("hint"),
    }
}

/// Makes a name usable as one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}
