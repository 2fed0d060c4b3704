//! The end of a move: its streams are ended on both sides, and only then are
//! rows deleted where nobody serves them. Deleting while one was on would
//! empty the other side.

use std::time::Duration;

use schema::tenant_tables::tenant_tables;
use tokio::time::Instant;
use uuid::Uuid;

use super::crossing::Fence;
use super::side::Side;
use super::{Ended, Move, Moving, State, Way, failpoint, names};
use crate::job::{Context, JobError, Step};
use crate::tenant_delete;

/// A state's progress is written after so long.
const STEP: Duration = Duration::from_millis(700);

/// Between a publication's last table and its own end: who writes just then
/// must not miss it.
const UNPUBLISH: Duration = Duration::from_millis(300);
/// Publications that end in one transaction: in one of two hundred, Postgres came to
/// its stack's limit.
const UNPUBLISHED: usize = 16;

/// Some of it.
pub(super) async fn clean_up(
    context: &Context,
    job: &Move,
    why: &Ended,
    rows: u64,
) -> Result<Step<Move>, JobError> {
    failpoint(context, "cleaning_up")?;
    let (plan, id) = (&job.plan, context.job().id);
    // Receivers first, so that slots are free; a target that is away must not
    // keep the source's log.
    let target = Side::open(context, &plan.to).await;
    if let Ok(target) = &target {
        unsubscribe(target, &names::stream(id, Way::Forward)).await?;
    }
    let source = Side::open(context, &plan.from).await?;
    unsubscribe(&source, &names::stream(id, Way::Back)).await?;
    let target_ends = async {
        match &target {
            Ok(target) => end_sending(target, job, id, Way::Back).await,
            Err(_) => Ok(()),
        }
    };
    let (source_ends, target_ends) =
        tokio::join!(end_sending(&source, job, id, Way::Forward), target_ends);
    source_ends?;
    let target = target?;
    target_ends?;
    failpoint(context, "streams_ended")?;

    let until = Instant::now() + STEP;
    let mut deleted = rows;
    // Of who is on the target the source's rows are deleted, and the other way round:
    // of a move that was partly brought back there may be both.
    let (crossed, stayed): (Vec<&Moving>, Vec<&Moving>) =
        plan.tenants.iter().partition(|tenant| tenant.crossed);
    require_lost(&source, &target, &crossed).await?;
    require_lost(&target, &source, &stayed).await?;
    drop((source, target));
    for (loser, tenants) in [(&plan.from, crossed), (&plan.to, stayed)] {
        if tenants.is_empty() {
            continue;
        }
        let tenants: Vec<Uuid> = tenants.iter().map(|tenant| tenant.id).collect();
        let mut session = context.shard(loser).await?;
        for table in &tenant_tables(&*session).await? {
            for leaf in &table.leaves {
                loop {
                    let batch =
                        tenant_delete::batch(&mut session, id, table, leaf, &tenants).await?;
                    deleted += batch.unsigned_abs();
                    if batch < tenant_delete::BATCH {
                        break;
                    }
                    if Instant::now() >= until {
                        return Ok(job.next(State::CleaningUp {
                            why: why.clone(),
                            rows: deleted,
                        }));
                    }
                }
            }
        }
        if *loser == plan.to {
            // Nobody was ever told to come here, but by who was told to go back.
            session
                .execute(
                    "delete from ringfence.fence where tenant_id = any($1) and state <> 'active'",
                    &[&tenants],
                )
                .await?;
        }
        tenant_delete::delete_marks(&session, id).await?;
    }
    for shard in [&job.plan.from, &job.plan.to] {
        let side = Side::open(context, shard).await?;
        side.client
            .execute("delete from ringfence.move_marker where job = $1", &[&id])
            .await?;
    }
    context.app().move_metrics.ended(why);
    Ok(job.next(State::Over { why: why.clone() }))
}

/// Only rows that nobody serves are deleted, and only of who is served elsewhere.
async fn require_lost(loser: &Side, keeper: &Side, tenants: &[&Moving]) -> Result<(), JobError> {
    let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.id).collect();
    let none = vec![String::new(); ids.len()];
    let (lost, kept) = tokio::try_join!(loser.fences(&ids, &none), keeper.fences(&ids, &none))?;
    for ((tenant, (fence, ..)), (kept, ..)) in tenants.iter().zip(&lost).zip(&kept) {
        if matches!(fence, Fence::Active(_)) || !matches!(kept, Fence::Active(_)) {
            return Err(JobError::Unclear(format!(
                "tenant {} is {fence:?} on {}, where its rows would be deleted, and {kept:?} on {}: nothing is deleted",
                tenant.slug, loser.shard, keeper.shard
            )));
        }
    }
    Ok(())
}

async fn unsubscribe(side: &Side, name: &str) -> Result<(), JobError> {
    side.client
        .execute("select ringfence.move_unsubscribe($1)", &[&name])
        .await?;
    Ok(())
}

/// Switches off and removes what a shard sends.
async fn end_sending(side: &Side, job: &Move, id: Uuid, way: Way) -> Result<(), JobError> {
    let publications = job.publications(id, way);
    side.client
        .execute(
            "select ringfence.move_switch(n, false) from unnest($1::text[]) n
             where exists (select from pg_publication where pubname = n)",
            &[&publications],
        )
        .await?;
    let slot = names::stream(id, way);
    // Whoever still receives is no subscription of ours: those are gone. It may
    // be a former primary that came back after a failover.
    side.client
        .execute(
            "select pg_terminate_backend(active_pid, 2000) from pg_replication_slots
             where slot_name = $1 and active_pid is not null",
            &[&slot],
        )
        .await?;
    side.client
        .execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1",
            &[&slot],
        )
        .await?;
    let mut left = publications;
    left.push(names::markers(id, way));
    let unpublish = "select n from unnest($1::text[]) n where not ringfence.move_unpublish(n)";
    loop {
        let mut still = Vec::new();
        for some in left.chunks(UNPUBLISHED) {
            let rows = side.client.query(unpublish, &[&some]).await?;
            still.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        if still.is_empty() {
            return Ok(());
        }
        left = still;
        tokio::time::sleep(UNPUBLISH).await;
    }
}
