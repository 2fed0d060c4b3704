//! Generated secrets, one file each, readable by their owner only.

use std::fs;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::folder::write_private;
use crate::error::{Result, io};

/// Names of the files.
const NAMES: [&str; 11] = [
    "superuser",
    "router",
    "worker",
    "migrator",
    "mover",
    "admin-token",
    "key-secret",
    "jwt-secret",
    "stream-secret",
    "redis",
    "owner",
];

/// Secrets of one cluster.
#[derive(Debug)]
pub(crate) struct Secrets {
    dir: PathBuf,
    values: [String; NAMES.len()],
}

impl Secrets {
    /// Reads them; makes those that are missing.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io(format!("make the folder {}", dir.display())))?;
        let mut values = [const { String::new() }; NAMES.len()];
        for (name, value) in NAMES.iter().zip(&mut values) {
            *value = read_or_make(&dir.join(name))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            values,
        })
    }

    /// Password of `postgres` on every node.
    pub(crate) fn superuser(&self) -> &str {
        &self.values[0]
    }

    /// Password of `ringfence_router`.
    pub(crate) fn router(&self) -> &str {
        &self.values[1]
    }

    /// Bearer token of the admin API.
    pub(crate) fn admin_token(&self) -> &str {
        &self.values[5]
    }

    /// HS256 secret of the default issuer.
    pub(crate) fn jwt(&self) -> &str {
        &self.values[7]
    }

    /// What routers and workers open the stream of changes with.
    pub(crate) fn stream(&self) -> &str {
        &self.values[8]
    }

    /// Password of every Redis node.
    pub(crate) fn redis(&self) -> &str {
        &self.values[9]
    }

    /// Password of `ringfence_owner`, of the control database.
    pub(crate) fn owner(&self) -> &str {
        &self.values[10]
    }

    /// The file of a secret, for configurations.
    pub(crate) fn file(&self, name: &'static str) -> PathBuf {
        debug_assert!(NAMES.contains(&name));
        self.dir.join(name)
    }
}

fn read_or_make(path: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(path)
        && !text.trim().is_empty()
    {
        return Ok(text.trim().to_owned());
    }
    let secret = random_hex().map_err(io("read /dev/urandom"))?;
    write_private(path, &secret).map_err(io(format!("write {}", path.display())))?;
    Ok(secret)
}

/// 256 bits; hexadecimal needs no escaping in DSNs, SQL, TOML or shells.
fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
