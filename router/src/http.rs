//! The listening side: connections, their bounds, and the drain at shutdown.

pub mod outgoing;
mod paced;
mod raw_target;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::handler::Handler;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tower::util::MapResponse;
use tower::{BoxError, Service};
use tower_http::CompressionLevel;
use tower_http::compression::predicate::SizeAbove;
use tower_http::compression::{Compression, CompressionBody};

use crate::app::App;
use crate::pipeline;
use crate::tag;
use crate::threads::Threads;
use paced::Paced;

/// Largest request head, which has room for the longest URL and as many bytes of
/// headers; longer ones are answered 431 by hyper.
const HEAD_BYTES_MAX: usize = 128 << 10;
/// Bytes from which a body is compressed; smaller ones fit one packet anyway.
const COMPRESSED_BYTES_MIN: u16 = 1 << 10;
/// So long connections are still read from as before once the listener is closed.
const LAST_READ: Duration = Duration::from_millis(20);

/// Tenants' requests: all go to the pipeline, so there is no route to be found.
pub fn answers(
    app: Arc<App>,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    compressed(pipeline::handle.with_state(app))
}

/// What clients may take of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once; more wait to be accepted.
    pub connections_max: usize,
    /// A client that has not sent its headers by then is cut off, counted from
    /// its connection or its last answer.
    pub headers_max: Duration,
    /// And one that takes nothing of an answer for so long.
    pub send_max: Duration,
    /// Who is connected when the listener closes has so long to begin a request: it was
    /// told of no end, and would not know whether what it sent was done.
    pub silent_max: Duration,
}

/// Opens a listening socket, or says which one could not be opened.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        std::io::Error::new(error.kind(), format!("can't listen on {address}: {error}"))
    })
}

/// Serves HTTP/1.1 and h2c on `threads` until `stop`, then lets requests in flight
/// finish, for `drain` at most. Returns whether all of them did.
pub async fn serve<S, B>(
    listener: TcpListener,
    answers: S,
    bounds: Bounds,
    threads: Threads,
    stop: CancellationToken,
    drain: Duration,
) -> bool
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    B: HttpBody<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(bounds.connections_max));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.headers_max)
        // Not `pipeline_flush`: it keeps back an answer for as long as something
        // unread lies behind the request, so also one that refuses a bad head.
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        // It stands for the clocks that HTTP/1 has: who sends half a head of many
        // frames can't answer a ping between them.
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(250);
    let graceful = GracefulShutdown::new();
    // Held by each connection until something of it was read.
    let (silent, mut all_heard) = mpsc::channel::<Infallible>(1);
    let take = |stream: std::net::TcpStream, place: Option<OwnedSemaphorePermit>| {
        let (builder, answers, watcher) = (builder.clone(), answers.clone(), graceful.watcher());
        let silent = silent.clone();
        threads.spawn(async move {
            // From here on this thread's runtime watches it.
            let stream = match TcpStream::from_std(stream) {
                Ok(stream) => stream,
                Err(error) => return tracing::warn!(%error, "can't serve a connection"),
            };
            let stream = Paced::new(stream, bounds.headers_max, bounds.send_max, silent);
            let service = TowerToHyperService::new(answers);
            let (stream, service) = raw_target::accept(stream, service);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(place);
        });
    };
    loop {
        let place = async {
            // Never closed, so there is always one at last.
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            () = stop.cancelled() => break,
            (place, accepted) = place => match accepted.and_then(unwatched) {
                Ok(stream) => (place, stream),
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to close.
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        take(stream, place.ok());
    }
    // Who is connected to this end already has perhaps sent its request.
    if let Ok(listener) = listener.into_std() {
        while let (Ok(place), Ok((stream, _))) =
            (places.clone().try_acquire_owned(), listener.accept())
        {
            let _ = stream.set_nodelay(true);
            if stream.set_nonblocking(true).is_ok() {
                take(stream, Some(place));
            }
        }
    }
    drop(silent);
    let finished = async {
        // A connection is cut off where nothing of it was read, or nothing since its last
        // answer: a request may be there that was not read yet.
        let heard = tokio::time::timeout(bounds.silent_max, all_heard.recv());
        let _ = tokio::join!(heard, tokio::time::sleep(LAST_READ));
        graceful.shutdown().await;
    };
    tokio::time::timeout(drain, finished).await.is_ok()
}

/// An accepted connection, without the runtime that accepted it.
fn unwatched((stream, _): (TcpStream, SocketAddr)) -> std::io::Result<std::net::TcpStream> {
    // A client that is gone already says so when it is read from.
    let _ = stream.set_nodelay(true);
    stream.into_std()
}

/// Compresses larger bodies by zstd, br or gzip, whichever the client prefers.
///
/// Around the one service and not as layers of axum's router, each of which
/// would box every request and answer anew.
fn compressed<S>(
    answers: S,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = S::Error, Future: Send> + Clone
where
    S: Service<Request<Incoming>, Response = Response<Body>, Future: Send> + Clone,
{
    let answers = MapResponse::new(answers, set_range_aside);
    let answers = Compression::new(answers)
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESSED_BYTES_MIN));
    MapResponse::new(answers, finish)
}

/// The `Content-Range` of an answer while it is being compressed.
#[derive(Clone)]
struct RowRange(HeaderValue);

/// The compression layer leaves answers with a `Content-Range` alone, as it
/// must for ranges of bytes. Ours counts rows, and every list has one.
fn set_range_aside(mut response: Response<Body>) -> Response<Body> {
    if response.body().size_hint().lower() >= u64::from(COMPRESSED_BYTES_MIN)
        && let Some(range) = response.headers_mut().remove(header::CONTENT_RANGE)
    {
        response.extensions_mut().insert(RowRange(range));
    }
    response
}

fn finish(response: Response<CompressionBody<Body>>) -> Response<Body> {
    // The body has room for a compression's state, kilobytes that hyper would move
    // about from here on: of a plain one only what is in it goes on.
    let mut response = match response.headers().contains_key(header::CONTENT_ENCODING) {
        true => response.map(Body::new),
        false => response.map(CompressionBody::into_inner),
    };
    if let Some(RowRange(range)) = response.extensions_mut().remove() {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    if response.status() == StatusCode::NOT_MODIFIED {
        // The copy was sent with it, where it was large.
        let coding = HeaderValue::from_static("accept-encoding");
        response.headers_mut().append(header::VARY, coding);
    }
    tag_coding(response.headers_mut());
    response
}

/// Bytes in another coding are another representation: it has a tag of its own.
fn tag_coding(headers: &mut HeaderMap) {
    let coding = headers.get(header::CONTENT_ENCODING);
    let coding = coding.and_then(|coding| coding.to_str().ok());
    let coded = coding.and_then(|coding| tag::coded(headers.get(header::ETAG)?, coding));
    if let Some(coded) = coded {
        headers.insert(header::ETAG, coded);
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        connections_max: 100,
        headers_max: Duration::from_secs(10),
        send_max: Duration::from_secs(10),
        silent_max: Duration::from_secs(60),
    };

    async fn answer(body_bytes: usize, accept_encoding: &str) -> reqwest::Response {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let list =
            move || async move { ([(header::CONTENT_RANGE, "0-19/*")], "a".repeat(body_bytes)) };
        let routes = compressed(list.with_state(()));
        tokio::spawn(serve(
            listener,
            routes,
            BOUNDS,
            Threads::here(),
            CancellationToken::new(),
            Duration::ZERO,
        ));
        reqwest::Client::new()
            .get(format!("http://{address}/"))
            .header(header::ACCEPT_ENCODING, accept_encoding)
            .send()
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn lists_are_compressed_as_asked_and_keep_their_range() {
        for encoding in ["zstd", "br", "gzip"] {
            let answer = answer(20_000, encoding).await;
            assert_eq!(answer.headers()[header::CONTENT_ENCODING], encoding);
            assert_eq!(answer.headers()[header::CONTENT_RANGE], "0-19/*");
            assert_eq!(answer.headers()[header::VARY], "accept-encoding");
            assert!(answer.bytes().await.unwrap().len() < 1_000);
        }
    }

    #[tokio::test]
    async fn small_bodies_and_clients_that_did_not_ask_get_plain_bytes() {
        for (bytes, encoding) in [(500, "zstd, br, gzip"), (20_000, "identity")] {
            let answer = answer(bytes, encoding).await;
            assert!(!answer.headers().contains_key(header::CONTENT_ENCODING));
            assert_eq!(answer.headers()[header::CONTENT_RANGE], "0-19/*");
            assert_eq!(answer.bytes().await.unwrap().len(), bytes);
        }
    }

    /// A listener whose clients have 200 ms for whatever they do, and so many places.
    async fn strict(places: usize) -> SocketAddr {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounds = Bounds {
            connections_max: places,
            headers_max: Duration::from_millis(200),
            send_max: Duration::from_millis(200),
            silent_max: Duration::ZERO,
        };
        let large = || async { vec![b'a'; LARGE] };
        let routes = Router::new()
            .route("/large", axum::routing::get(large))
            .fallback(|| async { "here" });
        let stop = CancellationToken::new();
        let here = Threads::here();
        tokio::spawn(serve(listener, routes, bounds, here, stop, Duration::ZERO));
        address
    }

    /// More than fits the two sockets' buffers.
    const LARGE: usize = 64 << 20;
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// What is read until the other side closes, or for so long.
    async fn heard(stream: &mut TcpStream, within: Duration) -> Option<String> {
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        let closed = tokio::time::timeout(within, read).await;
        closed.ok().map(|_| text)
    }

    /// Whoever sends this and no more is cut off, and another gets its place.
    async fn holds_no_place(beginning: &[u8]) {
        let address = strict(2).await;
        let mut slow = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(beginning).await.unwrap();
            slow.push(stream);
        }
        // The third waits for a place, and gets it.
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 12];
        let read = third.read_exact(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        read.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        for stream in &mut slow {
            assert!(heard(stream, Duration::from_secs(10)).await.is_some());
        }
    }

    #[tokio::test]
    async fn slow_headers_are_cut_off_and_hold_no_place() {
        holds_no_place(b"GET / HTTP/1.1\r\nhost: ").await;
    }

    #[tokio::test]
    async fn who_says_nothing_or_half_of_http2s_first_words_holds_no_place() {
        for beginning in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            holds_no_place(beginning).await;
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_is_cut_off() {
        let address = strict(1).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let request = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n";
        idle.write_all(request).await.unwrap();
        // Another gets its place.
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 12];
        let read = other.read_exact(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        read.unwrap().unwrap();
        let mut taken = Vec::new();
        let read = idle.read_to_end(&mut taken);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(read.is_ok() && taken.len() < LARGE);
    }

    /// A proxy that has connected may need a while until it sends.
    #[tokio::test]
    async fn who_is_connected_when_the_listener_closes_is_answered() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let mut late = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (routes, stop) = (
            Router::new().fallback(|| async { "here" }),
            CancellationToken::new(),
        );
        stop.cancel();
        let drain = Duration::from_secs(60);
        let server = serve(listener, routes, BOUNDS, Threads::here(), stop, drain);
        let server = tokio::spawn(server);
        tokio::time::sleep(Duration::from_millis(100)).await;
        late.write_all(REQUEST).await.unwrap();
        let answer = heard(&mut late, Duration::from_secs(60)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(server.await.unwrap());
    }

    /// HTTP/2 without a word of HTTP/1 before.
    #[tokio::test]
    async fn who_speaks_http2_is_answered() {
        let stream = TcpStream::connect(strict(2).await).await.unwrap();
        let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut client, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("http://x/").body(axum::body::Body::empty());
        let answer = client.send_request(request.unwrap()).await.unwrap();
        assert_eq!(answer.version(), http::Version::HTTP_2);
        assert_eq!(answer.status(), StatusCode::OK);
    }
}
