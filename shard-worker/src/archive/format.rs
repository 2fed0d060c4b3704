//! What the archive's JSON files say.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The format's number.
pub const FORMAT: u32 = 1;

/// `header.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// Whose rows.
    pub tenant: TenantName,
    /// Where it lived.
    pub shard: String,
    /// When its snapshot was taken, UTC.
    pub taken_at: String,
    /// Postgres' version that wrote the rows.
    pub postgres: String,
    /// Tables, also those without rows.
    pub tables: Vec<Table>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantName {
    /// Its id.
    pub id: Uuid,
    /// Its slug.
    pub slug: String,
    /// Its name for people.
    pub name: String,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// `schema.table`.
    pub name: String,
    /// Columns as they stand in its parts: without the tenant's and without
    /// those that Postgres computes.
    pub columns: Vec<Column>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type as Postgres formats it.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// `manifest.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Parts in order.
    pub parts: Vec<Part>,
    /// Tables in order.
    pub tables: Vec<TableSum>,
}

/// A part of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its path in the archive.
    pub path: String,
    /// Its table.
    pub table: String,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// Digest of it.
    pub sha256: String,
}

/// All parts of a table together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSum {
    /// `schema.table`.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its rows, without header lines.
    pub bytes: u64,
    /// Digest of its rows, without header lines.
    pub sha256: String,
}

impl Manifest {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}
