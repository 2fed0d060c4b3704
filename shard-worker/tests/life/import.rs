//! An existing database's rows become a tenant's, whole or not at all, however
//! often the worker dies.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::stage::{Stage, connect};

/// Rows of the largest table: several chunks.
const ROWS: i32 = 70_000;

/// A single-tenant CRM on a server of the cluster, in a database of its own.
async fn source(stage: &Stage, name: &str) -> (String, Client) {
    let dsn = stage.cluster.shard_dsn("s1-primary").unwrap();
    let server = connect(&dsn).await;
    let make = format!("create database {name}");
    server.batch_execute(&make).await.unwrap();
    let place = dsn.rfind('/').unwrap();
    let query = dsn.find('?').map_or("", |at| &dsn[at..]);
    let dsn = format!("{}/{name}{query}", &dsn[..place]);
    let client = connect(&dsn).await;
    let (_, tables) = schema::crm::FILES[0];
    client.batch_execute(tables).await.unwrap();
    client
        .batch_execute(&format!(
            "insert into companies (name, country_code, address, tags)
               select E'Com\\tpany \"' || n || E'\"\\n', 'DE', jsonb_build_object('n', n), array['a,b', null, n::text]
               from generate_series(1, 500) n;
             update companies set parent_id = 501 - id;
             insert into activities (kind, subject, minutes)
               select (enum_range(null::activity_kind))[1 + n % 2], md5(n::text), 1 + n % 90
               from generate_series(1, {ROWS}) n;
             delete from activities where id = {ROWS};
             create table drafts (id int primary key); insert into drafts values (1);
             create materialized view counts as select count(*) from companies"
        ))
        .await
        .unwrap();
    (dsn, client)
}

async fn import(stage: &Stage, tenant: &str, from: &str) -> (StatusCode, Value) {
    let path = format!("tenants/{tenant}/import");
    stage
        .send(Method::POST, &path, Some(json!({ "from": from })))
        .await
}

async fn tenant(stage: &Stage, slug: &str) -> Uuid {
    let body = json!({ "slug": slug });
    let (status, made) = stage.send(Method::POST, "tenants", Some(body)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made["id"].as_str().unwrap().parse().unwrap()
}

/// A digest of all rows, without whose they are.
async fn digest(client: &Client, condition: &str) -> Vec<String> {
    let mut digests = Vec::new();
    for table in ["companies", "activities"] {
        let sql = format!(
            "select md5(string_agg((to_jsonb(t) - 'tenant_id')::text, '|' order by id)) from {table} t {condition}"
        );
        digests.push(client.query_one(&sql, &[]).await.unwrap().get(0));
    }
    digests
}

async fn key(stage: &Stage, slug: &str) -> String {
    let path = format!("tenants/{slug}/keys");
    let (_, key) = stage.send(Method::POST, &path, Some(json!({}))).await;
    key["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_databases_rows_become_a_tenants_though_workers_die() {
    let stage = Stage::start(20).await;
    let (dsn, source) = source(&stage, "old_app").await;
    let green = tenant(&stage, "green").await;
    let (_, shard) = stage.tenant("green").await;
    let key = key(&stage, "green").await;
    let (acme, home) = stage.tenant("acme").await;
    let others = stage.rows(&home, acme).await;

    // What can be seen to go wrong is refused, and the tenant is served on.
    for (from, said) in [
        ("nonsense", "address"),
        ("postgres://nobody@127.0.0.1:1/app", "does not answer"),
        (
            stage.cluster.control_dsn().as_str(),
            "no table of the source",
        ),
    ] {
        let (status, body) = import(&stage, "green", from).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(body["message"].as_str().unwrap().contains(said), "{body}");
    }
    let (status, _) = import(&stage, "nobody", &dsn).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    // Two workers die: with a chunk committed that no job's row tells of, and
    // with all copied.
    stage.fail_at(&["copy_chunk", "copy_verifying"]);
    let (status, job) = import(&stage, "green", &dsn).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    let id = job["id"].as_str().unwrap();
    stage.worker_died().await;
    stage.worker_died().await;
    let job = stage.over(id).await;
    assert_eq!(job["status"], "done", "{job}");
    let result = &job["result"];
    assert_eq!(result["rows"], 500 + ROWS - 1, "{result}");
    let left = result["not_loaded"].to_string();
    for wanted in ["drafts", "counts", "countries"] {
        assert!(left.contains(wanted), "{left}");
    }
    let there = stage.shard(&shard).await;
    let own = format!("where tenant_id = '{green}'");
    assert_eq!(digest(&there, &own).await, digest(&source, "").await);
    assert_eq!(stage.rows(&home, acme).await, others);
    // Nothing that names the source's address is left, and no note of the job.
    let marks = "select count(*) from ringfence.job_mark";
    let marks: i64 = there.query_one(marks, &[]).await.unwrap().get(0);
    assert_eq!(marks, 0);
    let told = stage
        .control()
        .await
        .query_one(
            // Sealed it is hexadecimal.
            "select (select count(*) from ringfence.job where state::text ~ $1)
               + (select count(*) from ringfence.audit where after::text ~ $1)",
            &[&r#"(postgres:|"source": *"[0-9a-f])"#],
        )
        .await
        .unwrap();
    assert_eq!(told.get::<_, i64>(0), 0);

    // It is served, and new rows don't get numbers that the source gave.
    let deadline = std::time::Instant::now() + crate::stage::SOON;
    while stage.read(&key).await != StatusCode::OK {
        assert!(std::time::Instant::now() < deadline);
    }
    let url = format!("{}/rest/v1/activities", stage.cluster.router_url(0));
    let made: Value = reqwest::Client::new()
        .post(url)
        .header("apikey", &key)
        .header("prefer", "return=representation")
        .json(&json!({ "kind": "call", "subject": "new", "minutes": 1 }))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(made[0]["id"].as_i64().unwrap() > i64::from(ROWS), "{made}");
    // A second time its rows would be mixed.
    let (_, job) = import(&stage, "green", &dsn).await;
    let job = stage.over(job["id"].as_str().unwrap()).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert!(
        job["problem"]["message"]
            .as_str()
            .unwrap()
            .contains("already")
    );
    assert_eq!(stage.get("tenants/green").await["state"], "active");
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_can_not_be_whole_leaves_nothing() {
    let stage = Stage::start(20).await;
    let (dsn, source) = source(&stage, "old_app").await;
    let blue = tenant(&stage, "blue").await;
    let (_, shard) = stage.tenant("blue").await;
    let is_as_before = async || {
        assert_eq!(stage.get("tenants/blue").await["state"], "active");
        assert!(stage.rows(&shard, blue).await.is_empty());
        let there = stage.shard(&shard).await;
        let row = there
            .query_one(
                "select (select count(*) from ringfence.job_mark),
                   (select suspended from ringfence.fence where tenant_id = $1)",
                &[&blue],
            )
            .await
            .unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (0, false));
    };

    // Cancelled on the way: it does not come to its end while somebody else may be
    // writing its last row.
    let other = stage.shard(&shard).await;
    let last = format!(
        "begin; set local session_replication_role = replica;
         insert into activities (tenant_id, id, kind, subject, minutes)
           overriding system value values ('{blue}', {ROWS} - 1, 'call', 'another', 1)"
    );
    other.batch_execute(&last).await.unwrap();
    let (_, job) = import(&stage, "blue", &dsn).await;
    let id = job["id"].as_str().unwrap();
    stage
        .job(id, |job| job["progress"]["done"].as_u64().unwrap_or(0) > 0)
        .await;
    stage
        .send(Method::POST, &format!("jobs/{id}/cancel"), Some(json!({})))
        .await;
    assert_eq!(stage.over(id).await["status"], "cancelled");
    other.batch_execute("rollback").await.unwrap();
    is_as_before().await;

    // A row that refers to nothing: the source had it past its own constraints.
    source
        .batch_execute(
            "set session_replication_role = replica;
             update activities set contact_id = 9999 where id in (7, 8)",
        )
        .await
        .unwrap();
    let (_, job) = import(&stage, "blue", &dsn).await;
    let job = stage.over(job["id"].as_str().unwrap()).await;
    assert_eq!(job["status"], "failed", "{job}");
    let message = job["problem"]["message"].as_str().unwrap();
    assert!(
        message.contains("2 rows") && message.contains("activities"),
        "{message}"
    );
    is_as_before().await;

    // A value that the shard refuses.
    source
        .batch_execute(
            "update activities set contact_id = null where id in (7, 8);
             alter table companies drop constraint companies_name_check;
             update companies set name = '' where id = 499",
        )
        .await
        .unwrap();
    let (_, job) = import(&stage, "blue", &dsn).await;
    let job = stage.over(job["id"].as_str().unwrap()).await;
    assert_eq!(job["status"], "failed", "{job}");
    let message = job["problem"]["message"].as_str().unwrap();
    assert!(message.contains("companies_name_check"), "{message}");
    assert!(message.contains("COPY companies, line "), "{message}");
    assert!(!message.contains('{'), "{message}");
    is_as_before().await;

    // A column that the shards lack.
    source
        .batch_execute("alter table companies add column secret text")
        .await
        .unwrap();
    let (status, body) = import(&stage, "blue", &dsn).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(body["message"].as_str().unwrap().contains("secret"));
    stage.cluster.down().await;
}
