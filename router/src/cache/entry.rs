//! An answer that is kept, and its form outside of this process.
//!
//! A stored value begins with a version, names the key that it was stored under
//! and ends with a digest of all that precedes: one that was cut, mixed up or
//! written by another version is no entry. That it may be old, or come back, is
//! no harm: its stamp says what it is worth.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::key::Key;
use super::validity::Stamp;
use crate::response::Row;

/// An answer with the proof of what it is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The proof.
    pub stamp: Stamp,
    /// When its read began, by the wall clock, in milliseconds since 1970.
    pub read_at_ms: u64,
    /// The answer's row.
    pub row: Row,
}

/// Largest stored value; redis-rs' cluster client and slot migration both
/// dislike larger ones.
pub const STORED_MAX: usize = 1 << 20;

/// From here on a body is compressed before it is stored.
const COMPRESSED_MIN: usize = 1 << 10;
/// Quick, and half as large for JSON.
const COMPRESSION_LEVEL: i32 = 1;
/// First byte of a stored value.
const VERSION: u8 = 1;
const DIGEST_LEN: usize = 16;

#[derive(Serialize, Deserialize)]
struct Head {
    key: [u8; 32],
    stamp: Stamp,
    read_at_ms: u64,
    total: Option<i64>,
    page: i64,
    body_len: u32,
    compressed: bool,
}

impl Entry {
    /// A row that was read under `stamp`.
    pub fn new(stamp: Stamp, read_at: SystemTime, row: Row) -> Self {
        let since = read_at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            stamp,
            read_at_ms: u64::try_from(since.as_millis()).unwrap_or(0),
            row,
        }
    }

    /// Bytes that it takes in memory, about.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.row.body.len() + OVERHEAD
    }

    /// How long ago its read began; none where that is in the future by this
    /// machine's clock: it was set back, or another router's is ahead.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        now.checked_sub(Duration::from_millis(self.read_at_ms))
    }

    /// The stored form; none where it would be too large, or where the row has
    /// parts that are not kept.
    pub fn encode(&self, key: &Key) -> Option<Vec<u8>> {
        let row = &self.row;
        if !row.is_plain() || row.body.len() > BODY_MAX {
            return None;
        }
        let packed = (row.body.len() >= COMPRESSED_MIN)
            .then(|| zstd::bulk::compress(&row.body, COMPRESSION_LEVEL).ok())
            .flatten()
            .filter(|packed| packed.len() < row.body.len());
        let head = Head {
            key: *key.bytes(),
            stamp: self.stamp,
            read_at_ms: self.read_at_ms,
            total: row.total,
            page: row.page,
            body_len: u32::try_from(row.body.len()).ok()?,
            compressed: packed.is_some(),
        };
        let body = packed.as_deref().unwrap_or(&row.body);
        let mut value = postcard::to_extend(&head, vec![VERSION]).ok()?;
        value.reserve_exact(body.len() + DIGEST_LEN);
        value.extend_from_slice(body);
        let sum = digest(&SHA256, &value);
        value.extend_from_slice(&sum.as_ref()[..DIGEST_LEN]);
        (value.len() <= STORED_MAX).then_some(value)
    }

    /// The entry of a stored value; none where it is not one of this key.
    pub fn decode(key: &Key, value: &[u8]) -> Option<Self> {
        let (content, sum) = value.split_at_checked(value.len().checked_sub(DIGEST_LEN)?)?;
        if content.first() != Some(&VERSION)
            || &digest(&SHA256, content).as_ref()[..DIGEST_LEN] != sum
        {
            return None;
        }
        let (head, body) = postcard::take_from_bytes::<Head>(&content[1..]).ok()?;
        let length = head.body_len as usize;
        if head.key != *key.bytes() || length > BODY_MAX {
            return None;
        }
        let body = match head.compressed {
            true => zstd::bulk::decompress(body, length).ok()?,
            false => body.to_vec(),
        };
        (body.len() == length).then(|| Self {
            stamp: head.stamp,
            read_at_ms: head.read_at_ms,
            row: Row {
                total: head.total,
                page: head.page,
                body: Bytes::from(body),
                ..Row::default()
            },
        })
    }
}

/// Largest body that is kept.
pub const BODY_MAX: usize = 8 << 20;
/// What the maps around an entry take for it.
const OVERHEAD: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tenancy::changes::{Generation, Lsn};

    use super::*;

    fn entry(body: Vec<u8>) -> Entry {
        Entry {
            stamp: Stamp {
                generation: Generation {
                    system: u64::MAX,
                    timeline: 3,
                    incarnation: 9,
                },
                epoch: 4,
                at: Lsn(77),
            },
            read_at_ms: 1_700_000_000_000,
            row: Row {
                total: Some(7),
                page: 2,
                body: Bytes::from(body),
                ..Row::default()
            },
        }
    }

    proptest! {
        #[test]
        fn a_stored_value_comes_back_as_it_went(body: Vec<u8>, repeated in 0..200_usize) {
            let key = Key::for_test(1);
            let entry = entry(body.repeat(repeated));
            let value = entry.encode(&key).unwrap();
            prop_assert_eq!(Entry::decode(&key, &value), Some(entry));
        }

        #[test]
        fn what_was_damaged_is_no_entry(body: Vec<u8>, at: prop::sample::Index, bit in 0..8_u8) {
            let key = Key::for_test(1);
            let mut value = entry(body).encode(&key).unwrap();
            prop_assert_eq!(Entry::decode(&Key::for_test(2), &value), None);
            let place = at.index(value.len());
            prop_assert_eq!(Entry::decode(&key, &value[..place]), None);
            value[place] ^= 1 << bit;
            prop_assert_eq!(Entry::decode(&key, &value), None);
        }
    }

    #[test]
    fn an_entry_from_the_future_has_no_age() {
        let entry = entry(Vec::new());
        let read_at = UNIX_EPOCH + Duration::from_millis(entry.read_at_ms);
        let second = Duration::from_secs(1);
        assert_eq!(entry.age(read_at + second), Some(second));
        assert_eq!(entry.age(read_at), Some(Duration::ZERO));
        assert_eq!(entry.age(read_at - Duration::from_millis(1)), None);
    }

    #[test]
    fn large_bodies_are_compressed_or_not_stored() {
        let key = Key::for_test(1);
        let value = entry(b"[{\"a\":1}]".repeat(50_000)).encode(&key).unwrap();
        assert!(value.len() < 10_000);
        let noise: Vec<u8> = (0..STORED_MAX as u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (n >> 3) as u8)
            .collect();
        let stored = entry(noise).encode(&key);
        assert!(stored.is_none_or(|value| value.len() <= STORED_MAX));
    }
}
