//! A cluster of one shard, and a router with settings of the test's own.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ops::local::{Cluster, Options};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use tokio_postgres::NoTls;

pub(crate) struct Service {
    pub(crate) cluster: Cluster,
    pub(crate) http: Client,
    /// Superuser on the shard.
    pub(crate) sql: tokio_postgres::Client,
    /// Address of the router to ask.
    pub(crate) url: String,
    router: Option<Router>,
}

/// A process that ends with its test.
struct Router(Child);

/// What a router answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Service {
    /// With `settings` further tables of the router's configuration file.
    pub(crate) async fn start(settings: &str) -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(1),
            ..Options::default()
        });
        let cluster = cluster.await.unwrap();
        let dsn = cluster.shard_dsn("s1-primary").unwrap();
        let (sql, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut service = Self {
            http: Client::new(),
            sql,
            url: cluster.router_url(0),
            router: None,
            cluster,
        };
        if !settings.is_empty() {
            service.own_router(settings).await;
        }
        service
    }

    pub(crate) async fn down(mut self) {
        drop(self.router.take());
        self.cluster.down().await;
    }

    /// A request of the tenant acme.
    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("{}/rest/v1/{path}", self.url);
        let request = self.http.request(method, url);
        request.header("apikey", self.cluster.key("acme").unwrap())
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut request = self.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request = request.body(body.to_owned());
        }
        reply(request).await
    }

    /// How many rows of acme's companies have that name.
    pub(crate) async fn companies(&self, name: &str) -> usize {
        let found = self
            .send(
                "GET",
                &format!("companies?select=id&name=eq.{name}"),
                &[],
                "",
            )
            .await;
        found.json().as_array().unwrap().len()
    }

    /// Waits until the shard answers `true`.
    pub(crate) async fn until(&self, question: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self
            .sql
            .query_one(question, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {
            assert!(Instant::now() < deadline, "never true: {question}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn own_router(&mut self, settings: &str) {
        let theirs = self.cluster.path().join("nodes/router-1/config.toml");
        let theirs = std::fs::read_to_string(theirs).unwrap();
        // Held until both are known, so that none is given twice.
        let free = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [listen, admin] = free.map(|port| port.local_addr().unwrap());
        let mut config: toml::Table = theirs.parse().unwrap();
        config.extend(settings.parse::<toml::Table>().unwrap());
        config.insert("listen".into(), listen.to_string().into());
        config.insert("admin_listen".into(), admin.to_string().into());
        let folder = self.cluster.path().join("nodes/router-own");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("config.toml");
        std::fs::write(&path, config.to_string()).unwrap();
        let program = env!("CARGO_BIN_EXE_ringfence-router");
        let router = Command::new(program)
            .arg("--config")
            .arg(path)
            .current_dir(folder)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        self.router = Some(Router(router));
        self.url = format!("http://{listen}");
        let ready = format!("http://{admin}/ready");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !matches!(self.http.get(&ready).send().await, Ok(ok) if ok.status().is_success()) {
            assert!(Instant::now() < deadline, "the router does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn reply(request: RequestBuilder) -> Reply {
    let answer = request.send().await.unwrap();
    Reply {
        status: answer.status().as_u16(),
        headers: answer.headers().clone(),
        body: answer.text().await.unwrap(),
    }
}
