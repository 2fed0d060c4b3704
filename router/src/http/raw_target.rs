//! Request targets with characters that a URI may not have.
//!
//! `"`, `<`, `>` and backticks are sent as they were typed by curl
//! (`select=address->>city`), Go and Python. PostgREST takes them; hyper answers
//! 400. So between the socket and hyper they are percent-encoded, in request
//! targets only.
//!
//! Where a request begins is hyper's word, not a guess: two readers that see a
//! request's end in different places are how requests are smuggled. A head is
//! passed on up to where it may end, and not a byte more. If hyper then calls the
//! service, the head was whole and nothing behind it has been read; if it reads
//! on, that was no end. The service says what length hyper found the body to have:
//! behind so many bytes the next request begins. Where there is no length, as with
//! chunks and with HTTP/2, nothing is touched from there on.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::{Request, Version};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream and a service whose requests' targets may hold any character.
pub(super) fn accept<S, H>(stream: S, service: H) -> (RawTargets<S>, Heard<H>) {
    let calls = Arc::new(Calls(AtomicU64::new(NONE)));
    let heard = Heard {
        service,
        calls: calls.clone(),
    };
    let targets = RawTargets {
        stream,
        calls,
        at: At::Start,
        unseen: BytesMut::new(),
        seen: BytesMut::new(),
    };
    (targets, heard)
}

/// The service's last call that the stream has not taken note of: its body's
/// length. Both belong to one task, so nothing else is to be ordered by it.
struct Calls(AtomicU64);

const NONE: u64 = u64::MAX;
const NO_LENGTH: u64 = u64::MAX - 1;

/// Tells the stream of each request that hyper has read.
pub(super) struct Heard<H> {
    service: H,
    calls: Arc<Calls>,
}

impl<H: Service<Request<Incoming>>> Service<Request<Incoming>> for Heard<H> {
    type Response = H::Response;
    type Error = H::Error;
    type Future = H::Future;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let length = match request.version() {
            Version::HTTP_10 | Version::HTTP_11 => request.body().size_hint().exact(),
            _ => None,
        };
        let length = length.unwrap_or(NO_LENGTH);
        self.calls.0.store(length, Ordering::Relaxed);
        self.service.call(request)
    }
}

/// Where in a connection's bytes the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before a request's first byte, or in the blank lines that may go before it.
    Start,
    Method,
    Target,
    /// In a line of the head, behind the target.
    Line,
    /// Behind a line's end.
    LineStart,
    /// Behind a line's end and a carriage return.
    LineStartReturn,
    /// Behind an empty line: the head has ended, if hyper says so.
    MaybeEnd,
    /// In a body, with so many bytes to come.
    Body(u64),
    /// Somewhere, for good.
    Unknown,
}

impl At {
    /// Takes note of whether hyper has called the service since.
    fn follow(&mut self, call: u64) {
        *self = match (*self, call) {
            (At::MaybeEnd, NONE) => At::LineStart,
            (at, NONE) => at,
            (At::MaybeEnd, 0) => At::Start,
            (At::MaybeEnd, length) if length != NO_LENGTH => At::Body(length),
            _ => At::Unknown,
        }
    }

    /// Looks at bytes up to where hyper has to be followed. Returns how many, and
    /// what hyper is to read in their place.
    fn pass<'b>(&mut self, bytes: &'b [u8]) -> (usize, Cow<'b, [u8]>) {
        let mut encoded: Option<Vec<u8>> = None;
        let mut done = 0;
        while let Some(rest) = bytes.get(done..)
            && let Some(&byte) = rest.first()
            && *self != At::MaybeEnd
        {
            let (next, taken) = match (*self, byte) {
                (At::Start, b'\r' | b'\n') => (At::Start, 1),
                (At::Start, _) => (At::Method, 1),
                (At::Method, b' ') => (At::Target, 1),
                (At::Target, b' ') => (At::Line, 1),
                (At::Method | At::Target | At::Line, b'\n') => (At::LineStart, 1),
                (At::Method, _) => (At::Method, 1),
                (At::Target, _) => (At::Target, run(rest, |b| !matches!(b, b' ' | b'\n'))),
                (At::LineStart | At::LineStartReturn, b'\n') => (At::MaybeEnd, 1),
                (At::LineStart, b'\r') => (At::LineStartReturn, 1),
                (At::Line | At::LineStart | At::LineStartReturn, _) => {
                    (At::Line, run(rest, |b| b != b'\n'))
                }
                (At::Body(length), _) => {
                    let here = usize::try_from(length).unwrap_or(usize::MAX);
                    let taken = here.min(rest.len());
                    match length - taken as u64 {
                        0 => (At::Start, taken),
                        more => (At::Body(more), taken),
                    }
                }
                (At::MaybeEnd | At::Unknown, _) => (*self, rest.len()),
            };
            let part = rest.get(..taken).unwrap_or(rest);
            if *self == At::Target && part.iter().any(|b| escape(*b).is_some()) {
                let before = || bytes.get(..done).unwrap_or_default().to_vec();
                encode(part, encoded.get_or_insert_with(before));
            } else if let Some(encoded) = &mut encoded {
                encoded.extend_from_slice(part);
            }
            done += taken;
            *self = next;
        }
        let passed = match encoded {
            Some(encoded) => encoded.into(),
            None => bytes.get(..done).unwrap_or(bytes).into(),
        };
        (done, passed)
    }
}

/// How many bytes at the beginning are such ones; at least one is.
fn run(bytes: &[u8], such: impl Fn(u8) -> bool) -> usize {
    let end = bytes.iter().position(|byte| !such(*byte));
    end.unwrap_or(bytes.len())
}

/// Of a character that hyper refuses in a target, though PostgREST does not.
fn escape(byte: u8) -> Option<&'static [u8]> {
    match byte {
        b'"' => Some(b"%22"),
        b'<' => Some(b"%3C"),
        b'>' => Some(b"%3E"),
        b'`' => Some(b"%60"),
        _ => None,
    }
}

fn encode(part: &[u8], into: &mut Vec<u8>) {
    for byte in part {
        match escape(*byte) {
            Some(escape) => into.extend_from_slice(escape),
            None => into.push(*byte),
        }
    }
}

/// Encodes what must be in the targets of the requests that are read from it.
pub(super) struct RawTargets<S> {
    stream: S,
    calls: Arc<Calls>,
    at: At,
    /// What was read of the stream and not looked at; both are bounded by what hyper
    /// asks for in one read.
    unseen: BytesMut,
    /// What hyper did not have room for, three times that at most.
    seen: BytesMut,
}

impl<S: AsyncRead + Unpin> AsyncRead for RawTargets<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.is_empty() {
            // All that it was given hyper has read.
            this.at.follow(this.calls.0.swap(NONE, Ordering::Relaxed));
            if this.unseen.is_empty() {
                let before = into.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
                let read = into.filled().get(before..).unwrap_or_default();
                let (count, passed) = this.at.pass(read);
                if count == read.len() && matches!(passed, Cow::Borrowed(_)) {
                    return Poll::Ready(Ok(()));
                }
                this.seen.extend_from_slice(&passed);
                this.unseen
                    .extend_from_slice(read.get(count..).unwrap_or_default());
                into.set_filled(before);
            } else {
                let (count, passed) = this.at.pass(&this.unseen);
                this.seen.extend_from_slice(&passed);
                this.unseen.advance(count);
            }
        }
        let part = this.seen.len().min(into.remaining());
        into.put_slice(&this.seen.split_to(part));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RawTargets<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, Full};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto;
    use percent_encoding::percent_decode_str;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Answers with what it read: method, decoded target, a header, the body.
    async fn echo(
        request: Request<Incoming>,
    ) -> Result<http::Response<Full<bytes::Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let target = head.uri.path_and_query().map_or("", |both| both.as_str());
        let target = percent_decode_str(target).decode_utf8_lossy().into_owned();
        let note = head
            .headers
            .get("x-note")
            .map(|note| note.as_bytes().to_vec());
        let body = body.collect().await.map(|body| body.to_bytes().to_vec());
        let told = Told {
            target,
            note: String::from_utf8(note.unwrap_or_default()).unwrap(),
            body: String::from_utf8(body.unwrap_or_default()).unwrap(),
        };
        Ok(http::Response::new(Full::from(format!("{told:?}\n"))))
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Told {
        target: String,
        note: String,
        body: String,
    }

    #[derive(Clone, Debug)]
    struct Sent {
        told: Told,
        absolute: bool,
        /// Lines end without a carriage return.
        bare: bool,
        has_length: bool,
        /// Blank lines before it.
        blank: usize,
    }

    impl Sent {
        fn bytes(&self) -> String {
            let end = if self.bare { "\n" } else { "\r\n" };
            let Told { target, note, body } = &self.told;
            let host = if self.absolute { "http://a:1" } else { "" };
            let mut text = end.repeat(self.blank);
            // A percent sign of the client's own stays one.
            let target = target.replace('%', "%25");
            text += &format!("POST {host}{target} HTTP/1.1{end}x-note: {note}{end}");
            if self.has_length || !body.is_empty() {
                text += &format!("Content-Length: {}{end}", body.len());
            }
            text + end + body
        }
    }

    fn sent() -> impl Strategy<Value = Sent> {
        // Each of them holds what would be a request in another place.
        let target = "/[a-z\"<>`%é{}|^]{0,9}(\\?[a-z\"<>`%é{}|^\\\\?/=]{0,12})?";
        let note = "[a-z\"<>`:?]{0,8}";
        let body = "(GET /\"<>` HTTP/1.1\r\n\r\n|\r\n\r\n|\n\n|[a-z\"<>`\r\n]{1,12}){0,3}";
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), 0..3_usize);
        (target, note, body, flags).prop_map(|(target, note, body, flags)| {
            let (absolute, bare, has_length, blank) = flags;
            Sent {
                told: Told { target, note, body },
                absolute,
                bare,
                has_length,
                blank,
            }
        })
    }

    /// What hyper answers to `text`, which it gets in pieces of these lengths.
    async fn answered(text: &str, pieces: &[usize]) -> String {
        let (mut client, server) = duplex(1 << 16);
        let (stream, service) = accept(server, service_fn(echo));
        let served = tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        let mut rest = text.as_bytes();
        let mut lengths = pieces.iter().cycle();
        while !rest.is_empty() {
            let length = lengths
                .next()
                .map_or(rest.len(), |length| (*length).min(rest.len()));
            let (piece, later) = rest.split_at(length);
            if client.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            rest = later;
        }
        let _ = client.shutdown().await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        served.await.unwrap();
        answer
    }

    fn run_alone<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    /// The requests that hyper has read, and its refusal's status behind them.
    fn read(answer: &str) -> (Vec<&str>, Option<&str>) {
        let told = answer.lines().filter(|line| line.starts_with("Told"));
        let mut refused = answer
            .lines()
            .filter_map(|line| line.strip_prefix("HTTP/1.1 "));
        (
            told.collect(),
            refused.next_back().filter(|status| *status != "200 OK"),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// One behind another on a connection, pipelined, torn anywhere: hyper reads
        /// each target as it was written, and every other byte as it was sent.
        #[test]
        fn targets_are_read_as_written_and_nothing_else_is_touched(
            requests in vec(sent(), 1..5),
            pieces in vec(1..40_usize, 1..6),
        ) {
            let text: String = requests.iter().map(Sent::bytes).collect();
            let answer = run_alone(answered(&text, &pieces));
            let expected: Vec<String> =
                requests.iter().map(|sent| format!("{:?}", sent.told)).collect();
            prop_assert_eq!(read(&answer), (expected.iter().map(String::as_str).collect(), None));
        }

        /// Whatever is sent, nothing is added or lost but by the encoding of a target.
        #[test]
        fn all_bytes_are_passed(
            text in "(GET |/a|\"|<| HTTP/1.1|\r\n|\n|\r|x: >|[ -~]){0,30}",
            pieces in vec(1..20_usize, 1..6),
            calls in vec(prop_oneof![Just(NONE), Just(0), Just(3), Just(NO_LENGTH)], 1..6),
        ) {
            let (mut at, mut passed) = (At::Start, Vec::new());
            let mut rest = text.as_bytes();
            let (mut lengths, mut calls) = (pieces.iter().cycle(), calls.iter().cycle());
            while !rest.is_empty() {
                let length = (*lengths.next().unwrap()).min(rest.len());
                let (count, part) = at.pass(&rest[..length]);
                prop_assert!(count > 0);
                passed.extend_from_slice(&part);
                rest = &rest[count..];
                at.follow(*calls.next().unwrap());
            }
            let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
            let passed = String::from_utf8(passed).unwrap();
            prop_assert_eq!(decoded(&passed), decoded(&text));
            prop_assert_eq!(passed.lines().count(), text.lines().count());
        }
    }

    #[tokio::test]
    async fn behind_a_body_without_a_length_nothing_is_touched() {
        let chunked = "POST /<a> HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                       13\r\nGET /\" HTTP/1.1\r\n\r\n\r\n0\r\n\r\n";
        let answer = answered(&format!("{chunked}GET /b HTTP/1.1\r\n\r\n"), &[1 << 10]).await;
        let (told, refused) = read(&answer);
        assert_eq!((told.len(), refused), (2, None), "{answer}");
        assert!(told[0].contains("\"/<a>\"") && told[0].contains("GET /\\\" HTTP"));
        let answer = answered(&format!("{chunked}GET /<b> HTTP/1.1\r\n\r\n"), &[1 << 10]).await;
        let (told, refused) = read(&answer);
        assert_eq!(
            (told.len(), refused),
            (1, Some("400 Bad Request")),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn who_waits_to_be_asked_for_a_body_is_asked() {
        let (mut client, server) = duplex(1 << 16);
        let (stream, service) = accept(server, service_fn(echo));
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        for _ in 0..2 {
            let head =
                b"POST /?a->>b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
            client.write_all(head).await.unwrap();
            let mut asked = [0; 25];
            client.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
            client.write_all(b"<\">").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"}\n") {
                answer.push(client.read_u8().await.unwrap());
            }
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.contains("\"/?a->>b\"") && answer.contains("<\\\">"),
                "{answer}"
            );
        }
    }
}
