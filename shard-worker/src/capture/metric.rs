//! What the capture measures. Shards are labels, tenants never.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tenancy::id::ShardId;

use super::shard::SlotSize;

const CAPTURES: &str = "ringfence_capture_held";
const GENERATIONS: &str = "ringfence_capture_generations_total";
const PUBLISH: &str = "ringfence_capture_publish_seconds";
const DELIVERY: &str = "ringfence_capture_delivery_seconds";
const BARRIER: &str = "ringfence_capture_barrier_seconds";
const HOLDERS: &str = "ringfence_capture_holders";
const STREAMS: &str = "ringfence_capture_streams";
const SLOT_HELD: &str = "ringfence_capture_slot_held_bytes";
const SLOT_SAFE: &str = "ringfence_capture_slot_safe_bytes";
const MARKERS: &str = "ringfence_capture_markers_total";
const CUT_OFF: &str = "ringfence_capture_streams_cut_off_total";

/// Postgres' clock begins in 2000.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Describes what the capture measures; called once, after the recorder is installed.
pub fn describe() {
    describe_gauge!(CAPTURES, "Whether this worker has the shard's slot");
    describe_counter!(GENERATIONS, "Slots made: the first, and one for each lost");
    describe_histogram!(PUBLISH, "From a commit to its publication, by both clocks");
    describe_histogram!(DELIVERY, "From publication until a router has applied it");
    describe_histogram!(BARRIER, "From a barrier's coming until it was done");
    describe_gauge!(HOLDERS, "Routers that may answer from their caches");
    describe_gauge!(STREAMS, "Routers' streams");
    describe_gauge!(SLOT_HELD, "Bytes of the log that the slot holds back");
    describe_gauge!(SLOT_SAFE, "Bytes until the slot is lost");
    describe_counter!(MARKERS, "Markers written for leases and barriers");
    describe_counter!(CUT_OFF, "Streams ended because their router did not read");
}

pub(super) fn captures(shard: &ShardId, held: bool) {
    gauge!(CAPTURES, "shard" => shard.to_string()).set(f64::from(u8::from(held)));
}

pub(super) fn generation(shard: &ShardId) {
    counter!(GENERATIONS, "shard" => shard.to_string()).increment(1);
}

/// `at` is the commit's time, in microseconds since 2000.
pub(super) fn published(at_micros: i64) {
    let at = POSTGRES_EPOCH + Duration::from_micros(u64::try_from(at_micros).unwrap_or(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let lag = now.unwrap_or_default().saturating_sub(at);
    histogram!(PUBLISH).record(lag);
}

pub(super) fn delivered(lag: Duration) {
    histogram!(DELIVERY).record(lag);
}

pub(super) fn barrier(waited: Duration) {
    histogram!(BARRIER).record(waited);
}

pub(super) fn holders(shard: &ShardId, count: usize) {
    gauge!(HOLDERS, "shard" => shard.to_string()).set(count as f64);
}

pub(super) fn streams(count: usize) {
    gauge!(STREAMS).set(count as f64);
}

pub(super) fn slot(shard: &ShardId, size: SlotSize) {
    gauge!(SLOT_HELD, "shard" => shard.to_string()).set(size.held_bytes as f64);
    if let Some(safe) = size.safe_bytes {
        gauge!(SLOT_SAFE, "shard" => shard.to_string()).set(safe as f64);
    }
}

pub(super) fn marker() {
    counter!(MARKERS).increment(1);
}

pub(super) fn cut_off() {
    counter!(CUT_OFF).increment(1);
}
