//! One HTTP/1.1 connection at a time, straight on hyper: no pool, no
//! redirects, no decompression, so that what is measured is the target.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::error::{Error, Result};

/// The largest answer that is kept for looking into; of larger ones only the
/// size is counted.
const KEPT_BODY_MAX: usize = 16 * 1024 * 1024;

/// A server to send requests to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The base URL as given.
    pub url: String,
    /// Its path, put before each operation's; without a slash at the end.
    pub prefix: String,
    /// The `Host` header.
    pub host: HeaderValue,
    address: String,
}

impl Target {
    /// Understands a base URL such as `http://127.0.0.1:7400/rest/v1`.
    ///
    /// # Errors
    /// [`Error::Target`]; only plain HTTP is spoken.
    pub fn parse(url: &str) -> Result<Self> {
        let refuse = |reason: &str| Error::Target {
            url: url.to_owned(),
            reason: reason.to_owned(),
        };
        let uri: http::Uri = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| refuse(&error.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(refuse(
                "it must begin with http:// (for TLS, put the tester behind a local proxy)",
            ));
        }
        let authority = uri.authority().ok_or_else(|| refuse("it has no host"))?;
        if uri.query().is_some() {
            return Err(refuse("a base URL has no query"));
        }
        Ok(Target {
            url: url.to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            host: HeaderValue::from_str(authority.as_str())
                .map_err(|_| refuse("its host is not a header's value"))?,
            address: format!(
                "{}:{}",
                authority.host(),
                authority.port_u16().unwrap_or(80)
            ),
        })
    }

    /// The address without scheme and path, for people.
    pub fn name(&self) -> &str {
        &self.address
    }
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, if it was asked for.
    pub body: Bytes,
    /// The body's size in bytes.
    pub bytes: u64,
}

/// Why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Nothing was sent: no connection could be made.
    Refused,
    /// Sent, and given up after the time limit.
    Timeout,
    /// Sent, and the connection ended without a whole answer.
    Cut,
}

impl Failure {
    /// As reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Refused => "refused",
            Failure::Timeout => "timeout",
            Failure::Cut => "cut",
        }
    }
}

/// A connection that is opened when first used and again after a failure.
#[derive(Debug)]
pub struct Connection {
    target: Arc<Target>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// A connection to `target`, not yet open.
    pub fn new(target: Arc<Target>) -> Self {
        Connection {
            target,
            sender: None,
        }
    }

    /// Where it leads.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Sends a request and waits for the whole answer, at most `timeout`.
    /// The body is kept only if `keep_body`.
    ///
    /// # Errors
    /// [`Failure`]; the connection is then opened anew for the next request.
    pub async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
        keep_body: bool,
    ) -> std::result::Result<Answer, Failure> {
        let mut sent = false;
        let outcome =
            tokio::time::timeout(timeout, self.attempt(request, keep_body, &mut sent)).await;
        let failure = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => failure,
            // Still connecting: nothing can have happened at the server.
            Err(_) if !sent => Failure::Refused,
            Err(_) => Failure::Timeout,
        };
        self.sender = None;
        Err(failure)
    }

    async fn attempt(
        &mut self,
        mut request: Request<Full<Bytes>>,
        keep_body: bool,
        sent: &mut bool,
    ) -> std::result::Result<Answer, Failure> {
        // A kept-alive connection may have been closed meanwhile; hyper then
        // hands the unsent request back, and one new connection is tried.
        for _ in 0..2 {
            let mut sender = match self.sender.take() {
                Some(sender) if !sender.is_closed() => sender,
                _ => self.connect().await?,
            };
            if sender.ready().await.is_err() {
                continue;
            }
            *sent = true;
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let answer = collect(response, keep_body).await?;
                    self.sender = Some(sender);
                    return Ok(answer);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => {
                        *sent = false;
                        request = unsent;
                    }
                    None => return Err(Failure::Cut),
                },
            }
        }
        Err(Failure::Refused)
    }

    async fn connect(&self) -> std::result::Result<SendRequest<Full<Bytes>>, Failure> {
        let stream = TcpStream::connect(&self.target.address)
            .await
            .map_err(|_| Failure::Refused)?;
        stream.set_nodelay(true).map_err(|_| Failure::Refused)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::Refused)?;
        // Ends when the sender is dropped or the server closes.
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn collect(
    response: http::Response<hyper::body::Incoming>,
    keep_body: bool,
) -> std::result::Result<Answer, Failure> {
    let (head, mut body) = response.into_parts();
    let mut bytes = 0;
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Failure::Cut)?.into_data() else {
            continue;
        };
        bytes += data.len() as u64;
        if !keep_body || more.len() + data.len() > KEPT_BODY_MAX {
            continue;
        }
        // Most answers are one frame, which needs no copy.
        if first.is_empty() && more.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&data);
        }
    }
    let body = if more.is_empty() {
        first
    } else {
        more.freeze()
    };
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_base_urls() {
        let target = Target::parse("http://127.0.0.1:7400/rest/v1/").unwrap();
        assert_eq!(
            (target.prefix.as_str(), target.name()),
            ("/rest/v1", "127.0.0.1:7400")
        );
        assert_eq!(
            Target::parse("http://localhost").unwrap().name(),
            "localhost:80"
        );
        for url in [
            "localhost:3000",
            "https://x",
            "http://",
            "http://x/?a=1",
            "ftp://x",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
