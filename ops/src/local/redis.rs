//! Redis Cluster: masters with one replica each, in memory only. Everything in
//! it may be lost at any time, so nothing is saved and memory is bounded.

use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::folder::{Folder, write_private};
use super::layout::{Node, Role};
use super::process::{self, Identity, command, on_path};
use crate::error::{Error, Result, io};

/// Masters' epochs and slots are given to them, so that no node has to be
/// introduced to another: the cluster is there as soon as its nodes are.
const SLOTS: u32 = 16_384;
/// Longest wait until all agree that the cluster is whole. A restarted master
/// waits 2 s by itself before it takes writes.
const WHOLE: Duration = Duration::from_secs(30);
/// Longest answer that is read, bytes.
const ANSWER: u64 = 4_096;

/// Makes sure that the server is installed.
pub(crate) fn require() -> Result<()> {
    let found = on_path("redis-server", None);
    found.map(drop).ok_or_else(|| Error::Missing {
        what: "redis-server".into(),
        advice: "install it (on Debian 12: ./ops/up does, or apt-get install redis-server), \
                 or start without it: --redis off"
            .into(),
    })
}

/// Tells every node what the cluster looks like. Called while none of them
/// runs: a node that is started again later keeps what it has learned since.
pub(crate) fn compose(folder: &Folder, nodes: &[&Node]) -> Result<()> {
    for node in nodes {
        let dir = folder.node(&node.name);
        let path = dir.join("nodes.conf");
        fs::create_dir_all(&dir)
            .and_then(|()| write_private(&path, &membership(nodes, node)))
            .map_err(io(format!("write {}", path.display())))?;
    }
    Ok(())
}

/// The first half of `nodes` are masters, the second half their replicas, in
/// the same order.
fn membership(nodes: &[&Node], myself: &Node) -> String {
    let masters = nodes.len() / 2;
    let share = |n: usize| (n as u64 * u64::from(SLOTS) / masters as u64) as u32;
    let mut text = String::new();
    for (n, node) in nodes.iter().enumerate() {
        let Role::Redis { bus_port } = node.role else {
            continue;
        };
        let me = if node.name == myself.name {
            "myself,"
        } else {
            ""
        };
        let (id, port) = (id(n), node.port);
        let _ = write!(text, "{id} 127.0.0.1:{port}@{bus_port} {me}");
        let _ = match n.checked_sub(masters) {
            None => writeln!(
                text,
                "master - 0 0 {} connected {}-{}",
                n + 1,
                share(n),
                share(n + 1) - 1
            ),
            Some(of) => writeln!(text, "slave {} 0 0 {} connected", self::id(of), of + 1),
        };
    }
    let _ = writeln!(text, "vars currentEpoch {masters} lastVoteEpoch 0");
    text
}

/// A node's id: forty hexadecimal digits, by its place.
fn id(n: usize) -> String {
    format!("{:040x}", n + 1)
}

/// The command that serves a node; writes its configuration.
pub(crate) fn serve(
    folder: &Folder,
    node: &Node,
    bus_port: u16,
    password: &str,
) -> Result<Command> {
    let dir = folder.node(&node.name);
    let path = dir.join("redis.conf");
    let port = node.port;
    let text = format!(
        "# Written by `ringfence local`.\n\
         bind 127.0.0.1\nport {port}\nrequirepass {password}\nmasterauth {password}\n\
         cluster-enabled yes\ncluster-config-file nodes.conf\ncluster-port {bus_port}\n\
         cluster-node-timeout 2000\ncluster-require-full-coverage no\n\
         cluster-replica-validity-factor 0\n\
         save \"\"\nappendonly no\nmaxmemory 64mb\nmaxmemory-policy allkeys-lru\n\
         repl-diskless-sync yes\nrepl-diskless-sync-delay 0\nrepl-backlog-size 1mb\n\
         shutdown-timeout 0\n"
    );
    fs::create_dir_all(&dir)
        .and_then(|()| write_private(&path, &text))
        .map_err(io(format!("write {}", path.display())))?;
    let mut server = command(&Identity::Own, "redis-server".as_ref(), &dir);
    server.arg("redis.conf");
    Ok(server)
}

/// Does it answer?
pub(crate) async fn probe(node: &Node, password: &str) -> std::result::Result<(), String> {
    match ask(node, password, "PING").await {
        Ok(answer) if answer.contains("PONG") => Ok(()),
        Ok(answer) => Err(answer.trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Waits until every node sees a whole cluster.
pub(crate) async fn whole(nodes: &[&Node], password: &str) -> Result<()> {
    let deadline = Instant::now() + WHOLE;
    for node in nodes {
        loop {
            let info = ask(node, password, "CLUSTER INFO").await;
            if info.is_ok_and(|info| info.contains("cluster_state:ok")) {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Error::Supervisor(format!(
                    "Redis Cluster was not whole after {} s, says {}",
                    WHOLE.as_secs(),
                    node.name
                )));
            }
            tokio::time::sleep(2 * process::POLL).await;
        }
    }
    Ok(())
}

/// One command, in the protocol's form for people.
async fn ask(node: &Node, password: &str, command: &str) -> std::io::Result<String> {
    let talk = async {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await?;
        let line = format!("AUTH {password}\r\n{command}\r\nQUIT\r\n");
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(ANSWER).read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(1), talk)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_slots_are_given_to_masters_and_every_master_has_a_replica() {
        let nodes: Vec<Node> = (0..6)
            .map(|n| Node {
                name: format!("redis-{}", n + 1),
                role: Role::Redis { bus_port: 200 + n },
                port: 100 + n,
                own_port: 100 + n,
            })
            .collect();
        let nodes: Vec<&Node> = nodes.iter().collect();
        let text = membership(&nodes, nodes[4]);
        assert_eq!(
            text.replace(&"0".repeat(39), ""),
            "1 127.0.0.1:100@200 master - 0 0 1 connected 0-5460\n\
             2 127.0.0.1:101@201 master - 0 0 2 connected 5461-10921\n\
             3 127.0.0.1:102@202 master - 0 0 3 connected 10922-16383\n\
             4 127.0.0.1:103@203 slave 1 0 0 1 connected\n\
             5 127.0.0.1:104@204 myself,slave 2 0 0 2 connected\n\
             6 127.0.0.1:105@205 slave 3 0 0 3 connected\n\
             vars currentEpoch 3 lastVoteEpoch 0\n"
        );
    }
}
