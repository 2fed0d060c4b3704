//! `ringfence job`, and how other commands wait for the jobs that they start.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Answer;
use crate::admin::Admin;
use crate::error::{Error, Result};
use crate::output::{Column, Output, show};

/// Longest time without an answer before waiting is given up; the job goes on.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Pause before the events are asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// What can be done with jobs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List jobs, newest first.
    List {
        /// Only those that are not over.
        #[arg(long)]
        open: bool,
        /// Only those of this kind, such as tenant_delete.
        #[arg(long)]
        kind: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=500))]
        limit: u64,
    },
    /// Show a job: its state, its last error, what came of it.
    Show {
        /// Its id.
        id: Uuid,
        /// Show its progress until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Ask for a job's end. One that can only go forward says so.
    Cancel {
        /// Its id.
        id: Uuid,
        /// Show its progress until it is over.
        #[arg(long)]
        wait: bool,
    },
    /// Have a job that waits for a person, or for its next try, go on now.
    Retry {
        /// Its id.
        id: Uuid,
        /// Show its progress until it is over.
        #[arg(long)]
        wait: bool,
    },
}

const LIST: &[Column] = &[
    ("id", |j| show(&j["id"])),
    ("kind", |j| show(&j["kind"])),
    ("object", |j| show(&j["object"])),
    ("status", |j| show(&j["status"])),
    ("phase", |j| show(&j["phase"])),
    ("progress", progress),
    ("created", |j| show(&j["created_at"])),
    ("took", took),
];

const RECORD: &[Column] = &[
    ("id", |j| show(&j["id"])),
    ("kind", |j| show(&j["kind"])),
    ("object", |j| show(&j["object"])),
    ("status", |j| show(&j["status"])),
    ("phase", |j| show(&j["phase"])),
    ("progress", progress),
    ("worker", |j| show(&j["worker"])),
    ("tries", |j| show(&j["attempt"])),
    ("problem", |j| match waits(j) {
        waits if j["problem"].is_null() && !waits.is_empty() => waits.join("; "),
        _ => show(&j["problem"]["message"]),
    }),
    ("advice", |j| show(&j["problem"]["advice"])),
    ("created", |j| show(&j["created_at"])),
    ("took", took),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        let (id, verb, wait) = match self {
            Self::List { open, kind, limit } => return list(admin, open, kind, limit).await,
            Self::Show { id, wait } => (id, None, wait),
            Self::Cancel { id, wait } => (id, Some("cancel"), wait),
            Self::Retry { id, wait } => (id, Some("retry"), wait),
        };
        let job = match verb {
            Some(verb) => {
                let path = format!("/jobs/{id}/{verb}");
                admin.post(&path, &json!({})).await?
            }
            None => admin.get(&format!("/jobs/{id}"), &[]).await?,
        };
        match wait {
            true => Ok(record(follow(admin, &job, |_| false).await?)),
            false => Ok(record(job)),
        }
    }
}

async fn list(admin: &Admin, open: bool, kind: Option<String>, limit: u64) -> Answer {
    let limit = limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    if open {
        query.push(("open", "true"));
    }
    query.extend(kind.as_deref().map(|kind| ("kind", kind)));
    let mut page = admin.get("/jobs", &query).await?;
    Ok(Output::list(admin.items(&mut page, "GET /jobs")?, LIST))
}

/// A job as commands that started it print it; with its result.
pub(super) fn record(job: Value) -> Output {
    let mut output = Output::record(job, RECORD);
    if !output.json["result"].is_null() {
        let result = format!("{:#}", output.json["result"]);
        output.text.push_str(&format!("result\n{result}\n"));
    }
    output
}

/// The job that was just started: at once, or when it is over.
///
/// # Errors
/// [`Error::Job`] where it was waited for and did not do what it was made for.
pub(super) async fn started(admin: &Admin, job: Value, wait: bool) -> Result<Value> {
    if !wait {
        return Ok(job);
    }
    let job = follow(admin, &job, |_| false).await?;
    match job["status"].as_str() {
        Some("done") => Ok(job),
        _ => Err(Error::Job {
            id: show(&job["id"]),
            status: show(&job["status"]),
            code: job["problem"]["code"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            why: match job["problem"]["message"].as_str() {
                Some(message) => format!("{message} ({})", show(&job["problem"]["code"])),
                None => format!("in state {}", show(&job["phase"])),
            },
            advice: job["problem"]["advice"]
                .as_str()
                .filter(|advice| !advice.is_empty())
                .map(str::to_owned),
        }),
    }
}

/// Shows a job's progress until it is over, waits for a person, or is far enough. A worker
/// that ends is no end of it: another one is asked.
pub(super) async fn follow(
    admin: &Admin,
    job: &Value,
    is_enough: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let is_settled = |job: &Value| is_settled(job) || is_enough(job);
    let id = job["id"].as_str().ok_or_else(|| Error::Answer {
        request: "GET /jobs".into(),
        field: "id",
    })?;
    let path = format!("/jobs/{id}/events");
    let mut screen = Screen::default();
    let mut last = job.clone();
    let mut heard = Instant::now();
    loop {
        screen.show(&last);
        if is_settled(&last) {
            screen.end();
            return Ok(last);
        }
        let outcome = admin
            .events(&path, |event| {
                heard = Instant::now();
                screen.show(&event);
                last = event;
                !is_settled(&last)
            })
            .await;
        match outcome {
            Err(error @ Error::Api { .. }) if heard.elapsed() > SILENCE_MAX => return Err(error),
            Err(error @ Error::Unreachable { .. }) if heard.elapsed() > SILENCE_MAX => {
                return Err(error);
            }
            Err(Error::Unreachable { .. } | Error::Api { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        if !is_settled(&last) {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn is_settled(job: &Value) -> bool {
    job["done"] == true || job["status"] == "stuck"
}

/// Where progress is shown: one line that changes, or lines where nobody looks.
#[derive(Default)]
struct Screen {
    shown: String,
}

impl Screen {
    fn show(&mut self, job: &Value) {
        let terminal = stderr().is_terminal();
        let line = match terminal {
            true => line(job),
            false => event(job),
        };
        if line == self.shown {
            return;
        }
        let mut screen = stderr();
        // A terminal that went away does not end the waiting.
        let _ = match terminal {
            true => write!(screen, "\r\x1b[K{line}").and_then(|()| screen.flush()),
            false => writeln!(screen, "{line}"),
        };
        self.shown = line;
    }

    fn end(&self) {
        if stderr().is_terminal() && !self.shown.is_empty() {
            eprintln!();
        }
    }
}

/// For those who read a log: what happened, and not each percent of it.
fn event(job: &Value) -> String {
    let event = format!("{}: {}", show(&job["phase"]), show(&job["status"]));
    // Behind the first words there are times that pass.
    let waits = waits(job);
    let waits = waits
        .iter()
        .map(|wait| wait.split(';').next().unwrap_or_default());
    let waits = waits.collect::<Vec<_>>().join("; ");
    match waits.is_empty() {
        true => event,
        false => format!("{event}; waits: {waits}"),
    }
}

/// What it waits for just now.
fn waits(job: &Value) -> Vec<String> {
    let waits = job["progress"]["waits"].as_array().into_iter().flatten();
    waits.map(show).collect()
}

/// What it is at just now.
fn at(job: &Value) -> Vec<String> {
    let at = job["progress"]["at"].as_array().into_iter().flatten();
    at.map(show).collect()
}

fn line(job: &Value) -> String {
    let more = match (waits(job), at(job)) {
        (waits, _) if !waits.is_empty() => format!("  waits: {}", waits.join("; ")),
        (_, at) if !at.is_empty() => format!("  {}", at.join("; ")),
        _ => String::new(),
    };
    // One line of a terminal.
    let more: String = more.chars().take(170).collect();
    let problem = match job["problem"]["message"].as_str() {
        Some(message) => format!("  ({})", message.chars().take(80).collect::<String>()),
        None => String::new(),
    };
    format!(
        "{} {}: {} {} {}{more}{problem}",
        show(&job["kind"]),
        show(&job["object"]),
        show(&job["phase"]),
        progress(job),
        took(job),
    )
}

/// `1200 of 5000 rows (24 %)`.
pub(super) fn progress(job: &Value) -> String {
    let progress = &job["progress"];
    let number = |field: &str| progress[field].as_u64().unwrap_or(0);
    let (done, total) = (number("done"), number("total"));
    let unit = show(&progress["unit"]);
    match (progress.is_null(), total) {
        (true, _) => "-".into(),
        (false, 0) if done == 0 && !waits(job).is_empty() => "-".into(),
        (false, 0) => format!("{done} {unit}"),
        (false, _) => format!(
            "{done} of {total} {unit} ({} %)",
            done.saturating_mul(100) / total
        ),
    }
}

pub(super) fn took(job: &Value) -> String {
    match job["seconds"].as_f64() {
        Some(seconds) => format!("{seconds:.1} s"),
        None => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs() {
        let mut job = json!({
            "id": "0192f0c1-0000-7000-8000-000000000001", "kind": "tenant_delete",
            "object": "acme", "status": "running", "phase": "deleting",
            "progress": {"done": 1200, "total": 5000, "unit": "rows"}, "attempt": 1,
            "worker": "worker-1/1", "problem": null, "result": null, "done": false,
            "created_at": "2026-01-02T03:04:05.678Z", "seconds": 1.25,
        });
        insta::assert_snapshot!(Output::list(vec![job.clone()], LIST).text, @r"
        ID                                    KIND           OBJECT  STATUS   PHASE     PROGRESS                  CREATED                   TOOK
        0192f0c1-0000-7000-8000-000000000001  tenant_delete  acme    running  deleting  1200 of 5000 rows (24 %)  2026-01-02T03:04:05.678Z  1.2 s
        ");
        assert!(!is_settled(&job));
        job["problem"] = json!({"message": "shard s1 has no reachable primary"});
        assert_eq!(
            line(&job),
            "tenant_delete acme: deleting 1200 of 5000 rows (24 %) 1.2 s  (shard s1 has no reachable primary)"
        );
        job["status"] = json!("stuck");
        assert!(is_settled(&job));
        // Which shard is waited for is named, in a log, too.
        job["problem"] = Value::Null;
        job["status"] = json!("running");
        job["progress"] = json!({"done": 0, "total": 0, "unit": "rows", "waits": [
            "shard s3 can't be reached: no answer", "shard s1: no lock within 250 ms; open transactions: pid 7 for 3 s"
        ]});
        let at = json!({"done": 0, "total": 2, "unit": "shards", "at": ["s2: 002_owner.sql, 4500 rows"]});
        let shown = json!({"kind": "migrate", "object": "app", "phase": "canary", "progress": at, "seconds": 1.0});
        assert_eq!(
            line(&shown),
            "migrate app: canary 0 of 2 shards (0 %) 1.0 s  s2: 002_owner.sql, 4500 rows"
        );
        assert_eq!(
            event(&job),
            "deleting: running; waits: shard s3 can't be reached: no answer; shard s1: no lock within 250 ms"
        );
        assert_eq!(
            line(&job),
            "tenant_delete acme: deleting - 1.2 s  waits: shard s3 can't be reached: no answer; shard s1: no lock within 250 ms; open transactions: pid 7 for 3 s"
        );
    }
}
