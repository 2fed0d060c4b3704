//! Points at which a test lets a worker die, as a power loss would: each is
//! named at the one place where it is hit.

use std::fs;
use std::path::PathBuf;

/// Where the names of points to die at are read from, a line each. Without a
/// file, as everywhere but in tests, none is.
#[derive(Clone, Debug, Default)]
pub struct Failpoints(pub Option<PathBuf>);

impl Failpoints {
    /// Dies here if this point's name is in the file, from which it is removed
    /// first: the next worker gets past it.
    pub fn hit(&self, name: &str) {
        let Some(path) = &self.0 else { return };
        let Ok(wanted) = fs::read_to_string(path) else {
            return;
        };
        let others: Vec<&str> = wanted.lines().filter(|line| *line != name).collect();
        if others.len() < wanted.lines().count() && fs::write(path, others.join("\n")).is_ok() {
            tracing::warn!(name, "dying at a failpoint");
            std::process::abort();
        }
    }
}
