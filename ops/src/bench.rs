//! `ringfence-bench`: what a request costs, beside the limit on the same machine.
//!
//! Starts a cluster of one shard and one router, and has the same requests done
//! by turns: by pgbench, straight on Postgres, with the statement text that the
//! router itself was seen to send (guard included), and by wrk through the
//! router and through the real PostgREST, where that is installed. Rates wobble
//! on shared machines, so the CPU time per operation is printed beside them, by
//! process.

#[path = "bench/caches.rs"]
mod caches;
#[path = "bench/day.rs"]
mod day;
#[path = "bench/fresh.rs"]
mod fresh;
#[path = "bench/moves.rs"]
mod moves;
#[path = "bench/nodes.rs"]
mod nodes;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
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
    /// Rounds; medians are printed. Of `--moves`: ten cut-overs each.
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
    /// Only requests of one router, without its memory, replicas and idle connections.
    #[arg(long)]
    requests: bool,
    /// Measure the caches instead: hits of both levels, misses, writes, how soon
    /// changes are seen, and a day's work with them and without; or only one of these.
    #[arg(long, value_enum, value_name = "PART", num_args = 0..=1, require_equals = true)]
    caches: Option<Option<caches::Part>>,
    /// Measure moves of tenants instead: pauses, copies, many small ones.
    #[arg(long)]
    moves: bool,
    /// Only this of `--moves`.
    #[arg(long, value_enum)]
    part: Option<moves::Part>,
    /// Small tenants that change shards, of `--moves`.
    #[arg(long, default_value_t = 10_000)]
    tenants: u32,
    /// Size of the tenant that changes shards under writes, of `--moves`.
    #[arg(long, default_value_t = 16)]
    megabytes: u32,
}

/// A kind of request.
struct Work {
    name: &'static str,
    /// Path and query; `{id}` is a random company's.
    path: &'static str,
    /// Values of `$5` and on, as pgbench gets them.
    params: &'static [&'static str],
    /// As many companies are inserted; a read inserts none.
    inserts: usize,
    /// What the router's rate is to reach of pgbench's.
    goal: Option<f64>,
}

/// Reads first: inserts make the table larger.
const WORK: [Work; 5] = [
    Work {
        name: "one row by key",
        path: "companies?id=eq.{id}",
        params: &[":id"],
        inserts: 0,
        goal: Some(0.65),
    },
    Work {
        name: "page of 20 rows",
        path: "companies?order=id&limit=20",
        params: &[],
        inserts: 0,
        goal: Some(0.75),
    },
    Work {
        name: "page of 20 with an embed of many",
        path: "companies?select=id,name,contacts(id,email)&order=id&limit=20",
        params: &[],
        inserts: 0,
        goal: Some(0.80),
    },
    Work {
        name: "insert of one row",
        path: "companies",
        params: &[":body"],
        inserts: 1,
        goal: Some(0.60),
    },
    Work {
        name: "insert of 1,000 rows",
        path: "companies",
        params: &[":body"],
        inserts: 1_000,
        goal: Some(0.85),
    },
];

impl Work {
    /// The rows, as JSON; none of a read.
    fn body(&self) -> Option<String> {
        let row = |n: usize| json!({ "name": format!("Bench {n}"), "employees": n });
        match self.inserts {
            0 => None,
            1 => Some(row(1).to_string()),
            rows => Some(Value::from_iter((0..rows).map(row)).to_string()),
        }
    }
}

/// The same request by all who can carry it out.
struct Compared {
    pgbench: Sample,
    postgrest: Option<Sample>,
    router: Sample,
}

/// The real PostgREST on the same shard. Its pre-request function enters the
/// tenant, so that it answers from the same rows behind the same guard.
struct Postgrest {
    child: Child,
    url: String,
}

/// Where `install_postgrest` of ops/install.sh puts it.
const POSTGREST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../.tools/postgrest-12.0.2/postgrest"
);

impl Postgrest {
    /// None where it is not installed.
    async fn start(cluster: &Cluster, bench: &Bench<'_>) -> Result<Option<Self>, Failure> {
        if !Path::new(POSTGREST).exists() {
            eprintln!("· PostgREST is not installed: its rows are left out");
            return Ok(None);
        }
        bench
            .superuser
            .batch_execute(&format!(
                "create schema bench; grant usage on schema bench to authenticated;
                 create function bench.enter() returns void language plpgsql as $$ begin
                   perform ringfence.enter('{}', 1, case current_setting('transaction_read_only')
                     when 'on' then 'read' else 'write' end, '{{}}', null);
                 end $$",
                bench.tenant
            ))
            .await?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let child = Command::new(POSTGREST)
            .env("PGRST_DB_URI", cluster.router_dsn("s1-primary")?)
            .env("PGRST_DB_SCHEMAS", "public")
            .env("PGRST_DB_ANON_ROLE", "authenticated")
            .env("PGRST_DB_PRE_REQUEST", "bench.enter")
            .env("PGRST_DB_POOL", bench.args.connections.to_string())
            .env("PGRST_SERVER_HOST", "127.0.0.1")
            .env("PGRST_SERVER_PORT", port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        let ready = async {
            let url = format!("{}/companies?limit=1", started.url);
            while !reqwest::get(&url)
                .await
                .is_ok_and(|answer| answer.status() == 200)
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(READY_MAX, ready)
            .await
            .map_err(|_| "PostgREST did not get ready")?;
        Ok(Some(started))
    }
}

impl Drop for Postgrest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests of random rows that the load takes its turns with.
const DRAWN: usize = 10_000;

/// Longest wait for PostgREST, and for a statement to be seen.
const READY_MAX: Duration = Duration::from_secs(20);

/// What is measured beside requests.
struct Others {
    memory: Memory,
    replicated: Vec<Replicated>,
    idle: Idle,
}

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
    /// Of router or PostgREST.
    service_us: f64,
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
    if args.moves {
        let (size, only) = (args.megabytes, args.part);
        return moves::measure(args.tenants, size, args.rounds, only).await;
    }
    if let Some(only) = args.caches {
        caches::print(&caches::measure(&args, only).await?, args.json);
        return Ok(());
    }
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
    let postgrest = Postgrest::start(&cluster, &bench).await?;
    for work in &WORK {
        results.push((work, bench.compare(work, postgrest.as_ref()).await?));
    }
    drop(postgrest);
    let others = match args.requests {
        true => None,
        false => Some(args.tenants_memory(&cluster).await?),
    };
    cluster.down().await;
    let others = match others {
        Some(memory) => {
            let (replicated, idle) = nodes::measure(&args).await?;
            Some(Others {
                memory,
                replicated,
                idle,
            })
        }
        None => None,
    };
    print(&results, others.as_ref(), args.json);
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

    /// Rounds by turns, and their medians.
    async fn compare(
        &self,
        work: &Work,
        postgrest: Option<&Postgrest>,
    ) -> Result<Compared, Failure> {
        let script = self.pgbench_script(work, "pgbench.sql").await?;
        let lua = self.wrk_script(work, "wrk.lua", "/rest/v1/", &[])?;
        let plain = self.wrk_script(work, "plain.lua", "/", &[])?;
        let (mut direct, mut routed, mut other) = (Vec::new(), Vec::new(), Vec::new());
        let router = self.router_pid;
        for round in 1..=self.args.rounds {
            eprintln!("· {}: round {round} of {}", work.name, self.args.rounds);
            direct.push(self.measured(None, || self.pgbench(&script, work))?);
            if let Some(postgrest) = postgrest {
                let run = || self.wrk(&plain, &postgrest.url);
                other.push(self.measured(Some(postgrest.child.id()), run)?);
            }
            routed.push(self.measured(Some(router), || self.wrk(&lua, &self.url))?);
        }
        Ok(Compared {
            pgbench: median(&direct),
            postgrest: (!other.is_empty()).then(|| median(&other)),
            router: median(&routed),
        })
    }

    /// The statements that the router sends for this work, as Postgres saw them.
    async fn pgbench_script(&self, work: &Work, name: &str) -> Result<std::path::PathBuf, Failure> {
        let mut text = match work.body() {
            None => self.read_text(work).await?,
            Some(body) => self.insert_text(work, body).await?,
        };
        for (position, value) in work.params.iter().enumerate().rev() {
            text = text.replace(&format!("${}", position + 5), value);
        }
        let text = text
            .replace("$1", ":tenant")
            .replace("$2", "1")
            .replace("$3", ":claims")
            .replace("$4", "null");
        let script = match work.inserts {
            0 => format!("\\set id random({}, {})\n{text};\n", self.ids.0, self.ids.1),
            _ => format!(
                "\\startpipeline\nbegin read write;\n\
                 select ringfence.enter(:tenant, 1, 'write', :claims, null);\n{text};\ncommit;\n\
                 \\endpipeline\n"
            ),
        };
        self.write(name, &script)
    }

    async fn read_text(&self, work: &Work) -> Result<String, Failure> {
        let path = work.path.replace("{id}", &self.ids.0.to_string());
        let url = format!("{}/rest/v1/{path}", self.url);
        let answer = reqwest::Client::new()
            .get(url)
            .header("apikey", &self.key)
            // The shard itself is to be asked.
            .header("cache-control", "no-store")
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
        Ok(seen.get(0))
    }

    /// A lock holds the insert up for as long as it takes to read it.
    async fn insert_text(&self, work: &Work, body: String) -> Result<String, Failure> {
        let locker = connect(&self.dsn).await?;
        locker
            .batch_execute("begin; lock table companies in share mode")
            .await?;
        let request = reqwest::Client::new()
            .post(format!("{}/rest/v1/{}", self.url, work.path))
            .header("apikey", &self.key)
            .header("content-type", "application/json")
            .body(body);
        let answer = tokio::spawn(request.send());
        let seen = async {
            loop {
                let waiting = self
                    .superuser
                    .query_opt(
                        "select query from pg_stat_activity
                         where application_name like 'ringfence-router router%' and wait_event_type = 'Lock'",
                        &[],
                    )
                    .await?;
                match waiting {
                    Some(row) => return Ok::<String, Failure>(row.get(0)),
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let text = tokio::time::timeout(READY_MAX, seen).await??;
        locker.batch_execute("rollback").await?;
        let answer = answer.await??;
        match answer.status().as_u16() {
            201 => Ok(text),
            status => Err(format!("{}: {status} {}", work.path, answer.text().await?).into()),
        }
    }

    fn wrk_script(
        &self,
        work: &Work,
        name: &str,
        prefix: &str,
        headers: &[(&str, &str)],
    ) -> Result<std::path::PathBuf, Failure> {
        // Made beforehand: what the load costs is taken from what is measured.
        let requests = match work.path.split_once("{id}") {
            Some((before, after)) => format!(
                "local requests, n = {{}}, 0\n\
                 init = function() for i = 1, {DRAWN} do\n\
                   requests[i] = wrk.format(nil, \"{prefix}{before}\" .. math.random({}, {}) .. \"{after}\")\n\
                 end end\n\
                 request = function() n = n % {DRAWN} + 1; return requests[n] end\n",
                self.ids.0, self.ids.1
            ),
            None => match work.path.split_once("{new}") {
                // Never the same twice, as good as: each thread begins elsewhere.
                Some((before, after)) => format!(
                    "init = function() math.randomseed(os.time() + tonumber(tostring({{}}):match(\"0x(%x+)\"), 16) % 1000000) end\n\
                     request = function() return wrk.format(nil, \"{prefix}{before}\" .. \
                       math.random(1, 1000000000) .. \"{after}\") end\n"
                ),
                None => format!("wrk.path = \"{prefix}{}\"\n", work.path),
            },
        };
        let mut more = String::new();
        for (name, value) in headers {
            let _ = writeln!(more, "wrk.headers[\"{name}\"] = \"{value}\"");
        }
        let body = work.body().map_or_else(String::new, |body| {
            format!(
                "wrk.method = \"POST\"\nwrk.headers[\"Content-Type\"] = \"application/json\"\n\
                 wrk.body = [==[{body}]==]\n"
            )
        });
        let script = format!(
            "wrk.headers[\"apikey\"] = \"{}\"\n{more}{body}{requests}\
             done = function(summary, latency)\n\
               local bad = summary.errors.status + summary.errors.read + summary.errors.timeout\n\
               io.write(string.format(\"RESULT %d %d %f %f %d\\n\", summary.requests, summary.duration,\n\
                 latency:percentile(50), latency:percentile(99), bad))\n\
             end\n",
            self.key
        );
        self.write(name, &script)
    }

    fn write(&self, name: &str, text: &str) -> Result<std::path::PathBuf, Failure> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn pgbench(&self, script: &Path, work: &Work) -> Result<Sample, Failure> {
        let claims = json!({ "role": "authenticated", "tenant_id": self.tenant });
        let output = Command::new("pgbench")
            .args(["-n", "-M", "prepared", "-j", "1", "-c"])
            .arg(self.args.connections.to_string())
            .args(["-T", &self.args.seconds.to_string(), "-f"])
            .arg(script)
            .args(["-D", &format!("tenant={}", self.tenant)])
            .args(["-D", &format!("claims={claims}")])
            // An empty value is refused.
            .args(work.body().map(|body| format!("-Dbody={body}")))
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

    fn wrk(&self, script: &Path, url: &str) -> Result<Sample, Failure> {
        let output = Command::new("wrk")
            .args(["-t", "1", "-c", &self.args.connections.to_string()])
            .args(["-d", &format!("{}s", self.args.seconds), "-s"])
            .arg(script)
            .arg(url)
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

    /// A run with the CPU time that a service, where one has a part in it, and
    /// Postgres spent on it.
    fn measured(
        &self,
        service: Option<u32>,
        run: impl FnOnce() -> Result<Sample, Failure>,
    ) -> Result<Sample, Failure> {
        let of_service = || service.map(cpu).unwrap_or_default();
        let before = (of_service(), cpu(self.postgres_pid));
        let sample = run()?;
        let operations = sample.rate * self.args.seconds as f64;
        let each = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() * 1e6 / operations
        };
        Ok(Sample {
            service_us: each(before.0, of_service()),
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
        service_us: of(|s| s.service_us),
        postgres_us: of(|s| s.postgres_us),
    }
}

fn print(results: &[(&Work, Compared)], others: Option<&Others>, as_json: bool) {
    if as_json {
        let side = |s: &Sample| -> Value {
            json!({ "rate": s.rate, "p50_ms": s.p50_ms, "p99_ms": s.p99_ms,
                "service_us": s.service_us, "postgres_us": s.postgres_us })
        };
        let rows: Vec<Value> = results
            .iter()
            .map(|(work, compared)| {
                let (pgbench, router) = (&compared.pgbench, &compared.router);
                json!({ "work": work.name, "pgbench": side(pgbench), "router": side(router),
                    "postgrest": compared.postgrest.as_ref().map(side),
                    "ratio": router.rate / pgbench.rate, "goal": work.goal })
            })
            .collect();
        let mut all = json!({ "work": rows });
        if let Some(Others {
            memory,
            replicated,
            idle,
        }) = others
        {
            all["memory"] = json!({ "tenants": memory.tenants, "exceptions": memory.exceptions,
                "before_bytes": memory.before_bytes, "after_bytes": memory.after_bytes });
            let rows = replicated.iter().map(|row| {
                json!({ "replicas": row.replicas, "router": side(&row.sample),
                    "primary_us": row.primary_us })
            });
            all["replicas"] = rows.collect();
            all["idle"] = json!({ "look_us": idle.look_us, "connections": idle.connections,
                "bytes_each": idle.bytes_each });
        }
        println!("{all:#}");
        return;
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "WORK",
        "BY",
        "PER S",
        "P50 MS",
        "P99 MS",
        "SERVICE µS",
        "POSTGRES µS",
        "OF PGBENCH",
        "GOAL",
    ]);
    for (work, compared) in results {
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
                format!("{:.1}", s.service_us),
                format!("{:.1}", s.postgres_us),
                ratio,
                goal,
            ]
        };
        let pgbench = &compared.pgbench;
        let ratio = |s: &Sample| format!("{:.2}", s.rate / pgbench.rate);
        table.add_row(row("pgbench", pgbench, String::new(), String::new()));
        if let Some(other) = &compared.postgrest {
            table.add_row(row("PostgREST", other, ratio(other), String::new()));
        }
        let goal = work.goal.map_or(String::new(), |goal| format!("≥ {goal}"));
        table.add_row(row(
            "router",
            &compared.router,
            ratio(&compared.router),
            goal,
        ));
    }
    println!("{table}");
    if let Some(others) = others {
        print_others(others);
    }
}

fn print_others(others: &Others) {
    let Others {
        memory,
        replicated,
        idle,
    } = others;
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
            format!("{:.1}", row.sample.service_us),
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
