//! Has routers forget answers, each what it holds itself and what Redis holds.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Url;
use serde::Deserialize;
use tenancy::members::Member;
use uuid::Uuid;

use crate::app::App;

/// Longest wait for a router, which looks through all of Redis.
const ANSWER_MAX: Duration = Duration::from_secs(25);

/// Which answers: of a tenant, of a table, of both, or all.
#[derive(Clone, Debug, Default)]
pub struct Of {
    /// This tenant's.
    pub tenant: Option<Uuid>,
    /// Those made of this table, `schema.table` or a table of `public`.
    pub table: Option<String>,
}

/// What a router did.
pub struct Purged {
    /// Its name.
    pub router: String,
    /// Answers that it removed from Redis, none where it has none; or why some
    /// may be left.
    pub removed: Result<Option<u64>, String>,
}

/// A router's answer, as far as it is of interest.
#[derive(Deserialize)]
struct Left {
    redis_removed: Option<u64>,
}

/// Tells all live routers at once.
pub async fn everywhere(app: &App, of: &Of) -> Vec<Purged> {
    let routers = app.members.borrow().routers.clone();
    let told = routers.iter().map(|router| async {
        Purged {
            router: router.name.to_string(),
            removed: tell(app, router, of).await,
        }
    });
    join_all(told).await
}

async fn tell(app: &App, router: &Member, of: &Of) -> Result<Option<u64>, String> {
    let address = format!("{}/cache/purge", router.admin_url.trim_end_matches('/'));
    let mut url = Url::parse(&address).map_err(|error| format!("{address}: {error}"))?;
    if let Some(tenant) = of.tenant {
        let tenant = tenant.to_string();
        url.query_pairs_mut().append_pair("tenant", &tenant);
    }
    if let Some(table) = &of.table {
        url.query_pairs_mut().append_pair("table", table);
    }
    let request = app.http.post(url).bearer_auth(app.keys.purge_token());
    let answer = request.timeout(ANSWER_MAX).send().await;
    let answer = answer.map_err(|error| tenancy::chain(&error))?;
    let status = answer.status();
    match status.is_success() {
        true => {
            let left: reqwest::Result<Left> = answer.json().await;
            left.map(|left| left.redis_removed)
                .map_err(|error| tenancy::chain(&error))
        }
        false => {
            let said = answer.text().await.unwrap_or_default();
            Err(format!("{status}: {}", said.trim()))
        }
    }
}
