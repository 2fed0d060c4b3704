//! What this router knows of each shard: which node is its primary, and its
//! schema model.
//!
//! One task a shard keeps a connection to the primary: it hears of schema
//! changes by `LISTEN` (and, in case a notification is lost, by a look every
//! [`LOOK`]), and finds the primary anew when the connection ends or the node
//! turns out to be a standby. Requests read the last known state without
//! waiting; shards of equal fingerprint share one model.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::StreamExt;
use schema::catalog::{Catalog, Fingerprint};
use tenancy::chain;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_util::sync::CancellationToken;

use crate::event::{Event, Events};
use crate::plan::Model;
use crate::pool::NodeAddress;

/// How often a primary is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Longest wait for an answer of the node to such a look.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Longest wait for a schema model.
const LOAD_MAX: Duration = Duration::from_secs(30);

/// A shard's node as the control database names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, e.g. `s1-primary`.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: NodeAddress,
}

/// What is known of one shard.
pub struct Shard {
    /// Its id.
    pub id: Arc<str>,
    primary: ArcSwapOption<Node>,
    model: ArcSwapOption<Model>,
    /// Counts changes of either, so that a request can wait for one.
    changes: watch::Sender<u64>,
    stop: CancellationToken,
    nodes: Vec<Node>,
}

impl Shard {
    /// The primary, if one is known.
    pub fn primary(&self) -> Option<Arc<Node>> {
        self.primary.load_full()
    }

    /// The schema model, if it was loaded once.
    pub fn model(&self) -> Option<Arc<Model>> {
        self.model.load_full()
    }

    /// Wakes on each change of primary or model.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}

/// How shards' watchers connect.
#[derive(Clone, Debug)]
pub struct Watching {
    /// Login and database, without host.
    pub config: tokio_postgres::Config,
    /// Schemas that are exposed.
    pub schemas: Vec<String>,
}

/// All shards.
pub struct Shards {
    watching: Watching,
    events: Arc<Events>,
    models: Mutex<HashMap<Fingerprint, Weak<Model>>>,
    shards: ArcSwap<HashMap<Arc<str>, Arc<Shard>>>,
    stop: CancellationToken,
}

impl Shards {
    /// Knows no shard until [`Shards::set`].
    pub fn new(watching: Watching, events: Arc<Events>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            watching,
            events,
            models: Mutex::default(),
            shards: ArcSwap::default(),
            stop,
        })
    }

    /// The shard of that id.
    pub fn get(&self, id: &str) -> Option<Arc<Shard>> {
        self.shards.load().get(id).cloned()
    }

    /// All shards, in no order.
    pub fn all(&self) -> Vec<Arc<Shard>> {
        self.shards.load().values().cloned().collect()
    }

    /// Takes the shards and nodes of a new snapshot: starts to watch what is
    /// new or has other nodes, and stops watching what is gone.
    pub fn set(self: &Arc<Self>, wanted: impl IntoIterator<Item = (Arc<str>, Vec<Node>)>) {
        let old = self.shards.load_full();
        let mut new = HashMap::new();
        for (id, nodes) in wanted {
            let kept = old.get(&id).filter(|shard| shard.nodes == nodes);
            let shard = kept
                .cloned()
                .unwrap_or_else(|| self.watch(id.clone(), nodes));
            new.insert(id, shard);
        }
        for (id, shard) in old.iter() {
            if !new.get(id).is_some_and(|kept| Arc::ptr_eq(kept, shard)) {
                shard.stop.cancel();
            }
        }
        self.shards.store(Arc::new(new));
    }

    fn watch(self: &Arc<Self>, id: Arc<str>, nodes: Vec<Node>) -> Arc<Shard> {
        let shard = Arc::new(Shard {
            id,
            primary: ArcSwapOption::empty(),
            model: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
            stop: self.stop.child_token(),
            nodes,
        });
        let (shards, watched) = (self.clone(), shard.clone());
        tokio::spawn(async move {
            let stop = watched.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = shards.follow(&watched) => {}
            }
        });
        shard
    }

    /// Finds the primary and follows it, again and again.
    async fn follow(&self, shard: &Shard) {
        let mut reported = false;
        loop {
            let error = match self.find_primary(shard).await {
                Ok((node, link)) => {
                    reported = false;
                    self.events.emit(&Event::PrimaryFound {
                        shard: &shard.id,
                        node: &node.name,
                    });
                    shard.primary.store(Some(Arc::new(node)));
                    shard.changed();
                    let error = self.follow_primary(shard, link).await;
                    shard.primary.store(None);
                    shard.changed();
                    error
                }
                Err(error) => error,
            };
            if !reported {
                let error = error.to_string();
                self.events.emit(&Event::PrimaryLost {
                    shard: &shard.id,
                    error,
                });
                reported = true;
            }
            tokio::time::sleep(LOOK / 5).await;
        }
    }

    async fn find_primary(&self, shard: &Shard) -> Result<(Node, Link), WatchError> {
        let looks = shard.nodes.iter().map(|node| async move {
            let link = Link::open(&self.watching.config, &node.address).await?;
            match link.is_primary().await? {
                true => Ok((node.clone(), link)),
                false => Err(WatchError::Standby),
            }
        });
        let mut last = WatchError::NoNodes;
        for found in futures_util::future::join_all(looks).await {
            match found {
                Ok(found) => return Ok(found),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Returns when the node can't be followed any longer, with the reason.
    async fn follow_primary(&self, shard: &Shard, mut link: Link) -> WatchError {
        let mut version = None;
        loop {
            match self.look(shard, &link, &mut version).await {
                Ok(()) => {}
                Err(error) => return error,
            }
            tokio::select! {
                heard = link.notices.recv() => if heard.is_none() { return WatchError::Closed },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// One look: still the primary? Still the same schema?
    async fn look(
        &self,
        shard: &Shard,
        link: &Link,
        version: &mut Option<i64>,
    ) -> Result<(), WatchError> {
        if !link.is_primary().await? {
            return Err(WatchError::Standby);
        }
        let now = link.schema_version().await?;
        if *version == Some(now) {
            return Ok(());
        }
        let started = std::time::Instant::now();
        let schemas: Vec<&str> = self.watching.schemas.iter().map(String::as_str).collect();
        let load = schema::introspect::load(&link.client, &schemas);
        match timeout(LOAD_MAX, load).await {
            Ok(Ok(catalog)) => {
                self.events.emit(&Event::SchemaLoaded {
                    shard: &shard.id,
                    fingerprint: &catalog.fingerprint.0,
                    relations: catalog.relations.len(),
                    took: started.elapsed(),
                });
                shard.model.store(Some(self.shared(catalog).await));
                shard.changed();
                *version = Some(now);
                Ok(())
            }
            Ok(Err(error)) => {
                let error = chain(&error);
                self.events.emit(&Event::SchemaFailed {
                    shard: &shard.id,
                    error,
                });
                Ok(())
            }
            Err(_) => Err(WatchError::Slow),
        }
    }

    /// The model that other shards of the same fingerprint use already, or a new
    /// one, indexed where it holds up no request.
    async fn shared(&self, catalog: Catalog) -> Arc<Model> {
        let fingerprint = catalog.fingerprint.clone();
        if let Some(known) = self.known(&fingerprint) {
            return known;
        }
        let catalog = Arc::new(catalog);
        let indexed = catalog.clone();
        let model = tokio::task::spawn_blocking(move || Model::new(indexed)).await;
        let model = Arc::new(model.unwrap_or_else(|_| Model::new(catalog)));
        let mut models = self.models.lock().unwrap_or_else(|p| p.into_inner());
        models.retain(|_, model| model.strong_count() > 0);
        models.insert(fingerprint, Arc::downgrade(&model));
        model
    }

    fn known(&self, fingerprint: &Fingerprint) -> Option<Arc<Model>> {
        let models = self.models.lock().unwrap_or_else(|p| p.into_inner());
        models.get(fingerprint).and_then(Weak::upgrade)
    }
}

/// A watcher's own connection to a node.
struct Link {
    client: tokio_postgres::Client,
    /// Hears of schema changes; closed when the connection ends.
    notices: mpsc::Receiver<()>,
}

impl Link {
    async fn open(
        config: &tokio_postgres::Config,
        address: &NodeAddress,
    ) -> Result<Self, WatchError> {
        let mut config = config.clone();
        config
            .host(&*address.host)
            .port(address.port)
            .connect_timeout(LOOK_MAX)
            .tcp_user_timeout(LOOK_MAX * 2);
        let (client, mut connection) = answered(config.connect(NoTls)).await?;
        // One waiting notice is enough: it means "look", whatever it says.
        let (heard, notices) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut messages =
                futures_util::stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(_) = message {
                    let _ = heard.try_send(());
                }
            }
        });
        answered(client.batch_execute("listen ringfence_schema; listen pgrst")).await?;
        Ok(Self { client, notices })
    }

    async fn is_primary(&self) -> Result<bool, WatchError> {
        let row = answered(self.client.query_one("select not pg_is_in_recovery()", &[])).await?;
        Ok(row.get(0))
    }

    async fn schema_version(&self) -> Result<i64, WatchError> {
        answered(schema::introspect::version(&self.client)).await
    }
}

async fn answered<T, E: Into<WatchError>>(
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, WatchError> {
    timeout(LOOK_MAX, question)
        .await
        .map_err(|_| WatchError::Slow)?
        .map_err(Into::into)
}

/// Why a node can't be followed as a shard's primary.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("the shard has no nodes")]
    NoNodes,
    #[error("the node is a standby")]
    Standby,
    #[error("the connection was closed")]
    Closed,
    #[error("the node did not answer in time")]
    Slow,
    #[error("the node can't be used: {}", chain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{}", chain(.0))]
    Schema(#[from] schema::introspect::Error),
}
