//! Makes a tenant from an archive, on any shard whose tables can take it.
//!
//! ```text
//!   Verifying ──► Loading ──► Finishing ──► Done
//!       │            │            │ error that ends it, or cancel
//!       └────────────┴────────────┴──► Undoing ──► Undone
//! ```
//!
//! The tenant's control row exists from the beginning, as `importing`, so its
//! slug is taken and nobody is served. *Verifying* reads the whole archive
//! before anything is written. *Loading* writes a part a transaction, which
//! also notes the part on the shard: one that was committed is not loaded
//! again, whoever goes on. *Finishing* counts, checks foreign keys, raises
//! sequences, writes the fence and opens the tenant.

mod check;
mod load;

use schema::tenant_tables::tenant_tables;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::control::{forget_import, open_import};
use tokio::time::Instant;
use uuid::Uuid;

use crate::archive::{Manifest, Name};
use crate::job::{Context, End, JobError, Machine, Progress, Step, Unit};
use crate::tenant_delete::{Swept, delete_for, delete_marks};

/// Rows are removed for so long before the state is written.
const UNDO_STEP: std::time::Duration = std::time::Duration::from_millis(700);

/// The states.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TenantImport {
    /// The archive is read.
    Verifying {
        /// What becomes of it.
        import: Import,
        /// Bytes read, decompressed.
        bytes: u64,
    },
    /// Parts are loaded.
    Loading {
        /// What becomes of it.
        import: Import,
        /// Rows loaded.
        rows: u64,
        /// Rows of the archive.
        total: u64,
    },
    /// What was loaded is checked, then served.
    Finishing {
        /// What becomes of it.
        import: Import,
        /// Rows of the archive.
        total: u64,
    },
    /// The tenant is served.
    Done,
    /// What was loaded is removed.
    Undoing {
        /// What would have become of it.
        import: Import,
        /// Why; none where it was cancelled.
        why: Option<String>,
    },
    /// Nothing of it is left.
    Undone,
}

/// The archive, and the tenant to make of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Import {
    /// The archive.
    pub archive: Name,
    /// The new tenant's id.
    pub id: Uuid,
    /// Its slug.
    pub slug: String,
    /// Its shard.
    pub shard: String,
    /// Its epoch.
    pub epoch: i64,
}

impl Machine for TenantImport {
    fn phase(&self) -> (&'static str, Progress) {
        let none = Progress::default();
        match self {
            Self::Verifying { bytes, .. } => (
                "verifying",
                Progress {
                    done: *bytes,
                    total: 0,
                    unit: Unit::Bytes,
                },
            ),
            Self::Loading { rows, total, .. } => (
                "loading",
                Progress {
                    done: *rows,
                    total: *total,
                    unit: Unit::Rows,
                },
            ),
            Self::Finishing { total, .. } => (
                "finishing",
                Progress {
                    done: *total,
                    total: *total,
                    unit: Unit::Rows,
                },
            ),
            Self::Done => ("done", none),
            Self::Undoing { .. } => ("undoing", none),
            Self::Undone => ("undone", none),
        }
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        match self {
            Self::Verifying { import, .. } => verify(context, import).await,
            Self::Loading { import, .. } => {
                let manifest = load::load(context, import).await?;
                Ok(Step::Next(Self::Finishing {
                    import: import.clone(),
                    total: manifest.rows(),
                }))
            }
            Self::Finishing { import, .. } => finish(context, import).await,
            Self::Undoing { import, why } => undo(context, import, why.as_deref()).await,
            Self::Done => Ok(Step::End(Self::Done, End::Done, Value::Null)),
            Self::Undone => Ok(Step::End(Self::Undone, End::Cancelled, Value::Null)),
        }
    }

    fn cancelled(&self) -> Option<Self> {
        self.undoing(None)
    }

    fn abandoned(&self, error: &JobError) -> Option<Self> {
        self.undoing(Some(tenancy::chain(error)))
    }
}

impl TenantImport {
    fn undoing(&self, why: Option<String>) -> Option<Self> {
        match self {
            Self::Verifying { import, .. }
            | Self::Loading { import, .. }
            | Self::Finishing { import, .. } => Some(Self::Undoing {
                import: import.clone(),
                why,
            }),
            Self::Done | Self::Undoing { .. } | Self::Undone => None,
        }
    }
}

async fn verify(context: &Context, import: &Import) -> Result<Step<TenantImport>, JobError> {
    let tables = {
        let session = context.shard(&import.shard).await?;
        tenant_tables(&*session).await?
    };
    let path = context.app().archives.path(&import.archive);
    let mut saved = Instant::now();
    let manifest = check::verified(&path, &tables, async |bytes| {
        if saved.elapsed() < load::SAVE_EVERY {
            return Ok(());
        }
        saved = Instant::now();
        let state = TenantImport::Verifying {
            import: import.clone(),
            bytes,
        };
        context.save(&state).await
    })
    .await?;
    Ok(Step::Next(TenantImport::Loading {
        import: import.clone(),
        rows: 0,
        total: manifest.rows(),
    }))
}

async fn finish(context: &Context, import: &Import) -> Result<Step<TenantImport>, JobError> {
    let path = context.app().archives.path(&import.archive);
    let manifest: Manifest = check::manifest(&path).await?;
    let mut session = context.shard(&import.shard).await?;
    let tables = tenant_tables(&*session).await?;
    check::counts(&session, &tables, &manifest, import.id).await?;
    check::foreign_keys(&session, &tables, import.id).await?;
    load::raise_sequences(&session, &tables, import.id).await?;
    let transaction = session.transaction().await?;
    transaction
        .execute(
            "insert into ringfence.fence (tenant_id, epoch) values ($1, $2)
             on conflict (tenant_id) do nothing",
            &[&import.id, &import.epoch],
        )
        .await?;
    transaction
        .execute(
            "delete from ringfence.job_mark where job = $1",
            &[&context.job().id],
        )
        .await?;
    transaction.commit().await?;
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    let actor = &context.job().actor;
    open_import(&transaction, actor, &import.slug, import.id).await?;
    context.commit(transaction, &TenantImport::Done).await?;
    let tables: Vec<Value> = manifest
        .tables
        .iter()
        .filter(|table| table.rows > 0)
        .map(|table| json!({ "table": table.table, "rows": table.rows }))
        .collect();
    let result = json!({
        "tenant": import.id,
        "slug": import.slug,
        "shard": import.shard,
        "rows": manifest.rows(),
        "tables": tables,
    });
    Ok(Step::End(TenantImport::Done, End::Done, result))
}

async fn undo(
    context: &Context,
    import: &Import,
    why: Option<&str>,
) -> Result<Step<TenantImport>, JobError> {
    let job = context.job().id;
    let mut session = context.shard(&import.shard).await?;
    let tables = tenant_tables(&*session).await?;
    let until = Instant::now() + UNDO_STEP;
    if let Swept::More { .. } = delete_for(&mut session, job, &tables, import.id, until).await? {
        return Ok(Step::Next(TenantImport::Undoing {
            import: import.clone(),
            why: why.map(str::to_owned),
        }));
    }
    delete_marks(&session, job).await?;
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    forget_import(&transaction, import.id).await?;
    context.commit(transaction, &TenantImport::Undone).await?;
    let end = match why {
        Some(why) => End::Failed(why.to_owned()),
        None => End::Cancelled,
    };
    Ok(Step::End(TenantImport::Undone, end, Value::Null))
}
