//! Tenants that move from shard to shard and back, and what their requests waited.

use std::fmt;
use std::time::{Duration, Instant};

use ops::admin::Admin;
use ops::local::{Cluster, NodeState};
use serde_json::{Value, json};

use super::{Failure, heirs};

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
/// Longest wait for one move.
const MOVE_MAX: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// Between a node's death and its return, or its replica's promotion.
const DEAD: Duration = Duration::from_millis(500);
/// A move comes to its end by itself so soon after the worker is there again.
const RESUMED_MAX: Duration = Duration::from_secs(30);
/// Longest wait until nothing of moves is left.
const TIDY_MAX: Duration = Duration::from_secs(60);

/// Who dies while tenants move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Nobody,
    Worker,
    /// The source's primary; it returns.
    Source,
    /// The target's primary; a replica takes its place.
    Target,
    Router,
    Control,
    /// One of three nodes of Redis; it returns.
    Redis,
}

/// What is done.
pub(super) struct Plan {
    pub(super) victim: Victim,
    /// With one tenant only.
    pub(super) one: bool,
    pub(super) rounds: usize,
    pub(super) lasts: Duration,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Told {
    /// How long each cut-over held its tenant's requests, ms.
    pauses: Vec<f64>,
    moves: usize,
    /// Moves that were given up, and why.
    given_up: Vec<String>,
    kills: usize,
    /// When the worker was there again.
    returned: Option<Instant>,
    /// The longest from then to a move's end.
    resumed: Duration,
    /// Moves that took too long from then on.
    pub(super) late: usize,
    /// Things of moves that were left behind.
    pub(super) left: usize,
}

impl Told {
    /// Too little was moved, or nobody died: it proves nothing.
    pub(super) fn is_idle(&self, victim: Victim, moves_min: usize) -> bool {
        self.moves < moves_min.max(1) || (victim != Victim::Nobody && self.kills == 0)
    }
}

/// Moves the demo's tenants, each forward, then back by rollback or for good;
/// kills meanwhile.
pub(super) async fn back_and_forth(cluster: &Cluster, plan: &Plan) -> Result<Told, Failure> {
    let admin = Admin::new(&cluster.admin_url(), cluster.admin_token())?;
    let until = Instant::now() + plan.lasts;
    let mut told = Told::default();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for round in 0..plan.rounds {
        if Instant::now() >= until {
            break;
        }
        let tenant = TENANTS[if plan.one { 0 } else { round % TENANTS.len() }];
        let info = get(&admin, &format!("/tenants/{tenant}")).await?;
        let (from, to) = match info["shard"].as_str() {
            Some("s1") => ("s1", "s2"),
            _ => ("s2", "s1"),
        };
        if plan.victim == Victim::Target {
            heirs::reunite(cluster, to).await?;
        }
        let body = json!({ "tenants": [tenant], "to": to, "budget_ms": 1_000 });
        let started = post(&admin, "/moves", &body).await?;
        let id = started["items"][0]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        told.returned = None;
        kill(cluster, plan.victim, (from, to), &mut chance, &mut told).await?;
        if !settled(&admin, &id, "retained", &mut told).await? {
            continue;
        }
        // A promoted shard has lost the slot of the way back.
        let (verb, end) = match round % 3 == 0 && plan.victim != Victim::Target {
            true => ("rollback", "rolled_back"),
            false => ("complete", "done"),
        };
        post(&admin, &format!("/moves/{id}/{verb}"), &json!({})).await?;
        if plan.victim == Victim::Worker && chance.of(2) == 0 {
            kill(cluster, plan.victim, (from, to), &mut chance, &mut told).await?;
        } else {
            told.returned = None;
        }
        if settled(&admin, &id, end, &mut told).await? {
            let over = get(&admin, &format!("/moves/{id}")).await?;
            let tenants = over["tenants"].as_array().into_iter().flatten();
            let of = |tenant: &Value| tenant["pauses_ms"].as_array().cloned().unwrap_or_default();
            told.pauses
                .extend(tenants.flat_map(of).filter_map(|pause| pause.as_f64()));
            told.moves += 1;
        }
        if told.moves.is_multiple_of(10) {
            eprintln!("· {told}");
        }
    }
    told.left = left(&admin).await?;
    Ok(told)
}

/// What the doctor finds, once the janitor had its time.
pub(super) async fn left(admin: &Admin) -> Result<usize, Failure> {
    let deadline = Instant::now() + TIDY_MAX;
    loop {
        let report = get(admin, "/doctor").await?;
        let findings = report["findings"].as_array().into_iter().flatten();
        let wrong: Vec<&Value> = findings.filter(|f| f["kind"] != "hidden").collect();
        let unseen = report["errors"].as_array().map_or(0, Vec::len);
        if wrong.is_empty() && unseen == 0 {
            return Ok(0);
        }
        if Instant::now() > deadline {
            eprintln!("· left behind: {report}");
            return Ok(wrong.len() + unseen);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Numbers that look like chance, the same in each run.
struct Chance(u64);

impl Chance {
    fn of(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Kills whoever it is, some time after now, and has it return.
async fn kill(
    cluster: &Cluster,
    victim: Victim,
    (from, to): (&str, &str),
    chance: &mut Chance,
    told: &mut Told,
) -> Result<(), Failure> {
    if victim == Victim::Nobody {
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(chance.of(2_500))).await;
    let node = match victim {
        Victim::Nobody => return Ok(()),
        Victim::Worker => "worker-1".to_owned(),
        Victim::Router => "router-1".to_owned(),
        Victim::Control => "control".to_owned(),
        Victim::Redis => format!("redis-{}", 1 + chance.of(3)),
        Victim::Source => heirs::primary(cluster, from).await?,
        Victim::Target => heirs::primary(cluster, to).await?,
    };
    let nodes = cluster.status();
    if !nodes
        .iter()
        .any(|seen| seen.name == node && seen.state == NodeState::Up)
    {
        return Ok(());
    }
    cluster.kill(&node).await?;
    if victim != Victim::Worker {
        tokio::time::sleep(DEAD).await;
    }
    if victim == Victim::Target {
        heirs::promote(cluster, to, &node).await?;
    }
    cluster.start_node(&node).await?;
    told.kills += 1;
    told.returned = (victim == Victim::Worker).then(Instant::now);
    Ok(())
}

/// Waits until the move is in that phase; false where it was given up.
async fn settled(admin: &Admin, id: &str, phase: &str, told: &mut Told) -> Result<bool, Failure> {
    let deadline = Instant::now() + MOVE_MAX;
    loop {
        let seen = get(admin, &format!("/moves/{id}")).await?;
        // The last step leads to its phase, and ends the job behind it.
        let ends = matches!(phase, "done" | "rolled_back");
        if seen["phase"] == phase && (!ends || seen["done"] == true) {
            if let Some(took) = told.returned.map(|returned| returned.elapsed()) {
                told.resumed = told.resumed.max(took);
                told.late += usize::from(took > RESUMED_MAX);
            }
            return Ok(true);
        }
        if seen["done"] == true {
            told.given_up.push(seen["problem"]["message"].to_string());
            return Ok(false);
        }
        if seen["status"] == "stuck" || Instant::now() > deadline {
            return Err(format!("the move did not come to {phase}: {seen}").into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Sends again while the worker, or the control database, is away.
async fn post(admin: &Admin, path: &str, body: &Value) -> Result<Value, Failure> {
    let deadline = Instant::now() + MOVE_MAX;
    loop {
        match admin.post(path, body).await {
            Ok(value) => return Ok(value),
            // It may have been done before its answer was lost.
            Err(error) if error.to_string().contains("RF413") => {
                let Some(tenant) = body["tenants"][0].as_str() else {
                    return Ok(Value::Null);
                };
                let newest = get(admin, &format!("/moves/{tenant}")).await?;
                if newest["done"] == false {
                    return Ok(json!({ "items": [newest] }));
                }
                if Instant::now() > deadline {
                    return Err(error.into());
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
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

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.pauses.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = sorted.len().saturating_sub(1);
            let index = (last as f64 * part).round() as usize;
            sorted.get(index).copied().unwrap_or_default()
        };
        write!(
            f,
            "{} moves, {} kills, {} cut-overs, requests held for p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; given up: {:?}; \
             {:.1} s at most from a worker's return to a move's end, {} too late; left behind: {}",
            self.moves,
            self.kills,
            sorted.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            self.given_up,
            self.resumed.as_secs_f64(),
            self.late,
            self.left
        )
    }
}
