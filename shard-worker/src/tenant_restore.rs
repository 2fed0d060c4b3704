//! Takes in a tenant from an archive: whole, or not at all.
//!
//! ```text
//!   Opening ──► Receiving ──► Verifying ──► Activating ──► Done
//!      │            │             │
//!      └────────────┴─────────────┴──► CleaningUp ──► Cleaned
//!         cancelled, or an error that no try mends
//! ```
//!
//! The control row says `importing`, and the shard has no fence of the tenant:
//! nobody is served what is not yet whole. *Opening* compares the tables and
//! notes the import on the shard. Rows come in through the admin API of any
//! worker ([`crate::archive`]), a part a transaction, each noted on the shard
//! with its digest; *Receiving* only watches. Who sends may end and begin
//! again, with the same archive: parts that are there are compared, not put.
//! *Verifying* counts the rows, follows the foreign keys and raises the
//! sequences. *CleaningUp* closes the import first, so that no part comes in
//! behind it, and deletes nothing where the shard was never prepared: rows that
//! an import was refused for are not its own.

use std::time::Duration;

use schema::archive::load::{self, Import};
use schema::archive::{ArchiveError, Manifest};
use schema::tenant_tables::tenant_tables;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::control::{TenantInfo, forget_import, open_import};
use tokio::time::Instant;
use uuid::Uuid;

use crate::job::{Context, End, JobError, Machine, Problem, Progress, Step, Unit};
use crate::tenant_delete::{STEP, Swept, delete_for, delete_marks};

/// How often the shard is looked at while rows come in.
const LOOK: Duration = Duration::from_millis(400);
/// An import without a part for so long is given up.
const IDLE_MAX_SECONDS: f64 = 900.0;

/// The states.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TenantRestore {
    /// The shard is prepared.
    Opening {
        /// Who comes.
        arrival: Arrival,
        /// What the archive says of itself.
        manifest: Box<Manifest>,
    },
    /// Rows come in.
    Receiving {
        /// Who comes.
        arrival: Arrival,
        /// Bytes of rows that are there.
        bytes: u64,
    },
    /// What came in is looked at.
    Verifying {
        /// Who comes.
        arrival: Arrival,
    },
    /// The tenant is about to be served.
    Activating {
        /// Who comes.
        arrival: Arrival,
        /// Its rows, by table.
        tables: Vec<(String, i64)>,
    },
    /// It is served.
    Done {
        /// Who came.
        arrival: Arrival,
        /// Its rows, by table.
        tables: Vec<(String, i64)>,
    },
    /// What came in is removed.
    CleaningUp {
        /// Who does not come.
        arrival: Arrival,
        /// Why; none: someone cancelled it.
        why: Option<Problem>,
        /// Rows removed so far.
        rows: u64,
        /// Of so many.
        expected: u64,
    },
    /// Nothing is left.
    Cleaned {
        /// Why; none: someone cancelled it.
        why: Option<Problem>,
    },
}

/// The tenant that comes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// Its new id.
    pub id: Uuid,
    /// Its slug.
    pub slug: String,
    /// Its shard.
    pub shard: String,
    /// Its epoch.
    pub epoch: i64,
    /// The manifest's digest: only the same archive goes on.
    pub digest: String,
}

impl TenantRestore {
    /// The first state of a tenant whose row was just written.
    pub fn of(tenant: &TenantInfo, manifest: &Manifest, digest: &str) -> Self {
        Self::Opening {
            arrival: Arrival {
                id: tenant.id,
                slug: tenant.slug.clone(),
                shard: tenant.shard.clone(),
                epoch: tenant.epoch,
                digest: digest.to_owned(),
            },
            manifest: Box::new(manifest.clone()),
        }
    }

    /// Who comes.
    pub fn arrival(&self) -> Option<&Arrival> {
        match self {
            Self::Opening { arrival, .. }
            | Self::Receiving { arrival, .. }
            | Self::Verifying { arrival }
            | Self::Activating { arrival, .. }
            | Self::Done { arrival, .. }
            | Self::CleaningUp { arrival, .. } => Some(arrival),
            Self::Cleaned { .. } => None,
        }
    }

    fn given_up(&self, why: Option<Problem>) -> Option<Self> {
        match self {
            Self::Opening { arrival, .. }
            | Self::Receiving { arrival, .. }
            | Self::Verifying { arrival } => Some(Self::CleaningUp {
                arrival: arrival.clone(),
                why,
                rows: 0,
                expected: 0,
            }),
            Self::Activating { .. }
            | Self::Done { .. }
            | Self::CleaningUp { .. }
            | Self::Cleaned { .. } => None,
        }
    }
}

impl Machine for TenantRestore {
    fn phase(&self) -> (&'static str, Progress) {
        let none = Progress::default();
        match self {
            Self::Opening { .. } => ("opening", none),
            Self::Receiving { bytes, .. } => (
                "receiving",
                Progress {
                    done: *bytes,
                    total: 0,
                    unit: Unit::Bytes,
                },
            ),
            Self::Verifying { .. } => ("verifying", none),
            Self::Activating { .. } => ("activating", none),
            Self::Done { .. } => ("done", none),
            Self::CleaningUp { rows, expected, .. } => (
                "cleaning_up",
                Progress {
                    done: *rows,
                    total: (*expected).max(*rows),
                    unit: Unit::Rows,
                },
            ),
            Self::Cleaned { .. } => ("cleaned", none),
        }
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        match self {
            Self::Opening { arrival, manifest } => open(context, arrival, manifest).await,
            Self::Receiving { arrival, .. } => receive(context, arrival).await,
            Self::Verifying { arrival } => verify(context, arrival).await,
            Self::Activating { arrival, tables } => activate(context, arrival, tables).await,
            Self::Done { arrival, tables } => finish(context, arrival, tables).await,
            Self::CleaningUp { arrival, why, .. } => clean_up(context, arrival, why).await,
            Self::Cleaned { why } => Ok(Step::End(self.clone(), ended(why), Value::Null)),
        }
    }

    fn cancelled(&self) -> Option<Self> {
        self.given_up(None)
    }

    fn abandoned(&self, error: &JobError) -> Option<Self> {
        self.given_up(Some(error.problem(error.verdict())))
    }

    /// The arrival has the manifest's digest.
    fn audited(mut state: Value) -> Value {
        if let Some(fields) = state.as_object_mut() {
            fields.remove("manifest");
        }
        state
    }
}

async fn open(
    context: &Context,
    arrival: &Arrival,
    manifest: &Manifest,
) -> Result<Step<TenantRestore>, JobError> {
    let mut session = context.shard(&arrival.shard).await?;
    let job = context.job().id;
    load::open(&mut session, job, arrival.id, manifest, &arrival.digest).await?;
    Ok(Step::Next(TenantRestore::Receiving {
        arrival: arrival.clone(),
        bytes: 0,
    }))
}

/// Looks what has come in.
async fn receive(context: &Context, arrival: &Arrival) -> Result<Step<TenantRestore>, JobError> {
    let session = context.shard(&arrival.shard).await?;
    let import = known(load::look(&session, context.job().id).await?, arrival)?;
    if let Some((code, message)) = import.problem {
        return Err(JobError::Refused(format!("{message} ({code})")));
    }
    if import.state == "complete" {
        return Ok(Step::Next(TenantRestore::Verifying {
            arrival: arrival.clone(),
        }));
    }
    if import.idle_seconds > IDLE_MAX_SECONDS {
        return Err(JobError::Refused(format!(
            "nothing more of the archive came in for {IDLE_MAX_SECONDS} s"
        )));
    }
    let next = TenantRestore::Receiving {
        arrival: arrival.clone(),
        bytes: import.bytes,
    };
    Ok(Step::Later(next, LOOK))
}

async fn verify(context: &Context, arrival: &Arrival) -> Result<Step<TenantRestore>, JobError> {
    let mut session = context.shard(&arrival.shard).await?;
    let import = known(load::look(&session, context.job().id).await?, arrival)?;
    context.app().failpoints.hit("import_verifying");
    let tables = load::verify(&mut session, &import).await?;
    Ok(Step::Next(TenantRestore::Activating {
        arrival: arrival.clone(),
        tables,
    }))
}

/// The fence, then the control row: routers ask only for what the shard serves.
async fn activate(
    context: &Context,
    arrival: &Arrival,
    tables: &[(String, i64)],
) -> Result<Step<TenantRestore>, JobError> {
    let session = context.shard(&arrival.shard).await?;
    session
        .execute(
            "insert into ringfence.fence (tenant_id, epoch) values ($1, $2)
             on conflict (tenant_id) do nothing",
            &[&arrival.id, &arrival.epoch],
        )
        .await?;
    context.app().failpoints.hit("import_fence");
    let next = TenantRestore::Done {
        arrival: arrival.clone(),
        tables: tables.to_vec(),
    };
    let actor = &context.job().actor;
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    open_import(&transaction, actor, &arrival.slug, arrival.id).await?;
    context.commit(transaction, &next).await?;
    Ok(Step::Next(next))
}

async fn finish(
    context: &Context,
    arrival: &Arrival,
    tables: &[(String, i64)],
) -> Result<Step<TenantRestore>, JobError> {
    let session = context.shard(&arrival.shard).await?;
    load::forget(&session, context.job().id).await?;
    let rows: i64 = tables.iter().map(|(_, rows)| rows).sum();
    let by_table: Vec<Value> = tables
        .iter()
        .map(|(table, rows)| json!({ "table": table, "rows": rows }))
        .collect();
    let result = json!({
        "tenant": arrival.id,
        "slug": arrival.slug,
        "shard": arrival.shard,
        "rows": rows,
        "tables": by_table,
        "manifest_sha256": arrival.digest,
    });
    let done = TenantRestore::Done {
        arrival: arrival.clone(),
        tables: tables.to_vec(),
    };
    Ok(Step::End(done, End::Done, result))
}

/// Removes for a while what came in, then what knows of it.
async fn clean_up(
    context: &Context,
    arrival: &Arrival,
    why: &Option<Problem>,
) -> Result<Step<TenantRestore>, JobError> {
    let job = context.job().id;
    let mut session = context.shard(&arrival.shard).await?;
    // Noted in the transaction that saw no row of the tenant: without the note,
    // what is there was there before, and may be all that is left of somebody.
    let was_opened = load::close(&session, job).await?;
    let tables = tenant_tables(&*session).await?;
    let until = Instant::now() + STEP;
    let failpoints = &context.app().failpoints;
    if was_opened
        && let Swept::More { rows, expected } =
            delete_for(failpoints, &mut session, job, &tables, arrival.id, until).await?
    {
        return Ok(Step::Next(TenantRestore::CleaningUp {
            arrival: arrival.clone(),
            why: why.clone(),
            rows,
            expected,
        }));
    }
    load::forget(&session, job).await?;
    delete_marks(&session, job).await?;
    let next = TenantRestore::Cleaned { why: why.clone() };
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    forget_import(&transaction, arrival.id).await?;
    context.commit(transaction, &next).await?;
    Ok(Step::Next(next))
}

fn ended(why: &Option<Problem>) -> End {
    match why {
        Some(why) => End::Failed(why.clone()),
        None => End::Cancelled,
    }
}

/// The import that was opened; a shard that lost it lost its rows, too.
fn known(import: Option<Import>, arrival: &Arrival) -> Result<Import, JobError> {
    import.ok_or_else(|| {
        JobError::Archive(ArchiveError::Refused(format!(
            "shard {} lost the import, as a failover without synchronous replicas may: begin again",
            arrival.shard
        )))
    })
}
