//! Back-fills: an UPDATE or DELETE in chunks by primary key, each with the key
//! that it came to in one transaction.

use tokio_postgres::Client;

use super::{ApplyError, Place};
use crate::history::Entry;
use crate::ident::Ident;
use crate::key_range::{KeyColumn, joined, upper_sql, values};
use crate::migration::{Backfill, Statement};

/// Bytes that the slowest follower has still to replay.
pub(super) async fn lag(client: &Client) -> Result<Option<i64>, ApplyError> {
    let row = client
        .query_one("select ringfence.follower_lag()", &[])
        .await?;
    Ok(row.get(0))
}

/// One chunk; the step is passed where none is left. Rows that are added behind
/// the key meanwhile are for the application's present version to fill.
pub(super) async fn chunk(
    place: &Place<'_>,
    client: &mut Client,
    statement: &Statement,
    backfill: &Backfill,
    entry: &Entry,
) -> Result<(), ApplyError> {
    let key = key(client, &backfill.table).await?;
    if key.is_empty() {
        return Err(ApplyError::NoKey {
            file: place.file.file(),
            line: statement.line,
            table: backfill.table.clone(),
        });
    }
    let after = entry.after_key.as_deref();
    let transaction = client.transaction().await?;
    transaction.batch_execute(&place.bounds(true)).await?;
    let upper = upper_sql(&backfill.table, &key, after, backfill.rows);
    let upper = match transaction.query_opt(&upper, &[]).await {
        Ok(upper) => upper,
        Err(error) => {
            transaction.rollback().await?;
            return Err(place.refused(client, statement, error).await);
        }
    };
    let Some(upper) = upper else {
        place.passed(&transaction, entry.step).await?;
        transaction.commit().await?;
        return Ok(());
    };
    let upper: Vec<String> = (0..key.len()).map(|n| upper.get(n)).collect();
    let changed = transaction
        .execute(&chunk_sql(backfill, &key, after, &upper), &[])
        .await;
    let changed = match changed {
        Ok(changed) => changed,
        Err(error) => {
            transaction.rollback().await?;
            return Err(place.refused(client, statement, error).await);
        }
    };
    transaction
        .execute(
            "update ringfence.migration set after_key = $3, rows = rows + $4, changed_at = now()
             where directory = $1 and number = $2",
            &[
                &place.directory,
                &(place.file.number as i32),
                &upper,
                &(changed as i64),
            ],
        )
        .await?;
    transaction.commit().await?;
    Ok(())
}

async fn key(client: &Client, table: &str) -> Result<Vec<KeyColumn>, ApplyError> {
    let rows = client
        .query(
            "select a.attname::text, format_type(a.atttypid, a.atttypmod)
             from pg_index i, unnest(i.indkey::int2[]) with ordinality k (num, n)
             join pg_attribute a on a.attnum = k.num
             where i.indrelid = to_regclass($1) and a.attrelid = i.indrelid
               and i.indisprimary and k.n <= i.indnkeyatts
             order by k.n",
            &[&table],
        )
        .await?;
    let column = |row: &tokio_postgres::Row| KeyColumn {
        name: Ident::new(row.get::<_, String>(0)),
        type_name: row.get(1),
    };
    Ok(rows.iter().map(column).collect())
}

fn chunk_sql(
    backfill: &Backfill,
    key: &[KeyColumn],
    after: Option<&[String]>,
    upper: &[String],
) -> String {
    let row = joined(key, |column| format!("{}.{}", backfill.row, column.name));
    let beyond = match after {
        Some(after) => format!("({row}) > {} and ", values(key, after)),
        None => String::new(),
    };
    format!(
        "{}{beyond}({row}) <= {}",
        backfill.before,
        values(key, upper)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_ranges_of_the_key() {
        let backfill = Backfill {
            table: "people".into(),
            row: "p".into(),
            before: "update people p set n = 1 WHERE (n is null) AND ".into(),
            rows: 500,
        };
        let column = |name: &str, type_name: &str| KeyColumn {
            name: name.into(),
            type_name: type_name.into(),
        };
        let key = [column("tenant_id", "uuid"), column("id", "bigint")];
        let (after, upper) = (["a".to_owned(), "1".into()], ["b".to_owned(), "2".into()]);
        insta::assert_snapshot!(upper_sql(&backfill.table, &key, Some(&after), backfill.rows), @r#"
        select "tenant_id"::text, "id"::text from (select "tenant_id", "id" from people where ("tenant_id", "id") > ('a'::uuid, '1'::bigint) order by "tenant_id", "id" limit 500) chunk
                 order by chunk."tenant_id" desc, chunk."id" desc limit 1
        "#);
        insta::assert_snapshot!(chunk_sql(&backfill, &key, Some(&after), &upper), @r#"update people p set n = 1 WHERE (n is null) AND (p."tenant_id", p."id") > ('a'::uuid, '1'::bigint) and (p."tenant_id", p."id") <= ('b'::uuid, '2'::bigint)"#);
        insta::assert_snapshot!(chunk_sql(&backfill, &key, None, &upper), @r#"update people p set n = 1 WHERE (n is null) AND (p."tenant_id", p."id") <= ('b'::uuid, '2'::bigint)"#);
    }
}
