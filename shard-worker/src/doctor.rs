//! What is not as it should be on the shards, and why: things of moves that no
//! open job owns, fences that say something else than the control database,
//! rows that nobody serves, and what the API hides. Only looks, but for [`fix`].

mod fix;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use schema::catalog::HiddenReason;
use schema::tenant_tables::tenant_tables;
use serde::Serialize;
use tenancy::chain;
use tenancy::control::{ControlError, ShardInfo};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::move_tenant::crossing::Fence;
use crate::move_tenant::janitor;
use crate::reconcile;
use crate::shard::ShardError;

pub use fix::{Fixed, fix};

/// Shards asked side by side.
const AT_ONCE: usize = 8;
/// Longest look at one shard.
const SHARD_MAX: Duration = Duration::from_secs(30);
/// Longest look at all of them: who asks waits for a minute.
const LOOK_MAX: Duration = Duration::from_secs(50);
/// Findings of one shard that are told of.
const FINDINGS_MAX: usize = 500;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Shard by shard.
    pub findings: Vec<Finding>,
    /// Shards that were looked at.
    pub shards: usize,
    /// Shards that could not be, and why.
    pub errors: Vec<Unseen>,
    /// A shard has more than are told of.
    pub truncated: bool,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where.
    pub shard: String,
    /// What it is.
    pub kind: FindingKind,
    /// Its name; of rows and fences the tenant's.
    pub name: String,
    /// Why it is told of.
    pub why: String,
    /// What becomes of it, or what to do.
    pub then: String,
}

/// What can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A subscription of a move that is over.
    Subscription,
    /// A slot of a move that is over, or one that nobody reads.
    Slot,
    /// A publication of a move that is over.
    Publication,
    /// A fence that says something else than the control database.
    Fence,
    /// Rows of a tenant that its shard does not serve.
    Rows,
    /// A relation or function that the API hides.
    Hidden,
}

/// A shard that could not be looked at.
#[derive(Debug, Serialize)]
pub struct Unseen {
    /// The shard.
    pub shard: String,
    /// Why.
    pub message: String,
}

/// Where the control database says that a tenant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    slug: String,
    pub(crate) shard: String,
    pub(crate) epoch: i64,
    pub(crate) state: String,
}

/// Tenants and moves that open jobs are about.
#[derive(Debug, Default)]
pub(crate) struct Open {
    moves: BTreeSet<Uuid>,
    pub(crate) tenants: BTreeSet<Uuid>,
}

/// Looks at all shards.
pub async fn examine(app: &App) -> Result<Report, Error> {
    let mut shards = app.control.shards().await?;
    shards.retain(|shard| shard.state != "preparing");
    let count = shards.len();
    let end = Instant::now() + LOOK_MAX;
    let looks = shards.into_iter().map(|shard| async move {
        let until = end.min(Instant::now() + SHARD_MAX);
        let found = timeout_at(until, of_shard(app, &shard)).await;
        let found = found.unwrap_or(Err(Error::Shard(ShardError::Slow)));
        (shard.id, found)
    });
    let looked: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    let mut report = Report {
        findings: Vec::new(),
        shards: count,
        errors: Vec::new(),
        truncated: false,
    };
    for (shard, found) in looked {
        match found {
            Ok(mut found) => {
                report.truncated |= found.len() > FINDINGS_MAX;
                found.truncate(FINDINGS_MAX);
                report.findings.append(&mut found);
            }
            Err(error) => report.errors.push(Unseen {
                shard,
                message: chain(&error),
            }),
        }
    }
    Ok(report)
}

async fn of_shard(app: &App, shard: &ShardInfo) -> Result<Vec<Finding>, Error> {
    let nodes = reconcile::addresses(shard);
    let client = app.logins.as_mover(&shard.id, &nodes).await?;
    let before = open(app).await?;
    let found = janitor::find(&client).await.map_err(ShardError::Postgres)?;
    let idle = idle_slots(&client).await.map_err(ShardError::Postgres)?;
    let fences = fences(&client).await.map_err(ShardError::Postgres)?;
    let unserved = unserved_rows(&client).await.map_err(ShardError::Postgres)?;
    let hidden = hidden(&client).await?;
    // What began or ended meanwhile is left for the next look.
    let after = open(app).await?;
    let moves: BTreeSet<Uuid> = before.moves.union(&after.moves).copied().collect();
    let busy: BTreeSet<Uuid> = before.tenants.union(&after.tenants).copied().collect();
    let ids = fences.keys().chain(unserved.keys()).copied().collect();
    let placed = placed(app, &shard.id, ids).await?;

    let finding = |kind, name: String, (why, then): (String, &str)| Finding {
        shard: shard.id.clone(),
        kind,
        name,
        why,
        then: then.to_owned(),
    };
    let mut findings = Vec::new();
    for left in janitor::orphans(found, &moves) {
        let kind = match left.kind {
            janitor::Left::Subscription => FindingKind::Subscription,
            janitor::Left::Slot => FindingKind::Slot,
            janitor::Left::Publication => FindingKind::Publication,
            janitor::Left::Fence => FindingKind::Fence,
        };
        let why = "no open move owns it".to_owned();
        findings.push(finding(
            kind,
            left.name,
            (why, "It is removed by itself within a minute."),
        ));
    }
    findings.extend(
        idle.into_iter()
            .map(|(name, why)| finding(FindingKind::Slot, name, why)),
    );
    let tenants: BTreeSet<&Uuid> = fences.keys().chain(placed.keys()).collect();
    for tenant in tenants.into_iter().filter(|id| !busy.contains(id)) {
        let known = placed.get(tenant);
        let fence = fences.get(tenant).unwrap_or(&Fence::None);
        if let Some(why) = of_fence(&shard.id, fence, known) {
            findings.push(finding(FindingKind::Fence, named(*tenant, known), why));
        }
    }
    for (tenant, tables) in unserved.iter().filter(|(id, _)| !busy.contains(id)) {
        let why = format!(
            "{} hold rows of it, and this shard does not serve it",
            tables.join(", ")
        );
        let then = "Nobody sees them. Look at them, then `ringfence doctor --fix` deletes them, if the tenant's shard serves it: a move of the tenant to this shard is refused until then.";
        let name = named(*tenant, placed.get(tenant));
        findings.push(finding(FindingKind::Rows, name, (why, then)));
    }
    findings.extend(
        hidden
            .into_iter()
            .map(|(name, reason)| finding(FindingKind::Hidden, name, of_hidden(reason))),
    );
    Ok(findings)
}

fn named(tenant: Uuid, known: Option<&Placed>) -> String {
    known.map_or_else(|| tenant.to_string(), |placed| placed.slug.clone())
}

/// What is wrong with a fence. Pure; no job is about the tenant.
fn of_fence(shard: &str, fence: &Fence, placed: Option<&Placed>) -> Option<(String, &'static str)> {
    const ROUTERS: &str = "Its requests are refused or misled: compare the fences of all shards before anything is changed.";
    const LATE: &str = "It serves nobody, and holds up moves to this shard. It is removed by itself within two minutes, if the tenant's shard serves it.";
    let Some(placed) = placed.filter(|placed| placed.state != "deleted") else {
        return match fence {
            Fence::Active(_) => Some((
                "the shard serves it, and the control database does not know it".to_owned(),
                "No router comes: delete the fence, once its rows are saved or not needed.",
            )),
            Fence::None | Fence::Fenced(_) | Fence::Moved(_) => None,
        };
    };
    let epoch = placed.epoch;
    if placed.shard == shard {
        let served = matches!(placed.state.as_str(), "active" | "suspended");
        return match fence {
            Fence::Active(at) if *at == epoch => None,
            Fence::Active(at) => Some((
                format!("it is served at epoch {at}, and the control database says {epoch}"),
                ROUTERS,
            )),
            Fence::Fenced(at) => Some((
                format!("its requests are held at epoch {at}, and no move is under way"),
                ROUTERS,
            )),
            Fence::Moved(at) => Some((
                format!(
                    "it has moved away at epoch {at}, and the control database says that it is here"
                ),
                ROUTERS,
            )),
            Fence::None => served.then(|| {
                let why = "the control database says that it is here, and there is no fence";
                (why.to_owned(), ROUTERS)
            }),
        };
    }
    match fence {
        Fence::Active(at) => Some((
            format!(
                "it is served at epoch {at}, and the control database says that shard {} has it",
                placed.shard
            ),
            ROUTERS,
        )),
        Fence::Fenced(_) => Some(("it was prepared for a move that is over".to_owned(), LATE)),
        // It leads late routers on.
        Fence::Moved(_) | Fence::None => None,
    }
}

fn of_hidden(reason: HiddenReason) -> (String, &'static str) {
    let (why, then) = match reason {
        HiddenReason::NotDistributed => (
            "it is neither distributed nor a reference table",
            "select ringfence.distribute('…') or ringfence.reference('…')",
        ),
        HiddenReason::PolicyMissing => (
            "row security is off, not forced, or its policy was changed; or API roles can write to it",
            "select ringfence.distribute('…') again, or ringfence.reference('…') of a reference table: they mend it",
        ),
        HiddenReason::NotSecurityInvoker => (
            "it is a view that runs with its owner's rights",
            "alter view … set (security_invoker = true)",
        ),
        HiddenReason::ViewOverUnscoped => (
            "it is a view over something that is hidden itself",
            "Mend what it reads.",
        ),
        HiddenReason::Partition => (
            "it is a partition: its rows are read by its parent",
            "Nothing.",
        ),
        HiddenReason::MaterializedView => (
            "it is a materialized view: it holds all tenants' rows without row security",
            "Make it a table that is distributed, or a view.",
        ),
        HiddenReason::ForeignTable => (
            "it is a foreign table: it has no row security",
            "Make it a distributed or a reference table.",
        ),
        HiddenReason::DefinerBypassesRowSecurity => (
            "it is a function that runs as an owner whom row security lets pass",
            "alter function … security invoker, or owner to ringfence_owner",
        ),
        HiddenReason::Rule => (
            "it has rewrite rules, which run with their owner's rights",
            "Use a trigger instead.",
        ),
    };
    (why.to_owned(), then)
}

pub(crate) async fn open(app: &App) -> Result<Open, Error> {
    let client = app.control.client().await?;
    let rows = client
        .query(
            "select j.id, j.kind = 'move' as moves, j.tenant, (m ->> 'id')::uuid as moved
             from ringfence.job j
             left join lateral jsonb_array_elements(j.state -> 'plan' -> 'tenants') m on j.kind = 'move'
             where not j.done",
            &[],
        )
        .await
        .map_err(ControlError::Postgres)?;
    let mut open = Open::default();
    for row in rows {
        if row.get("moves") {
            open.moves.insert(row.get("id"));
        }
        let about: [Option<Uuid>; 2] = [row.get("tenant"), row.get("moved")];
        open.tenants.extend(about.into_iter().flatten());
    }
    Ok(open)
}

/// Those who live on a shard, and others that were found there.
pub(crate) async fn placed(
    app: &App,
    shard: &str,
    ids: Vec<Uuid>,
) -> Result<BTreeMap<Uuid, Placed>, Error> {
    let client = app.control.client().await?;
    let rows = client
        .query(
            "select id, slug, shard, epoch, state from ringfence.tenant where shard = $1 or id = any($2)",
            &[&shard, &ids],
        )
        .await
        .map_err(ControlError::Postgres)?;
    let placed = |row: &tokio_postgres::Row| Placed {
        slug: row.get("slug"),
        shard: row.get("shard"),
        epoch: row.get("epoch"),
        state: row.get("state"),
    };
    Ok(rows
        .iter()
        .map(|row| (row.get("id"), placed(row)))
        .collect())
}

async fn fences(client: &Client) -> Result<HashMap<Uuid, Fence>, tokio_postgres::Error> {
    let rows = client
        .query("select tenant_id, state, epoch from ringfence.fence", &[])
        .await?;
    let fence = |row: &tokio_postgres::Row| {
        let epoch = row.get("epoch");
        match row.get("state") {
            "active" => Fence::Active(epoch),
            "fenced" => Fence::Fenced(epoch),
            _ => Fence::Moved(epoch),
        }
    };
    Ok(rows.iter().map(|row| (row.get(0), fence(row))).collect())
}

/// Slots of nobody's that keep the log: what tables' copies leave behind, and
/// others that nobody reads. The moves' own are told of by their names.
async fn idle_slots(
    client: &Client,
) -> Result<Vec<(String, (String, &'static str))>, tokio_postgres::Error> {
    let rows = client
        .query(
            "select slot_name::text, coalesce(wal_status, 'unknown'),
               pg_size_pretty(pg_current_wal_lsn() - restart_lsn)
             from pg_replication_slots
             where not active and not temporary and slot_type = 'logical'
               and slot_name <> 'ringfence_capture' and slot_name not like 'ringfence\\_move\\_%'
             order by 1",
            &[],
        )
        .await?;
    let idle = |row: &tokio_postgres::Row| {
        let kept: Option<&str> = row.get(2);
        let why = format!(
            "nobody reads it; it keeps {} of the log ({})",
            kept.unwrap_or("an unknown part"),
            row.get::<_, &str>(1)
        );
        let then = "One of a table's copy (pg_…_sync_…) is removed by itself, if no shard has its subscription. Else drop it, unless its reader comes back: select pg_drop_replication_slot('…')";
        (row.get(0), (why, then))
    };
    Ok(rows.iter().map(idle).collect())
}

/// Tables with rows of tenants that the shard neither serves nor holds, found
/// by one look a tenant into each table's key.
async fn unserved_rows(
    client: &Client,
) -> Result<BTreeMap<Uuid, Vec<String>>, tokio_postgres::Error> {
    let mut unserved: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
    for table in tenant_tables(client).await? {
        let (name, column) = (&table.name, &table.tenant_column);
        let first = format!("select {column} as id from {name}");
        let sql = format!(
            "with recursive tenant as (
               ({first} order by {column} limit 1)
               union all
               select (select r.id from ({first}) r where r.id > t.id order by r.id limit 1)
               from tenant t where t.id is not null)
             select t.id from tenant t where t.id is not null and not exists (
               select from ringfence.fence f where f.tenant_id = t.id and f.state in ('active', 'fenced'))"
        );
        for row in client.query(&sql, &[]).await? {
            let table = format!("{}.{}", name.schema.as_str(), name.name.as_str());
            unserved.entry(row.get(0)).or_default().push(table);
        }
    }
    Ok(unserved)
}

/// What the API hides in the application's schemas.
async fn hidden(client: &Client) -> Result<Vec<(String, HiddenReason)>, Error> {
    let schemas: Vec<String> = client
        .query_one(
            "select array(select distinct n.nspname::text
               from ringfence.relation r join pg_class c on c.oid = r.relid
               join pg_namespace n on n.oid = c.relnamespace where n.nspname <> 'ringfence'
               union select 'public')",
            &[],
        )
        .await
        .map_err(ShardError::Postgres)?
        .get(0);
    let schemas: Vec<&str> = schemas.iter().map(String::as_str).collect();
    let catalog = schema::introspect::load(client, &schemas).await;
    let catalog = catalog.map_err(|error| match error {
        schema::introspect::Error::Postgres(error) => Error::Shard(ShardError::Postgres(error)),
        other @ schema::introspect::Error::ViewRule(_) => {
            Error::Control(ControlError::Invalid(other.to_string()))
        }
    })?;
    let hidden = catalog.hidden.into_iter().map(|hidden| {
        let name = &hidden.name;
        (
            format!("{}.{}", name.schema.as_str(), name.name.as_str()),
            hidden.reason,
        )
    });
    Ok(hidden.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_told_of_where_it_contradicts_the_control_database() {
        let placed = |shard: &str, epoch, state: &str| Placed {
            slug: "acme".into(),
            shard: shard.into(),
            epoch,
            state: state.into(),
        };
        let is_right = |fence, placed: Option<&Placed>| of_fence("s1", &fence, placed).is_none();
        let here = placed("s1", 3, "active");
        assert!(is_right(Fence::Active(3), Some(&here)));
        for wrong in [
            Fence::Active(2),
            Fence::Fenced(3),
            Fence::Moved(4),
            Fence::None,
        ] {
            assert!(!is_right(wrong, Some(&here)));
        }
        let there = placed("s2", 3, "suspended");
        assert!(is_right(Fence::Moved(3), Some(&there)));
        assert!(is_right(Fence::None, Some(&there)));
        assert!(!is_right(Fence::Active(2), Some(&there)));
        assert!(!is_right(Fence::Fenced(4), Some(&there)));
        assert!(is_right(Fence::None, Some(&placed("s1", 1, "creating"))));
        assert!(!is_right(
            Fence::Active(1),
            Some(&placed("s1", 1, "deleted"))
        ));
        assert!(!is_right(Fence::Active(1), None));
        assert!(is_right(Fence::Moved(1), None));
    }
}
