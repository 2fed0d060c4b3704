//! Shards', nodes' and issuers' rows, and what changes with the ring.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::tenants::read_error;
use super::{Actor, Control, ControlError, audit, check_name, next_version};
use crate::id::TenantId;
use crate::snapshot::{Delta, IssuerRow, Snapshot};
use crate::watch::fetch_fleet;

/// Tenants looked at once while a ring changes.
const PAGE: i64 = 20_000;

/// A shard to add.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewShard {
    /// Its id.
    pub id: String,
    /// Its region; the default one where none is given.
    pub region: Option<String>,
    /// Its share of the ring; 1 where none is given.
    pub weight: Option<f64>,
    /// Its nodes, one at least.
    pub nodes: Vec<NewNode>,
}

/// A node to add.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A shard as DBAs see it.
#[derive(Clone, Debug, Serialize)]
pub struct ShardInfo {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Its share of the ring.
    pub weight: f64,
    /// `preparing`, `active` or `draining`.
    pub state: String,
    /// Tenants that live on it.
    pub tenants: i64,
    /// Its nodes.
    pub nodes: Vec<NodeInfo>,
}

/// A node as workers last saw it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its shard.
    pub shard: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `primary` or `replica`; none before it was seen.
    pub role: Option<String>,
    /// Its system identifier.
    pub system_id: Option<String>,
    /// Its timeline.
    pub timeline: Option<i32>,
    /// Its WAL position, replayed or written.
    pub replay_lsn: Option<String>,
    /// Bytes behind the primary.
    pub lag_bytes: Option<i64>,
    /// Seconds since it was seen.
    pub seen_seconds_ago: Option<f64>,
    /// Why it could not be seen.
    pub error: Option<String>,
}

/// A router or worker as its last heartbeat says.
#[derive(Clone, Debug, Serialize)]
pub struct MemberInfo {
    /// `router` or `worker`.
    pub kind: String,
    /// Its configured name.
    pub name: String,
    /// One run of it.
    pub instance: Uuid,
    /// Its region; none means the default one.
    pub region: Option<String>,
    /// Base address of its admin listener.
    pub admin_url: String,
    /// Its program's version.
    pub version: String,
    /// Seconds since it started.
    pub started_seconds_ago: f64,
    /// Seconds since its last heartbeat.
    pub seen_seconds_ago: f64,
}

/// What was seen of a node.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The node's name.
    pub node: String,
    /// What it answered, or why it didn't.
    pub seen: Result<Seen, String>,
}

/// A node's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// It is not in recovery.
    pub primary: bool,
    /// Its system identifier.
    pub system_id: String,
    /// Its timeline.
    pub timeline: i32,
    /// Bytes of WAL, written or replayed.
    pub lsn: u64,
    /// Bytes behind its primary.
    pub lag_bytes: Option<i64>,
}

impl Control {
    /// Writes a shard's row, off the ring, and its nodes' rows. The same shard
    /// again is left as it is, but for nodes that are new or have moved.
    pub async fn insert_shard(&self, actor: &Actor, new: &NewShard) -> Result<(), ControlError> {
        check_name("shard", &new.id)?;
        if new.nodes.is_empty() {
            return Err(ControlError::Invalid("a shard needs a node".into()));
        }
        let weight = new.weight.unwrap_or(1.0);
        if !(weight > 0.0 && weight <= 100.0) {
            return Err(ControlError::Invalid(
                "weight must be above 0 and at most 100".into(),
            ));
        }
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        next_version(&transaction, true).await?;
        let before = as_it_is(&transaction, &new.id).await?;
        let rows = transaction
            .execute(
                "insert into ringfence.shard (id, region, weight)
                 select $1, r.id, $3 from ringfence.region r
                 where case when $2::text is null then r.is_default else r.id = $2 end
                 on conflict (id) do update set region = shard.region",
                &[&new.id, &new.region, &weight],
            )
            .await?;
        if rows == 0 {
            return Err(ControlError::NotFound {
                kind: "region",
                name: new.region.clone().unwrap_or_else(|| "(default)".into()),
            });
        }
        for node in &new.nodes {
            check_name("node", &node.name)?;
            let written = transaction
                .execute(
                    "insert into ringfence.node (name, shard, host, port) values ($1, $2, $3, $4)
                     on conflict (name) do update set host = excluded.host, port = excluded.port
                     where node.shard = excluded.shard",
                    &[&node.name, &new.id, &node.host, &i32::from(node.port)],
                )
                .await
                .map_err(|error| match error.code() {
                    Some(&SqlState::UNIQUE_VIOLATION) => ControlError::Conflict(format!(
                        "another node listens on {}:{}",
                        node.host, node.port
                    )),
                    _ => ControlError::Postgres(error),
                })?;
            if written == 0 {
                return Err(ControlError::Conflict(format!(
                    "another shard has a node {}",
                    node.name
                )));
            }
        }
        let after = as_it_is(&transaction, &new.id).await?;
        audit(&transaction, actor, "shard.add", &new.id, before, after).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Puts a prepared shard on the ring, and gives every tenant whose answer
    /// changes with it its new `ring_shard`, in one transaction. No tenant
    /// moves: who lives elsewhere becomes an exception. Returns how many did.
    pub async fn activate_shard(&self, actor: &Actor, shard: &str) -> Result<u64, ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let version = next_version(&transaction, true).await?;
        let changed = transaction
            .execute(
                "update ringfence.shard set state = 'active' where id = $1 and state = 'preparing'",
                &[&shard],
            )
            .await?;
        if changed == 0 {
            return Ok(0);
        }
        let affected = reseat(&transaction, version).await?;
        let note = serde_json::json!({ "tenants_off_the_ring": affected });
        audit(
            &transaction,
            actor,
            "shard.activate",
            shard,
            None,
            Some(note),
        )
        .await?;
        transaction.commit().await?;
        Ok(affected)
    }

    /// All shards with their nodes and numbers of tenants.
    pub async fn shards(&self) -> Result<Vec<ShardInfo>, ControlError> {
        let client = self.client().await?;
        let rows = client
            .query(
                "select s.id, s.region, s.weight, s.state,
                   (select count(*) from ringfence.tenant t where t.shard = s.id and t.state <> 'deleted') as tenants
                 from ringfence.shard s order by s.id",
                &[],
            )
            .await?;
        let mut nodes: HashMap<String, Vec<NodeInfo>> = HashMap::new();
        for node in self.nodes().await? {
            nodes.entry(node.shard.clone()).or_default().push(node);
        }
        Ok(rows
            .iter()
            .map(|row| {
                let id: String = row.get("id");
                ShardInfo {
                    nodes: nodes.remove(&id).unwrap_or_default(),
                    id,
                    region: row.get("region"),
                    weight: row.get("weight"),
                    state: row.get("state"),
                    tenants: row.get("tenants"),
                }
            })
            .collect())
    }

    /// All nodes as they were last seen.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, ControlError> {
        let rows = self
            .client()
            .await?
            .query(
                "select name, shard, host, port, role, system_id, timeline, replay_lsn::text as lsn,
                   lag_bytes, extract(epoch from now() - seen_at)::float8 as ago, error
                 from ringfence.node order by shard, name",
                &[],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| NodeInfo {
                name: row.get("name"),
                shard: row.get("shard"),
                host: row.get("host"),
                port: row.get::<_, i32>("port") as u16,
                role: row.get("role"),
                system_id: row.get("system_id"),
                timeline: row.get("timeline"),
                replay_lsn: row.get("lsn"),
                lag_bytes: row.get("lag_bytes"),
                seen_seconds_ago: row.get("ago"),
                error: row.get("error"),
            })
            .collect())
    }

    /// Routers and workers that were seen in the last ten minutes.
    pub async fn members(&self) -> Result<Vec<MemberInfo>, ControlError> {
        let rows = self
            .client()
            .await?
            .query(
                "select kind, name, instance, region, admin_url, version,
                   extract(epoch from clock_timestamp() - started_at)::float8 as started,
                   extract(epoch from clock_timestamp() - seen_at)::float8 as seen
                 from ringfence.member order by kind, name, started_at, instance",
                &[],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| MemberInfo {
                kind: row.get("kind"),
                name: row.get("name"),
                instance: row.get("instance"),
                region: row.get("region"),
                admin_url: row.get("admin_url"),
                version: row.get("version"),
                started_seconds_ago: row.get("started"),
                seen_seconds_ago: row.get("seen"),
            })
            .collect())
    }

    /// Writes what was seen of nodes. Routers look at nodes for themselves, so
    /// this takes no version; but for a newer timeline, which one that starts while
    /// only the old primary answers must know of.
    pub async fn observe(&self, observations: &[Observation]) -> Result<(), ControlError> {
        let client = self.client().await?;
        for observation in observations {
            match &observation.seen {
                Ok(seen) => {
                    let role = if seen.primary { "primary" } else { "replica" };
                    let lsn = format!("{:X}/{:X}", seen.lsn >> 32, seen.lsn & 0xffff_ffff);
                    client
                        .execute(
                            "with before as (
                               select coalesce(max(o.timeline), 1) as newest
                               from ringfence.node n
                                 join ringfence.node o on o.shard = n.shard and o.system_id = $3
                               where n.name = $1),
                             seen as (
                               update ringfence.node set role = $2, system_id = $3, timeline = $4,
                                 replay_lsn = $5::text::pg_lsn, lag_bytes = $6, seen_at = now(),
                                 error = null
                               from before where name = $1
                               returning $4 > before.newest as newer)
                             select ringfence.next_version(true) from seen where newer",
                            &[
                                &observation.node,
                                &role,
                                &seen.system_id,
                                &seen.timeline,
                                &lsn,
                                &seen.lag_bytes,
                            ],
                        )
                        .await?;
                }
                Err(error) => {
                    client
                        .execute(
                            "update ringfence.node set error = $2 where name = $1",
                            &[&observation.node, error],
                        )
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Registers an issuer of tokens, or replaces it.
    pub async fn put_issuer(&self, actor: &Actor, issuer: &IssuerRow) -> Result<(), ControlError> {
        let ways = [
            issuer.secret.is_some(),
            issuer.jwks.is_some(),
            issuer.jwks_url.is_some(),
        ];
        if ways.iter().filter(|given| **given).count() != 1 {
            return Err(ControlError::Invalid(
                "an issuer has one of a secret, a JWKS document and the URL of one".into(),
            ));
        }
        if issuer.jwks.as_ref().is_some_and(|jwks| !jwks.is_object()) {
            return Err(ControlError::Invalid(
                "a JWKS document is a JSON object".into(),
            ));
        }
        if issuer
            .jwks_url
            .as_deref()
            .is_some_and(|url| !is_safe_url(url))
        {
            return Err(ControlError::Invalid(
                "keys are read from a URL of https, or of http on the router's own host".into(),
            ));
        }
        if issuer.secret.as_ref().is_some_and(|s| s.len() < 32) {
            return Err(ControlError::Invalid(
                "the secret must have 32 characters at least".into(),
            ));
        }
        let url = issuer.jwks_url.clone().map(serde_json::Value::String);
        let keys = issuer.jwks.clone().or(url);
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        next_version(&transaction, true).await?;
        let before = transaction
            .query_opt(
                "select json_build_object('audience', audience, 'tenants', tenants, 'jwks_url',
                   case when jsonb_typeof(jwks) = 'string' then jwks end)
                 from ringfence.jwt_issuer where name = $1 for update",
                &[&issuer.name],
            )
            .await?
            .map(|row| row.get::<_, serde_json::Value>(0));
        transaction
            .execute(
                "insert into ringfence.jwt_issuer (name, secret, jwks, audience, tenants)
                 values ($1, $2, $3, $4, $5)
                 on conflict (name) do update set secret = excluded.secret, jwks = excluded.jwks,
                   audience = excluded.audience, tenants = excluded.tenants",
                &[
                    &issuer.name,
                    &issuer.secret,
                    &keys,
                    &issuer.audience,
                    &issuer.tenants,
                ],
            )
            .await?;
        let after = serde_json::json!({
            "audience": issuer.audience,
            "tenants": issuer.tenants,
            "jwks_url": issuer.jwks_url,
        });
        audit(
            &transaction,
            actor,
            "issuer.put",
            &issuer.name,
            before,
            Some(after),
        )
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets an issuer: its tokens are refused.
    pub async fn remove_issuer(&self, actor: &Actor, name: &str) -> Result<(), ControlError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        next_version(&transaction, true).await?;
        let before = transaction
            .query_opt(
                "delete from ringfence.jwt_issuer where name = $1
                 returning json_build_object('audience', audience, 'tenants', tenants, 'jwks_url',
                   case when jsonb_typeof(jwks) = 'string' then jwks end)",
                &[&name],
            )
            .await?
            .map(|row| row.get::<_, serde_json::Value>(0))
            .ok_or_else(|| ControlError::NotFound {
                kind: "issuer",
                name: name.to_owned(),
            })?;
        audit(
            &transaction,
            actor,
            "issuer.remove",
            name,
            Some(before),
            None,
        )
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// All issuers, without their secrets.
    pub async fn issuers(&self) -> Result<Vec<IssuerRow>, ControlError> {
        let client = self.client().await?;
        let fleet = fetch_fleet(&**client).await.map_err(read_error)?;
        let hidden = fleet.issuers.into_iter().map(|issuer| IssuerRow {
            secret: issuer.secret.map(|_| "***".into()),
            ..issuer
        });
        Ok(hidden.collect())
    }
}

/// Keys that somebody on the way could exchange are no keys.
pub fn is_safe_url(url: &str) -> bool {
    const LOCAL: [&str; 3] = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let ends = |rest: &str| rest.is_empty() || rest.starts_with([':', '/']);
    let local = |prefix: &&str| url.strip_prefix(*prefix).is_some_and(ends);
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    let rest = url.strip_prefix("https://");
    let authority = url.split("://").nth(1);
    let authority = authority.and_then(|rest| rest.split(['/', '?', '#']).next());
    // What stands before an @ only looks like the host.
    let named = authority.is_some_and(|host| !host.contains('@'));
    url.chars().all(plain)
        && named
        && (rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_alphanumeric() || c == '['))
            || LOCAL.iter().any(local))
}

/// A shard and its nodes for the audit log; none where there is no such shard.
pub(super) async fn as_it_is(
    transaction: &Transaction<'_>,
    shard: &str,
) -> Result<Option<serde_json::Value>, ControlError> {
    let row = transaction
        .query_opt(
            "select json_build_object('id', s.id, 'region', s.region, 'weight', s.weight,
               'state', s.state, 'nodes', (
                 select coalesce(json_agg(json_build_object(
                   'name', n.name, 'host', n.host, 'port', n.port) order by n.name), '[]')
                 from ringfence.node n where n.shard = s.id))
             from ringfence.shard s where s.id = $1",
            &[&shard],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Gives every tenant whose answer of the ring has changed its new `ring_shard`.
/// Returns how many there were.
pub(super) async fn reseat(
    transaction: &Transaction<'_>,
    version: i64,
) -> Result<u64, ControlError> {
    let fleet = Snapshot::empty().with(Delta {
        fleet: Some(fetch_fleet(transaction).await.map_err(read_error)?),
        ..Delta::default()
    });
    let mut after = Uuid::nil();
    let mut affected = 0;
    loop {
        let rows = transaction
            .query(
                "select id, region, ring_shard from ringfence.tenant
                 where id > $1 and state <> 'deleted' order by id limit $2",
                &[&after, &PAGE],
            )
            .await?;
        let Some(last) = rows.last() else { break };
        after = last.get("id");
        let mut ids: Vec<Uuid> = Vec::new();
        let mut shards: Vec<&str> = Vec::new();
        for row in &rows {
            let id: Uuid = row.get("id");
            let region = row.get::<_, &str>("region").into();
            let Some(now) = fleet.ring_says(&region, TenantId(id)) else {
                continue;
            };
            if now.as_str() != row.get::<_, &str>("ring_shard") {
                let all = &fleet.fleet().shards;
                if let Some(shard) = all.iter().find(|shard| shard.id == *now) {
                    ids.push(id);
                    shards.push(shard.id.as_str());
                }
            }
        }
        affected += transaction
            .execute(
                "update ringfence.tenant t
                 set ring_shard = new.shard, version = $3, exceptional = true
                 from unnest($1::uuid[], $2::text[]) as new (id, shard) where t.id = new.id",
                &[&ids, &shards, &version],
            )
            .await?;
    }
    Ok(affected)
}
