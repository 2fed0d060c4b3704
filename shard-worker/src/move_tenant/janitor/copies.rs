//! Slots that tables' copies leave on a shard that could not be reached when their
//! subscription ended. Postgres names them after the subscription and the server that
//! it was on: one is nobody's where that server is a shard's and has no such
//! subscription. What names another server may be anybody's, and stays.

use std::collections::BTreeSet;

use tokio_postgres::Client;

/// What a shard's primary shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Shows {
    pub(super) shard: String,
    /// Its system identifier.
    system: String,
    /// Subscriptions of all its databases.
    subscriptions: BTreeSet<u32>,
    /// Slots that nobody reads just now.
    idle: Vec<String>,
}

pub(super) async fn look(client: &Client, shard: &str) -> Result<Shows, tokio_postgres::Error> {
    let row = client
        .query_one(
            "select (select l.system from ringfence.move_look() l),
               array(select s.oid from pg_subscription s),
               array(select s.slot_name::text from pg_replication_slots s
                 where s.slot_type = 'logical' and not s.active and not s.temporary
                   and s.database = current_database() and s.slot_name like 'pg\\_%\\_sync\\_%')",
            &[],
        )
        .await?;
    let subscriptions: Vec<u32> = row.get(1);
    Ok(Shows {
        shard: shard.to_owned(),
        system: row.get(0),
        subscriptions: subscriptions.into_iter().collect(),
        idle: row.get(2),
    })
}

/// Those that are nobody's: shard and name. Pure.
pub(super) fn orphans(shards: &[Shows]) -> BTreeSet<(String, String)> {
    let mut orphans = BTreeSet::new();
    for shard in shards {
        for slot in &shard.idle {
            let Some((subscription, system)) = owner(slot) else {
                continue;
            };
            let mut owners = shards.iter().filter(|other| other.system == system);
            let is_known = owners.clone().next().is_some();
            if is_known && owners.all(|owner| !owner.subscriptions.contains(&subscription)) {
                orphans.insert((shard.shard.clone(), slot.clone()));
            }
        }
    }
    orphans
}

/// Of `pg_<subscription>_sync_<table>_<system>`.
fn owner(slot: &str) -> Option<(u32, &str)> {
    let parts: Vec<&str> = slot.split('_').collect();
    let ["pg", subscription, "sync", table, system] = parts[..] else {
        return None;
    };
    table.parse::<u32>().ok()?;
    Some((subscription.parse().ok()?, system))
}

/// Drops one, unless someone reads it by now.
pub(super) async fn remove(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    let sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
        where slot_name = $1 and not active";
    client.execute(sql, &[&slot]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_known_server_has_no_subscription_of_is_nobodys() {
        let shard = |shard: &str, system: &str, subscriptions: &[u32], idle: &[&str]| Shows {
            shard: shard.into(),
            system: system.into(),
            subscriptions: subscriptions.iter().copied().collect(),
            idle: idle.iter().map(|slot| (*slot).to_owned()).collect(),
        };
        let idle = [
            "pg_16_sync_400_71",
            "pg_17_sync_400_71",
            "pg_17_sync_400_99",
            "pg_x_sync_400_71",
            "ringfence_capture",
        ];
        let shards = [shard("s1", "70", &[], &idle), shard("s2", "71", &[16], &[])];
        let orphan = ("s1".to_owned(), "pg_17_sync_400_71".to_owned());
        assert_eq!(orphans(&shards), BTreeSet::from([orphan]));
        // Two servers of one identifier: a copy may have it.
        let shards = [shards, [shard("s3", "71", &[17], &[]), Shows::default()]].concat();
        assert!(orphans(&shards).is_empty());
    }
}
