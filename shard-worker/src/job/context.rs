//! What a job's step works with: the job, its place in the control database,
//! and sessions on shards that only the lease's holder has.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tenancy::control::{Control, ShardInfo};
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lease::Lease;
use super::store::{self, Claimed, Place};
use super::{JobError, Machine};
use crate::app::App;
use crate::reconcile;
use crate::shard::ShardError;

/// Longest wait for the end of a session that was left behind.
const TERMINATE_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether it has ended: a cut-over may hold requests meanwhile.
const TERMINATE_LOOK: Duration = Duration::from_millis(3);
/// Longest wait for a statement that takes or looks for the job's lock.
const LOCK_MAX: Duration = Duration::from_secs(5);

type Sessions = HashMap<(Login, String), Arc<Mutex<Client>>>;

/// Whose session on a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Login {
    /// `ringfence_mover`: takes and gives tenants' rows.
    Mover,
    /// `ringfence_migrator`: changes the schema.
    Migrator,
}

/// A job that this worker holds the lease of.
pub struct Context {
    app: Arc<App>,
    job: Claimed,
    place: Mutex<Place>,
    pub(super) lease: Lease,
    sessions: Mutex<Sessions>,
    stop: CancellationToken,
}

impl Context {
    pub(super) fn new(app: Arc<App>, job: Claimed, stop: CancellationToken) -> Self {
        let lease = Lease::hold(app.control.clone(), job.id, app.owner.clone());
        let place = Place {
            id: job.id,
            owner: app.owner.clone(),
            revision: job.revision,
        };
        Self {
            app,
            job,
            lease,
            place: Mutex::new(place),
            sessions: Mutex::default(),
            stop,
        }
    }

    /// This worker is to end: a long step comes to its end soon.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The job.
    pub fn job(&self) -> &Claimed {
        &self.job
    }

    /// The worker's handles.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// The control database.
    pub fn control(&self) -> &Control {
        &self.app.control
    }

    /// Writes how far a long step is.
    pub async fn save<S: Machine>(&self, state: &S) -> Result<(), JobError> {
        let mut place = self.place.lock().await;
        let client = self.control().client().await?;
        match store::save(&**client, &mut place, state).await? {
            true => Ok(()),
            false => Err(JobError::Lost),
        }
    }

    /// Commits a change to the control database together with the state that
    /// knows of it: both are there, or neither.
    pub async fn commit<S: Machine>(
        &self,
        transaction: deadpool_postgres::Transaction<'_>,
        state: &S,
    ) -> Result<(), JobError> {
        let mut place = self.place.lock().await;
        if !store::save(&*transaction, &mut place, state).await? {
            return Err(JobError::Lost);
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(super) async fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().await
    }

    /// A session as `ringfence_mover` on the shard's primary. It holds the
    /// job's advisory lock there, so no other worker works for this job on
    /// this shard: a session that had the lock before is ended first, and
    /// since the lease was looked at after that, a later holder will end this
    /// one before it begins.
    pub async fn shard(&self, shard: &str) -> Result<OwnedMutexGuard<Client>, JobError> {
        self.session(shard, Login::Mover).await
    }

    /// The same in another role. Sessions on different shards are made side by side.
    pub async fn session(
        &self,
        shard: &str,
        login: Login,
    ) -> Result<OwnedMutexGuard<Client>, JobError> {
        let place = (login, shard.to_owned());
        let known = self.sessions.lock().await.get(&place).cloned();
        if let Some(session) = known {
            let session = session.lock_owned().await;
            if !session.is_closed() {
                return Ok(session);
            }
        }
        let info = self.shard_info(shard).await?;
        let nodes = reconcile::addresses(&info);
        let client = match login {
            Login::Mover => self.app.logins.as_mover(shard, &nodes).await?,
            Login::Migrator => self.app.logins.as_migrator(shard, &nodes).await?,
        };
        let locked = tokio::time::timeout(LOCK_MAX, lock(&client, self.job.id)).await;
        if !locked.map_err(|_| ShardError::Slow)?? {
            return Err(JobError::Wait(format!(
                "another worker's session still works for this job on shard {shard}"
            )));
        }
        if !store::is_held(self.control(), self.job.id, &self.app.owner).await? {
            return Err(JobError::Lost);
        }
        let session = Arc::new(Mutex::new(client));
        self.sessions.lock().await.insert(place, session.clone());
        Ok(session.lock_owned().await)
    }

    /// Ends the session on a shard that is done.
    pub async fn release(&self, shard: &str, login: Login) {
        self.sessions
            .lock()
            .await
            .remove(&(login, shard.to_owned()));
    }

    /// Ends all sessions: one may be in the middle of a statement.
    pub(crate) async fn drop_sessions(&self) {
        self.sessions.lock().await.clear();
    }

    /// The shard's row with its nodes.
    pub async fn shard_info(&self, shard: &str) -> Result<ShardInfo, JobError> {
        let shards = self.control().shards().await?;
        let found = shards.into_iter().find(|info| info.id == shard);
        found.ok_or_else(|| JobError::Refused(format!("there is no shard {shard} any longer")))
    }
}

/// Takes the job's lock on a shard; false where another session won't end.
async fn lock(client: &Client, job: Uuid) -> Result<bool, tokio_postgres::Error> {
    const TRY: &str =
        "select pg_try_advisory_lock(hashtextextended('ringfence job ' || $1::uuid::text, 0))";
    if client.query_one(TRY, &[&job]).await?.get(0) {
        return Ok(true);
    }
    client
        .execute(
            "select pg_terminate_backend(l.pid)
             from pg_locks l, hashtextextended('ringfence job ' || $1::uuid::text, 0) as key
             where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
               and l.database = (select oid from pg_database where datname = current_database())
               and l.classid::bigint = (key >> 32) & 4294967295 and l.objid::bigint = key & 4294967295
               and l.pid <> pg_backend_pid()",
            &[&job],
        )
        .await?;
    // Postgres' own wait for its end would look every 100 ms. It lets the lock go
    // once what it had begun is undone.
    let until = Instant::now() + TERMINATE_MAX;
    loop {
        if client.query_one(TRY, &[&job]).await?.get(0) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        sleep(TERMINATE_LOOK).await;
    }
}

/// Sets what a mover's transaction needs: neither triggers nor foreign keys
/// fire, as when Postgres replicates rows, so that they are taken and given as
/// they are, in any order.
pub async fn as_replica(transaction: &Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    transaction
        .batch_execute("set local session_replication_role = replica")
        .await
}

/// Waits until no write of the tenant is under way, and lets none begin before
/// the transaction ends.
///
/// # Errors
/// After 5 s; the step is tried again later.
pub async fn await_writes(
    transaction: &Transaction<'_>,
    tenant: Uuid,
) -> Result<(), tokio_postgres::Error> {
    // New writes don't queue behind this: they are told to try again.
    transaction
        .batch_execute("set local lock_timeout = '5s'")
        .await?;
    let lock = "select pg_advisory_xact_lock(uuid_hash_extended($1, 0))";
    transaction.execute(lock, &[&tenant]).await.map(drop)
}
