//! What a move reads and writes on one shard: each a statement, repeatable.

use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::crossing::Fence;
use super::refusals::File;
use super::throttle::Load;
use super::{Way, names};
use crate::job::{Context, JobError};
use crate::shard::ShardError;

/// A fence's commit is on disk, whatever the server's default is.
const DURABLE: &str = "with durable as materialized (select ringfence.move_durable())";

/// SQLSTATE of a function that found a fence otherwise.
const CHANGED: &str = "RF015";

/// A session of the mover on a shard's primary, with the job's lock.
pub(super) struct Side {
    pub(super) shard: String,
    pub(super) client: OwnedMutexGuard<Client>,
}

/// What a primary says of itself.
pub(super) struct Look {
    /// `server_version_num`.
    pub(super) version: i32,
    /// Transactions that have been writing for long.
    pub(super) writers: i64,
    /// Replication slots that can still be made.
    pub(super) slots_left: i64,
    /// Workers of logical replication that no subscription has.
    pub(super) workers_left: i64,
    /// Its changes are captured: routers may have cached answers.
    pub(super) captured: bool,
    /// The mover passes row level security, and may replicate.
    pub(super) bypasses: bool,
    /// System identifier and timeline.
    pub(super) server: (u64, u32),
    /// Up to where the log is written.
    pub(super) lsn: u64,
}

impl Side {
    pub(super) async fn open(context: &Context, shard: &str) -> Result<Self, JobError> {
        let client = context.shard(shard).await?;
        Ok(Self {
            shard: shard.to_owned(),
            client,
        })
    }

    /// Tenants' fences, whether they are suspended, and whether their publications
    /// are on; in their order.
    pub(super) async fn fences(
        &self,
        tenants: &[Uuid],
        publications: &[String],
    ) -> Result<Vec<(Fence, bool, Option<bool>)>, JobError> {
        let rows = self
            .client
            .query_typed(
                "select f.state, f.epoch, coalesce(f.suspended, false),
                   (select p.pubinsert from pg_publication p where p.pubname = u.publication)
                 from unnest($1, $2) with ordinality u (tenant, publication, place)
                 left join ringfence.fence f on f.tenant_id = u.tenant order by u.place",
                &[
                    (&tenants, Type::UUID_ARRAY),
                    (&publications, Type::TEXT_ARRAY),
                ],
            )
            .await?;
        let fence = |row: &Row| {
            let (state, epoch): (Option<&str>, Option<i64>) = (row.get(0), row.get(1));
            let fence = match state.zip(epoch) {
                None => Fence::None,
                Some(("active", epoch)) => Fence::Active(epoch),
                Some(("fenced", epoch)) => Fence::Fenced(epoch),
                Some(("moved", epoch)) => Fence::Moved(epoch),
                Some((other, _)) => {
                    let why = format!("a fence on {} is {other:?}", self.shard);
                    return Err(JobError::State(why));
                }
            };
            Ok((fence, row.get(2), row.get(3)))
        };
        rows.iter().map(fence).collect()
    }

    /// Makes the fences of tenants that are not active here fenced, at the epochs
    /// behind these.
    pub(super) async fn arm(&self, tenants: &[Uuid], epochs: &[i64]) -> Result<(), JobError> {
        let sql = format!(
            "{DURABLE} insert into ringfence.fence (tenant_id, epoch, state)
             select u.tenant, u.epoch + 1, 'fenced' from durable, unnest($1, $2) u (tenant, epoch)
             on conflict (tenant_id) do update set epoch = excluded.epoch, state = 'fenced',
               target_shard = null, target_epoch = null, changed_at = now()
             where fence.state <> 'active'"
        );
        let armed = self
            .client
            .execute_typed(
                &sql,
                &[(&tenants, Type::UUID_ARRAY), (&epochs, Type::INT8_ARRAY)],
            )
            .await?;
        self.all(armed, tenants)
    }

    /// Holds the requests of tenants that are active at these epochs, once their
    /// writes under way have ended; the marker that it writes is behind them.
    pub(super) async fn close(
        &self,
        tenants: &[Uuid],
        epochs: &[i64],
        (job, way): (Uuid, &str),
        wait_max: Duration,
    ) -> Result<Uuid, JobError> {
        let marker = Uuid::new_v4();
        let closed = self
            .client
            .query_typed(
                "select ringfence.move_close($1, $2, $3, $4, $5, $6)",
                &[
                    (&tenants, Type::UUID_ARRAY),
                    (&epochs, Type::INT8_ARRAY),
                    (&marker, Type::UUID),
                    (&job, Type::UUID),
                    (&way, Type::TEXT),
                    (&millis(wait_max), Type::INT4),
                ],
            )
            .await;
        self.done(closed, tenants)?;
        Ok(marker)
    }

    /// Names the shard that has tenants from the epochs behind these on, and
    /// switches their publications off.
    pub(super) async fn leave(
        &self,
        tenants: &[Uuid],
        epochs: &[i64],
        to: &str,
        publications: &[String],
    ) -> Result<(), JobError> {
        let left = self
            .client
            .query_typed(
                "select ringfence.move_leave($1, $2, $3, $4)",
                &[
                    (&tenants, Type::UUID_ARRAY),
                    (&epochs, Type::INT8_ARRAY),
                    (&to, Type::TEXT),
                    (&publications, Type::TEXT_ARRAY),
                ],
            )
            .await;
        self.done(left, tenants)
    }

    /// Serves tenants whose fences were prepared at the epochs behind these, and
    /// switches their publications on.
    pub(super) async fn activate(
        &self,
        tenants: &[Uuid],
        epochs: &[i64],
        suspended: &[bool],
        publications: &[String],
    ) -> Result<(), JobError> {
        let prepared: Vec<i64> = epochs.iter().map(|epoch| epoch + 1).collect();
        let active = self
            .client
            .query_typed(
                "select ringfence.move_activate($1, $2, $3, $4)",
                &[
                    (&tenants, Type::UUID_ARRAY),
                    (&prepared, Type::INT8_ARRAY),
                    (&suspended, Type::BOOL_ARRAY),
                    (&publications, Type::TEXT_ARRAY),
                ],
            )
            .await;
        self.done(active, tenants)
    }

    /// Sends tenants, whose fences were prepared at the epochs behind these, to
    /// another shard, where they are at `at`.
    pub(super) async fn disarm(
        &self,
        tenants: &[Uuid],
        epochs: &[i64],
        to: &str,
        at: &[i64],
    ) -> Result<(), JobError> {
        let sql = format!(
            "{DURABLE} update ringfence.fence f set state = 'moved', epoch = u.at, target_shard = $3,
               target_epoch = u.at, changed_at = now()
             from durable, unnest($1, $2, $4) u (tenant, epoch, at)
             where f.tenant_id = u.tenant and f.epoch = u.epoch + 1 and f.state = 'fenced'"
        );
        let sent = self
            .client
            .execute_typed(
                &sql,
                &[
                    (&tenants, Type::UUID_ARRAY),
                    (&epochs, Type::INT8_ARRAY),
                    (&to, Type::TEXT),
                    (&at, Type::INT8_ARRAY),
                ],
            )
            .await?;
        self.all(sent, tenants)
    }

    /// Serves tenants again that were held, or had been sent away, at `was`.
    pub(super) async fn reopen(
        &self,
        tenants: &[Uuid],
        was: &[i64],
        epochs: &[i64],
    ) -> Result<(), JobError> {
        let sql = format!(
            "{DURABLE} update ringfence.fence f set state = 'active', epoch = u.epoch, target_shard = null,
               target_epoch = null, changed_at = now()
             from durable, unnest($1, $2, $3) u (tenant, was, epoch)
             where f.tenant_id = u.tenant and f.epoch = u.was and f.state in ('fenced', 'moved')"
        );
        let open = self
            .client
            .execute_typed(
                &sql,
                &[
                    (&tenants, Type::UUID_ARRAY),
                    (&was, Type::INT8_ARRAY),
                    (&epochs, Type::INT8_ARRAY),
                ],
            )
            .await?;
        self.all(open, tenants)
    }

    /// There is a slot of that name, and the log behind it.
    pub(super) async fn has_slot(&self, name: &str) -> Result<bool, JobError> {
        let row = self
            .client
            .query_one(
                "select exists (select from pg_replication_slots
                   where slot_name = $1 and wal_status is distinct from 'lost')",
                &[&name],
            )
            .await?;
        Ok(row.get(0))
    }

    /// A table of tenants that one of these publications leaves out, or one that is
    /// published and is no tenants' any longer.
    pub(super) async fn published_otherwise(
        &self,
        publications: &[String],
    ) -> Result<Option<String>, JobError> {
        let row = self
            .client
            .query_opt(
                "with publication as materialized (
                   select p.oid from pg_publication p where p.pubname = any($1)),
                 wanted as (select p.oid, r.relid::oid as relid from publication p, ringfence.relation r
                   where r.kind = 'distributed'),
                 there as (select l.prpubid, l.prrelid from pg_publication_rel l
                   join publication p on p.oid = l.prpubid)
                 select coalesce(w.relid, t.prrelid)::regclass::text
                 from wanted w full join there t on t.prpubid = w.oid and t.prrelid = w.relid
                 where w.relid is null or t.prrelid is null limit 1",
                &[&publications],
            )
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// What this shard has of the application's migration files, in order.
    pub(super) async fn migrations(&self) -> Result<Vec<File>, JobError> {
        let rows = self
            .client
            .query(
                "select directory, number, name, state = 'done' from ringfence.migration
                 order by directory, number",
                &[],
            )
            .await?;
        let file = |row: &Row| File {
            name: format!(
                "{}/{:03}_{}.sql",
                row.get::<_, &str>(0),
                row.get::<_, i32>(1),
                row.get::<_, &str>(2)
            ),
            is_done: row.get(3),
        };
        Ok(rows.iter().map(file).collect())
    }

    /// Switches publications on.
    pub(super) async fn send_again(&self, publications: &[String]) -> Result<(), JobError> {
        self.client
            .query_typed(
                "select ringfence.move_switch(p, true) from unnest($1) p",
                &[(&publications, Type::TEXT_ARRAY)],
            )
            .await?;
        Ok(())
    }

    pub(super) async fn look(&self) -> Result<Look, JobError> {
        let row = self
            .client
            .query_typed_one("select * from ringfence.move_look()", &[])
            .await?;
        let (system, timeline): (&str, i32) = (row.get("system"), row.get("timeline"));
        let lsn: i64 = row.get("lsn");
        Ok(Look {
            server: (system.parse().unwrap_or_default(), timeline.unsigned_abs()),
            lsn: lsn.unsigned_abs(),
            version: row.get("version"),
            writers: row.get("writers"),
            slots_left: row.get("slots_left"),
            // Not of a shard that another version has installed.
            workers_left: row.try_get("workers_left")?,
            captured: row.get("captured"),
            bypasses: row.get("bypasses"),
        })
    }

    pub(super) async fn load(&self) -> Result<Load, JobError> {
        let row = self
            .client
            .query_one("select * from ringfence.move_load()", &[])
            .await?;
        let bytes = |column| row.get::<_, i64>(column).unsigned_abs();
        Ok(Load {
            standby_lag: bytes("standby_lag"),
            capture_lag: bytes("capture_lag"),
            busy: bytes("busy"),
        })
    }

    /// Writes a marker of the stream that goes out from here.
    pub(super) async fn mark(&self, job: Uuid, way: &str) -> Result<Uuid, JobError> {
        let id = Uuid::new_v4();
        self.client
            .execute_typed(
                "insert into ringfence.move_marker (id, job, way) values ($1, $2, $3)",
                &[(&id, Type::UUID), (&job, Type::UUID), (&way, Type::TEXT)],
            )
            .await?;
        Ok(id)
    }

    /// Waits until a marker has come in; false: it has not, in that time.
    pub(super) async fn arrived(&self, marker: Uuid, max: Duration) -> Result<bool, JobError> {
        let row = self
            .client
            .query_typed_one(
                "select ringfence.move_arrived($1, $2)",
                &[(&marker, Type::UUID), (&millis(max), Type::INT4)],
            )
            .await?;
        Ok(row.get(0))
    }

    /// Waits until all that was committed here has come in on the other shard, and
    /// tells how long that took.
    ///
    /// # Errors
    /// [`JobError::Wait`] where it takes longer than `max`.
    pub(super) async fn arrive_on(
        &self,
        target: &Side,
        job: Uuid,
        way: Way,
        max: Duration,
    ) -> Result<Duration, JobError> {
        let began = Instant::now();
        let marker = self.mark(job, names::way(way)).await?;
        match target.arrived(marker, max).await? {
            true => Ok(began.elapsed()),
            false => Err(JobError::Wait(format!(
                "shard {} is more than {} ms behind",
                target.shard,
                max.as_millis()
            ))),
        }
    }

    /// Where the application's sequences are.
    pub(super) async fn sequences(&self) -> Result<(Vec<String>, Vec<i64>), JobError> {
        let rows = self
            .client
            .query_typed("select name, last from ringfence.move_sequences()", &[])
            .await?;
        Ok(rows
            .iter()
            .map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1)))
            .unzip())
    }

    /// Raises sequences so that none gives up a number up to these. The disk is not
    /// waited for: the tenants' activation is behind it in the log, and every try of a
    /// cut-over begins with it.
    pub(super) async fn raise_sequences(
        &self,
        (names, past): &(Vec<String>, Vec<i64>),
    ) -> Result<(), JobError> {
        self.client
            .query_typed(
                "with quick as materialized (select set_config('synchronous_commit', 'off', true))
                 select ringfence.raise_sequence(to_regclass(s.name), s.past)
                 from quick, unnest($1, $2) s (name, past) where to_regclass(s.name) is not null",
                &[(names, Type::TEXT_ARRAY), (past, Type::INT8_ARRAY)],
            )
            .await?;
        Ok(())
    }

    /// Has rows that came in on disk, where standbys wait for them.
    pub(super) async fn flush(&self) -> Result<(), JobError> {
        let flush = "select ringfence.move_flush()";
        self.client.query_typed(flush, &[]).await?;
        Ok(())
    }

    /// Waits until all streaming standbys have on disk what this primary has;
    /// false: one has not, in that time.
    pub(super) async fn on_standbys(&self, max: Duration) -> Result<bool, JobError> {
        let row = self
            .client
            .query_typed_one(
                "select ringfence.move_on_standbys($1)",
                &[(&millis(max), Type::INT4)],
            )
            .await?;
        Ok(row.get(0))
    }

    /// All these fences were changed, or the shard shows something else.
    fn all(&self, changed: u64, tenants: &[Uuid]) -> Result<(), JobError> {
        match changed == tenants.len() as u64 {
            true => Ok(()),
            false => Err(self.changed(tenants)),
        }
    }

    /// The same of a function, which changes all of them or none.
    fn done<T>(
        &self,
        done: Result<T, tokio_postgres::Error>,
        tenants: &[Uuid],
    ) -> Result<(), JobError> {
        match done {
            Ok(_) => Ok(()),
            Err(error) if error.code().is_some_and(|code| code.code() == CHANGED) => {
                Err(self.changed(tenants))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn changed(&self, tenants: &[Uuid]) -> JobError {
        JobError::Shard(ShardError::Changed {
            shard: self.shard.clone(),
            tenant: tenants.first().copied().unwrap_or_default(),
        })
    }
}

/// For Postgres; 0 would be no limit.
fn millis(max: Duration) -> i32 {
    i32::try_from(max.as_millis()).unwrap_or(i32::MAX).max(1)
}
