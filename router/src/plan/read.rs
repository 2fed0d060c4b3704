//! Levels of a read: outputs, embeds, conditions, order and page of each.

use schema::catalog::Relation;
use schema::ident::Ident;

use super::field::RowType;
use super::relationship::{self, Found, Link};
use super::{
    AggregateCall, Condition, Embed, FieldRef, Key, Node, OrderTerm, Output, Planner, Source,
    Value, types,
};
use crate::error::{Error, Unrelated};
use crate::request::filter::{Is, Operation, Test};
use crate::request::logic::Tree;
use crate::request::name::Field;
use crate::request::order::Term;
use crate::request::page::Page;
use crate::request::query::Query;
use crate::request::select::{self, Aggregate, Item};

/// What the query string wants of one level and those below it. Paths are
/// relative to the level.
#[derive(Default)]
pub(super) struct Wants<'a> {
    filters: Vec<(&'a [String], &'a Field, &'a Operation)>,
    logic: Vec<(&'a [String], &'a Tree)>,
    order: Vec<(&'a [String], &'a [Term])>,
    pages: Vec<(&'a [String], Page)>,
}

impl<'a> Wants<'a> {
    /// All of it.
    pub(super) fn of(query: &'a Query) -> Self {
        let filters = query.filters.iter();
        let pages = query.pages.iter().filter(|(path, _)| !path.is_empty());
        Self {
            filters: filters
                .map(|f| (&f.path[..], &f.field, &f.operation))
                .collect(),
            logic: query.logic.iter().map(|l| (&l.path[..], &l.tree)).collect(),
            order: query
                .order
                .iter()
                .map(|o| (&o.path[..], &o.terms[..]))
                .collect(),
            pages: pages.map(|(path, page)| (&path[..], *page)).collect(),
        }
    }

    /// Without the conditions of its own level: a write has applied them.
    pub(super) fn without_own_conditions(mut self) -> Self {
        self.filters.retain(|(path, ..)| !path.is_empty());
        self.logic.retain(|(path, _)| !path.is_empty());
        self
    }

    /// Without orders: they only shape what is returned.
    pub(super) fn without_orders(mut self) -> Self {
        self.order.clear();
        self
    }

    /// Takes out what belongs to the level that `name` fits.
    fn take(&mut self, fits: impl Fn(&str) -> bool) -> Self {
        fn split<'a, T: Copy>(
            wants: &mut Vec<(&'a [String], T)>,
            fits: &impl Fn(&str) -> bool,
        ) -> Vec<(&'a [String], T)> {
            let mut taken = Vec::new();
            wants.retain(|(path, what)| match path.split_first() {
                Some((first, rest)) if fits(first) => {
                    taken.push((rest, *what));
                    false
                }
                _ => true,
            });
            taken
        }
        let mut filters: Vec<(&[String], (&Field, &Operation))> = self
            .filters
            .drain(..)
            .map(|(path, field, operation)| (path, (field, operation)))
            .collect();
        let taken = split(&mut filters, &fits);
        let flat = |(path, (field, operation))| (path, field, operation);
        self.filters = filters.into_iter().map(flat).collect();
        Self {
            filters: taken.into_iter().map(flat).collect(),
            logic: split(&mut self.logic, &fits),
            order: split(&mut self.order, &fits),
            pages: split(&mut self.pages, &fits),
        }
    }

    /// Whether every path leads to an embed, asked in PostgREST's order, so that
    /// of several wrong paths the same one is told, and before relationships.
    pub(super) fn check_paths(&self, items: &[Item]) -> Result<(), Error> {
        let filters = self.filters.iter().rev().map(|(path, ..)| path);
        let order = self.order.iter().rev().map(|(path, _)| path);
        let pages = self.pages.iter().map(|(path, _)| path);
        let logic = self.logic.iter().rev().map(|(path, _)| path);
        let mut paths = filters.chain(order).chain(pages).chain(logic);
        paths.try_for_each(|path| leads_to_embed(path, items))
    }

    /// A path that leads to no embed is an error.
    fn check_all_taken(&self) -> Result<(), Error> {
        let filters = self.filters.iter().map(|(path, ..)| path);
        let logic = self.logic.iter().map(|(path, _)| path);
        let order = self.order.iter().map(|(path, _)| path);
        let pages = self.pages.iter().map(|(path, _)| path);
        let mut paths = filters.chain(logic).chain(order).chain(pages);
        match paths.find_map(|path| path.first()) {
            Some(name) => Err(Error::NotEmbedded(name.clone())),
            None => Ok(()),
        }
    }
}

/// The names that an embed answers to, beside each [`Embed`] of a level.
struct Named<'a> {
    alias: Option<&'a str>,
    target: &'a str,
}

impl Named<'_> {
    fn is(&self, name: &str) -> bool {
        self.alias.unwrap_or(self.target) == name
    }
}

impl<'a> Planner<'a> {
    /// The request's own level, reading a relation.
    pub(super) fn read(&mut self, relation: &'a Relation) -> Result<Node, Error> {
        let query = &self.request.query;
        let page = self.request.page.capped(self.config.rows_max);
        let node = self.level(
            RowType::Relation(relation),
            Source::of(relation),
            &query.select,
            Wants::of(query),
        );
        let mut node = node.map_err(|error| self.first_error(relation, error))?;
        node.page = page;
        Ok(node)
    }

    /// Of several things that are wrong, PostgREST's first: paths that lead to no
    /// embed, then relationships, then `error`, what a level came upon.
    fn first_error(&self, relation: &Relation, error: Error) -> Error {
        self.check_embeds(relation).err().unwrap_or(error)
    }

    /// Whether paths lead to embeds, and embeds have their relationships: for a
    /// write also where no level is built of what it selects.
    pub(super) fn check_embeds(&self, relation: &Relation) -> Result<(), Error> {
        let query = &self.request.query;
        Wants::of(query).check_paths(&query.select)?;
        self.check_relationships(relation, &query.select)
    }

    fn check_relationships(&self, origin: &Relation, items: &[Item]) -> Result<(), Error> {
        for item in items {
            let Item::Embed(embed) = item else {
                continue;
            };
            let (hint, schema) = (embed.hint.as_deref(), &self.request.schema);
            let found = relationship::find(self.model, schema, &origin.name, &embed.target, hint)?;
            let target = match found {
                Found::Key(key) => &key.target,
                Found::Computed(computed) => &computed.foreign_table,
            };
            if let Some(target) = self.model.catalog().relations.get(target) {
                self.check_relationships(target, &embed.items)?;
            }
        }
        Ok(())
    }

    /// A level and those below it.
    pub(super) fn level(
        &mut self,
        rows: RowType<'a>,
        source: Source,
        items: &'a [Item],
        mut wants: Wants<'a>,
    ) -> Result<Node, Error> {
        let mut outputs = Vec::new();
        let mut behind = Vec::new();
        let mut embeds = Vec::new();
        let mut names: Vec<Named<'a>> = Vec::new();
        let mut keys: Vec<&str> = Vec::new();
        let mut conditions = Vec::new();
        for item in items {
            match item {
                Item::All => outputs.extend(rows.all().into_iter().map(plain)),
                Item::Field { .. } => outputs.push(self.output(rows, item)?),
                Item::Embed(embed) => {
                    let index = embeds.len();
                    let built = self.embed(rows, embed, &mut wants)?;
                    if embed.inner {
                        conditions.push(Condition::Exists {
                            negated: false,
                            embed: index,
                        });
                    }
                    let added = self.embedded_outputs(embed, index, &built)?;
                    let name = embed.alias.as_deref().unwrap_or(&embed.target);
                    if !added.is_empty() && keys.contains(&name) {
                        return Err(Error::EmbeddedTwice(format!(
                            "{}_{name}_{}",
                            rows.name(),
                            rows.depth_below()
                        )));
                    }
                    if !added.is_empty() {
                        keys.push(name);
                    }
                    behind.extend(added);
                    names.push(Named {
                        alias: embed.alias.as_deref(),
                        target: &embed.target,
                    });
                    embeds.push(built);
                }
            }
        }
        wants.check_all_taken()?;
        outputs.extend(behind);
        hoist(&mut embeds, &outputs);
        for (_, tree) in &wants.logic {
            conditions.push(self.tree(rows, &names, tree)?);
        }
        for (_, field, operation) in &wants.filters {
            conditions.push(self.leaf(rows, &names, field, operation)?);
        }
        let mut order = Vec::new();
        // Of several orders of one level the first is the one.
        for term in wants
            .order
            .first()
            .into_iter()
            .flat_map(|(_, terms)| *terms)
        {
            order.push(self.order_term(rows, &names, &embeds, items, term)?);
        }
        let page = wants.pages.first().map(|(_, page)| *page);
        Ok(Node {
            source,
            outputs,
            embeds,
            conditions,
            order,
            page: page.unwrap_or_default(),
        })
    }

    fn output(&self, rows: RowType<'a>, item: &Item) -> Result<Output, Error> {
        let Item::Field {
            alias,
            field,
            cast,
            aggregate,
            aggregate_cast,
        } = item
        else {
            return Err(Error::NotImplemented("A nested select item"));
        };
        let catalog = self.model.catalog();
        let cast_of = |name: &Option<String>| {
            let name = name.as_deref();
            name.map(|name| types::cast(catalog, name)).transpose()
        };
        let call = match aggregate {
            Some(_) if !self.config.aggregates => return Err(Error::Aggregates),
            Some(function) => Some(AggregateCall {
                function: *function,
                cast: cast_of(aggregate_cast)?,
            }),
            None => None,
        };
        let (value, own_key) = match field {
            None => (Value::Row, model_key(Aggregate::Count.word())),
            Some(field) => match self.value(rows, field, cast_of(cast)?)? {
                (value, _) if call.is_some() => {
                    let word = call.as_ref().map_or("", |call| call.function.word());
                    (value, model_key(word))
                }
                (value, key) => (value, key),
            },
        };
        Ok(Output {
            key: match alias {
                Some(alias) => Key::Request(alias.clone()),
                None => own_key,
            },
            value,
            aggregate: call,
        })
    }

    fn value(
        &self,
        rows: RowType<'a>,
        field: &Field,
        cast: Option<super::TypeName>,
    ) -> Result<(Value, Key), Error> {
        let Some(reference) = rows.field(self.model, field) else {
            // `rel(count)` is how clients count embedded rows: Postgres reads
            // `t.count` as `count(t)` where there is no such column.
            if field.name == "count" && field.path.is_empty() {
                return Ok((Value::Rows, model_key("count")));
            }
            return Err(rows.no_column(&field.name));
        };
        let key = match field.output_name() {
            name if name == field.name => Key::Model(reference.name().clone()),
            name => Key::Request(name.to_owned()),
        };
        let value = Value::Field {
            field: reference,
            cast,
        };
        Ok((value, key))
    }

    fn embed(
        &mut self,
        rows: RowType<'a>,
        embed: &'a select::Embed,
        wants: &mut Wants<'a>,
    ) -> Result<Embed, Error> {
        let Some(origin) = rows.relation() else {
            return Err(Error::NoRelationship(Box::new(Unrelated {
                origin: rows.name().to_owned(),
                target: embed.target.clone(),
                schema: self.request.schema.clone(),
                hint: embed.hint.clone(),
                similar: None,
            })));
        };
        let hint = embed.hint.as_deref();
        let schema = &self.request.schema;
        let found = relationship::find(self.model, schema, &origin.name, &embed.target, hint)?;
        let (target, link, to_one) = match found {
            Found::Key(key) => (&key.target, key.link.clone(), key.to_one()),
            Found::Computed(computed) => (&computed.foreign_table, Link::Computed, computed.to_one),
        };
        let relations = &self.model.catalog().relations;
        let Some(target) = relations.get(target) else {
            return Err(Error::Internal {
                why: format!("{target} is referred to and not in the catalog"),
            });
        };
        self.touch(target);
        if let Link::Junction { name, .. } = &link {
            match relations.get(name) {
                Some(junction) => self.touch(junction),
                None => self.relations.push(name.clone()),
            }
        }
        let source = match found {
            Found::Key(_) => Source::of(target),
            Found::Computed(computed) => {
                self.opaque = true;
                Source::Computed {
                    function: computed.function.clone(),
                }
            }
        };
        // An alias is the name to filter by; the target's own name still works.
        let alias = embed.alias.as_deref();
        let own = wants.take(|name| alias == Some(name) || embed.target == name);
        let below = RowType::Embedded(target, rows.depth_below());
        let mut node = self.level(below, source, &embed.items, own)?;
        if !to_one {
            node.page = node.page.capped(self.config.rows_max);
        }
        Ok(Embed {
            link,
            to_one,
            spread: embed.spread,
            node,
        })
    }

    /// What an embed adds to its parent's row.
    fn embedded_outputs(
        &self,
        embed: &select::Embed,
        index: usize,
        built: &Embed,
    ) -> Result<Vec<Output>, Error> {
        let outputs = &built.node.outputs;
        if embed.spread {
            let aggregated = outputs.iter().any(|output| output.aggregate.is_some());
            if aggregated && !built.to_one {
                return Err(Error::NotImplemented(
                    "Aggregates are not implemented for one-to-many or many-to-many spreads.",
                ));
            }
            let lifted = outputs.iter().enumerate().map(|(output, below)| Output {
                key: below.key.clone(),
                value: Value::Lifted {
                    embed: index,
                    output,
                },
                aggregate: below.aggregate.clone(),
            });
            return Ok(lifted.collect());
        }
        // Empty parentheses: for conditions only.
        if embed.items.is_empty() || outputs.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Output {
            key: match &embed.alias {
                Some(alias) => Key::Request(alias.clone()),
                None => model_key(&embed.target),
            },
            value: Value::Embed(index),
            aggregate: None,
        }])
    }

    fn tree(
        &self,
        rows: RowType<'a>,
        names: &[Named<'a>],
        tree: &Tree,
    ) -> Result<Condition, Error> {
        match tree {
            Tree::Leaf { field, operation } => self.leaf(rows, names, field, operation),
            Tree::Group {
                negated,
                join,
                items,
            } => {
                let items = items.iter().map(|item| self.tree(rows, names, item));
                Ok(Condition::Group {
                    negated: *negated,
                    join: *join,
                    items: items.collect::<Result<_, _>>()?,
                })
            }
        }
    }

    fn leaf(
        &self,
        rows: RowType<'a>,
        names: &[Named<'a>],
        field: &Field,
        operation: &Operation,
    ) -> Result<Condition, Error> {
        let embed = names.iter().position(|named| named.is(&field.name));
        if let (Some(embed), true) = (embed, field.path.is_empty()) {
            let is_null = match operation.test {
                Test::Is(Is::Null) => Some(!operation.negated),
                Test::Is(Is::NotNull) => Some(operation.negated),
                _ => None,
            };
            if let Some(negated) = is_null {
                return Ok(Condition::Exists { negated, embed });
            }
        }
        Ok(Condition::Test {
            field: rows.expect(self.model, field)?,
            operation: operation.clone(),
        })
    }

    fn order_term(
        &self,
        rows: RowType<'a>,
        names: &[Named<'a>],
        embeds: &[Embed],
        items: &'a [Item],
        term: &Term,
    ) -> Result<OrderTerm, Error> {
        let (embed, field) = match &term.relation {
            None => (None, rows.expect(self.model, &term.field)?),
            Some(name) => {
                let index = names.iter().position(|named| named.is(name));
                let not_embedded = || Error::NotEmbedded(name.clone());
                let index = index.ok_or_else(not_embedded)?;
                let embed = embeds.get(index).ok_or_else(not_embedded)?;
                if !embed.to_one {
                    return Err(Error::RelatedOrder {
                        origin: rows.name().to_owned(),
                        target: name.clone(),
                    });
                }
                let (target, below) = self
                    .embedded_rows(rows, items, index)
                    .ok_or_else(not_embedded)?;
                // What the embed selects under another name goes by that name.
                let aliased = below.iter().find_map(|item| match item {
                    Item::Field {
                        alias: Some(alias),
                        field: Some(field),
                        aggregate: None,
                        ..
                    } if *alias == term.field.name && term.field.path.is_empty() => Some(field),
                    Item::Field { .. } | Item::All | Item::Embed(_) => None,
                });
                let field = aliased.unwrap_or(&term.field);
                (Some(index), target.expect(self.model, field)?)
            }
        };
        Ok(OrderTerm {
            embed,
            field,
            direction: term.direction,
            nulls: term.nulls,
        })
    }

    /// The rows of the `index`th embed among `items`, and what it selects.
    fn embedded_rows(
        &self,
        rows: RowType<'a>,
        items: &'a [Item],
        index: usize,
    ) -> Option<(RowType<'a>, &'a [Item])> {
        let mut embeds = items.iter().filter_map(|item| match item {
            Item::Embed(embed) => Some(embed),
            Item::All | Item::Field { .. } => None,
        });
        let embed = embeds.nth(index)?;
        let origin = &rows.relation()?.name;
        let hint = embed.hint.as_deref();
        let schema = &self.request.schema;
        let found = relationship::find(self.model, schema, origin, &embed.target, hint).ok()?;
        let target = match found {
            Found::Key(key) => &key.target,
            Found::Computed(computed) => &computed.foreign_table,
        };
        let relation = self.model.catalog().relations.get(target)?;
        Some((RowType::Relation(relation), &embed.items))
    }
}

fn leads_to_embed(path: &[String], items: &[Item]) -> Result<(), Error> {
    let Some((name, rest)) = path.split_first() else {
        return Ok(());
    };
    let named = items.iter().find_map(|item| match item {
        Item::Embed(embed) if embed.alias.as_ref() == Some(name) || embed.target == *name => {
            Some(embed)
        }
        Item::Embed(_) | Item::All | Item::Field { .. } => None,
    });
    match named {
        Some(embed) => leads_to_embed(rest, &embed.items),
        None => Err(Error::NotEmbedded(name.clone())),
    }
}

/// In a to-one spread the parent aggregates; its rows are what is grouped.
fn hoist(embeds: &mut [Embed], outputs: &[Output]) {
    let lifted = outputs.iter().filter(|output| output.aggregate.is_some());
    for output in lifted {
        if let Value::Lifted { embed, output } = output.value {
            let below = embeds.get_mut(embed);
            let below = below.and_then(|embed| embed.node.outputs.get_mut(output));
            if let Some(below) = below {
                below.aggregate = None;
            }
        }
    }
}

fn plain(field: FieldRef) -> Output {
    Output {
        key: Key::Model(field.name().clone()),
        value: Value::Field { field, cast: None },
        aggregate: None,
    }
}

fn model_key(name: &str) -> Key {
    Key::Model(Ident::new(name))
}
