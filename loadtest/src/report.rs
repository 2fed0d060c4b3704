//! What a run found, as one value: every output (terminal, JSON, CSV, HTML,
//! comparison, exit code) is made from it and from nothing else.

pub mod compare;
pub mod csv;
pub mod html;
mod svg;
pub mod terminal;

use std::collections::BTreeMap;
use std::path::Path;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::answer::Origin;
use crate::check::CheckReport;
use crate::error::{Error, Result};
use crate::gate::GateResult;
use crate::record::{Fault, Interval, Tally, TenantTally, Totals};
use crate::series::Series;

/// The report's format; raised when a field changes its meaning.
const FORMAT: u32 = 1;
/// The heat map's rows: powers of √2 from 0.1 ms to about 100 s.
const HEAT_ROWS: u32 = 40;
/// Tenants listed one by one.
const TENANT_ROWS: usize = 200;

/// A whole report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The format's number.
    pub format: u32,
    /// The scenario's name.
    pub scenario: String,
    /// What it is for.
    pub description: String,
    /// The run's name, part of its canaries.
    pub run: String,
    /// When it began, UTC.
    pub started: String,
    /// `open`, `closed` or `replay`.
    pub model: String,
    /// Where requests went.
    pub targets: Vec<String>,
    /// How many tenants they were for.
    pub tenants: usize,
    /// How many threads sent them.
    pub threads: usize,
    /// How long the load was meant to last, in seconds.
    pub planned_seconds: f64,
    /// How long it lasted, in seconds.
    pub seconds: f64,
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// All operations together, without floods.
    pub total: Row,
    /// Each operation.
    pub operations: Vec<Row>,
    /// Each flood.
    pub floods: Vec<Row>,
    /// The open model's arrivals.
    pub arrivals: Arrivals,
    /// The run over time.
    pub points: Vec<Point>,
    /// How many seconds a point covers.
    pub point_seconds: u32,
    /// Answers by latency and time.
    pub heat: Heat,
    /// Tenants, the slowest first; only so many.
    pub by_tenant: Vec<TenantRow>,
    /// The slowest tenant's p99 divided by the median tenant's.
    pub fairness_ratio: Option<f64>,
    /// Tenants that do not flood.
    pub bystanders: Option<Bystanders>,
    /// Begin against end, for runs long enough to say.
    pub drift: Option<Drift>,
    /// Moves, failovers and whatever was marked.
    pub marks: Vec<Mark>,
    /// The scenario's thresholds.
    pub gates: Vec<GateResult>,
    /// What `--check` found.
    pub checks: Option<CheckReport>,
}

/// Counts and latencies of one kind of request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// The operation's or flood's name.
    pub name: String,
    /// Requests that ended.
    pub requests: u64,
    /// Expected answers.
    pub expected: u64,
    /// Expected answers per second.
    pub per_second: f64,
    /// Failed requests.
    pub errors: u64,
    /// Failed requests by fault.
    pub faults: BTreeMap<String, u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Expected answers by who answered.
    pub origins: BTreeMap<String, u64>,
    /// Latency from due, in milliseconds.
    pub latency_ms: Latency,
    /// Bytes of bodies received.
    pub bytes: u64,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The highest.
    pub max: f64,
}

/// What became of the open model's arrivals.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Arrivals {
    /// All that fell due.
    pub due: u64,
    /// Sent more than a millisecond late; their wait is in their latency.
    pub late: u64,
    /// Dropped because too many waited.
    pub dropped: u64,
    /// Still waiting when the run was over.
    pub unsent: u64,
    /// How late the tester itself was, p99 in milliseconds: its own error.
    pub tester_lag_p99_ms: f64,
}

/// A point in time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// Its begin, in seconds from the begin of the run.
    pub at: u32,
    /// Arrivals that fell due.
    pub due: u64,
    /// Expected answers.
    pub expected: u64,
    /// Failed requests, in the order of [`Fault::ALL`].
    pub faults: [u64; Fault::ALL.len()],
    /// Expected answers by origin, in the order of [`Origin::ALL`].
    pub origins: [u64; Origin::ALL.len()],
    /// Latency of what ended in it; none when nothing did.
    pub latency_ms: Option<Latency>,
    /// Requests of floods.
    pub flood: u64,
    /// Arrivals sent late.
    pub late: u64,
    /// Arrivals dropped.
    pub dropped: u64,
    /// The most that waited.
    pub backlog: u64,
}

/// Answers by latency and time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Heat {
    /// The upper edge of each row, in milliseconds.
    pub edges_ms: Vec<f64>,
    /// For each point the count of each row.
    pub columns: Vec<Vec<u64>>,
}

/// A tenant's share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantRow {
    /// Its slug.
    pub tenant: String,
    /// Requests that ended.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
    /// Whether it flooded.
    pub flooded: bool,
}

/// What floods did to the others.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Bystanders {
    /// Their p99 outside floods, in milliseconds.
    pub quiet_p99_ms: f64,
    /// Their p99 during floods, in milliseconds.
    pub flooded_p99_ms: f64,
    /// The second divided by the first.
    pub ratio: f64,
}

/// The first and the last fifth of a run, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Drift {
    /// Median of the points' p99 in the first fifth.
    pub first_p99_ms: f64,
    /// The same in the last fifth.
    pub last_p99_ms: f64,
}

/// Something that happened at a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Seconds from the begin of the run.
    pub at: f64,
    /// What.
    pub text: String,
}

/// What a report is made from, beside the counts.
#[derive(Debug)]
pub struct Facts {
    /// The scenario's name and description.
    pub scenario: (String, String),
    /// The run's name.
    pub run: String,
    /// When it began, UTC.
    pub started: String,
    /// `open`, `closed` or `replay`.
    pub model: String,
    /// Where requests went.
    pub targets: Vec<String>,
    /// The tenants' slugs, by place.
    pub tenants: Vec<String>,
    /// Places of tenants that flood.
    pub flooding: Vec<usize>,
    /// The operations' names, then the floods'.
    pub rows: Vec<String>,
    /// How many threads.
    pub threads: usize,
    /// Planned and real length in seconds.
    pub planned_seconds: f64,
    /// Real length in seconds.
    pub seconds: f64,
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// What happened meanwhile.
    pub marks: Vec<Mark>,
}

impl Report {
    /// Builds the report of a run; gates and checks are added by the caller.
    pub fn build(facts: Facts, totals: &Totals, series: &Series) -> Self {
        let operations = facts.rows.len() - facts.flooding.len();
        let mut total = Tally::default();
        for tally in &totals.rows[..operations] {
            total.merge(tally);
        }
        let rows: Vec<Row> = facts
            .rows
            .iter()
            .zip(&totals.rows)
            .map(|(name, tally)| Row::of(name, tally, facts.seconds))
            .collect();
        let points: Vec<Point> = series
            .points
            .iter()
            .map(|(place, i)| Point::of(place * series.width, i))
            .collect();
        let by_tenant = tenant_rows(&facts, &totals.tenants);
        Report {
            format: FORMAT,
            total: Row::of("total", &total, facts.seconds),
            operations: rows[..operations].to_vec(),
            floods: rows[operations..].to_vec(),
            arrivals: Arrivals {
                due: totals.due,
                late: totals.late,
                dropped: totals.dropped,
                unsent: totals.unsent,
                tester_lag_p99_ms: quantile_ms(&totals.wake_lag, 0.99),
            },
            drift: drift(&points),
            heat: Heat::of(series),
            points,
            point_seconds: series.width,
            fairness_ratio: fairness(&by_tenant),
            by_tenant: by_tenant.into_iter().take(TENANT_ROWS).collect(),
            bystanders: series
                .bystander_p99_ms()
                .map(|(quiet, flooded)| Bystanders {
                    quiet_p99_ms: quiet,
                    flooded_p99_ms: flooded,
                    ratio: flooded / quiet,
                }),
            scenario: facts.scenario.0,
            description: facts.scenario.1,
            run: facts.run,
            started: facts.started,
            model: facts.model,
            targets: facts.targets,
            tenants: facts.tenants.len(),
            threads: facts.threads,
            planned_seconds: facts.planned_seconds,
            seconds: facts.seconds,
            interrupted: facts.interrupted,
            marks: facts.marks,
            gates: Vec::new(),
            checks: None,
        }
    }

    /// Requests that failed, of all that were due.
    pub fn error_ratio(&self) -> f64 {
        ratio(self.total.errors, self.total.requests)
    }

    /// Arrivals dropped or never sent, of all that were due.
    pub fn dropped_ratio(&self) -> f64 {
        ratio(
            self.arrivals.dropped + self.arrivals.unsent,
            self.arrivals.due,
        )
    }

    /// The exit code: a leak (81) before an inconsistency (80) before an
    /// interruption (105) before a missed threshold (99), an audit that could
    /// not be made counting as one.
    pub fn exit_code(&self) -> u8 {
        let checks = self.checks.as_ref();
        if checks.is_some_and(CheckReport::leaked) {
            81
        } else if checks.is_some_and(|checks| !checks.violations.is_empty()) {
            80
        } else if self.interrupted {
            105
        } else if self.gates.iter().any(|gate| !gate.passed)
            || checks.is_some_and(|checks| !checks.complete())
        {
            99
        } else {
            0
        }
    }

    /// Reads a JSON report.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::Report`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| Error::Report {
            path: path.to_owned(),
            source,
        })
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        // Only maps with keys that are not texts could fail.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

impl Row {
    fn of(name: &str, tally: &Tally, seconds: f64) -> Self {
        let named = |names: &[&str], counts: &[u64]| {
            names
                .iter()
                .zip(counts)
                .filter(|(_, count)| **count > 0)
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect()
        };
        Row {
            name: name.to_owned(),
            requests: tally.ended(),
            expected: tally.expected,
            per_second: if seconds > 0.0 {
                tally.expected as f64 / seconds
            } else {
                0.0
            },
            errors: tally.errors(),
            faults: named(&Fault::ALL.map(Fault::name), &tally.faults),
            statuses: tally.statuses.clone(),
            origins: named(&Origin::ALL.map(Origin::name), &tally.origins),
            latency_ms: Latency::of(&tally.latency),
            bytes: tally.bytes,
        }
    }

    /// Answers from a cache, of all whose origin is known.
    pub fn hit_ratio(&self) -> Option<f64> {
        let count = |origin: Origin| self.origins.get(origin.name()).copied().unwrap_or_default();
        let hits = count(Origin::L1) + count(Origin::L2);
        let known = hits + count(Origin::Replica) + count(Origin::Primary);
        (known > 0).then(|| ratio(hits, known))
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Latency::default();
        }
        let at = |quantile| quantile_ms(histogram, quantile);
        Latency {
            mean: histogram.mean() / 1_000.0,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1_000.0,
        }
    }
}

impl Point {
    fn of(at: u32, interval: &Interval) -> Self {
        let tally = &interval.tally;
        Point {
            at,
            due: interval.due,
            expected: tally.expected,
            faults: tally.faults,
            origins: tally.origins,
            latency_ms: (!tally.latency.is_empty()).then(|| Latency::of(&tally.latency)),
            flood: interval.flood_ended,
            late: interval.late,
            dropped: interval.dropped,
            backlog: interval.backlog,
        }
    }

    /// Failed requests.
    pub fn errors(&self) -> u64 {
        self.faults.iter().sum()
    }
}

impl Heat {
    fn of(series: &Series) -> Self {
        let edges_us: Vec<f64> = (0..HEAT_ROWS)
            .map(|row| 100.0 * 2f64.sqrt().powi(row as i32))
            .collect();
        let columns = series
            .points
            .values()
            .map(|point| {
                let mut counts = vec![0; edges_us.len()];
                for step in point.tally.latency.iter_recorded() {
                    let row =
                        edges_us.partition_point(|edge| *edge < step.value_iterated_to() as f64);
                    counts[row.min(edges_us.len() - 1)] += step.count_since_last_iteration();
                }
                counts
            })
            .collect();
        Heat {
            edges_ms: edges_us.iter().map(|edge| edge / 1_000.0).collect(),
            columns,
        }
    }
}

fn tenant_rows(facts: &Facts, tallies: &[TenantTally]) -> Vec<TenantRow> {
    let mut rows: Vec<TenantRow> = tallies
        .iter()
        .enumerate()
        .filter(|(_, tally)| tally.ended > 0)
        .map(|(place, tally)| TenantRow {
            tenant: facts.tenants.get(place).cloned().unwrap_or_default(),
            requests: tally.ended,
            errors: tally.errors,
            p50_ms: tally.latency.value_at_quantile(0.5) as f64 / 1_000.0,
            p99_ms: tally.latency.value_at_quantile(0.99) as f64 / 1_000.0,
            flooded: facts.flooding.contains(&place),
        })
        .collect();
    rows.sort_by(|a, b| b.p99_ms.total_cmp(&a.p99_ms));
    rows
}

/// Only tenants with enough requests for a p99 are compared.
fn fairness(rows: &[TenantRow]) -> Option<f64> {
    let p99s: Vec<f64> = rows
        .iter()
        .filter(|row| row.requests >= 100 && !row.flooded)
        .map(|row| row.p99_ms)
        .collect();
    let (worst, median) = (p99s.first()?, p99s.get(p99s.len() / 2)?);
    (p99s.len() > 1 && *median > 0.0).then(|| worst / median)
}

fn drift(points: &[Point]) -> Option<Drift> {
    let p99s: Vec<f64> = points
        .iter()
        .filter_map(|point| Some(point.latency_ms?.p99))
        .collect();
    let fifth = p99s.len() / 5;
    if fifth < 3 {
        return None;
    }
    Some(Drift {
        first_p99_ms: median(&p99s[..fifth]),
        last_p99_ms: median(&p99s[p99s.len() - fifth..]),
    })
}

/// The middle value; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1_000.0
}

/// A part of a whole; 0 of nothing.
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// A made-up report for the tests of outputs.
#[cfg(test)]
pub(crate) fn sample() -> Report {
    use std::time::Duration;

    use crate::record::{Outcome, Recorder, Sample};

    let mut recorder = Recorder::new(2, vec![1], 3);
    let mut series = Series::new(30.0, vec![(10.0, 20.0)]);
    for n in 0..30_000u64 {
        let due = Duration::from_millis(n);
        recorder.due(Duration::from_micros(40), false);
        let slow = if n % 100 == 0 { 40 } else { 1 + n % 7 };
        recorder.sample(&Sample {
            row: (n % 3) as usize,
            tenant: (n % 3) as usize,
            due,
            sent: due,
            done: due + Duration::from_millis(slow),
            outcome: if n % 1_000 == 999 {
                Outcome::Unexpected(503)
            } else {
                Outcome::Expected(200)
            },
            origin: Origin::ALL[(n % 4) as usize],
            bytes: 100,
        });
    }
    let (intervals, totals) = recorder.finish();
    for interval in &intervals {
        series.add(interval);
    }
    let facts = Facts {
        scenario: ("sample".to_owned(), "A made-up run <of 30 s>.".to_owned()),
        run: "run1".to_owned(),
        started: "2026-03-01T12:00:00Z".to_owned(),
        model: "open".to_owned(),
        targets: vec!["http://127.0.0.1:7400".to_owned()],
        tenants: ["acme", "globex", "initech"].map(str::to_owned).to_vec(),
        flooding: vec![1],
        rows: ["list contacts", "add a note", "flood: globex"]
            .map(str::to_owned)
            .to_vec(),
        threads: 2,
        planned_seconds: 30.0,
        seconds: 30.0,
        interrupted: false,
        marks: vec![Mark {
            at: 12.5,
            text: "acme moved from s1 to s2 (epoch 2)".to_owned(),
        }],
    };
    Report::build(facts, &totals, &series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_json() {
        let report = sample();
        let again: Report = serde_json::from_str(&report.to_json()).unwrap();
        // Floats may come back with another last digit, texts and counts not.
        let shape = |report: &Report| {
            report
                .to_json()
                .lines()
                .filter(|line| !line.contains('.'))
                .count()
        };
        assert_eq!(shape(&again), shape(&report));
        assert_eq!((again.total.requests, again.points.len()), (20_000, 31));
        assert_eq!(report.floods[0].requests, 10_000);
        let heat: u64 = report.heat.columns.iter().flatten().sum();
        assert_eq!(heat, report.total.expected);
        assert!(report.bystanders.is_some() && report.drift.is_some());
    }
}
