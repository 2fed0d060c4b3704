//! More than can be done at once, and schema changes under load, on real servers.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ops::local::{Cluster, Options};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

const PRIMARY: &str = "s1-primary";

struct Service {
    cluster: Cluster,
    http: Client,
}

impl Service {
    async fn start() -> Arc<Self> {
        Self::with(false).await
    }

    async fn with(caches: bool) -> Arc<Self> {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(1),
            caches,
            // A slow machine starts a server in more seconds than requests wait for.
            hold_ms_max: Some(20_000),
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

    fn url(&self, path: &str) -> String {
        format!("{}/rest/v1/{path}", self.cluster.router_url(0))
    }

    async fn get(&self, tenant: &str, path: &str) -> (StatusCode, String) {
        let request = self.http.get(self.url(path));
        let request = request.header("apikey", self.cluster.key(tenant).unwrap());
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// Where the answer came from, and how long it took.
    async fn cached(&self, tenant: &str, path: &str) -> (String, Duration) {
        let since = Instant::now();
        let request = self.http.get(self.url(path));
        let request = request.header("apikey", self.cluster.key(tenant).unwrap());
        let answer = request.send().await.unwrap();
        let from = answer.headers().get("ringfence-cache").cloned();
        let from = from.map_or(String::new(), |from| from.to_str().unwrap().to_owned());
        answer.text().await.unwrap();
        (from, since.elapsed())
    }

    async fn is_live(&self) -> Duration {
        let since = Instant::now();
        let url = format!("{}/live", self.cluster.router_admin_url(0));
        assert!(
            self.http
                .get(url)
                .send()
                .await
                .unwrap()
                .status()
                .is_success()
        );
        since.elapsed()
    }

    async fn insert(&self, name: &str) -> (StatusCode, String) {
        let request = self.http.post(self.url("companies"));
        let request = request
            .header("apikey", self.cluster.key("acme").unwrap())
            .header("prefer", "return=representation");
        let answer = request.json(&json!({ "name": name })).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn sql(&self, text: &str) -> Vec<tokio_postgres::SimpleQueryMessage> {
        let dsn = self.cluster.shard_dsn(PRIMARY).unwrap();
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.simple_query(text).await.unwrap()
    }

    async fn number(&self, question: &str) -> i64 {
        let answer = self.sql(question).await;
        let number = answer.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        number.unwrap()
    }
}

#[tokio::test]
async fn schema_changes_under_load_fail_no_request() {
    let service = Service::start().await;
    let until = Instant::now() + Duration::from_secs(4);
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..6)
        .map(|number| {
            let (service, answered) = (service.clone(), answered.clone());
            tokio::spawn(async move {
                let mut done = 0;
                while Instant::now() < until || done <= 5 {
                    let (status, body) = match number % 3 {
                        0 => service.insert("Changing").await,
                        1 => service.get("acme", "companies?limit=3").await,
                        _ => {
                            service
                                .get("globex", "companies?select=*,contacts(*)&limit=2")
                                .await
                        }
                    };
                    assert!(status.is_success(), "{number}: {status} {body}");
                    done += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    'changes: loop {
        for change in [
            "add column extra int",
            "alter extra type text",
            "drop column extra",
        ] {
            service
                .sql(&format!("alter table companies {change}"))
                .await;
            // A schema does not change faster than each client asks twice.
            let before = answered.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            while answered.load(Ordering::Relaxed) < before + 12 {
                if Instant::now() >= until {
                    break 'changes;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    service.down().await;
}

#[tokio::test]
async fn a_flood_and_slow_clients_hold_up_nobody_else() {
    let service = Service::with(true).await;
    let slow = "create function slow() returns int language plpgsql stable as
        $$ begin perform pg_sleep(0.3); return 1; end $$";
    service.sql(slow).await;
    let known = Instant::now();
    while service.get("acme", "rpc/slow").await.0 != StatusCode::OK {
        assert!(known.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // What is in the router's memory.
    let known = Instant::now();
    while service.cached("acme", "companies?limit=2").await.0 != "l1" {
        assert!(known.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A body that never ends.
    let body = tokio::spawn(slow_body(service.clone()));

    // Twenty times what the connections can do, all of one tenant.
    let flood: Vec<_> = (0..400)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move { service.get("acme", "rpc/slow").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut took = Vec::new();
    for _ in 0..30 {
        let since = Instant::now();
        let (status, body) = service.get("globex", "companies?limit=1").await;
        assert_eq!(status, StatusCode::OK, "{body}");
        took.push(since.elapsed());
    }
    // Its own turns come at once; behind the flood each of the first would wait for
    // seconds, and not only while the machine stands still.
    let first = &mut took[..10];
    first.sort();
    assert!(first[5] < Duration::from_secs(1), "{took:?}");
    // Health queues nowhere, nor does what is in memory, even of the flood's tenant:
    // unless its lease has just ended.
    let mut live = Duration::MAX;
    for _ in 0..3 {
        live = live.min(service.is_live().await);
    }
    assert!(live < Duration::from_secs(1), "{live:?}");
    let mut tries = 0;
    loop {
        let (from, took) = service.cached("acme", "companies?limit=2").await;
        if from == "l1" && took < Duration::from_secs(1) {
            break;
        }
        tries += 1;
        assert!(tries < 20, "{from:?} after {took:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut served, mut refused) = (0, 0);
    for request in flood {
        match request.await.unwrap() {
            (StatusCode::OK, _) => served += 1,
            (StatusCode::SERVICE_UNAVAILABLE, body) => {
                let error: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(error["code"], "PGRST003");
                refused += 1;
            }
            (status, body) => panic!("{status} {body}"),
        }
    }
    // One for each of the tenant's connections at least. How many more get one in time,
    // and how many more than may wait come at once, is the machine's.
    assert!(
        served >= 18 && refused > 0,
        "{served} served, {refused} refused"
    );
    body.await.unwrap();
    what_is_in_memory_is_spared(&service).await;
    service.down().await;
}

/// While ten requests are in flight at a router that takes no more, what is in its
/// memory is answered, and nothing else is.
async fn what_is_in_memory_is_spared(service: &Service) {
    let held = "create function held() returns int language plpgsql stable as
        $$ begin perform pg_advisory_xact_lock_shared(7); return 1; end $$";
    service.sql(held).await;
    let router = Full::start(service).await;
    let get = async |path: &str| {
        let request = service.http.get(format!("{}/rest/v1/{path}", router.url));
        let request = request.header("apikey", service.cluster.key("acme").unwrap());
        let answer = request.send().await.unwrap();
        let from = answer.headers().get("ringfence-cache").cloned();
        (answer.status(), from.is_some_and(|from| from == "l1"))
    };
    let eventually = async |path: &str, wanted: (StatusCode, bool)| {
        let since = Instant::now();
        while get(path).await != wanted {
            assert!(since.elapsed() < Duration::from_secs(20), "{path}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    eventually("rpc/held", (StatusCode::OK, false)).await;
    let dsn = service.cluster.shard_dsn(PRIMARY).unwrap();
    let (holder, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);

    let (in_memory, served) = ("companies?limit=2", (StatusCode::OK, true));
    let spared = async || {
        eventually(in_memory, served).await;
        let lock = "select pg_advisory_lock(7)";
        holder.batch_execute(lock).await.unwrap();
        let ten = futures_util::future::join_all((0..10).map(|_| get("rpc/held")));
        let meanwhile = async {
            let waiting = "select count(*) from pg_locks
                where locktype = 'advisory' and objid = 7 and not granted";
            let since = Instant::now();
            while service.number(waiting).await < 10 {
                assert!(since.elapsed() < Duration::from_secs(20), "not all arrive");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let spared = get(in_memory).await;
            let shed = (StatusCode::SERVICE_UNAVAILABLE, false);
            assert_eq!(get("companies?limit=7").await, shed);
            assert_eq!(get("rpc/held").await, shed);
            let unlock = "select pg_advisory_unlock(7)";
            holder.batch_execute(unlock).await.unwrap();
            spared
        };
        let (ten, spared) = tokio::join!(ten, meanwhile);
        assert_eq!(ten, [(StatusCode::OK, false); 10]);
        spared == served
    };
    // At that moment its lease may just have ended.
    let since = Instant::now();
    while !spared().await {
        assert!(since.elapsed() < Duration::from_secs(60), "never spared");
    }
}

/// A router of the cluster that takes ten requests at once.
struct Full {
    url: String,
    _process: tokio::process::Child,
}

impl Full {
    async fn start(service: &Service) -> Self {
        let nodes = service.cluster.path().join("nodes");
        let theirs = std::fs::read_to_string(nodes.join("router-1/config.toml")).unwrap();
        let mut config: toml::Table = theirs.parse().unwrap();
        // Held until both are known, so that none is given twice.
        let free = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [listen, admin] = free.map(|port| port.local_addr().unwrap().to_string());
        config.insert("listen".into(), listen.clone().into());
        config.insert("admin_listen".into(), admin.clone().into());
        config.extend("limits.in_flight_max = 10".parse::<toml::Table>().unwrap());
        let folder = nodes.join("router-full");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.toml"), config.to_string()).unwrap();
        let process = tokio::process::Command::new(env!("CARGO_BIN_EXE_ringfence-router"))
            .args(["--config", "config.toml"])
            .current_dir(folder)
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let since = Instant::now();
        let ready = format!("http://{admin}/ready");
        while !matches!(service.http.get(&ready).send().await, Ok(ok) if ok.status().is_success()) {
            assert!(
                since.elapsed() < Duration::from_secs(30),
                "it does not start"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self {
            url: format!("http://{listen}"),
            _process: process,
        }
    }
}

/// A client that sends one byte of its body and then no more: it is told so.
async fn slow_body(service: Arc<Service>) {
    let address = service.cluster.router_url(0).replace("http://", "");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /rest/v1/companies HTTP/1.1\r\nhost: x\r\napikey: {}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
        service.cluster.key("acme").unwrap()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(60), read)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("RF022"), "{answer}");
}

#[tokio::test]
async fn the_end_of_an_outage_brings_no_storm() {
    let service = Service::start().await;
    assert_eq!(service.insert("Before").await.0, StatusCode::CREATED);
    service.cluster.kill(PRIMARY).await.unwrap();
    let requests: Vec<_> = (0..150)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move {
                let deadline = Instant::now() + Duration::from_secs(60);
                loop {
                    assert!(Instant::now() < deadline, "its outcome stays unknown");
                    // On a connection that broke this moment it is of unknown outcome,
                    // and said to be just that: it was not done.
                    let (status, body) = service.insert("Held").await;
                    if status != StatusCode::INTERNAL_SERVER_ERROR || !body.contains("08007") {
                        return (status, body);
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    service.cluster.start_node(PRIMARY).await.unwrap();
    let mut created = 0;
    for request in requests {
        let (status, body) = request.await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{body}");
        created += 1;
    }
    assert_eq!(created, 150);
    // Counted from zero since the crash; what was rolled back counts too.
    let inserted = "select n_tup_ins from pg_stat_user_tables where relname = 'companies'";
    // By one session, for sessions are counted, too.
    let dsn = service.cluster.shard_dsn(PRIMARY).unwrap();
    let (shard, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut statements: i64 = 0;
    while statements < 150 {
        assert!(Instant::now() < deadline, "{statements} were counted");
        tokio::time::sleep(Duration::from_millis(200)).await;
        statements = shard.query_one(inserted, &[]).await.unwrap().get(0);
    }
    assert!(statements <= 165, "{statements} inserts for 150 requests");
    let sessions = "select sessions from pg_stat_database where datname = 'app'";
    let sessions = service.number(sessions).await;
    assert!(sessions < 100, "{sessions} connections were made");
    service.down().await;
}
