//! Files into tar, and that into zstd where it is wanted. Pure.

use std::io::{self, Write};

use tar::Header;

/// zstd's level: most of what is to be had, at a speed that a shard doesn't outrun.
const LEVEL: i32 = 3;
const BLOCK: usize = 512;

/// Makes an archive's bytes, piece by piece.
pub struct Packer(Inner);

enum Inner {
    Plain,
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Packer {
    /// An archive that begins.
    pub fn new(compress: bool) -> io::Result<Self> {
        Ok(Self(match compress {
            false => Inner::Plain,
            true => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
                encoder.include_checksum(true)?;
                Inner::Zstd(Box::new(encoder))
            }
        }))
    }

    /// A file of the archive, as bytes of it. `time`: seconds since 1970.
    pub fn file(&mut self, path: &str, data: Vec<u8>, time: u64) -> io::Result<Vec<u8>> {
        let mut header = Header::new_ustar();
        header.set_path(path)?;
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(time);
        header.set_cksum();
        let padding = data.len().next_multiple_of(BLOCK) - data.len();
        match &mut self.0 {
            Inner::Plain => {
                let mut bytes = Vec::with_capacity(BLOCK + data.len() + padding);
                bytes.extend_from_slice(header.as_bytes());
                bytes.extend_from_slice(&data);
                bytes.extend_from_slice(&[0; BLOCK][..padding]);
                Ok(bytes)
            }
            Inner::Zstd(encoder) => {
                encoder.write_all(header.as_bytes())?;
                encoder.write_all(&data)?;
                encoder.write_all(&[0; BLOCK][..padding])?;
                Ok(std::mem::take(encoder.get_mut()))
            }
        }
    }

    /// The archive's end.
    pub fn end(self) -> io::Result<Vec<u8>> {
        let end = [0; 2 * BLOCK];
        match self.0 {
            Inner::Plain => Ok(end.to_vec()),
            Inner::Zstd(mut encoder) => {
                encoder.write_all(&end)?;
                encoder.finish()
            }
        }
    }
}
