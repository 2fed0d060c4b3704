//! A worker dies at each step of a move; another goes on, nobody notices, and
//! nothing is left behind.

use std::time::{Duration, Instant};

use ops::local::NodeState;
use reqwest::Method;
use serde_json::json;

use crate::moves::{assert_nothing_left, assert_served_by, other, phase, start};
use crate::stage::{SOON, Stage};
use crate::writers::Writers;

/// Points of a move that comes to its end, in order.
const FORWARD: [&str; 20] = [
    "preparing",
    "published",
    "slots_made",
    "subscribed",
    "copying",
    "copied",
    "verifying",
    "catching_up",
    "begun",
    "armed",
    "closed",
    "marked",
    "drained",
    "turned",
    "left",
    "activated",
    "control",
    "retained",
    "cleaning_up",
    "streams_ended",
];

/// Points of a rollback that differ in what is there.
const BACK: [&str; 8] = [
    "armed",
    "closed",
    "marked",
    "drained",
    "turned",
    "left",
    "activated",
    "control",
];

/// The next worker dies at these points, one after another.
pub(crate) fn die_at(stage: &Stage, points: &[&str]) {
    let file = stage.cluster.path().join("nodes/worker-1/failpoint");
    std::fs::write(file, points.join("\n")).unwrap();
}

/// Waits until the worker is dead, and starts another. What is left of the
/// dead one's lease is not waited for: the log of a test that waits shows
/// nothing new.
async fn replace_dead_worker(stage: &Stage) {
    wait_for_death(stage).await;
    revive(stage).await;
}

pub(crate) async fn wait_for_death(stage: &Stage) {
    let deadline = Instant::now() + SOON;
    let is_dead = || {
        let nodes = stage.cluster.status();
        let worker = nodes.iter().find(|node| node.name == "worker-1").unwrap();
        worker.state == NodeState::Down
    };
    while !is_dead() {
        assert!(Instant::now() < deadline, "the worker does not die");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn revive(stage: &Stage) {
    stage
        .control()
        .await
        .execute(
            "update ringfence.job set lease_until = now() where not done",
            &[],
        )
        .await
        .unwrap();
    stage.cluster.start_node("worker-1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_dies_at_every_step_and_nobody_notices() {
    let stage = Stage::start(100).await;
    let (acme, home) = stage.tenant("acme").await;
    let away = other(&home);
    let key = stage.cluster.key("acme").unwrap();
    let url = stage.cluster.router_url(0);
    let writers = Writers::start(&url, &key, 3, Duration::from_millis(5));
    writers.more(20).await;

    die_at(&stage, &FORWARD);
    let id = start(&stage, &["acme"], away).await;
    let to_retained = FORWARD
        .iter()
        .position(|point| *point == "retained")
        .unwrap();
    for _ in &FORWARD[..=to_retained] {
        replace_dead_worker(&stage).await;
    }
    phase(&stage, &id, "retained").await;
    assert_served_by(&stage, acme, away, 2).await;
    writers.more(20).await;
    // The worker may die before it answers.
    let path = format!("moves/{id}/complete");
    let _ = stage.try_send(Method::POST, &path, Some(json!({}))).await;
    for _ in &FORWARD[to_retained + 1..] {
        replace_dead_worker(&stage).await;
    }
    phase(&stage, &id, "done").await;
    assert_served_by(&stage, acme, away, 2).await;
    assert_nothing_left(&stage).await;
    assert!(stage.rows(&home, acme).await.is_empty());

    // And on the way back of a move that is rolled back.
    let id = start(&stage, &["acme"], &home).await;
    phase(&stage, &id, "retained").await;
    die_at(&stage, &BACK);
    let path = format!("moves/{id}/rollback");
    let _ = stage.try_send(Method::POST, &path, Some(json!({}))).await;
    for _ in BACK {
        replace_dead_worker(&stage).await;
    }
    phase(&stage, &id, "rolled_back").await;
    assert_served_by(&stage, acme, away, 4).await;
    assert_nothing_left(&stage).await;
    writers.more(20).await;

    for ledger in writers.finish(&stage.shard(away).await, acme).await {
        assert!(ledger.failed.is_empty(), "{:?}", ledger.failed);
        assert!(ledger.stale.is_empty(), "{:?}", ledger.stale);
    }
    stage.cluster.down().await;
}
