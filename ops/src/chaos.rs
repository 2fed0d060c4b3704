//! `ringfence-chaos`: breaks a cluster while it is being used, and says what
//! its users saw.
//!
//! Each fault gets a cluster of its own: one shard with two replicas, of which
//! any one must have a commit before it counts, and two routers, or three. The load
//! tester drives `crm_day` (moves: `move_under_load`) with its checks; a while into the run the fault
//! strikes, later it is mended. Nothing may be lost, doubled, stale or leaked,
//! and only requests in flight at the dead node may fail.
//!
//! Crowds break nothing: they ask for too much (`chaos/crowd.rs`). Nor do changes
//! of the schema, or of the fleet: they must not be felt (`chaos/migrate.rs`,
//! `chaos/rebalance.rs`). A tenant's life has no load beside it (`chaos/life.rs`).

#[path = "chaos/cache.rs"]
mod cache;
#[path = "chaos/crowd.rs"]
mod crowd;
#[path = "chaos/heirs.rs"]
mod heirs;
#[path = "chaos/life.rs"]
mod life;
#[path = "chaos/migrate.rs"]
mod migrate;
#[path = "chaos/moves.rs"]
mod moves;
#[path = "chaos/plot.rs"]
mod plot;
#[path = "chaos/rebalance.rs"]
mod rebalance;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use clap::{Parser, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use crowd::Crowd;
use moves::Victim;
use ops::local::{Cluster, Condition, Options};
use serde_json::Value;
use tokio::process::{Child, Command};

/// Breaks a cluster under load, and checks what its users saw.
#[derive(Clone, Parser)]
#[command(name = "ringfence-chaos")]
struct Args {
    /// What breaks; several one after another.
    #[arg(required = true, value_enum)]
    faults: Vec<Fault>,
    /// Seconds of load for each; an overload lasts three minutes at least.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How much of `crm_day`'s load, which is about 240 requests a second; where
    /// tenants move, of 100 requests a second.
    #[arg(long, default_value_t = 2.0)]
    scale: f64,
    /// Moves at most, of those faults that move tenants.
    #[arg(long, default_value_t = 1_000)]
    rounds: usize,
    /// Moves at least, of those faults that move tenants: fewer prove too little.
    #[arg(long, default_value_t = 1)]
    moves: usize,
    /// Size of the tenant of `life`.
    #[arg(long, default_value_t = 100)]
    megabytes: u64,
    /// Routers, of those faults that have a cluster of two otherwise.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=3))]
    routers: u16,
    /// From a promotion to the first write that is acknowledged it may take so long,
    /// in milliseconds.
    #[arg(long)]
    writes_again_ms: Option<u64>,
    /// Keep the load tester's reports here, and a plot of each fault that is mended.
    #[arg(long)]
    reports: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// The primary is shut down in order, and a replica promoted.
    SwitchOver,
    /// The primary is killed, a replica promoted, and the old primary returns.
    PrimaryKill,
    /// The primary freezes, a replica is promoted, and the old primary thaws.
    PrimaryFreeze,
    /// The primary's network is cut, a replica is promoted, and the network is
    /// mended: nobody was told of anything, and an old primary is back.
    PrimaryCut,
    /// A replica is killed, and returns.
    ReplicaKill,
    /// A replica freezes, and thaws.
    ReplicaFreeze,
    /// A replica's network is cut, and mended.
    ReplicaCut,
    /// A router is killed, and returns.
    RouterKill,
    /// A router freezes, and thaws: its clients have to wait, or to ask another.
    RouterFreeze,
    /// A router's network is cut, and mended.
    RouterCut,
    /// The control database is killed, and returns.
    ControlKill,
    /// The control database freezes, and thaws.
    ControlFreeze,
    /// The control database's network is cut, and mended.
    ControlCut,
    /// The worker is killed, and returns.
    WorkerKill,
    /// All of Redis is killed, and returns, empty.
    RedisKill,
    /// Everything that the caches are made of, at random, one after another.
    Cache,
    /// A tenant sends twenty times its limit.
    NoisyNeighbour,
    /// A tenant sends queries that wait for long.
    SlowNeighbour,
    /// A tenant sends queries that compute for long.
    BusyNeighbour,
    /// A tenant asks for huge results.
    HugeNeighbour,
    /// All tenants together ask for three times what can be done.
    Overload,
    /// Tenants move from shard to shard and back, again and again.
    Move,
    /// The same, while the worker is killed again and again.
    MoveKill,
    /// One tenant forward and back, while the worker is killed at random.
    Moves,
    /// Tenants move, while the source's primary is killed, and returns.
    MoveSource,
    /// Tenants move, while the target's primary is killed, and a replica promoted.
    MoveTarget,
    /// Tenants move, while a router is killed, and returns.
    MoveRouter,
    /// Tenants move, while the control database is killed, and returns.
    MoveControl,
    /// Tenants move, while a node of Redis is killed, and returns.
    MoveRedis,
    /// A shard is added to three, gets its share of the tenants, and is emptied again.
    Rebalance,
    /// The schema of three shards changes; compared with the same load without that.
    Migrate,
    /// A large tenant is exported, imported and deleted, while the worker is killed.
    Life,
}

type Failure = Box<dyn std::error::Error>;

/// How long the HA manager takes to see that a primary is gone.
const DETECTED: Duration = Duration::from_millis(500);
/// Longest wait for a write after a promotion.
const WRITES_AGAIN_MAX: Duration = Duration::from_secs(30);
/// The load where tenants move.
const MOVES: &str = "move_under_load";
const SHARD: &str = "s1";
const PRIMARY: &str = "s1-primary";
const REPLICA: &str = "s1-replica1";
const ROUTER: &str = "router-1";
const CONTROL: &str = "control";
/// The load's connections, each with one request at a time: as many are in flight.
const CONNECTIONS: u64 = 64;
/// Part of `move_under_load`'s requests: all of them fill two cores where moves compute,
/// too, and who is refused for want of a machine proves nothing.
const MOVES_LOAD: f64 = 0.25;
/// How the load tester calls what has no answer: of a connection that breaks, of a
/// wait for too long, and of one that can't be made.
const UNANSWERED: [&str; 3] = ["cut", "timeout", "refused"];
const REDIS: [&str; 6] = [
    "redis-1", "redis-2", "redis-3", "redis-4", "redis-5", "redis-6",
];

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringfence-chaos: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: Args) -> Result<bool, Failure> {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "FAULT",
        "REQUESTS",
        "FAILED",
        "UNKNOWN WRITES",
        "LONGEST",
        "SECONDS WITH FAILURES",
        "WRITES AGAIN",
        "VIOLATIONS",
        "VERDICT",
    ]);
    let mut good = true;
    let mut crowds = crowd::table();
    for fault in &args.faults {
        if let Some(crowd) = fault.crowd() {
            eprintln!("· {}: {} s of load", fault.name(), args.seconds);
            let seen = crowd::suffer(crowd, &args).await?;
            good &= seen.is_good();
            crowds.add_row(seen.row(&fault.name()));
            continue;
        }
        if *fault == Fault::Migrate {
            let compared = migrate::suffer(&args).await?;
            good &= compared.is_good();
            println!("{}", compared.table());
            continue;
        }
        if *fault == Fault::Rebalance {
            let rebalanced = rebalance::suffer(&args).await?;
            good &= rebalanced.is_good();
            println!("{}", rebalanced.text());
            continue;
        }
        if *fault == Fault::Life {
            let lived = life::suffer(&args).await?;
            good &= lived.is_good();
            println!("{}", lived.text());
            continue;
        }
        let seen = suffer(*fault, &args).await?;
        let is_good = seen.is_good(args.writes_again_ms.map(Duration::from_millis));
        good &= is_good;
        table.add_row(seen.row(*fault, is_good));
    }
    for table in [table, crowds].iter().filter(|table| table.row_count() > 0) {
        println!("{table}");
    }
    Ok(good)
}

/// One fault on a cluster of its own.
async fn suffer(fault: Fault, args: &Args) -> Result<Seen, Failure> {
    let name = fault.name();
    eprintln!("· {name}: starting a cluster");
    let moves = fault.moves();
    let shards = if moves.is_some() { 2 } else { 1 };
    // Whichever replica has most, has all that was acknowledged.
    let (replicas, sync) = match moves {
        None | Some(Victim::Target) => (2, true),
        Some(_) => (1, false),
    };
    let cluster = Cluster::start(Options {
        shards: Some(shards),
        replicas: Some(replicas),
        routers: Some(args.routers),
        sync,
        redis: matches!(fault, Fault::Cache | Fault::RedisKill | Fault::MoveRedis).then_some(3),
        caches: true,
        network: fault.cuts(),
        ..Options::default()
    })
    .await?;
    let folder = args.reports.clone().unwrap_or(cluster.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let report = folder.join(format!("{name}.json"));
    eprintln!("· {name}: {} s of load", args.seconds);
    let scenario = match moves {
        Some(_) => MOVES,
        None => "crm_day",
    };
    let mut load = load(&cluster, args, scenario, &report)?;
    let (mut fresh, mut left, mut idle) = (None, 0, false);
    let mut written_again = None;
    let (mut struck, mut mended) = (SystemTime::now(), None);
    if fault == Fault::Cache {
        let lasts = Duration::from_secs(args.seconds.saturating_sub(5));
        fresh = Some(cache::suffer(&cluster, args.routers, lasts).await?);
    } else {
        let third = Duration::from_secs(args.seconds) / 3;
        tokio::time::sleep(third).await;
        eprintln!("· {name}: now");
        if let Some(victim) = moves {
            let plan = moves::Plan {
                victim,
                one: fault == Fault::Moves,
                rounds: args.rounds,
                // The rest is for the last move and the clean-up.
                lasts: third * 2 - third.min(Duration::from_secs(20)),
            };
            let told = moves::back_and_forth(&cluster, &plan).await?;
            eprintln!("· {name}: {told}");
            left = told.left + told.late;
            idle = told.is_idle(victim, args.moves);
            if idle {
                eprintln!(
                    "· {name}: too little came of it to prove anything: give it more --seconds"
                );
            }
        } else {
            struck = SystemTime::now();
            fault.strike(&cluster).await?;
            if fault.promotes() {
                written_again = Some(write_again(&cluster).await?);
            }
            tokio::time::sleep(third).await;
        }
        fault.mend(&cluster).await?;
        mended = Some(SystemTime::now());
    }
    load.wait().await?;
    let text = std::fs::read_to_string(&report)
        .map_err(|error| format!("the load tester wrote no report: {error}"))?;
    let told: Value = serde_json::from_str(&text)?;
    if let Some(mended) = mended {
        let plot = plot::svg(&name, &told, (struck, mended));
        std::fs::write(report.with_extension("svg"), plot)?;
    }
    let mut seen = Seen::read(fault, &told);
    seen.violations = seen.violations.saturating_add(left);
    seen.idle = idle;
    seen.written_again = written_again;
    if let Some(fresh) = fresh {
        eprintln!("· {name}: {fresh:?}");
        let stale = fresh.stale.load(std::sync::atomic::Ordering::Relaxed);
        seen.violations = seen.violations.saturating_add(stale as usize);
        // Caches that never answered prove nothing.
        seen.idle = fresh.hits.load(std::sync::atomic::Ordering::Relaxed) == 0;
        let max = fresh
            .seconds_without
            .load(std::sync::atomic::Ordering::Relaxed);
        seen.failing_seconds_max = max as usize;
    }
    cluster.down().await;
    Ok(seen)
}

/// How long a write takes that is sent now, and again until it is done.
async fn write_again(cluster: &Cluster) -> Result<Duration, Failure> {
    let since = std::time::Instant::now();
    let (url, key) = (
        cluster.router_url(0),
        cluster.key("acme").unwrap_or_default(),
    );
    let client = reqwest::Client::builder().no_proxy().build()?;
    while since.elapsed() < WRITES_AGAIN_MAX {
        let request = client.post(format!("{url}/rest/v1/companies"));
        let request = request
            .header("apikey", &key)
            .json(&serde_json::json!({ "name": "Again" }));
        let answer = request.timeout(WRITES_AGAIN_MAX).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(since.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("nothing is written after the promotion".into())
}

/// The load tester, beside this program.
fn load(cluster: &Cluster, args: &Args, scenario: &str, report: &Path) -> Result<Child, Failure> {
    let program = std::env::current_exe()?.with_file_name("ringfence-loadtest");
    let part = if scenario == MOVES { MOVES_LOAD } else { 1.0 };
    let scenario = Path::new("loadtest/scenarios").join(format!("{scenario}.toml"));
    let child = Command::new(program)
        .arg("run")
        .arg(scenario)
        .arg("--env")
        .arg(cluster.path().join("local.env"))
        .args(["--check", "--quiet", "--metrics", "off"])
        .args(["--duration", &format!("{}s", args.seconds)])
        .args(["--scale", &(args.scale * part).to_string()])
        .arg("--json")
        .arg(report)
        .arg("--html")
        .arg(report.with_extension("html"))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

impl Fault {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    fn crowd(self) -> Option<Crowd> {
        match self {
            Self::NoisyNeighbour => Some(Crowd::Noisy),
            Self::SlowNeighbour => Some(Crowd::Slow),
            Self::BusyNeighbour => Some(Crowd::Busy),
            Self::HugeNeighbour => Some(Crowd::Huge),
            Self::Overload => Some(Crowd::Overload),
            _ => None,
        }
    }

    /// Nothing breaks by itself: tenants move.
    fn moves(self) -> Option<Victim> {
        match self {
            Self::Move => Some(Victim::Nobody),
            Self::MoveKill | Self::Moves => Some(Victim::Worker),
            Self::MoveSource => Some(Victim::Source),
            Self::MoveTarget => Some(Victim::Target),
            Self::MoveRouter => Some(Victim::Router),
            Self::MoveControl => Some(Victim::Control),
            Self::MoveRedis => Some(Victim::Redis),
            _ => None,
        }
    }

    /// A replica becomes the primary.
    fn promotes(self) -> bool {
        let promotes = [
            Self::SwitchOver,
            Self::PrimaryKill,
            Self::PrimaryFreeze,
            Self::PrimaryCut,
        ];
        promotes.contains(&self)
    }

    /// It cuts a node's network.
    fn cuts(self) -> bool {
        let cuts = [
            Self::PrimaryCut,
            Self::ReplicaCut,
            Self::RouterCut,
            Self::ControlCut,
            Self::Cache,
        ];
        cuts.contains(&self)
    }

    async fn strike(self, cluster: &Cluster) -> Result<(), Failure> {
        match self {
            Self::SwitchOver => {
                cluster.shut_down(PRIMARY).await?;
                heirs::promote(cluster, SHARD, PRIMARY).await?;
            }
            Self::PrimaryKill => {
                cluster.kill(PRIMARY).await?;
                tokio::time::sleep(DETECTED).await;
                heirs::promote(cluster, SHARD, PRIMARY).await?;
            }
            Self::PrimaryFreeze => {
                cluster.stop(PRIMARY)?;
                tokio::time::sleep(DETECTED).await;
                heirs::promote(cluster, SHARD, PRIMARY).await?;
            }
            Self::PrimaryCut => {
                cluster.set_network(PRIMARY, Condition::Cut)?;
                tokio::time::sleep(DETECTED).await;
                heirs::promote(cluster, SHARD, PRIMARY).await?;
            }
            Self::ReplicaCut => cluster.set_network(REPLICA, Condition::Cut)?,
            Self::ReplicaKill => cluster.kill(REPLICA).await?,
            Self::ReplicaFreeze => cluster.stop(REPLICA)?,
            Self::RouterKill => cluster.kill(ROUTER).await?,
            Self::RouterFreeze => cluster.stop(ROUTER)?,
            Self::RouterCut => cluster.set_network(ROUTER, Condition::Cut)?,
            Self::ControlKill => cluster.kill(CONTROL).await?,
            Self::ControlFreeze => cluster.stop(CONTROL)?,
            Self::ControlCut => cluster.set_network(CONTROL, Condition::Cut)?,
            Self::WorkerKill => cluster.kill("worker-1").await?,
            Self::RedisKill => {
                for redis in REDIS {
                    cluster.kill(redis).await?;
                }
            }
            Self::Cache
            | Self::NoisyNeighbour
            | Self::SlowNeighbour
            | Self::BusyNeighbour
            | Self::HugeNeighbour
            | Self::Overload
            | Self::Move
            | Self::MoveKill
            | Self::Moves
            | Self::MoveSource
            | Self::MoveTarget
            | Self::MoveRouter
            | Self::MoveControl
            | Self::MoveRedis
            | Self::Rebalance
            | Self::Migrate
            | Self::Life => {}
        }
        Ok(())
    }

    async fn mend(self, cluster: &Cluster) -> Result<(), Failure> {
        match self {
            Self::SwitchOver | Self::PrimaryKill => cluster.start_node(PRIMARY).await?,
            Self::PrimaryFreeze => cluster.cont(PRIMARY)?,
            Self::PrimaryCut => cluster.set_network(PRIMARY, Condition::Well)?,
            Self::ReplicaCut => cluster.set_network(REPLICA, Condition::Well)?,
            Self::ReplicaKill => cluster.start_node(REPLICA).await?,
            Self::ReplicaFreeze => cluster.cont(REPLICA)?,
            Self::RouterKill => cluster.start_node(ROUTER).await?,
            Self::RouterFreeze => cluster.cont(ROUTER)?,
            Self::RouterCut => cluster.set_network(ROUTER, Condition::Well)?,
            Self::ControlKill => cluster.start_node(CONTROL).await?,
            Self::ControlFreeze => cluster.cont(CONTROL)?,
            Self::ControlCut => cluster.set_network(CONTROL, Condition::Well)?,
            Self::WorkerKill => cluster.start_node("worker-1").await?,
            Self::RedisKill => {
                for redis in REDIS {
                    cluster.start_node(redis).await?;
                }
            }
            Self::Cache
            | Self::NoisyNeighbour
            | Self::SlowNeighbour
            | Self::BusyNeighbour
            | Self::HugeNeighbour
            | Self::Overload
            | Self::Move
            | Self::MoveKill
            | Self::Moves
            | Self::MoveSource
            | Self::MoveTarget
            | Self::MoveRouter
            | Self::MoveControl
            | Self::MoveRedis
            | Self::Rebalance
            | Self::Migrate
            | Self::Life => {}
        }
        Ok(())
    }

    /// Seconds in which requests may fail. Routers hold requests while a shard
    /// has no primary (`router/src/hold.rs`), so only what was in flight at the
    /// dead node fails; a dead router's clients must find the other one.
    fn failing_seconds_max(self) -> usize {
        match self {
            Self::SwitchOver
            | Self::ReplicaKill
            | Self::ReplicaFreeze
            | Self::ReplicaCut
            | Self::ControlKill
            | Self::ControlFreeze
            | Self::ControlCut
            | Self::WorkerKill
            | Self::RedisKill
            | Self::NoisyNeighbour
            | Self::SlowNeighbour
            | Self::BusyNeighbour
            | Self::HugeNeighbour
            | Self::Overload
            | Self::Move
            | Self::MoveControl
            | Self::MoveRedis
            | Self::Rebalance
            | Self::Migrate
            | Self::Life => 0,
            // A worker that dies while a tenant is held is replaced when its
            // lease is over, which is longer than requests wait.
            Self::MoveKill | Self::Moves => usize::MAX,
            Self::MoveSource | Self::MoveTarget | Self::MoveRouter => usize::MAX,
            Self::PrimaryKill | Self::PrimaryFreeze | Self::PrimaryCut => 2,
            Self::RouterKill | Self::RouterFreeze | Self::RouterCut => usize::MAX,
            // By what was broken, and for how long.
            Self::Cache => usize::MAX,
        }
    }

    /// Whether only what was in flight at the dead node failed, and as it has to:
    /// what a primary's loss leaves unknown is a 500, and a request of a dead router's
    /// own clients has no answer at all. Those find no connection either, of which
    /// nothing was sent.
    fn only_in_flight(self, total: &Value) -> bool {
        let all = |counts: &Value| -> Vec<(String, u64)> {
            let counts = counts.as_object().into_iter().flatten();
            let counts = counts.map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0)));
            counts.filter(|(_, count)| *count > 0).collect()
        };
        let faults = all(&total["faults"]);
        let lost = faults.iter().filter(|(fault, _)| fault != "refused");
        let lost: u64 = lost.map(|(_, count)| count).sum();
        match self {
            Self::PrimaryKill | Self::PrimaryFreeze | Self::PrimaryCut => {
                let statuses = all(&total["statuses"]);
                let failed = statuses
                    .iter()
                    .filter(|(status, _)| status.starts_with('5'));
                let known = |status: &str| ["500", "503"].contains(&status);
                let mut failed = failed.map(|(status, _)| &**status);
                let answered = faults.iter().all(|(fault, _)| fault == "5xx");
                answered && failed.all(known) && lost <= CONNECTIONS
            }
            Self::RouterKill | Self::RouterFreeze | Self::RouterCut => {
                let known = |fault: &str| UNANSWERED.contains(&fault);
                faults.iter().all(|(fault, _)| known(fault)) && lost <= CONNECTIONS
            }
            // Others are judged by the seconds in which any failed.
            _ => true,
        }
    }
}

/// What the load tester saw.
struct Seen {
    requests: u64,
    failed: u64,
    unknown: u64,
    longest_ms: f64,
    failing_seconds: usize,
    failing_seconds_max: usize,
    /// From a promotion until the first write was acknowledged.
    written_again: Option<Duration>,
    violations: usize,
    /// What was to be broken was never in use.
    idle: bool,
    /// Requests failed that were not in flight at the dead node.
    strays: bool,
}

impl Seen {
    fn read(fault: Fault, report: &Value) -> Self {
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let failing = report["points"].as_array().map(|points| {
            let failing = points.iter().filter(|point| {
                let faults = point["faults"].as_array().into_iter().flatten();
                faults.map(&number).sum::<u64>() > 0
            });
            failing.count()
        });
        Self {
            requests: number(&report["total"]["requests"]),
            failed: number(&report["total"]["errors"]),
            unknown: number(&report["checks"]["indeterminate"]),
            longest_ms: report["total"]["latency_ms"]["max"]
                .as_f64()
                .unwrap_or_default(),
            failing_seconds: failing.unwrap_or_default(),
            // Without a list the audit was not made: that is no success.
            violations: report["checks"]["violations"]
                .as_array()
                .map_or(usize::MAX, Vec::len),
            failing_seconds_max: fault.failing_seconds_max(),
            written_again: None,
            idle: false,
            strays: !fault.only_in_flight(&report["total"]),
        }
    }

    fn is_good(&self, writes_again_max: Option<Duration>) -> bool {
        let late = |max| self.written_again.is_some_and(|after| after > max);
        self.requests > 0
            && !writes_again_max.is_some_and(late)
            && !self.idle
            && !self.strays
            && self.violations == 0
            && self.failing_seconds <= self.failing_seconds_max
    }

    fn row(&self, fault: Fault, good: bool) -> [String; 9] {
        [
            fault.name(),
            self.requests.to_string(),
            self.failed.to_string(),
            self.unknown.to_string(),
            format!("{:.0} ms", self.longest_ms),
            match self.failing_seconds_max {
                usize::MAX => self.failing_seconds.to_string(),
                max => format!("{} of {max}", self.failing_seconds),
            },
            self.written_again
                .map_or("-".into(), |after| format!("{} ms", after.as_millis())),
            self.violations.to_string(),
            if good { "good" } else { "BAD" }.to_owned(),
        ]
    }
}
