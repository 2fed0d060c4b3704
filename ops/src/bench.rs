//! `ringfence-bench`: what a request costs, beside the limit on the same machine.
//!
//! Starts a cluster of one shard and one router, and has the same reads done by
//! turns: by pgbench, straight on Postgres, with the statement text that the
//! router itself was seen to send (guard included), and by wrk through the
//! router. Rates wobble on shared machines, so the CPU time per operation is
//! printed beside them, by process.

#[path = "bench/nodes.rs"]
mod nodes;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use nodes::{Idle, Replicated};
use ops::local::{Cluster, Content, Options};
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

/// Measures requests beside pgbench running the same guarded statements.
#[derive(Parser)]
#[command(name = "ringfence-bench")]
struct Args {
    /// Rounds; medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds a round and side.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Connections of either side.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A kind of read.
struct Work {
    name: &'static str,
    /// Path and query; `{id}` is a random company's.
    path: &'static str,
    /// Values of `$5` and on, as pgbench gets them.
    params: &'static [&'static str],
    /// What the router's rate is to reach of pgbench's.
    goal: f64,
}

const WORK: [Work; 2] = [
    Work {
        name: "one row by key",
        path: "companies?id=eq.{id}",
        params: &[":id"],
        goal: 0.65,
    },
    Work {
        name: "page of 20 rows",
        path: "companies?order=id&limit=20",
        params: &[],
        goal: 0.75,
    },
];

/// What a router holds in memory.
struct Memory {
    tenants: i64,
    exceptions: i64,
    before_bytes: u64,
    after_bytes: u64,
}

const TENANTS: i64 = 1_000_000;
const EXCEPTIONS: i64 = 100_000;
/// Longest wait until the router has heard of all exceptions.
const HEARD_MAX: Duration = Duration::from_secs(120);

impl Args {
    /// Writes the rows of many tenants straight into the control database, and
    /// looks at the router's memory before and after it has heard of them.
    async fn tenants_memory(&self, cluster: &Cluster) -> Result<Memory, Failure> {
        eprintln!("· memory: {TENANTS} tenants, {EXCEPTIONS} of them exceptions");
        let pid = process(cluster, "router-1")?;
        let before_bytes = resident(pid);
        let control = connect(&cluster.control_dsn()).await?;
        control
            .batch_execute(&format!(
                "begin;
                 insert into ringfence.tenant
                   (id, slug, name, region, shard, ring_shard, epoch, state, version, exceptional)
                 select gen_random_uuid(), 'bench-' || n, 'Bench', 'local', 's1', 's1',
                   case when n <= {EXCEPTIONS} then 2 else 1 end, 'active', v.version + 1, n <= {EXCEPTIONS}
                 from generate_series(1, {TENANTS}) n, ringfence.version v;
                 select ringfence.next_version(false);
                 commit"
            ))
            .await?;
        let wanted = format!("ringfence_placement_exceptions {EXCEPTIONS}");
        let url = format!("{}/metrics", cluster.router_admin_url(0));
        let heard = async {
            while !reqwest::get(&url).await?.text().await?.contains(&wanted) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok::<_, reqwest::Error>(())
        };
        tokio::time::timeout(HEARD_MAX, heard).await??;
        Ok(Memory {
            tenants: TENANTS,
            exceptions: EXCEPTIONS,
            before_bytes,
            after_bytes: resident(pid),
        })
    }
}

fn process(cluster: &Cluster, name: &str) -> Result<u32, Failure> {
    let status = cluster.status();
    let node = status.into_iter().find(|node| node.name == name);
    let pid = node.and_then(|node| node.pid);
    pid.ok_or_else(|| format!("{name} is not running").into())
}

/// Resident memory (proc(5): the second field of `statm`, in pages of 4 KiB).
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    pages
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0)
        * 4096
}

type Failure = Box<dyn std::error::Error>;

/// One side of one round.
#[derive(Clone, Copy, Default)]
struct Sample {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    router_us: f64,
    postgres_us: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfence-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    eprintln!("· starting a cluster of one shard and one router");
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        fsync: true,
        content: Content::Demo {
            extra: 0,
            rows: Some(5_000),
        },
        ..Options::default()
    })
    .await?;
    let bench = Bench::new(&cluster, &args).await?;
    let mut results = Vec::new();
    for work in &WORK {
        results.push((work, bench.compare(work).await?));
    }
    let memory = args.tenants_memory(&cluster).await?;
    cluster.down().await;
    let (replicated, idle) = nodes::measure(&args).await?;
    print(&results, &memory, &replicated, &idle, args.json);
    Ok(())
}

struct Bench<'a> {
    args: &'a Args,
    url: String,
    key: String,
    tenant: String,
    dsn: String,
    superuser: Client,
    router_pid: u32,
    postgres_pid: u32,
    /// Ids of companies.
    ids: (i64, i64),
    folder: std::path::PathBuf,
}

impl<'a> Bench<'a> {
    async fn new(cluster: &Cluster, args: &'a Args) -> Result<Self, Failure> {
        let control = connect(&cluster.control_dsn()).await?;
        let tenant: uuid::Uuid = control
            .query_one("select id from ringfence.tenant where slug = 'acme'", &[])
            .await?
            .get(0);
        let dsn = cluster.shard_dsn("s1-primary")?;
        let superuser = connect(&dsn).await?;
        superuser.batch_execute("vacuum analyze").await?;
        let ids = superuser
            .query_one(
                "select min(id), max(id) from companies where tenant_id = $1 and id > 1000",
                &[&tenant],
            )
            .await?;
        Ok(Self {
            args,
            url: cluster.router_url(0),
            key: cluster.key("acme").ok_or("there is no key of acme")?,
            tenant: tenant.to_string(),
            superuser,
            router_pid: process(cluster, "router-1")?,
            postgres_pid: process(cluster, "s1-primary")?,
            ids: (ids.get(0), ids.get(1)),
            folder: cluster.path().to_owned(),
            dsn,
        })
    }

    /// Rounds by turns; the medians of (pgbench, router).
    async fn compare(&self, work: &Work) -> Result<(Sample, Sample), Failure> {
        let script = self.pgbench_script(work).await?;
        let lua = self.wrk_script(work, &[])?;
        let (mut direct, mut routed) = (Vec::new(), Vec::new());
        for round in 1..=self.args.rounds {
            eprintln!("· {}: round {round} of {}", work.name, self.args.rounds);
            direct.push(self.measured(|| self.pgbench(&script))?);
            routed.push(self.measured(|| self.wrk(&lua))?);
        }
        Ok((median(&direct), median(&routed)))
    }

    /// The statement that the router sends for this work, as Postgres saw it.
    async fn pgbench_script(&self, work: &Work) -> Result<std::path::PathBuf, Failure> {
        let path = work.path.replace("{id}", &self.ids.0.to_string());
        let url = format!("{}/rest/v1/{path}", self.url);
        let answer = reqwest::Client::new()
            .get(url)
            .header("apikey", &self.key)
            .send()
            .await?;
        if answer.status() != 200 {
            return Err(format!("{path}: {}", answer.text().await?).into());
        }
        let seen = self
            .superuser
            .query_one(
                "select query from pg_stat_activity
                 where application_name like 'ringfence-router router%' and query like 'with g as%'
                 order by state_change desc limit 1",
                &[],
            )
            .await?;
        let mut text: String = seen.get(0);
        for (position, value) in work.params.iter().enumerate().rev() {
            text = text.replace(&format!("${}", position + 5), value);
        }
        let text = text
            .replace("$1", ":tenant")
            .replace("$2", "1")
            .replace("$3", ":claims")
            .replace("$4", "null");
        let script = format!("\\set id random({}, {})\n{text};\n", self.ids.0, self.ids.1);
        self.write("pgbench.sql", &script)
    }

    fn wrk_script(
        &self,
        work: &Work,
        headers: &[(&str, &str)],
    ) -> Result<std::path::PathBuf, Failure> {
        let (before, after) = work.path.split_once("{id}").unwrap_or((work.path, ""));
        let id = match work.path.contains("{id}") {
            true => format!("math.random({}, {})", self.ids.0, self.ids.1),
            false => "\"\"".to_owned(),
        };
        let mut more = String::new();
        for (name, value) in headers {
            let _ = writeln!(more, "wrk.headers[\"{name}\"] = \"{value}\"");
        }
        let script = format!(
            "wrk.headers[\"apikey\"] = \"{}\"\n{more}\
             request = function() return wrk.format(nil, \"/rest/v1/{before}\" .. {id} .. \"{after}\") end\n\
             done = function(summary, latency)\n\
               local bad = summary.errors.status + summary.errors.read + summary.errors.timeout\n\
               io.write(string.format(\"RESULT %d %d %f %f %d\\n\", summary.requests, summary.duration,\n\
                 latency:percentile(50), latency:percentile(99), bad))\n\
             end\n",
            self.key
        );
        self.write("wrk.lua", &script)
    }

    fn write(&self, name: &str, text: &str) -> Result<std::path::PathBuf, Failure> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn pgbench(&self, script: &Path) -> Result<Sample, Failure> {
        let claims = json!({ "role": "authenticated", "tenant_id": self.tenant });
        let output = Command::new("pgbench")
            .args(["-n", "-M", "prepared", "-j", "1", "-c"])
            .arg(self.args.connections.to_string())
            .args(["-T", &self.args.seconds.to_string(), "-f"])
            .arg(script)
            .args(["-D", &format!("tenant={}", self.tenant)])
            .args(["-D", &format!("claims={claims}")])
            .arg(&self.dsn)
            .env(
                "PGOPTIONS",
                "-c role=authenticated -c jit=off -c default_transaction_read_only=on",
            )
            .stderr(Stdio::piped())
            .output()
            .map_err(|error| format!("pgbench can't be run: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |before: &str| {
            let rest = text.split(before).nth(1)?;
            rest.split_whitespace().next()?.parse::<f64>().ok()
        };
        match (number("tps = "), number("latency average = ")) {
            (Some(rate), Some(average)) if output.status.success() => Ok(Sample {
                rate,
                p50_ms: average,
                ..Sample::default()
            }),
            _ => Err(format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    }

    fn wrk(&self, script: &Path) -> Result<Sample, Failure> {
        let output = Command::new("wrk")
            .args(["-t", "1", "-c", &self.args.connections.to_string()])
            .args(["-d", &format!("{}s", self.args.seconds), "-s"])
            .arg(script)
            .arg(&self.url)
            .output()
            .map_err(|error| format!("wrk can't be run: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.split("RESULT ").nth(1).unwrap_or_default();
        let numbers: Vec<f64> = line
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        let [requests, duration, p50, p99, bad] = numbers[..] else {
            return Err(format!("wrk: {text}").into());
        };
        if bad > 0.0 {
            return Err(format!("{bad} requests failed").into());
        }
        Ok(Sample {
            rate: requests / (duration / 1e6),
            p50_ms: p50 / 1e3,
            p99_ms: p99 / 1e3,
            ..Sample::default()
        })
    }

    /// A run with the CPU time that router and Postgres spent on it.
    fn measured(&self, run: impl FnOnce() -> Result<Sample, Failure>) -> Result<Sample, Failure> {
        let before = (cpu(self.router_pid), cpu(self.postgres_pid));
        let sample = run()?;
        let operations = sample.rate * self.args.seconds as f64;
        let each = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() * 1e6 / operations
        };
        Ok(Sample {
            router_us: each(before.0, cpu(self.router_pid)),
            postgres_us: each(before.1, cpu(self.postgres_pid)),
            ..sample
        })
    }
}

async fn connect(dsn: &str) -> Result<Client, Failure> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// CPU time of a process and all below it, those that have ended included
/// (proc(5): fields 14 to 17 of `stat`, in clock ticks of 10 ms).
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    let children = format!("/proc/{pid}/task/{pid}/children");
    let below: Duration = std::fs::read_to_string(children)
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .map(cpu)
        .sum();
    Duration::from_millis(ticks * 10) + below
}

fn median(samples: &[Sample]) -> Sample {
    let of = |field: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Sample {
        rate: of(|s| s.rate),
        p50_ms: of(|s| s.p50_ms),
        p99_ms: of(|s| s.p99_ms),
        router_us: of(|s| s.router_us),
        postgres_us: of(|s| s.postgres_us),
    }
}

fn print(
    results: &[(&Work, (Sample, Sample))],
    memory: &Memory,
    replicated: &[Replicated],
    idle: &Idle,
    as_json: bool,
) {
    if as_json {
        let side = |s: &Sample| -> Value {
            json!({ "rate": s.rate, "p50_ms": s.p50_ms, "p99_ms": s.p99_ms,
                "router_us": s.router_us, "postgres_us": s.postgres_us })
        };
        let rows: Vec<Value> = results
            .iter()
            .map(|(work, (direct, routed))| {
                json!({ "work": work.name, "pgbench": side(direct), "router": side(routed),
                    "ratio": routed.rate / direct.rate, "goal": work.goal })
            })
            .collect();
        let memory = json!({ "tenants": memory.tenants, "exceptions": memory.exceptions,
            "before_bytes": memory.before_bytes, "after_bytes": memory.after_bytes });
        let replicated: Vec<Value> = replicated
            .iter()
            .map(|row| {
                json!({ "replicas": row.replicas, "router": side(&row.sample),
                    "primary_us": row.primary_us })
            })
            .collect();
        let idle = json!({ "look_us": idle.look_us, "connections": idle.connections,
            "bytes_each": idle.bytes_each });
        println!(
            "{:#}",
            json!({ "work": rows, "memory": memory, "replicas": replicated, "idle": idle })
        );
        return;
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "WORK",
        "BY",
        "PER S",
        "P50 MS",
        "P99 MS",
        "ROUTER µS",
        "POSTGRES µS",
        "OF PGBENCH",
        "GOAL",
    ]);
    for (work, (direct, routed)) in results {
        let row = |by: &str, s: &Sample, ratio: String, goal: String| {
            let mut p99 = String::from("-");
            if s.p99_ms > 0.0 {
                p99.clear();
                let _ = write!(p99, "{:.2}", s.p99_ms);
            }
            [
                work.name.to_owned(),
                by.to_owned(),
                format!("{:.0}", s.rate),
                format!("{:.2}", s.p50_ms),
                p99,
                format!("{:.1}", s.router_us),
                format!("{:.1}", s.postgres_us),
                ratio,
                goal,
            ]
        };
        table.add_row(row("pgbench", direct, String::new(), String::new()));
        let ratio = format!("{:.2}", routed.rate / direct.rate);
        table.add_row(row("router", routed, ratio, format!("≥ {}", work.goal)));
    }
    println!("{table}");
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "\nA router's memory: {} MiB, and {} MiB once it knows {} tenants with {} exceptions.",
        mib(memory.before_bytes),
        mib(memory.after_bytes),
        memory.tenants,
        memory.exceptions
    );
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "REPLICAS",
        "READS PER S",
        "P50 MS",
        "P99 MS",
        "ROUTER µS",
        "PRIMARY µS",
    ]);
    for row in replicated {
        table.add_row([
            row.replicas.to_string(),
            format!("{:.0}", row.sample.rate),
            format!("{:.2}", row.sample.p50_ms),
            format!("{:.2}", row.sample.p99_ms),
            format!("{:.1}", row.sample.router_us),
            format!("{:.1}", row.primary_us),
        ]);
    }
    println!("\n{table}");
    println!(
        "\nA router looks at each node five times a second, for {:.0} µs of its CPU each.\n\
         {} idle connections of clients: {:.1} KiB each.",
        idle.look_us,
        idle.connections,
        idle.bytes_each as f64 / 1024.0
    );
}
