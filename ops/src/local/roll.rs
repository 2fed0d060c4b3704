//! A rolling restart: the order of an upgrade, and what is waited for in between.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::layout::{Node, Role};
use super::{Cluster, NodeState, STOP, nginx, service};
use crate::error::{Result, io};

/// Longest wait for routers to hear of all shards again.
const HEARD_MAX: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for one router's answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What a router says of its caches, as far as it is of interest.
#[derive(Deserialize)]
struct Caches {
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    shard: String,
    heard: bool,
    wanted: bool,
    leased: bool,
}

impl Shard {
    /// A worker tells of its changes, and reads that ask for a cache may have one.
    fn is_whole(&self) -> bool {
        self.heard && (self.leased || !self.wanted)
    }
}

impl Cluster {
    /// Restarts all workers, then all routers, one after another, each once its
    /// requests are answered: nobody notices. Between two of them all routers hear
    /// again of the shards that they heard of before: one that is alone for a while,
    /// with nothing from its caches and replicas, could not take it.
    ///
    /// # Errors
    /// One does not end, not come back or not hear; those after it are left as they are.
    pub fn roll(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.restart_all())
    }

    async fn restart_all(&self) -> Result<()> {
        self.nginx_up()?;
        let heard = self.heard().await;
        for worker in self.of(|role| matches!(role, Role::Worker { .. })) {
            (self.report)(&format!("restarting {}", worker.name));
            self.shut_down(&worker.name).await?;
            self.start_node(&worker.name).await?;
            self.hear_again(&heard).await?;
        }
        for router in self.of(|role| matches!(role, Role::Router { .. })) {
            (self.report)(&format!("restarting {}", router.name));
            self.restart_router(router).await?;
            self.hear_again(&heard).await?;
        }
        Ok(())
    }

    fn of(&self, wanted: fn(&Role) -> bool) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| wanted(&node.role))
    }

    /// Nginx leaves it out meanwhile.
    async fn restart_router(&self, router: &Node) -> Result<()> {
        let nginx = self.nginx_up()?;
        let out = nginx::out_file(&self.folder, nginx, &router.name);
        std::fs::write(&out, "").map_err(io(format!("write {}", out.display())))?;
        let restarted = async {
            if let Role::Router { admin_port } = router.role {
                service::idle(&self.http, admin_port, STOP).await;
            }
            self.shut_down(&router.name).await?;
            self.start_node(&router.name).await
        };
        // Whatever came of it: nobody else would ever let it in again.
        let restarted = restarted.await;
        let removed = std::fs::remove_file(&out);
        restarted?;
        removed.map_err(io(format!("remove {}", out.display())))
    }

    /// The shards of which all routers hear.
    async fn heard(&self) -> BTreeSet<String> {
        let mut heard: Option<BTreeSet<String>> = None;
        for (_, admin_port) in self.live_routers() {
            let shards = self.shards_of(admin_port).await.into_iter();
            let own = shards.filter(|shard| shard.heard).map(|shard| shard.shard);
            heard = Some(match heard {
                None => own.collect(),
                Some(others) => own.filter(|shard| others.contains(shard)).collect(),
            });
        }
        heard.unwrap_or_default()
    }

    /// Waits until each router hears of each of these shards.
    async fn hear_again(&self, wanted: &BTreeSet<String>) -> Result<()> {
        let deadline = Instant::now() + HEARD_MAX;
        for (router, admin_port) in self.live_routers() {
            loop {
                let whole = self.shards_of(admin_port).await.into_iter();
                let whole = whole.filter(Shard::is_whole).map(|shard| shard.shard);
                let whole: BTreeSet<String> = whole.collect();
                let Some(missing) = wanted.difference(&whole).next() else {
                    break;
                };
                if Instant::now() >= deadline {
                    return Err(self.broken(router, format!("is told of no changes of {missing}")));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Those that run, with the ports of their admin listeners.
    fn live_routers(&self) -> Vec<(&str, u16)> {
        let live = self.nodes.iter().filter_map(|node| match node.role {
            Role::Router { admin_port } => Some((node.name.as_str(), admin_port)),
            _ => None,
        });
        live.filter(|(name, _)| self.state(name, &[NodeState::Up]).is_ok())
            .collect()
    }

    /// What a router knows of the shards; nothing where it doesn't answer.
    async fn shards_of(&self, admin_port: u16) -> Vec<Shard> {
        let url = format!("http://127.0.0.1:{admin_port}/cache");
        let asked = async {
            let answer = self.http.get(&url).timeout(ANSWER_MAX).send().await?;
            answer.error_for_status()?.json::<Caches>().await
        };
        asked.await.map_or(Vec::new(), |caches| caches.shards)
    }
}
