//! Rule 2: the log shows a commit before the primary's own sessions see it. A
//! commit is published only when a snapshot, taken after it was decoded, sees it.

/// A snapshot as `pg_current_snapshot()` prints it: `xmin:xmax:xip,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// All before are ended.
    pub(super) xmin: u64,
    /// All from here on had not begun.
    pub(super) xmax: u64,
    /// Those between that had not ended, in rising order.
    running: Vec<u64>,
}

impl Snapshot {
    /// Reads Postgres' text; none where it is not that.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let mut running = parts
            .next()?
            .split(',')
            .filter(|xid| !xid.is_empty())
            .map(|xid| xid.parse().ok())
            .collect::<Option<Vec<u64>>>()?;
        running.sort_unstable();
        Some(Self {
            xmin,
            xmax,
            running,
        })
    }

    /// Whether a committed transaction's rows are visible. The stream has only
    /// the lower half of its id: it is the nearest one to the snapshot's.
    pub(super) fn sees(&self, xid: u32) -> bool {
        let distance = xid.wrapping_sub(self.xmax as u32) as i32;
        let Some(xid) = self.xmax.checked_add_signed(i64::from(distance)) else {
            return false;
        };
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read_or_refused() {
        let snapshot = Snapshot::parse("10:20:15,12").unwrap();
        assert_eq!(snapshot.running, [12, 15]);
        assert!(Snapshot::parse("10:10:").unwrap().running.is_empty());
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "1:2:3,,x"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }

    #[test]
    fn running_and_future_transactions_are_not_seen() {
        let snapshot = Snapshot::parse("10:20:10,15").unwrap();
        let seen: Vec<u32> = (8..22).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 14, 16, 17, 18, 19]);
    }

    proptest! {
        #[test]
        fn ids_are_completed_across_their_wrap(
            xmax in (1_u64 << 31)..(1 << 40), back in 1_u64..1 << 30, ahead in 0_u64..1 << 30,
        ) {
            let snapshot = Snapshot { xmin: xmax, xmax, running: vec![] };
            prop_assert!(snapshot.sees((xmax - back) as u32));
            prop_assert!(!snapshot.sees((xmax + ahead) as u32));
        }
    }
}
