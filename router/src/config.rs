//! Configuration: one struct per concern, every field with a default that
//! works, unknown keys refused. Read once at start and passed as values.
//!
//! Secrets are never in the file itself: they come from the environment, or
//! from files that `*_file` keys name, and print as `***`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD as STANDARD_NO_PAD;
use schema::ident::{Ident, QualifiedName};
use serde::{Deserialize, Serialize};
use telemetry::settings::{Dsn, Sentry, Traces};
use tenancy::members::{self, Kind, Me};
use tenancy::peer::PeerSettings;
use tenancy::settings::{self, SettingsError};
use tenancy::tls::TlsSettings;

use crate::freshness::Reads;

/// Everything a router is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This router's name in logs and in Postgres' `application_name`.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where tenants' requests are served.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where `/live`, `/ready` and `/metrics` are served.
    #[serde(default = "default_admin_listen")]
    pub admin_listen: SocketAddr,
    /// Who shows it there may take CPU profiles; `RINGFENCE_ROUTER_ADMIN_TOKEN` overrides it.
    /// Without one, whoever asks may where `admin_listen` is loopback, else nobody.
    #[serde(default)]
    pub admin_token_file: Option<PathBuf>,
    /// Base address under which others reach `admin_listen`, where that is not
    /// its own; `RINGFENCE_ADVERTISE` overrides it.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The region that this router runs in; the default one where none is given.
    #[serde(default)]
    pub region: Option<String>,
    /// The control database.
    #[serde(default)]
    pub control: Control,
    /// Keys and tokens.
    #[serde(default)]
    pub auth: Auth,
    /// How shards are connected to.
    #[serde(default)]
    pub shards: Shards,
    /// Caches, and what keeps them right.
    #[serde(default)]
    pub cache: Cache,
    /// The data API.
    #[serde(default)]
    pub api: Api,
    /// Time and size limits of requests.
    #[serde(default)]
    pub limits: Limits,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
    /// Which requests are traced, and where traces go.
    #[serde(default)]
    pub traces: Traces,
    /// Which faults are reported to Sentry.
    #[serde(default)]
    pub sentry: Sentry,
}

/// Where placements come from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Connection string of the control database; `RINGFENCE_CONTROL_DSN` overrides it.
    pub dsn: Option<Secret>,
    /// A file with that string, where it is not given otherwise.
    pub dsn_file: Option<PathBuf>,
    /// Copy of the last snapshot, for a start while the control database is down.
    pub snapshot_file: Option<PathBuf>,
    /// Whether connections to it are encrypted.
    pub tls: TlsSettings,
}

/// How requests are authenticated.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// The secret that API keys are signed with; `RINGFENCE_KEY_SECRET` overrides it.
    pub key_secret_file: Option<PathBuf>,
    /// The HS256 secret of the default issuer; `RINGFENCE_JWT_SECRET` overrides it.
    pub jwt_secret_file: Option<PathBuf>,
    /// That secret is Base64, of either alphabet, of what signs.
    pub jwt_secret_is_base64: bool,
    /// A JWKS document with the public keys of the default issuer.
    pub jwks_file: Option<PathBuf>,
    /// Where the default issuer publishes such a document.
    pub jwks_url: Option<String>,
    /// Audience that tokens of the default issuer must name, where set.
    pub jwt_audience: Option<String>,
    /// Where its tokens say their role, such as `.app_metadata.roles[0]`; otherwise
    /// in the claim `role`.
    pub jwt_role_claim_key: Option<String>,
    /// The tenant of requests that carry neither key nor token.
    pub anonymous_tenant: Option<uuid::Uuid>,
    /// The role of requests whose token names none, and of anonymous ones.
    #[serde(default)]
    pub anonymous_role: Option<String>,
    /// Roles that a key or token may name.
    #[serde(default)]
    pub roles: Option<Vec<String>>,
}

/// How shards are connected to. Their addresses come from the control database.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shards {
    /// Login role.
    pub user: String,
    /// Its password; `RINGFENCE_ROUTER_PASSWORD` overrides it.
    pub password_file: Option<PathBuf>,
    /// Database name on every node.
    pub database: String,
    /// Connections at most, per node and role.
    pub pool_size_max: usize,
    /// Connections at most per node, of all roles and all routers together; each
    /// live router takes its part. Leave some of the node's `max_connections` to
    /// the worker, replicas and people.
    pub node_connections_max: usize,
    /// A connection that was not used for so long is closed.
    pub idle_ms_max: u64,
    /// Requests that may wait for a connection, per node.
    pub waiting_max: usize,
    /// Requests of one tenant that may.
    pub waiting_tenant_max: usize,
    /// Connections to a node that one tenant gets while others wait for one, in percent.
    pub tenant_share_percent: usize,
    /// A tenant's queue for connections that has not been empty for so long is
    /// overloaded: its newest request is served first, and pushes out the oldest.
    pub queue_standing_ms: u64,
    /// Longest wait for a pooled connection.
    pub pool_wait_ms_max: u64,
    /// Longest wait for a new connection.
    pub connect_ms_max: u64,
    /// Prepared statements kept per connection.
    pub statements_max: usize,
    /// Whether connections to nodes are encrypted.
    pub tls: TlsSettings,
    /// Where reads go that say nothing of it.
    pub reads: ReadsFrom,
    /// With `reads = "replica"`: so much of others' writes an answer may miss.
    pub replica_stale_ms_max: u64,
}

/// Where reads go that say nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadsFrom {
    /// From the primary, until a replica is known to have all that was acknowledged.
    Current,
    /// From a replica that is at most `replica_stale_ms_max` behind.
    Replica,
    /// From the primary, also where the client would allow a replica.
    Primary,
}

/// Caches, and what keeps them right.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Answers are kept, and writes wait until every router sees them. The same
    /// for all routers: one that is off waits for no other's cache.
    pub enabled: bool,
    /// Memory for answers in this process.
    pub memory_bytes_max: u64,
    /// As much of it one tenant may fill, in percent.
    pub tenant_share_percent: u8,
    /// Answers of single tables, such as `"public.visits" = "off"` or
    /// `"public.countries" = 60`: so many seconds old they may be.
    pub tables: HashMap<String, TableCache>,
    /// Workers whose streams of changes are followed beside those that the
    /// control database knows, such as `ws://127.0.0.1:7600`.
    pub workers: Vec<String>,
    /// Nodes of Redis Cluster, such as `redis://127.0.0.1:7620`; none: no second level.
    pub redis_urls: Vec<String>,
    /// Certificates (PEM) that sign Redis' own, with addresses that begin with
    /// `rediss://`; none: the web's usual authorities.
    pub redis_ca_file: Option<PathBuf>,
    /// Redis' password; `RINGFENCE_REDIS_PASSWORD` overrides it.
    pub redis_password_file: Option<PathBuf>,
    /// What the workers' stream of changes is opened with; `RINGFENCE_STREAM_SECRET` overrides it.
    pub stream_secret_file: Option<PathBuf>,
    /// Streams are opened by TLS alone, to workers that prove to be some, as this
    /// router proves to be one. Read anew for each connection.
    pub stream_tls: Option<PeerSettings>,
    /// Answers carry `Surrogate-Key`, for a CDN before the routers that purges
    /// by tenant and table. Clients need not see it.
    pub surrogate_keys: bool,
    /// When a write is acknowledged that does not say so itself.
    pub visibility: Visibility,
}

/// How answers of one table are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TableCache {
    /// Every acknowledged write is in the answer.
    #[default]
    Current,
    /// Not at all.
    Named(TableCacheName),
    /// Answers may be so many seconds old.
    Seconds(u64),
}

/// Words for [`TableCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableCacheName {
    /// Not kept.
    Off,
    /// Kept, and always current.
    Current,
}

/// When writes are acknowledged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Visibility {
    /// Where nothing else is said.
    pub default: VisibleTo,
    /// Of single tables, such as `"public.visits" = "self"`.
    pub tables: HashMap<String, VisibleTo>,
    /// Of single tenants, by id.
    pub tenants: HashMap<uuid::Uuid, VisibleTo>,
}

/// Who sees a write before it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisibleTo {
    /// Every reader, through any router.
    #[default]
    All,
    /// Who sends the write's token, and the primary's readers.
    #[serde(rename = "self")]
    Writer,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            enabled: false,
            memory_bytes_max: 256 << 20,
            tenant_share_percent: 25,
            tables: HashMap::new(),
            workers: Vec::new(),
            redis_urls: Vec::new(),
            redis_ca_file: None,
            redis_password_file: None,
            surrogate_keys: false,
            stream_secret_file: None,
            stream_tls: None,
            visibility: Visibility::default(),
        }
    }
}

impl Visibility {
    /// Who sees a tenant's write to these tables before it is acknowledged: the
    /// tenant's word counts most, then the strictest of the tables'.
    pub fn of<'a>(
        &self,
        tenant: uuid::Uuid,
        mut tables: impl Iterator<Item = &'a str>,
    ) -> VisibleTo {
        if let Some(tenants) = self.tenants.get(&tenant) {
            return *tenants;
        }
        let of = |table| self.tables.get(table).copied().unwrap_or(self.default);
        match tables.next() {
            None => self.default,
            Some(first) if of(first) == VisibleTo::Writer => {
                let all = tables.all(|table| of(table) == VisibleTo::Writer);
                if all {
                    VisibleTo::Writer
                } else {
                    VisibleTo::All
                }
            }
            Some(_) => VisibleTo::All,
        }
    }
}

/// The data API's shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Path in front of table names; empty for none.
    pub rest_prefix: String,
    /// Schemas that are exposed; the first is the default.
    pub schemas: Vec<String>,
    /// Further schemas that functions and operators are found in, behind the request's own.
    pub extra_search_path: Vec<String>,
    /// Rows at most that a read returns; none means no limit.
    pub rows_max: Option<u64>,
    /// `select=amount.sum()` and its like are allowed.
    pub aggregates: bool,
    /// `Accept: application/vnd.pgrst.plan` is allowed. A plan's shape follows
    /// from statistics that cover all tenants of the shard.
    pub plans: bool,
    /// Plans show costs, row counts and what ANALYZE, BUFFERS and WAL find, which
    /// tell of other tenants' sizes. Otherwise they are left out.
    pub plan_figures: bool,
    /// `Prefer: tx=rollback` is allowed.
    pub tx_rollback: bool,
    /// What the document at the root describes.
    pub openapi: OpenApi,
    /// A function of the default schema that answers the root instead.
    pub root_spec: Option<String>,
    /// A function (`schema.name`) that is called in each request's transaction,
    /// once the tenant was entered and before anything else.
    pub pre_request: Option<String>,
    /// A function's own settings (`SET … TO …`) that hold for the whole
    /// transaction in which it is called.
    pub hoisted_settings: Vec<String>,
    /// What functions and policies read as `current_setting('app.settings.NAME')`.
    pub app_settings: BTreeMap<String, String>,
    /// Origins such as `https://app.example` whose pages may read answers, with
    /// credentials; none: all origins, without.
    pub cors_origins: Vec<String>,
}

/// What the document at the root describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenApi {
    /// What the request's role may use.
    FollowPrivileges,
    /// All that is exposed.
    IgnorePrivileges,
    /// There is none.
    Disabled,
}

/// Bounds of one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From the first byte to the answer; beyond it the query is cancelled on the server.
    pub request_ms_max: u64,
    /// How long a request is held while its tenant is being cut over.
    pub hold_ms_max: u64,
    /// How many requests are held at once.
    pub held_max: usize,
    /// How many of one tenant's.
    pub held_tenant_max: usize,
    /// Requests in flight. More are answered 503 at once, but for as many again
    /// whose answers are in the router's memory.
    pub in_flight_max: usize,
    /// Connections of clients; more wait to be accepted.
    pub connections_max: usize,
    /// Time that a client has to send a request's headers, from its connection or
    /// its last answer on: an idle connection is closed after it.
    pub headers_ms_max: u64,
    /// Time that a client has to send its body.
    pub body_ms_max: u64,
    /// A client that takes nothing of what it is sent for so long is cut off; one of
    /// HTTP/2 that answers pings is not, so that those belong behind a proxy.
    pub send_ms_max: u64,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Largest body of an answer: it is held in memory until it is sent. A write that
    /// would answer more is undone.
    pub response_bytes_max: usize,
    /// Bytes of all answers that clients have yet to take, but for those below
    /// 16 KiB. A read beyond them is refused, unless its answer is in memory.
    pub answers_bytes_max: usize,
    /// How long the answer to a write with an Idempotency-Key is kept.
    pub idempotency_seconds: u32,
    /// Keys of one tenant that are kept at once; counted by a sample of one in a
    /// thousand, so take it for a tenth more or less.
    pub idempotency_keys_max: u64,
    /// Largest body of an answer that is kept; a write that answers more is refused.
    pub idempotency_body_bytes_max: usize,
    /// How long, once it is told to end, a router goes on as before, but for this: it
    /// says that it is not ready, and each answer is its connection's last. Longer than
    /// a proxy keeps a connection that nothing uses, and than it takes to hear of it,
    /// no request meets one that is being closed. 0 where no proxy stands before it.
    pub drain_lag_ms: u64,
    /// How long in-flight requests may take to finish at shutdown, after that.
    pub drain_ms_max: u64,
}

/// What is logged.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `json` or `text`.
    pub format: LogFormat,
    /// Which requests are logged.
    pub requests: RequestLog,
    /// Requests that take so long are logged in any case, with their statement
    /// and what they spent their time on; 0 for none.
    pub slow_ms: u64,
}

impl Log {
    /// Whether a request that took so long is a slow one.
    pub fn is_slow(&self, took: Duration) -> bool {
        self.slow_ms > 0 && took >= Duration::from_millis(self.slow_ms)
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestLog {
    /// Every one.
    All,
    /// Those answered with 5xx.
    Errors,
}

/// A string that does not print.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl Default for Shards {
    fn default() -> Self {
        Self {
            user: "ringfence_router".into(),
            password_file: None,
            database: "app".into(),
            pool_size_max: 20,
            node_connections_max: 80,
            idle_ms_max: 30_000,
            waiting_max: 1_000,
            waiting_tenant_max: 200,
            tenant_share_percent: 20,
            queue_standing_ms: 1_000,
            pool_wait_ms_max: 2_000,
            connect_ms_max: 2_000,
            statements_max: 256,
            tls: TlsSettings::default(),
            reads: ReadsFrom::Current,
            replica_stale_ms_max: 1_000,
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            rest_prefix: "/rest/v1".into(),
            schemas: vec!["public".into()],
            extra_search_path: vec!["public".into()],
            rows_max: None,
            aggregates: false,
            plans: false,
            plan_figures: false,
            tx_rollback: false,
            openapi: OpenApi::FollowPrivileges,
            root_spec: None,
            pre_request: None,
            hoisted_settings: vec![
                "statement_timeout".into(),
                "plan_filter.statement_cost_limit".into(),
            ],
            app_settings: BTreeMap::new(),
            cors_origins: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_ms_max: 30_000,
            hold_ms_max: 5_000,
            held_max: 1_000,
            held_tenant_max: 500,
            in_flight_max: 5_000,
            connections_max: 20_000,
            headers_ms_max: 10_000,
            body_ms_max: 10_000,
            send_ms_max: 30_000,
            body_bytes_max: 16 << 20,
            response_bytes_max: 64 << 20,
            answers_bytes_max: 1 << 30,
            idempotency_seconds: 86_400,
            idempotency_keys_max: 1_000_000,
            idempotency_body_bytes_max: 1 << 20,
            drain_lag_ms: 0,
            drain_ms_max: 10_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            requests: RequestLog::All,
            slow_ms: 1_000,
        }
    }
}

impl Shards {
    /// Where reads go.
    pub fn reads(&self) -> Reads {
        match self.reads {
            ReadsFrom::Current => Reads::Current,
            ReadsFrom::Primary => Reads::Primary,
            ReadsFrom::Replica => Reads::Replica {
                stale_max: Duration::from_millis(self.replica_stale_ms_max),
            },
        }
    }
}

impl Api {
    /// The schema of requests that name none.
    pub fn default_schema(&self) -> &str {
        self.schemas.first().map_or("public", String::as_str)
    }

    /// The function that is called before each request.
    pub fn before(&self) -> Option<QualifiedName> {
        let name = self.pre_request.as_deref()?;
        Some(match name.split_once('.') {
            Some((schema, name)) => QualifiedName::new(schema, name),
            None => QualifiedName::new(self.default_schema(), name),
        })
    }

    /// The application's settings as Postgres knows them.
    pub fn app_settings(&self) -> Vec<(String, String)> {
        let settings = self.app_settings.iter();
        let settings = settings.map(|(name, v)| (format!("app.settings.{name}"), v.clone()));
        settings.collect()
    }

    /// Postgres' `search_path` for a request to `schema`.
    pub fn search_path(&self, schema: &str) -> String {
        let mut path = Ident::new(schema).to_string();
        for further in self.extra_search_path.iter().filter(|name| *name != schema) {
            path.push_str(", ");
            path.push_str(&Ident::new(further.as_str()).to_string());
        }
        path
    }
}

impl Limits {
    /// Time that a whole request may take.
    pub fn request(&self) -> Duration {
        Duration::from_millis(self.request_ms_max)
    }
}

fn default_name() -> String {
    "router".into()
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400))
}

fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7500))
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or one that it names, can't be read.
    #[error("can't read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// File or environment are not valid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A number that can't be meant.
    #[error("{key} is {given}: it must be {least} at least and {most} at most")]
    OutOfRange {
        /// The key of the file.
        key: &'static str,
        /// Its value.
        given: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// Postgres would not take that name.
    #[error(
        "api.app_settings has \"{0}\": a name has letters, digits and _, and begins with none of the digits"
    )]
    AppSetting(String),
    /// The JWT secret is to be Base64, and is none.
    #[error("the JWT secret is not valid Base64, as auth.jwt_secret_is_base64 says")]
    NotBase64(#[from] base64::DecodeError),
    /// Whoever shows nothing would show it.
    #[error("the file that admin_token_file names is empty")]
    EmptyToken,
    /// Something without a default is missing.
    #[error("{what} is missing: set {key} in the file or {variable} in the environment")]
    Missing {
        /// In words.
        what: &'static str,
        /// The key of the file.
        key: &'static str,
        /// The environment's variable.
        variable: &'static str,
    },
}

impl Config {
    /// Reads the file, where one is given, and the environment; see [`settings`].
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        let config: Self = settings::load(file)?;
        config.check()?;
        Ok(config)
    }

    /// Every number is one that can be meant: a pool of no connections, or more
    /// permits than a semaphore has, would stop the router later.
    fn check(&self) -> Result<(), ConfigError> {
        /// More than any machine has of connections or requests.
        const MANY: u64 = 1_000_000;
        /// Longer than anything is waited for.
        const DAY_MS: u64 = 86_400_000;
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let odd = |name: &&String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            !name.chars().all(plain)
                || name.starts_with(|c: char| c.is_ascii_digit())
                || name.is_empty()
        };
        if let Some(name) = self.api.app_settings.keys().find(odd) {
            return Err(ConfigError::AppSetting(name.clone()));
        }
        let (shards, limits) = (&self.shards, &self.limits);
        let statements = count(shards.statements_max);
        let share = count(shards.tenant_share_percent);
        for (key, given, least, most) in [
            ("shards.pool_size_max", count(shards.pool_size_max), 1, MANY),
            (
                "shards.node_connections_max",
                count(shards.node_connections_max),
                1,
                MANY,
            ),
            ("shards.idle_ms_max", shards.idle_ms_max, 1_000, DAY_MS),
            ("shards.waiting_max", count(shards.waiting_max), 0, MANY),
            (
                "shards.waiting_tenant_max",
                count(shards.waiting_tenant_max),
                0,
                MANY,
            ),
            ("shards.tenant_share_percent", share, 1, 100),
            (
                "shards.pool_wait_ms_max",
                shards.pool_wait_ms_max,
                1,
                DAY_MS,
            ),
            (
                "shards.queue_standing_ms",
                shards.queue_standing_ms,
                1,
                DAY_MS,
            ),
            ("shards.connect_ms_max", shards.connect_ms_max, 1, DAY_MS),
            ("shards.statements_max", statements, 1, MANY),
            (
                "shards.replica_stale_ms_max",
                shards.replica_stale_ms_max,
                0,
                DAY_MS,
            ),
            (
                "cache.tenant_share_percent",
                u64::from(self.cache.tenant_share_percent),
                1,
                100,
            ),
            ("limits.request_ms_max", limits.request_ms_max, 1, DAY_MS),
            ("limits.hold_ms_max", limits.hold_ms_max, 0, DAY_MS),
            ("limits.held_max", count(limits.held_max), 0, MANY),
            (
                "limits.held_tenant_max",
                count(limits.held_tenant_max),
                0,
                MANY,
            ),
            ("limits.in_flight_max", count(limits.in_flight_max), 1, MANY),
            (
                "limits.connections_max",
                count(limits.connections_max),
                1,
                MANY,
            ),
            ("limits.headers_ms_max", limits.headers_ms_max, 1, DAY_MS),
            ("limits.body_ms_max", limits.body_ms_max, 1, DAY_MS),
            ("limits.send_ms_max", limits.send_ms_max, 1, DAY_MS),
            ("limits.drain_lag_ms", limits.drain_lag_ms, 0, DAY_MS),
            ("limits.drain_ms_max", limits.drain_ms_max, 0, DAY_MS),
        ] {
            if !(least..=most).contains(&given) {
                return Err(ConfigError::OutOfRange {
                    key,
                    given,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }

    /// What the other routers and the workers are told of this one.
    pub fn me(&self) -> Me {
        let given = env("RINGFENCE_ADVERTISE");
        let given = given.as_ref().map(Secret::expose);
        let url = members::reachable(given.or(self.advertise.as_deref()), self.admin_listen);
        Me::new(Kind::Router, &self.name, self.region.clone(), url)
    }

    /// The control database's connection string.
    pub fn control_dsn(&self) -> Result<Secret, ConfigError> {
        let given = env("RINGFENCE_CONTROL_DSN").or_else(|| self.control.dsn.clone());
        let filed = || secret("RINGFENCE_CONTROL_DSN", self.control.dsn_file.as_deref());
        given
            .map_or_else(filed, |dsn| Ok(Some(dsn)))?
            .ok_or(ConfigError::Missing {
                what: "the control database's address",
                key: "control.dsn",
                variable: "RINGFENCE_CONTROL_DSN",
            })
    }

    /// The secret of API keys.
    pub fn key_secret(&self) -> Result<Secret, ConfigError> {
        secret("RINGFENCE_KEY_SECRET", self.auth.key_secret_file.as_deref())?.ok_or(
            ConfigError::Missing {
                what: "the secret of API keys",
                key: "auth.key_secret_file",
                variable: "RINGFENCE_KEY_SECRET",
            },
        )
    }

    /// The default issuer's HS256 secret, where there is one.
    pub fn jwt_secret(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        let found = secret("RINGFENCE_JWT_SECRET", self.auth.jwt_secret_file.as_deref())?;
        let found = found.map(|secret| match self.auth.jwt_secret_is_base64 {
            true => base64_of_any_alphabet(secret.expose()),
            false => Ok(secret.expose().into()),
        });
        found.transpose()
    }

    /// The token of who may take CPU profiles.
    pub fn admin_token(&self) -> Result<Option<Secret>, ConfigError> {
        let file = self.admin_token_file.as_deref();
        let token = secret("RINGFENCE_ROUTER_ADMIN_TOKEN", file)?;
        match token {
            Some(token) if token.expose().is_empty() => Err(ConfigError::EmptyToken),
            token => Ok(token),
        }
    }

    /// What the workers' stream of changes is opened with.
    pub fn stream_secret(&self) -> Result<Option<Secret>, ConfigError> {
        secret(
            "RINGFENCE_STREAM_SECRET",
            self.cache.stream_secret_file.as_deref(),
        )
    }

    /// Redis' password, where it needs one.
    pub fn redis_password(&self) -> Result<Option<Secret>, ConfigError> {
        secret(
            "RINGFENCE_REDIS_PASSWORD",
            self.cache.redis_password_file.as_deref(),
        )
    }

    /// The DSN of Sentry, where faults are reported.
    pub fn sentry_dsn(&self) -> Result<Option<Dsn>, ConfigError> {
        let dsn = secret("RINGFENCE_SENTRY_DSN", self.sentry.dsn_file.as_deref())?;
        Ok(dsn.map(|dsn| Dsn(dsn.0)))
    }

    /// The password of the shards' login role, where it needs one.
    pub fn shard_password(&self) -> Result<Option<Secret>, ConfigError> {
        secret(
            "RINGFENCE_ROUTER_PASSWORD",
            self.shards.password_file.as_deref(),
        )
    }
}

fn env(variable: &str) -> Option<Secret> {
    std::env::var(variable)
        .ok()
        .filter(|v| !v.is_empty())
        .map(Secret)
}

fn secret(variable: &str, file: Option<&Path>) -> Result<Option<Secret>, ConfigError> {
    if let Some(found) = env(variable) {
        return Ok(Some(found));
    }
    file.map(|path| read(path).map(|text| Secret(text.trim_end().to_owned())))
        .transpose()
}

/// Padding may be missing.
fn base64_of_any_alphabet(text: &str) -> Result<Vec<u8>, ConfigError> {
    let text = text.trim().trim_end_matches('=');
    let standard = text.replace('-', "+").replace('_', "/");
    Ok(STANDARD_NO_PAD.decode(standard)?)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_may_be_base64_of_either_alphabet() {
        for text in ["+/+/YQ==", "-_-_YQ==", "-_-_YQ"] {
            let secret = base64_of_any_alphabet(text).unwrap();
            assert_eq!(secret, [0xfb, 0xff, 0xbf, b'a']);
        }
        assert!(base64_of_any_alphabet("no base64").is_err());
    }

    #[test]
    fn an_empty_token_is_none() {
        let config: Config = toml::from_str("admin_token_file = \"/dev/null\"").unwrap();
        let refused = config.admin_token();
        assert!(matches!(refused, Err(ConfigError::EmptyToken)));
    }

    #[test]
    fn the_defaults_can_be_used_and_numbers_that_cannot_be_meant_are_refused() {
        let read = |text: &str| toml::from_str::<Config>(text).unwrap().check();
        assert!(read("").is_ok());
        for (key, text) in [
            ("shards.pool_size_max", "[shards]\npool_size_max = 0"),
            (
                "shards.pool_size_max",
                "[shards]\npool_size_max = 9000000000000000000",
            ),
            (
                "shards.node_connections_max",
                "[shards]\nnode_connections_max = 0",
            ),
            (
                "shards.tenant_share_percent",
                "[shards]\ntenant_share_percent = 101",
            ),
            (
                "limits.connections_max",
                "[limits]\nconnections_max = 9000000000000000000",
            ),
            (
                "limits.held_max",
                "[limits]\nheld_max = 9000000000000000000",
            ),
            (
                "limits.request_ms_max",
                "[limits]\nrequest_ms_max = 9000000000000000000",
            ),
        ] {
            let refused = read(text).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{key} is ")), "{refused}");
        }
    }

    #[test]
    fn a_write_is_seen_by_all_unless_tenant_or_all_its_tables_say_otherwise() {
        use VisibleTo::{All, Writer};
        let tenant = uuid::Uuid::from_u128(1);
        let visibility =
            |default, tables: &[(&str, VisibleTo)], own: Option<VisibleTo>| Visibility {
                default,
                tables: tables.iter().map(|(t, to)| ((*t).into(), *to)).collect(),
                tenants: own.map(|own| (tenant, own)).into_iter().collect(),
            };
        let logs = [("public.logs", Writer)];
        for (settings, tables, expected) in [
            (visibility(All, &[], None), &["public.a"][..], All),
            (visibility(Writer, &[], None), &["public.a"], Writer),
            (visibility(Writer, &[], None), &[], Writer),
            (visibility(All, &logs, None), &["public.logs"], Writer),
            (
                visibility(All, &logs, None),
                &["public.logs", "public.a"],
                All,
            ),
            (
                visibility(All, &logs, None),
                &["public.a", "public.logs"],
                All,
            ),
            (visibility(All, &logs, None), &[], All),
            // The tenant's word is above its tables'.
            (visibility(All, &logs, Some(All)), &["public.logs"], All),
            (visibility(All, &[], Some(Writer)), &["public.a"], Writer),
        ] {
            let of = |tenant| settings.of(tenant, tables.iter().copied());
            assert_eq!(of(tenant), expected, "{settings:?} {tables:?}");
        }
        let other = uuid::Uuid::from_u128(2);
        let own = visibility(All, &[], Some(Writer));
        assert_eq!(own.of(other, ["public.a"].into_iter()), All);
    }
}
