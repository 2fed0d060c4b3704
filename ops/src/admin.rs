//! A client of the admin API.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::error::{Error, Result};

const TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);
/// Longest stream of events; who wants more asks again.
const EVENTS_MAX: Duration = Duration::from_secs(3_600);
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
            .connect_timeout(CONNECT);
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
        let unreachable = |source| self.unreachable(source);
        let request_name = format!("{method} {path}");
        let mut url = reqwest::Url::parse(&format!("{}/admin/v1{path}", self.url))
            .map_err(|e| Error::Usage(format!("{} is not an address: {e}", self.url)))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
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
            request: request_name,
            field: "JSON",
        })
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
