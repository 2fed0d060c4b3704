//! A network that can be broken: a proxy before each node, through which all
//! others reach it.
//!
//! A cut is what a pulled cable is: nothing arrives any longer, nobody is told,
//! and what was under way arrives once it is mended. What the node itself sends
//! to others first, such as a replica's connection to its primary, goes through
//! the other's proxy and is not held up by its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes that one direction of a connection holds at most.
const BUFFER: usize = 64 << 10;

/// What a node's network does with what is sent through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// All arrives.
    Well,
    /// Nothing arrives, and nobody is told; it does once the condition changes.
    Cut,
    /// Connections are closed, and new ones too.
    Refused,
    /// All arrives later by so much, each way.
    Slow(Duration),
    /// Its proxy ends.
    Over,
}

/// The proxies of a cluster, by the names of their nodes. They end with this.
#[derive(Debug)]
pub(crate) struct Network {
    links: BTreeMap<String, watch::Sender<Condition>>,
}

impl Network {
    /// Listens on the first port of each, and passes all on to the second.
    /// Runs on a thread of its own: a test's runtime may be busy.
    pub(crate) fn start(nodes: Vec<(String, u16, u16)>) -> io::Result<Self> {
        let mut links = BTreeMap::new();
        let mut listeners = Vec::new();
        for (name, from, to) in nodes {
            let listener = StdListener::bind((Ipv4Addr::LOCALHOST, from))?;
            listener.set_nonblocking(true)?;
            let (link, condition) = watch::channel(Condition::Well);
            links.insert(name, link);
            listeners.push((listener, to, condition));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::Builder::new()
            .name("network".into())
            .spawn(move || {
                let serve = async {
                    let proxies =
                        listeners
                            .into_iter()
                            .map(|(listener, to, condition)| async move {
                                if let Ok(listener) = TcpListener::from_std(listener) {
                                    accept(listener, to, condition).await;
                                }
                            });
                    futures_util::future::join_all(proxies).await;
                };
                runtime.block_on(serve);
                runtime.shutdown_background();
            })?;
        Ok(Self { links })
    }

    /// From now on; false where there is no such node.
    pub(crate) fn set(&self, node: &str, condition: Condition) -> bool {
        let link = self.links.get(node);
        link.is_some_and(|link| {
            link.send_replace(condition);
            true
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for link in self.links.values() {
            link.send_replace(Condition::Over);
        }
    }
}

/// Takes connections until the network is over.
async fn accept(listener: TcpListener, to: u16, mut condition: watch::Receiver<Condition>) {
    loop {
        let watched = condition.clone();
        tokio::select! {
            over = condition.wait_for(|now| *now == Condition::Over) => {
                drop(over);
                return;
            }
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                tokio::spawn(connection(client, to, watched));
            }
        }
    }
}

/// One connection, from its begin to its end.
async fn connection(client: TcpStream, to: u16, mut condition: watch::Receiver<Condition>) {
    let (one, other) = (condition.clone(), condition.clone());
    let forwarded = async move {
        passes(&mut one.clone()).await;
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let there = pump(from_client, to_server, one);
        let back = pump(from_server, to_client, other);
        // A server that has closed is gone, whatever its client still says.
        tokio::join!(there, back);
    };
    let closed = |now: &Condition| matches!(now, Condition::Refused | Condition::Over);
    tokio::select! {
        () = forwarded => {}
        // Both sockets are dropped here.
        _ = condition.wait_for(closed) => {}
    }
}

/// Passes bytes on in one direction, as the condition says.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut condition: watch::Receiver<Condition>,
) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await;
        passes(&mut condition).await;
        match read {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = to.shutdown().await;
}

/// Waits as long as the condition holds things up.
async fn passes(condition: &mut watch::Receiver<Condition>) {
    let now = condition.wait_for(|now| *now != Condition::Cut).await;
    if let Ok(Condition::Slow(delay)) = now.map(|now| *now) {
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// An echo server behind a proxy, and a connection through it.
    fn stage() -> (Network, u16, TcpStream) {
        let server = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = server.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in server.incoming().flatten() {
                thread::spawn(move || {
                    let (mut read, mut write) = (stream.try_clone().unwrap(), stream);
                    io::copy(&mut read, &mut write)
                });
            }
        });
        let free = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let from = free.local_addr().unwrap().port();
        drop(free);
        let network = Network::start(vec![("n".into(), from, to)]).unwrap();
        (network, from, connect(from))
    }

    fn connect(port: u16) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        patience(&stream, Duration::from_secs(60));
        stream
    }

    /// How long an answer is waited for.
    fn patience(stream: &TcpStream, time: Duration) {
        stream.set_read_timeout(Some(time)).unwrap();
    }

    fn echo(stream: &mut TcpStream) -> io::Result<usize> {
        stream.write_all(b"x")?;
        stream.read(&mut [0; 8])
    }

    #[test]
    fn a_cut_holds_everything_back_and_tells_nobody() {
        let (network, port, mut before) = stage();
        assert_eq!(echo(&mut before).unwrap(), 1);
        network.set("n", Condition::Cut);
        let silent = |stream: &mut TcpStream| {
            patience(stream, Duration::from_millis(300));
            let kind = echo(stream).unwrap_err().kind();
            assert!(matches!(
                kind,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ));
            patience(stream, Duration::from_secs(60));
        };
        silent(&mut before);
        let mut meanwhile = connect(port);
        silent(&mut meanwhile);
        network.set("n", Condition::Well);
        assert_eq!(before.read(&mut [0; 8]).unwrap(), 1);
        assert_eq!(meanwhile.read(&mut [0; 8]).unwrap(), 1);
    }

    #[test]
    fn refused_connections_end_and_slow_ones_wait() {
        let (network, port, mut before) = stage();
        assert_eq!(echo(&mut before).unwrap(), 1);
        network.set("n", Condition::Slow(Duration::from_millis(50)));
        let started = std::time::Instant::now();
        assert_eq!(echo(&mut before).unwrap(), 1);
        assert!(started.elapsed() >= Duration::from_millis(100));
        network.set("n", Condition::Refused);
        assert!(matches!(before.read(&mut [0; 8]), Ok(0) | Err(_)));
        assert!(!matches!(echo(&mut connect(port)), Ok(1)));
        assert!(!network.set("nobody", Condition::Well));
    }
}
