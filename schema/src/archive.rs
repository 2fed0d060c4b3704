//! A tenant as one file: how its rows are taken from a shard and given to one.
//!
//! The file is a tar archive, compressed by zstd or not, that any `tar` opens:
//!
//! ```text
//! manifest.json                         what follows: tables, columns, sequences
//! tables/01-public.companies/000001.ndjson   rows, a line each
//! tables/01-public.companies/000002.ndjson
//! tables/02-public.contacts/000001.ndjson
//! digests.json                          rows, bytes and SHA-256 of every part
//! ```
//!
//! It is written as it is read: nobody holds more of it than one part, and its
//! end says that it is whole. A table is cut into parts because tar wants a
//! file's length before the file, and because a part is what an import commits.
//! All rows are of one snapshot, in the order of their keys: equal data give
//! equal digests.

pub mod dump;
pub mod load;
pub mod manifest;
pub mod pack;
pub mod read;

use tokio_postgres::error::SqlState;

pub use manifest::{Digests, Form, Manifest, PartDigest};

/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Name of the first file.
pub const MANIFEST: &str = "manifest.json";
/// Name of the last file.
pub const DIGESTS: &str = "digests.json";
/// A part ends with the row that reaches so many bytes.
pub const PART_BYTES: usize = 4 << 20;
/// Largest row, in bytes of its JSON.
pub const ROW_BYTES_MAX: usize = 64 << 20;
/// Largest of the two JSON files.
const JSON_BYTES_MAX: usize = 64 << 20;

/// Why a tenant can't be written into an archive, or read from it.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It can't be read or written.
    #[error("the archive can't be read or written")]
    Io(#[from] std::io::Error),
    /// It ends too early.
    #[error("the archive is cut off: {0}")]
    Cut(String),
    /// It is not what was written once.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// It is not an archive of a tenant, or of another version of this program.
    #[error("this is no archive of a tenant that can be read: {0}")]
    Format(String),
    /// A server refused a statement.
    #[error("the server refused a statement")]
    Postgres(#[from] tokio_postgres::Error),
    /// The server has other tables than the archive.
    #[error("the schema differs: {0}")]
    Schema(String),
    /// The tenant is not served by this server.
    #[error("{0}")]
    NotHere(String),
    /// Rows that can't be taken as they are.
    #[error("{0}")]
    Refused(String),
    /// The other side took nothing, or gave nothing, for too long.
    #[error("nothing was {0} in time")]
    Slow(&'static str),
    /// The other side is gone.
    #[error("the other side has gone")]
    Gone,
}

impl ArchiveError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "RF430",
            Self::Cut(_) => "RF431",
            Self::Damaged(_) => "RF432",
            Self::Format(_) => "RF433",
            Self::Postgres(_) => "RF434",
            Self::Schema(_) => "RF435",
            Self::NotHere(_) => "RF436",
            Self::Refused(_) => "RF437",
            Self::Slow(_) => "RF438",
            Self::Gone => "RF439",
        }
    }

    /// Whether the same again can't end otherwise.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Cut(_)
            | Self::Damaged(_)
            | Self::Format(_)
            | Self::Schema(_)
            | Self::Refused(_) => true,
            Self::Io(_) | Self::NotHere(_) | Self::Slow(_) | Self::Gone => false,
            Self::Postgres(error) => {
                let code = error.code().map(SqlState::code).unwrap_or_default();
                // Data that can't be, and what the schema refuses.
                ["22", "23", "42"]
                    .iter()
                    .any(|class| code.starts_with(class))
            }
        }
    }
}

/// Makes everything that is read or written as text the same everywhere.
const SETTINGS: &str = "
    set local search_path = pg_catalog;
    set local row_security = off;
    set local timezone = 'UTC';
    set local datestyle = 'ISO, YMD';
    set local intervalstyle = 'postgres';
    set local extra_float_digits = 1;
    set local bytea_output = 'hex';
    set local lc_monetary = 'C';
    set local lock_timeout = '5s';
    set local idle_in_transaction_session_timeout = 0;";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256, as text.
pub fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}
