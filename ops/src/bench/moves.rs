//! What moves cost: how long cut-overs hold requests while a tenant is written
//! to, what other tenants notice, how fast rows are copied beside a bare COPY, how
//! many tenants a second change shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use futures_util::{SinkExt, StreamExt};
use ops::admin::Admin;
use ops::local::{Cluster, Content, Options};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{Failure, connect};

/// Cut-overs a round: half of them are rollbacks.
const CUT_OVERS: usize = 10;
/// Writes a second meanwhile.
const WRITES: u64 = 500;
const WRITERS: u64 = 25;
/// Rows of the tenant that moves, a megabyte.
const ROWS_A_MEGABYTE: u32 = 3_200;
/// Other tenants, which read meanwhile, and their reads a second.
const OTHERS: u32 = 200;
const READS: u64 = 200;
const READERS: u64 = 20;
/// How long they are watched before anything moves.
const BEFORE: Duration = Duration::from_secs(15);
/// Rows whose copy is timed, and characters of each.
const COPIED: i32 = 400_000;
/// A gigabyte that is written by one transaction holds up all slots for 3 GB of log.
const UNBOUNDED: &str = "alter system set max_slot_wal_keep_size = -1";
/// Tenants that change shards, and their rows.
const TENANTS: u32 = 10_000;
const TENANT_ROWS: u32 = 100;
/// Longest wait for anything.
const LONGEST: Duration = Duration::from_secs(3_600);
const LOOK: Duration = Duration::from_millis(20);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Cut-overs of a tenant that is written to.
    Pauses,
    /// The copy of a large table.
    Copy,
    /// Many small tenants.
    Tenants,
}

/// Prints them one after another, or one of them.
pub(crate) async fn measure(
    tenants: u32,
    megabytes: u32,
    rounds: usize,
    only: Option<Part>,
) -> Result<(), Failure> {
    let cluster = Cluster::start(Options {
        shards: Some(2),
        replicas: Some(0),
        routers: Some(1),
        caches: true,
        fsync: true,
        content: Content::Demo {
            extra: OTHERS,
            rows: Some(100),
        },
        ..Options::default()
    })
    .await?;
    let stage = Stage {
        admin: Admin::new(&cluster.admin_url(), cluster.admin_token())?,
        cluster,
    };
    for shard in ["s1", "s2"] {
        let server = stage.superuser(shard).await?;
        server.batch_execute(UNBOUNDED).await?;
        server.batch_execute("select pg_reload_conf()").await?;
    }
    let wanted = |part| only.is_none_or(|only| only == part);
    if wanted(Part::Pauses) {
        stage
            .cut_overs(rounds.max(1) * CUT_OVERS, megabytes)
            .await?;
    }
    if wanted(Part::Copy) {
        stage.copy().await?;
    }
    if wanted(Part::Tenants) {
        stage.many(tenants.min(TENANTS)).await?;
    }
    stage.cluster.down().await;
    Ok(())
}

struct Stage {
    admin: Admin,
    cluster: Cluster,
}

impl Stage {
    async fn home(&self) -> Result<(String, String, &'static str), Failure> {
        let acme = self.admin.get("/tenants/acme", &[]).await?;
        let text = |field: &str| acme[field].as_str().unwrap_or_default().to_owned();
        let away = if acme["shard"] == "s1" { "s2" } else { "s1" };
        Ok((text("id"), text("shard"), away))
    }

    async fn superuser(&self, shard: &str) -> Result<tokio_postgres::Client, Failure> {
        connect(&self.cluster.shard_dsn(&format!("{shard}-primary"))?).await
    }

    async fn fill(&self, shard: &str, tenant: &str, rows: i32) -> Result<(), Failure> {
        let sql = format!(
            "set session_replication_role = replica;
             insert into activities (tenant_id, kind, subject, minutes)
             select '{tenant}', 'call', repeat(md5(n::text), 6), 1 from generate_series(1, {rows}) n;
             analyze activities"
        );
        Ok(self.superuser(shard).await?.batch_execute(&sql).await?)
    }

    async fn start(&self, to: &str, keep_hours: u32) -> Result<String, Failure> {
        let body = json!({ "tenants": ["acme"], "to": to, "keep_hours": keep_hours });
        let started = self.admin.post("/moves", &body).await?;
        Ok(started["items"][0]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    async fn phase(&self, path: &str, wanted: &str) -> Result<Value, Failure> {
        let deadline = Instant::now() + LONGEST;
        loop {
            let seen = self.admin.get(path, &[]).await?;
            // The last step leads to its phase, and ends the job behind it.
            let ends = matches!(wanted, "done" | "rolled_back" | "over");
            if seen["phase"] == wanted && (!ends || seen["done"] == true) {
                return Ok(seen);
            }
            if seen["done"] == true || seen["status"] == "stuck" || Instant::now() > deadline {
                return Err(format!("it did not come to {wanted}: {seen}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn cut_overs(&self, count: usize, megabytes: u32) -> Result<(), Failure> {
        let (tenant, home, _) = self.home().await?;
        let rows = i32::try_from(megabytes.saturating_mul(ROWS_A_MEGABYTE))?;
        self.fill(&home, &tenant, rows).await?;
        let others = Traffic::start(self.reads().await?, READERS, READS);
        let writers = Traffic::start(vec![self.write()?], WRITERS, WRITES);
        tokio::time::sleep(BEFORE).await;
        let began = Instant::now();
        let mut pauses = Vec::new();
        while pauses.len() < count {
            let (_, _, away) = self.home().await?;
            let path = format!("/moves/{}", self.start(away, 1).await?);
            self.phase(&path, "retained").await?;
            self.admin
                .post(&format!("{path}/rollback"), &json!({}))
                .await?;
            let over = self.phase(&path, "rolled_back").await?;
            let own = over["tenants"][0]["pauses_ms"].as_array().cloned();
            pauses.extend(own.unwrap_or_default().iter().filter_map(Value::as_f64));
            eprintln!("· {} cut-overs", pauses.len());
        }
        let seconds = (BEFORE + began.elapsed()).as_secs_f64();
        let (writes, reads) = (writers.end().await?, others.end().await?);
        pauses.sort_by(f64::total_cmp);
        let of = |answers: &[Answer], wanted: &dyn Fn(&Answer) -> bool| {
            let mut took: Vec<f64> = answers.iter().filter(|a| wanted(a)).map(|a| a.ms).collect();
            took.sort_by(f64::total_cmp);
            took
        };
        let failed = |answers: &[Answer]| answers.iter().filter(|answer| !answer.ok).count();
        let written = of(&writes, &|_| true);
        println!(
            "{} cut-overs of a tenant of {megabytes} MB at {:.0} writes a second: requests held for \
             p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; {} of {} writes failed, they took p99 {:.0} ms, max {:.0} ms",
            pauses.len(),
            writes.len() as f64 / seconds,
            quantile(&pauses, 0.5),
            quantile(&pauses, 0.99),
            quantile(&pauses, 1.0),
            failed(&writes),
            writes.len(),
            quantile(&written, 0.99),
            quantile(&written, 1.0),
        );
        let before = of(&reads, &|answer| answer.due < began);
        let during = of(&reads, &|answer| answer.due >= began);
        println!(
            "{OTHERS} other tenants' reads meanwhile: p99 {:.1} ms, before {:.1} ms; {} of {} failed",
            quantile(&during, 0.99),
            quantile(&before, 0.99),
            failed(&reads),
            reads.len()
        );
        Ok(())
    }

    /// An insert of the tenant that moves.
    fn write(&self) -> Result<RequestBuilder, Failure> {
        let key = self.cluster.key("acme").ok_or("there is no key of acme")?;
        let url = format!("{}/rest/v1/activities", self.cluster.router_url(0));
        let row = json!({ "kind": "call", "subject": "bench", "minutes": 1 });
        let request = reqwest::Client::new().post(url);
        Ok(request.header("apikey", key).json(&row))
    }

    /// A page of each other tenant, out of its database.
    async fn reads(&self) -> Result<Vec<RequestBuilder>, Failure> {
        let http = reqwest::Client::new();
        let url = format!(
            "{}/rest/v1/companies?select=id,name&order=id&limit=20",
            self.cluster.router_url(0)
        );
        let mut reads = Vec::new();
        for number in 1..=OTHERS {
            let path = format!("/tenants/t-{number}/keys");
            let made = self.admin.post(&path, &json!({ "name": "bench" })).await?;
            let key = made["key"].as_str().ok_or("a key was not shown")?;
            let read = http.get(&url).header("apikey", key);
            reads.push(read.header("cache-control", "no-cache"));
        }
        Ok(reads)
    }

    /// The largest table's copy, beside a binary COPY of the same rows.
    async fn copy(&self) -> Result<(), Failure> {
        let (tenant, home, away) = self.home().await?;
        self.fill(&home, &tenant, COPIED).await?;
        let source = self.superuser(&home).await?;
        let bytes: i64 = source
            .query_one(
                "select sum(pg_column_size(a)) from activities a where tenant_id = $1::text::uuid",
                &[&tenant],
            )
            .await?
            .get(0);
        let mb = bytes as f64 / 1e6;
        let target = self.superuser(away).await?;
        target
            .batch_execute("create table bare (like activities including all)")
            .await?;
        let began = Instant::now();
        let select = format!(
            "copy (select * from activities where tenant_id = '{tenant}') to stdout (format binary)"
        );
        let mut out = std::pin::pin!(source.copy_out(&select).await?);
        let sink = target
            .copy_in("copy bare from stdin (format binary)")
            .await?;
        let mut sink = std::pin::pin!(sink);
        while let Some(chunk) = out.next().await {
            sink.send(chunk?).await?;
        }
        sink.finish().await?;
        let bare = began.elapsed().as_secs_f64();
        target.batch_execute("drop table bare").await?;
        let path = format!("/moves/{}", self.start(away, 0).await?);
        self.phase(&path, "copying").await?;
        let began = Instant::now();
        while self.admin.get(&path, &[]).await?["phase"] == "copying" {
            tokio::time::sleep(LOOK).await;
        }
        let copied = began.elapsed().as_secs_f64();
        self.phase(&path, "done").await?;
        println!(
            "copy of {mb:.0} MB: {:.1} MB/s with all that a move copies, {:.1} MB/s by a bare binary COPY",
            mb / copied,
            mb / bare
        );
        Ok(())
    }

    /// All small tenants of one shard to the other.
    async fn many(&self, tenants: u32) -> Result<(), Failure> {
        let bulk = json!({ "prefix": "small", "count": tenants * 2 });
        self.admin.post("/tenants:bulk", &bulk).await?;
        for shard in ["s1", "s2"] {
            let sql = format!(
                "set session_replication_role = replica;
                 insert into activities (tenant_id, kind, subject, minutes)
                 select f.tenant_id, 'call', 'No. ' || n, 1
                 from ringfence.fence f, generate_series(1, {TENANT_ROWS}) n where f.state = 'active';
                 analyze activities"
            );
            self.superuser(shard).await?.batch_execute(&sql).await?;
        }
        self.admin.post("/shards/s1/drain", &json!({})).await?;
        let ask = json!({ "policy": "drain", "shard": "s1" });
        let plan = self.admin.post("/rebalance/plan", &ask).await?;
        let moved = plan["tenants"].as_u64().unwrap_or_default();
        eprintln!("· {moved} tenants to another shard");
        let began = Instant::now();
        let body = json!({ "hash": plan["hash"], "at_once": 4 });
        let job = self.admin.post("/rebalance/apply", &body).await?;
        let path = format!("/jobs/{}", job["id"].as_str().unwrap_or_default());
        let over = self.phase(&path, "over").await?;
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{moved} tenants of {TENANT_ROWS} rows to another shard: {seconds:.0} s, {:.1} tenants a second; not moved: {}",
            moved as f64 / seconds,
            over["result"]["failed"]
        );
        Ok(())
    }
}

/// Clients that send requests by turns, each at its rate.
struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Answer>>>,
}

struct Answer {
    due: Instant,
    /// Behind when it was due.
    ms: f64,
    ok: bool,
}

impl Traffic {
    fn start(requests: Vec<RequestBuilder>, clients: u64, a_second: u64) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let requests = Arc::new(requests);
        let every = Duration::from_secs_f64(clients as f64 / a_second as f64);
        let clients = (0..clients as usize).map(|number| {
            let (stop, requests) = (stop.clone(), requests.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                let mut tick = tokio::time::interval(every);
                for turn in number.. {
                    let due = tick.tick().await.into_std();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let request = requests[turn % requests.len()].try_clone();
                    let Some(request) = request else { break };
                    let ok = succeeds(request).await;
                    let ms = due.elapsed().as_secs_f64() * 1e3;
                    answers.push(Answer { due, ms, ok });
                }
                answers
            })
        });
        Self {
            clients: clients.collect(),
            stop,
        }
    }

    async fn end(self) -> Result<Vec<Answer>, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = Vec::new();
        for client in self.clients {
            answers.extend(client.await?);
        }
        Ok(answers)
    }
}

/// It is answered in full, and well.
async fn succeeds(request: RequestBuilder) -> bool {
    match request.send().await {
        Ok(answer) if answer.status().is_success() => answer.bytes().await.is_ok(),
        Ok(_) | Err(_) => false,
    }
}

/// Of sorted values.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}
