//! Behind stage 8, for writes: the wait until every router sees them (DESIGN.md
//! §6, rule 8).

use tenancy::changes::Lsn;
use tenancy::id::ShardId;
use tokio::time::{Duration, Instant, timeout};

use super::serve::{self, Served, Work};
use crate::coherence::alone::Look;
use crate::coherence::barrier::Committed;
use crate::config::VisibleTo;
use crate::plan::Plan;

/// Longest wait for a look at the primary; the leases' end comes anyway.
const LOOK_MAX: Duration = Duration::from_millis(200);

/// Waits until no router can answer from its cache without what was committed,
/// unless the client, its tenant or its tables don't want that.
pub(super) async fn wait(work: &Work<'_>, plan: &Plan, to_self: bool, served: &Served) {
    let app = work.app;
    if !app.cache.is_on() {
        return;
    }
    let visibility = &app.config.cache.visibility;
    let tables = plan.relations.iter();
    let names: Vec<String> = tables
        .map(|name| format!("{}.{}", name.schema.as_str(), name.name.as_str()))
        .collect();
    let names = names.iter().map(String::as_str);
    if to_self || visibility.of(work.guard.tenant, names) == VisibleTo::Writer {
        app.cache.acknowledged(None, Duration::ZERO);
        return;
    }
    let committed = Committed {
        log: served
            .token
            .map_or(served.by.generation, |token| token.generation),
        lsn: served.token.map(|token| Lsn(token.lsn)),
        at: Instant::now(),
    };
    let coherence = &app.cache.coherence;
    let shard = coherence.shard(&ShardId(work.target.shard.id.clone()));
    let waited = coherence
        .visible_everywhere(&shard, committed, || look(work))
        .await;
    app.cache.acknowledged(Some(waited), committed.at.elapsed());
}

/// Whether a worker has the shard's slot.
async fn look(work: &Work<'_>) -> Option<Look> {
    let primary = work.target.shard.primary()?;
    let begun = Instant::now();
    let asked = async {
        let watched = &primary.watched;
        let connected = serve::connect(work, watched, primary.identity, LOOK_MAX, &primary.gone);
        let mut connection = connected.await.ok()?;
        let (free, term) = crate::execute::slot(&mut connection).await.ok()?;
        Some(Look {
            of: primary.identity.generation,
            free,
            term,
            begun,
            ended: Instant::now(),
        })
    };
    timeout(LOOK_MAX, asked).await.ok().flatten()
}
