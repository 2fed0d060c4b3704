//! A working day of a CRM (loadtest/scenarios/crm_day.toml), with the caches on
//! and off, by turns. The load is the same, so what the caches are worth is in
//! latencies and in the CPU time of each request.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use ops::local::Cluster;
use serde_json::{Value, json};

use super::caches::start;
use super::{Args, Failure, Sample, cpu, median};

/// A day on one side.
pub(crate) struct Day {
    caches: bool,
    /// `service_us` is of the routers, `postgres_us` of the shard.
    sample: Sample,
    /// CPU time of worker, Redis and control database for each request.
    others_us: f64,
    /// Requests that a cache answered, of all, writes included.
    hits: f64,
}

/// Seconds that a day is compressed to; its levels stay as they are.
const DAY: u64 = 15;
const SCENARIO: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../loadtest/scenarios/crm_day.toml"
);
/// Gates are about the service in earnest: here they are looked at by people.
const GATE_MISSED: i32 = 99;

/// Runs it, on two clusters of its own: with caches, and without.
pub(crate) async fn measure(args: &Args) -> Result<Vec<Day>, Failure> {
    let (on, off) = (start(true, None).await?, start(false, None).await?);
    let mut days = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        eprintln!(
            "· crm_day, caches on and off: round {round} of {}",
            args.rounds
        );
        days.0.push(day(&on, true)?);
        days.1.push(day(&off, false)?);
    }
    on.down().await;
    off.down().await;
    Ok(vec![middle(&days.0, true), middle(&days.1, false)])
}

fn middle(days: &[Day], caches: bool) -> Day {
    let samples: Vec<Sample> = days.iter().map(|day| day.sample).collect();
    let of = |field: fn(&Day) -> f64| {
        let mut values: Vec<f64> = days.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Day {
        caches,
        sample: median(&samples),
        others_us: of(|day| day.others_us),
        hits: of(|day| day.hits),
    }
}

/// The load tester's day, and the CPU time that the nodes spent on it.
fn day(cluster: &Cluster, caches: bool) -> Result<Day, Failure> {
    let report = cluster.path().join("crm_day.json");
    let before = spent(cluster);
    run(cluster, &report)?;
    let after = spent(cluster);
    let report: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    let total = &report["total"];
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let (requests, errors) = (number(&total["requests"]), number(&total["errors"]));
    if requests == 0.0 || errors > 0.0 {
        return Err(format!("crm_day: {errors} of {requests} requests failed").into());
    }
    let each = |part: fn(&Spent) -> Duration| {
        part(&after).saturating_sub(part(&before)).as_secs_f64() * 1e6 / requests
    };
    let from = |level: &str| number(&total["origins"][level]);
    Ok(Day {
        caches,
        sample: Sample {
            rate: number(&total["per_second"]),
            p50_ms: number(&total["latency_ms"]["p50"]),
            p99_ms: number(&total["latency_ms"]["p99"]),
            service_us: each(|spent| spent.routers),
            postgres_us: each(|spent| spent.shard),
        },
        others_us: each(|spent| spent.others),
        hits: (from("L1") + from("L2")) / requests,
    })
}

fn run(cluster: &Cluster, report: &Path) -> Result<(), Failure> {
    let status = Command::new(std::env::current_exe()?.with_file_name("ringfence-loadtest"))
        .args(["run", SCENARIO, "--quiet", "--metrics", "off"])
        .args(["--duration", &format!("{DAY}s"), "--env"])
        .arg(cluster.path().join("local.env"))
        .arg("--json")
        .arg(report)
        .stdout(Stdio::null())
        .status()?;
    match status.code() {
        Some(0 | GATE_MISSED) => Ok(()),
        _ => Err(format!("crm_day: {status}").into()),
    }
}

/// CPU time so far.
#[derive(Default)]
struct Spent {
    routers: Duration,
    shard: Duration,
    others: Duration,
}

fn spent(cluster: &Cluster) -> Spent {
    let mut spent = Spent::default();
    for node in cluster.status() {
        let so_far = node.pid.map(cpu).unwrap_or_default();
        match node.name.split('-').next() {
            Some("router") => spent.routers += so_far,
            Some("s1") => spent.shard += so_far,
            _ => spent.others += so_far,
        }
    }
    spent
}

/// As JSON.
pub(crate) fn json(days: &[Day]) -> Value {
    let rows = days.iter().map(|day| {
        let s = &day.sample;
        json!({ "caches": day.caches, "rate": s.rate, "p50_ms": s.p50_ms, "p99_ms": s.p99_ms,
            "service_us": s.service_us, "postgres_us": s.postgres_us,
            "others_us": day.others_us, "hits": day.hits })
    });
    rows.collect()
}

/// As a table, whose last line is the first by the second.
pub(crate) fn table(days: &[Day]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "CRM_DAY",
        "PER S",
        "P50 MS",
        "P99 MS",
        "ROUTERS µS",
        "POSTGRES µS",
        "OTHERS µS",
        "HITS",
    ]);
    for day in days {
        let s = &day.sample;
        table.add_row([
            format!("caches {}", if day.caches { "on" } else { "off" }),
            format!("{:.0}", s.rate),
            format!("{:.2}", s.p50_ms),
            format!("{:.2}", s.p99_ms),
            format!("{:.0}", s.service_us),
            format!("{:.0}", s.postgres_us),
            format!("{:.0}", day.others_us),
            format!("{:.2}", day.hits),
        ]);
    }
    if let [on, off] = days {
        let ratio = |of: fn(&Sample) -> f64| format!("{:.2}", of(&on.sample) / of(&off.sample));
        table.add_row([
            "on, of off".to_owned(),
            ratio(|s| s.rate),
            ratio(|s| s.p50_ms),
            ratio(|s| s.p99_ms),
            ratio(|s| s.service_us),
            ratio(|s| s.postgres_us),
        ]);
    }
    table
}
