//! What a thread counts: totals for the whole run, and a light interval for
//! every second that is sent on while the run goes.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::answer::Origin;
use crate::client::Failure;

/// Latencies are recorded in microseconds with three significant digits.
const DIGITS: u8 = 3;
/// A tenant's own histogram keeps two, because there may be many.
const TENANT_DIGITS: u8 = 2;
/// So many tenants are followed one by one; the rest only in the totals.
pub const TENANTS_FOLLOWED: usize = 1_000;
/// An arrival that is sent later than this after it was due is late.
const LATE: Duration = Duration::from_millis(1);

/// How a request failed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// No connection could be made; nothing was sent.
    Refused,
    /// No answer within the time limit.
    Timeout,
    /// The connection ended before the answer did.
    Cut,
    /// An unexpected 4xx.
    Client,
    /// An unexpected 5xx.
    Server,
    /// Another unexpected status.
    Other,
}

impl Fault {
    /// All, in the order of reports.
    pub const ALL: [Fault; 6] = [
        Fault::Refused,
        Fault::Timeout,
        Fault::Cut,
        Fault::Client,
        Fault::Server,
        Fault::Other,
    ];

    /// As reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Refused => "refused",
            Fault::Timeout => "timeout",
            Fault::Cut => "cut",
            Fault::Client => "4xx",
            Fault::Server => "5xx",
            Fault::Other => "other status",
        }
    }

    fn of_status(status: u16) -> Self {
        match status {
            400..500 => Fault::Client,
            500..600 => Fault::Server,
            _ => Fault::Other,
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused => Fault::Refused,
            Failure::Timeout => Fault::Timeout,
            Failure::Cut => Fault::Cut,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// With an expected status.
    Expected(u16),
    /// With another status.
    Unexpected(u16),
    /// Without an answer.
    Failed(Failure),
}

/// A finished request. Times are measured from the begin of the run.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Its row in the totals.
    pub row: usize,
    /// Its tenant's place in the population.
    pub tenant: usize,
    /// When it was due; in the closed model, when it was sent.
    pub due: Duration,
    /// When it was sent.
    pub sent: Duration,
    /// When its answer was complete, or it was given up.
    pub done: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Who answered.
    pub origin: Origin,
    /// The answer's body size.
    pub bytes: u64,
}

/// Counts and latencies of one kind of request.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Latency of expected answers, and of requests that were sent and never
    /// answered up to the moment they were given up: leaving those out would
    /// make a target look faster the more it hangs. Error answers are not in
    /// it: a target that refuses quickly is not fast.
    pub latency: Histogram<u64>,
    /// Expected answers.
    pub expected: u64,
    /// Failed requests by fault, in the order of [`Fault::ALL`].
    pub faults: [u64; Fault::ALL.len()],
    /// All answers by origin, in the order of [`Origin::ALL`].
    pub origins: [u64; Origin::ALL.len()],
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Bytes of bodies received.
    pub bytes: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            latency: histogram(DIGITS),
            expected: 0,
            faults: Default::default(),
            origins: Default::default(),
            statuses: BTreeMap::new(),
            bytes: 0,
        }
    }
}

impl Tally {
    fn add(&mut self, sample: &Sample) {
        let latency = micros(sample.done.saturating_sub(sample.due));
        match sample.outcome {
            Outcome::Expected(status) => {
                self.expected += 1;
                record(&mut self.latency, latency);
                *self.statuses.entry(status).or_default() += 1;
                self.origins[sample.origin.place()] += 1;
            }
            Outcome::Unexpected(status) => {
                self.faults[Fault::of_status(status) as usize] += 1;
                *self.statuses.entry(status).or_default() += 1;
            }
            Outcome::Failed(failure) => {
                self.faults[Fault::from(failure) as usize] += 1;
                if failure != Failure::Refused {
                    record(&mut self.latency, latency);
                }
            }
        }
        self.bytes += sample.bytes;
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Tally) {
        // Histograms of equal precision that resize can always be added.
        let _ = self.latency.add(&other.latency);
        self.expected += other.expected;
        self.bytes += other.bytes;
        add_each(&mut self.faults, &other.faults);
        add_each(&mut self.origins, &other.origins);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
    }

    /// All requests that ended, either way.
    pub fn ended(&self) -> u64 {
        self.expected + self.errors()
    }

    /// All that failed.
    pub fn errors(&self) -> u64 {
        self.faults.iter().sum()
    }
}

/// One tenant's share.
#[derive(Debug, Clone)]
pub struct TenantTally {
    /// Latency as in [`Tally`].
    pub latency: Histogram<u32>,
    /// Requests that ended.
    pub ended: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl Default for TenantTally {
    fn default() -> Self {
        TenantTally {
            latency: histogram(TENANT_DIGITS),
            ended: 0,
            errors: 0,
        }
    }
}

impl TenantTally {
    /// Adds another thread's.
    pub fn merge(&mut self, other: &TenantTally) {
        let _ = self.latency.add(&other.latency);
        self.ended += other.ended;
        self.errors += other.errors;
    }
}

/// One second of the load, floods left out unless said otherwise.
#[derive(Debug, Clone)]
pub struct Interval {
    /// Which second of the run.
    pub second: u32,
    /// Arrivals that fell due in it.
    pub due: u64,
    /// Counts and latencies of what ended in it.
    pub tally: Tally,
    /// The same for tenants that do not flood, if any tenant floods.
    pub bystanders: Option<Histogram<u64>>,
    /// Requests of floods that ended in it.
    pub flood_ended: u64,
    /// Arrivals sent late.
    pub late: u64,
    /// Arrivals dropped because too many waited.
    pub dropped: u64,
    /// The most arrivals that waited at a time.
    pub backlog: u64,
    /// Tenants with requests in it: place, requests, errors, slowest in µs.
    pub tenants: BTreeMap<u32, TenantSecond>,
}

/// A tenant's second.
#[derive(Debug, Clone, Copy, Default)]
pub struct TenantSecond {
    /// Requests that ended.
    pub ended: u64,
    /// Requests that failed.
    pub errors: u64,
    /// The slowest, in microseconds.
    pub slowest_us: u64,
}

impl Interval {
    /// A second in which nothing happened yet.
    pub fn new(second: u32, floods: bool) -> Self {
        Interval {
            second,
            due: 0,
            tally: Tally::default(),
            bystanders: floods.then(|| histogram(DIGITS)),
            flood_ended: 0,
            late: 0,
            dropped: 0,
            backlog: 0,
            tenants: BTreeMap::new(),
        }
    }

    /// Adds another thread's part of the same second.
    pub fn merge(&mut self, other: &Interval) {
        self.due += other.due;
        self.tally.merge(&other.tally);
        if let (Some(own), Some(other)) = (&mut self.bystanders, &other.bystanders) {
            let _ = own.add(other);
        }
        self.flood_ended += other.flood_ended;
        self.late += other.late;
        self.dropped += other.dropped;
        self.backlog += other.backlog;
        for (tenant, second) in &other.tenants {
            let own = self.tenants.entry(*tenant).or_default();
            own.ended += second.ended;
            own.errors += second.errors;
            own.slowest_us = own.slowest_us.max(second.slowest_us);
        }
    }
}

/// A thread's totals.
#[derive(Debug)]
pub struct Totals {
    /// One for each operation, then one for each flood.
    pub rows: Vec<Tally>,
    /// One for each followed tenant.
    pub tenants: Vec<TenantTally>,
    /// How late the tester itself woke up for its arrivals, in microseconds.
    pub wake_lag: Histogram<u64>,
    /// Arrivals that fell due.
    pub due: u64,
    /// Arrivals sent late.
    pub late: u64,
    /// Arrivals dropped because too many waited.
    pub dropped: u64,
    /// Arrivals that were still waiting when the run was over.
    pub unsent: u64,
}

impl Totals {
    fn new(rows: usize, tenants: usize) -> Self {
        Totals {
            rows: vec![Tally::default(); rows],
            tenants: vec![TenantTally::default(); tenants.min(TENANTS_FOLLOWED)],
            wake_lag: histogram(DIGITS),
            due: 0,
            late: 0,
            dropped: 0,
            unsent: 0,
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Totals) {
        for (own, other) in self.rows.iter_mut().zip(&other.rows) {
            own.merge(other);
        }
        for (own, other) in self.tenants.iter_mut().zip(&other.tenants) {
            own.merge(other);
        }
        let _ = self.wake_lag.add(&other.wake_lag);
        self.due += other.due;
        self.late += other.late;
        self.dropped += other.dropped;
        self.unsent += other.unsent;
    }
}

/// Counts for one thread.
#[derive(Debug)]
pub struct Recorder {
    totals: Totals,
    interval: Interval,
    finished: Vec<Interval>,
    /// Rows from this one on are floods.
    first_flood: usize,
    /// Which tenants flood, by place.
    flooding: Vec<usize>,
}

impl Recorder {
    /// A recorder for so many operations and tenants, and for floods of
    /// these tenants.
    pub fn new(operations: usize, flooding: Vec<usize>, tenants: usize) -> Self {
        Recorder {
            totals: Totals::new(operations + flooding.len(), tenants),
            interval: Interval::new(0, !flooding.is_empty()),
            finished: Vec::new(),
            first_flood: operations,
            flooding,
        }
    }

    /// An arrival fell due, and the tester noticed `lag` later.
    pub fn due(&mut self, lag: Duration, flood: bool) {
        record(&mut self.totals.wake_lag, micros(lag));
        if !flood {
            self.interval.due += 1;
            self.totals.due += 1;
        }
    }

    /// So many arrivals wait.
    pub fn backlog(&mut self, waiting: usize) {
        self.interval.backlog = self.interval.backlog.max(waiting as u64);
    }

    /// An arrival was dropped.
    pub fn dropped(&mut self, flood: bool) {
        if !flood {
            self.interval.dropped += 1;
            self.totals.dropped += 1;
        }
    }

    /// Arrivals were still waiting when the run was over.
    pub fn unsent(&mut self, count: u64) {
        self.totals.unsent += count;
    }

    /// A request ended.
    pub fn sample(&mut self, sample: &Sample) {
        self.turn_to(sample.done);
        self.totals.rows[sample.row].add(sample);
        if sample.row >= self.first_flood {
            self.interval.flood_ended += 1;
            return;
        }
        if sample.sent.saturating_sub(sample.due) > LATE {
            self.interval.late += 1;
            self.totals.late += 1;
        }
        self.interval.tally.add(sample);
        let latency = micros(sample.done.saturating_sub(sample.due));
        let error = !matches!(sample.outcome, Outcome::Expected(_));
        if let Some(bystanders) = &mut self.interval.bystanders
            && !error
            && !self.flooding.contains(&sample.tenant)
        {
            record(bystanders, latency);
        }
        if let Some(tenant) = self.totals.tenants.get_mut(sample.tenant) {
            tenant.ended += 1;
            tenant.errors += u64::from(error);
            if !error {
                record(&mut tenant.latency, latency);
            }
            let second = self
                .interval
                .tenants
                .entry(sample.tenant as u32)
                .or_default();
            second.ended += 1;
            second.errors += u64::from(error);
            second.slowest_us = second.slowest_us.max(latency);
        }
    }

    /// Closes the current second if `now` lies in a later one.
    pub fn turn_to(&mut self, now: Duration) {
        let second = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        if second > self.interval.second {
            let next = Interval::new(second, !self.flooding.is_empty());
            self.finished
                .push(std::mem::replace(&mut self.interval, next));
        }
    }

    /// The seconds that were closed since the last call.
    pub fn finished(&mut self) -> Vec<Interval> {
        std::mem::take(&mut self.finished)
    }

    /// Everything, at the end.
    pub fn finish(mut self) -> (Vec<Interval>, Totals) {
        self.finished.push(self.interval);
        (self.finished, self.totals)
    }
}

/// A histogram that grows as needed.
pub fn histogram<C: hdrhistogram::Counter>(digits: u8) -> Histogram<C> {
    let mut histogram =
        Histogram::new(digits).unwrap_or_else(|_| unreachable!("digits are 2 or 3"));
    histogram.auto(true);
    histogram
}

fn record<C: hdrhistogram::Counter>(histogram: &mut Histogram<C>, value: u64) {
    // Only a histogram that may not grow refuses a value.
    let _ = histogram.record(value);
}

/// In whole microseconds, at least one.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}

fn add_each<const N: usize>(own: &mut [u64; N], other: &[u64; N]) {
    for (own, other) in own.iter_mut().zip(other) {
        *own += other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due_ms: u64, done_ms: u64, outcome: Outcome) -> Sample {
        Sample {
            row: 0,
            tenant: 0,
            due: Duration::from_millis(due_ms),
            sent: Duration::from_millis(due_ms + 5),
            done: Duration::from_millis(done_ms),
            outcome,
            origin: Origin::Unknown,
            bytes: 1,
        }
    }

    #[test]
    fn latency_counts_from_due_and_includes_what_was_never_answered() {
        let mut recorder = Recorder::new(1, vec![], 1);
        recorder.sample(&sample(0, 100, Outcome::Expected(200)));
        recorder.sample(&sample(0, 900, Outcome::Failed(Failure::Timeout)));
        recorder.sample(&sample(0, 950, Outcome::Unexpected(503)));
        recorder.sample(&sample(990, 1_000, Outcome::Failed(Failure::Refused)));
        let (intervals, totals) = recorder.finish();
        let tally = &totals.rows[0];
        assert_eq!((tally.expected, tally.errors(), totals.late), (1, 3, 4));
        assert_eq!(tally.latency.len(), 2);
        assert!((899_000..=901_000).contains(&tally.latency.max()));
        assert_eq!(
            intervals
                .iter()
                .map(|interval| interval.tally.ended())
                .collect::<Vec<_>>(),
            [3, 1]
        );
    }

    #[test]
    fn floods_are_counted_apart() {
        let mut recorder = Recorder::new(1, vec![1], 2);
        recorder.sample(&Sample {
            row: 1,
            tenant: 1,
            ..sample(0, 10, Outcome::Expected(200))
        });
        recorder.sample(&Sample {
            tenant: 1,
            ..sample(0, 10, Outcome::Expected(200))
        });
        recorder.sample(&sample(0, 20, Outcome::Expected(200)));
        let (intervals, totals) = recorder.finish();
        assert_eq!(totals.rows[1].expected, 1);
        assert_eq!(
            (intervals[0].tally.expected, intervals[0].flood_ended),
            (2, 1)
        );
        assert_eq!(intervals[0].bystanders.as_ref().unwrap().len(), 1);
    }
}
