//! How large tenants are: rows of each table, times the table's bytes a row.
//! Large tables are sampled.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use schema::tenant_tables::tenant_tables;
use tenancy::control::ShardInfo;
use tokio::time::timeout;
use tokio_postgres::Client;
use uuid::Uuid;

use super::Unseen;
use crate::app::App;
use crate::reconcile;
use crate::shard::ShardError;

/// Rows of a table up to which all are counted.
const COUNTED_MAX: f64 = 1_000_000.0;
/// Shards that are looked at side by side.
const AT_ONCE: usize = 16;
/// Longest look at one shard.
const LOOK_MAX: Duration = Duration::from_secs(50);

/// Bytes of all tenants, of all shards that could be looked at; and those that could not.
pub(super) async fn of_all(app: &App, shards: Vec<ShardInfo>) -> (HashMap<Uuid, u64>, Vec<Unseen>) {
    let looks = shards.into_iter().map(|shard| async move {
        let look = async {
            let nodes = reconcile::addresses(&shard);
            let client = app.logins.as_mover(&shard.id, &nodes).await?;
            of_shard(&client).await.map_err(ShardError::Postgres)
        };
        let found = timeout(LOOK_MAX, look).await;
        let found = found.unwrap_or(Err(ShardError::Slow));
        found.map_err(|error| Unseen {
            why: tenancy::chain(&error),
            shard: shard.id,
        })
    });
    let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
    let (mut sizes, mut unseen) = (HashMap::new(), Vec::new());
    while let Some(found) = looks.next().await {
        // Of a tenant that is on two shards, the larger counts.
        match found {
            Ok(found) => {
                for (tenant, bytes) in found {
                    let size = sizes.entry(tenant).or_insert(0);
                    *size = (*size).max(bytes);
                }
            }
            Err(shard) => unseen.push(shard),
        }
    }
    unseen.sort_by(|a, b| a.shard.cmp(&b.shard));
    (sizes, unseen)
}

async fn of_shard(client: &Client) -> Result<HashMap<Uuid, u64>, tokio_postgres::Error> {
    let mut sizes: HashMap<Uuid, u64> = HashMap::new();
    for table in tenant_tables(client).await? {
        let rows = table.rows_estimate as f64;
        let sample = match rows > COUNTED_MAX {
            true => format!("tablesample system ({:.4})", COUNTED_MAX / rows * 100.0),
            false => String::new(),
        };
        let sql = format!(
            "select t.{column}, count(*)::float8,
               (select coalesce(sum(pg_total_relation_size(leaf.name::regclass)), 0) from unnest($1::text[]) leaf (name))::float8
                 / greatest(sum(count(*)) over (), 1)::float8
             from {table} t {sample} group by 1",
            column = table.tenant_column,
            table = table.name,
        );
        let leaves: Vec<String> = table.leaves.iter().map(ToString::to_string).collect();
        for row in client.query(&sql, &[&leaves]).await? {
            // The whole table's bytes by the sample's rows: a sampled row counts
            // for all that it stands for.
            let bytes = row.get::<_, f64>(1) * row.get::<_, f64>(2);
            *sizes.entry(row.get(0)).or_default() += bytes as u64;
        }
    }
    Ok(sizes)
}
