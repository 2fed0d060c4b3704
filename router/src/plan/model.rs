//! The catalog, indexed for planning. Made once for each fingerprint.

use std::collections::HashMap;
use std::sync::Arc;

use schema::catalog::{Catalog, Function, Relation};
use schema::ident::{Ident, QualifiedName};

use super::relationship::{self, Cardinality, Constraints, Link};
use super::types;

/// A catalog with its relationships and computed fields.
#[derive(Debug)]
pub struct Model {
    catalog: Arc<Catalog>,
    relationships: HashMap<QualifiedName, Vec<Relationship>>,
    /// Functions of one row by (relation, name).
    computed_fields: HashMap<QualifiedName, HashMap<Ident, Function>>,
}

/// How rows of one relation belong to those of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    /// From.
    pub origin: QualifiedName,
    /// To.
    pub target: QualifiedName,
    /// How many to how many.
    pub cardinality: Cardinality,
    pub(super) constraints: Constraints,
    /// How they are joined.
    pub link: Link,
    /// An end is a view that stands for the constraint's own table.
    pub through_view: bool,
}

impl Model {
    /// Indexes a catalog.
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self {
            relationships: relationship::discover(&catalog),
            computed_fields: computed_fields(&catalog),
            catalog,
        }
    }

    /// The catalog itself.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The catalog, to be kept.
    pub fn shared(&self) -> Arc<Catalog> {
        self.catalog.clone()
    }

    /// Relationships that start at `origin`.
    pub fn relationships(&self, origin: &QualifiedName) -> &[Relationship] {
        self.relationships.get(origin).map_or(&[], Vec::as_slice)
    }

    /// Relations that have relationships.
    pub(super) fn related(&self) -> impl Iterator<Item = &QualifiedName> {
        let pairs = self.relationships.iter();
        pairs
            .filter(|(_, found)| !found.is_empty())
            .map(|(name, _)| name)
    }

    pub(super) fn computed_field(&self, relation: &Relation, name: &str) -> Option<&Function> {
        let fields = self.computed_fields.get(&relation.name)?;
        fields.get(&Ident::new(name))
    }
}

fn computed_fields(catalog: &Catalog) -> HashMap<QualifiedName, HashMap<Ident, Function>> {
    let mut by_row_type: HashMap<String, &QualifiedName> = HashMap::new();
    for name in catalog.relations.keys() {
        for spelling in types::row_type_spellings(name) {
            by_row_type.insert(spelling, name);
        }
    }
    let mut found: HashMap<QualifiedName, HashMap<Ident, Function>> = HashMap::new();
    for function in catalog.functions.values().flatten() {
        let [parameter] = function.parameters.as_slice() else {
            continue;
        };
        let Some(relation) = by_row_type.get(&*parameter.type_name) else {
            continue;
        };
        if function.returns.set {
            continue;
        }
        let fields = found.entry((*relation).clone()).or_default();
        fields.insert(function.name.name.clone(), function.clone());
    }
    found
}
