//! What the capture measures. Shards are labels, tenants never.
//!
//! What is of one shard now is written when it is asked for ([`exposition`]): kept
//! in the registry, it would stay as it last was when the shard, or its slot, is no
//! longer this worker's, and be alerted of for ever.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{counter, describe_counter, describe_histogram, histogram};
use tenancy::id::ShardId;

use super::shard::Status;

const GENERATIONS: &str = "ringfence_capture_generations_total";
const PUBLISH: &str = "ringfence_capture_publish_seconds";
const DELIVERY: &str = "ringfence_capture_delivery_seconds";
const BARRIER: &str = "ringfence_capture_barrier_seconds";
const MARKERS: &str = "ringfence_capture_markers_total";
const CUT_OFF: &str = "ringfence_capture_streams_cut_off_total";

/// Postgres' clock begins in 2000.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Describes what the capture measures; called once, after the recorder is installed.
pub fn describe() {
    describe_counter!(GENERATIONS, "Slots made: the first, and one for each lost");
    describe_histogram!(PUBLISH, "From a commit to its publication, by both clocks");
    describe_histogram!(DELIVERY, "From publication until a router has applied it");
    describe_histogram!(BARRIER, "From a barrier's coming until it was done");
    describe_counter!(MARKERS, "Markers written for leases and barriers");
    describe_counter!(CUT_OFF, "Streams ended because their router did not read");
    // Shown before the first one, too.
    counter!(CUT_OFF).increment(0);
}

/// Name, help text, and what it shows; none where there is nothing to show.
type OfShard = (&'static str, &'static str, fn(&Status) -> Option<i64>);

const OF_SHARDS: [OfShard; 4] = [
    (
        "held",
        "Whether this worker has the shard's slot",
        |shard| Some(i64::from(shard.generation.is_some())),
    ),
    (
        "holders",
        "Routers that may answer from their caches",
        |shard| i64::try_from(shard.holders).ok(),
    ),
    (
        "slot_held_bytes",
        "Bytes of the log that the slot holds back",
        |shard| shard.slot.map(|slot| slot.held_bytes),
    ),
    ("slot_safe_bytes", "Bytes until the slot is lost", |shard| {
        shard.slot?.safe_bytes
    }),
];

/// What the shards are now, and how many routers' streams there are, in
/// Prometheus' text format.
pub(super) fn exposition(shards: &[Status], streams: usize) -> String {
    let mut text = format!(
        "# HELP ringfence_capture_streams Routers' streams\n\
         # TYPE ringfence_capture_streams gauge\nringfence_capture_streams {streams}\n"
    );
    for (name, help, value) in OF_SHARDS {
        let name = format!("ringfence_capture_{name}");
        let shown = shards
            .iter()
            .filter_map(|shard| Some((&shard.shard, value(shard)?)));
        for (number, (shard, value)) in shown.enumerate() {
            if number == 0 {
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            }
            let _ = writeln!(text, "{name}{{shard=\"{shard}\"}} {value}");
        }
    }
    text
}

/// Shown before a slot is made, too.
pub(super) fn known(shard: &ShardId) {
    counter!(GENERATIONS, "shard" => shard.to_string()).increment(0);
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

pub(super) fn marker() {
    counter!(MARKERS).increment(1);
}

pub(super) fn cut_off() {
    counter!(CUT_OFF).increment(1);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tenancy::changes::{Generation, Lsn};
    use tenancy::id::ShardId;

    use super::super::shard::{Shard, SlotSize};
    use super::*;

    /// Of this name: what the shards' lines say.
    fn shown(shards: &[Status], name: &str) -> Vec<String> {
        let text = exposition(shards, 0);
        let begin = format!("ringfence_capture_{name}{{");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&begin));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn nothing_is_shown_of_a_slot_that_is_no_longer_ours() {
        let shard = Shard::new(ShardId::from("s1"), Arc::default());
        let now = || [shard.status()];
        let size = SlotSize {
            held_bytes: 60,
            safe_bytes: Some(40),
        };
        let generation = Generation {
            system: 1,
            timeline: 1,
            incarnation: 1,
        };
        assert_eq!(shown(&now(), "held"), ["shard=\"s1\"} 0"]);
        shard.begin(generation, Lsn(1));
        shard.set_slot(size);
        assert_eq!(shown(&now(), "held"), ["shard=\"s1\"} 1"]);
        assert_eq!(shown(&now(), "slot_held_bytes"), ["shard=\"s1\"} 60"]);
        assert_eq!(shown(&now(), "slot_safe_bytes"), ["shard=\"s1\"} 40"]);
        shard.end();
        // What was asked before comes late.
        shard.set_slot(size);
        assert_eq!(shown(&now(), "held"), ["shard=\"s1\"} 0"]);
        assert!(shown(&now(), "slot_held_bytes").is_empty());
        assert!(shown(&now(), "slot_safe_bytes").is_empty());
        // And nothing at all of a shard that is gone.
        assert!(shown(&[], "held").is_empty());
    }
}
