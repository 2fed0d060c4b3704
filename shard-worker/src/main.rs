//! `ringfence-worker`: the admin API, the reconciler and the watch on nodes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::serve::ListenerExt;
use clap::Parser;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use shard_worker::admins::{self, Strangers};
use shard_worker::app::App;
use shard_worker::capture::{Capture, RouterListener, describe_metrics};
use shard_worker::config::{Config, LogFormat, Secrets};
use shard_worker::failpoint::Failpoints;
use shard_worker::job::metrics::JobMetrics;
use shard_worker::job::{self, News};
use shard_worker::move_tenant::metrics::MoveMetrics;
use shard_worker::shard::Logins;
use shard_worker::{api, archive, fleet_query, forget, nodes, reconcile};
use telemetry::{Service, Telemetry};
use tenancy::auth::KeyRing;
use tenancy::control::Control;
use tenancy::members::{self, Members};
use tenancy::peer::{PeerAcceptor, PeerSettings};
use tenancy::tls::Tls;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Longest wait for tasks and requests at shutdown.
const DRAIN: Duration = Duration::from_secs(10);

/// Longest wait at the end for spans and reports to be sent.
const LAST_SPANS_MAX: Duration = Duration::from_secs(2);

/// Upper bounds of the histograms' buckets, seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// How often the metrics' memory is tidied.
const TIDY: Duration = Duration::from_secs(5);

/// Prepares shards, watches nodes, and serves the admin API.
#[derive(Parser)]
#[command(name = "ringfence-worker", version)]
struct Args {
    /// Configuration file (TOML); variables such as
    /// RINGFENCE__SHARDS__DATABASE go before its keys
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print the effective configuration, secrets hidden, and exit.
    #[arg(long)]
    print_config: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    tenancy::tls::install_provider();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfence-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::read(args.config.as_deref())?;
    if args.print_config {
        print!("{}", toml::to_string(&config)?);
        return Ok(());
    }
    start_log(config.log);
    let mut secrets = config.secrets()?;
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .context("can't install the metrics")?;
    describe_metrics();
    let service = Service {
        name: "ringfence-worker",
        instance: config.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let telemetry = Telemetry::start(
        &service,
        &config.traces,
        &config.sentry,
        secrets.sentry_dsn.take(),
    )?;
    telemetry.faults.report_panics();
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("can't listen on {}", config.listen))?
        // Where streams are not encrypted they come here, too: the small frames that
        // answer a barrier must not wait for each other's acknowledgement, which takes
        // 40 ms.
        .tap_io(|socket| {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "a socket keeps small frames back");
            }
        });
    let stream_listener = match config.stream_tls.clone() {
        None => None,
        Some(settings) => Some(stream_listener(config.stream_listen, settings).await?),
    };
    let control_tls = Tls::new(&config.control.tls).context("control")?;
    let control_config = control_tls.read(&secrets.control_dsn)?;
    upgrade_control(&control_config, &control_tls, &secrets).await?;

    let members = watch::Sender::<Arc<Members>>::default();
    let admins = watch::Sender::new(secrets.admins);
    let stop = CancellationToken::new();
    let app = Arc::new(App {
        members: members.subscribe(),
        // Routers are neighbours: no proxy stands between.
        http: reqwest::Client::builder().no_proxy().build()?,
        capture: Capture::new(secrets.stream_secret, stop.clone()),
        upgraded: Default::default(),
        name: config.name.clone(),
        owner: format!("{}/{}", config.name, uuid::Uuid::new_v4().simple()),
        control: Control::new(&secrets.control_dsn, &control_tls)?,
        logins: Logins {
            tls: Tls::new(&config.shards.tls).context("shards")?,
            server_ca_file: config.shards.server_ca_file.clone(),
            database: config.shards.database.clone(),
            superuser: config.shards.superuser.clone(),
            superuser_password: secrets.superuser_password,
            roles: secrets.roles,
        },
        keys: KeyRing::new(&secrets.key_secret),
        admins: admins.subscribe(),
        strangers: Strangers::new(),
        job_news: News::listen(control_config.clone(), control_tls.clone(), stop.clone()),
        job_watchers: Arc::new(Semaphore::new(config.jobs.watchers_max)),
        archives: Arc::new(Semaphore::new(archive::AT_ONCE_MAX)),
        queries: Semaphore::new(fleet_query::AT_ONCE_MAX),
        job_metrics: JobMetrics::new(),
        tracer: telemetry.tracer.clone(),
        faults: telemetry.faults.clone(),
        run_files: Default::default(),
        move_metrics: MoveMetrics::new(),
        watches: Default::default(),
        failpoints: Failpoints(config.jobs.failpoint_file.clone()),
        jobs: config.jobs.clone(),
    });
    let tasks = TaskTracker::new();
    let mut me = config.me();
    // Without a secret it would turn every router away.
    if app.capture.is_open() {
        me.member.stream_url = Some(config.stream_url(&me.member.admin_url)?);
    }
    tasks.spawn(members::follow(
        control_config,
        control_tls,
        me,
        members,
        stop.clone(),
    ));
    let capture =
        app.capture
            .clone()
            .run(app.control.clone(), app.logins.clone(), app.name.clone());
    tasks.spawn(capture);
    tasks.spawn(admins::follow(config.clone(), admins, stop.clone()));
    tasks.spawn(reconcile::run(app.clone(), stop.clone()));
    tasks.spawn(job::run(app.clone(), stop.clone()));
    tasks.spawn(job::prune::run(app.clone(), stop.clone()));
    tasks.spawn(forget::run(app.clone(), stop.clone()));
    tasks.spawn(nodes::observe(
        app.control.clone(),
        app.logins.clone(),
        app.name.clone(),
        stop.clone(),
    ));
    let (handle, stopped) = (metrics.clone(), stop.clone());
    tasks.spawn(async move {
        while tokio::time::timeout(TIDY, stopped.cancelled())
            .await
            .is_err()
        {
            handle.run_upkeep();
        }
    });
    tasks.close();

    let mut routes = api::routes(app.clone(), metrics);
    let stream = api::stream(app);
    let mut servers = JoinSet::new();
    match stream_listener {
        None => routes = routes.merge(stream),
        Some(listener) => {
            let stopped = stop.clone().cancelled_owned();
            let server = axum::serve(listener, stream).with_graceful_shutdown(stopped);
            servers.spawn(async move { server.await });
        }
    }
    let stopped = stop.clone().cancelled_owned();
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, routes).with_graceful_shutdown(stopped);
    servers.spawn(async move { server.await });
    tracing::info!(listen = %config.listen, "serving the admin API");
    terminated().await?;
    tracing::info!("stopping");
    stop.cancel();
    let ended = async {
        tasks.wait().await;
        servers.join_all().await
    };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("stopped with work still under way; another worker finishes it");
    }
    telemetry.finish(LAST_SPANS_MAX).await;
    Ok(())
}

/// Where routers that prove to be some open their streams.
async fn stream_listener(
    listen: SocketAddr,
    settings: PeerSettings,
) -> anyhow::Result<RouterListener> {
    let tls = PeerAcceptor::new(settings).context("stream_tls")?;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("can't listen on {listen}"))?;
    Ok(RouterListener::new(listener, tls)?)
}

/// Creates or upgrades the control database; waits for it at a cold start.
async fn upgrade_control(
    config: &tokio_postgres::Config,
    tls: &Tls,
    secrets: &Secrets,
) -> anyhow::Result<()> {
    let mut config = config.clone();
    config.connect_timeout(Duration::from_secs(5));
    let (mut client, connection) = tls
        .connect(&config)
        .await
        .context("can't connect to the control database")?;
    let connection = tokio::spawn(connection);
    schema::control::upgrade(&mut client, secrets.roles.router.as_deref()).await?;
    drop(client);
    let _ = connection.await;
    Ok(())
}

async fn terminated() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
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
