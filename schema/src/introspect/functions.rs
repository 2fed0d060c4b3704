//! From rows of `pg_proc` to the model's functions.

use std::collections::HashMap;

use tokio_postgres::types::Oid;

use super::rows::{RawAttribute, RawFunction};
use crate::catalog::{ComputedRelationship, Function, Parameter, Returns, Shape, Volatility};
use crate::ident::{Ident, QualifiedName};

/// Exposed relations by the oid of their row type, and of themselves.
pub(super) struct RowTypes<'a> {
    pub(super) by_type: HashMap<Oid, &'a QualifiedName>,
    pub(super) by_relation: HashMap<Oid, &'a QualifiedName>,
}

pub(super) fn function(
    raw: &RawFunction,
    types: &RowTypes<'_>,
    attributes: &[RawAttribute],
) -> Function {
    Function {
        name: QualifiedName::new(raw.schema.as_str(), raw.name.as_str()),
        parameters: parameters(raw),
        returns: Returns {
            set: raw.set,
            shape: shape(raw, types, attributes),
        },
        volatility: match raw.volatility as u8 {
            b'i' => Volatility::Immutable,
            b's' => Volatility::Stable,
            _ => Volatility::Volatile,
        },
        settings: raw
            .settings
            .iter()
            .filter_map(|setting| setting.split_once('='))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        comment: raw.comment.clone(),
    }
}

/// The relationship that the function computes, if it takes one relation's row
/// and returns rows of another.
pub(super) fn relationship(
    raw: &RawFunction,
    types: &RowTypes<'_>,
) -> Option<ComputedRelationship> {
    let [argument] = raw.arg_types[..] else {
        return None;
    };
    Some(ComputedRelationship {
        function: QualifiedName::new(raw.schema.as_str(), raw.name.as_str()),
        table: (*types.by_type.get(&argument)?).clone(),
        foreign_table: (*types.by_type.get(&raw.return_type)?).clone(),
        to_one: !raw.set || raw.one_row,
    })
}

fn parameters(raw: &RawFunction) -> Vec<Parameter> {
    let takes = |mode: i8| matches!(mode as u8, b'i' | b'b' | b'v');
    let inputs: Vec<usize> = (0..raw.arg_types.len())
        .filter(|n| takes(raw.arg_modes.get(*n).copied().unwrap_or(b'i' as i8)))
        .collect();
    // Defaults belong to the last inputs.
    let required = inputs.len().saturating_sub(raw.defaults as usize);
    let parameter = |(position, n): (usize, &usize)| {
        let variadic = raw.arg_modes.get(*n).copied() == Some(b'v' as i8);
        Parameter {
            name: Ident::new(raw.arg_names.get(*n).map_or("", String::as_str)),
            type_name: raw.arg_type_names[*n].as_str().into(),
            base_type: raw.arg_base_types[*n].as_str().into(),
            required: position < required,
            variadic,
        }
    };
    inputs.iter().enumerate().map(parameter).collect()
}

fn shape(raw: &RawFunction, types: &RowTypes<'_>, attributes: &[RawAttribute]) -> Shape {
    let outputs: Vec<(Ident, Box<str>)> = (0..raw.arg_types.len())
        .filter(|n| {
            matches!(
                raw.arg_modes.get(*n).map(|m| *m as u8),
                Some(b'o' | b'b' | b't')
            )
        })
        .map(|n| {
            let name = raw.arg_names.get(n).map_or("", String::as_str);
            (Ident::new(name), raw.arg_type_names[n].as_str().into())
        })
        .collect();
    match (&*raw.return_type_name, raw.return_kind as u8) {
        ("void", _) => Shape::Void,
        ("record", _) if outputs.is_empty() => Shape::Record,
        ("record", _) => Shape::Composite(outputs),
        (_, b'c') => match types.by_relation.get(&raw.return_relation) {
            Some(relation) => Shape::Relation((*relation).clone()),
            None => Shape::Composite(
                attributes
                    .iter()
                    .filter(|attribute| attribute.relation == raw.return_relation)
                    .map(|a| (Ident::new(a.name.as_str()), a.type_name.as_str().into()))
                    .collect(),
            ),
        },
        // A single OUT parameter has its type as the result's, yet the row has a name.
        _ if !outputs.is_empty() => Shape::Composite(outputs),
        (name, _) => Shape::Scalar(name.into()),
    }
}
