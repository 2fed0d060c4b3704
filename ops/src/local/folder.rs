//! The data folder: its lock, its files, and what must be true of it before
//! anything starts.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock, statvfs};
use serde::{Deserialize, Serialize};

use super::layout::Shape;
use super::process::{self, Identity};
use crate::error::{Error, Result, io};

/// Bytes of a log's end that are shown with an error.
const LOG_END: u64 = 2_000;

/// A cluster's folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    _lock: File,
}

/// What is remembered from one run to the next.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) shape: Shape,
    pub(crate) port_base: u16,
}

impl Folder {
    /// Makes the folder where needed, takes its lock, and ends what a killed
    /// earlier run may have left behind.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        make_dir(path)?;
        let path = path
            .canonicalize()
            .map_err(io(format!("find the folder {}", path.display())))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&lock_path)
            .map_err(io(format!("open {}", lock_path.display())))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::AlreadyUp {
                pid: holder(&path).map_or_else(|| "unknown".into(), |pid| pid.to_string()),
                path,
            });
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(io(format!("write {}", lock_path.display())))?;
        let folder = Self { path, _lock: lock };
        for dir in [folder.logs(), folder.path.join("nodes")] {
            // `nodes` may be a link from an earlier run, to a folder that is gone.
            if !dir.is_dir() {
                let _ = fs::remove_file(&dir);
            }
            make_dir(&dir)?;
        }
        process::end_leftovers(&folder.nodes());
        Ok(folder)
    }

    /// Removes all data, secrets and logs of earlier runs.
    pub(crate) fn clear(&self) -> Result<()> {
        let _ = fs::remove_file(self.env());
        let _ = fs::remove_file(self.path.join("cluster.json"));
        for dir in [self.nodes(), self.logs(), self.secrets()] {
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                let removed = match entry.file_type() {
                    Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                    _ if path.ends_with("logs/supervisor.log") => Ok(()),
                    _ => fs::remove_file(&path),
                };
                removed.map_err(io(format!("remove {}", path.display())))?;
            }
        }
        Ok(())
    }

    /// Makes sure that the servers' user can reach the nodes' folder; where it
    /// can't, as below /root, puts that folder under /var/tmp and links it.
    pub(crate) fn make_reachable(&self, identity: &Identity) -> Result<Option<PathBuf>> {
        let Identity::User { name, .. } = identity else {
            return Ok(None);
        };
        let nodes = self.nodes();
        // A link of an earlier run is fine: servers start in its target.
        let target = nodes
            .canonicalize()
            .map_err(io(format!("find the folder {}", nodes.display())))?;
        if reachable(name, &target)? {
            return Ok(None);
        }
        let elsewhere = PathBuf::from(format!(
            "/var/tmp/ringfence{}",
            self.path.display().to_string().replace('/', "-")
        ));
        // The folder is open to all users: one of them may have made it first.
        if let Ok(meta) = fs::symlink_metadata(&elsewhere) {
            let own = rustix::process::geteuid().as_raw();
            if !meta.is_dir() || meta.uid() != own {
                return Err(Error::Io {
                    what: format!("use {}", elsewhere.display()),
                    source: std::io::Error::other("it belongs to another user"),
                });
            }
            // Nothing links there any more: a cluster whose folder is gone.
            process::end_leftovers(&elsewhere);
            fs::remove_dir_all(&elsewhere).map_err(io(format!("empty {}", elsewhere.display())))?;
        }
        make_dir(&elsewhere)?;
        if !reachable(name, &elsewhere)? {
            return Err(Error::Io {
                what: format!(
                    "let user {name} reach {} or {}",
                    nodes.display(),
                    elsewhere.display()
                ),
                source: std::io::ErrorKind::PermissionDenied.into(),
            });
        }
        fs::remove_dir(&nodes)
            .and_then(|()| symlink(&elsewhere, &nodes))
            .map_err(io(format!(
                "replace {} by a link to {}",
                nodes.display(),
                elsewhere.display()
            )))?;
        Ok(Some(elsewhere))
    }

    /// Refuses a disk that would be full before the cluster is up.
    pub(crate) fn check_space(&self, needed_mib: u64) -> Result<()> {
        let nodes = self.nodes();
        let stat = statvfs(&nodes)
            .map_err(|e| io(format!("ask for the free space of {}", nodes.display()))(e.into()))?;
        let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
        if free_mib < needed_mib {
            return Err(Error::DiskFull {
                path: nodes,
                free_mib,
                needed_mib,
            });
        }
        Ok(())
    }

    pub(crate) fn remembered(&self) -> Option<Remembered> {
        let text = fs::read_to_string(self.path.join("cluster.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub(crate) fn remember(&self, what: Remembered) -> Result<()> {
        let path = self.path.join("cluster.json");
        let text = serde_json::json!(what).to_string();
        fs::write(&path, text).map_err(io(format!("write {}", path.display())))
    }

    pub(crate) fn env(&self) -> PathBuf {
        self.path.join("local.env")
    }

    pub(crate) fn secrets(&self) -> PathBuf {
        self.path.join("secrets")
    }

    pub(crate) fn nodes(&self) -> PathBuf {
        self.path.join("nodes")
    }

    pub(crate) fn node(&self, name: &str) -> PathBuf {
        self.nodes().join(name)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        log_file(&self.path, name)
    }

    fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }
}

/// The log file of a node, or of `supervisor`.
pub(crate) fn log_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("logs").join(format!("{name}.log"))
}

/// Opens a log for a process to append to.
pub(crate) fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(io(format!("open {}", path.display())))
}

/// The last lines of a log.
pub(crate) fn log_end(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
        let mut bytes = Vec::new();
        file.take(LOG_END).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.trim().is_empty() => "  (it is empty)".into(),
        Ok(text) => text
            .lines()
            .rev()
            .take(15)
            .collect::<Vec<_>>()
            .iter()
            .rev()
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n"),
        Err(error) => format!("  (can't be read: {error})"),
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

/// The process that holds the folder's lock, if any does.
pub(crate) fn holder(folder: &Path) -> Option<u32> {
    let mut file = File::open(folder.join("lock")).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes a folder that the servers' user can pass, whatever the umask.
fn make_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
        .map_err(io(format!("make the folder {}", dir.display())))
}

fn reachable(user: &str, dir: &Path) -> Result<bool> {
    Command::new("setpriv")
        .args(["--reuid", user, "--regid", user, "--init-groups", "--"])
        .args(["test", "-x"])
        .arg(dir)
        .current_dir("/")
        .stderr(Stdio::null())
        .status()
        .map(|status| status.success())
        .map_err(io("run setpriv"))
}
