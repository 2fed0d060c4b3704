//! Configuration files of the services, and the servers' settings: the only
//! place that knows their keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::layout::Node;
use super::secrets::Secrets;

/// Settings of every Postgres node, control database included.
pub(crate) const POSTGRESQL_CONF: &str = "\
# Written by `ringfence local`; port and name are given on the command line.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
password_encryption = 'scram-sha-256'
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d %a '

# Replication: physical for replicas, logical for moves and change capture.
wal_level = logical
hot_standby = on
hot_standby_feedback = on
# A move has a slot and a walsender on either side for as long as it can be rolled back.
max_wal_senders = 60
max_replication_slots = 60
# Two base backups at once: one's checkpoint removed what the other's new slot
# was about to reserve.
wal_keep_size = 64MB
max_worker_processes = 64
max_logical_replication_workers = 48
max_sync_workers_per_subscription = 4
track_commit_timestamp = on
wal_retrieve_retry_interval = 200ms
# A node that is down for long must not fill the disk of the one it follows.
max_slot_wal_keep_size = 2GB
";

/// Who may connect: loopback only, never without a password.
pub(crate) const PG_HBA_CONF: &str = "\
# Written by `ringfence local`.
host all         all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
";

/// The same where services must encrypt. The superuser's tools on this machine
/// need not.
pub(crate) const PG_HBA_TLS_CONF: &str = "\
# Written by `ringfence local`.
host    all         postgres 127.0.0.1/32 scram-sha-256
host    replication postgres 127.0.0.1/32 scram-sha-256
hostssl all         all      127.0.0.1/32 scram-sha-256
hostssl replication all      127.0.0.1/32 scram-sha-256
";

#[derive(Serialize)]
struct Router<'a> {
    name: &'a str,
    listen: String,
    admin_listen: String,
    control: RouterControl,
    auth: Auth,
    shards: RouterShards,
    cache: RouterCache<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<RouterLimits>,
}

#[derive(Serialize)]
struct RouterLimits {
    hold_ms_max: u64,
}

#[derive(Serialize)]
struct RouterCache<'a> {
    enabled: bool,
    redis_urls: &'a [String],
    redis_password_file: String,
    stream_secret_file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_tls: Option<&'a Peer>,
    surrogate_keys: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes_max: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tables: &'a BTreeMap<String, toml::Value>,
}

#[derive(Serialize)]
struct RouterControl {
    dsn: String,
    snapshot_file: String,
    tls: Tls,
}

#[derive(Serialize)]
struct RouterShards {
    password_file: String,
    tls: Tls,
}

/// The authority's certificate in each server's data folder.
pub(crate) const SERVER_CA: &str = "ca.pem";

#[derive(Serialize)]
struct Worker<'a> {
    name: &'a str,
    listen: String,
    advertise: String,
    admin_token_file: String,
    stream_secret_file: String,
    stream_listen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_tls: Option<&'a Peer>,
    control: WorkerControl,
    auth: Auth,
    shards: WorkerShards,
    jobs: WorkerJobs,
}

#[derive(Serialize)]
struct WorkerJobs {
    failpoint_file: &'static str,
}

#[derive(Serialize)]
struct WorkerControl {
    dsn: String,
    tls: Tls,
}

#[derive(Serialize)]
struct WorkerShards {
    superuser_password_file: String,
    router_password_file: String,
    worker_password_file: String,
    migrator_password_file: String,
    mover_password_file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_ca_file: Option<&'static str>,
    tls: Tls,
}

#[derive(Serialize)]
struct Tls {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

/// How routers and workers prove to each other who they are.
#[derive(Serialize)]
pub(crate) struct Peer {
    pub(crate) ca_file: PathBuf,
    pub(crate) cert_file: &'static str,
    pub(crate) key_file: &'static str,
}

#[derive(Serialize)]
struct Auth {
    key_secret_file: String,
    jwt_secret_file: String,
}

/// What all routers are told alike.
pub(crate) struct RouterOptions {
    /// They answer from their caches.
    pub(crate) caches: bool,
    /// Empty: in their own memory alone.
    pub(crate) redis_urls: Vec<String>,
    pub(crate) memory_bytes_max: Option<u64>,
    /// By table, as in a router's file.
    pub(crate) tables: BTreeMap<String, toml::Value>,
    /// None: as long as they do by themselves.
    pub(crate) hold_ms_max: Option<u64>,
}

/// A router's file. `dsn` is the control database's, for reading.
pub(crate) fn router(
    name: &str,
    port: u16,
    admin_port: u16,
    dsn: String,
    told: &RouterOptions,
    tls: Option<&Peer>,
    secrets: &Secrets,
) -> Result<String, toml::ser::Error> {
    toml::to_string(&Router {
        name,
        listen: loopback(port),
        admin_listen: loopback(admin_port),
        control: RouterControl {
            dsn,
            // Relative to the node's own folder, where it runs.
            snapshot_file: "snapshot".into(),
            tls: verified(tls.map(|tls| tls.ca_file.as_path())),
        },
        auth: auth(secrets),
        shards: RouterShards {
            password_file: file(secrets, "router"),
            tls: verified(tls.map(|tls| tls.ca_file.as_path())),
        },
        cache: RouterCache {
            enabled: told.caches,
            redis_urls: &told.redis_urls,
            redis_password_file: file(secrets, "redis"),
            stream_secret_file: file(secrets, "stream-secret"),
            stream_tls: tls,
            surrogate_keys: told.caches,
            memory_bytes_max: told.memory_bytes_max,
            tables: &told.tables,
        },
        limits: told
            .hold_ms_max
            .map(|hold_ms_max| RouterLimits { hold_ms_max }),
    })
}

/// A worker's file. `dsn` is the control database's, for its owner.
pub(crate) fn worker(
    node: &Node,
    dsn: String,
    stream_port: u16,
    tls: Option<&Peer>,
    secrets: &Secrets,
) -> Result<String, toml::ser::Error> {
    toml::to_string(&Worker {
        name: &node.name,
        listen: loopback(node.own_port),
        advertise: format!("http://{}", loopback(node.port)),
        admin_token_file: file(secrets, "admin-token"),
        stream_secret_file: file(secrets, "stream-secret"),
        stream_listen: loopback(stream_port),
        stream_tls: tls,
        control: WorkerControl {
            dsn,
            tls: verified(tls.map(|tls| tls.ca_file.as_path())),
        },
        auth: auth(secrets),
        shards: WorkerShards {
            tls: verified(tls.map(|tls| tls.ca_file.as_path())),
            server_ca_file: tls.map(|_| SERVER_CA),
            superuser_password_file: file(secrets, "superuser"),
            router_password_file: file(secrets, "router"),
            worker_password_file: file(secrets, "worker"),
            migrator_password_file: file(secrets, "migrator"),
            mover_password_file: file(secrets, "mover"),
        },
        // Relative to the node's own folder: tests write it.
        jobs: WorkerJobs {
            failpoint_file: "failpoint",
        },
    })
}

/// Verified against the authority in that file, or not encrypted.
fn verified(ca_file: Option<&Path>) -> Tls {
    Tls {
        mode: match ca_file {
            Some(_) => "verify-full",
            None => "disable",
        },
        ca_file: ca_file.map(Path::to_owned),
    }
}

fn auth(secrets: &Secrets) -> Auth {
    Auth {
        key_secret_file: file(secrets, "key-secret"),
        jwt_secret_file: file(secrets, "jwt-secret"),
    }
}

fn file(secrets: &Secrets, name: &'static str) -> String {
    secrets.file(name).display().to_string()
}

fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
