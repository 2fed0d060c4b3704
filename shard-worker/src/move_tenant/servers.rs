//! Which servers a move's shards are. Behind a failover a shard may lack what had
//! arrived there and was acknowledged, and the stream goes on as if it were there:
//! rows that were compared before are compared again.

use serde::{Deserialize, Serialize};

use super::Way;
use super::side::Side;
use crate::job::JobError;

/// The primaries of both shards: system identifier and timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    /// Of the shard that the move began on.
    source: (u64, u32),
    /// Of the one that it leads to.
    target: (u64, u32),
}

impl Servers {
    /// As they are now, of the sides of a stream that goes this way.
    pub(super) async fn of(way: Way, sends: &Side, receives: &Side) -> Result<Self, JobError> {
        let (sends, receives) = tokio::try_join!(sends.look(), receives.look())?;
        Ok(Self::new(way, sends.server, receives.server))
    }

    pub(super) fn new(way: Way, sends: (u64, u32), receives: (u64, u32)) -> Self {
        let (source, target) = match way {
            Way::Forward => (sends, receives),
            Way::Back => (receives, sends),
        };
        Self { source, target }
    }
}
