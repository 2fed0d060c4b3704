//! Who is a shard's primary, and who takes its place: what an HA manager knows.

use std::time::Duration;

use futures_util::future::join_all;
use ops::local::{Cluster, NodeState};
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::Failure;

/// A node that takes longer to answer is none. Long, for the one that has all that was
/// acknowledged must not be left out for being slow.
const LOOK_MAX: Duration = Duration::from_secs(20);

/// A primary's timeline, none of a replica; and up to where either has the log.
const QUESTION: &str = "
    select case when not pg_is_in_recovery()
        then ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end,
      ((case when pg_is_in_recovery()
        then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
        else pg_current_wal_lsn() end) - '0/0'::pg_lsn)::int8";

/// A node, as it shows itself.
struct Seen {
    name: String,
    timeline: Option<i32>,
    lsn: i64,
}

/// The shard's primary: of several that say so, the one on the latest timeline.
pub(super) async fn primary(cluster: &Cluster, shard: &str) -> Result<String, Failure> {
    let seen = look(cluster, shard, "").await;
    let primaries = seen.into_iter().filter(|node| node.timeline.is_some());
    let latest = primaries.max_by_key(|node| node.timeline);
    Ok(latest.ok_or(format!("shard {shard} has no primary"))?.name)
}

/// Promotes the replica that has most of what the dead primary wrote. Any of them may
/// have been the one that had a commit before it counted.
pub(super) async fn promote(cluster: &Cluster, shard: &str, dead: &str) -> Result<(), Failure> {
    let seen = look(cluster, shard, dead).await;
    let replicas = seen.into_iter().filter(|node| node.timeline.is_none());
    let heir = replicas.max_by_key(|node| node.lsn);
    let heir = heir.ok_or(format!("shard {shard} has no replica"))?;
    Ok(cluster.promote(&heir.name).await?)
}

/// Former primaries, which are back and take themselves for one still, follow the
/// shard's primary from now on: else it would run out of replicas.
pub(super) async fn reunite(cluster: &Cluster, shard: &str) -> Result<(), Failure> {
    let primary = primary(cluster, shard).await?;
    let seen = look(cluster, shard, &primary).await;
    for former in seen.iter().filter(|node| node.timeline.is_some()) {
        cluster.kill(&former.name).await?;
        cluster.follow(&former.name, &primary).await?;
    }
    Ok(())
}

/// The shard's nodes that answer, but for one.
async fn look(cluster: &Cluster, shard: &str, but: &str) -> Vec<Seen> {
    let status = cluster.status();
    let is_up = |name: &str| {
        let mut up = status.iter().filter(|node| node.state == NodeState::Up);
        up.any(|node| node.name == name)
    };
    let nodes = cluster
        .nodes()
        .iter()
        .filter(|node| node.shard() == Some(shard) && node.name != but && is_up(&node.name));
    let looks = nodes.map(async |node| {
        let seen = timeout(LOOK_MAX, ask(cluster, &node.name)).await;
        seen.ok()?.ok()
    });
    join_all(looks).await.into_iter().flatten().collect()
}

async fn ask(cluster: &Cluster, node: &str) -> Result<Seen, Failure> {
    let dsn = cluster.shard_dsn(node)?;
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await?;
    tokio::spawn(connection);
    let row = client.query_one(QUESTION, &[]).await?;
    Ok(Seen {
        name: node.to_owned(),
        timeline: row.get(0),
        lsn: row.get(1),
    })
}
