//! Finishes what was begun: tenants that wait for their fence, shards that wait
//! to be prepared. Takes no input: a timer wakes one idempotent function, which
//! compares what the control database says with what it can do about it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tenancy::chain;
use tenancy::control::{Actor, ControlError, ShardInfo};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::migrate;
use crate::move_tenant::janitor;
use crate::shard::{Address, timelines, was_replaced};

const EVERY: Duration = Duration::from_secs(2);
/// Leftovers of moves and migrations are looked for so often.
const SWEEP_EVERY: Duration = Duration::from_secs(20);
/// Tenants admitted at once.
const BATCH: i64 = 5_000;

/// Runs until `stop`.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut sweep_at = Instant::now() + SWEEP_EVERY;
    let mut suspects = janitor::Suspects::new();
    loop {
        if let Err(error) = reconcile(&app).await {
            tracing::warn!(error = %chain(&error), "reconciling stopped early");
        }
        if Instant::now() >= sweep_at {
            sweep_at = Instant::now() + SWEEP_EVERY;
            if let Err(error) = sweep(&app, &mut suspects).await {
                tracing::warn!(error = %chain(&error), "leftovers not all looked for");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Removes what moves and migrations left behind; one worker at a time does.
async fn sweep(app: &App, suspects: &mut janitor::Suspects) -> Result<(), Error> {
    let lease = SWEEP_EVERY * 2;
    if app.control.take_lease("janitor", &app.owner, lease).await? {
        janitor::sweep(app, suspects).await?;
        migrate::sweep(app).await?;
    }
    Ok(())
}

/// One pass. Each step may run twice, here or on another worker.
pub async fn reconcile(app: &App) -> Result<(), Error> {
    let shards = app.control.shards().await?;
    let mut outcome = Ok(());
    for shard in shards.iter().filter(|shard| shard.state == "preparing") {
        // One shard that is down must not keep the others waiting.
        if let Err(error) = prepare_shard(app, shard).await {
            outcome = Err(error);
        }
    }
    for shard in shards.iter().filter(|shard| shard.state != "preparing") {
        if let Err(error) = upgrade_shard(app, shard).await {
            outcome = Err(error);
        }
    }
    repair_suspensions(app, &shards).await?;
    admit_tenants(app).await?;
    outcome
}

/// Prepares a shard's own SQL, gives it all files that the other shards have,
/// then puts it on the ring.
pub async fn prepare_shard(app: &App, shard: &ShardInfo) -> Result<(), Error> {
    let installed = app.logins.prepare(&shard.id, &addresses(shard)).await?;
    tracing::info!(shard = shard.id, files = ?installed.files, "shard prepared");
    let actor = Actor(app.name.clone());
    app.upgraded
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(shard.id.clone());
    let mut control = app.control.client().await?;
    let transaction = control.transaction().await.map_err(ControlError::from)?;
    // No run ends between the look at what all shards have and this one's joining.
    migrate::finished(&transaction).await?;
    let migrated = migrate::catch_up(app, shard).await?;
    let moved = app.control.activate_shard(&actor, &shard.id).await?;
    transaction.commit().await.map_err(ControlError::from)?;
    tracing::info!(
        shard = shard.id,
        migrated,
        off_the_ring = moved,
        "shard on the ring"
    );
    Ok(())
}

/// Brings a shard's own SQL to this worker's version, once.
async fn upgrade_shard(app: &App, shard: &ShardInfo) -> Result<(), Error> {
    let done = || app.upgraded.lock().unwrap_or_else(PoisonError::into_inner);
    if done().contains(&shard.id) {
        return Ok(());
    }
    let installed = app.logins.prepare(&shard.id, &addresses(shard)).await?;
    if !installed.files.is_empty() {
        tracing::info!(shard = shard.id, files = ?installed.files, "shard brought up to date");
    }
    done().insert(shard.id.clone());
    Ok(())
}

/// Writes the fences of tenants in state `creating`, then activates them.
pub async fn admit_tenants(app: &App) -> Result<(), Error> {
    loop {
        let waiting = app.control.unfinished_tenants(BATCH).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let shards = app.control.shards().await?;
        let mut by_shard: HashMap<&str, Vec<(Uuid, i64)>> = HashMap::new();
        for (id, shard, epoch) in &waiting {
            by_shard.entry(shard).or_default().push((*id, *epoch));
        }
        let mut first_error = None;
        let mut admitted = Vec::with_capacity(waiting.len());
        for (shard, tenants) in by_shard {
            let nodes: Vec<Address> = shards
                .iter()
                .filter(|info| info.id == shard)
                .flat_map(addresses)
                .collect();
            match app.logins.admit(shard, &nodes, &tenants).await {
                Ok(()) => admitted.extend(tenants.iter().map(|(id, _)| *id)),
                // The others need not wait for this shard.
                Err(error) => first_error = Some(error),
            }
        }
        app.control.activate_tenants(&admitted).await?;
        if let Some(error) = first_error {
            return Err(error.into());
        }
    }
}

/// Writes fences that a suspend or resume did not get to: its worker may have
/// ended, or the shard been down, between the control row and the fence.
async fn repair_suspensions(app: &App, shards: &[ShardInfo]) -> Result<(), Error> {
    let suspended = app.control.suspended_tenants().await?;
    let mut outcome = Ok(());
    for shard in shards.iter().filter(|shard| shard.state != "preparing") {
        let wanted: Vec<Uuid> = suspended
            .iter()
            .filter(|(_, lives_on)| *lives_on == shard.id)
            .map(|(id, _)| *id)
            .collect();
        let repaired = app
            .logins
            .suspend_exactly(&shard.id, &addresses(shard), &wanted)
            .await;
        match repaired {
            Ok(0) => {}
            Ok(count) => tracing::info!(shard = shard.id, count, "suspensions repaired"),
            Err(error) => outcome = Err(error.into()),
        }
    }
    outcome
}

/// Where the shard's nodes listen, but for primaries that were replaced.
pub fn addresses(shard: &ShardInfo) -> Vec<Address> {
    let timelines = Arc::new(timelines(shard));
    let nodes = shard.nodes.iter();
    nodes
        .filter(|node| !was_replaced(node, &timelines))
        .map(|node| Address {
            host: node.host.clone(),
            port: node.port,
            timelines: timelines.clone(),
        })
        .collect()
}
