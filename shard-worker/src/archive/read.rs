//! Reads an archive, file by file, in a thread. Nothing in it is trusted: its
//! sizes are bounded before memory is given to them.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use tokio::sync::mpsc;

use super::{ArchiveError, FORMAT, Header, PART_BYTES_MAX};

/// Files that wait to be used.
const QUEUE: usize = 2;
/// A larger window than any archive of ours has is not decompressed.
const WINDOW_LOG_MAX: u32 = 27;

/// A file of the archive.
#[derive(Debug)]
pub struct Entry {
    /// Its path.
    pub path: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// An archive that is being read.
pub struct Reader {
    entries: mpsc::Receiver<Result<Entry, ArchiveError>>,
}

impl Reader {
    /// Opens a file and reads its header.
    pub async fn open(path: &Path) -> Result<(Header, Self), ArchiveError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ArchiveError::NotHere(
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            ),
            _ => ArchiveError::Io {
                what: "opening the archive",
                source: error,
            },
        })?;
        let (send, entries) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = read(file, &send) {
                let _ = send.blocking_send(Err(error));
            }
        });
        let mut reader = Self { entries };
        let first = reader
            .next()
            .await?
            .ok_or_else(|| ArchiveError::Unknown("it is empty".into()))?;
        if first.path != "header.json" {
            return Err(ArchiveError::Unknown(format!(
                "it begins with {} instead of header.json",
                first.path.chars().take(80).collect::<String>()
            )));
        }
        let header: Header = serde_json::from_slice(&first.bytes)
            .map_err(|error| ArchiveError::Unknown(format!("header.json: {error}")))?;
        if header.format != FORMAT {
            return Err(ArchiveError::Unknown(format!(
                "its format is {}, this version reads {FORMAT}",
                header.format
            )));
        }
        Ok((header, reader))
    }

    /// The next file; none at the end.
    pub async fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.entries.recv().await.transpose()
    }
}

fn read(file: File, send: &mpsc::Sender<Result<Entry, ArchiveError>>) -> Result<(), ArchiveError> {
    let damaged = |error: std::io::Error| ArchiveError::Damaged(error.to_string());
    let mut zstd = zstd::Decoder::with_buffer(BufReader::with_capacity(1 << 20, file))
        .map_err(ArchiveError::io("reading the archive"))?;
    zstd.window_log_max(WINDOW_LOG_MAX)
        .map_err(ArchiveError::io("reading the archive"))?;
    let mut tar = tar::Archive::new(zstd);
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        if size > PART_BYTES_MAX {
            return Err(ArchiveError::Damaged(format!("{path} has {size} bytes")));
        }
        // Grown as it is read: a header alone gets no memory.
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        if bytes.len() as u64 != size {
            return Err(ArchiveError::Damaged(format!("{path} is cut off")));
        }
        // Who reads has gone: so does this.
        if send.blocking_send(Ok(Entry { path, bytes })).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
