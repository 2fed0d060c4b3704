//! Names of fields, looked up.

use schema::catalog::Relation;
use schema::ident::Ident;

use super::model::Model;
use super::{ColumnRef, FieldRef, suggest};
use crate::error::Error;
use crate::request::name::Field;

/// What the rows of a level are made of.
#[derive(Clone, Copy)]
pub(super) enum RowType<'a> {
    /// Rows of a relation: its visible columns and computed fields.
    Relation(&'a Relation),
    /// Rows of an embedded relation, so many levels down.
    Embedded(&'a Relation, usize),
    /// Rows of named columns that a function returns.
    Columns {
        /// The function's name, for error texts.
        name: &'a str,
        /// Names and types.
        columns: &'a [(Ident, Box<str>)],
    },
}

impl<'a> RowType<'a> {
    /// Its name in error texts.
    pub(super) fn name(&self) -> &'a str {
        match self {
            Self::Relation(relation) | Self::Embedded(relation, _) => relation.name.name.as_str(),
            Self::Columns { name, .. } => name,
        }
    }

    /// How PostgREST, and so Postgres' errors about it, calls it.
    pub(super) fn alias(&self) -> String {
        match self {
            Self::Relation(_) | Self::Columns { .. } => self.name().to_owned(),
            Self::Embedded(_, depth) => format!("{}_{depth}", self.name()),
        }
    }

    /// How many levels down its own embeds are.
    pub(super) fn depth_below(&self) -> usize {
        match self {
            Self::Relation(_) | Self::Columns { .. } => 1,
            Self::Embedded(_, depth) => depth + 1,
        }
    }

    /// The relation whose rows they are.
    pub(super) fn relation(&self) -> Option<&'a Relation> {
        match self {
            Self::Relation(relation) | Self::Embedded(relation, _) => Some(relation),
            Self::Columns { .. } => None,
        }
    }

    /// What `*` stands for.
    pub(super) fn all(&self) -> Vec<FieldRef> {
        let field = |name: &Ident, base_type: &str| FieldRef {
            column: ColumnRef::Column(name.clone()),
            base_type: base_type.into(),
            representation: None,
            path: Vec::new(),
        };
        match self {
            Self::Relation(relation) | Self::Embedded(relation, _) => {
                let columns = relation.columns.iter();
                columns
                    .map(|column| FieldRef {
                        representation: column.representation.clone(),
                        ..field(&column.name, &column.base_type)
                    })
                    .collect()
            }
            Self::Columns { columns, .. } => columns
                .iter()
                .map(|(name, kind)| field(name, kind))
                .collect(),
        }
    }

    /// The field of that name. The hidden tenant column is none.
    pub(super) fn field(&self, model: &'a Model, field: &Field) -> Option<FieldRef> {
        let mut representation = None;
        let (column, base_type) = match self {
            Self::Relation(relation) | Self::Embedded(relation, _) => {
                match relation.column(&field.name) {
                    Some(column) => {
                        representation = column.representation.clone();
                        let reference = ColumnRef::Column(column.name.clone());
                        (reference, column.base_type.clone())
                    }
                    None => {
                        let function = model.computed_field(relation, &field.name)?;
                        let base_type = match &function.returns.shape {
                            schema::catalog::Shape::Scalar(name) => name.clone(),
                            _ => "record".into(),
                        };
                        (ColumnRef::Computed(function.name.clone()), base_type)
                    }
                }
            }
            Self::Columns { columns, .. } => {
                let found = columns.iter().find(|(name, _)| name.as_str() == field.name);
                let (name, base_type) = found?;
                (ColumnRef::Column(name.clone()), base_type.clone())
            }
        };
        Some(FieldRef {
            column,
            base_type,
            representation: representation.filter(|_| field.path.is_empty()),
            path: field.path.clone(),
        })
    }

    /// The field of that name, or Postgres' own error.
    pub(super) fn expect(&self, model: &'a Model, field: &Field) -> Result<FieldRef, Error> {
        self.field(model, field)
            .ok_or_else(|| self.no_column(&field.name))
    }

    /// Postgres' error about a column that is not there.
    pub(super) fn no_column(&self, name: &str) -> Error {
        let columns: Vec<&str> = match self {
            Self::Relation(relation) | Self::Embedded(relation, _) => {
                let columns = relation.columns.iter();
                columns.map(|column| column.name.as_str()).collect()
            }
            Self::Columns { columns, .. } => {
                columns.iter().map(|(name, _)| name.as_str()).collect()
            }
        };
        let similar = suggest::columns(columns.into_iter(), name).into_iter();
        Error::NoColumn {
            relation: self.alias(),
            column: name.to_owned(),
            similar: similar.map(str::to_owned).collect(),
        }
    }
}

impl FieldRef {
    /// Its name in the catalog.
    pub fn name(&self) -> &Ident {
        match &self.column {
            ColumnRef::Column(name) => name,
            ColumnRef::Computed(function) => &function.name,
        }
    }
}
