//! Has routers drop a deleted tenant's answers. None has answered since the fence
//! was taken away; this is so that none is left.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use tenancy::changes::HOLDING;
use tenancy::members::Member;
use uuid::Uuid;

use super::CacheCertificate;
use crate::app::App;

/// Further tries after which what can't be reached is left: half a minute.
pub(super) const TRIES: u32 = 15;
/// Pause between two of them.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// Longest wait for a router, which looks through all of Redis.
const ANSWER_MAX: Duration = Duration::from_secs(25);

/// A router's answer, as far as it is of interest.
#[derive(Deserialize)]
struct Left {
    /// None where it has no Redis.
    redis_removed: Option<u64>,
}

/// Tells all live routers. The fence is gone since before the call.
pub(super) async fn purge(app: &App, tenant: Uuid) -> CacheCertificate {
    // By then whatever a router keeps was read under a lease that began after the
    // fence was gone; what was read before, it does not keep once it was told.
    tokio::time::sleep(HOLDING).await;
    let routers = app.members.borrow().routers.clone();
    let told = routers.iter().map(|router| tell(app, router, tenant));
    let mut certificate = CacheCertificate {
        routers: 0,
        redis_entries: 0,
        left: Vec::new(),
    };
    for (router, answer) in routers.iter().zip(join_all(told).await) {
        match answer {
            Ok(left) => {
                certificate.routers += 1;
                certificate.redis_entries += left.redis_removed.unwrap_or(0);
            }
            Err(why) => certificate.left.push(format!("{}: {why}", router.name)),
        }
    }
    certificate
}

async fn tell(app: &App, router: &Member, tenant: Uuid) -> Result<Left, String> {
    let base = router.admin_url.trim_end_matches('/');
    let request = app.http.post(format!("{base}/cache/purge?tenant={tenant}"));
    let answer = request.timeout(ANSWER_MAX).send().await;
    let answer = answer.map_err(|error| tenancy::chain(&error))?;
    match answer.status().is_success() {
        true => answer.json().await.map_err(|error| tenancy::chain(&error)),
        false => Err(answer.status().to_string()),
    }
}
