//! The database that rows come from: its address, kept sealed, and what is
//! asked of it.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use schema::ident::{Literal, QualifiedName};
use schema::key_range::KeyColumn;
use tenancy::auth::KeyRing;
use tenancy::chain;
use tokio::time::timeout;
use tokio_postgres::Client;
use uuid::Uuid;

use super::plan::{LoadTable, SourceTable};
use crate::app::App;
use crate::job::JobError;
use crate::job::retry::{Verdict, of_postgres};
use crate::shard::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, UNSENT_MAX};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest statement: a count, or a table without a primary key.
pub(super) const STATEMENT_MAX: Duration = Duration::from_secs(30 * 60);
/// Longest wait for what a statement gives; the source itself may stop it before.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(STATEMENT_MAX.as_secs() + 60);
/// What the key that seals addresses is derived for.
const PURPOSE: &str = "ringfence import source";
/// Longest address, in bytes.
const DSN_MAX: usize = 4_096;

/// A session on the source.
pub struct Source {
    pub(super) client: Client,
}

/// An address that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not one, or asks for what this deployment does not have.
    #[error("the source's address can't be used: {0}")]
    Address(String),
    /// It can't be sealed or opened: the deployment's secret was changed.
    #[error("the source's address was sealed by another secret")]
    Sealed,
}

/// The address as a job keeps it: workers of this deployment alone can read it.
pub fn seal(keys: &KeyRing, dsn: &str) -> Result<String, SourceError> {
    if dsn.len() > DSN_MAX {
        return Err(SourceError::Address("it is too long".into()));
    }
    let mut sealed = dsn.as_bytes().to_vec();
    let nonce = key(keys)?
        .seal_in_place_append_tag(Aad::empty(), &mut sealed)
        .map_err(|_| SourceError::Sealed)?;
    let bytes = nonce.as_ref().iter().chain(&sealed);
    Ok(bytes.map(|byte| format!("{byte:02x}")).collect())
}

fn open(keys: &KeyRing, text: &str) -> Result<String, SourceError> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    let mut bytes = bytes.ok_or(SourceError::Sealed)?;
    let (nonce, sealed) = bytes
        .split_at_mut_checked(NONCE_LEN)
        .ok_or(SourceError::Sealed)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SourceError::Sealed)?;
    let dsn = key(keys)?
        .open_in_place(nonce, Aad::empty(), sealed)
        .map_err(|_| SourceError::Sealed)?;
    String::from_utf8(dsn.to_vec()).map_err(|_| SourceError::Sealed)
}

fn key(keys: &KeyRing) -> Result<RandomizedNonceKey, SourceError> {
    RandomizedNonceKey::new(&AES_256_GCM, &keys.derive(PURPOSE)).map_err(|_| SourceError::Sealed)
}

impl Source {
    /// A session for a step of the job.
    pub(super) async fn open(app: &App, sealed: &str) -> Result<Self, JobError> {
        let dsn = open(&app.keys, sealed).map_err(|error| JobError::State(error.to_string()))?;
        Self::connect(app, &dsn).await
    }

    /// A session as the address says.
    pub async fn connect(app: &App, dsn: &str) -> Result<Self, JobError> {
        let address = |error: &dyn std::error::Error| {
            JobError::Refused(SourceError::Address(chain(error)).to_string())
        };
        let tls = &app.logins.tls;
        let mut config = tls.read(dsn).map_err(|error| address(&error))?;
        config
            .application_name("ringfence-import")
            .connect_timeout(CONNECT_MAX)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(UNSENT_MAX);
        let connected = answer(CONNECT_MAX * 2, tls.connect(&config)).await;
        let (client, connection) = connected?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to an import's source ended");
            }
        });
        let source = Self { client };
        // The same texts whatever the source is set to; rows that a policy hides are an error.
        let settings = format!(
            "set default_transaction_read_only = on; set row_security = off; set search_path = pg_catalog;
             set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set extra_float_digits = 3;
             set bytea_output = 'hex'; set statement_timeout = {}",
            STATEMENT_MAX.as_millis()
        );
        answer(CONNECT_MAX, source.client.batch_execute(&settings)).await?;
        Ok(source)
    }

    /// What it holds.
    pub(super) async fn tables(&self) -> Result<Vec<SourceTable>, JobError> {
        let rows = answer(ANSWER_MAX, self.client.query(TABLES, &[])).await?;
        let table = |row: &tokio_postgres::Row| SourceTable {
            name: QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
            kind: row.get::<_, &str>(2).into(),
            is_logged: row.get(3),
            columns: row.get("columns"),
            generated: row.get("generated"),
            key: row
                .get::<_, Vec<String>>("key")
                .into_iter()
                .zip(row.get::<_, Vec<String>>("key_types"))
                .map(|(name, type_name)| KeyColumn {
                    name: name.as_str().into(),
                    type_name,
                })
                .collect(),
        };
        Ok(rows.iter().map(table).collect())
    }

    pub(super) async fn large_objects(&self) -> Result<i64, JobError> {
        let counted = "select count(*) from pg_largeobject_metadata";
        let row = answer(ANSWER_MAX, self.client.query_one(counted, &[])).await?;
        Ok(row.get(0))
    }

    pub(super) async fn count(&self, table: &QualifiedName) -> Result<u64, JobError> {
        let sql = format!("select count(*) from {table}");
        let row = answer(ANSWER_MAX, self.client.query_one(&sql, &[])).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// A source that knows tenants itself holds this one alone.
    pub(super) async fn require_one_tenant(
        &self,
        table: &LoadTable,
        tenant: Uuid,
    ) -> Result<(), JobError> {
        if !table.source_has_tenant {
            return Ok(());
        }
        let sql = format!(
            "select exists (select from {} where {}::text is distinct from {})",
            table.name,
            table.tenant_column,
            Literal(&tenant.to_string())
        );
        let row = answer(ANSWER_MAX, self.client.query_one(&sql, &[])).await?;
        match row.get(0) {
            false => Ok(()),
            true => Err(JobError::Refused(format!(
                "{} has a column {} with other values than {tenant}: import the rows of one tenant, into a tenant of that id",
                table.name, table.tenant_column
            ))),
        }
    }

    /// The last numbers that its sequences gave.
    pub(super) async fn sequences(&self) -> Result<Vec<(QualifiedName, i64)>, JobError> {
        let given = "select schemaname::text, sequencename::text, last_value from pg_sequences
             where last_value is not null";
        let rows = answer(ANSWER_MAX, self.client.query(given, &[])).await?;
        let sequence = |row: &tokio_postgres::Row| {
            let name = QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
            (name, row.get(2))
        };
        Ok(rows.iter().map(sequence).collect())
    }
}

/// What the source says, if it says something in time: one that keeps the
/// connection and is silent would hold the job, and the shard's transaction.
pub(super) async fn answer<T>(
    within: Duration,
    said: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, JobError> {
    let said = timeout(within, said).await;
    said.map_err(|_| JobError::Wait("the source did not answer in time".into()))?
        .map_err(failed)
}

/// What an error of the source means: it comes back, or a person looks.
fn failed(error: tokio_postgres::Error) -> JobError {
    match of_postgres(&error) {
        Verdict::Retry => JobError::Wait(format!("the source does not answer: {}", chain(&error))),
        Verdict::RetryFew | Verdict::Person | Verdict::End | Verdict::Leave => {
            JobError::Unclear(format!("the source refused: {}", chain(&error)))
        }
    }
}

/// What has rows: partitions belong to their tables.
const TABLES: &str = "
    select n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 'p' as is_logged,
      array(select a.attname::text from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns,
      array(select a.attname::text from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> '') as generated,
      array(select a.attname::text from pg_index i, unnest(i.indkey::int2[]) with ordinality k (num, n)
        join pg_attribute a on a.attrelid = c.oid and a.attnum = k.num
        where i.indrelid = c.oid and i.indisprimary and k.n <= i.indnkeyatts order by k.n) as key,
      array(select format_type(a.atttypid, a.atttypmod) from pg_index i, unnest(i.indkey::int2[]) with ordinality k (num, n)
        join pg_attribute a on a.attrelid = c.oid and a.attnum = k.num
        where i.indrelid = c.oid and i.indisprimary and k.n <= i.indnkeyatts order by k.n) as key_types
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'ringfence')
      and c.relkind in ('r', 'p', 'm', 'f') and not c.relispartition
      and not exists (select from pg_depend d
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
    order by 1, 2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_by_this_deployment_alone() {
        let (keys, others) = (KeyRing::new("one"), KeyRing::new("two"));
        let dsn = "postgres://app:secret@db/app";
        let sealed = seal(&keys, dsn).unwrap();
        assert!(!sealed.contains("secret"));
        assert_ne!(sealed, seal(&keys, dsn).unwrap());
        assert_eq!(open(&keys, &sealed).unwrap(), dsn);
        assert!(open(&others, &sealed).is_err());
        for broken in ["", "zz", &sealed[2..], "ä"] {
            assert!(open(&keys, broken).is_err(), "{broken}");
        }
        assert!(seal(&keys, &"x".repeat(5_000)).is_err());
    }
}
