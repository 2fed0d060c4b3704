//! What production runs, run here: Nginx before two routers, Prometheus with
//! its rules and dashboards, and the entry point of Compose's Postgres nodes.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ops::local::{Balance, Cluster, Content, Options};
use reqwest::{Certificate, Client, StatusCode};
use serde_json::{Value, json};
use tenancy::peer::{PeerAcceptor, PeerConnector, PeerSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// What the cluster has said that it does.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

async fn cluster(nginx: Balance) -> Cluster {
    let cluster = Cluster::start(Options {
        report: |what| SAID.lock().unwrap().push(what.to_owned()),
        shards: Some(2),
        replicas: Some(1),
        routers: Some(2),
        nginx: Some(nginx),
        prometheus: true,
        caches: true,
        redis: Some(3),
        content: Content::Demo {
            extra: 97,
            rows: None,
        },
        ..Options::default()
    });
    cluster.await.unwrap()
}

/// `crm_day` through Nginx, with the checks; its report.
struct Load {
    child: Child,
    report: PathBuf,
}

impl Load {
    fn start(cluster: &Cluster, seconds: u64) -> Self {
        let (_, _, http) = cluster.nginx().unwrap();
        let text = std::fs::read_to_string(cluster.path().join("local.env")).unwrap();
        let lines = text.lines().map(|line| match line.split_once('=') {
            Some((name @ ("RINGFENCE_URL" | "RINGFENCE_ROUTER_URLS"), _)) => {
                format!("{name}={http}\n")
            }
            _ => format!("{line}\n"),
        });
        let env = cluster.path().join("nginx.env");
        std::fs::write(&env, lines.collect::<String>()).unwrap();
        let report = cluster.path().join("report.json");
        let _ = std::fs::remove_file(&report);
        let program =
            Path::new(env!("CARGO_BIN_EXE_ringfence")).with_file_name("ringfence-loadtest");
        let child = Command::new(program)
            .arg("run")
            .arg(root().join("loadtest/scenarios/crm_day.toml"))
            .arg("--env")
            .arg(env)
            .args(["--check", "--quiet", "--metrics", "off", "--scale", "0.5"])
            .args(["--duration", &format!("{seconds}s")])
            .arg("--json")
            .arg(&report)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, report }
    }

    /// Requests answered, failures among them, and the checks' violations.
    fn end(mut self) -> (u64, u64, u64) {
        self.child.wait().unwrap();
        let report: Value = serde_json::from_slice(&std::fs::read(&self.report).unwrap()).unwrap();
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{report:#}"));
        // Shown where the test fails.
        eprintln!("{}", report["total"]);
        (
            number(&report["total"]["requests"]),
            number(&report["total"]["errors"]),
            report["checks"]["violations"]
                .as_array()
                .map_or(u64::MAX, |v| v.len() as u64),
        )
    }
}

/// The upstream and release of each logged request, and its status.
fn logged(cluster: &Cluster) -> Vec<Value> {
    logged_with(cluster, "")
}

/// Of those that hold this text: the log is long, and read again and again.
fn logged_with(cluster: &Cluster, what: &str) -> Vec<Value> {
    let log = cluster.path().join("nodes/nginx/access.log");
    let text = std::fs::read_to_string(log).unwrap();
    // The last line may be half written.
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n') && line.contains(what))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The line of a request, once it is there.
async fn logged_as(cluster: &Cluster, id: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut lines = logged_with(cluster, id).into_iter();
        if let Some(line) = lines.find(|line| line["request_id"] == id) {
            return line;
        }
        assert!(Instant::now() < deadline, "{id} is not logged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The lines of so many requests by their ids, which begin so, once they are there.
async fn all_logged(cluster: &Cluster, ids: &str, count: usize) -> BTreeMap<String, Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let lines = logged_with(cluster, ids).into_iter().filter_map(|line| {
            let id = line["request_id"].as_str()?.to_owned();
            id.starts_with(ids).then_some((id, line))
        });
        let lines: BTreeMap<String, Value> = lines.collect();
        if lines.len() == count {
            return lines;
        }
        let there = lines.len();
        assert!(Instant::now() < deadline, "{there} of {count} are logged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// When a logged request began, in seconds since 1970.
fn began(line: &Value) -> f64 {
    let number = |name: &str| line[name].as_str().unwrap().parse::<f64>().unwrap();
    number("time") - number("request_time")
}

/// In seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

/// What Nginx and the routers logged of requests that failed.
fn failures(cluster: &Cluster) -> Vec<String> {
    let mut lines = logged(cluster);
    lines.retain(|line| line["status"].as_str().is_none_or(|status| status >= "409"));
    let mut lines: Vec<String> = lines.iter().take(20).map(Value::to_string).collect();
    for router in ["router-1", "router-2"] {
        let log = std::fs::read_to_string(cluster.log(router)).unwrap_or_default();
        let failed = log
            .lines()
            .filter(|line| line.contains("failed") || line.contains(":503"));
        lines.extend(failed.take(20).map(str::to_owned));
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_balances_releases_and_restarts_unnoticed() {
    let cluster = cluster(Balance::RoundRobin).await;
    let (https, ca_file, http) = cluster.nginx().unwrap();
    let ca = Certificate::from_pem(&std::fs::read(&ca_file).unwrap()).unwrap();
    let client = Client::builder().tls_certs_only([ca]).build().unwrap();
    let key = cluster.key("acme").unwrap();
    let get = |base: &str| {
        client
            .get(format!("{base}/rest/v1/companies?limit=1"))
            .header("apikey", &key)
    };

    // TLS and HTTP/2, security headers, the caller's request id.
    let answer = get(&https)
        .header("x-request-id", "mine-1")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_version}",
        "--cacert",
    ]);
    let curl = curl
        .arg(&ca_file)
        .arg(format!("{https}/nginx/live"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "2", "{curl:?}");
    for (name, value) in [
        ("x-request-id", "mine-1"),
        ("x-content-type-options", "nosniff"),
        ("strict-transport-security", "max-age=31536000"),
        (
            "content-security-policy",
            "default-src 'none'; frame-ancestors 'none'",
        ),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
    // The log names the tenant, and no secret.
    let line = logged_as(&cluster, "mine-1").await;
    assert_eq!(line["tenant"].as_str().unwrap(), &key[3..25]);
    assert!(!line.to_string().contains(&key));
    what_is_of_one_client_alone_reaches_a_router(&cluster).await;
    the_log_is_replayed(&cluster);

    // Rolling restart of the worker and both routers; then a release for a
    // share of the tenants, promoted, rolled back.
    let load = Load::start(&cluster, 22);
    tokio::time::sleep(Duration::from_secs(4)).await;
    SAID.lock().unwrap().clear();
    cluster.roll().await.unwrap();
    all_hear_of_all_shards(&cluster).await;
    // What a new router needs of the shards its workers have brought before.
    let order = ["worker-1", "router-1", "router-2"].map(|name| format!("restarting {name}"));
    assert_eq!(*SAID.lock().unwrap(), order);
    let canary = ["router-2".to_owned()];
    let mut seen = Vec::new();
    for percent in [10, 100, 0] {
        directed(&cluster, &canary, percent).await;
        let from = now();
        let while_load_goes_on = tokio::time::sleep(Duration::from_secs(2));
        let sent = tenants_at_the_canary(&cluster, percent);
        let (sent, ()) = tokio::join!(sent, while_load_goes_on);
        let to_canary = |line: &Value| line["release"] == "canary";
        let mut lines = logged(&cluster);
        lines.retain(|line| began(line) > from);
        let port = |url: String| url.rsplit(':').next().unwrap().to_owned();
        let new = port(cluster.router_url(1));
        for line in &lines {
            let at_new = line["upstream"].as_str().unwrap().ends_with(&new);
            assert_eq!(at_new, to_canary(line), "{line}");
        }
        // One tenant's requests all go to one release.
        let of = |release: bool| {
            let tenants = lines.iter().filter(|l| to_canary(l) == release);
            tenants
                .map(|l| l["tenant"].to_string())
                .collect::<BTreeSet<_>>()
        };
        let (new, old) = (of(true), of(false));
        assert!(new.is_disjoint(&old), "{percent}");
        // Of the tenants, for some have many times the requests of others.
        seen.push(new.len() as f64 / (new.len() + old.len()) as f64);
        match percent {
            // Whose keys these are is always the same, and so is who is sent where.
            10 => assert!((10..=35).contains(&sent), "{sent} of 200"),
            _ => assert_eq!(sent, 2 * usize::from(percent)),
        }
    }
    assert!(
        seen[0] < 0.4 && seen[1] == 1.0 && seen[2] == 0.0,
        "{seen:?}"
    );
    cluster.direct(&[], 0).await.unwrap();
    both_are_of_one_release_again(&cluster).await;
    let (requests, failed, violations) = load.end();
    assert!(requests > 1_000, "{requests}");
    assert_eq!((failed, violations), (0, 0), "{:#?}", failures(&cluster));
    each_way_to_balance(&cluster).await;

    // A router dies with reads and writes under way: no read fails, and no write is
    // sent again that it may have begun.
    let write = |name: String| {
        let request = client.post(format!("{http}/rest/v1/companies"));
        let request = request
            .header("apikey", &key)
            .json(&json!({ "name": name }));
        async move { (name, request.send().await.unwrap().status()) }
    };
    let writes = (0..4).map(|writer| {
        let write = &write;
        async move {
            let mut sent = Vec::new();
            for n in 0..100 {
                sent.push(write(format!("Once {writer}-{n}")).await);
            }
            sent
        }
    });
    let reads = (0..8).map(|_| async {
        for n in 0..300 {
            // Half of them past the caches, so that they take a while.
            let request = get(&http).header("cache-control", ["max-age=0", "no-cache"][n % 2]);
            let status = request.send().await.unwrap().status();
            assert_eq!(status, StatusCode::OK, "{n}: {:#?}", failures(&cluster));
        }
    });
    let killed = async {
        get(&http).send().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.kill("router-1").await.unwrap();
    };
    let writes = futures_util::future::join_all(writes);
    let reads = futures_util::future::join_all(reads);
    let (_, sent, ()) = tokio::join!(reads, writes, killed);
    cluster.start_node("router-1").await.unwrap();
    let found = client
        .get(format!(
            "{https}/rest/v1/companies?select=name&name=like.Once*"
        ))
        .header("apikey", &key);
    let found: Vec<Value> = found.send().await.unwrap().json().await.unwrap();
    for (name, status) in sent.into_iter().flatten() {
        let count = found.iter().filter(|row| row["name"] == *name).count();
        match status {
            StatusCode::CREATED => assert_eq!(count, 1, "{name}"),
            // It was cut off: Nginx can't tell whether it was done.
            StatusCode::BAD_GATEWAY => assert!(count <= 1, "{name}"),
            other => panic!("{name}: {other}"),
        }
    }
    a_write_that_was_not_sent_is_sent_to_the_next(&cluster).await;
    the_end_of_a_router_is_not_noticed(&cluster).await;

    dashboards(&cluster).await;
    cluster.down().await;
}

/// It is not found out by waiting: who is restarted next has been waited for.
async fn all_hear_of_all_shards(cluster: &Cluster) {
    for router in [0, 1] {
        let caches = format!("{}/cache", cluster.router_admin_url(router));
        let caches: Value = reqwest::get(caches).await.unwrap().json().await.unwrap();
        let shards = caches["shards"].as_array().unwrap();
        let heard = shards.iter().filter(|shard| shard["heard"] == true);
        assert_eq!(heard.count(), 2, "router {router}: {caches}");
    }
}

/// Sends so many tenants to these routers, and returns once the processes of Nginx
/// that knew it otherwise are gone: what begins from now on is not theirs.
async fn directed(cluster: &Cluster, canary: &[String], percent: u8) {
    let before = nginx_workers(cluster);
    cluster.direct(canary, percent).await.unwrap();
    ended(cluster, &before).await;
}

/// Returns once these processes of Nginx are gone.
async fn ended(cluster: &Cluster, before: &BTreeSet<u32>) {
    assert!(!before.is_empty(), "Nginx has no processes");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !nginx_workers(cluster).is_disjoint(before) {
        assert!(Instant::now() < deadline, "{before:?} are not gone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nginx' first process.
fn nginx_pid(cluster: &Cluster) -> String {
    let pid = std::fs::read_to_string(cluster.path().join("nodes/nginx/nginx.pid")).unwrap();
    pid.trim().to_owned()
}

/// The processes that Nginx' first one has started.
fn nginx_workers(cluster: &Cluster) -> BTreeSet<u32> {
    let first = nginx_pid(cluster);
    let processes = std::fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        // It may be gone by now.
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let mut lines = status.lines();
        let parent = lines.find_map(|line| line.strip_prefix("PPid:"));
        parent.is_some_and(|parent| parent.trim() == first)
    })
    .collect()
}

/// How many of two hundred tenants, whom Nginx tells by their keys alone, are sent to
/// the canary; each of them twice, and both times to the same release.
async fn tenants_at_the_canary(cluster: &Cluster, percent: u8) -> usize {
    let (_, _, http) = cluster.nginx().unwrap();
    let (url, client) = (format!("{http}/rest/v1/companies"), Client::new());
    let id = |tenant: usize, time: usize| format!("canary-{percent}-{tenant}-{time}");
    for tenant in 0..200 {
        for time in 0..2 {
            let request = client
                .get(&url)
                .header("apikey", format!("rf_{tenant:022}_"));
            let answer = request
                .header("x-request-id", id(tenant, time))
                .send()
                .await;
            assert_eq!(answer.unwrap().status(), StatusCode::UNAUTHORIZED);
        }
    }
    let lines = all_logged(cluster, &format!("canary-{percent}-"), 400).await;
    let of = |id: String| &lines[&id];
    let sent = (0..200).filter(|tenant| {
        let [first, second] = [0, 1].map(|time| of(id(*tenant, time)));
        assert_eq!(first["tenant"], format!("{tenant:022}"));
        assert_eq!(first["release"], second["release"], "{first} {second}");
        let canary = first["release"] == "canary";
        for line in [first, second] {
            let by = line["upstream"].as_str().unwrap();
            assert_eq!(cluster.router_url(1).ends_with(by), canary, "{line}");
        }
        canary
    });
    sent.count()
}

/// Returns once Nginx has read what it was told: router-2 gets what is for nobody's canary.
async fn both_are_of_one_release_again(cluster: &Cluster) {
    let (_, _, http) = cluster.nginx().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for n in 0.. {
        let id = format!("one-release-{n}");
        let request = Client::new().get(format!("{http}/rest/v1/companies"));
        request.header("x-request-id", &id).send().await.unwrap();
        let line = logged_as(cluster, &id).await;
        let by = line["upstream"].as_str().unwrap();
        if cluster.router_url(1).ends_with(by) && line["release"] == "stable" {
            return;
        }
        assert!(Instant::now() < deadline, "{line}");
    }
}

/// The other ways to choose a router, as their files have them.
async fn each_way_to_balance(cluster: &Cluster) {
    let address = |router| {
        let url = cluster.router_url(router);
        url.strip_prefix("http://").unwrap().to_owned()
    };
    let servers = [0, 1].map(|router| format!("  server {};", address(router)));
    let both = BTreeSet::from([address(0), address(1)]);
    for way in ["least-conn", "ip-hash", "tenant-hash"] {
        let file = root().join(format!("ops/nginx/balance/{way}.conf"));
        let block = std::fs::read_to_string(file).unwrap();
        let block = block.replace("@NAME@", "stable");
        let block = block.replace("@SERVERS@", &servers.join("\n"));
        let before = nginx_workers(cluster);
        let site = cluster.path().join("nodes/nginx/site");
        std::fs::write(site.join("routers.conf"), block).unwrap();
        run(Command::new("kill").args(["-HUP", &nginx_pid(cluster)]));
        ended(cluster, &before).await;
        let by_tenant = routers_of_tenants(cluster, way).await;
        let used: BTreeSet<String> = by_tenant.values().flatten().cloned().collect();
        match way {
            // All of them come from one address.
            "ip-hash" => assert_eq!(used.len(), 1, "{used:?}"),
            _ => assert_eq!(used, both, "{way}"),
        }
        if way == "tenant-hash" {
            let astray = by_tenant.iter().find(|(_, routers)| routers.len() > 1);
            assert!(astray.is_none(), "{astray:?}");
        }
    }
    directed(cluster, &[], 0).await;
}

/// The routers that had requests of each of forty tenants, three each.
async fn routers_of_tenants(cluster: &Cluster, way: &str) -> BTreeMap<String, BTreeSet<String>> {
    let (_, _, http) = cluster.nginx().unwrap();
    let (url, client) = (format!("{http}/rest/v1/companies"), Client::new());
    for n in 0..120 {
        let request = client
            .get(&url)
            .header("x-request-id", format!("{way}-{n}"));
        let request = request.header("apikey", format!("rf_{:022}_", n % 40));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    let mut by_tenant = BTreeMap::<String, BTreeSet<String>>::new();
    for line in all_logged(cluster, &format!("{way}-"), 120).await.values() {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let routers = by_tenant.entry(text("tenant")).or_default();
        routers.insert(text("upstream"));
    }
    assert_eq!(by_tenant.len(), 40);
    by_tenant
}

/// A router that is told to end, as Compose and Swarm tell it, while rows are made and
/// deleted through Nginx: none of the requests fails, and none is done twice.
async fn the_end_of_a_router_is_not_noticed(cluster: &Cluster) {
    let (_, _, http) = cluster.nginx().unwrap();
    cluster.shut_down("router-1").await.unwrap();
    // For longer than Nginx keeps a connection that nothing uses.
    let mut ending = Own::start(cluster, "router-1", "\n[limits]\ndrain_lag_ms = 5500\n").await;
    let client = Client::new();
    let since = now();
    let over = std::sync::atomic::AtomicBool::new(false);
    let ask = |method: reqwest::Method, query: &str| {
        let request = client.request(method, format!("{http}/rest/v1/companies{query}"));
        let request = request.header("apikey", cluster.key("acme").unwrap());
        request.header("prefer", "return=representation, visibility=self")
    };
    let rows = async |request: reqwest::RequestBuilder, status: StatusCode, what: &str| {
        let answer = request.send().await.unwrap();
        assert_eq!(
            answer.status(),
            status,
            "{what}: {}",
            answer.text().await.unwrap()
        );
        answer.json::<Vec<Value>>().await.unwrap().len()
    };
    let writers = (0..4).map(|writer| {
        let (ask, rows, over) = (&ask, &rows, &over);
        async move {
            let mut done = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let name = format!("Ended-{writer}-{done}");
                let post = ask(reqwest::Method::POST, "").json(&json!({ "name": name }));
                assert_eq!(rows(post, StatusCode::CREATED, &name).await, 1);
                // Done twice, the POST has left two, and the DELETE the second time none.
                let delete = ask(reqwest::Method::DELETE, &format!("?name=eq.{name}"));
                assert_eq!(rows(delete, StatusCode::OK, &name).await, 1, "{name}");
                done += 1;
            }
            done
        }
    });
    let end = async {
        // Both routers have had some of these.
        for router in [0, 1] {
            let url = cluster.router_url(router);
            let mut tries = 0;
            while !logged(cluster).iter().any(|line| {
                line["request_method"] == "POST"
                    && began(line) > since
                    && url.ends_with(line["upstream"].as_str().unwrap())
            }) {
                tries += 1;
                assert!(tries < 600, "{url} gets none");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        ending.terminate();
        let code = tokio::task::spawn_blocking(move || ending.child.wait())
            .await
            .unwrap();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        code.unwrap()
    };
    let (done, code) = tokio::join!(futures_util::future::join_all(writers), end);
    assert!(code.success(), "{code}");
    assert!(done.iter().all(|done| *done > 0), "{done:?}");
    cluster.start_node("router-1").await.unwrap();
}

/// A router of the cluster's with settings of its own.
struct Own {
    child: Child,
}

impl Own {
    async fn start(cluster: &Cluster, name: &str, settings: &str) -> Self {
        let dir = cluster.path().join("nodes").join(name);
        let mut config = std::fs::read_to_string(dir.join("config.toml")).unwrap();
        config.push_str(settings);
        std::fs::write(dir.join("own.toml"), config).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_ringfence")).with_file_name("ringfence-router");
        let mut command = Command::new(program);
        command.arg("--config").arg("own.toml").current_dir(&dir);
        let log = std::fs::File::create(dir.join("own.log")).unwrap();
        let child = command.stdout(log).spawn().unwrap();
        let url = format!("{}/ready", cluster.router_admin_url(0));
        let deadline = Instant::now() + Duration::from_secs(60);
        while reqwest::get(&url).await.map(|answer| answer.status()).ok() != Some(StatusCode::OK) {
            assert!(Instant::now() < deadline, "{name} is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self { child }
    }

    fn terminate(&self) {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]));
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nginx leaves a range and a client's tag out where it may cache, and makes a GET
/// of a HEAD, unless it is told otherwise.
async fn what_is_of_one_client_alone_reaches_a_router(cluster: &Cluster) {
    let (_, _, http) = cluster.nginx().unwrap();
    let client = Client::new();
    let ask = |method: reqwest::Method, id: &'static str| {
        let url = format!("{http}/rest/v1/companies?select=id&order=id");
        let request = client.request(method, url).header("x-request-id", id);
        request.header("apikey", cluster.key("acme").unwrap())
    };
    let get = reqwest::Method::GET;

    let two = ask(get.clone(), "range").header("range", "0-1");
    let two = two.send().await.unwrap();
    assert_eq!(two.headers()["content-range"], "0-1/*");
    assert_eq!(two.json::<Vec<Value>>().await.unwrap().len(), 2);

    let first = ask(get.clone(), "first").send().await.unwrap();
    let copy = ask(get, "copy").header("if-none-match", &first.headers()["etag"]);
    assert_eq!(copy.send().await.unwrap().status(), 304);
    // By a router, not by Nginx out of a whole answer.
    assert_eq!(logged_as(cluster, "copy").await["upstream_status"], "304");

    let head = ask(reqwest::Method::HEAD, "head").header("prefer", "count=exact");
    let head = head.send().await.unwrap();
    let range = head.headers()["content-range"].to_str().unwrap();
    assert!(!range.ends_with("/*") && range.contains('/'), "{range}");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let logs = ["router-1", "router-2"].map(|router| cluster.log(router));
        let logs = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default());
        let mut lines = logs.iter().flat_map(|log| log.lines());
        if let Some(line) = lines.find(|line| line.contains("\"request_id\":\"head\"")) {
            assert!(line.contains("\"method\":\"HEAD\""), "{line}");
            break;
        }
        assert!(Instant::now() < deadline, "no router has heard of it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for id in ["range", "first", "head"] {
        logged_as(cluster, id).await;
    }
}

/// The load tester sends again what the log has: reads, so far.
fn the_log_is_replayed(cluster: &Cluster) {
    let (_, _, http) = cluster.nginx().unwrap();
    let reads = logged(cluster).len();
    let report = cluster.path().join("replayed.json");
    let tester = Path::new(env!("CARGO_BIN_EXE_ringfence")).with_file_name("ringfence-loadtest");
    let key = format!("acme={}", cluster.key("acme").unwrap());
    run(Command::new(tester)
        .arg("replay")
        .arg(cluster.path().join("nodes/nginx/access.log"))
        .args(["--speed", "100", "--quiet", "--metrics", "off"])
        .args(["--url", &http, "--key", &key, "--json"])
        .arg(&report));
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["total"]["requests"], reads, "{report:#}");
    assert_eq!(report["total"]["errors"], 0, "{report:#}");
}

/// Nginx takes a DELETE for safe to send twice, so that it must not send any again;
/// but where a router could not even be connected to, nothing was sent.
async fn a_write_that_was_not_sent_is_sent_to_the_next(cluster: &Cluster) {
    let (_, _, http) = cluster.nginx().unwrap();
    let client = Client::new();
    let ask = |method: reqwest::Method, id: String| {
        let url = format!("{http}/rest/v1/companies?id=eq.0");
        let request = client.request(method, url).header("x-request-id", id);
        request.header("apikey", cluster.key("acme").unwrap())
    };
    // Nginx sends to the first router again.
    let first = cluster.router_url(0);
    let first = first.strip_prefix("http://").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for n in 0.. {
        let id = format!("again-{n}");
        ask(reqwest::Method::GET, id.clone()).send().await.unwrap();
        if logged_as(cluster, &id).await["upstream"] == first {
            break;
        }
        assert!(Instant::now() < deadline, "{first} is left out");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.kill("router-1").await.unwrap();
    let mut again = 0;
    for n in 0..4 {
        let id = format!("delete-{n}");
        let delete = ask(reqwest::Method::DELETE, id.clone());
        assert_eq!(delete.send().await.unwrap().status(), 204);
        let line = logged_as(cluster, &id).await;
        again += u32::from(line["upstream"].as_str().unwrap().starts_with(first));
    }
    assert!(again > 0, "none was for the router that is gone");
    cluster.start_node("router-1").await.unwrap();
}

/// Metrics that must show something while `crm_day` runs and a tenant moves.
const MOVING: [&str; 14] = [
    "requests_total",
    "request_duration_seconds_bucket",
    "pool_connections",
    "node_up",
    "node_primary",
    "reads_total",
    "cache_answers_total",
    "cache_redis_total",
    "cache_staleness_seconds_bucket",
    "write_barriers_total",
    "tenant_requests_total",
    "tenant_rows_total",
    "move_begun_total",
    "move_pause_seconds_bucket",
];

/// Every query of every dashboard returns data while `crm_day` runs and a tenant
/// moves, and those about what then must move are not at rest.
async fn dashboards(cluster: &Cluster) {
    let load = Load::start(cluster, 12);
    let old = tokio::spawn(old_answers(cluster.router_url(1), stranger(cluster).await));
    move_a_tenant(cluster).await;
    let url = format!("{}/api/v1/query", cluster.prometheus_url().unwrap());
    let client = Client::new();
    let ask = |query: String| {
        let url = reqwest::Url::parse_with_params(&url, [("query", query)]).unwrap();
        let request = client.get(url).send();
        async { request.await.unwrap().json::<Value>().await.unwrap() }
    };
    let mut queries = 0;
    let mut moving = BTreeSet::<&str>::new();
    for file in std::fs::read_dir(root().join("ops/grafana/dashboards")).unwrap() {
        let path = file.unwrap().path();
        let board: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"]
                    .as_str()
                    .unwrap()
                    .replace("$__rate_interval", "2m");
                let deadline = Instant::now() + Duration::from_secs(60);
                loop {
                    let answer = ask(query.clone()).await;
                    assert_eq!(answer["status"], "success", "{query}: {answer}");
                    let found = answer["data"]["result"].as_array().unwrap();
                    let moves = MOVING
                        .iter()
                        .find(|name| query.contains(&format!("ringfence_{name}")));
                    let value = |series: &Value| series["value"][1].as_str()?.parse::<f64>().ok();
                    let above = found.iter().filter_map(value).any(|value| value > 0.0);
                    if !found.is_empty() && (above || moves.is_none()) {
                        moving.extend(moves);
                        break;
                    }
                    let title = &panel["title"];
                    assert!(
                        Instant::now() < deadline,
                        "{}: {title} is empty: {query}",
                        path.display()
                    );
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                queries += 1;
            }
        }
    }
    old.abort();
    assert!(queries > 50, "{queries}");
    assert_eq!(moving.len(), MOVING.len(), "{moving:?}");
    let (_, failed, violations) = load.end();
    assert_eq!((failed, violations), (0, 0), "{:#?}", failures(cluster));
    for service in [cluster.router_admin_url(0), cluster.admin_url()] {
        let metrics = client.get(format!("{service}/metrics")).send();
        let metrics = metrics.await.unwrap().text().await.unwrap();
        follows_the_conventions(&metrics);
        has_a_panel_each(&metrics);
    }
    // The recording rules have run, and nothing but what is true is alerted.
    let rate = ask("ringfence:requests:rate5m".into()).await;
    assert_ne!(rate["data"]["result"][0]["value"][1], "0", "{rate}");
    // Requests are counted by where their answers came from.
    let by_source = "sum by (from) (ringfence_requests_total{route=\"relation\"}) > 0";
    let by_source = ask(by_source.into()).await;
    let by_source = by_source["data"]["result"].as_array().unwrap();
    let mut sources = by_source.iter().map(|series| &series["metric"]["from"]);
    assert!(sources.any(|from| from == "shard"), "{by_source:?}");
    let firing = ask("ALERTS{alertstate=\"firing\",severity=\"page\"}".into()).await;
    assert_eq!(firing["data"]["result"], Value::Array(vec![]), "{firing}");
}

/// The key of a tenant that the load does not know.
async fn stranger(cluster: &Cluster) -> String {
    let api = format!("{}/admin/v1/tenants", cluster.admin_url());
    let post = async |url: &str, body: Value| {
        let request = Client::new().post(url).json(&body);
        let answer = request.bearer_auth(cluster.admin_token()).send().await;
        answer.unwrap().json::<Value>().await.unwrap()
    };
    post(&api, json!({ "slug": "stranger" })).await;
    let key = post(&format!("{api}/stranger/keys"), json!({})).await;
    key["key"].as_str().unwrap().to_owned()
}

/// Has answers that may be old, which are measured, until it is ended.
async fn old_answers(router: String, key: String) {
    let client = Client::new();
    let url = format!("{router}/rest/v1/companies");
    let ask = |request: reqwest::RequestBuilder| request.header("apikey", &key).send();
    loop {
        let read = client.get(format!("{url}?select=id&limit=3"));
        let _ = ask(read.header("cache-control", "max-age=3600")).await;
        let _ = ask(client.post(&url).json(&json!({ "name": "Newer" }))).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is measured can be seen: on a dashboard, or by an alert.
fn has_a_panel_each(metrics: &str) {
    let files = ["cache", "fleet", "moves", "tenants"]
        .map(|name| format!("ops/grafana/dashboards/{name}.json"));
    let rules = ["alerts", "recording"].map(|name| format!("ops/prometheus/{name}.yml"));
    let shown: String = files
        .iter()
        .chain(&rules)
        .map(|file| std::fs::read_to_string(root().join(file)).unwrap())
        .collect();
    let names = metrics.lines().filter_map(|line| {
        let name = line.strip_prefix("# TYPE ")?.split(' ').next()?;
        name.starts_with("ringfence_").then_some(name)
    });
    let hidden: Vec<&str> = names.filter(|name| !shown.contains(name)).collect();
    assert!(hidden.is_empty(), "nowhere to be seen: {hidden:?}");
}

/// Prometheus' own lint of names, units and help texts finds nothing.
fn follows_the_conventions(metrics: &str) {
    let mut lint = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = lint.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, metrics.as_bytes()).unwrap();
    drop(stdin);
    let said = lint.wait_with_output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&text));
}

/// By the command that a DBA types.
async fn move_a_tenant(cluster: &Cluster) {
    let tenant = format!("{}/admin/v1/tenants/acme", cluster.admin_url());
    let ask = Client::new()
        .get(&tenant)
        .bearer_auth(cluster.admin_token());
    let tenant: Value = ask.send().await.unwrap().json().await.unwrap();
    let to = match tenant["shard"].as_str().unwrap() {
        "s1" => "s2",
        _ => "s1",
    };
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command
        .env("RINGFENCE_ADMIN_URL", cluster.admin_url())
        .env("RINGFENCE_ADMIN_TOKEN", cluster.admin_token())
        .args(["move", "start", "acme", "--to", to, "--wait", "--no-input"]);
    let done = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}

/// A Postgres node as Compose starts it, without Compose.
struct Entry {
    dir: PathBuf,
    children: Vec<Child>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        for child in &mut self.children {
            // SIGINT: a fast shutdown; the script has become the server.
            let _ = Command::new("kill")
                .args(["-INT", &child.id().to_string()])
                .status();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Entry {
    fn start(&mut self, name: &str, port: u16, follows: Option<u16>) {
        let data = self.dir.join(name);
        let script = "exec \"$CONFIG/postgres\"";
        let mut command = match rustix::process::geteuid().is_root() {
            true => {
                let mut command = Command::new("setpriv");
                command.args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--init-groups",
                    "sh",
                    "-c",
                    script,
                ]);
                command
            }
            false => {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                command
            }
        };
        let control = name == "control";
        let bin = glob_postgres();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command
            .env("PATH", path)
            // libpq looks there for certificates, and may not look into root's.
            .env("HOME", &self.dir)
            .env("PGDATA", data.join("pgdata"))
            .env("SECRETS", self.secrets(name))
            .env("CONFIG", self.dir.join("config"))
            .env("NODE_NAME", name)
            .env("NODE_PORT", port.to_string())
            .env(
                "NODE_DATABASE",
                if control { "ringfence_control" } else { "app" },
            );
        if control {
            command.env("NODE_OWNER", "ringfence_owner");
        }
        if let Some(primary) = follows {
            command
                .env("NODE_FOLLOWS", "127.0.0.1")
                .env("NODE_FOLLOWS_PORT", primary.to_string());
        }
        let log = std::fs::File::create(self.dir.join(format!("{name}.log"))).unwrap();
        self.children
            .push(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// What Compose mounts in the node's container.
    fn secrets(&self, name: &str) -> PathBuf {
        let all = self.dir.join("secrets");
        if name != "control" {
            return all;
        }
        let own = self.dir.join("secrets-control");
        std::fs::create_dir_all(&own).unwrap();
        for (from, to) in [
            ("control-superuser", "superuser"),
            ("control-owner", "owner"),
            ("ca.pem", "ca.pem"),
            ("control.pem", "control.pem"),
            ("control.key", "control.key"),
        ] {
            std::fs::copy(all.join(from), own.join(to)).unwrap();
        }
        own
    }

    async fn connect(&self, port: u16) -> tokio_postgres::Client {
        let password = std::fs::read_to_string(self.dir.join("secrets/superuser")).unwrap();
        let dsn =
            format!("host=127.0.0.1 port={port} user=postgres dbname=app password={password}");
        self.connect_by(&dsn).await
    }

    async fn connect_by(&self, dsn: &str) -> tokio_postgres::Client {
        let tls = tenancy::tls::Tls::new(&tenancy::tls::TlsSettings {
            mode: tenancy::tls::TlsMode::VerifyFull,
            ca_file: Some(self.dir.join("secrets/ca.pem")),
        });
        let (tls, config) = (tls.unwrap(), dsn.parse().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match tls.connect(&config).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(Instant::now() < deadline, "{}", tenancy::chain(&error)),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn glob_postgres() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap();
    let found = versions.map(|entry| entry.unwrap().path().join("bin"));
    found
        .filter(|bin| bin.join("postgres").exists())
        .max()
        .unwrap()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Of the certificates that were made, one makes a router.
async fn routers_are_known_by_their_certificates(secrets: &Path) {
    let shown = |name: &str| PeerSettings {
        ca_file: secrets.join("ca.pem"),
        cert_file: secrets.join(format!("{name}.pem")),
        key_file: secrets.join(format!("{name}.key")),
    };
    let worker = PeerAcceptor::new(shown("peer-worker")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for (name, is_router) in [
        ("peer-router", true),
        ("peer-worker", false),
        ("s1-primary", false),
        ("nginx", false),
    ] {
        let router = PeerConnector::new(shown(name)).unwrap();
        let accepted = async {
            let (socket, _) = listener.accept().await.unwrap();
            worker.accept(socket).await.is_ok()
        };
        let connected = async {
            let socket = TcpStream::connect(address).await.unwrap();
            router.connect(socket).await
        };
        let (accepted, _connected) = tokio::join!(accepted, connected);
        assert_eq!(accepted, is_router, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn composes_postgres_nodes_start_and_replicate_over_tls() {
    tenancy::tls::install_provider();
    let dir = std::env::temp_dir().join(format!("ringfence-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(dir.join("config")).unwrap();
    run(Command::new("sh")
        .arg(root().join("ops/compose/make-secrets"))
        .arg(dir.join("secrets")));
    routers_are_known_by_their_certificates(&dir.join("secrets")).await;
    for file in ["postgres", "postgresql.conf", "pg_hba.conf"] {
        std::fs::copy(
            root().join("ops/compose").join(file),
            dir.join("config").join(file),
        )
        .unwrap();
    }
    // This machine's servers listen on loopback only, in little memory.
    let conf = dir.join("config/postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    let text = text.replace("'*'", "'127.0.0.1'").replace("256MB", "32MB");
    let sockets = dir.join("sockets");
    std::fs::write(&conf, format!("{text}\nunix_socket_directories = ''\n")).unwrap();
    std::fs::create_dir_all(&sockets).unwrap();
    for name in ["s1-primary", "s1-replica1"] {
        // What a start that was cut off has left is not in the way.
        let left = dir.join(name).join("pgdata.new");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("PG_VERSION"), "17").unwrap();
    }
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown")
            .args(["-R", "postgres:postgres"])
            .arg(&dir));
    }
    let mut entry = Entry {
        dir,
        children: Vec::new(),
    };
    let (primary, replica) = (free_port(), free_port());
    entry.start("s1-primary", primary, None);
    let control = free_port();
    entry.start("control", control, None);
    the_control_database_is_no_superusers(&entry, control).await;
    let client = entry.connect(primary).await;
    client
        .batch_execute("create table t as select 42 as answer")
        .await
        .unwrap();
    entry.start("s1-replica1", replica, Some(primary));
    let copy = entry.connect(replica).await;
    let row = copy
        .query_one("select answer, pg_is_in_recovery() from t", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, bool>(1)), (42, true));
    // Plain connections are refused.
    let password = std::fs::read_to_string(entry.dir.join("secrets/superuser")).unwrap();
    let plain =
        format!("host=127.0.0.1 port={primary} user=postgres dbname=app password={password}");
    let refused = tokio_postgres::connect(&plain, tokio_postgres::NoTls).await;
    assert!(refused.is_err_and(|error| tenancy::chain(&error).contains("no encryption")));

    // Started again, it keeps its data.
    let stopped = entry.children.pop().unwrap();
    run(Command::new("kill").args(["-INT", &stopped.id().to_string()]));
    let mut stopped = stopped;
    stopped.wait().unwrap();
    entry.start("s1-replica1", replica, Some(primary));
    let copy = entry.connect(replica).await;
    client
        .batch_execute("insert into t values (43)")
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let count: i64 = copy
            .query_one("select count(*) from t", &[])
            .await
            .unwrap()
            .get(0);
        if count == 2 {
            break;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// As whom Compose's workers log in: with all that they need in the control database,
/// and no right to anything else of its server.
async fn the_control_database_is_no_superusers(entry: &Entry, port: u16) {
    let secret = |name: &str| {
        let text = std::fs::read_to_string(entry.dir.join("secrets").join(name)).unwrap();
        text.replace("host=control", &format!("host=127.0.0.1 port={port}"))
    };
    let mut owner = entry.connect_by(&secret("control-dsn-owner")).await;
    let password = secret("router");
    schema::control::upgrade(&mut owner, Some(&password))
        .await
        .unwrap();
    let router = entry.connect_by(&secret("control-dsn-router")).await;
    router
        .query_one("select * from ringfence.version", &[])
        .await
        .unwrap();
    for (sql, code) in [
        ("alter role postgres password 'mine'", "42501"),
        ("create role another superuser", "42501"),
        ("alter role ringfence_owner superuser", "42501"),
        ("alter system set log_statement = 'all'", "42501"),
        ("copy (select 1) to program 'true'", "42501"),
        ("select pg_read_file('PG_VERSION')", "42501"),
        // With it, the audit log's trigger would not be in the way of others.
        ("set session_replication_role = replica", "42501"),
        ("delete from ringfence.audit", "RF013"),
    ] {
        let refused = owner.batch_execute(sql).await.unwrap_err();
        assert_eq!(
            refused.code().map(|c| c.code()),
            Some(code),
            "{sql}: {refused}"
        );
    }
}

#[tokio::test]
async fn services_take_their_configuration_from_the_environment_alone() {
    let bin = Path::new(env!("CARGO_BIN_EXE_ringfence"));
    for (program, file) in [
        ("ringfence-router", "router.toml"),
        ("ringfence-worker", "worker.toml"),
    ] {
        let run = |configure: &dyn Fn(&mut Command)| {
            let mut command = Command::new(bin.with_file_name(program));
            configure(command.arg("--print-config"));
            let output = command.output().unwrap();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            (output.status.success(), said)
        };
        let (good, said) = run(&|command| {
            command
                .env("RINGFENCE__LISTEN", "0.0.0.0:7777")
                .env("RINGFENCE__SHARDS__DATABASE", "crm");
        });
        assert!(
            good && said.contains("0.0.0.0:7777") && said.contains("\"crm\""),
            "{said}"
        );
        // What Compose mounts is valid, and the environment goes before it.
        let path = root().join("ops/compose").join(file);
        let (good, said) = run(&|command| {
            command
                .arg("--config")
                .arg(&path)
                .env("RINGFENCE__NAME", "seven");
        });
        assert!(
            good && said.contains("\"seven\"") && said.contains("verify-full"),
            "{said}"
        );
        let (good, said) = run(&|command| {
            command.env("RINGFENCE__SHARDS__DATABSE", "crm");
        });
        assert!(!good && said.to_lowercase().contains("databse"), "{said}");
    }
}

#[tokio::test]
async fn services_run_as_in_their_image_are_probed_and_end_in_order() {
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        tls: true,
        content: Content::Services,
        ..Options::default()
    });
    let cluster = cluster.await.unwrap();
    let health = |url: String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command
            .arg("health")
            .env("RINGFENCE_HEALTH_URL", url)
            .output()
            .unwrap()
            .status
            .code()
    };
    assert_eq!(
        health(format!("{}/ready", cluster.router_admin_url(0))),
        Some(0)
    );
    assert_eq!(health(format!("{}/ready", cluster.admin_url())), Some(0));
    let mut worker = Contained::start(&cluster, "worker");
    let mut router = Contained::start(&cluster, "router");
    for service in [&mut worker, &mut router] {
        let ready = service.ready.clone();
        let deadline = Instant::now() + Duration::from_secs(60);
        while health(ready.clone()) != Some(0) {
            assert!(Instant::now() < deadline, "not ready: {}", service.said());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    the_audit_log_names_whose_token_it_was(&worker).await;
    nobody_is_turned_away_for_a_while(&mut router).await;
    // Told again, it ends at once.
    for mut service in [worker, router] {
        service.terminate();
        let code = service.child.wait().unwrap();
        assert!(code.success(), "{code}: {}", service.said());
    }
    cluster.kill("router-1").await.unwrap();
    assert_eq!(
        health(format!("{}/ready", cluster.router_admin_url(0))),
        Some(4)
    );
    cluster.down().await;
}

/// An admin token of its own has a name.
async fn the_audit_log_names_whose_token_it_was(worker: &Contained) {
    let api = format!("http://127.0.0.1:{}/admin/v1", worker.port);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    run(command
        .args(["plan", "set", "gold", "--rows", "100"])
        .args(["--url", &format!("http://127.0.0.1:{}", worker.port)])
        .args(["--token", ALICE])
        .env("RINGFENCE_ACTOR", "alice@laptop"));
    let log = Client::new().get(format!("{api}/audit?object=gold"));
    let log = log.bearer_auth(ALICE).send().await.unwrap();
    let log: Value = log.json().await.unwrap();
    assert_eq!(
        log["items"][0]["actor"], "alice (says: alice@laptop)",
        "{log}"
    );
}

/// A router that was told to end meets a proxy that still has a connection, and
/// one that makes another.
async fn nobody_is_turned_away_for_a_while(router: &mut Contained) {
    let (mut kept, mut other) = (Caller::new(router).await, Caller::new(router).await);
    for caller in [&mut kept, &mut other] {
        let head = caller.ask().await;
        assert!(!head.contains("connection: close"), "{head}");
    }
    router.terminate();
    let deadline = Instant::now() + Duration::from_secs(60);
    while reqwest::get(&router.ready).await.unwrap().status() != 503 {
        assert!(Instant::now() < deadline, "it says that it is ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = Caller::new(router).await;
    for mut caller in [kept, other, late] {
        let head = caller.ask().await;
        assert!(head.contains("connection: close"), "{head}");
        let mut rest = Vec::new();
        caller.stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{rest:?}");
    }
}

/// One connection to a router.
struct Caller {
    stream: TcpStream,
}

impl Caller {
    async fn new(router: &Contained) -> Self {
        Self {
            stream: TcpStream::connect(("127.0.0.1", router.port))
                .await
                .unwrap(),
        }
    }

    /// Asks without a key; the answer's head in small letters.
    async fn ask(&mut self) -> String {
        let request = b"GET /rest/v1/companies HTTP/1.1\r\nHost: x\r\n\r\n";
        self.stream.write_all(request).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let byte = self.stream.read_u8().await.unwrap();
            head.push(char::from(byte.to_ascii_lowercase()));
        }
        assert!(head.starts_with("http/1.1 401 "), "{head}");
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        self.stream.read_exact(&mut body).await.unwrap();
        head
    }
}

/// An admin's token.
const ALICE: &str = "alices-own";

/// A service with Compose's file, of which the environment changes only where
/// things are; as the image's user, and where this machine allows it with nothing
/// that it can write to but the folder that Compose gives it.
struct Contained {
    child: Child,
    dir: PathBuf,
    port: u16,
    ready: String,
}

impl Contained {
    fn start(cluster: &Cluster, service: &str) -> Self {
        let id = uuid::Uuid::new_v4().simple();
        let dir = std::env::temp_dir().join(format!("ringfence-{id}"));
        let (secrets, state) = (dir.join("secrets"), dir.join("state"));
        std::fs::create_dir_all(&secrets).unwrap();
        std::fs::create_dir_all(&state).unwrap();
        let put = |name: &str, text: &[u8]| {
            let path = secrets.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let theirs = |name: &str| std::fs::read(cluster.path().join(name)).unwrap();
        let secret = |name: &str| put(name, &theirs(&format!("secrets/{name}")));
        let peer = cluster.path().join("nodes").join(format!("{service}-1"));
        let peer = |name: &str| put(name, &std::fs::read(peer.join(name)).unwrap());
        let ca = put(
            "ca.pem",
            &std::fs::read(cluster.ca_file().unwrap()).unwrap(),
        );
        let control: tokio_postgres::Config = cluster.control_dsn().parse().unwrap();
        let dsn = |user: &str, secret: &str| {
            let (port, database) = (control.get_ports()[0], control.get_dbname().unwrap());
            let password = String::from_utf8(theirs(&format!("secrets/{secret}"))).unwrap();
            let text = format!(
                "host=127.0.0.1 port={port} user={user} dbname={database} password={password}"
            );
            put("dsn", text.as_bytes())
        };
        let (port, admin) = (free_port(), free_port());
        let listen = |port: u16| format!("127.0.0.1:{port}");
        let mut places = vec![
            ("NAME", format!("contained-{service}")),
            ("LISTEN", listen(port)),
            ("CONTROL__TLS__CA_FILE", ca.clone()),
            ("SHARDS__TLS__CA_FILE", ca.clone()),
            ("AUTH__KEY_SECRET_FILE", secret("key-secret")),
        ];
        let (tls, ready) = match service {
            "router" => {
                places.extend([
                    ("ADMIN_LISTEN", listen(admin)),
                    ("CONTROL__DSN_FILE", dsn("ringfence_router", "router")),
                    (
                        "CONTROL__SNAPSHOT_FILE",
                        format!("{}/snapshot", state.display()),
                    ),
                    ("AUTH__JWT_SECRET_FILE", secret("jwt-secret")),
                    ("SHARDS__PASSWORD_FILE", secret("router")),
                    ("CACHE__REDIS_URLS", "[]".into()),
                    ("CACHE__STREAM_SECRET_FILE", secret("stream-secret")),
                    // Until it is told to end a second time.
                    ("LIMITS__DRAIN_LAG_MS", "3600000".into()),
                    ("LIMITS__HEADERS_MS_MAX", "3600000".into()),
                ]);
                (
                    [
                        "CACHE__STREAM_TLS__CA_FILE",
                        "CACHE__STREAM_TLS__CERT_FILE",
                        "CACHE__STREAM_TLS__KEY_FILE",
                    ],
                    admin,
                )
            }
            _ => {
                places.extend([
                    ("STREAM_LISTEN", listen(admin)),
                    ("CONTROL__DSN_FILE", dsn("ringfence_owner", "owner")),
                    ("ADMIN_TOKEN_FILE", secret("admin-token")),
                    ("ADMIN_TOKEN_FILES__ALICE", put("alice", ALICE.as_bytes())),
                    ("STREAM_SECRET_FILE", secret("stream-secret")),
                    ("SHARDS__SUPERUSER_PASSWORD_FILE", secret("superuser")),
                    ("SHARDS__ROUTER_PASSWORD_FILE", secret("router")),
                    ("SHARDS__WORKER_PASSWORD_FILE", secret("worker")),
                    ("SHARDS__MIGRATOR_PASSWORD_FILE", secret("migrator")),
                    ("SHARDS__MOVER_PASSWORD_FILE", secret("mover")),
                ]);
                (
                    [
                        "STREAM_TLS__CA_FILE",
                        "STREAM_TLS__CERT_FILE",
                        "STREAM_TLS__KEY_FILE",
                    ],
                    port,
                )
            }
        };
        places.extend(
            tls.into_iter()
                .zip([ca, peer("peer.pem"), peer("peer.key")]),
        );
        // The image's user may not look into the checkout's folder.
        let program = dir.join(format!("ringfence-{service}"));
        let built = Path::new(env!("CARGO_BIN_EXE_ringfence"));
        std::fs::copy(built.with_file_name(program.file_name().unwrap()), &program).unwrap();
        let config = dir.join("config.toml");
        let file = format!("ops/compose/{service}.toml");
        std::fs::copy(root().join(file), &config).unwrap();
        let mut command = match rustix::process::geteuid().is_root() {
            true => {
                let mut command = Command::new("sh");
                command.args(["-c", CONTAINED, "sh"]).arg(&state);
                command
            }
            false => Command::new("env"),
        };
        let log = std::fs::File::create(dir.join("log")).unwrap();
        command.arg(&program).arg("--config").arg(&config);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let places = places.into_iter();
        command.envs(places.map(|(key, value)| (format!("RINGFENCE__{key}"), value)));
        let child = command.current_dir(&dir).spawn().unwrap();
        Self {
            child,
            dir,
            port,
            ready: format!("http://127.0.0.1:{ready}/ready"),
        }
    }

    fn terminate(&self) {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]));
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What follows runs as the image's user in a root that can't be written to, but
/// for the folder named first; where mounts are not allowed, as that user alone.
const CONTAINED: &str = r#"
state=$1; shift
user='setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs'
chmod -R a+rX "$(dirname "$state")"
chmod 777 "$state"
mounts='mount -t tmpfs -o uid=65532,gid=65532,mode=0700 none "$0" && mount -o remount,bind,ro /'
if unshare --mount sh -c "$mounts" "$state" 2>/dev/null; then
  exec unshare --mount sh -c "$mounts && exec $user "'"$@"' "$state" "$@"
fi
echo "mounts are not allowed here: the root can be written to" >&2
exec $user "$@"
"#;
