//! A run from begin to end: gather tenants, drive the load, watch, check,
//! audit, report.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::calendar;
use crate::check;
use crate::client::Target;
use crate::engine::{self, Choice, Finished, Plan, Running, Stream, StreamKind};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::exposition::{self, Exposition};
use crate::gate;
use crate::live::Live;
use crate::pacer::{Profile, Segment};
use crate::population::Population;
use crate::record::Interval;
use crate::report::{Facts, Report};
use crate::scenario::{self, Checks, Gate, Model, Scenario, Stage, StageKind};
use crate::script::Script;
use crate::series::Series;
use crate::token;
use crate::watch;

/// Seconds that may wait for the collector: a minute of many threads.
const SECONDS_WAITING: usize = 4_096;

/// What the command line adds to a scenario.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Stretches or compresses all stages to this length.
    pub duration: Option<Duration>,
    /// Multiplies every level and flood.
    pub scale: Option<f64>,
    /// Instead of one a core.
    pub threads: Option<usize>,
    /// Verify answers, journal writes, audit at the end.
    pub check: bool,
    /// Where `/metrics` and `/mark` are served; nowhere without.
    pub metrics: Option<SocketAddr>,
    /// No live view and no lines while it runs.
    pub quiet: bool,
}

/// A run that is ready to start: what to send to whom, and how to judge it.
#[derive(Debug)]
pub struct Prepared {
    /// What the engine does.
    pub plan: Arc<Plan>,
    /// Name and description for the report.
    pub title: (String, String),
    /// `open`, `closed` or `replay`.
    pub model: &'static str,
    /// The thresholds.
    pub gates: Vec<Gate>,
    /// What is watched, if answers are to be verified.
    pub checks: Option<Checks>,
    /// Names of operations and floods.
    pub rows: Vec<String>,
    /// From where to where floods last, in seconds.
    pub flood_windows: Vec<(f64, f64)>,
}

/// Makes a scenario ready: finds its tenants and compiles its operations.
///
/// # Errors
/// When targets are unusable or tenants cannot be had.
pub async fn prepare(
    scenario: &Scenario,
    environment: &Environment,
    options: &Options,
) -> Result<Prepared> {
    let targets = targets(environment)?;
    let wanted = scenario
        .population
        .as_ref()
        .map(|population| population.get_ref().clone())
        .unwrap_or_default();
    let population = Population::gather(&wanted, environment).await?;
    let prefix = targets
        .first()
        .map(|target| target.prefix.clone())
        .unwrap_or_default();
    let script = Script::compile(scenario, &prefix);
    let scale = options.scale.unwrap_or(1.0);
    let profile = profile(
        &scenario
            .stages
            .iter()
            .map(|stage| stage.get_ref())
            .collect::<Vec<_>>(),
    )
    .scaled(scale);
    let stretch = options
        .duration
        .map_or(1.0, |duration| duration.as_secs_f64() / profile.seconds());
    let profile = profile.lasting(profile.seconds() * stretch);

    let load = &scenario.load;
    let mut streams = vec![Stream {
        start: Duration::ZERO,
        kind: match load.model {
            Model::Open => StreamKind::Open {
                profile: profile.clone(),
                spacing: load.arrivals,
                connections: load.connections,
                backlog: load.backlog,
                choice: Choice::Mixed,
            },
            Model::Closed => StreamKind::Closed {
                profile: profile.clone(),
                think: load.think_time,
            },
        },
    }];
    let mut rows: Vec<String> = script
        .operations
        .iter()
        .map(|operation| operation.name.clone())
        .collect();
    let mut flood_windows = Vec::new();
    for flood in scenario.floods.iter().map(|flood| flood.get_ref()) {
        let (name, stream) = flood_stream(flood, scenario, &population, rows.len(), scale, stretch);
        flood_windows.push((stream.start.as_secs_f64(), stream.end().as_secs_f64()));
        rows.push(name);
        streams.push(stream);
    }
    let connections = match load.model {
        Model::Open => load.connections,
        Model::Closed => profile.peak().ceil() as usize,
    };
    let plan = Plan {
        script,
        population,
        targets,
        streams,
        timeout: load.timeout.duration(),
        look_for_leaks: options.check,
        run: token::run_name(),
        seed: scenario.seed,
        threads: threads(options, connections),
        journal_limit: scenario
            .checks
            .as_ref()
            .map_or(0, |checks| checks.get_ref().journal),
        log_paths: Vec::new(),
    };
    Ok(Prepared {
        plan: Arc::new(plan),
        title: (scenario.name.clone(), scenario.description.clone()),
        model: match load.model {
            Model::Open => "open",
            Model::Closed => "closed",
        },
        gates: scenario
            .gates
            .iter()
            .map(|gate| gate.get_ref().clone())
            .collect(),
        checks: scenario
            .checks
            .as_ref()
            .filter(|_| options.check)
            .map(|checks| checks.get_ref().clone()),
        rows,
        flood_windows,
    })
}

/// The targets of an environment; all must have the same path, because paths
/// are built before it is known which target gets them.
///
/// # Errors
/// [`Error::Target`].
pub fn targets(environment: &Environment) -> Result<Vec<Arc<Target>>> {
    let targets: Vec<Arc<Target>> = environment
        .targets
        .iter()
        .map(|url| Target::parse(url).map(Arc::new))
        .collect::<Result<_>>()?;
    if let Some(odd) = targets
        .iter()
        .find(|target| target.prefix != targets[0].prefix)
    {
        return Err(Error::Target {
            url: odd.url.clone(),
            reason: format!("all targets must have the same path as {}", targets[0].url),
        });
    }
    Ok(targets)
}

/// One thread a core, but none without a connection.
pub fn threads(options: &Options, connections: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    options
        .threads
        .unwrap_or(cores)
        .clamp(1, connections.max(1))
}

fn profile(stages: &[&Stage]) -> Profile {
    let mut segments = Vec::new();
    for stage in stages {
        let seconds = stage.duration.seconds();
        // Validation has made sure that each kind has its fields.
        let [level, from, to, peak] =
            [stage.level, stage.from, stage.to, stage.peak].map(|value| value.unwrap_or_default());
        let flat = |seconds, level| Segment {
            seconds,
            from: level,
            to: level,
        };
        match stage.kind {
            StageKind::Constant | StageKind::Soak => segments.push(flat(seconds, level)),
            StageKind::Ramp => segments.push(Segment { seconds, from, to }),
            StageKind::Spike => {
                let third = seconds / 3.0;
                segments.extend([flat(third, level), flat(third, peak), flat(third, level)]);
            }
        }
    }
    Profile::new(segments)
}

fn flood_stream(
    flood: &scenario::Flood,
    scenario: &Scenario,
    population: &Population,
    row: usize,
    scale: f64,
    stretch: f64,
) -> (String, Stream) {
    let slug = flood
        .tenant
        .as_ref()
        .map(|tenant| tenant.get_ref().as_str());
    let tenant = slug.and_then(|slug| population.place(slug)).unwrap_or(0);
    let operation = scenario
        .operations
        .iter()
        .position(|operation| operation.get_ref().name == *flood.operation.get_ref())
        .unwrap_or_default();
    let seconds = flood.duration.seconds() * stretch;
    let rate = *flood.rate.get_ref() * scale;
    let stream = Stream {
        start: flood.start.duration().mul_f64(stretch),
        kind: StreamKind::Open {
            profile: Profile::new(vec![Segment {
                seconds,
                from: rate,
                to: rate,
            }]),
            spacing: scenario.load.arrivals,
            connections: flood.connections,
            backlog: scenario.load.backlog,
            choice: Choice::Fixed {
                operation,
                tenant,
                row,
            },
        },
    };
    (
        format!(
            "flood: {}, {}",
            population.tenants[tenant].slug,
            flood.operation.get_ref()
        ),
        stream,
    )
}

/// Drives a prepared run and reports it. `interrupt` ends it early; the report
/// is then of what was measured until then.
///
/// # Errors
/// Only for failures of the tester itself; whatever the target does is part
/// of the report.
pub async fn drive(
    prepared: Prepared,
    environment: &Environment,
    options: &Options,
    interrupt: CancellationToken,
) -> Result<Report> {
    let plan = prepared.plan.clone();
    let planned = plan.duration();
    let started = calendar::timestamp(calendar::now());
    let (sender, seconds) = mpsc::channel(SECONDS_WAITING);
    let running = engine::start(plan.clone(), &sender)?;
    drop(sender);
    let exposition = Arc::new(Exposition::new(running.begin.clone()));
    let background = start_background(&plan, environment, options, &exposition).await;
    let stop_engine = stop_on(interrupt.clone(), &running);
    let checker = prepared
        .checks
        .map(|checks| check::start(plan.clone(), checks, running.begin.clone()))
        .transpose()?;

    let begin = running.begin.clone();
    let slugs: Vec<String> = plan
        .population
        .tenants
        .iter()
        .map(|tenant| tenant.slug.clone())
        .collect();
    let live = (!options.quiet).then(|| Live::new(planned.as_secs_f64(), slugs.clone()));
    let series = Series::new(planned.as_secs_f64(), prepared.flood_windows.clone());
    let series = collect(seconds, series, live, &exposition).await;
    let finished = join(running).await?;
    stop_engine.abort();
    let elapsed = begin.get().map_or(Duration::ZERO, Instant::elapsed);
    drop(background);
    let checks = match checker {
        Some(checker) => Some(checker.finish(&finished, environment).await?),
        None => None,
    };

    let facts = Facts {
        scenario: prepared.title,
        run: plan.run.clone(),
        started,
        model: prepared.model.to_owned(),
        targets: environment.targets.clone(),
        tenants: slugs,
        flooding: plan.flooding(),
        rows: prepared.rows,
        threads: plan.threads,
        planned_seconds: planned.as_secs_f64(),
        // Neither the drain after the schedule nor the gap after its last
        // arrival changes how long the load lasted.
        seconds: if interrupt.is_cancelled() {
            elapsed.min(planned)
        } else {
            planned
        }
        .as_secs_f64(),
        interrupted: interrupt.is_cancelled(),
        marks: exposition.marks(),
    };
    let mut report = Report::build(facts, &finished.totals, &series);
    report.gates = gate::judge(&prepared.gates, &report);
    report.checks = checks;
    Ok(report)
}

/// What goes on beside the load; ends when the set is dropped.
async fn start_background(
    plan: &Arc<Plan>,
    environment: &Environment,
    options: &Options,
    exposition: &Arc<Exposition>,
) -> JoinSet<()> {
    let mut background = JoinSet::new();
    if let Some(address) = options.metrics {
        match exposition::listen(address).await {
            Ok(listener) => {
                background.spawn(exposition::serve(listener, exposition.clone()));
            }
            // Another run may have the port: no reason not to run.
            Err(error) => eprintln!("no /metrics: {error}"),
        }
    }
    if let Some(admin) = environment.admin.clone() {
        let slugs = plan
            .population
            .tenants
            .iter()
            .map(|tenant| tenant.slug.clone())
            .collect();
        background.spawn(watch::watch(admin, slugs, exposition.clone()));
    }
    background
}

fn stop_on(interrupt: CancellationToken, running: &Running) -> tokio::task::JoinHandle<()> {
    let stop = running.stop.clone();
    tokio::spawn(async move {
        interrupt.cancelled().await;
        stop.cancel();
    })
}

/// Adds up the threads' seconds until the last thread is done.
async fn collect(
    mut seconds: mpsc::Receiver<Interval>,
    mut series: Series,
    mut live: Option<Live>,
    exposition: &Exposition,
) -> Series {
    let mut shown = None;
    while let Some(interval) = seconds.recv().await {
        series.add(&interval);
        exposition.add(&interval);
        if let Some(live) = &mut live {
            show(live, &series, &mut shown, 1);
        }
    }
    if let Some(live) = &mut live {
        show(live, &series, &mut shown, 0);
    }
    series
}

/// Shows the seconds that were not shown yet, but for the last `unsure` of
/// them: other threads may still have to tell of those.
fn show(live: &mut Live, series: &Series, shown: &mut Option<u32>, unsure: usize) {
    for interval in series.recent(unsure) {
        if shown.is_none_or(|shown| interval.second > shown) {
            *shown = Some(interval.second);
            live.show(interval);
        }
    }
}

async fn join(running: Running) -> Result<Finished> {
    tokio::task::spawn_blocking(move || running.join())
        .await
        .map_err(|_| Error::Thread)?
}

/// Where a report is written.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// A JSON file.
    pub json: Option<PathBuf>,
    /// A CSV file.
    pub csv: Option<PathBuf>,
    /// An HTML file.
    pub html: Option<PathBuf>,
}

impl Outputs {
    /// Writes what was asked for.
    ///
    /// # Errors
    /// [`Error::Write`] of the first file that cannot be written; the others
    /// are still tried.
    pub fn write(&self, report: &Report) -> Result<()> {
        let files = [
            (&self.json, Report::to_json as fn(&Report) -> String),
            (&self.csv, crate::report::csv::render),
            (&self.html, crate::report::html::render),
        ];
        let mut outcome = Ok(());
        for (path, render) in files {
            let Some(path) = path else { continue };
            if let Err(source) = std::fs::write(path, render(report)) {
                outcome = Err(Error::Write {
                    path: path.clone(),
                    source,
                });
            }
        }
        outcome
    }
}
