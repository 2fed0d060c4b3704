//! What tenants use, and whether they may use more of it now.
//!
//! Limits are a tenant's, whichever router it asks: each of the live routers
//! gives it an equal share. One account is kept for each tenant that asks,
//! within bounds: who has been idle longest goes first, and begins anew.

mod time;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, StatusCode};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tenancy::quota::Limits;
use tenancy::usage::{self, By, Totals, Usage};
use uuid::Uuid;

pub use time::Running;
use time::TimeBudget;

/// Accounts at most.
const ACCOUNTS_MAX: u64 = 50_000;
/// An account that nobody has used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// What "recent" means: rates are means over so long.
pub const RECENT: Duration = Duration::from_secs(5);
/// Tenants that one answer about usage names at most.
pub const TOP_MAX: usize = 1_000;

/// What a tenant may ask for (draft-ietf-httpapi-ratelimit-headers).
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of it.
pub const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// All tenants' accounts.
pub struct Quotas {
    accounts: Cache<Uuid, Arc<Account>>,
    sharers: AtomicUsize,
}

/// One tenant's account.
struct Account {
    allowance: ArcSwap<Allowance>,
    in_flight: AtomicU32,
    counters: Counters,
    recent: Mutex<Recent>,
}

/// This router's share of what a tenant may use.
struct Allowance {
    limits: Limits,
    sharers: usize,
    rate: Option<Rate>,
    /// Requests being answered.
    concurrency: u32,
    time: Option<Arc<TimeBudget>>,
}

/// Requests a second, as a bucket that is full after a pause.
struct Rate {
    limiter: Limiter,
    /// The tenant's, on all routers together.
    burst: u32,
    /// Seconds in which an empty bucket is full again.
    window: u32,
    /// This router's share of the bucket, and of a second's filling.
    share: u32,
    period: Duration,
}

/// What a tenant may still ask for, as its clients are told
/// (draft-ietf-httpapi-ratelimit-headers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateNow {
    /// Requests in a window, on all routers together.
    pub quota: u32,
    /// In seconds.
    pub window: u32,
    /// Requests that this router still answers.
    pub left: u32,
    /// Seconds until it would answer all of its share again, or the next one.
    pub reset: u32,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Too many requests a second.
    Rate(RateNow),
    /// Too many requests at once.
    Concurrency {
        /// On all routers together.
        quota: u32,
        /// On this router.
        max: u32,
    },
    /// Too much time on the shards.
    Time {
        /// Milliseconds in a second, on all routers together.
        quota: u32,
        /// Seconds until a statement may begin again.
        reset: u32,
    },
}

/// A request that is being answered, until it is dropped.
pub struct Pass {
    account: Arc<Account>,
    /// What counts for it.
    pub limits: Limits,
    /// What is left behind it, where there is a limit.
    pub rate: Option<RateNow>,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    busy_us: AtomicU64,
}

#[derive(Default)]
struct Recent {
    /// The totals at the last tick.
    until: Totals,
    /// What was added between the last two.
    added: Totals,
}

impl Default for Quotas {
    fn default() -> Self {
        let accounts = Cache::builder()
            .max_capacity(ACCOUNTS_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE_MAX)
            .build();
        Self {
            accounts,
            sharers: AtomicUsize::new(1),
        }
    }
}

impl Quotas {
    /// From now on so many routers share each tenant's limits.
    pub fn share_with(&self, sharers: usize) {
        self.sharers.store(sharers.max(1), Ordering::Relaxed);
    }

    /// Lets a request of the tenant in, or says which limit it meets.
    ///
    /// # Errors
    /// It does not count against the rate then.
    pub fn admit(&self, tenant: Uuid, limits: Limits) -> Result<Pass, Limited> {
        let account = self.accounts.get_with(tenant, || Arc::new(Account::new()));
        let sharers = self.sharers.load(Ordering::Relaxed);
        account.counters.requests.fetch_add(1, Ordering::Relaxed);
        let admitted = account.clone().enter(limits, sharers);
        if admitted.is_err() {
            account.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Whether a statement of the tenant may begin, as far as its time goes. A
    /// request that is answered without the shards never asks.
    ///
    /// # Errors
    /// [`Limited::Time`].
    pub fn check_time(&self, tenant: Uuid) -> Result<(), Limited> {
        match self.time(tenant) {
            Some((account, time)) => account.in_time(time.check()),
            None => Ok(()),
        }
    }

    /// Begins a statement of the tenant.
    ///
    /// # Errors
    /// [`Limited::Time`].
    pub fn begin(&self, tenant: Uuid) -> Result<Running, Limited> {
        match self.time(tenant) {
            Some((account, time)) => account.in_time(time.begin()),
            None => Ok(Running::free()),
        }
    }

    fn time(&self, tenant: Uuid) -> Option<(Arc<Account>, Arc<TimeBudget>)> {
        let account = self.accounts.get(&tenant)?;
        let time = account.allowance.load().time.clone()?;
        Some((account, time))
    }

    /// Ends a stretch of time that counts as recent; to be called every [`RECENT`].
    pub fn tick(&self) {
        for (_, account) in &self.accounts {
            let now = account.counters.read();
            let mut recent = account.recent.lock().unwrap_or_else(|p| p.into_inner());
            recent.added = now.since(&recent.until);
            recent.until = now;
        }
    }

    /// Tenants with accounts.
    pub fn len(&self) -> u64 {
        self.accounts.entry_count()
    }

    /// Whether nobody has asked for anything lately.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Who has used most of it recently, or in all where that is equal.
    pub fn top(&self, by: By, count: usize) -> Vec<Usage> {
        let all = self
            .accounts
            .iter()
            .map(|(tenant, account)| account.usage(*tenant))
            .collect();
        usage::top(all, by, count.min(TOP_MAX))
    }

    /// What one tenant has used.
    pub fn of(&self, tenant: Uuid) -> Option<Usage> {
        let account = self.accounts.get(&tenant)?;
        Some(account.usage(tenant))
    }
}

impl Account {
    fn new() -> Self {
        Self {
            allowance: ArcSwap::from_pointee(Allowance::new(Limits::default(), 1, None)),
            in_flight: AtomicU32::new(0),
            counters: Counters::default(),
            recent: Mutex::default(),
        }
    }

    fn enter(self: Arc<Self>, limits: Limits, sharers: usize) -> Result<Pass, Limited> {
        let mut allowance = self.allowance.load();
        if allowance.limits != limits || allowance.sharers != sharers {
            let new = Arc::new(Allowance::new(limits, sharers, Some(&allowance)));
            self.allowance.store(new);
            allowance = self.allowance.load();
        }
        let others = self.in_flight.fetch_add(1, Ordering::Relaxed);
        // Counted out again when dropped.
        let mut pass = Pass {
            account: self.clone(),
            limits,
            rate: None,
        };
        if others >= allowance.concurrency {
            return Err(Limited::Concurrency {
                quota: limits.concurrency.unwrap_or(u32::MAX),
                max: allowance.concurrency,
            });
        }
        if let Some(rate) = &allowance.rate {
            pass.rate = Some(rate.take().map_err(Limited::Rate)?);
        }
        Ok(pass)
    }

    fn in_time<T>(&self, asked: Result<T, Duration>) -> Result<T, Limited> {
        asked.map_err(|wait| {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            let limits = self.allowance.load().limits;
            Limited::Time {
                quota: limits.shard_ms_per_second.unwrap_or_default(),
                reset: whole_seconds(wait),
            }
        })
    }

    fn usage(&self, tenant: Uuid) -> Usage {
        let recent = self.recent.lock().unwrap_or_else(|p| p.into_inner());
        Usage {
            tenant,
            in_flight: self.in_flight.load(Ordering::Relaxed),
            total: self.counters.read(),
            recent: recent.added,
            // The cache knows.
            cached_bytes: 0,
        }
    }
}

impl Allowance {
    /// What was used of the allowance `before` stays used.
    fn new(limits: Limits, sharers: usize, before: Option<&Self>) -> Self {
        let share = |limit| Limits::share(limit, sharers);
        let rate = limits.requests_per_second;
        let rate = rate.and_then(|rate| Rate::new(rate, limits.burst, sharers));
        let rate_before = before.and_then(|before| before.rate.as_ref());
        if let Some((rate, before)) = rate.as_ref().zip(rate_before) {
            rate.go_on_from(before);
        }
        let time_before = before.and_then(|before| before.time.clone());
        let time = |ms| match time_before {
            // Statements under way count on.
            Some(time) => {
                time.change(ms);
                time
            }
            None => Arc::new(TimeBudget::new(ms)),
        };
        Self {
            limits,
            sharers,
            rate,
            concurrency: limits.concurrency.map_or(u32::MAX, share),
            time: limits.shard_ms_per_second.map(share).map(time),
        }
    }
}

impl Rate {
    fn new(per_second: u32, burst: Option<u32>, sharers: usize) -> Option<Self> {
        let burst = burst.unwrap_or(per_second).max(1);
        let share = Limits::share(burst, sharers);
        let sharers = u32::try_from(sharers).unwrap_or(u32::MAX).max(1);
        let nanos = 1_000_000_000 * u64::from(sharers) / u64::from(per_second.max(1));
        let period = Duration::from_nanos(nanos.max(1));
        let quota = Quota::with_period(period)?.allow_burst(share.try_into().ok()?);
        Some(Self {
            limiter: RateLimiter::direct(quota).with_middleware(),
            burst,
            window: burst.div_ceil(per_second.max(1)),
            share,
            period,
        })
    }

    /// As much of the bucket is taken as was of the one before.
    fn go_on_from(&self, before: &Self) {
        let left = match before.limiter.check() {
            Ok(state) => state.remaining_burst_capacity() + 1,
            Err(_) => 0,
        };
        let used = u64::from(before.share.saturating_sub(left));
        let used = used * u64::from(self.share) / u64::from(before.share.max(1));
        let used = u32::try_from(used).ok().and_then(NonZeroU32::new);
        if let Some(used) = used {
            // The bucket is new, and holds its share.
            let _ = self.limiter.check_n(used);
        }
    }

    /// One request's worth, or how long it takes until there is one.
    fn take(&self) -> Result<RateNow, RateNow> {
        let now = |left: u32, reset: Duration| RateNow {
            quota: self.burst,
            window: self.window,
            left,
            reset: whole_seconds(reset),
        };
        match self.limiter.check() {
            Ok(state) => {
                let left = state.remaining_burst_capacity();
                Ok(now(left, self.period * self.share.saturating_sub(left)))
            }
            Err(refused) => {
                let wait = refused.wait_time_from(DefaultClock::default().now());
                Err(now(0, wait))
            }
        }
    }
}

/// Rounded up: who comes back then does not come too early. At least 1.
fn whole_seconds(time: Duration) -> u32 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
}

impl RateNow {
    /// The value of `RateLimit-Policy`.
    pub fn policy(&self) -> String {
        format!("\"requests\";q={};w={}", self.quota, self.window)
    }

    /// The value of `RateLimit`.
    pub fn limit(&self) -> String {
        format!("\"requests\";r={};t={}", self.left, self.reset)
    }
}

impl Pass {
    /// Tells the client what is left, where there is a limit; beside the one that a
    /// refusal tells of.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Some(rate) = &self.rate else { return };
        for (name, value) in [(POLICY, rate.policy()), (LIMIT, rate.limit())] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(name, value);
            }
        }
    }

    /// Counts what the request was answered with.
    pub fn answered(&self, status: StatusCode, rows: u64, bytes: u64, busy: Duration) {
        let counters = &self.account.counters;
        let add = |counter: &AtomicU64, more: u64| {
            counter.fetch_add(more, Ordering::Relaxed);
        };
        add(&counters.failed, u64::from(status.is_server_error()));
        add(&counters.rows, rows);
        add(&counters.bytes, bytes);
        let micros = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
        add(&counters.busy_us, micros);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.account.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    fn read(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            requests: get(&self.requests),
            refused: get(&self.refused),
            failed: get(&self.failed),
            rows: get(&self.rows),
            bytes: get(&self.bytes),
            busy_us: get(&self.busy_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACME: Uuid = Uuid::from_u128(1);
    const GLOBEX: Uuid = Uuid::from_u128(2);

    fn limits(per_second: u32, burst: u32) -> Limits {
        Limits {
            requests_per_second: Some(per_second),
            burst: Some(burst),
            ..Limits::default()
        }
    }

    /// How many of `tries` come through.
    fn through(quotas: &Quotas, tenant: Uuid, limits: Limits, tries: u32) -> usize {
        let pass = |_: &u32| quotas.admit(tenant, limits).is_ok();
        (0..tries).filter(pass).count()
    }

    #[test]
    fn a_burst_and_no_more_and_for_each_tenant_its_own() {
        let quotas = Quotas::default();
        // One comes back each second.
        let slow = Limits {
            requests_per_second: Some(1),
            burst: Some(50),
            ..Limits::default()
        };
        let passed = through(&quotas, ACME, slow, 200);
        assert!((50..=52).contains(&passed), "{passed}");
        let passed = through(&quotas, GLOBEX, slow, 200);
        assert!((50..=52).contains(&passed), "{passed}");
        let usage = quotas.of(ACME).unwrap();
        assert_eq!(usage.total.requests, 200);
        assert!(usage.total.refused >= 148);
    }

    #[test]
    fn routers_share_the_limit_and_other_limits_count_at_once() {
        let quotas = Quotas::default();
        quotas.share_with(4);
        let passed = through(&quotas, ACME, limits(1, 100), 200);
        assert!((25..=26).contains(&passed), "{passed}");
        // What was used stays used, with other limits, and once another router left.
        let passed = through(&quotas, ACME, limits(1, 40), 200);
        assert!((0..=1).contains(&passed), "{passed}");
        quotas.share_with(2);
        let passed = through(&quotas, ACME, limits(1, 40), 200);
        assert!((0..=1).contains(&passed), "{passed}");
        let passed = through(&quotas, GLOBEX, limits(1, 40), 10);
        assert_eq!(passed, 10);
        // A half of it is left, of whatever it is.
        let passed = through(&quotas, GLOBEX, limits(1, 80), 200);
        assert!((20..=21).contains(&passed), "{passed}");
        assert_eq!(through(&quotas, ACME, Limits::default(), 200), 200);
    }

    #[test]
    fn clients_are_told_what_is_left() {
        let quotas = Quotas::default();
        let limits = limits(10, 30);
        let first = quotas.admit(ACME, limits).unwrap().rate.unwrap();
        assert_eq!(first.policy(), "\"requests\";q=30;w=3");
        assert_eq!(first.limit(), "\"requests\";r=29;t=1");
        let refused = loop {
            match quotas.admit(ACME, limits) {
                Ok(pass) => assert!(pass.rate.unwrap().left < 30),
                Err(Limited::Rate(rate)) => break rate,
                Err(other) => panic!("{other:?}"),
            }
        };
        assert_eq!(refused.limit(), "\"requests\";r=0;t=1");
    }

    #[test]
    fn requests_at_once_are_counted_out_however_they_end() {
        let quotas = Quotas::default();
        let limits = Limits {
            concurrency: Some(2),
            ..Limits::default()
        };
        let first = quotas.admit(ACME, limits).unwrap();
        let second = quotas.admit(ACME, limits).unwrap();
        let third = quotas.admit(ACME, limits).map(drop);
        assert_eq!(third, Err(Limited::Concurrency { quota: 2, max: 2 }));
        drop(first);
        drop(quotas.admit(ACME, limits).unwrap());
        drop(second);
        assert_eq!(quotas.of(ACME).unwrap().in_flight, 0);
    }

    #[test]
    fn the_top_is_who_used_most_lately() {
        let quotas = Quotas::default();
        let ask = |tenant, rows| {
            let pass = quotas.admit(tenant, Limits::default()).unwrap();
            pass.answered(StatusCode::OK, rows, 10 * rows, Duration::from_millis(1));
        };
        (0..10).for_each(|_| ask(ACME, 5));
        quotas.tick();
        ask(GLOBEX, 30);
        quotas.tick();
        let top = quotas.top(By::Rows, 10);
        let rows: Vec<_> = top.iter().map(|u| (u.tenant, u.recent.rows)).collect();
        assert_eq!(rows, [(GLOBEX, 30), (ACME, 0)]);
        assert_eq!(top[1].total.rows, 50);
        assert_eq!(top[0].total.busy_us, 1_000);
        assert_eq!(quotas.top(By::Requests, 1).len(), 1);
    }
}
