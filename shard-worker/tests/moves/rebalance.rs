//! Shards are emptied by plans, many tenants by one stream; and what no move
//! owns is removed.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shard_worker::job::store;
use tenancy::control::Control;
use tenancy::tls::Tls;
use uuid::Uuid;

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
        format!(
            "select ringfence.move_publish('{orphan}_b0', array[gen_random_uuid(), gen_random_uuid()], true)"
        ),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_heed_pins_and_are_paused_and_cancelled() {
    let stage = Stage::start(20).await;
    let control = stage.control().await;
    let bulk = json!({ "prefix": "small", "count": 6 });
    let (status, _) = stage.send(Method::POST, "tenants:bulk", Some(bulk)).await;
    assert_eq!(status, StatusCode::CREATED);

    // Three tenants are elsewhere than the ring says.
    let tenants = stage.get("tenants").await;
    let tenants = tenants["items"].as_array().unwrap();
    let of = |shard: &str| -> Vec<&str> {
        let own = tenants.iter().filter(|tenant| tenant["shard"] == shard);
        own.map(|tenant| tenant["slug"].as_str().unwrap()).collect()
    };
    let home = if of("s1").len() > of("s2").len() {
        "s1"
    } else {
        "s2"
    };
    let three = &of(home)[..3];
    let away = crate::moves::other(home);
    let body = json!({ "tenants": three, "to": away, "budget_ms": 1_000, "keep_hours": 0 });
    let (status, moves) = stage.send(Method::POST, "moves", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{moves}");
    let moved = stage.over(moves["items"][0]["id"].as_str().unwrap()).await;
    assert_eq!(moved["status"], "done", "{moved}");

    // Who is pinned stays, also where that came after the plan.
    let ring = async || plan(&stage, json!({ "policy": "ring" })).await;
    let pin = async |verb: &str| {
        let path = format!("tenants/{}/{verb}", three[0]);
        let (status, tenant) = stage.send(Method::POST, &path, Some(json!({}))).await;
        assert!(status.is_success(), "{tenant}");
    };
    pin("pin").await;
    assert_eq!(ring().await["tenants"], 2);
    pin("unpin").await;
    let plan_of_three = ring().await;
    assert_eq!(plan_of_three["tenants"], 3, "{plan_of_three}");
    pin("pin").await;

    // Nothing is begun beside a migration, nor while it is paused.
    migrates(&control, true).await;
    let id = begin(&stage, &plan_of_three["hash"]).await;
    let (_, paused) = stage
        .send(Method::POST, "rebalance/pause", Some(json!({})))
        .await;
    assert_eq!(paused["wish"], "pause", "{paused}");
    migrates(&control, false).await;
    let revision = async || stage.get(&format!("jobs/{id}")).await["revision"].as_i64();
    let before = revision().await;
    // It takes, writes and gives back its row at each look.
    stage
        .job(&id, |job| {
            job["revision"].as_i64() > before.map(|before| before + 6)
        })
        .await;
    let waits = stage.get("rebalance").await;
    assert_eq!(
        (&waits["waiting"], &waits["done"]),
        (&json!(1), &json!(false)),
        "{waits}"
    );
    let (status, _) = stage
        .send(Method::POST, "rebalance/resume", Some(json!({})))
        .await;
    assert_eq!(status, StatusCode::OK);
    let over = stage.over(&id).await;
    assert_eq!(
        (&over["status"], &over["result"]["tenants"]),
        (&json!("done"), &json!(2)),
        "{over}"
    );
    let failed = over["result"]["failed"].to_string();
    assert!(
        failed.contains(&format!("tenant {} is pinned", three[0])),
        "{failed}"
    );
    assert_eq!(stage.tenant(three[0]).await.1, away);
    assert_eq!(stage.tenant(three[1]).await.1, home);

    // Cancelled before anything was begun.
    pin("unpin").await;
    let plan_of_one = ring().await;
    assert_eq!(plan_of_one["tenants"], 1, "{plan_of_one}");
    migrates(&control, true).await;
    let id = begin(&stage, &plan_of_one["hash"]).await;
    let (status, _) = stage
        .send(Method::POST, "rebalance/cancel", Some(json!({})))
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(stage.over(&id).await["status"], "cancelled");
    migrates(&control, false).await;
    assert_eq!(stage.tenant(three[0]).await.1, away);

    let load = plan(&stage, json!({ "policy": "load" })).await;
    let (was, is) = (
        load["spread_before"].as_f64(),
        load["spread_after"].as_f64(),
    );
    // Where all that have rows are on one shard, there is none before.
    let better = was.is_none_or(|was| is.unwrap() <= was.max(1.1));
    assert!(better, "{load}");
    let alone = plan(&stage, json!({ "policy": "isolate", "tenant": three[0] })).await;
    let there = tenants.len() - of(home).len();
    assert_eq!(alone["tenants"], there, "{alone}");

    // A shard that is down is left as it is, and told.
    stage.cluster.kill("s2-primary").await.unwrap();
    let without = ring().await;
    assert_eq!(without["unseen"][0]["shard"], "s2", "{without}");
    assert_eq!(without["tenants"], 0, "{without}");
    stage.cluster.start_node("s2-primary").await.unwrap();

    // A move is left to the worker that captures its source: s1's to another one.
    stage.cluster.kill("worker-1").await.unwrap();
    let insert = "insert into ringfence.job (kind, object, actor, state, phase, shards)
        values ('move', 'x', 'test', '{}', 'planned', array[$1, $2]) returning id";
    let mut ids: Vec<Uuid> = Vec::new();
    for (from, to) in [("s1", "s2"), ("s2", "s1")] {
        let row = control.query_one(insert, &[&from, &to]).await.unwrap();
        ids.push(row.get(0));
    }
    let own = Control::new(&stage.cluster.control_dsn(), &Tls::disabled().unwrap()).unwrap();
    let elsewhere = ["s1".to_owned()];
    let claim = async || {
        let claimed = store::claim(&own, "me", (&elsewhere, Duration::from_secs(3_600))).await;
        claimed.unwrap().map(|claimed| claimed.id)
    };
    assert_eq!(claim().await, Some(ids[1]));
    assert_eq!(claim().await, None);
    // Its way back leads from s2.
    let retained = "update ringfence.job set phase = 'retained' where id = $1";
    control.execute(retained, &[&ids[0]]).await.unwrap();
    assert_eq!(claim().await, Some(ids[0]));
    stage.cluster.down().await;
}

/// Applies a plan, and does not wait for it.
async fn begin(stage: &Stage, hash: &Value) -> String {
    let body = json!({ "hash": hash, "budget_ms": 1_000 });
    let (status, job) = stage
        .send(Method::POST, "rebalance/apply", Some(body))
        .await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    job["id"].as_str().unwrap().to_owned()
}

/// A migration that nobody works on begins, or is gone.
async fn migrates(control: &tokio_postgres::Client, begins: bool) {
    let sql = match begins {
        true => {
            "insert into ringfence.job (kind, object, actor, state, phase, due_at)
             values ('migrate', 'x', 'test', '{}', 'x', now() + interval '1 day')"
        }
        false => "delete from ringfence.job where kind = 'migrate'",
    };
    control.execute(sql, &[]).await.unwrap();
}
