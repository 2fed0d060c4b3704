//! The audit through a router: every tenant reads its own rows of this run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderName, Request, header};
use http_body_util::Full;
use serde_json::{Map, Value};

use super::{Found, Places, compare};
use crate::check::{Audit, Findings, leak};
use crate::client::{Connection, Target};
use crate::engine::Plan;
use crate::script::Column;
use crate::token::{self, PREFIX, Token, Write};

const APIKEY: HeaderName = HeaderName::from_static("apikey");
const PAGE: usize = 1_000;
const CONCURRENCY: usize = 8;
/// A router that restarts just now gets a second chance, and a third.
const ATTEMPTS: u32 = 3;
const RETRY: Duration = Duration::from_millis(500);

pub(super) async fn audit(
    plan: &Plan,
    target: &Arc<Target>,
    places: &Places<'_>,
    findings: &mut Findings,
    told: &mut BTreeSet<Write>,
) -> Audit {
    let read = stream::iter(places.keys()).map(|(tenant, column)| async move {
        (
            *tenant,
            column.clone(),
            read_all(plan, target, *tenant, column).await,
        )
    });
    let mut read = std::pin::pin!(read.buffered(CONCURRENCY));
    let mut rows = 0;
    let mut problem = None;
    while let Some((tenant, column, result)) = read.next().await {
        match result {
            Err(reason) => {
                let tenant = &plan.population.tenants[tenant].slug;
                problem.get_or_insert_with(|| format!("{} of {tenant}: {reason}", column.table));
            }
            Ok((found, foreign)) => {
                rows += found.values().map(|count| u64::from(*count)).sum::<u64>();
                if let Some(token) = foreign {
                    let reader = &plan.population.tenants[tenant].slug;
                    let request = format!("audit of {}", column.table);
                    findings.add(leak(
                        plan,
                        reader,
                        &token,
                        None,
                        &request,
                        target.name(),
                        (0, 0),
                    ));
                }
                if let Some(expected) = places.get(&(tenant, column)) {
                    compare(
                        plan,
                        &format!("router {}", target.name()),
                        expected,
                        &found,
                        findings,
                        told,
                    );
                }
            }
        }
    }
    Audit {
        place: format!("router {}", target.name()),
        rows,
        problem,
    }
}

/// All rows of this run in a column, as the tenant sees them.
async fn read_all(
    plan: &Plan,
    target: &Arc<Target>,
    tenant: usize,
    Column { table, column }: &Column,
) -> Result<(Found, Option<Token>), String> {
    let mut connection = Connection::new(target.clone());
    let tenant = &plan.population.tenants[tenant];
    let (mut found, mut foreign, mut offset) = (Found::new(), None, 0);
    loop {
        let path = format!(
            "{}/{table}?select={column}&{column}=like.{PREFIX}{}~{}~*&order={column}&limit={PAGE}&offset={offset}",
            target.prefix, tenant.tag, plan.run
        );
        let body = get(plan, &mut connection, tenant.key.as_ref(), &path).await?;
        foreign = foreign.or_else(|| token::foreign(&body, &tenant.tag));
        let rows: Vec<Map<String, Value>> = serde_json::from_slice(&body)
            .map_err(|error| format!("the answer is not an array of rows: {error}"))?;
        if rows.is_empty() {
            return Ok((found, foreign));
        }
        // The service may give fewer rows a page than asked for.
        offset += rows.len();
        for row in &rows {
            let text = row
                .get(column.as_str())
                .and_then(Value::as_str)
                .unwrap_or_default();
            if let Some(token) = Token::parse(text.as_bytes()) {
                *found.entry(token.write).or_default() += 1;
            }
        }
    }
}

async fn get(
    plan: &Plan,
    connection: &mut Connection,
    key: Option<&http::HeaderValue>,
    path: &str,
) -> Result<Bytes, String> {
    let mut problem = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(RETRY).await;
        }
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = path.parse().map_err(|error| format!("{path}: {error}"))?;
        request
            .headers_mut()
            .insert(header::HOST, connection.target().host.clone());
        if let Some(key) = key {
            request.headers_mut().insert(APIKEY, key.clone());
        }
        problem = match connection.exchange(request, plan.timeout, true).await {
            Ok(answer) if answer.status == 200 || answer.status == 206 => return Ok(answer.body),
            Ok(answer) => format!(
                "{} {}",
                answer.status,
                String::from_utf8_lossy(&answer.body)
            ),
            Err(failure) => failure.name().to_owned(),
        };
    }
    Err(problem)
}
