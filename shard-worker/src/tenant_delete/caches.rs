//! Has routers drop a deleted tenant's answers. None has answered since the fence
//! was taken away; this is so that none is left.

use std::time::Duration;

use tenancy::changes::HOLDING;
use uuid::Uuid;

use super::CacheCertificate;
use crate::app::App;
use crate::purge::{Of, everywhere};

/// Further tries after which what can't be reached is left: half a minute.
pub(super) const TRIES: u32 = 15;
/// Pause between two of them.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// Tells all live routers. The fence is gone since before the call.
pub(super) async fn purge(app: &App, tenant: Uuid) -> CacheCertificate {
    // By then whatever a router keeps was read under a lease that began after the
    // fence was gone; what was read before, it does not keep once it was told.
    tokio::time::sleep(HOLDING).await;
    let of = Of {
        tenant: Some(tenant),
        table: None,
    };
    let mut certificate = CacheCertificate {
        routers: 0,
        redis_entries: 0,
        left: Vec::new(),
    };
    for purged in everywhere(app, &of).await {
        match purged.removed {
            Ok(removed) => {
                certificate.routers += 1;
                certificate.redis_entries += removed.unwrap_or(0);
            }
            Err(why) => certificate.left.push(format!("{}: {why}", purged.router)),
        }
    }
    certificate
}
