//! What every request shares.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::HeaderMap;
use tenancy::auth::{AuthSettings, Authenticator, DefaultIssuer, KeyRing};
use tenancy::id::{ShardId, TenantId};
use tenancy::members::Members;
use tenancy::peer::PeerConnector;
use tenancy::tls::Tls;
use tenancy::watch::{Placements, Source};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::cache::Cache;
use crate::cache::shared::Shared;
use crate::coherence::Coherence;
use crate::coherence::stream::Access;
use crate::config::Config;
use crate::event::Events;
use crate::event::metrics::{CacheMetrics, SharedMetrics};
use crate::gate::Waiting;
use crate::hold::HoldRoom;
use crate::http::outgoing::Outgoing;
use crate::issuers::Issuers;
use crate::nodes::Node;
use crate::pipeline::Filled;
use crate::pool::{NodeAddress, PoolSettings, Pools};
use crate::quota::{self, Quotas};
use crate::retry::RetryBudget;
use crate::shards::{Listed, Shards, Watching};
use crate::threads::Threads;

/// A router that starts is not ready before it has read all shards' schemas, for
/// so long at most: one that is down must not keep it from the others' tenants.
const FIRST_LOOKS_MAX: Duration = Duration::from_secs(3);
/// Roles that keys and tokens may name, where the configuration names none.
const ROLES: [&str; 3] = ["anon", "authenticated", "service_role"];
/// Longest id that a client may give its request.
const REQUEST_ID_MAX: usize = 64;

/// Counts a request out, however it ends.
pub struct InFlight<'a>(&'a App);

/// What may be done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// All.
    Full,
    /// It is answered from this process's memory, or not.
    FromMemory,
    /// Nothing.
    Nothing,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.events.metrics.in_flight.decrement(1);
    }
}

/// Handles that all requests share.
pub struct App {
    /// The configuration.
    pub config: Config,
    /// Log and metrics.
    pub events: Arc<Events>,
    /// Where tenants live.
    pub placements: Arc<Placements>,
    /// Keys and tokens.
    pub authenticator: Authenticator,
    /// What fetches the keys that issuers publish.
    pub issuers: Arc<Issuers>,
    /// Primaries and schema models.
    pub shards: Arc<Shards>,
    /// Connections.
    pub pools: Pools,
    /// What tenants use, and may use.
    pub quotas: Quotas,
    /// Answers that are kept, and what keeps them right.
    pub(crate) cache: Cache<Filled>,
    /// What may be tried again.
    pub retries: RetryBudget,
    /// Requests that wait for their tenant's cut-over.
    pub hold_room: HoldRoom,
    /// Answers that clients have yet to take.
    pub outgoing: Outgoing,
    /// Transactions in flight; they outlive their request if they must.
    pub transactions: TaskTracker,
    in_flight: AtomicUsize,
    started: Instant,
    draining: AtomicBool,
    instance: String,
    requests: AtomicU64,
}

impl App {
    /// Loads the placements, and begins to watch them and the shards, for requests
    /// that are answered on `threads`.
    ///
    /// Fails where the configuration is wrong, or where there is neither a
    /// control database nor a file copy to start from.
    pub async fn start(
        config: Config,
        events: Events,
        threads: &Threads,
        stop: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let events = Arc::new(events);
        let authenticator = authenticator(&config)?;
        let password = config.shard_password()?;
        let password = password.as_ref().map(|secret| secret.expose().to_owned());
        let me = config.me();
        let instance = me.member.instance;
        let source = Source {
            dsn: config.control_dsn()?.expose().to_owned(),
            tls: Tls::new(&config.control.tls).context("control")?,
            file: config.control.snapshot_file.clone(),
            me: Some(me),
        };
        let placements = Placements::start(source, stop.child_token())
            .await
            .context("there are no placements to start with")?;
        let tls = Tls::new(&config.shards.tls).context("shards")?;
        let coherence = Coherence::new(config.name.clone());
        let shards = Shards::new(
            watching(&config, instance, password.as_deref(), tls.clone()),
            coherence.clone(),
            events.clone(),
            stop.child_token(),
        );
        let pools = Pools::new(pool_settings(&config, password, tls));
        let limits = &config.limits;
        let keys_file = config.control.snapshot_file.as_ref();
        let issuers = Issuers::new(
            authenticator.published().clone(),
            events.clone(),
            keys_file.map(|file| file.with_extension("keys")),
        )
        .context("can't fetch issuers' keys")?;
        let cache = Cache::new(
            config.cache.clone(),
            coherence.clone(),
            shared_cache(&config, threads, stop.child_token())?,
            CacheMetrics::new(),
        );
        let app = Arc::new(Self {
            hold_room: HoldRoom::new(
                limits.held_max,
                limits.held_tenant_max,
                Duration::from_millis(limits.hold_ms_max),
            ),
            events,
            placements,
            authenticator,
            issuers,
            shards,
            pools,
            quotas: Quotas::default(),
            cache,
            retries: RetryBudget::default(),
            outgoing: Outgoing::new(limits.answers_bytes_max),
            transactions: TaskTracker::new(),
            in_flight: AtomicUsize::new(0),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            instance: format!("{:08x}-", uuid::Uuid::new_v4().as_fields().0),
            requests: AtomicU64::new(0),
            config,
        });
        app.take_fleet();
        tokio::spawn(app.clone().keep_pools(stop.clone()));
        tokio::spawn(app.clone().keep_keys(stop.clone()));
        let secret = app.config.stream_secret()?;
        let tls = app.config.cache.stream_tls.clone().map(PeerConnector::new);
        let access = Access {
            secret: secret.map(|secret| secret.expose().to_owned()),
            tls: tls.transpose().context("cache.stream_tls")?,
        };
        let workers = worker_addresses(&app, stop.clone());
        coherence.start(workers, access, app.events.clone(), stop.clone());
        tokio::spawn(app.clone().follow_fleet(stop));
        Ok(app)
    }

    /// The client's own id of its request, if it is one, or a new one.
    pub fn request_id(&self, headers: &HeaderMap) -> Box<str> {
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        match given {
            Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_MAX => id.into(),
            _ => {
                let number = self.requests.fetch_add(1, Ordering::Relaxed);
                let mut digits = itoa::Buffer::new();
                [&*self.instance, digits.format(number)].concat().into()
            }
        }
    }

    /// Why tenants' requests can't be answered; empty when they can.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push("draining".to_owned());
        }
        let shards = self.shards.all();
        if shards.is_empty() {
            reasons.push("there are no shards".to_owned());
        }
        // One shard that is down must not take the others' tenants with it.
        let unknown = |shard: &&Arc<crate::shards::Shard>| shard.model().is_none();
        if !shards.is_empty() && shards.iter().filter(unknown).count() == shards.len() {
            reasons.push("no shard's schema is known yet".to_owned());
        }
        // But it is given a moment to be read.
        if self.started.elapsed() < FIRST_LOOKS_MAX {
            let unknown = shards.iter().filter(unknown);
            reasons
                .extend(unknown.map(|shard| format!("the schema of {} is being read", shard.id)));
        }
        reasons
    }

    /// From now on `/ready` says no, and each answer is its connection's last.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Waits for transactions in flight; false where some did not end in time.
    pub async fn finish(&self, longest: Duration) -> bool {
        self.transactions.close();
        tokio::time::timeout(longest, self.transactions.wait())
            .await
            .is_ok()
    }

    /// Begins a request. Where as many are in flight as may be, as many more may
    /// still be answered from memory, which takes no time; all else is shed.
    pub fn admit(&self) -> (Admission, InFlight<'_>) {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.events.metrics.in_flight.increment(1);
        let max = self.config.limits.in_flight_max;
        let admission = match before {
            _ if before < max => Admission::Full,
            _ if before < max.saturating_mul(2) => Admission::FromMemory,
            _ => Admission::Nothing,
        };
        (admission, InFlight(self))
    }

    /// Takes one retry of the budget, if there is one left.
    pub fn may_retry(&self) -> bool {
        let granted = self.retries.spend();
        if !granted {
            self.events.metrics.retries_denied.increment(1);
        }
        granted
    }

    /// Shares the nodes' connections and the tenants' limits with the routers
    /// that live, and closes what is idle.
    async fn keep_pools(self: Arc<Self>, stop: CancellationToken) {
        let mut members = self.placements.members();
        let share = async {
            loop {
                let sharers = members.borrow_and_update().sharers();
                self.pools.share_with(sharers);
                self.quotas.share_with(sharers);
                if members.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = share => {}
            () = self.pools.close_idle() => {}
            () = self.count_usage() => {}
        }
    }

    /// Fetches the keys that issuers publish, and again in a while.
    async fn keep_keys(self: Arc<Self>, stop: CancellationToken) {
        let mut versions = self.placements.versions();
        loop {
            versions.mark_unchanged();
            let urls = self.authenticator.urls(&self.placements.load());
            let next = self.issuers.keep(&urls);
            let wake = async {
                let next = next.await;
                tokio::select! {
                    () = tokio::time::sleep_until(next) => true,
                    changed = versions.changed() => changed.is_ok(),
                }
            };
            match stop.run_until_cancelled(wake).await {
                Some(true) => {}
                Some(false) | None => return,
            }
        }
    }

    async fn count_usage(&self) {
        let mut ticks = tokio::time::interval(quota::RECENT);
        loop {
            ticks.tick().await;
            self.quotas.tick();
            self.events.metrics.tenants.set(self.quotas.len() as f64);
        }
    }

    async fn follow_fleet(self: Arc<Self>, stop: CancellationToken) {
        let mut versions = self.placements.versions();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = versions.changed() => if changed.is_err() { return },
            }
            self.take_fleet();
        }
    }

    /// Tells shards and pools which nodes there are now.
    fn take_fleet(&self) {
        let snapshot = self.placements.load();
        let metrics = &self.events.metrics;
        metrics.placement_version.set(snapshot.version() as f64);
        let exceptions = snapshot.exceptions().len();
        metrics.placement_exceptions.set(exceptions as f64);
        let fleet = snapshot.fleet();
        let wanted: Vec<Listed> = fleet
            .shards
            .iter()
            .map(|shard| {
                let nodes = shard.nodes.iter().map(|node| Node {
                    name: node.name.clone(),
                    address: NodeAddress {
                        host: node.host.clone(),
                        port: node.port,
                    },
                });
                Listed {
                    id: shard.id.0.clone(),
                    nodes: nodes.collect(),
                    timelines: shard.timelines.clone(),
                }
            })
            .collect();
        self.pools.retain(|address| {
            let mut nodes = wanted.iter().flat_map(|shard| &shard.nodes);
            nodes.any(|node| node.address == *address)
        });
        let is_there = |id: &ShardId| wanted.iter().any(|shard| shard.id == id.0);
        self.cache.coherence.retain(is_there);
        self.shards.set(wanted);
    }
}

/// The cache's second level, where one is configured.
fn shared_cache(
    config: &Config,
    threads: &Threads,
    stop: CancellationToken,
) -> anyhow::Result<Option<Arc<Shared>>> {
    let urls = &config.cache.redis_urls;
    if urls.is_empty() || !config.cache.enabled {
        return Ok(None);
    }
    let password = config.redis_password()?;
    let password = password.as_ref().map(|password| password.expose());
    let authority = config.cache.redis_ca_file.as_ref().map(|path| {
        std::fs::read(path)
            .with_context(|| format!("can't read Redis' authority {}", path.display()))
    });
    let metrics = SharedMetrics::new();
    let runtimes = threads.runtimes().collect();
    let authority = authority.transpose()?;
    let shared = Shared::start(urls, password, authority, runtimes, metrics, stop);
    shared
        .map(Some)
        .context("the addresses of Redis, or its authority, can't be used")
}

/// Where workers serve their changes: those that the configuration names, and
/// all that are alive.
fn worker_addresses(app: &App, stop: CancellationToken) -> watch::Receiver<Vec<String>> {
    let configured = app.config.cache.workers.clone();
    let mut members = app.placements.members();
    let all = move |members: &Members| {
        let alive = members.workers.iter();
        let alive = alive.filter_map(|worker| worker.stream_url.as_deref());
        let mut all: Vec<String> = alive.map(str::to_owned).collect();
        all.extend(configured.iter().cloned());
        all.sort();
        all.dedup();
        all
    };
    let (tell, addresses) = watch::channel(all(&members.borrow_and_update()));
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        while members.changed().await.is_ok() {
            let now = all(&members.borrow_and_update());
            tell.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
        }
        std::future::pending::<()>().await;
    }));
    addresses
}

fn authenticator(config: &Config) -> anyhow::Result<Authenticator> {
    let auth = &config.auth;
    let secret = config.jwt_secret()?;
    let jwks = auth
        .jwks_file
        .as_ref()
        .map(|path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("can't read the JWKS document {}", path.display()))
        })
        .transpose()?;
    if secret.as_ref().is_some_and(|secret| secret.len() < 32) {
        anyhow::bail!("the JWT secret must have 32 characters at least");
    }
    let role_claim = auth.jwt_role_claim_key.as_deref().map(str::parse);
    let role_claim = role_claim.transpose().context("auth.jwt_role_claim_key")?;
    let roles = match &auth.roles {
        Some(roles) => roles.iter().map(|role| role.as_str().into()).collect(),
        None => ROLES.map(Arc::from).to_vec(),
    };
    anyhow::ensure!(
        auth.jwks_url
            .as_deref()
            .is_none_or(tenancy::control::is_safe_url),
        "auth.jwks_url must be a URL of https, or of http on the router's own host"
    );
    let anonymous_role = auth.anonymous_role.as_deref().unwrap_or("anon");
    Ok(Authenticator::new(AuthSettings {
        keys: KeyRing::new(config.key_secret()?.expose()),
        default_issuer: DefaultIssuer::new(
            secret.as_deref(),
            jwks.as_deref(),
            auth.jwt_audience.clone(),
        )?
        .with_url(auth.jwks_url.as_deref())
        .with_role_claim(role_claim.unwrap_or_default()),
        anonymous_tenant: auth.anonymous_tenant.map(TenantId),
        anonymous_role: anonymous_role.into(),
        roles,
    }))
}

fn pool_settings(config: &Config, password: Option<String>, tls: Tls) -> PoolSettings {
    let shards = &config.shards;
    PoolSettings {
        search_path: config.api.search_path(config.api.default_schema()),
        settings: config.api.app_settings(),
        application: format!("ringfence-router {}", config.name),
        user: shards.user.clone(),
        password,
        database: shards.database.clone(),
        tls,
        size_max: shards.pool_size_max,
        node_max: shards.node_connections_max,
        waiting: Waiting {
            max: shards.waiting_max,
            tenant_max: shards.waiting_tenant_max,
            tenant_share: shards.tenant_share_percent,
            standing: Duration::from_millis(shards.queue_standing_ms),
        },
        idle_max: Duration::from_millis(shards.idle_ms_max),
        wait_max: Duration::from_millis(shards.pool_wait_ms_max),
        connect_max: Duration::from_millis(shards.connect_ms_max),
        statements_max: NonZeroUsize::new(shards.statements_max).unwrap_or(NonZeroUsize::MIN),
    }
}

fn watching(config: &Config, instance: Uuid, password: Option<&str>, tls: Tls) -> Watching {
    let mut connection = tokio_postgres::Config::new();
    connection
        .user(&config.shards.user)
        .dbname(&config.shards.database)
        .application_name(format!("ringfence-router {} schema", config.name));
    if let Some(password) = password {
        connection.password(password);
    }
    Watching {
        config: connection,
        tls,
        schemas: config.api.schemas.clone(),
        instance,
    }
}
