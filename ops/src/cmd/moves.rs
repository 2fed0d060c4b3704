//! `ringfence move`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Answer, job};
use crate::admin::{Admin, segment};
use crate::error::{Error, Result};
use crate::output::{Column, Output, show};
use crate::safety::confirm;

/// What can be done with moves. A move is named by its id, or by its tenant.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move tenants to another shard while they are being used.
    Start {
        /// Slugs or ids.
        #[arg(required = true, value_name = "TENANT")]
        tenants: Vec<String>,
        /// The shard that they move to.
        #[arg(long, value_name = "SHARD")]
        to: String,
        /// A cut-over that holds requests for longer is undone, and tried later.
        #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=1_000))]
        budget_ms: Option<u64>,
        /// The way back is kept for so long [default: 24].
        #[arg(long, value_name = "HOURS")]
        keep_hours: Option<f64>,
        /// Show progress until the tenants are on the target.
        #[arg(long)]
        wait: bool,
    },
    /// List moves, newest first.
    List {
        /// Only those that are not over.
        #[arg(long)]
        open: bool,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=500))]
        limit: u64,
    },
    /// Show a move.
    Show {
        /// Its id, or its tenant.
        name: String,
        /// Show progress until it is retained or over.
        #[arg(long)]
        wait: bool,
    },
    /// Don't cut over for now; the copy halts.
    Pause {
        /// Its id, or its tenant.
        name: String,
    },
    /// Go on with a move that was paused.
    Resume {
        /// Its id, or its tenant.
        name: String,
    },
    /// Give a move up before its tenants are on the target.
    Cancel {
        /// Its id, or its tenant.
        name: String,
        /// Show progress until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Compare every row of a retained move once more.
    Verify {
        /// Its id, or its tenant.
        name: String,
    },
    /// Bring the tenants of a retained move back, with all that they have written.
    Rollback {
        /// Its id, or its tenant.
        name: String,
        /// Show progress until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// End a retained move: there is no way back then, and the source is cleaned up.
    Complete {
        /// Its id, or its tenant.
        name: String,
        /// Show progress until it is over.
        #[arg(long)]
        wait: bool,
    },
}

const LIST: &[Column] = &[
    ("id", |m| show(&m["id"])),
    ("tenant", |m| show(&m["object"])),
    ("from", |m| show(&m["from"])),
    ("to", |m| show(&m["to"])),
    ("status", |m| show(&m["status"])),
    ("phase", |m| show(&m["phase"])),
    ("progress", job::progress),
    ("pause", pause),
    ("took", job::took),
];

const RECORD: &[Column] = &[
    ("id", |m| show(&m["id"])),
    ("tenant", |m| show(&m["object"])),
    ("from", |m| show(&m["from"])),
    ("to", |m| show(&m["to"])),
    ("status", |m| show(&m["status"])),
    ("phase", |m| show(&m["phase"])),
    ("progress", job::progress),
    ("waits for", |m| show(&m["state"]["why"])),
    ("wanted", |m| show(&m["wish"])),
    ("rows checked", |m| show(&m["checked"]["rows"])),
    ("rows differ", |m| show(&m["checked"]["differ"])),
    ("way back gone", |m| show(&m["way_back_gone"])),
    ("pause", pause),
    ("problem", |m| show(&m["problem"]["message"])),
    ("advice", |m| show(&m["problem"]["advice"])),
    ("created", |m| show(&m["created_at"])),
    ("took", job::took),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin, no_input: bool) -> Answer {
        match self {
            Self::Start {
                tenants,
                to,
                budget_ms,
                keep_hours,
                wait,
            } => {
                let question = format!("Move {} to shard {to}?", tenants.join(", "));
                confirm(&question, no_input)?;
                let body = json!({
                    "tenants": tenants, "to": to, "budget_ms": budget_ms, "keep_hours": keep_hours,
                });
                let mut page = admin.post("/moves", &body).await?;
                let mut moves = admin.items(&mut page, "POST /moves")?;
                if wait {
                    for item in &mut moves {
                        *item = settled(admin, item, true).await?;
                    }
                }
                Ok(Output::list(moves, LIST))
            }
            Self::List { open, limit } => {
                let limit = limit.to_string();
                let mut query = vec![("limit", limit.as_str())];
                if open {
                    query.push(("open", "true"));
                }
                let mut page = admin.get("/moves", &query).await?;
                Ok(Output::list(admin.items(&mut page, "GET /moves")?, LIST))
            }
            Self::Show { name, wait } => {
                let found = admin.get(&path(&name, ""), &[]).await?;
                match wait {
                    true => Ok(record(settled(admin, &found, true).await?)),
                    false => Ok(record(found)),
                }
            }
            Self::Pause { name } => change(admin, &name, "pause", false).await,
            Self::Resume { name } => change(admin, &name, "resume", false).await,
            Self::Cancel { name, wait } => change(admin, &name, "cancel", wait).await,
            Self::Verify { name } => change(admin, &name, "verify", false).await,
            Self::Rollback { name, wait } => {
                confirm(&format!("Bring {name} back to its former shard?"), no_input)?;
                change(admin, &name, "rollback", wait).await
            }
            Self::Complete { name, wait } => {
                let question = format!("Complete the move of {name}? There is no way back then.");
                confirm(&question, no_input)?;
                change(admin, &name, "complete", wait).await
            }
        }
    }
}

async fn change(admin: &Admin, name: &str, verb: &str, wait: bool) -> Answer {
    let path = path(name, &format!("/{verb}"));
    let changed = admin.post(&path, &json!({})).await?;
    match wait {
        true => Ok(record(settled(admin, &changed, false).await?)),
        false => Ok(record(changed)),
    }
}

fn record(item: Value) -> Output {
    Output::record(item, RECORD)
}

/// The move, once it is over, waits for a person, or is retained.
///
/// # Errors
/// [`Error::Job`] where it did not come to what it was made for.
async fn settled(admin: &Admin, item: &Value, retained_is_enough: bool) -> Result<Value> {
    let is_there = |job: &Value| retained_is_enough && job["phase"] == "retained";
    let id = show(&item["id"]);
    job::follow(admin, item, is_there).await?;
    let now = admin.get(&path(&id, ""), &[]).await?;
    let phase = now["phase"].as_str().unwrap_or_default();
    let wanted = match retained_is_enough {
        true => matches!(phase, "retained" | "done"),
        false => now["done"] == true,
    };
    match wanted {
        true => Ok(now),
        false => Err(Error::Job {
            id,
            status: show(&now["status"]),
            code: now["problem"]["code"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            why: match now["problem"]["message"].as_str() {
                Some(message) => message.to_owned(),
                None => format!("in state {phase}"),
            },
            advice: now["problem"]["advice"].as_str().map(str::to_owned),
        }),
    }
}

fn path(name: &str, rest: &str) -> String {
    format!("/moves/{}{rest}", segment(name))
}

/// The longest time that a cut-over held a tenant's requests.
fn pause(item: &Value) -> String {
    let tenants = item["tenants"].as_array().map_or(&[][..], Vec::as_slice);
    let pauses = tenants.iter().flat_map(|tenant| {
        let pauses = tenant["pauses_ms"].as_array();
        pauses.into_iter().flatten().filter_map(Value::as_f64)
    });
    match pauses.reduce(f64::max) {
        Some(longest) => format!("{longest:.1} ms"),
        None => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves() {
        let item = json!({
            "id": "0192f0c1-0000-7000-8000-000000000001", "object": "acme", "from": "s1", "to": "s2",
            "status": "waiting", "phase": "retained", "progress": null, "seconds": 3.5,
            "tenants": [{"slug": "acme", "pauses_ms": [8.25, 11.5]}], "state": {"state": "retained"},
            "wish": null, "problem": null, "created_at": "2026-01-02T03:04:05.678Z",
        });
        insta::assert_snapshot!(Output::list(vec![item], LIST).text, @r"
        ID                                    TENANT  FROM  TO  STATUS   PHASE     PROGRESS  PAUSE    TOOK
        0192f0c1-0000-7000-8000-000000000001  acme    s1    s2  waiting  retained  -         11.5 ms  3.5 s
        ");
    }
}
