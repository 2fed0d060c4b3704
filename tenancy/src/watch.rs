//! Keeps the snapshot current: `LISTEN` says that a version came, its delta is
//! fetched in one consistent read, a poll stands behind it, and a file copy
//! serves a start while the control database is down.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_postgres::{AsyncMessage, Client, Config, GenericClient, IsolationLevel, Row};
use tokio_util::sync::CancellationToken;

use crate::id::{Epoch, KeyId, TenantId};
use crate::members::{self, Me, Members};
use crate::placement::TenantState;
use crate::quota::{LimitSet, Limits, PlanRow};
use crate::snapshot::{
    Delta, Fleet, IssuerRow, NodeRow, RegionRow, ShardRow, Snapshot, SnapshotFile, TenantRow,
};
use crate::timelines::Timelines;
use crate::tls::{DsnError, Tls};

/// A look at the control database, should a notification be lost.
const POLL: Duration = Duration::from_secs(1);
/// Longest wait for the control database's answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(250);
/// Tenants fetched at once.
const PAGE: i64 = 10_000;
/// The file copy is written at most this often.
const FILE_EVERY: Duration = Duration::from_secs(2);

/// Where placements come from.
#[derive(Clone)]
pub struct Source {
    /// Connection string of the control database.
    pub dsn: String,
    /// How it is connected to.
    pub tls: Tls,
    /// Copy of what was last known, for a start while it is down.
    pub file: Option<PathBuf>,
    /// Who follows it, for all others to know; tools leave no heartbeat.
    pub me: Option<Me>,
}

/// The current snapshot, kept up to date in the background.
pub struct Placements {
    current: ArcSwap<Snapshot>,
    members: watch::Sender<Arc<Members>>,
    version: watch::Sender<i64>,
    connected: watch::Sender<bool>,
    refresh: Notify,
}

/// Why there are no placements.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The connection string can't be used.
    #[error("the control database can't be connected to")]
    Dsn(#[from] DsnError),
    /// The control database's answer, or the lack of one.
    #[error("the control database can't be read")]
    Postgres(#[from] tokio_postgres::Error),
    /// No answer in time.
    #[error("the control database did not answer in time")]
    Slow,
    /// The connection ended.
    #[error("the connection to the control database was closed")]
    Closed,
    /// A row holds what this version of Ringfence does not know.
    #[error("the control database holds an unknown {what}: {value}")]
    Unknown {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: String,
    },
}

impl Placements {
    /// Starts from the control database, or else from the file, and follows it until `stop`.
    ///
    /// Fails where neither can be read: a router without placements must not
    /// say that it is ready.
    pub async fn start(source: Source, stop: CancellationToken) -> Result<Arc<Self>, WatchError> {
        let Source { dsn, tls, file, me } = source;
        let config = tls.read(&dsn)?;
        let (first, members, link) = match Link::open_and_fetch(&config, &tls).await {
            Ok((snapshot, link)) => (snapshot, Members::default(), Some(link)),
            Err(error) => match file.as_deref().and_then(read_file) {
                Some((snapshot, members)) => {
                    let version = snapshot.version();
                    tracing::warn!(%error, version, "placements read from the file copy");
                    (snapshot, members, None)
                }
                None => return Err(error),
            },
        };
        let placements = Arc::new(Self {
            version: watch::Sender::new(first.version()),
            connected: watch::Sender::new(link.is_some()),
            current: ArcSwap::from_pointee(first),
            members: watch::Sender::new(Arc::new(members)),
            refresh: Notify::new(),
        });
        if let Some(me) = me {
            let (members, stop) = (placements.members.clone(), stop.clone());
            let (config, tls) = (config.clone(), tls.clone());
            tokio::spawn(members::follow(config, tls, me, members, stop));
        }
        let follower = placements.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follower.follow((config, tls), link, file) => {}
            }
        });
        Ok(placements)
    }

    /// A handle that never changes, for tests and tools.
    pub fn fixed(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self {
            version: watch::Sender::new(snapshot.version()),
            connected: watch::Sender::new(true),
            current: ArcSwap::from_pointee(snapshot),
            members: watch::Sender::default(),
            refresh: Notify::new(),
        })
    }

    /// The snapshot now.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Wakes at each new version.
    pub fn versions(&self) -> watch::Receiver<i64> {
        self.version.subscribe()
    }

    /// The live routers and workers; wakes when one comes or goes. The last
    /// known ones while the control database is down.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    /// Whether the control database can be reached.
    pub fn connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Wakes whenever the control database is lost or found again.
    pub fn connections(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Asks for a look at the control database now.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }

    async fn follow(
        &self,
        (config, tls): (Config, Tls),
        mut link: Option<Link>,
        file: Option<PathBuf>,
    ) {
        let mut copy = FileCopy::new(file);
        self.copy_to(&mut copy).await;
        loop {
            let opened = match link.take() {
                Some(link) => Ok(link),
                None => Link::open(&config, &tls).await,
            };
            let error = match opened {
                Ok(link) => {
                    self.connected.send_replace(true);
                    self.follow_link(link, &mut copy).await
                }
                Err(error) => error,
            };
            if self.connected.send_replace(false) {
                tracing::warn!(%error, "serving the last placements");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn copy_to(&self, copy: &mut FileCopy) {
        let members = self.members.borrow().clone();
        copy.write(&self.current.load(), &members).await;
    }

    /// Returns when the connection can't be used any longer.
    async fn follow_link(&self, mut link: Link, copy: &mut FileCopy) -> WatchError {
        loop {
            let current = self.current.load_full();
            match link.fetch(&current).await {
                Ok(Some(next)) => {
                    let version = next.version();
                    self.current.store(Arc::new(next));
                    self.version.send_replace(version);
                    self.copy_to(copy).await;
                }
                Ok(None) => self.copy_to(copy).await,
                Err(error) => return error,
            }
            tokio::select! {
                heard = link.notices.recv() => if heard.is_none() { return WatchError::Closed },
                () = self.refresh.notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }
}

/// The file that a router starts from while the control database is down.
struct FileCopy {
    path: Option<PathBuf>,
    /// What it holds.
    written: Option<(i64, Arc<Members>)>,
    next: Instant,
}

impl FileCopy {
    fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            written: None,
            next: Instant::now(),
        }
    }

    /// Writes the snapshot beside the file and renames it over, if it is due.
    async fn write(&mut self, snapshot: &Arc<Snapshot>, members: &Arc<Members>) {
        let Some(path) = self.path.clone() else {
            return;
        };
        let now = (snapshot.version(), members.clone());
        if self.written.as_ref() == Some(&now) || Instant::now() < self.next {
            return;
        }
        let (snapshot, members) = (snapshot.clone(), members.clone());
        let write = move || write_file(&path, &SnapshotFile::new(&snapshot, &members));
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => self.written = Some(now),
            Ok(Err(error)) => tracing::warn!(%error, "the file copy can't be written"),
            Err(_) => {}
        }
        self.next = Instant::now() + FILE_EVERY;
    }
}

fn write_file(path: &Path, file: &SnapshotFile) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    // It holds issuers' secrets.
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut out = std::io::BufWriter::new(options.open(&beside)?);
    serde_json::to_writer(&mut out, file)?;
    out.flush()?;
    out.get_ref().sync_all()?;
    std::fs::rename(beside, path)
}

fn read_file(path: &Path) -> Option<(Snapshot, Members)> {
    let text = std::fs::read(path).ok()?;
    match serde_json::from_slice::<SnapshotFile>(&text) {
        Ok(file) => Some(file.open()),
        Err(error) => {
            tracing::error!(%error, "the file copy is damaged");
            None
        }
    }
}

/// A connection to the control database.
struct Link {
    client: Client,
    notices: mpsc::Receiver<()>,
}

impl Link {
    async fn open(config: &Config, tls: &Tls) -> Result<Self, WatchError> {
        let mut config = config.clone();
        config
            .connect_timeout(Duration::from_secs(2))
            .application_name("ringfence-placements");
        let (client, mut connection) = answered(tls.connect(&config)).await?;
        let (heard, notices) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut messages =
                futures_util::stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(_) = message {
                    // One waiting notice says all: there is something to fetch.
                    let _ = heard.try_send(());
                }
            }
        });
        answered(client.batch_execute("listen ringfence_placement")).await?;
        Ok(Self { client, notices })
    }

    /// A connection, and all that the control database says over it.
    async fn open_and_fetch(config: &Config, tls: &Tls) -> Result<(Snapshot, Self), WatchError> {
        let mut link = Self::open(config, tls).await?;
        let empty = Snapshot::empty();
        let fetched = link.fetch(&empty).await?;
        Ok((fetched.unwrap_or(empty), link))
    }

    /// `current` brought to the control database's version; none where it is there already.
    async fn fetch(&mut self, current: &Snapshot) -> Result<Option<Snapshot>, WatchError> {
        let row = answered(
            self.client
                .query_one("select version from ringfence.version", &[]),
        )
        .await?;
        if row.get::<_, i64>(0) == current.version() {
            return Ok(None);
        }
        timeout(ANSWER_MAX, fetch(&mut self.client, current))
            .await
            .map_err(|_| WatchError::Slow)?
            .map(Some)
    }
}

async fn answered<T>(
    question: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, WatchError> {
    timeout(Duration::from_secs(5), question)
        .await
        .map_err(|_| WatchError::Slow)?
        .map_err(WatchError::Postgres)
}

/// One consistent read of all that came after `current`, in pages.
async fn fetch(client: &mut Client, current: &Snapshot) -> Result<Snapshot, WatchError> {
    let read = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let row = read
        .query_one("select version, fleet from ringfence.version", &[])
        .await?;
    let (version, fleet_version): (i64, i64) = (row.get(0), row.get(1));
    // A control database that was restored from a backup may count lower: start over.
    let restored = version < current.version();
    let empty = Snapshot::empty();
    let base = if restored { &empty } else { current };
    let since = base.version();
    let fleet = if fleet_version > since {
        Some(fetch_fleet(&read).await?)
    } else {
        None
    };
    let revoked = read
        .query(
            "select id from ringfence.api_key
             where version > $1 and revoked_at is not null and (expires_at is null or expires_at > now())",
            &[&since],
        )
        .await?;
    let mut snapshot = base.with(Delta {
        version,
        fleet,
        tenants: Vec::new(),
        revoked: revoked.iter().map(|row| KeyId(row.get(0))).collect(),
    });
    let mut after = (since, uuid::Uuid::max());
    loop {
        let rows = read
            .query(
                "select id, shard, ring_shard, epoch, region, state, plan, limits, version from ringfence.tenant
                 where exceptional and (version, id) > ($1, $2) order by version, id limit $3",
                &[&after.0, &after.1, &PAGE],
            )
            .await?;
        let Some(last) = rows.last() else {
            return Ok(snapshot);
        };
        after = (last.get("version"), last.get("id"));
        let tenants = rows.iter().map(tenant_row).collect::<Result<_, _>>()?;
        snapshot = snapshot.with(Delta {
            version,
            tenants,
            ..Delta::default()
        });
    }
}

fn tenant_row(row: &Row) -> Result<TenantRow, WatchError> {
    let state: &str = row.get("state");
    Ok(TenantRow {
        id: TenantId(row.get("id")),
        shard: row.get::<_, &str>("shard").into(),
        ring_shard: row.get::<_, &str>("ring_shard").into(),
        epoch: Epoch(row.get("epoch")),
        region: row.get::<_, &str>("region").into(),
        state: TenantState::parse(state).ok_or_else(|| WatchError::Unknown {
            what: "tenant state",
            value: state.into(),
        })?,
        limits: LimitSet {
            plan: row.get::<_, &str>("plan").into(),
            own: Limits::stored(row.get("limits")),
        },
    })
}

/// Regions, shards with their nodes, and issuers.
pub async fn fetch_fleet(client: &impl GenericClient) -> Result<Fleet, WatchError> {
    let regions = client
        .query(
            "select id, is_default from ringfence.region order by id",
            &[],
        )
        .await?;
    let shards = client
        .query(
            "select id, region, weight, state = 'active' as on_ring
             from ringfence.shard order by created_at, id",
            &[],
        )
        .await?;
    let nodes = client
        .query(
            "select name, shard, host, port, system_id, timeline from ringfence.node order by name",
            &[],
        )
        .await?;
    let issuers = client
        .query(
            "select name, secret, audience, tenants,
               case when jsonb_typeof(jwks) <> 'string' then jwks end as jwks,
               case when jsonb_typeof(jwks) = 'string' then jwks #>> '{}' end as jwks_url
             from ringfence.jwt_issuer order by name",
            &[],
        )
        .await?;
    let plans = client
        .query("select id, limits from ringfence.plan order by id", &[])
        .await?;
    let nodes_of = |shard: &str| {
        let own = nodes
            .iter()
            .filter(|row| row.get::<_, &str>("shard") == shard);
        own.map(|row| NodeRow {
            name: row.get::<_, &str>("name").into(),
            host: row.get::<_, &str>("host").into(),
            port: row.get::<_, i32>("port") as u16,
        })
        .collect()
    };
    let timelines_of = |shard: &str| {
        let own = nodes
            .iter()
            .filter(|row| row.get::<_, &str>("shard") == shard);
        Timelines::of(own.map(|row| (row.get("system_id"), row.get("timeline"))))
    };
    Ok(Fleet {
        regions: regions
            .iter()
            .map(|row| RegionRow {
                id: row.get::<_, &str>("id").into(),
                is_default: row.get("is_default"),
            })
            .collect(),
        shards: shards
            .iter()
            .map(|row| ShardRow {
                id: row.get::<_, &str>("id").into(),
                region: row.get::<_, &str>("region").into(),
                weight: row.get("weight"),
                on_ring: row.get("on_ring"),
                nodes: nodes_of(row.get("id")),
                timelines: timelines_of(row.get("id")),
            })
            .collect(),
        issuers: issuers
            .iter()
            .map(|row| IssuerRow {
                name: row.get("name"),
                secret: row.get("secret"),
                jwks: row.get("jwks"),
                jwks_url: row.get("jwks_url"),
                audience: row.get("audience"),
                tenants: row.get("tenants"),
            })
            .collect(),
        plans: plans
            .iter()
            .map(|row| PlanRow {
                id: row.get::<_, &str>("id").into(),
                limits: Limits::stored(row.get("limits")),
            })
            .collect(),
    })
}
