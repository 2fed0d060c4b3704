//! The order in which a cluster comes up.

use std::fmt::Write;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, try_join, try_join_all, try_join3};
use serde_json::{Value, json};

use super::folder::write_private;
use super::layout::{Node, Role};
use super::postgres::{Postgres, connect, failed};
use super::{
    APP_DATABASE, CONTROL_DATABASE, Cluster, Content, config, demo, nginx, process, prometheus,
    redis, service,
};
use crate::admin::Admin;
use crate::error::{Error, Result, io};

const CONTROL_OWNER: &str = include_str!("../../compose/control-owner.sql");

/// Longest wait for a node; crash recovery is included.
const READY: Duration = Duration::from_secs(90);
/// Longest wait for one answer of a node that is starting.
const PROBE: Duration = Duration::from_secs(2);

impl Cluster {
    /// Starts everything and waits until it is ready; safe to run again on the
    /// data of an earlier run, however far that came.
    ///
    /// # Errors
    /// What failed, by name, with the end of its log.
    // Boxed, so that it is compiled here: what a future does is otherwise compiled
    // anew into each program that waits for it, and every test does.
    pub fn bring_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.bring_all_up())
    }

    async fn bring_all_up(&self) -> Result<()> {
        (self.report)("starting control database and shards");
        let control = self.find("control")?;
        let shards = self.shards();
        let redis = self.redis_nodes();
        redis::compose(&self.folder, &redis)?;
        try_join3(
            self.primary(control, CONTROL_DATABASE),
            try_join_all(shards.iter().map(|nodes| self.shard(nodes))),
            try_join_all(redis.iter().map(|node| self.start_and_wait(node))),
        )
        .await?;
        // Whole by itself while the others start.
        try_join(redis::whole(&redis, self.secrets.redis()), async {
            match self.content {
                Content::Servers => Ok(()),
                _ => self.services(&shards).await,
            }
        })
        .await?;
        self.write_env()
    }

    async fn services(&self, shards: &[Vec<&Node>]) -> Result<()> {
        self.give_away(self.find("control")?).await?;
        (self.report)("starting the worker");
        // The first prepares the control database that all read.
        self.start_and_wait(self.find("worker-1")?).await?;
        let standbys = self
            .nodes
            .iter()
            .filter(|node| matches!(node.role, Role::Worker { .. }));
        try_join_all(standbys.skip(1).map(|node| self.start_and_wait(node))).await?;
        let admin = Admin::new(&self.admin_url(), self.admin_token())?;
        (self.report)("registering shards");
        register(&admin, shards).await?;
        if self.content != Content::Services {
            (self.report)("applying the CRM's schema");
            let primaries = shards.iter().filter_map(|nodes| nodes.first());
            try_join_all(primaries.map(|node| demo::schema(self, node))).await?;
            demo::record(&admin).await?;
        }
        (self.report)("starting routers");
        let routers = self
            .nodes
            .iter()
            .filter(|node| matches!(node.role, Role::Router { .. }));
        try_join_all(routers.map(|node| self.start_and_wait(node))).await?;
        let beside = self
            .nodes
            .iter()
            .filter(|node| matches!(node.role, Role::Nginx { .. } | Role::Prometheus));
        try_join_all(beside.map(|node| self.start_and_wait(node))).await?;
        if let Content::Demo { extra, rows } = self.content {
            (self.report)("creating demo tenants");
            demo::tenants(self, &admin, extra, rows).await?;
        }
        Ok(())
    }

    /// Redis' nodes; masters first.
    fn redis_nodes(&self) -> Vec<&Node> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| matches!(node.role, Role::Redis { .. }))
            .collect()
    }

    /// The nodes of each shard, its first primary first.
    fn shards(&self) -> Vec<Vec<&Node>> {
        let mut shards: Vec<Vec<&Node>> = Vec::new();
        for node in &self.nodes {
            match node.role {
                Role::Primary { .. } => shards.push(vec![node]),
                Role::Replica { .. } => shards.last_mut().into_iter().for_each(|s| s.push(node)),
                _ => {}
            }
        }
        shards
    }

    async fn shard(&self, nodes: &[&Node]) -> Result<()> {
        let Some((first, replicas)) = nodes.split_first() else {
            return Ok(());
        };
        self.primary(first, APP_DATABASE).await?;
        try_join_all(replicas.iter().map(|node| self.replica(node, first))).await?;
        if self.sync {
            // On every node, so that it holds for whichever is primary.
            let password = self.secrets.superuser();
            let names: Vec<String> = nodes.iter().map(|n| format!("\"{}\"", n.name)).collect();
            let any = format!("ANY 1 ({})", names.join(", "));
            try_join_all(nodes.iter().map(|node| wait_for(node, &any, password))).await?;
        }
        Ok(())
    }

    /// A server of its own, with one database.
    async fn primary(&self, node: &Node, database: &str) -> Result<()> {
        let password = self.secrets.superuser();
        if !Postgres::is_made(&self.folder, node) {
            self.postgres
                .make_primary(&self.nursery, &self.folder, node, password)
                .await?;
        }
        self.start_and_wait(node).await?;
        let client = connect(node, "postgres", password).await?;
        let row = client
            .query_one(
                "select pg_is_in_recovery() or exists (select from pg_database where datname = $1)",
                &[&database],
            )
            .await
            .map_err(failed(node, "looking for its database"))?;
        // A former primary that follows another has that one's databases.
        if !row.get::<_, bool>(0) {
            client
                .batch_execute(&format!("create database {database}"))
                .await
                .map_err(failed(node, "creating its database"))?;
        }
        Ok(())
    }

    /// The control database belongs to a role of its own, as in production.
    async fn give_away(&self, control: &Node) -> Result<()> {
        let client = connect(control, CONTROL_DATABASE, self.secrets.superuser()).await?;
        let password = self.secrets.owner();
        client
            .batch_execute(&format!(
                "{CONTROL_OWNER} alter role ringfence_owner password '{password}'"
            ))
            .await
            .map_err(failed(control, "giving its database an owner"))
    }

    async fn replica(&self, node: &Node, primary: &Node) -> Result<()> {
        if !Postgres::is_made(&self.folder, node) {
            let password = self.secrets.superuser();
            self.postgres
                .make_replica(&self.nursery, &self.folder, node, primary, password)
                .await?;
        }
        self.start_and_wait(node).await
    }

    /// Starts a node's process and waits until it answers. Boxed as all is.
    pub(super) fn start_and_wait<'a>(&'a self, node: &'a Node) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.start_one(node))
    }

    async fn start_one(&self, node: &Node) -> Result<()> {
        let command = match node.role {
            Role::Control | Role::Primary { .. } | Role::Replica { .. } => {
                self.postgres
                    .serve(&self.folder, node, self.fsync, self.authority.as_ref())?
            }
            Role::Redis { bus_port } => {
                redis::serve(&self.folder, node, bus_port, self.secrets.redis())?
            }
            Role::Nginx { .. } => nginx::serve(
                &self.folder,
                node,
                &self.router_ports(),
                self.balance,
                &self.traffic(),
            )?,
            Role::Prometheus => {
                let routers = self.router_admin_urls();
                prometheus::serve(
                    &self.folder,
                    node,
                    &without_scheme(routers),
                    &without_scheme(self.worker_urls()),
                )?
            }
            Role::Worker { .. } | Role::Router { .. } => {
                let control = self.find("control")?;
                let table = |(name, seconds): (&String, &Option<u32>)| {
                    let kept = match seconds {
                        Some(seconds) => i64::from(*seconds).into(),
                        None => "off".into(),
                    };
                    (name.clone(), kept)
                };
                let told = config::RouterOptions {
                    caches: self.caches,
                    redis_urls: self.redis_urls(),
                    memory_bytes_max: self.cache_bytes_max,
                    tables: self.cache_tables.iter().map(table).collect(),
                    hold_ms_max: self.hold_ms_max,
                };
                service::serve(
                    &self.folder,
                    node,
                    control,
                    &told,
                    self.authority.as_ref(),
                    &self.secrets,
                )?
            }
        };
        self.spawn(node, command)?;
        let deadline = Instant::now() + READY;
        loop {
            let problem = match self.probe(node).await {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            if let Some(end) = self.end_of(node) {
                return Err(self.broken(&node.name, format!("ended while starting ({end})")));
            }
            if Instant::now() >= deadline {
                let seconds = READY.as_secs();
                let reason = format!("was not ready after {seconds} s ({problem})");
                return Err(self.broken(&node.name, reason));
            }
            tokio::time::sleep(2 * process::POLL).await;
        }
    }

    /// Is it ready? The error says in words what it answers instead.
    async fn probe(&self, node: &Node) -> std::result::Result<(), String> {
        let answer = async {
            if node.is_postgres() {
                return connect(node, "postgres", self.secrets.superuser())
                    .await
                    .map(drop)
                    .map_err(|error| error.chain());
            }
            if let Role::Redis { .. } = node.role {
                return redis::probe(node, self.secrets.redis()).await;
            }
            match self.http.get(service::ready_url(node)).send().await {
                Ok(response) if response.status().is_success() => Ok(()),
                Ok(response) => Err(format!(
                    "{}: {}",
                    response.status(),
                    response.text().await.unwrap_or_default().trim()
                )),
                Err(error) => Err(error.to_string()),
            }
        };
        tokio::time::timeout(PROBE, answer)
            .await
            .unwrap_or_else(|_| Err("no answer".into()))
    }

    /// How a node's process ended, if it did.
    fn end_of(&self, node: &Node) -> Option<String> {
        let mut running = self.running();
        let process = running.get_mut(&node.name)?;
        match process.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Writes `local.env`, which holds secrets, for its owner only.
    fn write_env(&self) -> Result<()> {
        let mut text =
            String::from("# Written by `ringfence local`; source it, or read it line by line.\n");
        for (name, value) in self.env() {
            let _ = writeln!(text, "{name}={value}");
        }
        // Renamed into place: who reads it meanwhile sees the old or the new.
        let path = self.folder.env();
        let new = path.with_extension("env.new");
        write_private(&new, &text)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(io(format!("write {}", path.display())))
    }
}

fn without_scheme(urls: Vec<String>) -> Vec<String> {
    let bare = |url: String| url.trim_start_matches("http://").to_owned();
    urls.into_iter().map(bare).collect()
}

/// Has commits on a node wait for standbys of these names. Not for `*`: who
/// captures changes or moves tenants would count as one that has them on disk.
async fn wait_for(node: &Node, standbys: &str, password: &str) -> Result<()> {
    let client = connect(node, "postgres", password).await?;
    for statement in [
        format!("alter system set synchronous_standby_names = '{standbys}'"),
        "select pg_reload_conf()".to_owned(),
    ] {
        client
            .batch_execute(&statement)
            .await
            .map_err(failed(node, "making replication synchronous"))?;
    }
    Ok(())
}

/// Registers the shards that the control database doesn't know as they are,
/// and waits until workers have prepared all of them.
async fn register(admin: &Admin, shards: &[Vec<&Node>]) -> Result<()> {
    let known = shard_list(admin).await?;
    try_join_all(shards.iter().map(|nodes| async {
        let Some(Role::Primary { shard }) = nodes.first().map(|node| &node.role) else {
            return Ok(());
        };
        let as_is = |known: &Value| {
            known["id"] == **shard
                && nodes.iter().all(|node| {
                    known["nodes"].as_array().is_some_and(|all| {
                        all.iter()
                            .any(|n| n["name"] == *node.name && n["port"] == node.port)
                    })
                })
        };
        if known.iter().any(as_is) {
            return Ok(());
        }
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|node| json!({"name": node.name, "host": "127.0.0.1", "port": node.port}))
            .collect();
        let body = json!({"id": shard, "nodes": nodes});
        admin.post("/shards", &body).await.map(drop)
    }))
    .await?;
    let deadline = Instant::now() + READY;
    loop {
        let known = shard_list(admin).await?;
        let Some(waiting) = known.iter().find(|shard| shard["state"] != "active") else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(Error::Supervisor(format!(
                "shard {} was not prepared after {} s; `ringfence local logs worker-1` tells why",
                waiting["id"],
                READY.as_secs()
            )));
        }
        tokio::time::sleep(5 * process::POLL).await;
    }
}

async fn shard_list(admin: &Admin) -> Result<Vec<Value>> {
    match admin.get("/shards", &[]).await?["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(Error::Answer {
            request: "GET /shards".into(),
            field: "items",
        }),
    }
}
