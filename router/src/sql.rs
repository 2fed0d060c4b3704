//! Stage 7: a [`Plan`] to a [`Statement`]. Pure.
//!
//! The text is a function of the plan's shape alone: identifiers of the
//! catalog, never request text. Whatever came from the request is a parameter.
//!
//! # Contract with `execute`
//! `$1` to `$4` belong to the guard, `$1` being the tenant; the statement's own
//! parameters start at `$5`, sent as text with types that Postgres infers.
//! A text of [`Form::Read`] refers to the guard's row as `g`, which
//! `execute::read` puts beside it; the other forms stand on their own.
//!
//! Every statement answers one row. Its columns, those that don't apply left out:
//!
//! | column | type | meaning |
//! |---|---|---|
//! | `total` | bigint | rows that fit without the page; where they were counted |
//! | `page` | bigint | rows of the answer, or rows affected |
//! | `body` | text | the body, ready to send |
//! | `headers`, `status` | text | what `response.headers` and `response.status` were set to |
//! | `inserted` | bigint | rows that an upsert really inserted |
//! | `location` | text | JSON array of the one new row's key, as texts |
//!
//! What must undo a write (not exactly one row, too many rows, another key than
//! PUT's) is raised inside the statement, by `ringfence.require_…`.

mod body;
mod call;
mod condition;
mod describe;
mod fragment;
mod level;
mod write;

use bytes::Bytes;

use crate::cache::made_of;
use crate::idempotency::Keep;
use crate::plan::{Action, Form, Plan, Returning};
use crate::request::accept::Explain;
use fragment::Fragment;

/// SQL with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The text.
    pub text: String,
    /// Values of `$5` and on; none is NULL.
    pub params: Vec<Option<Bytes>>,
    /// How it is to be run.
    pub form: Form,
    /// Functions of the schema may take part: they can change their session.
    pub calls: bool,
}

/// The statement of a plan; none where the answer needs no rows.
///
/// A write's answer is kept for an Idempotency-Key where there is one; what
/// writes nothing, or rolls back, keeps nothing. A write that would answer a larger
/// body than `body_bytes_max` is undone; reads are stopped by who reads their answers.
pub fn statement(
    plan: &Plan,
    keep: Option<&Keep>,
    body_bytes_max: Option<usize>,
) -> Option<Statement> {
    let mut sql = Fragment::new(plan.form == Form::Read);
    if let Some(bytes) = body_bytes_max.filter(|_| plan.form.writes() && answers_body(plan)) {
        sql = sql.bounded(bytes);
    }
    if let Some(keep) = keep.filter(|_| plan.form == Form::Write) {
        sql = sql.keeping(keep);
    }
    if let Some(explain) = &plan.explain {
        explained(&mut sql, explain);
    }
    match &plan.action {
        Action::Read(node) => read(&mut sql, plan, node),
        Action::Write(write) => write::write(&mut sql, plan, write),
        Action::Call(call) => call::call(&mut sql, plan, call),
        Action::Describe(described) if described.by_privileges => {
            describe::privileges(&mut sql, &described.schema);
        }
        // There is something to run before it.
        Action::Describe(_) if plan.form != Form::Read => sql.push("select 0::bigint as page"),
        Action::Options(_) | Action::Describe(_) => return None,
    }
    let (text, params) = sql.finish();
    Some(Statement {
        text,
        params,
        form: plan.form,
        calls: made_of::calls(plan),
    })
}

/// Whether the statement of what may write has a column `body`.
fn answers_body(plan: &Plan) -> bool {
    plan.body
        && match &plan.action {
            Action::Write(write) => matches!(write.returning, Returning::Rows { .. }),
            Action::Call(call) => call.node.is_some() || !call.void,
            Action::Read(_) | Action::Describe(_) | Action::Options(_) => false,
        }
}

/// Its answer is the plan, a row a line.
fn explained(sql: &mut Fragment, explain: &Explain) {
    sql.push(match explain.json {
        true => "explain (format json",
        false => "explain (format text",
    });
    for option in &explain.options {
        sql.push(", ");
        sql.push(option.word());
    }
    sql.push(") ");
}

fn read(sql: &mut Fragment, plan: &Plan, node: &crate::plan::Node) {
    sql.push("select ");
    if plan.count {
        total(sql, node);
    }
    sql.push("pg_catalog.count(*) as page");
    body::rows(sql, plan, node);
    if plan.opaque {
        body::settings(sql);
    }
    sql.push(" from (");
    level::top(sql, plan, node, &level::Origin::Own);
    sql.push(") r");
}

/// Without a page all rows are in the answer, and counting twice is needless.
fn total(sql: &mut Fragment, node: &crate::plan::Node) {
    if node.page.is_whole() {
        sql.push("pg_catalog.count(*) as total, ");
        return;
    }
    sql.push("(select pg_catalog.count(*)");
    level::matching(sql, node, &level::Origin::Own);
    sql.push(") as total, ");
}
