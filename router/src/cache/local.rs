//! The first level: entries in this process, bounded by bytes, of which no
//! tenant takes more than its share.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use moka::notification::RemovalCause;
use moka::sync::Cache;
use tenancy::id::TenantId;

use super::entry::Entry;
use super::key::Key;

/// An entry and whose it is.
#[derive(Clone)]
struct Kept {
    tenant: TenantId,
    entry: Arc<Entry>,
}

/// The entries.
pub struct Local {
    entries: Cache<Key, Kept>,
    shelves: Arc<Shelves>,
}

/// How much each tenant has, in which order it came.
struct Shelves {
    share: u64,
    of: [Mutex<HashMap<TenantId, Shelf>>; SPLIT],
}

#[derive(Default)]
struct Shelf {
    bytes: u64,
    /// Oldest first. May name what is gone already.
    keys: VecDeque<Key>,
    kept: usize,
}

/// Locks that tenants are spread over.
const SPLIT: usize = 16;

impl Local {
    /// At most `bytes` in all, and `share` for one tenant.
    pub fn new(bytes: u64, share: u64) -> Self {
        let shelves = Arc::new(Shelves {
            share,
            of: std::array::from_fn(|_| Mutex::default()),
        });
        let told = shelves.clone();
        let removed = move |key: Arc<Key>, kept: Kept, cause: RemovalCause| {
            let _ = (key, cause);
            told.remove(&kept);
        };
        let entries = Cache::builder()
            .max_capacity(bytes)
            .weigher(|_: &Key, kept: &Kept| u32::try_from(kept.entry.size()).unwrap_or(u32::MAX))
            .eviction_listener(removed)
            .build();
        Self { entries, shelves }
    }

    /// The entry of that key, whatever it is worth.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.entries.get(key).map(|kept| kept.entry)
    }

    /// Keeps an entry; the tenant's oldest make room where its share is used up.
    pub fn put(&self, key: Key, tenant: TenantId, entry: Arc<Entry>) {
        if entry.size() as u64 > self.shelves.share {
            return;
        }
        let mut gone = Vec::new();
        {
            let mut shelves = self.shelves.lock(tenant);
            let shelf = shelves.entry(tenant).or_default();
            shelf.bytes += entry.size() as u64;
            shelf.kept += 1;
            shelf.keys.push_back(key);
            let mut over = shelf.bytes.saturating_sub(self.shelves.share);
            while over > 0 && shelf.keys.len() > 1 {
                let Some(oldest) = shelf.keys.pop_front() else {
                    break;
                };
                // What is gone or was replaced meanwhile frees nothing.
                if let Some(kept) = self.entries.get(&oldest) {
                    over = over.saturating_sub(kept.entry.size() as u64);
                    gone.push(oldest);
                }
            }
            if shelf.keys.len() > 2 * shelf.kept + 16 {
                shelf.keys.retain(|key| self.entries.contains_key(key));
            }
        }
        // Without the lock: the listener takes it.
        for oldest in gone {
            self.entries.invalidate(&oldest);
        }
        self.entries.insert(key, Kept { tenant, entry });
    }

    /// Drops everything.
    pub fn clear(&self) {
        self.entries.invalidate_all();
        self.entries.run_pending_tasks();
    }

    /// (entries, bytes), about.
    pub fn size(&self) -> (u64, u64) {
        (self.entries.entry_count(), self.entries.weighted_size())
    }

    #[cfg(test)]
    fn bytes_of(&self, tenant: TenantId) -> u64 {
        self.entries.run_pending_tasks();
        let shelves = self.shelves.lock(tenant);
        shelves.get(&tenant).map_or(0, |shelf| shelf.bytes)
    }
}

impl Shelves {
    fn lock(&self, tenant: TenantId) -> MutexGuard<'_, HashMap<TenantId, Shelf>> {
        let at = usize::from(tenant.0.as_bytes()[15]) % SPLIT;
        self.of[at].lock().unwrap_or_else(|p| p.into_inner())
    }

    fn remove(&self, kept: &Kept) {
        let mut shelves = self.lock(kept.tenant);
        let Some(shelf) = shelves.get_mut(&kept.tenant) else {
            return;
        };
        shelf.bytes = shelf.bytes.saturating_sub(kept.entry.size() as u64);
        shelf.kept = shelf.kept.saturating_sub(1);
        if shelf.kept == 0 {
            shelves.remove(&kept.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use tenancy::changes::{Generation, Lsn};

    use super::*;
    use crate::cache::validity::Stamp;
    use crate::response::Row;

    fn entry(bytes: usize) -> Arc<Entry> {
        let stamp = Stamp {
            generation: Generation {
                system: 1,
                timeline: 1,
                incarnation: 1,
            },
            epoch: 1,
            at: Lsn(1),
        };
        let row = Row {
            body: Bytes::from(vec![b'x'; bytes]),
            ..Row::default()
        };
        Arc::new(Entry::new(stamp, SystemTime::now(), row))
    }

    fn tenant(n: u128) -> TenantId {
        TenantId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn a_tenant_that_fills_its_share_pushes_out_its_own_entries_only() {
        let local = Local::new(10 << 20, 100 << 10);
        local.put(Key::for_test(255), tenant(2), entry(1_000));
        for n in 0..200 {
            local.put(Key::for_test(n), tenant(1), entry(2_000));
            assert!(local.bytes_of(tenant(1)) <= 100 << 10);
        }
        assert!(local.get(&Key::for_test(199)).is_some(), "the newest stays");
        assert!(local.get(&Key::for_test(0)).is_none(), "the oldest goes");
        assert!(local.get(&Key::for_test(255)).is_some(), "another's stays");
        local.clear();
        assert_eq!(local.bytes_of(tenant(1)), 0);
        assert_eq!(local.bytes_of(tenant(2)), 0);
    }

    #[test]
    fn an_entry_that_is_replaced_is_counted_once() {
        let local = Local::new(1 << 20, 1 << 20);
        for n in 0..100 {
            local.put(Key::for_test(1), tenant(1), entry(n));
        }
        let size = entry(99).size() as u64;
        assert_eq!(local.bytes_of(tenant(1)), size);
        local.put(Key::for_test(2), tenant(1), entry(2 << 20));
        assert!(
            local.get(&Key::for_test(2)).is_none(),
            "larger than the share"
        );
    }
}
