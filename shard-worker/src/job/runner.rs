//! Takes jobs and runs them: a bounded number at once, each until it ends, is
//! put off, or is another worker's.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tenancy::chain;
use tenancy::control::ControlError;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::retry::{self, JobError, Verdict};
use super::store::{self, Claimed, Leave};
use super::{Context, End, Machine, Step};
use crate::app::App;
use crate::traced;

/// A look for jobs, should the news of one be lost, or its time have come.
const LOOK: Duration = Duration::from_millis(500);
/// A move is left for so long to the worker that captures its source.
const LEFT_FOR: Duration = Duration::from_secs(1);
/// Tries to write how a step ended; after them the lease runs out by itself.
const WRITES: u32 = 3;
const WRITE_PAUSE: Duration = Duration::from_millis(300);
/// Tries without progress after which a job that keeps killing its worker, or
/// panics, waits for a person.
const ATTEMPTS_MAX: i32 = 1_000;

/// A step that was under way when the worker was told to stop may take so long
/// still: a cut-over is then through, or undone.
const STOP_MAX: Duration = Duration::from_secs(6);

/// Runs jobs until `stop`; then each comes to the end of its step, and its lease
/// is given back, so that another worker goes on at once.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(app.jobs.at_once_max));
    let running = TaskTracker::new();
    let mut news = app.job_news.subscribe();
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let Ok(slot) = slot else { break };
        news.mark_unchanged();
        let elsewhere = app.capture.elsewhere();
        match store::claim(&app.control, &app.owner, (&elsewhere, LEFT_FOR)).await {
            Ok(Some(job)) => {
                let (app, stop) = (app.clone(), stop.child_token());
                running.spawn(async move {
                    work(app, job, stop).await;
                    drop(slot);
                });
                continue;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error = chain(&error), "no jobs can be taken"),
        }
        drop(slot);
        tokio::select! {
            () = stop.cancelled() => break,
            _ = news.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    running.close();
    running.wait().await;
}

async fn work(app: Arc<App>, job: Claimed, stop: CancellationToken) {
    let (id, kind) = (job.id, job.kind);
    tracing::info!(%id, kind = kind.name(), object = job.object, attempt = job.attempt, "job taken");
    let metrics = app.job_metrics.of(kind);
    metrics.running.increment(1);
    let state = job.state.clone();
    let context = Context::new(app.clone(), job, stop.clone());
    let too_long = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_MAX).await;
    };
    let lost = context.lease.lost.clone();
    tokio::select! {
        biased;
        () = lost.cancelled() => {
            metrics.leases_lost.increment(1);
            tracing::warn!(%id, kind = kind.name(), "job's lease lost: another worker goes on");
        }
        () = too_long => {
            tracing::warn!(%id, kind = kind.name(), "stopped in the middle of a step");
            context.drop_sessions().await;
            let _ = store::give_back(context.control(), id, &app.owner).await;
        }
        () = kind.drive(&context, state) => {}
    }
    app.job_metrics.of(kind).running.decrement(1);
}

/// Step by step, from the state that the row holds.
pub(super) async fn drive<M: Machine>(context: &Context, state: Value) {
    let job = context.job();
    let outcome = match serde_json::from_value::<M>(state) {
        Ok(_) if job.attempt > ATTEMPTS_MAX => {
            let why = format!("it was begun {ATTEMPTS_MAX} times without any progress");
            Err(JobError::State(why).into())
        }
        Ok(state) => steps(context, state).await,
        Err(error) => Err(JobError::State(error.to_string()).into()),
    };
    if let Err(Failed { error, is_urgent }) = outcome {
        let verdict = error.verdict().after(job.attempt);
        tracing::warn!(id = %job.id, kind = job.kind.name(), error = chain(&error), ?verdict, "job's step failed");
        let problem = error.problem(verdict);
        if verdict == Verdict::Person {
            traced::stuck(context, &error);
        }
        let leave = match verdict {
            Verdict::Retry => Leave::Retry(retry::wait(job.attempt, is_urgent), &problem),
            // Its few tries are not to be over in a moment.
            Verdict::RetryFew => Leave::Retry(retry::wait(job.attempt, false), &problem),
            Verdict::Person | Verdict::End => Leave::Stuck(&problem),
            Verdict::Leave => return,
        };
        written(context, leave).await;
    }
}

/// Why a job was not gone on with.
struct Failed {
    error: JobError,
    /// Someone waits for what was not done.
    is_urgent: bool,
}

impl From<JobError> for Failed {
    fn from(error: JobError) -> Self {
        Self {
            error,
            is_urgent: false,
        }
    }
}

/// Returns when the job is over or was put off; an error is for [`drive`].
async fn steps<M: Machine>(context: &Context, mut state: M) -> Result<(), Failed> {
    let mut cancel = context.lease.cancel.clone();
    // Asked once: a machine that goes on after it does so for a reason.
    let mut asked = false;
    let mut abandoned = false;
    loop {
        if context.is_stopping() {
            // Its successor is not to end our sessions first.
            context.drop_sessions().await;
            written(context, Leave::Later(Duration::ZERO)).await;
            return Ok(());
        }
        let cancelled = state.cancelled().filter(|_| !asked);
        let traced = traced::Step::begin(context, state.phase().0);
        let step = tokio::select! {
            biased;
            _ = cancel.wait_for(|cancel| *cancel), if cancelled.is_some() => None,
            step = state.step(context) => Some(step),
        };
        traced.end(step.as_ref());
        let Some(step) = step else {
            asked = true;
            // A statement that was under way must not work on beside the next step.
            context.drop_sessions().await;
            if let Some(next) = cancelled {
                context.save(&next).await?;
                state = next;
            }
            continue;
        };
        if matches!(step, Ok(Step::Next(_) | Step::Written(_))) {
            let metrics = context.app().job_metrics.of(context.job().kind);
            metrics.steps.increment(1);
        }
        match step {
            Ok(Step::Next(next)) => {
                context.save(&next).await?;
                state = next;
            }
            Ok(Step::Written(next)) => state = next,
            Ok(Step::Later(next, wait)) => {
                context.save(&next).await?;
                written(context, Leave::Later(wait)).await;
                return Ok(());
            }
            Ok(Step::End(last, end, result)) => {
                return Ok(finish(context, &last, &end, &result).await?);
            }
            Err(error) if error.verdict() == Verdict::End => {
                context.drop_sessions().await;
                match state.abandoned(&error).filter(|_| !abandoned) {
                    Some(next) => {
                        abandoned = true;
                        context.save(&next).await?;
                        state = next;
                    }
                    None => {
                        let end = End::Failed(error.problem(Verdict::End));
                        return Ok(finish(context, &state, &end, &Value::Null).await?);
                    }
                }
            }
            Err(error) => {
                let is_urgent = state.is_urgent();
                return Err(Failed { error, is_urgent });
            }
        }
    }
}

async fn finish<M: Machine>(
    context: &Context,
    state: &M,
    end: &End,
    result: &Value,
) -> Result<(), JobError> {
    let job = context.job();
    let mut place = context.place().await;
    let finished = store::finish(context.control(), job, &mut place, state, end, result).await?;
    if !finished {
        return Err(JobError::Lost);
    }
    context.app().job_metrics.of(job.kind).ended(end);
    traced::ended(context, end);
    tracing::info!(id = %job.id, kind = job.kind.name(), object = job.object, ?end, "job over");
    Ok(())
}

/// Gives the lease back, unless the control database is away for longer.
async fn written(context: &Context, leave: Leave<'_>) {
    let place = context.place().await;
    for _ in 0..WRITES {
        match store::leave(context.control(), &place, leave).await {
            Ok(_) => {
                if let Leave::Later(wait) | Leave::Retry(wait, _) = leave {
                    context.app().job_news.again_in(wait);
                }
                return;
            }
            Err(ControlError::Unreachable(_)) => tokio::time::sleep(WRITE_PAUSE).await,
            Err(error) => {
                tracing::warn!(id = %place.id, error = chain(&error), "job's lease not given back");
                return;
            }
        }
    }
}
