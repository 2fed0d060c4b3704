//! What is checked of an archive before anything is written, and of the rows
//! before anybody sees them.

use std::collections::HashMap;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use schema::tenant_tables::TenantTable;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::archive::{ArchiveError, Header, Manifest, Reader, Table, hex};
use crate::job::JobError;

/// Reads the whole archive: its tables must fit the shard's, and its parts
/// must be those of its manifest. `read` is told of the bytes so far.
pub(super) async fn verified(
    path: &Path,
    tables: &[TenantTable],
    mut read: impl AsyncFnMut(u64) -> Result<(), JobError>,
) -> Result<Manifest, JobError> {
    let (header, mut reader) = Reader::open(path).await?;
    let problems = unfit(&header, tables);
    if !problems.is_empty() {
        return Err(JobError::Refused(format!(
            "the shard's schema can't take this archive: {}",
            problems.join("; ")
        )));
    }
    let mut parts: Vec<(String, u64, String)> = Vec::new();
    let mut bytes = 0;
    while let Some(entry) = reader.next().await? {
        if entry.path == "manifest.json" {
            let manifest = parsed(&entry.bytes)?;
            require_same(&manifest, &parts, &header)?;
            return Ok(manifest);
        }
        bytes += entry.bytes.len() as u64;
        let sum = hex(&digest(&SHA256, &entry.bytes));
        parts.push((entry.path, entry.bytes.len() as u64, sum));
        read(bytes).await?;
    }
    Err(ArchiveError::Damaged("it ends before its manifest".into()).into())
}

/// The manifest of an archive that was verified before.
pub(super) async fn manifest(path: &Path) -> Result<Manifest, JobError> {
    let (_, mut reader) = Reader::open(path).await?;
    while let Some(entry) = reader.next().await? {
        if entry.path == "manifest.json" {
            return parsed(&entry.bytes);
        }
    }
    Err(ArchiveError::Damaged("it ends before its manifest".into()).into())
}

fn parsed(bytes: &[u8]) -> Result<Manifest, JobError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ArchiveError::Damaged(format!("manifest.json: {error}")).into())
}

fn require_same(
    manifest: &Manifest,
    parts: &[(String, u64, String)],
    header: &Header,
) -> Result<(), JobError> {
    let damaged = |what: String| Err(ArchiveError::Damaged(what).into());
    if manifest.parts.len() != parts.len() {
        return damaged(format!(
            "it has {} parts, its manifest {}",
            parts.len(),
            manifest.parts.len()
        ));
    }
    for (part, (path, bytes, sum)) in manifest.parts.iter().zip(parts) {
        if part.path != *path || part.bytes != *bytes || part.sha256 != *sum {
            return damaged(format!("{} is not what was exported", part.path));
        }
        if !header.tables.iter().any(|table| table.name == part.table) {
            return damaged(format!("{} is of no table of the header", part.path));
        }
    }
    let mut rows: HashMap<&str, u64> = HashMap::new();
    for part in &manifest.parts {
        *rows.entry(&part.table).or_default() += part.rows;
    }
    for table in &manifest.tables {
        if rows.get(table.table.as_str()).copied().unwrap_or(0) != table.rows {
            return damaged(format!("{}'s parts don't add up", table.table));
        }
    }
    Ok(())
}

/// Why the shard's tables can't take the archive's rows; empty where they can.
fn unfit(header: &Header, tables: &[TenantTable]) -> Vec<String> {
    let mut problems = Vec::new();
    for table in &header.tables {
        match tables.iter().find(|own| own.plain_name() == table.name) {
            None => problems.push(format!("it has no distributed table {}", table.name)),
            Some(own) => unfit_columns(table, own, &mut problems),
        }
    }
    problems
}

fn unfit_columns(table: &Table, own: &TenantTable, problems: &mut Vec<String>) {
    let name = &table.name;
    for column in &table.columns {
        let found = own.columns.iter().find(|c| c.name.as_str() == column.name);
        match found {
            None => problems.push(format!("{name} has no column {}", column.name)),
            Some(own) if own.generated => {
                problems.push(format!("{name}.{} is generated there", column.name));
            }
            Some(own) if own.type_name != column.type_name => problems.push(format!(
                "{name}.{} is {} there and {} in the archive",
                column.name, own.type_name, column.type_name
            )),
            Some(_) => {}
        }
    }
    let given = |name: &str| table.columns.iter().any(|column| column.name == name);
    for column in &own.columns {
        if !column.optional && !column.generated && !given(column.name.as_str()) {
            problems.push(format!(
                "{name}.{} must have a value, and the archive has none",
                column.name.as_str()
            ));
        }
    }
}

/// The shard has as many rows of the tenant as the archive.
pub(super) async fn counts(
    session: &Client,
    tables: &[TenantTable],
    manifest: &Manifest,
    tenant: Uuid,
) -> Result<(), JobError> {
    for table in tables {
        let sql = format!(
            "select count(*) from {} where {} = $1",
            table.name, table.tenant_column
        );
        let there: i64 = session.query_one(&sql, &[&tenant]).await?.get(0);
        let name = table.plain_name();
        let sum = manifest.tables.iter().find(|sum| sum.table == name);
        let wanted = sum.map_or(0, |sum| sum.rows);
        if there.unsigned_abs() != wanted {
            return Err(JobError::Refused(format!(
                "{name} has {there} rows after loading {wanted}"
            )));
        }
    }
    Ok(())
}

/// Foreign keys did not fire while rows were loaded: each must hold now.
pub(super) async fn foreign_keys(
    session: &Client,
    tables: &[TenantTable],
    tenant: Uuid,
) -> Result<(), JobError> {
    for table in tables {
        for key in &table.foreign_keys {
            let pairs = key.columns.iter().zip(&key.foreign_columns);
            let joined: Vec<String> = pairs
                .map(|(own, foreign)| format!("p.{foreign} = c.{own}"))
                .collect();
            let set: Vec<String> = key
                .columns
                .iter()
                .map(|own| format!("c.{own} is not null"))
                .collect();
            let sql = format!(
                "select exists (select from {} c where c.{} = $1 and {}
                   and not exists (select from {} p where {}))",
                table.name,
                table.tenant_column,
                set.join(" and "),
                key.table,
                joined.join(" and "),
            );
            if session.query_one(&sql, &[&tenant]).await?.get(0) {
                return Err(JobError::Refused(format!(
                    "rows of {} reference rows of {} that are not there ({})",
                    table.plain_name(),
                    key.table,
                    key.name.as_str()
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use schema::ident::QualifiedName;
    use schema::tenant_tables::TenantColumn;

    use super::*;
    use crate::archive::{Column, TenantName};

    fn header(tables: Vec<Table>) -> Header {
        Header {
            format: 1,
            tenant: TenantName {
                id: Uuid::nil(),
                slug: "a".into(),
                name: "A".into(),
            },
            shard: "s1".into(),
            taken_at: String::new(),
            postgres: "15".into(),
            tables,
        }
    }

    #[test]
    fn a_schema_that_lacks_something_is_named() {
        let column = |name: &str, optional, generated| TenantColumn {
            name: name.into(),
            type_name: "text".into(),
            generated,
            optional,
            sequence: None,
        };
        let own = TenantTable {
            name: QualifiedName::new("public", "t"),
            tenant_column: "tenant_id".into(),
            columns: vec![
                column("a", true, false),
                column("must", false, false),
                column("made", true, true),
            ],
            key: Vec::new(),
            leaves: Vec::new(),
            foreign_keys: Vec::new(),
            rows_estimate: 0,
        };
        let given = |name: &str, type_name: &str| Column {
            name: name.into(),
            type_name: type_name.into(),
        };
        let archived = header(vec![
            Table {
                name: "public.t".into(),
                columns: vec![
                    given("a", "integer"),
                    given("b", "text"),
                    given("made", "text"),
                ],
            },
            Table {
                name: "public.u".into(),
                columns: Vec::new(),
            },
        ]);
        insta::assert_snapshot!(unfit(&archived, &[own]).join("\n"), @r"
        public.t.a is text there and integer in the archive
        public.t has no column b
        public.t.made is generated there
        public.t.must must have a value, and the archive has none
        it has no distributed table public.u
        ");
    }
}
