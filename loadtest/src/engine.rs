//! Sends the load. A few threads, each with its own runtime, connections,
//! counters and share of the schedule; they share nothing that they write,
//! and meet only at the begin and at the end.

mod closed;
mod lane;
mod open;

use std::sync::{Arc, Barrier, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::Uri;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::client::Target;
use crate::error::{Error, Result};
use crate::journal::{Journal, Leak};
use crate::pacer::{Profile, Spacing};
use crate::population::Population;
use crate::record::{Interval, Totals};
use crate::scenario::Range;
use crate::script::Script;
use lane::Lane;

/// After an interrupt, requests under way may still be answered this long.
const INTERRUPTED_DRAIN: Duration = Duration::from_secs(2);
/// Between the last preparation and the first arrival, so that all threads
/// are there for it.
const LEAD: Duration = Duration::from_millis(20);

/// Everything that the load threads need to know; fixed before they start.
#[derive(Debug)]
pub struct Plan {
    /// What is requested.
    pub script: Script,
    /// For whom.
    pub population: Population,
    /// From whom; connections are spread evenly.
    pub targets: Vec<Arc<Target>>,
    /// The load itself first, then floods.
    pub streams: Vec<Stream>,
    /// Given up after this long.
    pub timeout: Duration,
    /// Whether answers are searched for other tenants' canaries.
    pub look_for_leaks: bool,
    /// The run's name, part of every canary.
    pub run: String,
    /// Seeds every choice.
    pub seed: u64,
    /// How many threads.
    pub threads: usize,
    /// How many rows the journal may hold.
    pub journal_limit: usize,
    /// The paths of a replayed log.
    pub log_paths: Vec<Uri>,
}

/// Requests that follow one schedule.
#[derive(Debug)]
pub struct Stream {
    /// When it begins.
    pub start: Duration,
    /// What it sends and when.
    pub kind: StreamKind,
}

/// What a stream sends and when.
#[derive(Debug)]
pub enum StreamKind {
    /// Requests at a rate, whatever the target does.
    Open {
        /// The rate over time.
        profile: Profile,
        /// How arrivals are spaced.
        spacing: Spacing,
        /// The most connections over all threads.
        connections: usize,
        /// The most waiting arrivals over all threads.
        backlog: usize,
        /// What each is.
        choice: Choice,
    },
    /// Clients that wait for their answers.
    Closed {
        /// How many clients over time.
        profile: Profile,
        /// Their pause after an answer.
        think: Range,
    },
    /// Requests at the times of a log.
    Log {
        /// The requests, by time.
        arrivals: Vec<Logged>,
        /// The most connections over all threads.
        connections: usize,
    },
}

/// Which request an arrival is.
#[derive(Debug, Clone, Copy)]
pub enum Choice {
    /// Drawn by weight and spread.
    Mixed,
    /// Always the same: a flood.
    Fixed {
        /// The operation.
        operation: usize,
        /// The tenant's place.
        tenant: usize,
        /// Its row in the totals.
        row: usize,
    },
}

/// A request of a replayed log.
#[derive(Debug, Clone, Copy)]
pub struct Logged {
    /// When it is due.
    pub due: Duration,
    /// Its operation: the group that it is reported in.
    pub operation: usize,
    /// The tenant's place.
    pub tenant: usize,
    /// Its path's place in [`Plan::log_paths`].
    pub path: usize,
}

impl Stream {
    /// When its last request is due.
    pub fn end(&self) -> Duration {
        self.start
            + match &self.kind {
                StreamKind::Open { profile, .. } | StreamKind::Closed { profile, .. } => {
                    Duration::from_secs_f64(profile.seconds())
                }
                StreamKind::Log { arrivals, .. } => {
                    arrivals.last().map_or(Duration::ZERO, |last| last.due)
                }
            }
    }
}

impl Plan {
    /// How long the load itself lasts.
    pub fn duration(&self) -> Duration {
        self.streams.first().map_or(Duration::ZERO, Stream::end)
    }

    /// The tenants that flood, one for each flood.
    pub fn flooding(&self) -> Vec<usize> {
        self.streams
            .iter()
            .filter_map(|stream| match &stream.kind {
                StreamKind::Open {
                    choice: Choice::Fixed { tenant, .. },
                    ..
                } => Some(*tenant),
                StreamKind::Open { .. } | StreamKind::Closed { .. } | StreamKind::Log { .. } => {
                    None
                }
            })
            .collect()
    }
}

/// A run under way.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<Result<Finished>>>,
    /// Ends the run early.
    pub stop: CancellationToken,
    /// The moment at which the clock started; set once all threads are ready.
    pub begin: Arc<OnceLock<Instant>>,
}

/// What a run, or one of its threads, leaves behind.
#[derive(Debug)]
pub struct Finished {
    /// Counts and latencies.
    pub totals: Totals,
    /// The inserts that carried canaries.
    pub journal: Journal,
    /// Answers that held other tenants' canaries.
    pub leaks: Vec<Leak>,
}

/// Starts the load threads. Closed seconds are sent to `seconds`; when that
/// channel is full they wait for the next second, so that watching can never
/// slow the load down.
///
/// # Errors
/// When the system refuses a thread.
pub fn start(plan: Arc<Plan>, seconds: &mpsc::Sender<Interval>) -> Result<Running> {
    let stop = CancellationToken::new();
    let begin = Arc::new(OnceLock::new());
    let barrier = Arc::new(Barrier::new(plan.threads));
    let threads = (0..plan.threads)
        .map(|thread| {
            let (plan, stop, begin, barrier, seconds) = (
                plan.clone(),
                stop.clone(),
                begin.clone(),
                barrier.clone(),
                seconds.clone(),
            );
            std::thread::Builder::new()
                .name(format!("load-{thread}"))
                .spawn(move || run_thread(plan, thread, &barrier, &begin, &stop, &seconds))
                .map_err(|source| Error::System {
                    what: "a thread",
                    source,
                })
        })
        .collect::<Result<_>>()?;
    Ok(Running {
        threads,
        stop,
        begin,
    })
}

impl Running {
    /// Waits for all threads; blocks.
    ///
    /// # Errors
    /// The first thread's error.
    pub fn join(self) -> Result<Finished> {
        let mut all: Option<Finished> = None;
        for thread in self.threads {
            let finished = thread.join().map_err(|_| Error::Thread)??;
            match &mut all {
                None => all = Some(finished),
                Some(all) => {
                    all.totals.merge(&finished.totals);
                    all.journal.merge(finished.journal);
                    all.leaks.extend(finished.leaks);
                }
            }
        }
        all.ok_or(Error::Thread)
    }
}

fn run_thread(
    plan: Arc<Plan>,
    thread: usize,
    barrier: &Barrier,
    begin: &OnceLock<Instant>,
    stop: &CancellationToken,
    seconds: &mpsc::Sender<Interval>,
) -> Result<Finished> {
    let system = |what| move |source| Error::System { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("an event loop"))?;
    let lane = Lane::new(plan, thread, stop.clone());
    runtime.block_on(LocalSet::new().run_until(lane.prepare()));
    barrier.wait();
    let begin = *begin.get_or_init(|| Instant::now() + LEAD);
    lane.begin(begin);

    let tasks = LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        for place in 0..lane.plan().streams.len() {
            match &lane.plan().streams[place].kind {
                StreamKind::Closed { .. } => closed::spawn(&lane, place),
                StreamKind::Open { .. } | StreamKind::Log { .. } => {
                    open::spawn(&lane, place).map_err(system("a timer"))?;
                }
            }
        }
        tokio::task::spawn_local(report_seconds(lane.clone(), seconds.clone()));
        lane.over(INTERRUPTED_DRAIN).await;
        Ok(())
    }))?;
    // Ends what is still under way; the lane knows it and counts it.
    drop(tasks);
    let (intervals, finished) = lane.finish();
    for interval in intervals {
        // The last seconds are not in a hurry any more.
        if seconds.blocking_send(interval).is_err() {
            break;
        }
    }
    Ok(finished)
}

/// Sends closed seconds on, shortly after each second.
async fn report_seconds(lane: std::rc::Rc<Lane>, seconds: mpsc::Sender<Interval>) {
    let mut waiting: Vec<Interval> = Vec::new();
    loop {
        tokio::time::sleep(lane.to_next_second() + Duration::from_millis(2)).await;
        waiting.extend(lane.closed_seconds());
        while let Some(interval) = waiting.first() {
            match seconds.try_send(interval.clone()) {
                Ok(()) => drop(waiting.remove(0)),
                Err(_) => break,
            }
        }
    }
}
