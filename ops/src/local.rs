//! The local cluster: real servers as child processes below one data folder.
//!
//! `ringfence local` and tests of all crates start it through [`Cluster`].
//! Nodes are named `control`, `s1-primary`, `s1-replica1`, `worker-1`,
//! `router-1`, `redis-1`; they can be killed, frozen and started again one by one. All of
//! them end with the cluster, also when its process is killed.

mod authority;
mod bring_up;
mod config;
mod demo;
mod folder;
mod layout;
mod network;
mod nginx;
mod postgres;
mod process;
mod prometheus;
mod redis;
mod roll;
mod secrets;
mod service;
pub mod supervisor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use self::authority::Authority;
pub use self::network::Condition;
pub use self::nginx::Balance;

pub use self::layout::{Node, PORT_BASE, Ports, Role, Shape};

use self::folder::{Folder, Remembered, append, log_end};
use self::layout::Beside;
use self::network::Network;
use self::nginx::Traffic;
use self::postgres::Postgres;
use self::process::Nursery;
use self::secrets::Secrets;
use crate::error::{Error, Result, io};

/// Name of the database on every shard.
pub const APP_DATABASE: &str = "app";
/// Name of the control database.
pub const CONTROL_DATABASE: &str = "ringfence_control";

/// MiB that a cluster needs to start: WAL and files of one empty server.
const NODE_MIB: u64 = 120;
/// MiB that must be left when all are made.
const SPARE_MIB: u64 = 300;
/// Servers that don't end in this time are killed.
const STOP: Duration = Duration::from_secs(20);

/// Where a cluster keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// A folder that stays, such as `.ringfence`.
    Kept(PathBuf),
    /// A new folder below the system's temporary one, removed at the end.
    Temporary,
}

/// How a cluster is made. The default is what most tests want.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its data is.
    pub data: Data,
    /// Number of shards; `None` means as before, at first 3.
    pub shards: Option<u16>,
    /// Replicas of each; `None` means as before, at first 1.
    pub replicas: Option<u16>,
    /// Routers; `None` means as before, at first 2.
    pub routers: Option<u16>,
    /// Workers; `None` means as before, at first 1.
    pub workers: Option<u16>,
    /// Masters of Redis Cluster, each with a replica, 0 for none; `None` means
    /// as before, at first 3, and for temporary clusters none.
    pub redis: Option<u16>,
    /// Where nodes listen; `None` means as before, at first [`PORT_BASE`], and
    /// for temporary clusters free ports.
    pub ports: Option<Ports>,
    /// Start over: remove what the folder holds.
    pub fresh: bool,
    /// `false` trades the data's safety in a power loss for speed.
    pub fsync: bool,
    /// Commits wait until any one replica has them on disk; needs two replicas,
    /// so that the loss of one node stops nobody. Stays set in a kept folder.
    pub sync: bool,
    /// Puts a proxy before each node, so that its network can be cut; all
    /// traffic then takes a detour through this process.
    pub network: bool,
    /// Services reach the Postgres servers, and routers workers, by TLS only,
    /// verified against the cluster's own authority.
    pub tls: bool,
    /// Routers answer from their caches.
    pub caches: bool,
    /// How answers of single tables are kept: so many seconds old they may be, or
    /// not at all.
    pub cache_tables: BTreeMap<String, Option<u32>>,
    /// Bytes that a router keeps answers in; none: as many as it does by itself.
    pub cache_bytes_max: Option<u64>,
    /// Milliseconds that routers hold a request for; none: as long as they do by
    /// themselves.
    pub hold_ms_max: Option<u64>,
    /// Puts Nginx before the routers.
    pub nginx: Option<Balance>,
    /// Runs Prometheus, which reads the services' metrics every second.
    pub prometheus: bool,
    /// What runs in it.
    pub content: Content,
    /// Called with what is being done.
    pub report: fn(&str),
}

/// What runs in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Postgres servers with empty databases, nothing else.
    Servers,
    /// Also worker and routers, the shards registered and prepared.
    Services,
    /// Also the CRM's tables.
    Schema,
    /// Also the demo tenants `acme`, `globex`, `initech`, with their data and
    /// `extra` further tenants `t-1`, …; each with about `rows` rows.
    Demo {
        /// Tenants beside the three.
        extra: u32,
        /// Rows of each tenant; `None` is a small set.
        rows: Option<u32>,
    },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data: Data::Temporary,
            shards: None,
            replicas: None,
            routers: None,
            workers: None,
            redis: None,
            ports: None,
            fresh: false,
            fsync: false,
            sync: false,
            network: false,
            tls: false,
            caches: false,
            cache_tables: BTreeMap::new(),
            cache_bytes_max: None,
            hold_ms_max: None,
            nginx: None,
            prometheus: false,
            content: Content::Demo {
                extra: 0,
                rows: None,
            },
            report: |_| {},
        }
    }
}

/// What a node's process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Not started, or ended.
    Down,
    /// Running.
    Up,
    /// Frozen by [`Cluster::stop`].
    Stopped,
}

impl NodeState {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Stopped => "stopped",
        }
    }
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// What its process is doing.
    pub state: NodeState,
    /// Its process, unless it is down.
    pub pid: Option<u32>,
    /// Where it listens.
    pub address: String,
}

/// A running cluster. Dropping it kills its processes; [`Cluster::down`] lets
/// them end in order.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// Held for as long as its nodes may be started again.
    _reserved: layout::Reserved,
    running: Mutex<BTreeMap<String, Running>>,
    /// Keys of the demo tenants, by slug.
    keys: Mutex<BTreeMap<String, String>>,
    secrets: Secrets,
    postgres: Postgres,
    nursery: Nursery,
    /// Asks nodes, on a connection of its own each time.
    http: reqwest::Client,
    content: Content,
    fsync: bool,
    caches: bool,
    cache_tables: BTreeMap<String, Option<u32>>,
    cache_bytes_max: Option<u64>,
    hold_ms_max: Option<u64>,
    sync: bool,
    authority: Option<Authority>,
    network: Option<Network>,
    balance: Balance,
    traffic: Mutex<Traffic>,
    report: fn(&str),
    temporary: bool,
    folder: Folder,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// While it is frozen: what kills it should this process end.
    warden: Option<Child>,
}

impl Running {
    /// Kills it and all below it, frozen or not.
    fn kill(&mut self) {
        process::kill_tree(self.child.id());
        if let Some(mut warden) = self.warden.take() {
            process::dismiss(&mut warden);
        }
    }
}

impl Cluster {
    /// Starts a cluster and waits until all of it is ready.
    ///
    /// # Errors
    /// Whatever stands in the way, named; nothing is left running then.
    pub async fn start(options: Options) -> Result<Self> {
        let cluster = Self::prepare(options)?;
        cluster.bring_up().await?;
        Ok(cluster)
    }

    /// Checks everything that can be checked before a process is started.
    ///
    /// # Errors
    /// A missing program, a port in use, a full disk, a folder in use.
    pub fn prepare(options: Options) -> Result<Self> {
        let postgres = Postgres::find()?;
        require_setpriv()?;
        let temporary = options.data == Data::Temporary;
        let path = match &options.data {
            Data::Kept(path) => path.clone(),
            Data::Temporary => {
                std::env::temp_dir().join(format!("ringfence-{}", uuid::Uuid::new_v4().simple()))
            }
        };
        let folder = Folder::open(&path)?;
        if options.fresh {
            folder.clear()?;
        }
        let remembered = folder.remembered();
        let shape = shape(&options, remembered, &folder.path, temporary)?;
        if options.sync && shape.replicas < 2 {
            return Err(Error::Usage(
                "synchronous replication needs two replicas a shard, or the loss of one stops all writes"
                    .into(),
            ));
        }
        let ports = options.ports.unwrap_or(match remembered {
            _ if temporary => Ports::Free,
            Some(before) => Ports::From(before.port_base),
            None => Ports::From(PORT_BASE),
        });
        let (proxied, beside) = (options.network, beside(&options));
        let mut reserved = layout::Reserved::default();
        let nodes = layout::nodes(shape, ports, proxied, beside, &mut reserved);
        let nodes = nodes.map_err(Error::Usage)?;
        let needed = |node: &&Node| {
            options.content != Content::Servers || matches!(node.role, Role::Redis { .. })
        };
        nodes.iter().filter(needed).try_for_each(service::require)?;
        if let Some(elsewhere) = folder.make_reachable(&postgres.identity)? {
            (options.report)(&format!(
                "the servers' user can't reach {}: their data is in {}",
                folder.nodes().display(),
                elsewhere.display()
            ));
        }
        let new = nodes
            .iter()
            .filter(|n| n.is_postgres() && !Postgres::is_made(&folder, n));
        folder.check_space(SPARE_MIB + NODE_MIB * new.count() as u64)?;
        check_ports(&nodes)?;
        let ca_file = folder.path.join("ca.pem");
        let authority = options.tls.then(|| Authority::new(&ca_file)).transpose()?;
        let network = match options.network {
            true => Some(start_network(&nodes)?),
            false => None,
        };
        if let Ports::From(port_base) = ports {
            folder.remember(Remembered { shape, port_base })?;
        }
        Ok(Self {
            nodes,
            _reserved: reserved,
            running: Mutex::default(),
            keys: Mutex::default(),
            secrets: Secrets::open(&folder.secrets())?,
            postgres,
            http: service::client()?,
            nursery: Nursery::new().map_err(io("start a thread"))?,
            content: options.content,
            fsync: options.fsync,
            caches: options.caches,
            cache_tables: options.cache_tables,
            cache_bytes_max: options.cache_bytes_max,
            hold_ms_max: options.hold_ms_max,
            sync: options.sync,
            authority,
            network,
            balance: options.nginx.unwrap_or_default(),
            traffic: Mutex::default(),
            report: options.report,
            temporary,
            folder,
        })
    }

    /// All nodes, in the order of their listing.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The data folder.
    pub fn path(&self) -> &Path {
        &self.folder.path
    }

    /// A node's log file.
    pub fn log(&self, node: &str) -> PathBuf {
        self.folder.log(node)
    }

    /// What every node's process is doing.
    pub fn status(&self) -> Vec<NodeStatus> {
        let mut running = self.running();
        self.nodes
            .iter()
            .map(|node| {
                let (state, pid) = match running.get_mut(&node.name) {
                    Some(process) => match process.child.try_wait() {
                        Ok(None) if process.warden.is_some() => {
                            (NodeState::Stopped, Some(process.child.id()))
                        }
                        Ok(None) => (NodeState::Up, Some(process.child.id())),
                        Ok(Some(_)) | Err(_) => (NodeState::Down, None),
                    },
                    None => (NodeState::Down, None),
                };
                NodeStatus {
                    name: node.name.clone(),
                    state,
                    pid,
                    address: format!("127.0.0.1:{}", node.port),
                }
            })
            .collect()
    }

    /// Kills a node and all its processes, as a power loss would, and waits
    /// until it is gone.
    ///
    /// # Errors
    /// An unknown node, or one that is down already.
    pub async fn kill(&self, node: &str) -> Result<()> {
        self.state(node, &[NodeState::Up, NodeState::Stopped])?;
        if let Some(process) = self.running().get_mut(node) {
            process.kill();
        }
        self.ended(node, STOP).await
    }

    /// Shuts a node down in order, and waits until it is gone. A primary ends
    /// its sessions, and sends all that it has written to its replicas first.
    ///
    /// # Errors
    /// An unknown node, one that is not up, or one that does not end.
    pub async fn shut_down(&self, node: &str) -> Result<()> {
        let node = self.state(node, &[NodeState::Up])?;
        if let Some(process) = self.running().get_mut(&node.name) {
            process::signal(process.child.id(), node.shutdown_signal());
        }
        self.ended(&node.name, STOP).await
    }

    /// Freezes a node and all its processes (SIGSTOP): its connections stay
    /// open, and nothing answers.
    ///
    /// # Errors
    /// An unknown node, or one that is not up.
    pub fn stop(&self, node: &str) -> Result<()> {
        self.state(node, &[NodeState::Up])?;
        if let Some(process) = self.running().get_mut(node) {
            let warden = process::freeze(process.child.id());
            process.warden = Some(warden.map_err(io(format!("freeze {node}")))?);
        }
        Ok(())
    }

    /// Thaws a frozen node.
    ///
    /// # Errors
    /// An unknown node, or one that is not frozen.
    pub fn cont(&self, node: &str) -> Result<()> {
        self.state(node, &[NodeState::Stopped])?;
        if let Some(process) = self.running().get_mut(node)
            && let Some(warden) = process.warden.take()
        {
            process::thaw(process.child.id(), warden);
        }
        Ok(())
    }

    /// Breaks a node's network, or mends it.
    ///
    /// # Errors
    /// An unknown node, or one without a proxy before it.
    pub fn set_network(&self, node: &str, condition: Condition) -> Result<()> {
        let node = &self.find(node)?.name;
        let set = self
            .network
            .as_ref()
            .map(|network| network.set(node, condition));
        match set {
            Some(true) => Ok(()),
            _ => Err(Error::NodeState {
                node: node.clone(),
                state: "reached without a proxy: start the cluster with --network",
            }),
        }
    }

    /// Sends so many of a hundred tenants, always the same, to these routers
    /// instead of the others.
    ///
    /// # Errors
    /// Nginx does not run, a router does not exist, or more than a hundred.
    pub async fn direct(&self, canary: &[String], percent: u8) -> Result<()> {
        let node = self.nginx_up()?;
        for name in canary {
            self.router(name)?;
        }
        if percent > 100 || (percent > 0 && canary.is_empty()) {
            return Err(Error::Usage(
                "0 to 100 percent of the tenants can go to routers that are named".into(),
            ));
        }
        let traffic = Traffic {
            canary: canary.iter().cloned().collect(),
            percent,
        };
        nginx::direct(
            &self.folder,
            node,
            &self.router_ports(),
            self.balance,
            &traffic,
        )?;
        *self.traffic.lock().unwrap_or_else(PoisonError::into_inner) = traffic;
        let master = self.running().get("nginx").map(|nginx| nginx.child.id());
        if let Some(master) = master {
            nginx::reload(master).await;
        }
        Ok(())
    }

    /// The Nginx that runs before the routers.
    fn nginx_up(&self) -> Result<&Node> {
        let is_nginx = |node: &Node| matches!(node.role, Role::Nginx { .. });
        if !self.nodes.iter().any(is_nginx) {
            return Err(Error::Usage(
                "no Nginx stands before the routers: `ringfence local up --nginx` has one".into(),
            ));
        }
        self.state("nginx", &[NodeState::Up])
    }

    fn traffic(&self) -> Traffic {
        let traffic = self.traffic.lock();
        traffic.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn router(&self, name: &str) -> Result<&Node> {
        let node = self.find(name)?;
        match node.role {
            Role::Router { .. } => Ok(node),
            _ => Err(Error::UnknownNode {
                name: name.to_owned(),
                known: self
                    .router_ports()
                    .into_keys()
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// Where each router listens.
    fn router_ports(&self) -> BTreeMap<String, u16> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| matches!(node.role, Role::Router { .. }))
            .map(|node| (node.name.clone(), node.port))
            .collect()
    }

    /// Starts a node that is down, with the data that it has, and waits until
    /// it is ready.
    ///
    /// # Errors
    /// An unknown node, one that is not down, or that does not become ready.
    pub async fn start_node(&self, node: &str) -> Result<()> {
        let node = self.state(node, &[NodeState::Down])?;
        self.start_and_wait(node).await
    }

    /// Makes a replica its shard's primary, as an HA manager would after the
    /// primary's loss, and has the shard's other replicas follow it.
    ///
    /// # Errors
    /// An unknown node, one that is not up or no replica, or Postgres' refusal.
    pub fn promote<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.make_primary(node))
    }

    async fn make_primary(&self, node: &str) -> Result<()> {
        let node = self.state(node, &[NodeState::Up])?;
        if node.shard().is_none() {
            return Err(Error::NodeState {
                node: node.name.clone(),
                state: "no replica",
            });
        }
        let siblings = self.status().into_iter().filter(|status| {
            let sibling = |other: &Node| {
                other.name == status.name
                    && other.name != node.name
                    && other.shard() == node.shard()
            };
            status.state == NodeState::Up && self.nodes.iter().any(sibling)
        });
        let siblings: Vec<&Node> = siblings
            .filter_map(|status| self.find(&status.name).ok())
            .collect();
        postgres::promote(node, &siblings, self.secrets.superuser()).await
    }

    /// Has a node that is down follow its shard's primary, from a new copy of it: what
    /// an HA manager does with a former primary.
    ///
    /// # Errors
    /// An unknown node, one that is not down, a primary that is not up, or a copy that
    /// can't be made.
    pub async fn follow(&self, node: &str, primary: &str) -> Result<()> {
        let node = self.state(node, &[NodeState::Down])?;
        let primary = self.state(primary, &[NodeState::Up])?;
        let password = self.secrets.superuser();
        self.postgres
            .make_replica(&self.nursery, &self.folder, node, primary, password)
            .await?;
        self.start_and_wait(node).await
    }

    /// Ends everything in order and, where the folder is temporary, removes it.
    pub async fn down(self) {
        self.end_all().await;
    }

    /// Ends everything in order: what is beside them, routers and workers, replicas, then primaries,
    /// control database and Redis.
    pub(crate) async fn end_all(&self) {
        let waves: [fn(&Role) -> bool; 4] = [
            |role| matches!(role, Role::Nginx { .. } | Role::Prometheus),
            |role| matches!(role, Role::Router { .. } | Role::Worker { .. }),
            |role| matches!(role, Role::Replica { .. }),
            |role| {
                matches!(
                    role,
                    Role::Primary { .. } | Role::Control | Role::Redis { .. }
                )
            },
        ];
        for wave in waves {
            let nodes: Vec<_> = self.nodes.iter().filter(|n| wave(&n.role)).collect();
            for node in &nodes {
                // The number of one that has ended may be a stranger's by now.
                if let Some(process) = self.running().get_mut(&node.name)
                    && let Ok(None) = process.child.try_wait()
                {
                    let pid = process.child.id();
                    process::signal(pid, node.shutdown_signal());
                    if let Some(warden) = process.warden.take() {
                        process::thaw(pid, warden);
                    }
                }
            }
            futures_util::future::join_all(nodes.iter().map(|node| async {
                if self.ended(&node.name, STOP).await.is_err() {
                    let _ = self.kill(&node.name).await;
                }
            }))
            .await;
        }
    }

    /// Spawns a node's process. Its port is checked first: Postgres would say
    /// it in its log only, and a router would be mistaken for another.
    fn spawn(&self, node: &Node, mut command: std::process::Command) -> Result<()> {
        check_ports(std::slice::from_ref(node))?;
        let output = append(&self.log(&node.name))?;
        let errors = output.try_clone().map_err(io("share a log file"))?;
        command.stdout(output).stderr(errors);
        let child = self
            .nursery
            .spawn(command)
            .map_err(io(format!("start {}", node.name)))?;
        let process = Running {
            child,
            warden: None,
        };
        self.running().insert(node.name.clone(), process);
        Ok(())
    }

    /// Waits until a node's process has ended.
    async fn ended(&self, node: &str, within: Duration) -> Result<()> {
        let deadline = std::time::Instant::now() + within;
        loop {
            match self.running().get_mut(node) {
                None => return Ok(()),
                Some(process) => {
                    if !matches!(process.child.try_wait(), Ok(None)) {
                        return Ok(());
                    }
                }
            }
            if std::time::Instant::now() >= deadline {
                return Err(self.broken(node, "did not end".into()));
            }
            tokio::time::sleep(process::POLL).await;
        }
    }

    fn find(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(|| Error::UnknownNode {
                name: name.to_owned(),
                known: names(&self.nodes),
            })
    }

    /// The node, if it is in one of these states.
    fn state(&self, name: &str, wanted: &[NodeState]) -> Result<&Node> {
        let node = self.find(name)?;
        let state = self
            .status()
            .into_iter()
            .find(|status| status.name == name)
            .map_or(NodeState::Down, |status| status.state);
        if wanted.contains(&state) {
            return Ok(node);
        }
        Err(Error::NodeState {
            node: name.to_owned(),
            state: state.as_str(),
        })
    }

    fn broken(&self, node: &str, reason: String) -> Error {
        let log = self.log(node);
        Error::Node {
            node: node.to_owned(),
            reason,
            end: log_end(&log),
            log,
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What programs and people are told of a cluster.
impl Cluster {
    /// Base address of the n-th router, from 0, without a path.
    ///
    /// # Panics
    /// Never: an address that does not exist is port 0's.
    pub fn router_url(&self, n: usize) -> String {
        self.router_urls().into_iter().nth(n).unwrap_or_default()
    }

    /// Base address of the n-th router's admin listener, from 0.
    pub fn router_admin_url(&self, n: usize) -> String {
        self.router_admin_urls()
            .into_iter()
            .nth(n)
            .unwrap_or_default()
    }

    /// Base address of the first worker, without `/admin/v1`.
    pub fn admin_url(&self) -> String {
        self.nodes
            .iter()
            .find(|node| matches!(node.role, Role::Worker { .. }))
            .map(|node| url(node.port))
            .unwrap_or_default()
    }

    /// Base addresses of all workers.
    pub fn worker_urls(&self) -> Vec<String> {
        let workers = self.nodes.iter();
        workers
            .filter(|node| matches!(node.role, Role::Worker { .. }))
            .map(|node| url(node.port))
            .collect()
    }

    /// Bearer token of the workers' streams of changes.
    pub fn stream_secret(&self) -> &str {
        self.secrets.stream()
    }

    /// Addresses of Redis Cluster's nodes, without the password; masters first.
    pub fn redis_urls(&self) -> Vec<String> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| matches!(node.role, Role::Redis { .. }))
            .map(|node| format!("redis://127.0.0.1:{}", node.port))
            .collect()
    }

    /// Password of every Redis node.
    pub fn redis_password(&self) -> &str {
        self.secrets.redis()
    }

    /// Bearer token of the admin API.
    pub fn admin_token(&self) -> &str {
        self.secrets.admin_token()
    }

    /// HS256 secret of the default JWT issuer.
    pub fn jwt_secret(&self) -> &str {
        self.secrets.jwt()
    }

    /// The authority's certificate, where services speak TLS to Postgres.
    pub fn ca_file(&self) -> Option<&Path> {
        self.authority.as_ref().map(Authority::file)
    }

    /// Nginx' address with TLS, the authority that certified it, and its
    /// address without, where it runs.
    pub fn nginx(&self) -> Option<(String, PathBuf, String)> {
        self.nodes.iter().find_map(|node| match node.role {
            Role::Nginx { http_port } => Some((
                format!("https://127.0.0.1:{}", node.port),
                self.folder.node(&node.name).join("ca.pem"),
                url(http_port),
            )),
            _ => None,
        })
    }

    /// Prometheus' address, where it runs.
    pub fn prometheus_url(&self) -> Option<String> {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|node| node.role == Role::Prometheus)
            .map(|node| url(node.port))
    }

    /// Superuser's connection string of the control database.
    pub fn control_dsn(&self) -> String {
        self.dsn("control", "postgres").unwrap_or_default()
    }

    /// Superuser's connection string of a shard's node, such as `s1-primary`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn shard_dsn(&self, node: &str) -> Result<String> {
        self.dsn(node, "postgres")
    }

    /// Connection string of the shards' login role `ringfence_router`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn router_dsn(&self, node: &str) -> Result<String> {
        self.dsn(node, "ringfence_router")
    }

    /// A demo tenant's API key.
    pub fn key(&self, slug: &str) -> Option<String> {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(slug)
            .cloned()
    }

    /// The lines of `local.env`.
    pub fn env(&self) -> Vec<(String, String)> {
        let mut lines: Vec<(String, String)> = [
            ("RINGFENCE_URL", self.router_url(0)),
            ("RINGFENCE_ROUTER_URLS", self.router_urls().join(",")),
            (
                "RINGFENCE_ROUTER_ADMIN_URLS",
                self.router_admin_urls().join(","),
            ),
            ("RINGFENCE_ADMIN_URL", self.admin_url()),
            ("RINGFENCE_ADMIN_TOKEN", self.admin_token().to_owned()),
            ("RINGFENCE_JWT_SECRET", self.jwt_secret().to_owned()),
            ("RINGFENCE_CONTROL_DSN", self.control_dsn()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let redis = self.redis_urls();
        if !redis.is_empty() {
            let password = format!("redis://:{}@", self.redis_password());
            let urls = redis.join(",").replace("redis://", &password);
            lines.push(("RINGFENCE_REDIS_URLS".into(), urls));
        }
        if let Some((https, ca_file, http)) = self.nginx() {
            lines.push(("RINGFENCE_NGINX_URL".into(), https));
            lines.push(("RINGFENCE_NGINX_HTTP_URL".into(), http));
            let ca_file = ca_file.display().to_string();
            lines.push(("RINGFENCE_NGINX_CA_FILE".into(), ca_file));
        }
        if let Some(url) = self.prometheus_url() {
            lines.push(("RINGFENCE_PROMETHEUS_URL".into(), url));
        }
        for node in &self.nodes {
            if let Role::Primary { .. } | Role::Replica { .. } = node.role {
                let name = format!("RINGFENCE_SHARD_{}", variable(&node.name));
                lines.push((name, self.shard_dsn(&node.name).unwrap_or_default()));
            }
        }
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        for (slug, key) in keys.iter() {
            lines.push((format!("RINGFENCE_KEY_{}", variable(slug)), key.clone()));
        }
        lines
    }

    fn dsn(&self, node: &str, user: &str) -> Result<String> {
        let node = self.find(node)?;
        let password = match user {
            "postgres" => self.secrets.superuser(),
            _ => self.secrets.router(),
        };
        let database = match node.role {
            Role::Control => CONTROL_DATABASE,
            _ => APP_DATABASE,
        };
        Ok(postgres::dsn(user, password, node, database))
    }

    fn router_urls(&self) -> Vec<String> {
        let routers = self.nodes.iter();
        routers
            .filter(|node| matches!(node.role, Role::Router { .. }))
            .map(|node| url(node.port))
            .collect()
    }

    fn router_admin_urls(&self) -> Vec<String> {
        self.nodes
            .iter()
            .filter_map(|node| match node.role {
                Role::Router { admin_port } => Some(url(admin_port)),
                _ => None,
            })
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut running = self.running();
        // `kill` again after an orderly end would reach strangers: a process
        // id is free once its child was waited for.
        for process in running.values_mut() {
            if matches!(process.child.try_wait(), Ok(None)) {
                process.kill();
            }
        }
        for process in running.values_mut() {
            let _ = process.child.wait();
        }
        drop(running);
        if self.temporary {
            // Backends may still be on their way out, and recreate a file.
            process::end_leftovers(&self.folder.nodes());
            let _ = std::fs::remove_dir_all(&self.folder.path);
        }
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn names(nodes: &[Node]) -> String {
    let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    names.join(", ")
}

/// What is asked for, else what there was, else the default. Data is never
/// dropped by asking for less.
fn shape(
    options: &Options,
    before: Option<Remembered>,
    path: &Path,
    temporary: bool,
) -> Result<Shape> {
    let before = before.map(|remembered| remembered.shape);
    let default = before.unwrap_or_default();
    let shape = Shape {
        shards: options.shards.unwrap_or(default.shards),
        replicas: options.replicas.unwrap_or(default.replicas),
        routers: options.routers.unwrap_or(default.routers),
        workers: options.workers.unwrap_or(default.workers),
        redis: options
            .redis
            .unwrap_or(if temporary { 0 } else { default.redis }),
    };
    let Some(before) = before else {
        return Ok(shape);
    };
    for (what, has, wanted) in [
        ("shards", before.shards, shape.shards),
        ("replicas of each shard", before.replicas, shape.replicas),
    ] {
        if wanted < has {
            return Err(Error::Shape {
                path: path.to_owned(),
                has: format!("{has} {what}"),
                wanted: wanted.to_string(),
            });
        }
    }
    Ok(shape)
}

fn check_ports(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        for port in node.ports() {
            if !layout::is_free(port) {
                return Err(Error::PortTaken {
                    node: node.name.clone(),
                    port,
                });
            }
        }
    }
    Ok(())
}

/// A proxy before each node that listens elsewhere than others reach it.
fn start_network(nodes: &[Node]) -> Result<Network> {
    let proxied = nodes.iter().filter(|node| node.port != node.own_port);
    let links = proxied.map(|node| (node.name.clone(), node.port, node.own_port));
    Network::start(links.collect()).map_err(io("put proxies before the nodes"))
}

fn beside(options: &Options) -> Beside {
    Beside {
        nginx: options.nginx.is_some(),
        prometheus: options.prometheus,
    }
}

fn require_setpriv() -> Result<()> {
    let found = process::on_path("setpriv", None);
    found.map(drop).ok_or_else(|| Error::Missing {
        what: "setpriv".into(),
        advice: "it is part of util-linux (apt-get install util-linux)".into(),
    })
}
