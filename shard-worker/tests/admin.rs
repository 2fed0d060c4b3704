//! The admin API on a real control database and a real shard.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::{Duration, Instant};

use ops::local::{Cluster, Content, Options};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::NoTls;

/// A cluster of one shard with a worker, and its admin API.
struct Admin {
    cluster: Cluster,
    http: reqwest::Client,
}

impl Admin {
    async fn start() -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(0),
            content: Content::Schema,
            ..Options::default()
        });
        Self {
            cluster: cluster.await.unwrap(),
            http: reqwest::Client::new(),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = format!("{}/admin/v1/{path}", self.cluster.admin_url());
        let request = self.http.request(method, url);
        let request = request.bearer_auth(self.cluster.admin_token());
        let request = match &body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Jobs that wait for a person or have ended, of which the first alone ended long
    /// ago: their ids.
    async fn insert_jobs(&self) -> [String; 3] {
        let row = |done: bool, days: u32| async move {
            let status = if done { "done" } else { "stuck" };
            let sql = format!(
                "with made as (insert into ringfence.job
                   (kind, object, state, done, status, created_at, changed_at)
                 values ('tenant_delete', 'x', '{{}}', {done}, '{status}',
                   now() - interval '90 days', now() - interval '{days} days') returning id)
                 select to_json(id) from made"
            );
            let id = self.control(&sql).await;
            id.as_str().unwrap().to_owned()
        };
        [
            row(true, 31).await,
            row(true, 29).await,
            row(false, 90).await,
        ]
    }

    /// The one value that `sql` finds in the control database.
    async fn control(&self, sql: &str) -> Value {
        let (client, connection) = tokio_postgres::connect(&self.cluster.control_dsn(), NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

#[tokio::test]
async fn tenants_keys_and_bad_input() {
    let admin = Admin::start().await;

    // Without the token nothing is shown, not even which routes there are.
    for path in ["tenants", "nowhere"] {
        let url = format!("{}/admin/v1/{path}", admin.cluster.admin_url());
        let answer = admin.http.get(url).bearer_auth("guess").send().await;
        assert_eq!(answer.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    let metrics = format!("{}/metrics", admin.cluster.admin_url());
    let metrics = admin.http.get(metrics).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("ringfence_admin_refused_total 2\n"));
    let said = std::fs::read_to_string(admin.cluster.log("worker-1")).unwrap();
    let mut said = said.lines();
    let line = said.find(|line| line.contains("no known admin token"));
    let line = line.unwrap();
    let about = ["/tenants", "127.0.0.1"];
    assert!(about.iter().all(|what| line.contains(what)) && !line.contains("guess"));
    let (status, error) = admin.get("nowhere").await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::NOT_FOUND, &json!("RF402"))
    );

    // Ten at once make one tenant.
    let made = futures_util::future::join_all(
        (0..10).map(|_| admin.post("tenants", json!({ "slug": "acme", "name": "Acme" }))),
    )
    .await;
    let new = made
        .iter()
        .filter(|(status, _)| *status == StatusCode::CREATED);
    assert_eq!(new.count(), 1, "{made:?}");
    assert!(
        made.iter().all(|(status, _)| status.is_success()),
        "{made:?}"
    );
    assert!(
        made.iter()
            .all(|(_, tenant)| tenant["id"] == made[0].1["id"])
    );
    let (_, acme) = admin.get("tenants/acme").await;
    assert_eq!(acme["state"], "active");
    assert_eq!((&acme["shard"], &acme["epoch"]), (&json!("s1"), &json!(1)));

    // What can't be done says so, and does nothing.
    let other = json!({ "slug": "acme", "id": "00000000-0000-4000-8000-000000000001" });
    for (path, body, status) in [
        ("tenants", other, StatusCode::CONFLICT),
        (
            "tenants",
            json!({ "slug": "No Slug!" }),
            StatusCode::BAD_REQUEST,
        ),
        (
            "tenants",
            json!({ "slug": "x", "plan": "?" }),
            StatusCode::BAD_REQUEST,
        ),
        ("tenants", json!("acme"), StatusCode::BAD_REQUEST),
        (
            "tenants:bulk",
            json!({ "prefix": "t", "count": 0 }),
            StatusCode::BAD_REQUEST,
        ),
        ("tenants/nobody/suspend", json!({}), StatusCode::NOT_FOUND),
        (
            "tenants/nobody/keys",
            json!({ "role": "authenticated" }),
            StatusCode::NOT_FOUND,
        ),
        ("keys/999/revoke", json!({}), StatusCode::NOT_FOUND),
        (
            "issuers",
            json!({ "name": "i", "secret": "short" }),
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let (answered, error) = admin.post(path, body).await;
        assert_eq!(answered, status, "{path}: {error}");
        assert!(error["message"].is_string(), "{path}: {error}");
    }
    let (_, tenants) = admin.get("tenants").await;
    assert_eq!(tenants["items"].as_array().unwrap().len(), 1);

    let (_, made) = admin
        .post("tenants:bulk", json!({ "prefix": "t", "count": 25 }))
        .await;
    assert_eq!(made["created"], 25);
    let (_, again) = admin
        .post("tenants:bulk", json!({ "prefix": "t", "count": 30 }))
        .await;
    assert_eq!(again["created"], 5);

    // The worker's own heartbeat is there soon.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut members = admin.get("members").await.1;
    while members["items"] == json!([]) {
        assert!(Instant::now() < deadline, "no heartbeat");
        tokio::time::sleep(Duration::from_millis(50)).await;
        members = admin.get("members").await.1;
    }
    let worker = &members["items"][0];
    assert_eq!(worker["name"], "worker-1", "{members}");
    assert_eq!(worker["admin_url"], admin.cluster.admin_url(), "{members}");

    // The audit log keeps what was and what is.
    let (_, key) = admin
        .post("tenants/acme/keys", json!({ "role": "authenticated" }))
        .await;
    admin
        .post(&format!("keys/{}/revoke", key["id"]), json!({}))
        .await;
    let audited = admin
        .control(
            "select json_build_array(before->'revoked_at', after->'revoked_at' is not null)
             from ringfence.audit where action = 'key.revoke' order by id desc limit 1",
        )
        .await;
    assert_eq!(audited, json!([null, true]));

    // And who it was: whose token, and what the caller says besides, marked as such.
    let url = format!("{}/admin/v1/plans/gold", admin.cluster.admin_url());
    let claim = |claim: &'static str| {
        let request = admin.http.post(&url).json(&json!({ "limits": {} }));
        let request = request.bearer_auth(admin.cluster.admin_token());
        request.header("ringfence-actor", claim).send()
    };
    let answer = claim("alice@laptop").await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let answer = claim("x) root (says: y").await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let (_, log) = admin.get("audit?action=plan&object=gold").await;
    assert_eq!(log["items"].as_array().unwrap().len(), 1, "{log}");
    assert_eq!(log["items"][0]["actor"], "admin (says: alice@laptop)");
    a_node_that_does_not_answer_is_not_taken(&admin).await;
    a_token_is_changed_without_a_restart(&admin).await;
    admin.cluster.down().await;
}

/// Of a shard that is in use: its other node goes on being asked.
async fn a_node_that_does_not_answer_is_not_taken(admin: &Admin) {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let node = json!({ "name": "s1-primary", "host": "127.0.0.1", "port": port });
    let (_, before) = admin.get("shards").await;
    let moved = json!({ "id": "s1", "nodes": [node] });
    let (status, error) = admin.post("shards", moved).await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::BAD_GATEWAY, &json!("RF420"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("s1-primary") && message.contains("no answer"));
    let (_, after) = admin.get("shards").await;
    let address = |list: &Value| list["items"][0]["nodes"][0]["port"].clone();
    assert_eq!(address(&after), address(&before));
    assert_ne!(address(&after), json!(port));
}

/// A file that is empty for a moment locks nobody out.
async fn a_token_is_changed_without_a_restart(admin: &Admin) {
    let file = admin.cluster.path().join("secrets/admin-token");
    let url = format!("{}/admin/v1/tenants", admin.cluster.admin_url());
    let by = async |token: &str| {
        let answer = admin.http.get(&url).bearer_auth(token).send().await;
        answer.unwrap().status()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let until = async |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < deadline, "the file is not read");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let log = admin.cluster.log("worker-1");
    let says = |what: &str| std::fs::read_to_string(&log).unwrap().contains(what);
    std::fs::write(&file, "").unwrap();
    until(&|| says("admin tokens stay as they were")).await;
    let metrics = format!("{}/metrics", admin.cluster.admin_url());
    let metrics = admin.http.get(metrics).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("ringfence_admin_tokens_stale 1\n"));
    assert_eq!(by(admin.cluster.admin_token()).await, StatusCode::OK);
    std::fs::write(&file, "another\n").unwrap();
    until(&|| says("admin tokens have changed")).await;
    assert_eq!(by("another").await, StatusCode::OK);
    let old = by(admin.cluster.admin_token()).await;
    assert_eq!(old, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_tenant_made_while_its_shard_is_down_is_admitted_later() {
    let admin = Admin::start().await;
    admin.cluster.kill("s1-primary").await.unwrap();
    let (status, error) = admin.post("tenants", json!({ "slug": "late" })).await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::BAD_GATEWAY, &json!("RF420"))
    );
    let (_, late) = admin.get("tenants/late").await;
    assert_eq!(late["state"], "creating");

    // Jobs that ended long ago are forgotten, and nothing else: neither what ended
    // lately, nor what is open however old, nor what the audit log has of them.
    let begun = admin.get("audit").await.1["items"].clone();
    let jobs = admin.insert_jobs().await;

    // Neither does it take the worker that began.
    admin.cluster.kill("worker-1").await.unwrap();
    admin.cluster.start_node("s1-primary").await.unwrap();
    admin.cluster.start_node("worker-1").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    while admin.get("tenants/late").await.1["state"] != "active" {
        assert!(Instant::now() < deadline, "not admitted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let [gone, left @ ..] = jobs;
    while admin.get(&format!("jobs/{gone}")).await.0 != StatusCode::NOT_FOUND {
        assert!(Instant::now() < deadline, "{gone} is kept");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for id in left {
        let (status, job) = admin.get(&format!("jobs/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{id}: {job}");
    }
    let log = admin.get("audit?limit=1000").await.1["items"].clone();
    let log = log.as_array().unwrap();
    assert!(
        begun
            .as_array()
            .unwrap()
            .iter()
            .all(|line| log.contains(line))
    );
    admin.cluster.down().await;
}
