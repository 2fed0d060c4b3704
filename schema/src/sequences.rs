//! The application's sequences where rows come in with numbers from elsewhere.
//! All tenants of a shard draw from them.

use tokio_postgres::{Error, GenericClient};
use uuid::Uuid;

use crate::tenant_tables::TenantTable;

/// What came of raising them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raised {
    /// All are past the numbers; so many are known here.
    All(u64),
    /// None was raised: this one would be nearly used up.
    NearlyUsedUp(String),
}

/// Numbers that stand beside the application's own ascending sequences, by both
/// ways of writing a name. Who brings the numbers brings the names as well: they
/// are compared only, and none is Ringfence's.
const WANTED: &str = r#"
    with own as (
      select q.seqrelid as id, q.seqmax as most, format('%I.%I', n.nspname, c.relname) as short,
        format('"%s"."%s"', replace(n.nspname, '"', '""'), replace(c.relname, '"', '""')) as long
      from pg_sequence q
      join pg_class c on c.oid = q.seqrelid
      join pg_namespace n on n.oid = c.relnamespace
      where q.seqincrement > 0 and n.nspname not in ('pg_catalog', 'information_schema', 'ringfence')),
    wanted as (
      select o.id, o.most, o.short, max(s.past) as past
      from unnest($1::text[], $2::bigint[]) s (name, past)
      join own o on s.name in (o.short, o.long)
      group by o.id, o.most, o.short)"#;

/// Raises sequences so that none gives up a number up to these. What is raised
/// stays so, even if the transaction fails: so a number at a sequence's end,
/// which would leave nothing to draw, raises none.
///
/// # Errors
/// What the server said.
pub async fn raise(client: &impl GenericClient, past: Vec<(String, i64)>) -> Result<Raised, Error> {
    let (names, past): (Vec<String>, Vec<i64>) = past.into_iter().unzip();
    let over = format!(
        "{WANTED}
         select w.short from wanted w left join ringfence.move_sequences() m on m.name = w.short
         where w.past > w.most - w.most / 16 and w.past > coalesce(m.last, 0)
         order by w.short limit 1"
    );
    if let Some(row) = client.query_opt(&over, &[&names, &past]).await? {
        return Ok(Raised::NearlyUsedUp(row.get(0)));
    }
    let raise =
        format!("{WANTED} select ringfence.raise_sequence(w.id::regclass, w.past) from wanted w");
    let raised = client.execute(&raise, &[&names, &past]).await?;
    Ok(Raised::All(raised))
}

/// The highest numbers that a tenant's rows hold, of each column that a sequence
/// fills.
///
/// # Errors
/// What the server said.
pub async fn highest(
    client: &impl GenericClient,
    tables: &[&TenantTable],
    tenant: Uuid,
) -> Result<Vec<(String, i64)>, Error> {
    let mut highest = Vec::new();
    for table in tables {
        for column in &table.columns {
            let Some(sequence) = &column.sequence else {
                continue;
            };
            let sql = format!(
                "select max({})::bigint from {} where {} = $1",
                column.name, table.name, table.tenant_column
            );
            let row = client.query_one(&sql, &[&tenant]).await?;
            let number: Option<i64> = row.get(0);
            highest.extend(number.map(|number| (sequence.to_string(), number)));
        }
    }
    Ok(highest)
}
