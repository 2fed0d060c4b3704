//! A tenant's rows in one file: a tar archive, compressed with zstd, so that
//! common tools read it.
//!
//! ```text
//! header.json                       what is in it: tenant, tables, columns
//! data/public.companies/000001.csv  rows, with a header line, some MiB a part
//! …
//! manifest.json                     last: digest and rows of every part and table
//! ```
//!
//! Rows are Postgres' own CSV, in order of the primary key, so that two exports
//! of the same rows have the same digests. Written and read as a stream, a part
//! at a time.

mod format;
mod read;
mod store;
mod write;

pub use format::{Column, FORMAT, Header, Manifest, Part, Table, TableSum, TenantName};
pub use read::{Entry, Reader};
pub use store::{Archives, Name};
pub use write::{Writer, Written};

/// Rows are cut into parts of about so many bytes.
pub const PART_BYTES: usize = 8 << 20;
/// Longest part that is read: one row may be long.
pub const PART_BYTES_MAX: u64 = 1 << 30;

/// Why an archive can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The disk, or what stands for it.
    #[error("{what} failed")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no such file on this worker.
    #[error("archive {0} is not on this worker")]
    NotHere(String),
    /// It is not what was exported.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// It was written by another program, or a newer version of this one.
    #[error("this is no archive that this version can read: {0}")]
    Unknown(String),
}

impl ArchiveError {
    fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// A SHA-256 digest in hexadecimal.
pub fn hex(digest: &aws_lc_rs::digest::Digest) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
