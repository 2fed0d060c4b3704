//! INSERT, UPDATE, DELETE: a CTE `w` that changes rows, and what is read of it.

use schema::ident::Ident;

use super::body;
use super::condition;
use super::fragment::{Alias, Fragment};
use super::level::{self, Origin, Scope, Terms, WHOLE_ROW};
use crate::plan::{
    Change, ColumnRef, Conflict, Node, Plan, Precondition, Returning, Rows, Write, WrittenColumn,
};

/// Pairs that one call of `jsonb_build_object` takes.
const PAIRS_MAX: usize = 50;

/// The statement of a write.
pub(super) fn write(sql: &mut Fragment, plan: &Plan, write: &Write) {
    sql.push("with w as (");
    match &write.change {
        Change::Insert {
            columns,
            rows,
            conflict,
            key,
        } => insert(sql, write, columns, rows, conflict.as_ref(), key.as_deref()),
        Change::Update { columns, .. } if columns.is_empty() => nothing(sql, write),
        Change::Update { columns, rows } => update(sql, write, columns, rows),
        Change::Delete => delete(sql, write),
    }
    sql.push(") ");
    sql.answer();
    let put = matches!(&write.change, Change::Insert { key: Some(_), .. });
    if put {
        sql.push("ringfence.require_key(pg_catalog.count(*))");
    } else {
        affected(sql, matched(write), plan.singular(), write.max_affected);
    }
    sql.push(" as page");
    if merges(&write.change) {
        sql.push(
            ", (select pg_catalog.count(*) from w) - coalesce(nullif(\
             pg_catalog.current_setting('ringfence.updated', true), '')::bigint, 0) as inserted",
        );
    } else if merges_nothing(&write.change) {
        sql.push(", (select pg_catalog.count(*) from w) as inserted");
    }
    match &write.returning {
        Returning::Count => {}
        Returning::Location(key) => location(sql, key),
        Returning::Rows { node, .. } => body::rows(sql, plan, node),
    }
    body::settings(sql);
    match &write.returning {
        Returning::Rows { node, .. } => {
            sql.push(" from (");
            level::top(sql, plan, node, &Origin::Cte);
            sql.push(") r");
        }
        Returning::Count | Returning::Location(_) => sql.push(" from w r"),
    }
    sql.end_answer();
}

/// How many rows were affected; refused where they are not as many as they may be.
pub(super) fn affected(sql: &mut Fragment, matched: bool, singular: bool, max: Option<i64>) {
    if singular {
        sql.push("ringfence.require_one(");
    }
    if max.is_some() {
        sql.push("ringfence.require_at_most(");
    }
    // Innermost, so looked at first.
    sql.push(match matched {
        true => "ringfence.require_match(pg_catalog.count(*))",
        false => "pg_catalog.count(*)",
    });
    if let Some(max) = max {
        sql.push(", ");
        sql.param(max.to_string());
        sql.push(")");
    }
    if singular {
        sql.push(")");
    }
}

/// Whether If-Match is to be judged; an update of no columns touches no row.
fn matched(write: &Write) -> bool {
    let idle = matches!(&write.change, Change::Update { columns, .. } if columns.is_empty());
    write.precondition.is_some() && !idle
}

fn merges(change: &Change) -> bool {
    match change {
        Change::Insert {
            conflict: Some(conflict),
            columns,
            ..
        } => conflict.update && !columns.is_empty(),
        Change::Insert { .. } | Change::Update { .. } | Change::Delete => false,
    }
}

/// Rows of which nothing is set, such as none: what is there stays as it is.
fn merges_nothing(change: &Change) -> bool {
    matches!(
        change,
        Change::Insert { conflict: Some(conflict), columns, .. }
            if conflict.update && columns.is_empty()
    )
}

fn insert(
    sql: &mut Fragment,
    write: &Write,
    columns: &[WrittenColumn],
    rows: &Rows,
    conflict: Option<&Conflict>,
    key: Option<&[(WrittenColumn, String)]>,
) {
    sql.push("insert into ");
    sql.name(&write.relation);
    sql.push(" as t");
    match (columns, rows.array) {
        ([], false) => sql.push(" default values"),
        // As many rows of defaults as there are objects.
        ([], true) => {
            sql.push(" select from pg_catalog.json_array_elements(");
            sql.param(rows.text.clone());
            sql.push("::json)");
        }
        (columns, _) => {
            sql.push(" (");
            sql.list(", ", columns, |sql, column| sql.ident(&column.name));
            sql.push(") select ");
            sql.list(", ", columns, value);
            sql.push(" from ");
            record(sql, columns, rows, false);
        }
    }
    if let Some(key) = key {
        let mut terms = Terms::new(sql);
        for (column, expected) in key {
            terms.next();
            value(terms.sql, column);
            terms.sql.push(" = ");
            terms.sql.param(expected.clone());
        }
    }
    if let Some(conflict) = conflict {
        on_conflict(sql, conflict, columns);
    }
    returning(sql, write);
}

fn on_conflict(sql: &mut Fragment, conflict: &Conflict, columns: &[WrittenColumn]) {
    sql.push(" on conflict (");
    sql.list(", ", &conflict.target, |sql, name| sql.ident(name));
    if !conflict.update || columns.is_empty() {
        sql.push(") do nothing");
        return;
    }
    sql.push(") do update set ");
    sql.list(", ", columns, |sql, column| {
        sql.ident(&column.name);
        sql.push(" = excluded.");
        sql.ident(&column.name);
    });
    // Always true; it counts the rows that were there already.
    sql.push(
        " where pg_catalog.set_config('ringfence.updated', (coalesce(nullif(\
         pg_catalog.current_setting('ringfence.updated', true), '')::bigint, 0) + 1)::text, true) \
         is not null",
    );
}

fn update(sql: &mut Fragment, write: &Write, columns: &[WrittenColumn], rows: &Rows) {
    sql.push("update ");
    sql.name(&write.relation);
    sql.push(" as t set ");
    sql.list(", ", columns, |sql, column| {
        sql.ident(&column.name);
        sql.push(" = ");
        value(sql, column);
    });
    sql.push(" from ");
    record(sql, columns, rows, true);
    conditions(sql, write);
    returning(sql, write);
}

fn delete(sql: &mut Fragment, write: &Write) {
    sql.push("delete from ");
    sql.name(&write.relation);
    sql.push(" as t");
    conditions(sql, write);
    returning(sql, write);
}

/// What an update of no columns returns: no rows, of the right shape.
fn nothing(sql: &mut Fragment, write: &Write) {
    sql.push("select ");
    returned(sql, write);
    sql.push(" from ");
    sql.name(&write.relation);
    sql.push(" t where false");
}

fn conditions(sql: &mut Fragment, write: &Write) {
    let scope = Scope {
        rows: Alias::ROOT,
        in_cte: false,
    };
    let mut terms = Terms::new(sql);
    terms.tenant(scope.rows, write.tenant.as_ref());
    for one in &write.conditions.conditions {
        terms.next();
        condition::condition(terms.sql, scope, &write.conditions.embeds, one);
    }
    if let Some(Precondition::State { node, states }) = &write.precondition {
        terms.next();
        in_state(terms.sql, scope, node, states);
    }
}

/// A condition on the row itself, so that a row that was locked is judged by
/// its newest version.
fn in_state(sql: &mut Fragment, scope: Scope, node: &Node, states: &[String]) {
    sql.push("ringfence.row_state((select (");
    body::one(sql, node);
    sql.push(")::text from (select ");
    level::own_outputs(sql, node, scope);
    sql.push(") r)) = any (");
    sql.param(format!("{{{}}}", states.join(",")));
    sql.push("::text[])");
}

fn returning(sql: &mut Fragment, write: &Write) {
    sql.push(" returning ");
    returned(sql, write);
}

/// No more than is read, so that no more privileges are needed.
fn returned(sql: &mut Fragment, write: &Write) {
    let column = |sql: &mut Fragment, name: &Ident| sql.column(Alias::ROOT, name);
    match &write.returning {
        Returning::Count => sql.push("1"),
        Returning::Location(key) => sql.list(", ", key, column),
        Returning::Rows {
            columns, whole_row, ..
        } => {
            let names = columns.iter().filter_map(|column| match column {
                ColumnRef::Column(name) => Some(name),
                ColumnRef::Computed(_) => None,
            });
            let names: Vec<&Ident> = names.collect();
            if names.is_empty() && !whole_row {
                sql.push("1");
            }
            sql.list(", ", &names, |sql, name| column(sql, name));
            if *whole_row {
                sql.push(if names.is_empty() { "t as " } else { ", t as " });
                sql.ident(&Ident::new(WHOLE_ROW));
            }
        }
    }
}

fn location(sql: &mut Fragment, key: &[Ident]) {
    sql.push(
        ", case when pg_catalog.count(*) = 1 then \
         (pg_catalog.json_agg(pg_catalog.json_build_array(",
    );
    sql.list(", ", key, |sql, name| {
        sql.push("r.");
        sql.ident(name);
        sql.push("::text");
    });
    sql.push("))->0)::text end as location");
}

/// A value of the written row `b`.
fn value(sql: &mut Fragment, column: &WrittenColumn) {
    if let Some(from_json) = &column.from_json {
        sql.name(from_json);
        sql.push("(");
    }
    sql.push("b.");
    sql.ident(&column.name);
    if column.from_json.is_some() {
        sql.push(")");
    }
}

/// The written rows as `b`, or the first of them.
fn record(sql: &mut Fragment, columns: &[WrittenColumn], rows: &Rows, first: bool) {
    let defaults: Vec<(&Ident, &str)> = columns
        .iter()
        .filter_map(|column| Some((&column.name, column.default.as_deref()?)))
        .collect();
    if rows.array && first {
        sql.push("(select * from ");
    }
    match (defaults.as_slice(), rows.array) {
        ([], array) => {
            sql.push(match (rows.binary, array) {
                (false, true) => "pg_catalog.json_to_recordset(",
                (false, false) => "pg_catalog.json_to_record(",
                (true, true) => "pg_catalog.jsonb_to_recordset(",
                (true, false) => "pg_catalog.jsonb_to_record(",
            });
            sql.param(rows.text.clone());
            sql.push(if rows.binary { "::jsonb)" } else { "::json)" });
        }
        // Lateral, so that each row gets values of its own.
        (defaults, true) => {
            sql.push("pg_catalog.jsonb_array_elements(");
            sql.param(rows.text.clone());
            sql.push("::jsonb) e(v), lateral pg_catalog.jsonb_to_record(");
            with_defaults(sql, defaults);
            sql.push("e.v)");
        }
        (defaults, false) => {
            sql.push("pg_catalog.jsonb_to_record(");
            with_defaults(sql, defaults);
            sql.param(rows.text.clone());
            sql.push("::jsonb)");
        }
    }
    sql.push(" as b(");
    sql.list(", ", columns, |sql, column| {
        sql.ident(&column.name);
        sql.push(" ");
        match column.from_json {
            Some(_) => sql.push("json"),
            None => sql.type_name(&column.type_name),
        }
    });
    sql.push(")");
    if rows.array && first {
        sql.push(" limit 1) b");
    }
}

fn with_defaults(sql: &mut Fragment, defaults: &[(&Ident, &str)]) {
    for chunk in defaults.chunks(PAIRS_MAX) {
        sql.push("pg_catalog.jsonb_build_object(");
        sql.list(", ", chunk, |sql, (name, default)| {
            sql.literal(name.as_str());
            sql.push(", (");
            sql.expression(default);
            sql.push(")");
        });
        sql.push(") || ");
    }
}
