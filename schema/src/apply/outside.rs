//! Statements that can't be part of a transaction: announced, run, recorded.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{ApplyError, Place};
use crate::history::Entry;
use crate::migration::{Statement, StatementKind};

/// Builds an index concurrently. An invalid one of its name is what a build
/// left behind that did not end: it is dropped, and built again.
pub(super) async fn build(
    place: &Place<'_>,
    client: &mut Client,
    statement: &Statement,
    index: Option<&str>,
    entry: &Entry,
) -> Result<(), ApplyError> {
    if let Some(index) = index {
        match is_valid(client, index).await? {
            // Built by the call before, which did not get to record it.
            Some(true) if entry.begun == Some(entry.step) => {
                return Ok(place.passed(client, entry.step).await?);
            }
            Some(false) => drop_invalid(client, index).await?,
            Some(true) | None => {}
        }
    }
    announce(place, client, entry).await?;
    let built = as_owner(place, client, statement).await;
    if let (Err(ApplyError::Statement { .. }), Some(index)) = (&built, index)
        && matches!(is_valid(client, index).await, Ok(Some(false)))
    {
        // It would cost every write of the table, and serve no read.
        let _ = drop_invalid(client, index).await;
    }
    built?;
    Ok(place.passed(client, entry.step).await?)
}

/// Runs another statement. Should its worker die in it, or before the record, it is
/// run again: a removal that finds nothing left is done, a partition that is half
/// detached is detached, and the indexes of a rebuild that broke off are dropped.
pub(super) async fn run(
    place: &Place<'_>,
    client: &mut Client,
    statement: &Statement,
    entry: &Entry,
) -> Result<(), ApplyError> {
    let again = entry.begun == Some(entry.step);
    let rebuilds = begins_with(&statement.text, "reindex");
    if rebuilds {
        drop_rebuilds(client).await?;
    }
    announce(place, client, entry).await?;
    match as_owner(place, client, statement).await {
        Err(ApplyError::Statement { source, .. })
            if again && source.code() == Some(&SqlState::UNDEFINED_OBJECT) => {}
        Err(ApplyError::Statement { source, .. })
            if again && is_detached(&statement.text, &source) => {}
        Err(ApplyError::Statement { source, .. })
            if source.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
                && finalizing(&statement.text).is_some() =>
        {
            let finalizing = Statement {
                text: finalizing(&statement.text).unwrap_or_default(),
                ..statement.clone()
            };
            as_owner(place, client, &finalizing).await?;
        }
        Err(error) => {
            if rebuilds && matches!(error, ApplyError::Statement { .. }) {
                let _ = drop_rebuilds(client).await;
            }
            return Err(error);
        }
        Ok(()) => {}
    }
    Ok(place.passed(client, entry.step).await?)
}

fn begins_with(statement: &str, word: &str) -> bool {
    let first = statement.split_whitespace().next();
    first.is_some_and(|first| first.eq_ignore_ascii_case(word))
}

/// What ends a `DETACH PARTITION … CONCURRENTLY` that broke off halfway.
fn finalizing(statement: &str) -> Option<String> {
    let (before, last) = statement.trim_end().rsplit_once(char::is_whitespace)?;
    let mut words = before.split_whitespace();
    let detaches = last.eq_ignore_ascii_case("concurrently")
        && words.any(|word| word.eq_ignore_ascii_case("detach"));
    detaches.then(|| format!("{before} finalize"))
}

/// The partition was detached by the call before, which did not get to record it.
fn is_detached(statement: &str, error: &tokio_postgres::Error) -> bool {
    let message = error.as_db_error().map(|error| error.message());
    error.code() == Some(&SqlState::UNDEFINED_TABLE)
        && message.is_some_and(|message| message.contains("is not a partition of"))
        && finalizing(statement).is_some()
}

/// Drops invalid indexes of `REINDEX CONCURRENTLY`: of one that did not end, for of
/// one that goes on elsewhere they are waited for, and not there any longer.
async fn drop_rebuilds(client: &Client) -> Result<(), tokio_postgres::Error> {
    let rows = client
        .query(
            "select format('%I.%I', n.nspname, c.relname)
             from pg_index i join pg_class c on c.oid = i.indexrelid
             join pg_namespace n on n.oid = c.relnamespace
             where not i.indisvalid and c.relname ~ '_cc(new|old)[0-9]*$' and n.nspname !~ '^pg_'
               and pg_has_role('ringfence_owner', c.relowner, 'USAGE')
             order by 1",
            &[],
        )
        .await?;
    for row in &rows {
        drop_invalid(client, row.get(0)).await?;
    }
    Ok(())
}

/// Records that the statement is begun.
async fn announce(place: &Place<'_>, client: &Client, entry: &Entry) -> Result<(), ApplyError> {
    client
        .execute(
            "update ringfence.migration set begun = $3, changed_at = now() where directory = $1 and number = $2",
            &[
                &place.directory,
                &(place.file.number as i32),
                &(entry.step as i32),
            ],
        )
        .await?;
    Ok(())
}

async fn as_owner(
    place: &Place<'_>,
    client: &Client,
    statement: &Statement,
) -> Result<(), ApplyError> {
    client.batch_execute(&place.bounds(false)).await?;
    let concurrent = matches!(statement.kind, StatementKind::ConcurrentIndex { .. })
        || statement.text.to_lowercase().contains("concurrently");
    if concurrent {
        // It waits for all transactions before it, and nobody waits behind it.
        client.batch_execute("set lock_timeout = 0").await?;
    }
    client.batch_execute("set role ringfence_owner").await?;
    let ran = client.batch_execute(&statement.text).await;
    client.batch_execute("reset role").await?;
    match ran {
        Ok(()) => Ok(()),
        Err(error) => Err(place.refused(client, statement, error).await),
    }
}

/// Whether an index is there, and can be used.
async fn is_valid(client: &Client, index: &str) -> Result<Option<bool>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            "select indisvalid from pg_index where indexrelid = to_regclass($1)",
            &[&index],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

async fn drop_invalid(client: &Client, index: &str) -> Result<(), tokio_postgres::Error> {
    // As the statement spelled it: parsed by Postgres' own grammar before.
    client
        .batch_execute("set lock_timeout = 0; set role ringfence_owner")
        .await?;
    let dropped = client
        .batch_execute(&format!("drop index concurrently if exists {index}"))
        .await;
    client.batch_execute("reset role").await?;
    dropped
}
