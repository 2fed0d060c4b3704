//! Stages 6 to 8 on whichever node of the shard may answer: the primary, or a
//! replica that is fresh enough. What goes wrong at a replica and may go right
//! at the primary is asked there, and the client never knows.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tenancy::auth::TenantContext;
use tenancy::id::ShardId;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Stage, Stages};
use crate::app::App;
use crate::cache::shared::Patience;
use crate::event::{Event, FallBack, NodeRole};
use crate::execute::{self, Access, Answer, ExecuteError, Guard, Text};
use crate::freshness::{self, Known, Needed, NoSource, Source, Wanted};
use crate::gate::Claim;
use crate::nodes::Watched;
use crate::placement::Target;
use crate::plan::Form;
use crate::pool::{Identity, Leased, PoolError};
use crate::quota::{Limited, Running};
use crate::replica::{self, Candidate};
use crate::shards::{Primary, Reign};
use crate::sql::Statement;
use crate::token::{Generation, Token};
use crate::wire::DbError;

/// Longest wait for what a node that is no longer the primary says of a write.
const LAST_WORD_MAX: Duration = Duration::from_millis(300);
/// Longest wait for one of a replica's connections: the primary has some, too.
const REPLICA_WAIT_MAX: Duration = Duration::from_millis(50);

/// Beside its body an answer's row has counts, a status and headers: the body itself
/// is measured once it is there.
const BESIDE_BODY_BYTES: usize = 64 << 10;

/// What is to be done on a shard.
pub(super) struct Work<'a> {
    pub(super) app: &'a Arc<App>,
    pub(super) target: &'a Target,
    pub(super) tenant: &'a TenantContext,
    pub(super) guard: Guard,
    pub(super) statement: &'a Statement,
    pub(super) wanted: Wanted,
    pub(super) deadline: Instant,
    /// Bytes at most of its answer's body.
    pub(super) answer_max: usize,
    /// What Postgres calls the connection meanwhile, where it is a traced request's.
    pub(super) application: Option<Arc<str>>,
    /// What is left of its wait for Redis, where that was asked in vain already.
    pub(super) looked: Option<Patience>,
}

/// What came of it.
pub(super) struct Served {
    pub(super) answer: Answer,
    /// Of what was committed.
    pub(super) token: Option<Token>,
    /// The node that answered, as it was when the connection was made.
    pub(super) by: Identity,
    /// It had everything up to here, at least; the primary has everything.
    pub(super) has: u64,
}

impl Served {
    fn role(&self) -> NodeRole {
        match self.by.primary {
            true => NodeRole::Primary,
            false => NodeRole::Replica,
        }
    }
}

/// Why a shard gave no answer.
pub(crate) enum Failed {
    /// It has no primary, or that can't be connected to.
    NoPrimary,
    /// The token's write is not on the primary's timeline.
    LostWrite {
        token: Token,
        left_at: u64,
    },
    /// All connections stayed busy.
    Busy,
    /// The tenant's statements have taken as much time as they may.
    Limited(Limited),
    Execute(ExecuteError),
}

impl Failed {
    /// The same for another who waited for it.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::NoPrimary => Self::NoPrimary,
            Self::LostWrite { token, left_at } => Self::LostWrite {
                token: *token,
                left_at: *left_at,
            },
            Self::Busy => Self::Busy,
            Self::Limited(limited) => Self::Limited(*limited),
            Self::Execute(error) => Self::Execute(error.again()),
        }
    }
}

/// Why a replica gave none.
enum Missed {
    /// The primary may do better.
    Fall(FallBack),
    /// The primary would say the same.
    Final(ExecuteError),
    Limited(Limited),
}

pub(super) async fn serve(work: &Work<'_>, stages: &mut Stages) -> Result<Served, Failed> {
    // Who may not begin does not wait for a connection.
    let in_time = work.app.quotas.check_time(work.guard.tenant);
    in_time.map_err(Failed::Limited)?;
    if work.statement.form.writes() {
        return at_primary(work, stages).await;
    }
    if let Some(needed) = replicas_may(work)? {
        match at_replica(work, &needed, stages).await {
            Ok(served) => {
                work.app.events.emit(&Event::Read { by: served.role() });
                return Ok(served);
            }
            Err(Missed::Final(error)) => return Err(Failed::Execute(error)),
            Err(Missed::Limited(limited)) => return Err(Failed::Limited(limited)),
            Err(Missed::Fall(reason)) => {
                work.app.events.emit(&Event::FellBack { reason });
                // What the replica had begun to do is done a second time.
                if reason.is_a_retry() && !work.app.may_retry() {
                    return Err(Failed::Busy);
                }
            }
        }
    }
    let served = at_primary(work, stages).await?;
    work.app.events.emit(&Event::Read { by: served.role() });
    Ok(served)
}

/// How far a replica must be to answer; none where none may.
fn replicas_may(work: &Work<'_>) -> Result<Option<Needed>, Failed> {
    let Some(reign) = work.target.shard.reign() else {
        return Ok(None);
    };
    let known = Known {
        generation: reign.generation,
        ancestors: &reign.ancestors,
        epoch: work.guard.epoch,
        written: reign.written.last(work.guard.tenant),
        lease: lease(work, reign.generation),
    };
    let reads = work.app.config.shards.reads();
    match freshness::source(reads, &work.wanted, &known, Instant::now()) {
        Ok(Source::Primary) => Ok(None),
        Ok(Source::Replica(needed)) => Ok(Some(needed)),
        Err(NoSource::Replaced) => Err(Failed::NoPrimary),
        Err(NoSource::Lost { left_at }) => match work.wanted.token {
            Some(token) => Err(Failed::LostWrite { token, left_at }),
            None => Ok(None),
        },
    }
}

/// This router's lease on the shard, if it is one on the log `here`.
fn lease(work: &Work<'_>, here: Generation) -> Option<freshness::Lease> {
    let shard = ShardId(work.target.shard.id.clone());
    let under = work.app.cache.under_lease(&shard)?;
    let on = under.generation();
    let same = (on.system, on.timeline) == (here.system, here.timeline);
    same.then(|| freshness::Lease {
        lsn: under.watermark().0,
    })
}

/// Stages 6 to 8 on the tenant's replica.
async fn at_replica(
    work: &Work<'_>,
    needed: &Needed,
    stages: &mut Stages,
) -> Result<Served, Missed> {
    let none = Missed::Fall(FallBack::NoneFresh);
    let (watched, identity) = choose(work, needed).ok_or(none)?;
    let gone = watched.gone(identity);
    let gone = gone.ok_or(Missed::Fall(FallBack::NoneFresh))?;
    let _counted = watched.begin_read();
    let wait_max = REPLICA_WAIT_MAX;
    let connection = match connect(work, &watched, identity, wait_max, &gone).await {
        Ok(connection) => connection,
        Err(NoConnection::Busy) => return Err(Missed::Fall(FallBack::Busy)),
        Err(NoConnection::Node) => return Err(Missed::Fall(FallBack::Unreachable)),
        Err(NoConnection::Refused(_)) => return Err(Missed::Fall(FallBack::Refused)),
    };
    stages.mark(Stage::Pool);
    let running = work.app.quotas.begin(work.guard.tenant);
    let running = running.map_err(Missed::Limited)?;
    let answered = tokio::select! {
        biased;
        answered = run(work, connection, running, None) => answered,
        () = gone.cancelled() => Err(ExecuteError::Lost(None)),
    };
    let error = match answered {
        Ok(answer) => {
            watched.breaker.succeeded();
            return Ok(Served {
                answer,
                token: None,
                by: identity,
                has: needed.lsn,
            });
        }
        Err(error) => error,
    };
    stages.mark(Stage::Transaction);
    if error.is_the_nodes() {
        watched.breaker.failed(Instant::now());
        watched.look_now();
        return Err(Missed::Fall(FallBack::Lost));
    }
    Err(match error {
        ExecuteError::Refused(refused) if !is_the_statements(refused.code().code()) => {
            Missed::Fall(FallBack::Refused)
        }
        error => Missed::Final(error),
    })
}

/// The replica that is asked: of those that are far enough the tenant's own.
fn choose(work: &Work<'_>, needed: &Needed) -> Option<(Arc<Watched>, Identity)> {
    let now = Instant::now();
    let replicas = work.target.shard.replicas();
    let serving: Vec<_> = replicas
        .iter()
        .filter(|replica| replica.serves(needed.lsn, needed.since, now))
        .filter(|replica| replica.watched.breaker.allows(now))
        .collect();
    let candidates: Vec<_> = serving
        .iter()
        .map(|replica| Candidate {
            name: &replica.watched.node.name,
            in_flight: replica.watched.reads(),
        })
        .collect();
    let chosen = serving.get(replica::choose(work.guard.tenant, &candidates)?)?;
    Some((chosen.watched.clone(), chosen.identity))
}

/// Errors of the values, constraints and functions that a statement meets, which
/// it meets anywhere. Everything else can be the replica's own: a conflict with
/// what it replays, a table that it has not got yet, a fence that has changed.
fn is_the_statements(sqlstate: &str) -> bool {
    let classes = ["21", "22", "23", "P0", "PG", "PT"];
    classes.iter().any(|class| sqlstate.starts_with(class))
}

/// Stages 6 to 8 on the shard's primary, for as long as it is that.
async fn at_primary(work: &Work<'_>, stages: &mut Stages) -> Result<Served, Failed> {
    let primary = work.target.shard.primary().ok_or(Failed::NoPrimary)?;
    let Primary {
        watched,
        identity,
        reign,
        gone,
    } = &*primary;
    if !watched.breaker.allows(Instant::now()) {
        return Err(Failed::NoPrimary);
    }
    let wait_max = work.app.pools.wait_max();
    let connection = match connect(work, watched, *identity, wait_max, gone).await {
        Ok(connection) => connection,
        Err(NoConnection::Busy) => return Err(Failed::Busy),
        Err(NoConnection::Node) => return Err(Failed::NoPrimary),
        Err(NoConnection::Refused(refused)) => {
            return Err(Failed::Execute(ExecuteError::Refused(refused)));
        }
    };
    stages.mark(Stage::Pool);
    // A write that was sent goes on in its own task; nobody knows how it ends.
    let left = match work.statement.form.writes() {
        true => ExecuteError::Unknown,
        false => ExecuteError::Lost(None),
    };
    let running = work.app.quotas.begin(work.guard.tenant);
    let running = running.map_err(Failed::Limited)?;
    let mut done = pin!(run(work, connection, running, Some(reign)));
    let answered = tokio::select! {
        biased;
        answered = &mut done => answered,
        // A node that shuts down in order still says how each transaction ended.
        () = gone.cancelled() => timeout(LAST_WORD_MAX, done).await.unwrap_or(Err(left)),
    };
    match answered {
        Ok(answer) => {
            watched.breaker.succeeded();
            let token = answer.position.map(|position| Token {
                generation: Generation {
                    system: identity.generation.system,
                    timeline: position.timeline,
                },
                epoch: work.guard.epoch,
                lsn: position.lsn,
            });
            Ok(Served {
                answer,
                token,
                by: *identity,
                has: u64::MAX,
            })
        }
        Err(error) => Err(Failed::Execute(error)),
    }
}

/// Why there is no connection.
pub(super) enum NoConnection {
    /// All stayed busy.
    Busy,
    /// The node can't be connected to, is another, or is gone.
    Node,
    /// The node has no such role for a request.
    Refused(Box<DbError>),
}

/// Stage 6: a connection to a node in the request's role.
pub(super) async fn connect(
    work: &Work<'_>,
    watched: &Watched,
    identity: Identity,
    wait_max: Duration,
    gone: &CancellationToken,
) -> Result<Leased, NoConnection> {
    let pools = &work.app.pools;
    let address = &watched.node.address;
    let claim = Claim {
        tenant: work.guard.tenant,
        role: work.tenant.role().clone(),
    };
    let connection = pin!(pools.get(address, claim, identity, wait_max));
    let connection = tokio::select! {
        biased;
        connection = timeout_at(work.deadline, connection) => connection,
        () = gone.cancelled() => return Err(NoConnection::Node),
    };
    match connection {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(PoolError::Busy(why))) => {
            work.app.events.emit(&Event::NotAdmitted(why));
            Err(NoConnection::Busy)
        }
        Err(_) => Err(NoConnection::Busy),
        Ok(Err(error @ (PoolError::Connect { .. } | PoolError::Changed { .. }))) => {
            watched.breaker.failed(Instant::now());
            watched.look_now();
            tracing::debug!(error = tenancy::chain(&error), "no connection");
            Err(NoConnection::Node)
        }
        // The node is well, and must stay open to those whom it doesn't refuse.
        Ok(Err(PoolError::Session { refused, .. })) => Err(NoConnection::Refused(refused)),
    }
}

/// Stage 8, and rule 7. A transaction runs in a task of its own: a client that hangs up
/// must not leave it half sent, nor keep the tenant's later reads from seeing it.
async fn run(
    work: &Work<'_>,
    mut connection: Leased,
    running: Running,
    reign: Option<&Arc<Reign>>,
) -> Result<Answer, ExecuteError> {
    let statement = work.statement;
    let deadline = work.deadline;
    connection.bound_rows(work.answer_max.saturating_add(BESIDE_BODY_BYTES));
    let params: Vec<Text> = statement.params.iter().cloned().map(Text).collect();
    // Boxed: few requests have it, and all have room for it.
    let named = work.application.as_deref();
    let named = named.map(|name| Box::new(work.guard.named(name)));
    let guard = named.as_deref().unwrap_or(&work.guard);
    let access = match statement.form {
        Form::Read => {
            let (text, calls) = (&statement.text, statement.calls);
            return execute::read(&mut connection, guard, text, &params, calls, deadline).await;
        }
        Form::ReadOnlyTransaction => Access::ReadOnly,
        Form::Write => Access::Write,
        Form::WriteAndRollBack => Access::WriteAndRollBack,
    };
    let guard = guard.clone();
    let text = statement.text.clone();
    let reign = reign.filter(|_| access == Access::Write).cloned();
    let task = work.app.transactions.spawn(async move {
        let tenant = guard.tenant;
        let done = execute::transact(connection, guard, access, text, params, deadline).await;
        // It counts to its end, also where nobody waits for that any longer.
        drop(running);
        if let Some(reign) = reign {
            note(&reign, tenant, &done);
        }
        done
    });
    task.await.unwrap_or(Err(ExecuteError::Unknown))
}

/// Remembers a write for the tenant's later reads. Where its place in the log,
/// or whether it was made at all, is not known, no replica is ever far enough:
/// who is told to look before writing again must find it.
fn note(reign: &Reign, tenant: uuid::Uuid, done: &Result<Answer, ExecuteError>) {
    match done {
        Ok(answer) => {
            let position = answer.position;
            let lsn = position.map_or(u64::MAX, |position| position.lsn);
            reign.written.note(tenant, lsn);
        }
        Err(ExecuteError::Unknown) => reign.written.note(tenant, u64::MAX),
        Err(_) => {}
    }
}
