//! Which shards a run is about, and what a shard gets that joins them.

use std::time::Duration;

use schema::apply::{self, ApplyError, Limits};
use schema::history;
use schema::lint::{Known, RelationKind};
use schema::migration::Migration;
use schema::retire;
use tenancy::control::{Control, ControlError, ShardInfo};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::{Client, Transaction};

use super::error::Reach;
use super::{Migrate, Plan, Stop, store};
use crate::app::App;
use crate::job::store::START_LOCK;
use crate::job::{Context, JobError, Kind};
use crate::reconcile;
use crate::shard::ShardError;

/// Shards that are asked side by side.
pub(super) const ASKED_AT_ONCE: usize = 16;
/// Who changes what all shards have holds this lock alone; who puts a shard on
/// the ring holds it with others. So no shard joins with less than all.
const FLEET_LOCK: i64 = 0x7269_6e67_0007;
/// Longest catching up of a new shard.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
/// Longest look at what is hidden on a shard.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Shards that are asked what tables there are, until one answers.
const ASKED_FOR_TABLES: usize = 3;
/// A pause for a lock, or for followers.
const PAUSE: Duration = Duration::from_millis(250);

/// Shards that serve tenants, the canary first: the one that was named, or that
/// with the fewest tenants.
pub(super) async fn order(
    control: &Control,
    canary: Option<&str>,
) -> Result<Vec<String>, JobError> {
    let mut shards: Vec<ShardInfo> = control.shards().await?;
    shards.retain(|shard| shard.state != "preparing");
    let first = |shard: &ShardInfo| match canary {
        Some(named) => i64::from(shard.id != named),
        None => shard.tenants,
    };
    let canary = shards.iter().map(first).enumerate();
    if let Some((place, _)) = canary.min_by_key(|(_, tenants)| *tenants) {
        let canary = shards.remove(place);
        shards.insert(0, canary);
    }
    Ok(shards.into_iter().map(|shard| shard.id).collect())
}

/// What the rules need to know of shards: the reference tables of the canary, or of
/// the next that answers. Any other table they take for a tenant's, which is strictest.
///
/// # Errors
/// The control database's.
pub async fn known(app: &App, canary: Option<&str>) -> Result<Known, JobError> {
    let shards = app.control.shards().await?;
    let order = order(&app.control, canary).await?;
    for id in order.iter().take(ASKED_FOR_TABLES) {
        let Some(shard) = shards.iter().find(|shard| shard.id == *id) else {
            continue;
        };
        let nodes = reconcile::addresses(shard);
        let tables = timeout(LOOK_MAX, async {
            let client = app.logins.as_worker(&shard.id, &nodes).await?;
            let rows = client
                .query(
                    "select format('%I.%I', n.nspname, c.relname)
                     from ringfence.relation r join pg_class c on c.oid = r.relid
                     join pg_namespace n on n.oid = c.relnamespace where r.kind = 'reference'",
                    &[],
                )
                .await?;
            let names = rows.iter().map(|row| row.get(0));
            Ok::<Vec<String>, ShardError>(names.collect())
        });
        if let Ok(Ok(tables)) = tables.await {
            let with = |known: Known, table: &String| known.with(table, RelationKind::Reference);
            return Ok(tables.iter().fold(Known::new(), with));
        }
    }
    Ok(Known::new())
}

/// Declares the files to be on all shards, together with the job's last state;
/// or names shards that came meanwhile and must be done first.
pub(super) async fn settle(
    context: &Context,
    plan: &Plan,
    known: &[&str],
    done: &Migrate,
) -> Result<Vec<String>, JobError> {
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    let locked = transaction
        .query_one("select pg_try_advisory_xact_lock($1)", &[&FLEET_LOCK])
        .await?;
    if !locked.get::<_, bool>(0) {
        return Err(JobError::Wait(
            "a shard is just being put on the ring".into(),
        ));
    }
    let missing = transaction
        .query(
            "select id from ringfence.shard where state <> 'preparing' and id <> all($1) order by id",
            &[&known],
        )
        .await?;
    if !missing.is_empty() {
        return Ok(missing.iter().map(|row| row.get(0)).collect());
    }
    transaction
        .execute(
            "update ringfence.migration set applied = true where directory = $1 and number <= $2",
            &[&plan.directory, &(plan.last as i32)],
        )
        .await?;
    context.commit(transaction, done).await?;
    Ok(Vec::new())
}

/// Keeps what all shards have from changing until the transaction's end.
pub async fn finished(transaction: &Transaction<'_>) -> Result<(), ControlError> {
    transaction
        .execute("select pg_advisory_xact_lock_shared($1)", &[&FLEET_LOCK])
        .await?;
    Ok(())
}

/// Gives a new shard all files that the others have, in the order in which they
/// were given to the fleet. Returns how many it lacked.
///
/// # Errors
/// What stopped it; called again, it goes on.
pub async fn catch_up(app: &App, shard: &ShardInfo) -> Result<u32, Stop> {
    let all = store::applied(&app.control).await?;
    if all.is_empty() {
        return Ok(0);
    }
    let until = Instant::now() + CATCH_UP_MAX;
    let caught_up = timeout_at(until, lacking(app, shard, &all));
    let slow = |_| Stop::Job(JobError::Shard(ShardError::Slow));
    caught_up.await.map_err(slow)?
}

/// Applies all that the shard lacks; the caller bounds it.
async fn lacking(
    app: &App,
    shard: &ShardInfo,
    all: &[(String, Vec<Migration>)],
) -> Result<u32, Stop> {
    let nodes = reconcile::addresses(shard);
    let client = app.logins.as_migrator(&shard.id, &nodes).await;
    let mut client = client.map_err(JobError::from)?;
    let mut applied = 0;
    for (directory, files) in all {
        let entries = history::read(&client, directory)
            .await
            .map_err(JobError::from)?;
        for file in files {
            let known = entries.iter().find(|entry| entry.number == file.number);
            if known.is_some_and(|entry| entry.checksum != file.checksum) {
                return Err(Stop::Changed {
                    place: format!("shard {}", shard.id),
                    file: file.file(),
                });
            }
            if known.is_some_and(|entry| entry.done) {
                continue;
            }
            whole(&mut client, &shard.id, directory, file).await?;
            applied += 1;
        }
    }
    Ok(applied)
}

/// Advances one file to its end.
async fn whole(
    client: &mut Client,
    shard: &str,
    directory: &str,
    file: &Migration,
) -> Result<(), Stop> {
    let limits = Limits::default();
    loop {
        match apply::advance(client, directory, file, &limits).await {
            Ok(advance) if advance.done => return Ok(()),
            Ok(advance) if advance.lag.is_none() => {}
            Ok(_) | Err(ApplyError::Locked { .. }) => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                // It joins shards that have the file.
                let reach = Reach {
                    elsewhere: true,
                    in_part: !file.header.transaction,
                };
                return Err(super::shard::stop(shard, error, reach));
            }
        }
    }
}

/// Shows again what runs have left hidden: their worker or the shard was away
/// when they ended. While a run is under way nothing is touched, and none
/// begins meanwhile.
pub async fn sweep(app: &App) -> Result<(), JobError> {
    for shard in app.control.shards().await? {
        let nodes = reconcile::addresses(&shard);
        let hidden = timeout(LOOK_MAX, async {
            let client = app.logins.as_worker(&shard.id, &nodes).await?;
            let hidden = "select exists (select from ringfence.retired)";
            Ok::<bool, ShardError>(client.query_one(hidden, &[]).await?.get(0))
        });
        // One that does not answer is looked at the next time.
        if matches!(hidden.await, Ok(Ok(true))) {
            reveal_unless_running(app, &shard).await?;
        }
    }
    Ok(())
}

async fn reveal_unless_running(app: &App, shard: &ShardInfo) -> Result<(), JobError> {
    let mut control = app.control.client().await?;
    let transaction = control.transaction().await?;
    transaction
        .execute("select pg_advisory_xact_lock($1)", &[&START_LOCK])
        .await?;
    let running = transaction
        .query_one(
            "select exists (select from ringfence.job where kind = $1 and not done)",
            &[&Kind::Migrate.name()],
        )
        .await?;
    if !running.get::<_, bool>(0) {
        let nodes = reconcile::addresses(shard);
        let shown = timeout(LOOK_MAX, async {
            let client = app.logins.as_migrator(&shard.id, &nodes).await?;
            Ok::<(), ShardError>(retire::show(&client).await?)
        });
        if matches!(shown.await, Ok(Ok(()))) {
            tracing::info!(shard = shard.id, "shown again what a migration had hidden");
        }
    }
    transaction.commit().await?;
    Ok(())
}
