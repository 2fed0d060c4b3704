//! Follows one shard's log for as long as the slot is this worker's: decodes,
//! waits until commits are visible, publishes, confirms.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use pgwire_replication::{Lsn as WireLsn, ReplicationClient, ReplicationEvent};
use tenancy::chain;
use tenancy::changes::Lsn;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::decode::{Commit, Decoder, MARKER};
use super::shard::{Condition, Shard, SlotSize};
use super::slot::{self, CaptureError, Held, Primary};
use super::visible::Snapshot;
use super::{Nodes, metric};
use crate::shard::Logins;

/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(250);
/// Pause of a standby before it finds the primary anew.
const STANDBY: Duration = Duration::from_millis(50);
/// Decoded commits that wait to be visible; then no more are read.
const PENDING_MAX: usize = 10_000;
/// Messages read before something else is looked at.
const READ_MAX: usize = 512;
/// Pause between two looks at what is visible.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Least time from one marker to the next: they are commits.
const MARKER_GAP: Duration = Duration::from_millis(5);
/// A barrier's own commit mostly comes within this time, and needs no marker.
const BARRIER_GRACE: Duration = Duration::from_millis(2);
/// What was published this long ago is confirmed: a worker that takes the slot
/// over can still send the rest to routers that had not read it.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// How often the slot is looked at.
const HEALTH: Duration = Duration::from_secs(1);

type Asked<T> = Option<Pin<Box<dyn Future<Output = Result<T, CaptureError>> + Send>>>;

/// Captures a shard whenever its slot is free, until `stop`.
pub(super) async fn run(
    shard: Arc<Shard>,
    nodes: watch::Receiver<Nodes>,
    logins: Logins,
    worker: String,
    stop: CancellationToken,
) {
    loop {
        let tried = tokio::select! {
            () = stop.cancelled() => break,
            tried = capture(&shard, &nodes, &logins, &worker) => tried,
        };
        // Whatever it was: leases rest on the slot.
        shard.end();
        let mut pause = RETRY;
        match tried {
            Ok(never) => match never {},
            Err(CaptureError::Busy) => {
                shard.set(Condition::StandsBy);
                pause = STANDBY;
            }
            Err(CaptureError::Unprepared) => shard.set(Condition::Searching),
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(shard = %shard.id, reason, "the shard is not captured");
                shard.set(Condition::Failed(reason));
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    shard.end();
}

async fn capture(
    shard: &Shard,
    nodes: &watch::Receiver<Nodes>,
    logins: &Logins,
    worker: &str,
) -> Result<std::convert::Infallible, CaptureError> {
    let addresses = nodes.borrow().addresses.clone();
    let primary = slot::find_primary(logins, &addresses).await?;
    let held = slot::acquire(shard, &primary, logins, worker).await?;
    // A marker's commit waits for the disk: nothing may wait behind it.
    let markers = slot::connect(logins, &primary.address).await?;
    tracing::info!(
        shard = %shard.id, generation = %held.generation, start = %held.start, "capturing"
    );
    shard.begin(held.generation, held.start);
    let mut following = Following::new(shard, nodes, primary, markers, held);
    following.run().await
}

struct Following<'a> {
    shard: &'a Shard,
    nodes: &'a watch::Receiver<Nodes>,
    timeline: i64,
    replication: ReplicationClient,
    client: Arc<Client>,
    markers: Arc<Client>,
    /// What this worker's markers begin with.
    own: String,
    decoder: Decoder,
    /// Decoded, in the log's order, and not published.
    pending: VecDeque<Item>,
    /// A snapshot under way, and how many of the pending it can show: those that
    /// were decoded before it was asked for.
    look: Asked<Snapshot>,
    covered: usize,
    look_again: Option<Instant>,
    marker: Asked<()>,
    last_marker: Option<Instant>,
    health: Asked<SlotSize>,
    next_health: Instant,
    /// Watermarks that will be confirmed.
    confirm: VecDeque<(Instant, Lsn)>,
}

enum Item {
    Commit(Commit),
    /// All before it was sent, says the primary.
    Position(Lsn),
}

impl<'a> Following<'a> {
    fn new(
        shard: &'a Shard,
        nodes: &'a watch::Receiver<Nodes>,
        primary: Primary,
        markers: Client,
        held: Held,
    ) -> Self {
        Self {
            shard,
            nodes,
            timeline: i64::from(primary.timeline),
            replication: held.replication,
            client: Arc::new(primary.client),
            markers: Arc::new(markers),
            own: Uuid::new_v4().simple().to_string(),
            decoder: Decoder::default(),
            pending: VecDeque::new(),
            look: None,
            covered: 0,
            look_again: None,
            marker: None,
            last_marker: None,
            health: None,
            next_health: Instant::now(),
            confirm: VecDeque::new(),
        }
    }

    async fn run(&mut self) -> Result<std::convert::Infallible, CaptureError> {
        loop {
            let wake = self.act()?;
            let reads = self.pending.len() < PENDING_MAX;
            tokio::select! {
                event = self.replication.recv(), if reads => self.read(event?)?,
                snapshot = asked(&mut self.look) => {
                    self.look = None;
                    self.publish(&snapshot?);
                }
                written = asked(&mut self.marker) => {
                    self.marker = None;
                    written?;
                }
                size = asked(&mut self.health) => {
                    self.health = None;
                    self.shard.set_slot(size?);
                }
                () = self.shard.wanted.notified() => {}
                () = sleep_until(wake.into()) => {}
            }
        }
    }

    /// One event, and those that are there already.
    fn read(&mut self, first: Option<ReplicationEvent>) -> Result<(), CaptureError> {
        self.take(first)?;
        for _ in 0..READ_MAX {
            match self.replication.recv().now_or_never() {
                Some(event) => self.take(event?)?,
                None => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Option<ReplicationEvent>) -> Result<(), CaptureError> {
        match event.ok_or(CaptureError::Unexpected("the log ended"))? {
            ReplicationEvent::Begin { xid, .. } => self.decoder.begin(xid)?,
            ReplicationEvent::XLogData { data, .. } => self.decoder.change(&data)?,
            ReplicationEvent::Message {
                transactional,
                prefix,
                content,
                ..
            } => self.decoder.message(transactional, &prefix, &content),
            ReplicationEvent::Commit {
                end_lsn,
                commit_time_micros,
                ..
            } => {
                let commit = self.decoder.commit(Lsn(end_lsn.0), commit_time_micros)?;
                self.pending.push_back(Item::Commit(commit));
            }
            ReplicationEvent::KeepAlive { wal_end, .. } => {
                // One that a snapshot under way covers may not move on.
                let open = self.covered < self.pending.len();
                match self.pending.back_mut() {
                    Some(Item::Position(last)) if open => *last = Lsn(wal_end.0).max(*last),
                    _ => self.pending.push_back(Item::Position(Lsn(wal_end.0))),
                }
            }
            ReplicationEvent::StoppedAt { .. } => {
                return Err(CaptureError::Unexpected("the log ended"));
            }
        }
        Ok(())
    }

    /// Does what is due, and says when to look again at the latest.
    fn act(&mut self) -> Result<Instant, CaptureError> {
        let now = Instant::now();
        if self
            .nodes
            .borrow()
            .timeline
            .is_some_and(|newest| newest > self.timeline)
        {
            return Err(CaptureError::Deposed);
        }
        // Rule 2: a snapshot shows what was decoded before it was asked for.
        self.publish_positions();
        let mut wake = now + HEALTH;
        if self.look.is_none() && !self.pending.is_empty() {
            match self.look_again.filter(|again| *again > now) {
                Some(again) => wake = wake.min(again),
                None => {
                    self.covered = self.pending.len();
                    let client = self.client.clone();
                    self.look = Some(Box::pin(async move { slot::snapshot(&client).await }));
                }
            }
        }
        let wants = self.shard.wants(now);
        let due = [
            wants.lease.then_some(now),
            wants.barrier.map(|came| came + BARRIER_GRACE),
        ];
        if let Some(due) = due.into_iter().flatten().min()
            && self.marker.is_none()
        {
            let gap = self.last_marker.map(|last| last + MARKER_GAP);
            let due = gap.map_or(due, |gap| gap.max(due));
            match due <= now {
                true => self.write_marker(now),
                false => wake = wake.min(due),
            }
        }
        if let Some(look) = wants.look {
            wake = wake.min(look);
        }
        self.confirm(now);
        if now >= self.next_health && self.health.is_none() {
            self.next_health = now + HEALTH;
            let client = self.client.clone();
            self.health = Some(Box::pin(async move { size(&client).await }));
        }
        Ok(wake.min(self.next_health.max(now + Duration::from_millis(1))))
    }

    /// Rule 4: a transaction of its own, after the pings that it answers.
    fn write_marker(&mut self, now: Instant) {
        let Some(number) = self.shard.begin_marker() else {
            return;
        };
        metric::marker();
        self.last_marker = Some(now);
        let (client, text) = (self.markers.clone(), format!("{} {number}", self.own));
        self.marker = Some(Box::pin(async move {
            let statement = "select pg_logical_emit_message(true, $1, $2::text)";
            slot::in_time(client.execute(statement, &[&MARKER, &text]))
                .await
                .map(drop)
        }));
    }

    /// Publishes, in the log's order, what the snapshot shows; stops at the
    /// first commit that it does not.
    fn publish(&mut self, snapshot: &Snapshot) {
        let mut commits = Vec::new();
        while self.covered > 0 {
            match self.pending.front() {
                Some(Item::Commit(commit)) if !snapshot.sees(commit.xid) => break,
                None => break,
                Some(_) => {}
            }
            self.covered -= 1;
            match self.pending.pop_front() {
                Some(Item::Commit(commit)) => commits.push(commit),
                Some(Item::Position(lsn)) => {
                    self.publish_commits(&mut commits);
                    self.shard.publish_position(lsn);
                }
                None => break,
            }
        }
        self.publish_commits(&mut commits);
        let waits = self.covered > 0;
        self.covered = 0;
        self.look_again = waits.then(|| Instant::now() + LOOK_AGAIN);
    }

    fn publish_commits(&self, commits: &mut Vec<Commit>) {
        if commits.is_empty() {
            return;
        }
        let own = |text: &[u8]| {
            let text = std::str::from_utf8(text).ok()?;
            text.strip_prefix(&*self.own)?.trim_start().parse().ok()
        };
        self.shard.publish(std::mem::take(commits), own);
    }

    /// Positions that no unpublished commit precedes.
    fn publish_positions(&mut self) {
        while let Some(Item::Position(lsn)) = self.pending.front() {
            self.shard.publish_position(*lsn);
            self.pending.pop_front();
            self.covered = self.covered.saturating_sub(1);
        }
    }

    /// Rule 1: only what is published, and somewhat later.
    fn confirm(&mut self, now: Instant) {
        let Some(watermark) = self.shard.watermark() else {
            return;
        };
        let last = self.confirm.back();
        if last.is_none_or(|(at, lsn)| {
            *lsn < watermark && now.saturating_duration_since(*at) >= CONFIRM_AFTER / 10
        }) {
            self.confirm.push_back((now, watermark));
        }
        while let Some((at, lsn)) = self.confirm.front()
            && now.saturating_duration_since(*at) >= CONFIRM_AFTER
        {
            self.replication.update_applied_lsn(WireLsn(lsn.0));
            if self.confirm.len() == 1 {
                break;
            }
            self.confirm.pop_front();
        }
    }
}

/// What the slot holds back.
async fn size(client: &Client) -> Result<SlotSize, CaptureError> {
    let row = slot::in_time(client.query_opt(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, safe_wal_size
         from pg_replication_slots where slot_name = $1",
        &[&slot::NAME],
    ))
    .await?
    .ok_or(CaptureError::Unexpected("the slot is gone"))?;
    Ok(SlotSize {
        held_bytes: row.try_get::<_, Option<i64>>(0)?.unwrap_or(0),
        safe_bytes: row.try_get(1)?,
    })
}

/// The answer of what was asked; nothing was: never.
async fn asked<T>(what: &mut Asked<T>) -> Result<T, CaptureError> {
    match what {
        Some(future) => future.await,
        None => pending().await,
    }
}
