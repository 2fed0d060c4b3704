//! Connections to shards' nodes: bounded deadpools per node and role, behind a gate per
//! node that lets tenants in by turns ([`crate::gate`]). A node's
//! connections are a budget that all live routers share.
//!
//! Each runtime has pools of its own ([`crate::threads`]): a connection's socket is
//! watched by the runtime that made it, and waking a task of another one takes a
//! switch between threads.
//!
//! The role is a property of the connection, set when it is made, so a request
//! never spends a round trip on it. Sessions are read-only by default: a read
//! can't write even by accident, and a write says `BEGIN READ WRITE`.

mod budget;
mod role;

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use deadpool::managed::{self, Metrics, QueueMode, RecycleError, RecycleResult, Timeouts};
use lru::LruCache;
use tenancy::socket::{ConnectError, Server};
use tenancy::tls::Tls;
use tokio::runtime;
use tokio::time::Instant;
use tokio_postgres::error::DbError as LoginError;
use tokio_postgres::types::Type;
use tokio_postgres::{CancelToken, SimpleQueryMessage};

use self::budget::{Budget, Place};
use self::role::RoleSettings;
pub(crate) use self::role::option;
use crate::gate::{Claim, Gate, Permit, Refused, Waiting};
use crate::token::Generation;
use crate::wire::{DbError, Prepared, Session};

/// Pause before a place for a connection is looked for again.
const PLACE_LOOK: Duration = Duration::from_millis(1);
/// The same where the node itself has none: each look is a login.
const NODE_LOOK: Duration = Duration::from_millis(50);

/// A node to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// Host name or address.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

/// Who a node says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The log that it writes, or follows.
    pub generation: Generation,
    /// Takes writes: it is not in recovery.
    pub primary: bool,
}

/// What all pools have in common.
#[derive(Clone)]
pub struct PoolSettings {
    /// `application_name` of the sessions.
    pub application: String,
    /// `search_path` of the sessions.
    pub search_path: String,
    /// Further settings of the sessions, by name.
    pub settings: Vec<(String, String)>,
    /// Login role.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// Database.
    pub database: String,
    /// How nodes are connected to.
    pub tls: Tls,
    /// Connections at most per node and role.
    pub size_max: usize,
    /// Connections at most per node, for all routers together.
    pub node_max: usize,
    /// How many may wait for one, per node.
    pub waiting: Waiting,
    /// Longest wait for a free connection.
    pub wait_max: Duration,
    /// Longest wait for a new one.
    pub connect_max: Duration,
    /// A connection that was not used for so long is closed.
    pub idle_max: Duration,
    /// Prepared statements kept per connection.
    pub statements_max: NonZeroUsize,
}

/// All pools of this router.
pub struct Pools {
    settings: PoolSettings,
    /// Routers that share the nodes' connections.
    sharers: AtomicUsize,
    nodes: RwLock<HashMap<NodeAddress, Arc<NodePools>>>,
}

/// A node's pools, behind one gate.
struct NodePools {
    gate: Arc<Gate>,
    budget: Arc<Budget>,
    pools: RwLock<HashMap<Whose, managed::Pool<NodeManager>>>,
    /// Connections in use beyond what the router may have since its share fell:
    /// so many are closed when they are given back.
    excess: AtomicUsize,
}

/// Whose a pool is: a role's, on a runtime.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Whose {
    role: Arc<str>,
    runtime: runtime::Id,
}

/// How a node's connections are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used: usize,
    /// Open, used or not.
    pub open: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Open at most.
    pub max: usize,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// All connections stayed busy.
    #[error("no connection became free: {0}")]
    Busy(Refused),
    /// The node can't be connected to.
    #[error("can't connect to {host}:{port}")]
    Connect {
        /// The node's host.
        host: Arc<str>,
        /// The node's port.
        port: u16,
        /// Why.
        #[source]
        source: Option<ConnectError>,
    },
    /// It answers, and refuses what this session was to be: its role, say.
    #[error("{host}:{port} refuses the session")]
    Session {
        /// The node's host.
        host: Arc<str>,
        /// The node's port.
        port: u16,
        /// Its words.
        #[source]
        refused: Box<DbError>,
    },
    /// The node is not, or no longer, the one that was seen there.
    #[error("{host}:{port} is another node than the one that was seen there")]
    Changed {
        /// The node's host.
        host: Arc<str>,
        /// The node's port.
        port: u16,
    },
}

impl Pools {
    /// No connection is made before it is needed.
    pub fn new(settings: PoolSettings) -> Self {
        Self {
            settings,
            sharers: AtomicUsize::new(1),
            nodes: RwLock::default(),
        }
    }

    /// A connection to `node` whose session has taken `role`, and which was made
    /// to a server of that identity: one made before a promotion, a rewind or a
    /// restore is closed, not lent.
    ///
    /// Waits at most `wait_max` for a free one and the settings' time for a new one.
    pub async fn get(
        &self,
        node: &NodeAddress,
        claim: Claim,
        identity: Identity,
        wait_max: Duration,
    ) -> Result<Leased, PoolError> {
        let pools = self.node(node);
        let whose = Whose {
            role: claim.role.clone(),
            runtime: runtime::Handle::current().id(),
        };
        let permit = pools.gate.enter(claim, wait_max).await;
        let permit = permit.map_err(PoolError::Busy)?;
        let own = pools.own(&whose, || self.build(node, &whose.role, &pools.budget))?;
        let until = Instant::now() + self.settings.connect_max;
        loop {
            let mut object = match pools.source(&whose.role, &own).get().await {
                Ok(object) => object,
                // Another took the idle one, or the place, at the same moment. For who
                // is let in there is one.
                Err(managed::PoolError::Backend(NotMade::NoPlace)) if Instant::now() < until => {
                    tokio::time::sleep(PLACE_LOOK).await;
                    continue;
                }
                // One may be given back meanwhile, here or there.
                Err(managed::PoolError::Backend(NotMade::NodeFull)) if Instant::now() < until => {
                    tokio::time::sleep(NODE_LOOK).await;
                    continue;
                }
                Err(error) => return Err(failed(node, error)),
            };
            if object.identity == identity {
                object.session.bound_rows(usize::MAX);
                return Ok(Leased {
                    object: Some(object),
                    in_flight: false,
                    spoilt: false,
                    node: pools,
                    _permit: permit,
                });
            }
            let new = managed::Object::metrics(&object).recycle_count == 0;
            drop(managed::Object::take(object));
            if new {
                return Err(PoolError::Changed {
                    host: node.host.clone(),
                    port: node.port,
                });
            }
        }
    }

    /// The configured longest wait for a free connection.
    pub fn wait_max(&self) -> Duration {
        self.settings.wait_max
    }

    /// So many routers share the nodes' connections from now on.
    pub fn share_with(&self, sharers: usize) {
        self.sharers.store(sharers.max(1), Ordering::Relaxed);
        let nodes = self.nodes.read().unwrap_or_else(|p| p.into_inner());
        for pools in nodes.values() {
            pools.gate.resize(self.share());
            pools.budget.resize(self.share());
            pools.shrink();
        }
    }

    /// Closes connections that were not used for long, every few seconds, for ever.
    pub async fn close_idle(&self) {
        let mut tick = tokio::time::interval(self.settings.idle_max / 6);
        loop {
            tick.tick().await;
            let nodes = self.nodes.read().unwrap_or_else(|p| p.into_inner());
            for pool in nodes.values().flat_map(|pools| pools.all()) {
                pool.retain(|_, used| used.last_used() < self.settings.idle_max);
            }
        }
    }

    /// Ends the pools of nodes that are no longer part of any shard.
    pub fn retain(&self, mut keep: impl FnMut(&NodeAddress) -> bool) {
        self.nodes
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .retain(|node, pools| {
                let kept = keep(node);
                if !kept {
                    pools.all().iter().for_each(managed::Pool::close);
                }
                kept
            });
    }

    /// How the connections to a node are used.
    pub fn usage(&self, node: &NodeAddress) -> Usage {
        let nodes = self.nodes.read().unwrap_or_else(|p| p.into_inner());
        nodes
            .get(node)
            .map_or(Usage::default(), |pools| pools.usage())
    }

    /// How those to all nodes are used.
    pub fn usages(&self) -> Usage {
        let nodes = self.nodes.read().unwrap_or_else(|p| p.into_inner());
        let each = nodes.values().map(|pools| pools.usage());
        each.fold(Usage::default(), |sum, usage| Usage {
            used: sum.used + usage.used,
            open: sum.open + usage.open,
            waiting: sum.waiting + usage.waiting,
            max: sum.max + usage.max,
        })
    }

    /// This router's part of a node's connections.
    fn share(&self) -> usize {
        let sharers = self.sharers.load(Ordering::Relaxed);
        (self.settings.node_max / sharers).max(1)
    }

    fn node(&self, node: &NodeAddress) -> Arc<NodePools> {
        let nodes = self.nodes.read().unwrap_or_else(|p| p.into_inner());
        if let Some(pools) = nodes.get(node) {
            return pools.clone();
        }
        drop(nodes);
        let settings = &self.settings;
        let new = || {
            Arc::new(NodePools {
                gate: Gate::new(self.share(), settings.size_max, settings.waiting),
                budget: Budget::new(self.share(), settings.size_max),
                pools: RwLock::default(),
                excess: AtomicUsize::new(0),
            })
        };
        let mut nodes = self.nodes.write().unwrap_or_else(|p| p.into_inner());
        nodes.entry(node.clone()).or_insert_with(new).clone()
    }

    fn build(
        &self,
        node: &NodeAddress,
        role: &Arc<str>,
        budget: &Arc<Budget>,
    ) -> Result<managed::Pool<NodeManager>, PoolError> {
        let settings = &self.settings;
        let mut config = tokio_postgres::Config::new();
        config
            .user(&settings.user)
            .dbname(&settings.database)
            .application_name(&settings.application);
        if let Some(password) = &settings.password {
            config.password(password);
        }
        managed::Pool::builder(NodeManager {
            server: Server {
                host: node.host.clone(),
                port: node.port,
            },
            config,
            options: session_options(role, settings),
            role_settings: RoleSettings::default(),
            tls: settings.tls.clone(),
            statements_max: settings.statements_max,
            budget: budget.clone(),
            role: role.clone(),
        })
        .max_size(settings.size_max)
        // The last one used first: what is not needed stays idle, and is closed.
        .queue_mode(QueueMode::Lifo)
        .timeouts(Timeouts {
            wait: Some(settings.wait_max),
            create: Some(settings.connect_max),
            recycle: Some(settings.connect_max),
        })
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .map_err(|_| PoolError::Connect {
            host: node.host.clone(),
            port: node.port,
            source: None,
        })
    }
}

impl NodePools {
    /// The role's pool on a runtime, built for its first connection.
    fn own(
        &self,
        whose: &Whose,
        build: impl FnOnce() -> Result<managed::Pool<NodeManager>, PoolError>,
    ) -> Result<managed::Pool<NodeManager>, PoolError> {
        let pools = self.pools.read().unwrap_or_else(|p| p.into_inner());
        if let Some(pool) = pools.get(whose) {
            return Ok(pool.clone());
        }
        drop(pools);
        let pool = build()?;
        let mut pools = self.pools.write().unwrap_or_else(|p| p.into_inner());
        Ok(pools.entry(whose.clone()).or_insert(pool).clone())
    }

    fn all(&self) -> Vec<managed::Pool<NodeManager>> {
        let pools = self.pools.read().unwrap_or_else(|p| p.into_inner());
        pools.values().cloned().collect()
    }

    /// The pool that the role's next connection comes from: its `own`, which may open
    /// one if there is none idle. Where there are as many as may be, an idle one of
    /// another runtime does too; else an idle one of another role makes room, or one
    /// too many of an earlier share.
    fn source(&self, role: &str, own: &managed::Pool<NodeManager>) -> managed::Pool<NodeManager> {
        if own.status().available > 0 {
            return own.clone();
        }
        if self.budget.is_spent(role) {
            let pools = self.pools.read().unwrap_or_else(|p| p.into_inner());
            let mut of_role = pools.iter().filter(|(whose, _)| *whose.role == *role);
            if let Some((_, pool)) = of_role.find(|(_, pool)| pool.status().available > 0) {
                return pool.clone();
            }
        }
        self.close_idle_beyond(self.gate.capacity().saturating_sub(1));
        own.clone()
    }

    /// Closes what is open beyond the router's share: idle ones now, others as
    /// they are given back.
    fn shrink(&self) {
        let left = self.close_idle_beyond(self.gate.capacity());
        self.excess.store(left, Ordering::Relaxed);
    }

    /// Closes idle connections until no more than `wanted` are open; returns how
    /// many there still are too many, all of them in use.
    fn close_idle_beyond(&self, wanted: usize) -> usize {
        let mut too_many = self.budget.open().saturating_sub(wanted);
        for pool in self.all() {
            pool.retain(|_, _| {
                let close = too_many > 0;
                too_many -= usize::from(close);
                !close
            });
        }
        too_many
    }

    /// Whether a connection that is given back is one too many.
    fn takes_one_away(&self) -> bool {
        let less = |excess: usize| excess.checked_sub(1);
        self.excess.load(Ordering::Relaxed) > 0
            && self
                .excess
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_ok()
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage {
            waiting: self.gate.waiting(),
            max: self.gate.capacity(),
            open: self.budget.open(),
            ..Usage::default()
        };
        for pool in self.all() {
            let status = pool.status();
            usage.used += status.size.saturating_sub(status.available);
        }
        usage
    }
}

fn failed(node: &NodeAddress, error: managed::PoolError<NotMade>) -> PoolError {
    let source = match error {
        managed::PoolError::Timeout(managed::TimeoutType::Wait)
        | managed::PoolError::Backend(NotMade::NoPlace) => {
            return PoolError::Busy(Refused::TooLong);
        }
        managed::PoolError::Backend(NotMade::NodeFull) => {
            return PoolError::Busy(Refused::ByNode);
        }
        managed::PoolError::Backend(NotMade::Connect(source)) => Some(source),
        _ => None,
    };
    let (host, port) = (node.host.clone(), node.port);
    let refused = source.as_ref().and_then(ConnectError::refused);
    // A login that is refused (28) is refused to everybody, as by a node that is down.
    if let Some(refused) = refused.filter(|refused| is_of_session(refused)) {
        return PoolError::Session {
            host,
            port,
            refused: Box::new(refused.into()),
        };
    }
    PoolError::Connect { host, port, source }
}

/// Start-up options of a session. `jit` costs more than it gains on requests
/// of this size.
///
/// Settings that policies read as JSON are empty objects outside of requests: a
/// read is planned before its first step sets them, and the planner evaluates
/// what it estimates by. Of '' it would make an error.
fn session_options(role: &str, settings: &PoolSettings) -> String {
    let further = settings.settings.iter();
    let further: String = further.map(|(name, value)| option(name, value)).collect();
    let role = option("role", role);
    let path = option("search_path", &settings.search_path);
    format!(
        "{further}{role}{path}-c default_transaction_read_only=on -c jit=off \
         -c idle_in_transaction_session_timeout=60s \
         -c request.jwt.claims={{}} -c request.headers={{}} -c request.cookies={{}}"
    )
}

/// Classes of values and names: the role, the search path, another setting.
fn is_of_session(refused: &LoginError) -> bool {
    matches!(refused.code().code().get(..2), Some("22" | "42"))
}

/// Makes connections, and gives each a bounded cache of statements.
pub struct NodeManager {
    server: Server,
    config: tokio_postgres::Config,
    /// Start-up options, behind those of the role.
    options: String,
    role_settings: RoleSettings,
    tls: Tls,
    statements_max: NonZeroUsize,
    budget: Arc<Budget>,
    role: Arc<str>,
}

/// Why a connection is not made.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    /// There are as many as may be.
    #[error("there is no place for one more")]
    NoPlace,
    /// The node takes no more of them. It is well, and serves those who are in.
    #[error("the node takes no more connections")]
    NodeFull,
    /// The node can't be connected to.
    #[error(transparent)]
    Connect(ConnectError),
}

impl From<ConnectError> for NotMade {
    fn from(error: ConnectError) -> Self {
        let code = error.refused().map(|refused| refused.code().code());
        // Class 53: insufficient resources, as of connections.
        match code.is_some_and(|code| code.starts_with("53")) {
            true => Self::NodeFull,
            false => Self::Connect(error),
        }
    }
}

/// A session that has begun.
struct Begun {
    session: Session,
    token: CancelToken,
    identity: Identity,
    /// The role's own settings on the server, as options.
    role_settings: String,
}

/// A connection with its prepared statements.
pub struct Connection {
    session: Session,
    canceller: Canceller,
    statements: LruCache<Box<str>, Prepared>,
    /// Who the server was when the connection was made.
    identity: Identity,
    /// The last to be dropped: the place is free once the connection is closed.
    _place: Place,
}

impl managed::Manager for NodeManager {
    type Type = Connection;
    type Error = NotMade;

    /// Boxed, as what happens seldom: every request's own future has room for all
    /// that it may do, and is moved from stage to stage.
    async fn create(&self) -> Result<Connection, Self::Error> {
        let place = self.budget.take(&self.role).ok_or(NotMade::NoPlace)?;
        Ok(Box::pin(self.connect(place)).await?)
    }

    /// Only connections come back that are known to be idle, outside a
    /// transaction, and with the session that they began with (see [`Leased`] and
    /// [`crate::execute`]); but the server may have closed one meanwhile.
    async fn recycle(
        &self,
        connection: &mut Connection,
        _: &Metrics,
    ) -> RecycleResult<Self::Error> {
        match connection.session.is_open() {
            true => Ok(()),
            false => Err(RecycleError::message("closed")),
        }
    }
}

impl NodeManager {
    /// Begins a session, and once more where the role's settings are others than
    /// when they were last seen. Those that can't be had are done without.
    async fn begin(&self) -> Result<Begun, ConnectError> {
        let known = self.role_settings.seen();
        let is_of_session = |error: &ConnectError| error.refused().is_some_and(is_of_session);
        let first = self.begin_with(&known).await.inspect_err(|error| {
            if is_of_session(error) {
                self.role_settings.see(String::new());
            }
        })?;
        let wanted = &first.role_settings;
        if *wanted == known || known.is_empty() && self.role_settings.is_refused(wanted) {
            return Ok(first);
        }
        let wanted = first.role_settings;
        // It has one place.
        drop(first.session);
        match self.begin_with(&wanted).await {
            Ok(second) => {
                self.role_settings.see(wanted);
                Ok(second)
            }
            Err(error) if is_of_session(&error) => {
                let error = tenancy::chain(&error);
                tracing::warn!(error, "the role's settings can't be had");
                self.role_settings.refuse(wanted);
                self.begin_with("").await
            }
            Err(error) => Err(error),
        }
    }

    async fn begin_with(&self, role_settings: &str) -> Result<Begun, ConnectError> {
        let mut config = self.config.clone();
        config.options(format!("{role_settings}{}", self.options));
        let (socket, token) = self.tls.log_in(&self.server, &config).await?;
        let mut session = Session::new(socket);
        session.add_query(IDENTITY)?;
        session.add_query(role::SETTINGS)?;
        session.send().await?;
        let said = session.answer().await?;
        let identity = match said.done.first().and_then(|rows| rows.first()) {
            Some(row) => identity_of(|column| row.text(column)),
            None => identity_of(|_| None),
        };
        let said = session.answer().await?;
        let row = said.done.first().and_then(|rows| rows.first());
        Ok(Begun {
            role_settings: role::options(row.and_then(|row| row.text(0))),
            session,
            token,
            identity,
        })
    }

    async fn connect(&self, place: Place) -> Result<Connection, ConnectError> {
        let begun = self.begin().await?;
        Ok(Connection {
            canceller: Canceller {
                token: begun.token,
                server: self.server.clone(),
                tls: self.tls.clone(),
            },
            identity: begun.identity,
            session: begun.session,
            statements: LruCache::new(self.statements_max),
            _place: place,
        })
    }
}

/// See schema/shard/005_node.sql.
pub(crate) const IDENTITY: &str = "select is_primary, system_id, timeline from ringfence.node()";

/// What cannot be read is nobody's identity.
pub(crate) fn identity(answer: &[SimpleQueryMessage]) -> Identity {
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    identity_of(|column| row.and_then(|row| row.get(column)))
}

fn identity_of<'a>(text: impl Fn(usize) -> Option<&'a str>) -> Identity {
    let text = |column| text(column).unwrap_or_default();
    Identity {
        generation: Generation {
            system: text(1).parse().unwrap_or_default(),
            timeline: text(2).parse().unwrap_or_default(),
        },
        primary: text(0) == "t",
    }
}

/// A connection on loan. While a statement is in flight it is marked so; if it
/// is then dropped (the client went away, the deadline passed), the statement
/// is cancelled on the server and the connection closed: its state is unknown,
/// and another tenant must not get it.
pub struct Leased {
    object: Option<managed::Object<NodeManager>>,
    in_flight: bool,
    spoilt: bool,
    node: Arc<NodePools>,
    /// Behind `object`, and so dropped after it: who is let in finds it free.
    _permit: Permit,
}

impl Leased {
    /// The statement for `text`, prepared on this connection; `sql` writes the
    /// text that is sent where it isn't prepared yet, `types` are those of its
    /// first parameters.
    pub async fn prepare(
        &mut self,
        text: &str,
        types: &[Type],
        sql: impl FnOnce() -> String,
    ) -> Result<Prepared, LeaseError> {
        let connection: &mut Connection = self.object.as_mut().ok_or(LeaseError::Gone)?;
        if let Some(statement) = connection.statements.get(text) {
            return Ok(statement.clone());
        }
        self.in_flight = true;
        let sql = sql();
        // Boxed: most statements are prepared already.
        let prepared = Box::pin(connection.session.prepare(&sql, types)).await?;
        self.in_flight = !connection.session.is_idle();
        let statement = prepared.map_err(LeaseError::Refused)?;
        if let Some((_, old)) = connection.statements.push(text.into(), statement.clone()) {
            connection.session.forget(old);
        }
        Ok(statement)
    }

    /// Forgets the statement for `text`: after an error that a changed schema
    /// can cause, it must be prepared anew.
    pub fn forget(&mut self, text: &str) {
        if let Some(connection) = self.object.as_mut()
            && let Some(old) = connection.statements.pop(text)
        {
            connection.session.forget(old);
        }
    }

    /// Begins to use the connection. [`Leased::finished`] must follow once the
    /// server has answered everything that was sent.
    pub fn start(&mut self) -> Result<&mut Session, LeaseError> {
        let connection: &mut Connection = self.object.as_mut().ok_or(LeaseError::Gone)?;
        self.in_flight = true;
        connection.session.close_forgotten()?;
        Ok(&mut connection.session)
    }

    /// No more bytes of rows are read of one answer: a statement that answers more is
    /// cancelled, and the connection closed. For whoever has it now.
    pub fn bound_rows(&mut self, bytes_max: usize) {
        if let Some(connection) = self.object.as_mut() {
            connection.session.bound_rows(bytes_max);
        }
    }

    /// Who the server was when the connection was made.
    pub fn identity(&self) -> Option<Identity> {
        self.object.as_ref().map(|connection| connection.identity)
    }

    /// The server is idle again, outside any transaction.
    pub fn finished(&mut self) {
        self.in_flight = false;
    }

    /// Nobody else gets this connection: once it is given back, it is closed.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// Whether nobody else gets this connection.
    pub fn is_spoilt(&self) -> bool {
        self.spoilt
    }

    /// What can stop a statement on this connection from outside.
    pub fn canceller(&self) -> Option<Canceller> {
        Some(self.object.as_ref()?.canceller.clone())
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if self.in_flight
            && let Some(canceller) = self.canceller()
        {
            canceller.send();
        }
        // First: one that is closed anyway is one less, too.
        let is_one_too_many = self.node.takes_one_away();
        if is_one_too_many || self.in_flight || self.spoilt {
            // Taken out of the pool, the connection closes here.
            drop(self.object.take().map(managed::Object::take));
        }
    }
}

/// Stops the statement that runs on one connection.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    server: Server,
    tls: Tls,
}

impl Canceller {
    /// Sends the cancel request in the background, at most 2 s long.
    pub fn send(self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let sent = self.tls.cancel_at(&self.server, &self.token);
            let sent = tokio::time::timeout(Duration::from_secs(2), sent).await;
            if !matches!(sent, Ok(Ok(()))) {
                tracing::debug!("a cancel request could not be delivered");
            }
        });
    }
}

/// What goes wrong on a leased connection.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// It was given back already.
    #[error("the connection is gone")]
    Gone,
    /// Postgres' own answer.
    #[error(transparent)]
    Refused(Box<DbError>),
    /// The connection was lost.
    #[error(transparent)]
    Lost(#[from] io::Error),
}
