//! No tenant reads, writes or learns of another tenant's rows: every verb on
//! every table, with whatever a client or a mistaken router can send. And the
//! matrix bites: with one protection removed, a probe reports it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "isolation/matrix.rs"]
mod matrix;
#[path = "isolation/stage.rs"]
mod stage;
#[path = "isolation/tokens.rs"]
mod tokens;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_verb_reaches_another_tenants_rows() {
    let stage = Stage::open().await;
    let before = stage.victims_rows().await;
    assert_eq!(
        matrix::over_http(&stage).await,
        Vec::<String>::new(),
        "over HTTP"
    );
    assert_eq!(
        matrix::over_sql(&stage).await,
        Vec::<String>::new(),
        "as the router's own role, by SQL without any tenant filter"
    );
    assert_eq!(stage.victims_rows().await, before, "the victim's rows");
    tokens::are_checked(&stage).await;
    stage.down().await;
}

/// Requests that are given up at any moment leave connections behind; no other
/// tenant's request may run with what they left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_cut_off_in_flight_leaves_nothing_to_the_next() {
    let stage = Stage::open().await;
    stage
        .sql(
            "create function public.who(seconds float8) returns text language plpgsql stable as $$
             begin perform pg_sleep(seconds); return current_setting('ringfence.tenant_id'); end $$;
             create function public.who_writes(seconds float8) returns text language plpgsql volatile as $$
             begin perform pg_sleep(seconds); return current_setting('ringfence.tenant_id'); end $$",
        )
        .await;
    stage.until_called("who_writes").await;
    let rounds = (0..40_u64).map(|round| {
        let stage = &stage;
        async move {
            let (name, cut) = match round % 2 {
                0 => ("who", Duration::from_millis(3 + round)),
                _ => ("who_writes", Duration::from_millis(3 + round)),
            };
            // The victim's slow call is cut off; the attacker asks right behind it.
            let slow = stage.call(&stage.victim, name, json!({ "seconds": 0.2 }));
            let cut_off = tokio::time::timeout(cut, slow).await.is_err();
            let mut wrong = Vec::new();
            for who in [&stage.attacker, &stage.victim] {
                // So many at once may have to wait for longer than one does.
                let since = Instant::now();
                let (status, body) = loop {
                    let (status, body) = stage.call(who, name, json!({ "seconds": 0 })).await;
                    if status != 503 || since.elapsed() > Duration::from_secs(60) {
                        break (status, body);
                    }
                };
                if status != 200 || body != format!("\"{}\"", who.id) {
                    wrong.push(format!("{} got {status} {body}", who.slug));
                }
            }
            (cut_off, wrong)
        }
    });
    let done = join_all(rounds).await;
    assert!(done.iter().filter(|(cut_off, _)| *cut_off).count() > 20);
    let wrong: Vec<String> = done.into_iter().flat_map(|(_, wrong)| wrong).collect();
    assert_eq!(wrong, Vec::<String>::new());
    stage.down().await;
}

/// The control database says that the victim lives on another shard than it
/// does: that shard refuses, and nothing is read or written there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_believes_a_wrong_placement_is_refused() {
    let stage = Stage::open().await;
    let before = stage.victims_rows().await;
    let (status, _) = stage.get(&stage.victim, "companies?select=id").await;
    assert_eq!(status, 200);

    let other = stage.other_shard();
    stage.believe(&stage.victim, &other, 1).await;
    let (status, body) = stage.get(&stage.victim, "companies").await;
    assert_eq!(status, 404, "a shard without its fence: {body}");
    let (status, body) = stage
        .post(&stage.victim, "companies", json!({ "name": "lost" }))
        .await;
    assert_eq!(status, 404, "{body}");

    stage.believe(&stage.victim, &stage.shard, 7).await;
    let (status, body) = stage
        .post(&stage.victim, "companies", json!({ "name": "lost" }))
        .await;
    assert_eq!(status, 503, "a wrong epoch is held, then refused: {body}");
    assert_eq!(stage.victims_rows().await, before);

    stage.believe(&stage.victim, &stage.shard, 1).await;
    let (status, _) = stage.get(&stage.victim, "companies?select=id").await;
    assert_eq!(status, 200);
    stage.down().await;
}

/// Each protection is taken away by itself; a probe of the matrix must notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_matrix_bites() {
    let stage = Stage::open().await;
    assert_eq!(matrix::over_sql(&stage).await, Vec::<String>::new());
    assert_eq!(matrix::guard(&stage).await, Vec::<String>::new());

    let policy = "alter policy ringfence_tenant on public.companies using (true) with check (true)";
    stage.sql(policy).await;
    let found = matrix::over_sql(&stage).await;
    assert!(
        found.iter().any(|line| line.starts_with("companies: read")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("companies: insert")),
        "{found:?}"
    );
    // The schema model proves the policy, so the API drops the table meanwhile.
    stage.until_status(&stage.victim, "companies", 404).await;

    let guard = "create or replace function ringfence.enter(p_tenant uuid, p_epoch bigint, p_mode text,
        p_claims text, p_settings text[] default null) returns uuid language plpgsql as $$
        begin perform set_config('ringfence.tenant_id', p_tenant::text, true); return p_tenant; end $$";
    stage.sql(guard).await;
    let found = matrix::guard(&stage).await;
    assert_eq!(found.len(), 4, "{found:?}");

    assert_eq!(tokens::forged_key(&stage, stage::SECRET), None);
    let found = tokens::forged_key(&stage, tokens::ATTACKERS_SECRET);
    assert!(found.is_some(), "a forged key must be noticed");
    stage.down().await;
}
