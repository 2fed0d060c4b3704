//! What is looked at on the shard before and after rows are loaded.

use schema::sequences::{self, Raised};
use schema::tenant_tables::TenantTable;
use tokio_postgres::Client;
use uuid::Uuid;

use super::plan::LoadTable;
use super::source::Source;
use crate::job::JobError;

/// Violations that are counted.
const COUNTED: u32 = 1_000;

/// Rows that are there already would be mixed with the source's.
pub(super) async fn require_empty(
    shard: &Client,
    tables: &[LoadTable],
    tenant: Uuid,
) -> Result<(), JobError> {
    for table in tables {
        let (name, column) = (&table.name, &table.tenant_column);
        let sql = format!("select exists (select from {name} where {column} = $1)");
        if shard.query_one(&sql, &[&tenant]).await?.get(0) {
            return Err(JobError::Refused(format!(
                "the tenant has rows in {name} already: import into a new one"
            )));
        }
    }
    Ok(())
}

pub(super) async fn count(
    shard: &Client,
    table: &LoadTable,
    tenant: Uuid,
) -> Result<u64, JobError> {
    let (name, column) = (&table.name, &table.tenant_column);
    let sql = format!("select count(*) from {name} where {column} = $1");
    let row = shard.query_one(&sql, &[&tenant]).await?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Rows were loaded without foreign keys firing: each must hold.
pub(super) async fn foreign_keys(
    shard: &Client,
    tables: &[&TenantTable],
    tenant: Uuid,
) -> Result<(), JobError> {
    let mut broken = Vec::new();
    for table in tables {
        for key in &table.foreign_keys {
            let orphans = table.orphans(key);
            let sql = format!("select count(*) from ({orphans} limit {COUNTED}) orphan");
            let row = shard.query_one(&sql, &[&tenant]).await?;
            let orphans: i64 = row.get(0);
            if orphans > 0 {
                let shared = "select exists (select from ringfence.relation
                    where relid = to_regclass($1) and kind = 'reference')";
                let table_of = key.table.to_string();
                let is_shared: bool = shard.query_one(shared, &[&table_of]).await?.get(0);
                broken.push(format!(
                    "{orphans}{} rows of {} refer by {} to what is not in {}{}",
                    if orphans == i64::from(COUNTED) {
                        " or more"
                    } else {
                        ""
                    },
                    table.name,
                    key.name,
                    key.table,
                    if is_shared {
                        ", whose rows are all tenants' and come by a migration file of inserts"
                    } else {
                        ""
                    },
                ));
            }
        }
    }
    match broken.is_empty() {
        true => Ok(()),
        false => Err(JobError::Refused(broken.join("; "))),
    }
}

/// Raises sequences past the loaded values, and past what the source's gave.
/// Returns how many there are.
pub(super) async fn raise_sequences(
    source: &Source,
    shard: &Client,
    tables: &[&TenantTable],
    tenant: Uuid,
) -> Result<u64, JobError> {
    let mut past = sequences::highest(shard, tables, tenant).await?;
    let columns = tables.iter().flat_map(|table| &table.columns);
    let own: Vec<_> = columns
        .filter_map(|column| column.sequence.as_ref())
        .collect();
    let given = source.sequences().await?;
    let given = given.into_iter().filter(|(name, _)| own.contains(&name));
    past.extend(given.map(|(name, last)| (name.to_string(), last)));
    match sequences::raise(shard, past).await? {
        Raised::All(raised) => Ok(raised),
        Raised::NearlyUsedUp(name) => Err(JobError::Refused(format!(
            "the source's numbers would nearly use up sequence {name}, from which all tenants draw"
        ))),
    }
}
