//! Which relations belong together: discovery from keys, and choice by name.

use std::collections::HashMap;

use schema::catalog::{Catalog, ForeignKey, Relation, RelationKind};
use schema::ident::{Ident, QualifiedName};

use super::model::{Model, Relationship};
use super::suggest;
use crate::error::{Ambiguous, Error, Unrelated, candidate};

/// How many rows belong to how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// The origin's foreign key.
    ManyToOne,
    /// The target's foreign key.
    OneToMany,
    /// A foreign key that is unique, on either side.
    OneToOne,
    /// Two foreign keys of a junction.
    ManyToMany,
}

impl Cardinality {
    fn words(self) -> &'static str {
        match self {
            Self::ManyToOne => "many-to-one",
            Self::OneToMany => "one-to-many",
            Self::OneToOne => "one-to-one",
            Self::ManyToMany => "many-to-many",
        }
    }
}

/// How rows of two levels are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// By equal columns: (parent's, child's).
    Columns(Vec<(Ident, Ident)>),
    /// Through a junction.
    Junction {
        /// The junction.
        name: QualifiedName,
        /// The column that scopes it to a tenant.
        tenant: Option<Ident>,
        /// (parent's, junction's) columns.
        parent: Vec<(Ident, Ident)>,
        /// (junction's, child's) columns.
        child: Vec<(Ident, Ident)>,
    },
    /// The child's source is a function of the parent's row.
    Computed,
}

/// What a junction's two foreign keys are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Constraints {
    pub(super) first: Ident,
    /// The second one of a junction.
    pub(super) second: Option<Ident>,
}

/// All relationships by their origin.
pub(super) fn discover(catalog: &Catalog) -> HashMap<QualifiedName, Vec<Relationship>> {
    let mut found: HashMap<QualifiedName, Vec<Relationship>> = HashMap::new();
    let mut by_table: HashMap<&QualifiedName, Vec<&ForeignKey>> = HashMap::new();
    let mut add = |relationship: Relationship| {
        let origin = relationship.origin.clone();
        found.entry(origin).or_default().push(relationship);
    };
    for key in &catalog.foreign_keys {
        by_table.entry(&key.table).or_default().push(key);
        add(forward(key));
        add(backward(key));
    }
    for (table, keys) in by_table {
        let Some(junction) = catalog.relations.get(table) else {
            continue;
        };
        let mut inside = keys.iter().filter(|key| within_key(junction, key));
        let inside: Vec<&&ForeignKey> = inside.by_ref().collect();
        for first in &inside {
            for second in inside.iter().filter(|key| key.name != first.name) {
                add(through(junction, first, second));
            }
        }
    }
    for relationships in found.values_mut() {
        // Whatever order the catalog came in, choices read the same.
        relationships.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    }
    found
}

fn within_key(junction: &Relation, key: &ForeignKey) -> bool {
    // The tenant's column is part of every key.
    key.columns.iter().all(|column| {
        junction.primary_key.contains(column) || junction.tenant_column() == Some(column)
    })
}

fn forward(key: &ForeignKey) -> Relationship {
    let columns = key.columns.iter().cloned();
    Relationship {
        origin: key.table.clone(),
        target: key.foreign_table.clone(),
        cardinality: match key.one_to_one {
            true => Cardinality::OneToOne,
            false => Cardinality::ManyToOne,
        },
        constraints: Constraints {
            first: key.name.clone(),
            second: None,
        },
        link: Link::Columns(columns.zip(key.foreign_columns.iter().cloned()).collect()),
        through_view: key.through_view,
    }
}

fn backward(key: &ForeignKey) -> Relationship {
    let columns = key.foreign_columns.iter().cloned();
    Relationship {
        origin: key.foreign_table.clone(),
        target: key.table.clone(),
        cardinality: match key.one_to_one {
            true => Cardinality::OneToOne,
            false => Cardinality::OneToMany,
        },
        link: Link::Columns(columns.zip(key.columns.iter().cloned()).collect()),
        ..forward(key)
    }
}

fn through(junction: &Relation, first: &ForeignKey, second: &ForeignKey) -> Relationship {
    let pairs = |a: &[Ident], b: &[Ident]| a.iter().cloned().zip(b.iter().cloned()).collect();
    Relationship {
        origin: first.foreign_table.clone(),
        target: second.foreign_table.clone(),
        cardinality: Cardinality::ManyToMany,
        constraints: Constraints {
            first: first.name.clone(),
            second: Some(second.name.clone()),
        },
        link: Link::Junction {
            name: junction.name.clone(),
            tenant: junction.tenant_column().cloned(),
            parent: pairs(&first.foreign_columns, &first.columns),
            child: pairs(&second.columns, &second.foreign_columns),
        },
        through_view: first.through_view || second.through_view,
    }
}

impl Relationship {
    /// Foreign keys come before junctions, those of the target before the origin's,
    /// then names decide.
    fn sort_key(
        &self,
    ) -> (
        &QualifiedName,
        bool,
        bool,
        &Ident,
        Option<&Ident>,
        &'static str,
    ) {
        let Constraints { first, second } = &self.constraints;
        (
            &self.target,
            second.is_some(),
            self.to_one(),
            first,
            second.as_ref(),
            self.cardinality.words(),
        )
    }

    /// A row of the origin has at most one of the target.
    pub fn to_one(&self) -> bool {
        matches!(
            self.cardinality,
            Cardinality::ManyToOne | Cardinality::OneToOne
        )
    }

    fn single_columns(&self) -> Option<(&str, &str)> {
        match &self.link {
            Link::Columns(pairs) => match pairs.as_slice() {
                [(own, other)] => Some((own.as_str(), other.as_str())),
                _ => None,
            },
            Link::Junction { .. } | Link::Computed => None,
        }
    }

    fn has_constraint(&self, name: &str) -> bool {
        self.constraints.second.is_none() && self.constraints.first.as_str() == name
    }

    /// `target(…)`: a relation's name, or for tables a constraint's or the
    /// origin's column.
    ///
    /// Of a self reference's two directions, the relation's name means the
    /// many rows that refer to this one, the column the one that it refers to.
    fn matches_target(&self, target: &str, target_is_view: bool) -> bool {
        let by_name = self.target.name.as_str() == target;
        let by_column = self.single_columns().is_some_and(|(own, _)| own == target);
        if self.origin == self.target {
            return match self.cardinality {
                Cardinality::OneToMany => by_name,
                Cardinality::ManyToOne => by_column,
                Cardinality::OneToOne | Cardinality::ManyToMany => false,
            };
        }
        by_name || !target_is_view && (self.has_constraint(target) || by_column)
    }

    /// `relation!hint(…)`. A self reference's hint is the column that refers.
    fn matches_hint(&self, target: &str, hint: &str) -> bool {
        if self.target.name.as_str() != target {
            return false;
        }
        if self.origin == self.target {
            let by_column = self
                .single_columns()
                .is_some_and(|(_, other)| other == hint);
            return self.cardinality == Cardinality::OneToMany && by_column;
        }
        self.hinted(hint)
    }

    fn hinted(&self, hint: &str) -> bool {
        let by_junction = match &self.link {
            Link::Junction { name, .. } => name.name.as_str() == hint,
            Link::Columns(_) | Link::Computed => false,
        };
        let by_column = self
            .single_columns()
            .is_some_and(|(own, other)| own == hint || other == hint);
        by_junction || by_column || self.has_constraint(hint)
    }

    fn describe(&self) -> serde_json::Value {
        let list = |columns: Vec<&str>| format!("({})", columns.join(", "));
        let firsts = |pairs: &[(Ident, Ident)]| -> String {
            list(pairs.iter().map(|(own, _)| own.as_str()).collect())
        };
        let seconds = |pairs: &[(Ident, Ident)]| -> String {
            list(pairs.iter().map(|(_, other)| other.as_str()).collect())
        };
        let (origin, target) = (self.origin.name.as_str(), self.target.name.as_str());
        let first = self.constraints.first.as_str();
        let relationship = match &self.link {
            Link::Columns(pairs) => format!(
                "{first} using {origin}{} and {target}{}",
                firsts(pairs),
                seconds(pairs)
            ),
            Link::Junction {
                name,
                parent,
                child,
                ..
            } => {
                let second = self.constraints.second.as_ref().map_or("", Ident::as_str);
                format!(
                    "{} using {first}{} and {second}{}",
                    name.name.as_str(),
                    seconds(parent),
                    firsts(child)
                )
            }
            Link::Computed => String::new(),
        };
        candidate(
            self.cardinality.words(),
            format!("{origin} with {target}"),
            relationship,
        )
    }

    fn choice(&self, target: &str) -> String {
        let hint = match &self.link {
            Link::Junction { name, .. } => name.name.as_str(),
            Link::Columns(_) | Link::Computed => self.constraints.first.as_str(),
        };
        format!("'{target}!{hint}'")
    }
}

fn is_view(model: &Model, name: &QualifiedName) -> bool {
    let relation = model.catalog().relations.get(name);
    relation.is_some_and(|relation| relation.kind == RelationKind::View)
}

/// What an embed's name resolves to.
pub(super) enum Found<'a> {
    /// Keys.
    Key(&'a Relationship),
    /// A function.
    Computed(&'a schema::catalog::ComputedRelationship),
}

/// The relationship of `origin` that `target!hint` names.
pub(super) fn find<'a>(
    model: &'a Model,
    schema: &str,
    origin: &QualifiedName,
    target: &str,
    hint: Option<&str>,
) -> Result<Found<'a>, Error> {
    let mut computed = model.catalog().computed_relationships.iter();
    let by_function = computed
        .find(|computed| computed.table == *origin && computed.function.name.as_str() == target);
    if let Some(computed) = by_function {
        return Ok(Found::Computed(computed));
    }
    let all = model.relationships(origin).iter();
    let reachable = all.filter(|relationship| relationship.target.schema.as_str() == schema);
    let fitting: Vec<&Relationship> = reachable
        .filter(|relationship| match hint {
            Some(hint) => relationship.matches_hint(target, hint),
            None => relationship.matches_target(target, is_view(model, &relationship.target)),
        })
        .collect();
    match fitting.as_slice() {
        [one] => Ok(Found::Key(one)),
        [] => Err(Error::NoRelationship(Box::new(Unrelated {
            origin: origin.name.as_str().to_owned(),
            target: target.to_owned(),
            schema: schema.to_owned(),
            hint: hint.map(str::to_owned),
            similar: suggest::embed(model, origin, target),
        }))),
        several => Err(Error::AmbiguousRelationship(Box::new(Ambiguous {
            origin: origin.name.as_str().to_owned(),
            target: target.to_owned(),
            candidates: several
                .iter()
                .map(|candidate| candidate.describe())
                .collect(),
            choices: several
                .iter()
                .map(|candidate| candidate.choice(target))
                .collect(),
        }))),
    }
}
