//! A cluster whose router and worker are processes of the test's own, with
//! settings of its own, at the addresses of the cluster's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ops::local::{Balance, Cluster, Options};
use reqwest::{Certificate, Client, Method, RequestBuilder};
use tokio_postgres::NoTls;

use crate::receiver::{Collector, Sentry};

/// Longest wait for what must happen.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) collector: Collector,
    pub(crate) sentry: Sentry,
    /// Trusts Nginx.
    pub(crate) http: Client,
    /// Superuser on the shard.
    pub(crate) sql: tokio_postgres::Client,
    pub(crate) router: Process,
    worker: Process,
}

/// A process that ends with its test.
pub(crate) struct Process {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(1),
            nginx: Some(Balance::RoundRobin),
            ..Options::default()
        });
        let cluster = cluster.await.unwrap();
        let (collector, sentry) = (Collector::start().await, Sentry::start().await);
        cluster.shut_down("router-1").await.unwrap();
        cluster.shut_down("worker-1").await.unwrap();
        let dsn_file = cluster.path().join("sentry-dsn");
        std::fs::write(&dsn_file, &sentry.dsn).unwrap();
        let seen = format!(
            "[traces]\notlp_url = '{}'\nsample_ratio = 0.0\n[sentry]\ndsn_file = '{}'\n",
            collector.url,
            dsn_file.display(),
        );
        let bounds = "[limits]\nheaders_ms_max = 1000\nbody_ms_max = 1000\nanswers_bytes_max = 30000000\n[log]\nslow_ms = 200\n";
        let router = Process::start(
            &cluster,
            "ringfence-router",
            "router-1",
            &(seen.clone() + bounds),
        );
        let worker = Process::start(&cluster, "ringfence-worker", "worker-1", &seen);
        let (_, ca_file, _) = cluster.nginx().unwrap();
        let ca = Certificate::from_pem(&std::fs::read(ca_file).unwrap()).unwrap();
        let http = Client::builder().tls_certs_only([ca]).build().unwrap();
        let dsn = cluster.shard_dsn("s1-primary").unwrap();
        let (sql, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let stage = Self {
            cluster,
            collector,
            sentry,
            http,
            sql,
            router,
            worker,
        };
        for base in [stage.cluster.router_admin_url(0), stage.cluster.admin_url()] {
            let url = format!("{base}/ready");
            stage.until(|| stage.http.get(&url), 200).await;
        }
        stage
    }

    pub(crate) async fn down(self) {
        drop((self.router, self.worker));
        self.cluster.down().await;
    }

    /// To the router, without Nginx.
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        let url = format!("{}/rest/v1/{path}", self.cluster.router_url(0));
        let request = self.http.get(url);
        request.header("apikey", self.cluster.key("acme").unwrap())
    }

    /// To the worker.
    pub(crate) fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.cluster.admin_url());
        let request = self.http.request(method, url);
        request.bearer_auth(self.cluster.admin_token())
    }

    /// Sends a request again until it is answered so; the body then.
    pub(crate) async fn until(&self, request: impl Fn() -> RequestBuilder, status: u16) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let answer = request().send().await;
            let said = match answer {
                Ok(answer) if answer.status() == status => return answer.text().await.unwrap(),
                Ok(answer) => format!("{}: {}", answer.status(), answer.text().await.unwrap()),
                Err(error) => error.to_string(),
            };
            assert!(Instant::now() < deadline, "not {status}, but {said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Process {
    fn start(cluster: &Cluster, program: &str, node: &str, settings: &str) -> Self {
        let theirs = cluster.path().join("nodes").join(node);
        let text = std::fs::read_to_string(theirs.join("config.toml")).unwrap();
        let mut config: toml::Table = text.parse().unwrap();
        config.extend(settings.parse::<toml::Table>().unwrap());
        let folder = cluster.path().join("nodes").join(format!("{node}-own"));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("config.toml");
        std::fs::write(&path, config.to_string()).unwrap();
        let log = folder.join("log");
        let programs = Path::new(env!("CARGO_BIN_EXE_ringfence-router"));
        let child = Command::new(programs.with_file_name(program))
            .arg("--config")
            .arg(path)
            .current_dir(folder)
            .stdout(Stdio::from(File::create(&log).unwrap()))
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// As a supervisor ends it.
    pub(crate) fn terminate(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
