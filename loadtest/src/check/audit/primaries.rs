//! The audit straight on the primaries: every row of this run, of all
//! tenants, with the tenant that it is stored under. Only rows of tenants
//! that a shard serves count: a shard may rightly keep a moved tenant's rows
//! for a while.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use super::{Found, Places, compare};
use crate::check::{Audit, Findings, Kind, Violation};
use crate::engine::Plan;
use crate::environment::Environment;
use crate::script::Column;
use crate::token::{PREFIX, Tag, Token, Write};

const CONNECT: Duration = Duration::from_secs(5);
const QUERY: Duration = Duration::from_secs(60);

/// What all primaries together show.
#[derive(Debug, Default)]
struct Stored {
    by_place: HashMap<(Tag, Column), Found>,
    /// Under which tenant ids rows with each tag are stored.
    owners: BTreeMap<Tag, BTreeSet<String>>,
}

pub(super) async fn audit(
    plan: &Plan,
    environment: &Environment,
    places: &Places<'_>,
    findings: &mut Findings,
    told: &mut BTreeSet<Write>,
) -> Vec<Audit> {
    let columns: BTreeSet<&Column> = places.keys().map(|(_, column)| column).collect();
    let mut stored = Stored::default();
    let mut audits = Vec::new();
    for (shard, nodes) in &environment.shards {
        let outcome = audit_shard(plan, nodes, &columns, &mut stored).await;
        let (rows, problem) = match outcome {
            Ok(rows) => (rows, None),
            Err(problem) => (0, Some(problem)),
        };
        audits.push(Audit {
            place: format!("the primary of {shard}"),
            rows,
            problem,
        });
    }
    check_owners(plan, &stored, findings);
    // A row that is on a shard which could not be read is not lost.
    if audits.iter().all(|audit| audit.problem.is_none()) {
        let nothing = Found::new();
        for ((tenant, column), expected) in places {
            let tag = plan.population.tenants[*tenant].tag;
            let found = stored
                .by_place
                .get(&(tag, column.clone()))
                .unwrap_or(&nothing);
            compare(plan, "the primaries", expected, found, findings, told);
        }
    }
    audits
}

async fn audit_shard(
    plan: &Plan,
    nodes: &[String],
    columns: &BTreeSet<&Column>,
    stored: &mut Stored,
) -> Result<u64, String> {
    let client = primary(nodes).await?;
    let mut rows = 0;
    for column in columns {
        // Names were checked to be plain where the scenario was read, and are
        // quoted all the same.
        let sql = format!(
            "select t.tenant_id::text, t.{column} from public.{table} t \
             join ringfence.fence f on f.tenant_id = t.tenant_id and f.state = 'active' \
             where t.{column} like $1",
            table = quote(&column.table),
            column = quote(&column.column),
        );
        let pattern = format!("{PREFIX}%~{}~%", plan.run);
        let found = tokio::time::timeout(QUERY, client.query(&sql, &[&pattern]))
            .await
            .map_err(|_| format!("no answer within {} s", QUERY.as_secs()))?
            .map_err(|error| describe(&error))?;
        for row in found {
            let (tenant, text): (Option<String>, Option<String>) = (row.get(0), row.get(1));
            let Some(token) = Token::parse(text.unwrap_or_default().as_bytes()) else {
                continue;
            };
            rows += 1;
            stored
                .owners
                .entry(token.tag)
                .or_default()
                .insert(tenant.unwrap_or_default());
            let place = stored
                .by_place
                .entry((token.tag, (*column).clone()))
                .or_default();
            *place.entry(token.write).or_default() += 1;
        }
    }
    Ok(rows)
}

/// The node that takes writes; of two, the one on the later timeline.
async fn primary(nodes: &[String]) -> Result<Client, String> {
    let mut best: Option<(i32, Client)> = None;
    let mut problem = "no node is known".to_owned();
    for dsn in nodes {
        match connect(dsn).await {
            Ok(Some((timeline, client)))
                if best.as_ref().is_none_or(|(other, _)| timeline > *other) =>
            {
                best = Some((timeline, client));
            }
            Ok(Some(_)) => {}
            Ok(None) => problem = "no node takes writes".to_owned(),
            Err(error) => problem = error,
        }
    }
    best.map(|(_, client)| client).ok_or(problem)
}

/// A connection and the node's timeline, unless it is a replica.
async fn connect(dsn: &str) -> Result<Option<(i32, Client)>, String> {
    let connecting = async {
        let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
        tokio::spawn(connection);
        let row = client
            .query_one(
                // The last checkpoint's timeline is still the old one after a promotion.
                "select pg_is_in_recovery(), case when pg_is_in_recovery() then 0 else
                   ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end",
                &[],
            )
            .await?;
        let (replica, timeline): (bool, i32) = (row.get(0), row.get(1));
        Ok::<_, tokio_postgres::Error>((!replica).then_some((timeline, client)))
    };
    tokio::time::timeout(CONNECT, connecting)
        .await
        .map_err(|_| format!("no connection within {} s", CONNECT.as_secs()))?
        .map_err(|error| describe(&error))
}

/// Every tag belongs to one tenant, and every tenant to one tag.
fn check_owners(plan: &Plan, stored: &Stored, findings: &mut Findings) {
    let mut tags: BTreeMap<&String, BTreeSet<Tag>> = BTreeMap::new();
    for (tag, owners) in &stored.owners {
        let tenant = plan
            .population
            .tenants
            .iter()
            .find(|tenant| tenant.tag == *tag);
        let name = tenant.map_or_else(|| tag.to_string(), |tenant| tenant.slug.clone());
        let known = tenant.and_then(|tenant| tenant.id.as_ref());
        for owner in owners {
            tags.entry(owner).or_default().insert(*tag);
            if known.is_some_and(|id| id != owner) {
                findings.add(misplaced(&name, owner));
            }
        }
        if owners.len() > 1 && known.is_none() {
            findings.add(misplaced(
                &name,
                &owners.iter().cloned().collect::<Vec<_>>().join(" and "),
            ));
        }
    }
    for (owner, tags) in tags.iter().filter(|(_, tags)| tags.len() > 1) {
        let names: Vec<String> = tags.iter().map(Tag::to_string).collect();
        findings.add(misplaced(
            &format!("several tenants ({})", names.join(", ")),
            owner,
        ));
    }
}

fn misplaced(tenant: &str, owner: &str) -> Violation {
    Violation {
        kind: Kind::Leak,
        summary: format!("rows written for {tenant} are stored under tenant {owner}"),
        history: vec![format!(
            "audit of the primaries: rows with the canaries of {tenant} have tenant_id {owner}"
        )],
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The server's own message rather than the driver's category.
fn describe(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |server| server.message().to_owned())
}
