//! Tenants are deleted whole, however often the worker dies, and no other is touched.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::stage::{SOON, Stage};

/// Rows of the tenant: several batches.
const ROWS: i32 = 60_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tenant_is_gone_and_certified_though_workers_die() {
    let stage = Stage::start(40).await;
    let (acme, shard) = stage.tenant("acme").await;
    stage.fill(&shard, acme, ROWS).await;
    let (globex, other) = stage.tenant("globex").await;
    let before = stage.rows(&shard, acme).await;
    let others = stage.rows(&other, globex).await;
    assert!(before.values().sum::<i64>() > i64::from(ROWS), "{before:?}");
    let key = stage.cluster.key("acme").unwrap();
    assert_eq!(stage.read(&key).await, StatusCode::OK);

    // Without the name once more nothing is done.
    let (status, _) = stage
        .send(Method::DELETE, "tenants/acme?confirm=globex", None)
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);

    // Two workers die: with a batch deleted that no job's row tells of, and with
    // all rows deleted.
    stage.fail_at(&["delete_batch", "delete_forgetting"]);
    let (status, job) = stage
        .send(Method::DELETE, "tenants/acme?confirm=acme", None)
        .await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    let id = job["id"].as_str().unwrap();
    stage.worker_died().await;
    stage.worker_died().await;
    // From here on there is only forward.
    stage
        .send(Method::POST, &format!("jobs/{id}/cancel"), Some(json!({})))
        .await;
    let job = stage.over(id).await;
    assert_eq!(job["status"], "done", "{job}");

    // The certificate says exactly what was there.
    let deleted = certified(&job["result"], &shard);
    let without_fence: BTreeMap<_, _> = deleted
        .into_iter()
        .filter(|(table, _)| table != "ringfence.fence")
        .collect();
    assert_eq!(without_fence, before);
    for shard in ["s1", "s2"] {
        assert!(stage.rows(shard, acme).await.is_empty());
        let left = stage
            .shard(shard)
            .await
            .query_one(
                "select (select count(*) from ringfence.fence where tenant_id = $1)
                   + (select count(*) from ringfence.job_mark)",
                &[&acme],
            )
            .await;
        assert_eq!(left.unwrap().get::<_, i64>(0), 0);
    }
    let left = stage
        .control()
        .await
        .query_one(
            "select (select count(*) from ringfence.api_key where tenant = $1)
               + (select count(*) from ringfence.tenant where slug = 'acme')",
            &[&acme],
        )
        .await;
    assert_eq!(left.unwrap().get::<_, i64>(0), 0);

    // Its requests are answered as such, and its neighbour has all its rows.
    assert_eq!(stage.read(&key).await, StatusCode::NOT_FOUND);
    assert_eq!(stage.rows(&other, globex).await, others);
    let globex = stage.cluster.key("globex").unwrap();
    assert_eq!(stage.read(&globex).await, StatusCode::OK);

    // Its name is free again, and what was done is on record.
    let (status, _) = stage
        .send(Method::POST, "tenants", Some(json!({ "slug": "acme" })))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let audited = stage
        .control()
        .await
        .query_one(
            "select (after -> 'result' ->> 'rows')::bigint from ringfence.audit
             where action = 'tenant_delete.end' and object = 'acme' and result = 'done'",
            &[],
        )
        .await;
    assert_eq!(
        audited.unwrap().get::<_, i64>(0),
        before.values().sum::<i64>() + 1
    );
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_is_cancelled_in_time_and_waits_for_its_shard() {
    let stage = Stage::start(40).await;
    let (acme, shard) = stage.tenant("acme").await;
    let before = stage.rows(&shard, acme).await;
    let key = stage.cluster.key("acme").unwrap();

    // A write under way holds the tenant's lock: the job waits for it.
    let writer = stage.shard(&shard).await;
    writer
        .batch_execute(&format!(
            "begin; select pg_advisory_xact_lock_shared(uuid_hash_extended('{acme}', 0))"
        ))
        .await
        .unwrap();
    let (_, job) = stage
        .send(Method::DELETE, "tenants/acme?confirm=acme", None)
        .await;
    let id = job["id"].as_str().unwrap();
    let (status, again) = stage
        .send(
            Method::DELETE,
            &format!("tenants/{acme}?confirm={acme}"),
            None,
        )
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{again}");
    stage.job(id, |job| job["status"] == "running").await;
    stage
        .send(Method::POST, &format!("jobs/{id}/cancel"), Some(json!({})))
        .await;
    let job = stage.over(id).await;
    assert_eq!(job["status"], "cancelled", "{job}");
    writer.batch_execute("rollback").await.unwrap();
    assert_eq!(stage.rows(&shard, acme).await, before);
    let deadline = Instant::now() + SOON;
    while stage.read(&key).await != StatusCode::OK {
        assert!(Instant::now() < deadline, "not served again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // A shard that is down is waited for.
    let primary = format!("{shard}-primary");
    stage.cluster.kill(&primary).await.unwrap();
    let (_, job) = stage
        .send(Method::DELETE, "tenants/acme?confirm=acme", None)
        .await;
    let id = job["id"].as_str().unwrap();
    let waiting = stage.job(id, |job| job["problem"]["code"] == "RF501").await;
    assert_eq!(waiting["done"], false);
    stage.cluster.start_node(&primary).await.unwrap();
    assert_eq!(stage.over(id).await["status"], "done");
    assert!(stage.rows(&shard, acme).await.is_empty());
    stage.cluster.down().await;
}

fn certified(certificate: &Value, shard: &str) -> BTreeMap<String, i64> {
    let shards = certificate["shards"].as_array().unwrap();
    let found = shards.iter().find(|entry| entry["shard"] == shard).unwrap();
    let tables = found["tables"].as_array().unwrap().iter();
    tables
        .map(|entry| {
            let table = entry["table"].as_str().unwrap().to_owned();
            (table, entry["rows"].as_i64().unwrap())
        })
        .collect()
}
