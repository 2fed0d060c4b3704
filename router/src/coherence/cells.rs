//! What this router has heard of a shard's changes, in memory that readers and
//! the stream share without a lock: the cells, the watermark and the lease
//! (DESIGN.md §6, rules 3, 4 and 6).
//!
//! One task writes (the shard's stream), any number of requests read. What must
//! hold between them is an order of four steps each:
//!
//! | the stream | a request |
//! |---|---|
//! | raises the cells of a change | loads the lease |
//! | then sets the watermark | then looks at the cells |
//! | then takes a lease, or says "applied" | then looks whether the lease is over |
//!
//! *Why it is enough.* A lease is stored with `Release` and loaded with
//! `Acquire`, so whoever sees a lease also sees every cell that was raised before
//! it was taken. The same holds for the watermark: a fill that records `a = W`
//! has seen each cell up to `a`. Cells themselves can be `Relaxed`: nothing is
//! read through them. A request that begins after a write was acknowledged needs
//! no pair of its own: the cells were raised before this router said "applied",
//! which came before the acknowledgement, and atomics of one process become
//! visible to its other threads long before a packet has gone out and come back.

use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::Boot;

/// A place in a shard's log, in bytes.
pub type Lsn = u64;

/// The 64-bit cell that all of this is made of; `loom` has one of its own.
pub trait Word {
    /// Holding `value`.
    fn new(value: u64) -> Self;
    /// As of [`AtomicU64::load`].
    fn load(&self, order: Ordering) -> u64;
    /// As of [`AtomicU64::store`].
    fn store(&self, value: u64, order: Ordering);
    /// As of [`AtomicU64::fetch_max`].
    fn raise(&self, value: u64, order: Ordering);
}

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn raise(&self, value: u64, order: Ordering) {
        self.fetch_max(value, order);
    }
}

/// What was heard of one shard since this router began to follow it.
#[derive(Debug)]
pub struct Heard<W = AtomicU64> {
    cells: Box<[W]>,
    /// Every cell is at least this: one word instead of a change of all cells.
    floor: W,
    watermark: W,
    /// Nanoseconds of the boot clock; zero: none.
    lease: W,
}

/// Cells of a shard: 512 KiB. With 10,000 (tenant, table) pairs being written,
/// about one read in seven meets a cell that another pair has raised; that costs
/// a fill and no more.
pub const CELLS: usize = 1 << 16;

/// A lease as it was loaded: what is decided under it is decided before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(Boot);

impl Lease {
    /// One that ends then; for tests of what is decided under a lease.
    pub fn until(end: Boot) -> Self {
        Self(end)
    }

    /// Whether it still holds at `now`.
    pub fn holds(self, now: Boot) -> bool {
        now <= self.0
    }
}

impl<W: Word> Heard<W> {
    /// Rule 3: who begins knows no older change, so every cell begins at `W`.
    pub fn begin(cells: usize, watermark: Lsn) -> Self {
        Self {
            cells: (0..cells.max(1)).map(|_| W::new(0)).collect(),
            floor: W::new(watermark),
            watermark: W::new(watermark),
            lease: W::new(0),
        }
    }

    /// Rule 3, first half: raises a cell to `lsn`. The stream's task only.
    pub fn raise(&self, cell: u32, lsn: Lsn) {
        self.cells[cell as usize % self.cells.len()].raise(lsn, Ordering::Relaxed);
    }

    /// Raises every cell: a change whose tables nobody can name.
    pub fn raise_all(&self, lsn: Lsn) {
        self.floor.raise(lsn, Ordering::Relaxed);
    }

    /// Rule 3, second half: all up to `lsn` is applied. The stream's task only,
    /// after the cells.
    pub fn advance(&self, lsn: Lsn) {
        self.watermark.raise(lsn, Ordering::Release);
    }

    /// Rule 4: takes a lease, once the watermark has reached the reply's place.
    /// An older one never shortens it.
    pub fn take_lease(&self, until: Boot) {
        self.lease.raise(until.nanos(), Ordering::Release);
    }

    /// Ends the lease at once. Who has loaded it may still use it to its end.
    pub fn end_lease(&self) {
        self.lease.store(0, Ordering::Release);
    }

    /// `W`; whoever has it also sees every cell raised up to it.
    pub fn watermark(&self) -> Lsn {
        self.watermark.load(Ordering::Acquire)
    }

    /// Rule 6, first step: the lease, before anything else is looked at.
    pub fn lease(&self) -> Lease {
        Lease(Boot::from_nanos(self.lease.load(Ordering::Acquire)))
    }

    /// Rule 6, second step: no cell has changed since `at`.
    pub fn unchanged(&self, cells: &[u32], at: Lsn) -> bool {
        let raised = |cell: &u32| {
            self.cells[*cell as usize % self.cells.len()].load(Ordering::Relaxed) > at
        };
        self.floor.load(Ordering::Relaxed) <= at && !cells.iter().any(raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_only_rise_and_a_floor_is_under_all_of_them() {
        let heard: Heard = Heard::begin(8, 10);
        assert!(heard.unchanged(&[1, 2], 10) && !heard.unchanged(&[1, 2], 9));
        heard.raise(1, 20);
        heard.raise(1, 15);
        assert!(!heard.unchanged(&[1], 19) && heard.unchanged(&[2], 10));
        assert!(heard.unchanged(&[1], 20));
        heard.raise_all(30);
        assert!(!heard.unchanged(&[7], 29) && heard.unchanged(&[7], 30));
    }

    #[test]
    fn a_lease_is_never_shortened_by_an_older_one_and_ends_when_told() {
        let heard: Heard = Heard::begin(1, 0);
        assert!(!heard.lease().holds(Boot::from_nanos(1)));
        heard.take_lease(Boot::from_nanos(50));
        heard.take_lease(Boot::from_nanos(40));
        let loaded = heard.lease();
        heard.end_lease();
        assert!(!heard.lease().holds(Boot::from_nanos(1)));
        assert!(loaded.holds(Boot::from_nanos(50)) && !loaded.holds(Boot::from_nanos(51)));
    }
}
