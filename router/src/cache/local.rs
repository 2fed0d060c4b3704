//! The first level: entries in this process, bounded by bytes, of which no
//! tenant takes more than its share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use lru::LruCache;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use tenancy::id::TenantId;

use super::entry::Entry;
use super::key::Key;

/// An entry and whose it is.
#[derive(Clone)]
struct Kept {
    tenant: TenantId,
    /// Which of the entries put so far: a key may get another.
    number: u64,
    entry: Arc<Entry>,
}

/// The entries.
pub struct Local {
    entries: Cache<Key, Kept>,
    shelves: Arc<Shelves>,
    next: AtomicU64,
}

/// How much each tenant has, in which order it came.
///
/// The listener of what `entries` drops takes these locks, on whichever thread
/// next asks `entries` for anything, a look included. So nobody who holds one
/// asks `entries` for anything.
struct Shelves {
    share: u64,
    of: [Mutex<HashMap<TenantId, Shelf>>; SPLIT],
}

/// What a tenant has: each key once.
struct Shelf {
    bytes: u64,
    /// (number, bytes); the oldest is the least recently put.
    keys: LruCache<Key, (u64, u64)>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self {
            bytes: 0,
            keys: LruCache::unbounded(),
        }
    }
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
            // Who replaced it has counted that already.
            if cause != RemovalCause::Replaced {
                told.remove(&key, &kept);
            }
        };
        let entries = Cache::builder()
            .max_capacity(bytes)
            .weigher(|_: &Key, kept: &Kept| u32::try_from(kept.entry.size()).unwrap_or(u32::MAX))
            .eviction_listener(removed)
            .build();
        Self {
            entries,
            shelves,
            next: AtomicU64::new(0),
        }
    }

    /// The entry of that key, whatever it is worth.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.entries.get(key).map(|kept| kept.entry)
    }

    /// Keeps an entry; the tenant's oldest make room where its share is used up.
    pub fn put(&self, key: Key, tenant: TenantId, entry: Arc<Entry>) {
        let size = entry.size() as u64;
        if size > self.shelves.share {
            return;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        for oldest in self.shelves.add(key, tenant, (number, size)) {
            self.entries.invalidate(&oldest);
        }
        let kept = Kept {
            tenant,
            number,
            entry,
        };
        self.entries.insert(key, kept);
    }

    /// Drops one entry.
    pub fn drop_one(&self, key: &Key) {
        self.entries.invalidate(key);
    }

    /// Drops a tenant's entries.
    pub fn drop_of(&self, tenant: TenantId) {
        let shelf = self.shelves.lock(tenant).remove(&tenant);
        for (key, _) in shelf.iter().flat_map(|shelf| &shelf.keys) {
            self.entries.invalidate(key);
        }
        self.entries.run_pending_tasks();
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

    /// Bytes of a tenant's entries.
    pub fn bytes_of(&self, tenant: TenantId) -> u64 {
        self.entries.run_pending_tasks();
        let shelves = self.shelves.lock(tenant);
        shelves.get(&tenant).map_or(0, |shelf| shelf.bytes)
    }

    #[cfg(test)]
    fn keys_of(&self, tenant: TenantId) -> usize {
        self.entries.run_pending_tasks();
        let shelves = self.shelves.lock(tenant);
        shelves.get(&tenant).map_or(0, |shelf| shelf.keys.len())
    }
}

impl Shelves {
    fn lock(&self, tenant: TenantId) -> MutexGuard<'_, HashMap<TenantId, Shelf>> {
        let at = usize::from(tenant.0.as_bytes()[15]) % SPLIT;
        self.of[at].lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Counts an entry in; returns those that it pushes out of the tenant's share.
    fn add(&self, key: Key, tenant: TenantId, (number, size): (u64, u64)) -> Vec<Key> {
        let mut shelves = self.lock(tenant);
        let shelf = shelves.entry(tenant).or_default();
        let before = shelf.keys.put(key, (number, size));
        shelf.bytes += size;
        shelf.bytes -= before.map_or(0, |(_, size)| size);
        let mut gone = Vec::new();
        while shelf.bytes > self.share
            && let Some((oldest, (_, size))) = shelf.keys.pop_lru()
        {
            shelf.bytes -= size;
            gone.push(oldest);
        }
        gone
    }

    /// Counts an entry out, if it is still the one that its key stands for.
    fn remove(&self, key: &Key, kept: &Kept) {
        let mut shelves = self.lock(kept.tenant);
        let Some(shelf) = shelves.get_mut(&kept.tenant) else {
            return;
        };
        if shelf
            .keys
            .peek(key)
            .is_some_and(|(number, _)| *number == kept.number)
        {
            let size = shelf.keys.pop(key).map_or(0, |(_, size)| size);
            shelf.bytes -= size;
        }
        if shelf.keys.is_empty() {
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

    #[test]
    fn a_key_that_is_put_again_and_again_is_on_the_shelf_once() {
        let local = Local::new(10 << 20, 100 << 10);
        for round in 0..10_000_usize {
            local.put(Key::for_test((round % 3) as u8), tenant(1), entry(1_000));
        }
        assert_eq!(local.keys_of(tenant(1)), 3);
        assert_eq!(local.bytes_of(tenant(1)), 3 * entry(1_000).size() as u64);
        // And it is as young as when it was put last.
        for n in 10..100 {
            local.put(Key::for_test(n), tenant(1), entry(1_000));
            local.put(Key::for_test(0), tenant(1), entry(1_000));
        }
        assert!(local.get(&Key::for_test(0)).is_some());
        assert!(local.get(&Key::for_test(1)).is_none());
    }

    /// moka tells its listener on whichever thread asks it for anything: with
    /// the shelves' lock held, a mere look would wait for itself.
    #[test]
    fn many_who_put_and_look_while_entries_are_pushed_out_end() {
        let local = Arc::new(Local::new(200 << 10, 50 << 10));
        let (tell, ended) = std::sync::mpsc::channel();
        for worker in 0..4_u8 {
            let (local, tell) = (local.clone(), tell.clone());
            std::thread::spawn(move || {
                for n in 0..20_000_usize {
                    let key = |n: usize| Key::for_test(60 * worker + (n % 60) as u8);
                    let body = entry(500 + n % 700);
                    local.put(key(n), tenant(u128::from(worker) * 16), body);
                    local.get(&key(n * 7));
                }
                let _ = tell.send(());
            });
        }
        for _ in 0..4 {
            let waited = ended.recv_timeout(std::time::Duration::from_secs(60));
            waited.expect("somebody waits for a lock for ever");
        }
        for worker in 0..4_u128 {
            assert!(local.bytes_of(tenant(worker * 16)) <= 50 << 10);
        }
        local.clear();
        assert_eq!(local.size().0, 0);
    }
}
