//! What workers write to the control database: tenants, keys, shards, nodes.
//!
//! Every change is one transaction that takes the next version, so routers
//! hear of it in commit order, and that writes its audit row with it.

mod audit;
mod fleet;
mod keys;
mod lifecycle;
mod limits;
mod moves;
mod tenants;

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use serde_json::Value;
use tokio_postgres::Transaction;

pub use audit::{AuditFilter, AuditRow};
pub use fleet::{
    MemberInfo, NewNode, NewShard, NodeInfo, Observation, Seen, ShardInfo, is_safe_url,
};
pub use keys::{KeyInfo, NewKey};
pub use lifecycle::{
    Forgotten, begin_import, close_tenant, forget_import, forget_tenant, open_import, reopen_tenant,
};
pub use limits::{PlanInfo, TenantLimits};
pub use moves::{Place, Resident, move_tenants};
pub use tenants::{NewPlace, NewTenant, TenantInfo, TenantPage, insert_tenant};

use crate::tls::{DsnError, Tls};

/// Longest wait for a connection to the control database.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Connections of one worker.
const POOL_MAX: usize = 8;

/// Why the control database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It can't be reached: nothing was changed.
    #[error("the control database can't be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its connection string can't be used.
    #[error(transparent)]
    Dsn(#[from] DsnError),
    /// It refused a statement.
    #[error("the control database refused a statement")]
    Postgres(#[from] tokio_postgres::Error),
    /// There is no such thing.
    #[error("there is no {kind} {name}")]
    NotFound {
        /// What it would be.
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// Something else has the name already.
    #[error("{0}")]
    Conflict(String),
    /// A value is not acceptable.
    #[error("{0}")]
    Invalid(String),
}

/// Who changes something, for the audit log.
#[derive(Clone, Debug)]
pub struct Actor(pub String);

/// The control database, for workers.
#[derive(Clone)]
pub struct Control {
    pool: Pool,
}

impl Control {
    /// Connects when it is first needed.
    pub fn new(dsn: &str, tls: &Tls) -> Result<Self, ControlError> {
        let mut config = tls.with_mode(&tls.read(dsn)?);
        config
            .connect_timeout(CONNECT_MAX)
            .options("-c statement_timeout=30s -c lock_timeout=10s");
        let manager = Manager::from_config(
            config,
            tls.connector(),
            // A transaction that was dropped half-way is rolled back before the next use.
            ManagerConfig {
                recycling_method: RecyclingMethod::Custom("rollback".into()),
            },
        );
        let pool = Pool::builder(manager)
            .max_size(POOL_MAX)
            .wait_timeout(Some(CONNECT_MAX))
            .create_timeout(Some(CONNECT_MAX))
            .recycle_timeout(Some(CONNECT_MAX))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| ControlError::Unreachable(error.into()))?;
        Ok(Self { pool })
    }

    /// A connection, within 3 s or not at all.
    pub async fn client(&self) -> Result<deadpool_postgres::Client, ControlError> {
        self.pool
            .get()
            .await
            .map_err(|error| ControlError::Unreachable(error.into()))
    }

    /// Takes or renews a lease of `name` for `owner`; false while another holds it.
    pub async fn take_lease(
        &self,
        name: &str,
        owner: &str,
        lasts: Duration,
    ) -> Result<bool, ControlError> {
        let rows = self
            .client()
            .await?
            .execute(
                "insert into ringfence.lease values ($1, $2, now() + $3 * interval '1 millisecond')
                 on conflict (name) do update set owner = excluded.owner, until = excluded.until
                 where lease.owner = excluded.owner or lease.until < now()",
                &[&name, &owner, &(lasts.as_millis() as f64)],
            )
            .await?;
        Ok(rows == 1)
    }

    /// Gives a lease back before its end.
    pub async fn release_lease(&self, name: &str, owner: &str) -> Result<(), ControlError> {
        self.client()
            .await?
            .execute(
                "delete from ringfence.lease where name = $1 and owner = $2",
                &[&name, &owner],
            )
            .await?;
        Ok(())
    }
}

/// The number of this transaction's change.
async fn next_version(
    transaction: &Transaction<'_>,
    fleet_changed: bool,
) -> Result<i64, ControlError> {
    let row = transaction
        .query_one("select ringfence.next_version($1)", &[&fleet_changed])
        .await?;
    Ok(row.get(0))
}

/// One line of the audit log, in the transaction of the change.
async fn audit(
    transaction: &Transaction<'_>,
    actor: &Actor,
    action: &str,
    object: &str,
    before: Option<Value>,
    after: Option<Value>,
) -> Result<(), ControlError> {
    write_audit(transaction, actor, action, object, before, after, "done").await
}

/// One line of the audit log: who did what to what, what it was before, what
/// it is after, and how it ended.
pub async fn write_audit(
    transaction: &Transaction<'_>,
    actor: &Actor,
    action: &str,
    object: &str,
    before: Option<Value>,
    after: Option<Value>,
    result: &str,
) -> Result<(), ControlError> {
    transaction
        .execute(
            "insert into ringfence.audit (actor, action, object, before, after, result)
             values ($1, $2, $3, $4, $5, $6)",
            &[&actor.0, &action, &object, &before, &after, &result],
        )
        .await?;
    Ok(())
}

/// A slug or a name of a shard or node as the control database accepts it.
fn check_name(kind: &str, name: &str) -> Result<(), ControlError> {
    let head = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = name.len() <= 63
        && name.starts_with(head)
        && name
            .chars()
            .all(|c| head(c) || matches!(c, '-' | '_' | '.'));
    if fits {
        return Ok(());
    }
    Err(ControlError::Invalid(format!(
        "{kind} \"{}\" must start with a lower-case letter or digit, then hold only those and -, at most 63 in all",
        name.chars().take(80).collect::<String>()
    )))
}
