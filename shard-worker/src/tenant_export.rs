//! Writes all rows of a tenant into one archive.
//!
//! ```text
//!   Exporting ──► Done
//!       │cancel
//!       ▼
//!   Cancelled
//! ```
//!
//! All tables are read in one snapshot, while the tenant is being used; a
//! worker that dies takes its snapshot with it, so another one starts over. No
//! more than a few parts are in memory at once.

mod copy;

use std::path::Path;

use schema::tenant_tables::{TenantTable, tenant_tables};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::control::TenantInfo;
use tokio::time::Instant;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use self::copy::TableCopy;
use crate::archive::{self, FORMAT, Header, Manifest, Name, TenantName, Writer, Written};
use crate::job::{Context, End, JobError, Machine, Progress, Step, Unit};

/// How far it is, is written so often.
const SAVE_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// The states.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TenantExport {
    /// Rows are copied; a new try begins at the first table.
    Exporting {
        /// Whose.
        tenant: TenantName,
        /// Where they are.
        shard: String,
        /// The placement's number.
        epoch: i64,
        /// Rows copied.
        rows: u64,
        /// The planner's guess of all.
        expected: u64,
    },
    /// The archive is there.
    Done,
    /// It was cancelled.
    Cancelled,
}

impl TenantExport {
    /// The first state.
    pub fn of(tenant: &TenantInfo) -> Self {
        Self::Exporting {
            tenant: TenantName {
                id: tenant.id,
                slug: tenant.slug.clone(),
                name: tenant.name.clone(),
            },
            shard: tenant.shard.clone(),
            epoch: tenant.epoch,
            rows: 0,
            expected: 0,
        }
    }
}

impl Machine for TenantExport {
    fn phase(&self) -> (&'static str, Progress) {
        match self {
            Self::Exporting { rows, expected, .. } => (
                "exporting",
                Progress {
                    done: *rows,
                    total: (*expected).max(*rows),
                    unit: Unit::Rows,
                },
            ),
            Self::Done => ("done", Progress::default()),
            Self::Cancelled => ("cancelled", Progress::default()),
        }
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        match self {
            Self::Exporting {
                tenant,
                shard,
                epoch,
                ..
            } => {
                let export = Export {
                    context,
                    tenant,
                    shard,
                    epoch: *epoch,
                };
                let result = export.run().await?;
                Ok(Step::End(Self::Done, End::Done, result))
            }
            Self::Done => Ok(Step::End(Self::Done, End::Done, Value::Null)),
            Self::Cancelled => Ok(Step::End(Self::Cancelled, End::Cancelled, Value::Null)),
        }
    }

    fn cancelled(&self) -> Option<Self> {
        matches!(self, Self::Exporting { .. }).then_some(Self::Cancelled)
    }
}

struct Export<'a> {
    context: &'a Context,
    tenant: &'a TenantName,
    shard: &'a str,
    epoch: i64,
}

impl Export<'_> {
    async fn run(&self) -> Result<Value, JobError> {
        let archives = &self.context.app().archives;
        let place = archives.place()?;
        let (written, manifest) = self.write(&place).await?;
        let name = Name::new(&self.tenant.slug);
        archives.keep(&place, &name)?;
        let tables: Vec<Value> = manifest
            .tables
            .iter()
            .map(|t| json!({ "table": t.table, "rows": t.rows, "sha256": t.sha256 }))
            .collect();
        Ok(json!({
            "archive": name.to_string(),
            "worker": self.context.app().name,
            "bytes": written.bytes,
            "sha256": written.sha256,
            "rows": manifest.rows(),
            "tables": tables,
        }))
    }

    async fn write(&self, place: &Path) -> Result<(Written, Manifest), JobError> {
        let mut session = self.context.shard(self.shard).await?;
        let snapshot = snapshot(&mut session).await?;
        self.require_here(&snapshot).await?;
        let tables = tenant_tables(&*snapshot).await?;
        let mut writer = Writer::create(place)?;
        let header = self.header(&snapshot, &tables).await?;
        writer
            .add("header.json".into(), to_json(&header)?)
            .await?;
        let mut expected = 0;
        for table in &tables {
            expected += copy::estimate(&snapshot, table, self.tenant.id).await?;
        }
        let mut manifest = Manifest::default();
        let mut saved = Instant::now();
        let mut rows = 0;
        for table in &tables {
            let mut copy = TableCopy::start(&snapshot, table, self.tenant.id).await?;
            while let Some((part, bytes)) = copy.next_part().await? {
                rows += part.rows;
                writer.add(part.path.clone(), bytes).await?;
                manifest.parts.push(part);
                if saved.elapsed() > SAVE_EVERY {
                    self.context.save(&self.at(rows, expected)).await?;
                    saved = Instant::now();
                }
            }
            manifest.tables.push(copy.sum());
        }
        snapshot.commit().await?;
        writer
            .add("manifest.json".into(), to_json(&manifest)?)
            .await?;
        Ok((writer.finish().await?, manifest))
    }

    fn at(&self, rows: u64, expected: u64) -> TenantExport {
        TenantExport::Exporting {
            tenant: self.tenant.clone(),
            shard: self.shard.to_owned(),
            epoch: self.epoch,
            rows,
            expected,
        }
    }

    /// The tenant must live here at that epoch, in the snapshot itself.
    async fn require_here(&self, snapshot: &Transaction<'_>) -> Result<(), JobError> {
        let fence = snapshot
            .query_opt(
                "select epoch, state from ringfence.fence where tenant_id = $1",
                &[&self.tenant.id],
            )
            .await?;
        let here = fence.is_some_and(|row| {
            row.get::<_, i64>(0) == self.epoch && row.get::<_, &str>(1) == "active"
        });
        match here {
            true => Ok(()),
            false => Err(JobError::Refused(format!(
                "tenant {} does not live on shard {} at epoch {} any longer: export it again",
                self.tenant.slug, self.shard, self.epoch
            ))),
        }
    }

    async fn header(
        &self,
        snapshot: &Transaction<'_>,
        tables: &[TenantTable],
    ) -> Result<Header, JobError> {
        let row = snapshot
            .query_one(
                "select to_char(now(), 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), current_setting('server_version')",
                &[],
            )
            .await?;
        Ok(Header {
            format: FORMAT,
            tenant: self.tenant.clone(),
            shard: self.shard.to_owned(),
            taken_at: row.get(0),
            postgres: row.get(1),
            tables: tables.iter().map(copy::described).collect(),
        })
    }
}

/// One snapshot for all tables, and values as text that any setting reads back.
async fn snapshot(session: &mut Client) -> Result<Transaction<'_>, JobError> {
    let snapshot = session
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    snapshot
        .batch_execute(
            "set local datestyle = 'ISO, YMD'; set local intervalstyle = 'postgres';
             set local timezone = 'UTC'; set local bytea_output = 'hex';
             set local extra_float_digits = 1",
        )
        .await?;
    Ok(snapshot)
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, JobError> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| archive::ArchiveError::Damaged(error.to_string()).into())
}
