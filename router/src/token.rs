//! What a write's answer says of its place in the log, and what a read may
//! bring along: `Ringfence-Token`. Pure.
//!
//! To clients it is opaque text. It carries no MAC: a made-up one only makes the
//! answers to its maker slower, or refused.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// A log that one primary wrote: LSNs compare within it only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Generation {
    /// System identifier: the same on all nodes of a shard.
    pub system: u64,
    /// Timeline: another after each promotion.
    pub timeline: u32,
}

/// The place of an acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The log that it is in.
    pub generation: Generation,
    /// The tenant's epoch, which the write passed the fence with.
    pub epoch: i64,
    /// Bytes of WAL up to which the write is contained for sure.
    pub lsn: u64,
}

/// The header that carries it, both ways.
pub const HEADER: &str = "ringfence-token";

/// Changes with the layout, so that no router misreads another version's.
const VERSION: u8 = 1;
const BYTES: usize = 1 + 8 + 4 + 8 + 8 + 4;
/// Length of its text.
const TEXT: usize = 44;

/// The text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token of a write")]
pub struct NotAToken;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend(self.generation.system.to_be_bytes());
        bytes.extend(self.generation.timeline.to_be_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend(self.lsn.to_be_bytes());
        bytes.extend(sum(&bytes).to_be_bytes());
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        if text.len() != TEXT {
            return Err(NotAToken);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text);
        let bytes: [u8; BYTES] = bytes
            .map_err(|_| NotAToken)?
            .try_into()
            .map_err(|_| NotAToken)?;
        let (body, check) = bytes.split_at(BYTES - 4);
        if check != sum(body).to_be_bytes() || body.first() != Some(&VERSION) {
            return Err(NotAToken);
        }
        let token = Self {
            generation: Generation {
                system: u64::from_be_bytes(part(body, 1)?),
                timeline: u32::from_be_bytes(part(body, 9)?),
            },
            epoch: i64::from_be_bytes(part(body, 13)?),
            lsn: u64::from_be_bytes(part(body, 21)?),
        };
        let possible = token.generation.timeline > 0 && token.epoch > 0 && token.lsn > 0;
        possible.then_some(token).ok_or(NotAToken)
    }
}

fn part<const N: usize>(bytes: &[u8], from: usize) -> Result<[u8; N], NotAToken> {
    let part = bytes.get(from..from + N).ok_or(NotAToken)?;
    part.try_into().map_err(|_| NotAToken)
}

/// FNV-1a: finds texts that were cut, mistyped or mixed up.
fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum: u32, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_survives_its_text(system in any::<u64>(), timeline in 1_u32.., epoch in 1_i64.., lsn in 1_u64..) {
            let token = Token { generation: Generation { system, timeline }, epoch, lsn };
            let text = token.to_string();
            prop_assert_eq!(text.len(), TEXT);
            prop_assert_eq!(text.parse::<Token>(), Ok(token));
        }

        #[test]
        fn other_texts_are_none(text in "\\PC{0,60}") {
            prop_assert!(text.parse::<Token>().is_err());
        }

        #[test]
        fn one_changed_character_is_noticed(lsn in 1_u64.., at in 0..TEXT, by in "[A-Za-z0-9_-]") {
            let generation = Generation { system: 7, timeline: 1 };
            let text = Token { generation, epoch: 1, lsn }.to_string();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &by);
            prop_assert!(changed == text || changed.parse::<Token>().is_err());
        }
    }
}
