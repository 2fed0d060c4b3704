//! What tenants have used: counted by each router, added up by whoever asks all
//! of them. Nothing of it is stored: it says who is busy now, not what to bill.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a tenant has used in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Requests, those included that were refused.
    pub requests: u64,
    /// Those refused for its limits.
    pub refused: u64,
    /// Those answered with 5xx.
    pub failed: u64,
    /// Rows that were read or written.
    pub rows: u64,
    /// Bytes of answers, before they are compressed.
    pub bytes: u64,
    /// Time of its statements on shards, in microseconds.
    pub busy_us: u64,
}

/// What tenants can be ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Requests.
    #[default]
    Requests,
    /// Those refused.
    Refused,
    /// Rows.
    Rows,
    /// Bytes of answers.
    Bytes,
    /// Time on shards.
    Busy,
}

/// A tenant's use of one router, or of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The tenant.
    pub tenant: Uuid,
    /// Requests being answered now.
    pub in_flight: u32,
    /// Since it began to ask, after ten idle minutes or the router's start.
    pub total: Totals,
    /// In the last few seconds.
    pub recent: Totals,
    /// Bytes of its answers in the routers' memory now.
    #[serde(default)]
    pub cached_bytes: u64,
}

/// A router's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usages {
    /// What "recent" means.
    pub recent_seconds: u64,
    /// Who used most, first.
    pub tenants: Vec<Usage>,
}

impl By {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Refused => "refused",
            Self::Rows => "rows",
            Self::Bytes => "bytes",
            Self::Busy => "busy",
        }
    }
}

impl Totals {
    /// What was added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.each(before, u64::saturating_sub)
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    fn each(&self, other: &Self, both: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requests: both(self.requests, other.requests),
            refused: both(self.refused, other.refused),
            failed: both(self.failed, other.failed),
            rows: both(self.rows, other.rows),
            bytes: both(self.bytes, other.bytes),
            busy_us: both(self.busy_us, other.busy_us),
        }
    }

    fn by(&self, by: By) -> u64 {
        match by {
            By::Requests => self.requests,
            By::Refused => self.refused,
            By::Rows => self.rows,
            By::Bytes => self.bytes,
            By::Busy => self.busy_us,
        }
    }
}

/// Who has used most of it recently, or in all where that is equal.
pub fn top(mut usages: Vec<Usage>, by: By, count: usize) -> Vec<Usage> {
    usages.sort_by_key(|usage| std::cmp::Reverse((usage.recent.by(by), usage.total.by(by))));
    usages.truncate(count);
    usages
}

/// Several routers' answers as one.
pub fn merge(answers: impl IntoIterator<Item = Usages>, by: By, count: usize) -> Vec<Usage> {
    let mut merged: HashMap<Uuid, Usage> = HashMap::new();
    for usage in answers.into_iter().flat_map(|answer| answer.tenants) {
        merged
            .entry(usage.tenant)
            .and_modify(|sum| {
                sum.in_flight += usage.in_flight;
                sum.cached_bytes += usage.cached_bytes;
                sum.total = sum.total.plus(&usage.total);
                sum.recent = sum.recent.plus(&usage.recent);
            })
            .or_insert(usage);
    }
    top(merged.into_values().collect(), by, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(tenant: u128, recent: u64, total: u64) -> Usage {
        let requests = |requests| Totals {
            requests,
            ..Totals::default()
        };
        Usage {
            tenant: Uuid::from_u128(tenant),
            in_flight: 1,
            total: requests(total),
            recent: requests(recent),
            cached_bytes: 10,
        }
    }

    #[test]
    fn answers_are_added_up_and_the_busiest_come_first() {
        let one = vec![usage(1, 5, 50), usage(2, 4, 40)];
        let two = vec![usage(2, 4, 4), usage(3, 0, 900)];
        let answers = [one, two].map(|tenants| Usages {
            recent_seconds: 5,
            tenants,
        });
        let merged = merge(answers.clone(), By::Requests, 10);
        let seen: Vec<_> = merged
            .iter()
            .map(|u| {
                (
                    u.tenant.as_u128(),
                    u.in_flight,
                    u.recent.requests,
                    u.total.requests,
                )
            })
            .collect();
        assert_eq!(merged[0].cached_bytes, 20);
        assert_eq!(seen, [(2, 2, 8, 44), (1, 1, 5, 50), (3, 1, 0, 900)]);
        assert_eq!(merge(answers, By::Requests, 1).len(), 1);
    }
}
