//! `ringfence-router`: reads its configuration, serves, drains.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use router::app::App;
use router::config::{Config, LogFormat};
use router::event::Events;
use router::event::metrics::Metrics;
use router::http::Bounds;
use router::threads::Threads;
use router::{admin, http};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use telemetry::{Service, Telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A small read allocates some hundred times; glibc's allocator takes a tenth
/// of the router's time for that, this one a third of it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Longest wait at the end for who is connected and has sent nothing yet: a proxy sends
/// its request as soon as it is, but both may wait for a processor meanwhile.
const SILENT_MAX: Duration = Duration::from_millis(500);
/// Longest wait at the end for spans and reports to be sent.
const LAST_SPANS_MAX: Duration = Duration::from_secs(2);

/// Routes tenants' requests to their shards.
#[derive(Parser)]
#[command(name = "ringfence-router", version)]
struct Args {
    /// Configuration file (TOML); variables such as
    /// RINGFENCE__SHARDS__DATABASE go before its keys
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print the effective configuration, secrets hidden, and exit.
    #[arg(long)]
    print_config: bool,
}

fn main() -> ExitCode {
    tenancy::tls::install_provider();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfence-router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::read(args.config.as_deref())?;
    if args.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    start_log(config.log.format);
    raise_file_limit();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (metrics, rendered) = Metrics::install().context("can't install the metrics")?;
    let service = Service {
        name: "ringfence-router",
        instance: config.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let dsn = config.sentry_dsn()?;
    let telemetry = Telemetry::start(&service, &config.traces, &config.sentry, dsn)?;
    telemetry.faults.report_panics();
    let (tracer, faults) = (telemetry.tracer.clone(), telemetry.faults.clone());
    let events = Events::new(metrics, config.log.requests).context("can't start the log")?;
    let events = events.with(tracer, faults);
    let stop = CancellationToken::new();
    let lag = Duration::from_millis(config.limits.drain_lag_ms);
    let drain = Duration::from_millis(config.limits.drain_ms_max);
    let listener = http::listen(config.listen).await?;
    let admin_listener = http::listen(config.admin_listen).await?;
    let bounds = Bounds {
        connections_max: config.limits.connections_max,
        headers_max: Duration::from_millis(config.limits.headers_ms_max),
        send_max: Duration::from_millis(config.limits.send_ms_max),
        silent_max: SILENT_MAX,
    };
    let access = admin::Access::new(&config)?;
    let served = CancellationToken::new();
    let threads = Threads::start(&served).context("can't start the threads that serve")?;
    let app = App::start(config, events, &threads, stop.clone()).await?;

    let upkeep = tokio::spawn({
        let rendered = rendered.clone();
        async move {
            let mut tick = tokio::time::interval(Duration::from_secs(5));
            loop {
                tick.tick().await;
                rendered.run_upkeep();
            }
        }
    });
    let admin_stop = CancellationToken::new();
    let admin = tokio::spawn(http::serve(
        admin_listener,
        admin::routes(app.clone(), access, rendered),
        bounds,
        Threads::here(),
        admin_stop.clone(),
        Duration::from_secs(1),
    ));
    let data = tokio::spawn(http::serve(
        listener,
        http::answers(app.clone()),
        bounds,
        threads,
        stop.clone(),
        drain,
    ));

    let mut ends = Ends::listen()?;
    ends.told().await;
    tracing::info!(lag_ms = lag.as_millis() as u64, "draining");
    app.drain();
    // Proxies turn elsewhere meanwhile. Who says it again means at once.
    tokio::select! {
        () = tokio::time::sleep(lag) => {}
        () = ends.told() => {}
    }
    stop.cancel();
    let drained = data.await.unwrap_or(false) && app.finish(drain).await;
    served.cancel();
    admin_stop.cancel();
    let _ = admin.await;
    upkeep.abort();
    telemetry.finish(LAST_SPANS_MAX).await;
    if drained {
        tracing::info!("drained");
    } else {
        tracing::warn!("stopped with requests still in flight");
    }
    Ok(())
}

/// Who tells the router to end.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Takes as many open files as the system gives: each client's connection is one.
fn raise_file_limit() {
    let files = Resource::Nofile;
    let limit = getrlimit(files);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(files, raised) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
}

fn start_log(format: LogFormat) {
    // A level, or levels by target: `info,tokio_postgres=warn`.
    let levels = std::env::var("RINGFENCE_LOG").ok();
    let levels = levels.and_then(|levels| levels.parse::<Targets>().ok());
    let levels = levels.unwrap_or_else(|| {
        Targets::new()
            .with_default(LevelFilter::INFO)
            .with_target("tokio_postgres", LevelFilter::WARN)
    });
    let log = tracing_subscriber::registry().with(levels);
    match format {
        LogFormat::Json => log.with(fmt::layer().json().flatten_event(true)).init(),
        LogFormat::Text => log.with(fmt::layer()).init(),
    }
}
