//! Who gets a node's connections: so many at once, tenants by turns.
//!
//! A request that finds no free connection waits in its tenant's queue, and the
//! queues are served one request a turn, so a tenant that floods the router waits
//! for itself. While several wait, none gets more than its share of the
//! connections as long as another one is below its own; and no tenant may use up
//! the last connections, so that others need not wait for its slow statements to end.
//!
//! Waiting is bounded in number, in all and by tenant; and who would wait too long
//! anyway, by how long the work of those in front has taken lately, is told so at
//! once. A tenant's queue that has not been empty for a while does not serve a
//! burst: more comes than can be done. Then the newest is served first, and each
//! that comes pushes out the oldest that has waited for so long: whoever is served
//! is served soon, instead of all of them late, and once fewer come nobody is left
//! from before (adaptive LIFO and controlled delay,
//! Ben Maurer, "Fail at Scale", ACM Queue 13:8, 2015; K. Nichols and V. Jacobson,
//! "Controlling Queue Delay", ACM Queue 10:5, 2012). A burst alone pushes nobody out.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// How many may wait, and what they may have.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Requests at most.
    pub max: usize,
    /// Requests of one tenant at most.
    pub tenant_max: usize,
    /// Connections that one tenant gets while others wait, in percent.
    pub tenant_share: usize,
    /// A tenant's queue that has not been empty for so long, or for as long as one
    /// statement takes lately, is overloaded.
    pub standing: Duration,
}

/// A node's gate.
pub struct Gate {
    waiting: Waiting,
    /// Connections of one role at most.
    role_max: usize,
    state: Mutex<State>,
}

/// For whom a connection is.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The tenant.
    pub tenant: Uuid,
    /// The role, which has its own connections.
    pub role: Arc<str>,
}

/// A connection's worth of the node, until it is dropped.
pub struct Permit {
    gate: Arc<Gate>,
    claim: Claim,
    since: Instant,
}

/// No connection is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many wait as may, or the wait would be too long.
    #[error("the queue is full")]
    Full,
    /// The wait was too long.
    #[error("the wait was too long")]
    TooLong,
    /// A newer request of the tenant came in its place.
    #[error("newer requests of the tenant were served first")]
    PushedOut,
    /// There is room here, and the node itself takes no more connections.
    #[error("the node takes no more connections")]
    ByNode,
}

#[derive(Default)]
struct State {
    capacity: usize,
    used: usize,
    by_tenant: HashMap<Uuid, usize>,
    by_role: Vec<(Arc<str>, usize)>,
    queues: HashMap<Uuid, Queue>,
    /// Tenants that wait, in the order of their turns.
    turns: VecDeque<Uuid>,
    waiting: usize,
    next_number: u64,
    /// How long a connection has been held lately: the mean, in seconds, of
    /// which each one counts a sixteenth.
    held: f64,
}

/// A tenant's requests that wait; there is none without any.
struct Queue {
    waiters: VecDeque<Waiter>,
    /// It has not been empty since then.
    since: Instant,
    /// A newer request has pushed out an older one since then.
    sheds: bool,
}

struct Waiter {
    number: u64,
    role: Arc<str>,
    since: Instant,
    /// Dropped, it says that the request was pushed out.
    granted: oneshot::Sender<()>,
}

impl Gate {
    /// `capacity` connections at once, of which each role gets `role_max` at most.
    pub fn new(capacity: usize, role_max: usize, waiting: Waiting) -> Arc<Self> {
        Arc::new(Self {
            waiting,
            role_max: role_max.max(1),
            state: Mutex::new(State {
                capacity: capacity.max(1),
                ..State::default()
            }),
        })
    }

    /// Another number of connections, from now on.
    pub fn resize(&self, capacity: usize) {
        let mut state = self.state();
        state.capacity = capacity.max(1);
        self.grant(&mut state);
    }

    /// Connections at most.
    pub fn capacity(&self) -> usize {
        self.state().capacity
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// A permit, after a wait of `wait_max` at most.
    pub async fn enter(
        self: &Arc<Self>,
        claim: Claim,
        wait_max: Duration,
    ) -> Result<Permit, Refused> {
        let mut granted = {
            let mut state = self.state();
            if state.waiting == 0
                && state.may(&claim, self.role_max, self.alone_max(state.capacity))
            {
                state.take(&claim);
                return Ok(self.permit(claim));
            }
            self.queue(&mut state, &claim, wait_max)?
        };
        match timeout(wait_max, &mut granted.receiver).await {
            Ok(Ok(())) => {
                granted.taken = true;
                Ok(self.permit(claim))
            }
            Ok(Err(_)) => Err(Refused::PushedOut),
            Err(_) => Err(Refused::TooLong),
        }
    }

    fn queue(
        self: &Arc<Self>,
        state: &mut State,
        claim: &Claim,
        wait_max: Duration,
    ) -> Result<Granted, Refused> {
        let now = Instant::now();
        if !state.push_out(claim.tenant, self.overloaded_before(state, now)) {
            let of_tenant = state.queues.get(&claim.tenant);
            let of_tenant = of_tenant.map_or(0, |queue| queue.waiters.len());
            let ahead = state.ahead(of_tenant);
            let at_once = state.capacity.min(self.role_max);
            let expected = ahead as f64 * state.held / at_once as f64;
            let full = state.waiting >= self.waiting.max || of_tenant >= self.waiting.tenant_max;
            if full || expected > wait_max.as_secs_f64() {
                return Err(Refused::Full);
            }
        }
        let (granted, receiver) = oneshot::channel();
        let number = state.next_number;
        state.next_number += 1;
        state.waiting += 1;
        let waiter = Waiter {
            number,
            role: claim.role.clone(),
            since: now,
            granted,
        };
        match state.queues.entry(claim.tenant) {
            Entry::Occupied(queue) => queue.into_mut().waiters.push_back(waiter),
            Entry::Vacant(none) => {
                none.insert(Queue {
                    waiters: VecDeque::from([waiter]),
                    since: now,
                    sheds: false,
                });
                state.turns.push_back(claim.tenant);
            }
        }
        // There may be room for this one, behind others for whom there is none.
        self.grant(state);
        Ok(Granted {
            gate: self.clone(),
            claim: claim.clone(),
            number,
            receiver,
            taken: false,
        })
    }

    /// Gives what is free to those who wait, tenants by turns.
    fn grant(&self, state: &mut State) {
        if state.turns.is_empty() {
            return;
        }
        let overloaded = self.overloaded_before(state, Instant::now());
        let (share, alone) = (self.share(state.capacity), self.alone_max(state.capacity));
        // First those below their share; what nobody else can use is free to all.
        while (state.turns.len() > 1 && self.grant_one(state, share, overloaded))
            || self.grant_one(state, alone, overloaded)
        {}
    }

    /// A queue that has not been empty since before then is overloaded, and who
    /// waits since before then has waited long.
    fn overloaded_before(&self, state: &State, now: Instant) -> Instant {
        // It is no sign of anything that one waits until another is done.
        let held = Duration::try_from_secs_f64(state.held).unwrap_or_default();
        now.checked_sub(self.waiting.standing.max(held))
            .unwrap_or(now)
    }

    /// Gives one connection to the first in turn who may have it: no more than
    /// `tenant_max` of one tenant.
    fn grant_one(&self, state: &mut State, tenant_max: usize, overloaded: Instant) -> bool {
        let mut passed_over = 0;
        while state.used < state.capacity && passed_over < state.turns.len() {
            let Some(tenant) = state.turns.pop_front() else {
                return false;
            };
            let queue = state.queues.get(&tenant);
            let next = queue.and_then(|queue| queue.next(overloaded));
            let claim = next.map(|waiter| Claim {
                tenant,
                role: waiter.role.clone(),
            });
            let mut granted = false;
            if claim.is_some_and(|claim| state.may(&claim, self.role_max, tenant_max)) {
                if let Some(waiter) = state.pop(tenant, overloaded)
                    && waiter.granted.send(()).is_ok()
                {
                    state.take(&Claim {
                        tenant,
                        role: waiter.role,
                    });
                    granted = true;
                }
            } else {
                passed_over += 1;
            }
            // Whoever still waits has its next turn behind all others.
            if state.queues.contains_key(&tenant) {
                state.turns.push_back(tenant);
            }
            if granted {
                return true;
            }
        }
        false
    }

    /// Connections that a tenant gets while others wait. Nearly all use the same
    /// role, so what counts is what one role may have.
    fn share(&self, capacity: usize) -> usize {
        let usable = capacity.min(self.role_max);
        (usable * self.waiting.tenant_share / 100).max(1)
    }

    /// Connections that a tenant may have while nobody else wants one: a tenth,
    /// one at least, is left for others.
    fn alone_max(&self, capacity: usize) -> usize {
        let usable = capacity.min(self.role_max);
        usable.saturating_sub((usable / 10).max(1)).max(1)
    }

    fn permit(self: &Arc<Self>, claim: Claim) -> Permit {
        Permit {
            gate: self.clone(),
            claim,
            since: Instant::now(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl State {
    /// There is a connection for the claim.
    fn may(&self, claim: &Claim, role_max: usize, tenant_max: usize) -> bool {
        let of_tenant = self.by_tenant.get(&claim.tenant).copied().unwrap_or(0);
        let mut roles = self.by_role.iter();
        let of_role = roles.find(|(role, _)| *role == claim.role);
        self.used < self.capacity
            && of_tenant < tenant_max
            && of_role.is_none_or(|(_, used)| *used < role_max)
    }

    fn take(&mut self, claim: &Claim) {
        self.used += 1;
        *self.by_tenant.entry(claim.tenant).or_default() += 1;
        match self
            .by_role
            .iter_mut()
            .find(|(role, _)| *role == claim.role)
        {
            Some((_, used)) => *used += 1,
            None => self.by_role.push((claim.role.clone(), 1)),
        }
    }

    fn give_back(&mut self, claim: &Claim) {
        self.used = self.used.saturating_sub(1);
        if let Some(used) = self.by_tenant.get_mut(&claim.tenant) {
            *used -= 1;
            if *used == 0 {
                self.by_tenant.remove(&claim.tenant);
            }
        }
        if let Some((_, used)) = self
            .by_role
            .iter_mut()
            .find(|(role, _)| *role == claim.role)
        {
            *used = used.saturating_sub(1);
        }
    }

    /// Requests that are served before the next one of a tenant that has
    /// `of_tenant` in its queue: it waits for those and for as many of each other.
    fn ahead(&self, of_tenant: usize) -> usize {
        let turns = of_tenant + 1;
        let others = self
            .queues
            .values()
            .map(|queue| queue.waiters.len().min(turns));
        others.sum::<usize>().max(turns)
    }

    /// The tenant's waiter whose turn it is. Where newer ones push out older ones, those
    /// that have waited for as long as these go, too: more came than could be done, and
    /// they would be served behind all who come later.
    fn pop(&mut self, tenant: Uuid, overloaded: Instant) -> Option<Waiter> {
        let queue = self.queues.get_mut(&tenant)?;
        let waiter = match queue.is_overloaded(overloaded) {
            true => queue.waiters.pop_back(),
            false => queue.waiters.pop_front(),
        };
        let mut gone = usize::from(waiter.is_some());
        while queue.sheds
            && queue
                .waiters
                .pop_front_if(|w| w.since < overloaded)
                .is_some()
        {
            gone += 1;
        }
        if queue.waiters.is_empty() {
            self.queues.remove(&tenant);
        }
        self.waiting -= gone;
        waiter
    }

    /// Makes room for a newer request of the tenant, where its queue is overloaded.
    fn push_out(&mut self, tenant: Uuid, overloaded: Instant) -> bool {
        let Some(queue) = self.queues.get_mut(&tenant) else {
            return false;
        };
        let oldest = queue.waiters.front();
        if !queue.is_overloaded(overloaded) || oldest.is_none_or(|w| w.since >= overloaded) {
            return false;
        }
        queue.waiters.pop_front();
        queue.sheds = true;
        self.waiting -= 1;
        true
    }
}

impl Queue {
    fn is_overloaded(&self, before: Instant) -> bool {
        self.since < before
    }

    /// Whose turn it is.
    fn next(&self, overloaded: Instant) -> Option<&Waiter> {
        match self.is_overloaded(overloaded) {
            true => self.waiters.back(),
            false => self.waiters.front(),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        let held = self.since.elapsed().as_secs_f64();
        state.held += (held - state.held) / 16.0;
        state.give_back(&self.claim);
        self.gate.grant(&mut state);
    }
}

/// A place in a queue; dropped without being used, it is given up.
struct Granted {
    gate: Arc<Gate>,
    claim: Claim,
    number: u64,
    receiver: oneshot::Receiver<()>,
    taken: bool,
}

impl Drop for Granted {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut state = self.gate.state();
        let tenant = self.claim.tenant;
        let own = |waiter: &Waiter| waiter.number == self.number;
        let place = state
            .queues
            .get(&tenant)
            .and_then(|queue| queue.waiters.iter().position(own));
        match (place, state.queues.get_mut(&tenant)) {
            (Some(place), Some(queue)) => {
                queue.waiters.remove(place);
                if queue.waiters.is_empty() {
                    state.queues.remove(&tenant);
                    state.turns.retain(|turn| *turn != tenant);
                }
                state.waiting -= 1;
            }
            // It was granted just now, and nobody is there to take it.
            _ if self.receiver.try_recv().is_ok() => {
                state.give_back(&self.claim);
                self.gate.grant(&mut state);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    fn gate(capacity: usize) -> Arc<Gate> {
        let waiting = Waiting {
            max: 1_000,
            tenant_max: 100,
            tenant_share: 20,
            standing: Duration::from_millis(100),
        };
        Gate::new(capacity, 20, waiting)
    }

    fn claim(tenant: u128) -> Claim {
        Claim {
            tenant: Uuid::from_u128(tenant),
            role: "authenticated".into(),
        }
    }

    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_waits_for_itself() {
        let gate = gate(2);
        let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
        let spawn = |tenant: u128| {
            let (gate, served) = (gate.clone(), served.clone());
            tokio::spawn(async move {
                let _permit = gate.enter(claim(tenant), LONG).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
                served.send(tenant).unwrap();
            });
        };
        (0..50).for_each(|_| spawn(1));
        settle().await;
        // One is left to others, also while nobody else is there.
        assert_eq!(gate.waiting(), 49);
        (2..6).for_each(spawn);
        settle().await;
        drop(served);
        let mut tenants = Vec::new();
        while let Some(tenant) = order.recv().await {
            tenants.push(tenant);
        }
        assert_eq!(tenants.len(), 54);
        let last = (2..6).map(|t| tenants.iter().position(|n| *n == t).unwrap());
        assert!(last.max().unwrap() < 12, "{tenants:?}");
        assert_eq!(gate.state().used, 0);
        assert!(gate.state().by_tenant.is_empty() && gate.state().turns.is_empty());
    }

    /// A tenant of slow statements began nine while it was alone. Once they end it
    /// has a fifth, as long as others wait: by turns alone it would soon have all.
    #[tokio::test(start_paused = true)]
    async fn a_tenant_has_its_share_while_others_wait_and_more_while_they_do_not() {
        let gate = gate(10);
        let spawn = |tenant: u128, millis: u64| {
            let gate = gate.clone();
            tokio::spawn(async move {
                let _permit = gate.enter(claim(tenant), LONG).await.unwrap();
                tokio::time::sleep(Duration::from_millis(millis)).await;
            });
        };
        (0..50).for_each(|_| spawn(1, 1_000));
        settle().await;
        let held = |tenant: u128| {
            let state = gate.state();
            let held = state.by_tenant.get(&Uuid::from_u128(tenant)).copied();
            held.unwrap_or(0)
        };
        assert_eq!(held(1), 9, "alone it has all but the last");
        (0..400).for_each(|n| spawn(2 + n % 4, 10));
        tokio::time::sleep(Duration::from_millis(1_055)).await;
        settle().await;
        let others: Vec<_> = (2..6).map(held).collect();
        assert_eq!((held(1), others), (2, vec![2; 4]));
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(held(1), 9, "the others have nothing left to do");
    }

    /// The node has room, but the role that all of them use has not.
    #[tokio::test(start_paused = true)]
    async fn the_last_connections_of_a_role_are_for_other_tenants() {
        let waiting = Waiting {
            max: 100,
            tenant_max: 100,
            tenant_share: 20,
            standing: Duration::from_millis(100),
        };
        let gate = Gate::new(80, 20, waiting);
        let mut held = Vec::new();
        while let Ok(Ok(permit)) =
            timeout(Duration::from_millis(1), gate.enter(claim(1), LONG)).await
        {
            held.push(permit);
        }
        assert_eq!(held.len(), 18);
        drop(gate.enter(claim(2), LONG).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded_in_all_and_by_tenant() {
        let waiting = Waiting {
            max: 3,
            tenant_max: 2,
            tenant_share: 20,
            standing: Duration::from_millis(100),
        };
        let gate = Gate::new(1, 1, waiting);
        let permit = gate.enter(claim(1), LONG).await.unwrap();
        let enter = |tenant| {
            let gate = gate.clone();
            tokio::spawn(async move { gate.enter(claim(tenant), LONG).await.map(drop) })
        };
        let waiters = [enter(1), enter(1), enter(2)];
        settle().await;
        assert_eq!(gate.waiting(), 3);
        assert!(matches!(
            gate.enter(claim(1), LONG).await,
            Err(Refused::Full)
        ));
        assert!(matches!(
            gate.enter(claim(3), LONG).await,
            Err(Refused::Full)
        ));
        drop(permit);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
        assert_eq!(gate.state().used, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_nothing_behind() {
        let gate = gate(1);
        let permit = gate.enter(claim(1), LONG).await.unwrap();
        let short = Duration::from_millis(5);
        assert!(matches!(
            gate.enter(claim(2), short).await,
            Err(Refused::TooLong)
        ));
        let aborted = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(claim(3), LONG).await.map(drop) }
        });
        settle().await;
        aborted.abort();
        let _ = aborted.await;
        assert_eq!((gate.waiting(), gate.state().turns.len()), (0, 0));
        drop(permit);
        drop(gate.enter(claim(4), LONG).await.unwrap());
        assert_eq!(gate.state().used, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_told_at_once() {
        let gate = gate(1);
        // Each holds its connection for a second.
        for _ in 0..40 {
            let permit = gate.enter(claim(1), LONG).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(permit);
        }
        let _permit = gate.enter(claim(1), LONG).await.unwrap();
        let mut waiters = Vec::new();
        for _ in 0..10 {
            let gate = gate.clone();
            waiters.push(tokio::spawn(async move {
                gate.enter(claim(2), LONG).await.map(drop)
            }));
            settle().await;
        }
        assert!((4..=6).contains(&gate.waiting()), "{}", gate.waiting());
        // A tenant that has not asked for anything has its turn soon.
        let other = gate.enter(claim(3), LONG);
        assert!(
            timeout(Duration::from_millis(1), other).await.is_err(),
            "it may wait"
        );
    }

    /// Every 5 ms a request of 10 ms for one connection: half can't be served. Who is
    /// served waits for one other, and not for all that came before.
    #[tokio::test(start_paused = true)]
    async fn under_more_than_can_be_done_the_newest_are_served_soon() {
        let gate = gate(2);
        let (told, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..1_000 {
            let (gate, told) = (gate.clone(), told.clone());
            tokio::spawn(async move {
                let begun = Instant::now();
                let entered = gate.enter(claim(1), LONG).await;
                let _ = told.send((begun.elapsed(), entered.as_ref().err().copied()));
                tokio::time::sleep(Duration::from_millis(10)).await;
                drop(entered);
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(told);
        let (mut served, mut pushed_out) = (Vec::new(), 0);
        while let Some((waited, refused)) = outcomes.recv().await {
            match refused {
                None => served.push(waited),
                Some(Refused::PushedOut) => pushed_out += 1,
                Some(other) => panic!("{other}"),
            }
        }
        // Also once nobody comes any more.
        let late = served
            .iter()
            .filter(|waited| **waited > Duration::from_millis(110));
        assert_eq!(late.count(), 0, "{served:?}");
        assert!(
            served.len() >= 450 && pushed_out >= 400,
            "{} {pushed_out}",
            served.len()
        );
        assert!(gate.state().queues.is_empty() && gate.state().turns.is_empty());
        assert_eq!((gate.waiting(), gate.state().used), (0, 0));
    }

    /// It takes half a second to serve, and is not more than can be done.
    #[tokio::test(start_paused = true)]
    async fn a_burst_is_served_as_a_whole() {
        let gate = gate(2);
        let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..50 {
            let (gate, served) = (gate.clone(), served.clone());
            tokio::spawn(async move {
                let _permit = gate.enter(claim(1), LONG).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
                served.send(number).unwrap();
            });
        }
        drop(served);
        let mut numbers = Vec::new();
        while let Some(number) = order.recv().await {
            numbers.push(number);
        }
        assert_eq!(numbers[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(numbers.len(), 50);
    }

    /// As after a switch-over: what was held comes at once, and others behind it, half
    /// as many as can be served.
    #[tokio::test(start_paused = true)]
    async fn what_was_held_is_served_whole_though_more_comes() {
        let shards = crate::config::Shards::default();
        let waiting = Waiting {
            max: 1_000,
            tenant_max: 100,
            tenant_share: 20,
            standing: Duration::from_millis(shards.queue_standing_ms),
        };
        let gate = Gate::new(2, 20, waiting);
        let mut all = tokio::task::JoinSet::new();
        for number in 0..40 {
            let gate = gate.clone();
            all.spawn(async move {
                let permit = gate.enter(claim(1), LONG).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                permit.map(drop)
            });
            if number >= 20 {
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        }
        assert_eq!(all.join_all().await, vec![Ok(()); 40]);
    }

    #[tokio::test(start_paused = true)]
    async fn roles_have_their_own_bound_and_do_not_block_each_other() {
        let waiting = Waiting {
            max: 10,
            tenant_max: 10,
            tenant_share: 20,
            standing: Duration::from_millis(100),
        };
        let gate = Gate::new(3, 1, waiting);
        let _one = gate.enter(claim(1), LONG).await.unwrap();
        let waits = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(claim(2), LONG).await.map(drop) }
        });
        settle().await;
        assert_eq!(gate.waiting(), 1);
        let anon = Claim {
            role: "anon".into(),
            ..claim(3)
        };
        drop(gate.enter(anon, LONG).await.unwrap());
        assert!(!waits.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn more_connections_let_more_in() {
        let gate = gate(1);
        let _one = gate.enter(claim(1), LONG).await.unwrap();
        let other = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(claim(2), LONG).await.map(drop) }
        });
        settle().await;
        gate.resize(2);
        assert_eq!(other.await.unwrap(), Ok(()));
    }
}
