//! Spans, reports and profiles, as servers get them.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod receiver;

use std::time::{Duration, SystemTime};

use receiver::{Collector, Sentry, hex};
use telemetry::fault::Fault;
use telemetry::settings::{self, Dsn, Traces};
use telemetry::trace::{KeyValue, Parent, Span, SpanKind};
use telemetry::{Service, Telemetry};
use tokio::time::Instant;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn start(traces: Traces, dsn: Option<Dsn>) -> Telemetry {
    let service = Service {
        name: "tested",
        instance: "tested-1".into(),
        version: "7",
    };
    let sentry = settings::Sentry {
        environment: "tests".into(),
        per_minute_max: 3,
        ..settings::Sentry::default()
    };
    Telemetry::start(&service, &traces, &sentry, dsn).unwrap()
}

fn traces(url: &str, sample_ratio: f64) -> Traces {
    Traces {
        otlp_url: Some(url.to_owned()),
        sample_ratio,
        ..Traces::default()
    }
}

fn span(name: &'static str, failed: Option<&str>) -> Span {
    let ended = SystemTime::now();
    Span {
        name: name.into(),
        kind: SpanKind::Server,
        started: ended - Duration::from_millis(20),
        ended,
        attributes: vec![KeyValue::new("a", 1)],
        failed: failed.map(str::to_owned),
    }
}

#[tokio::test]
async fn spans_arrive_below_their_parent_also_those_of_the_last_moment() {
    let mut collector = Collector::start().await;
    let telemetry = start(traces(&collector.url, 1.0), None);
    let tracer = telemetry.tracer.clone();
    let place = tracer.begin(Parent::parse(PARENT, Some("a=b"))).unwrap();
    let child = Span {
        kind: SpanKind::Internal,
        ..span("child", None)
    };
    tracer.end(&place, span("whole", Some("XX000")), [child]);
    let began = Instant::now();
    telemetry.finish(Duration::from_secs(10)).await;
    assert!(began.elapsed() < Duration::from_secs(8));

    let whole = collector.until(|seen| seen.span.name == "whole").await;
    assert_eq!(whole.service["service.name"], "tested");
    assert_eq!(whole.service["service.instance.id"], "tested-1");
    assert_eq!(whole.trace(), &PARENT[3..35]);
    assert_eq!(hex(&whole.span.parent_span_id), &PARENT[36..52]);
    assert_eq!(hex(&whole.span.span_id), place.span_id().to_string());
    assert_eq!(whole.span.trace_state, "a=b");
    assert_eq!(whole.nanos(), 20_000_000);
    assert_eq!(whole.attribute("a"), "1");
    assert_eq!(whole.span.status.as_ref().unwrap().message, "XX000");
    let child = collector.until(|seen| seen.span.name == "child").await;
    assert_eq!(child.trace(), whole.trace());
    assert_eq!(child.span.parent_span_id, whole.span.span_id);
}

#[tokio::test]
async fn the_draw_and_the_budget_are_kept() {
    let collector = Collector::start().await;
    let telemetry = start(traces(&collector.url, 0.0), None);
    assert!((0..1_000).all(|_| telemetry.tracer.begin(None).is_none()));
    let unsampled = PARENT.replace("-01", "-00");
    let place = telemetry.tracer.begin(Parent::parse(&unsampled, None));
    assert!(!place.unwrap().is_recorded());

    // Whoever asks for it, no more than so many are recorded.
    let few = Traces {
        per_second_max: 5,
        ..traces(&collector.url, 1.0)
    };
    let telemetry = start(few, None);
    let recorded = (0..1_000).filter(|_| {
        let place = telemetry.tracer.begin(Parent::parse(PARENT, None));
        place.unwrap().is_recorded()
    });
    let recorded = recorded.count();
    assert!((2..50).contains(&recorded), "{recorded}");
    // What they leave is the draw's.
    assert!(telemetry.tracer.begin(None).is_some());
}

#[tokio::test]
async fn a_collector_that_hangs_holds_nobody() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let many = Traces {
        per_second_max: 1_000_000,
        ..traces(&url, 1.0)
    };
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new();
    let counted = recorder.install_recorder().unwrap();
    let telemetry = start(many, None);
    let began = Instant::now();
    for _ in 0..5_000 {
        let place = telemetry.tracer.begin(None).unwrap();
        telemetry.tracer.end(&place, span("one", None), []);
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    let counted = counted.render();
    let dropped = "ringfence_telemetry_dropped_total{kind=\"spans\"} ";
    let mut lines = counted.lines();
    let dropped = lines.find_map(|line| line.strip_prefix(dropped)).unwrap();
    assert!(
        dropped.parse::<u64>().unwrap() >= 5_000 - 2 * 1_024,
        "{dropped}"
    );
    // Accepted by the kernel alone.
    let finishes = Instant::now();
    telemetry.finish(Duration::from_millis(300)).await;
    assert!(finishes.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn faults_are_reported_within_their_budget_and_panics_without_what_they_print() {
    let mut sentry = Sentry::start().await;
    let telemetry = start(Traces::default(), Some(Dsn(sentry.dsn.clone())));
    let tracer = telemetry.tracer.clone();
    let place = tracer.begin(Parent::parse(PARENT, None)).unwrap();
    telemetry.faults.report(&Fault {
        code: "XX000",
        what: "something contradicts itself",
        place: "GET relation",
        tags: &[("shard", "s1")],
        trace: Some(&place),
    });
    let (event, _) = sentry.next().await;
    let exception = &event["exception"]["values"][0];
    assert_eq!(exception["type"], "XX000");
    assert_eq!(exception["value"], "something contradicts itself");
    assert_eq!(event["tags"]["shard"], "s1");
    assert_eq!(event["transaction"], "GET relation");
    assert_eq!(event["environment"], "tests");
    assert_eq!(event["server_name"], "tested-1");
    assert_eq!(event["release"], "tested@7");
    assert_eq!(event["contexts"]["trace"]["trace_id"], &PARENT[3..35]);

    telemetry.faults.report_panics();
    let row = "the row's secret".to_owned();
    let panics = std::thread::spawn(move || panic!("a row: {row}"));
    assert!(panics.join().is_err());
    let (event, all) = sentry.next().await;
    assert!(!all.contains("secret"), "{all}");
    assert_eq!(event["level"], "fatal");
    assert_eq!(event["exception"]["values"][0]["type"], "panic");
    let place = event["transaction"].as_str().unwrap();
    assert!(place.contains("delivery.rs:"), "{place}");
    let frames = &event["exception"]["values"][0]["stacktrace"]["frames"];
    let functions = frames.as_array().unwrap().iter();
    let mut functions = functions.filter_map(|frame| frame["function"].as_str());
    assert!(functions.any(|name| name.contains("delivery")), "{frames}");

    // Of a flood as many come as may: one more, here.
    for _ in 0..100 {
        telemetry.faults.report(&Fault {
            code: "XX000",
            what: "flood",
            place: "",
            tags: &[],
            trace: None,
        });
    }
    telemetry.finish(Duration::from_secs(10)).await;
    assert_eq!(sentry.left(), 1);
}

#[test]
fn a_dsn_that_is_none_is_refused_without_being_shown() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _in = runtime.enter();
    let service = Service {
        name: "tested",
        instance: String::new(),
        version: "7",
    };
    let refused = Telemetry::start(
        &service,
        &Traces::default(),
        &settings::Sentry::default(),
        Some(Dsn("https://thekey@host".into())),
    );
    let error = refused.err().unwrap().to_string();
    assert!(
        error.contains("DSN") && !error.contains("thekey"),
        "{error}"
    );
}

/// The status and the bytes of a request for a profile.
async fn ask(query: &str) -> (u16, Vec<u8>) {
    let base = receiver::serve(telemetry::profile::routes()).await;
    let answer = reqwest::get(format!("{base}/debug/pprof/profile{query}"))
        .await
        .unwrap();
    let status = answer.status().as_u16();
    (status, answer.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn profiles_of_no_time_and_of_too_long_a_time_are_refused() {
    for query in [
        "?seconds=0",
        "?seconds=61",
        "?seconds=-1",
        "?seconds=x",
        "?second=1",
    ] {
        let (status, why) = ask(query).await;
        assert_eq!(status, 400, "{query}: {}", String::from_utf8_lossy(&why));
    }
}
