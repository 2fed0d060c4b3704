//! Stage 3: where the tenant lives, as far as this router knows. The shard's
//! guard has the last word.

use std::sync::Arc;

use tenancy::id::TenantId;
use tenancy::placement::TenantState;

use crate::app::App;
use crate::error::Error;
use crate::shards::Shard;

/// Where a request is sent.
#[derive(Clone)]
pub struct Target {
    /// The shard.
    pub shard: Arc<Shard>,
    /// The placement's number, for the guard.
    pub epoch: i64,
}

/// What a shard said of a tenant that moved: newer than any snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The shard that it moved to.
    pub shard: Arc<str>,
    /// Its epoch there.
    pub epoch: i64,
}

/// The tenant's shard by the snapshot, or by what a shard has said since.
pub fn locate(app: &App, tenant: TenantId, moved: Option<&Moved>) -> Result<Target, Error> {
    let snapshot = app.placements.load();
    let placement = snapshot.place(tenant).ok_or(Error::Unavailable {
        why: "no shard serves the tenant's region",
    })?;
    match placement.state {
        TenantState::Active => {}
        TenantState::Suspended => return Err(Error::Suspended),
        TenantState::Creating | TenantState::Importing | TenantState::Deleted => {
            return Err(Error::NoTenant);
        }
    }
    let newer = moved.filter(|moved| moved.epoch > placement.epoch.0);
    let (shard, epoch) = match newer {
        Some(moved) => (moved.shard.clone(), moved.epoch),
        None => (placement.shard.0.clone(), placement.epoch.0),
    };
    let shard = app.shards.get(&shard).ok_or(Error::Unavailable {
        why: "the tenant's shard is not known yet",
    })?;
    Ok(Target { shard, epoch })
}
