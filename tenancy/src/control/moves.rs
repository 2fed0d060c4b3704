//! Where a tenant lives, changed: the control database follows what its shards
//! have decided.

use std::collections::HashMap;

use serde_json::json;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::fleet::{as_it_is, reseat};
use super::tenants::{find, not_found};
use super::{Actor, Control, ControlError, next_version, write_audit};

/// A tenant's place: a shard, and the placement's number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The shard.
    pub shard: &'a str,
    /// The epoch.
    pub epoch: i64,
}

/// Moves tenants' rows, each from one place to the next, if it is in the first or in
/// the second already: all of them, or none.
///
/// # Errors
/// [`ControlError::Conflict`] where one is in neither.
pub async fn move_tenants(
    transaction: &Transaction<'_>,
    actor: &Actor,
    moves: &[(Uuid, Place<'_>, Place<'_>)],
) -> Result<(), ControlError> {
    let version = next_version(transaction, false).await?;
    let ids: Vec<Uuid> = moves.iter().map(|(id, ..)| *id).collect();
    let rows = transaction
        .query(
            "select id, slug, shard, epoch from ringfence.tenant where id = any($1) order by id for update",
            &[&ids],
        )
        .await?;
    let known: HashMap<Uuid, &Row> = rows.iter().map(|row| (row.get("id"), row)).collect();
    let (mut tenants, mut shards, mut epochs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut slugs, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let audited = |place: &Place<'_>| json!({ "shard": place.shard, "epoch": place.epoch });
    for (id, from, to) in moves {
        let row = known.get(id).ok_or_else(|| not_found(&id.to_string()))?;
        let slug: &str = row.get("slug");
        let is = Place {
            shard: row.get("shard"),
            epoch: row.get("epoch"),
        };
        if is == *to {
            continue;
        }
        if is != *from {
            return Err(ControlError::Conflict(format!(
                "tenant {slug} is on {} at epoch {}, but was moved from {} at {} to {} at {}",
                is.shard, is.epoch, from.shard, from.epoch, to.shard, to.epoch
            )));
        }
        tenants.push(*id);
        shards.push(to.shard);
        epochs.push(to.epoch);
        slugs.push(slug);
        before.push(audited(from));
        after.push(audited(to));
    }
    transaction
        .execute(
            "update ringfence.tenant t set shard = u.shard, epoch = u.epoch, version = $4, exceptional = true
             from unnest($1::uuid[], $2::text[], $3::bigint[]) u (id, shard, epoch) where t.id = u.id",
            &[&tenants, &shards, &epochs, &version],
        )
        .await?;
    transaction
        .execute(
            "insert into ringfence.audit (actor, action, object, before, after, result)
             select $1, 'tenant.move', u.slug, u.before, u.after, 'done'
             from unnest($2::text[], $3::jsonb[], $4::jsonb[]) u (slug, before, after)",
            &[&actor.0, &slugs, &before, &after],
        )
        .await?;
    Ok(())
}

/// A tenant as plans see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its id.
    pub id: Uuid,
    /// Where it lives.
    pub shard: String,
    /// What the ring says.
    pub ring_shard: String,
    /// It stays where it is.
    pub pinned: bool,
}

impl Control {
    /// All tenants that can be moved, in order of their ids.
    pub async fn residents(&self) -> Result<Vec<Resident>, ControlError> {
        let client = self.client().await?;
        let rows = client
            .query(
                "select id, shard, ring_shard, pinned from ringfence.tenant
                 where state in ('active', 'suspended') order by id",
                &[],
            )
            .await?;
        let resident = |row: &tokio_postgres::Row| Resident {
            id: row.get(0),
            shard: row.get(1),
            ring_shard: row.get(2),
            pinned: row.get(3),
        };
        Ok(rows.iter().map(resident).collect())
    }

    /// Those of these tenants that are to stay where they are: their slugs.
    pub async fn pinned(&self, tenants: &[Uuid]) -> Result<Vec<String>, ControlError> {
        let sql = "select slug from ringfence.tenant where id = any($1) and pinned order by slug";
        let rows = self.client().await?.query(sql, &[&tenants]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Has a tenant stay where it is, whatever plans of balance say; or not any longer.
    pub async fn pin(&self, actor: &Actor, name: &str, pinned: bool) -> Result<(), ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let tenant = find(&*transaction, name)
            .await?
            .ok_or_else(|| not_found(name))?;
        let was: bool = transaction
            .query_one(
                "with before as (select pinned from ringfence.tenant where id = $1 for update)
                 update ringfence.tenant t set pinned = $2 from before b where t.id = $1
                 returning b.pinned",
                &[&tenant.id, &pinned],
            )
            .await?
            .get(0);
        let action = match pinned {
            true => "tenant.pin",
            false => "tenant.unpin",
        };
        let place = |pinned: bool| Some(json!({ "shard": tenant.shard, "pinned": pinned }));
        let (before, after) = (place(was), place(pinned));
        let slug = &tenant.slug;
        write_audit(&transaction, actor, action, slug, before, after, "done").await?;
        Ok(transaction.commit().await?)
    }

    /// Takes a shard off its ring: new tenants go elsewhere, and plans empty it.
    /// Returns how many tenants the ring has another answer for now.
    pub async fn drain_shard(&self, actor: &Actor, shard: &str) -> Result<u64, ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let version = next_version(&transaction, true).await?;
        let row = transaction
            .query_opt(
                "select s.state, exists (select from ringfence.shard o
                   where o.region = s.region and o.id <> s.id and o.state = 'active') as others
                 from ringfence.shard s where s.id = $1",
                &[&shard],
            )
            .await?
            .ok_or_else(|| no_shard(shard))?;
        let state: &str = row.get("state");
        if state == "draining" {
            return Ok(0);
        }
        if state != "active" || !row.get::<_, bool>("others") {
            return Err(ControlError::Conflict(match state {
                "active" => format!("shard {shard} is the only one on its region's ring"),
                other => format!("shard {shard} is {other}"),
            }));
        }
        transaction
            .execute(
                "update ringfence.shard set state = 'draining' where id = $1",
                &[&shard],
            )
            .await?;
        let affected = reseat(&transaction, version).await?;
        let before = Some(json!({ "state": state }));
        let after = Some(json!({
            "state": "draining",
            "tenants_of_other_shards_now": affected,
        }));
        let action = "shard.drain";
        write_audit(&transaction, actor, action, shard, before, after, "done").await?;
        transaction.commit().await?;
        Ok(affected)
    }

    /// Forgets a shard that is being drained, and its nodes.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] where it holds anything, or a job works on it.
    pub async fn remove_shard(&self, actor: &Actor, shard: &str) -> Result<(), ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        next_version(&transaction, true).await?;
        let row = transaction
            .query_opt(
                "select s.state,
                   (select count(*) from ringfence.tenant t
                     where (t.shard = s.id or t.ring_shard = s.id) and t.state <> 'deleted') as tenants,
                   (select count(*) from ringfence.job j where not j.done and s.id = any(j.shards)) as jobs
                 from ringfence.shard s where s.id = $1 for update",
                &[&shard],
            )
            .await?
            .ok_or_else(|| no_shard(shard))?;
        let (state, tenants, jobs): (&str, i64, i64) =
            (row.get("state"), row.get("tenants"), row.get("jobs"));
        let why = match (state, tenants, jobs) {
            ("active", _, _) => Some("is on the ring: drain it first".to_owned()),
            (_, 1.., _) => Some(format!("still has {tenants} tenants")),
            (_, _, 1..) => Some(format!(
                "is worked on by {jobs} jobs, such as moves that are retained"
            )),
            _ => None,
        };
        if let Some(why) = why {
            return Err(ControlError::Conflict(format!("shard {shard} {why}")));
        }
        // Rows of deleted tenants name it, too, and are kept for their ids.
        transaction
            .execute(
                "update ringfence.tenant set shard = o.id, ring_shard = o.id
                 from (select id from ringfence.shard where id <> $1 order by created_at limit 1) o
                 where (shard = $1 or ring_shard = $1) and state = 'deleted'",
                &[&shard],
            )
            .await?;
        let before = as_it_is(&transaction, shard).await?;
        transaction
            .execute("delete from ringfence.shard where id = $1", &[&shard])
            .await?;
        let action = "shard.remove";
        write_audit(&transaction, actor, action, shard, before, None, "done").await?;
        Ok(transaction.commit().await?)
    }
}

fn no_shard(name: &str) -> ControlError {
    ControlError::NotFound {
        kind: "shard",
        name: name.chars().take(80).collect(),
    }
}
