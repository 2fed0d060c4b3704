//! A bounded queue, and a task that takes what is in it to another server, in
//! batches. A full queue drops, and a delivery that fails is not tried again:
//! whoever puts something in never waits.

use std::time::Duration;

use metrics::Counter;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Longest time that one delivery takes.
pub(crate) const DELIVERY_MAX: Duration = Duration::from_secs(5);
/// So long a batch is gathered.
const GATHER: Duration = Duration::from_millis(500);
/// A server that is down is complained of this often.
const COMPLAIN: Duration = Duration::from_secs(60);

const SENT: &str = "ringfence_telemetry_sent_total";
const DROPPED: &str = "ringfence_telemetry_dropped_total";

pub(crate) fn describe() {
    metrics::describe_counter!(
        SENT,
        "Spans sent to the collector, and faults reported to Sentry."
    );
    metrics::describe_counter!(
        DROPPED,
        "Spans and faults that were not: the queue was full, too many came at once, or the server refused or failed."
    );
}

/// A server that takes batches.
pub(crate) trait Server: Send + 'static {
    type Item: Send + 'static;
    /// What its items are called in metrics.
    const KIND: &'static str;
    /// Items that wait at most.
    const QUEUE_MAX: usize;
    /// Items that go at once.
    const BATCH_MAX: usize;

    /// As how many it counts.
    fn count(item: &Self::Item) -> u64;

    fn deliver(&self, batch: Vec<Self::Item>) -> impl Future<Output = Result<(), String>> + Send;
}

/// The queue's near end.
pub(crate) struct Outbox<S: Server> {
    queue: Sender<S::Item>,
    dropped: Counter,
}

/// The task at its far end.
pub(crate) struct Post {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl<S: Server> Outbox<S> {
    pub(crate) fn open(server: S) -> (Self, Post)
    where
        S: Sync,
    {
        let (queue, waiting) = channel(S::QUEUE_MAX);
        let dropped = metrics::counter!(DROPPED, "kind" => S::KIND);
        let stop = CancellationToken::new();
        let carrier = Carrier {
            server,
            sent: metrics::counter!(SENT, "kind" => S::KIND),
            dropped: dropped.clone(),
            complained: None,
        };
        let task = tokio::spawn(carrier.run(waiting, stop.clone()));
        (Self { queue, dropped }, Post { stop, task })
    }

    pub(crate) fn put(&self, item: S::Item) {
        if let Err(TrySendError::Full(item) | TrySendError::Closed(item)) =
            self.queue.try_send(item)
        {
            self.dropped.increment(S::count(&item));
        }
    }

    /// Something was not even put in.
    pub(crate) fn drop_one(&self) {
        self.dropped.increment(1);
    }
}

impl Post {
    /// Takes what is queued now, then ends. Dropped, it ends at once.
    pub(crate) async fn finish(mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Carrier<S> {
    server: S,
    sent: Counter,
    dropped: Counter,
    complained: Option<Instant>,
}

impl<S: Server + Sync> Carrier<S> {
    async fn run(mut self, mut waiting: Receiver<S::Item>, stop: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            let got = tokio::select! {
                () = stop.cancelled() => break,
                got = waiting.recv_many(&mut batch, S::BATCH_MAX) => got,
            };
            if got == 0 {
                return;
            }
            // Not cancelled with anything in hand: `recv_many` gives it all or nothing.
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(GATHER) => {}
            }
            while batch.len() < S::BATCH_MAX
                && let Ok(item) = waiting.try_recv()
            {
                batch.push(item);
            }
            self.take(batch).await;
        }
        waiting.close();
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, S::BATCH_MAX).await > 0 {
            self.take(std::mem::take(&mut batch)).await;
        }
    }

    async fn take(&mut self, batch: Vec<S::Item>) {
        let count = batch.iter().map(S::count).sum();
        let done = timeout(DELIVERY_MAX, self.server.deliver(batch)).await;
        let why = match done {
            Ok(Ok(())) => return self.sent.increment(count),
            Ok(Err(why)) => why,
            Err(_) => "it takes too long".to_owned(),
        };
        self.dropped.increment(count);
        let now = Instant::now();
        if self.complained.is_none_or(|at| now - at >= COMPLAIN) {
            self.complained = Some(now);
            tracing::warn!(kind = S::KIND, count, why, "not delivered");
        }
    }
}
