//! Whether a move can be done, and all that is made before rows are copied.

use schema::tenant_tables::tenant_tables;
use tokio_postgres::Client;
use uuid::Uuid;

use super::crossing::Fence;
use super::side::Side;
use super::{Move, Plan, State, Way, failpoint, names, refusals, throttle};
use crate::job::{Context, JobError, Step};
use crate::reconcile;
use crate::shard::STATEMENT_MAX;

/// Slots that a move takes on a shard: its own, those of four tables at once,
/// and one by which it knows what is written meanwhile.
const SLOTS: i64 = 6;
/// Workers of logical replication that a move takes on a shard: one that applies, and
/// one that copies a table.
const WORKERS: i64 = 2;
/// Longest wait for open transactions, which the making of a slot waits for.
const SLOT_MAX_MS: u64 = 20_000;

/// Refuses what can't be done, before anything is made.
pub(super) async fn check(context: &Context, job: &Move) -> Result<Step<Move>, JobError> {
    let plan = &job.plan;
    let target = Side::open(context, &plan.to).await?;
    let source = Side::open(context, &plan.from).await?;
    for side in [&source, &target] {
        let look = side.look().await?;
        if let Some(why) = refusals::of_version(&side.shard, look.version) {
            return Err(JobError::Refused(why));
        }
        if !look.bypasses {
            return Err(JobError::Refused(format!(
                "role ringfence_mover on shard {} must have REPLICATION and BYPASSRLS: it would copy nothing",
                side.shard
            )));
        }
        if look.slots_left < SLOTS {
            return Err(JobError::Refused(format!(
                "shard {} has {} replication slots left, a move takes {SLOTS}: complete moves that are retained, or raise max_replication_slots",
                side.shard, look.slots_left
            )));
        }
        if look.workers_left < WORKERS {
            return Err(JobError::Refused(format!(
                "shard {} has {} workers of logical replication left, a move takes {WORKERS}: complete moves that are retained, or raise max_logical_replication_workers and max_worker_processes",
                side.shard, look.workers_left
            )));
        }
    }
    same_schema(&source, &target).await?;
    for side in [&source, &target] {
        let sql = "select relation, reason from ringfence.move_refusals() limit 1";
        if let Some(row) = side.client.query_opt(sql, &[]).await? {
            let (table, why): (String, String) = (row.get(0), row.get(1));
            return Err(JobError::Refused(format!(
                "table {table} of shard {} can't be moved: {why}",
                side.shard
            )));
        }
    }
    let tenants = plan.ids();
    let none = vec![String::new(); tenants.len()];
    let (there, here) = tokio::try_join!(
        source.fences(&tenants, &none),
        target.fences(&tenants, &none)
    )?;
    for ((tenant, (there, ..)), (here, ..)) in plan.tenants.iter().zip(&there).zip(&here) {
        if *there != Fence::Active(tenant.epoch) {
            return Err(JobError::Refused(format!(
                "tenant {} is not served by shard {} at epoch {}: its fence there is {there:?}",
                tenant.slug, plan.from, tenant.epoch
            )));
        }
        if !matches!(here, Fence::None | Fence::Moved(_)) {
            return Err(JobError::Refused(format!(
                "shard {} has a fence of tenant {} already: {here:?}",
                plan.to, tenant.slug
            )));
        }
    }
    refuse_leftovers(&target, plan).await?;
    let rows = expected(&source.client, &tenants).await?;
    if let Some(busy) = throttle::busy(context, &source, &target).await? {
        return Err(JobError::Wait(format!("{}: no copy is begun", busy.why)));
    }
    context.app().move_metrics.began();
    tracing::info!(rows, "move can be done");
    Ok(job.next(State::Preparing))
}

/// Makes publications, slots, and subscriptions, in that order: a slot decodes
/// only what is published by then, and a subscription must find its slot.
pub(super) async fn prepare(context: &Context, job: &Move) -> Result<Step<Move>, JobError> {
    let (plan, id) = (&job.plan, context.job().id);
    failpoint(context, "preparing")?;
    let source = Side::open(context, &plan.from).await?;
    let target = Side::open(context, &plan.to).await?;
    tokio::try_join!(
        publish(&source, job, id, Way::Forward),
        publish(&target, job, id, Way::Back)
    )?;
    failpoint(context, "published")?;
    let (there, back) = (
        names::stream(id, Way::Forward),
        names::stream(id, Way::Back),
    );
    tokio::try_join!(
        make_slot(&source.client, &there),
        make_slot(&target.client, &back)
    )?;
    failpoint(context, "slots_made")?;
    tokio::try_join!(
        subscribe(context, &target, job, Way::Forward),
        subscribe(context, &source, job, Way::Back)
    )?;
    failpoint(context, "subscribed")?;
    let rows = expected(&source.client, &plan.ids()).await?;
    Ok(job.next(State::Copying {
        rows: 0,
        expected: rows,
        why: None,
    }))
}

/// Makes what a shard publishes: markers, and its tenants, who are sent forward only.
async fn publish(side: &Side, job: &Move, id: Uuid, way: Way) -> Result<(), JobError> {
    side.client
        .execute(
            "select ringfence.move_publish_markers($1, $2, $3)",
            &[&names::markers(id, way), &id, &names::way(way)],
        )
        .await?;
    side.client
        .execute(
            "select ringfence.move_publish(u.name,
               ($2::uuid[])[((u.n - 1) * $3::bigint + 1)::int : (u.n * $3::bigint)::int], $4)
             from unnest($1::text[]) with ordinality u (name, n)",
            &[
                &job.publications(id, way),
                &job.plan.ids(),
                &i64::try_from(job.plan.bundle()).unwrap_or(1),
                &(way == Way::Forward),
            ],
        )
        .await?;
    Ok(())
}

/// Has a shard receive what the other sends: forward with all that is there, back
/// what is written from now on.
async fn subscribe(context: &Context, side: &Side, job: &Move, way: Way) -> Result<(), JobError> {
    let id = context.job().id;
    let (from, _) = job.plan.ends(way);
    let nodes = reconcile::addresses(&context.shard_info(from).await?);
    let conninfo = context.app().logins.mover_conninfo(&nodes);
    let mut publications = vec![names::markers(id, way)];
    publications.extend(job.publications(id, way));
    side.client
        .execute(
            "select ringfence.move_subscribe($1, $2, $3, $4)",
            &[
                &names::stream(id, way),
                &conninfo,
                &publications,
                &(way == Way::Forward),
            ],
        )
        .await?;
    Ok(())
}

/// Refuses shards whose tables differ, or that are not equally far with migrations.
pub(super) async fn same_schema(source: &Side, target: &Side) -> Result<(), JobError> {
    let (there, here) = tokio::try_join!(source.migrations(), target.migrations())?;
    if let Some(why) = refusals::of_histories((&source.shard, &there), (&target.shard, &here)) {
        return Err(JobError::Refused(why));
    }
    let (there, here) = tokio::join!(
        tenant_tables(&*source.client),
        tenant_tables(&*target.client)
    );
    let (there, here) = (there?, here?);
    match refusals::of_schemas((&source.shard, &there), (&target.shard, &here)) {
        None => Ok(()),
        Some(why) => Err(JobError::Refused(why)),
    }
}

/// Refuses where a table came or went since the publications were made: its rows are
/// neither copied nor sent back.
pub(super) async fn same_tables(
    job: &Move,
    id: Uuid,
    source: &Side,
    target: &Side,
) -> Result<(), JobError> {
    let (out, back) = (
        job.publications(id, Way::Forward),
        job.publications(id, Way::Back),
    );
    let (sends, receives) = tokio::try_join!(
        source.published_otherwise(&out),
        target.published_otherwise(&back)
    )?;
    for (side, otherwise) in [(source, sends), (target, receives)] {
        if let Some(table) = otherwise {
            return Err(JobError::Refused(format!(
                "table {table} of shard {} came or went while the move was under way: start it again",
                side.shard
            )));
        }
    }
    Ok(())
}

/// Rows of the tenants that the target holds already would collide with their own.
async fn refuse_leftovers(target: &Side, plan: &Plan) -> Result<(), JobError> {
    let tenants = plan.ids();
    for table in tenant_tables(&*target.client).await? {
        let sql = format!(
            "select {column} from {} where {column} = any($1) limit 1",
            table.name,
            column = table.tenant_column
        );
        if let Some(row) = target.client.query_opt(&sql, &[&tenants]).await? {
            let left: Uuid = row.get(0);
            let tenant = plan.tenants.iter().find(|tenant| tenant.id == left);
            return Err(JobError::Refused(format!(
                "shard {} holds rows of tenant {} already, in {}: they are nobody's, delete them first",
                target.shard,
                tenant.map_or("", |tenant| tenant.slug.as_str()),
                table.name
            )));
        }
    }
    Ok(())
}

async fn make_slot(client: &Client, name: &str) -> Result<(), JobError> {
    client
        .batch_execute(&format!("set statement_timeout = {SLOT_MAX_MS}"))
        .await?;
    let made = client
        .execute(
            "select pg_create_logical_replication_slot($1::text, 'pgoutput')
             where not exists (select from pg_replication_slots where slot_name = $1::text)",
            &[&name],
        )
        .await;
    let usual = format!("set statement_timeout = {}", STATEMENT_MAX.as_millis());
    client.batch_execute(&usual).await?;
    made?;
    Ok(())
}

/// Rows of tenants, as the planner sees them.
pub(super) async fn expected(client: &Client, tenants: &[Uuid]) -> Result<u64, JobError> {
    let mut rows = 0;
    for table in tenant_tables(client).await? {
        rows += crate::tenant_delete::estimate(client, &table, tenants).await?;
    }
    Ok(rows)
}
