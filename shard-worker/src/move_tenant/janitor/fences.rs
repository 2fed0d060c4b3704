//! Fences that a move prepared on a shard and left behind: `fenced`, where the tenant
//! is served by another shard. They hold up the next move to that shard. One goes only
//! where the shard that the control database names serves the tenant at its epoch, and
//! no open job is about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tenancy::control::ShardInfo;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::app::App;
use crate::doctor::{Placed, open, placed};
use crate::error::Error;
use crate::reconcile;
use crate::shard::ShardError;

/// One that was changed since is left alone: a move's row is there before it arms.
const UNTOUCHED_MIN: Duration = Duration::from_secs(60);

/// Removes those of a shard; the tenants.
pub(super) async fn sweep(
    app: &App,
    shards: &[ShardInfo],
    shard: &ShardInfo,
    client: &Client,
) -> Result<Vec<Uuid>, Error> {
    let found = find(client).await.map_err(ShardError::Postgres)?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    // Looked at after what was found: whatever began before has its row by now.
    let busy = open(app).await?.tenants;
    let ids = found.iter().map(|(tenant, _)| *tenant).collect();
    let placed = placed(app, &shard.id, ids).await?;
    // Each shard is asked once.
    let mut homes: BTreeMap<&str, BTreeMap<Uuid, &Placed>> = BTreeMap::new();
    for (tenant, _) in &found {
        let home = placed.get(tenant).filter(|_| !busy.contains(tenant));
        if let Some(home) = home.filter(|home| home.shard != shard.id) {
            homes.entry(&home.shard).or_default().insert(*tenant, home);
        }
    }
    let mut removed = Vec::new();
    for (home, tenants) in homes {
        let served = served(app, shards, home, &tenants).await?;
        for (tenant, epoch) in found.iter().filter(|(tenant, _)| served.contains(tenant)) {
            let sql = "delete from ringfence.fence where tenant_id = $1 and epoch = $2
                and state = 'fenced' and changed_at < now() - $3 * interval '1 second'";
            let after = UNTOUCHED_MIN.as_secs_f64();
            let gone = client.execute(sql, &[tenant, epoch, &after]).await;
            if gone.map_err(ShardError::Postgres)? > 0 {
                removed.push(*tenant);
            }
        }
    }
    Ok(removed)
}

async fn find(client: &Client) -> Result<Vec<(Uuid, i64)>, tokio_postgres::Error> {
    let sql = "select tenant_id, epoch from ringfence.fence
        where state = 'fenced' and changed_at < now() - $1 * interval '1 second'";
    let rows = client.query(sql, &[&UNTOUCHED_MIN.as_secs_f64()]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The shard that the control database names serves the tenant, at that epoch.
pub(crate) async fn serves(
    app: &App,
    shards: &[ShardInfo],
    home: &Placed,
    tenant: Uuid,
) -> Result<bool, Error> {
    let tenants = BTreeMap::from([(tenant, home)]);
    let served = served(app, shards, &home.shard, &tenants).await?;
    Ok(served.contains(&tenant))
}

/// Those of its tenants that a shard serves, at their epochs.
async fn served(
    app: &App,
    shards: &[ShardInfo],
    home: &str,
    tenants: &BTreeMap<Uuid, &Placed>,
) -> Result<BTreeSet<Uuid>, Error> {
    let live = tenants
        .iter()
        .filter(|(_, placed)| matches!(placed.state.as_str(), "active" | "suspended"));
    let (ids, epochs): (Vec<Uuid>, Vec<i64>) = live.map(|(id, placed)| (*id, placed.epoch)).unzip();
    let info = shards.iter().find(|info| info.id == home);
    let Some(info) = info.filter(|_| !ids.is_empty()) else {
        return Ok(BTreeSet::new());
    };
    let nodes = reconcile::addresses(info);
    let client = app.logins.as_mover(&info.id, &nodes).await?;
    let sql = "select f.tenant_id from ringfence.fence f
        join unnest($1::uuid[], $2::bigint[]) t (id, epoch) on f.tenant_id = t.id and f.epoch = t.epoch
        where f.state = 'active'";
    let rows = client.query(sql, &[&ids, &epochs]).await;
    let rows = rows.map_err(ShardError::Postgres)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
