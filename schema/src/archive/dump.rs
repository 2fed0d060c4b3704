//! Takes a tenant's rows from a server, of one snapshot, as they are read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tokio_postgres::{Client, IsolationLevel, Transaction};
use uuid::Uuid;

use super::manifest::{ArchivedTable, ArchivedTenant, Digests, Form, Manifest, PartDigest};
use super::pack::Packer;
use super::{ArchiveError, DIGESTS, FORMAT, MANIFEST, PART_BYTES, ROW_BYTES_MAX, SETTINGS, sha256};
use crate::tenant_tables::{TenantTable, tenant_tables};

/// Longest wait for a table's next row; the first may have to be sorted for.
const ROW_MAX: Duration = Duration::from_secs(600);
/// Longest time that the reader may take to accept a part.
const TAKE_MAX: Duration = Duration::from_secs(60);
/// Longest export.
const WHOLE_MAX: Duration = Duration::from_secs(12 * 3600);

/// What is to be exported.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose rows.
    pub tenant: ArchivedTenant,
    /// Whether zstd compresses the archive.
    pub compress: bool,
}

/// Writes the archive of a tenant into `out`, piece by piece. The tenant must be
/// served by this server, or have been when it was copied. Nothing is locked
/// but against changes of the tables themselves.
///
/// # Errors
/// What the server said; [`ArchiveError::NotHere`] where the tenant is not
/// here; [`ArchiveError::Gone`] and [`ArchiveError::Slow`] of the reader.
pub async fn dump(
    client: &mut Client,
    wanted: &Wanted,
    out: &Sender<Vec<u8>>,
) -> Result<Digests, ArchiveError> {
    timeout(WHOLE_MAX, dump_all(client, wanted, out))
        .await
        .map_err(|_| ArchiveError::Slow("read"))?
}

/// The planner's idea of the bytes that an export has; for showing progress.
///
/// # Errors
/// What the server said.
pub async fn estimate(client: &Client, tenant: Uuid) -> Result<u64, tokio_postgres::Error> {
    let mut bytes = 0;
    for table in tenant_tables(client).await? {
        let sql = format!(
            "explain (format json) select * from {} where {} = '{tenant}'",
            table.name, table.tenant_column
        );
        let plan: serde_json::Value = client.query_one(&sql, &[]).await?.get(0);
        let number = |field: &str| plan[0]["Plan"][field].as_u64().unwrap_or(0);
        // Names of columns and quotes stand in every row.
        let names: usize = table
            .columns
            .iter()
            .map(|c| c.name.as_str().len() + 4)
            .sum();
        bytes += number("Plan Rows") * (number("Plan Width") + names as u64);
    }
    Ok(bytes)
}

async fn dump_all(
    client: &mut Client,
    wanted: &Wanted,
    out: &Sender<Vec<u8>>,
) -> Result<Digests, ArchiveError> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    transaction.batch_execute(SETTINGS).await?;
    transaction
        .batch_execute("set local statement_timeout = 0")
        .await?;
    let tables = tenant_tables(&transaction).await?;
    hold(&transaction, &tables).await?;
    require_served(&transaction, wanted.tenant.id).await?;
    let manifest = describe(&transaction, wanted, &tables).await?;
    let mut pack = Pack::begin(wanted.compress, out)?;
    let text = serde_json::to_vec_pretty(&manifest).map_err(std::io::Error::from)?;
    let mut digests = Digests {
        manifest: sha256(&text),
        rows: 0,
        bytes: 0,
        parts: Vec::new(),
    };
    pack.file(MANIFEST, text).await?;
    for (table, archived) in tables.iter().zip(&manifest.tables) {
        let sql = select(table, archived, wanted.tenant.id);
        dump_table(&transaction, &sql, archived, &mut pack, &mut digests).await?;
    }
    let text = serde_json::to_vec_pretty(&digests).map_err(std::io::Error::from)?;
    pack.file(DIGESTS, text).await?;
    pack.end().await?;
    transaction.rollback().await?;
    Ok(digests)
}

/// No table may change its shape from here on, nor have done so since the
/// snapshot: a rewritten table would look empty.
async fn hold(transaction: &Transaction<'_>, tables: &[TenantTable]) -> Result<(), ArchiveError> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
    let lock = format!("lock table {} in access share mode", names.join(", "));
    transaction.batch_execute(&lock).await?;
    let leaves = tables.iter().flat_map(|table| &table.leaves);
    let leaves: Vec<String> = leaves.map(ToString::to_string).collect();
    // The catalog's row is the snapshot's, the function's answer is today's.
    let rewritten = transaction
        .query_opt(
            "select c.oid::regclass::text from pg_class c
             where c.oid = any($1::text[]::regclass[]) and pg_relation_filenode(c.oid) <> c.relfilenode limit 1",
            &[&leaves],
        )
        .await?;
    match rewritten {
        None => Ok(()),
        Some(row) => Err(ArchiveError::NotHere(format!(
            "table {} is being changed just now",
            row.get::<_, String>(0)
        ))),
    }
}

async fn require_served(transaction: &Transaction<'_>, tenant: Uuid) -> Result<(), ArchiveError> {
    let fence = transaction
        .query_opt(
            "select state, target_shard from ringfence.fence where tenant_id = $1",
            &[&tenant],
        )
        .await?;
    let Some(fence) = fence else {
        return Err(ArchiveError::NotHere(format!(
            "tenant {tenant} is not on this server"
        )));
    };
    match fence.get::<_, &str>(0) {
        "active" => Ok(()),
        "moved" => Err(ArchiveError::NotHere(format!(
            "tenant {tenant} had moved from this server to shard {}",
            fence.get::<_, Option<&str>>(1).unwrap_or("?")
        ))),
        _ => Err(ArchiveError::NotHere(format!(
            "tenant {tenant} is being cut over just now"
        ))),
    }
}

async fn describe(
    transaction: &Transaction<'_>,
    wanted: &Wanted,
    tables: &[TenantTable],
) -> Result<Manifest, ArchiveError> {
    let row = transaction
        .query_one(
            "select to_char(now() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
               case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end::text",
            &[],
        )
        .await?;
    let sequences = transaction
        .query("select name, last from ringfence.move_sequences()", &[])
        .await?;
    let sequences: BTreeMap<String, i64> = sequences
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let archived: Vec<ArchivedTable> = tables
        .iter()
        .enumerate()
        .map(|(index, table)| ArchivedTable::of(index, table))
        .collect();
    let shape = serde_json::to_vec(&archived).map_err(std::io::Error::from)?;
    Ok(Manifest {
        format: FORMAT,
        tenant: wanted.tenant.clone(),
        taken_at: row.get(0),
        lsn: row.get::<_, Option<String>>(1).unwrap_or_default(),
        schema: sha256(&shape),
        tables: archived,
        sequences,
    })
}

/// A name that no column has: a column goes before a row's name.
const ROW: &str = "\"ringfence row\"";

/// COPY with a quote and a delimiter that JSON never holds: its lines are the rows.
fn select(table: &TenantTable, archived: &ArchivedTable, tenant: Uuid) -> String {
    let mut columns = String::new();
    for (index, column) in archived.columns.iter().enumerate() {
        let name = &column.name;
        let comma = if index == 0 { "" } else { ", " };
        let _ = match column.form {
            Form::Plain => write!(columns, "{comma}t.{name}"),
            Form::Text => write!(columns, "{comma}t.{name}::text as {name}"),
            Form::Json => write!(
                columns,
                "{comma}case when jsonb_typeof(t.{name}) = 'null' or t.{name} ? '$ringfence' \
                 then jsonb_build_object('$ringfence', t.{name}) else t.{name} end as {name}"
            ),
        };
    }
    let key: Vec<String> = table.key.iter().map(|name| format!("t.{name}")).collect();
    let order = match key.is_empty() {
        true => String::new(),
        false => format!(" order by {}", key.join(", ")),
    };
    format!(
        "copy (select row_to_json({ROW}) from (select {columns} from {} t where t.{} = '{tenant}'{order}) {ROW}) \
         to stdout (format csv, quote e'\\x01', delimiter e'\\x02', encoding 'UTF8')",
        table.name, table.tenant_column
    )
}

async fn dump_table(
    transaction: &Transaction<'_>,
    sql: &str,
    archived: &ArchivedTable,
    pack: &mut Pack<'_>,
    digests: &mut Digests,
) -> Result<(), ArchiveError> {
    let copied = timeout(ROW_MAX, transaction.copy_out(sql)).await;
    let mut rows = pin!(copied.map_err(|_| ArchiveError::Slow("read"))??);
    let mut number = 0;
    let mut part = Vec::new();
    loop {
        let row = timeout(ROW_MAX, rows.next()).await;
        let row = row.map_err(|_| ArchiveError::Slow("read"))?.transpose()?;
        if let Some(row) = &row {
            if row.len() > ROW_BYTES_MAX {
                return Err(ArchiveError::Refused(format!(
                    "table {} has a row of {} bytes; {ROW_BYTES_MAX} are the most",
                    archived.label(),
                    row.len()
                )));
            }
            if part.capacity() == 0 {
                part.reserve(PART_BYTES + PART_BYTES / 16);
            }
            part.extend_from_slice(row);
        }
        if part.len() >= PART_BYTES || (row.is_none() && !part.is_empty()) {
            number += 1;
            let lines = std::mem::take(&mut part);
            let digest = PartDigest {
                path: archived.part(number),
                rows: lines.iter().filter(|byte| **byte == b'\n').count() as u64,
                bytes: lines.len() as u64,
                sha256: sha256(&lines),
            };
            digests.rows += digest.rows;
            digests.bytes += digest.bytes;
            pack.file(&digest.path, lines).await?;
            digests.parts.push(digest);
        }
        if row.is_none() {
            return Ok(());
        }
    }
}

/// Where packed bytes go.
struct Pack<'a> {
    packer: Option<Packer>,
    time: u64,
    out: &'a Sender<Vec<u8>>,
}

impl<'a> Pack<'a> {
    fn begin(compress: bool, out: &'a Sender<Vec<u8>>) -> Result<Self, ArchiveError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            packer: Some(Packer::new(compress)?),
            time: now.map_or(0, |since| since.as_secs()),
            out,
        })
    }

    async fn file(&mut self, path: &str, data: Vec<u8>) -> Result<(), ArchiveError> {
        let mut packer = self.packer.take().ok_or(ArchiveError::Gone)?;
        let (path, time) = (path.to_owned(), self.time);
        // Compressing some MiB is too long for a thread that serves others.
        let packed = tokio::task::spawn_blocking(move || {
            let bytes = packer.file(&path, data, time);
            (packer, bytes)
        });
        let (packer, bytes) = packed.await.map_err(std::io::Error::other)?;
        self.packer = Some(packer);
        self.send(bytes?).await
    }

    async fn end(&mut self) -> Result<(), ArchiveError> {
        let packer = self.packer.take().ok_or(ArchiveError::Gone)?;
        self.send(packer.end()?).await
    }

    async fn send(&self, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        if bytes.is_empty() {
            return Ok(());
        }
        timeout(TAKE_MAX, self.out.send(bytes))
            .await
            .map_err(|_| ArchiveError::Slow("taken"))?
            .map_err(|_| ArchiveError::Gone)
    }
}
