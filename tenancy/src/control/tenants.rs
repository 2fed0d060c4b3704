//! Tenants' rows.

use std::collections::HashMap;

use serde::Serialize;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::{Actor, Control, ControlError, audit, check_name, next_version};
use crate::id::TenantId;
use crate::placement::TenantState;
use crate::snapshot::{Delta, Snapshot};
use crate::watch::fetch_fleet;

/// Most tenants that one page holds.
const PAGE_MAX: i64 = 1_000;
const COLUMNS: &str = "id, slug, name, region, shard, ring_shard, epoch, state, to_char(created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as created_at";

/// A tenant to create.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its id; made where none is given.
    pub id: Option<Uuid>,
    /// Its unique short name.
    pub slug: String,
    /// Its name for people; the slug where none is given.
    pub name: Option<String>,
    /// Its region; the default one where none is given.
    pub region: Option<String>,
}

/// A tenant as DBAs see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TenantInfo {
    /// Its id.
    pub id: Uuid,
    /// Its unique short name.
    pub slug: String,
    /// Its name for people.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Where it lives.
    pub shard: String,
    /// What the ring says.
    pub ring_shard: String,
    /// Its placement's number.
    pub epoch: i64,
    /// `creating`, `active`, `suspended`, `importing` or `deleted`.
    pub state: String,
    /// When it was created, UTC.
    pub created_at: String,
}

/// A page of tenants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TenantPage {
    /// In order of their slugs.
    pub items: Vec<TenantInfo>,
    /// What `after` must be for the next page; none on the last.
    pub next: Option<String>,
}

impl TenantInfo {
    fn from_row(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            slug: row.get("slug"),
            name: row.get("name"),
            region: row.get("region"),
            shard: row.get("shard"),
            ring_shard: row.get("ring_shard"),
            epoch: row.get("epoch"),
            state: row.get("state"),
            created_at: row.get("created_at"),
        }
    }
}

impl Control {
    /// Writes the tenant's row in state `creating`, placed where the ring says.
    ///
    /// Idempotent: the same tenant (slug, and id where one is given) is returned
    /// as it is, with `false`; the slug of another one is a conflict.
    pub async fn insert_tenant(
        &self,
        actor: &Actor,
        new: &NewTenant,
    ) -> Result<(TenantInfo, bool), ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let place = NewPlace {
            state: TenantState::Creating,
            shard: None,
        };
        let inserted = insert_tenant(&transaction, actor, new, place).await?;
        transaction.commit().await?;
        Ok(inserted)
    }

    /// Inserts `count` tenants named `prefix-1` and so on, as `creating`; those
    /// that exist are left as they are. Returns how many are new.
    pub async fn insert_tenants(
        &self,
        actor: &Actor,
        prefix: &str,
        count: u32,
    ) -> Result<u64, ControlError> {
        check_name("prefix", prefix)?;
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let version = next_version(&transaction, false).await?;
        let fleet = Snapshot::empty().with(Delta {
            fleet: Some(fetch_fleet(&*transaction).await.map_err(read_error)?),
            ..Delta::default()
        });
        let region = region(&fleet, None)?;
        let mut inserted = 0;
        let numbers: Vec<u32> = (1..=count).collect();
        for chunk in numbers.chunks(5_000) {
            let ids: Vec<Uuid> = chunk.iter().map(|_| Uuid::new_v4()).collect();
            let slugs: Vec<String> = chunk.iter().map(|n| format!("{prefix}-{n}")).collect();
            let shards: Option<Vec<&str>> = ids
                .iter()
                .map(|id| {
                    let shard = fleet.ring_says(&region.as_str().into(), TenantId(*id));
                    shard.map(|shard| shard.as_str())
                })
                .collect();
            let shards = shards.ok_or_else(|| {
                ControlError::Invalid(format!("region {region} has no shard yet"))
            })?;
            inserted += transaction
                .execute(
                    "insert into ringfence.tenant (id, slug, name, region, shard, ring_shard, version)
                     select id, slug, slug, $4, shard, shard, $5
                     from unnest($1::uuid[], $2::text[], $3::text[]) as new (id, slug, shard)
                     on conflict (slug) do nothing",
                    &[&ids, &slugs, &shards, &region, &version],
                )
                .await?;
        }
        let after = serde_json::json!({ "prefix": prefix, "count": count, "inserted": inserted });
        audit(
            &transaction,
            actor,
            "tenant.create_many",
            prefix,
            None,
            Some(after),
        )
        .await?;
        transaction.commit().await?;
        Ok(inserted)
    }

    /// Ids of tenants that wait to be put on their shards, with these, oldest first.
    pub async fn unfinished_tenants(
        &self,
        limit: i64,
    ) -> Result<Vec<(Uuid, String, i64)>, ControlError> {
        let rows = self
            .client()
            .await?
            .query(
                // The oldest of each shard, so that one that is down starves no other.
                "select id, shard, epoch from (
                   select id, shard, epoch, row_number() over (partition by shard order by created_at) as place
                   from ringfence.tenant where state = 'creating') waiting
                 order by place limit $1",
                &[&limit],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)))
            .collect())
    }

    /// Tenants whose fence is suspended, each with its shard: also those that get
    /// rows of a database just now.
    pub async fn suspended_tenants(&self) -> Result<Vec<(Uuid, String)>, ControlError> {
        let rows = self
            .client()
            .await?
            .query(
                "select id, shard from ringfence.tenant t where state = 'suspended'
                   or state = 'importing' and exists (
                     select from ringfence.job j where j.tenant = t.id and j.kind = 'tenant_import' and not j.done)",
                &[],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// From `creating` to `active`, for tenants whose fence is on their shard.
    pub async fn activate_tenants(&self, ids: &[Uuid]) -> Result<u64, ControlError> {
        if ids.is_empty() {
            // A version wakes every router.
            return Ok(0);
        }
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let version = next_version(&transaction, false).await?;
        let changed = transaction
            .execute(
                "update ringfence.tenant set state = 'active', version = $2
                 where id = any($1) and state = 'creating'",
                &[&ids, &version],
            )
            .await?;
        transaction.commit().await?;
        Ok(changed)
    }

    /// The tenant of that slug or id.
    pub async fn tenant(&self, name: &str) -> Result<TenantInfo, ControlError> {
        let client = self.client().await?;
        find(&**client, name).await?.ok_or_else(|| not_found(name))
    }

    /// Those of these tenants that there are, in order of their ids.
    pub async fn tenants_of(&self, ids: &[Uuid]) -> Result<Vec<TenantInfo>, ControlError> {
        let sql = format!(
            "select {COLUMNS} from ringfence.tenant where id = any($1) and state <> 'deleted' order by id"
        );
        let rows = self.client().await?.query(&sql, &[&ids]).await?;
        Ok(rows.iter().map(TenantInfo::from_row).collect())
    }

    /// Slugs and shards of those tenants that there are.
    pub async fn tenant_names(
        &self,
        ids: &[Uuid],
    ) -> Result<HashMap<Uuid, (String, String)>, ControlError> {
        let client = self.client().await?;
        let rows = client
            .query(
                "select id, slug, shard from ringfence.tenant where id = any($1)",
                &[&ids],
            )
            .await?;
        let names = rows
            .iter()
            .map(|row| (row.get("id"), (row.get("slug"), row.get("shard"))));
        Ok(names.collect())
    }

    /// A page of tenants whose slug or name holds `search`, after the slug `after`.
    pub async fn tenants(
        &self,
        search: &str,
        after: &str,
        limit: i64,
    ) -> Result<TenantPage, ControlError> {
        let limit = limit.clamp(1, PAGE_MAX);
        let pattern = format!(
            "%{}%",
            search
                .replace('\\', "\\\\")
                .replace('%', "\\%")
                .replace('_', "\\_")
        );
        let sql = format!(
            "select {COLUMNS} from ringfence.tenant
             where slug > $1 and (slug like $2 or name ilike $2) and state <> 'deleted'
             order by slug limit $3"
        );
        let rows = self
            .client()
            .await?
            .query(&sql, &[&after, &pattern, &(limit + 1)])
            .await?;
        let more = rows.len() as i64 > limit;
        let items: Vec<_> = rows
            .iter()
            .take(limit as usize)
            .map(TenantInfo::from_row)
            .collect();
        let next = items.last().filter(|_| more).map(|last| last.slug.clone());
        Ok(TenantPage { items, next })
    }

    /// Suspends or resumes a tenant; `false` where it was so already.
    pub async fn set_suspended(
        &self,
        actor: &Actor,
        name: &str,
        suspended: bool,
    ) -> Result<(TenantInfo, bool), ControlError> {
        let (from, to) = match suspended {
            true => (TenantState::Active, TenantState::Suspended),
            false => (TenantState::Suspended, TenantState::Active),
        };
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let (version, before) = versioned(&transaction, name).await?;
        if before.state == to.name() {
            return Ok((before, false));
        }
        if before.state != from.name() {
            return Err(ControlError::Conflict(format!(
                "tenant {} is {}: only an {} one can become {}",
                before.slug,
                before.state,
                from.name(),
                to.name()
            )));
        }
        let sql = format!(
            "update ringfence.tenant set state = $2, version = $3, exceptional = true
             where id = $1 returning {COLUMNS}"
        );
        let row = transaction
            .query_one(&sql, &[&before.id, &to.name(), &version])
            .await?;
        let info = TenantInfo::from_row(&row);
        let action = if suspended {
            "tenant.suspend"
        } else {
            "tenant.resume"
        };
        let (was, is) = (
            serde_json::to_value(&before).ok(),
            serde_json::to_value(&info).ok(),
        );
        audit(&transaction, actor, action, &info.slug, was, is).await?;
        transaction.commit().await?;
        Ok((info, true))
    }
}

/// How a tenant begins.
#[derive(Clone, Copy, Debug)]
pub struct NewPlace<'a> {
    /// Its first state.
    pub state: TenantState,
    /// The shard that has it; where none is given the ring's.
    pub shard: Option<&'a str>,
}

/// Writes a tenant's row as part of a transaction.
///
/// Idempotent: the same tenant (slug, and id where one is given) is returned
/// as it is, with `false`; the slug of another one is a conflict.
pub async fn insert_tenant(
    transaction: &Transaction<'_>,
    actor: &Actor,
    new: &NewTenant,
    place: NewPlace<'_>,
) -> Result<(TenantInfo, bool), ControlError> {
    check_name("slug", &new.slug)?;
    if new.slug.contains(['_', '.']) {
        return Err(ControlError::Invalid(format!(
            "slug \"{}\" may hold letters, digits and - only",
            new.slug
        )));
    }
    if Uuid::parse_str(&new.slug).is_ok() {
        // Tenants are named by slug or id: a name must lead to one of them only.
        return Err(ControlError::Invalid(format!(
            "slug \"{}\" looks like an id",
            new.slug
        )));
    }
    // First the version's row: it keeps the ring as it is until the commit.
    let version = next_version(transaction, false).await?;
    if let Some(found) = find(transaction, &new.slug).await? {
        return match new.id {
            Some(id) if id != found.id => Err(ControlError::Conflict(format!(
                "another tenant has the slug {}",
                new.slug
            ))),
            _ => Ok((found, false)),
        };
    }
    let id = new.id.unwrap_or_else(Uuid::new_v4);
    let fleet = Snapshot::empty().with(Delta {
        fleet: Some(fetch_fleet(transaction).await.map_err(read_error)?),
        ..Delta::default()
    });
    let region = region(&fleet, new.region.as_deref())?;
    let ring_shard = fleet
        .ring_says(&region.as_str().into(), TenantId(id))
        .ok_or_else(|| ControlError::Invalid(format!("region {region} has no shard yet")))?
        .clone();
    let shard = match place.shard {
        None => ring_shard.as_str(),
        Some(shard) => {
            require_shard(transaction, shard, &region).await?;
            shard
        }
    };
    let is_default = fleet
        .fleet()
        .regions
        .iter()
        .any(|row| row.is_default && row.id.as_str() == region);
    let is_exceptional = !is_default || shard != ring_shard.as_str();
    let name = new.name.clone().unwrap_or_else(|| new.slug.clone());
    let sql = format!(
        "insert into ringfence.tenant (id, slug, name, region, shard, ring_shard, version, exceptional, state)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (id) do nothing returning {COLUMNS}"
    );
    let row = transaction
        .query_opt(
            &sql,
            &[
                &id,
                &new.slug,
                &name,
                &region,
                &shard,
                &ring_shard.as_str(),
                &version,
                &is_exceptional,
                &place.state.name(),
            ],
        )
        .await?;
    let info = row
        .as_ref()
        .map(TenantInfo::from_row)
        .ok_or_else(|| ControlError::Conflict(format!("another tenant has the id {id}")))?;
    let after = serde_json::to_value(&info).ok();
    audit(transaction, actor, "tenant.create", &info.slug, None, after).await?;
    Ok((info, true))
}

/// A shard that takes tenants of that region.
async fn require_shard(
    transaction: &Transaction<'_>,
    shard: &str,
    wanted: &str,
) -> Result<(), ControlError> {
    let row = transaction
        .query_opt(
            "select region, state from ringfence.shard where id = $1",
            &[&shard],
        )
        .await?;
    let Some(row) = row else {
        return Err(ControlError::NotFound {
            kind: "shard",
            name: shard.chars().take(80).collect(),
        });
    };
    let (region, state): (&str, &str) = (row.get(0), row.get(1));
    match (region == wanted, state == "active") {
        (true, true) => Ok(()),
        (false, _) => Err(ControlError::Invalid(format!(
            "shard {shard} is in region {region}, not in {wanted}"
        ))),
        (true, false) => Err(ControlError::Conflict(format!(
            "shard {shard} is {state}: it takes no tenants"
        ))),
    }
}

/// The number of this transaction's change, and the tenant as it is under it.
pub(super) async fn versioned(
    transaction: &tokio_postgres::Transaction<'_>,
    name: &str,
) -> Result<(i64, TenantInfo), ControlError> {
    let version = next_version(transaction, false).await?;
    let found = find(transaction, name).await?;
    Ok((version, found.ok_or_else(|| not_found(name))?))
}

pub(super) fn not_found(name: &str) -> ControlError {
    ControlError::NotFound {
        kind: "tenant",
        name: name.chars().take(80).collect(),
    }
}

pub(super) async fn find(
    client: &impl tokio_postgres::GenericClient,
    name: &str,
) -> Result<Option<TenantInfo>, ControlError> {
    let id = Uuid::parse_str(name).ok();
    let sql = format!(
        "select {COLUMNS} from ringfence.tenant where (slug = $1 or id = $2) and state <> 'deleted'"
    );
    let row = client.query_opt(sql.as_str(), &[&name, &id]).await?;
    Ok(row.as_ref().map(TenantInfo::from_row))
}

fn region(fleet: &Snapshot, wanted: Option<&str>) -> Result<String, ControlError> {
    let regions = &fleet.fleet().regions;
    let found = match wanted {
        Some(id) => regions.iter().find(|region| region.id.as_str() == id),
        None => regions.iter().find(|region| region.is_default),
    };
    found
        .map(|region| region.id.as_str().to_owned())
        .ok_or_else(|| ControlError::NotFound {
            kind: "region",
            name: wanted.unwrap_or("(default)").to_owned(),
        })
}

pub(super) fn read_error(error: crate::watch::WatchError) -> ControlError {
    match error {
        crate::watch::WatchError::Postgres(error) => ControlError::Postgres(error),
        other => ControlError::Unreachable(other.into()),
    }
}
