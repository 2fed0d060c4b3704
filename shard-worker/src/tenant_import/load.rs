//! Puts an archive's parts on a shard, each once.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use schema::ident::Ident;
use schema::tenant_tables::{TenantTable, tenant_tables};
use tokio::time::Instant;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::{Import, TenantImport, check};
use crate::archive::{ArchiveError, Manifest, Part, Reader, Table};
use crate::job::{Context, JobError, as_replica};

/// How far it is, is written so often.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(1);
/// What one message to Postgres holds of a part.
const MESSAGE_BYTES: usize = 1 << 16;

/// Loads what is not there yet.
pub(super) async fn load(context: &Context, import: &Import) -> Result<Manifest, JobError> {
    let path = context.app().archives.path(&import.archive);
    let manifest = check::manifest(&path).await?;
    let parts: HashMap<&str, &Part> = manifest
        .parts
        .iter()
        .map(|part| (part.path.as_str(), part))
        .collect();
    let mut session = context.shard(&import.shard).await?;
    let tables = tenant_tables(&*session).await?;
    let (header, mut reader) = Reader::open(&path).await?;
    let done = loaded(&session, context.job().id).await?;
    let mut rows: u64 = done.values().sum();
    let mut saved = Instant::now();
    while let Some(entry) = reader.next().await? {
        let Some(part) = parts.get(entry.path.as_str()) else {
            continue;
        };
        if done.contains_key(&part.path) {
            continue;
        }
        let named = |table: &&Table| table.name == part.table;
        let source = header.tables.iter().find(named);
        let target = tables.iter().find(|t| t.plain_name() == part.table);
        let (Some(source), Some(target)) = (source, target) else {
            return Err(JobError::Refused(format!(
                "the shard has no table {} any longer",
                part.table
            )));
        };
        let transaction = session.transaction().await?;
        let loading = Loading {
            job: context.job().id,
            tenant: import.id,
            source,
            target,
            part,
        };
        loading.run(&transaction, entry.bytes.into()).await?;
        transaction.commit().await?;
        rows += part.rows;
        if saved.elapsed() > SAVE_EVERY {
            let state = TenantImport::Loading {
                import: import.clone(),
                rows,
                total: manifest.rows(),
            };
            context.save(&state).await?;
            saved = Instant::now();
        }
    }
    Ok(manifest)
}

/// Parts that were loaded, with their rows.
async fn loaded(session: &Client, job: Uuid) -> Result<HashMap<String, u64>, JobError> {
    let marks = session
        .query(
            "select item, rows from ringfence.job_mark where job = $1",
            &[&job],
        )
        .await?;
    let part = |row: &tokio_postgres::Row| (row.get(0), row.get::<_, i64>(1).unsigned_abs());
    Ok(marks.iter().map(part).collect())
}

/// One part.
struct Loading<'a> {
    job: Uuid,
    tenant: Uuid,
    source: &'a Table,
    target: &'a TenantTable,
    part: &'a Part,
}

impl Loading<'_> {
    async fn run(&self, transaction: &Transaction<'_>, bytes: Bytes) -> Result<(), JobError> {
        as_replica(transaction).await?;
        // The tenant's column fills itself, as it does for the tenant's own requests.
        transaction
            .execute(
                "select set_config('ringfence.tenant_id', $1::uuid::text, true),
                   set_config('datestyle', 'ISO, YMD', true), set_config('timezone', 'UTC', true)",
                &[&self.tenant],
            )
            .await?;
        let sink = transaction.copy_in::<_, Bytes>(&self.copy_in()).await?;
        let mut sink = Box::pin(sink);
        let mut rest = bytes;
        while !rest.is_empty() {
            let message = rest.split_to(MESSAGE_BYTES.min(rest.len()));
            sink.send(message).await?;
        }
        let rows = sink.as_mut().finish().await?;
        if rows != self.part.rows {
            return Err(ArchiveError::Damaged(format!(
                "{} has {rows} rows instead of {}",
                self.part.path, self.part.rows
            ))
            .into());
        }
        transaction
            .execute(
                "insert into ringfence.job_mark (job, item, rows) values ($1, $2, $3)",
                &[&self.job, &self.part.path, &(rows as i64)],
            )
            .await?;
        Ok(())
    }

    fn copy_in(&self) -> String {
        let names = self.source.columns.iter();
        let columns: Vec<String> = names
            .map(|column| Ident::new(column.name.as_str()).to_string())
            .collect();
        format!(
            "copy {} ({}) from stdin (format csv, header match, encoding 'UTF8')",
            self.target.name,
            columns.join(", ")
        )
    }
}

/// Has the shard's sequences give no number that a row of the tenant has.
pub(super) async fn raise_sequences(
    session: &Client,
    tables: &[TenantTable],
    tenant: Uuid,
) -> Result<(), JobError> {
    for table in tables {
        for column in &table.columns {
            let Some(sequence) = &column.sequence else {
                continue;
            };
            let sql = format!(
                "select ringfence.raise_sequence($2::text::regclass, past)
                 from (select max({})::bigint as past from {} where {} = $1) m where past is not null",
                column.name, table.name, table.tenant_column
            );
            session
                .execute(&sql, &[&tenant, &sequence.to_string()])
                .await?;
        }
    }
    Ok(())
}
