//! Copies one table's rows by COPY, from session to session, in chunks by the
//! source's primary key.

use std::pin::pin;
use std::time::Duration;

use futures_util::{SinkExt, TryStreamExt};
use schema::key_range::{joined, upper_sql, values};
use schema::refused::of_row;
use tokio::time::Instant;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::plan::LoadTable;
use super::source::{ANSWER_MAX, Source, answer};
use crate::job::{Context, JobError, as_replica};

/// A job's state is written after so long.
const STEP: Duration = Duration::from_millis(1_500);
/// Rows of one transaction.
const CHUNK: u32 = 20_000;
/// Longest silence of the source within a chunk.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Followers that are more bytes behind are waited for.
const LAG_MAX: i64 = 16 << 20;
const LAG_PAUSE: Duration = Duration::from_millis(250);

/// How far a table is.
pub(super) struct Copied {
    pub(super) rows: u64,
    pub(super) done: bool,
}

/// Copies until all is there or time is over.
pub(super) async fn for_a_while(
    context: &Context,
    source: &Source,
    shard: &mut Client,
    table: &LoadTable,
    tenant: Uuid,
) -> Result<Copied, JobError> {
    let job = context.job().id;
    let until = Instant::now() + STEP;
    loop {
        let marks = Marks::read(shard, job, table).await?;
        if marks.done || Instant::now() >= until {
            let Marks { rows, done, .. } = marks;
            return Ok(Copied { rows, done });
        }
        let lag = "select ringfence.follower_lag()";
        let lag: Option<i64> = shard.query_one(lag, &[]).await?.get(0);
        if lag.is_some_and(|lag| lag > LAG_MAX) {
            tokio::time::sleep(LAG_PAUSE).await;
            continue;
        }
        chunk(source, shard, job, table, tenant, marks.after.as_deref()).await?;
        context.app().failpoints.hit("copy_chunk");
    }
}

/// One chunk, with the note of it, in one transaction.
async fn chunk(
    source: &Source,
    shard: &mut Client,
    job: Uuid,
    table: &LoadTable,
    tenant: Uuid,
    after: Option<&[String]>,
) -> Result<(), JobError> {
    let upper = match table.key.is_empty() {
        true => None,
        false => {
            let name = table.name.to_string();
            let upper = upper_sql(&name, &table.key, after, CHUNK);
            let row = answer(ANSWER_MAX, source.client.query_opt(&upper, &[])).await?;
            row.map(|row| {
                (0..table.key.len())
                    .map(|n| row.get(n))
                    .collect::<Vec<String>>()
            })
        }
    };
    let transaction = shard.transaction().await?;
    as_replica(&transaction).await?;
    let is_whole = table.key.is_empty();
    let mut rows = 0;
    if is_whole || upper.is_some() {
        let from = out_sql(table, tenant, after, upper.as_deref());
        rows = pipe(source, &transaction, &from, &in_sql(table, tenant)).await?;
    }
    let name = table.name.to_string();
    mark(&transaction, job, &format!("{ROWS} {name}"), rows).await?;
    match upper {
        Some(upper) => {
            let key = format!("{KEY} {name} ");
            transaction
                .execute(
                    "delete from ringfence.job_mark where job = $1 and starts_with(item, $2)",
                    &[&job, &key],
                )
                .await?;
            let upper = serde_json::json!(upper);
            mark(&transaction, job, &format!("{key}{upper}"), 0).await?;
        }
        // None is left, or all were copied at once.
        None => mark(&transaction, job, &format!("{DONE} {name}"), 0).await?,
    }
    transaction.commit().await?;
    Ok(())
}

/// Rows as they come, without more of them in memory than the sockets hold.
async fn pipe(
    source: &Source,
    shard: &Transaction<'_>,
    from: &str,
    into: &str,
) -> Result<u64, JobError> {
    // The same texts on both sides.
    shard
        .batch_execute("set local datestyle = 'ISO, YMD'; set local intervalstyle = 'postgres'")
        .await?;
    let rows = answer(SILENCE_MAX, source.client.copy_out(from)).await?;
    let mut rows = pin!(rows);
    let sink = shard.copy_in(into).await.map_err(refused)?;
    let mut sink = pin!(sink);
    while let Some(bytes) = answer(SILENCE_MAX, rows.try_next()).await? {
        sink.send(bytes).await.map_err(refused)?;
    }
    sink.finish().await.map_err(refused)
}

/// A row that the shard's constraints refuse: no try mends it.
fn refused(error: tokio_postgres::Error) -> JobError {
    match of_row(&error) {
        Some(why) => JobError::Refused(format!("the shard refuses a row: {why}")),
        None => error.into(),
    }
}

/// Items of `ringfence.job_mark`.
const ROWS: &str = "rows of";
const KEY: &str = "key of";
const DONE: &str = "all of";

/// What the job noted of a table.
struct Marks {
    rows: u64,
    after: Option<Vec<String>>,
    done: bool,
}

impl Marks {
    async fn read(shard: &Client, job: Uuid, table: &LoadTable) -> Result<Self, JobError> {
        let name = table.name.to_string();
        let key = format!("{KEY} {name} ");
        let found = shard
            .query(
                "select item, rows from ringfence.job_mark
                 where job = $1 and (item = any($2) or starts_with(item, $3))",
                &[
                    &job,
                    &[format!("{ROWS} {name}"), format!("{DONE} {name}")].as_slice(),
                    &key,
                ],
            )
            .await?;
        let mut marks = Self {
            rows: 0,
            after: None,
            done: false,
        };
        for row in &found {
            let item: &str = row.get(0);
            if let Some(upper) = item.strip_prefix(&key) {
                let upper = serde_json::from_str(upper);
                marks.after = Some(upper.map_err(|error| JobError::State(error.to_string()))?);
            } else if item.starts_with(DONE) {
                marks.done = true;
            } else {
                marks.rows = row.get::<_, i64>(1).unsigned_abs();
            }
        }
        Ok(marks)
    }
}

/// Forgets what was noted of a table.
pub(super) async fn forget(
    shard: &Transaction<'_>,
    job: Uuid,
    table: &str,
) -> Result<(), JobError> {
    shard
        .execute(
            "delete from ringfence.job_mark where job = $1
               and (item = any($2) or starts_with(item, $3))",
            &[
                &job,
                &[format!("{ROWS} {table}"), format!("{DONE} {table}")].as_slice(),
                &format!("{KEY} {table} "),
            ],
        )
        .await?;
    Ok(())
}

async fn mark(shard: &Transaction<'_>, job: Uuid, item: &str, rows: u64) -> Result<(), JobError> {
    shard
        .execute(
            "insert into ringfence.job_mark (job, item, rows) values ($1, $2, $3)
             on conflict (job, item) do update set rows = job_mark.rows + excluded.rows, at = now()",
            &[&job, &item, &(rows as i64)],
        )
        .await?;
    Ok(())
}

fn out_sql(
    table: &LoadTable,
    tenant: Uuid,
    after: Option<&[String]>,
    upper: Option<&[String]>,
) -> String {
    let names = joined(&table.key, |column| column.name.to_string());
    let beyond = after.map(|after| format!("({names}) > {}", values(&table.key, after)));
    let up_to = upper.map(|upper| format!("({names}) <= {}", values(&table.key, upper)));
    let bounds: Vec<String> = beyond.into_iter().chain(up_to).collect();
    let condition = match bounds.is_empty() {
        true => String::new(),
        false => format!(" where {}", bounds.join(" and ")),
    };
    let columns = table.columns.iter().map(|column| format!("{column}, "));
    format!(
        "copy (select {}'{tenant}' from {}{condition}) to stdout",
        columns.collect::<String>(),
        table.name
    )
}

/// The source is not believed whose the rows are: others' are left out, and
/// are missing where both sides are counted.
fn in_sql(table: &LoadTable, tenant: Uuid) -> String {
    let columns = table.columns.iter().map(|column| format!("{column}, "));
    format!(
        "copy {} ({}{whose}) from stdin where {whose} = '{tenant}'",
        table.name,
        columns.collect::<String>(),
        whose = table.tenant_column
    )
}

#[cfg(test)]
mod tests {
    use schema::ident::QualifiedName;
    use schema::key_range::KeyColumn;

    use super::*;

    #[test]
    fn chunks_are_ranges_of_the_sources_key() {
        let table = LoadTable {
            name: QualifiedName::new("public", "notes"),
            columns: vec!["id".into(), "body".into()],
            tenant_column: "tenant_id".into(),
            source_has_tenant: false,
            key: vec![KeyColumn {
                name: "id".into(),
                type_name: "integer".into(),
            }],
        };
        let (after, upper) = (["7".to_owned()], ["9".to_owned()]);
        insta::assert_snapshot!(out_sql(&table, Uuid::nil(), Some(&after), Some(&upper)), @r#"copy (select "id", "body", '00000000-0000-0000-0000-000000000000' from "public"."notes" where ("id") > ('7'::integer) and ("id") <= ('9'::integer)) to stdout"#);
        insta::assert_snapshot!(in_sql(&table, Uuid::nil()), @r#"copy "public"."notes" ("id", "body", "tenant_id") from stdin where "tenant_id" = '00000000-0000-0000-0000-000000000000'"#);
    }
}
