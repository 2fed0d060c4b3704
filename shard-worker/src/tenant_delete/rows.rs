//! Deletes a tenant's rows from a shard, batch by batch.

use std::time::Duration;

use schema::ident::{Ident, QualifiedName};
use schema::tenant_tables::TenantTable;
use tokio::time::Instant;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::failpoint::Failpoints;
use crate::job::{JobError, as_replica};

/// A job's state is written after so long.
pub(crate) const STEP: Duration = Duration::from_millis(700);
/// Rows of one transaction: few enough that no lock or replica's lag is felt.
pub(crate) const BATCH: i64 = 5_000;
/// The fence, where a move left one, counts as a table.
const FENCE: &str = "ringfence.fence";

/// What a while of deleting came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swept {
    /// Time was over.
    More {
        /// Rows deleted by this job on this shard so far.
        rows: u64,
        /// Rows that were found at first.
        expected: u64,
    },
    /// No table holds a row any longer.
    Empty {
        /// Tables that held rows, with how many were deleted.
        deleted: Vec<(String, i64)>,
    },
}

/// Deletes the tenant's rows, whatever the fence says, until there is none or
/// time is over. The caller has seen to it that nobody writes for the tenant.
///
/// # Errors
/// What the shard said. Rows that were deleted before stay deleted and counted.
pub async fn delete_for(
    failpoints: &Failpoints,
    session: &mut Client,
    job: Uuid,
    tables: &[TenantTable],
    tenant: Uuid,
    until: Instant,
) -> Result<Swept, JobError> {
    for table in tables {
        for leaf in &table.leaves {
            loop {
                let deleted = batch(session, job, table, leaf, &[tenant]).await?;
                failpoints.hit("delete_batch");
                if deleted < BATCH {
                    break;
                }
                if Instant::now() >= until {
                    let (rows, expected) = progress(session, job, tables, tenant).await?;
                    return Ok(Swept::More { rows, expected });
                }
            }
        }
    }
    let transaction = session.transaction().await?;
    delete_fence(&transaction, job, tenant).await?;
    transaction.commit().await?;
    for table in tables {
        require_empty(session, &table.name, &table.tenant_column, tenant).await?;
    }
    let marks = session
        .query(
            "select item, rows from ringfence.job_mark where job = $1 and rows > 0 order by item",
            &[&job],
        )
        .await?;
    let deleted = marks.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(Swept::Empty { deleted })
}

/// Removes what the job noted on a shard.
pub async fn delete_marks(session: &Client, job: Uuid) -> Result<(), JobError> {
    session
        .execute("delete from ringfence.job_mark where job = $1", &[&job])
        .await?;
    Ok(())
}

/// Deletes some rows of these tenants and counts them, in one transaction.
pub(crate) async fn batch(
    session: &mut Client,
    job: Uuid,
    table: &TenantTable,
    leaf: &QualifiedName,
    tenants: &[Uuid],
) -> Result<i64, JobError> {
    let column = &table.tenant_column;
    // By position: found by the tenants' index, deleted without another search.
    let sql = format!(
        "with gone as (
           delete from only {leaf} where {column} = any($1) and ctid = any(array(
             select ctid from only {leaf} where {column} = any($1) limit $2))
           returning 1),
         counted as (select count(*) as rows from gone)
         insert into ringfence.job_mark (job, item, rows)
         select $3, $4, rows from counted where rows > 0
         on conflict (job, item) do update set rows = job_mark.rows + excluded.rows, at = now()
         returning (select rows from counted)"
    );
    let transaction = session.transaction().await?;
    as_replica(&transaction).await?;
    let item = format!(
        "{}.{}",
        table.name.schema.as_str(),
        table.name.name.as_str()
    );
    let row = transaction
        .query_opt(&sql, &[&tenants, &BATCH, &job, &item])
        .await?;
    transaction.commit().await?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// Takes the fence away, and counts it as any other row.
pub(super) async fn delete_fence(
    transaction: &Transaction<'_>,
    job: Uuid,
    tenant: Uuid,
) -> Result<(), JobError> {
    transaction
        .execute(
            "with gone as (delete from ringfence.fence where tenant_id = $1 returning 1)
             insert into ringfence.job_mark (job, item, rows) select $2, $3, count(*) from gone
             on conflict (job, item) do update set rows = job_mark.rows + excluded.rows",
            &[&tenant, &job, &FENCE],
        )
        .await?;
    Ok(())
}

async fn require_empty(
    session: &Client,
    table: &QualifiedName,
    column: &Ident,
    tenant: Uuid,
) -> Result<(), JobError> {
    let sql = format!("select exists (select from {table} where {column} = $1)");
    match session.query_one(&sql, &[&tenant]).await?.get(0) {
        false => Ok(()),
        true => Err(JobError::Wait(format!(
            "{table} got new rows of the tenant meanwhile"
        ))),
    }
}

/// Rows deleted so far, and those with what is left, as the planner sees it.
async fn progress(
    session: &Client,
    job: Uuid,
    tables: &[TenantTable],
    tenant: Uuid,
) -> Result<(u64, u64), JobError> {
    let row = session
        .query_one(
            "select coalesce(sum(rows), 0)::bigint from ringfence.job_mark where job = $1",
            &[&job],
        )
        .await?;
    let done = row.get::<_, i64>(0).unsigned_abs();
    let mut left = 0;
    for table in tables {
        left += estimate(session, table, &[tenant]).await?;
    }
    Ok((done, done + left))
}

/// The planner's guess of the tenants' rows in a table.
pub(crate) async fn estimate(
    session: &Client,
    table: &TenantTable,
    tenants: &[Uuid],
) -> Result<u64, JobError> {
    let tenants: Vec<String> = tenants.iter().map(Uuid::to_string).collect();
    let sql = format!(
        "explain (format json) select from {} where {} = any('{{{}}}'::uuid[])",
        table.name,
        table.tenant_column,
        tenants.join(",")
    );
    let plan: serde_json::Value = session.query_one(&sql, &[]).await?.get(0);
    Ok(plan[0]["Plan"]["Plan Rows"].as_u64().unwrap_or(0))
}
