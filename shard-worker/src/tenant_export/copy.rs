//! Copies one table's rows of a tenant out of Postgres, cut into parts.

use std::pin::Pin;

use aws_lc_rs::digest::{Context as Digest, SHA256, digest};
use bytes::Bytes;
use futures_util::StreamExt;
use schema::tenant_tables::TenantTable;
use tokio_postgres::{CopyOutStream, Transaction};
use uuid::Uuid;

use crate::archive::{Column, PART_BYTES, Part, Table, TableSum, hex};
use crate::job::JobError;

/// A table being copied.
pub(super) struct TableCopy {
    table: String,
    head: Vec<u8>,
    rows: Pin<Box<CopyOutStream>>,
    parts: usize,
    sum: Digest,
    total_rows: u64,
    total_bytes: u64,
    over: bool,
}

impl TableCopy {
    pub(super) async fn start(
        snapshot: &Transaction<'_>,
        table: &TenantTable,
        tenant: Uuid,
    ) -> Result<Self, JobError> {
        let described = described(table);
        let rows = snapshot.copy_out(&copy_out(table, tenant)).await?;
        Ok(Self {
            head: head(&described),
            table: described.name,
            rows: Box::pin(rows),
            parts: 0,
            sum: Digest::new(&SHA256),
            total_rows: 0,
            total_bytes: 0,
            over: false,
        })
    }

    /// The next part and its bytes; none at the end, and none of an empty table.
    pub(super) async fn next_part(&mut self) -> Result<Option<(Part, Vec<u8>)>, JobError> {
        let mut bytes = Vec::new();
        let mut rows = 0;
        // Postgres sends each row as a message of its own.
        while !self.over && bytes.len() < PART_BYTES {
            let row: Option<Result<Bytes, _>> = self.rows.next().await;
            let Some(row) = row.transpose()? else {
                self.over = true;
                break;
            };
            if bytes.is_empty() {
                bytes.extend_from_slice(&self.head);
            }
            self.sum.update(&row);
            self.total_bytes += row.len() as u64;
            bytes.extend_from_slice(&row);
            rows += 1;
        }
        if rows == 0 {
            return Ok(None);
        }
        self.parts += 1;
        self.total_rows += rows;
        let part = Part {
            path: format!("data/{}/{:06}.csv", self.table, self.parts),
            table: self.table.clone(),
            rows,
            bytes: bytes.len() as u64,
            sha256: hex(&digest(&SHA256, &bytes)),
        };
        Ok(Some((part, bytes)))
    }

    /// All parts together.
    pub(super) fn sum(self) -> TableSum {
        TableSum {
            table: self.table,
            rows: self.total_rows,
            bytes: self.total_bytes,
            sha256: hex(&self.sum.finish()),
        }
    }
}

/// The table as the archive's header names it.
pub(super) fn described(table: &TenantTable) -> Table {
    let stored = table.columns.iter().filter(|column| !column.generated);
    Table {
        name: table.plain_name(),
        columns: stored
            .map(|column| Column {
                name: column.name.as_str().to_owned(),
                type_name: column.type_name.clone(),
            })
            .collect(),
    }
}

/// The planner's guess of the tenant's rows.
pub(super) async fn estimate(
    snapshot: &Transaction<'_>,
    table: &TenantTable,
    tenant: Uuid,
) -> Result<u64, JobError> {
    let sql = format!(
        "explain (format json) select from {} where {} = '{tenant}'",
        table.name, table.tenant_column
    );
    let plan: serde_json::Value = snapshot.query_one(&sql, &[]).await?.get(0);
    Ok(plan[0]["Plan"]["Plan Rows"].as_u64().unwrap_or(0))
}

/// In order of the key, so that equal rows give equal archives.
fn copy_out(table: &TenantTable, tenant: Uuid) -> String {
    let stored = table.columns.iter().filter(|column| !column.generated);
    let columns: Vec<String> = stored.map(|column| format!("t.{}", column.name)).collect();
    let order: Vec<String> = match table.key.is_empty() {
        false => table.key.iter().map(|name| format!("t.{name}")).collect(),
        true => columns.iter().map(|column| format!("{column}::text")).collect(),
    };
    let order = match order.is_empty() {
        true => String::new(),
        false => format!(" order by {}", order.join(", ")),
    };
    format!(
        "copy (select {} from {} t where t.{} = '{tenant}'{order}) to stdout (format csv, encoding 'UTF8')",
        columns.join(", "),
        table.name,
        table.tenant_column,
    )
}

/// The header line of each part.
fn head(table: &Table) -> Vec<u8> {
    let names = table.columns.iter();
    let quoted: Vec<String> = names
        .map(|column| format!("\"{}\"", column.name.replace('"', "\"\"")))
        .collect();
    format!("{}\n", quoted.join(",")).into_bytes()
}

#[cfg(test)]
mod tests {
    use schema::ident::QualifiedName;
    use schema::tenant_tables::TenantColumn;

    use super::*;

    fn table(key: &[&str]) -> TenantTable {
        let column = |name: &str, generated| TenantColumn {
            name: name.into(),
            type_name: "text".into(),
            generated,
            optional: true,
            sequence: None,
        };
        TenantTable {
            name: QualifiedName::new("public", "a\"b"),
            tenant_column: "tenant_id".into(),
            columns: vec![column("id", false), column("computed", true), column("x y", false)],
            key: key.iter().map(|name| (*name).into()).collect(),
            leaves: Vec::new(),
            foreign_keys: Vec::new(),
            rows_estimate: 0,
        }
    }

    #[test]
    fn statements() {
        let tenant = Uuid::nil();
        insta::assert_snapshot!(copy_out(&table(&["id"]), tenant), @r#"copy (select t."id", t."x y" from "public"."a""b" t where t."tenant_id" = '00000000-0000-0000-0000-000000000000' order by t."id") to stdout (format csv, encoding 'UTF8')"#);
        insta::assert_snapshot!(copy_out(&table(&[]), tenant), @r#"copy (select t."id", t."x y" from "public"."a""b" t where t."tenant_id" = '00000000-0000-0000-0000-000000000000' order by t."id"::text, t."x y"::text) to stdout (format csv, encoding 'UTF8')"#);
        assert_eq!(head(&described(&table(&["id"]))), b"\"id\",\"x y\"\n");
    }
}
