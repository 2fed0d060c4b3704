//! What there is to ask for: relations, values that occur, and what can be
//! embedded where.

use std::collections::HashMap;
use std::sync::Arc;

use router::plan::{Cardinality, Link, Model, Relationship};
use schema::catalog::{Catalog, Column, Relation};
use schema::ident::QualifiedName;

use crate::pair::Pair;

pub(crate) struct World {
    pub(crate) catalog: Arc<Catalog>,
    model: Model,
    samples: HashMap<(QualifiedName, String), Vec<String>>,
    /// Of the default schema, by name.
    names: Vec<QualifiedName>,
}

/// A way from one relation to another.
#[derive(Clone, Debug)]
pub(crate) struct Edge {
    /// `target` or `target!hint`.
    pub(crate) text: String,
    /// The relation that is reached.
    pub(crate) relation: QualifiedName,
    pub(crate) to_one: bool,
}

impl World {
    pub(crate) async fn look(pair: &Pair) -> Self {
        let catalog = pair.catalog.clone();
        let mut samples = HashMap::new();
        for relation in catalog.relations.values() {
            for column in &relation.columns {
                let sql = format!(
                    "select distinct ({name})::text from {} where ({name})::text is not null order by 1 limit 12",
                    relation.name,
                    name = column.name
                );
                let rows = pair.single.query(&sql, &[]).await.unwrap();
                let values = rows.iter().map(|row| row.get(0)).collect();
                samples.insert(
                    (relation.name.clone(), column.name.as_str().to_owned()),
                    values,
                );
            }
        }
        let relations = catalog.relations.keys();
        let mut names: Vec<QualifiedName> = relations
            .filter(|name| name.schema.as_str() == "public")
            .cloned()
            .collect();
        names.sort();
        Self {
            model: Model::new(catalog.clone()),
            catalog,
            samples,
            names,
        }
    }

    /// Relations of the default schema.
    pub(crate) fn relations(&self) -> Vec<&Relation> {
        self.names
            .iter()
            .map(|name| &self.catalog.relations[name])
            .collect()
    }

    /// The relation of that name in the default schema.
    pub(crate) fn relation(&self, name: &str) -> &Relation {
        &self.catalog.relations[&QualifiedName::new("public", name)]
    }

    /// Values that occur in a column, as text.
    pub(crate) fn samples(&self, relation: &Relation, column: &Column) -> &[String] {
        let key = (relation.name.clone(), column.name.as_str().to_owned());
        self.samples.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Functions of a row that count as columns.
    pub(crate) fn computed(&self, relation: &Relation) -> &'static [&'static str] {
        match relation.name.name.as_str() {
            "shows" => &["label"],
            "people" => &["initials", "has_mentor"],
            _ => &[],
        }
    }

    /// Columns that make an order complete.
    pub(crate) fn key<'a>(&self, relation: &'a Relation) -> Vec<&'a Column> {
        let columns = relation.columns.iter();
        if !relation.primary_key.is_empty() {
            let keyed = columns.filter(|c| relation.primary_key.contains(&c.name));
            return keyed.collect();
        }
        columns.filter(|column| orderable(column)).collect()
    }

    /// What can be embedded in rows of `relation`.
    pub(crate) fn edges(&self, relation: &Relation) -> Vec<Edge> {
        let mut edges = Vec::new();
        for found in self.model.relationships(&relation.name) {
            let target = found.target.name.as_str();
            if found.origin == found.target {
                edges.extend(self_reference(found));
                continue;
            }
            let mut texts = vec![target.to_owned()];
            match &found.link {
                Link::Columns(pairs) => {
                    if let [(own, other)] = pairs.as_slice() {
                        let forward = found.cardinality == Cardinality::ManyToOne;
                        let hint = if forward { own } else { other };
                        texts.push(format!("{target}!{}", quoted(hint.as_str())));
                        if forward && !found.through_view {
                            texts.push(hint.as_str().to_owned());
                        }
                    }
                    for key in &self.catalog.foreign_keys {
                        let (a, b) = (&key.table, &key.foreign_table);
                        let fits = (a == &found.origin && b == &found.target)
                            || (b == &found.origin && a == &found.target);
                        if fits {
                            texts.push(format!("{target}!{}", quoted(key.name.as_str())));
                            if found.cardinality == Cardinality::ManyToOne {
                                texts.push(key.name.as_str().to_owned());
                            }
                        }
                    }
                }
                Link::Junction { name, .. } => {
                    texts.push(format!("{target}!{}", quoted(name.name.as_str())));
                }
                Link::Computed => {}
            }
            edges.extend(texts.into_iter().map(|text| Edge {
                text,
                relation: found.target.clone(),
                to_one: found.to_one(),
            }));
        }
        for computed in &self.catalog.computed_relationships {
            if computed.table == relation.name {
                edges.push(Edge {
                    text: computed.function.name.as_str().to_owned(),
                    relation: computed.foreign_table.clone(),
                    to_one: computed.to_one,
                });
            }
        }
        edges
    }
}

/// Of a self reference the column means the one row, the table the many.
fn self_reference(found: &Relationship) -> Option<Edge> {
    let Link::Columns(pairs) = &found.link else {
        return None;
    };
    let [(own, _)] = pairs.as_slice() else {
        return None;
    };
    Some(Edge {
        text: match found.to_one() {
            true => own.as_str().to_owned(),
            false => found.target.name.as_str().to_owned(),
        },
        relation: found.target.clone(),
        to_one: found.to_one(),
    })
}

/// A name as it stands in a query string.
pub(crate) fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || c == '_';
    if name.chars().all(plain) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

/// Postgres can sort by it.
pub(crate) fn orderable(column: &Column) -> bool {
    !matches!(&*column.base_type, "json" | "point" | "xml")
}
