//! Child processes that die with their parent, and what `/proc` says of others.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a child is looked at while something waits for it.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// The user that a child runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The caller's own.
    Own,
    /// Another, which only root can become: Postgres refuses to run as root.
    User { name: String, uid: u32, gid: u32 },
}

/// A command whose process the kernel kills when the thread that spawned it
/// ends, and which the terminal's Ctrl-C does not reach.
///
/// `setpriv` sets the death signal after it has changed the user, which would
/// clear it. SIGKILL also ends a process that was frozen by SIGSTOP.
pub(crate) fn command(identity: &Identity, program: &Path, dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Identity::User { name, .. } = identity {
        command.args(["--reuid", name, "--regid", name, "--init-groups"]);
    }
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .current_dir(dir)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", dir)
        .stdin(Stdio::null())
        .process_group(0);
    // The caller's PGHOST, PGOPTIONS and so on are meant for its own psql.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
}

/// Where a program is: in the folders of PATH, then in `beside`.
pub(crate) fn on_path(program: &str, beside: Option<&Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).chain(beside.map(Path::to_owned));
    let dir = dirs.find(|dir| dir.join(program).exists())?;
    Some(dir.join(program))
}

/// The thread that spawns children.
///
/// A death signal follows the end of the *thread* that spawned, and threads of
/// async runtimes and of tests end early; this one lives as long as its owner.
#[derive(Debug)]
pub(crate) struct Nursery {
    orders: mpsc::Sender<Order>,
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

impl Nursery {
    pub(crate) fn new() -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("nursery".into())
            .spawn(move || {
                for (mut command, answer) in queue {
                    // Who ordered may be gone; then the child ends here.
                    if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                        let _ = child.kill().and_then(|()| child.wait());
                    }
                }
            })?;
        Ok(Self { orders })
    }

    pub(crate) fn spawn(&self, command: Command) -> io::Result<Child> {
        let ended = || io::Error::other("the thread that starts processes has ended");
        let (answer, result) = mpsc::sync_channel(1);
        self.orders.send((command, answer)).map_err(|_| ended())?;
        result.recv().map_err(|_| ended())?
    }

    /// Runs a command to its end; kills it at the deadline.
    pub(crate) async fn run(&self, command: Command, within: Duration) -> io::Result<ExitStatus> {
        let mut child = self.spawn(command)?;
        match wait(&mut child, within).await? {
            Some(status) => Ok(status),
            None => {
                kill_tree(child.id());
                child.wait()?;
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("not done after {} s", within.as_secs()),
                ))
            }
        }
    }
}

/// Waits for a child's end; `None` at the deadline.
pub(crate) async fn wait(child: &mut Child, within: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Sends a signal to a process and all below it, the parent first so that it
/// makes no more of them. Postgres' backends are process groups of their own,
/// so that a signal to the group would miss them.
fn signal_tree(pid: u32, sent: Signal) {
    signal(pid, sent);
    for child in descendants(pid) {
        signal(child, sent);
    }
}

/// Kills a process and all below it, as a power loss would.
pub(crate) fn kill_tree(pid: u32) {
    // Listed before the kill: orphans can't be told from strangers.
    signal(pid, Signal::STOP);
    let below = descendants(pid);
    signal(pid, Signal::KILL);
    for child in below {
        signal(child, Signal::KILL);
    }
}

/// Freezes a process and all below it.
///
/// Frozen backends can't notice that their server was killed, so the death
/// signal alone would leave them behind. The shell that is returned waits for
/// the end of this process, which closes its standard input, and kills them.
pub(crate) fn freeze(pid: u32) -> io::Result<Child> {
    signal(pid, Signal::STOP);
    let frozen = descendants(pid);
    let warden = Command::new("sh")
        .args(["-c", "read -r _; kill -KILL \"$@\"", "sh"])
        .arg(pid.to_string())
        .args(frozen.iter().map(u32::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    if warden.is_err() {
        signal(pid, Signal::CONT);
        return warden;
    }
    for child in frozen {
        signal(child, Signal::STOP);
    }
    warden
}

/// Thaws a process and all below it.
pub(crate) fn thaw(pid: u32, mut warden: Child) {
    dismiss(&mut warden);
    signal_tree(pid, Signal::CONT);
}

/// Ends the shell that [`freeze`] started, before it sees its input closed.
pub(crate) fn dismiss(warden: &mut Child) {
    let _ = warden.kill().and_then(|()| warden.wait());
}

fn descendants(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in processes() {
        children
            .entry(process.parent)
            .or_default()
            .push(process.pid);
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            found.push(*child);
            next.push(*child);
        }
    }
    found
}

/// Processes that this one started itself.
pub(crate) fn children(of: u32) -> Vec<u32> {
    let children = processes().into_iter().filter(|p| p.parent == of);
    children.map(|p| p.pid).collect()
}

struct Process {
    pid: u32,
    parent: u32,
    name: String,
}

fn processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name is in parentheses and may hold any character.
            let (head, tail) = stat.rsplit_once(')')?;
            let mut fields = tail.split_ascii_whitespace();
            let state = fields.next()?;
            let parent = fields.next()?.parse().ok()?;
            let name = head.split_once('(')?.1.to_owned();
            (state != "Z").then_some(Process { pid, parent, name })
        })
        .collect()
}

/// Processes of earlier runs: servers of ours whose working folder is a
/// node's. Nobody else's shell or editor is meant, so names count too.
pub(crate) fn leftovers(nodes: &Path) -> Vec<(u32, String)> {
    // Working folders are reported without symbolic links.
    let nodes = nodes.canonicalize().unwrap_or_else(|_| nodes.to_owned());
    processes()
        .into_iter()
        .filter(|p| {
            let ours = ["postgres", "ringfence-", "redis-server"];
            ours.iter().any(|name| p.name.starts_with(name))
        })
        .filter(|p| {
            std::fs::read_link(format!("/proc/{}/cwd", p.pid))
                .is_ok_and(|dir| without_deleted(&dir).starts_with(&nodes))
        })
        .map(|p| (p.pid, p.name))
        .collect()
}

fn without_deleted(dir: &Path) -> PathBuf {
    let text = dir.to_string_lossy();
    PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text))
}

/// Kills what earlier runs left behind; returns how many there were.
pub(crate) fn end_leftovers(nodes: &Path) -> usize {
    let found = leftovers(nodes);
    for (pid, _) in &found {
        signal(*pid, Signal::KILL);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while !found.is_empty() && !leftovers(nodes).is_empty() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
    found.len()
}
