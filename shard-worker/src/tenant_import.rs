//! Loads an existing single-tenant database's rows as one tenant's.
//!
//! ```text
//!   Closing ──► Checking ──► Copying ◄──► Verifying ──► Opening ──► Opened
//!      │           │            │             │ counts differ: copied again,
//!      │           │            │             │ once a person has said so
//!      └───────────┴─── cancel, or an error that no try mends ──► Undoing ──► Undone
//! ```
//!
//! The control row says `importing` from the intent on, and *Closing* suspends
//! the fence: nobody sees half of the rows. *Copying* goes through each table by
//! the source's primary key; what a chunk brought, and how far it got, is noted
//! on the shard in the chunk's own transaction, so a worker that dies repeats
//! and skips nothing. Neither triggers nor foreign keys fire, as when Postgres
//! replicates rows; *Verifying* looks at both sides' counts, and at every
//! foreign key. *Undoing* deletes exactly what was loaded.

mod check;
mod load;
pub mod plan;
pub mod source;
mod undo;

use schema::ident::QualifiedName;
use schema::tenant_tables::tenant_tables;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::control::{TenantInfo, open_import, reopen_tenant};
use tenancy::placement::TenantState;
use tokio::sync::OwnedMutexGuard;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::job::retry::Verdict;
use crate::job::{Context, End, JobError, Machine, Problem, Progress, Step, Unit, await_writes};
use crate::reconcile;
use plan::{Left, LoadTable};
use source::Source;

/// The states.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TenantImport {
    /// The tenant's writes are ended, and no more begin.
    Closing {
        /// Whose rows, out of where.
        import: Import,
    },
    /// Both sides are compared.
    Checking {
        /// Whose rows, out of where.
        import: Import,
    },
    /// Rows are copied, table by table.
    Copying {
        /// Whose rows, out of where.
        import: Import,
        /// Tables, in the order in which they are copied.
        tables: Vec<Table>,
        /// What is not loaded.
        left: Vec<Left>,
    },
    /// What was copied is compared with the source.
    Verifying {
        /// Whose rows, out of where.
        import: Import,
        /// All copied.
        tables: Vec<Table>,
        /// What is not loaded.
        left: Vec<Left>,
    },
    /// The tenant is served again.
    Opening {
        /// Whose rows, out of where.
        import: Import,
        /// What was loaded, for people and programs.
        result: Value,
    },
    /// It is.
    Opened {
        /// Whose rows, out of where.
        import: Import,
        /// What was loaded.
        result: Value,
    },
    /// What was loaded is deleted.
    Undoing {
        /// Whose rows, out of where.
        import: Import,
        /// Tables that hold rows of this import.
        tables: Vec<QualifiedName>,
        /// Why; none where someone asked for it.
        problem: Option<Problem>,
    },
    /// The tenant is as it was.
    Undone {
        /// Whose rows, out of where.
        import: Import,
        /// Why.
        problem: Option<Problem>,
    },
}

/// Whose rows are loaded, out of where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Import {
    /// The tenant.
    pub tenant: Uuid,
    /// Its slug.
    pub slug: String,
    /// Its shard.
    pub shard: String,
    /// Its state before.
    pub was: TenantState,
    /// The source's address, sealed: it holds a password. Empty once the source
    /// is not needed any longer: an ended job's row stays.
    pub source: String,
}

impl Import {
    fn without_source(&self) -> Self {
        Self {
            source: String::new(),
            ..self.clone()
        }
    }
}

/// A table, and how far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// What is copied of it.
    pub load: LoadTable,
    /// Rows in the source, when they were counted.
    pub expected: u64,
    /// Rows copied.
    pub rows: u64,
    /// All are.
    pub done: bool,
    /// What was copied of it goes first: the source had changed.
    pub again: bool,
}

impl TenantImport {
    /// The first state for a tenant whose row says `importing`; `before` is as it was.
    pub fn of(before: &TenantInfo, source: String) -> Self {
        Self::Closing {
            import: Import {
                tenant: before.id,
                slug: before.slug.clone(),
                shard: before.shard.clone(),
                was: TenantState::parse(&before.state).unwrap_or(TenantState::Active),
                source,
            },
        }
    }

    fn undoing(&self, problem: Option<Problem>) -> Option<Self> {
        let (import, tables) = match self {
            Self::Closing { import } | Self::Checking { import } => (import, Vec::new()),
            Self::Copying { import, tables, .. } | Self::Verifying { import, tables, .. } => {
                let names = tables.iter().map(|table| table.load.name.clone());
                (import, names.collect())
            }
            Self::Opening { .. }
            | Self::Opened { .. }
            | Self::Undoing { .. }
            | Self::Undone { .. } => return None,
        };
        Some(Self::Undoing {
            import: import.without_source(),
            tables,
            problem,
        })
    }
}

impl Machine for TenantImport {
    fn phase(&self) -> (&'static str, Progress) {
        let none = Progress::default();
        let of = |tables: &[Table]| Progress {
            done: tables.iter().map(|table| table.rows).sum(),
            total: tables.iter().map(|t| t.expected.max(t.rows)).sum(),
            unit: Unit::Rows,
        };
        match self {
            Self::Closing { .. } => ("closing", none),
            Self::Checking { .. } => ("checking", none),
            Self::Copying { tables, .. } => ("copying", of(tables)),
            Self::Verifying { tables, .. } => ("verifying", of(tables)),
            Self::Opening { .. } => ("opening", none),
            Self::Opened { .. } => ("opened", none),
            Self::Undoing { .. } => ("undoing", none),
            Self::Undone { .. } => ("undone", none),
        }
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        match self {
            Self::Closing { import } => close(context, import).await,
            Self::Checking { import } => compare(context, import).await,
            Self::Copying {
                import,
                tables,
                left,
            } => copy(context, import, tables, left).await,
            Self::Verifying {
                import,
                tables,
                left,
            } => verify(context, import, tables, left).await,
            Self::Opening { import, result } => open(context, import, result).await,
            Self::Opened { import, result } => {
                resume(context, import).await?;
                Ok(Step::End(self.clone(), End::Done, result.clone()))
            }
            Self::Undoing {
                import,
                tables,
                problem,
            } => undo(context, import, tables, problem.as_ref()).await,
            Self::Undone { import, problem } => {
                resume(context, import).await?;
                let end = match problem {
                    Some(problem) => End::Failed(problem.clone()),
                    None => End::Cancelled,
                };
                Ok(Step::End(self.clone(), end, Value::Null))
            }
        }
    }

    fn cancelled(&self) -> Option<Self> {
        self.undoing(None)
    }

    fn abandoned(&self, error: &JobError) -> Option<Self> {
        let mut problem = error.problem(Verdict::End);
        problem.advice = "What was loaded is deleted again, and the tenant is as it was. Mend what the message names, then import again.".into();
        self.undoing(Some(problem))
    }

    fn audited(mut state: Value) -> Value {
        let import = state.get_mut("import").and_then(Value::as_object_mut);
        if let Some(import) = import {
            import.remove("source");
        }
        state
    }
}

/// Suspends the fence once no write is under way.
async fn close(context: &Context, import: &Import) -> Result<Step<TenantImport>, JobError> {
    let mut session = context.shard(&import.shard).await?;
    let transaction = session.transaction().await?;
    await_writes(&transaction, import.tenant).await?;
    transaction
        .execute(
            "update ringfence.fence set suspended = true, changed_at = now()
             where tenant_id = $1 and not suspended",
            &[&import.tenant],
        )
        .await?;
    transaction.commit().await?;
    let import = import.clone();
    Ok(Step::Next(TenantImport::Checking { import }))
}

async fn compare(context: &Context, import: &Import) -> Result<Step<TenantImport>, JobError> {
    let source = Source::open(context.app(), &import.source).await?;
    let session = session(context, import).await?;
    let plan = plan::read(&source, &session).await?;
    if let Some(problem) = plan.problem() {
        return Err(JobError::Refused(problem));
    }
    check::require_empty(&session, &plan.tables, import.tenant).await?;
    let mut tables = Vec::with_capacity(plan.tables.len());
    for load in plan.tables {
        source.require_one_tenant(&load, import.tenant).await?;
        tables.push(Table {
            expected: source.count(&load.name).await?,
            load,
            rows: 0,
            done: false,
            again: false,
        });
    }
    Ok(Step::Next(TenantImport::Copying {
        import: import.clone(),
        tables,
        left: plan.left,
    }))
}

/// Copies for a while, of the first table that is not done.
async fn copy(
    context: &Context,
    import: &Import,
    tables: &[Table],
    left: &[Left],
) -> Result<Step<TenantImport>, JobError> {
    let (import, left, mut tables) = (import.clone(), left.to_vec(), tables.to_vec());
    let Some(table) = tables.iter_mut().find(|table| !table.done) else {
        return Ok(Step::Next(TenantImport::Verifying {
            import,
            tables,
            left,
        }));
    };
    let mut session = session(context, &import).await?;
    if table.again {
        table.again = !undo::of_table(context, &mut session, &import, &table.load.name).await?;
        table.rows = 0;
    } else {
        let source = Source::open(context.app(), &import.source).await?;
        let copied = load::for_a_while(context, &source, &mut session, &table.load, import.tenant);
        let copied = copied.await?;
        (table.rows, table.done) = (copied.rows, copied.done);
    }
    Ok(Step::Next(TenantImport::Copying {
        import,
        tables,
        left,
    }))
}

async fn verify(
    context: &Context,
    import: &Import,
    tables: &[Table],
    left: &[Left],
) -> Result<Step<TenantImport>, JobError> {
    context.app().failpoints.hit("copy_verifying");
    let source = Source::open(context.app(), &import.source).await?;
    let session = session(context, import).await?;
    let mut tables = tables.to_vec();
    let mut differ = Vec::new();
    for table in &mut tables {
        let name = &table.load.name;
        let there = source.count(name).await?;
        let here = check::count(&session, &table.load, import.tenant).await?;
        if there != here {
            differ.push(format!(
                "{name} has {there} rows, and {here} were loaded of it"
            ));
            (table.done, table.again, table.expected) = (false, true, there);
        }
    }
    if !differ.is_empty() {
        // The next try begins with these tables.
        context
            .save(&TenantImport::Copying {
                import: import.clone(),
                tables,
                left: left.to_vec(),
            })
            .await?;
        return Err(JobError::Unclear(format!(
            "the source was changed meanwhile: {}. Stop what writes to it; a retry loads these tables again",
            differ.join("; ")
        )));
    }
    let all = tenant_tables(&*session).await?;
    let loaded = all
        .iter()
        .filter(|table| tables.iter().any(|t| t.load.name == table.name));
    let loaded: Vec<_> = loaded.collect();
    check::foreign_keys(&session, &loaded, import.tenant).await?;
    let sequences = check::raise_sequences(&source, &session, &loaded, import.tenant).await?;
    let rows: u64 = tables.iter().map(|table| table.rows).sum();
    let counts: Vec<Value> = tables
        .iter()
        .map(|table| json!({ "table": table.load.name.to_string(), "rows": table.rows }))
        .collect();
    Ok(Step::Next(TenantImport::Opening {
        import: import.without_source(),
        result: json!({
            "tenant": import.tenant,
            "slug": import.slug,
            "shard": import.shard,
            "rows": rows,
            "tables": counts,
            "verified": "each table has as many rows as the source, every foreign key holds",
            "sequences_raised": sequences,
            "not_loaded": left,
        }),
    }))
}

async fn open(
    context: &Context,
    import: &Import,
    result: &Value,
) -> Result<Step<TenantImport>, JobError> {
    let opened = TenantImport::Opened {
        import: import.clone(),
        result: result.clone(),
    };
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    match import.was {
        TenantState::Active => {
            let actor = &context.job().actor;
            open_import(&transaction, actor, &import.slug, import.tenant).await?;
        }
        was => reopen_tenant(&transaction, import.tenant, was).await?,
    }
    context.commit(transaction, &opened).await?;
    Ok(Step::Next(opened))
}

async fn undo(
    context: &Context,
    import: &Import,
    tables: &[QualifiedName],
    problem: Option<&Problem>,
) -> Result<Step<TenantImport>, JobError> {
    if let Some((table, others)) = tables.split_first() {
        let mut session = context.shard(&import.shard).await?;
        let empty = undo::of_table(context, &mut session, import, table).await?;
        return Ok(Step::Next(TenantImport::Undoing {
            import: import.clone(),
            tables: if empty { others } else { tables }.to_vec(),
            problem: problem.cloned(),
        }));
    }
    let undone = TenantImport::Undone {
        import: import.clone(),
        problem: problem.cloned(),
    };
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    reopen_tenant(&transaction, import.tenant, import.was).await?;
    context.commit(transaction, &undone).await?;
    Ok(Step::Next(undone))
}

/// A session on the shard whose statements may take as long as the source's.
async fn session(context: &Context, import: &Import) -> Result<OwnedMutexGuard<Client>, JobError> {
    let session = context.shard(&import.shard).await?;
    let limit = format!(
        "set statement_timeout = {}",
        source::STATEMENT_MAX.as_millis()
    );
    session.batch_execute(&limit).await?;
    Ok(session)
}

/// Opens the fence as it was, and removes what the job noted on the shard.
async fn resume(context: &Context, import: &Import) -> Result<(), JobError> {
    let session = context.shard(&import.shard).await?;
    crate::tenant_delete::delete_marks(&session, context.job().id).await?;
    let shard = context.shard_info(&import.shard).await?;
    let nodes = reconcile::addresses(&shard);
    let suspended = import.was == TenantState::Suspended;
    let logins = &context.app().logins;
    logins
        .suspend(&import.shard, &nodes, import.tenant, suspended)
        .await?;
    Ok(())
}
