//! Everything that can stop the load tester itself. A slow or failing target
//! is not an error: it is what a run reports.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::scenario::Problem;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The scenario cannot be understood; the problem names line and column.
    #[error("{0}")]
    Scenario(Box<Problem>),
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A report could not be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither `--url` nor a usable environment file says where to send traffic.
    #[error("{0}")]
    Environment(String),
    /// A target address is not a plain `http://` URL.
    #[error("{url:?} is not a usable target: {reason}")]
    Target {
        /// The address as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The admin API refused or could not be reached.
    #[error("admin API, {request}: {reason}")]
    Admin {
        /// Method and path.
        request: String,
        /// Status and message, or the transport's error.
        reason: String,
    },
    /// An access log has no line that can be replayed.
    #[error("{path}: {reason}", path = path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// A file given to `compare` is not a report of this tool.
    #[error("{path} is not a report of this tool: {source}", path = path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// A local port could not be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The port.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused a thread, a timer or a signal handler.
    #[error("the system refused {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the tester ended by a panic: a defect of the tester.
    #[error("a load thread ended unexpectedly; its part of the run is missing")]
    Thread,
}

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The exit code of a command that ended with this error: 104 for a bad
    /// scenario, 1 for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Scenario(_) => 104,
            Error::Read { .. }
            | Error::Write { .. }
            | Error::Environment(_)
            | Error::Target { .. }
            | Error::Admin { .. }
            | Error::Log { .. }
            | Error::Report { .. }
            | Error::Listen { .. }
            | Error::System { .. }
            | Error::Thread => 1,
        }
    }
}
