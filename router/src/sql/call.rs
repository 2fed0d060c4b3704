//! Calls of functions.

use schema::ident::Ident;

use super::body;
use super::fragment::Fragment;
use super::level::{self, Origin, Terms, WHOLE_ROW};
use crate::plan::{Arguments, Call, Node, Plan, Rows};

/// Rows of a set.
const ALL: &str = "pg_catalog.count(*)";
/// A function of one row gives one, even where a condition takes it away.
const ONE: &str = "greatest(pg_catalog.count(*), 1)";
/// The same where nothing else may read the value: Postgres does not call what
/// can't write and nobody reads.
const ONE_VALUE: &str = "greatest(pg_catalog.count(r.value), 1)";

/// The statement of a call.
pub(super) fn call(sql: &mut Fragment, plan: &Plan, call: &Call) {
    match &call.node {
        Some(node) if plan.count && call.set => counted(sql, plan, call, node),
        Some(node) => {
            sql.answer();
            if plan.count {
                sql.push(if call.set { ALL } else { ONE });
                sql.push(" as total, ");
            }
            page(sql, plan, call);
            if call.set {
                body::rows(sql, plan, node);
            } else {
                body::row(sql, plan, node);
            }
            body::settings(sql);
            sql.push(" from (");
            level::top(sql, plan, node, &Origin::Call(call));
            sql.push(") r");
            sql.end_answer();
        }
        None => values(sql, plan, call),
    }
}

/// Called once, its rows are kept, counted, and then paged.
fn counted(sql: &mut Fragment, plan: &Plan, call: &Call, node: &Node) {
    sql.push("with w as materialized (select t.*, t as ");
    sql.ident(&Ident::new(WHOLE_ROW));
    sql.push(" from ");
    level::function(sql, call);
    sql.push(" t");
    Terms::new(sql).guard();
    sql.push(") ");
    sql.answer();
    sql.push("(select pg_catalog.count(*)");
    level::matching(sql, node, &Origin::Cte);
    sql.push(") as total, ");
    page(sql, plan, call);
    body::rows(sql, plan, node);
    body::settings(sql);
    sql.push(" from (");
    level::top(sql, plan, node, &Origin::Cte);
    sql.push(") r");
    sql.end_answer();
}

/// A function that returns values, or nothing.
fn values(sql: &mut Fragment, plan: &Plan, call: &Call) {
    let counted = plan.count && !call.page.is_whole();
    if counted {
        sql.push("with w as materialized (");
        value(sql, call);
        sql.push(") ");
    }
    sql.answer();
    match (plan.count, counted) {
        (true, true) => sql.push("(select pg_catalog.count(*) from w) as total, "),
        (true, false) => sql.push("pg_catalog.count(*) as total, "),
        (false, _) => {}
    }
    page(sql, plan, call);
    if !call.void {
        body::values(sql, plan, call.set);
    }
    body::settings(sql);
    sql.push(" from (");
    if counted {
        sql.push("select value from w");
    } else {
        value(sql, call);
    }
    level::page(sql, &call.page);
    sql.push(") r");
    sql.end_answer();
}

/// The function's values as a select of the column `value`.
fn value(sql: &mut Fragment, call: &Call) {
    sql.push("select ");
    invocation(sql, call);
    sql.push(" as value");
    if let Arguments::Json { parameters, rows } = &call.arguments
        && !parameters.is_empty()
    {
        sql.push(" from ");
        record(sql, parameters, rows);
    }
    Terms::new(sql).guard();
}

/// How many rows came; refused where they are not as many as they may be.
fn page(sql: &mut Fragment, plan: &Plan, call: &Call) {
    if !call.set {
        sql.push(match call.node {
            Some(_) => ONE,
            None => ONE_VALUE,
        });
        sql.push(" as page");
        return;
    }
    let singular = plan.singular() && plan.form.writes();
    super::write::affected(sql, false, singular, call.max_affected);
    sql.push(" as page");
}

/// `name("a" := b."a")`.
pub(super) fn invocation(sql: &mut Fragment, call: &Call) {
    sql.name(&call.function);
    sql.push("(");
    match &call.arguments {
        Arguments::Json { parameters, .. } => {
            sql.list(", ", parameters, |sql, (name, _, variadic)| {
                assign(sql, name, *variadic);
                sql.push("b.");
                sql.ident(name);
            });
        }
        Arguments::Named(values) => sql.list(", ", values, |sql, value| {
            assign(sql, &value.name, value.variadic);
            sql.param(value.text.clone());
            sql.push("::");
            sql.type_name(&value.type_name);
        }),
        Arguments::Unnamed { type_name, value } => {
            sql.param(value.clone());
            sql.push("::");
            sql.type_name(type_name);
        }
    }
    sql.push(")");
}

fn assign(sql: &mut Fragment, name: &Ident, variadic: bool) {
    if variadic {
        sql.push("variadic ");
    }
    sql.ident(name);
    sql.push(" := ");
}

/// The arguments' record `b`, of the first object where there are several.
pub(super) fn record(sql: &mut Fragment, parameters: &[(Ident, Box<str>, bool)], rows: &Rows) {
    sql.push(match rows.array {
        true => "(select * from pg_catalog.json_to_recordset(",
        false => "pg_catalog.json_to_record(",
    });
    sql.param(rows.text.clone());
    sql.push("::json) as b(");
    sql.list(", ", parameters, |sql, (name, type_name, _)| {
        sql.ident(name);
        sql.push(" ");
        sql.type_name(type_name);
    });
    sql.push(if rows.array { ") limit 1) b" } else { ")" });
}
