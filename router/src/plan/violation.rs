//! DETAIL of a violated key.
//!
//! Postgres leaves the values out where row security is on, because they could
//! be of a row that the role may not see. What the request itself wrote is no
//! secret to it, so where that tells the values they are put in again.

use schema::catalog::Relation;
use schema::ident::Ident;
use serde_json::{Map, Value};

use super::write::{Change, Rows};
use super::{Action, Model, Plan};

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
    let (Change::Insert { rows, .. } | Change::Update { rows, .. }) = &write.change else {
        return None;
    };
    let catalog = model.catalog();
    match sqlstate {
        "23505" if detail.is_none() => {
            let relation = catalog.relations.get(&write.relation)?;
            let key = unique(relation, constraint)?;
            Some(format!("{} already exists.", pairs(rows, key)?))
        }
        "23503" => {
            let missing = detail?.strip_prefix("Key is not present in table ")?;
            let mut keys = catalog.foreign_keys.iter();
            let key =
                keys.find(|key| key.table == write.relation && key.name.as_str() == constraint)?;
            let pairs = pairs(rows, &key.columns)?;
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
fn pairs(rows: &Rows, columns: &[Ident]) -> Option<String> {
    let row = only_row(rows)?;
    let values = columns.iter().map(|column| text(row.get(column.as_str())?));
    let values: Vec<String> = values.collect::<Option<_>>()?;
    let names: Vec<&str> = columns.iter().map(Ident::as_str).collect();
    Some(format!(
        "Key ({})=({})",
        names.join(", "),
        values.join(", ")
    ))
}

fn only_row(rows: &Rows) -> Option<Map<String, Value>> {
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
