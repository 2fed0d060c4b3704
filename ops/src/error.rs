//! What can go wrong, for all of this crate.

use std::path::PathBuf;

use reqwest::StatusCode;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command, or the local cluster, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, folder or process could not be used.
    #[error("can't {what}")]
    Io {
        /// What was tried, as in "can't …".
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A program that the cluster needs is not installed.
    #[error("{what} is missing: {advice}")]
    Missing {
        /// The program.
        what: String,
        /// How to get it.
        advice: String,
    },
    /// Someone else listens on a port that a node needs.
    #[error(
        "port {port} of {node} is in use by another program; stop that program, or choose other ports with --port-base"
    )]
    PortTaken {
        /// The node that was to use it.
        node: String,
        /// The port, on 127.0.0.1.
        port: u16,
    },
    /// Too little room for the nodes' data.
    #[error(
        "the disk of {path} has {free_mib} MiB left; the cluster needs {needed_mib} MiB to start"
    )]
    DiskFull {
        /// The data folder.
        path: PathBuf,
        /// What is free.
        free_mib: u64,
        /// What is needed.
        needed_mib: u64,
    },
    /// Another supervisor holds the data folder.
    #[error(
        "a cluster is already running from {path} (process {pid}); `ringfence local status` shows it, `ringfence local down` stops it"
    )]
    AlreadyUp {
        /// The data folder.
        path: PathBuf,
        /// The supervisor's process id.
        pid: String,
    },
    /// No supervisor holds the data folder.
    #[error("no cluster is running from {path}; start one with ./ops/up")]
    NotUp {
        /// The data folder.
        path: PathBuf,
    },
    /// The data folder holds a cluster of another shape.
    #[error("the cluster in {path} has {has}; {wanted} were asked for: use --fresh to start over")]
    Shape {
        /// The data folder.
        path: PathBuf,
        /// What exists, such as "3 shards".
        has: String,
        /// What was asked for, such as "2 shards".
        wanted: String,
    },
    /// A service says that it is not ready, or nothing.
    #[error("{url} is not ready: {reason}")]
    NotReady {
        /// Where it was asked.
        url: String,
        /// What it said.
        reason: String,
    },
    /// A node did not do what it was started for.
    #[error("{node} {reason}; the end of its log {log}:\n{end}")]
    Node {
        /// The node's name.
        node: String,
        /// What happened.
        reason: String,
        /// Its log file.
        log: PathBuf,
        /// The log's last lines.
        end: String,
    },
    /// There is no node of that name.
    #[error("there is no node {name}; there are {known}")]
    UnknownNode {
        /// The name that was asked for.
        name: String,
        /// All names, comma-separated.
        known: String,
    },
    /// A node is not in the state that an order needs.
    #[error("{node} is {state}")]
    NodeState {
        /// The node's name.
        node: String,
        /// Its state.
        state: &'static str,
    },
    /// A Postgres node refused a connection or a statement.
    #[error("{node}: {what} failed")]
    Postgres {
        /// The node's name.
        node: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: tokio_postgres::Error,
    },
    /// A running supervisor refused an order, or gave no sensible answer.
    #[error("{0}")]
    Supervisor(String),
    /// The admin API can't be reached.
    #[error("the admin API at {url} can't be reached")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The admin API refused.
    #[error("{message} ({code}){}", extra(.details.as_deref(), .hint.as_deref()))]
    Api {
        /// HTTP status.
        status: StatusCode,
        /// The API's stable code.
        code: String,
        /// In words.
        message: String,
        /// What exactly.
        details: Option<String>,
        /// What to do.
        hint: Option<String>,
    },
    /// A job that was waited for did not do what it was made for.
    #[error("job {id} is {status}: {why}{}", extra(None, .advice.as_deref()))]
    Job {
        /// Its id.
        id: String,
        /// Where it stands.
        status: String,
        /// The stable code of what stopped it; empty where nothing did.
        code: String,
        /// Why.
        why: String,
        /// What to do.
        advice: Option<String>,
    },
    /// Shards can't be reached; which and why has been printed.
    #[error("not all shards can be reached")]
    ShardsDown,
    /// A check found what it looks for; it has been printed.
    #[error("{0}")]
    Checked(String),
    /// A tenant's archive can't be used, or not be made.
    #[error("{}", .file.display())]
    Archive {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: schema::archive::ArchiveError,
    },
    /// Migration files can't be used.
    #[error(transparent)]
    Files(#[from] schema::migration::MigrationError),
    /// The admin API answered with something else than its contract says.
    #[error("the admin API's answer to {request} has no usable {field}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is missing or of another type.
        field: &'static str,
    },
    /// Someone was asked, and did not say yes.
    #[error("nothing was changed")]
    Declined,
    /// The caller said something that can't be meant.
    #[error("{0}")]
    Usage(String),
}

/// Codes of the admin API that say that the control database is not there.
const CONTROL_DOWN: [&str; 2] = ["RF410", "RF415"];
/// The code of a job that ended because shards were not there.
const SHARDS_DOWN: &str = "RF516";

/// What a shell learns from the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Refused or failed.
    Failed = 1,
    /// The command line itself is wrong.
    Usage = 2,
    /// The named thing does not exist.
    NotFound = 3,
    /// The admin API, its control database, a shard that is needed, or the local
    /// cluster is not there.
    Unreachable = 4,
    /// The token is missing, wrong or not allowed to.
    Denied = 5,
}

impl Error {
    /// The exit code of a program that ends with this error.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Shape { .. } => Exit::Usage,
            Self::UnknownNode { .. } => Exit::NotFound,
            Self::NotUp { .. }
            | Self::NotReady { .. }
            | Self::Unreachable { .. }
            | Self::ShardsDown => Exit::Unreachable,
            Self::Job { code, .. } if code == SHARDS_DOWN => Exit::Unreachable,
            // The worker is there, but not what it needs to do anything.
            Self::Api { code, .. } if CONTROL_DOWN.contains(&code.as_str()) => Exit::Unreachable,
            Self::Api { status, .. } => match *status {
                StatusCode::NOT_FOUND => Exit::NotFound,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Denied,
                _ => Exit::Failed,
            },
            Self::Io { .. }
            | Self::Missing { .. }
            | Self::PortTaken { .. }
            | Self::DiskFull { .. }
            | Self::AlreadyUp { .. }
            | Self::Node { .. }
            | Self::NodeState { .. }
            | Self::Postgres { .. }
            | Self::Supervisor(_)
            | Self::Answer { .. }
            | Self::Job { .. }
            | Self::Checked(_)
            | Self::Archive { .. }
            | Self::Files(_)
            | Self::Declined => Exit::Failed,
        }
    }

    /// The error and its causes in one text.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes in one text.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// For `map_err`: an I/O error with what was tried.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

fn extra(details: Option<&str>, hint: Option<&str>) -> String {
    let details = details.map(|d| format!("\n{d}")).unwrap_or_default();
    let hint = hint.map(|h| format!("\nhint: {h}")).unwrap_or_default();
    details + &hint
}
