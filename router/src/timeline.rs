//! The timelines that a primary's own one descends from. Pure.

/// An LSN up to which a timeline was followed, by timeline; oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ancestors(Vec<(u32, u64)>);

/// Timelines at most; one comes with each failover.
const MAX: usize = 10_000;

impl Ancestors {
    /// Reads a history file: a line an ancestor, with its number, the LSN at
    /// which it was left, and a reason. Lines that are not so are comments.
    pub fn parse(history: &str) -> Self {
        let lines = history.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?.parse().ok()?, lsn(words.next()?)?))
        });
        Self(lines.take(MAX).collect())
    }

    /// Where `timeline` was left; none where it is no ancestor.
    pub fn left_at(&self, timeline: u32) -> Option<u64> {
        let mut known = self.0.iter();
        known
            .find(|(number, _)| *number == timeline)
            .map(|(_, lsn)| *lsn)
    }

    /// Nothing was read; so it is on the first timeline, too.
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the present timeline began; 0 where it is the first.
    pub fn began_at(&self) -> u64 {
        self.0.last().map_or(0, |(_, lsn)| *lsn)
    }
}

/// `16/B374D848`, as Postgres prints an LSN.
fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let half = |digits| u32::from_str_radix(digits, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

/// The same the other way.
pub fn lsn_text(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_is_read() {
        let file = "1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tafter 1/90\n";
        let ancestors = Ancestors::parse(file);
        assert_eq!(ancestors.left_at(1), Some(0x0300_0148));
        assert_eq!(ancestors.left_at(2), Some(0x1_0000_00A0));
        assert_eq!(ancestors.left_at(3), None);
        assert_eq!(ancestors.began_at(), 0x1_0000_00A0);
        assert_eq!(lsn_text(ancestors.began_at()), "1/A0");
        assert_eq!(Ancestors::parse("").began_at(), 0);
        assert_eq!(Ancestors::parse("# no\nx\n9999999999 0/1").left_at(1), None);
    }
}
