//! Tenants that move from shard to shard and back, and what their requests waited.

use std::fmt;
use std::time::{Duration, Instant};

use ops::admin::Admin;
use ops::local::{Cluster, NodeState};
use serde_json::{Value, json};

use super::Failure;

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
/// Longest wait for one move.
const MOVE_MAX: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// Cut-overs, and how long each held its tenant's requests, ms.
pub(super) struct Pauses(Vec<f64>);

/// Moves the demo's tenants for a while, each forward, back by rollback, and
/// forward for good; kills the worker meanwhile, where that is asked for.
pub(super) async fn back_and_forth(
    cluster: &Cluster,
    lasts: Duration,
    kill: bool,
) -> Result<Pauses, Failure> {
    let admin = Admin::new(&cluster.admin_url(), cluster.admin_token())?;
    let until = Instant::now() + lasts;
    let mut pauses = Vec::new();
    let mut round = 0_usize;
    while Instant::now() < until {
        let tenant = TENANTS[round % TENANTS.len()];
        let info = get(&admin, &format!("/tenants/{tenant}")).await?;
        let to = match info["shard"].as_str() {
            Some("s1") => "s2",
            _ => "s1",
        };
        let body = json!({ "tenants": [tenant], "to": to, "budget_ms": 1_000 });
        let started = admin.post("/moves", &body).await?;
        let id = started["items"][0]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if kill {
            // Not at the same point each time.
            let after = Duration::from_millis(((round * 337) % 2_500) as u64);
            tokio::time::sleep(after).await;
            kill_worker(cluster).await?;
        }
        settled(&admin, &id, "retained").await?;
        let (verb, end) = match round % 3 {
            0 => ("rollback", "rolled_back"),
            _ => ("complete", "done"),
        };
        admin
            .post(&format!("/moves/{id}/{verb}"), &json!({}))
            .await?;
        let over = settled(&admin, &id, end).await?;
        let tenants = over["tenants"].as_array().into_iter().flatten();
        let of = |tenant: &Value| tenant["pauses_ms"].as_array().cloned().unwrap_or_default();
        pauses.extend(tenants.flat_map(of).filter_map(|pause| pause.as_f64()));
        round += 1;
    }
    Ok(Pauses(pauses))
}

async fn kill_worker(cluster: &Cluster) -> Result<(), Failure> {
    let nodes = cluster.status();
    let is_up = nodes
        .iter()
        .any(|node| node.name == "worker-1" && node.state == NodeState::Up);
    if is_up {
        cluster.kill("worker-1").await?;
        cluster.start_node("worker-1").await?;
    }
    Ok(())
}

/// The move, in that phase.
async fn settled(admin: &Admin, id: &str, phase: &str) -> Result<Value, Failure> {
    let deadline = Instant::now() + MOVE_MAX;
    loop {
        let seen = get(admin, &format!("/moves/{id}")).await?;
        if seen["phase"] == phase {
            return Ok(seen);
        }
        if seen["done"] == true || seen["status"] == "stuck" || Instant::now() > deadline {
            return Err(format!("the move did not come to {phase}: {seen}").into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks again while the worker is away.
async fn get(admin: &Admin, path: &str) -> Result<Value, Failure> {
    let deadline = Instant::now() + MOVE_MAX;
    loop {
        match admin.get(path, &[]).await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = sorted.len().saturating_sub(1);
            let index = (last as f64 * part).round() as usize;
            sorted.get(index).copied().unwrap_or_default()
        };
        write!(
            f,
            "{} cut-overs, requests held for p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            sorted.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        )
    }
}
