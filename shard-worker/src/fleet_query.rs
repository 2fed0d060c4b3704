//! What people ask of a shard by SQL: read only, within bounds of time, rows and
//! bytes, on a replica where there is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use serde::Serialize;
use serde_json::value::RawValue;
use tenancy::chain;
use tenancy::control::{NodeInfo, ShardInfo};
use tokio::time::timeout_at;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use crate::app::App;
use crate::error::Error;
use crate::shard::{Address, ShardError, timelines, was_replaced};

/// Rows of one shard's answer at most, whatever was asked for.
pub const ROWS_MAX: usize = 10_000;
/// Bytes of one shard's answer.
const BYTES_MAX: usize = 8 << 20;
/// Shards that are asked at once: each answer is held whole, beside captures and moves.
pub const AT_ONCE_MAX: usize = 16;
/// Longest statement, s.
pub const SECONDS_MAX: u64 = 50;
/// Longest wait for logins and answers beside the statement, of all nodes together.
const BESIDE_MAX: Duration = Duration::from_secs(8);
/// A replica that lags more is not asked, bytes.
const LAG_MAX: i64 = 16 << 20;
/// A node's role that was seen longer ago is not believed, s.
const SEEN_MAX: f64 = 10.0;

/// What is asked.
pub struct Ask<'a> {
    /// One statement that gives rows.
    pub sql: &'a str,
    /// So many rows at most.
    pub rows_max: usize,
    /// It is stopped after so long.
    pub time_max: Duration,
    /// Replicas are not asked.
    pub primary: bool,
}

/// A shard's answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The node that answered.
    pub node: String,
    /// `primary` or `replica`.
    pub role: String,
    /// The columns' names, in order.
    pub columns: Vec<String>,
    /// Each row as an object, as Postgres wrote it.
    pub rows: Vec<Box<RawValue>>,
    /// There are more rows.
    pub truncated: bool,
    /// How long it took, ms.
    pub took_ms: f64,
}

/// Asks the first of the shard's nodes that answers, replicas first.
///
/// # Errors
/// What the last node said; what is wrong with the statement.
pub async fn ask(app: &App, shard: &ShardInfo, ask: &Ask<'_>) -> Result<Answer, Error> {
    // Who waits for a place is gone when its own client gives up.
    let place = app.queries.acquire().await;
    let _place = place.map_err(|_| ShardError::Slow)?;
    let mut error = Error::Shard(ShardError::NoPrimary {
        shard: shard.id.clone(),
        reason: "it has no nodes that can be asked".into(),
    });
    let until = tokio::time::Instant::now() + ask.time_max + BESIDE_MAX;
    for node in in_order(shard, ask.primary) {
        let began = Instant::now();
        let answered = timeout_at(until, ask_node(app, node, ask)).await;
        match answered.unwrap_or(Err(ShardError::Slow.into())) {
            Ok((columns, rows, truncated, is_replica)) => {
                return Ok(Answer {
                    node: node.name.clone(),
                    role: if is_replica { "replica" } else { "primary" }.into(),
                    columns,
                    rows,
                    truncated,
                    took_ms: (began.elapsed().as_secs_f64() * 1e6).round() / 1e3,
                });
            }
            // The statement's own fault: another node would say the same.
            Err(Error::Shard(ShardError::Postgres(refused))) if !is_the_nodes(&refused) => {
                return Err(Error::BadRequest(refusal(&refused)));
            }
            Err(Error::BadRequest(why)) => return Err(Error::BadRequest(why)),
            Err(other) => {
                tracing::debug!(
                    node = node.name,
                    error = chain(&other),
                    "a node did not answer"
                );
                error = other;
            }
        }
    }
    Err(error)
}

/// Replicas that were seen lately and are not far behind, then all others but for
/// primaries that were replaced.
fn in_order(shard: &ShardInfo, primary: bool) -> Vec<&NodeInfo> {
    let is_good = |node: &NodeInfo| {
        node.role.as_deref() == Some("replica")
            && node.error.is_none()
            && node.seen_seconds_ago.is_some_and(|ago| ago < SEEN_MAX)
            && node.lag_bytes.is_some_and(|lag| lag < LAG_MAX)
    };
    let rank = |node: &&NodeInfo| match (primary, node.role.as_deref()) {
        (true, Some("primary")) => 0,
        (true, _) => 3,
        (false, _) if is_good(node) => 0,
        (false, Some("primary")) => 1,
        (false, _) => 2,
    };
    let timelines = timelines(shard);
    let nodes = shard.nodes.iter();
    let mut nodes: Vec<&NodeInfo> = nodes.filter(|n| !was_replaced(n, &timelines)).collect();
    if primary {
        nodes.retain(|node| node.role.as_deref() != Some("replica"));
    }
    nodes.sort_by_key(rank);
    nodes
}

type Rows = (Vec<String>, Vec<Box<RawValue>>, bool, bool);

async fn ask_node(app: &App, node: &NodeInfo, ask: &Ask<'_>) -> Result<Rows, Error> {
    let address = Address {
        host: node.host.clone(),
        port: node.port,
        timelines: Arc::default(),
    };
    let client = app.logins.as_reader(&address).await?;
    let replica = begin(&client, ask).await?;
    // By the extended protocol: one statement, whatever its text holds.
    let described = client
        .prepare(ask.sql)
        .await
        .map_err(ShardError::Postgres)?;
    if !described.params().is_empty() {
        let why = "the statement has parameters, as $1: write their values";
        return Err(Error::BadRequest(why.into()));
    }
    let columns: Vec<String> = described
        .columns()
        .iter()
        .map(|column| column.name().to_owned())
        .collect();
    // A comment at its end must not swallow what follows.
    let text = ask.sql.trim().trim_end_matches(';');
    // The server counts: what is too large must not be sent at all.
    let sql = format!(
        "select case when sum(octet_length(line)) over (rows unbounded preceding) <= {BYTES_MAX} then line end
         from (select row_to_json(answer)::text as line from (\n{text}\n) answer limit {}) counted",
        ask.rows_max + 1
    );
    let none: [&(dyn ToSql + Sync); 0] = [];
    let stream = client.query_raw(&sql, none).await;
    let stream = stream.map_err(ShardError::Postgres)?;
    let mut stream = std::pin::pin!(stream);
    let (mut rows, mut truncated) = (Vec::new(), false);
    while let Some(row) = stream.try_next().await.map_err(ShardError::Postgres)? {
        let json: Option<&str> = row.try_get(0).map_err(ShardError::Postgres)?;
        let Some(json) = json.filter(|_| rows.len() < ask.rows_max) else {
            truncated = true;
            break;
        };
        let row = RawValue::from_string(json.to_owned());
        rows.push(row.unwrap_or_else(|_| RawValue::NULL.to_owned()));
    }
    Ok((columns, rows, truncated, replica))
}

/// A transaction that can't write; its role may only read, too. Returns whether
/// the node is a replica.
async fn begin(client: &Client, ask: &Ask<'_>) -> Result<bool, ShardError> {
    let sql = format!(
        "begin read only; set local statement_timeout = {};
         set local lock_timeout = '2s'; set local idle_in_transaction_session_timeout = '5s'",
        ask.time_max.as_millis().max(1)
    );
    client.batch_execute(&sql).await?;
    let row = client.query_one("select pg_is_in_recovery()", &[]).await?;
    Ok(row.get(0))
}

/// Another node may do better: a lost connection, a login that it does not take
/// (yet), a conflict with replication, a node that starts or ends.
fn is_the_nodes(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        None => true,
        Some(code) if *code == SqlState::T_R_SERIALIZATION_FAILURE => true,
        Some(code) => {
            code.code().starts_with("08")
                || code.code().starts_with("28")
                || code.code().starts_with("53")
                || code.code().starts_with("57P")
        }
    }
}

fn refusal(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Option<&str>, lag: i64) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            shard: "s1".into(),
            host: "127.0.0.1".into(),
            port: 1,
            role: role.map(str::to_owned),
            system_id: None,
            timeline: None,
            replay_lsn: None,
            lag_bytes: Some(lag),
            seen_seconds_ago: Some(1.0),
            error: None,
        }
    }

    #[test]
    fn replicas_are_asked_first_unless_they_lag() {
        let on = |timeline, node| NodeInfo {
            system_id: Some("7".into()),
            timeline: Some(timeline),
            ..node
        };
        let nodes = vec![
            on(1, node("replaced", Some("primary"), 0)),
            on(2, node("primary", Some("primary"), 0)),
            node("late", Some("replica"), 1 << 30),
            node("fresh", Some("replica"), 10),
        ];
        let shard = ShardInfo {
            id: "s1".into(),
            region: "local".into(),
            weight: 1.0,
            state: "active".into(),
            tenants: 0,
            nodes,
        };
        let names = |primary| -> Vec<&str> {
            let order = in_order(&shard, primary);
            order.iter().map(|node| node.name.as_str()).collect()
        };
        assert_eq!(names(false), ["fresh", "primary", "late"]);
        assert_eq!(names(true), ["primary"]);
    }
}
