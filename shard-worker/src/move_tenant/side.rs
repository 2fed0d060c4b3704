//! What a move reads and writes on one shard: each a statement, repeatable.

use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio_postgres::Client;
use uuid::Uuid;

use super::crossing::Fence;
use super::throttle::Load;
use crate::job::{Context, JobError};
use crate::shard::ShardError;

/// A fence's commit is on disk, whatever the server's default is.
const DURABLE: &str = "with durable as materialized (
    select set_config('synchronous_commit', case when current_setting('synchronous_commit') in ('off', 'local')
      then 'on' else current_setting('synchronous_commit') end, true))";

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

    /// The tenant's fence, whether it is suspended, and whether a publication is on.
    pub(super) async fn fence(
        &self,
        tenant: Uuid,
        publication: &str,
    ) -> Result<(Fence, bool, Option<bool>), JobError> {
        let row = self
            .client
            .query_one(
                "select f.state, f.epoch, coalesce(f.suspended, false),
                   (select p.pubinsert from pg_publication p where p.pubname = $2)
                 from (select) one left join ringfence.fence f on f.tenant_id = $1",
                &[&tenant, &publication],
            )
            .await?;
        let state: Option<&str> = row.get(0);
        let epoch: Option<i64> = row.get(1);
        let fence = match state.zip(epoch) {
            None => Fence::None,
            Some(("active", epoch)) => Fence::Active(epoch),
            Some(("fenced", epoch)) => Fence::Fenced(epoch),
            Some(("moved", epoch)) => Fence::Moved(epoch),
            Some((other, _)) => {
                return Err(JobError::State(format!(
                    "the fence of {tenant} on {} is {other:?}",
                    self.shard
                )));
            }
        };
        Ok((fence, row.get(2), row.get(3)))
    }

    /// Makes the fence of a tenant that is not active here fenced at `epoch`.
    pub(super) async fn arm(&self, tenant: Uuid, epoch: i64) -> Result<(), JobError> {
        let sql = format!(
            "{DURABLE} insert into ringfence.fence (tenant_id, epoch, state)
             select $1, $2, 'fenced' from durable
             on conflict (tenant_id) do update set epoch = $2, state = 'fenced',
               target_shard = null, target_epoch = null, changed_at = now()
             where fence.state <> 'active'"
        );
        let armed = self.client.execute(&sql, &[&tenant, &epoch]).await?;
        self.one(armed, tenant)
    }

    /// Holds the requests of a tenant that is active at `epoch`.
    pub(super) async fn close(&self, tenant: Uuid, epoch: i64) -> Result<(), JobError> {
        let sql = format!(
            "{DURABLE} update ringfence.fence set state = 'fenced', changed_at = now() from durable
             where tenant_id = $1 and epoch = $2 and state = 'active'"
        );
        let closed = self.client.execute(&sql, &[&tenant, &epoch]).await?;
        self.one(closed, tenant)
    }

    /// Names the shard that has the tenant from `epoch` on.
    pub(super) async fn leave(
        &self,
        tenant: Uuid,
        from: Fence,
        to: &str,
        epoch: i64,
    ) -> Result<(), JobError> {
        let Fence::Fenced(was) = from else {
            return Err(JobError::State(format!(
                "a fence that is {from:?} names nobody"
            )));
        };
        let sql = format!(
            "{DURABLE} update ringfence.fence set state = 'moved', epoch = $3, target_shard = $4,
               target_epoch = $3, changed_at = now() from durable
             where tenant_id = $1 and epoch = $2 and state = 'fenced'"
        );
        let left = self
            .client
            .execute(&sql, &[&tenant, &was, &epoch, &to])
            .await?;
        self.one(left, tenant)
    }

    /// Serves a tenant whose fence was prepared at `epoch`.
    pub(super) async fn activate(
        &self,
        tenant: Uuid,
        epoch: i64,
        suspended: bool,
    ) -> Result<(), JobError> {
        let sql = format!(
            "{DURABLE} update ringfence.fence set state = 'active', suspended = $3, changed_at = now() from durable
             where tenant_id = $1 and epoch = $2 and state = 'fenced'"
        );
        let active = self
            .client
            .execute(&sql, &[&tenant, &epoch, &suspended])
            .await?;
        self.one(active, tenant)
    }

    /// Serves a tenant again that was held, or had been sent away, at `was`.
    pub(super) async fn reopen(&self, tenant: Uuid, was: i64, epoch: i64) -> Result<(), JobError> {
        let sql = format!(
            "{DURABLE} update ringfence.fence set state = 'active', epoch = $3, target_shard = null,
               target_epoch = null, changed_at = now() from durable
             where tenant_id = $1 and epoch = $2 and state in ('fenced', 'moved')"
        );
        let open = self.client.execute(&sql, &[&tenant, &was, &epoch]).await?;
        self.one(open, tenant)
    }

    /// Switches a publication.
    pub(super) async fn switch(&self, publication: &str, is_on: bool) -> Result<(), JobError> {
        self.client
            .execute(
                "select ringfence.move_switch($1, $2)",
                &[&publication, &is_on],
            )
            .await?;
        Ok(())
    }

    pub(super) async fn look(&self) -> Result<Look, JobError> {
        let row = self
            .client
            .query_one("select * from ringfence.move_look()", &[])
            .await?;
        let (system, timeline): (&str, i32) = (row.get("system"), row.get("timeline"));
        let lsn: i64 = row.get("lsn");
        Ok(Look {
            server: (system.parse().unwrap_or_default(), timeline.unsigned_abs()),
            lsn: lsn.unsigned_abs(),
            version: row.get("version"),
            writers: row.get("writers"),
            slots_left: row.get("slots_left"),
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
            .execute(
                "insert into ringfence.move_marker (id, job, way) values ($1, $2, $3)",
                &[&id, &job, &way],
            )
            .await?;
        Ok(id)
    }

    /// Once no write of the tenant is under way any longer, writes a marker, as
    /// one statement's worth of round trips. The fence is closed: none begins.
    pub(super) async fn mark_when_written(
        &self,
        tenant: Uuid,
        job: Uuid,
        way: &str,
        wait_max: Duration,
    ) -> Result<Uuid, JobError> {
        let id = Uuid::new_v4();
        let wait_ms = wait_max.as_millis().max(1);
        // One implicit transaction: the lock is had before the marker is written.
        let sql = format!(
            "select set_config('lock_timeout', '{wait_ms}ms', true);
             select pg_advisory_xact_lock(uuid_hash_extended('{tenant}', 0));
             insert into ringfence.move_marker (id, job, way) values ('{id}', '{job}', '{way}')"
        );
        self.client.batch_execute(&sql).await?;
        Ok(id)
    }

    /// Waits until a marker has come in; the caller bounds it.
    pub(super) async fn wait_for_marker(&self, id: Uuid, every: Duration) -> Result<(), JobError> {
        let seen = self
            .client
            .prepare("select exists (select from ringfence.move_marker where id = $1)")
            .await?;
        while !self
            .client
            .query_one(&seen, &[&id])
            .await?
            .get::<_, bool>(0)
        {
            tokio::time::sleep(every).await;
        }
        Ok(())
    }

    /// Where the application's sequences are.
    pub(super) async fn sequences(&self) -> Result<(Vec<String>, Vec<i64>), JobError> {
        let rows = self
            .client
            .query("select name, last from ringfence.move_sequences()", &[])
            .await?;
        Ok(rows
            .iter()
            .map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1)))
            .unzip())
    }

    /// Raises sequences so that none gives up a number up to these.
    pub(super) async fn raise_sequences(
        &self,
        (names, past): &(Vec<String>, Vec<i64>),
    ) -> Result<(), JobError> {
        self.client
            .execute(
                "select ringfence.raise_sequence(to_regclass(s.name), s.past)
                 from unnest($1::text[], $2::bigint[]) s (name, past)
                 where to_regclass(s.name) is not null",
                &[names, past],
            )
            .await?;
        Ok(())
    }

    /// Waits until all streaming standbys have on disk what this primary has
    /// committed up to now; the caller bounds it.
    pub(super) async fn wait_for_standbys(&self, every: Duration) -> Result<(), JobError> {
        let lsn: String = self
            .client
            .query_one("select pg_current_wal_insert_lsn()::text", &[])
            .await?
            .get(0);
        let behind = self
            .client
            .prepare("select ringfence.standbys_behind($1::text::pg_lsn)")
            .await?;
        while self
            .client
            .query_one(&behind, &[&lsn])
            .await?
            .get::<_, i64>(0)
            > 0
        {
            tokio::time::sleep(every).await;
        }
        Ok(())
    }

    /// A fence was changed: exactly one, or the shard shows something else.
    fn one(&self, changed: u64, tenant: Uuid) -> Result<(), JobError> {
        match changed {
            1 => Ok(()),
            _ => Err(JobError::Shard(ShardError::Changed {
                shard: self.shard.clone(),
                tenant,
            })),
        }
    }
}
