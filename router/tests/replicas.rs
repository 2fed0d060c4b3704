//! Reads from replicas, tokens, and replicas that fall ill, on real servers.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ops::local::{Cluster, Options};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::NoTls;

const PRIMARY: &str = "s1-primary";
const REPLICAS: [&str; 2] = ["s1-replica1", "s1-replica2"];
/// A frozen node is out after this long, and a request that it holds goes on.
const OUT_MAX: Duration = Duration::from_secs(1);
/// As long as anything may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    cluster: Cluster,
    http: Client,
}

/// What a read says of how fresh it must be.
type Headers<'a> = &'a [(&'a str, &'a str)];

impl Service {
    async fn start() -> Arc<Self> {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(2),
            routers: Some(2),
            ..Options::default()
        });
        Arc::new(Self {
            cluster: cluster.await.unwrap(),
            http: Client::new(),
        })
    }

    async fn down(self: Arc<Self>) {
        Arc::into_inner(self).unwrap().cluster.down().await;
    }

    fn key(&self) -> String {
        self.cluster.key("acme").unwrap()
    }

    /// Writes through the first router; the answer's token.
    async fn insert(&self, name: &str) -> String {
        let url = format!("{}/rest/v1/companies", self.cluster.router_url(0));
        let request = self.http.post(url).header("apikey", self.key());
        let answer = request.json(&json!({ "name": name })).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        answer.headers()["ringfence-token"].to_str().unwrap().into()
    }

    async fn get(&self, router: usize, path: &str, headers: Headers<'_>) -> Response {
        let url = format!("{}/rest/v1/{path}", self.cluster.router_url(router));
        let mut request = self.http.get(url).header("apikey", self.key());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// How many companies of that name a read finds.
    async fn count(&self, router: usize, name: &str, headers: Headers<'_>) -> usize {
        let path = format!("companies?select=id&name=eq.{name}");
        let answer = self.get(router, &path, headers).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json::<Vec<Value>>().await.unwrap().len()
    }

    async fn refused(&self, headers: Headers<'_>) -> (StatusCode, Value) {
        let answer = self.get(0, "companies?limit=1", headers).await;
        (answer.status(), answer.json().await.unwrap())
    }

    /// A router's counter, with its labels.
    async fn counter(&self, router: usize, line: &str) -> u64 {
        let url = format!("{}/metrics", self.cluster.router_admin_url(router));
        let text = self.http.get(url).send().await.unwrap().text().await;
        let text = text.unwrap();
        let mut lines = text.lines();
        let value = lines.find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    async fn by_replicas(&self, router: usize) -> u64 {
        let line = r#"ringfence_reads_total{role="replica"}"#;
        self.counter(router, line).await
    }

    /// Reads until a replica answers.
    async fn until_replicas_answer(&self, router: usize, headers: Headers<'_>) {
        let before = self.by_replicas(router).await;
        let deadline = Instant::now() + PATIENCE;
        while self.by_replicas(router).await == before {
            assert!(Instant::now() < deadline, "no replica answers");
            self.count(router, "Nobody", headers).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn sql(&self, node: &str, text: &str) {
        let dsn = self.cluster.shard_dsn(node).unwrap();
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(text).await.unwrap();
    }

    async fn until_a_replica_sleeps(&self) {
        let sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        let deadline = Instant::now() + PATIENCE;
        loop {
            for replica in REPLICAS {
                let dsn = self.cluster.shard_dsn(replica).unwrap();
                let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
                tokio::spawn(connection);
                let found = client.query_one(sleeping, &[]).await.unwrap();
                if found.get::<_, i64>(0) > 0 {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "no replica runs the read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_cut_off(&self) {
        let question =
            "select count(*) from pg_stat_replication where application_name not like 'ringfence%'";
        let dsn = self.cluster.shard_dsn(PRIMARY).unwrap();
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let deadline = Instant::now() + PATIENCE;
        while client
            .query_one(question, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            > 0
        {
            assert!(Instant::now() < deadline, "the replicas still listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn on_replicas(&self, text: &str) {
        for replica in REPLICAS {
            self.sql(replica, text).await;
        }
    }
}

#[tokio::test]
async fn replicas_answer_whom_they_suffice_and_never_with_less() {
    let service = Service::start().await;
    let old = [("prefer", "max-staleness=60")];
    let fresh = [("prefer", "max-staleness=2")];
    service.until_replicas_answer(0, &fresh).await;

    // Who says nothing gets what is current, from the primary: here is no lease.
    let before = service.by_replicas(0).await;
    for _ in 0..20 {
        service.count(0, "Nobody", &[]).await;
    }
    let primary = [("prefer", "max-staleness=60, read=primary")];
    service.count(0, "Nobody", &primary).await;
    assert_eq!(service.by_replicas(0).await, before);

    // One's own writes are seen by token, and through the same router without one.
    for n in 0..30 {
        let name = format!("Own{n}");
        let token = service.insert(&name).await;
        let with_token = [("prefer", "max-staleness=60"), ("ringfence-token", &*token)];
        assert_eq!(service.count(1, &name, &with_token).await, 1);
        assert_eq!(service.count(0, &name, &old).await, 1);
    }

    // Replicas that stand still answer who allows it, then no longer.
    let last = service.insert("Last").await;
    let with_last = [("prefer", "max-staleness=60"), ("ringfence-token", &*last)];
    service.until_replicas_answer(1, &with_last).await;
    service.on_replicas("select pg_wal_replay_pause()").await;
    let token = service.insert("Unseen").await;
    let with_token = [("prefer", "max-staleness=60"), ("ringfence-token", &*token)];
    assert_eq!(service.count(1, "Unseen", &with_token).await, 1);
    assert_eq!(service.count(0, "Unseen", &old).await, 1);
    // Where no replica is known to be well just then, the primary answers.
    let asked = Instant::now();
    while service.count(1, "Unseen", &old).await != 0 {
        assert!(asked.elapsed() < PATIENCE / 2, "a minute old is fine");
    }
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(service.count(1, "Unseen", &fresh).await, 1);
    service.on_replicas("select pg_wal_replay_resume()").await;
    service.until_replicas_answer(1, &with_token).await;
    assert_eq!(service.count(1, "Unseen", &with_token).await, 1);

    let (status, error) = service.refused(&[("ringfence-token", "nonsense")]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(error["code"], "RF021");
    service.down().await;
}

#[tokio::test]
async fn ill_replicas_fail_no_read() {
    let service = Service::start().await;
    let old = [("prefer", "max-staleness=60")];
    service
        .sql(
            PRIMARY,
            "create function slow_count(seconds float) returns bigint language plpgsql stable as
             $$ declare n bigint := (select count(*) from companies);
             begin perform pg_sleep(seconds) where pg_is_in_recovery(); return n; end $$",
        )
        .await;
    let deadline = Instant::now() + PATIENCE;
    let path = "rpc/slow_count?seconds=0";
    while service.get(0, path, &old).await.status() != StatusCode::OK {
        assert!(Instant::now() < deadline, "the function is not known");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Frozen: what is in flight there, and what comes later, is answered. The machine
    // may stand still itself meanwhile, but not each time.
    let (mut held, mut later) = (Duration::MAX, Duration::MAX);
    let is_soon = |held: Duration, later: Duration| {
        held < OUT_MAX + Duration::from_millis(500) && later < Duration::from_millis(400)
    };
    for _ in 0..4 {
        service.until_replicas_answer(0, &old).await;
        for replica in REPLICAS {
            service.cluster.stop(replica).unwrap();
        }
        let frozen = Instant::now();
        let reads: Vec<_> = (0..10)
            .map(|_| {
                let service = service.clone();
                tokio::spawn(async move { service.count(0, "Nobody", &old).await })
            })
            .collect();
        for read in reads {
            assert_eq!(read.await.unwrap(), 0);
        }
        held = held.min(frozen.elapsed());
        let before = service.by_replicas(0).await;
        for _ in 0..3 {
            let quick = Instant::now();
            service.count(0, "Nobody", &old).await;
            later = later.min(quick.elapsed());
        }
        assert_eq!(service.by_replicas(0).await, before);
        for replica in REPLICAS {
            service.cluster.cont(replica).unwrap();
        }
        if is_soon(held, later) {
            break;
        }
    }
    assert!(is_soon(held, later), "{held:?}, then {later:?}");
    service.until_replicas_answer(0, &old).await;

    // A read that stands in the way of what the replica replays.
    service
        .on_replicas("alter system set max_standby_streaming_delay = 0")
        .await;
    service.on_replicas("select pg_reload_conf()").await;
    let refused = r#"ringfence_reads_fallen_back_total{reason="refused"}"#;
    let before = service.counter(0, refused).await;
    let deadline = Instant::now() + PATIENCE;
    let read = loop {
        let reader = service.clone();
        let mut read = tokio::spawn(async move {
            let answer = reader.get(0, "rpc/slow_count?seconds=25", &old).await;
            answer.status()
        });
        tokio::select! {
            () = service.until_a_replica_sleeps() => break read,
            // By the primary, where no replica was known to be well just then.
            answered = &mut read => assert_eq!(answered.unwrap(), StatusCode::OK),
        }
        assert!(Instant::now() < deadline, "no replica is asked");
    };
    let lock = "begin; lock table companies in access exclusive mode; commit";
    service.sql(PRIMARY, lock).await;
    assert_eq!(read.await.unwrap(), StatusCode::OK);
    assert_eq!(service.counter(0, refused).await, before + 1);

    // Killed under reads.
    let reader = service.clone();
    let reads = tokio::spawn(async move {
        let until = Instant::now() + Duration::from_secs(2);
        let mut count = 0;
        while Instant::now() < until || count <= 10 {
            assert_eq!(reader.count(0, "Nobody", &old).await, 0);
            count += 1;
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    for replica in REPLICAS {
        service.cluster.kill(replica).await.unwrap();
    }
    reads.await.unwrap();
    for replica in REPLICAS {
        service.cluster.start_node(replica).await.unwrap();
    }
    service.until_replicas_answer(0, &old).await;
    service.down().await;
}

#[tokio::test]
async fn a_lost_write_is_reported_to_who_has_its_token() {
    let service = Service::start().await;
    let kept = service.insert("Kept").await;
    let with_kept = [("prefer", "max-staleness=60"), ("ringfence-token", &*kept)];
    service.until_replicas_answer(0, &with_kept).await;
    // Cut off, so that they never hear of it.
    service
        .on_replicas("alter system set primary_conninfo = ''")
        .await;
    service.on_replicas("select pg_reload_conf()").await;
    service.until_cut_off().await;
    let lost = service.insert("Lost").await;
    let with_lost = [("prefer", "max-staleness=60"), ("ringfence-token", &*lost)];
    assert_eq!(service.count(0, "Lost", &with_lost).await, 1);
    service.cluster.kill(PRIMARY).await.unwrap();
    service.cluster.promote(REPLICAS[0]).await.unwrap();

    assert_eq!(service.count(0, "Kept", &[]).await, 1);
    assert_eq!(
        service
            .count(0, "Kept", &[("ringfence-token", &*kept)])
            .await,
        1
    );
    for router in [0, 1] {
        let headers = [("ringfence-token", &*lost)];
        let answer = service.get(router, "companies?limit=1", &headers).await;
        assert_eq!(answer.status(), StatusCode::PRECONDITION_FAILED);
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["code"], "RF020", "{error}");
        assert_eq!(service.count(router, "Lost", &[]).await, 0);
    }

    // On the new timeline everything goes on.
    let new = service.insert("New").await;
    assert_ne!(new[..20], kept[..20], "another generation");
    let with_new = [("prefer", "max-staleness=60"), ("ringfence-token", &*new)];
    service.until_replicas_answer(0, &with_new).await;
    assert_eq!(service.count(1, "New", &with_new).await, 1);
    service.down().await;
}
