//! Traces: continued from the caller on, and through to Postgres and to jobs.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use reqwest::Method;
use serde_json::Value;

use crate::receiver::{Seen, hex};
use crate::stage::{SOON, Stage};

const SPAN: &str = "00f067aa0ba902b7";

/// A caller's traceparent in a trace of that number.
fn parent(trace: u128, sampled: bool) -> String {
    format!("00-{trace:032x}-{SPAN}-{:02x}", u8::from(sampled))
}

fn of(trace: u128) -> impl Fn(&Seen) -> bool {
    move |seen| seen.trace() == format!("{trace:032x}")
}

pub(crate) async fn a_callers_trace_goes_on_to_the_shard(stage: &mut Stage) {
    const TRACE: u128 = 0xA1;
    let (https, _, _) = stage.cluster.nginx().unwrap();
    // Through Nginx. What the query string says is told to nobody.
    let request = stage
        .http
        .get(format!(
            "{https}/rest/v1/companies?select=id&limit=1&name=neq.Hidden"
        ))
        .header("apikey", stage.cluster.key("acme").unwrap())
        .header("x-request-id", "traced-1")
        .header("traceparent", parent(TRACE, true))
        .header("tracestate", "vendor=1");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let whole = |seen: &Seen| of(TRACE)(seen) && seen.span.kind() == SpanKind::Server;
    let whole = stage.collector.until(whole).await;
    assert_eq!(whole.span.name, "GET /{relation}");
    assert_eq!(hex(&whole.span.parent_span_id), SPAN);
    assert_eq!(whole.span.trace_state, "vendor=1");
    assert_eq!(whole.service["service.name"], "ringfence-router");
    assert_eq!(whole.service["service.instance.id"], "router-1");
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", "/{relation}"),
        ("url.path", "/rest/v1/companies"),
        ("ringfence.request.id", "traced-1"),
        ("ringfence.shard", "s1"),
    ] {
        assert_eq!(whole.attribute(name), value, "{name}");
    }
    let asked = "select id::text from ringfence.tenant where slug = 'acme'";
    let dsn = stage.cluster.control_dsn();
    let (control, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let tenant: String = control.query_one(asked, &[]).await.unwrap().get(0);
    assert_eq!(whole.attribute("ringfence.tenant.id"), tenant);

    // Stages are below it, within its time, the shard's with its statement.
    let database = |seen: &Seen| of(TRACE)(seen) && seen.span.name == "transaction";
    let database = stage.collector.until(database).await;
    assert_eq!(database.span.kind(), SpanKind::Client);
    assert_eq!(database.attribute("db.system.name"), "postgresql");
    let text = database.attribute("db.query.text");
    assert!(text.contains("\"companies\""), "{text}");
    // Whole: Postgres plans it as it is.
    let shard = stage.cluster.shard_dsn("s1-primary").unwrap();
    let (shard, connection) = tokio_postgres::connect(&shard, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let types = "uuid, bigint, text, text[]";
    let explained = format!(
        "prepare traced ({types}) as {text}; explain execute traced (null, null, null, null, null)"
    );
    shard.batch_execute(&explained).await.unwrap();
    for name in ["auth", "parse", "plan", "pool", "response"] {
        let part = |seen: &Seen| of(TRACE)(seen) && seen.span.name == name;
        stage.collector.until(part).await;
    }
    let all: Vec<Seen> = stage
        .collector
        .came
        .iter()
        .filter(|s| of(TRACE)(s))
        .cloned()
        .collect();
    for child in all
        .iter()
        .filter(|seen| seen.span.span_id != whole.span.span_id)
    {
        assert_eq!(child.span.parent_span_id, whole.span.span_id);
        // The two clocks are looked at one after the other.
        let slack = 100_000_000;
        assert!(child.span.start_time_unix_nano + slack >= whole.span.start_time_unix_nano);
        assert!(child.span.end_time_unix_nano <= whole.span.end_time_unix_nano + slack);
    }
    let told = format!("{all:?}");
    assert!(!told.contains("Hidden") && !told.contains(&stage.cluster.key("acme").unwrap()));

    let line = logged(stage, "traced-1").await;
    assert_eq!(line["trace_id"], format!("{TRACE:032x}"));
}

/// The request's line in the router's log.
async fn logged(stage: &Stage, id: &str) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let text = std::fs::read_to_string(&stage.router.log).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let found = { lines }.find(|line: &Value| line["request_id"] == id);
        if let Some(line) = found {
            return line;
        }
        assert!(Instant::now() < deadline, "no line of {id}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn postgres_knows_whose_trace_it_works_for(stage: &Stage) {
    const TRACE: u128 = 0xA2;
    for (name, how) in [("named", "stable"), ("named_writing", "volatile")] {
        let function = format!(
            "create function {name}() returns text language sql {how} as
               $$ select current_setting('application_name') $$"
        );
        stage.sql.batch_execute(&function).await.unwrap();
    }
    let call = |name: &str, traceparent: Option<String>| {
        let path = format!("rpc/{name}");
        let request = match name {
            "named" => stage.get(&path),
            _ => {
                let url = format!("{}/rest/v1/{path}", stage.cluster.router_url(0));
                let key = stage.cluster.key("acme").unwrap();
                stage.http.post(url).header("apikey", key)
            }
        };
        match traceparent {
            Some(parent) => request.header("traceparent", parent),
            None => request,
        }
    };
    let plain = "\"ringfence-router router-1\"";
    for name in ["named", "named_writing"] {
        // The same prepared statement under either name, again and again.
        for _ in 0..3 {
            let traced = stage
                .until(|| call(name, Some(parent(TRACE, true))), 200)
                .await;
            assert_eq!(traced, format!("\"ringfence-router trace={TRACE:032x}\""));
            for other in [None, Some(parent(TRACE, false)), Some("00-x-y-01".into())] {
                assert_eq!(stage.until(|| call(name, other.clone()), 200).await, plain);
            }
        }
    }
}

pub(crate) async fn a_job_has_a_trace_of_its_own(stage: &mut Stage) {
    const TRACE: u128 = 0xA3;
    let request = stage
        .admin(Method::DELETE, "/admin/v1/tenants/initech?confirm=initech")
        .header("traceparent", parent(TRACE, true));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let job: Value = answer.json().await.unwrap();
    let id = job["id"].as_str().unwrap();

    let asked = stage.collector.until(of(TRACE)).await;
    assert_eq!(asked.span.name, "DELETE /admin/v1/tenants/{tenant}");
    assert_eq!(asked.service["service.name"], "ringfence-worker");
    assert_eq!(hex(&asked.span.parent_span_id), SPAN);
    assert!(
        asked.attribute("ringfence.job.ids").contains(id),
        "{asked:?}"
    );

    let trace = id.replace('-', "");
    let root = |seen: &Seen| seen.trace() == trace && seen.span.name == "tenant_delete";
    let root = stage.collector.until(root).await;
    assert_eq!(root.attribute("ringfence.job.object"), "initech");
    let steps = stage
        .collector
        .came
        .iter()
        .filter(|seen| seen.trace() == trace);
    let mut steps = steps
        .filter(|seen| seen.span.span_id != root.span.span_id)
        .peekable();
    assert!(steps.peek().is_some());
    for step in steps {
        assert_eq!(step.span.parent_span_id, root.span.span_id);
        assert!(step.span.name.starts_with("tenant_delete "), "{step:?}");
    }
}

pub(crate) async fn the_last_ones_are_sent_at_the_end(stage: &mut Stage) {
    const TRACE: u128 = 0xA4;
    let request = stage
        .get("companies?limit=1")
        .header("traceparent", parent(TRACE, true));
    assert_eq!(request.send().await.unwrap().status(), 200);
    stage.router.terminate();
    stage.collector.until(of(TRACE)).await;
}

/// What took long is logged with its statement, but for the values in it.
pub(crate) async fn a_slow_request_says_what_it_did(stage: &Stage) {
    stage
        .sql
        .batch_execute(
            "create function dozes(word text) returns text language sql stable as
               $$ select word from pg_sleep(0.3) $$",
        )
        .await
        .unwrap();
    let slow = || stage.get("rpc/dozes?word=hidden-word");
    stage.until(slow, 200).await;
    let answer = slow().header("x-request-id", "slow-1").send().await;
    assert_eq!(answer.unwrap().status(), 200);
    let line = logged(stage, "slow-1").await;
    assert_eq!(line["level"], "WARN", "{line}");
    assert_eq!(line["message"], "slow request");
    let tenant = stage
        .admin(Method::GET, "/admin/v1/tenants/acme")
        .send()
        .await;
    let tenant: Value = tenant.unwrap().json().await.unwrap();
    assert_eq!(line["tenant"], tenant["id"], "{line}");
    assert_eq!(line["shard"], "s1");
    // The shard had most of the time.
    let stages = line["stages_ms"].as_object().unwrap();
    let spent = |stage: &str| stages[stage].as_f64().unwrap();
    assert!(spent("transaction") >= 300.0, "{line}");
    assert!(line["duration_ms"].as_f64().unwrap() >= spent("transaction"));
    assert!(
        line["statement"].as_str().unwrap().contains("dozes"),
        "{line}"
    );
    assert!(!line.to_string().contains("hidden-word"), "{line}");
}
