//! Finds what moves left on shards and no open job owns, and removes it: all
//! that a move makes bears its job's id. It is left alone for a while first: a
//! move's row is there before anything of it is. What Postgres itself made for a
//! move bears none, nor do fences ([`copies`], [`fences`]): they go where it is
//! certain that nobody needs them. Rows never go by themselves ([`crate::doctor`]).

mod copies;
pub(crate) mod fences;

use std::collections::BTreeSet;
use std::time::Duration;

use tenancy::control::ShardInfo;
use tokio::time::timeout;
use tokio_postgres::Client;
use uuid::Uuid;

use super::names::PREFIX;
use crate::app::App;
use crate::error::Error;
use crate::job::Kind;
use crate::reconcile;
use crate::shard::ShardError;

/// Something of a move on a shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leftover {
    /// What it is.
    pub kind: Left,
    /// Its name.
    pub name: String,
}

/// What can be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// It fails without its slot.
    Subscription,
    /// It keeps the shard's log.
    Slot,
    /// It costs each change a little.
    Publication,
    /// It holds up moves of its tenant to this shard.
    Fence,
}

/// Longest look at one shard.
const SHARD_MAX: Duration = Duration::from_secs(20);

const FIND: &str = "
    select 'subscription', s.subname::text from pg_subscription s
    where s.subdbid = (select d.oid from pg_database d where d.datname = current_database())
    union all
    select 'slot', s.slot_name::text from pg_replication_slots s where s.database = current_database()
    union all
    select 'publication', p.pubname::text from pg_publication p";

/// Tables' slots that seemed nobody's in the pass before: shard and name.
pub type Suspects = BTreeSet<(String, String)>;

/// One pass over all shards. Returns what was removed.
pub async fn sweep(app: &App, suspects: &mut Suspects) -> Result<Vec<(String, Leftover)>, Error> {
    let shards = app.control.shards().await?;
    let mut removed = Vec::new();
    let mut shown = Vec::new();
    let mut outcome = Ok(());
    for shard in shards.iter().filter(|shard| shard.state != "preparing") {
        match sweep_shard(app, &shards, shard).await {
            Ok((found, shows)) => {
                removed.extend(found.into_iter().map(|left| (shard.id.clone(), left)));
                shown.push(shows);
            }
            // The others need not wait for this one.
            Err(error) => outcome = Err(error),
        }
    }
    // A shard that was not seen may have the subscription.
    let orphans = match outcome {
        Ok(()) => copies::orphans(&shown),
        Err(_) => Suspects::new(),
    };
    for (shard, slot) in orphans.intersection(suspects) {
        if let Some(info) = shards.iter().find(|info| info.id == *shard) {
            let gone = timeout(SHARD_MAX, remove_copy(app, info, slot)).await;
            if let Err(error) = gone.unwrap_or(Err(Error::Shard(ShardError::Slow))) {
                outcome = Err(error);
                continue;
            }
            let left = Leftover {
                kind: Left::Slot,
                name: slot.clone(),
            };
            removed.push((shard.clone(), left));
        }
    }
    *suspects = orphans;
    for (shard, left) in &removed {
        tracing::warn!(shard, ?left, "removed what no move owns");
    }
    outcome.map(|()| removed)
}

async fn remove_copy(app: &App, shard: &ShardInfo, slot: &str) -> Result<(), Error> {
    let nodes = reconcile::addresses(shard);
    let client = app.logins.as_mover(&shard.id, &nodes).await?;
    let gone = copies::remove(&client, slot).await;
    Ok(gone.map_err(ShardError::Postgres)?)
}

type Swept = (Vec<Leftover>, copies::Shows);

async fn sweep_shard(app: &App, shards: &[ShardInfo], shard: &ShardInfo) -> Result<Swept, Error> {
    let swept = timeout(SHARD_MAX, sweep_in_time(app, shards, shard)).await;
    swept.unwrap_or(Err(Error::Shard(ShardError::Slow)))
}

async fn sweep_in_time(app: &App, shards: &[ShardInfo], shard: &ShardInfo) -> Result<Swept, Error> {
    let nodes = reconcile::addresses(shard);
    let client = app.logins.as_mover(&shard.id, &nodes).await?;
    let found = find(&client).await.map_err(ShardError::Postgres)?;
    let mut removed = Vec::new();
    if !found.is_empty() {
        // Looked at after what was found: whatever began before has its row by now.
        let open = open_moves(app).await?;
        removed = orphans(found, &open);
        for left in &removed {
            remove(&client, left).await.map_err(ShardError::Postgres)?;
        }
    }
    for tenant in fences::sweep(app, shards, shard, &client).await? {
        removed.push(Leftover {
            kind: Left::Fence,
            name: tenant.to_string(),
        });
    }
    let shows = copies::look(&client, &shard.id).await;
    Ok((removed, shows.map_err(ShardError::Postgres)?))
}

/// Those of no open job, in the order in which they are removed. Pure.
pub(crate) fn orphans(found: Vec<Leftover>, open: &BTreeSet<Uuid>) -> Vec<Leftover> {
    let mut orphans = found;
    orphans.retain(|left| job(&left.name).is_some_and(|job| !open.contains(&job)));
    orphans.sort();
    orphans
}

/// The job that a name is of.
fn job(name: &str) -> Option<Uuid> {
    Uuid::try_parse(name.strip_prefix(PREFIX)?.get(..32)?).ok()
}

pub(crate) async fn find(client: &Client) -> Result<Vec<Leftover>, tokio_postgres::Error> {
    let rows = client.query(FIND, &[]).await?;
    let left = rows.iter().filter_map(|row| {
        let kind = match row.get::<_, &str>(0) {
            "subscription" => Left::Subscription,
            "slot" => Left::Slot,
            _ => Left::Publication,
        };
        let name: String = row.get(1);
        job(&name).map(|_| Leftover { kind, name })
    });
    Ok(left.collect())
}

async fn open_moves(app: &App) -> Result<BTreeSet<Uuid>, Error> {
    let client = app.control.client().await?;
    let rows = client
        .query(
            "select id from ringfence.job where kind = $1 and not done",
            &[&Kind::Move.name()],
        )
        .await
        .map_err(tenancy::control::ControlError::Postgres)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A slot that is in use, and a publication whose tables have just left it, are
/// for the next pass.
async fn remove(client: &Client, left: &Leftover) -> Result<(), tokio_postgres::Error> {
    let sql = match left.kind {
        Left::Subscription => "select ringfence.move_unsubscribe($1)",
        Left::Slot => {
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots
             where slot_name = $1 and not active"
        }
        Left::Publication => "select ringfence.move_unpublish($1)",
        // By its tenant, where that is certain.
        Left::Fence => return Ok(()),
    };
    client.execute(sql, &[&left.name]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::move_tenant::{Way, names};

    #[test]
    fn only_what_bears_the_id_of_no_open_move_is_removed() {
        let (open, over) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let left = |kind, name: &str| Leftover {
            kind,
            name: name.to_owned(),
        };
        let of = |id| {
            [
                left(Left::Publication, &names::bundle(id, 3, 2, Way::Back)),
                left(Left::Slot, &names::stream(id, Way::Forward)),
                left(Left::Subscription, &names::stream(id, Way::Back)),
                left(Left::Publication, &names::markers(id, Way::Forward)),
            ]
        };
        let others = [
            left(Left::Slot, "ringfence_capture"),
            left(Left::Publication, "ringfence_move_x"),
        ];
        let found = of(open).into_iter().chain(of(over)).chain(others).collect();
        let orphans = orphans(found, &BTreeSet::from([open]));
        assert_eq!(orphans.len(), 4);
        assert_eq!(orphans[0].kind, Left::Subscription);
        assert!(orphans.iter().all(|left| job(&left.name) == Some(over)));
    }
}
