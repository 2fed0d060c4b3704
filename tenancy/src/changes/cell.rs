//! Cells: which of a shard's 65,536 counters a row's change raises. Two things
//! that share a cell cost a miss, never a wrong answer.
//!
//! The hash is fixed for good and the same on all platforms: routers and
//! workers of different builds must agree. Golden values in the tests hold it.

use serde::{Deserialize, Serialize};

use crate::id::TenantId;

/// Cells of one shard.
pub const CELLS: usize = 1 << 16;

/// Changes that touch more are taken to touch all.
const CELLS_MAX: usize = 8_192;

/// A place in a shard's array of cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cell(pub u16);

/// A qualified table name's hash: computed once a table, not once a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableHash(u64);

impl TableHash {
    /// The fence, whose row of a tenant is a cell of its own (rule 11).
    pub const FENCE: Self = Self::of("ringfence", "fence");

    /// FNV-1a, 64 bits, over the schema's bytes, a zero, the name's bytes. Names
    /// as the catalog has them, unquoted; of a partition, its root's.
    pub const fn of(schema: &str, name: &str) -> Self {
        let hash = fnv(0xcbf2_9ce4_8422_2325, schema.as_bytes());
        Self(fnv(fnv(hash, &[0]), name.as_bytes()))
    }
}

const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

impl Cell {
    /// A tenant's rows of a distributed table.
    ///
    /// The top 16 bits of `mix(mix(table ^ high) ^ low)`, where `high` and `low`
    /// are the halves of the tenant's id read big-endian.
    pub fn rows(tenant: TenantId, table: TableHash) -> Self {
        let (high, low) = tenant.0.as_u64_pair();
        Self::top(mix(mix(table.0 ^ high) ^ low))
    }

    /// The whole table, for every tenant: raised by TRUNCATE, and by any change
    /// of a table that has no tenants. Whoever reads the table compares it, too.
    ///
    /// The top 16 bits of `mix(!table)`.
    pub fn table(table: TableHash) -> Self {
        Self::top(mix(!table.0))
    }

    /// The tenant's fence.
    pub fn fence(tenant: TenantId) -> Self {
        Self::rows(tenant, TableHash::FENCE)
    }

    /// Its place in the array.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    fn top(hash: u64) -> Self {
        Self((hash >> 48) as u16)
    }
}

/// MurmurHash3's 64-bit finalizer: every bit of the input reaches every bit.
const fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// The cells that changes touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CellSet {
    /// These, in rising order, each once; may be none.
    Some(Vec<Cell>),
    /// All of the shard's.
    All,
}

impl Default for CellSet {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

impl CellSet {
    /// Adds one.
    pub fn insert(&mut self, cell: Cell) {
        let Self::Some(cells) = self else { return };
        // Rows come tenant by tenant and table by table: the last is often the same.
        if let Err(place) = cells.binary_search(&cell) {
            cells.insert(place, cell);
        }
        self.bound();
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Some(cells), Self::Some(more)) => {
                cells.extend_from_slice(more);
                cells.sort_unstable();
                cells.dedup();
            }
        }
        self.bound();
    }

    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(cells) if cells.is_empty())
    }

    /// Whether it names this cell.
    pub fn contains(&self, cell: Cell) -> bool {
        match self {
            Self::Some(cells) => cells.binary_search(&cell).is_ok(),
            Self::All => true,
        }
    }

    /// Bounded, and as the encoding wants it.
    pub(super) fn is_canonical(&self) -> bool {
        match self {
            Self::Some(cells) => cells.len() <= CELLS_MAX && cells.is_sorted_by(|a, b| a < b),
            Self::All => true,
        }
    }

    fn bound(&mut self) {
        if matches!(self, Self::Some(cells) if cells.len() > CELLS_MAX) {
            *self = Self::All;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn tenant(n: u128) -> TenantId {
        TenantId(Uuid::from_u128(n))
    }

    #[test]
    fn the_hash_never_changes() {
        let orders = TableHash::of("public", "orders");
        let acme = tenant(0x0192_4e1c_7a6b_7c3d_8e5f_0a1b_2c3d_4e5f);
        let golden = [
            Cell::rows(acme, orders),
            Cell::rows(tenant(0), orders),
            Cell::table(orders),
            Cell::fence(acme),
        ];
        insta::assert_debug_snapshot!((orders, golden.map(|cell| cell.0)));
    }

    #[test]
    fn names_are_told_apart() {
        assert_ne!(TableHash::of("a", "bc"), TableHash::of("ab", "c"));
        assert_ne!(TableHash::of("", "a"), TableHash::of("a", ""));
    }

    #[test]
    fn cells_are_spread_evenly() {
        let mut load = vec![0_u32; CELLS];
        let tables = ["accounts", "contacts", "deals", "notes"];
        for n in 0..65_536_u128 {
            for table in tables {
                let table = TableHash::of("public", table);
                load[Cell::rows(tenant(n << 64 | n), table).index()] += 1;
            }
        }
        // Four a cell by chance: more than 20 would be one in a billion.
        assert!(load.iter().max() < Some(&21), "{:?}", load.iter().max());
        assert!(load.iter().filter(|n| **n == 0).count() < 2_000);
    }

    proptest! {
        #[test]
        fn sets_hold_what_was_added_in_order(cells: Vec<u16>, more: Vec<u16>) {
            let mut one = CellSet::default();
            cells.iter().for_each(|cell| one.insert(Cell(*cell)));
            let mut other = CellSet::default();
            more.iter().for_each(|cell| other.insert(Cell(*cell)));
            one.merge(&other);
            prop_assert!(one.is_canonical());
            for cell in cells.iter().chain(&more) {
                prop_assert!(one.contains(Cell(*cell)));
            }
        }
    }

    #[test]
    fn too_many_are_all() {
        let mut set = CellSet::default();
        for n in 0..=CELLS_MAX as u16 {
            set.insert(Cell(n));
        }
        assert_eq!(set, CellSet::All);
    }
}
