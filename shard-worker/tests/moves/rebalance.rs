//! Shards are emptied by plans, many tenants by one stream; and what no move
//! owns is removed.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::moves::assert_nothing_left;
use crate::stage::{SOON, Stage};
use crate::writers::Writers;

async fn plan(stage: &Stage, ask: Value) -> Value {
    let (status, plan) = stage.send(Method::POST, "rebalance/plan", Some(ask)).await;
    assert_eq!(status, StatusCode::OK, "{plan}");
    plan
}

async fn apply(stage: &Stage, hash: &Value) -> Value {
    let body = json!({ "hash": hash, "budget_ms": 1_000 });
    let (status, job) = stage
        .send(Method::POST, "rebalance/apply", Some(body))
        .await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    stage.over(job["id"].as_str().unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_drained_under_writes_and_removed() {
    let stage = Stage::start(50).await;
    let bulk = json!({ "prefix": "small", "count": 40 });
    let (status, _) = stage.send(Method::POST, "tenants:bulk", Some(bulk)).await;
    assert_eq!(status, StatusCode::CREATED);
    // Of a move that nobody knows.
    let orphan = "ringfence_move_00000000000040008000000000000007";
    let shard = stage.shard("s2").await;
    for sql in [
        format!("select ringfence.move_publish('{orphan}_0', gen_random_uuid(), true)"),
        format!("select pg_create_logical_replication_slot('{orphan}', 'pgoutput')"),
    ] {
        shard.batch_execute(&sql).await.unwrap();
    }

    let (acme, home) = stage.tenant("acme").await;
    let away = crate::moves::other(&home);
    let key = stage.cluster.key("acme").unwrap();
    let url = stage.cluster.router_url(0);
    let writers = Writers::start(&url, &key, 2, Duration::from_millis(5));
    writers.more(10).await;

    let drain = json!({ "policy": "drain", "shard": home });
    let (status, refused) = stage
        .send(Method::POST, "rebalance/plan", Some(drain.clone()))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    let path = format!("shards/{home}/drain");
    let (status, shard) = stage.send(Method::POST, &path, Some(json!({}))).await;
    assert_eq!(
        (status, &shard["state"]),
        (StatusCode::OK, &json!("draining"))
    );
    let path = format!("shards/{away}/drain");
    let (status, _) = stage.send(Method::POST, &path, Some(json!({}))).await;
    assert_eq!(status, StatusCode::CONFLICT, "the last one on the ring");
    let path = format!("shards/{home}");
    let (status, _) = stage.send(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::CONFLICT, "it holds tenants");

    let plan_of_drain = plan(&stage, drain).await;
    let moved = plan_of_drain["tenants"].as_u64().unwrap();
    assert!(moved > 10, "{plan_of_drain}");
    // What is applied is read from the plan that is kept, a group after another.
    let control = stage.control().await;
    let groups = plan_of_drain["groups"].as_array().unwrap().len();
    control
        .execute(
            "update ringfence.rebalance_plan set plan = jsonb_set(plan, '{groups}',
               (select jsonb_agg(jsonb_set(g, '{tenants}', half.tenants))
                from jsonb_array_elements(plan -> 'groups') g,
                  lateral (select jsonb_agg(t) as tenants
                    from jsonb_array_elements(g -> 'tenants') with ordinality o (t, n) group by n % 2) half))
             where hash = $1",
            &[&plan_of_drain["hash"].as_str().unwrap()],
        )
        .await
        .unwrap();
    let began = Instant::now();
    let job = apply(&stage, &plan_of_drain["hash"]).await;
    assert_eq!(job["status"], "done", "{job}");
    assert_eq!(job["result"]["failed"], json!([]), "{job}");
    eprintln!("{moved} tenants drained in {:?}", began.elapsed());
    let moves = "select count(*) from ringfence.job where kind = 'move'";
    let moves: i64 = control.query_one(moves, &[]).await.unwrap().get(0);
    assert_eq!(moves, 2 * i64::try_from(groups).unwrap());
    let deadline = Instant::now() + SOON;
    loop {
        let shards = stage.get("shards").await;
        let items = shards["items"].as_array().unwrap();
        let drained = items.iter().find(|shard| shard["id"] == *home).unwrap();
        if drained["tenants"] == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{drained}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    writers.more(10).await;
    for ledger in writers.finish(&stage.shard(away).await, acme).await {
        assert!(ledger.failed.is_empty(), "{:?}", ledger.failed);
        assert!(ledger.stale.is_empty(), "{:?}", ledger.stale);
    }
    assert!(stage.rows(&home, acme).await.is_empty());

    // The janitor needs a few passes: tables leave a publication first.
    loop {
        let left = stage
            .shard("s2")
            .await
            .query_one(
                "select exists (select from pg_publication where pubname like $1 || '%')
                   or exists (select from pg_replication_slots where slot_name = $1)",
                &[&orphan],
            )
            .await
            .unwrap();
        if !left.get::<_, bool>(0) {
            break;
        }
        assert!(
            Instant::now() < deadline + SOON,
            "the janitor does not come"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_nothing_left(&stage).await;
    let (status, gone) = stage.send(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{gone}");
    stage.cluster.down().await;
}
