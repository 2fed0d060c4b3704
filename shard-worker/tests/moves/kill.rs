//! A worker dies at each step of a move, or the step fails: it goes on, nobody
//! notices, and nothing is left behind.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use crate::moves::{assert_nothing_left, assert_served_by, other, phase, start, wish};
use crate::stage::{SOON, Stage};
use crate::writers::Writers;

/// Points of a move that comes to its end, in order.
const FORWARD: [&str; 18] = [
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
    "drained",
    "left",
    "activated",
    "control",
    "retained",
    "cleaning_up",
    "streams_ended",
];

/// Points of a rollback that differ in what is there.
const BACK: [&str; 6] = ["armed", "closed", "drained", "left", "activated", "control"];

/// Steps fail at these points, once at each.
fn fail_at(stage: &Stage, points: &[&str]) {
    let points: Vec<String> = points.iter().map(|point| format!("fail {point}")).collect();
    std::fs::write(stage.failpoints(), points.join("\n")).unwrap();
}

/// All points have been come to.
fn assert_come_to(stage: &Stage) {
    let left = std::fs::read_to_string(stage.failpoints()).unwrap();
    assert_eq!(left, "", "never come to");
}

/// Waits until they have been.
async fn come_to(stage: &Stage) {
    let deadline = Instant::now() + SOON;
    while std::fs::read_to_string(stage.failpoints()).unwrap() != "" {
        assert!(Instant::now() < deadline, "never come to");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_dies_or_a_step_fails_everywhere_and_nobody_notices() {
    let stage = Stage::start(100).await;
    let (acme, home) = stage.tenant("acme").await;
    let away = other(&home);
    let key = stage.cluster.key("acme").unwrap();
    let url = stage.cluster.router_url(0);
    let writers = Writers::start(&url, &key, 3, Duration::from_millis(5));
    writers.more(20).await;

    stage.fail_at(&FORWARD);
    let id = start(&stage, &["acme"], away).await;
    let to_retained = FORWARD
        .iter()
        .position(|point| *point == "retained")
        .unwrap();
    for _ in &FORWARD[..=to_retained] {
        stage.worker_died().await;
    }
    phase(&stage, &id, "retained").await;
    assert_served_by(&stage, acme, away, 2).await;
    writers.more(20).await;
    // The worker may die before it answers.
    let path = format!("moves/{id}/complete");
    let _ = stage.try_send(Method::POST, &path, Some(json!({}))).await;
    for _ in &FORWARD[to_retained + 1..] {
        stage.worker_died().await;
    }
    phase(&stage, &id, "done").await;
    assert_served_by(&stage, acme, away, 2).await;
    assert_nothing_left(&stage).await;
    assert!(stage.rows(&home, acme).await.is_empty());

    // And on the way back of a move that is rolled back.
    let id = start(&stage, &["acme"], &home).await;
    phase(&stage, &id, "retained").await;
    stage.fail_at(&BACK);
    let path = format!("moves/{id}/rollback");
    let _ = stage.try_send(Method::POST, &path, Some(json!({}))).await;
    for _ in BACK {
        stage.worker_died().await;
    }
    phase(&stage, &id, "rolled_back").await;
    assert_served_by(&stage, acme, away, 4).await;
    assert_nothing_left(&stage).await;
    writers.more(20).await;

    // The same where the step fails and the worker lives.
    fail_at(&stage, &FORWARD);
    let id = start(&stage, &["acme"], &home).await;
    phase(&stage, &id, "retained").await;
    let epoch = served_at(&stage, acme, &home).await;
    wish(&stage, &id, "complete").await;
    phase(&stage, &id, "done").await;
    assert_come_to(&stage);
    assert_served_by(&stage, acme, &home, epoch).await;
    let id = start(&stage, &["acme"], away).await;
    phase(&stage, &id, "retained").await;
    fail_at(&stage, &BACK);
    wish(&stage, &id, "rollback").await;
    phase(&stage, &id, "rolled_back").await;
    assert_come_to(&stage);
    let epoch = served_at(&stage, acme, &home).await;
    assert_served_by(&stage, acme, &home, epoch).await;
    assert_nothing_left(&stage).await;
    assert!(stage.rows(away, acme).await.is_empty());
    writers.more(20).await;

    // And where one fails while it is undone: a write that does not end keeps each
    // cut-over from its budget.
    let endless = stage.shard(&home).await;
    let write = format!("select pg_advisory_xact_lock_shared(uuid_hash_extended('{acme}', 0))");
    endless
        .batch_execute(&format!("begin; {write}"))
        .await
        .unwrap();
    fail_at(&stage, &["taking_back"]);
    let id = start(&stage, &["acme"], away).await;
    come_to(&stage).await;
    fail_at(&stage, &["undoing"]);
    cancel(&stage, &id).await;
    assert_eq!(stage.over(&id).await["status"], "cancelled");
    assert_come_to(&stage);
    endless.batch_execute("rollback").await.unwrap();
    let epoch = served_at(&stage, acme, &home).await;
    assert_served_by(&stage, acme, &home, epoch).await;
    assert_nothing_left(&stage).await;
    assert!(stage.rows(away, acme).await.is_empty());
    writers.more(20).await;

    for ledger in writers.finish(&stage.shard(&home).await, acme).await {
        assert!(ledger.failed.is_empty(), "{:?}", ledger.failed);
        assert!(ledger.stale.is_empty(), "{:?}", ledger.stale);
    }
    stage.cluster.down().await;
}

/// Whoever else dies on the way, and returns: nothing is lost or doubled, one
/// shard serves the tenant, nothing is left. Routers, and shards whose replica
/// takes their place, are `./ops/chaos move-router`, `move-target`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_die_under_a_move_and_nothing_is_lost() {
    let stage = Stage::start(50).await;
    let (acme, _) = stage.tenant("acme").await;
    let key = stage.cluster.key("acme").unwrap();
    let url = stage.cluster.router_url(0);
    let writers = Writers::start(&url, &key, 3, Duration::from_millis(5));
    writers.more(20).await;
    let mut epoch = 1;
    // Who dies, and the state of the move then.
    for (victim, when) in [
        ("source", "copying"),
        ("target", "catching_up"),
        ("control", "cutting_over"),
    ] {
        let (_, home) = stage.tenant("acme").await;
        let away = other(&home);
        let node = match victim {
            "source" => format!("{home}-primary"),
            "target" => format!("{away}-primary"),
            _ => victim.to_owned(),
        };
        let id = start(&stage, &["acme"], away).await;
        reached(&stage, &id, when).await;
        stage.cluster.kill(&node).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stage.cluster.start_node(&node).await.unwrap();
        phase(&stage, &id, "retained").await;
        writers.more(20).await;
        let path = format!("moves/{id}/complete");
        let (status, body) = stage.send(Method::POST, &path, Some(json!({}))).await;
        assert!(status.is_success(), "{body}");
        phase(&stage, &id, "done").await;
        let served_at = served_at(&stage, acme, away).await;
        // One more for each cut-over that had to be undone late.
        assert!(served_at > epoch);
        epoch = served_at;
        assert_served_by(&stage, acme, away, epoch).await;
        assert_nothing_left(&stage).await;
        assert!(stage.rows(&home, acme).await.is_empty());
    }
    let (_, home) = stage.tenant("acme").await;
    for ledger in writers.finish(&stage.shard(&home).await, acme).await {
        assert!(ledger.stale.is_empty(), "{:?}", ledger.stale);
    }
    stage.cluster.down().await;
}

/// Cancels a move as soon as none of its cut-overs is under way.
async fn cancel(stage: &Stage, id: &str) {
    let deadline = Instant::now() + SOON;
    let path = format!("moves/{id}/cancel");
    loop {
        let (status, body) = stage.send(Method::POST, &path, Some(json!({}))).await;
        if status.is_success() {
            return;
        }
        assert!(status == 409 && Instant::now() < deadline, "{body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The epoch that this shard serves the tenant at.
async fn served_at(stage: &Stage, tenant: Uuid, shard: &str) -> i64 {
    let sql = "select epoch from ringfence.fence where tenant_id = $1 and state = 'active'";
    let row = stage.shard(shard).await.query_one(sql, &[&tenant]).await;
    row.unwrap().get(0)
}

/// A move that is in this state, or beyond it.
async fn reached(stage: &Stage, id: &str, wanted: &str) {
    const ORDER: [&str; 7] = [
        "planned",
        "preparing",
        "copying",
        "verifying",
        "catching_up",
        "cutting_over",
        "retained",
    ];
    let place = |phase: &str| ORDER.iter().position(|known| *known == phase);
    let deadline = Instant::now() + SOON;
    loop {
        let job = stage.get(&format!("jobs/{id}")).await;
        let now = place(job["phase"].as_str().unwrap());
        if now >= place(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{job}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
