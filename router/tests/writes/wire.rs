//! What a request may not be or take, and what every answer carries.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::service::{Reply, Service};

pub(crate) async fn a_deadline_stops_the_query_on_the_server(service: &Service) {
    service
        .sql
        .batch_execute(
            "create function slow() returns trigger language plpgsql as
               $$ begin perform pg_sleep(60); return new; end $$;
             create trigger slow before insert or update on companies for each row
               when (new.name = 'Slow') execute function slow();
             create function public.sleep() returns int language sql volatile as
               $$ select 1 from pg_sleep(60) $$",
        )
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while service.send("OPTIONS", "rpc/sleep", &[], "").await.status == 404 {
        assert!(Instant::now() < deadline, "the new function is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let rows = r#"[{"name": "Quick"}, {"name": "Slow"}]"#;
    for (method, path, body) in [
        ("POST", "companies", rows),
        ("PATCH", "companies?id=in.(1,2)", r#"{"name": "Slow"}"#),
        ("GET", "rpc/sleep", ""),
        ("POST", "rpc/sleep", "{}"),
    ] {
        let stopped = service
            .send(method, path, &[("idempotency-key", path)], body)
            .await;
        assert_eq!(
            (stopped.status, &*stopped.code()),
            (504, "57014"),
            "{method} {path}"
        );
        service
            .until("select count(*) = 0 from pg_stat_activity where wait_event = 'PgSleep'")
            .await;
    }
    let written = "select count(*) = 0 from companies where name in ('Quick', 'Slow')";
    service.until(written).await;
    service
        .until("select count(*) = 0 from ringfence.idempotency")
        .await;
}

pub(crate) async fn slow_bodies_end(service: &Service) {
    let key = service.cluster.key("acme").unwrap();
    let mut stream = connect(service).await;
    let head = format!(
        "POST /rest/v1/companies HTTP/1.1\r\nhost: x\r\napikey: {key}\r\ncontent-length: 100\r\n\r\n{{\"na"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("RF022"), "{answer}");
}

pub(crate) async fn sizes_and_numbers_are_bounded(service: &Service) {
    let get = async |query: &str| {
        let reply = service
            .send("GET", &format!("companies?{query}"), &[], "")
            .await;
        (
            reply.status,
            reply.code(),
            reply.json()["details"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let many = |one: &str, count: usize, joiner: &str| vec![one; count].join(joiner);
    let too_many = |query: String| async move {
        let (status, code, details) = get(&query).await;
        assert_eq!((status, &*code), (400, "PGRST100"), "{query:.60}");
        assert!(details.starts_with("At most "), "{details}");
    };
    too_many(many("id=eq.1", 301, "&")).await;
    too_many(format!("or=({})", many("id.eq.1", 301, ","))).await;
    too_many(format!(
        "or=({}id.eq.1{})",
        "and(".repeat(21),
        ")".repeat(21)
    ))
    .await;
    too_many(format!(
        "select={}id{}",
        "parent:companies(".repeat(21),
        ")".repeat(21)
    ))
    .await;
    too_many(format!("select={}", many("contacts(id)", 51, ","))).await;
    too_many(format!("order={}", many("id", 51, ","))).await;
    too_many(format!("select=address{}", "->a".repeat(51))).await;
    let long = format!("name=eq.{}", "x".repeat(61 << 10));
    assert_eq!(get(&long).await.0, 414);

    let mut head = b"GET /rest/v1/companies HTTP/1.1\r\nhost: x\r\nx-long: ".to_vec();
    head.resize(132 << 10, b'x');
    let mut stream = connect(service).await;
    stream.write_all(&head).await.unwrap();
    // The answer's first bytes: the server resets the connection behind it.
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431 ");
    let body = format!(r#"{{"name": "{}"}}"#, "x".repeat(100_000));
    let refused = service.send("POST", "companies", &[], &body).await;
    assert_eq!((refused.status, &*refused.code()), (413, "PGRST102"));
}

/// By the router's own bound, or as PostgREST answers Postgres' stack's.
fn too_deep(refused: &Reply) -> bool {
    matches!(
        (refused.status, &*refused.code()),
        (400, _) | (413, "54001")
    )
}

/// Postgres' own stack is the bound here; it must not look like a fault of ours.
pub(crate) async fn deep_values_are_refused(service: &Service) {
    let deep = "[".repeat(30_000);
    for (path, body) in [
        (
            "companies",
            format!(r#"{{"name": "Deep", "address": {deep}}}"#),
        ),
        (
            "companies?columns=name,address",
            format!(r#"{{"name": "Deep", "address": {deep}}}"#),
        ),
        (
            "companies",
            format!(r#"{{"name": "Deep", "address": "{deep}"}}"#),
        ),
    ] {
        let refused = service.send("POST", path, &[], &body).await;
        assert!(too_deep(&refused), "{path}: {refused:?}");
    }
    let refused = service
        .send("GET", &format!("companies?address=eq.{deep}"), &[], "")
        .await;
    assert!(too_deep(&refused), "{refused:?}");
    let nul = service
        .send("POST", "companies", &[], r#"{"name": "\u0000"}"#)
        .await;
    assert_eq!(nul.status, 400, "{nul:?}");
    assert_eq!(service.companies("Deep").await, 0);
}

pub(crate) async fn requests_are_traced(service: &Service) {
    let own = service
        .send(
            "GET",
            "companies?limit=1",
            &[("x-request-id", "mine-1")],
            "",
        )
        .await;
    assert_eq!(own.header("x-request-id"), "mine-1");
    stages_are_told(
        &own,
        &["auth", "parse", "plan", "pool", "transaction", "response"],
    );
    let one = service.send("GET", "nothing", &[], "").await;
    let two = service
        .send("GET", "nothing", &[("x-request-id", &*"x".repeat(65))], "")
        .await;
    assert_eq!(one.status, 404);
    stages_are_told(&one, &["auth", "parse"]);
    let ids = [one.header("x-request-id"), two.header("x-request-id")];
    assert!(
        ids[0] != ids[1] && ids.iter().all(|id| (3..40).contains(&id.len())),
        "{ids:?}"
    );
}

fn stages_are_told(reply: &Reply, stages: &[&str]) {
    let timing = reply.header("server-timing");
    for stage in stages {
        let told = timing
            .split(", ")
            .find_map(|one| one.strip_prefix(stage)?.strip_prefix(";dur="));
        let told: f64 = told
            .unwrap_or_else(|| panic!("{stage}: {timing}"))
            .parse()
            .unwrap();
        assert!(told < 20_000.0, "{timing}");
    }
}

/// One connection, HTTP/2 from its first byte, many requests at once.
pub(crate) async fn both_versions_of_http_are_spoken(service: &Service) {
    let stream = TokioIo::new(connect(service).await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .unwrap();
    tokio::spawn(connection);
    let key = service.cluster.key("acme").unwrap();
    let host = service.url.trim_start_matches("http://");
    let mut answers = Vec::new();
    for id in (0..20).map(|number| number % 5 + 1) {
        sender.ready().await.unwrap();
        let request = http::Request::get(format!(
            "http://{host}/rest/v1/companies?id=eq.{id}&select=id"
        ))
        .header("apikey", &key)
        .body(Full::<Bytes>::default())
        .unwrap();
        answers.push((id, sender.send_request(request)));
    }
    for (id, answer) in answers {
        let answer = answer.await.unwrap();
        assert_eq!(
            (answer.version(), answer.status().as_u16()),
            (http::Version::HTTP_2, 200)
        );
        assert!(answer.headers().contains_key("etag"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("[{{\"id\":{id}}}]"));
    }
    let one = service
        .request("GET", "companies?limit=1")
        .send()
        .await
        .unwrap();
    assert_eq!(one.version(), http::Version::HTTP_11);
}

async fn connect(service: &Service) -> TcpStream {
    let address = service.url.trim_start_matches("http://");
    TcpStream::connect(address).await.unwrap()
}
