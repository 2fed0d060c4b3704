//! One fill a key and router: the first who misses starts it, in a task of its
//! own, and whoever comes meanwhile waits for its end. A caller that gives up
//! stops nothing, and starts nothing again. Looks into Redis are shared alike.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use super::key::Key;

/// The fills under way.
pub struct Fills<T> {
    under_way: [Mutex<HashMap<Key, watch::Receiver<Option<T>>>>; SPLIT],
}

/// Locks that keys are spread over.
const SPLIT: usize = 16;

/// How a caller came by a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It started it.
    Started,
    /// It waited for another's.
    Joined,
}

impl<T: Clone + Send + Sync + 'static> Fills<T> {
    /// None under way.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            under_way: std::array::from_fn(|_| Mutex::default()),
        })
    }

    /// The result of the fill of `key` that is under way, or of `fill`, started
    /// now if `begin` says so; none where it does not. No result where the fill's
    /// task broke off.
    pub async fn run<F>(
        self: &Arc<Self>,
        key: Key,
        begin: impl FnOnce() -> bool,
        fill: impl FnOnce() -> F,
    ) -> Option<(Part, Option<T>)>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (part, mut result) = {
            let mut under_way = self.lock(&key);
            match under_way.get(&key) {
                Some(result) => (Part::Joined, result.clone()),
                None if !begin() => return None,
                None => {
                    let (tell, result) = watch::channel(None);
                    under_way.insert(key, result.clone());
                    let ended = Ended {
                        fills: self.clone(),
                        key,
                    };
                    let fill = fill();
                    tokio::spawn(async move {
                        let ended = ended;
                        let done = fill.await;
                        // Out of the map first: who comes now must not get what
                        // was read before it came.
                        drop(ended);
                        let _ = tell.send(Some(done));
                    });
                    (Part::Started, result)
                }
            }
        };
        let done = result.wait_for(Option::is_some).await;
        Some((part, done.ok().and_then(|done| done.clone())))
    }

    fn lock(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Option<T>>>> {
        let map = &self.under_way[key.shard_of(SPLIT)];
        map.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Takes a fill out of the map, also when its task panics.
struct Ended<T: Clone + Send + Sync + 'static> {
    fills: Arc<Fills<T>>,
    key: Key,
}

impl<T: Clone + Send + Sync + 'static> Drop for Ended<T> {
    fn drop(&mut self) {
        self.fills.lock(&self.key).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn callers_that_give_up_neither_stop_nor_start_a_fill() {
        let fills = Fills::<u32>::new();
        let started = Arc::new(AtomicU32::new(0));
        let fill = || {
            let started = started.clone();
            move || async move {
                started.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(300)).await;
                7
            }
        };
        let callers = (0..40).map(|_| {
            timeout(
                Duration::from_millis(100),
                fills.run(Key::for_test(1), || true, fill()),
            )
        });
        let given_up = futures_util::future::join_all(callers).await;
        assert!(given_up.iter().all(Result::is_err));
        // Whether it is worth to begin one is not asked of who finds one.
        let joined = fills.run(Key::for_test(1), || false, fill()).await;
        assert_eq!(joined, Some((Part::Joined, Some(7))));
        assert_eq!(started.load(Ordering::Relaxed), 1);
        // Whoever comes after its end starts another.
        assert_eq!(fills.run(Key::for_test(1), || false, fill()).await, None);
        let started = fills.run(Key::for_test(1), || true, fill()).await;
        assert_eq!(started, Some((Part::Started, Some(7))));
    }

    #[tokio::test]
    async fn a_fill_that_breaks_off_leaves_nothing_behind() {
        let fills = Fills::<u32>::new();
        let broken = fills.run(Key::for_test(1), || true, || async { panic!("on purpose") });
        assert_eq!(broken.await, Some((Part::Started, None)));
        let whole = fills.run(Key::for_test(1), || true, || async { 1 }).await;
        assert_eq!(whole, Some((Part::Started, Some(1))));
    }
}
