//! `ringfence local`.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::local::supervisor::{self, Ended, Order, Status};
use crate::local::{Balance, Cluster, Content, Data, NodeState, NodeStatus, Options, Ports};
use crate::output::{Column, Output, show};
use crate::target;

const NODES: &[Column] = &[
    ("node", |n| show(&n["name"])),
    ("state", |n| show(&n["state"])),
    ("address", |n| show(&n["address"])),
    ("pid", |n| show(&n["pid"])),
];

/// What can be done with the local cluster.
#[derive(Debug, Args)]
pub struct Local {
    #[command(subcommand)]
    command: Command,
    /// Its data folder [default: .ringfence here, or in the nearest folder above]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the cluster, in the foreground until Ctrl-C
    ///
    /// The data of earlier runs is kept. Addresses and keys are written to
    /// .ringfence/local.env. All listen on 127.0.0.1; with the default base,
    /// routers on 7400…, their admin listeners on 7500…, workers with the admin
    /// API on 7600…, Redis on 7620…,
    /// Nginx on 7690 (7691 without TLS), Prometheus on 7692, the control database on 7700, shard 1 on
    /// 7710 with its replicas on 7711…, shard 2 on 7720….
    Up(Up),
    /// Stop the cluster; its data stays
    Down,
    /// Show every node's state
    Status,
    /// Show the end of a node's log
    Logs {
        /// Such as s1-primary, router-1, or supervisor
        node: String,
        /// Go on as the log grows
        #[arg(short, long)]
        follow: bool,
        /// How many lines
        #[arg(short = 'n', long, default_value_t = 50)]
        lines: u32,
    },
    /// Kill a node with SIGKILL, all its processes at once
    Kill {
        /// Such as s1-primary, s1-replica1, router-1, worker-1, redis-1, control
        node: String,
    },
    /// Freeze a node with SIGSTOP: connections stay open, nothing answers
    Stop {
        /// Such as s1-primary, s1-replica1, router-1, worker-1, redis-1, control
        node: String,
    },
    /// Thaw a frozen node
    Cont {
        /// Such as s1-primary, s1-replica1, router-1, worker-1, redis-1, control
        node: String,
    },
    /// Start a node that is down, and wait until it is ready
    Start {
        /// Such as s1-primary, s1-replica1, router-1, worker-1, redis-1, control
        node: String,
    },
    /// Cut a node's network: nothing that is sent to it arrives, nobody is told
    Cut {
        /// Such as s1-primary, s1-replica1, router-1, worker-1, control
        node: String,
        /// Let all arrive late by so many milliseconds instead
        #[arg(long, value_name = "MS", conflicts_with = "refuse")]
        slow: Option<u64>,
        /// Close its connections, and new ones too, instead
        #[arg(long)]
        refuse: bool,
    },
    /// Mend a node's network
    Heal {
        /// Such as s1-primary, s1-replica1, router-1, worker-1, control
        node: String,
    },
    /// Send a share of the tenants, always the same ones, to routers of a new release
    ///
    /// Promote it with 100, roll it back with 0. Without routers, all are of one
    /// release again. Needs `up --nginx`.
    Canary {
        /// Such as router-2
        routers: Vec<String>,
        /// Tenants of a hundred that go to them
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: u8,
    },
    /// Restart all workers, then all routers, one after another, unnoticed
    ///
    /// Each router is left out by Nginx until it is back. Needs `up --nginx`.
    Roll,
    /// Make a replica its shard's primary; the old one should be down
    Promote {
        /// Such as s1-replica1
        node: String,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// Return as soon as everything is ready, and leave it running
    #[arg(long)]
    detach: bool,
    /// Remove the data of earlier runs first
    #[arg(long)]
    fresh: bool,
    /// Number of shards [default: as before, at first 3]
    #[arg(long)]
    shards: Option<u16>,
    /// Replicas of each shard [default: as before, at first 1]
    #[arg(long)]
    replicas: Option<u16>,
    /// Number of routers [default: as before, at first 2]
    #[arg(long)]
    routers: Option<u16>,
    /// Number of workers [default: as before, at first 1]
    #[arg(long)]
    workers: Option<u16>,
    /// Masters of Redis Cluster, each with a replica, or `off` [default: as before, at first 3]
    #[arg(long, value_parser = redis_masters, value_name = "off|N")]
    redis: Option<u16>,
    /// Tenants to create beside acme, globex and initech
    #[arg(long, default_value_t = 0)]
    tenants: u32,
    /// Rows of each tenant's data [default: a small set]
    #[arg(long)]
    rows: Option<u32>,
    /// First of the ports [default: as before, at first 7400]
    #[arg(long)]
    port_base: Option<u16>,
    /// Trade the data's safety in a power loss for speed
    #[arg(long)]
    no_fsync: bool,
    /// Commits wait for one of at least two replicas
    #[arg(long)]
    sync: bool,
    /// Put a proxy before each node, so that `cut` can break its network
    #[arg(long)]
    network: bool,
    /// Services reach Postgres, and routers workers, by TLS only, verified against an authority made for it
    #[arg(long)]
    tls: bool,
    /// Put Nginx before the routers
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "round-robin", value_name = "BALANCE")]
    nginx: Option<Balance>,
    /// Run Prometheus with the rules for production
    #[arg(long)]
    prometheus: bool,
}

impl Local {
    /// Does it; `up` prints while it runs, and leaves nothing to print.
    pub(super) async fn run(self) -> Result<Option<Output>> {
        let folder = folder(&self)?;
        let order = match self.command {
            Command::Up(up) if up.detach => return detach(&up, &folder).await.map(|()| None),
            Command::Up(up) => return foreground(&up, folder).await.map(|()| None),
            Command::Down => return down(&folder).await.map(Some),
            Command::Logs {
                node,
                follow,
                lines,
            } => return Err(logs(&folder, &node, follow, lines)),
            Command::Status => Order::Status,
            Command::Kill { node } => Order::Kill(node),
            Command::Stop { node } => Order::Stop(node),
            Command::Cont { node } => Order::Cont(node),
            Command::Start { node } => Order::Start(node),
            Command::Promote { node } => Order::Promote(node),
            Command::Cut {
                node,
                slow: Some(ms),
                ..
            } => Order::Slow(node, ms),
            Command::Cut {
                node, refuse: true, ..
            } => Order::Refuse(node),
            Command::Cut { node, .. } => Order::Cut(node),
            Command::Heal { node } => Order::Heal(node),
            Command::Canary { routers, percent } => Order::Direct(routers, percent),
            Command::Roll => Order::Roll,
        };
        let status = supervisor::ask(&folder, &order).await?;
        Ok(Some(nodes(&status)))
    }
}

/// The data folder that is meant. `up` makes one here; the others look upward.
fn folder(local: &Local) -> Result<PathBuf> {
    if let Some(dir) = &local.data_dir {
        return Ok(dir.clone());
    }
    let here = target::current_folder()?;
    let own = here.join(".ringfence");
    if let Command::Up(_) = local.command {
        return Ok(own);
    }
    let above = here.ancestors().map(|folder| folder.join(".ringfence"));
    Ok(above
        .into_iter()
        .find(|folder| folder.is_dir())
        .unwrap_or(own))
}

fn nodes(status: &Status) -> Output {
    let items: Vec<Value> = status.nodes.iter().map(|node| json!(node)).collect();
    let whole = json!({ "ready": status.ready, "items": items });
    Output::list(items, NODES).with_json(whole)
}

async fn down(folder: &Path) -> Result<Output> {
    let (sentence, what) = match supervisor::down(folder).await? {
        Ended::InOrder => (
            "The cluster is stopped; its data is kept.".to_owned(),
            "stopped",
        ),
        Ended::Killed => (
            "The cluster did not stop in time and was killed; its data is kept.".to_owned(),
            "killed",
        ),
        Ended::Leftovers(count) => (
            format!("Ended {count} processes that an earlier run had left behind."),
            "leftovers",
        ),
        Ended::Nothing => ("Nothing was running.".to_owned(), "nothing"),
    };
    Ok(Output {
        json: json!({ "ended": what }),
        text: format!("{sentence}\n"),
        note: None,
        failed: None,
    })
}

/// Becomes `tail`; returns only where that is not possible.
fn logs(folder: &Path, node: &str, follow: bool, lines: u32) -> Error {
    let path = folder.join("logs").join(format!("{node}.log"));
    if node.contains('/') || !path.exists() {
        let known = std::fs::read_dir(folder.join("logs"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()));
        let mut known: Vec<_> = known.collect();
        known.sort();
        return Error::UnknownNode {
            name: node.to_owned(),
            known: known.join(", "),
        };
    }
    let mut tail = Process::new("tail");
    tail.args(["-n", &lines.to_string()]);
    if follow {
        tail.arg("-F");
    }
    Error::Io {
        what: "run tail".into(),
        source: tail.arg(path).exec(),
    }
}

impl Up {
    fn options(&self, folder: PathBuf) -> Options {
        Options {
            data: Data::Kept(folder),
            shards: self.shards,
            replicas: self.replicas,
            routers: self.routers,
            workers: self.workers,
            redis: self.redis,
            ports: self.port_base.map(Ports::From),
            fresh: self.fresh,
            fsync: !self.no_fsync,
            sync: self.sync,
            network: self.network,
            tls: self.tls,
            nginx: self.nginx,
            prometheus: self.prometheus,
            content: Content::Demo {
                extra: self.tenants,
                rows: self.rows,
            },
            report: |step| say(&format!("· {step}")),
            caches: true,
            cache_tables: Default::default(),
            cache_bytes_max: None,
            hold_ms_max: None,
        }
    }

    /// The same options for the supervisor's own command line.
    fn arguments(&self) -> Vec<String> {
        let numbers = [
            ("--shards", self.shards.map(u32::from)),
            ("--replicas", self.replicas.map(u32::from)),
            ("--routers", self.routers.map(u32::from)),
            ("--workers", self.workers.map(u32::from)),
            ("--redis", self.redis.map(u32::from)),
            ("--tenants", Some(self.tenants)),
            ("--rows", self.rows),
            ("--port-base", self.port_base.map(u32::from)),
        ];
        let numbers = numbers.into_iter().filter_map(|(flag, value)| {
            let value = value?;
            Some(format!("{flag}={value}"))
        });
        let switches = [
            ("--fresh", self.fresh),
            ("--no-fsync", self.no_fsync),
            ("--sync", self.sync),
            ("--network", self.network),
            ("--tls", self.tls),
            ("--prometheus", self.prometheus),
        ];
        let switches = switches.into_iter().filter(|(_, on)| *on);
        let nginx = self.nginx.and_then(|balance| balance.to_possible_value());
        let nginx = nginx.map(|balance| format!("--nginx={}", balance.get_name()));
        numbers
            .chain(nginx)
            .chain(switches.map(|(flag, _)| flag.to_owned()))
            .collect()
    }
}

fn redis_masters(text: &str) -> std::result::Result<u16, std::num::ParseIntError> {
    match text {
        "off" => Ok(0),
        number => number.parse(),
    }
}

async fn foreground(up: &Up, folder: PathBuf) -> Result<()> {
    let begun = Instant::now();
    let mut live = Live::default();
    supervisor::run(
        up.options(folder),
        |cluster| say(&summary(cluster, begun.elapsed())),
        |nodes| live.show(nodes),
    )
    .await?;
    say("\nstopped");
    Ok(())
}

/// Starts a supervisor in a session of its own and follows its log until the
/// cluster is ready or it gives up.
async fn detach(up: &Up, folder: &Path) -> Result<()> {
    if let Some(pid) = supervisor::process_id(folder) {
        return Err(Error::AlreadyUp {
            path: folder.to_owned(),
            pid: pid.to_string(),
        });
    }
    let mut log = Log::open(&folder.join("logs/supervisor.log"))?;
    let mut child = supervise(up, folder, &log)?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .map_err(|source| Error::Io {
        what: "catch signals".into(),
        source,
    })?;
    loop {
        log.relay();
        if let Ok(Some(status)) = child.try_wait() {
            log.relay();
            return Err(Error::Supervisor(format!(
                "the cluster did not start ({status})"
            )));
        }
        if let Ok(Status { ready: true, .. }) = supervisor::ask(folder, &Order::Status).await {
            // The summary is written just after the cluster is ready.
            tokio::time::sleep(Duration::from_millis(50)).await;
            log.relay();
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            _ = interrupt.recv() => {
                supervisor::down(folder).await?;
                let _ = child.wait();
                return Err(Error::Supervisor("interrupted; the cluster is stopped".into()));
            }
        }
    }
}

fn supervise(up: &Up, folder: &Path, log: &Log) -> Result<Child> {
    let own = std::env::current_exe().map_err(|source| Error::Io {
        what: "find this program".into(),
        source,
    })?;
    let output = log.writer()?;
    let errors = log.writer()?;
    // Not a group of its own, or setsid would have to fork and its process
    // would not be the supervisor's.
    Process::new("setsid")
        .arg(own)
        .args(["local", "up"])
        .args(up.arguments())
        .arg("--data-dir")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|source| Error::Io {
            what: "start the supervisor".into(),
            source,
        })
}

/// The supervisor's log, shown from where it was.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn open(path: &Path) -> Result<Self> {
        let open = || {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            let options = File::options()
                .create(true)
                .append(true)
                .read(true)
                .open(path);
            let mut file = options?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(|source| Error::Io {
            what: format!("open {}", path.display()),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    fn writer(&self) -> Result<File> {
        File::options()
            .append(true)
            .open(&self.path)
            .map_err(|source| Error::Io {
                what: format!("open {}", self.path.display()),
                source,
            })
    }

    fn relay(&mut self) {
        let mut bytes = Vec::new();
        let _ = self.file.read_to_end(&mut bytes);
        let _ = std::io::stdout().write_all(&bytes);
        let _ = std::io::stdout().flush();
    }
}

/// What a newcomer needs to know.
fn summary(cluster: &Cluster, took: Duration) -> String {
    let env: std::collections::BTreeMap<_, _> = cluster.env().into_iter().collect();
    let value = |name: &str| env.get(name).map(String::as_str).unwrap_or_default();
    let nodes = cluster.nodes().len();
    let file = cluster.path().join("local.env");
    let here = std::env::current_dir().unwrap_or_default();
    let file = file.strip_prefix(&here).unwrap_or(&file).display();
    format!(
        "\nRingfence is up: {nodes} nodes in {:.1} s\n\n  \
         data API    {}\n  \
         admin API   {}\n  \
         addresses, keys and tokens: source {file}\n",
        took.as_secs_f32(),
        value("RINGFENCE_ROUTER_URLS").replace(',', "  "),
        value("RINGFENCE_ADMIN_URL"),
    )
}

/// A closed terminal must not end the cluster with a panic.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The live part of the summary: on a terminal one line that is kept true,
/// else a line for each change.
#[derive(Default)]
struct Live {
    before: Vec<NodeStatus>,
}

impl Live {
    fn show(&mut self, nodes: &[NodeStatus]) {
        if std::io::stdout().is_terminal() {
            let up = nodes.iter().filter(|n| n.state == NodeState::Up).count();
            let others: Vec<_> = nodes
                .iter()
                .filter(|node| node.state != NodeState::Up)
                .map(|node| format!("{} is {}", node.name, node.state.as_str()))
                .collect();
            let others = match others.is_empty() {
                true => "Ctrl-C stops it".into(),
                false => others.join(", "),
            };
            let mut out = std::io::stdout();
            let _ = write!(out, "\r\x1b[K  {up} of {} nodes up · {others}", nodes.len());
            let _ = out.flush();
        } else {
            for (before, now) in self.before.iter().zip(nodes) {
                if before.state != now.state {
                    say(&format!("{} is {}", now.name, now.state.as_str()));
                }
            }
        }
        self.before = nodes.to_vec();
    }
}
