//! What a read's answer is made of, and whether it can be kept at all
//! (DESIGN.md §6, rule 12). Pure.
//!
//! Kept is what changes only when rows do that capture hears of: a read of
//! distributed and reference tables, by fields, comparisons and orders. Not kept
//! is what calls functions of the schema, goes through a view, or asks for the
//! time: `created_at=gt.now` is another question every moment.

use schema::catalog::{Catalog, Scope, Uncacheable};
use tenancy::changes::{Cell, TableHash};
use tenancy::id::TenantId;

use crate::plan::{
    Action, ColumnRef, Condition, Embed, FieldRef, Form, Link, Node, Plan, Source, TypeName, Value,
};
use crate::request::filter::{Operation, Test};

/// Why an answer is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotKept {
    /// It is not a read of tables.
    NotARead,
    /// A function of the schema takes part.
    Function,
    /// The schema reads settings that differ from request to request.
    Settings,
    /// It depends on the time.
    Time,
    /// One of its tables.
    Table(Uncacheable),
}

/// The cells of all that the answer is made of, the tenant's fence among them.
///
/// # Errors
/// Why the answer can't be kept.
pub fn cells(plan: &Plan, catalog: &Catalog, tenant: TenantId) -> Result<Vec<Cell>, NotKept> {
    let Action::Read(node) = &plan.action else {
        return Err(NotKept::NotARead);
    };
    if plan.form != Form::Read {
        return Err(NotKept::NotARead);
    }
    if catalog.reads_request_settings {
        return Err(NotKept::Settings);
    }
    let mut cells = vec![Cell::fence(tenant)];
    for name in &plan.relations {
        let Some(relation) = catalog.relations.get(name) else {
            return Err(NotKept::Table(Uncacheable::NotPublished));
        };
        if let Some(why) = relation.uncacheable {
            return Err(NotKept::Table(why));
        }
        let table = TableHash::of(name.schema.as_str(), name.name.as_str());
        match relation.scope {
            Scope::Distributed { .. } => {
                cells.extend([Cell::rows(tenant, table), Cell::table(table)]);
            }
            Scope::Reference => cells.push(Cell::table(table)),
            Scope::View => return Err(NotKept::Table(Uncacheable::View)),
        }
    }
    if plan.opaque {
        return Err(NotKept::Function);
    }
    level(node)?;
    cells.sort_unstable();
    cells.dedup();
    Ok(cells)
}

/// Whether functions of the schema, or what may call them, take part in a plan.
pub fn calls(plan: &Plan) -> bool {
    match &plan.action {
        Action::Read(node) => plan.opaque || level(node).is_err(),
        Action::Write(_) | Action::Call(_) => true,
        Action::Options(_) | Action::Describe(_) => false,
    }
}

fn level(node: &Node) -> Result<(), NotKept> {
    if !matches!(node.source, Source::Relation { .. }) {
        return Err(NotKept::Function);
    }
    for output in &node.outputs {
        if let Value::Field { field, cast } = &output.value {
            plain(field)?;
            cast.as_ref().map_or(Ok(()), timeless)?;
        }
        let cast = output.aggregate.as_ref().and_then(|a| a.cast.as_ref());
        cast.map_or(Ok(()), timeless)?;
    }
    for condition in &node.conditions {
        fixed(condition)?;
    }
    for term in &node.order {
        plain(&term.field)?;
    }
    node.embeds.iter().try_for_each(embedded)
}

fn embedded(embed: &Embed) -> Result<(), NotKept> {
    match embed.link {
        Link::Computed => Err(NotKept::Function),
        Link::Columns(_) | Link::Junction { .. } => level(&embed.node),
    }
}

/// A computed field, and a domain's own way to be shown and read, are functions of
/// the schema.
fn plain(field: &FieldRef) -> Result<(), NotKept> {
    match field.column {
        ColumnRef::Column(_) if field.representation.is_none() => Ok(()),
        ColumnRef::Column(_) | ColumnRef::Computed(_) => Err(NotKept::Function),
    }
}

/// A cast to a date makes "now" of a text that says so; one to a type of the
/// schema may call anything.
fn timeless(cast: &TypeName) -> Result<(), NotKept> {
    let plain = [
        "text",
        "varchar",
        "character varying",
        "uuid",
        "bool",
        "boolean",
        "int",
        "int2",
        "int4",
        "int8",
        "integer",
        "smallint",
        "bigint",
        "numeric",
        "decimal",
        "real",
        "float",
        "float4",
        "float8",
        "double precision",
        "json",
        "jsonb",
    ];
    match plain.contains(&&*cast.0) {
        true => Ok(()),
        false => Err(NotKept::Time),
    }
}

fn fixed(condition: &Condition) -> Result<(), NotKept> {
    match condition {
        Condition::Test { field, operation } => {
            plain(field)?;
            match tells_the_time(field, operation) {
                true => Err(NotKept::Time),
                false => Ok(()),
            }
        }
        Condition::Group { items, .. } => items.iter().try_for_each(fixed),
        // The embed is looked at with the others.
        Condition::Exists { .. } => Ok(()),
    }
}

/// Words that the input functions of dates and times read as a moment of now.
const MOMENTS: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// Types whose input is the same at all times. Whatever is not among them, such
/// as an array or a range of dates, is looked at closely.
fn never_a_date(base_type: &str) -> bool {
    let bare = base_type.trim_end_matches("[]");
    matches!(
        bare,
        "text"
            | "character varying"
            | "character"
            | "uuid"
            | "boolean"
            | "smallint"
            | "integer"
            | "bigint"
            | "numeric"
            | "real"
            | "double precision"
            | "json"
            | "jsonb"
            | "name"
            | "tsvector"
            | "bytea"
            | "inet"
            | "cidr"
    )
}

fn tells_the_time(field: &FieldRef, operation: &Operation) -> bool {
    // A step into a JSON value is compared as JSON or as text.
    if !field.path.is_empty() || never_a_date(&field.base_type) {
        return false;
    }
    let says = |value: &String| {
        let value = value.to_ascii_lowercase();
        MOMENTS.iter().any(|word| value.contains(word))
    };
    match &operation.test {
        Test::Compare { value, .. } | Test::Distinct(value) => says(value),
        Test::In(values) => values.iter().any(says),
        Test::Is(_) => false,
        Test::Search { .. } => true,
    }
}
