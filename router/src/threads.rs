//! The threads that serve clients' connections, each with a runtime of its own.
//!
//! A client's connection stays on its thread, with its requests and with the
//! connections to shards that they use ([`crate::pool`]). On one runtime of several
//! threads, whichever sees that a socket is ready wakes another one to look for
//! more, and a request goes on wherever there is time; for requests as short as a
//! small read those wake-ups cost more than the waiting that they save.
//!
//! What no client waits for (placements, nodes, changes) runs elsewhere, on the
//! process' own runtime.

use std::io;
use std::num::NonZero;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Where connections are served.
#[derive(Clone)]
pub struct Threads(Arc<[Thread]>);

struct Thread {
    runtime: Handle,
    /// Held by each of its connections, and here.
    seats: Arc<()>,
}

impl Threads {
    /// The runtime that this is called on, and nowhere else.
    pub fn here() -> Self {
        Self([Thread::of(Handle::current())].into())
    }

    /// A thread for each core, until `stop`.
    ///
    /// # Errors
    /// Where the system starts no more threads.
    pub fn start(stop: &CancellationToken) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (1..=cores).map(|number| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let thread = Thread::of(runtime.handle().clone());
            let stop = stop.clone();
            std::thread::Builder::new()
                .name(format!("requests-{number}"))
                .spawn(move || runtime.block_on(stop.cancelled()))?;
            Ok(thread)
        });
        Ok(Self(threads.collect::<io::Result<_>>()?))
    }

    /// Their runtimes.
    pub fn runtimes(&self) -> impl Iterator<Item = Handle> {
        self.0.iter().map(|thread| thread.runtime.clone())
    }

    /// Runs `connection` on the thread that has the fewest.
    pub fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let fewest = self.0.iter().min_by_key(|t| Arc::strong_count(&t.seats));
        if let Some(thread) = fewest {
            let seat = thread.seats.clone();
            thread.runtime.spawn(async move {
                connection.await;
                drop(seat);
            });
        }
    }
}

impl Thread {
    fn of(runtime: Handle) -> Self {
        Self {
            runtime,
            seats: Arc::new(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_spread_evenly_and_leave_their_places() {
        let stop = CancellationToken::new();
        let threads = Threads::start(&stop).unwrap();
        let cores = threads.0.len();
        let end = CancellationToken::new();
        let on = |thread: &Thread| Arc::strong_count(&thread.seats) - 1;
        for _ in 0..3 * cores {
            let end = end.clone();
            threads.spawn(async move { end.cancelled().await });
        }
        assert!(threads.0.iter().all(|thread| on(thread) == 3));
        end.cancel();
        let empty = async {
            while threads.0.iter().any(|thread| on(thread) > 0) {
                tokio::task::yield_now().await;
            }
        };
        let within = std::time::Duration::from_secs(10);
        tokio::time::timeout(within, empty).await.unwrap();
        stop.cancel();
    }
}
