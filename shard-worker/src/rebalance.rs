//! Rebalancing: a plan is proposed, read, and applied by its hash; applying it
//! is a job that starts moves, a bounded number at once.

pub mod planner;
mod sizes;

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::control::{Actor, ControlError, TenantInfo};
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::job::{Context, End, JobError, JobInfo, Machine, Progress, Step, Unit, store};
use crate::move_tenant::{TENANTS_MAX, Wish, busy, has_another_job, migrates, start};
use planner::{Policy, Proposal, Shard, Tenant, propose, spread};

/// Between two looks at the moves under way.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of a group's tenants: larger ones have a stream of their own.
const GROUP_BYTES_MAX: u64 = 256 << 20;
/// Bytes a second that a copy makes, for predictions.
const COPY_BYTES_A_SECOND: f64 = 20e6;
/// Seconds that a move takes beside its copy, for predictions.
const MOVE_SECONDS: f64 = 3.0;
/// Plans are kept for so long.
const PLANS_KEPT: &str = "24 hours";

/// A plan, as it is shown and stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What it aims at.
    pub policy: Policy,
    /// What is moved: each group through one stream.
    pub groups: Vec<Group>,
    /// Bytes by shard, now and then.
    pub shards: Vec<Balance>,
    /// Tenants that are moved.
    pub tenants: usize,
    /// Bytes that are moved, as far as known.
    pub bytes: u64,
    /// Largest weighted size over the smallest, now; none: one has nothing.
    pub spread_before: Option<f64>,
    /// And then.
    pub spread_after: Option<f64>,
    /// Seconds that it takes, predicted.
    pub seconds: f64,
    /// Shards that could not be looked at: their tenants stay, and nobody goes there.
    #[serde(default)]
    pub unseen: Vec<Unseen>,
}

/// A shard that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// The shard.
    pub shard: String,
    /// Why.
    pub why: String,
}

/// Tenants that move together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// From this shard.
    pub from: String,
    /// To this one.
    pub to: String,
    /// Who.
    pub tenants: Vec<Uuid>,
    /// Their size.
    pub bytes: u64,
}

/// A shard's size, now and then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The shard.
    pub shard: String,
    /// Bytes now.
    pub before: u64,
    /// Bytes then.
    pub after: u64,
}

/// Proposes a plan, and keeps it under the hash that it returns.
pub async fn plan(app: &App, policy: Policy, at_once: usize) -> Result<(String, Plan), Error> {
    let mut infos = app.control.shards().await?;
    // It has no tables yet, nor tenants.
    infos.retain(|info| info.state != "preparing");
    let (sizes, unseen) = sizes::of_all(app, infos.clone()).await;
    let is_seen = |shard: &str| !unseen.iter().any(|unseen| unseen.shard == shard);
    let shards: Vec<Shard> = infos
        .iter()
        .map(|info| Shard {
            id: info.id.clone(),
            region: info.region.clone(),
            weight: info.weight,
            open: info.state == "active" && is_seen(&info.id),
        })
        .collect();
    let numbers: HashMap<&str, usize> = infos
        .iter()
        .enumerate()
        .map(|(number, info)| (info.id.as_str(), number))
        .collect();
    let residents = app.control.residents().await?;
    let tenants: Vec<Tenant> = residents
        .iter()
        .filter(|resident| is_seen(&resident.shard))
        .filter_map(|resident| {
            Some(Tenant {
                id: resident.id,
                shard: *numbers.get(resident.shard.as_str())?,
                ring: *numbers.get(resident.ring_shard.as_str())?,
                bytes: sizes.get(&resident.id).copied().unwrap_or_default(),
                pinned: resident.pinned,
            })
        })
        .collect();
    let proposal = propose(&shards, &tenants, &policy);
    let plan = Plan {
        unseen,
        ..describe(policy, &shards, &proposal, at_once)
    };
    let text = serde_json::to_vec(&plan)
        .map_err(|error| Error::BadRequest(format!("the plan can't be written: {error}")))?;
    let sum = digest::digest(&digest::SHA256, &text);
    let hash: String = sum
        .as_ref()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    keep(app, &hash, &plan).await?;
    Ok((hash, plan))
}

fn describe(policy: Policy, shards: &[Shard], proposal: &Proposal, at_once: usize) -> Plan {
    let mut groups: Vec<Group> = Vec::new();
    for planned in &proposal.moves {
        let (from, to) = (&shards[planned.from].id, &shards[planned.to].id);
        match groups.last_mut() {
            Some(group)
                if group.from == *from
                    && group.to == *to
                    && group.tenants.len() < TENANTS_MAX
                    && group.bytes + planned.bytes <= GROUP_BYTES_MAX =>
            {
                group.tenants.push(planned.tenant);
                group.bytes += planned.bytes;
            }
            _ => groups.push(Group {
                from: from.clone(),
                to: to.clone(),
                tenants: vec![planned.tenant],
                bytes: planned.bytes,
            }),
        }
    }
    let balance = |(number, shard): (usize, &Shard)| Balance {
        shard: shard.id.clone(),
        before: proposal.before[number],
        after: proposal.after[number],
    };
    let finite = |spread: f64| spread.is_finite().then_some(spread);
    let work: f64 = groups
        .iter()
        .map(|group| MOVE_SECONDS + group.bytes as f64 / COPY_BYTES_A_SECOND)
        .sum();
    Plan {
        policy,
        shards: shards.iter().enumerate().map(balance).collect(),
        tenants: proposal.moves.len(),
        bytes: proposal.bytes(),
        spread_before: finite(spread(shards, &proposal.before)),
        spread_after: finite(spread(shards, &proposal.after)),
        seconds: work / at_once.clamp(1, groups.len().max(1)) as f64,
        groups,
        unseen: Vec::new(),
    }
}

async fn keep(app: &App, hash: &str, plan: &Plan) -> Result<(), Error> {
    let plan = serde_json::to_value(plan).unwrap_or(Value::Null);
    let client = app.control.client().await?;
    client
        .execute(
            // One that is being applied is read group by group.
            "with old as (delete from ringfence.rebalance_plan p where p.created_at < now() - $3::text::interval
               and not exists (select from ringfence.job j where j.kind = 'rebalance' and not j.done and j.object = p.hash))
             insert into ringfence.rebalance_plan (hash, plan) values ($1, $2)
             on conflict (hash) do update set created_at = now()",
            &[&hash, &plan, &PLANS_KEPT],
        )
        .await
        .map_err(ControlError::Postgres)?;
    Ok(())
}

/// The plan of that hash, which is to be applied: it is kept as if it were new.
pub async fn kept(app: &App, hash: &str) -> Result<Plan, Error> {
    let client = app.control.client().await?;
    let row = client
        .query_opt(
            "update ringfence.rebalance_plan set created_at = now() where hash = $1 returning plan",
            &[&hash],
        )
        .await
        .map_err(ControlError::Postgres)?;
    let missing = || ControlError::NotFound {
        kind: "plan",
        name: hash.chars().take(80).collect(),
    };
    let plan: Value = row.ok_or_else(missing)?.get(0);
    serde_json::from_value(plan)
        .map_err(|error| Error::BadRequest(format!("the plan can't be read: {error}")))
}

/// The job that applies a plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rebalance {
    /// The plan's hash.
    pub hash: String,
    /// Groups of the plan.
    #[serde(default)]
    groups: usize,
    /// Those of them that were gone through.
    #[serde(default)]
    groups_done: usize,
    /// Moves under way.
    pub running: Vec<Uuid>,
    /// Tenants gone through: their moves began, or they stay.
    done: u64,
    /// Tenants whose moves began.
    #[serde(default)]
    begun: u64,
    /// Tenants in all.
    total: u64,
    /// What could not be moved, and why.
    pub failed: Vec<String>,
    at_once: usize,
    budget_ms: u64,
    keep_s: u64,
    over: bool,
    cancelled: bool,
}

impl Rebalance {
    /// Its first state.
    pub fn of(hash: &str, plan: &Plan, at_once: usize, budget_ms: u64, keep_s: u64) -> Self {
        Self {
            hash: hash.to_owned(),
            groups: plan.groups.len(),
            groups_done: 0,
            running: Vec::new(),
            done: 0,
            begun: 0,
            total: plan.tenants as u64,
            failed: Vec::new(),
            at_once,
            budget_ms,
            keep_s,
            over: false,
            cancelled: false,
        }
    }

    /// Groups that are still to be started.
    pub fn waiting(&self) -> usize {
        self.groups.saturating_sub(self.groups_done)
    }

    /// Seconds until the last move begins, if it goes on as in the first `seconds`.
    pub fn eta(&self, seconds: f64) -> Option<f64> {
        let waiting = match self.waiting() {
            0 => 0,
            _ => self.total.saturating_sub(self.done),
        };
        (self.done > 0).then(|| seconds * waiting as f64 / self.done as f64)
    }

    /// The group that is to be started next; none: all were.
    async fn next(&self, context: &Context) -> Result<Option<(Policy, Group)>, JobError> {
        if self.waiting() == 0 {
            return Ok(None);
        }
        let gone = || JobError::State(format!("plan {} is not kept any longer", self.hash));
        let number = i32::try_from(self.groups_done).map_err(|_| gone())?;
        let client = context.control().client().await?;
        let row = client
            .query_opt(
                "select jsonb_build_array(plan -> 'policy', plan -> 'groups' -> $2::int)
                 from ringfence.rebalance_plan where hash = $1",
                &[&self.hash, &number],
            )
            .await?;
        let group: Option<Value> = row.ok_or_else(gone)?.get(0);
        let group = serde_json::from_value(group.unwrap_or_default());
        group
            .map(Some)
            .map_err(|error| JobError::State(error.to_string()))
    }

    /// This group is done with.
    fn went_through(&mut self, group: &Group) {
        self.groups_done += 1;
        self.done += group.tenants.len() as u64;
    }

    /// Forgets the moves that are over or retained; notes those that failed.
    async fn look(&mut self, context: &Context) -> Result<(), JobError> {
        let mut running = Vec::new();
        for id in std::mem::take(&mut self.running) {
            match store::show(context.control(), id).await {
                Ok(job) => match fate(&job) {
                    Fate::Runs => running.push(id),
                    Fate::There => {}
                    Fate::Failed(why) => self.failed.push(why),
                },
                Err(ControlError::NotFound { .. }) => {
                    self.failed.push(format!("move {id} is gone"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.running = running;
        Ok(())
    }
}

/// What has become of a move.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Runs,
    There,
    Failed(String),
}

/// One that waits for a person holds up no other. Pure.
fn fate(job: &JobInfo) -> Fate {
    if job.phase == "retained" || job.status == "done" {
        return Fate::There;
    }
    if !job.done && job.status != "stuck" {
        return Fate::Runs;
    }
    let problem = job.problem.as_ref();
    let message = problem.and_then(|problem| problem["message"].as_str());
    let why = message.unwrap_or(&job.status);
    Fate::Failed(match job.status.as_str() {
        "stuck" => format!("{}: move {} waits for a person: {why}", job.object, job.id),
        _ => format!("{}: {why}", job.object),
    })
}

impl Machine for Rebalance {
    fn phase(&self) -> (&'static str, Progress) {
        let progress = Progress {
            done: self.done,
            total: self.total,
            unit: Unit::Tenants,
        };
        match (self.over, self.cancelled) {
            (false, false) => ("moving", progress),
            (false, true) => ("ending", progress),
            (true, _) => ("over", progress),
        }
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        let mut next = self.clone();
        next.look(context).await?;
        let wish = store::wish(context.control(), context.job().id).await?;
        if !is_pause(wish.as_deref()) && next.running.len() < next.at_once {
            if let Some((policy, group)) = next.next(context).await? {
                return begin(context, next, &policy, &group).await;
            }
            if next.running.is_empty() {
                next.over = true;
                let result =
                    json!({ "plan": next.hash, "tenants": next.begun, "failed": next.failed });
                let end = match next.cancelled {
                    true => End::Cancelled,
                    false => End::Done,
                };
                return Ok(Step::End(next, end, result));
            }
        }
        Ok(Step::Later(next, LOOK))
    }

    /// Moves under way come to their end.
    fn cancelled(&self) -> Option<Self> {
        (!self.cancelled).then(|| Self {
            groups_done: self.groups,
            cancelled: true,
            ..self.clone()
        })
    }
}

fn is_pause(wish: Option<&str>) -> bool {
    wish == Some(Wish::Pause.name())
}

/// Starts a group's move, in the transaction that notes it.
async fn begin(
    context: &Context,
    mut next: Rebalance,
    policy: &Policy,
    group: &Group,
) -> Result<Step<Rebalance>, JobError> {
    if let Some(why) = no_target(context, group).await? {
        next.went_through(group);
        next.failed.push(why);
        return Ok(Step::Next(next));
    }
    let mut tenants: Vec<TenantInfo> = context.control().tenants_of(&group.tenants).await?;
    // Who is gone, or has moved meanwhile, is left out.
    tenants.retain(|tenant| tenant.shard == group.from);
    let mut client = context.control().client().await?;
    let transaction = client.transaction().await?;
    store::lock_starts(&transaction).await?;
    // Looked at again: nothing begins once a pause was answered.
    let wish = store::wish_held(&transaction, context.job().id).await?;
    if migrates(&transaction).await? || is_pause(wish.as_deref()) {
        return Ok(Step::Later(next, LOOK));
    }
    // Who has another job stays; the others need not.
    let busy = busy(&transaction, &tenants).await?;
    tenants.retain(|tenant| !busy.contains(&tenant.slug));
    next.failed
        .extend(busy.iter().map(|slug| has_another_job(slug)));
    if policy.heeds_pins() {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.id).collect();
        let pinned = context.control().pinned(&ids).await?;
        tenants.retain(|tenant| !pinned.contains(&tenant.slug));
        let why = |slug: &String| format!("tenant {slug} is pinned by now");
        next.failed.extend(pinned.iter().map(why));
    }
    next.went_through(group);
    let actor: &Actor = &context.job().actor;
    let how = (next.budget_ms, next.keep_s);
    match start(&transaction, actor, &tenants, &group.to, how).await {
        Ok(started) => {
            next.running.extend(started);
            next.begun += tenants.len() as u64;
        }
        Err(ControlError::Conflict(why)) => {
            next.failed.push(why);
            return Ok(Step::Next(next));
        }
        Err(error) => return Err(error.into()),
    }
    context.commit(transaction, &next).await?;
    Ok(Step::Next(next))
}

/// Why nothing goes to a group's target any longer; none: it does.
async fn no_target(context: &Context, group: &Group) -> Result<Option<String>, JobError> {
    let shards = context.control().shards().await?;
    let state = shards
        .iter()
        .find(|shard| shard.id == group.to)
        .map_or("removed", |shard| shard.state.as_str());
    Ok((state != "active").then(|| {
        format!(
            "{} tenants of shard {} stay there: shard {} is {state}",
            group.tenants.len(),
            group.from,
            group.to
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(status: &str, phase: &str, done: bool) -> JobInfo {
        JobInfo {
            id: Uuid::nil(),
            kind: "move".into(),
            object: "acme".into(),
            tenant: None,
            shards: Vec::new(),
            actor: String::new(),
            status: status.into(),
            phase: phase.into(),
            progress: None,
            attempt: 1,
            cancel_requested: false,
            problem: Some(json!({ "message": "no" })),
            result: None,
            worker: None,
            revision: 1,
            done,
            created_at: String::new(),
            changed_at: String::new(),
            seconds: 0.0,
        }
    }

    #[test]
    fn a_move_that_fails_or_waits_for_a_person_holds_up_no_other() {
        assert_eq!(fate(&job("running", "copying", false)), Fate::Runs);
        assert_eq!(fate(&job("waiting", "retained", false)), Fate::There);
        assert_eq!(fate(&job("done", "done", true)), Fate::There);
        let failed = |job: &JobInfo| matches!(fate(job), Fate::Failed(why) if why.contains("no"));
        assert!(failed(&job("failed", "undone", true)));
        assert!(failed(&job("stuck", "cutting_over", false)));
    }
}
