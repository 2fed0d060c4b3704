//! Clients that dawdle.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::stage::{SOON, Stage};

/// Nginx waits 10 s for what comes next, and by itself a minute; the machine may be slow.
const NGINX_MAX: Duration = Duration::from_secs(40);

/// Connections to Nginx that never send the rest; while they wait, other things
/// are tested.
pub(crate) async fn begin(stage: &Stage) -> Vec<JoinHandle<(Duration, String)>> {
    let (_, _, http) = stage.cluster.nginx().unwrap();
    let address = http.strip_prefix("http://").unwrap().to_owned();
    let headers = "GET /rest/v1/companies HTTP/1.1\r\nHost: x\r\n".to_owned();
    let body =
        "POST /rest/v1/companies HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{".to_owned();
    let open = |text: String| {
        let address = address.clone();
        tokio::spawn(async move {
            let since = Instant::now();
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = timeout(NGINX_MAX * 2, stream.read_to_string(&mut answer)).await;
            let _ = read.expect("it is still open");
            (since.elapsed(), answer)
        })
    };
    vec![open(headers), open(body)]
}

pub(crate) async fn end(dawdlers: Vec<JoinHandle<(Duration, String)>>) {
    for dawdler in dawdlers {
        let (took, answer) = dawdler.await.unwrap();
        assert!(took < NGINX_MAX, "{took:?}: {answer}");
        assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
    }
}

/// A byte now and then doesn't prolong it.
pub(crate) async fn a_slow_body_is_cut_off(stage: &Stage) {
    let url = stage.cluster.router_url(0);
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let key = stage.cluster.key("acme").unwrap();
    let head = format!(
        "POST /rest/v1/companies HTTP/1.1\r\nHost: x\r\napikey: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    );
    let since = Instant::now();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let drip = async {
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let read = async {
        let mut part = [0; 1024];
        while !answer.starts_with(b"HTTP/1.1 408") {
            let count = reading.read(&mut part).await.unwrap();
            assert!(count > 0, "closed without an answer");
            answer.extend_from_slice(&part[..count]);
        }
    };
    tokio::select! {
        read = timeout(SOON, read) => read.expect("no answer"),
        () = drip => {}
    }
    // It is given 1 s here, and takes more than a minute and a half.
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

/// More than the sockets' buffers hold; two of them are more than a router may.
const LARGE: usize = 16 << 20;

pub(crate) async fn answers_that_nobody_takes_are_bounded_together(stage: &Stage) {
    let function = format!(
        "create function large() returns text language sql stable as
           $$ select repeat('x', {LARGE}) $$"
    );
    stage.sql.batch_execute(&function).await.unwrap();
    let ask = || stage.get("rpc/large");
    let whole = stage.until(ask, 200).await;
    assert_eq!(whole.len(), LARGE + 2);
    let url = stage.cluster.router_url(0);
    let address = url.strip_prefix("http://").unwrap();
    let key = stage.cluster.key("acme").unwrap();
    let head = format!("GET /rest/v1/rpc/large HTTP/1.1\r\nHost: x\r\napikey: {key}\r\n\r\n");
    // The router may hold the answer before for a moment yet, and has no room then.
    let deadline = Instant::now() + SOON;
    let dawdler = loop {
        let mut dawdler = TcpStream::connect(address).await.unwrap();
        dawdler.write_all(head.as_bytes()).await.unwrap();
        // Its answer has begun, and it takes no more of it.
        let mut begun = [0; 12];
        dawdler.read_exact(&mut begun).await.unwrap();
        if &begun == b"HTTP/1.1 200" {
            break dawdler;
        }
        let begun = String::from_utf8_lossy(&begun);
        assert!(Instant::now() < deadline, "{begun}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let refused = ask().send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    // Small ones are given, and others again once it is gone.
    stage.until(|| stage.get("companies?limit=1"), 200).await;
    drop(dawdler);
    stage.until(ask, 200).await;
}
