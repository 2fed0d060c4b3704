//! pgoutput's messages, version 1, as cells: which tenant's rows of which table
//! a transaction touched. Pure; whatever the bytes are, it answers or refuses.
//!
//! Of a transaction only its cells are kept, so that its size costs no memory.

use std::collections::HashMap;

use tenancy::changes::{Cell, CellSet, Lsn, TableHash};
use tenancy::id::TenantId;
use uuid::Uuid;

/// Prefix of the messages that DDL leaves (`ringfence.note_ddl`).
const DDL: &str = "ringfence.ddl";
/// Prefix of a worker's own markers.
pub(super) const MARKER: &str = "ringfence.marker";
/// The column that says whose a row is.
const TENANT: &str = "tenant_id";
/// Tables that are remembered at most; a shard has fewer.
const TABLES_MAX: usize = 100_000;

/// Why bytes are not pgoutput's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// They end too early.
    #[error("a message is cut short")]
    Short,
    /// They go on too long.
    #[error("a message has bytes too many")]
    Long,
    /// A kind that version 1 does not have.
    #[error("a message has the unknown kind {0:?}")]
    Kind(char),
    /// A name that is not UTF-8.
    #[error("a name is not UTF-8")]
    Name,
    /// A row of a table that was not described.
    #[error("a row of the unknown table {0}")]
    Table(u32),
    /// A row outside a transaction, or a transaction in another.
    #[error("a message at the wrong time")]
    Order,
    /// More tables than a shard can have.
    #[error("too many tables")]
    TooManyTables,
}

/// A transaction that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    /// Its transaction id, the lower half.
    pub(super) xid: u32,
    /// Just behind it.
    pub(super) end: Lsn,
    /// When, by the primary's clock, in microseconds since 2000.
    pub(super) at_micros: i64,
    /// What it touched.
    pub(super) cells: CellSet,
    /// Markers in it, as they were written.
    pub(super) markers: Vec<Vec<u8>>,
}

/// What is known between two messages.
#[derive(Default)]
pub(super) struct Decoder {
    tables: HashMap<u32, Table>,
    open: Option<Open>,
}

/// A table as the stream has described it.
struct Table {
    hash: TableHash,
    /// Place of the tenant's column; none in a reference table.
    tenant: Option<usize>,
}

#[derive(Default)]
struct Open {
    xid: u32,
    cells: CellSet,
    markers: Vec<Vec<u8>>,
}

impl Decoder {
    /// A transaction's begin.
    pub(super) fn begin(&mut self, xid: u32) -> Result<(), DecodeError> {
        if self.open.is_some() {
            return Err(DecodeError::Order);
        }
        self.open = Some(Open {
            xid,
            ..Open::default()
        });
        Ok(())
    }

    /// A logical message, as `pg_logical_emit_message` writes it.
    pub(super) fn message(&mut self, transactional: bool, prefix: &str, content: &[u8]) {
        // Outside a transaction anybody may write what looks like ours.
        let Some(open) = self.open.as_mut().filter(|_| transactional) else {
            return;
        };
        match prefix {
            // Rule 12: what DDL touches can't be told from its text.
            DDL => open.cells = CellSet::All,
            MARKER => open.markers.push(content.to_vec()),
            _ => {}
        }
    }

    /// A transaction's commit.
    pub(super) fn commit(&mut self, end: Lsn, at_micros: i64) -> Result<Commit, DecodeError> {
        let open = self.open.take().ok_or(DecodeError::Order)?;
        Ok(Commit {
            xid: open.xid,
            end,
            at_micros,
            cells: open.cells,
            markers: open.markers,
        })
    }

    /// Any other message.
    pub(super) fn change(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let mut rest = Bytes(bytes);
        match rest.u8()? {
            b'R' => self.describe(&mut rest)?,
            kind @ (b'I' | b'U' | b'D') => {
                each_row(kind, &mut rest, |table, rest| self.row(table, rest))?;
            }
            b'T' => self.truncate(&mut rest)?,
            // Types' names and origins change nothing.
            b'Y' | b'O' => return Ok(()),
            kind => return Err(DecodeError::Kind(kind.into())),
        }
        match rest.0 {
            [] => Ok(()),
            _ => Err(DecodeError::Long),
        }
    }

    fn describe(&mut self, rest: &mut Bytes<'_>) -> Result<(), DecodeError> {
        let id = rest.u32()?;
        let schema = match rest.name()? {
            "" => "pg_catalog",
            schema => schema,
        };
        let hash = TableHash::of(schema, rest.name()?);
        let _identity = rest.u8()?;
        let mut tenant = None;
        for column in 0..usize::from(rest.u16()?) {
            let _flags = rest.u8()?;
            if rest.name()? == TENANT {
                tenant = Some(column);
            }
            let _type_and_modifier = rest.take(8)?;
        }
        if self.tables.len() >= TABLES_MAX && !self.tables.contains_key(&id) {
            return Err(DecodeError::TooManyTables);
        }
        self.tables.insert(id, Table { hash, tenant });
        Ok(())
    }

    /// Raises the cell of one row, old or new.
    fn row(&mut self, table: u32, rest: &mut Bytes<'_>) -> Result<(), DecodeError> {
        let open = self.open.as_mut().ok_or(DecodeError::Order)?;
        let table = self.tables.get(&table).ok_or(DecodeError::Table(table))?;
        let mut tenant = None;
        for column in 0..usize::from(rest.u16()?) {
            let value = match rest.expect(b"nutb")? {
                b'n' | b'u' => None,
                format => {
                    let length = rest.u32()? as usize;
                    Some((format, rest.take(length)?))
                }
            };
            if table.tenant == Some(column) {
                tenant = value.and_then(|(format, value)| uuid(format, value));
            }
        }
        match (table.tenant, tenant) {
            (None, _) => open.cells.insert(Cell::table(table.hash)),
            (Some(_), Some(tenant)) => open.cells.insert(Cell::rows(tenant, table.hash)),
            // Nobody's row, or one that can't be read: anybody's.
            (Some(_), None) => open.cells = CellSet::All,
        }
        Ok(())
    }

    /// Rule 12: every tenant's rows are gone.
    fn truncate(&mut self, rest: &mut Bytes<'_>) -> Result<(), DecodeError> {
        let open = self.open.as_mut().ok_or(DecodeError::Order)?;
        let count = rest.u32()?;
        let _options = rest.u8()?;
        for _ in 0..count {
            let id = rest.u32()?;
            let table = self.tables.get(&id).ok_or(DecodeError::Table(id))?;
            open.cells.insert(Cell::table(table.hash));
        }
        Ok(())
    }
}

fn uuid(format: u8, value: &[u8]) -> Option<TenantId> {
    let uuid = match format {
        b'b' => Uuid::from_slice(value).ok()?,
        _ => Uuid::try_parse_ascii(value).ok()?,
    };
    Some(TenantId(uuid))
}

/// Gives each row of an insert, update or delete to `row`, an old one first; it
/// must read all of it.
pub(crate) fn each_row(
    kind: u8,
    rest: &mut Bytes<'_>,
    mut row: impl FnMut(u32, &mut Bytes<'_>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let table = rest.u32()?;
    let kinds: &[u8] = match kind {
        b'I' => b"N",
        // The old key comes only where it changed.
        b'U' => b"KON",
        _ => b"KO",
    };
    let first = rest.expect(kinds)?;
    row(table, rest)?;
    if kind == b'U' && first != b'N' {
        rest.expect(b"N")?;
        row(table, rest)?;
    }
    Ok(())
}

/// What of a message has not been read.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// One of these.
    pub(crate) fn expect(&mut self, kinds: &[u8]) -> Result<u8, DecodeError> {
        let kind = self.u8()?;
        match kinds.contains(&kind) {
            true => Ok(kind),
            false => Err(DecodeError::Kind(kind.into())),
        }
    }

    /// Up to a zero.
    pub(crate) fn name(&mut self) -> Result<&'a str, DecodeError> {
        let length = self.0.iter().position(|byte| *byte == 0);
        let name = self.take(length.ok_or(DecodeError::Short)?)?;
        self.u8()?;
        std::str::from_utf8(name).map_err(|_| DecodeError::Name)
    }
}

#[cfg(test)]
#[path = "decode/tests.rs"]
mod tests;
