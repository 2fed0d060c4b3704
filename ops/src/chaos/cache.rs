//! Faults of everything that the caches are made of, at random, one after
//! another, under load: the load tester's checks hold for what routers wrote, and
//! a writer of its own changes a row by SQL, which readers must see within the
//! stated bound.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ops::local::{Cluster, Condition};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;

use super::{Failure, PRIMARY, REPLICA};

/// A change by SQL is seen by every read that begins so long after it: the
/// staleness bound of 250 ms, 1 % of drift, and 50 ms for this program's own
/// clock readings on a busy machine.
const BOUND: Duration = Duration::from_millis(303);
/// Longest wait of a reader for an answer; it may be held meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    RouterKilled,
    RouterPaused,
    WorkerKilled,
    WorkerPaused,
    /// Nothing that the worker says arrives at a router, and the other way round.
    StreamCut,
    /// It arrives late, near to the bound or beyond it.
    StreamSlow,
    RedisKilled,
    RedisFrozen,
    RedisFlushed,
    RedisRestored,
    RedisResharded,
    ReplicaPaused,
    PromotedAway,
}

const BREAKS: [Break; 13] = [
    Break::RouterKilled,
    Break::RouterPaused,
    Break::WorkerKilled,
    Break::WorkerPaused,
    Break::StreamCut,
    Break::StreamSlow,
    Break::RedisKilled,
    Break::RedisFrozen,
    Break::RedisFlushed,
    Break::RedisRestored,
    Break::RedisResharded,
    Break::ReplicaPaused,
    Break::PromotedAway,
];

impl Break {
    /// Whether requests may fail while it lasts: of a dead or frozen router its own
    /// clients', until it serves again (`router/src/main.rs`); of a primary's end
    /// those that are held for longer than they wait (`router/src/hold.rs`). Whatever
    /// else breaks costs time, and no request: Redis 50 ms a request
    /// (`router/src/cache/shared.rs`), the worker and its stream the caches alone, for
    /// as long as there is no lease (`router/src/coherence/cells.rs`).
    fn fails_requests(self) -> bool {
        matches!(
            self,
            Self::RouterKilled | Self::RouterPaused | Self::PromotedAway
        )
    }
}

/// Whole seconds of a clock that a break of this length can touch, and the one in
/// which the last of its requests end.
fn touched(lasted: Duration) -> u64 {
    lasted.as_secs() + 3
}

/// What the readers of changed rows saw.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// Reads answered.
    pub(super) reads: AtomicU64,
    /// Of them from a cache.
    pub(super) hits: AtomicU64,
    /// Of them older than the bound.
    pub(super) stale: AtomicU64,
    /// Breaks made.
    pub(super) breaks: AtomicU64,
    /// Seconds of the load in which requests may have failed.
    pub(super) seconds_without: AtomicU64,
}

/// Changes that were committed: (value, when COMMIT had returned).
type Committed = Arc<Mutex<Vec<(u64, Instant)>>>;

/// Breaks things for `duration`, and watches.
pub(super) async fn suffer(
    cluster: &Cluster,
    routers: u16,
    duration: Duration,
) -> Result<Freshness, Failure> {
    let seen = Arc::new(Freshness::default());
    let stop = Arc::new(AtomicBool::new(false));
    let primary = Arc::new(Mutex::new(PRIMARY));
    let committed = Committed::default();
    prepare(cluster).await?;

    let mut tasks = JoinSet::new();
    for router in 0..usize::from(routers) {
        let url = format!(
            "{}/rest/v1/chaos_notes?select=n&id=eq.1",
            cluster.router_url(router)
        );
        let key = cluster.key("acme").unwrap_or_default();
        let (seen, stop, committed) = (seen.clone(), stop.clone(), committed.clone());
        tasks.spawn(async move { watch(&url, &key, &seen, &stop, &committed).await });
    }
    let broken = {
        let changes = change(cluster, &primary, &stop, &committed);
        let breaks = break_things(cluster, routers, &primary, &seen, duration);
        tokio::pin!(changes);
        tokio::select! {
            () = &mut changes => Err("the writer ended early".into()),
            broken = breaks => broken,
        }
    };
    stop.store(true, Ordering::Relaxed);
    while tasks.join_next().await.is_some() {}
    broken?;
    Arc::try_unwrap(seen).map_err(|_| "a reader is still there".into())
}

async fn prepare(cluster: &Cluster) -> Result<(), Failure> {
    let client = connect(cluster, PRIMARY).await?;
    client
        .batch_execute(
            "create table chaos_notes (id bigint primary key, n bigint not null);
             select ringfence.distribute('chaos_notes');
             insert into chaos_notes (tenant_id, id, n)
               select distinct c.tenant_id, 1, 0 from companies c",
        )
        .await?;
    Ok(())
}

async fn connect(cluster: &Cluster, node: &str) -> Result<tokio_postgres::Client, Failure> {
    let dsn = cluster.shard_dsn(node)?;
    let connected = timeout(Duration::from_secs(2), tokio_postgres::connect(&dsn, NoTls));
    let (client, connection) = connected.await??;
    tokio::spawn(connection);
    Ok(client)
}

/// Changes the row by SQL, twenty times a second, wherever the primary is.
async fn change(
    cluster: &Cluster,
    primary: &Mutex<&'static str>,
    stop: &AtomicBool,
    committed: &Committed,
) {
    let mut client = None;
    let mut n = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50)).await;
        let node = *lock(primary);
        let (connected, of) = match client.take() {
            Some((connected, of)) if of == node => (connected, of),
            _ => match connect(cluster, node).await {
                Ok(connected) => (connected, node),
                Err(_) => continue,
            },
        };
        n += 1;
        let text = format!("update chaos_notes set n = {n} where id = 1");
        let done = timeout(Duration::from_secs(5), connected.batch_execute(&text)).await;
        // One that failed may have been committed: it counts for nothing.
        if let Ok(Ok(())) = done {
            lock(committed).push((n, Instant::now()));
            client = Some((connected, of));
        }
    }
}

/// Reads the row through one router, as fast as answers come.
async fn watch(url: &str, key: &str, seen: &Freshness, stop: &AtomicBool, committed: &Committed) {
    let http = reqwest::Client::new();
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(2)).await;
        let begun = Instant::now();
        let floor = {
            let changes = lock(committed);
            let mut known = changes.iter().rev();
            known
                .find(|(_, at)| *at + BOUND <= begun)
                .map_or(0, |(n, _)| *n)
        };
        let asked = http.get(url).header("apikey", key).timeout(ANSWER_MAX);
        let Ok(answer) = asked.send().await else {
            continue;
        };
        let from = answer.headers().get("ringfence-cache").cloned();
        let from_cache = from
            .as_ref()
            .is_some_and(|from| from == "l1" || from == "l2");
        let Ok(body) = answer.json::<serde_json::Value>().await else {
            continue;
        };
        let Some(n) = body[0]["n"].as_u64() else {
            continue;
        };
        seen.reads.fetch_add(1, Ordering::Relaxed);
        seen.hits
            .fetch_add(u64::from(from_cache), Ordering::Relaxed);
        if n < floor {
            seen.stale.fetch_add(1, Ordering::Relaxed);
            eprintln!("· STALE: {n} from {from:?}, when {floor} was committed {BOUND:?} before");
        }
    }
}

async fn break_things(
    cluster: &Cluster,
    routers: u16,
    primary: &Mutex<&'static str>,
    seen: &Freshness,
    duration: Duration,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut copy = Vec::new();
    let mut left: Vec<Break> = Vec::new();
    let mut promoted = false;
    sleep(Duration::from_secs(3)).await;
    while begun.elapsed() < duration {
        if left.is_empty() {
            left = BREAKS.to_vec();
            fastrand::shuffle(&mut left);
        }
        let Some(next) = left.pop() else { break };
        if next == Break::PromotedAway && std::mem::replace(&mut promoted, true) {
            continue;
        }
        eprintln!("· {:>4.0} s: {next:?}", begun.elapsed().as_secs_f64());
        seen.breaks.fetch_add(1, Ordering::Relaxed);
        let lasts = Duration::from_millis(fastrand::u64(300..3_000));
        let router = format!("router-{}", fastrand::u16(1..=routers));
        let since = Instant::now();
        make(next, cluster, &router, primary, lasts, &mut copy).await?;
        if next.fails_requests() {
            let seconds = touched(since.elapsed());
            seen.seconds_without.fetch_add(seconds, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(fastrand::u64(300..1_500))).await;
    }
    Ok(())
}

/// Breaks one thing, and mends it after a while.
async fn make(
    what: Break,
    cluster: &Cluster,
    router: &str,
    primary: &Mutex<&'static str>,
    lasts: Duration,
    copy: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), Failure> {
    let redis = ["redis-1", "redis-2", "redis-3"][fastrand::usize(0..3)];
    let killed = match what {
        Break::RouterKilled => Some(router),
        Break::WorkerKilled => Some("worker-1"),
        Break::RedisKilled => Some(redis),
        _ => None,
    };
    let paused = match what {
        Break::RouterPaused => Some(router),
        Break::WorkerPaused => Some("worker-1"),
        Break::RedisFrozen => Some(redis),
        Break::ReplicaPaused => Some("s1-replica2"),
        _ => None,
    };
    if let Some(node) = killed {
        cluster.kill(node).await?;
        sleep(lasts).await;
        cluster.start_node(node).await?;
    }
    if let Some(node) = paused {
        cluster.stop(node)?;
        sleep(lasts).await;
        cluster.cont(node)?;
    }
    let condition = match what {
        Break::StreamCut => Some(Condition::Cut),
        Break::StreamSlow => Some(Condition::Slow(Duration::from_millis(fastrand::u64(
            20..300,
        )))),
        _ => None,
    };
    if let Some(condition) = condition {
        cluster.set_network("worker-1", condition)?;
        sleep(lasts).await;
        cluster.set_network("worker-1", Condition::Well)?;
    }
    match what {
        Break::RedisFlushed => flush(cluster).await?,
        // An old copy comes back; the first has yet to grow old.
        Break::RedisRestored => {
            if copy.is_empty() {
                *copy = dump(cluster).await?;
                sleep(lasts).await;
            }
            restore(cluster, copy).await?;
        }
        Break::RedisResharded => reshard(cluster).await?,
        Break::PromotedAway => {
            cluster.shut_down(PRIMARY).await?;
            cluster.promote(REPLICA).await?;
            *lock(primary) = REPLICA;
            sleep(lasts).await;
            // It takes itself for the primary still.
            cluster.start_node(PRIMARY).await?;
        }
        _ => {}
    }
    Ok(())
}

/// Longest wait for Redis' command line: slots move one by one.
const REDIS_CLI_MAX: Duration = Duration::from_secs(60);

/// Redis' own command line, on one node.
async fn redis_cli(cluster: &Cluster, url: &str, args: &[&str]) -> Result<Vec<u8>, Failure> {
    let port = url.rsplit(':').next().unwrap_or_default();
    let output = Command::new("redis-cli")
        .args(["-p", port])
        .args(args)
        .env("REDISCLI_AUTH", cluster.redis_password())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    Ok(timeout(REDIS_CLI_MAX, output).await??.stdout)
}

async fn flush(cluster: &Cluster) -> Result<(), Failure> {
    for url in cluster.redis_urls() {
        redis_cli(cluster, &url, &["flushall"]).await?;
    }
    Ok(())
}

/// Slots that change masters while they are used.
const RESHARDED: &str = "200";

/// Moves slots from one master to another. Redis refuses where its nodes have
/// not yet agreed on what was broken before: then nothing moves.
async fn reshard(cluster: &Cluster) -> Result<(), Failure> {
    let urls = cluster.redis_urls();
    let Some(url) = urls.first() else {
        return Ok(());
    };
    let nodes = redis_cli(cluster, url, &["cluster", "nodes"]).await?;
    let nodes = String::from_utf8_lossy(&nodes).into_owned();
    let masters: Vec<&str> = nodes
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (id, flags) = (words.next()?, words.nth(1)?);
            (flags.contains("master") && !flags.contains("fail")).then_some(id)
        })
        .collect();
    let [from, .., to] = masters[..] else {
        return Ok(());
    };
    let address = url.rsplit('/').next().unwrap_or_default();
    let address = address.rsplit('@').next().unwrap_or_default();
    let args = [
        "--cluster",
        "reshard",
        address,
        "--cluster-from",
        from,
        "--cluster-to",
        to,
        "--cluster-slots",
        RESHARDED,
        "--cluster-yes",
    ];
    let said = redis_cli(cluster, url, &args).await?;
    let said = String::from_utf8_lossy(&said).into_owned();
    if said.contains("[ERR]") {
        eprintln!("· the slots stay where they are");
    }
    Ok(())
}

/// As many entries as a stale copy needs.
const COPIED: usize = 300;

async fn dump(cluster: &Cluster) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut copy = Vec::new();
    for url in cluster.redis_urls() {
        let keys = redis_cli(cluster, &url, &["--raw", "keys", "rf1:*"]).await?;
        let keys = String::from_utf8_lossy(&keys).into_owned();
        for key in keys.lines().take(COPIED / 3) {
            let value = redis_cli(cluster, &url, &["--raw", "get", key]).await?;
            // The command line ends each value with a line feed.
            if let Some((_, value)) = value.split_last() {
                copy.push((key.to_owned(), value.to_vec()));
            }
        }
    }
    Ok(copy)
}

async fn restore(cluster: &Cluster, copy: &[(String, Vec<u8>)]) -> Result<(), Failure> {
    use tokio::io::AsyncWriteExt;
    let urls = cluster.redis_urls();
    let Some(url) = urls.first() else {
        return Ok(());
    };
    let port = url.rsplit(':').next().unwrap_or_default();
    for (key, value) in copy {
        let mut child = Command::new("redis-cli")
            .args(["-c", "-p", port, "-x", "set", key])
            .env("REDISCLI_AUTH", cluster.redis_password())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(value).await?;
        }
        timeout(REDIS_CLI_MAX, child.wait()).await??;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}
