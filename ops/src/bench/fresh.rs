//! How long a reader who is answered from the caches goes without a change: one
//! that SQL made past the routers, and one that another router acknowledged.

use std::time::{Duration, Instant};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use ops::local::Cluster;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::moves::quantile;
use super::{Bench, Failure};

/// Changes of one row by one who makes them.
pub(crate) struct Fresh {
    what: &'static str,
    changes: usize,
    /// From a change's acknowledgement to the end of the first answer with it.
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Answers without the change, asked for once it was acknowledged.
    old: usize,
    /// No answer that was asked for later than this may lack it.
    bound_ms: f64,
}

const CHANGES: usize = 1_000;
/// Longest time for all of them, so that a change that is never seen ends it.
const CHANGES_MAX: Duration = Duration::from_secs(120);

/// A router's lease: what it answers from memory is as old as that at most.
const BOUND_MS: f64 = 250.0;

/// Who changes the row.
enum Writer {
    Sql,
    Router,
}

/// Runs both, on a cluster of two routers with caches.
pub(crate) async fn measure(cluster: &Cluster, bench: &Bench<'_>) -> Result<Vec<Fresh>, Failure> {
    let row = Row::new(cluster, bench);
    let by_sql = row.changed("change by SQL", &Writer::Sql, BOUND_MS);
    let mut all = vec![by_sql.await?];
    let by_router = row.changed("change by another router", &Writer::Router, 0.0);
    all.push(by_router.await?);
    Ok(all)
}

/// One company, whose number of employees is counted up.
struct Row<'a> {
    bench: &'a Bench<'a>,
    id: i64,
    read: RequestBuilder,
    write: RequestBuilder,
}

impl<'a> Row<'a> {
    fn new(cluster: &Cluster, bench: &'a Bench<'a>) -> Self {
        let (http, id) = (reqwest::Client::new(), bench.ids.0);
        let at = |router| {
            let url = cluster.router_url(router);
            format!("{url}/rest/v1/companies?id=eq.{id}&select=employees")
        };
        Self {
            bench,
            id,
            write: http.patch(at(0)).header("apikey", &bench.key),
            read: http.get(at(1)).header("apikey", &bench.key),
        }
    }

    async fn changed(
        &self,
        what: &'static str,
        writer: &Writer,
        bound_ms: f64,
    ) -> Result<Fresh, Failure> {
        eprintln!("· {what}: {CHANGES} of them");
        let (mut took, mut old) = (Vec::new(), 0);
        let all = async {
            for employees in 1..=CHANGES {
                self.wait_until_cached().await?;
                self.change(writer, employees).await?;
                let acknowledged = Instant::now();
                while self.seen().await?.0 != Some(employees) {
                    old += 1;
                }
                took.push(acknowledged.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, Failure>(())
        };
        tokio::time::timeout(CHANGES_MAX, all)
            .await
            .map_err(|_| format!("{what}: not seen in time"))??;
        took.sort_by(f64::total_cmp);
        Ok(Fresh {
            what,
            changes: took.len(),
            p50_ms: quantile(&took, 0.5),
            p99_ms: quantile(&took, 0.99),
            max_ms: quantile(&took, 1.0),
            old,
            bound_ms,
        })
    }

    /// What the reader is answered, and whether from memory.
    async fn seen(&self) -> Result<(Option<usize>, bool), Failure> {
        let request = self.read.try_clone().ok_or("a read can't be sent twice")?;
        let answer = request.send().await?.error_for_status()?;
        let level = answer.headers().get("ringfence-cache");
        let in_memory = level.is_some_and(|level| level == "l1");
        let rows: Value = answer.json().await?;
        let employees = rows[0]["employees"].as_u64();
        Ok((employees.map(usize::try_from).transpose()?, in_memory))
    }

    async fn wait_until_cached(&self) -> Result<(), Failure> {
        while !self.seen().await?.1 {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Returns once the change is acknowledged.
    async fn change(&self, writer: &Writer, employees: usize) -> Result<(), Failure> {
        match writer {
            Writer::Sql => {
                let sql = format!(
                    "update companies set employees = {employees}
                     where tenant_id = '{}' and id = {}",
                    self.bench.tenant, self.id
                );
                self.bench.superuser.batch_execute(&sql).await?;
            }
            Writer::Router => {
                let request = self.write.try_clone();
                let request = request.ok_or("a write can't be sent twice")?;
                let body = json!({ "employees": employees });
                request.json(&body).send().await?.error_for_status()?;
            }
        }
        Ok(())
    }
}

/// As JSON.
pub(crate) fn json(all: &[Fresh]) -> Value {
    let rows = all.iter().map(|row| {
        json!({ "what": row.what, "changes": row.changes, "p50_ms": row.p50_ms,
            "p99_ms": row.p99_ms, "max_ms": row.max_ms, "old": row.old,
            "bound_ms": row.bound_ms })
    });
    rows.collect()
}

/// As a table.
pub(crate) fn table(all: &[Fresh]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "SEEN BY A CACHED READER",
        "CHANGES",
        "P50 MS",
        "P99 MS",
        "MAX MS",
        "OLD ANSWERS",
        "BOUND",
    ]);
    for row in all {
        table.add_row([
            row.what.to_owned(),
            row.changes.to_string(),
            format!("{:.2}", row.p50_ms),
            format!("{:.2}", row.p99_ms),
            format!("{:.2}", row.max_ms),
            row.old.to_string(),
            match row.bound_ms {
                0.0 => "the first answer".to_owned(),
                bound => format!("{bound:.0} ms"),
            },
        ]);
    }
    table
}
