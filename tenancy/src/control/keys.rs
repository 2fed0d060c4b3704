//! API keys' rows. The keys themselves are not stored: who has the row can't speak for the tenant.

use serde::Serialize;
use tokio_postgres::Row;
use uuid::Uuid;

use super::tenants::{find, not_found};
use super::{Actor, Control, ControlError, audit, next_version};

const COLUMNS: &str = "id, tenant, role, name,
    to_char(created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as created_at,
    to_char(expires_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as expires_at,
    to_char(revoked_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as revoked_at,
    extract(epoch from expires_at)::bigint as expires_epoch";

/// A key to create.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The role of its requests.
    pub role: String,
    /// A name for people.
    pub name: Option<String>,
    /// Its life; none means no end.
    pub expires_in_seconds: Option<i64>,
}

/// A key as DBAs see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Its number.
    pub id: i64,
    /// Its tenant.
    pub tenant: Uuid,
    /// The role of its requests.
    pub role: String,
    /// Its name.
    pub name: Option<String>,
    /// When it was made, UTC.
    pub created_at: String,
    /// When it ends, UTC.
    pub expires_at: Option<String>,
    /// When it was revoked, UTC.
    pub revoked_at: Option<String>,
    /// Its end in Unix seconds, as the key itself says it.
    #[serde(skip)]
    pub expires_epoch: Option<i64>,
}

impl KeyInfo {
    fn from_row(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            tenant: row.get("tenant"),
            role: row.get("role"),
            name: row.get("name"),
            created_at: row.get("created_at"),
            expires_at: row.get("expires_at"),
            revoked_at: row.get("revoked_at"),
            expires_epoch: row.get("expires_epoch"),
        }
    }
}

impl Control {
    /// Writes a key's row; the caller mints the key from it.
    pub async fn insert_key(
        &self,
        actor: &Actor,
        tenant: &str,
        new: &NewKey,
    ) -> Result<KeyInfo, ControlError> {
        if new.role.is_empty() || new.role.len() > 63 {
            return Err(ControlError::Invalid("a role has 1 to 63 bytes".into()));
        }
        let life = new.expires_in_seconds;
        if life.is_some_and(|seconds| !(1..=100 * 366 * 86_400).contains(&seconds)) {
            return Err(ControlError::Invalid(
                "expires_in_seconds must be from 1 to a hundred years".into(),
            ));
        }
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let version = next_version(&transaction, false).await?;
        let found = find(&*transaction, tenant).await?;
        let tenant = found.ok_or_else(|| not_found(tenant))?;
        let sql = format!(
            "insert into ringfence.api_key (tenant, role, name, expires_at, version)
             values ($1, $2, $3, date_trunc('second', now()) + $4 * interval '1 second', $5) returning {COLUMNS}"
        );
        let life = life.map(|seconds| seconds as f64);
        let row = transaction
            .query_one(&sql, &[&tenant.id, &new.role, &new.name, &life, &version])
            .await?;
        let info = KeyInfo::from_row(&row);
        let after = serde_json::to_value(&info).ok();
        audit(&transaction, actor, "key.create", &tenant.slug, None, after).await?;
        transaction.commit().await?;
        Ok(info)
    }

    /// A tenant's keys, the newest first, at most 1,000.
    pub async fn keys(&self, tenant: &str) -> Result<Vec<KeyInfo>, ControlError> {
        let client = self.client().await?;
        let found = find(&**client, tenant).await?;
        let tenant = found.ok_or_else(|| not_found(tenant))?;
        let sql = format!(
            "select {COLUMNS} from ringfence.api_key where tenant = $1 order by id desc limit 1000"
        );
        let rows = client.query(&sql, &[&tenant.id]).await?;
        Ok(rows.iter().map(KeyInfo::from_row).collect())
    }

    /// Revokes a key; routers refuse it within a second. Again is the same.
    pub async fn revoke_key(&self, actor: &Actor, id: i64) -> Result<KeyInfo, ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let version = next_version(&transaction, false).await?;
        let sql = format!("select {COLUMNS} from ringfence.api_key where id = $1 for update");
        let row = transaction.query_opt(&sql, &[&id]).await?;
        let was = row.ok_or_else(|| ControlError::NotFound {
            kind: "key",
            name: id.to_string(),
        })?;
        let before = serde_json::to_value(KeyInfo::from_row(&was)).ok();
        let sql = format!(
            "update ringfence.api_key
             set revoked_at = coalesce(revoked_at, now()), version = $2
             where id = $1 returning {COLUMNS}"
        );
        let row = transaction.query_one(&sql, &[&id, &version]).await?;
        let info = KeyInfo::from_row(&row);
        let after = serde_json::to_value(&info).ok();
        audit(
            &transaction,
            actor,
            "key.revoke",
            &id.to_string(),
            before,
            after,
        )
        .await?;
        transaction.commit().await?;
        Ok(info)
    }
}
