//! Checks for wrong answers. While the load runs, sessions watch rows of
//! their own and judge every read; at the end an audit compares what is there
//! with what was acknowledged, through every router and on the primaries.

mod audit;
mod register;
mod session;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::engine::{Finished, Plan};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::journal::Entry;
use crate::report::terminal::count;
use crate::scenario::Checks;
use crate::token::{Token, Write};
use register::span;
use session::{Watch, Watched};

/// So many violations of a kind are shown from the run, and as many from the
/// audit; more are counted.
const SHOWN: usize = 5;
/// How often the watching thread looks whether the run has begun.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What `--check` found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Writes that were acknowledged, refused, and of unknown outcome.
    pub acknowledged: u64,
    /// Writes that were definitely not done.
    pub failed: u64,
    /// Writes of unknown outcome.
    pub indeterminate: u64,
    /// Reads of watched rows that were verified.
    pub reads: u64,
    /// Watched rows in all.
    pub registers: u64,
    /// Inserted rows that the journal had no room for.
    pub unjournaled: u64,
    /// The final audit, place by place.
    pub audits: Vec<Audit>,
    /// What was wrong; of each kind the first few.
    pub violations: Vec<Violation>,
    /// How often each kind was found.
    pub counts: BTreeMap<Kind, u64>,
}

/// One place that the final audit looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// A router's address or a shard's name.
    pub place: String,
    /// How many rows of this run were found there.
    pub rows: u64,
    /// Why it could not be audited.
    pub problem: Option<String>,
}

/// A wrong answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Of which kind.
    pub kind: Kind,
    /// In one sentence.
    pub summary: String,
    /// The fewest events that show it, in order.
    pub history: Vec<String>,
}

/// Kinds of wrong answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A tenant was shown another tenant's row.
    Leak,
    /// An acknowledged write is missing.
    Lost,
    /// A write is there more than once.
    Doubled,
    /// A write that was refused, or never sent, is there.
    Phantom,
    /// A client did not see its own acknowledged write.
    ReadYourWrites,
    /// A read missed a write that was acknowledged longer ago than declared.
    Stale,
    /// A session saw a newer version, then an older one.
    Monotonic,
}

impl Kind {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Kind::Leak => "leaked",
            Kind::Lost => "lost",
            Kind::Doubled => "doubled",
            Kind::Phantom => "phantom",
            Kind::ReadYourWrites => "own write not seen",
            Kind::Stale => "stale",
            Kind::Monotonic => "back in time",
        }
    }
}

/// Violations as they are found.
#[derive(Debug, Default)]
struct Findings {
    violations: Vec<Violation>,
    counts: BTreeMap<Kind, u64>,
    shown: BTreeMap<Kind, usize>,
}

impl Findings {
    fn add(&mut self, violation: Violation) {
        *self.counts.entry(violation.kind).or_default() += 1;
        let shown = self.shown.entry(violation.kind).or_default();
        if *shown < SHOWN {
            *shown += 1;
            self.violations.push(violation);
        }
    }

    /// What the audit finds is shown beside what was found before, however
    /// much that was.
    fn begin_audit(&mut self) {
        self.shown.clear();
    }
}

/// Watches rows on a thread of its own while a run goes.
#[derive(Debug)]
pub struct Checker {
    thread: JoinHandle<Result<Watched>>,
    stop: CancellationToken,
    plan: Arc<Plan>,
    checks: Checks,
}

/// Starts watching as soon as the run has begun.
///
/// # Errors
/// When the system refuses a thread.
pub fn start(plan: Arc<Plan>, checks: Checks, begin: Arc<OnceLock<Instant>>) -> Result<Checker> {
    let stop = CancellationToken::new();
    let (of_thread, settings, stopped) = (plan.clone(), checks.clone(), stop.clone());
    let thread = std::thread::Builder::new()
        .name("checks".to_owned())
        .spawn(move || watch(of_thread, settings, &begin, stopped))
        .map_err(|source| Error::System {
            what: "a thread",
            source,
        })?;
    Ok(Checker {
        thread,
        stop,
        plan,
        checks,
    })
}

fn watch(
    plan: Arc<Plan>,
    checks: Checks,
    begin: &OnceLock<Instant>,
    stop: CancellationToken,
) -> Result<Watched> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            what: "an event loop",
            source,
        })?;
    runtime.block_on(async {
        let begin = loop {
            match begin.get() {
                Some(begin) => break *begin,
                None if stop.is_cancelled() => break Instant::now(),
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        Ok(Watch::new(plan, checks, begin, stop).run().await)
    })
}

impl Checker {
    /// Ends the watching, audits all writes, and reports.
    ///
    /// # Errors
    /// Only for failures of the tester itself.
    pub async fn finish(
        self,
        finished: &Finished,
        environment: &Environment,
    ) -> Result<CheckReport> {
        self.stop.cancel();
        let thread = self.thread;
        let watched = tokio::task::spawn_blocking(move || thread.join())
            .await
            .map_err(|_| Error::Thread)?
            .map_err(|_| Error::Thread)??;
        let Watched {
            registers,
            mut findings,
            reads,
        } = watched;
        let journal = &finished.journal;
        let by_number = journal.index();
        for found in &finished.leaks {
            let writer = match found.token.write {
                Write::Mark(number) if found.token.run == self.plan.run => {
                    by_number.get(&number).copied()
                }
                Write::Mark(_) | Write::Register { .. } => None,
            };
            let reader = self
                .plan
                .population
                .tenants
                .iter()
                .find(|tenant| tenant.tag == found.reader);
            let reader = reader.map_or("?", |tenant| tenant.slug.as_str());
            let when = (found.sent_us, found.done_us);
            findings.add(leak(
                &self.plan,
                reader,
                &found.token,
                writer,
                &found.request,
                &found.target,
                when,
            ));
        }
        findings.begin_audit();
        let audits = audit::audit(
            &self.plan,
            &self.checks,
            journal,
            &registers,
            environment,
            &mut findings,
        )
        .await;
        let mut fates = journal.counts();
        for register in &registers {
            for (sum, fate) in fates.iter_mut().zip(register.fates()) {
                *sum += fate;
            }
        }
        // The most serious first; equal ones stay in the order they were found.
        findings.violations.sort_by_key(|violation| violation.kind);
        Ok(CheckReport {
            acknowledged: fates[0],
            failed: fates[1],
            indeterminate: fates[2],
            reads,
            registers: registers.len() as u64,
            unjournaled: journal.unjournaled,
            audits,
            violations: findings.violations,
            counts: findings.counts,
        })
    }
}

/// A tenant was shown another's row: who wrote it, and who saw it.
fn leak(
    plan: &Plan,
    reader: &str,
    token: &Token,
    writer: Option<&Entry>,
    request: &str,
    target: &str,
    (sent, done): (u64, u64),
) -> Violation {
    let owner = plan
        .population
        .tenants
        .iter()
        .find(|tenant| tenant.tag == token.tag);
    let owner = owner.map_or_else(
        || format!("an unknown tenant ({})", token.tag),
        |tenant| tenant.slug.clone(),
    );
    let mut history = Vec::new();
    if let Some(entry) = writer {
        history.push(entry_line(plan, entry));
    } else if token.run != plan.run {
        history.push(format!("{owner} wrote {token} in an earlier run"));
    }
    history.push(format!(
        "{}  {reader} through {target}: {request}: the answer holds {token}",
        span(sent, Some(done))
    ));
    Violation {
        kind: Kind::Leak,
        summary: format!("{reader} was shown a row of {owner}"),
        history,
    }
}

/// A journaled insert as a line of a history.
fn entry_line(plan: &Plan, entry: &Entry) -> String {
    let name = |place: usize| plan.targets.get(place).map_or("?", |target| target.name());
    let rows = if entry.rows == 1 {
        String::new()
    } else {
        format!(" of {} rows", entry.rows)
    };
    format!(
        "{}  {} through {}: {:?}{rows}: {}",
        span(entry.sent_us, (entry.done_us > 0).then_some(entry.done_us)),
        plan.population.tenants[entry.tenant as usize].slug,
        name(entry.target as usize),
        plan.script.operations[entry.operation as usize].name,
        match entry.fate {
            crate::journal::Fate::Acknowledged => format!("acknowledged ({})", entry.status),
            crate::journal::Fate::Failed => format!("refused ({})", entry.status),
            crate::journal::Fate::Indeterminate => "outcome unknown".to_owned(),
        }
    )
}

impl CheckReport {
    /// Whether a tenant was shown another's row.
    pub fn leaked(&self) -> bool {
        self.violations
            .iter()
            .any(|violation| violation.kind == Kind::Leak)
    }

    /// Whether every place could be audited and every write was journaled.
    pub fn complete(&self) -> bool {
        self.unjournaled == 0
            && !self.audits.is_empty()
            && self.audits.iter().all(|audit| audit.problem.is_none())
    }

    /// The findings in words, without the violations.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} writes acknowledged, {} failed, {} indeterminate; {} reads of {} watched rows verified",
            count(self.acknowledged),
            count(self.failed),
            count(self.indeterminate),
            count(self.reads),
            count(self.registers)
        )];
        if self.unjournaled > 0 {
            lines.push(format!(
                "{} inserted rows were not journaled: the journal was full",
                count(self.unjournaled)
            ));
        }
        let more: Vec<String> = self
            .counts
            .iter()
            .filter(|(kind, found)| {
                self.violations
                    .iter()
                    .filter(|violation| violation.kind == **kind)
                    .count()
                    < **found as usize
            })
            .map(|(kind, found)| format!("{} × {}", count(*found), kind.words()))
            .collect();
        if !more.is_empty() {
            lines.push(format!(
                "only the first of each kind are shown; found were {}",
                more.join(", ")
            ));
        }
        for audit in &self.audits {
            lines.push(match &audit.problem {
                None => format!(
                    "audit of {}: {} rows of this run",
                    audit.place,
                    count(audit.rows)
                ),
                Some(problem) => format!("audit of {} was not possible: {problem}", audit.place),
            });
        }
        lines
    }
}
