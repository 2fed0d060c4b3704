//! Stage 5: answers without the shard. Two levels hold values that carry their
//! own proof ([`entry`], [`validity`]): this process's memory ([`local`]) and,
//! where configured, Redis Cluster ([`shared`]). A miss is filled once for all
//! who wait ([`fill`]).
//!
//! Nothing here decides what is right but [`validity`]: any entry may vanish,
//! come back or be old, and the answer is still right.

pub mod control;
pub mod entry;
pub mod fill;
pub mod key;
pub mod label;
pub mod local;
pub mod made_of;
pub mod shared;
pub mod surrogate;
pub mod validity;
pub mod worth;

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, StatusCode};
use schema::ident::Ident;
use tenancy::changes::{Cell, Lsn, TableHash};
use tenancy::id::{ShardId, TenantId};
use tenancy::quota;

use self::control::Control;
use self::entry::Entry;
use self::fill::{Fills, Part};
use self::key::Key;
use self::local::Local;
use self::shared::{FillLease, Patience, PurgeError, Shared};
use self::validity::{Asked, Stamp, UnderLease, Unfit, Written};
use self::worth::Worth;
use crate::coherence::barrier::Waited;
use crate::coherence::clock::Boot;
use crate::coherence::{Coherence, Place};
use crate::config;
use crate::event::metrics::CacheMetrics;
use crate::plan::Plan;
use crate::request::ApiRequest;
use crate::response::Row;

/// A planned read whose answer may be kept.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its name in the caches.
    pub key: Key,
    /// Whose it is.
    pub tenant: TenantId,
    /// The shard that it lives on, as this router knows.
    pub shard: ShardId,
    /// Its placement's number.
    pub epoch: i64,
    /// Of all that the answer is made of.
    pub cells: Vec<Cell>,
    /// Of the table that is asked, for what is worth keeping.
    pub table: Cell,
    /// As of when the schema model that it was planned by is the shard's.
    pub schema: Option<Place>,
    /// How old an answer may be by the table's own policy.
    pub max_age: Option<Duration>,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// This process's memory.
    Local,
    /// Redis.
    Shared,
    /// The shard; kept for the next.
    Filled,
    /// The shard; not kept.
    Missed,
    /// The shard: the answer can't be kept, or the client did not want one that is.
    Bypassed,
}

/// An entry that answers.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The answer.
    pub entry: Arc<Entry>,
    /// Where it was found.
    pub level: Level,
    /// Its age, where it may lack what was written since.
    pub old: Option<Duration>,
}

/// Both levels, and what keeps them right.
pub struct Cache<F> {
    /// What is known of the shards' changes.
    pub coherence: Arc<Coherence>,
    /// Fills under way.
    pub fills: Arc<Fills<F>>,
    /// Looks into Redis under way.
    looks: Arc<Fills<Option<Arc<Entry>>>>,
    local: Local,
    shared: Option<Arc<Shared>>,
    worth: Worth,
    fronts: moka::sync::Cache<Key, Arc<Front>>,
    settings: config::Cache,
    metrics: CacheMetrics,
}

/// The schema model that a read was planned by may be older than the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleModel;

/// A read as it was sent, planned already.
pub struct Front {
    /// What its plan asks for.
    pub question: Arc<Question>,
    /// The request.
    pub request: ApiRequest,
    /// Its plan.
    pub plan: Plan,
    /// The tenant's limits, which the plan keeps.
    pub own: quota::Limits,
    /// The head of its last answer, made of that entry.
    built: ArcSwapOption<Built>,
}

struct Built {
    from: Weak<Entry>,
    status: StatusCode,
    headers: HeaderMap,
}

/// Requests whose plans are kept.
const FRONTS_MAX: u64 = 20_000;

impl<F: Clone + Send + Sync + 'static> Cache<F> {
    /// Empty.
    pub fn new(
        settings: config::Cache,
        coherence: Arc<Coherence>,
        shared: Option<Arc<Shared>>,
        metrics: CacheMetrics,
    ) -> Self {
        let bytes = settings.memory_bytes_max;
        let share = bytes / 100 * u64::from(settings.tenant_share_percent.min(100));
        Self {
            coherence,
            fills: Fills::new(),
            looks: Fills::new(),
            local: Local::new(bytes, share),
            shared,
            worth: Worth::default(),
            fronts: moka::sync::Cache::new(FRONTS_MAX),
            settings,
            metrics,
        }
    }

    /// Bytes of a tenant's answers in memory.
    pub fn bytes_of(&self, tenant: TenantId) -> u64 {
        self.local.bytes_of(tenant)
    }

    /// Whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        self.settings.enabled
    }

    /// Names an answer for a CDN, where that is wanted.
    pub fn name(&self, headers: &mut HeaderMap, tenant: TenantId, plan: &Plan) {
        if self.is_on() && self.settings.surrogate_keys {
            surrogate::put(headers, tenant, plan);
        }
    }

    /// How a table's answers are to be kept.
    pub fn policy(&self, schema: &Ident, table: &Ident) -> config::TableCache {
        let tables = &self.settings.tables;
        if tables.is_empty() {
            return config::TableCache::default();
        }
        let name = format!("{}.{}", schema.as_str(), table.as_str());
        tables.get(&name).copied().unwrap_or_default()
    }

    /// Rules 6 and 10: what this router's lease on the shard's history allows;
    /// none without one. Asking keeps the lease alive.
    pub fn under_lease(&self, shard: &ShardId) -> Option<UnderLease> {
        if !self.is_on() {
            return None;
        }
        let now = Boot::now();
        let followed = self.coherence.shard(shard);
        let view = self.coherence.wanted(&followed, now)?;
        UnderLease::begin(view, now)
    }

    /// The same, for who looks for entries or makes them by a schema model that
    /// was loaded then: none where it may be older than the schema (rule 12).
    pub fn under_lease_of_schema(
        &self,
        shard: &ShardId,
        loaded: Option<Place>,
    ) -> Result<Option<UnderLease>, StaleModel> {
        let under = self.under_lease(shard);
        match under {
            Some(under) if !under.knows_schema(loaded) => {
                self.metrics.unfit(Unfit::Schema);
                Err(StaleModel)
            }
            under => Ok(under),
        }
    }

    /// Counts a read that found no lease.
    pub fn unleased(&self) {
        self.metrics.unleased.increment(1);
    }

    /// An entry of this process that may answer.
    pub fn local(
        &self,
        question: &Question,
        under: &UnderLease,
        token: Option<Written>,
    ) -> Option<Hit> {
        let entry = self.local.get(&question.key)?;
        self.judge(question, under, token, &entry).ok()?;
        self.metrics.hit(Level::Local);
        self.worth.hit(question.table);
        Some(Hit {
            entry,
            level: Level::Local,
            old: None,
        })
    }

    /// An entry of this process that is as young as the client asked in so many
    /// words, whatever was written since.
    pub fn local_old(
        &self,
        question: &Question,
        longest: Option<Duration>,
        token: Option<Written>,
    ) -> Option<Hit> {
        if longest.is_none() || token.is_some() {
            return None;
        }
        let entry = self.local.get(&question.key)?;
        self.judge_old(question, longest, entry, Level::Local)
    }

    /// The same of Redis.
    pub async fn shared_old(
        &self,
        question: &Question,
        longest: Option<Duration>,
        token: Option<Written>,
        patience: Patience,
    ) -> Option<Hit> {
        if longest.is_none() || token.is_some() {
            return None;
        }
        let shared = self.shared.as_ref()?;
        let found = shared.get(question.tenant, &question.key, patience).await?;
        let hit = self.judge_old(question, longest, Arc::new(found), Level::Shared)?;
        self.hold(question, &hit.entry);
        Some(hit)
    }

    fn judge_old(
        &self,
        question: &Question,
        longest: Option<Duration>,
        entry: Arc<Entry>,
        level: Level,
    ) -> Option<Hit> {
        let age = validity::old_enough_for(entry.age(SystemTime::now()), longest)?;
        if !self.may_stay(question, &entry.stamp) {
            self.metrics.unfit(Unfit::Fence);
            return None;
        }
        self.metrics.hit(level);
        self.metrics.staleness.record(age.as_secs_f64());
        self.worth.hit(question.table);
        Some(Hit {
            entry,
            level,
            old: Some(age),
        })
    }

    /// Whether an entry may answer (rule 6), also one that another's fill made.
    ///
    /// # Errors
    /// Why it may not.
    pub fn judge(
        &self,
        question: &Question,
        under: &UnderLease,
        token: Option<Written>,
        entry: &Entry,
    ) -> Result<(), Unfit> {
        let asked = Asked {
            epoch: question.epoch,
            cells: &question.cells,
            token,
        };
        let verdict = under.admits(&entry.stamp, &asked, Boot::now);
        if let Err(why) = verdict {
            self.metrics.unfit(why);
        }
        verdict
    }

    /// Whether a miss is worth a fill.
    pub fn is_worth_a_fill(&self, question: &Question) -> bool {
        self.worth.allows(question.table)
    }

    /// Whether a request that was planned before is worth a look into Redis.
    pub fn is_worth_a_look(&self, question: &Question) -> bool {
        self.shared.is_some() && self.worth.pays(question.table)
    }

    /// Counts a fill that was found nowhere, so that it asks the shard.
    pub fn fills_from_shard(&self, question: &Question) {
        self.worth.fill(question.table);
    }

    /// Keeps what was read under a stamp (rule 5: taken before the read).
    pub fn keep(
        &self,
        question: &Question,
        stamp: Stamp,
        read_at: SystemTime,
        row: Row,
    ) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(stamp, read_at, row));
        if entry.row.is_plain() && entry.row.body.len() <= entry::BODY_MAX {
            if let Some(before) = self.local.get(&question.key)
                && self.is_alike(question, &before, &entry)
            {
                self.metrics.refilled_alike.increment(1);
            }
            self.hold(question, &entry);
            if let Some(shared) = &self.shared {
                let (tenant, key) = (question.tenant, question.key);
                shared.put(tenant, key, entry.clone(), || {
                    self.may_stay(question, &entry.stamp)
                });
            }
        }
        entry
    }

    /// Whether an entry replaces one that had to go for a change, and says the same:
    /// the change was another row's, or of what shares a cell with its tables.
    fn is_alike(&self, question: &Question, before: &Entry, now: &Entry) -> bool {
        let view = self.coherence.shard(&question.shard).view();
        before.stamp.generation == now.stamp.generation
            && before.row.body == now.row.body
            && view.is_some_and(|view| !view.heard.unchanged(&question.cells, before.stamp.at))
    }

    /// Puts an entry into this process's memory. What a purge has raised a cell
    /// against meanwhile goes again: it has passed by already.
    fn hold(&self, question: &Question, entry: &Arc<Entry>) {
        self.local.put(question.key, question.tenant, entry.clone());
        if !self.may_stay(question, &entry.stamp) {
            self.local.drop_one(&question.key);
        }
    }

    /// Whether an entry is still worth keeping: one from before its tenant's fence
    /// changed answers nobody, and a deleted tenant's must not come back.
    fn may_stay(&self, question: &Question, stamp: &Stamp) -> bool {
        let view = self.coherence.shard(&question.shard).view();
        validity::fence_stands(stamp, Cell::fence(question.tenant), view.as_deref())
    }

    /// An entry of Redis that may answer, or that another router is about to put
    /// there. `looked`: there was none just now. None: this router is to read.
    pub async fn shared(
        &self,
        question: &Question,
        patience: Patience,
        looked: bool,
    ) -> Option<Hit> {
        let shared = self.shared.as_ref()?;
        let fits = |entry: &Entry| self.fits(question, question.schema, entry);
        let (tenant, key) = (question.tenant, &question.key);
        let found = match looked {
            true => None,
            false => shared.get(tenant, key, patience).await,
        };
        let entry = match found.filter(fits) {
            Some(entry) => entry,
            None if shared.lease(key, patience).await == FillLease::Theirs => {
                let entry = shared.wait_for(tenant, key, patience, fits).await?;
                self.metrics.awaited.increment(1);
                entry
            }
            None => return None,
        };
        self.worth.hit(question.table);
        let entry = Arc::new(entry);
        self.hold(question, &entry);
        Some(Hit {
            entry,
            level: Level::Shared,
            old: None,
        })
    }

    /// An entry of Redis that may answer a request whose plan is known, by a schema
    /// model that was loaded then. Who asks for the same meanwhile shares the look,
    /// and judges for itself what it found.
    pub async fn look(
        &self,
        question: &Question,
        loaded: Option<Place>,
        patience: Patience,
    ) -> Option<Hit> {
        let shared = self.shared.as_ref()?;
        let (tenant, key) = (question.tenant, question.key);
        let begin = || {
            let shared = shared.clone();
            async move { shared.get(tenant, &key, patience).await.map(Arc::new) }
        };
        let (part, found) = self.looks.run(key, || true, begin).await?;
        let entry = found.flatten()?;
        if !self.fits(question, loaded, &entry) {
            return None;
        }
        self.metrics.hit(Level::Shared);
        self.worth.hit(question.table);
        if part == Part::Started {
            self.hold(question, &entry);
        }
        Some(Hit {
            entry,
            level: Level::Shared,
            old: None,
        })
    }

    /// Whether an entry of Redis may answer: under a lease that is loaded now, for
    /// one that ended while Redis was asked must not spoil it.
    fn fits(&self, question: &Question, loaded: Option<Place>, entry: &Entry) -> bool {
        let under = self.under_lease_of_schema(&question.shard, loaded);
        let under = under.ok().flatten();
        under.is_some_and(|under| self.judge(question, &under, None, entry).is_ok())
    }

    /// Counts an answer that came from the shard.
    pub fn answered_by_shard(&self, level: Level) {
        self.metrics.hit(level);
    }

    /// Counts a read that another's fill answered.
    pub fn joined(&self, question: &Question) {
        self.metrics.joined.increment(1);
        // A fill that many waited for was worth making.
        self.worth.hit(question.table);
    }

    /// Counts a write that is acknowledged now, and what it waited for; none: for
    /// nothing, as was wanted.
    pub fn acknowledged(&self, waited: Option<Waited>, took: Duration) {
        let by = match waited {
            Some(Waited::Confirmed) => 0,
            Some(Waited::LeasesEnded) => 1,
            Some(Waited::NoLeases) => 2,
            None => 3,
        };
        self.metrics.barriers[by].increment(1);
        self.metrics.barrier_wait.record(took.as_secs_f64());
    }

    /// The plan of a request that was seen before.
    pub fn front(&self, request: &Key) -> Option<Arc<Front>> {
        self.fronts.get(request)
    }

    /// Remembers the plan of a request.
    pub fn remember(
        &self,
        request: Key,
        question: Arc<Question>,
        asked: ApiRequest,
        plan: Plan,
        own: quota::Limits,
    ) {
        let front = Front {
            question,
            request: asked,
            plan,
            own,
            built: ArcSwapOption::empty(),
        };
        self.fronts.insert(request, Arc::new(front));
    }

    /// Forgets a tenant's answers, those made of a table, or all: their cells are
    /// raised as by a change at the next place, so no entry that either level
    /// holds now is used again, and what is read now is not kept. Then they go from
    /// memory and from Redis; of a table alone all do, for a client that takes old
    /// answers asks no table's cell. Only misses can come of it.
    ///
    /// Says how many went from Redis, where there is one.
    ///
    /// # Errors
    /// Some may be left in Redis. All else is done.
    pub async fn purge(
        &self,
        tenant: Option<TenantId>,
        table: Option<TableHash>,
    ) -> Result<Option<u64>, PurgeError> {
        for shard in self.coherence.all() {
            let Some(view) = shard.view() else { continue };
            let next = Lsn(view.heard.watermark().0 + 1);
            match (tenant, table) {
                (Some(tenant), Some(table)) => view.heard.raise(Cell::rows(tenant, table), next),
                (Some(tenant), None) => view.heard.raise(Cell::fence(tenant), next),
                (None, Some(table)) => view.heard.raise(Cell::table(table), next),
                (None, None) => view.heard.raise_all(next),
            }
        }
        match tenant {
            Some(tenant) => {
                self.local.drop_of(tenant);
                let fronts = self.fronts.iter();
                for (request, _) in fronts.filter(|(_, front)| front.question.tenant == tenant) {
                    self.fronts.invalidate(&*request);
                }
            }
            None => {
                self.local.clear();
                self.fronts.invalidate_all();
            }
        }
        match &self.shared {
            Some(shared) => shared.purge(tenant).await.map(Some),
            None => Ok(None),
        }
    }

    /// What the caches hold and know, for people.
    pub fn report(&self) -> Report {
        let (entries, bytes) = self.local.size();
        let now = Boot::now();
        let mut shards: Vec<ShardReport> = self
            .coherence
            .all()
            .iter()
            .map(|shard| {
                let view = shard.view();
                let lease = view.as_ref().map(|view| view.heard.lease());
                ShardReport {
                    shard: shard.id.clone(),
                    generation: view.as_ref().map(|view| view.generation.to_string()),
                    watermark: view.as_ref().map(|v| v.heard.watermark().to_string()),
                    heard: shard.is_heard(),
                    wanted: shard.is_wanted(now),
                    leased: lease.is_some_and(|lease| lease.holds(now)),
                }
            })
            .collect();
        shards.sort_by(|a, b| a.shard.cmp(&b.shard));
        Report {
            enabled: self.is_on(),
            entries,
            bytes,
            bytes_max: self.settings.memory_bytes_max,
            redis: self.shared.as_ref().map(|shared| shared.is_connected()),
            workers: self.coherence.connected(),
            shards,
        }
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let report = self.report();
        let leased = report.shards.iter().filter(|shard| shard.leased).count();
        self.metrics.entries.set(report.entries as f64);
        self.metrics.bytes.set(report.bytes as f64);
        self.metrics.leases.set(leased as f64);
        self.metrics.streams.set(report.workers as f64);
        let lost = self.coherence.leases_lost();
        self.metrics.leases_lost.absolute(lost);
    }
}

/// A router's caches at one moment.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// Anything is kept.
    pub enabled: bool,
    /// Entries in memory.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// At most.
    pub bytes_max: u64,
    /// Connected to Redis; none where it is not configured.
    pub redis: Option<bool>,
    /// Workers whose changes are heard.
    pub workers: usize,
    /// What is known of each shard.
    pub shards: Vec<ShardReport>,
}

/// What a router knows of a shard's changes.
#[derive(Debug, serde::Serialize)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// Its history.
    pub generation: Option<String>,
    /// What is applied.
    pub watermark: Option<String>,
    /// A worker tells of its changes now.
    pub heard: bool,
    /// It has cached traffic, so that a lease is asked for.
    pub wanted: bool,
    /// Answers may come from the caches now.
    pub leased: bool,
}

impl Front {
    /// The head of the answer that `entry` makes, if it was made before.
    pub fn head(&self, entry: &Arc<Entry>) -> Option<(StatusCode, HeaderMap)> {
        let built = self.built.load();
        let built = built.as_ref()?;
        let same = std::ptr::eq(built.from.as_ptr(), Arc::as_ptr(entry));
        same.then(|| (built.status, built.headers.clone()))
    }

    /// Keeps the head of the answer that `entry` made.
    pub fn keep_head(&self, entry: &Arc<Entry>, status: StatusCode, headers: &HeaderMap) {
        self.built.store(Some(Arc::new(Built {
            from: Arc::downgrade(entry),
            status,
            headers: headers.clone(),
        })));
    }
}

impl Control {
    /// How old an answer may be, by the client's words or the table's policy.
    pub fn longest(&self, policy: Option<Duration>) -> Option<Duration> {
        self.max_age.or(policy)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tenancy::changes::Generation;

    use super::*;

    const G: Generation = Generation {
        system: 7,
        timeline: 1,
        incarnation: 1,
    };
    const HOUR: Option<Duration> = Some(Duration::from_secs(3_600));

    fn cache() -> Cache<()> {
        let settings = config::Cache {
            enabled: true,
            ..config::Cache::default()
        };
        let coherence = Coherence::new("router-1".into());
        Cache::new(settings, coherence, None, CacheMetrics::new())
    }

    fn question() -> Question {
        let tenant = TenantId(uuid::Uuid::from_u128(1));
        Question {
            key: Key::for_test(1),
            tenant,
            shard: "s1".into(),
            epoch: 1,
            cells: vec![Cell::fence(tenant)],
            table: Cell(9),
            schema: None,
            max_age: None,
        }
    }

    fn keep(cache: &Cache<()>, question: &Question, at: u64, read_at: SystemTime) {
        let stamp = Stamp {
            generation: G,
            epoch: question.epoch,
            at: Lsn(at),
        };
        let row = Row {
            body: Bytes::from_static(b"[]"),
            ..Row::default()
        };
        cache.keep(question, stamp, read_at, row);
    }

    #[test]
    fn an_old_answer_is_given_while_the_tenants_fence_stands() {
        let (cache, question) = (cache(), question());
        let old = |cache: &Cache<()>| cache.local_old(&question, HOUR, None).is_some();
        let coherence = &cache.coherence;
        let view = coherence.heard_for_test(&question.shard, G, Lsn(100));
        keep(&cache, &question, 100, SystemTime::now());
        assert!(old(&cache));
        let elsewhere = Question {
            shard: "s2".into(),
            ..question.clone()
        };
        let of_an_unknown_shard = cache.local_old(&elsewhere, HOUR, None);
        assert!(of_an_unknown_shard.is_none(), "nothing is known of it");
        assert!(cache.local_old(&question, None, None).is_none());
        // Suspended, fenced or moved: the same cell.
        view.heard.raise(Cell::fence(question.tenant), Lsn(110));
        assert!(!old(&cache));
        keep(&cache, &question, 110, SystemTime::now());
        assert!(old(&cache));
        // A clock that was ahead makes nothing young.
        let ahead = SystemTime::now() + Duration::from_secs(600);
        keep(&cache, &question, 110, ahead);
        assert!(!old(&cache));
    }

    #[test]
    fn a_fill_that_a_change_elsewhere_made_necessary_is_told_from_others() {
        let (cache, question) = (cache(), question());
        let view = cache.coherence.heard_for_test(&question.shard, G, Lsn(100));
        let entry = |at, body: &'static [u8]| {
            let stamp = Stamp {
                generation: G,
                epoch: 1,
                at: Lsn(at),
            };
            let row = Row {
                body: Bytes::from_static(body),
                ..Row::default()
            };
            Entry::new(stamp, SystemTime::now(), row)
        };
        let (before, same, other) = (entry(100, b"[]"), entry(110, b"[]"), entry(110, b"[1]"));
        assert!(!cache.is_alike(&question, &before, &same), "no change");
        view.heard.raise(question.cells[0], Lsn(110));
        assert!(cache.is_alike(&question, &before, &same));
        assert!(!cache.is_alike(&question, &before, &other));
    }

    #[tokio::test]
    async fn what_is_purged_does_not_come_back_with_a_read_that_was_under_way() {
        let (cache, question) = (cache(), question());
        let other = Question {
            tenant: TenantId(uuid::Uuid::from_u128(2)),
            key: Key::for_test(2),
            ..question.clone()
        };
        let view = cache.coherence.heard_for_test(&question.shard, G, Lsn(100));
        let held = |question: &Question| cache.local.get(&question.key).is_some();
        for question in [&question, &other] {
            keep(&cache, question, 100, SystemTime::now());
        }
        cache.purge(Some(question.tenant), None).await.unwrap();
        assert!(!held(&question) && held(&other));
        // Its read began before.
        keep(&cache, &question, 100, SystemTime::now());
        assert!(!held(&question));
        view.heard.advance(Lsn(101));
        keep(&cache, &question, 101, SystemTime::now());
        assert!(held(&question));
    }

    #[test]
    fn fills_that_answer_while_they_are_old_are_worth_making() {
        let (cache, question) = (cache(), question());
        cache.coherence.heard_for_test(&question.shard, G, Lsn(100));
        for round in 0..5_000 {
            assert!(cache.is_worth_a_fill(&question), "after {round}");
            cache.fills_from_shard(&question);
            keep(&cache, &question, 100, SystemTime::now());
            for _ in 0..2 {
                assert!(cache.local_old(&question, HOUR, None).is_some());
            }
        }
    }

    #[test]
    fn fills_that_others_join_are_worth_making() {
        let (cache, question) = (cache(), question());
        let made = |joiners: usize| {
            let fills = (0..5_000).filter(|_| {
                let made = cache.is_worth_a_fill(&question);
                if made {
                    cache.fills_from_shard(&question);
                }
                (0..joiners).for_each(|_| cache.joined(&question));
                made
            });
            fills.count()
        };
        assert_eq!(made(2), 5_000);
        assert!(cache.is_worth_a_fill(&question));
    }
}
