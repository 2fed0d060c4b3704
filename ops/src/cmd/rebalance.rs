//! `ringfence rebalance`.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Answer, job};
use crate::admin::Admin;
use crate::output::{Column, Output, show};
use crate::safety::confirm;

/// What can be done about balance. A plan that is applied is a job: one at a time.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show which tenants should move, and what comes of it; nothing is done.
    Plan {
        /// What it aims at.
        #[arg(long, value_enum, default_value_t)]
        policy: Policy,
        /// The shard that is to be empty; of policy drain.
        #[arg(long, required_if_eq("policy", "drain"))]
        shard: Option<String>,
        /// So many moves at once, for the prediction.
        #[arg(long, value_name = "N")]
        at_once: Option<u8>,
    },
    /// Carry out a plan that was shown.
    Apply {
        /// The plan's hash.
        #[arg(long, value_name = "HASH")]
        plan: String,
        /// So many moves at once [default: 4].
        #[arg(long, value_name = "N")]
        at_once: Option<u8>,
        /// A cut-over that holds requests for longer is undone, and tried later.
        #[arg(long, value_name = "MS")]
        budget_ms: Option<u64>,
        /// The ways back are kept for so long [default: 0].
        #[arg(long, value_name = "HOURS")]
        keep_hours: Option<f64>,
        /// Show progress until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// How far the plan is that is being applied, or was applied last.
    Status,
    /// Begin no further move for now; those under way go on.
    Pause,
    /// Go on with a plan that was paused.
    Resume,
    /// Begin no further move, for good; those under way come to their end.
    Cancel,
}

/// What a plan aims at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Each tenant where the ring says.
    #[default]
    Ring,
    /// No shard with more than 1.10 of another's bytes, by weight; few bytes moved.
    Load,
    /// Nothing on a shard that is off the ring.
    Drain,
}

const SHARDS: &[Column] = &[
    ("shard", |s| show(&s["shard"])),
    ("now", |s| bytes(&s["before"])),
    ("then", |s| bytes(&s["after"])),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin, no_input: bool) -> Answer {
        match self {
            Self::Plan {
                policy,
                shard,
                at_once,
            } => {
                let name = match policy {
                    Policy::Ring => "ring",
                    Policy::Load => "load",
                    Policy::Drain => "drain",
                };
                let ask = json!({ "policy": name, "shard": shard, "at_once": at_once });
                proposed(admin, &ask).await
            }
            Self::Apply {
                plan,
                at_once,
                budget_ms,
                keep_hours,
                wait,
            } => {
                confirm(&format!("Apply plan {plan}?"), no_input)?;
                let body = json!({
                    "hash": plan, "at_once": at_once, "budget_ms": budget_ms, "keep_hours": keep_hours,
                });
                let started = admin.post("/rebalance/apply", &body).await?;
                Ok(job::record(job::started(admin, started, wait).await?))
            }
            Self::Status => Ok(applied(admin.get("/rebalance", &[]).await?)),
            Self::Pause => change(admin, "pause").await,
            Self::Resume => change(admin, "resume").await,
            Self::Cancel => change(admin, "cancel").await,
        }
    }
}

/// A plan, as it is shown.
pub(super) async fn proposed(admin: &Admin, ask: &Value) -> Answer {
    let plan = admin.post("/rebalance/plan", ask).await?;
    Ok(shown(plan))
}

async fn change(admin: &Admin, verb: &str) -> Answer {
    let path = format!("/rebalance/{verb}");
    Ok(applied(admin.post(&path, &json!({})).await?))
}

const STATUS: &[Column] = &[
    ("job", |s| show(&s["id"])),
    ("plan", |s| show(&s["object"])),
    ("status", |s| show(&s["status"])),
    ("phase", |s| show(&s["phase"])),
    ("tenants begun", job::progress),
    ("groups waiting", |s| show(&s["waiting"])),
    ("wanted", |s| show(&s["wish"])),
    ("took", job::took),
    ("last move begins in", |s| match s["eta_seconds"].as_f64() {
        Some(seconds) => format!("{seconds:.0} s"),
        None => "-".into(),
    }),
];

const RUNNING: &[Column] = &[
    ("move", |m| show(&m["id"])),
    ("tenants", |m| show(&m["object"])),
    ("phase", |m| show(&m["phase"])),
    ("progress", job::progress),
    ("took", job::took),
];

/// A plan that is being applied, the moves under way, and what failed.
fn applied(status: Value) -> Output {
    let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let (running, failed) = (list("running"), list("failed"));
    let mut text = Output::record(status.clone(), STATUS).text;
    if !running.is_empty() {
        text.push('\n');
        text.push_str(&Output::list(running, RUNNING).text);
    }
    for why in &failed {
        text.push_str(&format!("\nnot moved: {}", show(why)));
    }
    if !failed.is_empty() {
        text.push('\n');
    }
    let mut output = Output::record(status, STATUS);
    output.text = text;
    output
}

fn shown(plan: Value) -> Output {
    let shards = plan["shards"].as_array().cloned().unwrap_or_default();
    let spread = |field: &str| match plan[field].as_f64() {
        Some(spread) => format!("{spread:.2}"),
        None => "-".into(),
    };
    let summary = format!(
        "\n{} tenants, {} in {} moves, about {:.0} s; max/min {} -> {}\n",
        show(&plan["tenants"]),
        bytes(&plan["bytes"]),
        plan["groups"].as_array().map_or(0, Vec::len),
        // An empty sum is -0.
        plan["seconds"].as_f64().unwrap_or_default() + 0.0,
        spread("spread_before"),
        spread("spread_after"),
    );
    let unseen = plan["unseen"].as_array().into_iter().flatten();
    let unseen: String = unseen
        .map(|u| {
            let (shard, why) = (show(&u["shard"]), show(&u["why"]));
            format!("shard {shard} can't be looked at, so its tenants stay: {why}\n")
        })
        .collect();
    let next = match plan["tenants"].as_u64() {
        Some(1..) => format!(
            "Apply it: ringfence rebalance apply --plan {}",
            show(&plan["hash"])
        ),
        _ => "There is nothing to move.".to_owned(),
    };
    let mut output = Output::list(shards, SHARDS).with_json(plan).note(next);
    output.text.push_str(&summary);
    output.text.push_str(&unseen);
    output
}

fn bytes(value: &Value) -> String {
    match value.as_f64() {
        Some(bytes) => format!("{:.1} MiB", bytes / f64::from(1 << 20)),
        None => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_is_being_applied() {
        let status = json!({
            "id": "0192f0c1-0000-7000-8000-000000000001", "object": "0a1b2c3d4e5f", "status": "waiting",
            "phase": "moving", "progress": { "done": 3, "total": 9, "unit": "tenants" }, "seconds": 4.0,
            "waiting": 2, "wish": "pause", "eta_seconds": 8.0, "failed": ["tenant a has another job"],
            "running": [{ "id": "m", "object": "acme", "phase": "copying", "progress": null, "seconds": 1.0 }],
        });
        insta::assert_snapshot!(applied(status).text);
    }

    #[test]
    fn a_plan() {
        let plan = json!({
            "hash": "0a1b2c3d4e5f", "tenants": 3, "bytes": 5_242_880, "seconds": 4.2, "groups": [{}, {}],
            "spread_before": 2.5, "spread_after": 1.08,
            "shards": [{"shard": "s1", "before": 10_485_760, "after": 5_242_880}],
            "unseen": [{"shard": "s2", "why": "it is down"}],
        });
        insta::assert_snapshot!(shown(plan).text, @r"
        SHARD  NOW       THEN
        s1     10.0 MiB  5.0 MiB

        3 tenants, 5.0 MiB in 2 moves, about 4 s; max/min 2.50 -> 1.08
        shard s2 can't be looked at, so its tenants stay: it is down
        ");
    }
}
