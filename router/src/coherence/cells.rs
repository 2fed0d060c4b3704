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

use tenancy::changes::{Cell, Lsn};

use super::clock::Boot;

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
    /// The schema may have changed up to here.
    schema: W,
    watermark: W,
    /// Nanoseconds of the boot clock; zero: none.
    lease: W,
}

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
            floor: W::new(watermark.0),
            schema: W::new(watermark.0),
            watermark: W::new(watermark.0),
            lease: W::new(0),
        }
    }

    /// Rule 3, first half: raises a cell to `lsn`. The stream's task only.
    pub fn raise(&self, cell: Cell, lsn: Lsn) {
        self.cells[cell.index() % self.cells.len()].raise(lsn.0, Ordering::Relaxed);
    }

    /// Raises every cell: a change whose tables nobody can name.
    pub fn raise_all(&self, lsn: Lsn) {
        self.floor.raise(lsn.0, Ordering::Relaxed);
    }

    /// Rule 12: the same, and it may have been DDL: of a schema model that was
    /// loaded before nobody can say whether it still is the shard's.
    pub fn raise_schema(&self, lsn: Lsn) {
        self.raise_all(lsn);
        self.schema.raise(lsn.0, Ordering::Relaxed);
    }

    /// Rule 3, second half: all up to `lsn` is applied. The stream's task only,
    /// after the cells.
    pub fn advance(&self, lsn: Lsn) {
        self.watermark.raise(lsn.0, Ordering::Release);
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
        Lsn(self.watermark.load(Ordering::Acquire))
    }

    /// Rule 6, first step: the lease, before anything else is looked at.
    pub fn lease(&self) -> Lease {
        Lease(Boot::from_nanos(self.lease.load(Ordering::Acquire)))
    }

    /// Rule 12: a schema model whose loading began when all up to `at` was
    /// visible is the shard's, as far as is known.
    pub fn same_schema(&self, at: Lsn) -> bool {
        self.schema.load(Ordering::Relaxed) <= at.0
    }

    /// Rule 6, second step: no cell has changed since `at`.
    pub fn unchanged(&self, cells: &[Cell], at: Lsn) -> bool {
        let raised = |cell: &Cell| {
            self.cells[cell.index() % self.cells.len()].load(Ordering::Relaxed) > at.0
        };
        self.floor.load(Ordering::Relaxed) <= at.0 && !cells.iter().any(raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(of: &[u16]) -> Vec<Cell> {
        of.iter().copied().map(Cell).collect()
    }

    #[test]
    fn cells_only_rise_and_a_floor_is_under_all_of_them() {
        let heard: Heard = Heard::begin(8, Lsn(10));
        let unchanged = |of: &[u16], at| heard.unchanged(&cells(of), Lsn(at));
        assert!(unchanged(&[1, 2], 10) && !unchanged(&[1, 2], 9));
        heard.raise(Cell(1), Lsn(20));
        heard.raise(Cell(1), Lsn(15));
        assert!(!unchanged(&[1], 19) && unchanged(&[2], 10));
        assert!(!unchanged(&[2, 1], 19), "every cell counts");
        assert!(unchanged(&[1], 20));
        heard.raise_all(Lsn(30));
        assert!(!unchanged(&[7], 29) && unchanged(&[7], 30));
        // What purges raises every cell, and says nothing of the schema.
        assert!(heard.same_schema(Lsn(10)) && !heard.same_schema(Lsn(9)));
        heard.raise_schema(Lsn(40));
        assert!(!heard.same_schema(Lsn(39)) && heard.same_schema(Lsn(40)));
        assert!(!unchanged(&[7], 39) && unchanged(&[7], 40));
    }

    #[test]
    fn a_lease_is_never_shortened_by_an_older_one_and_ends_when_told() {
        let heard: Heard = Heard::begin(1, Lsn(0));
        assert!(!heard.lease().holds(Boot::from_nanos(1)));
        heard.take_lease(Boot::from_nanos(50));
        heard.take_lease(Boot::from_nanos(40));
        let loaded = heard.lease();
        heard.end_lease();
        assert!(!heard.lease().holds(Boot::from_nanos(1)));
        assert!(loaded.holds(Boot::from_nanos(50)) && !loaded.holds(Boot::from_nanos(51)));
    }
}

/// All interleavings of the stream with a request, by `loom`, which also plays
/// what weaker memory than x86's may do.
#[cfg(test)]
mod interleavings {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    struct Loom(loom::sync::atomic::AtomicU64);

    impl Word for Loom {
        fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        fn load(&self, order: Ordering) -> u64 {
            self.0.load(order)
        }

        fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, order);
        }

        fn raise(&self, value: u64, order: Ordering) {
            self.0.fetch_max(value, order);
        }
    }

    const BEFORE: Lsn = Lsn(100);
    const CHANGE: Lsn = Lsn(110);

    fn lease() -> Boot {
        Boot::from_nanos(1)
    }

    /// A stream that applies one change, and a request that judges an entry from
    /// before it.
    fn play(stream: fn(&Heard<Loom>), request: fn(&Heard<Loom>)) {
        loom::model(move || {
            let heard = Arc::new(Heard::<Loom>::begin(2, BEFORE));
            let streams = heard.clone();
            let writer = thread::spawn(move || stream(&streams));
            request(&heard);
            writer.join().unwrap();
        });
    }

    fn in_order(heard: &Heard<Loom>) {
        heard.raise(Cell(1), CHANGE);
        heard.raise_all(BEFORE);
        heard.advance(CHANGE);
        heard.take_lease(lease());
    }

    fn rule_6(heard: &Heard<Loom>) {
        let loaded = heard.lease();
        let unchanged = heard.unchanged(&[Cell(0), Cell(1)], BEFORE);
        let answered = unchanged && loaded.holds(lease());
        assert!(
            !answered,
            "an old entry under a lease that knows of the change"
        );
    }

    /// DDL, and a request whose model is from before it.
    fn rule_12(heard: &Heard<Loom>) {
        let loaded = heard.lease();
        let answered = heard.same_schema(BEFORE) && loaded.holds(lease());
        assert!(
            !answered,
            "an old model under a lease that knows of the DDL"
        );
    }

    fn rule_5(heard: &Heard<Loom>) {
        let at = heard.watermark();
        let known = !heard.unchanged(&[Cell(1)], Lsn(CHANGE.0 - 1));
        assert!(at < CHANGE || known, "a watermark ahead of its cells");
    }

    fn fails(stream: fn(&Heard<Loom>), request: fn(&Heard<Loom>)) -> bool {
        catch_unwind(AssertUnwindSafe(|| play(stream, request))).is_err()
    }

    #[test]
    fn whoever_has_the_lease_sees_the_cells() {
        play(in_order, rule_6);
    }

    #[test]
    fn whoever_has_the_lease_sees_what_the_schema_was_changed_by() {
        play(
            |heard| {
                heard.raise_schema(CHANGE);
                heard.advance(CHANGE);
                heard.take_lease(lease());
            },
            rule_12,
        );
        assert!(fails(
            |heard| {
                heard.take_lease(lease());
                heard.raise_schema(CHANGE);
            },
            rule_12
        ));
    }

    #[test]
    fn whoever_has_the_watermark_sees_the_cells() {
        play(in_order, rule_5);
    }

    #[test]
    fn any_other_order_is_caught() {
        assert!(fails(
            |heard| {
                heard.take_lease(lease());
                heard.raise(Cell(1), CHANGE);
            },
            rule_6
        ));
        assert!(fails(
            |heard| {
                heard.advance(CHANGE);
                heard.raise(Cell(1), CHANGE);
            },
            rule_5
        ));
        // The lease looked at only after the cells.
        assert!(fails(in_order, |heard| {
            let unchanged = heard.unchanged(&[Cell(1)], BEFORE);
            let answered = unchanged && heard.lease().holds(lease());
            assert!(!answered);
        }));
        // A lease that is published without `Release`.
        assert!(fails(
            |heard| {
                heard.raise(Cell(1), CHANGE);
                heard.lease.store(lease().nanos(), Ordering::Relaxed);
            },
            rule_6
        ));
    }
}
