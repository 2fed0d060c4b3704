//! Requests whose end two readers could see in different places. One that is
//! hidden in another's body must never be done, and what could be read in two
//! ways is refused, by Nginx as by a router alone.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::stage::Stage;

const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A way to say where a request ends.
struct Trick {
    /// For messages.
    name: &'static str,
    /// Headers beside the usual ones.
    headers: &'static str,
    /// The body up to the hidden request.
    body: &'static str,
}

impl Trick {
    fn has_two_ends(&self) -> bool {
        ["Content-Length", "Transfer-Encoding"]
            .iter()
            .all(|name| self.headers.contains(name))
    }
}

const fn trick(name: &'static str, headers: &'static str, body: &'static str) -> Trick {
    Trick {
        name,
        headers,
        body,
    }
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// All of them are refused.
const TRICKS: &[Trick] = &[
    trick(
        "lengths that differ",
        "Content-Length: 2\r\nContent-Length: 400\r\n",
        "{}",
    ),
    trick("a list of lengths", "Content-Length: 2, 400\r\n", "{}"),
    trick("a length with a sign", "Content-Length: +2\r\n", "{}"),
    trick("a length below zero", "Content-Length: -1\r\n", "{}"),
    trick("a length in hexadecimal", "Content-Length: 0x2\r\n", "{}"),
    trick(
        "a length beyond 64 bits",
        "Content-Length: 18446744073709551618\r\n",
        "{}",
    ),
    trick(
        "another coding",
        "Transfer-Encoding: xchunked\r\n",
        "0\r\n\r\n",
    ),
    trick(
        "chunked is not last",
        "Transfer-Encoding: chunked, identity\r\n",
        "0\r\n\r\n",
    ),
    trick(
        "two codings",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "0\r\n\r\n",
    ),
    trick(
        "a space before the colon",
        "Transfer-Encoding : chunked\r\n",
        "0\r\n\r\n",
    ),
    trick("a space in a name", "Content Length: 2\r\n", "{}"),
    trick(
        "a NUL in a value",
        "X-A: a\0b\r\nContent-Length: 2\r\n",
        "{}",
    ),
    trick("a CR in a value", "X-A: a\rContent-Length: 2\r\n", "{}"),
    trick("a chunk's size that is none", CHUNKED, "g\r\n"),
    trick(
        "a chunk's size with a prefix",
        CHUNKED,
        "0x1\r\na\r\n0\r\n\r\n",
    ),
    trick("a chunk's size with a sign", CHUNKED, "-1\r\n"),
    trick(
        "a chunk's size beyond 64 bits",
        CHUNKED,
        "10000000000000001\r\na\r\n0\r\n\r\n",
    ),
    trick(
        "a chunk longer than it says",
        CHUNKED,
        "1\r\naa\r\n0\r\n\r\n",
    ),
];

/// Refused, or read in the one way in which they can be: what is behind their end
/// is the next request of the same client, or the connection ends there.
const ODDITIES: &[Trick] = &[
    trick(
        "length, then chunked",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "2\r\n{}\r\n0\r\n\r\n",
    ),
    trick(
        "chunked, then a length",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "2\r\n{}\r\n0\r\n\r\n",
    ),
    trick(
        "a folded header",
        "X-A: a\r\n b\r\nContent-Length: 2\r\n",
        "{}",
    ),
    trick("a folded length", "Content-Length:\r\n 2\r\n", "{}"),
    trick("a chunk's extension", CHUNKED, "2;a=b\r\n{}\r\n0\r\n\r\n"),
    trick(
        "trailers",
        CHUNKED,
        "2\r\n{}\r\n0\r\nContent-Length: 400\r\n\r\n",
    ),
    trick("a bare LF behind a size", CHUNKED, "2\n{}\r\n0\r\n\r\n"),
    trick("bare LFs behind headers", "Content-Length: 2\n", "{}"),
    trick(
        "equal lengths",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "{}",
    ),
];

fn hidden(stage: &Stage, name: &str) -> String {
    let key = stage.cluster.key("globex").unwrap();
    let body = format!("{{\"name\": \"{name}\"}}");
    format!(
        "POST /rest/v1/companies HTTP/1.1\r\nHost: x\r\napikey: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The visible request writes nothing: acme has no such table.
fn request(stage: &Stage, trick: &Trick, hidden: &str) -> String {
    let key = stage.cluster.key("acme").unwrap();
    format!(
        "POST /rest/v1/no_such_table HTTP/1.1\r\nHost: x\r\napikey: {key}\r\n\
         Content-Type: application/json\r\n{}\r\n{}{hidden}",
        trick.headers, trick.body
    )
}

/// The statuses of what came back, until so many have come or the other side has
/// closed; and whether it has.
async fn speak(address: &str, text: &str, answers: usize) -> (Vec<u16>, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may be closed before all is written.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    loop {
        let mut part = [0; 8192];
        let closed = match timeout(ANSWER_MAX, stream.read(&mut part)).await {
            Ok(Ok(count)) if count > 0 => {
                answer.extend_from_slice(&part[..count]);
                false
            }
            Ok(_) => true,
            Err(_) => return (statuses(&answer), false),
        };
        let statuses = statuses(&answer);
        if closed || statuses.len() >= answers {
            return (statuses, closed);
        }
    }
}

/// Of all answers that have begun.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let answer = String::from_utf8_lossy(answer);
    let answers = answer.split("HTTP/1.1 ").skip(1);
    let status = |rest: &str| rest.get(..3).and_then(|s| s.parse().ok());
    answers.filter_map(status).collect()
}

async fn written(stage: &Stage, name: &str) -> i64 {
    let sql = "select count(*) from companies where name = $1";
    stage.sql.query_one(sql, &[&name]).await.unwrap().get(0)
}

pub(crate) async fn over_http1(stage: &Stage) {
    let (_, _, nginx) = stage.cluster.nginx().unwrap();
    let router = stage.cluster.router_url(0);
    for (to, address) in [("nginx", &nginx), ("router", &router)] {
        let address = address.strip_prefix("http://").unwrap();
        // What is not hidden is done, so that the rest of this means something.
        let name = format!("seen by {to}");
        assert_eq!(speak(address, &hidden(stage, &name), 1).await.0, [201]);
        assert_eq!(written(stage, &name).await, 1);
        let all = TRICKS.iter().chain(ODDITIES);
        let tried = futures_util::future::join_all(all.enumerate().map(|(n, trick)| async move {
            let name = format!("smuggled to {to} {n}");
            let text = request(stage, trick, &hidden(stage, &name));
            let (statuses, closed) = speak(address, &text, 2).await;
            let done = written(stage, &name).await;
            (trick, statuses, closed, done)
        }));
        for (n, (trick, statuses, closed, done)) in tried.await.into_iter().enumerate() {
            let said = format!(
                "{to}, {}: {statuses:?}, closed: {closed}, done: {done}",
                trick.name
            );
            if n < TRICKS.len() {
                assert!(matches!(statuses[..], [400 | 501]), "{said}");
                assert!(closed && done == 0, "{said}");
                continue;
            }
            match statuses[..] {
                [400 | 404] => assert!(closed && done == 0, "{said}"),
                // Behind two ways to say it, nothing may follow (RFC 9112, 6.1).
                [404, 201] if !trick.has_two_ends() => assert_eq!(done, 1, "{said}"),
                _ => panic!("{said}"),
            }
        }
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Headers as literals, so that anything can be said.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0x10);
        for text in [name, value] {
            // HPACK's integer of seven bits.
            let length = text.len();
            match u8::try_from(length) {
                Ok(short) if short < 127 => bytes.push(short),
                _ => {
                    let rest = length - 127;
                    bytes.push(127);
                    match rest < 128 {
                        true => bytes.push(rest as u8),
                        false => bytes.extend([(rest & 127) as u8 | 128, (rest >> 7) as u8]),
                    }
                }
            }
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// What HTTP/2 may not carry, since it would end a request of HTTP/1.1.
pub(crate) async fn over_http2(stage: &Stage) {
    let key = stage.cluster.key("acme").unwrap();
    let (https, _, _) = stage.cluster.nginx().unwrap();
    let nginx = https.strip_prefix("https://").unwrap().to_owned();
    let router = stage.cluster.router_url(0);
    let router = router.strip_prefix("http://").unwrap().to_owned();
    let inner = |name: &str| hidden(stage, name);
    for to in ["nginx", "router"] {
        let name = format!("smuggled to {to} by h2");
        let inner = inner(&name);
        let split = format!("a\r\n\r\n{inner}");
        let path = format!("/rest/v1/no_such_table HTTP/1.1\r\nHost: x\r\n\r\n{inner}");
        let body = format!("0\r\n\r\n{inner}");
        let longer = inner.len().to_string();
        let tricks: [(&str, &str, &str); 7] = [
            ("transfer-encoding", "chunked", &body),
            ("content-length", "0", &inner),
            ("content-length", &longer, "{}"),
            ("x-a", &split, "{}"),
            ("x-a: b\r\nx-b", "c", "{}"),
            ("connection", "keep-alive", "{}"),
            (":path", &path, "{}"),
        ];
        for (header, value, body) in tricks {
            let mut headers = vec![
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", "x"),
                ("apikey", key.as_str()),
                ("content-type", "application/json"),
            ];
            match header {
                ":path" => headers.insert(0, (header, value)),
                _ => {
                    headers.insert(0, (":path", "/rest/v1/no_such_table"));
                    headers.push((header, value));
                }
            }
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            bytes.extend(frame(4, 0, 0, &[]));
            bytes.extend(frame(1, 4, 1, &block(&headers)));
            bytes.extend(frame(0, 1, 1, body.as_bytes()));
            // An answer to this comes behind whatever the request got.
            bytes.extend(frame(6, 0, 0, b"ringfence"[..8].as_ref()));
            let answer = match to {
                "nginx" => over_tls(nginx.clone(), bytes).await,
                _ => plainly(&router, &bytes).await,
            };
            let said = format!("{to}, {header}: {value:?}: {answer:?}");
            assert!(answer.iter().all(|what| *what != What::Success), "{said}");
            // Harmless ones may be passed on without what is wrong with them.
            assert_eq!(written(stage, &name).await, 0, "{said}");
        }
    }
    // And the connection's form is right: this one is answered.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let headers = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/rest/v1/companies?limit=1"),
        (":authority", "x"),
        ("apikey", key.as_str()),
    ];
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 5, 1, &block(&headers)));
    assert!(plainly(&router, &bytes).await.contains(&What::Success));
    let answer = over_tls(nginx, bytes).await;
    assert!(answer.contains(&What::Success), "{answer:?}");
}

/// What a frame says of the request.
#[derive(Debug, PartialEq)]
enum What {
    /// Headers with a status of 2xx.
    Success,
    /// Headers with another.
    Failure,
    Reset,
    GoAway,
}

/// The frames of `bytes` that say something; none of an incomplete one.
fn read_frames(mut bytes: &[u8]) -> Vec<What> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length =
            (usize::from(head[0]) << 16) | (usize::from(head[1]) << 8) | usize::from(head[2]);
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        // A status is the first header, and 200, 204 and 206 have an index each;
        // an update of the table's size may go before it.
        let first = payload.iter().find(|byte| **byte & 0xe0 != 0x20);
        match head[3] {
            1 if matches!(first, Some(0x88..=0x8a)) => all.push(What::Success),
            1 => all.push(What::Failure),
            3 => all.push(What::Reset),
            // Without an error it means that no further request is taken: this one
            // is answered still.
            7 if payload.get(4..8) != Some(&[0; 4]) => all.push(What::GoAway),
            _ => {}
        }
        bytes = rest;
    }
    all
}

/// Whether the frames hold an end: an answer, a refusal.
fn is_over(bytes: &[u8]) -> bool {
    !read_frames(bytes).is_empty()
}

async fn plainly(address: &str, bytes: &[u8]) -> Vec<What> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut part = [0; 8192];
    while !is_over(&answer) {
        match timeout(ANSWER_MAX, stream.read(&mut part)).await {
            Ok(Ok(count)) if count > 0 => answer.extend_from_slice(&part[..count]),
            _ => break,
        }
    }
    let all = read_frames(&answer);
    assert!(!all.is_empty(), "no answer from {address}");
    all
}

/// The same within TLS, which `openssl` speaks for us.
async fn over_tls(address: String, bytes: Vec<u8>) -> Vec<What> {
    let task = tokio::task::spawn_blocking(move || {
        let mut tls = Command::new("openssl")
            .args(["s_client", "-quiet", "-alpn", "h2", "-connect", &address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = tls.stdin.take().unwrap();
        let _ = input.write_all(&bytes);
        let _ = input.flush();
        let mut output = tls.stdout.take().unwrap();
        let mut answer = Vec::new();
        let mut part = [0; 8192];
        while !is_over(&answer) {
            // Nginx closes what says nothing more, so this ends.
            match output.read(&mut part) {
                Ok(count) if count > 0 => answer.extend_from_slice(&part[..count]),
                _ => break,
            }
        }
        let _ = tls.kill();
        let _ = tls.wait();
        answer
    });
    let answer = timeout(ANSWER_MAX * 3, task).await.unwrap().unwrap();
    let all = read_frames(&answer);
    assert!(!all.is_empty(), "no answer from Nginx: {answer:?}");
    all
}
