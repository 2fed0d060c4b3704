//! Observes every node: role, timeline, position and lag, several times a
//! second over a connection of its own; what was seen goes into the control
//! database once a second, by the one worker that holds the lease.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::try_join_all;
use tenancy::control::{Control, NewNode, Observation, Seen, ShardInfo};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::shard::{Logins, ShardError};
use tenancy::chain;
use tenancy::tls::Tls;

const LOOK: Duration = Duration::from_millis(250);
const LOOK_MAX: Duration = Duration::from_secs(1);
const REPORT: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(3);

/// One round trip: cheap on the node, and complete.
const QUESTION: &str = "
    select not pg_is_in_recovery() as primary,
      (select system_identifier from pg_control_system())::text as system_id,
      case when pg_is_in_recovery()
        then coalesce((select received_tli from pg_stat_wal_receiver), (select timeline_id from pg_control_checkpoint()))
        else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end as timeline,
      (case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), '0/0') else pg_current_wal_lsn() end
        - '0/0'::pg_lsn)::text as lsn";

/// What was last seen of each node, by its name.
type Sightings = Arc<Mutex<HashMap<String, Result<Seen, String>>>>;

/// Observes until `stop`; runs on every worker, reports from one.
pub async fn observe(control: Control, logins: Logins, owner: String, stop: CancellationToken) {
    let sightings = Sightings::default();
    let mut watchers: HashMap<String, (String, u16, CancellationToken)> = HashMap::new();
    let mut tick = interval(REPORT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        match control.take_lease("nodes", &owner, LEASE).await {
            Ok(true) => {}
            Ok(false) => {
                for (_, (_, _, watcher)) in watchers.drain() {
                    watcher.cancel();
                }
                continue;
            }
            Err(error) => {
                tracing::debug!(error = %chain(&error), "no lease on the nodes");
                continue;
            }
        }
        let nodes = match control.nodes().await {
            Ok(nodes) => nodes,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "nodes can't be read");
                continue;
            }
        };
        watchers.retain(|name, (host, port, watcher)| {
            let kept = nodes
                .iter()
                .any(|node| node.name == *name && node.host == *host && node.port == *port);
            if !kept {
                watcher.cancel();
            }
            kept
        });
        for node in &nodes {
            if watchers.contains_key(&node.name) {
                continue;
            }
            let watcher = stop.child_token();
            tokio::spawn(watch(
                node.name.clone(),
                (
                    node_config(&logins, &node.host, node.port),
                    logins.tls.clone(),
                ),
                sightings.clone(),
                watcher.clone(),
            ));
            watchers.insert(node.name.clone(), (node.host.clone(), node.port, watcher));
        }
        let shards: HashMap<&str, &str> = nodes
            .iter()
            .map(|node| (node.name.as_str(), node.shard.as_str()))
            .collect();
        let observations = report(&sightings, &shards);
        if let Err(error) = control.observe(&observations).await {
            tracing::warn!(error = %chain(&error), "what was seen of nodes can't be written");
        }
    }
    let _ = control.release_lease("nodes", &owner).await;
}

/// What was seen since the last report, with each replica's lag.
fn report(sightings: &Sightings, shards: &HashMap<&str, &str>) -> Vec<Observation> {
    let mut seen = sightings.lock().unwrap_or_else(|p| p.into_inner());
    let mut heads: HashMap<&str, u64> = HashMap::new();
    for (node, sighting) in seen.iter() {
        if let (Ok(sighting), Some(shard)) = (sighting, shards.get(node.as_str()))
            && sighting.primary
        {
            heads.insert(shard, sighting.lsn);
        }
    }
    let with_lag = |(node, sighting): (String, Result<Seen, String>)| {
        let head = shards.get(node.as_str()).and_then(|shard| heads.get(shard));
        Observation {
            seen: sighting.map(|seen| Seen {
                lag_bytes: head
                    .filter(|_| !seen.primary)
                    .map(|head| head.saturating_sub(seen.lsn) as i64),
                ..seen
            }),
            node,
        }
    };
    seen.drain().map(with_lag).collect()
}

/// Looks at nodes of a shard that is in use before routers are told of them: each that
/// is new or has moved must answer, and be a copy of the shard's others.
///
/// # Errors
/// [`ShardError::NotTaken`], of the first that can't be taken.
pub async fn look_before_use(
    logins: &Logins,
    shard: &ShardInfo,
    nodes: &[NewNode],
) -> Result<(), ShardError> {
    let is_known = |node: &NewNode| {
        let mut known = shard.nodes.iter();
        known.any(|k| k.name == node.name && k.host == node.host && k.port == node.port)
    };
    let system = shard.nodes.iter().find_map(|k| k.system_id.as_deref());
    let looks = nodes
        .iter()
        .filter(|node| !is_known(node))
        .map(async |node| {
            let config = node_config(logins, &node.host, node.port);
            let reason = match timeout(LOOK_MAX, look(&config, &logins.tls, &mut None)).await {
                Ok(Ok(seen)) if system.is_none_or(|system| system == seen.system_id) => {
                    return Ok(());
                }
                Ok(Ok(seen)) => format!("it is a copy of another server, {}", seen.system_id),
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("no answer within {LOOK_MAX:?}"),
            };
            Err(ShardError::NotTaken {
                shard: shard.id.clone(),
                node: node.name.clone(),
                host: node.host.clone(),
                port: node.port,
                reason,
            })
        });
    try_join_all(looks).await.map(drop)
}

async fn watch(
    node: String,
    (config, tls): (tokio_postgres::Config, Tls),
    sightings: Sightings,
    stop: CancellationToken,
) {
    let mut client = None;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let looked = timeout(LOOK_MAX, look(&config, &tls, &mut client)).await;
        let sighting = match looked {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {LOOK_MAX:?}")),
        };
        if sighting.is_err() {
            client = None;
        }
        sightings
            .lock()
            .unwrap_or_else(|p| p.into_inner())
            .insert(node.clone(), sighting);
    }
}

async fn look(
    config: &tokio_postgres::Config,
    tls: &Tls,
    client: &mut Option<Client>,
) -> Result<Seen, tokio_postgres::Error> {
    let connected = match client.take() {
        Some(client) => client,
        None => {
            let (client, connection) = tls.connect(config).await?;
            tokio::spawn(connection);
            client
        }
    };
    let row = connected.query_one(QUESTION, &[]).await?;
    let lsn: &str = row.get("lsn");
    let seen = Seen {
        primary: row.get("primary"),
        system_id: row.get("system_id"),
        timeline: row.get("timeline"),
        lsn: lsn.parse().unwrap_or(0),
        lag_bytes: None,
    };
    *client = Some(connected);
    Ok(seen)
}

fn node_config(logins: &Logins, host: &str, port: u16) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host(host)
        .port(port)
        .user("ringfence_worker")
        .dbname(&logins.database)
        .application_name("ringfence-worker nodes")
        .connect_timeout(LOOK_MAX);
    if let Some(password) = &logins.roles.worker {
        config.password(password);
    }
    config
}
