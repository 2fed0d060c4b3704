//! Which nodes there are, what they are called and where they listen (pure,
//! but for the search of free ports).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

/// First of the default ports; see [`Ports::From`].
pub const PORT_BASE: u16 = 7400;

/// How many of each there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Shards, 1 to 100.
    pub shards: u16,
    /// Replicas of each shard, 0 to 9.
    pub replicas: u16,
    /// Routers, 0 to 100.
    pub routers: u16,
    /// Workers, 1 to 20; all but one stand by.
    #[serde(default = "one")]
    pub workers: u16,
    /// Masters of Redis Cluster, each with one replica: 0, or 3 to 10.
    #[serde(default)]
    pub redis: u16,
}

fn one() -> u16 {
    1
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            shards: 3,
            replicas: 1,
            routers: 2,
            workers: 1,
            redis: 3,
        }
    }
}

/// Where nodes listen, always on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ports {
    /// Fixed ports from this base `b`: routers `b`…, their admin ports
    /// `b+100`…, workers `b+200`… with their streams, where services speak TLS,
    /// `b+260`…, Redis `b+220`… with cluster buses `b+240`…,
    /// Nginx `b+290` and, without TLS, `b+291`, Prometheus `b+292`, the control database `b+300`, shard n's nodes from `b+310+10(n-1)`, its
    /// primary first.
    From(u16),
    /// Whatever is free, for tests.
    Free,
}

/// What a node is started as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The control database.
    Control,
    /// A shard's first node.
    Primary {
        /// The shard's id, such as `s1`.
        shard: String,
    },
    /// A shard's further node, following the first.
    Replica {
        /// The shard's id.
        shard: String,
    },
    /// A worker.
    Worker {
        /// The port of its stream of changes, where services speak TLS; no
        /// proxy stands before it.
        stream_port: u16,
    },
    /// A router.
    Router {
        /// The port of its admin listener.
        admin_port: u16,
    },
    /// A node of Redis Cluster.
    Redis {
        /// The port of its cluster bus.
        bus_port: u16,
    },
    /// Nginx before the routers; the node's port speaks TLS.
    Nginx {
        /// The port without TLS.
        http_port: u16,
    },
    /// Prometheus.
    Prometheus,
}

/// What is put beside the services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    /// Nginx before the routers.
    pub(super) nginx: bool,
    /// Prometheus.
    pub(super) prometheus: bool,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Such as `s1-primary`, `s1-replica1`, `router-1`, `worker-1`, `redis-1`, `control`.
    pub name: String,
    /// What it is started as. A shard's replica may have been promoted since.
    pub role: Role,
    /// Where others reach it.
    pub port: u16,
    /// Where its process listens: the same, unless a proxy is in between.
    pub own_port: u16,
}

impl Node {
    /// The shard whose node it is.
    pub fn shard(&self) -> Option<&str> {
        match &self.role {
            Role::Primary { shard } | Role::Replica { shard } => Some(shard),
            Role::Control
            | Role::Worker { .. }
            | Role::Router { .. }
            | Role::Redis { .. }
            | Role::Nginx { .. }
            | Role::Prometheus => None,
        }
    }

    /// Is it a Postgres server?
    pub fn is_postgres(&self) -> bool {
        match self.role {
            Role::Control | Role::Primary { .. } | Role::Replica { .. } => true,
            Role::Worker { .. }
            | Role::Router { .. }
            | Role::Redis { .. }
            | Role::Nginx { .. }
            | Role::Prometheus => false,
        }
    }

    /// What ends it in order. To Postgres, SIGINT is a fast shutdown.
    pub(super) fn shutdown_signal(&self) -> Signal {
        match self.is_postgres() {
            true => Signal::INT,
            false => Signal::TERM,
        }
    }

    /// Every port that its process listens on.
    pub fn ports(&self) -> Vec<u16> {
        match self.role {
            Role::Router { admin_port } => vec![self.own_port, admin_port],
            Role::Redis { bus_port } => vec![self.own_port, bus_port],
            Role::Nginx { http_port } => vec![self.own_port, http_port],
            Role::Worker { stream_port } => vec![self.own_port, stream_port],
            _ => vec![self.own_port],
        }
    }
}

/// All nodes of a cluster, in the order in which they are listed. Where they
/// are `proxied`, all but Redis' listen elsewhere than others reach them.
///
/// # Errors
/// In words, where the shape is beyond what the ports can hold.
pub(super) fn nodes(
    shape: Shape,
    ports: Ports,
    proxied: bool,
    beside: Beside,
    reserved: &mut Reserved,
) -> Result<Vec<Node>, String> {
    let Shape {
        shards,
        replicas,
        routers,
        workers,
        redis,
    } = shape;
    if !(1..=100).contains(&shards) {
        return Err(format!("{shards} shards: there can be 1 to 100"));
    }
    if replicas > 9 {
        return Err(format!("{replicas} replicas: there can be 0 to 9 a shard"));
    }
    if routers > 100 {
        return Err(format!("{routers} routers: there can be 0 to 100"));
    }
    if !(1..=20).contains(&workers) {
        return Err(format!("{workers} workers: there can be 1 to 20"));
    }
    if !(redis == 0 || (3..=10).contains(&redis)) {
        return Err(format!(
            "{redis} masters of Redis: there can be 3 to 10, or none (off)"
        ));
    }
    let mut source = match ports {
        // The highest port in use is base + 310 + 10 * 99 + 9.
        Ports::From(base) if !(1024..=64_000).contains(&base) => {
            return Err(format!("port base {base}: it can be 1024 to 64000"));
        }
        Ports::From(base) => Source::Fixed(base),
        Ports::Free => Source::search(),
    };
    let mut port = |offset| source.port(offset, reserved);
    let mut nodes = vec![Node {
        name: "control".into(),
        role: Role::Control,
        port: port(300)?,
        own_port: 0,
    }];
    for n in 0..shards {
        let shard = format!("s{}", n + 1);
        for r in 0..=replicas {
            let (name, role) = match r {
                0 => (
                    format!("{shard}-primary"),
                    Role::Primary {
                        shard: shard.clone(),
                    },
                ),
                r => (
                    format!("{shard}-replica{r}"),
                    Role::Replica {
                        shard: shard.clone(),
                    },
                ),
            };
            let port = port(310 + 10 * n + r)?;
            nodes.push(Node {
                name,
                role,
                port,
                own_port: 0,
            });
        }
    }
    for n in 0..2 * redis {
        nodes.push(Node {
            name: format!("redis-{}", n + 1),
            role: Role::Redis {
                bus_port: port(240 + n)?,
            },
            port: port(220 + n)?,
            own_port: 0,
        });
    }
    for n in 0..workers {
        nodes.push(Node {
            name: format!("worker-{}", n + 1),
            role: Role::Worker {
                stream_port: port(260 + n)?,
            },
            port: port(200 + n)?,
            own_port: 0,
        });
    }
    for n in 0..routers {
        nodes.push(Node {
            name: format!("router-{}", n + 1),
            role: Role::Router {
                admin_port: port(100 + n)?,
            },
            port: port(n)?,
            own_port: 0,
        });
    }
    if beside.nginx {
        nodes.push(Node {
            name: "nginx".into(),
            role: Role::Nginx {
                http_port: port(291)?,
            },
            port: port(290)?,
            own_port: 0,
        });
    }
    if beside.prometheus {
        nodes.push(Node {
            name: "prometheus".into(),
            role: Role::Prometheus,
            port: port(292)?,
            own_port: 0,
        });
    }
    let direct = |role: &Role| {
        matches!(
            role,
            Role::Redis { .. } | Role::Nginx { .. } | Role::Prometheus
        )
    };
    let mut own = Source::search();
    for node in &mut nodes {
        node.own_port = match proxied && !direct(&node.role) {
            true => own.port(0, reserved)?,
            false => node.port,
        };
    }
    Ok(nodes)
}

/// Can a node listen there now?
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}

/// Ports beside each other that one cluster has for itself. The first of them is never
/// a node's: the cluster holds it, so that others that look for ports look elsewhere.
const BLOCK: u16 = 50;
/// Blocks lie below the range that the kernel gives to outgoing connections: a killed
/// node's port must still be free when the node is started again.
const LOWEST: u16 = 12_000;
const BLOCKS: u16 = 400;

/// What a cluster has for itself, until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Reserved(Vec<TcpListener>);

impl Reserved {
    /// Another block: its first port.
    fn block(&mut self) -> Result<u16, String> {
        let seed = uuid::Uuid::new_v4().as_u128() % u128::from(BLOCKS);
        for n in 0..BLOCKS {
            let block = LOWEST + BLOCK * ((seed as u16 + n) % BLOCKS);
            if let Ok(held) = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, block))) {
                self.0.push(held);
                return Ok(block);
            }
        }
        Err(format!("no free ports from {LOWEST} on"))
    }
}

enum Source {
    Fixed(u16),
    Search { next: u16, end: u16 },
}

impl Source {
    fn search() -> Self {
        Self::Search { next: 0, end: 0 }
    }

    fn port(&mut self, offset: u16, reserved: &mut Reserved) -> Result<u16, String> {
        match self {
            Self::Fixed(base) => Ok(*base + offset),
            Self::Search { next, end } => loop {
                if *next == *end {
                    let block = reserved.block()?;
                    (*next, *end) = (block + 1, block + BLOCK);
                }
                let port = *next;
                *next += 1;
                if is_free(port) {
                    return Ok(port);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_cluster_has_documented_names_and_ports() {
        let nodes = nodes(
            Shape::default(),
            Ports::From(PORT_BASE),
            false,
            Beside::default(),
            &mut Reserved::default(),
        )
        .unwrap();
        let listed: Vec<_> = nodes
            .iter()
            .map(|n| format!("{} {:?}", n.name, n.ports()))
            .collect();
        assert_eq!(
            listed,
            [
                "control [7700]",
                "s1-primary [7710]",
                "s1-replica1 [7711]",
                "s2-primary [7720]",
                "s2-replica1 [7721]",
                "s3-primary [7730]",
                "s3-replica1 [7731]",
                "redis-1 [7620, 7640]",
                "redis-2 [7621, 7641]",
                "redis-3 [7622, 7642]",
                "redis-4 [7623, 7643]",
                "redis-5 [7624, 7644]",
                "redis-6 [7625, 7645]",
                "worker-1 [7600, 7660]",
                "router-1 [7400, 7500]",
                "router-2 [7401, 7501]",
            ]
        );
    }

    #[test]
    fn no_two_nodes_share_a_port_however_large_the_cluster() {
        let shape = Shape {
            shards: 100,
            replicas: 9,
            routers: 100,
            workers: 20,
            redis: 10,
        };
        for ports in [Ports::From(PORT_BASE), Ports::Free] {
            let mut all: Vec<_> = nodes(
                shape,
                ports,
                false,
                Beside {
                    nginx: true,
                    prometheus: true,
                },
                &mut Reserved::default(),
            )
            .unwrap()
            .iter()
            .flat_map(Node::ports)
            .collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        }
    }

    #[test]
    fn no_two_clusters_share_a_port() {
        let mut all = Vec::new();
        let mut held = Vec::new();
        for _ in 0..50 {
            let mut reserved = Reserved::default();
            let shape = Shape::default();
            let own = nodes(shape, Ports::Free, true, Beside::default(), &mut reserved);
            let ports = own.unwrap().into_iter().flat_map(|node| {
                let mut ports = node.ports();
                ports.push(node.port);
                ports.sort_unstable();
                ports.dedup();
                ports
            });
            all.extend(ports);
            held.push(reserved);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn shapes_beyond_the_ports_are_refused() {
        for (shards, replicas, routers, workers, redis) in [
            (0, 1, 1, 1, 3),
            (101, 1, 1, 1, 3),
            (1, 10, 1, 1, 3),
            (1, 1, 101, 1, 3),
            (1, 1, 1, 0, 3),
            (1, 1, 1, 1, 2),
            (1, 1, 1, 1, 11),
        ] {
            let shape = Shape {
                shards,
                replicas,
                routers,
                workers,
                redis,
            };
            let mut reserved = Reserved::default();
            let ports = Ports::From(PORT_BASE);
            let nodes = nodes(shape, ports, false, Beside::default(), &mut reserved);
            assert!(nodes.is_err(), "{shape:?}");
        }
    }
}
