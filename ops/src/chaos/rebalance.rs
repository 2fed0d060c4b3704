//! A fourth shard joins three under `crm_day`; tenants go there until all are where
//! the ring says, and then it is emptied again. No request may fail.

use std::time::{Duration, Instant};

use ops::admin::Admin;
use ops::local::{Cluster, Content, Options};
use serde_json::{Value, json};
use tokio_postgres::{Config, NoTls};

use super::{Args, Failure, Fault, Seen, load, moves};

const SHARDS: u16 = 3;
/// Tenants beside the demo's three, so that shares are about equal, and their rows.
const TENANTS: u32 = 60;
const ROWS: u32 = 100;
/// The new shard's name.
const NEW: &str = "s4";
/// Tenants of each shard, of its equal share: so many at least, and at most. The ring
/// is as even as hashes are.
const SHARE: std::ops::RangeInclusive<f64> = 0.5..=1.7;
/// Plans until nothing is left to be moved.
const PLANS_MAX: usize = 5;
/// The load's begin is left alone.
const BEGIN: Duration = Duration::from_secs(2);
/// Longest wait for anything.
const LONGEST: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

/// What came of it.
pub(super) struct Rebalanced {
    seen: Seen,
    /// Tenants by shard, after the one and after the other.
    spread: Vec<(String, u64)>,
    drained: Vec<(String, u64)>,
    /// How long both took.
    took: [Duration; 2],
    /// What could not be moved, and why.
    failed: Vec<Value>,
    left: usize,
}

pub(super) async fn suffer(args: &Args) -> Result<Rebalanced, Failure> {
    let cluster = Cluster::start(Options {
        shards: Some(SHARDS),
        replicas: Some(0),
        routers: Some(2),
        caches: true,
        content: Content::Demo {
            extra: TENANTS,
            rows: Some(ROWS),
        },
        ..Options::default()
    })
    .await?;
    let servers = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        content: Content::Servers,
        ..Options::default()
    })
    .await?;
    let admin = Admin::new(&cluster.admin_url(), cluster.admin_token())?;
    let folder = args.reports.clone().unwrap_or(cluster.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let report = folder.join("rebalance.json");
    let mut load = load(&cluster, args, "crm_day", &report)?;
    tokio::time::sleep(BEGIN).await;

    let began = Instant::now();
    join(&cluster, &servers, &admin).await?;
    let mut failed = carry_out(&admin, &json!({ "policy": "ring" })).await?;
    let (spread, added) = (tenants(&admin).await?, began.elapsed());
    eprintln!("· rebalance: {spread:?} after {:.1} s", added.as_secs_f64());

    let began = Instant::now();
    let path = format!("/shards/{NEW}/drain");
    admin.post(&path, &json!({})).await?;
    let drain = json!({ "policy": "drain", "shard": NEW });
    failed.extend(carry_out(&admin, &drain).await?);
    let (drained, emptied) = (tenants(&admin).await?, began.elapsed());
    eprintln!(
        "· rebalance: {drained:?} after {:.1} s",
        emptied.as_secs_f64()
    );
    if load.try_wait()?.is_some() {
        return Err("the load ended before the moves: give it more --seconds".into());
    }
    load.wait().await?;
    let left = moves::left(&admin).await?;
    let text = std::fs::read_to_string(&report)
        .map_err(|error| format!("the load tester wrote no report: {error}"))?;
    let seen = Seen::read(Fault::Rebalance, &serde_json::from_str(&text)?);
    cluster.down().await;
    servers.down().await;
    Ok(Rebalanced {
        seen,
        spread,
        drained,
        took: [added, emptied],
        failed,
        left,
    })
}

/// The fourth shard, once it has all files and takes tenants.
async fn join(cluster: &Cluster, servers: &Cluster, admin: &Admin) -> Result<(), Failure> {
    let dsn = servers.shard_dsn("s1-primary")?;
    let address: Config = dsn.parse()?;
    let known: Config = cluster.control_dsn().parse()?;
    let password = std::str::from_utf8(known.get_password().unwrap_or_default())?;
    let (server, connection) = tokio_postgres::connect(&dsn, NoTls).await?;
    tokio::spawn(connection);
    // Workers prepare all shards as the same superuser.
    let sql = format!("alter role postgres password '{password}'");
    server.batch_execute(&sql).await?;
    let port = address.get_ports().first().copied().unwrap_or_default();
    let node = json!({ "name": format!("{NEW}-primary"), "host": "127.0.0.1", "port": port });
    admin
        .post("/shards", &json!({ "id": NEW, "nodes": [node] }))
        .await?;
    let deadline = Instant::now() + LONGEST;
    loop {
        let shards = admin.get("/shards", &[]).await?;
        let mut items = shards["items"].as_array().into_iter().flatten();
        if items.any(|shard| shard["id"] == NEW && shard["state"] == "active") {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{NEW} does not become active: {shards}").into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Plans and applies until nothing is left to be moved; returns what failed.
async fn carry_out(admin: &Admin, ask: &Value) -> Result<Vec<Value>, Failure> {
    let mut failed = Vec::new();
    for _ in 0..PLANS_MAX {
        let plan = admin.post("/rebalance/plan", ask).await?;
        if plan["tenants"] == 0 {
            return Ok(failed);
        }
        let job = admin
            .post("/rebalance/apply", &json!({ "hash": plan["hash"] }))
            .await?;
        let path = format!("/jobs/{}", job["id"].as_str().unwrap_or_default());
        let deadline = Instant::now() + LONGEST;
        loop {
            let job = admin.get(&path, &[]).await?;
            if job["done"] == true {
                let some = job["result"]["failed"].as_array().cloned();
                failed.extend(some.unwrap_or_default());
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("the plan does not come to its end: {job}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Err(format!("{PLANS_MAX} plans were not enough: {failed:?}").into())
}

/// Tenants by shard.
async fn tenants(admin: &Admin) -> Result<Vec<(String, u64)>, Failure> {
    let shards = admin.get("/shards", &[]).await?;
    let items = shards["items"].as_array().into_iter().flatten();
    let of = |shard: &Value| {
        let name = shard["id"].as_str().unwrap_or_default().to_owned();
        (name, shard["tenants"].as_u64().unwrap_or_default())
    };
    Ok(items.map(of).collect())
}

impl Rebalanced {
    pub(super) fn is_good(&self) -> bool {
        let all: u64 = self.spread.iter().map(|(_, tenants)| tenants).sum();
        let share = all as f64 / f64::from(SHARDS + 1);
        let even = |(_, tenants): &(String, u64)| SHARE.contains(&(*tenants as f64 / share));
        let emptied = |(shard, tenants): &(String, u64)| shard != NEW || *tenants == 0;
        self.seen.requests > 0
            && self.seen.failed == 0
            && self.seen.violations == 0
            && self.failed.is_empty()
            && self.left == 0
            && self.spread.len() == usize::from(SHARDS) + 1
            && self.spread.iter().all(even)
            && self.drained.iter().all(emptied)
    }

    pub(super) fn text(&self) -> String {
        let [added, emptied] = self.took.map(|took| took.as_secs_f64());
        format!(
            "rebalance: {:?} {added:.1} s after {NEW} joined, {:?} {emptied:.1} s after it was drained; \
             {} requests, {} failed, longest {:.0} ms, {} violations; not moved: {:?}; left behind: {}: {}",
            self.spread,
            self.drained,
            self.seen.requests,
            self.seen.failed,
            self.seen.longest_ms,
            self.seen.violations,
            self.failed,
            self.left,
            if self.is_good() { "good" } else { "BAD" }
        )
    }
}
