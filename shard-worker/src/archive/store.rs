//! The folder where a worker keeps archives: those that it exported until they
//! are fetched, those that were uploaded until they are imported. Several
//! workers may share one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::ArchiveError;

/// Archives are kept so long after their last change.
const KEPT: Duration = Duration::from_secs(24 * 3600);
const EXTENSION: &str = ".tar.zst";

/// An archive's name: one component of a path, whatever was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// A new one that says what it is for.
    pub fn new(slug: &str) -> Self {
        Self(format!("{slug}-{}{EXTENSION}", Uuid::new_v4().simple()))
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = text.strip_suffix(EXTENSION).is_some_and(|stem| {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !stem.is_empty() && stem.len() <= 120 && stem.chars().all(allowed)
        });
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err("no name of an archive".into()),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Archives {
    folder: PathBuf,
}

impl Archives {
    /// Made when it is first written to.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Where the archive is, or would be.
    pub fn path(&self, name: &Name) -> PathBuf {
        self.folder.join(&name.0)
    }

    /// A place to write an archive to before it gets its name.
    pub fn place(&self) -> Result<PathBuf, ArchiveError> {
        std::fs::create_dir_all(&self.folder)
            .map_err(ArchiveError::io("making the folder of archives"))?;
        Ok(self.folder.join(format!("{}.part", Uuid::new_v4().simple())))
    }

    /// Gives a written archive its name.
    pub fn keep(&self, place: &Path, name: &Name) -> Result<(), ArchiveError> {
        std::fs::rename(place, self.path(name)).map_err(ArchiveError::io("naming the archive"))
    }

    /// Bytes that are there.
    pub async fn len(&self, name: &Name) -> Result<u64, ArchiveError> {
        match tokio::fs::metadata(self.path(name)).await {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(ArchiveError::NotHere(name.to_string()))
            }
            Err(source) => Err(ArchiveError::Io {
                what: "looking for the archive",
                source,
            }),
        }
    }

    /// Starts an upload.
    pub async fn start(&self, name: &Name) -> Result<(), ArchiveError> {
        let failed = || ArchiveError::io("making the archive's file");
        tokio::fs::create_dir_all(&self.folder)
            .await
            .map_err(failed())?;
        let file = tokio::fs::File::create_new(self.path(name)).await;
        file.map(drop).map_err(failed())
    }

    /// Appends to an upload what follows `offset`; returns how much is there.
    /// Sent twice, it is appended once.
    pub async fn append(
        &self,
        name: &Name,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u64, ArchiveError> {
        let there = self.len(name).await?;
        if offset != there {
            return Ok(there);
        }
        let failed = || ArchiveError::io("writing the archive");
        let file = tokio::fs::File::options()
            .append(true)
            .open(self.path(name))
            .await;
        let mut file = file.map_err(failed())?;
        file.write_all(bytes).await.map_err(failed())?;
        file.sync_data().await.map_err(failed())?;
        Ok(offset + bytes.len() as u64)
    }

    /// Removes an archive, if it is there.
    pub async fn remove(&self, name: &Name) -> Result<(), ArchiveError> {
        match tokio::fs::remove_file(self.path(name)).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(ArchiveError::Io {
                what: "removing the archive",
                source,
            }),
        }
    }

    /// Removes what is old: archives that nobody fetched, and what workers that
    /// died had begun.
    pub fn sweep(&self) -> std::io::Result<usize> {
        let files = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            files => files?,
        };
        let mut removed = 0;
        for file in files {
            let file = file?;
            let changed = file.metadata()?.modified()?;
            let age = SystemTime::now().duration_since(changed);
            let name = file.file_name();
            let name = name.to_string_lossy();
            let ours = name.ends_with(EXTENSION) || name.ends_with(".part");
            if ours && age.is_ok_and(|age| age > KEPT) {
                std::fs::remove_file(file.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_component_of_a_path() {
        let name = Name::new("acme");
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in ["", ".tar.zst", "../a.tar.zst", "a/b.tar.zst", "a", "A.tar.zst", "a.tar.zst\0"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
