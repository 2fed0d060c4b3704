//! Gives an archive's rows to a server: part by part, each a transaction that
//! also notes the part, so that none is given twice.

use std::fmt::Write as _;

use tokio_postgres::{Client, GenericClient, Transaction};
use uuid::Uuid;

use super::manifest::{ArchivedTable, Digests, Form, Manifest, PartDigest, find};
use super::{ArchiveError, SETTINGS};
use crate::refused;
use crate::sequences::{self, Raised};
use crate::tenant_tables::{TenantTable, tenant_tables};

/// Longest statement that puts a part's rows.
const PART_MAX_MS: u32 = 120_000;
/// Longest look at a table as a whole.
const TABLE_MAX_MS: u32 = 3_600_000;

/// An import as its shard knows it.
#[derive(Clone, Debug)]
pub struct Import {
    /// Its job.
    pub job: Uuid,
    /// The tenant that gets the rows.
    pub tenant: Uuid,
    /// `open`, `complete` or `closed`.
    pub state: String,
    /// The archive's manifest.
    pub manifest: Manifest,
    /// Its digest, as text.
    pub digest: String,
    /// Why the archive can't be used.
    pub problem: Option<(String, String)>,
    /// Rows that are there.
    pub rows: u64,
    /// Bytes of them in the archive.
    pub bytes: u64,
    /// Since the last part came in, be it again.
    pub idle_seconds: f64,
}

/// Prepares the shard for a tenant's rows; may be called again.
///
/// # Errors
/// [`ArchiveError::Schema`] where the tables differ; [`ArchiveError::Refused`]
/// where rows of the tenant are there already.
pub async fn open(
    client: &mut Client,
    job: Uuid,
    tenant: Uuid,
    manifest: &Manifest,
    digest: &str,
) -> Result<(), ArchiveError> {
    let transaction = begin(client, TABLE_MAX_MS).await?;
    let tables = tenant_tables(&transaction).await?;
    if let Some(why) = manifest.differs_from(&tables) {
        return Err(ArchiveError::Schema(why));
    }
    let json = serde_json::to_value(manifest).map_err(std::io::Error::from)?;
    let opened = transaction
        .execute(
            "insert into ringfence.import (job, tenant, manifest, digest)
             values ($1, $2, $3, convert_to($4, 'UTF8')) on conflict (job) do nothing",
            &[&job, &tenant, &json, &digest],
        )
        .await?;
    if opened == 1 {
        for table in &tables {
            let sql = format!(
                "select exists (select from {} where {} = $1)",
                table.name, table.tenant_column
            );
            if transaction.query_one(&sql, &[&tenant]).await?.get(0) {
                return Err(ArchiveError::Refused(format!(
                    "the shard holds rows of tenant {tenant} already, in {}: they are nobody's, delete them first",
                    table.name
                )));
            }
        }
    }
    transaction.commit().await?;
    Ok(())
}

/// How far an import is; none where it was not opened, or has ended.
///
/// # Errors
/// What the server said.
pub async fn look(client: &Client, job: Uuid) -> Result<Option<Import>, ArchiveError> {
    let row = client
        .query_opt(
            "select i.tenant, i.state, i.manifest, convert_from(i.digest, 'UTF8') as digest,
               i.problem ->> 'code' as code, i.problem ->> 'message' as message,
               coalesce(p.rows, 0)::bigint as rows, coalesce(p.bytes, 0)::bigint as bytes,
               extract(epoch from clock_timestamp() - greatest(i.began_at, p.at))::float8 as idle
             from ringfence.import i
             left join lateral (select sum(rows) as rows, sum(bytes) as bytes, max(at) as at
               from ringfence.import_part p where p.job = i.job) p on true
             where i.job = $1",
            &[&job],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let manifest = serde_json::from_value(row.get("manifest"))
        .map_err(|error| ArchiveError::Format(error.to_string()))?;
    let problem = Option::zip(row.get("code"), row.get("message"));
    Ok(Some(Import {
        job,
        tenant: row.get("tenant"),
        state: row.get("state"),
        manifest,
        digest: row.get("digest"),
        problem,
        rows: row.get::<_, i64>("rows").unsigned_abs(),
        bytes: row.get::<_, i64>("bytes").unsigned_abs(),
        idle_seconds: row.get("idle"),
    }))
}

/// Puts a part's rows, unless they are there. `tables` are the shard's.
///
/// # Errors
/// [`ArchiveError::Gone`] where the import is open no longer,
/// [`ArchiveError::Damaged`] where another part of that name was put before.
pub async fn put(
    client: &mut Client,
    import: &Import,
    tables: &[TenantTable],
    place: usize,
    is: &PartDigest,
    lines: Vec<u8>,
) -> Result<(), ArchiveError> {
    let archived = import.manifest.tables.get(place);
    let table = archived.and_then(|archived| Some((archived, find(tables, archived)?)));
    let Some((archived, table)) = table else {
        return Err(ArchiveError::Schema(format!("{} has no table", is.path)));
    };
    let lines = String::from_utf8(lines)
        .map_err(|_| ArchiveError::Damaged(format!("{} is not UTF-8", is.path)))?;
    let transaction = begin(client, PART_MAX_MS).await?;
    require_open(&transaction, import.job, SHARED).await?;
    let index = i32::try_from(place).unwrap_or(i32::MAX);
    let noted = transaction
        .execute(
            "insert into ringfence.import_part (job, path, item, rows, bytes, digest)
             values ($1, $2, $3, $4, $5, convert_to($6, 'UTF8')) on conflict (job, path) do nothing",
            &[
                &import.job,
                &is.path,
                &index,
                &signed(is.rows),
                &signed(is.bytes),
                &is.sha256,
            ],
        )
        .await?;
    if noted == 0 {
        require_same(&transaction, import.job, is).await?;
        // Who sends it again is at work: the job doesn't give up meanwhile.
        transaction
            .execute(
                "update ringfence.import_part set at = clock_timestamp()
                 where job = $1 and path = $2 and at < clock_timestamp() - interval '10 seconds'",
                &[&import.job, &is.path],
            )
            .await?;
        transaction.commit().await?;
        return Ok(());
    }
    // As rows are replicated: neither triggers nor foreign keys fire. The
    // foreign keys are looked at once everything is there.
    transaction
        .batch_execute("set local session_replication_role = replica")
        .await?;
    let sql = insert(table, archived)?;
    let put = transaction.execute(&sql, &[&import.tenant, &lines]).await;
    let put = put.map_err(|error| of_rows(&is.path, error))?;
    if put != is.rows {
        return Err(ArchiveError::Damaged(format!(
            "{} has {} lines, of which {put} are rows",
            is.path, is.rows
        )));
    }
    transaction.commit().await?;
    Ok(())
}

/// Notes that the whole archive has come in and is what it was written as.
///
/// # Errors
/// [`ArchiveError::Damaged`] where other parts were put than it has.
pub async fn complete(
    client: &mut Client,
    import: &Import,
    digests: &Digests,
) -> Result<(), ArchiveError> {
    let transaction = begin(client, PART_MAX_MS).await?;
    // What is being put now would be in no digest.
    require_open(&transaction, import.job, ALONE).await?;
    let noted = transaction
        .query(
            "select path, rows, bytes, convert_from(digest, 'UTF8') from ringfence.import_part
             where job = $1 order by item, path",
            &[&import.job],
        )
        .await?;
    let noted: Vec<PartDigest> = noted
        .iter()
        .map(|row| PartDigest {
            path: row.get(0),
            rows: row.get::<_, i64>(1).unsigned_abs(),
            bytes: row.get::<_, i64>(2).unsigned_abs(),
            sha256: row.get(3),
        })
        .collect();
    if noted != digests.parts {
        return Err(ArchiveError::Damaged(
            "what came in is not what its digests say".into(),
        ));
    }
    transaction
        .execute(
            "update ringfence.import set state = 'complete' where job = $1",
            &[&import.job],
        )
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// Notes why the archive can't be used: the job cleans up.
///
/// # Errors
/// What the server said.
pub async fn refuse(client: &Client, job: Uuid, why: &ArchiveError) -> Result<(), ArchiveError> {
    let mut message = why.to_string();
    if let Some(cause) = std::error::Error::source(why) {
        let _ = write!(message, ": {cause}");
        if let Some(cause) = cause.source() {
            let _ = write!(message, ": {cause}");
        }
    }
    let problem = serde_json::json!({ "code": why.code(), "message": message });
    client
        .execute(
            "update ringfence.import set problem = $2 where job = $1 and state = 'open'",
            &[&job, &problem],
        )
        .await?;
    Ok(())
}

/// From here on no part is put: waits for those under way. False where the
/// import was never opened here: rows that are there are not its own.
///
/// # Errors
/// What the server said.
pub async fn close(client: &Client, job: Uuid) -> Result<bool, ArchiveError> {
    let closed = client
        .execute(
            "update ringfence.import set state = 'closed' where job = $1",
            &[&job],
        )
        .await?;
    Ok(closed > 0)
}

/// Removes what was noted.
///
/// # Errors
/// What the server said.
pub async fn forget(client: &Client, job: Uuid) -> Result<(), ArchiveError> {
    for table in ["ringfence.import_part", "ringfence.import"] {
        let sql = format!("delete from {table} where job = $1");
        client.execute(&sql, &[&job]).await?;
    }
    Ok(())
}

/// Compares what is there with what came in, follows every foreign key, and
/// raises the sequences. Returns the rows by table.
///
/// # Errors
/// [`ArchiveError::Refused`] where something is missing.
pub async fn verify(
    client: &mut Client,
    import: &Import,
) -> Result<Vec<(String, i64)>, ArchiveError> {
    let transaction = begin(client, TABLE_MAX_MS).await?;
    let tables = tenant_tables(&transaction).await?;
    let mut counted = Vec::new();
    for (index, archived) in import.manifest.tables.iter().enumerate() {
        let table = find(&tables, archived).ok_or_else(|| {
            ArchiveError::Schema(format!("table {} has gone meanwhile", archived.label()))
        })?;
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        let sql = format!(
            "select (select count(*) from {} where {} = $1),
               (select coalesce(sum(rows), 0)::bigint from ringfence.import_part where job = $2 and item = $3)",
            table.name, table.tenant_column
        );
        let row = transaction
            .query_one(&sql, &[&import.tenant, &import.job, &index])
            .await?;
        let (is, came): (i64, i64) = (row.get(0), row.get(1));
        if is != came {
            return Err(ArchiveError::Refused(format!(
                "table {} has {is} rows of the tenant, {came} came in",
                archived.label()
            )));
        }
        if is > 0 {
            follow_keys(&transaction, table, import.tenant).await?;
            counted.push((archived.label(), is));
        }
    }
    raise(&transaction, import, &tables).await?;
    transaction.commit().await?;
    Ok(counted)
}

/// Every row that names another finds it.
async fn follow_keys(
    transaction: &Transaction<'_>,
    table: &TenantTable,
    tenant: Uuid,
) -> Result<(), ArchiveError> {
    for key in &table.foreign_keys {
        let sql = format!("select exists ({})", table.orphans(key));
        if transaction.query_one(&sql, &[&tenant]).await?.get(0) {
            return Err(ArchiveError::Refused(format!(
                "rows of table {} name rows of {} that are not there (foreign key {})",
                table.name, key.table, key.name
            )));
        }
    }
    Ok(())
}

/// Past the source's, and past every number that the rows hold.
async fn raise(
    transaction: &Transaction<'_>,
    import: &Import,
    tables: &[TenantTable],
) -> Result<(), ArchiveError> {
    let tables: Vec<&TenantTable> = tables.iter().collect();
    let mut past = sequences::highest(transaction, &tables, import.tenant).await?;
    past.extend(import.manifest.sequences.clone());
    match sequences::raise(transaction, past).await? {
        Raised::All(_) => Ok(()),
        Raised::NearlyUsedUp(name) => Err(ArchiveError::Refused(format!(
            "the archive's numbers would nearly use up sequence {name}, from which all tenants draw"
        ))),
    }
}

async fn begin(client: &mut Client, statement_ms: u32) -> Result<Transaction<'_>, ArchiveError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(SETTINGS).await?;
    transaction
        .batch_execute(&format!("set local statement_timeout = {statement_ms}"))
        .await?;
    Ok(transaction)
}

/// Beside others that put parts.
const SHARED: &str = "for share";
/// Once those under way are done, and before others.
const ALONE: &str = "for update";

/// Holds the import open for this transaction.
async fn require_open(
    client: &impl GenericClient,
    job: Uuid,
    hold: &'static str,
) -> Result<(), ArchiveError> {
    let open = format!(
        "select from ringfence.import where job = $1 and state = 'open' and problem is null {hold}"
    );
    let open = client.query_opt(&open, &[&job]).await?;
    open.map(|_| ()).ok_or(ArchiveError::Gone)
}

async fn require_same(
    client: &impl GenericClient,
    job: Uuid,
    is: &PartDigest,
) -> Result<(), ArchiveError> {
    let known = client
        .query_one(
            "select convert_from(digest, 'UTF8') from ringfence.import_part where job = $1 and path = $2",
            &[&job, &is.path],
        )
        .await?;
    match known.get::<_, &str>(0) == is.sha256 {
        true => Ok(()),
        false => Err(ArchiveError::Damaged(format!(
            "{} is not what it was when it was sent before",
            is.path
        ))),
    }
}

/// A name that no column has.
const LINE: &str = "\"ringfence line\"";

/// `$1` is the tenant, `$2` the lines.
fn insert(table: &TenantTable, archived: &ArchivedTable) -> Result<String, ArchiveError> {
    let mut names = format!("{}", table.tenant_column);
    let mut values = String::from("$1::uuid");
    let mut record = String::new();
    for column in &archived.columns {
        let own = table.columns.iter().find(|own| own.name == column.name);
        // The shard's own words become SQL, not the archive's.
        let Some((name, type_name)) = own.map(|own| (&own.name, &own.type_name)) else {
            return Err(ArchiveError::Schema(format!(
                "table {} lost column {}",
                table.name, column.name
            )));
        };
        let comma = if record.is_empty() { "" } else { ", " };
        let _ = write!(names, ", {name}");
        let _ = match column.form {
            Form::Plain => {
                let _ = write!(record, "{comma}{name} {type_name}");
                write!(values, ", x.{name}")
            }
            Form::Text => {
                let _ = write!(record, "{comma}{name} text");
                write!(values, ", x.{name}::{type_name}")
            }
            Form::Json => {
                let _ = write!(record, "{comma}{name} jsonb");
                write!(
                    values,
                    ", case when x.{name} ? '$ringfence' then x.{name} -> '$ringfence' else x.{name} end"
                )
            }
        };
    }
    let record = match record.is_empty() {
        true => String::new(),
        false => format!(", json_to_record({LINE}::json) as x ({record})"),
    };
    Ok(format!(
        "insert into {} ({names}) overriding system value
         select {values} from string_to_table($2::text, E'\\n') {LINE}{record} where {LINE} <> ''",
        table.name
    ))
}

/// What a server says of rows that it does not take.
fn of_rows(path: &str, error: tokio_postgres::Error) -> ArchiveError {
    match refused::of_row(&error) {
        Some(why) => ArchiveError::Refused(format!("rows of {path} are refused: {why}")),
        None => ArchiveError::Postgres(error),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
