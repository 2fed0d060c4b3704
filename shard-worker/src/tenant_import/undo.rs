//! Deletes what an import has loaded, batch by batch.

use std::time::Duration;

use schema::ident::QualifiedName;
use schema::tenant_tables::tenant_tables;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::{Import, load};
use crate::job::{Context, JobError, as_replica};
use crate::tenant_delete::BATCH;

/// A job's state is written after so long.
const STEP: Duration = Duration::from_millis(700);

/// Deletes the tenant's rows of a table for a while; true once there is none,
/// and none is noted. The tenant had no row in it before the import.
pub(super) async fn of_table(
    context: &Context,
    shard: &mut Client,
    import: &Import,
    name: &QualifiedName,
) -> Result<bool, JobError> {
    let until = Instant::now() + STEP;
    let tables = tenant_tables(&*shard).await?;
    let table = tables.iter().find(|table| table.name == *name);
    for leaf in table.into_iter().flat_map(|table| &table.leaves) {
        let Some(table) = table else { continue };
        let column = &table.tenant_column;
        let sql = format!(
            "delete from only {leaf} where {column} = $1 and ctid = any(array(
               select ctid from only {leaf} where {column} = $1 limit $2))"
        );
        loop {
            let transaction = shard.transaction().await?;
            as_replica(&transaction).await?;
            let deleted = transaction.execute(&sql, &[&import.tenant, &BATCH]).await?;
            transaction.commit().await?;
            if deleted < BATCH.unsigned_abs() {
                break;
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }
    let transaction = shard.transaction().await?;
    load::forget(&transaction, context.job().id, &name.to_string()).await?;
    transaction.commit().await?;
    Ok(true)
}
