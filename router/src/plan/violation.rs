//! DETAIL of a violated key.
//!
//! Postgres leaves the values out where row security is on, because they could
//! be of a row that the role may not see. What the request itself wrote is no
//! secret to it, so where that tells the values they are put in again.

use schema::catalog::{Column, Relation, RelationKind};
use schema::ident::Ident;
use serde_json::{Map, Value};

use super::write::{Change, Rows, WrittenColumn};
use super::{Action, ColumnRef, Condition, Model, Plan};
use crate::request::filter::{Operator, Test};

/// How Postgres words it of a row that others refer to.
const REFERENCED: &str = "Key is still referenced from table ";
/// Bodies above this are many rows, which tell nothing, or one whose reading would
/// cost more than its values are worth.
const ROW_BYTES_MAX: usize = 64 << 10;
/// Bytes of a value in a failing row's DETAIL.
const SHOWN_BYTES_MAX: usize = 64;

/// The detail as Postgres words it without row security; none where the one
/// row that the request wrote does not tell it.
pub fn detail(
    model: &Model,
    plan: &Plan,
    sqlstate: &str,
    constraint: &str,
    detail: Option<&str>,
) -> Option<String> {
    let Action::Write(write) = &plan.action else {
        return None;
    };
    let catalog = model.catalog();
    if let ("23503", Some(kept)) = (sqlstate, detail.and_then(|d| d.strip_prefix(REFERENCED))) {
        let mut keys = catalog.foreign_keys.iter();
        let key = keys
            .find(|key| key.foreign_table == write.relation && key.name.as_str() == constraint)?;
        let values = key.foreign_columns.iter();
        let values: Option<Vec<String>> = values
            .map(|column| equal_to(&write.conditions.conditions, column))
            .collect();
        let key = shown(&key.foreign_columns, &values?, bare);
        return Some(format!("{key} is still referenced from table {kept}"));
    }
    let (Change::Insert { rows, .. } | Change::Update { rows, .. }) = &write.change else {
        return None;
    };
    match sqlstate {
        "23505" if detail.is_none() => {
            let relation = catalog.relations.get(&write.relation)?;
            let key = unique(relation, constraint)?;
            let pairs = pairs(rows, key, in_an_index)?;
            Some(format!("{pairs} already exists."))
        }
        // Without a constraint it is a partition that is missing.
        "23514" if constraint.is_empty() => None,
        "23502" | "23514" if detail.is_none() => {
            let Change::Insert { columns, rows, .. } = &write.change else {
                return None;
            };
            failing_row(catalog.relations.get(&write.relation)?, columns, rows)
        }
        "23503" => {
            let missing = detail?.strip_prefix("Key is not present in table ")?;
            let mut keys = catalog.foreign_keys.iter();
            let key =
                keys.find(|key| key.table == write.relation && key.name.as_str() == constraint)?;
            let pairs = pairs(rows, &key.columns, bare)?;
            Some(format!("{pairs} is not present in table {missing}"))
        }
        _ => None,
    }
}

fn unique<'a>(relation: &'a Relation, constraint: &str) -> Option<&'a [Ident]> {
    let mut keys = relation.unique_keys.iter();
    let key = keys.find(|key| key.name.as_str() == constraint)?;
    Some(&key.columns)
}

/// `Key (a, b)=(1, x)`.
fn pairs(rows: &Rows, columns: &[Ident], name: fn(&Ident) -> String) -> Option<String> {
    let row = only_row(rows)?;
    let values = columns.iter().map(|column| text(row.get(column.as_str())?));
    let values: Vec<String> = values.collect::<Option<_>>()?;
    Some(shown(columns, &values, name))
}

fn shown(columns: &[Ident], values: &[String], name: fn(&Ident) -> String) -> String {
    let names: Vec<String> = columns.iter().map(name).collect();
    format!("Key ({})=({})", names.join(", "), values.join(", "))
}

/// A column's name as Postgres words it of a foreign key.
fn bare(column: &Ident) -> String {
    column.as_str().to_owned()
}

/// And of an index, whose definition it shows: quoted where it must be. That it
/// quotes its keywords, too, is left out.
fn in_an_index(column: &Ident) -> String {
    let name = column.as_str();
    let plain = |byte: u8| byte == b'_' || byte.is_ascii_lowercase();
    let mut bytes = name.bytes();
    let unquoted =
        bytes.next().is_some_and(plain) && bytes.all(|byte| plain(byte) || byte.is_ascii_digit());
    match unquoted {
        true => name.to_owned(),
        false => column.to_string(),
    }
}

/// The value that all rows of these conditions have there, where Postgres prints
/// it as it was written.
fn equal_to(conditions: &[Condition], column: &Ident) -> Option<String> {
    conditions.iter().find_map(|condition| {
        let Condition::Test { field, operation } = condition else {
            return None;
        };
        let Test::Compare {
            operator: Operator::Eq,
            quantifier: None,
            value,
        } = &operation.test
        else {
            return None;
        };
        let own = field.column == ColumnRef::Column(column.clone()) && field.path.is_empty();
        let number = || value.parse::<i64>().ok().map(|number| number.to_string());
        match &*field.base_type {
            _ if !own || operation.negated => None,
            "smallint" | "integer" | "bigint" => number(),
            "text" | "character varying" => Some(value.clone()),
            _ => None,
        }
    })
}

/// `Failing row contains (1, x, null).`, where all values of the one new row are
/// known: each was written, or has no default.
fn failing_row(relation: &Relation, columns: &[WrittenColumn], rows: &Rows) -> Option<String> {
    // Of a view its table's row fails.
    let row = only_row(rows).filter(|_| relation.kind == RelationKind::Table)?;
    let value = |column: &Column| {
        let own = columns.iter().find(|written| written.name == column.name);
        match own.map(|own| (row.get(column.name.as_str()), &own.default)) {
            Some(_) if column.representation.is_some() => None,
            Some((Some(value), _)) => as_type(value, &column.base_type),
            Some((None, None)) => Some("null".to_owned()),
            None if column.default.is_none() && !column.generated => Some("null".to_owned()),
            Some((None, Some(_))) | None => None,
        }
    };
    let values: Vec<String> = relation.columns.iter().map(value).collect::<Option<_>>()?;
    Some(format!("Failing row contains ({}).", values.join(", ")))
}

/// A value as Postgres prints it in a DETAIL, where it has the column's own form.
fn as_type(value: &Value, base_type: &str) -> Option<String> {
    match (value, base_type) {
        (Value::Null, _) => Some("null".to_owned()),
        (Value::String(text), "text" | "character varying") => Some(clipped(text)),
        (Value::Number(_), "smallint" | "integer" | "bigint") | (Value::Bool(_), "boolean") => {
            text(value)
        }
        _ => None,
    }
}

/// Postgres shows the first bytes of a longer value.
fn clipped(text: &str) -> String {
    if text.len() <= SHOWN_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(SHOWN_BYTES_MAX);
    format!("{}...", &text[..end])
}

fn only_row(rows: &Rows) -> Option<Map<String, Value>> {
    if rows.text.len() > ROW_BYTES_MAX {
        return None;
    }
    match serde_json::from_slice(&rows.text).ok()? {
        Value::Object(row) => Some(row),
        Value::Array(mut items) if items.len() == 1 => match items.pop()? {
            Value::Object(row) => Some(row),
            _ => None,
        },
        _ => None,
    }
}

/// A value as Postgres prints it, where that is sure.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        Value::Bool(yes) => Some(if *yes { "t" } else { "f" }.to_owned()),
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
