//! The audit log: who changed what. It is written by whoever changes something,
//! in the same transaction, and can only be added to.

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;

use super::{Actor, Control, ControlError, write_audit};

/// Most rows that one page holds.
const PAGE_MAX: i64 = 1_000;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditRow {
    /// Its number; later lines have higher ones.
    pub id: i64,
    /// When it was written, UTC.
    pub at: String,
    /// Who did it.
    pub actor: String,
    /// What was done, such as `tenant.suspend`.
    pub action: String,
    /// To what.
    pub object: String,
    /// What it was before.
    pub before: Option<Value>,
    /// What it is after.
    pub after: Option<Value>,
    /// How it ended.
    pub result: String,
}

/// Which lines.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Of this object only.
    pub object: Option<String>,
    /// Actions that begin so only.
    pub action: Option<String>,
    /// Lines before this number only.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

impl Control {
    /// Lines of the log, newest first.
    pub async fn audit_log(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, ControlError> {
        let client = self.client().await?;
        let rows = client
            .query(
                "select id, to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as at,
                   actor, action, object, before, after, result
                 from ringfence.audit
                 where ($1::text is null or object = $1)
                   and ($2::text is null or starts_with(action, $2))
                   and ($3::bigint is null or id < $3)
                 order by id desc limit $4",
                &[
                    &filter.object,
                    &filter.action,
                    &filter.before,
                    &filter.limit.clamp(1, PAGE_MAX),
                ],
            )
            .await?;
        Ok(rows.iter().map(AuditRow::from_row).collect())
    }

    /// A change that was asked for and not made.
    pub async fn audit_refused(
        &self,
        actor: &Actor,
        action: &str,
        object: &str,
        result: &str,
    ) -> Result<(), ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        write_audit(&transaction, actor, action, object, None, None, result).await?;
        transaction.commit().await?;
        Ok(())
    }
}

impl AuditRow {
    fn from_row(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            at: row.get("at"),
            actor: row.get("actor"),
            action: row.get("action"),
            object: row.get("object"),
            before: row.get("before"),
            after: row.get("after"),
            result: row.get("result"),
        }
    }
}
