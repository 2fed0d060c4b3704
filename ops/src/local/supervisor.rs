//! The process that owns a kept cluster, and how others talk to it.
//!
//! It listens on a socket in the data folder: one JSON line in, one out. The
//! folder's lock says whether it is there at all.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{Cluster, Condition, NodeStatus, Options, folder, process};
use crate::error::{Error, Result, io};

/// Longest wait for an answer: a node that is started may have to recover.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest wait for all nodes to end.
const DOWN: Duration = Duration::from_secs(90);
/// Longest line of the protocol, bytes.
const LINE: u64 = 1 << 20;

/// What a supervisor is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "order", content = "node")]
pub enum Order {
    /// What is running?
    Status,
    /// Kill a node, as a power loss would.
    Kill(String),
    /// Freeze a node.
    Stop(String),
    /// Thaw a node.
    Cont(String),
    /// Start a node that is down.
    Start(String),
    /// Make a replica the primary.
    Promote(String),
    /// Cut a node's network.
    Cut(String),
    /// Close its connections, and new ones.
    Refuse(String),
    /// Let all arrive late, by milliseconds.
    Slow(String, u64),
    /// Mend a node's network.
    Heal(String),
    /// Send so many of a hundred tenants to these routers.
    Direct(Vec<String>, u8),
    /// Restart workers, then routers, one after another.
    Roll,
    /// Stop everything, and end.
    Down,
}

/// What a supervisor answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Everything has been started and was ready.
    pub ready: bool,
    /// Every node.
    pub nodes: Vec<NodeStatus>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Status),
    /// A node that does not exist, and what there is.
    Unknown(String, String),
    Error(String),
}

/// Runs a cluster until it is told to stop: by Ctrl-C, SIGTERM, or the socket.
/// `on_ready` is called once; `on_change` with all nodes whenever one's state
/// has changed since.
///
/// # Errors
/// What kept the cluster from starting. Nothing is left running then.
pub async fn run(
    options: Options,
    on_ready: impl FnOnce(&Cluster),
    mut on_change: impl FnMut(&[NodeStatus]),
) -> Result<()> {
    let stop = watch::channel(false).0;
    stop_on_signals(stop.clone())?;
    let cluster = Arc::new(Cluster::prepare(options)?);
    let ready = watch::channel(false).0;
    let listener = listen(cluster.path())?;
    let server = tokio::spawn(serve(
        listener,
        cluster.clone(),
        ready.clone(),
        stop.clone(),
    ));
    let mut stopped = stop.subscribe();
    let outcome = tokio::select! {
        outcome = cluster.bring_up() => outcome.map(|()| true),
        _ = stopped.wait_for(|stop| *stop) => Ok(false),
    };
    if let Ok(true) = outcome {
        ready.send_replace(true);
        on_ready(&cluster);
        let mut before = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = stopped.wait_for(|stop| *stop) => break,
            }
            let now = cluster.status();
            if now != before {
                on_change(&now);
                before = now;
            }
        }
    }
    if outcome.is_ok() {
        cluster.end_all().await;
    }
    server.abort();
    let _ = std::fs::remove_file(cluster.path().join("supervisor.sock"));
    outcome.map(drop)
}

/// Asks the supervisor of a data folder.
///
/// # Errors
/// [`Error::NotUp`], or what the supervisor answered.
pub async fn ask(folder: &Path, order: &Order) -> Result<Status> {
    let not_up = || Error::NotUp {
        path: folder.to_owned(),
    };
    if folder::holder(folder).is_none() {
        return Err(not_up());
    }
    let talk = async {
        let dir = File::open(folder)?;
        let mut stream = UnixStream::connect(socket(&dir)).await?;
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        stream.take(LINE).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER, talk)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(io(format!(
            "talk to the supervisor of {}",
            folder.display()
        )))?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(status)) => Ok(status),
        Ok(Answer::Unknown(name, known)) => Err(Error::UnknownNode { name, known }),
        Ok(Answer::Error(message)) => Err(Error::Supervisor(message)),
        Err(_) => Err(Error::Supervisor(format!(
            "the supervisor of {} hung up",
            folder.display()
        ))),
    }
}

/// The supervisor's process, if one holds the folder.
pub fn process_id(folder: &Path) -> Option<u32> {
    folder::holder(folder)
}

/// What `down` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A cluster, which ended in order.
    InOrder,
    /// A cluster that had to be killed.
    Killed,
    /// Processes of an earlier run without a supervisor; how many.
    Leftovers(usize),
    /// Nothing.
    Nothing,
}

/// Stops what runs from a data folder, whatever state that is in. Nothing of
/// it is left when this returns.
///
/// # Errors
/// The supervisor would not even be killed.
pub async fn down(folder: &Path) -> Result<Ended> {
    let Some(pid) = folder::holder(folder) else {
        return Ok(match process::end_leftovers(&folder.join("nodes")) {
            0 => Ended::Nothing,
            count => Ended::Leftovers(count),
        });
    };
    // One that is frozen answers again; one that is starting has no socket yet.
    process::signal(pid, Signal::CONT);
    if ask(folder, &Order::Down).await.is_err() {
        process::signal(pid, Signal::TERM);
    }
    if released(folder, DOWN).await {
        process::end_leftovers(&folder.join("nodes"));
        return Ok(Ended::InOrder);
    }
    // It holds the folder's lock, so it is no stranger of the same number.
    process::signal(pid, Signal::KILL);
    let gone = released(folder, Duration::from_secs(10)).await;
    process::end_leftovers(&folder.join("nodes"));
    match gone {
        true => Ok(Ended::Killed),
        false => Err(Error::Supervisor(format!("process {pid} does not end"))),
    }
}

async fn released(folder: &Path, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while folder::holder(folder).is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(2 * process::POLL).await;
    }
    true
}

/// A socket's path has 107 bytes at most, a checkout's may have more: it is
/// reached through the open folder.
fn socket(folder: &File) -> String {
    format!("/proc/self/fd/{}/supervisor.sock", folder.as_raw_fd())
}

fn listen(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path.join("supervisor.sock"));
    File::open(path)
        .and_then(|dir| UnixListener::bind(socket(&dir)))
        .map_err(io(format!("make a socket in {}", path.display())))
}

fn stop_on_signals(stop: watch::Sender<bool>) -> Result<()> {
    let catch = |kind| signal(kind).map_err(io("catch signals"));
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        stop.send_replace(true);
    });
    Ok(())
}

async fn serve(
    listener: UnixListener,
    cluster: Arc<Cluster>,
    ready: watch::Sender<bool>,
    stop: watch::Sender<bool>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (cluster, ready, stop) = (cluster.clone(), ready.clone(), stop.clone());
        tokio::spawn(async move {
            // Who does not ask, or does not listen, is not waited for.
            let _ = tokio::time::timeout(ANSWER, answer(stream, &cluster, &ready, &stop)).await;
        });
    }
}

async fn answer(
    stream: UnixStream,
    cluster: &Cluster,
    ready: &watch::Sender<bool>,
    stop: &watch::Sender<bool>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LINE)).read_line(&mut line).await?;
    let outcome = match serde_json::from_str(&line) {
        Ok(Order::Status) => Ok(()),
        Ok(Order::Kill(node)) => cluster.kill(&node).await,
        Ok(Order::Stop(node)) => cluster.stop(&node),
        Ok(Order::Cont(node)) => cluster.cont(&node),
        Ok(Order::Start(node)) => cluster.start_node(&node).await,
        Ok(Order::Promote(node)) => cluster.promote(&node).await,
        Ok(Order::Cut(node)) => cluster.set_network(&node, Condition::Cut),
        Ok(Order::Refuse(node)) => cluster.set_network(&node, Condition::Refused),
        Ok(Order::Slow(node, ms)) => {
            cluster.set_network(&node, Condition::Slow(Duration::from_millis(ms)))
        }
        Ok(Order::Heal(node)) => cluster.set_network(&node, Condition::Well),
        Ok(Order::Direct(canary, percent)) => cluster.direct(&canary, percent).await,
        Ok(Order::Roll) => cluster.roll().await,
        Ok(Order::Down) => {
            stop.send_replace(true);
            Ok(())
        }
        Err(error) => Err(Error::Usage(error.to_string())),
    };
    let answer = match outcome {
        Ok(()) => Answer::Ok(Status {
            ready: *ready.borrow(),
            nodes: cluster.status(),
        }),
        Err(Error::UnknownNode { name, known }) => Answer::Unknown(name, known),
        Err(error) => Answer::Error(error.chain()),
    };
    write.write_all(&serde_json::to_vec(&answer)?).await
}
