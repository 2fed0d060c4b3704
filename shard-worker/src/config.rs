//! Configuration: every field with a default that works, unknown keys refused.
//! Secrets come from the environment, or from files that `*_file` keys name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use axum::http::Uri;
use schema::shard::RolePasswords;
use serde::{Deserialize, Serialize};
use telemetry::settings::{Dsn, Sentry, Traces};
use tenancy::changes;
use tenancy::members::{self, Kind, Me};
use tenancy::peer::PeerSettings;
use tenancy::settings;
use tenancy::tls::TlsSettings;

use crate::admins::Admins;

/// Everything a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This worker's name: the owner of its leases.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where the admin API is served.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Base address under which others reach `listen`, where that is not its
    /// own; `RINGFENCE_ADVERTISE` overrides it.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The region that this worker runs in; the default one where none is given.
    #[serde(default)]
    pub region: Option<String>,
    /// Bearer token of the admin API; `RINGFENCE_ADMIN_TOKEN` overrides it. Who shows
    /// it is called `admin` in the audit log.
    #[serde(default)]
    pub admin_token_file: Option<PathBuf>,
    /// Files with further ones, by the names of those who have them.
    #[serde(default)]
    pub admin_token_files: BTreeMap<String, PathBuf>,
    /// Bearer token of the stream of changes; `RINGFENCE_STREAM_SECRET` overrides it.
    /// Without one, no router is let in.
    #[serde(default)]
    pub stream_secret_file: Option<PathBuf>,
    /// Where the stream is served, with `stream_tls`: a listener of its own.
    #[serde(default = "default_stream_listen")]
    pub stream_listen: SocketAddr,
    /// The stream is served by TLS alone, to routers that prove to be some, as
    /// this worker proves to be one. Read anew for each connection.
    #[serde(default)]
    pub stream_tls: Option<PeerSettings>,
    /// The control database.
    #[serde(default)]
    pub control: Control,
    /// What API keys are signed with.
    #[serde(default)]
    pub auth: Auth,
    /// How shards are connected to.
    #[serde(default)]
    pub shards: Shards,
    /// How jobs are run.
    #[serde(default)]
    pub jobs: Jobs,
    /// `json` or `text`.
    #[serde(default)]
    pub log: LogFormat,
    /// Which requests are traced, and where traces go; jobs always are.
    #[serde(default)]
    pub traces: Traces,
    /// Which faults are reported to Sentry.
    #[serde(default)]
    pub sentry: Sentry,
}

/// How jobs are run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jobs {
    /// As many run at once on this worker.
    pub at_once_max: usize,
    /// As many requests may watch jobs' progress.
    pub watchers_max: usize,
    /// The rows of jobs that ended are kept for so many days; the audit log has what
    /// they did for good.
    pub keep_days: NonZeroU32,
    /// A move's copy waits while a standby, or the capture, is behind by more bytes.
    pub copy_lag_bytes_max: u64,
    /// It waits while more sessions of the source are at work.
    pub copy_busy_sessions_max: u64,
    /// For tests: a file with the name of the point at which this worker dies.
    pub failpoint_file: Option<PathBuf>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            at_once_max: 4,
            watchers_max: 200,
            keep_days: const { NonZeroU32::new(30).unwrap() },
            copy_lag_bytes_max: 64 << 20,
            copy_busy_sessions_max: 64,
            failpoint_file: None,
        }
    }
}

/// The control database.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Connection string of its owner; `RINGFENCE_CONTROL_DSN` overrides it.
    #[serde(skip_serializing)]
    pub dsn: Option<String>,
    /// A file with that string, where it is not given otherwise.
    pub dsn_file: Option<PathBuf>,
    /// Whether connections to it are encrypted.
    pub tls: TlsSettings,
}

/// What API keys are signed with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// The secret; `RINGFENCE_KEY_SECRET` overrides it.
    pub key_secret_file: Option<PathBuf>,
    /// Not used by workers; accepted so that routers and workers can share a file.
    pub jwt_secret_file: Option<PathBuf>,
}

/// How shards are connected to. Their addresses come from the control database.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shards {
    /// Database name on every node.
    pub database: String,
    /// Whether connections to nodes are encrypted.
    pub tls: TlsSettings,
    /// The authorities' file as the shards' own servers find it, which verify each
    /// other when tenants move; `tls.ca_file` where none is given. A relative path
    /// is one in their data folders.
    pub server_ca_file: Option<PathBuf>,
    /// Superuser that prepares a new shard.
    pub superuser: String,
    /// Its password; `RINGFENCE_SUPERUSER_PASSWORD` overrides it.
    pub superuser_password_file: Option<PathBuf>,
    /// Password given to `ringfence_router`; `RINGFENCE_ROUTER_PASSWORD` overrides it.
    pub router_password_file: Option<PathBuf>,
    /// Password of `ringfence_worker`; `RINGFENCE_WORKER_PASSWORD` overrides it.
    pub worker_password_file: Option<PathBuf>,
    /// Password given to `ringfence_migrator`; `RINGFENCE_MIGRATOR_PASSWORD` overrides it.
    pub migrator_password_file: Option<PathBuf>,
    /// Password given to `ringfence_mover` and `ringfence_reader`;
    /// `RINGFENCE_MOVER_PASSWORD` overrides it.
    pub mover_password_file: Option<PathBuf>,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// The secrets, read.
pub struct Secrets {
    /// Connection string of the control database.
    pub control_dsn: String,
    /// Who may use the admin API.
    pub admins: Admins,
    /// Bearer token of the stream of changes.
    pub stream_secret: Option<String>,
    /// What API keys are signed with.
    pub key_secret: String,
    /// Password of the shards' superuser.
    pub superuser_password: Option<String>,
    /// The DSN of Sentry, where faults are reported.
    pub sentry_dsn: Option<Dsn>,
    /// Passwords of the shards' roles.
    pub roles: RolePasswords,
}

impl Default for Shards {
    fn default() -> Self {
        Self {
            database: "app".into(),
            tls: TlsSettings::default(),
            server_ca_file: None,
            superuser: "postgres".into(),
            superuser_password_file: None,
            router_password_file: None,
            worker_password_file: None,
            migrator_password_file: None,
            mover_password_file: None,
        }
    }
}

fn default_name() -> String {
    "worker".into()
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7600))
}

fn default_stream_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7601))
}

impl Config {
    /// Reads the file, where one is given, and the environment; see [`settings`].
    pub fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        Ok(settings::load(file)?)
    }

    /// What the routers and the other workers are told of this one.
    pub fn me(&self) -> Me {
        let given = std::env::var("RINGFENCE_ADVERTISE").ok();
        let given = given.as_deref().filter(|url| !url.is_empty());
        let url = members::reachable(given.or(self.advertise.as_deref()), self.listen);
        Me::new(Kind::Worker, &self.name, self.region.clone(), url)
    }

    /// Where routers open this worker's stream of changes, which is reached by
    /// the same name as `admin_url`.
    pub fn stream_url(&self, admin_url: &str) -> anyhow::Result<String> {
        let base = match self.stream_tls {
            None => admin_url.replacen("http", "ws", 1),
            Some(_) => {
                let uri: Uri = admin_url.parse()?;
                let host = uri.host().context("the advertised address names no host")?;
                format!("wss://{host}:{}", self.stream_listen.port())
            }
        };
        Ok(base.trim_end_matches('/').to_owned() + changes::PATH)
    }

    /// Reads the secrets that the configuration and the environment name.
    pub fn secrets(&self) -> anyhow::Result<Secrets> {
        let shards = &self.shards;
        let optional = |variable, file: &Option<PathBuf>| secret(variable, file.as_deref());
        let needed = |variable: &str, key: &str, file: &Option<PathBuf>| {
            secret(variable, file.as_deref())?
                .ok_or_else(|| anyhow!("set {key} in the file or {variable} in the environment"))
        };
        let dsn = std::env::var("RINGFENCE_CONTROL_DSN").ok();
        let control_dsn = match dsn.or_else(|| self.control.dsn.clone()) {
            Some(dsn) => dsn,
            None => needed(
                "RINGFENCE_CONTROL_DSN",
                "control.dsn_file",
                &self.control.dsn_file,
            )?,
        };
        Ok(Secrets {
            control_dsn,
            admins: self.admins()?,
            sentry_dsn: optional("RINGFENCE_SENTRY_DSN", &self.sentry.dsn_file)?.map(Dsn),
            stream_secret: optional("RINGFENCE_STREAM_SECRET", &self.stream_secret_file)?,
            key_secret: needed(
                "RINGFENCE_KEY_SECRET",
                "auth.key_secret_file",
                &self.auth.key_secret_file,
            )?,
            superuser_password: optional(
                "RINGFENCE_SUPERUSER_PASSWORD",
                &shards.superuser_password_file,
            )?,
            roles: RolePasswords {
                router: optional("RINGFENCE_ROUTER_PASSWORD", &shards.router_password_file)?,
                worker: optional("RINGFENCE_WORKER_PASSWORD", &shards.worker_password_file)?,
                migrator: optional(
                    "RINGFENCE_MIGRATOR_PASSWORD",
                    &shards.migrator_password_file,
                )?,
                mover: optional("RINGFENCE_MOVER_PASSWORD", &shards.mover_password_file)?,
            },
        })
    }
}

/// The name of who shows the token that has none.
const ADMIN: &str = "admin";

impl Config {
    /// Reads who may use the admin API, by which tokens.
    ///
    /// # Errors
    /// A file that can't be read, no token at all, or such as would not tell who it is.
    pub fn admins(&self) -> anyhow::Result<Admins> {
        let unnamed = secret("RINGFENCE_ADMIN_TOKEN", self.admin_token_file.as_deref())?;
        let mut tokens: Vec<_> = unnamed
            .map(|token| (ADMIN.to_owned(), token))
            .into_iter()
            .collect();
        for (name, path) in &self.admin_token_files {
            tokens.push((name.clone(), read_secret(path)?));
        }
        if tokens.is_empty() {
            bail!(
                "set admin_token_file or admin_token_files in the file or \
                 RINGFENCE_ADMIN_TOKEN in the environment"
            );
        }
        Ok(Admins::new(tokens)?)
    }
}

fn secret(variable: &str, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    if let Ok(value) = std::env::var(variable) {
        return Ok(Some(value).filter(|v| !v.is_empty()));
    }
    file.map(read_secret).transpose()
}

fn read_secret(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read the secret in {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}
