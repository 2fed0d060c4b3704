//! Messages as bytes: a version byte, then postcard. Decoding is strict: an
//! unknown version, a byte too many, a name or a set that is not as it must be,
//! and the connection ends.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{FromRouter, FromWorker};
use crate::id::ShardId;

/// Where a worker serves the stream.
pub const PATH: &str = "/changes";
/// Longest frame, bytes: `Changes` with the most cells that are named singly.
pub const FRAME_MAX: usize = 32 << 10;
/// Longest name of a shard or router, bytes.
pub const NAME_MAX: usize = 128;

/// The first byte of every frame. Another format is another number.
const VERSION: u8 = 1;

/// Why a frame is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It is longer than any message.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// The other side speaks another version.
    #[error("the other side speaks version {0:?} of the protocol, not {VERSION}")]
    Version(Option<u8>),
    /// It is no message of this version.
    #[error("a frame can't be read")]
    Malformed,
    /// A message holds a value that no sender makes.
    #[error("a message's {0} is not valid")]
    Invalid(&'static str),
}

/// A message that can be sent.
pub trait Message: Serialize + DeserializeOwned {
    /// Refuses what no sender makes.
    fn check(&self) -> Result<(), WireError>;
}

/// A message's frame.
///
/// # Errors
/// The message holds what could not be decoded again.
pub fn encode(message: &impl Message) -> Result<Vec<u8>, WireError> {
    message.check()?;
    let frame = postcard::to_extend(message, vec![VERSION]).map_err(|_| WireError::Malformed)?;
    match frame.len() {
        length if length > FRAME_MAX => Err(WireError::TooLong(length)),
        _ => Ok(frame),
    }
}

/// A frame's message.
///
/// # Errors
/// It is none: see [`WireError`].
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, WireError> {
    if frame.len() > FRAME_MAX {
        return Err(WireError::TooLong(frame.len()));
    }
    let body = match frame.split_first() {
        Some((&VERSION, body)) => body,
        other => return Err(WireError::Version(other.map(|(version, _)| *version))),
    };
    match postcard::take_from_bytes::<M>(body) {
        Ok((message, [])) => message.check().map(|()| message),
        _ => Err(WireError::Malformed),
    }
}

impl Message for FromRouter {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Hello { name, .. } => check_name(name),
            Self::Follow { shard, .. }
            | Self::Ping { shard, .. }
            | Self::Applied { shard, .. }
            | Self::Barrier { shard, .. } => check_shard(shard),
        }
    }
}

impl Message for FromWorker {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Captures { shard, .. }
            | Self::Start { shard, .. }
            | Self::Lease { shard, .. }
            | Self::BarrierDone { shard, .. }
            | Self::Gone { shard } => check_shard(shard),
            Self::Changes {
                shard,
                prev,
                lsn,
                cells,
                ..
            } => {
                check_shard(shard)?;
                if prev >= lsn {
                    return Err(WireError::Invalid("position"));
                }
                match cells.is_canonical() {
                    true => Ok(()),
                    false => Err(WireError::Invalid("set of cells")),
                }
            }
        }
    }
}

fn check_shard(shard: &ShardId) -> Result<(), WireError> {
    check_name(shard.as_str())
}

fn check_name(name: &str) -> Result<(), WireError> {
    match name.len() {
        1..=NAME_MAX => Ok(()),
        _ => Err(WireError::Invalid("name")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::changes::{Cell, CellSet, Generation, Lsn, RouterRun};

    fn generation() -> impl Strategy<Value = Generation> {
        any::<(u64, u32, u64)>().prop_map(|(system, timeline, incarnation)| Generation {
            system,
            timeline,
            incarnation,
        })
    }

    fn shard() -> impl Strategy<Value = ShardId> {
        "[a-z0-9-]{1,63}".prop_map(|name| ShardId::from(name.as_str()))
    }

    fn cells() -> impl Strategy<Value = CellSet> {
        let some = any::<Vec<u16>>().prop_map(|all| {
            let mut cells = CellSet::default();
            all.into_iter().for_each(|cell| cells.insert(Cell(cell)));
            cells
        });
        prop_oneof![some, Just(CellSet::All)]
    }

    fn from_router() -> impl Strategy<Value = FromRouter> {
        let resume = prop::option::of((generation(), any::<u64>().prop_map(Lsn)));
        prop_oneof![
            (any::<u128>(), "[a-z]{1,20}").prop_map(|(run, name)| FromRouter::Hello {
                run: RouterRun(run),
                name
            }),
            (shard(), resume).prop_map(|(shard, resume)| FromRouter::Follow { shard, resume }),
            (shard(), any::<u64>()).prop_map(|(shard, id)| FromRouter::Ping { shard, id }),
            (shard(), generation(), any::<u64>()).prop_map(|(shard, generation, lsn)| {
                FromRouter::Applied {
                    shard,
                    generation,
                    lsn: Lsn(lsn),
                }
            }),
            (shard(), any::<(u64, u64, u32, u64)>()).prop_map(
                |(shard, (id, system, timeline, lsn))| FromRouter::Barrier {
                    shard,
                    id,
                    system,
                    timeline,
                    lsn: Lsn(lsn),
                }
            ),
        ]
    }

    fn from_worker() -> impl Strategy<Value = FromWorker> {
        prop_oneof![
            (shard(), generation())
                .prop_map(|(shard, generation)| FromWorker::Captures { shard, generation }),
            (shard(), generation(), any::<u64>(), any::<bool>()).prop_map(
                |(shard, generation, watermark, resumed)| FromWorker::Start {
                    shard,
                    generation,
                    watermark: Lsn(watermark),
                    resumed,
                }
            ),
            (
                shard(),
                generation(),
                any::<u32>(),
                1..u64::MAX / 2,
                cells()
            )
                .prop_map(|(shard, generation, prev, more, cells)| {
                    FromWorker::Changes {
                        shard,
                        generation,
                        prev: Lsn(prev.into()),
                        lsn: Lsn(u64::from(prev) + more),
                        cells,
                    }
                }),
            (shard(), any::<u64>()).prop_map(|(shard, id)| FromWorker::BarrierDone { shard, id }),
            shard().prop_map(|shard| FromWorker::Gone { shard }),
        ]
    }

    proptest! {
        #[test]
        fn routers_messages_come_as_they_went(message in from_router()) {
            prop_assert_eq!(decode::<FromRouter>(&encode(&message).unwrap()).unwrap(), message);
        }

        #[test]
        fn workers_messages_come_as_they_went(message in from_worker()) {
            let frame = encode(&message).unwrap();
            prop_assert_eq!(decode::<FromWorker>(&frame).unwrap(), message);
            // Cut or lengthened, it is none.
            prop_assert!(decode::<FromWorker>(&frame[..frame.len() - 1]).is_err());
            let longer = [&frame[..], &[0]].concat();
            prop_assert!(decode::<FromWorker>(&longer).is_err());
        }

        #[test]
        fn noise_is_refused_in_peace(mut noise: Vec<u8>, version: bool) {
            if version {
                noise.insert(0, VERSION);
            }
            if let Ok(message) = decode::<FromWorker>(&noise) {
                prop_assert!(message.check().is_ok());
            }
            let _ = decode::<FromRouter>(&noise);
        }
    }

    #[test]
    fn the_longest_message_fits_its_bound() {
        let cells = (0..8_192).map(|n| Cell(65_535 - 8_192 + n)).collect();
        let message = FromWorker::Changes {
            shard: "s".repeat(NAME_MAX).as_str().into(),
            generation: Generation {
                system: u64::MAX,
                timeline: u32::MAX,
                incarnation: u64::MAX,
            },
            prev: Lsn(u64::MAX - 1),
            lsn: Lsn(u64::MAX),
            cells: CellSet::Some(cells),
        };
        assert!(encode(&message).unwrap().len() > 20_000);
    }

    #[test]
    fn what_no_sender_makes_is_refused() {
        let generation = Generation {
            system: 1,
            timeline: 1,
            incarnation: 1,
        };
        let changes = |prev, lsn, cells| FromWorker::Changes {
            shard: "s1".into(),
            generation,
            prev: Lsn(prev),
            lsn: Lsn(lsn),
            cells,
        };
        let unsorted = CellSet::Some(vec![Cell(2), Cell(1)]);
        for (message, error) in [
            (changes(2, 2, CellSet::All), "position"),
            (changes(1, 2, unsorted), "set of cells"),
            (FromWorker::Gone { shard: "".into() }, "name"),
        ] {
            assert_eq!(encode(&message), Err(WireError::Invalid(error)));
            let frame = postcard::to_extend(&message, vec![VERSION]).unwrap();
            assert_eq!(decode::<FromWorker>(&frame), Err(WireError::Invalid(error)));
        }
        assert_eq!(decode::<FromRouter>(&[]), Err(WireError::Version(None)));
        assert_eq!(
            decode::<FromRouter>(&[9, 1]),
            Err(WireError::Version(Some(9)))
        );
        assert_eq!(
            decode::<FromRouter>(&vec![VERSION; FRAME_MAX + 1]),
            Err(WireError::TooLong(FRAME_MAX + 1))
        );
    }
}
