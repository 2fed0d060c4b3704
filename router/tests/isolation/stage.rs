//! A cluster with a victim that has rows in every table, and an attacker on
//! the same shard that has none.

use std::time::{Duration, Instant};

use ops::local::{Cluster, Content, Options};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// A key secret that is not the attacker's.
pub(crate) const SECRET: &str = "the deployment's own secret of API keys";

pub(crate) struct Tenant {
    pub(crate) id: Uuid,
    pub(crate) slug: String,
    pub(crate) key: String,
}

pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) http: reqwest::Client,
    pub(crate) shard: String,
    pub(crate) victim: Tenant,
    pub(crate) attacker: Tenant,
    /// Superuser on the shard.
    pub(crate) superuser: Client,
    /// The router's own role on the shard.
    pub(crate) router: Client,
    control: Client,
}

impl Stage {
    pub(crate) async fn open() -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(2),
            replicas: Some(0),
            routers: Some(1),
            content: Content::Schema,
            ..Options::default()
        })
        .await
        .unwrap();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        let (shard, victim) = tenant(&cluster, &http, "victim").await;
        let mut number = 0;
        let attacker = loop {
            let (other, attacker) = tenant(&cluster, &http, &format!("attacker-{number}")).await;
            if other == shard {
                break attacker;
            }
            number += 1;
        };
        let node = format!("{shard}-primary");
        let superuser = connect(&cluster.shard_dsn(&node).unwrap()).await;
        schema::crm::seed(&superuser, victim.id, &victim.slug, 20)
            .await
            .unwrap();
        Self {
            router: connect(&cluster.router_dsn(&node).unwrap()).await,
            control: connect(&cluster.control_dsn()).await,
            superuser,
            http,
            shard,
            victim,
            attacker,
            cluster,
        }
    }

    pub(crate) async fn down(self) {
        self.cluster.down().await;
    }

    pub(crate) fn other_shard(&self) -> String {
        let other = if self.shard == "s1" { "s2" } else { "s1" };
        other.to_owned()
    }

    /// Runs statements as superuser on the tenants' shard.
    pub(crate) async fn sql(&self, text: &str) {
        self.superuser.batch_execute(text).await.unwrap();
    }

    /// Table by table a digest of the victim's rows, past row security.
    pub(crate) async fn victims_rows(&self) -> Vec<(String, i64, Option<String>)> {
        let mut digests = Vec::new();
        for table in schema::crm::TABLES {
            let sql = format!(
                "select count(*), md5(string_agg(t::text, '|' order by t::text)) from public.{table} t where tenant_id = $1"
            );
            let row = self
                .superuser
                .query_one(&sql, &[&self.victim.id])
                .await
                .unwrap();
            assert!(row.get::<_, i64>(0) > 0, "the victim needs rows in {table}");
            digests.push((table.to_owned(), row.get(0), row.get(1)));
        }
        digests
    }

    /// A request with the tenant's key: status and body.
    pub(crate) async fn request(
        &self,
        tenant: &Tenant,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> (u16, String) {
        let url = format!("{}/rest/v1/{path}", self.cluster.router_url(0));
        let mut request = self.http.request(method, url).header("apikey", &tenant.key);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub(crate) async fn get(&self, tenant: &Tenant, path: &str) -> (u16, String) {
        self.request(tenant, Method::GET, path, None, &[]).await
    }

    pub(crate) async fn post(&self, tenant: &Tenant, path: &str, body: Value) -> (u16, String) {
        self.request(tenant, Method::POST, path, Some(body), &[])
            .await
    }

    pub(crate) async fn call(&self, tenant: &Tenant, function: &str, body: Value) -> (u16, String) {
        self.post(tenant, &format!("rpc/{function}"), body).await
    }

    /// Waits until the router knows a function that was just made.
    pub(crate) async fn until_called(&self, function: &str) {
        let began = Instant::now();
        loop {
            let body = json!({ "seconds": 0 });
            let (status, body) = self.call(&self.attacker, function, body).await;
            if status == 200 {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{status} {body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a read is answered with `wanted`.
    pub(crate) async fn until_status(&self, tenant: &Tenant, path: &str, wanted: u16) {
        let began = Instant::now();
        loop {
            let (status, body) = self.get(tenant, path).await;
            if status == wanted {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{status} {body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes the control database say that a tenant lives there, and waits
    /// until the router has heard of it.
    pub(crate) async fn believe(&self, tenant: &Tenant, shard: &str, epoch: i64) {
        // One statement, as every change must be: the row takes the version
        // that is published with it.
        let version: i64 = self
            .control
            .query_one(
                "with next as (select ringfence.next_version(false) as version)
                 update ringfence.tenant t
                 set shard = $2, epoch = $3, exceptional = true, version = next.version
                 from next where t.id = $1 returning t.version",
                &[&tenant.id, &shard, &epoch],
            )
            .await
            .unwrap()
            .get(0);
        self.until_version(version).await;
    }

    async fn until_version(&self, version: i64) {
        let url = format!("{}/metrics", self.cluster.router_admin_url(0));
        let began = Instant::now();
        loop {
            let metrics = self.http.get(&url).send().await.unwrap();
            let text = metrics.text().await.unwrap();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("ringfence_placement_version "));
            let now = line.and_then(|value| value.parse::<f64>().ok());
            if now.is_some_and(|now| now >= version as f64) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{now:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn tenant(cluster: &Cluster, http: &reqwest::Client, slug: &str) -> (String, Tenant) {
    let post = async |path: String, body: Value| -> Value {
        http.post(format!("{}/admin/v1/{path}", cluster.admin_url()))
            .bearer_auth(cluster.admin_token())
            .json(&body)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };
    let made = post("tenants".into(), json!({ "slug": slug })).await;
    let key = post(format!("tenants/{slug}/keys"), json!({})).await;
    let tenant = Tenant {
        id: made["id"].as_str().unwrap().parse().unwrap(),
        slug: slug.to_owned(),
        key: key["key"].as_str().unwrap().to_owned(),
    };
    (made["shard"].as_str().unwrap().to_owned(), tenant)
}

async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
