//! A cluster, its admin API, and what its shards hold.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ops::local::{Cluster, Content, NodeState, Options};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// Longest wait for what must happen; slow machines take long.
pub(crate) const SOON: Duration = Duration::from_secs(90);

pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    http: reqwest::Client,
}

impl Stage {
    /// Two shards without replicas, one router, the demo tenants with `rows` rows.
    pub(crate) async fn start(rows: u32) -> Self {
        Self::with(2, rows).await
    }

    /// The same with so many shards.
    pub(crate) async fn with(shards: u16, rows: u32) -> Self {
        Self::of(Options {
            shards: Some(shards),
            ..Self::usual(rows)
        })
        .await
    }

    /// What [`Self::start`] starts.
    pub(crate) fn usual(rows: u32) -> Options {
        Options {
            shards: Some(2),
            replicas: Some(0),
            routers: Some(1),
            // A slow machine starts a worker in more seconds than requests wait for; chaos
            // runs have the usual five.
            hold_ms_max: Some(20_000),
            content: Content::Demo {
                extra: 0,
                rows: Some(rows),
            },
            ..Options::default()
        }
    }

    pub(crate) async fn of(options: Options) -> Self {
        Self {
            cluster: Cluster::start(options).await.unwrap(),
            http: reqwest::Client::new(),
        }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        self.try_send(method, path, body).await.unwrap()
    }

    /// Also while the worker is down.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), reqwest::Error> {
        let url = format!("{}/admin/v1/{path}", self.cluster.admin_url());
        let request = self.http.request(method, url);
        let request = request.bearer_auth(self.cluster.admin_token());
        let request = match &body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(Method::GET, path, None).await;
        assert!(status.is_success(), "{path}: {body}");
        body
    }

    /// A job, once `wanted` is true of it.
    pub(crate) async fn job(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + SOON;
        let path = format!("jobs/{id}");
        loop {
            let job = self.try_send(Method::GET, &path, None).await;
            match job {
                Ok((_, job)) if wanted(&job) => return job,
                seen => assert!(Instant::now() < deadline, "{seen:?}"),
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    pub(crate) async fn over(&self, id: &str) -> Value {
        self.job(id, |job| job["done"] == true).await
    }

    /// Workers die at these points, one after another.
    pub(crate) fn fail_at(&self, points: &[&str]) {
        std::fs::write(self.failpoints(), points.join("\n")).unwrap();
    }

    /// Where the worker reads at which points it dies.
    pub(crate) fn failpoints(&self) -> PathBuf {
        self.cluster.path().join("nodes/worker-1/failpoint")
    }

    /// Waits until the worker is dead, and starts another.
    pub(crate) async fn worker_died(&self) {
        self.worker_is_dead().await;
        self.revive_worker().await;
    }

    /// Waits until the worker is dead.
    pub(crate) async fn worker_is_dead(&self) {
        let deadline = Instant::now() + SOON;
        let is_up = || {
            let nodes = self.cluster.status();
            let worker = nodes.iter().find(|node| node.name == "worker-1").unwrap();
            worker.state != NodeState::Down
        };
        while is_up() {
            assert!(Instant::now() < deadline, "the worker does not die");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts a worker in the place of one that died, whose lease is over for it. It may
    /// come to a failpoint, and die, before anybody saw it ready.
    pub(crate) async fn revive_worker(&self) {
        let over = "update ringfence.job set lease_until = now() where not done";
        self.control().await.execute(over, &[]).await.unwrap();
        let points = || std::fs::read_to_string(self.failpoints()).unwrap_or_default();
        let before = points();
        if let Err(error) = self.cluster.start_node("worker-1").await {
            assert_ne!(points(), before, "{error}");
        }
    }

    /// A new API key of a tenant.
    pub(crate) async fn new_key(&self, slug: &str) -> String {
        let path = format!("tenants/{slug}/keys");
        let body = serde_json::json!({ "role": "authenticated" });
        let (status, key) = self.send(Method::POST, &path, Some(body)).await;
        assert!(status.is_success(), "{key}");
        key["key"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn tenant(&self, slug: &str) -> (Uuid, String) {
        let tenant = self.get(&format!("tenants/{slug}")).await;
        let id = tenant["id"].as_str().unwrap().parse().unwrap();
        (id, tenant["shard"].as_str().unwrap().to_owned())
    }

    /// A superuser on a shard's primary.
    pub(crate) async fn shard(&self, shard: &str) -> Client {
        let dsn = self.cluster.shard_dsn(&format!("{shard}-primary")).unwrap();
        connect(&dsn).await
    }

    /// A superuser in the control database.
    pub(crate) async fn control(&self) -> Client {
        connect(&self.cluster.control_dsn()).await
    }

    /// Adds rows to a tenant, quicker than its application would.
    pub(crate) async fn fill(&self, shard: &str, tenant: Uuid, rows: i32) {
        let sql = format!(
            "set session_replication_role = replica;
             insert into activities (tenant_id, kind, subject, minutes)
             select '{tenant}', (enum_range(null::activity_kind))[1 + n % 2],
               'No. ' || n || ', \"quoted\"' || chr(10) || md5(n::text), 1 + n % 90
             from generate_series(1, {rows}) n"
        );
        self.shard(shard).await.batch_execute(&sql).await.unwrap();
    }

    /// A tenant's rows by table, on one shard; tables without any are left out.
    pub(crate) async fn rows(&self, shard: &str, tenant: Uuid) -> BTreeMap<String, i64> {
        let client = self.shard(shard).await;
        let tables = client
            .query(
                "select r.relid::regclass::text from ringfence.relation r where kind = 'distributed'",
                &[],
            )
            .await
            .unwrap();
        let mut rows = BTreeMap::new();
        for table in tables {
            let table: String = table.get(0);
            let sql = format!("select count(*) from {table} where tenant_id = $1");
            let count: i64 = client.query_one(&sql, &[&tenant]).await.unwrap().get(0);
            if count > 0 {
                let name = match table.contains('.') {
                    true => table,
                    false => format!("public.{table}"),
                };
                rows.insert(name, count);
            }
        }
        rows
    }

    /// Status of a tenant's read through the router.
    pub(crate) async fn read(&self, key: &str) -> StatusCode {
        let url = format!("{}/rest/v1/companies?limit=1", self.cluster.router_url(0));
        let answer = self.http.get(url).header("apikey", key).send().await;
        answer.unwrap().status()
    }
}

pub(crate) async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
