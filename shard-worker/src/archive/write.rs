//! Writes an archive. Compression and the disk are a thread's work.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{ArchiveError, hex};

/// Parts that wait for the disk.
const QUEUE: usize = 2;
/// zstd's: quick, and a third of the size of CSV.
const LEVEL: i32 = 3;

/// An archive that is being written. One that is dropped unfinished is removed.
pub struct Writer {
    entries: mpsc::Sender<Message>,
    thread: JoinHandle<Result<Written, ArchiveError>>,
    unfinished: Unfinished,
}

/// A finished archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Digest of the file.
    pub sha256: String,
}

enum Message {
    Entry { path: String, bytes: Vec<u8> },
    End,
}

/// Removes the file unless it was finished.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Writer {
    /// Starts a file, which must not be there.
    pub fn create(path: &Path) -> Result<Self, ArchiveError> {
        let file = File::options().write(true).create_new(true).open(path);
        let file = file.map_err(ArchiveError::io("making the archive's file"))?;
        let (entries, queue) = mpsc::channel(QUEUE);
        Ok(Self {
            entries,
            thread: tokio::task::spawn_blocking(move || write(file, queue)),
            unfinished: Unfinished(Some(path.to_owned())),
        })
    }

    /// Adds a file to it; waits while the disk is slower.
    pub async fn add(&mut self, path: String, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        match self.entries.send(Message::Entry { path, bytes }).await {
            Ok(()) => Ok(()),
            // The thread has ended: it says why.
            Err(_) => Err(self.failure().await),
        }
    }

    /// Ends it; it is on the disk when this returns.
    pub async fn finish(mut self) -> Result<Written, ArchiveError> {
        if self.entries.send(Message::End).await.is_err() {
            return Err(self.failure().await);
        }
        let written = (&mut self.thread).await.map_err(|_| ended())??;
        self.unfinished.0 = None;
        Ok(written)
    }

    async fn failure(&mut self) -> ArchiveError {
        match (&mut self.thread).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) | Err(_) => ended(),
        }
    }
}

fn ended() -> ArchiveError {
    ArchiveError::Damaged("its writer ended early".into())
}

fn write(file: File, mut queue: mpsc::Receiver<Message>) -> Result<Written, ArchiveError> {
    let failed = || ArchiveError::io("writing the archive");
    let sums = Summed {
        file: BufWriter::with_capacity(1 << 20, file),
        digest: Context::new(&SHA256),
        bytes: 0,
    };
    let zstd = zstd::Encoder::new(sums, LEVEL).map_err(failed())?;
    let mut tar = tar::Builder::new(zstd);
    loop {
        match queue.blocking_recv() {
            Some(Message::Entry { path, bytes }) => {
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o600);
                header.set_cksum();
                tar.append_data(&mut header, &path, bytes.as_slice())
                    .map_err(failed())?;
            }
            Some(Message::End) => break,
            // Given up: the file is removed.
            None => return Err(ended()),
        }
    }
    let zstd = tar.into_inner().map_err(failed())?;
    let mut sums = zstd.finish().map_err(failed())?;
    sums.file.flush().map_err(failed())?;
    sums.file.get_ref().sync_all().map_err(failed())?;
    Ok(Written {
        bytes: sums.bytes,
        sha256: hex(&sums.digest.finish()),
    })
}

/// Sums up what goes to the file.
struct Summed {
    file: BufWriter<File>,
    digest: Context,
    bytes: u64,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
