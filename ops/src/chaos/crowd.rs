//! Tenants that ask for too much: one of them, beside others who must not
//! notice, or all of them together.
//!
//! A cluster of one shard and one router. All tenants have the default plan,
//! which is given limits; the flood has the middle third of its run.

use std::path::Path;
use std::process::Stdio;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use ops::admin::Admin;
use ops::local::{Cluster, Options};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Args, Failure};

/// Who asks for too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowd {
    /// One tenant, of requests.
    Noisy,
    /// One tenant, of time in which nothing is done.
    Slow,
    /// One tenant, of processor time.
    Busy,
    /// One tenant, of rows.
    Huge,
    /// All of them.
    Overload,
}

/// How much slower than before the others may be served during a flood.
const RATIO_MAX: f64 = 1.2;
/// Answers a second that the scenario's statements allow, on 20 connections.
const CAPACITY: f64 = 100.0;
/// Of those, what must be reached while three times as much is asked for.
const GOODPUT_MIN: f64 = 0.9;
/// Longest wait for an answer then: the router's own bound is 2 s.
const LONGEST_MS: f64 = 3_000.0;
/// Seconds after which all is as before: nothing fails, and no second's p99 is
/// longer than the first third's worst by more than [`RATIO_MAX`].
const RECOVERED_MAX: usize = 2;
/// Least seconds of an overload: its peak is a third of them.
const OVERLOAD_MIN: u64 = 180;

/// Slow statements, and large results.
const FUNCTIONS: &str = "
    create function public.nap(ms int) returns int language sql volatile as
      $$ select 1 from pg_sleep(ms / 1000.0) $$;
    create function public.toil(steps int) returns float8 language plpgsql stable as $$
      declare sum float8 := 0;
      begin for n in 1..steps loop sum := sum + sqrt(n); end loop; return sum; end $$;
    create function public.heap(size int) returns table (number int, filler text)
      language sql stable as $$ select n, repeat('x', 200) from generate_series(1, size) n $$;
    grant execute on function public.nap(int), public.toil(int), public.heap(int) to authenticated;";

/// What the load tester saw.
pub(crate) struct Seen {
    requests: u64,
    /// Of tenants that did nothing wrong.
    failed: u64,
    outcome: Outcome,
}

enum Outcome {
    Neighbours {
        before_ms: f64,
        during_ms: f64,
        /// Of the flood's requests, those answered with 429 or 503.
        refused: f64,
    },
    Overload {
        /// Of the capacity.
        goodput: f64,
        longest_ms: f64,
        recovered: usize,
    },
}

/// An empty table of outcomes.
pub(crate) fn table() -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_header(["CROWD", "REQUESTS", "FAILED", "OUTCOME", "VERDICT"]);
    table
}

/// One crowd on a cluster of its own.
pub(crate) async fn suffer(crowd: Crowd, args: &Args) -> Result<Seen, Failure> {
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        ..Options::default()
    })
    .await?;
    prepare(crowd, &cluster).await?;
    let folder = args.reports.clone().unwrap_or(cluster.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let report = folder.join(format!("{}.json", crowd.scenario()));
    let seconds = match crowd {
        Crowd::Overload => args.seconds.max(OVERLOAD_MIN),
        // The flood's place in the run is fixed.
        Crowd::Noisy | Crowd::Slow | Crowd::Busy | Crowd::Huge => 60,
    };
    load(&cluster, crowd, seconds, &report).await?;
    let text = std::fs::read_to_string(&report)
        .map_err(|error| format!("the load tester wrote no report: {error}"))?;
    cluster.down().await;
    Ok(crowd.read(&serde_json::from_str(&text)?))
}

async fn prepare(crowd: Crowd, cluster: &Cluster) -> Result<(), Failure> {
    let dsn = cluster.shard_dsn("s1-primary")?;
    let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(FUNCTIONS).await?;
    drop(client);
    connection.await??;
    let limits = match crowd {
        Crowd::Noisy => json!({ "requests_per_second": 100 }),
        // What a tenant may do at once, not what it asks for, is the matter here.
        Crowd::Slow => json!({ "concurrency": 4 }),
        Crowd::Busy => json!({ "concurrency": 4, "shard_ms_per_second": 200 }),
        Crowd::Huge => json!({ "requests_per_second": 20, "rows": 1_000 }),
        Crowd::Overload => return Ok(()),
    };
    let admin = Admin::new(&cluster.admin_url(), cluster.admin_token())?;
    let body = json!({ "limits": limits });
    admin.post("/plans/default", &body).await?;
    Ok(())
}

async fn load(cluster: &Cluster, crowd: Crowd, seconds: u64, report: &Path) -> Result<(), Failure> {
    let program = std::env::current_exe()?.with_file_name("ringfence-loadtest");
    let scenario = format!("loadtest/scenarios/{}.toml", crowd.scenario());
    // Its thresholds are for people; the verdict is ours.
    Command::new(program)
        .args(["run", &scenario, "--env"])
        .arg(cluster.path().join("local.env"))
        .args(["--quiet", "--metrics", "off"])
        .args(["--duration", &format!("{seconds}s")])
        .arg("--json")
        .arg(report)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    Ok(())
}

impl Crowd {
    fn scenario(self) -> &'static str {
        match self {
            Self::Noisy => "noisy_neighbour",
            Self::Slow => "slow_neighbour",
            Self::Busy => "busy_neighbour",
            Self::Huge => "huge_neighbour",
            Self::Overload => "overload",
        }
    }

    /// What the tenant that floods is refused is as it should be.
    fn failed(self, report: &Value) -> u64 {
        if self == Self::Overload {
            return report["total"]["errors"].as_u64().unwrap_or(0);
        }
        let tenants = report["by_tenant"].as_array().into_iter().flatten();
        let others = tenants.filter(|tenant| tenant["flooded"] == false);
        others.filter_map(|tenant| tenant["errors"].as_u64()).sum()
    }

    fn read(self, report: &Value) -> Seen {
        Seen {
            requests: report["total"]["requests"].as_u64().unwrap_or(0),
            failed: self.failed(report),
            outcome: match self {
                Self::Overload => overload(report),
                Self::Noisy | Self::Slow | Self::Busy | Self::Huge => neighbours(report),
            },
        }
    }
}

fn neighbours(report: &Value) -> Outcome {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let flood = &report["floods"][0];
    let of_status = |status: &str| flood["statuses"][status].as_f64().unwrap_or(0.0);
    Outcome::Neighbours {
        before_ms: number(&report["bystanders"]["quiet_p99_ms"]),
        during_ms: number(&report["bystanders"]["flooded_p99_ms"]),
        refused: (of_status("429") + of_status("503")) / number(&flood["requests"]),
    }
}

/// The peak is the run's middle third; its first two seconds fill the queue.
fn overload(report: &Value) -> Outcome {
    let points: Vec<&Value> = report["points"].as_array().into_iter().flatten().collect();
    let width = report["point_seconds"].as_u64().unwrap_or(1).max(1);
    let seconds = report["planned_seconds"].as_f64().unwrap_or(0.0);
    let at = |point: &Value| point["at"].as_f64().unwrap_or(0.0);
    let (begin, end) = (seconds / 3.0, seconds * 2.0 / 3.0);
    let peak: Vec<_> = points
        .iter()
        .filter(|point| at(point) >= begin + 2.0 && at(point) + width as f64 <= end)
        .collect();
    let answered: f64 = peak
        .iter()
        .filter_map(|point| point["expected"].as_f64())
        .sum();
    let longest = peak
        .iter()
        .filter_map(|point| point["latency_ms"]["max"].as_f64());
    let failing = |point: &Value| {
        let faults = point["faults"].as_array().into_iter().flatten();
        faults.filter_map(Value::as_u64).sum::<u64>() > 0
    };
    let p99 = |point: &Value| point["latency_ms"]["p99"].as_f64();
    let before = points.iter().filter(|point| at(point) < begin);
    let usual = before.filter_map(|point| p99(point)).fold(0.0, f64::max);
    let slow = |point: &Value| p99(point).is_some_and(|p99| p99 > RATIO_MAX * usual);
    let last = points
        .iter()
        .rposition(|point| at(point) >= end && (failing(point) || slow(point)));
    let first = points.iter().position(|point| at(point) >= end);
    Outcome::Overload {
        goodput: answered / (peak.len() as f64 * width as f64) / CAPACITY,
        longest_ms: longest.fold(0.0, f64::max),
        recovered: last
            .zip(first)
            .map_or(0, |(last, first)| (last + 1 - first) * width as usize),
    }
}

impl Seen {
    /// Whether it was as it must be.
    pub(crate) fn is_good(&self) -> bool {
        self.requests > 0
            && match self.outcome {
                Outcome::Neighbours {
                    before_ms,
                    during_ms,
                    ..
                } => self.failed == 0 && during_ms <= RATIO_MAX * before_ms,
                Outcome::Overload {
                    goodput,
                    longest_ms,
                    recovered,
                } => {
                    goodput >= GOODPUT_MIN && longest_ms <= LONGEST_MS && recovered <= RECOVERED_MAX
                }
            }
    }

    /// Its line in the table.
    pub(crate) fn row(&self, name: &str) -> [String; 5] {
        let outcome = match self.outcome {
            Outcome::Neighbours {
                before_ms,
                during_ms,
                refused,
            } => format!(
                "the others' p99 {before_ms:.1} ms before, {during_ms:.1} ms during ({:.2} x); \
                 {:.0} % of the flood refused",
                during_ms / before_ms,
                refused * 100.0
            ),
            Outcome::Overload {
                goodput,
                longest_ms,
                recovered,
            } => format!(
                "goodput {:.0} % of capacity, longest answer {longest_ms:.0} ms, \
                 normal after {recovered} s",
                goodput * 100.0
            ),
        };
        let verdict = if self.is_good() { "good" } else { "BAD" };
        [
            name.to_owned(),
            self.requests.to_string(),
            self.failed.to_string(),
            outcome,
            verdict.to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nine seconds, of which the middle three are the peak, with these p99 and
    /// faults after it.
    fn recovered(after: [(f64, u64); 3]) -> usize {
        let before = [(90.0, 0), (100.0, 0), (80.0, 0)];
        let peak = [(600.0, 200); 3];
        let all = before.into_iter().chain(peak).chain(after);
        let points = all.enumerate().map(|(at, (p99, faults))| {
            let latency = json!({ "p99": p99, "max": p99 });
            json!({ "at": at, "expected": 95, "latency_ms": latency, "faults": [0, faults] })
        });
        let points: Vec<Value> = points.collect();
        match overload(&json!({ "points": points, "point_seconds": 1, "planned_seconds": 9 })) {
            Outcome::Overload { recovered, .. } => recovered,
            Outcome::Neighbours { .. } => unreachable!(),
        }
    }

    #[test]
    fn it_is_as_before_once_nothing_fails_and_nothing_is_slower() {
        assert_eq!(recovered([(100.0, 0), (110.0, 0), (90.0, 0)]), 0);
        assert_eq!(recovered([(100.0, 1), (90.0, 0), (90.0, 0)]), 1);
        assert_eq!(recovered([(300.0, 0), (130.0, 0), (90.0, 0)]), 2);
        assert_eq!(recovered([(100.0, 0), (100.0, 0), (130.0, 0)]), 3);
    }
}
