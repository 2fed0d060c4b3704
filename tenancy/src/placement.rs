//! Where a tenant lives: the ring's answer, or an exception to it.
//!
//! At most tenants' exceptions are kept in memory, and those in 40 bytes each:
//! sorted in 256 buckets, so that a change copies one bucket, and a look-up is
//! a short binary search.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, RegionId, ShardId, TenantId};

/// Where a tenant lives now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The shard.
    pub shard: ShardId,
    /// The placement's number.
    pub epoch: Epoch,
    /// The tenant's region.
    pub region: RegionId,
    /// Whether it is served.
    pub state: TenantState,
}

/// A tenant's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantState {
    /// Not on its shard yet.
    Creating,
    /// Served.
    Active,
    /// Refused with 403 until it is resumed.
    Suspended,
    /// Gone.
    Deleted,
    /// Its rows are being put on its shard; not served meanwhile.
    Importing,
}

impl TenantState {
    /// The word in the control database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Deleted => "deleted",
            Self::Importing => "importing",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [
            Self::Creating,
            Self::Active,
            Self::Suspended,
            Self::Deleted,
            Self::Importing,
        ]
        .into_iter()
        .find(|state| state.name() == name)
    }
}

/// What differs from (ring's shard, epoch 1, default region, active, default limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The tenant.
    pub tenant: TenantId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Number of its shard in the snapshot's list.
    pub shard: u32,
    /// Number of its region in the snapshot's list.
    pub region: u16,
    /// Its state.
    pub state: TenantState,
    /// Number of its limits in the snapshot's sets.
    pub limits: u32,
}

/// A change to one tenant: its exception, or that it has none any longer.
pub type Change = (TenantId, Option<Exception>);

const BUCKETS: usize = 256;

/// All exceptions. Cloning shares every bucket.
#[derive(Clone)]
pub struct Exceptions {
    buckets: Vec<Arc<[Exception]>>,
}

impl Default for Exceptions {
    fn default() -> Self {
        Self {
            buckets: vec![Arc::from([]); BUCKETS],
        }
    }
}

impl Exceptions {
    /// The tenant's exception.
    pub fn get(&self, tenant: TenantId) -> Option<&Exception> {
        let bucket = &self.buckets[bucket(tenant)];
        let found = bucket.binary_search_by_key(&tenant, |exception| exception.tenant);
        found.ok().map(|index| &bucket[index])
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Exception> {
        self.buckets.iter().flat_map(|bucket| bucket.iter())
    }

    /// Bytes that they take in memory.
    pub fn bytes(&self) -> usize {
        self.len() * size_of::<Exception>() + BUCKETS * size_of::<Arc<[Exception]>>()
    }

    /// These with `changes` applied; of two changes of a tenant the later counts.
    pub fn with(&self, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut by_bucket: Vec<Vec<Change>> = vec![Vec::new(); BUCKETS];
        for change in changes {
            by_bucket[bucket(change.0)].push(change);
        }
        let merged = |(old, mut changes): (&Arc<[Exception]>, Vec<Change>)| {
            if changes.is_empty() {
                return old.clone();
            }
            changes.reverse();
            changes.sort_by_key(|(tenant, _)| *tenant);
            changes.dedup_by_key(|(tenant, _)| *tenant);
            let changed = |e: &&Exception| {
                changes
                    .binary_search_by_key(&e.tenant, |(tenant, _)| *tenant)
                    .is_ok()
            };
            let mut bucket: Vec<Exception> = old.iter().filter(|e| !changed(e)).copied().collect();
            bucket.extend(changes.iter().filter_map(|(_, exception)| *exception));
            bucket.sort_unstable_by_key(|exception| exception.tenant);
            bucket.into()
        };
        Self {
            buckets: self.buckets.iter().zip(by_bucket).map(merged).collect(),
        }
    }
}

/// The last byte is random in ids of version 4 and 7 alike.
fn bucket(tenant: TenantId) -> usize {
    usize::from(tenant.0.as_bytes()[15])
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn exception(tenant: TenantId, epoch: i64) -> Exception {
        Exception {
            tenant,
            epoch: Epoch(epoch),
            shard: 1,
            region: 0,
            state: TenantState::Active,
            limits: 0,
        }
    }

    #[test]
    fn an_exception_takes_at_most_64_bytes() {
        let all = (0..100_000_u128).map(|n| {
            let tenant = TenantId(Uuid::from_u128(n));
            (tenant, Some(exception(tenant, 2)))
        });
        let exceptions = Exceptions::default().with(all);
        assert_eq!(exceptions.len(), 100_000);
        assert!(exceptions.bytes() / exceptions.len() <= 64);
    }

    proptest! {
        /// Changes in any pages give what a map would hold.
        #[test]
        fn pages_of_changes_equal_a_map(
            pages in prop::collection::vec(
                prop::collection::vec((0_u128..40, prop::option::of(1_i64..9)), 0..20), 0..8)
        ) {
            let mut exceptions = Exceptions::default();
            let mut map = HashMap::new();
            for page in pages {
                let changes: Vec<Change> = page.into_iter().map(|(n, epoch)| {
                    let tenant = TenantId(Uuid::from_u128(n << 3));
                    (tenant, epoch.map(|epoch| exception(tenant, epoch)))
                }).collect();
                for (tenant, change) in &changes {
                    map.remove(tenant);
                    if let Some(change) = change { map.insert(*tenant, *change); }
                }
                exceptions = exceptions.with(changes);
            }
            prop_assert_eq!(exceptions.len(), map.len());
            for (tenant, expected) in &map {
                prop_assert_eq!(exceptions.get(*tenant), Some(expected));
            }
        }
    }
}
