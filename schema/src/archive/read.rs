//! Reads an archive from its first byte to its last, and believes nothing of it.

use std::io::{self, BufRead, BufReader, Read};

use super::manifest::{Digests, Manifest, PartDigest};
use super::sha256;
use super::{ArchiveError, DIGESTS, FORMAT, JSON_BYTES_MAX, MANIFEST, PART_BYTES, ROW_BYTES_MAX};

/// What zstd's frames begin with.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Largest entry that is passed over.
const EXTRA_BYTES_MAX: usize = 64 << 10;

/// A piece of an archive, in the order in which they come.
#[derive(Debug)]
pub enum Piece {
    /// Comes first, and its digest.
    Manifest(Box<Manifest>, String),
    /// Rows. What they should be is known at the end only.
    Part {
        /// The table's place in the manifest.
        table: usize,
        /// Name, rows, bytes and digest, as they are.
        is: PartDigest,
        /// A JSON object a line.
        lines: Vec<u8>,
    },
}

/// Reads the archive and gives its pieces to `take`. What it returns was
/// compared with all that came: the archive is whole and as it was written.
///
/// # Errors
/// What is wrong with it, or `take`'s own.
pub fn read(
    from: impl Read,
    mut take: impl FnMut(Piece) -> Result<(), ArchiveError>,
) -> Result<Digests, ArchiveError> {
    let mut from = BufReader::with_capacity(1 << 16, from);
    let is_compressed = from.fill_buf()?.starts_with(&ZSTD);
    match is_compressed {
        true => {
            let decoder = zstd::stream::read::Decoder::with_buffer(from)?;
            of_tar(BufReader::with_capacity(1 << 16, decoder), &mut take)
        }
        false => of_tar(from, &mut take),
    }
}

fn of_tar(
    from: impl Read,
    take: &mut impl FnMut(Piece) -> Result<(), ArchiveError>,
) -> Result<Digests, ArchiveError> {
    let mut archive = tar::Archive::new(from);
    let mut manifest: Option<(Manifest, String)> = None;
    let mut parts: Vec<PartDigest> = Vec::new();
    // The table and the number of the part before.
    let mut place = (0, 0);
    // Raw: what extends a header would be read whole otherwise, however long it
    // says that it is. Our own names fit into a header.
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        let kind = entry.header().entry_type();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // As `tar` adds them when someone packs it anew.
        if kind.is_dir() || kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
            whole(&mut entry, &path, EXTRA_BYTES_MAX)?;
            continue;
        }
        if !kind.is_file() {
            return Err(ArchiveError::Damaged(format!("{path} is no plain file")));
        }
        // As `tar` writes it when someone packs it anew.
        let path = path.strip_prefix("./").unwrap_or(&path).to_owned();
        let max = match path.as_str() {
            MANIFEST | DIGESTS => JSON_BYTES_MAX,
            _ => PART_BYTES + ROW_BYTES_MAX + 1,
        };
        let bytes = whole(&mut entry, &path, max)?;
        let Some((known, digest)) = &manifest else {
            let (known, digest) = begin(&path, &bytes)?;
            take(Piece::Manifest(Box::new(known.clone()), digest.clone()))?;
            manifest = Some((known, digest));
            continue;
        };
        if path == DIGESTS {
            let digests = parse(&bytes)?;
            compare(&digests, digest, &parts)?;
            return Ok(digests);
        }
        place = next_place(known, place, &path)?;
        let is = PartDigest {
            rows: bytes.iter().filter(|byte| **byte == b'\n').count() as u64,
            bytes: bytes.len() as u64,
            sha256: sha256(&bytes),
            path,
        };
        parts.push(is.clone());
        take(Piece::Part {
            table: place.0,
            is,
            lines: bytes,
        })?;
    }
    Err(match manifest {
        None => ArchiveError::Format(format!("it has no {MANIFEST}")),
        Some(_) => ArchiveError::Cut(format!("it ends before {DIGESTS}")),
    })
}

/// A file of the archive, bounded.
fn whole(
    entry: &mut tar::Entry<'_, impl Read>,
    path: &str,
    max: usize,
) -> Result<Vec<u8>, ArchiveError> {
    let size = entry.size();
    if size > max as u64 {
        return Err(ArchiveError::Damaged(format!(
            "{path} has {size} bytes, more than is ever written"
        )));
    }
    let expected = usize::try_from(size).unwrap_or(max);
    let mut bytes = Vec::with_capacity(expected.min(2 * PART_BYTES));
    entry.read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(ArchiveError::Cut(format!("it ends within {path}"))),
    }
}

fn begin(path: &str, bytes: &[u8]) -> Result<(Manifest, String), ArchiveError> {
    if path != MANIFEST {
        return Err(ArchiveError::Format(format!(
            "it begins with {path}, not with {MANIFEST}"
        )));
    }
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = parse(bytes)?;
    if version.format != FORMAT {
        return Err(ArchiveError::Format(format!(
            "it has format {}; this program reads {FORMAT}",
            version.format
        )));
    }
    let manifest: Manifest = parse(bytes)?;
    for column in manifest.tables.iter().flat_map(|table| &table.columns) {
        column.check()?;
    }
    Ok((manifest, sha256(bytes)))
}

/// Parts come table by table, and each table's are numbered from 1.
fn next_place(
    manifest: &Manifest,
    (table, number): (usize, u64),
    path: &str,
) -> Result<(usize, u64), ArchiveError> {
    let same = manifest.tables.get(table).map(|t| t.part(number + 1));
    if same.is_some_and(|next| next == path) {
        return Ok((table, number + 1));
    }
    let from = if number == 0 { table } else { table + 1 };
    let later = manifest.tables.iter().enumerate().skip(from);
    let found = later.map(|(index, t)| (index, t.part(1)));
    match found.into_iter().find(|(_, part)| part == path) {
        Some((index, _)) => Ok((index, 1)),
        None => Err(ArchiveError::Damaged(format!("{path} is out of place"))),
    }
}

fn compare(digests: &Digests, manifest: &str, parts: &[PartDigest]) -> Result<(), ArchiveError> {
    if digests.manifest != manifest {
        return Err(ArchiveError::Damaged(format!("{MANIFEST} was changed")));
    }
    for (index, said) in digests.parts.iter().enumerate() {
        match parts.get(index) {
            Some(is) if is == said => {}
            Some(is) if is.path == said.path => {
                return Err(ArchiveError::Damaged(format!("{} was changed", said.path)));
            }
            Some(_) | None => {
                return Err(ArchiveError::Damaged(format!("{} is missing", said.path)));
            }
        }
    }
    match parts.get(digests.parts.len()) {
        None => Ok(()),
        Some(more) => Err(ArchiveError::Damaged(format!("{} was added", more.path))),
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ArchiveError::Format(format!("its JSON can't be read: {error}")))
}

/// What the readers of tar and zstd say of bytes that are not theirs.
fn unreadable(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Cut(error.to_string()),
        io::ErrorKind::TimedOut => ArchiveError::Slow("sent"),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => ArchiveError::Gone,
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ArchiveError::Io(error),
        _ => ArchiveError::Damaged(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::manifest::{ArchivedTable, ArchivedTenant};
    use super::super::pack::Packer;
    use super::*;

    /// Two tables, the first of two parts.
    fn archive(compress: bool) -> Vec<u8> {
        let table = |folder: &str, name: &str| ArchivedTable {
            folder: folder.into(),
            schema: "public".into(),
            name: name.into(),
            columns: Vec::new(),
        };
        let manifest = Manifest {
            format: FORMAT,
            tenant: ArchivedTenant {
                id: uuid::Uuid::nil(),
                slug: Some("acme".into()),
                name: None,
            },
            taken_at: "2026-01-02T03:04:05Z".into(),
            lsn: "0/0".into(),
            schema: String::new(),
            tables: vec![table("tables/01-a", "a"), table("tables/02-b", "b")],
            sequences: BTreeMap::new(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut packer = Packer::new(compress).unwrap();
        let mut digests = Digests {
            manifest: sha256(&manifest),
            rows: 3,
            bytes: 0,
            parts: Vec::new(),
        };
        let mut bytes = packer.file(MANIFEST, manifest, 0).unwrap();
        for (path, lines) in [
            ("tables/01-a/000001.ndjson", "{\"id\":1}\n"),
            ("tables/01-a/000002.ndjson", "{\"id\":2}\n"),
            ("tables/02-b/000001.ndjson", "{\"id\":3}\n"),
        ] {
            digests.parts.push(PartDigest {
                path: path.into(),
                rows: 1,
                bytes: lines.len() as u64,
                sha256: sha256(lines.as_bytes()),
            });
            bytes.extend(packer.file(path, lines.into(), 0).unwrap());
        }
        let digests = serde_json::to_vec(&digests).unwrap();
        bytes.extend(packer.file(DIGESTS, digests, 0).unwrap());
        bytes.extend(packer.end().unwrap());
        bytes
    }

    fn parts(bytes: &[u8]) -> Result<Vec<(usize, String)>, ArchiveError> {
        let mut found = Vec::new();
        read(bytes, |piece| {
            if let Piece::Part { table, lines, .. } = piece {
                found.push((table, String::from_utf8(lines).unwrap()));
            }
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn what_was_written_is_read() {
        for compress in [false, true] {
            let found = parts(&archive(compress)).unwrap();
            let tables: Vec<usize> = found.iter().map(|(table, _)| *table).collect();
            assert_eq!(tables, [0, 0, 1]);
            assert_eq!(found[2].1, "{\"id\":3}\n");
        }
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        for compress in [false, true] {
            let good = archive(compress);
            let is_row = |at: usize| good[at..].starts_with(b"{\"id\"");
            let mut noticed = 0;
            for at in (0..good.len()).filter(|at| compress || is_row(*at)) {
                let mut bad = good.clone();
                bad[at + usize::from(!compress) * 2] ^= 1;
                if parts(&bad).is_err() {
                    noticed += 1;
                } else {
                    // Only in what is no content: a frame's last bytes.
                    assert_eq!(parts(&bad).unwrap(), parts(&good).unwrap());
                }
            }
            assert!(noticed >= 3, "{noticed}");
        }
    }

    #[test]
    fn an_archive_that_ends_early_is_never_whole() {
        for compress in [false, true] {
            let good = archive(compress);
            // Up to the end of the last file's data; what follows is padding.
            let last = good.len() - if compress { 1 } else { 1024 + 512 };
            for end in 0..last {
                // The last bytes of a frame may hold no content any longer.
                let cut = parts(&good[..end]);
                if let Ok(found) = cut {
                    assert!(compress && found.len() == 3, "whole at {end}");
                }
            }
        }
    }

    /// An entry of another kind, as far as its header goes.
    fn header(kind: tar::EntryType, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("extra").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    #[test]
    fn what_says_that_it_is_long_is_not_read() {
        use tar::EntryType;
        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
            EntryType::XGlobalHeader,
            EntryType::Directory,
            EntryType::Regular,
        ] {
            // Zeros without end follow: reading them would not.
            let from = header(kind, 1 << 40);
            let endless = from.as_slice().chain(io::repeat(0));
            let refused = read(endless, |_| Ok(())).unwrap_err();
            assert!(matches!(refused, ArchiveError::Damaged(_)), "{refused}");
        }
        assert!(parts(&header(EntryType::Symlink, 0)).is_err());
    }

    #[test]
    fn what_tar_adds_is_passed_over() {
        let mut again = header(tar::EntryType::XGlobalHeader, 600);
        again.extend([b'x'; 1024]);
        again.extend(header(tar::EntryType::Directory, 0));
        again.extend(archive(false));
        assert_eq!(parts(&again).unwrap().len(), 3);
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b"hello"[..], &[0; 4096], b"PK\x03\x04"] {
            assert!(parts(bytes).is_err());
        }
    }
}
