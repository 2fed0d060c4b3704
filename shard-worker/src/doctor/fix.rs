//! Deletes rows of tenants that a shard does not serve, where someone asks for it:
//! of tenants that the control database knows, that another shard serves at their
//! epoch, and that no open job is about. No job begins meanwhile. The rows of others
//! are left, and told of: they may be all that there is.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tenancy::control::{Actor, ShardInfo, write_audit};
use tenancy::{chain, control::ControlError};
use tokio::time::Instant;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use schema::tenant_tables::tenant_tables;

use super::{Placed, named, open, placed, unserved_rows};
use crate::app::App;
use crate::error::Error;
use crate::job::{JobError, store};
use crate::move_tenant::janitor::fences::serves;
use crate::reconcile;
use crate::shard::ShardError;
use crate::tenant_delete;

/// Nothing is begun any longer after this: who asks waits for a minute.
const FIX_MAX: Duration = Duration::from_secs(40);
/// Why something is left that may be deleted.
const TIME_IS_OVER: &str = "time is over: ask again";

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct Fixed {
    /// Rows that were deleted.
    pub deleted: Vec<Deleted>,
    /// What was left, and why.
    pub left: Vec<Kept>,
}

/// Rows of a tenant that were deleted.
#[derive(Debug, Serialize)]
pub struct Deleted {
    /// Where.
    pub shard: String,
    /// The tenant.
    pub name: String,
    /// So many.
    pub rows: i64,
}

/// Rows that were left.
#[derive(Debug, Serialize)]
pub struct Kept {
    /// Where; of a shard that could not be looked at, all.
    pub shard: String,
    /// The tenant.
    pub name: String,
    /// Why.
    pub why: String,
}

/// Goes through all shards.
///
/// # Errors
/// Where the control database can't be asked. What was deleted before stays so.
pub async fn fix(app: &App, actor: &Actor) -> Result<Fixed, Error> {
    let until = Instant::now() + FIX_MAX;
    let shards = app.control.shards().await?;
    let mut fixed = Fixed::default();
    for shard in shards.iter().filter(|shard| shard.state != "preparing") {
        let why = match Instant::now() < until {
            true => {
                let done = of_shard(app, actor, &shards, shard, until, &mut fixed).await;
                done.err().map(|error| chain(&error))
            }
            false => Some(TIME_IS_OVER.to_owned()),
        };
        if let Some(why) = why {
            fixed.left.push(Kept {
                shard: shard.id.clone(),
                name: String::new(),
                why,
            });
        }
    }
    Ok(fixed)
}

async fn of_shard(
    app: &App,
    actor: &Actor,
    shards: &[ShardInfo],
    shard: &ShardInfo,
    until: Instant,
    fixed: &mut Fixed,
) -> Result<(), Error> {
    let nodes = reconcile::addresses(shard);
    let mut client = app.logins.as_mover(&shard.id, &nodes).await?;
    let found = unserved_rows(&client).await;
    if found.map_err(ShardError::Postgres)?.is_empty() {
        return Ok(());
    }
    let mut control = app.control.client().await?;
    let transaction = control
        .transaction()
        .await
        .map_err(ControlError::Postgres)?;
    // Whoever starts a job waits for this transaction's end. What was begun before it
    // may have made rows meanwhile, or fences.
    store::lock_starts(&transaction).await?;
    let unserved = unserved_rows(&client).await.map_err(ShardError::Postgres)?;
    let busy = open(app).await?.tenants;
    let placed = placed(app, &shard.id, unserved.keys().copied().collect()).await?;
    for tenant in unserved.keys() {
        let known = placed.get(tenant);
        let name = named(*tenant, known);
        let why = match known {
            _ if busy.contains(tenant) => Some("a job is about it".to_owned()),
            _ if Instant::now() >= until => Some(TIME_IS_OVER.to_owned()),
            None => Some("the control database does not know the tenant".to_owned()),
            Some(home) => not_served(app, shards, shard, home, *tenant).await?,
        };
        let Some(why) = why else {
            audit(app, actor, &name, json!({ "shard": shard.id }), "begun").await?;
            let mut rows = 0;
            let outcome = delete(&mut client, &transaction, *tenant, until, &mut rows).await;
            let result = if outcome.is_ok() { "done" } else { "failed" };
            let after = json!({ "shard": shard.id, "rows": rows });
            fixed.deleted.push(Deleted {
                shard: shard.id.clone(),
                name: name.clone(),
                rows,
            });
            audit(app, actor, &name, after, result).await?;
            if !outcome? {
                fixed.left.push(Kept {
                    shard: shard.id.clone(),
                    name,
                    why: TIME_IS_OVER.into(),
                });
            }
            continue;
        };
        fixed.left.push(Kept {
            shard: shard.id.clone(),
            name,
            why,
        });
    }
    Ok(transaction.commit().await.map_err(ControlError::Postgres)?)
}

/// Written at once, whatever becomes of the rest.
async fn audit(
    app: &App,
    actor: &Actor,
    tenant: &str,
    after: Value,
    result: &str,
) -> Result<(), Error> {
    let mut control = app.control.client().await?;
    let transaction = control
        .transaction()
        .await
        .map_err(ControlError::Postgres)?;
    let after = Some(after);
    write_audit(
        &transaction,
        actor,
        "doctor.fix",
        tenant,
        None,
        after,
        result,
    )
    .await?;
    Ok(transaction.commit().await.map_err(ControlError::Postgres)?)
}

/// Why these rows may be needed; none: another shard serves the tenant.
async fn not_served(
    app: &App,
    shards: &[ShardInfo],
    shard: &ShardInfo,
    home: &Placed,
    tenant: Uuid,
) -> Result<Option<String>, Error> {
    if home.shard == shard.id {
        return Ok(Some("the control database says that it is here".into()));
    }
    Ok(match serves(app, shards, home, tenant).await? {
        true => None,
        false => Some(format!(
            "shard {} does not serve it at epoch {}",
            home.shard, home.epoch
        )),
    })
}

/// Deletes a tenant's rows for as long as no job can begin, and counts them, though it
/// fails half-way. False: time is over, what is left is for the next time.
async fn delete(
    client: &mut Client,
    no_starts: &Transaction<'_>,
    tenant: Uuid,
    until: Instant,
    rows: &mut i64,
) -> Result<bool, Error> {
    let job = Uuid::new_v4();
    let mut is_whole = true;
    let tables = tenant_tables(client).await.map_err(ShardError::Postgres)?;
    for table in &tables {
        for leaf in &table.leaves {
            loop {
                if Instant::now() >= until {
                    is_whole = false;
                    break;
                }
                // It fails where the lock on starts is lost.
                let alive = no_starts.batch_execute("select 1").await;
                alive.map_err(ControlError::Postgres)?;
                let batch = tenant_delete::batch(client, job, table, leaf, &[tenant]).await;
                let batch = batch.map_err(of_job)?;
                *rows += batch;
                if batch < tenant_delete::BATCH {
                    break;
                }
            }
        }
    }
    let forgotten = tenant_delete::delete_marks(client, job).await;
    forgotten.map_err(of_job)?;
    Ok(is_whole)
}

fn of_job(error: JobError) -> Error {
    match error {
        JobError::Shard(error) => Error::Shard(error),
        JobError::Control(error) => Error::Control(error),
        other => Error::BadRequest(chain(&other)),
    }
}
