//! The command line of the load tester.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use loadtest::environment::Environment;
use loadtest::error::{Error, Result};
use loadtest::replay::{self, Log};
use loadtest::report::{Report, compare, terminal};
use loadtest::run::{self, Options, Outputs};
use loadtest::scenario::{self, Period, Scenario};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Honest load for Ringfence and other PostgREST-like services.
///
/// Exit codes: 0 ok; 1 the tester itself failed; 2 wrong usage; 80 a wrong
/// answer was seen; 81 a tenant was shown another's row; 99 a threshold was
/// missed; 104 bad scenario; 105 interrupted (the report is still written).
#[derive(Debug, Parser)]
#[command(name = "ringfence-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario and report it.
    Run(Box<Run>),
    /// Replay the reads of an access log (Nginx' combined format or JSON, or a
    /// router's own) at the times at which they arrived.
    Replay(Box<Replay>),
    /// Check scenario files without running them.
    Validate {
        /// The scenario files.
        #[arg(required = true)]
        scenarios: Vec<PathBuf>,
    },
    /// Print the JSON Schema of scenarios, for editors.
    Schema,
    /// Compare the JSON reports of two runs.
    Compare {
        /// The report of the first run.
        before: PathBuf,
        /// The report of the second run.
        after: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// The scenario file.
    scenario: PathBuf,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    drive: Drive,
}

#[derive(Debug, Args)]
struct Replay {
    /// The access log.
    log: PathBuf,
    /// So many times as fast as it was written.
    #[arg(long, default_value_t = 1.0, value_parser = parse_factor)]
    speed: f64,
    /// Which tenant a tenant of the log becomes, as LOGGED=TENANT; may be
    /// repeated. Others become themselves, or known tenants in turn.
    #[arg(long, value_parser = parse_key)]
    map: Vec<(String, String)>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    outcome: Outcome,
}

/// Where requests go.
#[derive(Debug, Args)]
struct Place {
    /// Base URL to send requests to; several for several routers.
    /// Without it, the routers of the environment file.
    #[arg(long, value_delimiter = ',')]
    url: Vec<String>,
    /// Environment file with addresses and keys
    /// [default without --url: .ringfence/local.env]
    #[arg(long)]
    env: Option<PathBuf>,
    /// A tenant's API key, as TENANT=KEY; may be repeated.
    #[arg(long, value_parser = parse_key)]
    key: Vec<(String, String)>,
}

/// How a scenario is driven.
#[derive(Debug, Args)]
struct Drive {
    /// Stretch or compress all stages to this length, such as 10s.
    #[arg(long)]
    duration: Option<Period>,
    /// Multiply the load by this.
    #[arg(long, value_parser = parse_factor)]
    scale: Option<f64>,
    /// Verify answers while driving, and audit all writes at the end.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    outcome: Outcome,
}

/// What is shown of a run, and where its report goes.
#[derive(Debug, Args)]
struct Outcome {
    /// Threads that send requests [default: one a core]
    #[arg(long)]
    threads: Option<usize>,
    /// Write the report as a self-contained HTML file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the run over time as CSV.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Serve GET /metrics and POST /mark here while running, or `off`.
    #[arg(long, default_value = "127.0.0.1:7690", value_parser = parse_address)]
    metrics: Address,
    /// Print only the summary.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy)]
struct Address(Option<SocketAddr>);

fn parse_address(text: &str) -> std::result::Result<Address, String> {
    match text {
        "off" => Ok(Address(None)),
        text => text
            .parse()
            .map(|address| Address(Some(address)))
            .map_err(|_| "an address and port, or off".to_owned()),
    }
}

fn parse_key(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((tenant, key)) if !tenant.is_empty() => Ok((tenant.to_owned(), key.to_owned())),
        _ => Err("write TENANT=KEY".to_owned()),
    }
}

fn parse_factor(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        _ => Err("a number above zero".to_owned()),
    }
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Run(run) => run_scenario(&run),
        Command::Replay(replay) => replay_log(&replay),
        Command::Validate { scenarios } => validate(&scenarios),
        Command::Schema => {
            println!("{}", scenario::json_schema());
            Ok(0)
        }
        Command::Compare { before, after } => {
            print!(
                "{}",
                compare::render(&Report::read(&before)?, &Report::read(&after)?)
            );
            Ok(0)
        }
    }
}

/// Names every bad file, not only the first.
fn validate(paths: &[PathBuf]) -> Result<u8> {
    let mut code = 0;
    for path in paths {
        match Scenario::read(path) {
            Ok(scenario) => println!("{}: ok, {}", path.display(), scenario.name),
            Err(error) => {
                eprintln!("error: {error}");
                code = error.exit_code().max(code);
            }
        }
    }
    Ok(code)
}

fn run_scenario(run: &Run) -> Result<u8> {
    let scenario = read_scenario(&run.scenario, run.drive.check)?;
    let environment = run.place.environment()?;
    let options = run.drive.options();
    in_runtime(async {
        let prepared = run::prepare(&scenario, &environment, &options).await?;
        let report = run::drive(prepared, &environment, &options, interrupt()?).await?;
        finish(&report, &run.drive.outcome)
    })
}

fn replay_log(replay: &Replay) -> Result<u8> {
    let log = Log::read(&replay.log)?;
    let environment = replay.place.environment()?;
    let options = replay.outcome.options();
    let title = replay
        .log
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    in_runtime(async {
        let prepared = replay::prepare(
            &title,
            log,
            replay.speed,
            &replay.map,
            &environment,
            &options,
        )
        .await?;
        let report = run::drive(prepared, &environment, &options, interrupt()?).await?;
        finish(&report, &replay.outcome)
    })
}

fn read_scenario(path: &Path, check: bool) -> Result<Scenario> {
    let scenario = Scenario::read(path)?;
    if check {
        scenario.checkable(path)?
    }
    Ok(scenario)
}

fn finish(report: &Report, outcome: &Outcome) -> Result<u8> {
    print!("{}", terminal::render(report));
    let outputs = Outputs {
        json: outcome.json.clone(),
        csv: outcome.csv.clone(),
        html: outcome.html.clone(),
    };
    outputs.write(report)?;
    Ok(report.exit_code())
}

/// The runtime of everything but the load itself, which has its own threads.
fn in_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            what: "an event loop",
            source,
        })?
        .block_on(work)
}

/// Cancelled by the first Ctrl-C or SIGTERM; the second ends the process.
fn interrupt() -> Result<CancellationToken> {
    let refused = |source| Error::System {
        what: "a signal handler",
        source,
    };
    let mut ctrl_c = signal(SignalKind::interrupt()).map_err(refused)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    let token = CancellationToken::new();
    let interrupted = token.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = ctrl_c.recv() => {}
                _ = terminate.recv() => {}
            }
            if interrupted.is_cancelled() {
                std::process::exit(105);
            }
            eprintln!("interrupted: finishing; once more to stop at once");
            interrupted.cancel();
        }
    });
    Ok(token)
}

impl Place {
    fn environment(&self) -> Result<Environment> {
        Environment::from_options(self.env.as_deref(), &self.url, &self.key)
    }
}

impl Drive {
    fn options(&self) -> Options {
        Options {
            duration: self
                .duration
                .map(Period::duration)
                .filter(|duration| *duration > Duration::ZERO),
            scale: self.scale,
            check: self.check,
            ..self.outcome.options()
        }
    }
}

impl Outcome {
    fn options(&self) -> Options {
        Options {
            threads: self.threads,
            metrics: self.metrics.0,
            quiet: self.quiet,
            ..Options::default()
        }
    }
}
