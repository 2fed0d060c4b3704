//! What an answer out of the caches costs, and a write that waits for them:
//! beside a bare axum handler that returns the same bytes, one that gets them from
//! the same Redis Cluster (router/examples/bare_cache.rs), and pgbench with the same
//! guarded statements, by turns. And what they are worth: how soon a change is seen
//! ([`fresh`]), and a day's work with them and without ([`day`]).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use ops::local::{Cluster, Content, Options};
use serde_json::json;

use super::day::{self, Day};
use super::fresh::{self, Fresh};
use super::{Args, Bench, Failure, READY_MAX, Sample, Work, median};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Answers out of the router's memory, misses and writes.
    Memory,
    /// Answers out of Redis.
    Redis,
    /// How soon a cached reader sees a change.
    Fresh,
    /// The scenario `crm_day`, with caches on and off.
    Day,
}

/// All that was measured.
#[derive(Default)]
pub(crate) struct Measured {
    answers: Vec<Cached>,
    fresh: Vec<Fresh>,
    days: Vec<Day>,
}

/// One kind of answer.
struct Cached {
    what: &'static str,
    sample: Sample,
    compared: Option<Compared>,
}

/// With what it is compared.
struct Compared {
    with: &'static str,
    /// Of their rates.
    ratio: f64,
    goal: Option<f64>,
}

const PAGE: Work = Work {
    name: "10 rows of 3 columns",
    path: "companies?select=id,name,industry&order=id&limit=10",
    params: &[],
    inserts: 0,
    goal: None,
};
/// The same rows, by a question that nobody has asked before.
const NEW_PAGE: Work = Work {
    name: "10 rows of 3 columns",
    path: "companies?select=id,name,industry&id=neq.-{new}&order=id&limit=10",
    params: &[],
    inserts: 0,
    goal: None,
};
const BY_KEY: Work = Work {
    name: "one row by key",
    path: "companies?id=eq.{id}&select=id,name,industry",
    params: &[":id"],
    inserts: 0,
    goal: None,
};
const INSERT: Work = Work {
    name: "insert of one row",
    path: "companies",
    params: &[":body"],
    inserts: 1,
    goal: None,
};

const BARE_BYTES: &str = "axum, the same bytes";
const PGBENCH: &str = "pgbench, the same statement";
const PGBENCH_ROW: &str = "pgbench, the same row";
const PGBENCH_INSERT: &str = "pgbench, the same insert";
const BARE_REDIS: &str = "axum, GET of the same row from Redis Cluster";

/// Built by ops/bench.
const BARE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/production/examples/bare_cache"
);

/// Runs them, or one of them, each on a cluster of its own.
pub(crate) async fn measure(args: &Args, only: Option<Part>) -> Result<Measured, Failure> {
    let wanted = |part| only.is_none_or(|only| only == part);
    let mut all = Measured::default();
    if wanted(Part::Memory) {
        all.answers.extend(in_memory(args).await?);
    }
    if wanted(Part::Redis) {
        all.answers.extend(in_redis(args).await?);
    }
    if wanted(Part::Fresh) {
        let cluster = start(true, None).await?;
        all.fresh = fresh::measure(&cluster, &Bench::new(&cluster, args).await?).await?;
        cluster.down().await;
    }
    if wanted(Part::Day) {
        all.days = day::measure(args).await?;
    }
    Ok(all)
}

/// One shard and two routers, with caches or without.
pub(crate) async fn start(caches: bool, cache_bytes_max: Option<u64>) -> Result<Cluster, Failure> {
    eprintln!("· starting a cluster of one shard and two routers, caches: {caches}");
    Ok(Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(2),
        redis: Some(if caches { 3 } else { 0 }),
        caches,
        cache_bytes_max,
        fsync: true,
        content: Content::Demo {
            extra: 0,
            rows: Some(2_000),
        },
        ..Options::default()
    })
    .await?)
}

/// Everything but the second level.
async fn in_memory(args: &Args) -> Result<Vec<Cached>, Failure> {
    let cluster = start(true, None).await?;
    let bench = Bench::new(&cluster, args).await?;
    let (body, tag) = answered_from(&bench, PAGE.path, "l1").await?;
    let bare = Bare::start(&cluster, &body).await?;
    let direct = bench.pgbench_script(&PAGE, "page.sql").await?;
    let direct_insert = bench.pgbench_script(&INSERT, "insert.sql").await?;
    let page = |file, headers: &[(&str, &str)]| bench.wrk_script(&PAGE, file, "/rest/v1/", headers);
    let insert =
        |file, headers: &[(&str, &str)]| bench.wrk_script(&INSERT, file, "/rest/v1/", headers);
    let router = || (bench.router_pid, bench.url.clone());
    let tag = tag.replace('"', "\\\"");
    let mut sides = vec![
        Side::new(
            "read from the router's memory",
            page("l1.lua", &[])?,
            router(),
        )
        .beside(BARE_BYTES, Some(0.75)),
        Side::new(
            "the same, 304",
            page("304.lua", &[("If-None-Match", &tag)])?,
            router(),
        )
        .beside(BARE_BYTES, Some(0.80)),
        Side::new(
            "the same rows, never asked before",
            bench.wrk_script(&NEW_PAGE, "miss.lua", "/rest/v1/", &[])?,
            router(),
        ),
        Side::new(
            "the same with no-store",
            page("past.lua", &[("Cache-Control", "no-store")])?,
            router(),
        )
        .beside(PGBENCH, None),
        Side::pgbench(PGBENCH, direct, &PAGE),
    ];
    if let Some(bare) = &bare {
        let of = || (bare.child.id(), bare.url.clone());
        let plain = |file, prefix| bench.wrk_script(&PAGE, file, prefix, &[]);
        let same = plain("bare.lua", "/")?;
        sides.push(Side::new(BARE_BYTES, same, of()));
        let redis = plain("redis.lua", "/redis/")?;
        sides.push(Side::new("axum, GET of Redis Cluster", redis, of()));
    }
    // Last in each round: they make the others' answers out of date.
    let all = insert("all.lua", &[])?;
    let all = Side::new("insert, seen by all", all, router());
    sides.push(all.beside(PGBENCH_INSERT, None));
    let own = insert("self.lua", &[("Prefer", "visibility=self")])?;
    let own = Side::new("insert, visibility=self", own, router());
    sides.push(own.beside(PGBENCH_INSERT, Some(0.60)));
    sides.push(Side::pgbench(PGBENCH_INSERT, direct_insert, &INSERT));
    let measured = by_turns(args, &bench, &sides);
    drop(bare);
    cluster.down().await;
    measured
}

/// A router whose memory holds nothing: what it answers comes from Redis.
async fn in_redis(args: &Args) -> Result<Vec<Cached>, Failure> {
    let cluster = start(true, Some(0)).await?;
    let bench = Bench::new(&cluster, args).await?;
    let path = BY_KEY.path.replace("{id}", &bench.ids.0.to_string());
    let (body, _) = answered_from(&bench, &path, "l2").await?;
    let bare = Bare::start(&cluster, &body).await?;
    let direct = bench.pgbench_script(&BY_KEY, "row.sql").await?;
    let script = bench.wrk_script(&BY_KEY, "l2.lua", "/rest/v1/", &[])?;
    // Twice, so that Redis has the answers.
    bench.wrk(&script, &bench.url)?;
    bench.wrk(&script, &bench.url)?;
    let router = (bench.router_pid, bench.url.clone());
    let mut sides = vec![
        Side::new("read from Redis, one row", script, router).beside(BARE_REDIS, Some(0.90)),
        Side::pgbench(PGBENCH_ROW, direct, &BY_KEY),
    ];
    if let Some(bare) = &bare {
        let redis = bench.wrk_script(&PAGE, "redis.lua", "/redis/", &[])?;
        let of = (bare.child.id(), bare.url.clone());
        sides.push(Side::new(BARE_REDIS, redis, of));
    }
    let measured = by_turns(args, &bench, &sides);
    drop(bare);
    cluster.down().await;
    measured
}

/// What is measured, and by whom.
struct Side {
    what: &'static str,
    script: PathBuf,
    by: By,
    /// What it is compared with, and the goal.
    beside: Option<(&'static str, Option<f64>)>,
}

enum By {
    /// wrk asks it of this process.
    Wrk { pid: u32, url: String },
    /// It runs the statement of this work straight on Postgres.
    Pgbench(&'static Work),
}

impl Side {
    fn new(what: &'static str, script: PathBuf, (pid, url): (u32, String)) -> Self {
        Self {
            what,
            script,
            by: By::Wrk { pid, url },
            beside: None,
        }
    }

    fn pgbench(what: &'static str, script: PathBuf, work: &'static Work) -> Self {
        Self {
            what,
            script,
            by: By::Pgbench(work),
            beside: None,
        }
    }

    fn beside(self, what: &'static str, goal: Option<f64>) -> Self {
        Self {
            beside: Some((what, goal)),
            ..self
        }
    }

    fn run(&self, bench: &Bench<'_>) -> Result<Sample, Failure> {
        match &self.by {
            By::Wrk { pid, url } => bench.measured(Some(*pid), || bench.wrk(&self.script, url)),
            By::Pgbench(work) => bench.measured(None, || bench.pgbench(&self.script, work)),
        }
    }
}

fn by_turns(args: &Args, bench: &Bench<'_>, sides: &[Side]) -> Result<Vec<Cached>, Failure> {
    let mut samples = vec![Vec::new(); sides.len()];
    for round in 1..=args.rounds {
        for (side, samples) in sides.iter().zip(&mut samples) {
            eprintln!("· {}: round {round} of {}", side.what, args.rounds);
            samples.push(side.run(bench)?);
        }
    }
    let medians: Vec<Sample> = samples.iter().map(|samples| median(samples)).collect();
    let rate_of = |what: &str| {
        let place = sides.iter().position(|side| side.what == what)?;
        Some(medians[place].rate)
    };
    let all = sides.iter().zip(&medians).map(|(side, sample)| Cached {
        what: side.what,
        sample: *sample,
        compared: side.beside.and_then(|(with, goal)| {
            let ratio = sample.rate / rate_of(with)?;
            Some(Compared { with, ratio, goal })
        }),
    });
    Ok(all.collect())
}

/// Asks until the answer comes from that level; its body and tag.
async fn answered_from(
    bench: &Bench<'_>,
    path: &str,
    level: &str,
) -> Result<(String, String), Failure> {
    let http = reqwest::Client::new();
    let asked = async {
        loop {
            let url = format!("{}/rest/v1/{path}", bench.url);
            let answer = http.get(url).header("apikey", &bench.key).send().await?;
            let header = |name: &str| {
                let value = answer.headers().get(name);
                value
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
                    .to_owned()
            };
            let (from, tag) = (header("ringfence-cache"), header("etag"));
            let body = answer.text().await?;
            if from == level {
                return Ok::<_, reqwest::Error>((body, tag));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    Ok(tokio::time::timeout(READY_MAX, asked)
        .await
        .map_err(|_| format!("no answer comes from {level}"))??)
}

/// The bare server.
struct Bare {
    child: Child,
    url: String,
}

impl Bare {
    /// None where it is not built.
    async fn start(cluster: &Cluster, body: &str) -> Result<Option<Self>, Failure> {
        if !Path::new(BARE).exists() {
            eprintln!("· the bare server is not built: its rows are left out");
            return Ok(None);
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let child = Command::new(BARE)
            .arg(format!("127.0.0.1:{port}"))
            .arg(body)
            .args(cluster.redis_urls())
            .env("REDIS_PASSWORD", cluster.redis_password())
            .stdout(Stdio::null())
            .spawn()?;
        let bare = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        let ready = async {
            let url = format!("{}/redis/", bare.url);
            while !reqwest::get(&url)
                .await
                .is_ok_and(|answer| answer.status() == 200)
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(READY_MAX, ready)
            .await
            .map_err(|_| "the bare server did not get ready")?;
        Ok(Some(bare))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Shows what was measured.
pub(crate) fn print(all: &Measured, as_json: bool) {
    if as_json {
        let answers = all.answers.iter().map(|row| {
            let (sample, compared) = (&row.sample, row.compared.as_ref());
            json!({ "what": row.what, "rate": sample.rate, "p50_ms": sample.p50_ms,
                "p99_ms": sample.p99_ms, "service_us": sample.service_us,
                "postgres_us": sample.postgres_us, "beside": compared.map(|c| c.with),
                "ratio": compared.map(|c| c.ratio), "goal": compared.and_then(|c| c.goal) })
        });
        let all = json!({ "caches": answers.collect::<Vec<_>>(),
            "fresh": fresh::json(&all.fresh), "crm_day": day::json(&all.days) });
        println!("{all:#}");
        return;
    }
    let tables = [
        (!all.answers.is_empty()).then(|| table(&all.answers)),
        (!all.fresh.is_empty()).then(|| fresh::table(&all.fresh)),
        (!all.days.is_empty()).then(|| day::table(&all.days)),
    ];
    let tables = tables.into_iter().flatten().map(|table| table.to_string());
    println!("{}", tables.collect::<Vec<_>>().join("\n\n"));
}

fn table(answers: &[Cached]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "CACHES",
        "PER S",
        "P50 MS",
        "P99 MS",
        "SERVICE µS",
        "POSTGRES µS",
        "RATIO",
        "GOAL",
    ]);
    for row in answers {
        let (sample, compared) = (&row.sample, row.compared.as_ref());
        let ratio = compared.map(|c| format!("{:.2} of {}", c.ratio, c.with));
        let goal = compared.and_then(|c| c.goal);
        table.add_row([
            row.what.to_owned(),
            format!("{:.0}", sample.rate),
            format!("{:.2}", sample.p50_ms),
            // pgbench tells none.
            match sample.p99_ms {
                0.0 => "-".to_owned(),
                p99 => format!("{p99:.2}"),
            },
            format!("{:.1}", sample.service_us),
            format!("{:.1}", sample.postgres_us),
            ratio.unwrap_or_default(),
            goal.map_or(String::new(), |goal| format!("≥ {goal}")),
        ]);
    }
    table
}
