//! The second level: entries in Redis Cluster, for all routers. It is never
//! trusted: what comes out of it is judged like any other entry, so it may be
//! down, empty, full of old copies, or another cluster than yesterday.
//!
//! redis-rs' cluster client waits for ever on a frozen master with its own
//! settings, and with tight ones it goes on asking the frozen node after another
//! took over: a timeout makes it look at nothing anew. So no request waits here
//! longer than [`WAIT_MAX`], what keeps failing is left alone for a while by
//! groups of slots, and a watchdog connects anew when commands fail.
//!
//! Each runtime that serves has connections of its own ([`crate::threads`]): an
//! answer that comes on another one costs two wake-ups of a thread, which is more
//! than all else that it costs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, TlsCertificates, Value};
use tenancy::id::TenantId;
use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::entry::Entry;
use super::key::Key;
use crate::event::metrics::SharedMetrics;

/// Longest wait of a request for Redis, of all its commands together.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// A command that waited for so long in vain has failed. One that was given less,
/// because others of its request took their time, says nothing of the node.
const SLOW: Duration = Duration::from_millis(25);
/// How long an entry is kept that nobody replaces.
const KEPT: Duration = Duration::from_secs(3_600);
/// How long a router may take for a fill before another begins one, too.
const LEASE: Duration = Duration::from_millis(150);
/// When a router looks whether another's fill has come, each time after the last,
/// for as long as its request may wait.
const LEASE_WAIT: [Duration; 5] = [
    Duration::from_millis(3),
    Duration::from_millis(6),
    Duration::from_millis(10),
    Duration::from_millis(12),
    Duration::from_millis(12),
];
/// Entries on their way to Redis at once; more are not sent.
const WRITES_MAX: usize = 128;
/// Longest time that a purge takes.
pub const PURGE_MAX: Duration = Duration::from_secs(20);
/// Names that a master looks at for one command of a purge.
const PURGE_STEP: u32 = 1_000;
/// Longest wait for a new client's first connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Pauses between new clients while commands fail.
const REBUILD_FIRST: Duration = Duration::from_millis(250);
const REBUILD_MAX: Duration = Duration::from_secs(4);

/// The connections to Redis Cluster.
pub struct Shared {
    client: ClusterClient,
    runtimes: Vec<Handle>,
    connections: ArcSwap<Connections>,
    groups: [Group; GROUPS],
    writes: Arc<Semaphore>,
    /// A command failed: the watchdog is to look.
    failed: Notify,
    /// A command was answered since clients were built last.
    answered: AtomicBool,
    metrics: SharedMetrics,
    started: Instant,
}

/// By the runtime that watches their sockets.
type Connections = HashMap<runtime::Id, ClusterConnection>;

/// Slots are judged by groups: a lost master must not take the others' away.
const GROUPS: usize = 64;
/// Failures in a row that open a group's breaker.
const FAILURES_MAX: u32 = 3;
/// How long it stays open before one command tries again.
const OPEN_FOR: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Group {
    failures: AtomicU32,
    /// Milliseconds since `started`, from when on a command may try.
    closed_until: AtomicU64,
    trying: AtomicBool,
}

/// What is left of the time that a request may wait for Redis.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Instant);

impl Patience {
    /// All of it, from now on.
    pub fn begin() -> Self {
        Self(Instant::now() + WAIT_MAX)
    }
}

/// Whose fill it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillLease {
    /// This router's. Also where Redis can't say.
    Ours,
    /// Another router has begun one.
    Theirs,
}

impl Shared {
    /// Connects in the background, and again whenever commands fail, each of
    /// `runtimes` for what is asked there. `authority` signs the nodes'
    /// certificates, where the web's do not.
    ///
    /// # Errors
    /// The addresses are none, or the authority is no certificate.
    pub fn start(
        urls: &[String],
        password: Option<&str>,
        authority: Option<Vec<u8>>,
        runtimes: Vec<Handle>,
        metrics: SharedMetrics,
        stop: CancellationToken,
    ) -> RedisResult<Arc<Self>> {
        let mut builder = ClusterClientBuilder::new(urls.iter().map(String::as_str))
            .connection_timeout(Duration::from_millis(250))
            .response_timeout(Duration::from_millis(100))
            .overall_response_timeout(Some(Duration::from_millis(300)))
            .retries(3)
            .min_retry_wait(10)
            .max_retry_wait(100);
        if let Some(password) = password {
            builder = builder.password(password);
        }
        if let Some(root_cert) = authority {
            builder = builder.certs(TlsCertificates {
                client_tls: None,
                root_cert: Some(root_cert),
            });
        }
        let shared = Arc::new(Self {
            client: builder.build()?,
            runtimes,
            connections: ArcSwap::default(),
            groups: std::array::from_fn(|_| Group::default()),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            failed: Notify::new(),
            answered: AtomicBool::new(false),
            metrics,
            started: Instant::now(),
        });
        tokio::spawn(stop.run_until_cancelled_owned(shared.clone().watch()));
        Ok(shared)
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        !self.connections.load().is_empty()
    }

    /// This runtime's connection, or another's where it has none.
    fn connection(&self) -> Option<ClusterConnection> {
        let all = self.connections.load();
        let own = all.get(&Handle::current().id());
        own.or_else(|| all.values().next()).cloned()
    }

    /// The tenant's entry of that key, whatever it is worth.
    pub async fn get(&self, tenant: TenantId, key: &Key, patience: Patience) -> Option<Entry> {
        let name = name(tenant, key);
        let mut command = redis::cmd("GET");
        command.arg(&name);
        let value: Option<Vec<u8>> = self.ask(&name, command, patience).await?;
        let entry = value.and_then(|value| Entry::decode(key, &value));
        match entry {
            Some(_) => self.metrics.found.increment(1),
            None => self.metrics.missed.increment(1),
        }
        entry
    }

    /// Sends a tenant's entry, in the background; not one that is not `wanted`
    /// any longer once it may be sent ([`Self::purge`] waits for those that are).
    pub fn put(
        self: &Arc<Self>,
        tenant: TenantId,
        key: Key,
        entry: Arc<Entry>,
        wanted: impl FnOnce() -> bool,
    ) {
        let Ok(permit) = self.writes.clone().try_acquire_owned() else {
            self.metrics.skipped.increment(1);
            return;
        };
        if !wanted() {
            return;
        }
        let shared = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Some(value) = entry.encode(&key) {
                let name = name(tenant, &key);
                let mut command = redis::cmd("SET");
                let kept = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
                command.arg(&name).arg(value).arg("PX").arg(kept);
                let _: Option<()> = shared.ask(&name, command, Patience::begin()).await;
            }
            let lease = lease_name(&key);
            let mut command = redis::cmd("DEL");
            command.arg(&lease);
            let _: Option<()> = shared.ask(&lease, command, Patience::begin()).await;
        });
    }

    /// Removes a tenant's entries, or all; how many. None that this router was
    /// sending when it was called is there afterwards.
    ///
    /// # Errors
    /// What may be left is not known: it is worth another call, or ends by itself.
    pub async fn purge(&self, tenant: Option<TenantId>) -> Result<u64, PurgeError> {
        let purged = timeout(PURGE_MAX, self.purge_whole(tenant)).await;
        purged.unwrap_or(Err(PurgeError::Slow))
    }

    async fn purge_whole(&self, tenant: Option<TenantId>) -> Result<u64, PurgeError> {
        let all = u32::try_from(WRITES_MAX).unwrap_or(u32::MAX);
        drop(self.writes.acquire_many(all).await);
        let mut connection = self.connection().ok_or(PurgeError::NotConnected)?;
        let pattern = match tenant {
            Some(tenant) => format!("{}*", tenants(tenant)),
            None => format!("{ENTRIES}*"),
        };
        let mut removed = 0;
        for (host, port) in masters(&mut connection).await? {
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(&pattern);
                scan.arg("COUNT").arg(PURGE_STEP);
                let host = host.clone();
                let node = SingleNodeRoutingInfo::ByAddress { host, port };
                let found = connection.route_command(scan, RoutingInfo::SingleNode(node));
                let names: Vec<Vec<u8>>;
                (cursor, names) =
                    redis::from_redis_value(found.await?).map_err(RedisError::from)?;
                if !names.is_empty() {
                    let mut unlink = redis::cmd("UNLINK");
                    unlink.arg(names);
                    removed += unlink.query_async::<u64>(&mut connection).await?;
                }
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Asks for the right to fill, which ends by itself.
    pub async fn lease(&self, key: &Key, patience: Patience) -> FillLease {
        let name = lease_name(key);
        let mut command = redis::cmd("SET");
        let kept = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        command.arg(&name).arg(1).arg("NX").arg("PX").arg(kept);
        let answer: Option<Option<String>> = self.ask(&name, command, patience).await;
        match answer {
            Some(None) => FillLease::Theirs,
            Some(Some(_)) | None => FillLease::Ours,
        }
    }

    /// Looks a few times whether another router's fill has come.
    pub async fn wait_for(
        &self,
        tenant: TenantId,
        key: &Key,
        patience: Patience,
        fits: impl Fn(&Entry) -> bool,
    ) -> Option<Entry> {
        for pause in LEASE_WAIT {
            sleep_until(patience.0.min(Instant::now() + pause)).await;
            if Instant::now() >= patience.0 {
                return None;
            }
            let entry = self.get(tenant, key, patience).await;
            if let Some(entry) = entry.filter(|entry| fits(entry)) {
                return Some(entry);
            }
        }
        None
    }

    /// The answer, in time, of a command about what has that name; none where
    /// there is none.
    async fn ask<T: FromRedisValue>(
        &self,
        name: &str,
        command: Cmd,
        patience: Patience,
    ) -> Option<T> {
        let begun = Instant::now();
        if begun >= patience.0 {
            return None;
        }
        let slot = slot(name.as_bytes());
        let group = &self.groups[usize::from(slot) * GROUPS / SLOTS];
        if !group.allows(self.now()) {
            self.metrics.skipped.increment(1);
            return None;
        }
        let _asked = Asked(group);
        let mut connection = self.connection()?;
        let master = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
        let answer = async {
            let answer = connection.route_command(command, RoutingInfo::SingleNode(master));
            let answer = answer.await?.extract_error()?;
            Ok::<T, RedisError>(redis::from_redis_value(answer)?)
        };
        match timeout_at(patience.0, answer).await {
            Ok(Ok(answer)) => {
                group.succeeded();
                // Looked at first: all threads would write to it all the time.
                if !self.answered.load(Ordering::Relaxed) {
                    self.answered.store(true, Ordering::Relaxed);
                }
                Some(answer)
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "Redis refused a command");
                self.metrics.failed.increment(1);
                group.failed(self.now());
                self.failed.notify_one();
                None
            }
            Err(_) if begun.elapsed() < SLOW => None,
            Err(_) => {
                self.metrics.timed_out.increment(1);
                group.failed(self.now());
                self.failed.notify_one();
                None
            }
        }
    }

    /// Connects at the start and after commands failed, for as long as they do.
    async fn watch(self: Arc<Self>) {
        let mut pause = REBUILD_FIRST;
        loop {
            self.connect().await;
            sleep(pause).await;
            if self.connections.load().len() == self.runtimes.len() {
                let quiet = timeout(REBUILD_MAX, self.failed.notified()).await.is_err();
                if quiet {
                    pause = REBUILD_FIRST;
                    self.failed.notified().await;
                    continue;
                }
            }
            pause = (pause * 2).min(REBUILD_MAX);
        }
    }

    /// Builds a new client for each runtime. The old ones serve until then, while
    /// anybody answers them.
    async fn connect(&self) {
        let answered = self.answered.swap(false, Ordering::Relaxed);
        let connecting = self.runtimes.iter().map(|runtime| {
            let client = self.client.clone();
            // There, for it is where the client's tasks will run.
            let connected = runtime
                .spawn(async move { timeout(CONNECT_MAX, client.get_async_connection()).await });
            async move { (runtime.id(), connected.await) }
        });
        let mut connections = Connections::clone(&self.connections.load());
        for (runtime, connected) in join_all(connecting).await {
            match connected {
                Ok(Ok(Ok(connection))) => {
                    connections.insert(runtime, connection);
                    self.metrics.connected.increment(1);
                }
                Ok(Ok(Err(error))) => {
                    tracing::debug!(%error, "no connection to Redis");
                    // One that reaches nobody may try without a pause, on a thread
                    // that serves.
                    if !answered {
                        connections.remove(&runtime);
                    }
                }
                Ok(Err(_)) => tracing::debug!("Redis does not answer"),
                Err(error) => tracing::debug!(%error, "nobody connects to Redis"),
            }
        }
        self.connections.store(Arc::new(connections));
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Group {
    fn allows(&self, now: u64) -> bool {
        if self.failures.load(Ordering::Relaxed) < FAILURES_MAX {
            return true;
        }
        now >= self.closed_until.load(Ordering::Relaxed)
            && !self.trying.swap(true, Ordering::Relaxed)
    }

    fn failed(&self, now: u64) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let open = u64::try_from(OPEN_FOR.as_millis()).unwrap_or(u64::MAX);
        self.closed_until.store(now + open, Ordering::Relaxed);
        self.trying.store(false, Ordering::Relaxed);
    }

    /// Neither, if nothing was said before: another may try.
    fn gave_up(&self) {
        // Looked at first: all threads would write to it all the time.
        if self.trying.load(Ordering::Relaxed) {
            self.trying.store(false, Ordering::Relaxed);
        }
    }

    fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.trying.store(false, Ordering::Relaxed);
        }
    }
}

/// A command under way. Its request may end before it: then it says nothing of Redis,
/// and must not keep others from trying.
struct Asked<'a>(&'a Group);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.gave_up();
    }
}

/// Why not all was purged.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// There is no connection.
    #[error("there is no connection to Redis")]
    NotConnected,
    /// Time was over.
    #[error("Redis did not answer in time")]
    Slow,
    /// A node refused a command, or was lost.
    #[error("Redis failed")]
    Redis(#[from] RedisError),
}

/// The nodes that hold slots, by the addresses under which the client knows them.
async fn masters(connection: &mut ClusterConnection) -> RedisResult<Vec<(String, u16)>> {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    // (first slot, last slot, (host, port, …) of its master, … of its replicas).
    let node = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
    let ranges = connection.route_command(command, node).await?;
    let ranges: Vec<Vec<Value>> = redis::from_redis_value(ranges)?;
    let mut masters = Vec::new();
    for range in ranges {
        let master = range.into_iter().nth(2).unwrap_or(Value::Nil);
        let mut master = redis::from_redis_value::<Vec<Value>>(master)?.into_iter();
        let mut next = || master.next().unwrap_or(Value::Nil);
        let host: String = redis::from_redis_value(next())?;
        let port: u16 = redis::from_redis_value(next())?;
        masters.push((host, port));
    }
    masters.sort();
    masters.dedup();
    Ok(masters)
}

/// What the names of all entries begin with.
const ENTRIES: &str = "rf1:";

/// What the names of a tenant's entries begin with. No braces: they would gather
/// a tenant's in one slot.
fn tenants(tenant: TenantId) -> String {
    format!("{ENTRIES}{}:", tenant.0.simple())
}

fn name(tenant: TenantId, key: &Key) -> String {
    named(tenants(tenant), key)
}

fn lease_name(key: &Key) -> String {
    named("rf1-fill:".to_owned(), key)
}

/// With the key in hexadecimal.
fn named(mut name: String, key: &Key) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    name.reserve_exact(64);
    for byte in key.bytes() {
        name.push(digit(byte >> 4));
        name.push(digit(byte & 15));
    }
    name
}

const SLOTS: usize = 16_384;

/// Redis Cluster's slot of a key without braces: CRC16 (XMODEM), modulo 16,384.
fn slot(key: &[u8]) -> u16 {
    let crc = key.iter().fold(0_u16, |crc, byte| {
        crc << 8 ^ CRC16[usize::from(crc >> 8) ^ usize::from(*byte)]
    });
    crc % 16_384
}

/// What each byte does to a CRC.
const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = match crc & 0x8000 {
                0 => crc << 1,
                _ => crc << 1 ^ 0x1021,
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_redis_own() {
        // CLUSTER KEYSLOT foo; CLUSTER KEYSLOT 123456789
        assert_eq!((slot(b"foo"), slot(b"123456789")), (12_182, 12_739));
        let (tenant, key) = (TenantId(uuid::Uuid::from_u128(7)), Key::for_test(0x7b));
        let name = name(tenant, &key);
        assert_ne!(name, lease_name(&key));
        assert!(name.starts_with(&tenants(tenant)) && !name.contains('{'));
    }

    #[test]
    fn a_failing_group_is_left_alone_and_tried_by_one() {
        let group = Group::default();
        for _ in 0..FAILURES_MAX {
            assert!(group.allows(0));
            group.failed(0);
        }
        assert!(!group.allows(499));
        assert!(group.allows(500) && !group.allows(500));
        group.failed(500);
        assert!(!group.allows(999) && group.allows(1_000));
        drop(Asked(&group));
        assert!(group.allows(1_000), "whoever tried did not come to it");
        group.succeeded();
        assert!(group.allows(1_000) && group.allows(1_000));
    }
}
