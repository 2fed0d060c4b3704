//! A shard loses its primary, on real servers.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ops::local::{Cluster, Options};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::NoTls;

const PRIMARY: &str = "s1-primary";
const REPLICA: &str = "s1-replica1";

struct Service {
    cluster: Cluster,
    http: Client,
}

impl Service {
    async fn start() -> Arc<Self> {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(1),
            routers: Some(2),
            // A slow machine promotes a replica in more seconds than requests wait for.
            hold_ms_max: Some(10_000),
            ..Options::default()
        });
        Arc::new(Self {
            cluster: cluster.await.unwrap(),
            http: Client::new(),
        })
    }

    fn url(&self, router: usize, path: &str) -> String {
        format!("{}/rest/v1/{path}", self.cluster.router_url(router))
    }

    async fn insert(&self, router: usize, name: &str) -> Response {
        let request = self.http.post(self.url(router, "companies"));
        let request = request.header("apikey", self.cluster.key("acme").unwrap());
        request.json(&json!({ "name": name })).send().await.unwrap()
    }

    /// The same once the primary is dead. On a connection that broke this moment a write
    /// is of unknown outcome, and said to be just that: it was not done.
    async fn insert_at_the_dead(&self, router: usize, name: &str) -> Response {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(Instant::now() < deadline, "its outcome stays unknown");
            let answer = self.insert(router, name).await;
            if answer.status() != StatusCode::INTERNAL_SERVER_ERROR {
                return answer;
            }
            let error: Value = answer.json().await.unwrap();
            assert_eq!(error["code"], "08007", "{error}");
        }
    }

    /// The same under a key: what came back, and whether it was replayed.
    async fn insert_once(&self, router: usize, name: &str) -> (StatusCode, bool) {
        let request = self.http.post(self.url(router, "companies"));
        let request = request
            .header("apikey", self.cluster.key("acme").unwrap())
            .header("idempotency-key", format!("key of {name}"));
        let answer = request.json(&json!({ "name": name })).send().await.unwrap();
        let replayed = answer.headers().contains_key("idempotency-replayed");
        (answer.status(), replayed)
    }

    /// How many companies of that name the router finds.
    async fn count(&self, router: usize, name: &str) -> usize {
        let url = self.url(router, &format!("companies?select=id&name=eq.{name}"));
        let request = self.http.get(url);
        let request = request.header("apikey", self.cluster.key("acme").unwrap());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json::<Vec<Value>>().await.unwrap().len()
    }

    async fn sql(&self, node: &str, text: &str) -> tokio_postgres::Row {
        let dsn = self.cluster.shard_dsn(node).unwrap();
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.query_one(text, &[]).await.unwrap()
    }

    /// Waits until the replica has replayed what the primary has written.
    async fn caught_up(&self) {
        let target: String = self
            .sql(PRIMARY, "select pg_current_wal_lsn()::text")
            .await
            .get(0);
        let question = format!("select pg_last_wal_replay_lsn() >= '{target}'::pg_lsn");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.sql(REPLICA, &question).await.get::<_, bool>(0) {
            assert!(Instant::now() < deadline, "the replica does not catch up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn requests_wait_for_the_new_primary_and_a_stale_one_gets_none() {
    let service = Service::start().await;
    assert_eq!(
        service.insert(0, "Before").await.status(),
        StatusCode::CREATED
    );
    service.caught_up().await;

    // Through both routers: one connection of theirs is idle, one breaks.
    service.cluster.kill(PRIMARY).await.unwrap();
    let held = [0, 1].map(|router| {
        let service = service.clone();
        tokio::spawn(async move {
            service
                .insert_at_the_dead(router, "Meanwhile")
                .await
                .status()
        })
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(held.iter().all(|request| !request.is_finished()));
    service.cluster.promote(REPLICA).await.unwrap();
    for request in held {
        assert_eq!(request.await.unwrap(), StatusCode::CREATED);
    }
    for router in [0, 1] {
        assert_eq!(service.count(router, "Before").await, 1);
        assert_eq!(service.count(router, "Meanwhile").await, 2);
    }

    // The old primary returns, and takes itself for one. It gets no write, also
    // not from a router that starts only now, nor once the new one is away.
    service.cluster.start_node(PRIMARY).await.unwrap();
    service.cluster.kill("router-2").await.unwrap();
    service.cluster.start_node("router-2").await.unwrap();
    for router in [0, 1] {
        assert_eq!(
            service.insert(router, "After").await.status(),
            StatusCode::CREATED
        );
    }
    service.cluster.kill(REPLICA).await.unwrap();
    let refused = service.insert_at_the_dead(0, "After").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    let found = service
        .sql(
            PRIMARY,
            "select count(*) from companies where name in ('Meanwhile', 'After')",
        )
        .await;
    assert_eq!(found.get::<_, i64>(0), 0);
    Arc::into_inner(service).unwrap().cluster.down().await;
}

#[tokio::test]
async fn a_write_cut_off_in_flight_is_answered_as_unknown() {
    let service = Service::start().await;
    let slow = "create function slow() returns trigger language plpgsql as
        $$ begin perform pg_sleep(30); return new; end $$;
        create trigger slow before insert on companies for each row execute function slow()";
    let dsn = service.cluster.shard_dsn(PRIMARY).unwrap();
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    a_router_starts_without_the_control_database(&service).await;
    client.batch_execute(slow).await.unwrap();

    let writer = service.clone();
    let write = tokio::spawn(async move {
        let answer = writer.insert(0, "Unknown").await;
        (answer.status(), answer.json::<Value>().await.unwrap())
    });
    let sleeping = "select count(*) > 0 from pg_stat_activity where wait_event = 'PgSleep'";
    let deadline = Instant::now() + Duration::from_secs(60);
    while !client
        .query_one(sleeping, &[])
        .await
        .unwrap()
        .get::<_, bool>(0)
    {
        assert!(Instant::now() < deadline, "the write does not arrive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.cluster.kill(PRIMARY).await.unwrap();
    let (status, error) = write.await.unwrap();
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(error["code"], "08007", "{error}");
    Arc::into_inner(service).unwrap().cluster.down().await;
}

/// Routers serve from their last placements, and one that starts only now from its file.
async fn a_router_starts_without_the_control_database(service: &Service) {
    let file = service.cluster.path().join("nodes/router-1/snapshot");
    let dsn = service.cluster.control_dsn();
    let (control, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    let version = "select version from ringfence.version";
    let since = Instant::now();
    loop {
        let version: i64 = control.query_one(version, &[]).await.unwrap().get(0);
        let written = std::fs::read(&file).unwrap_or_default();
        let written: Value = serde_json::from_slice(&written).unwrap_or_default();
        if written["version"] == version {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{written}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.cluster.kill("control").await.unwrap();
    service.cluster.kill("router-1").await.unwrap();
    service.cluster.start_node("router-1").await.unwrap();
    for (router, name) in [(0, "Started"), (1, "Stayed")] {
        let written = service.insert(router, name).await;
        assert_eq!(written.status(), StatusCode::CREATED, "{name}");
        for reader in [0, 1] {
            assert_eq!(service.count(reader, name).await, 1);
        }
    }
    service.cluster.start_node("control").await.unwrap();
}

/// Two writes with keys, cut off: one whose COMMIT was done and not answered,
/// one before it. The router finds out which is which, and neither the client
/// nor a later retry of its own writes twice.
#[tokio::test]
async fn writes_with_keys_are_settled_through_a_failover() {
    let service = Service::start().await;
    let dsn = service.cluster.shard_dsn(PRIMARY).unwrap();
    let (primary, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    let setup = "do $do$ begin execute format($f$
          create function slow() returns trigger language plpgsql as $$ begin
            if inet_server_port() = %s then perform pg_sleep(60); end if;
            return new; end $$ $f$, inet_server_port()); end $do$;
        create trigger slow before insert on companies for each row
          when (new.name = 'Begun') execute function slow()";
    primary.batch_execute(setup).await.unwrap();
    service.caught_up().await;
    // From now on a COMMIT is carried out, and never answered.
    let nobody = "alter system set synchronous_standby_names = 'nobody'";
    primary.batch_execute(nobody).await.unwrap();
    primary
        .batch_execute("select pg_reload_conf()")
        .await
        .unwrap();
    let writes = [(0, "Committed"), (1, "Begun")].map(|(router, name)| {
        let service = service.clone();
        tokio::spawn(async move { service.insert_once(router, name).await })
    });
    let waiting = "select count(*) filter (where wait_event = 'SyncRep') > 0
        and count(*) filter (where wait_event = 'PgSleep') > 0 from pg_stat_activity";
    let deadline = Instant::now() + Duration::from_secs(60);
    while !service.sql(PRIMARY, waiting).await.get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "the writes do not arrive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.caught_up().await;
    service.cluster.kill(PRIMARY).await.unwrap();
    service.cluster.promote(REPLICA).await.unwrap();

    let [committed, begun] = writes;
    assert_eq!(committed.await.unwrap(), (StatusCode::CREATED, true));
    assert_eq!(begun.await.unwrap(), (StatusCode::CREATED, false));
    for (router, name) in [(1, "Committed"), (0, "Begun")] {
        let again = service.insert_once(router, name).await;
        assert_eq!(again, (StatusCode::CREATED, true));
        assert_eq!(service.count(router, name).await, 1);
    }
    Arc::into_inner(service).unwrap().cluster.down().await;
}

/// Without synchronous replicas a failover can lose what was acknowledged. Who
/// has the write's token is told so, by any router; nobody else is troubled.
#[tokio::test]
async fn a_write_that_an_asynchronous_failover_lost_is_reported_by_its_token() {
    let service = Service::start().await;
    let token = |answer: &Response| answer.headers()["ringfence-token"].clone();
    let kept = service.insert(0, "Kept").await;
    service.caught_up().await;

    let dsn = service.cluster.shard_dsn(REPLICA).unwrap();
    let (replica, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    let alone = "alter system set primary_conninfo = ''";
    replica.batch_execute(alone).await.unwrap();
    let reload = "select pg_reload_conf()";
    replica.batch_execute(reload).await.unwrap();
    let receives = "select count(*) > 0 from pg_stat_wal_receiver";
    let deadline = Instant::now() + Duration::from_secs(60);
    while replica
        .query_one(receives, &[])
        .await
        .unwrap()
        .get::<_, bool>(0)
    {
        assert!(Instant::now() < deadline, "it still follows");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lost = service.insert(0, "Lost").await;
    assert_eq!(lost.status(), StatusCode::CREATED);
    service.cluster.kill(PRIMARY).await.unwrap();
    service.cluster.promote(REPLICA).await.unwrap();

    for router in [0, 1] {
        for (write, status) in [(&lost, 412), (&kept, 200)] {
            let request = service.http.get(service.url(router, "companies?limit=1"));
            let request = request
                .header("apikey", service.cluster.key("acme").unwrap())
                .header("ringfence-token", token(write));
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), status, "router {router}");
            if status == 412 {
                let error: Value = answer.json().await.unwrap();
                assert_eq!(error["code"], "RF020", "{error}");
            }
        }
        assert_eq!(service.count(router, "Kept").await, 1);
        assert_eq!(service.count(router, "Lost").await, 0);
    }
    Arc::into_inner(service).unwrap().cluster.down().await;
}
