//! Deletes a tenant from everywhere, and says what it deleted.
//!
//! ```text
//!   Closing ──► Deleting ──► Purging ──► Forgetting ──► Done
//!      │cancel   (shard by shard, the tenant's own first)
//!      ▼
//!   Reopening ──► Reopened
//! ```
//!
//! The control row says `deleted` since the intent was written, so routers
//! answer 404. *Closing* takes the fence away under the tenant's exclusive lock:
//! no write is under way afterwards and none can begin, and the fence's change,
//! which is published like any other, makes every cached answer of the tenant
//! invalid. From then on there is only forward. *Deleting* removes rows in
//! batches; what each batch removed is counted on the shard in its own
//! transaction, so the certificate is exact however often a worker dies.
//! *Purging* has every live router drop what no request is answered with any
//! longer, in its memory and in Redis.

mod caches;
mod rows;

use std::time::Duration;

use schema::tenant_tables::tenant_tables;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::control::{TenantInfo, forget_tenant, reopen_tenant};
use tenancy::placement::TenantState;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::job::{Context, End, JobError, Machine, Progress, Step, Unit, await_writes};
use crate::shard::ShardError;

pub(crate) use rows::{BATCH, STEP, batch, estimate};
pub use rows::{Swept, delete_for, delete_marks};

/// Longest step; a batch that was not in time is tried again.
const STEP_MAX: Duration = Duration::from_secs(60);

/// The states.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TenantDelete {
    /// Its fence is taken away.
    Closing {
        /// Who.
        tenant: Doomed,
    },
    /// Its rows are deleted, on these shards still.
    Deleting {
        /// Who.
        tenant: Doomed,
        /// Shards to do, the present one first.
        shards: Vec<String>,
        /// What was removed on those that are done.
        certificate: Vec<ShardCertificate>,
        /// Rows removed on the present one.
        rows: u64,
        /// Rows that were expected there.
        expected: u64,
    },
    /// Routers drop its answers.
    Purging {
        /// Who.
        tenant: Doomed,
        /// What was removed from shards.
        certificate: Vec<ShardCertificate>,
        /// Tries in which not all routers did.
        tries: u32,
        /// What was removed from Redis in those.
        redis_entries: u64,
    },
    /// The control database forgets it.
    Forgetting {
        /// Who.
        tenant: Doomed,
        /// What was removed from shards.
        certificate: Vec<ShardCertificate>,
        /// What was removed from caches; none: the job began before that was done.
        #[serde(default)]
        caches: Option<CacheCertificate>,
    },
    /// Nothing of it is left.
    Done,
    /// It was cancelled in time: the tenant is served as before.
    Reopening {
        /// Who.
        tenant: Doomed,
    },
    /// The tenant is as it was.
    Reopened,
}

/// The tenant, as it was before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Doomed {
    /// Its id.
    pub id: Uuid,
    /// Its slug.
    pub slug: String,
    /// Its shard.
    pub shard: String,
    /// Its epoch.
    pub epoch: i64,
    /// Its state.
    pub was: TenantState,
}

/// What was removed from one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCertificate {
    /// The shard.
    pub shard: String,
    /// Tables and rows; those without a row are left out.
    pub tables: Vec<(String, i64)>,
    /// Tables that were looked at, and hold no row of the tenant now.
    pub empty_tables: usize,
}

/// What was removed from caches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCertificate {
    /// Routers that have dropped its answers.
    pub routers: usize,
    /// Answers removed from Redis; more, where a worker died meanwhile.
    pub redis_entries: u64,
    /// Routers that could not be told, or could not ask Redis, and why. What they
    /// hold answers nobody; it ends with their process, and in Redis after an hour.
    pub left: Vec<String>,
}

impl TenantDelete {
    /// The first state for a tenant that has just been closed.
    pub fn of(tenant: &TenantInfo) -> Self {
        Self::Closing {
            tenant: Doomed {
                id: tenant.id,
                slug: tenant.slug.clone(),
                shard: tenant.shard.clone(),
                epoch: tenant.epoch,
                was: TenantState::parse(&tenant.state).unwrap_or(TenantState::Active),
            },
        }
    }
}

impl Machine for TenantDelete {
    fn phase(&self) -> (&'static str, Progress) {
        let none = Progress::default();
        match self {
            Self::Closing { .. } => ("closing", none),
            Self::Deleting { rows, expected, .. } => (
                "deleting",
                Progress {
                    done: *rows,
                    total: (*expected).max(*rows),
                    unit: Unit::Rows,
                },
            ),
            Self::Purging { .. } => ("purging", none),
            Self::Forgetting { .. } => ("forgetting", none),
            Self::Done => ("done", none),
            Self::Reopening { .. } => ("reopening", none),
            Self::Reopened => ("reopened", none),
        }
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        let step = timeout(STEP_MAX, self.advance(context)).await;
        let step = step.unwrap_or(Err(JobError::Shard(ShardError::Slow)));
        if step.is_err() {
            // One of them may be in the middle of a statement.
            context.drop_sessions().await;
        }
        step
    }

    fn cancelled(&self) -> Option<Self> {
        match self {
            Self::Closing { tenant } => Some(Self::Reopening {
                tenant: tenant.clone(),
            }),
            Self::Deleting { .. }
            | Self::Purging { .. }
            | Self::Forgetting { .. }
            | Self::Done
            | Self::Reopening { .. }
            | Self::Reopened => None,
        }
    }
}

impl TenantDelete {
    async fn advance(&self, context: &Context) -> Result<Step<Self>, JobError> {
        match self {
            Self::Closing { tenant } => close(context, tenant).await,
            Self::Deleting {
                tenant,
                shards,
                certificate,
                ..
            } => delete(context, tenant, shards, certificate).await,
            Self::Purging {
                tenant,
                certificate,
                tries,
                redis_entries,
            } => Ok(purge(context, tenant, certificate, *tries, *redis_entries).await),
            Self::Forgetting {
                tenant,
                certificate,
                caches,
            } => forget(context, tenant, certificate, caches.as_ref()).await,
            Self::Reopening { tenant } => reopen(context, tenant).await,
            Self::Done => Ok(Step::End(Self::Done, End::Done, Value::Null)),
            Self::Reopened => Ok(Step::End(Self::Reopened, End::Cancelled, Value::Null)),
        }
    }
}

/// Takes the fence away once no write is under way.
async fn close(context: &Context, tenant: &Doomed) -> Result<Step<TenantDelete>, JobError> {
    let mut session = context.shard(&tenant.shard).await?;
    let transaction = session.transaction().await?;
    await_writes(&transaction, tenant.id).await?;
    rows::delete_fence(&transaction, context.job().id, tenant.id).await?;
    transaction.commit().await?;
    let all = context.control().shards().await?;
    let others = all.into_iter().map(|shard| shard.id);
    let mut shards = vec![tenant.shard.clone()];
    // Others may hold what a move left behind.
    shards.extend(others.filter(|shard| *shard != tenant.shard));
    Ok(Step::Next(TenantDelete::Deleting {
        tenant: tenant.clone(),
        shards,
        certificate: Vec::new(),
        rows: 0,
        expected: 0,
    }))
}

/// Deletes for a while on the first of `shards`.
async fn delete(
    context: &Context,
    tenant: &Doomed,
    shards: &[String],
    certificate: &[ShardCertificate],
) -> Result<Step<TenantDelete>, JobError> {
    let Some((shard, others)) = shards.split_first() else {
        return Ok(Step::Next(TenantDelete::Purging {
            tenant: tenant.clone(),
            certificate: certificate.to_vec(),
            tries: 0,
            redis_entries: 0,
        }));
    };
    let job = context.job().id;
    let mut session = context.shard(shard).await?;
    let tables = tenant_tables(&*session).await?;
    let until = Instant::now() + rows::STEP;
    let failpoints = &context.app().failpoints;
    let swept = delete_for(failpoints, &mut session, job, &tables, tenant.id, until).await?;
    let mut next = certificate.to_vec();
    let (left, done, expected) = match swept {
        Swept::More { rows, expected } => (shards.to_vec(), rows, expected),
        Swept::Empty { deleted } => {
            next.push(ShardCertificate {
                shard: shard.clone(),
                tables: deleted,
                empty_tables: tables.len(),
            });
            (others.to_vec(), 0, 0)
        }
    };
    Ok(Step::Next(TenantDelete::Deleting {
        tenant: tenant.clone(),
        shards: left,
        certificate: next,
        rows: done,
        expected,
    }))
}

/// Has routers drop the tenant's answers. After some tries in which not all did,
/// the certificate says who did not.
async fn purge(
    context: &Context,
    tenant: &Doomed,
    certificate: &[ShardCertificate],
    tries: u32,
    redis_entries: u64,
) -> Step<TenantDelete> {
    let mut caches = caches::purge(context.app(), tenant.id).await;
    caches.redis_entries += redis_entries;
    let (tenant, certificate) = (tenant.clone(), certificate.to_vec());
    if caches.left.is_empty() || tries >= caches::TRIES {
        return Step::Next(TenantDelete::Forgetting {
            tenant,
            certificate,
            caches: Some(caches),
        });
    }
    tracing::info!(left = ?caches.left, "a deleted tenant's answers are not dropped yet");
    let again = TenantDelete::Purging {
        tenant,
        certificate,
        tries: tries + 1,
        redis_entries: caches.redis_entries,
    };
    Step::Later(again, caches::PAUSE)
}

async fn forget(
    context: &Context,
    tenant: &Doomed,
    certificate: &[ShardCertificate],
    caches: Option<&CacheCertificate>,
) -> Result<Step<TenantDelete>, JobError> {
    context.app().failpoints.hit("delete_forgetting");
    for shard in certificate {
        let session = context.shard(&shard.shard).await?;
        delete_marks(&session, context.job().id).await?;
    }
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    let forgotten = forget_tenant(&transaction, tenant.id).await?;
    let state = TenantDelete::Forgetting {
        tenant: tenant.clone(),
        certificate: certificate.to_vec(),
        caches: caches.cloned(),
    };
    context.commit(transaction, &state).await?;
    let rows: i64 = certificate
        .iter()
        .flat_map(|shard| &shard.tables)
        .map(|(_, rows)| rows)
        .sum();
    let tables = |shard: &ShardCertificate| -> Vec<Value> {
        let tables = shard.tables.iter();
        tables
            .map(|(table, rows)| json!({ "table": table, "rows": rows }))
            .collect()
    };
    let shards: Vec<Value> = certificate
        .iter()
        .map(|shard| json!({ "shard": shard.shard, "tables": tables(shard), "tables_verified_empty": shard.empty_tables }))
        .collect();
    let certificate = json!({
        "tenant": tenant.id,
        "slug": tenant.slug,
        "rows": rows,
        "shards": shards,
        "control": { "api_keys": forgotten.keys, "issuers": forgotten.issuers },
        "caches": caches,
        "kept": "the audit log and the jobs' rows, which name it, and the id, so that requests are answered with 404",
    });
    Ok(Step::End(TenantDelete::Done, End::Done, certificate))
}

/// Puts the fence back, where it is gone already, and the control row.
async fn reopen(context: &Context, tenant: &Doomed) -> Result<Step<TenantDelete>, JobError> {
    if tenant.was != TenantState::Creating {
        let session = context.shard(&tenant.shard).await?;
        session
            .execute(
                "insert into ringfence.fence (tenant_id, epoch, suspended) values ($1, $2, $3)
                 on conflict (tenant_id) do nothing",
                &[
                    &tenant.id,
                    &tenant.epoch,
                    &(tenant.was == TenantState::Suspended),
                ],
            )
            .await?;
    }
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    reopen_tenant(&transaction, tenant.id, tenant.was).await?;
    context.commit(transaction, &TenantDelete::Reopened).await?;
    Ok(Step::End(
        TenantDelete::Reopened,
        End::Cancelled,
        Value::Null,
    ))
}
