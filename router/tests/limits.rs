//! What tenants may use, on real servers: set by the admin API, kept by every router.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::{Duration, Instant};

use ops::local::{Cluster, Options};
use reqwest::{Client, Response};
use serde_json::{Value, json};

struct Service {
    cluster: Cluster,
    http: Client,
}

impl Service {
    async fn start(routers: u16) -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(routers),
            ..Options::default()
        });
        Self {
            cluster: cluster.await.unwrap(),
            http: Client::new(),
        }
    }

    async fn get(&self, router: usize, tenant: &str, path: &str) -> Response {
        let url = format!("{}/rest/v1/{path}", self.cluster.router_url(router));
        let request = self.http.get(url);
        let request = request.header("apikey", self.cluster.key(tenant).unwrap());
        request.send().await.unwrap()
    }

    /// The function `nap`, which takes four seconds, and a session on the shard.
    async fn add_nap(&self) -> tokio_postgres::Client {
        let dsn = self.cluster.shard_dsn("s1-primary").unwrap();
        let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(
                "create function public.nap() returns int language sql volatile as
                   $$ select 1 from pg_sleep(4) $$",
            )
            .await
            .unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while self.knows_not("rpc/nap").await {
            assert!(Instant::now() < until, "the function is not seen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client
    }

    async fn knows_not(&self, path: &str) -> bool {
        let url = format!("{}/rest/v1/{path}", self.cluster.router_url(0));
        let request = self.http.request(reqwest::Method::OPTIONS, url);
        let request = request.header("apikey", self.cluster.key("acme").unwrap());
        request.send().await.unwrap().status() == 404
    }

    async fn admin(&self, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/admin/v1{path}", self.cluster.admin_url());
        let request = self.http.post(url).json(body);
        let request = request.bearer_auth(self.cluster.admin_token());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    async fn ask(&self, path: &str) -> Value {
        let url = format!("{}/admin/v1{path}", self.cluster.admin_url());
        let request = self.http.get(url);
        let request = request.bearer_auth(self.cluster.admin_token());
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn limit(&self, tenant: &str, limits: Value) {
        let path = format!("/tenants/{tenant}/limits");
        let (status, answer) = self.admin(&path, &json!({ "limits": limits })).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Statuses of `count` requests one after another, and the time that each took.
    async fn statuses(&self, tenant: &str, count: usize) -> (Vec<u16>, Vec<Duration>) {
        let mut statuses = Vec::with_capacity(count);
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            let started = Instant::now();
            let answer = self.get(0, tenant, "companies?limit=1").await;
            statuses.push(answer.status().as_u16());
            took.push(started.elapsed());
        }
        (statuses, took)
    }

    /// How long it takes until a request of the tenant is answered so.
    async fn until(&self, router: usize, tenant: &str, path: &str, wanted: u16) -> Duration {
        let started = Instant::now();
        loop {
            let status = self.get(router, tenant, path).await.status().as_u16();
            if status == wanted {
                return started.elapsed();
            }
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "still {status}, not {wanted}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn header(answer: &Response, name: &str) -> String {
    let value = answer.headers().get(name);
    value.map_or("", |v| v.to_str().unwrap()).to_owned()
}

fn count(statuses: &[u16], wanted: u16) -> usize {
    statuses.iter().filter(|status| **status == wanted).count()
}

#[tokio::test]
async fn a_tenants_limits_are_its_own_and_count_at_once() {
    let service = Service::start(1).await;
    let free = service.get(0, "acme", "companies?limit=1").await;
    assert_eq!(header(&free, "ratelimit"), "");

    requests_a_second(&service).await;
    plans(&service).await;
    what_cannot_be_meant_is_refused(&service).await;
    rows_and_bytes(&service).await;
    time_and_concurrency(&service).await;
    time_of_all(&service).await;
    life(&service).await;
    usage(&service).await;
    audit(&service).await;
    service.cluster.down().await;
}

async fn requests_a_second(service: &Service) {
    let limits = json!({ "requests_per_second": 10, "burst": 5 });
    service.limit("acme", limits).await;
    service.until(0, "acme", "companies?limit=1", 429).await;
    let (statuses, took) = service.statuses("acme", 200).await;
    // The bucket's five, and what comes back in the meantime, with some leeway.
    let all: Duration = took.iter().sum();
    let most = 6.0 + 10.0 * all.as_secs_f64();
    let served = count(&statuses, 200);
    // Asked faster than that, and served as far as it goes: in whole requests, of which
    // a slow one is one.
    let came: f64 = took.iter().map(|t| (10.0 * t.as_secs_f64()).min(1.0)).sum();
    let least = (came * 0.8 - 1.0).floor();
    assert!(most < 190.0, "200 requests took {all:?}");
    assert!(
        (least..=most).contains(&(served as f64)),
        "{served} in {all:?}"
    );
    assert_eq!(served + count(&statuses, 429), 200);
    let refused = loop {
        let answer = service.get(0, "acme", "companies?limit=1").await;
        if answer.status() == 429 {
            break answer;
        }
        let left = header(&answer, "ratelimit");
        assert!(left.starts_with("\"requests\";r="), "{left}");
        assert_eq!(header(&answer, "ratelimit-policy"), "\"requests\";q=5;w=1");
    };
    assert_eq!(header(&refused, "retry-after"), "1");
    assert_eq!(header(&refused, "ratelimit"), "\"requests\";r=0;t=1");
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["code"], "RF050");
    // Others don't notice.
    let (others, _) = service.statuses("globex", 50).await;
    assert_eq!(count(&others, 200), 50);
    service
        .limit(
            "acme",
            json!({ "requests_per_second": null, "burst": null }),
        )
        .await;
    let mut free = 0;
    let until = Instant::now() + Duration::from_secs(60);
    while free < 30 {
        assert!(Instant::now() < until, "the limit stays");
        let answer = service.get(0, "acme", "companies?limit=1").await;
        free = if answer.headers().contains_key("ratelimit") {
            0
        } else {
            free + 1
        };
    }
}

/// A plan's limits are its tenants', a tenant's own come first, and a plan
/// that changes counts for all of them.
async fn plans(service: &Service) {
    let plan = json!({ "limits": { "rows": 2 } });
    assert_eq!(service.admin("/plans/small", &plan).await.0, 200);
    let path = "/tenants/globex/limits";
    let (status, limits) = service.admin(path, &json!({ "plan": "small" })).await;
    assert_eq!((status, &limits["limits"]), (200, &json!({ "rows": 2 })));
    rows_become(service, "globex", 2).await;
    let plan = json!({ "limits": { "rows": 3 } });
    service.admin("/plans/small", &plan).await;
    rows_become(service, "globex", 3).await;
    service.limit("globex", json!({ "rows": 1 })).await;
    rows_become(service, "globex", 1).await;
    assert_eq!(service.admin(path, &json!({ "plan": "none" })).await.0, 404);
    let own = json!({ "plan": "default", "limits": { "rows": null } });
    assert_eq!(service.admin(path, &own).await.0, 200);
    rows_become(service, "globex", 10).await;
}

/// Waits until a read of ten rows shows so many.
async fn rows_become(service: &Service, tenant: &str, wanted: usize) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = service.get(0, tenant, "contacts?limit=10&select=id").await;
        let rows: Vec<Value> = answer.json().await.unwrap();
        if rows.len() == wanted {
            return;
        }
        assert!(Instant::now() < until, "{} rows, not {wanted}", rows.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn what_cannot_be_meant_is_refused(service: &Service) {
    for (body, why) in [
        (json!({ "limits": { "rows": 0 } }), "above 0"),
        (json!({ "limits": { "rows": "many" } }), "whole number"),
        (json!({ "limits": { "row": 1 } }), "no limit"),
        (json!({ "limit": {} }), "unknown field"),
    ] {
        let (status, answer) = service.admin("/tenants/acme/limits", &body).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{body}");
        assert!(message.contains(why), "{message}");
    }
}

async fn rows_and_bytes(service: &Service) {
    let limits = json!({ "response_bytes": 2_000, "request_bytes": 100 });
    service.limit("acme", limits).await;
    service.until(0, "acme", "contacts?limit=500", 422).await;
    service.until(0, "acme", "contacts?limit=1", 200).await;
    let url = format!("{}/rest/v1/companies", service.cluster.router_url(0));
    let request = service
        .http
        .post(url)
        .json(&json!({ "name": "x".repeat(200) }));
    let request = request.header("apikey", service.cluster.key("acme").unwrap());
    assert_eq!(request.send().await.unwrap().status(), 413);
    a_write_is_bounded_by_what_it_would_answer(service).await;
    let limits = json!({ "response_bytes": null, "request_bytes": null });
    service.limit("acme", limits).await;
    service.until(0, "acme", "contacts?limit=500", 200).await;
}

/// More than the two thousand bytes of [`rows_and_bytes`] are not answered, and then
/// neither are they written; without them the same is.
async fn a_write_is_bounded_by_what_it_would_answer(service: &Service) {
    let limits = json!({ "request_bytes": null });
    service.limit("acme", limits).await;
    let send = async |prefer: &str, key: Option<&str>| {
        let url = format!("{}/rest/v1/companies", service.cluster.router_url(0));
        let rows: Vec<Value> = (0..20)
            .map(|n| json!({ "name": format!("Bounded {n} {}", "x".repeat(150)) }))
            .collect();
        let request = service.http.post(url).json(&rows).header("prefer", prefer);
        let request = request.header("apikey", service.cluster.key("acme").unwrap());
        let request = match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap_or_default())
    };
    // A router hears of the limits in its own time.
    let written = async || {
        let read = "companies?select=id&limit=100&name=like.Bounded*";
        let read = service.get(0, "acme", read).await;
        read.json::<Vec<Value>>().await.unwrap().len()
    };
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match send("return=minimal", None).await {
            (201, _) => break,
            (status, said) => assert!(Instant::now() < until, "{status}: {said}"),
        }
    }
    assert_eq!(written().await, 20);
    for key in [None, Some("bounded")] {
        let (status, said) = send("return=representation", key).await;
        assert_eq!((status, &said["code"]), (422, &json!("RF052")), "{said}");
        assert_eq!(written().await, 20);
    }
    assert_eq!(send("return=minimal", Some("bounded-2")).await.0, 201);
    assert_eq!(written().await, 40);
}

const ASLEEP: &str = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";

/// A statement of four seconds is stopped after half of one, on the shard too;
/// and while it runs there is no second one.
async fn time_and_concurrency(service: &Service) {
    let shard = service.add_nap().await;
    let limits = json!({ "statement_ms": 500, "concurrency": 1 });
    service.limit("acme", limits).await;
    service.until(0, "acme", "rpc/nap", 504).await;
    let until = Instant::now() + Duration::from_secs(60);
    let mut quickest = Duration::MAX;
    loop {
        let began = Instant::now();
        let pair = tokio::join!(
            service.get(0, "acme", "rpc/nap"),
            service.get(0, "acme", "rpc/nap"),
        );
        quickest = quickest.min(began.elapsed());
        let mut answers = Vec::new();
        for answer in [pair.0, pair.1] {
            let status = answer.status().as_u16();
            if status == 429 {
                let policy = "\"concurrency\";q=1;qu=\"concurrent-requests\"";
                assert_eq!(header(&answer, "ratelimit-policy"), policy);
                assert_eq!(header(&answer, "ratelimit"), "\"concurrency\";r=0;t=1");
                assert_eq!(header(&answer, "retry-after"), "1");
            }
            let body: Value = answer.json().await.unwrap();
            answers.push((status, body["code"].as_str().unwrap().to_owned()));
        }
        answers.sort();
        let stopped = (504, "57014".to_owned());
        if answers == [(429, "RF051".to_owned()), stopped.clone()] {
            break;
        }
        // On a busy machine they may not have met.
        assert_eq!(answers, [stopped.clone(), stopped]);
        assert!(Instant::now() < until, "they never meet");
    }
    // Not after the whole four.
    assert!(quickest < Duration::from_millis(3_500), "{quickest:?}");
    let until = Instant::now() + Duration::from_secs(3);
    while shard.query_one(ASLEEP, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(Instant::now() < until, "it goes on on the shard");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let limits = json!({ "statement_ms": null, "concurrency": null });
    service.limit("acme", limits).await;
}

/// After a statement of half a second, at a fifth of a connection, none begins for
/// a while; others don't notice.
async fn time_of_all(service: &Service) {
    let limits = json!({ "statement_ms": 500, "shard_ms_per_second": 200 });
    service.limit("acme", limits).await;
    // Counts once the router knows of it.
    let until = Instant::now() + Duration::from_secs(60);
    let mut took = Duration::ZERO;
    let (refused, quick) = loop {
        let started = Instant::now();
        let answer = service.get(0, "acme", "rpc/nap").await;
        if answer.status() == 429 {
            let quick = service.get(0, "acme", "companies?limit=1").await;
            // Its time may come back just between the two.
            if quick.status() == 429 {
                break (answer, quick);
            }
        } else {
            took = started.elapsed();
        }
        assert!(Instant::now() < until, "its time does not end");
    };
    let wait: u64 = header(&refused, "retry-after").parse().unwrap();
    // Five seconds for one, in whole ones.
    let most = (5.0 * took.as_secs_f64()).ceil() as u64;
    assert!((1..=most).contains(&wait), "{wait} s after {took:?}");
    let policy = "\"shard-time\";q=200;qu=\"milliseconds\";w=1";
    assert_eq!(header(&refused, "ratelimit-policy"), policy);
    let left = format!("\"shard-time\";r=0;t={wait}");
    assert_eq!(header(&refused, "ratelimit"), left);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["code"], "RF053");
    assert_eq!(quick.status(), 429);
    let (others, _) = service.statuses("globex", 5).await;
    assert_eq!(count(&others, 200), 5);
    tokio::time::sleep(Duration::from_secs(wait)).await;
    service.until(0, "acme", "companies?limit=1", 200).await;
    let limits = json!({ "statement_ms": null, "shard_ms_per_second": null });
    service.limit("acme", limits).await;
}

/// Suspended tenants get 403, also at once.
async fn life(service: &Service) {
    let path = "/tenants/initech/suspend";
    assert_eq!(service.admin(path, &json!({})).await.0, 200);
    service.until(0, "initech", "companies?limit=1", 403).await;
    service.admin("/tenants/initech/resume", &json!({})).await;
    service.until(0, "initech", "companies?limit=1", 200).await;
}

/// Who asked, for what, and what is stored.
async fn usage(service: &Service) {
    let until = Instant::now() + Duration::from_secs(30);
    let acme = loop {
        service.get(0, "acme", "contacts?limit=7").await;
        let top = service.ask("/usage?by=rows&limit=5").await;
        let items = top["items"].as_array().unwrap();
        let acme = items.iter().find(|item| item["slug"] == "acme").cloned();
        if acme
            .as_ref()
            .is_some_and(|a| a["recent"]["rows"].as_u64() >= Some(7))
        {
            break acme.unwrap();
        }
        assert!(Instant::now() < until, "{top}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(acme["total"]["refused"].as_u64() > Some(0), "{acme}");
    assert_eq!(acme["shard"], "s1");
    let usage = service.ask("/tenants/globex/usage").await;
    assert!(usage["rows"].as_u64() > Some(100), "{usage}");
    let tables = usage["tables"].as_array().unwrap();
    assert!(
        tables
            .iter()
            .any(|table| table["table"] == "public.contacts")
    );
    assert!(
        usage["usage"]["total"]["requests"].as_u64() > Some(50),
        "{usage}"
    );
}

/// Each change is in the log with what was before and after, each refusal with
/// its code; and nobody takes a line out again.
async fn audit(service: &Service) {
    let log = service
        .ask("/audit?object=globex&action=tenant.limit")
        .await;
    let newest = &log["items"][0];
    assert_eq!(newest["actor"], "admin");
    assert_eq!(newest["result"], "done");
    assert_eq!(newest["before"]["own"]["rows"], 1, "{newest}");
    assert_eq!(newest["after"]["plan"], "default", "{newest}");
    let refused = service.ask("/audit?action=refused&limit=1").await;
    let refused = &refused["items"][0];
    assert_eq!(refused["result"], "RF401", "{refused}");
    assert_eq!(refused["object"], "/tenants/acme/limits");
    let dsn = service.cluster.control_dsn();
    let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    for change in [
        "update ringfence.audit set actor = 'nobody'",
        "delete from ringfence.audit",
    ] {
        let refused = client.batch_execute(change).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "RF013", "{change}");
    }
}

/// Two routers together let through what one would, whichever are asked.
#[tokio::test]
async fn routers_share_a_limit() {
    let service = Service::start(2).await;
    service
        .limit("acme", json!({ "requests_per_second": 10, "burst": 40 }))
        .await;
    for router in 0..2 {
        service
            .until(router, "acme", "companies?limit=1", 429)
            .await;
    }
    // Full again after four seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let started = Instant::now();
    let mut served = 0;
    for _ in 0..100 {
        for router in 0..2 {
            let answer = service.get(router, "acme", "companies?limit=1").await;
            served += u32::from(answer.status() == 200);
        }
    }
    let most = 42.0 + 10.0 * started.elapsed().as_secs_f64();
    // Two that don't share would serve more.
    assert!(most < 120.0, "200 requests took {:?}", started.elapsed());
    assert!(
        (40.0..=most).contains(&f64::from(served)),
        "{served}, not {most}"
    );
    service.cluster.down().await;
}

/// A tenant without limits has more slow statements under way than there are
/// connections for; others find one at once nevertheless.
#[tokio::test]
async fn a_slow_neighbour_leaves_connections_to_others() {
    let service = Service::start(1).await;
    let client = service.add_nap().await;
    let service = std::sync::Arc::new(service);
    let naps: Vec<_> = (0..60)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move { service.get(0, "acme", "rpc/nap").await.status() })
        })
        .collect();
    let asleep = ASLEEP;
    let until = Instant::now() + Duration::from_secs(60);
    while client
        .query_one(asleep, &[])
        .await
        .unwrap()
        .get::<_, i64>(0)
        < 18
    {
        assert!(Instant::now() < until, "the flood does not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Behind them it would take four seconds.
    let mut took = Vec::new();
    for _ in 0..10 {
        let started = Instant::now();
        let answer = service.get(0, "globex", "companies?limit=1").await;
        assert_eq!(answer.status(), 200);
        took.push(started.elapsed());
    }
    took.sort();
    assert!(took[5] < Duration::from_secs(1), "{took:?}");
    let asleep: i64 = client.query_one(asleep, &[]).await.unwrap().get(0);
    assert!(asleep <= 18, "{asleep} of 20 connections");
    for nap in naps {
        nap.await.unwrap();
    }
    std::sync::Arc::into_inner(service)
        .unwrap()
        .cluster
        .down()
        .await;
}
