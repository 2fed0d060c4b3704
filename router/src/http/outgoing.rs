//! Answers on their way to clients: their bytes are bounded together, for a client
//! may take its time, and each of thousands has its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Smaller ones are not counted: a connection has as much in its own buffers.
const COUNTED_FROM: usize = 16 << 10;

/// The bytes of answers that are held for clients.
pub struct Outgoing {
    bytes_max: usize,
    bytes: Arc<AtomicUsize>,
}

/// What becomes of an answer for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// It is not given.
    Refused,
    /// It is counted all the same: what it tells of was done, or it was in memory.
    Given,
}

/// A body that is counted for as long as any of it is held.
struct Held {
    body: Bytes,
    bytes: Arc<AtomicUsize>,
}

impl Outgoing {
    /// None are held.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: Arc::default(),
        }
    }

    /// The body, counted until the connection has sent the last of it; none where it
    /// is refused.
    pub fn hold(&self, body: Bytes, beyond: Beyond) -> Option<Bytes> {
        let length = body.len();
        if length < COUNTED_FROM {
            return Some(body);
        }
        let before = self.bytes.fetch_add(length, Ordering::Relaxed);
        let held = Held {
            body,
            bytes: self.bytes.clone(),
        };
        let fits = before.saturating_add(length) <= self.bytes_max;
        (fits || beyond == Beyond::Given).then(|| Bytes::from_owner(held))
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.body.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> Bytes {
        vec![b'x'; bytes].into()
    }

    #[test]
    fn what_is_held_takes_room_until_the_last_of_it_is_gone() {
        let outgoing = Outgoing::new(100 << 10);
        let hold = |bytes| outgoing.hold(body(bytes), Beyond::Refused);
        let mut first = hold(60 << 10).unwrap();
        assert!(hold(60 << 10).is_none());
        assert!(hold(1_000).is_some(), "small ones are not counted");
        // Sent in parts, it is held to the last one.
        drop(first.split_to(50 << 10));
        assert!(hold(60 << 10).is_none());
        drop(first);
        let second = hold(60 << 10).unwrap();
        // What can't be refused is counted.
        let written = outgoing.hold(body(80 << 10), Beyond::Given).unwrap();
        drop(second);
        assert!(hold(30 << 10).is_none());
        drop(written);
        assert!(hold(100 << 10).is_some());
    }
}
