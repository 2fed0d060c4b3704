//! The open model: a pacer puts arrivals into a queue when they are due, and
//! connections take them out. A slow target makes the queue longer and the
//! latencies with it; it never makes the arrivals fewer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::lane::{Arrival, Lane};
use super::{Choice, StreamKind};
use crate::pacer::Pacer;
use crate::timer::Timer;

/// A connection that cannot be made is tried again after these pauses, so
/// that a dead router's idle connections do not swallow all arrivals.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_LAST: Duration = Duration::from_millis(500);
/// A pacer that is behind lets the connections work after so many arrivals.
const BURST: usize = 64;

/// What waits between a pacer and the connections of a thread.
#[derive(Debug)]
struct Queue {
    waiting: RefCell<VecDeque<Arrival>>,
    more: Notify,
    /// Connections that wait for an arrival.
    idle: Cell<usize>,
    open: Cell<usize>,
    connections: usize,
    backlog: usize,
    flood: bool,
    closed: Cell<bool>,
}

/// Starts a thread's share of an open stream.
pub(super) fn spawn(lane: &Rc<Lane>, stream: usize) -> io::Result<()> {
    let timer = Timer::new()?;
    let share = |all: usize| all.div_ceil(lane.plan().threads).max(1);
    let (connections, backlog, flood) = match &lane.plan().streams[stream].kind {
        StreamKind::Open {
            connections,
            backlog,
            choice,
            ..
        } => (
            share(*connections),
            share(*backlog),
            matches!(choice, Choice::Fixed { .. }),
        ),
        StreamKind::Log { connections, .. } => (share(*connections), usize::MAX, false),
        StreamKind::Closed { .. } => return Ok(()),
    };
    let queue = Rc::new(Queue {
        waiting: RefCell::default(),
        more: Notify::new(),
        idle: Cell::new(0),
        open: Cell::new(0),
        connections,
        backlog,
        flood,
        closed: Cell::new(false),
    });
    let lane_of_task = lane.clone();
    lane.tasks.spawn_local(async move {
        pace(&lane_of_task, stream, &queue, &timer).await;
        if lane_of_task.stop().is_cancelled() {
            let left = queue.waiting.borrow_mut().drain(..).count() as u64;
            lane_of_task.recorder().unsent(left);
            lane_of_task.waiting.set(lane_of_task.waiting.get() - left);
        }
        queue.closed.set(true);
        queue.more.notify_waiters();
    });
    Ok(())
}

/// Puts every arrival into the queue when it is due.
async fn pace(lane: &Rc<Lane>, stream: usize, queue: &Rc<Queue>, timer: &Timer) {
    let start = lane.plan().streams[stream].start;
    let mut burst = 0;
    for arrival in schedule(lane, stream) {
        let due = start + arrival.due;
        let moment = lane.moment(due);
        if lane.now() < due {
            burst = 0;
            let ended = tokio::select! {
                waited = timer.until(moment) => waited.is_err(),
                () = lane.stop().cancelled() => true,
            };
            if ended {
                return;
            }
        } else {
            burst += 1;
            if burst % BURST == 0 {
                tokio::task::yield_now().await;
                if lane.stop().is_cancelled() {
                    return;
                }
            }
        }
        lane.recorder()
            .due(lane.now().saturating_sub(due), queue.flood);
        push(lane, queue, Arrival { due, ..arrival });
    }
}

/// This thread's arrivals, due times from the stream's start.
fn schedule<'a>(lane: &'a Rc<Lane>, stream: usize) -> Box<dyn Iterator<Item = Arrival> + 'a> {
    let plan = lane.plan();
    match &plan.streams[stream].kind {
        StreamKind::Open {
            profile,
            spacing,
            choice,
            ..
        } => {
            let seed = plan.seed.wrapping_add(stream as u64);
            let pacer = Pacer::new(profile, *spacing, seed, lane.thread(), plan.threads);
            Box::new(pacer.map(move |seconds| {
                let due = Duration::from_secs_f64(seconds);
                match *choice {
                    Choice::Mixed => lane.draw(due),
                    Choice::Fixed {
                        operation,
                        tenant,
                        row,
                    } => Arrival {
                        due,
                        operation,
                        tenant,
                        row: Some(row),
                        path: None,
                    },
                }
            }))
        }
        StreamKind::Log { arrivals, .. } => Box::new(
            arrivals
                .iter()
                .skip(lane.thread())
                .step_by(plan.threads)
                .map(|logged| Arrival {
                    due: logged.due,
                    operation: logged.operation,
                    tenant: logged.tenant,
                    row: None,
                    path: Some(logged.path),
                }),
        ),
        StreamKind::Closed { .. } => Box::new(std::iter::empty()),
    }
}

fn push(lane: &Rc<Lane>, queue: &Rc<Queue>, arrival: Arrival) {
    let waiting = {
        let mut waiting = queue.waiting.borrow_mut();
        if waiting.len() >= queue.backlog {
            lane.recorder().dropped(queue.flood);
            return;
        }
        waiting.push_back(arrival);
        waiting.len()
    };
    if !queue.flood {
        lane.waiting.set(lane.waiting.get() + 1);
    }
    if waiting > queue.idle.get() && queue.open.get() < queue.connections {
        queue.open.set(queue.open.get() + 1);
        lane.tasks
            .spawn_local(work(lane.clone(), queue.clone(), queue.open.get() - 1));
    } else {
        queue.more.notify_one();
    }
    lane.recorder()
        .backlog(waiting.saturating_sub(queue.idle.get()));
}

/// One connection: takes arrivals until there will be no more.
async fn work(lane: Rc<Lane>, queue: Rc<Queue>, place: usize) {
    let (mut connection, slot) = lane.connection(place);
    let mut retry = RETRY_FIRST;
    loop {
        // In a statement of its own, so that the borrow ends before the wait.
        let next = queue.waiting.borrow_mut().pop_front();
        match next {
            Some(arrival) => {
                if !queue.flood {
                    lane.waiting.set(lane.waiting.get() - 1);
                }
                if lane.serve(&mut connection, slot, arrival).await {
                    retry = RETRY_FIRST;
                } else {
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_LAST);
                }
            }
            None if queue.closed.get() => return,
            None => {
                queue.idle.set(queue.idle.get() + 1);
                queue.more.notified().await;
                queue.idle.set(queue.idle.get() - 1);
            }
        }
    }
}
