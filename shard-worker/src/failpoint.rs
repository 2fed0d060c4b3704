//! Points at which a test lets a worker die, as a power loss would, or a step fail,
//! as where a server refuses its transaction: each is named at the one place where
//! it is hit.

use std::fs;
use std::path::PathBuf;

use crate::job::JobError;

/// Before the name of a point at which a step fails.
const FAILS: &str = "fail ";

/// Where points are read from, a line each: a name for a worker that dies there,
/// `fail NAME` for a step that fails there. Without a file, as everywhere but in
/// tests, none is.
#[derive(Clone, Debug, Default)]
pub struct Failpoints(pub Option<PathBuf>);

impl Failpoints {
    /// Dies here if this point's name is in the file, from which it is removed
    /// first: the next worker gets past it.
    pub fn hit(&self, name: &str) {
        if self.remove(name) {
            tracing::warn!(name, "dying at a failpoint");
            std::process::abort();
        }
    }

    /// The same, or fails here: the next try gets past it.
    ///
    /// # Errors
    /// One that is tried again.
    pub fn pass(&self, name: &str) -> Result<(), JobError> {
        self.hit(name);
        match self.remove(&format!("{FAILS}{name}")) {
            false => Ok(()),
            true => Err(JobError::Wait(format!("failed at failpoint {name}"))),
        }
    }

    /// It was in the file.
    fn remove(&self, line: &str) -> bool {
        let Some(path) = &self.0 else { return false };
        let Ok(wanted) = fs::read_to_string(path) else {
            return false;
        };
        let others: Vec<&str> = wanted.lines().filter(|other| *other != line).collect();
        others.len() < wanted.lines().count() && fs::write(path, others.join("\n")).is_ok()
    }
}
