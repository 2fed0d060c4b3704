//! Applies a directory's files to all shards: one of them first, then several
//! at a time, and none further once one has failed.
//!
//! ```text
//!   Checking ──► Running ◄──► Finishing ──► Done
//!      │           │ canary, then waves; a shard that came meanwhile is run, too
//!      │cancel     │cancel: what is committed on shards stays
//!      └───────────┴────────► Stopped
//! ```
//!
//! What a contract file removes is hidden first, until no live router reads it
//! any longer ([`schema::retire`]). However the run ends, what is still there is
//! shown again.
//!
//! What each shard has is known by its own history alone
//! ([`schema::history`]), written with each change. The states here say where
//! to look next, so any worker goes on from them, and a run that failed is
//! resumed by the next run.

pub mod error;
mod fleet;
mod shard;
pub mod status;
pub mod store;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::job::{Context, End, JobError, Login, Machine, Progress, Step, Unit};

pub use error::{Away, Stop};
pub use fleet::{catch_up, finished, known, sweep};
pub use shard::ShardRun;

/// What is to be applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The directory, by name.
    pub directory: String,
    /// Its last file's number.
    pub last: u32,
    /// As many shards at once, after the canary.
    pub parallel: usize,
    /// The shard that goes first; else the one with the fewest tenants.
    pub canary: Option<String>,
    /// Shards hold it already: it is recorded, not run.
    pub baseline: bool,
}

/// The states.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Migrate {
    /// All shards are asked what they have.
    Checking {
        /// What is to be applied.
        plan: Plan,
        /// Tries in which shards did not answer.
        #[serde(default)]
        tries: u32,
        /// Those shards.
        #[serde(default)]
        away: Vec<Away>,
    },
    /// Shards are changed.
    Running {
        /// What is to be applied.
        plan: Plan,
        /// The canary first.
        shards: Vec<ShardRun>,
    },
    /// The files become part of what every shard has.
    Finishing {
        /// What is to be applied.
        plan: Plan,
        /// All done.
        shards: Vec<ShardRun>,
    },
    /// All shards have the files.
    Done {
        /// As they ended.
        shards: Vec<ShardRun>,
    },
    /// It was cancelled.
    Stopped {
        /// As they were left.
        shards: Vec<ShardRun>,
    },
}

impl Machine for Migrate {
    fn phase(&self) -> (&'static str, Progress) {
        let of = |shards: &[ShardRun]| Progress {
            done: shards.iter().filter(|run| run.done).count() as u64,
            total: shards.len() as u64,
            unit: Unit::Shards,
        };
        match self {
            Self::Checking { .. } => ("checking", Progress::default()),
            Self::Running { shards, .. } if shards.first().is_some_and(|run| !run.done) => {
                ("canary", of(shards))
            }
            Self::Running { shards, .. } => ("running", of(shards)),
            Self::Finishing { shards, .. } => ("finishing", of(shards)),
            Self::Done { shards } => ("done", of(shards)),
            Self::Stopped { shards } => ("stopped", of(shards)),
        }
    }

    fn waits(&self) -> Vec<String> {
        match self {
            Self::Checking { away, .. } => away.iter().map(Away::to_string).collect(),
            Self::Running { shards, .. } => {
                let noted = shards.iter().filter(|run| !run.done);
                let noted = noted.filter_map(|run| Some((&run.shard, run.note.as_ref()?)));
                noted
                    .map(|(shard, note)| match note.contains(shard.as_str()) {
                        true => note.clone(),
                        false => format!("shard {shard}: {note}"),
                    })
                    .collect()
            }
            Self::Finishing { .. } | Self::Done { .. } | Self::Stopped { .. } => Vec::new(),
        }
    }

    fn at(&self) -> Vec<String> {
        let Self::Running { plan, shards } = self else {
            return Vec::new();
        };
        let wave = shard::wave(shards, plan.parallel).into_iter();
        let runs = wave.filter_map(|place| shards.get(place));
        runs.filter_map(ShardRun::at).collect()
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        match self {
            Self::Checking { plan, tries, .. } => check(context, plan, *tries).await,
            Self::Running { plan, shards } => run(context, plan, shards).await,
            Self::Finishing { plan, shards } => finish(context, plan, shards).await,
            Self::Done { shards } => Ok(Step::End(self.clone(), End::Done, matrix(shards))),
            Self::Stopped { shards } => {
                shard::reveal_all(context, shards).await;
                Ok(Step::End(self.clone(), End::Cancelled, matrix(shards)))
            }
        }
    }

    fn cancelled(&self) -> Option<Self> {
        match self {
            Self::Checking { .. } => Some(Self::Stopped { shards: Vec::new() }),
            Self::Running { shards, .. } => Some(Self::Stopped {
                shards: shards.clone(),
            }),
            Self::Finishing { .. } | Self::Done { .. } | Self::Stopped { .. } => None,
        }
    }
}

/// Nothing is changed before every shard has answered, and fits.
async fn check(context: &Context, plan: &Plan, tries: u32) -> Result<Step<Migrate>, JobError> {
    let files = store::files(context, plan).await?;
    let order = fleet::order(context.control(), plan.canary.as_deref()).await?;
    let mut shards = Vec::with_capacity(order.len());
    let mut away = Vec::new();
    for wave in order.chunks(plan.parallel.max(fleet::ASKED_AT_ONCE)) {
        let asked = wave
            .iter()
            .map(|id| shard::check(context, plan, &files, id));
        for run in join_all(asked).await {
            match run {
                Ok(run) => shards.push(run),
                Err(Stop::Down(more)) => away.extend(more),
                Err(stop) => return failed(context, &[], stop).await,
            }
        }
    }
    if away.is_empty() {
        return Ok(Step::Next(Migrate::Running {
            plan: plan.clone(),
            shards,
        }));
    }
    let tries = tries + 1;
    let Some(pause) = shard::ask_again(tries) else {
        return failed(context, &[], Stop::Down(away)).await;
    };
    // Who waits for the run sees which shards it waits for.
    let plan = plan.clone();
    let next = Migrate::Checking { plan, tries, away };
    context.save(&next).await?;
    tokio::time::sleep(pause).await;
    Ok(Step::Next(next))
}

/// One slice of work on each shard of the present wave.
async fn run(
    context: &Context,
    plan: &Plan,
    shards: &[ShardRun],
) -> Result<Step<Migrate>, JobError> {
    let wave = shard::wave(shards, plan.parallel);
    if wave.is_empty() {
        return Ok(Step::Next(Migrate::Finishing {
            plan: plan.clone(),
            shards: shards.to_vec(),
        }));
    }
    let files = store::files(context, plan).await?;
    let mut next = shards.to_vec();
    let working = wave
        .iter()
        .filter_map(|place| shards.get(*place))
        .map(|run| shard::advance(context, plan, &files, run));
    let mut stopped: Option<(usize, Stop)> = None;
    for (place, outcome) in wave.iter().zip(join_all(working).await) {
        let Some(run) = next.get_mut(*place) else {
            continue;
        };
        match outcome {
            Ok(after) => *run = after,
            Err(Stop::Job(error)) => return Err(error),
            Err(stop) => {
                run.note = Some(stop.to_string());
                stopped.get_or_insert((*place, stop));
            }
        }
        if run.done {
            context.release(&run.shard, Login::Migrator).await;
        }
    }
    match stopped {
        Some((place, mut stop)) => {
            if let (Stop::Refused { reach, .. }, Some(run)) = (&mut stop, next.get(place)) {
                reach.elsewhere = shard::has_past(&next, run);
            }
            failed(context, &next, stop).await
        }
        None => Ok(Step::Next(Migrate::Running {
            plan: plan.clone(),
            shards: next,
        })),
    }
}

async fn finish(
    context: &Context,
    plan: &Plan,
    shards: &[ShardRun],
) -> Result<Step<Migrate>, JobError> {
    let known: Vec<&str> = shards.iter().map(|run| run.shard.as_str()).collect();
    let done = Migrate::Done {
        shards: shards.to_vec(),
    };
    let missing = fleet::settle(context, plan, &known, &done).await?;
    if missing.is_empty() {
        return Ok(Step::End(done, End::Done, matrix(shards)));
    }
    // They took tenants while the others were changed.
    let mut shards = shards.to_vec();
    shards.extend(missing.into_iter().map(ShardRun::of));
    Ok(Step::Next(Migrate::Running {
        plan: plan.clone(),
        shards,
    }))
}

async fn failed(
    context: &Context,
    shards: &[ShardRun],
    stop: Stop,
) -> Result<Step<Migrate>, JobError> {
    let problem = match stop {
        Stop::Job(error) => return Err(error),
        stop => stop.problem(),
    };
    // What was hidden and is still there is shown again, on all that were under way.
    shard::reveal_all(context, shards).await;
    let last = Migrate::Stopped {
        shards: shards.to_vec(),
    };
    Ok(Step::End(last, End::Failed(problem), matrix(shards)))
}

/// What came of it, shard by shard.
fn matrix(shards: &[ShardRun]) -> Value {
    json!({ "shards": shards })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_run_sees_what_it_waits_for() {
        let plan = Plan {
            directory: "app".into(),
            last: 1,
            parallel: 1,
            canary: None,
            baseline: false,
        };
        let away = Away {
            shard: "s3".into(),
            why: "no primary".into(),
        };
        let checking = Migrate::Checking {
            plan: plan.clone(),
            tries: 1,
            away: vec![away],
        };
        assert_eq!(checking.waits(), ["shard s3 can't be reached: no primary"]);
        let mut shards = ["s1", "s2", "s3"].map(|id| ShardRun::of(id.into()));
        shards[0].done = true;
        shards[1].note = Some("a lock is held".into());
        let running = Migrate::Running {
            plan,
            shards: shards.to_vec(),
        };
        assert_eq!(running.waits(), ["shard s2: a lock is held"]);
    }
}
