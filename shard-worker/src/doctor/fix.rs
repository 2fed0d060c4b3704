//! Deletes rows of tenants that a shard does not serve, where someone asks for it:
//! of tenants that the control database knows, that another shard serves at their
//! epoch, and that no open job is about. No job begins meanwhile. The rows of others
//! are left, and told of: they may be all that there is.

use std::time::Duration;

use serde::Serialize;
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
        if let Err(error) = of_shard(app, actor, &shards, shard, until, &mut fixed).await {
            fixed.left.push(Kept {
                shard: shard.id.clone(),
                name: String::new(),
                why: chain(&error),
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
    let mut control = app.control.client().await?;
    let transaction = control
        .transaction()
        .await
        .map_err(ControlError::Postgres)?;
    // Whoever starts a job waits for this transaction's end.
    store::lock_starts(&transaction).await?;
    let unserved = unserved_rows(&client).await.map_err(ShardError::Postgres)?;
    let busy = open(app).await?.tenants;
    let placed = placed(app, &shard.id, unserved.keys().copied().collect()).await?;
    for tenant in unserved.keys() {
        let known = placed.get(tenant);
        let name = named(*tenant, known);
        let why = match known {
            _ if busy.contains(tenant) => Some("a job is about it".to_owned()),
            _ if Instant::now() >= until => Some("time is over: ask again".to_owned()),
            None => Some("the control database does not know the tenant".to_owned()),
            Some(home) => not_served(app, shards, shard, home, *tenant).await?,
        };
        let Some(why) = why else {
            let rows = delete(&mut client, &transaction, *tenant, until).await?;
            let after = Some(serde_json::json!({ "shard": shard.id, "rows": rows }));
            let action = "doctor.fix";
            write_audit(&transaction, actor, action, &name, None, after, "done").await?;
            fixed.deleted.push(Deleted {
                shard: shard.id.clone(),
                name,
                rows,
            });
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

/// Deletes a tenant's rows for as long as no job can begin; what is left is for the
/// next time.
async fn delete(
    client: &mut Client,
    no_starts: &Transaction<'_>,
    tenant: Uuid,
    until: Instant,
) -> Result<i64, Error> {
    let job = Uuid::new_v4();
    let mut rows = 0;
    let tables = tenant_tables(client).await.map_err(ShardError::Postgres)?;
    for table in &tables {
        for leaf in &table.leaves {
            loop {
                if Instant::now() >= until {
                    break;
                }
                // It fails where the lock on starts is lost.
                let alive = no_starts.batch_execute("select 1").await;
                alive.map_err(ControlError::Postgres)?;
                let batch = tenant_delete::batch(client, job, table, leaf, &[tenant]).await;
                let batch = batch.map_err(of_job)?;
                rows += batch;
                if batch < tenant_delete::BATCH {
                    break;
                }
            }
        }
    }
    let forgotten = tenant_delete::delete_marks(client, job).await;
    forgotten.map_err(of_job)?;
    Ok(rows)
}

fn of_job(error: JobError) -> Error {
    match error {
        JobError::Shard(error) => Error::Shard(error),
        JobError::Control(error) => Error::Control(error),
        other => Error::BadRequest(chain(&other)),
    }
}
