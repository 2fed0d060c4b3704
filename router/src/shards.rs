//! What this router knows of each shard: which node is its primary, and its
//! schema model.
//!
//! One task a node looks at it ([`crate::nodes`]); one task a shard keeps a
//! connection to the primary and hears of schema changes by `LISTEN` (and, in
//! case a notification is lost, by a look every [`LOOK`]). Requests read the last
//! known state without waiting; shards of equal fingerprint share one model.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::StreamExt;
use schema::catalog::{Catalog, Fingerprint};
use schema::ident::Literal;
use tenancy::chain;
use tenancy::id::ShardId;
use tenancy::timelines::Timelines;
use tenancy::tls::Tls;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::AsyncMessage;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::coherence::{Coherence, Place};
use crate::event::{Event, Events};
use crate::nodes::{self, Floor, Node, Positions, Replica, Sighting, Watched};
use crate::plan::Model;
use crate::pool::{self, Identity, NodeAddress};
use crate::timeline::Ancestors;
use crate::token::Generation;

/// How often the schema is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Longest wait for an answer of the node to such a look.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Least time from one look that a stale model asked for to the next.
const STALE_LOOK_GAP: Duration = Duration::from_millis(100);
/// Longest wait for a schema model.
const LOAD_MAX: Duration = Duration::from_secs(30);

/// What is known of one shard.
pub struct Shard {
    /// Its id.
    pub id: Arc<str>,
    nodes: Vec<Arc<Watched>>,
    election: Mutex<Election>,
    primary: ArcSwapOption<Primary>,
    reign: ArcSwapOption<Reign>,
    replicas: ArcSwap<Vec<Replica>>,
    loaded: ArcSwapOption<Loaded>,
    schema_looks: SchemaLooks,
    /// Counts changes of primary or model, so that a request can wait for one.
    changes: watch::Sender<u64>,
    stop: CancellationToken,
}

/// A shard's schema model, and as of when it is the shard's.
pub struct Loaded {
    /// The model.
    pub model: Arc<Model>,
    /// The look that found it, or found it unchanged, began when this router was
    /// there in the shard's history; none where it followed none. All DDL up to
    /// there is in the model (DESIGN.md §6, rule 12).
    pub since: Option<Place>,
    version: Version,
}

impl Loaded {
    /// Whether no change of the schema lies between them. Several changes can end
    /// where they began, with the same model.
    pub fn is_of_the_same_schema(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

/// Looks at the schema: they are numbered, so that one can be waited for.
struct SchemaLooks {
    wanted: Notify,
    begun: AtomicU64,
    done: watch::Sender<u64>,
    /// When a stale model last asked for one.
    stale: Mutex<Option<Instant>>,
}

/// What elections remember of earlier ones.
#[derive(Default)]
struct Election {
    floor: Floor,
    /// What the workers have seen.
    timelines: Timelines,
    reign: Option<Arc<Reign>>,
    positions: Positions,
}

/// A node for as long as it is the primary.
pub struct Primary {
    /// The node.
    pub watched: Arc<Watched>,
    /// What it was found to be.
    pub identity: Identity,
    /// What is known of its log.
    pub reign: Arc<Reign>,
    /// Ends with that time: it is down, a standby, or replaced.
    pub gone: CancellationToken,
}

impl Primary {
    /// The node.
    pub fn node(&self) -> &Node {
        &self.watched.node
    }
}

/// The time of one generation, over which LSNs compare. It outlasts a primary
/// that is lost and found again.
pub struct Reign {
    /// System and timeline.
    pub generation: Generation,
    /// The timelines that it descends from.
    pub ancestors: Arc<Ancestors>,
    /// What tenants have written through this router.
    pub written: Written,
}

/// Per tenant the LSN of its last write through this router. Tenants share
/// cells; one that meets another's later write asks for a little more than it must.
pub struct Written(Box<[AtomicU64]>);

/// 8 KiB a shard.
const WRITTEN_CELLS: usize = 1024;

impl Default for Written {
    fn default() -> Self {
        Self((0..WRITTEN_CELLS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Written {
    /// A write of the tenant's is contained up to `lsn`.
    pub fn note(&self, tenant: Uuid, lsn: u64) {
        self.cell(tenant).fetch_max(lsn, Ordering::AcqRel);
    }

    /// So far must be who shows the tenant all its writes; 0 where there are none.
    pub fn last(&self, tenant: Uuid) -> u64 {
        self.cell(tenant).load(Ordering::Acquire)
    }

    fn cell(&self, tenant: Uuid) -> &AtomicU64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(tenant.as_bytes());
        &self.0[hasher.finish() as usize % WRITTEN_CELLS]
    }
}

impl Shard {
    /// The primary, if one is known.
    pub fn primary(&self) -> Option<Arc<Primary>> {
        self.primary.load_full()
    }

    /// What is known of the log, also while there is no primary.
    pub fn reign(&self) -> Option<Arc<Reign>> {
        self.reign.load_full()
    }

    /// The standbys that follow the primary, or did until it was lost, as they were last seen.
    pub fn replicas(&self) -> Arc<Vec<Replica>> {
        self.replicas.load_full()
    }

    /// Up to where the primary was seen to have written.
    pub fn primary_lsn(&self) -> Option<u64> {
        let primary = self.primary()?;
        let seen = primary.watched.seen();
        seen.as_ref().as_ref().ok().map(|seen| seen.lsn)
    }

    /// Looks at the schema now, and waits until that is done, so long at most.
    pub async fn look_at_schema(&self, until: Instant) {
        let mut done = self.schema_looks.done.subscribe();
        // One that has begun already may have seen what was before.
        let wanted = self.schema_looks.begun.load(Ordering::SeqCst) + 1;
        self.schema_looks.wanted.notify_one();
        let _ = timeout_at(until, done.wait_for(|done| *done >= wanted)).await;
    }

    /// Sees to it that the schema is looked at soon: the model may be out of date.
    pub fn model_is_stale(&self) {
        let now = Instant::now();
        let mut last = self
            .schema_looks
            .stale
            .lock()
            .unwrap_or_else(|p| p.into_inner());
        // One that can't be loaded must not be tried without a pause.
        if last.is_none_or(|last| now.duration_since(last) >= STALE_LOOK_GAP) {
            *last = Some(now);
            self.schema_looks.wanted.notify_one();
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Arc<Watched>] {
        &self.nodes
    }

    /// The schema model, if it was loaded once.
    pub fn model(&self) -> Option<Arc<Model>> {
        self.loaded().map(|loaded| loaded.model.clone())
    }

    /// The same, with what is known of its age.
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        self.loaded.load_full()
    }

    /// Wakes on each change of primary or model.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Looks at all nodes at once: a request found that something is wrong.
    pub fn look_now(&self) {
        self.nodes.iter().for_each(|node| node.look_now());
    }

    /// What a successor with other nodes must go on with: a replaced primary
    /// stays refused, and tenants' writes stay known.
    fn election(&self) -> Election {
        let election = self.election.lock().unwrap_or_else(|p| p.into_inner());
        Election {
            floor: election.floor,
            timelines: Timelines::default(),
            reign: election.reign.clone(),
            positions: Positions::default(),
        }
    }

    fn take_timelines(&self, timelines: Timelines) {
        let mut election = self.election.lock().unwrap_or_else(|p| p.into_inner());
        election.timelines = timelines;
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Takes the primary, and the replicas, that the nodes' last sightings tell of.
    fn elect(&self, events: &Events) {
        let mut election = self.election.lock().unwrap_or_else(|p| p.into_inner());
        let seen: Vec<_> = self.nodes.iter().map(|node| node.seen()).collect();
        let sightings: Vec<_> = seen.iter().map(|seen| seen.as_ref().clone().ok()).collect();
        let (elected, floor) = nodes::elect(&sightings, election.floor, &election.timelines);
        election.floor = floor;
        let elected = elected.and_then(|index| {
            let sighting = sightings.get(index)?.as_ref()?;
            Some((self.nodes.get(index)?, sighting))
        });
        // Without a primary its replicas may go on, for those whom they suffice.
        let reign = match elected {
            Some((_, sighting)) => Some(election.reign(sighting)),
            None => election.reign.clone(),
        };
        let replicas = match &reign {
            Some(reign) => nodes::replicas(
                &self.nodes,
                &sightings,
                reign.generation,
                &election.positions,
            ),
            None => Vec::new(),
        };
        self.replicas.store(Arc::new(replicas));
        self.reign.store(reign.clone());
        let after = elected
            .zip(reign)
            .map(|((watched, sighting), reign)| Primary {
                watched: watched.clone(),
                identity: sighting.identity,
                reign,
                gone: CancellationToken::new(),
            });
        let before = self.primary.load_full();
        let same = match (&before, &after) {
            (Some(before), Some(after)) => {
                Arc::ptr_eq(&before.watched, &after.watched) && before.identity == after.identity
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same {
            return;
        }
        let name = after.as_ref().map(|primary| primary.node().name.clone());
        self.primary.store(after.map(Arc::new));
        if let Some(before) = before {
            before.gone.cancel();
        }
        self.changed();
        match name {
            Some(node) => events.emit(&Event::PrimaryFound {
                shard: &self.id,
                node: &node,
            }),
            None => events.emit(&Event::PrimaryLost {
                shard: &self.id,
                error: self.why_none(&seen),
            }),
        }
    }

    /// What each node said instead of being the primary.
    fn why_none(&self, seen: &[Arc<Result<Sighting, String>>]) -> String {
        let words = self.nodes.iter().zip(seen).map(|(watched, seen)| {
            let name = &watched.node.name;
            match seen.as_ref() {
                Err(error) => format!("{name}: {error}"),
                Ok(seen) if seen.identity.primary => {
                    let timeline = seen.identity.generation.timeline;
                    format!("{name}: a primary of the old timeline {timeline}")
                }
                Ok(_) => format!("{name}: a standby"),
            }
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

impl Election {
    /// The reign of the elected node's generation.
    fn reign(&mut self, sighting: &Sighting) -> Arc<Reign> {
        let generation = sighting.identity.generation;
        let same = |reign: &&Arc<Reign>| reign.generation == generation;
        let reign = match self.reign.as_ref().filter(same) {
            Some(reign) => reign.clone(),
            None => {
                self.positions = Positions::default();
                Arc::new(Reign {
                    generation,
                    ancestors: sighting.ancestors.clone(),
                    written: Written::default(),
                })
            }
        };
        self.positions.saw(sighting.asked, sighting.lsn);
        self.reign = Some(reign.clone());
        reign
    }
}

/// How shards' watchers connect.
#[derive(Clone)]
pub struct Watching {
    /// Login and database, without host.
    pub config: tokio_postgres::Config,
    /// How nodes are connected to.
    pub tls: Tls,
    /// Schemas that are exposed.
    pub schemas: Vec<String>,
    /// This run of the router: shards are told what it has loaded.
    pub instance: Uuid,
}

/// A shard as the control database names it.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: Arc<str>,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// The newest that workers have seen of them.
    pub timelines: Timelines,
}

/// All shards.
pub struct Shards {
    watching: Watching,
    coherence: Arc<Coherence>,
    events: Arc<Events>,
    models: Mutex<HashMap<Fingerprint, Weak<Model>>>,
    shards: ArcSwap<HashMap<Arc<str>, Arc<Shard>>>,
    stop: CancellationToken,
}

impl Shards {
    /// Knows no shard until [`Shards::set`].
    pub fn new(
        watching: Watching,
        coherence: Arc<Coherence>,
        events: Arc<Events>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            watching,
            coherence,
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
    pub fn set(self: &Arc<Self>, wanted: impl IntoIterator<Item = Listed>) {
        let old = self.shards.load_full();
        let mut new = HashMap::new();
        for Listed {
            id,
            nodes,
            timelines,
        } in wanted
        {
            let same = |shard: &&Arc<Shard>| shard.nodes.iter().map(|n| &n.node).eq(&nodes);
            let shard = match old.get(&id).filter(same) {
                Some(kept) => {
                    kept.take_timelines(timelines);
                    kept.clone()
                }
                None => {
                    let before = old.get(&id).map(|shard| &**shard);
                    self.watch(id.clone(), nodes, timelines, before)
                }
            };
            new.insert(id, shard);
        }
        for (id, shard) in old.iter() {
            if !new.get(id).is_some_and(|kept| Arc::ptr_eq(kept, shard)) {
                shard.stop.cancel();
            }
        }
        self.shards.store(Arc::new(new));
    }

    /// Begins to watch a shard; `before` is what it was with other nodes.
    fn watch(
        self: &Arc<Self>,
        id: Arc<str>,
        nodes: Vec<Node>,
        timelines: Timelines,
        before: Option<&Shard>,
    ) -> Arc<Shard> {
        let watched = nodes.into_iter().map(Watched::new).map(Arc::new);
        let mut election = before.map(Shard::election).unwrap_or_default();
        election.timelines = timelines;
        let shard = Arc::new(Shard {
            id,
            nodes: watched.collect(),
            election: Mutex::new(election),
            primary: ArcSwapOption::empty(),
            reign: ArcSwapOption::empty(),
            replicas: ArcSwap::default(),
            // Other nodes, the same tables: requests go on being planned.
            loaded: ArcSwapOption::new(before.and_then(Shard::loaded)),
            schema_looks: SchemaLooks {
                wanted: Notify::new(),
                begun: AtomicU64::new(0),
                done: watch::Sender::new(0),
                stale: Mutex::default(),
            },
            changes: watch::Sender::new(0),
            stop: self.stop.child_token(),
        });
        let (shards, watched) = (self.clone(), shard.clone());
        tokio::spawn(async move {
            let stop = watched.stop.clone();
            let Watching { config, tls, .. } = &shards.watching;
            let looks = watched.nodes.iter().map(|node| {
                let events = &shards.events;
                node.watch(config, tls, || watched.elect(events))
            });
            tokio::select! {
                () = stop.cancelled() => {}
                _ = futures_util::future::join_all(looks) => {}
                () = shards.follow(&watched) => {}
            }
        });
        shard
    }

    /// Follows the schema of whichever node is primary.
    async fn follow(&self, shard: &Shard) {
        let mut changes = shard.changes();
        let mut version = None;
        loop {
            let Some(primary) = shard.primary() else {
                let _ = changes.changed().await;
                continue;
            };
            let followed = self.follow_primary(shard, primary.node(), &mut version);
            tokio::select! {
                () = primary.gone.cancelled() => continue,
                error = followed => {
                    tracing::debug!(shard = &*shard.id, %error, "schema not followed");
                }
            }
            shard.look_now();
            tokio::time::sleep(LOOK / 5).await;
        }
    }

    /// Returns when the node can't be followed any longer, with the reason.
    async fn follow_primary(
        &self,
        shard: &Shard,
        node: &Node,
        version: &mut Option<Version>,
    ) -> WatchError {
        let mut link = match Link::open(&self.watching, &node.address).await {
            Ok(link) => link,
            Err(error) => return error,
        };
        // A promoted standby may lack changes, and count others by their numbers.
        *version = version.filter(|version| version.of == link.identity.generation);
        if let Some(loaded) = *version
            && let Err(error) = link.report(&self.watching.instance, loaded.number).await
        {
            return error;
        }
        let looks = &shard.schema_looks;
        loop {
            let number = looks.begun.fetch_add(1, Ordering::SeqCst) + 1;
            match self.look(shard, &link, version).await {
                Ok(true) => {
                    looks.done.send_replace(number);
                }
                Ok(false) => {}
                Err(error) => return error,
            }
            tokio::select! {
                () = looks.wanted.notified() => {}
                heard = link.notices.recv() => if heard.is_none() { return WatchError::Closed },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// One look: still the same schema? False where it could not be told, as when
    /// it changes meanwhile.
    async fn look(
        &self,
        shard: &Shard,
        link: &Link,
        version: &mut Option<Version>,
    ) -> Result<bool, WatchError> {
        // Before the question, like a fill's stamp: what was applied until now is
        // visible on the primary, so the answer has it (rules 2, 5 and 12).
        let followed = self.coherence.shard(&ShardId(shard.id.clone()));
        let since = followed.place().filter(|place| link.writes(place));
        let now = Version {
            of: link.identity.generation,
            number: link.schema_version().await?,
        };
        if *version == Some(now) {
            if let Some(loaded) = shard.loaded().filter(|loaded| loaded.since != since) {
                shard.loaded.store(Some(Arc::new(Loaded {
                    model: loaded.model.clone(),
                    since,
                    version: now,
                })));
            }
            return Ok(true);
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
                shard.loaded.store(Some(Arc::new(Loaded {
                    model: self.shared(catalog).await,
                    since,
                    version: now,
                })));
                shard.changed();
                *version = Some(now);
                link.report(&self.watching.instance, now.number).await?;
                Ok(true)
            }
            Ok(Err(error)) => {
                let error = chain(&error);
                self.events.emit(&Event::SchemaFailed {
                    shard: &shard.id,
                    error,
                });
                Ok(false)
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

/// Which schema was loaded: changes are numbered by each primary's own log.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    of: Generation,
    number: i64,
}

/// A watcher's own connection to a node.
struct Link {
    client: tokio_postgres::Client,
    /// Who the server was when the connection was made.
    identity: Identity,
    /// Hears of schema changes; closed when the connection ends.
    notices: mpsc::Receiver<()>,
}

impl Link {
    async fn open(watching: &Watching, address: &NodeAddress) -> Result<Self, WatchError> {
        let mut config = watching.config.clone();
        config
            .host(&*address.host)
            .port(address.port)
            .connect_timeout(LOOK_MAX)
            .tcp_user_timeout(LOOK_MAX * 2);
        let (client, mut connection) = answered(watching.tls.connect(&config)).await?;
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
        let identity = answered(client.simple_query(pool::IDENTITY)).await?;
        Ok(Self {
            client,
            identity: pool::identity(&identity),
            notices,
        })
    }

    /// Whether the server is the one whose log that is a place of.
    fn writes(&self, place: &Place) -> bool {
        let Generation { system, timeline } = self.identity.generation;
        let log = &place.generation;
        self.identity.primary && (log.system, log.timeline) == (system, timeline)
    }

    /// Tells the shard what this router has loaded: nothing that it reads is
    /// removed before it has loaded a model without it.
    async fn report(&self, instance: &Uuid, loaded: i64) -> Result<(), WatchError> {
        let name = schema::retire::session_name(instance, loaded);
        let set = format!("set application_name = {}", Literal(&name));
        answered(self.client.batch_execute(&set)).await
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
    #[error("the connection was closed")]
    Closed,
    #[error("the node did not answer in time")]
    Slow,
    #[error("the node can't be used: {}", chain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{}", chain(.0))]
    Schema(#[from] schema::introspect::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RequestLog;
    use crate::event::metrics::Metrics;

    fn shards() -> Arc<Shards> {
        let watching = Watching {
            config: tokio_postgres::Config::new(),
            tls: Tls::disabled().unwrap(),
            schemas: vec!["public".into()],
            instance: Uuid::nil(),
        };
        let events = Events::new(Metrics::handles(), RequestLog::Errors).unwrap();
        let coherence = Coherence::new("router-1".into());
        Shards::new(
            watching,
            coherence,
            Arc::new(events),
            CancellationToken::new(),
        )
    }

    /// Nodes where nobody listens.
    fn nodes(names: &[&str]) -> Vec<Node> {
        let node = |name: &&str| Node {
            name: (*name).into(),
            address: NodeAddress {
                host: "127.0.0.1".into(),
                port: 1,
            },
        };
        names.iter().map(node).collect()
    }

    fn wanted(names: &[&str]) -> [Listed; 1] {
        [Listed {
            id: "s1".into(),
            nodes: nodes(names),
            timelines: Timelines::default(),
        }]
    }

    fn model() -> Arc<Model> {
        let catalog = serde_json::json!({
            "fingerprint": "f", "server_major": 15, "relations": {}, "foreign_keys": [],
            "functions": {}, "computed_relationships": [], "schema_comments": {}, "roles": [],
            "reads_request_settings": false, "reads_claims": false, "hidden": [],
            "media_handlers": [],
        });
        Arc::new(Model::new(Arc::new(
            serde_json::from_value(catalog).unwrap(),
        )))
    }

    #[tokio::test]
    async fn a_shard_that_gets_another_node_keeps_its_model() {
        let shards = shards();
        shards.set(wanted(&["a"]));
        let before = shards.get("s1").unwrap();
        assert!(before.model().is_none());
        let model = model();
        let loaded = Loaded {
            model: model.clone(),
            since: None,
            version: Version {
                of: Generation {
                    system: 1,
                    timeline: 1,
                },
                number: 1,
            },
        };
        before.loaded.store(Some(Arc::new(loaded)));
        shards.set(wanted(&["a", "b"]));
        let after = shards.get("s1").unwrap();
        assert!(!Arc::ptr_eq(&before, &after));
        assert!(after.model().is_some_and(|kept| Arc::ptr_eq(&kept, &model)));
        shards.stop.cancel();
    }
}
