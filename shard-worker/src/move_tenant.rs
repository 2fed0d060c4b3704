//! Moves tenants from one shard to another while they are being used, and back.
//!
//! Postgres does the moving: logical replication with a row filter a tenant.
//!
//! ```text
//!  Planned ──► Preparing ──► Copying ──► Verifying ──► CatchingUp ◄─┐ over budget:
//!     │            │            │            │           │       │ undone, later again
//!     │            │            │            │           ▼       │
//!     │            │            │            │   CuttingOver(forward)
//!     │   cancel, or an error   │            │           │
//!     │   that ends it          │            │           │ all tenants are active on the target
//!     ▼            ▼            ▼            │           ▼
//!     └────────► Undoing ◄──────┴────────────┘   Retained ◄─► Verifying(back)
//!                   │                                    │
//!                   │                        ┌───────────┤
//!                   │               rollback │ ▲ rows differ,│ complete, or time is over
//!                   │                        ▼ │ or no way    │
//!                   │                CuttingOver(back)       │
//!                   ▼                        ▼               ▼
//!                CleaningUp(undone | rolled back | done): streams end, then the
//!                   │               rows that nobody serves are deleted
//!                   ▼
//!            Undone | RolledBack | Done
//! ```
//!
//! Where it is not known any longer that rows which were equal are, as by another
//! worker or behind a failover, CatchingUp goes back to Verifying, and a rollback
//! through Verifying(back). A way back that is gone leads to Retained, which says so.
//!
//! Every state is durable, and every step may run twice. What a cut-over has
//! done is read from the two shards alone ([`crossing`]), so that a worker
//! killed anywhere is replaced by another that goes on, with or without the
//! control database.

mod clean_up;
mod copy;
pub mod crossing;
mod cut_over;
pub mod janitor;
pub mod metrics;
pub mod names;
mod prepare;
mod refusals;
mod servers;
mod side;
mod start;
mod throttle;
mod touched;
mod verify;
mod way_back;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::control::TenantInfo;
use tokio::time::timeout;
use uuid::Uuid;

use crate::job::retry::Verdict;
use crate::job::{Context, End, JobError, Machine, Problem, Progress, Step, Unit, store};
use crate::shard::ShardError;
use side::Side;

pub use servers::Servers;
pub use start::{busy, has_another_job, migrates, start};
pub use touched::Watches;

/// Longest step: it comes back to what it has not finished.
const STEP_MAX: Duration = Duration::from_secs(60);
/// How often a retained move looks whether its time is over.
const RETAINED_LOOK: Duration = Duration::from_secs(10);
/// How often a move that was paused looks whether it may go on.
const PAUSED_LOOK: Duration = Duration::from_secs(10);
/// A cut-over that was undone is tried again after so long, doubling.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
/// Longest wait before that.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Most tenants of one stream.
pub const TENANTS_MAX: usize = 1_000;
/// Publications of one stream and direction: up to so many tenants have each its own,
/// more are bundled.
const PUBLICATIONS: usize = 20;
/// Most tenants of a bundle, though there be more publications: a group that is cut over
/// at once has several bundles, and where it takes too long each goes by itself.
const BUNDLE_MAX: usize = 25;
/// A cut-over holds requests for so long at most, unless said otherwise, ms. It
/// leaves room for a lease's end (253 ms), which is waited for where another
/// worker captures the source.
pub const BUDGET_MS: u64 = 400;
/// Longest budget of a cut-over, ms: after it, it is undone.
pub const BUDGET_MAX_MS: u64 = 1_000;

/// A move: what is to be done, and how far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    /// What is to be done.
    pub plan: Plan,
    /// What the last comparison of all rows came to.
    #[serde(default)]
    pub checked: Option<Checked>,
    /// While it is retained: until then, seconds since 1970.
    #[serde(default)]
    pub retained_until: u64,
    /// While it is retained: why it can't be rolled back any longer.
    #[serde(default)]
    pub way_back_gone: Option<String>,
    /// The servers whose rows were last compared, or are being; none: the shards
    /// were not equal.
    #[serde(default)]
    pub servers: Option<Servers>,
    /// How far it is.
    #[serde(flatten)]
    pub state: State,
}

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Who is moved, through one stream; 1 to [`TENANTS_MAX`].
    pub tenants: Vec<Moving>,
    /// So many of them, in order, have one publication, which is switched for all of
    /// them: they are cut over together. Of 0, as once, each has one.
    #[serde(default)]
    pub bundle: usize,
    /// From this shard.
    pub from: String,
    /// To this one.
    pub to: String,
    /// A cut-over holds a tenant's requests for so long at most, ms.
    pub budget_ms: u64,
    /// The way back is kept for so long, seconds.
    pub keep_s: u64,
}

/// A tenant that is moved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moving {
    /// Its id.
    pub id: Uuid,
    /// Its slug.
    pub slug: String,
    /// Its epoch where it is now.
    pub epoch: i64,
    /// It is on the target.
    pub crossed: bool,
    /// How long its requests were held by each cut-over that was completed, ms.
    #[serde(default)]
    pub pauses_ms: Vec<f64>,
}

/// What a comparison of all rows came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Rows that were compared.
    pub rows: u64,
    /// How they differ; none: they don't.
    pub differ: Option<String>,
}

/// The states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// It is checked whether it can be done.
    Planned,
    /// Publications, slots and subscriptions are made.
    Preparing,
    /// Rows are copied, table by table.
    Copying {
        /// Rows there.
        rows: u64,
        /// Of so many, as the planner sees it.
        expected: u64,
        /// Why it waits.
        #[serde(default)]
        why: Option<String>,
    },
    /// Every row is compared.
    Verifying {
        /// Which side sends.
        way: Way,
        /// Number of the tenant.
        tenant: usize,
        /// Number of the table.
        table: usize,
        /// Behind this key, as text.
        after: Option<Vec<String>>,
        /// Rows compared.
        rows: u64,
    },
    /// Changes are sent as they are made, until they arrive quickly.
    CatchingUp {
        /// Cut-overs that were undone.
        tries: u32,
        /// Why the last one was, or why none is begun.
        why: Option<String>,
    },
    /// Tenants change shards, some at once.
    CuttingOver {
        /// Which way.
        way: Way,
        /// Cut-overs that were undone.
        tries: u32,
        /// Why the last one was, or why none is begun, on the way back.
        #[serde(default)]
        why: Option<String>,
    },
    /// The source is kept equal: the way back is open.
    Retained {
        /// Until then, seconds since 1970.
        until: u64,
    },
    /// It is given up before any tenant is on the target.
    Undoing {
        /// Why.
        why: Ended,
    },
    /// Streams are ended, and rows deleted where nobody serves them.
    CleaningUp {
        /// How it ends.
        why: Ended,
        /// Rows deleted.
        rows: u64,
    },
    /// It is over.
    Over {
        /// How it ended.
        why: Ended,
    },
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// To the target.
    Forward,
    /// Back to the source.
    Back,
}

/// How a move ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how", content = "why")]
pub enum Ended {
    /// The tenants are on the target.
    Done,
    /// They were brought back.
    RolledBack,
    /// It was cancelled before they were on the target.
    Cancelled,
    /// It could not be done.
    Failed(String),
}

/// What someone may want of a move that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// No cut-over for now.
    Pause,
    /// All rows compared once more, while the move is retained.
    Verify,
    /// Back to the source, while the move is retained.
    RollBack,
    /// The way back is not needed any longer.
    Complete,
}

impl State {
    fn cutting_over(way: Way) -> Self {
        Self::CuttingOver {
            way,
            tries: 0,
            why: None,
        }
    }

    fn verifying(way: Way) -> Self {
        Self::Verifying {
            way,
            tenant: 0,
            table: 0,
            after: None,
            rows: 0,
        }
    }
}

impl Way {
    fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Back,
            Self::Back => Self::Forward,
        }
    }
}

impl Wish {
    /// The word in the control database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Verify => "verify",
            Self::RollBack => "rollback",
            Self::Complete => "complete",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Pause, Self::Verify, Self::RollBack, Self::Complete]
            .into_iter()
            .find(|wish| wish.name() == name)
    }
}

impl Plan {
    /// Tenants, each on `from` now.
    pub fn new(tenants: &[TenantInfo], from: &str, to: &str, budget_ms: u64, keep_s: u64) -> Self {
        let moving = |tenant: &TenantInfo| Moving {
            id: tenant.id,
            slug: tenant.slug.clone(),
            epoch: tenant.epoch,
            crossed: false,
            pauses_ms: Vec::new(),
        };
        Self {
            tenants: tenants.iter().map(moving).collect(),
            bundle: tenants.len().div_ceil(PUBLICATIONS).min(BUNDLE_MAX),
            from: from.into(),
            to: to.into(),
            budget_ms,
            keep_s,
        }
    }

    /// Tenants of one publication.
    fn bundle(&self) -> usize {
        self.bundle.max(1)
    }

    /// As many tenants, about, as whole bundles.
    fn together(&self, tenants: usize) -> usize {
        self.bundle() * (tenants / self.bundle()).max(1)
    }

    fn ids(&self) -> Vec<Uuid> {
        self.tenants.iter().map(|tenant| tenant.id).collect()
    }

    /// The shards that a cut-over goes from and to.
    fn ends(&self, way: Way) -> (&str, &str) {
        match way {
            Way::Forward => (&self.from, &self.to),
            Way::Back => (&self.to, &self.from),
        }
    }
}

impl Move {
    /// The first state.
    pub fn of(plan: Plan) -> Self {
        Self {
            plan,
            checked: None,
            retained_until: 0,
            way_back_gone: None,
            servers: None,
            state: State::Planned,
        }
    }

    fn to(&self, state: State) -> Self {
        Self {
            state,
            ..self.clone()
        }
    }

    fn next(&self, state: State) -> Step<Self> {
        Step::Next(self.to(state))
    }

    /// The publications of its tenants' rows, that way.
    fn publications(&self, id: Uuid, way: Way) -> Vec<String> {
        let bundles = self.plan.tenants.chunks(self.plan.bundle());
        let numbers = 0..bundles.len();
        numbers
            .map(|number| names::bundle(id, number, self.plan.bundle(), way))
            .collect()
    }

    /// The one of them that has this tenant's.
    fn publication(&self, id: Uuid, index: usize, way: Way) -> String {
        let size = self.plan.bundle();
        names::bundle(id, index / size, size, way)
    }

    /// What can't be given up does not end by an error either: tenants would stay
    /// held, or streams open. Someone has to look.
    fn never_half_way(&self, error: JobError) -> JobError {
        let would_end = error.verdict() == Verdict::End && self.abandoned(&error).is_none();
        match would_end {
            true => JobError::Unclear(tenancy::chain(&error)),
            false => error,
        }
    }

    /// Where a move that is given up goes on: who has crossed is brought back
    /// first. One that was only planned has left nothing behind.
    fn given_up(&self, why: Ended) -> State {
        if self.state == State::Planned {
            return State::Over { why };
        }
        match self.plan.tenants.iter().any(|tenant| tenant.crossed) {
            true => State::cutting_over(Way::Back),
            false => State::Undoing { why },
        }
    }

    /// The way that rows were compared, or are, or will be: what is written since must
    /// be known until the tenants have gone it.
    fn compares(&self) -> Option<Way> {
        match self.state {
            State::Verifying { way, .. } | State::CuttingOver { way, .. } => Some(way),
            State::CatchingUp { .. } => Some(Way::Forward),
            State::Retained { .. } => Some(Way::Back),
            State::Planned
            | State::Preparing
            | State::Copying { .. }
            | State::Undoing { .. }
            | State::CleaningUp { .. }
            | State::Over { .. } => None,
        }
    }

    async fn advance(&self, context: &Context) -> Result<Step<Self>, JobError> {
        let watches = &context.app().watches;
        watches.keep(context.job().id, self.compares());
        match &self.state {
            State::Planned => prepare::check(context, self).await,
            State::Preparing => prepare::prepare(context, self).await,
            State::Copying { expected, .. } => copy::copy(context, self, *expected).await,
            State::Verifying {
                way,
                tenant,
                table,
                after,
                rows,
            } => {
                let position = (*tenant, *table, after.clone(), *rows);
                verify::verify(context, self, *way, position).await
            }
            State::CatchingUp { tries, .. } => copy::catch_up(context, self, *tries).await,
            State::CuttingOver { way, tries, .. } => {
                cut_over::cut_over(context, self, *way, *tries).await
            }
            State::Retained { until } => self.retain(context, *until).await,
            State::Undoing { why } => cut_over::undo(context, self, why).await,
            State::CleaningUp { why, rows } => clean_up::clean_up(context, self, why, *rows).await,
            State::Over { why } => Ok(self.over(why)),
        }
    }

    async fn retain(&self, context: &Context, until: u64) -> Result<Step<Self>, JobError> {
        failpoint(context, "retained")?;
        let wish = wish(context).await?;
        let left = until.saturating_sub(now_s());
        let goes_back = matches!(wish, Some(Wish::RollBack | Wish::Verify));
        if wish == Some(Wish::Complete) || (left == 0 && !goes_back) {
            return Ok(self.next(State::CleaningUp {
                why: Ended::Done,
                rows: 0,
            }));
        }
        let (from, to) = self.plan.ends(Way::Back);
        let sends = Side::open(context, from).await?;
        let receives = Side::open(context, to).await?;
        let mut next = self.clone();
        next.way_back_gone = way_back::gone(context, self, &sends, &receives).await?;
        if let Some(why) = &next.way_back_gone {
            if self.way_back_gone.is_none() {
                tracing::error!(why, "the way back is gone");
            }
            if let Some(wish) = wish.filter(|_| goes_back) {
                let control = context.control();
                store::clear_wish(control, context.job().id, wish.name()).await?;
            }
        }
        match wish {
            _ if next.way_back_gone.is_some() => {}
            Some(Wish::RollBack) => {
                // What was there before a failover may not be there now.
                let servers = Servers::of(Way::Back, &sends, &receives).await?;
                next.state = match self.servers == Some(servers) {
                    true => State::cutting_over(Way::Back),
                    false => State::verifying(Way::Back),
                };
                return Ok(Step::Next(next));
            }
            Some(Wish::Verify) => {
                let control = context.control();
                store::clear_wish(control, context.job().id, Wish::Verify.name()).await?;
                next.state = State::verifying(Way::Back);
                return Ok(Step::Next(next));
            }
            None | Some(Wish::Pause | Wish::Complete) => {}
        }
        // Though its time be over: it is looked at again at once.
        let look = RETAINED_LOOK.min(Duration::from_secs(left));
        Ok(Step::Later(next, look))
    }

    fn over(&self, why: &Ended) -> Step<Self> {
        let end = match why {
            Ended::Done => End::Done,
            Ended::RolledBack | Ended::Cancelled => End::Cancelled,
            Ended::Failed(why) => End::Failed(Problem {
                code: "RF507".into(),
                message: why.clone(),
                advice: "The tenants are served by their source as before.".into(),
            }),
        };
        let tenants: Vec<Value> = self
            .plan
            .tenants
            .iter()
            .map(|tenant| {
                let shard = if tenant.crossed { &self.plan.to } else { &self.plan.from };
                json!({ "tenant": tenant.slug, "shard": shard, "epoch": tenant.epoch, "pauses_ms": tenant.pauses_ms })
            })
            .collect();
        let shard = match why {
            Ended::Done => &self.plan.to,
            Ended::RolledBack | Ended::Cancelled | Ended::Failed(_) => &self.plan.from,
        };
        let result = json!({ "shard": shard, "tenants": tenants });
        Step::End(self.clone(), end, result)
    }
}

impl Machine for Move {
    fn phase(&self) -> (&'static str, Progress) {
        let none = Progress::default();
        let rows = |done, total| Progress {
            done,
            total,
            unit: Unit::Rows,
        };
        match &self.state {
            State::Planned => ("planned", none),
            State::Preparing => ("preparing", none),
            State::Copying {
                rows: done,
                expected,
                ..
            } => ("copying", rows(*done, (*expected).max(*done))),
            State::Verifying {
                way, rows: done, ..
            } => {
                let name = match way {
                    Way::Forward => "verifying",
                    Way::Back => "verifying_back",
                };
                (name, rows(*done, 0))
            }
            State::CatchingUp { .. } => ("catching_up", none),
            State::CuttingOver {
                way: Way::Forward, ..
            } => ("cutting_over", none),
            State::CuttingOver { way: Way::Back, .. } => ("rolling_back", none),
            State::Retained { .. } => ("retained", none),
            State::Undoing { .. } => ("undoing", none),
            State::CleaningUp { rows: done, .. } => ("cleaning_up", rows(*done, 0)),
            State::Over { why } => match why {
                Ended::Done => ("done", none),
                Ended::RolledBack => ("rolled_back", none),
                Ended::Cancelled | Ended::Failed(_) => ("undone", none),
            },
        }
    }

    async fn step(&self, context: &Context) -> Result<Step<Self>, JobError> {
        let step = timeout(STEP_MAX, self.advance(context)).await;
        let step = step.unwrap_or(Err(JobError::Shard(ShardError::Slow)));
        let Err(error) = step else { return step };
        // One of them may be in the middle of a statement.
        context.drop_sessions().await;
        Err(self.never_half_way(error))
    }

    /// Requests may be held.
    fn is_urgent(&self) -> bool {
        matches!(
            self.state,
            State::CuttingOver { .. } | State::Undoing { .. }
        )
    }

    fn cancelled(&self) -> Option<Self> {
        match &self.state {
            State::Planned
            | State::Preparing
            | State::Copying { .. }
            | State::Verifying {
                way: Way::Forward, ..
            }
            | State::CatchingUp { .. } => Some(self.to(self.given_up(Ended::Cancelled))),
            State::Verifying { way: Way::Back, .. }
            | State::CuttingOver { .. }
            | State::Retained { .. }
            | State::Undoing { .. }
            | State::CleaningUp { .. }
            | State::Over { .. } => None,
        }
    }

    fn abandoned(&self, error: &JobError) -> Option<Self> {
        let why = Ended::Failed(tenancy::chain(error));
        match &self.state {
            State::Planned
            | State::Preparing
            | State::Copying { .. }
            | State::Verifying {
                way: Way::Forward, ..
            }
            | State::CatchingUp { .. } => Some(self.to(self.given_up(why))),
            State::Verifying { way: Way::Back, .. } => Some(Self {
                servers: None,
                ..self.to(State::Retained {
                    until: self.retained_until,
                })
            }),
            State::CuttingOver { .. }
            | State::Retained { .. }
            | State::Undoing { .. }
            | State::CleaningUp { .. }
            | State::Over { .. } => None,
        }
    }
}

/// What someone wants of this move.
async fn wish(context: &Context) -> Result<Option<Wish>, JobError> {
    let wish = store::wish(context.control(), context.job().id).await?;
    Ok(wish.as_deref().and_then(Wish::parse))
}

/// When a cut-over that was undone so often is tried again.
fn again(tries: u32) -> Duration {
    AGAIN_MAX.min(AGAIN_FIRST * 2_u32.pow(tries.min(10)))
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn failpoint(context: &Context, name: &str) -> Result<(), JobError> {
    context.app().failpoints.pass(name)
}

#[cfg(test)]
mod tests {
    use tenancy::control::ControlError;

    use super::*;

    #[test]
    fn bundles_are_whole_and_few() {
        let plan = |count: usize| {
            let tenant = |n: usize| TenantInfo {
                id: Uuid::from_u128(n as u128),
                slug: n.to_string(),
                name: String::new(),
                region: String::new(),
                shard: "s1".into(),
                ring_shard: "s1".into(),
                epoch: 1,
                state: "active".into(),
                created_at: String::new(),
            };
            let tenants: Vec<TenantInfo> = (0..count).map(tenant).collect();
            Plan::new(&tenants, "s1", "s2", BUDGET_MS, 0)
        };
        for (count, bundle, publications) in [
            (1, 1, 1),
            (20, 1, 20),
            (21, 2, 11),
            (500, 25, 20),
            (1_000, 25, 40),
        ] {
            let job = Move::of(plan(count));
            assert_eq!(job.plan.bundle(), bundle);
            let names = job.publications(Uuid::nil(), Way::Back);
            assert_eq!(names.len(), publications);
            let last = job.publication(Uuid::nil(), count - 1, Way::Back);
            assert_eq!(names.last(), Some(&last));
        }
        assert_eq!(plan(30).together(1), 2);
        assert_eq!(plan(30).together(51), 50);
        // Even of the largest a group that takes too long is made smaller.
        assert_eq!(
            (plan(1_000).together(1), plan(1_000).together(50)),
            (25, 50)
        );
        // One of a version that knew no bundles.
        let old = Plan {
            bundle: 0,
            ..plan(30)
        };
        assert_eq!((old.together(1), old.together(50)), (1, 50));
    }

    #[test]
    fn an_error_ends_a_move_only_where_it_can_be_given_up() {
        let moves = |state| Move {
            state,
            ..Move::of(Plan::new(&[], "s1", "s2", BUDGET_MS, 0))
        };
        let conflict = || JobError::Control(ControlError::Conflict("elsewhere".into()));
        let verdict = |state| moves(state).never_half_way(conflict()).verdict();
        let cutting_over = || State::cutting_over(Way::Forward);
        assert_eq!(verdict(State::Preparing), Verdict::End);
        assert_eq!(verdict(cutting_over()), Verdict::Person);
        assert_eq!(verdict(State::Retained { until: 0 }), Verdict::Person);
        let why = Ended::Cancelled;
        assert_eq!(verdict(State::Undoing { why }), Verdict::Person);
        let slow = moves(cutting_over()).never_half_way(ShardError::Slow.into());
        assert_eq!(slow.verdict(), Verdict::Retry);
    }
}
