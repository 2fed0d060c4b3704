//! One thread's world: what its tasks share, and the one place where a
//! request is sent, timed, judged and noted.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, Request, header};
use http_body_util::Full;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Finished, Plan};
use crate::answer::Origin;
use crate::calendar;
use crate::client::{Answer, Connection, Failure};
use crate::journal::{Entry, Fate, Journal, Leak};
use crate::lists::Lists;
use crate::record::{Interval, Outcome, Recorder, Sample, micros};
use crate::script::{Context, Operation, Rendered};
use crate::template::Surroundings;
use crate::token;

const APIKEY: HeaderName = HeaderName::from_static("apikey");
/// One leak is enough to fail; these many are enough to understand it.
const LEAKS_KEPT: usize = 100;
/// Preparation uses so many connections a thread.
const PREPARING: usize = 8;
/// Of the answers that could refill a full list, one in so many is parsed.
const REFRESH_ONE_IN: u8 = 16;

/// What the tasks of a thread share. All borrows end before the next await.
#[derive(Debug)]
pub(super) struct Lane {
    plan: Arc<Plan>,
    thread: usize,
    begin: Cell<Instant>,
    stop: CancellationToken,
    /// Everything that has to end before the thread may.
    pub(super) tasks: TaskTracker,
    recorder: RefCell<Recorder>,
    draws: RefCell<Draws>,
    journal: RefCell<Journal>,
    leaks: RefCell<Vec<Leak>>,
    /// Requests under way, by connection slot: whoever ends the thread counts
    /// them as given up.
    flights: RefCell<Vec<Option<Flight>>>,
    /// Arrivals that wait, over all streams of this thread.
    pub(super) waiting: Cell<u64>,
}

#[derive(Debug)]
struct Draws {
    lists: Lists,
    random: fastrand::Rng,
    fresh: fastrand::Rng,
    sequence: u64,
    canary: u64,
    /// The run's and thread's short name, for values that must be new.
    name: String,
}

/// A request that is to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) due: Duration,
    pub(super) operation: usize,
    pub(super) tenant: usize,
    /// A flood's own row in the totals.
    pub(super) row: Option<usize>,
    /// A replayed path.
    pub(super) path: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    row: usize,
    tenant: usize,
    due: Duration,
    sent: Duration,
}

impl Lane {
    pub(super) fn new(plan: Arc<Plan>, thread: usize, stop: CancellationToken) -> Rc<Self> {
        let mix = |salt: u64| {
            plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (thread as u64) << 32 ^ salt
        };
        let fresh_seed = plan
            .run
            .bytes()
            .fold(mix(3), |hash, byte| hash.rotate_left(7) ^ u64::from(byte));
        Rc::new(Lane {
            begin: Cell::new(Instant::now()),
            stop,
            tasks: TaskTracker::new(),
            recorder: RefCell::new(Recorder::new(
                plan.script.operations.len(),
                plan.flooding(),
                plan.population.tenants.len(),
            )),
            draws: RefCell::new(Draws {
                lists: Lists::new(plan.population.tenants.len(), plan.script.lists),
                random: fastrand::Rng::with_seed(mix(1)),
                fresh: fastrand::Rng::with_seed(fresh_seed),
                sequence: 0,
                canary: thread as u64,
                name: format!("{}{thread}x", plan.run),
            }),
            journal: RefCell::new(Journal::new(
                plan.journal_limit / plan.threads,
                plan.threads as u64,
            )),
            leaks: RefCell::default(),
            flights: RefCell::default(),
            waiting: Cell::new(0),
            plan,
            thread,
        })
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn thread(&self) -> usize {
        self.thread
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts the clock.
    pub(super) fn begin(&self, begin: Instant) {
        self.begin.set(begin);
    }

    /// The moment of the clock that lies `since` after its begin.
    pub(super) fn moment(&self, since: Duration) -> Instant {
        self.begin.get() + since
    }

    /// The clock's time.
    pub(super) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.begin.get())
    }

    pub(super) fn to_next_second(&self) -> Duration {
        let into = Duration::from_nanos(u64::from(self.now().subsec_nanos()));
        Duration::from_secs(1) - into
    }

    pub(super) fn closed_seconds(&self) -> Vec<Interval> {
        let mut recorder = self.recorder.borrow_mut();
        recorder.turn_to(self.now());
        recorder.finished()
    }

    pub(super) fn recorder(&self) -> std::cell::RefMut<'_, Recorder> {
        self.recorder.borrow_mut()
    }

    /// A connection for the `place`th of this thread's, and its slot.
    pub(super) fn connection(&self, place: usize) -> (Connection, usize) {
        let targets = &self.plan.targets;
        // Each thread begins with another one and then goes round, so that every
        // thread reaches every target.
        let target = targets[(place + self.thread) % targets.len()].clone();
        let mut flights = self.flights.borrow_mut();
        flights.push(None);
        (Connection::new(target), flights.len() - 1)
    }

    /// Draws what an arrival of the mixed load is.
    pub(super) fn draw(&self, due: Duration) -> Arrival {
        let random = &mut self.draws.borrow_mut().random;
        Arrival {
            due,
            tenant: self.plan.population.draw(random),
            operation: self.plan.script.draw(random),
            row: None,
            path: None,
        }
    }

    /// Draws a pause.
    pub(super) fn pause(&self, range: crate::scenario::Range) -> Duration {
        range.draw(&mut self.draws.borrow_mut().random)
    }

    /// Waits until all tasks have ended, the drain after the schedule is
    /// over, or the run was interrupted and what was under way had its time.
    pub(super) async fn over(&self, interrupted_drain: Duration) {
        self.tasks.close();
        let last = self
            .plan
            .streams
            .iter()
            .map(super::Stream::end)
            .max()
            .unwrap_or_default();
        let deadline = tokio::time::Instant::from_std(self.moment(last + self.plan.timeout));
        let interrupted = async {
            self.stop.cancelled().await;
            tokio::time::sleep(interrupted_drain).await;
        };
        tokio::select! {
            () = self.tasks.wait() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = interrupted => {}
        }
    }

    /// Runs each operation for each of this thread's tenants as often as it
    /// asks to be run beforehand.
    pub(super) async fn prepare(self: &Rc<Self>) {
        let operations = &self.plan.script.operations;
        if operations.iter().all(|operation| operation.prepare == 0) {
            return;
        }
        let tenants = self.plan.population.tenants.len();
        let share = move |worker: usize| {
            let first = self.thread + worker * self.plan.threads;
            (first..tenants).step_by(self.plan.threads * PREPARING)
        };
        let workers = (0..PREPARING).map(|worker| async move {
            let (mut connection, _) = self.connection(worker);
            for tenant in share(worker) {
                for (place, operation) in operations.iter().enumerate() {
                    for _ in 0..operation.prepare {
                        if self.stop.is_cancelled() {
                            return;
                        }
                        let arrival = Arrival {
                            due: Duration::ZERO,
                            operation: place,
                            tenant,
                            row: None,
                            path: None,
                        };
                        self.request(&mut connection, arrival).await;
                    }
                }
            }
        });
        futures_util::future::join_all(workers).await;
    }

    /// Sends an arrival over a connection and counts it.
    /// Returns false when no connection could be made.
    pub(super) async fn serve(
        &self,
        connection: &mut Connection,
        slot: usize,
        arrival: Arrival,
    ) -> bool {
        let sent = self.now();
        let row = arrival.row;
        self.flights.borrow_mut()[slot] = Some(Flight {
            row: row.unwrap_or(arrival.operation),
            tenant: arrival.tenant,
            due: arrival.due,
            sent,
        });
        let (operation, outcome, origin, bytes) = self.request(connection, arrival).await;
        self.flights.borrow_mut()[slot] = None;
        self.recorder.borrow_mut().sample(&Sample {
            row: row.unwrap_or(operation),
            tenant: arrival.tenant,
            due: arrival.due,
            sent,
            done: self.now(),
            outcome,
            origin,
            bytes,
        });
        !matches!(outcome, Outcome::Failed(Failure::Refused))
    }

    /// Renders, sends and judges a request. The operation may be another than
    /// the arrival's, when that one needs values that must be read first.
    async fn request(
        &self,
        connection: &mut Connection,
        arrival: Arrival,
    ) -> (usize, Outcome, Origin, u64) {
        let Arrival { tenant, path, .. } = arrival;
        let (place, first_canary, rendered) = self.render(arrival);
        let operation = &self.plan.script.operations[place];
        let Some(rendered) = rendered else {
            return (place, Outcome::Failed(Failure::Refused), Origin::Unknown, 0);
        };
        let noted = self.note(
            operation,
            place,
            tenant,
            connection,
            first_canary,
            rendered.canaries,
        );
        let uri = path.map_or_else(
            || rendered.uri.clone(),
            |path| self.plan.log_paths[path].clone(),
        );
        let looked_for = self.plan.look_for_leaks.then(|| uri.clone());
        let saves = !operation.saves.is_empty() && self.wants(operation, tenant);
        let request = self.build(operation, tenant, uri, rendered, connection);
        let sent = self.now();
        let result = connection
            .exchange(
                request,
                self.plan.timeout,
                saves || self.plan.look_for_leaks,
            )
            .await;
        if let Some(noted) = noted {
            let (fate, status) = match &result {
                Ok(answer) => (Fate::of_status(answer.status), answer.status),
                Err(Failure::Refused) => (Fate::Failed, 0),
                Err(Failure::Timeout | Failure::Cut) => (Fate::Indeterminate, 0),
            };
            self.journal
                .borrow_mut()
                .end(noted, fate, status, micros(self.now()));
        }
        let answer = match result {
            Ok(answer) => answer,
            Err(failure) => return (place, Outcome::Failed(failure), Origin::Unknown, 0),
        };
        if let Some(uri) = looked_for {
            self.look(&answer, tenant, &uri, connection, operation, sent);
        }
        if !operation.expects(answer.status) {
            return (
                place,
                Outcome::Unexpected(answer.status),
                Origin::Unknown,
                answer.bytes,
            );
        }
        if saves {
            self.draws
                .borrow_mut()
                .lists
                .keep_fields(tenant, &operation.saves, &answer.body);
        }
        (
            place,
            Outcome::Expected(answer.status),
            Origin::of(&answer.headers),
            answer.bytes,
        )
    }

    fn render(&self, arrival: Arrival) -> (usize, u64, Option<Rendered>) {
        let tenant = &self.plan.population.tenants[arrival.tenant];
        let mut draws = self.draws.borrow_mut();
        let Draws {
            lists,
            random,
            fresh,
            sequence,
            canary,
            name,
        } = &mut *draws;
        let place = match arrival.path {
            Some(_) => arrival.operation,
            None => self
                .plan
                .script
                .ready(arrival.operation, arrival.tenant, lists),
        };
        let first_canary = *canary;
        let mut context = Context {
            surroundings: Surroundings {
                random,
                fresh,
                sequence,
                run: name,
                tenant: &tenant.slug,
                now: calendar::now(),
            },
            lists,
            tenant: arrival.tenant,
            tag: tenant.tag,
            run: &self.plan.run,
            canary,
            canary_step: self.plan.threads as u64,
        };
        (
            place,
            first_canary,
            self.plan.script.operations[place].render(&mut context),
        )
    }

    /// Journals an insert before it is sent: if this process is interrupted,
    /// the write is known to be indeterminate.
    fn note(
        &self,
        operation: &Operation,
        place: usize,
        tenant: usize,
        connection: &Connection,
        first: u64,
        rows: u32,
    ) -> Option<usize> {
        if rows == 0 || operation.journal.is_none() || !self.plan.look_for_leaks {
            return None;
        }
        let target = self
            .plan
            .targets
            .iter()
            .position(|target| target == connection.target())
            .unwrap_or_default();
        self.journal.borrow_mut().begin(Entry {
            first,
            rows,
            tenant: tenant as u32,
            operation: place as u16,
            target: target as u16,
            fate: Fate::Indeterminate,
            status: 0,
            sent_us: micros(self.now()),
            done_us: 0,
        })
    }

    /// Whether an answer's values are worth the parsing.
    fn wants(&self, operation: &Operation, tenant: usize) -> bool {
        let mut draws = self.draws.borrow_mut();
        let full = operation
            .saves
            .iter()
            .all(|(list, _)| draws.lists.is_full(tenant, *list));
        !full || draws.random.u8(..REFRESH_ONE_IN) == 0
    }

    fn build(
        &self,
        operation: &Operation,
        tenant: usize,
        uri: http::Uri,
        rendered: Rendered,
        connection: &Connection,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(rendered.body));
        *request.method_mut() = operation.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(header::HOST, connection.target().host.clone());
        if let Some(key) = &self.plan.population.tenants[tenant].key {
            headers.insert(APIKEY, key.clone());
        }
        for (name, value) in rendered.headers {
            headers.insert(name, value);
        }
        request
    }

    fn look(
        &self,
        answer: &Answer,
        tenant: usize,
        uri: &http::Uri,
        connection: &Connection,
        operation: &Operation,
        sent: Duration,
    ) {
        let reader = self.plan.population.tenants[tenant].tag;
        let Some(token) = token::foreign(&answer.body, &reader) else {
            return;
        };
        let mut leaks = self.leaks.borrow_mut();
        if leaks.len() < LEAKS_KEPT {
            leaks.push(Leak {
                token,
                reader,
                request: format!("{} {uri}", operation.method),
                target: connection.target().name().to_owned(),
                sent_us: micros(sent),
                done_us: micros(self.now()),
            });
        }
    }

    /// Ends the thread's counting. What was still under way is counted as
    /// given up now, and what waited as never sent.
    pub(super) fn finish(&self) -> (Vec<Interval>, Finished) {
        let now = self.now();
        let empty = Recorder::new(0, Vec::new(), 0);
        let mut recorder = self.recorder.replace(empty);
        for flight in self.flights.take().into_iter().flatten() {
            recorder.sample(&Sample {
                row: flight.row,
                tenant: flight.tenant,
                due: flight.due,
                sent: flight.sent,
                done: now,
                outcome: Outcome::Failed(Failure::Timeout),
                origin: Origin::Unknown,
                bytes: 0,
            });
        }
        recorder.unsent(self.waiting.get());
        let (intervals, totals) = recorder.finish();
        (
            intervals,
            Finished {
                totals,
                journal: self.journal.take(),
                leaks: self.leaks.take(),
            },
        )
    }
}
