//! POST, PATCH, PUT and DELETE on a relation.

use bytes::Bytes;
use schema::catalog::{Column, Relation, Scope};
use schema::ident::{Ident, QualifiedName};

use super::field::RowType;
use super::read::Wants;
use super::{ColumnRef, Condition, Node, OrderTerm, Planner, Source, Value};
use crate::error::Error;
use crate::request::Method;
use crate::request::body::{Json, Payload};
use crate::request::filter::{Filter, Operator, Test};
use crate::request::prefer::{Missing, Resolution, Returning as Return};

use crate::tag::{self, IfMatch};

/// A change of a relation's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The relation.
    pub relation: QualifiedName,
    /// The column that scopes it to a tenant.
    pub tenant: Option<Ident>,
    /// The API hides that column, also in Postgres' error texts.
    pub tenant_hidden: bool,
    /// What is changed.
    pub change: Change,
    /// Which rows; all must hold.
    pub conditions: Level,
    /// What comes back.
    pub returning: Returning,
    /// What must be true of the row.
    pub precondition: Option<Precondition>,
    /// At most as many rows may be affected, or none is.
    pub max_affected: Option<i64>,
}

/// What If-Match says; where it is not so, nothing is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Precondition {
    /// There is such a row.
    Exists,
    /// The row's newest version is in one of these states.
    State {
        /// What of the row the states are hashes of.
        node: Box<Node>,
        /// In hexadecimal.
        states: Vec<String>,
    },
}

/// The conditions of a write, and the embeds that they refer to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What [`Condition::Exists`] refers to.
    pub embeds: Vec<super::Embed>,
}

/// Kinds of changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// New rows.
    Insert {
        /// What is set.
        columns: Vec<WrittenColumn>,
        /// The values.
        rows: Rows,
        /// What happens to rows that are there already.
        conflict: Option<Conflict>,
        /// PUT: the key that the URL names, (column, value); a body with
        /// another one is refused.
        key: Option<Vec<(WrittenColumn, String)>>,
    },
    /// New values.
    Update {
        /// What is set; with nothing to set no row is touched.
        columns: Vec<WrittenColumn>,
        /// The values: the first row.
        rows: Rows,
    },
    /// Rows away.
    Delete,
}

/// A column that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenColumn {
    /// Its name.
    pub name: Ident,
    /// Its type, as it stands in SQL.
    pub type_name: Box<str>,
    /// What stands for a key that a row lacks; NULL where none.
    pub default: Option<String>,
    /// What makes the value of the JSON that a row has.
    pub from_json: Option<QualifiedName>,
}

/// JSON rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// As they came.
    pub text: Bytes,
    /// An array of rows rather than one.
    pub array: bool,
    /// Read as jsonb, which keeps the last of equal keys: so defaults can stand
    /// in front of what a row has.
    pub binary: bool,
}

/// What happens to rows that are there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The unique columns, the tenant's first.
    pub target: Vec<Ident>,
    /// They are updated; else they stay.
    pub update: bool,
}

/// What a write returns.
#[derive(Clone, Debug, PartialEq)]
pub enum Returning {
    /// How many rows it affected.
    Count,
    /// Also the key of the one row: the Location header.
    Location(Vec<Ident>),
    /// The rows.
    Rows {
        /// What is read of the affected rows.
        node: Box<Node>,
        /// Columns and computed fields that `node` reads.
        columns: Vec<ColumnRef>,
        /// `node` calls functions of the whole row.
        whole_row: bool,
    },
}

impl<'a> Planner<'a> {
    pub(super) fn write(
        &mut self,
        relation: &'a Relation,
        payload: &Payload,
    ) -> Result<Write, Error> {
        self.check_embeds(relation)?;
        let change = match self.request.method {
            Method::Post => self.insert(relation, payload)?,
            Method::Put => self.put(relation, payload)?,
            Method::Patch => self.update(relation, payload)?,
            Method::Delete => Change::Delete,
            Method::Get | Method::Head | Method::Options => {
                return Err(Error::Method(format!("{:?}", self.request.method)));
            }
        };
        let conditions = match (self.request.method, &change) {
            // No row is touched, whatever its conditions say.
            (_, Change::Update { columns, .. }) if columns.is_empty() => Level::default(),
            (Method::Patch | Method::Delete, _) => self.write_conditions(relation)?,
            _ => Level::default(),
        };
        let precondition = self.precondition(relation)?;
        let returning = self.returning(relation)?;
        let (tenant, tenant_hidden) = match &relation.scope {
            Scope::Distributed {
                tenant_column,
                hidden,
            } => (Some(tenant_column.clone()), *hidden),
            Scope::Reference | Scope::View => (None, false),
        };
        Ok(Write {
            relation: relation.name.clone(),
            tenant,
            tenant_hidden,
            change,
            conditions,
            returning,
            precondition,
            max_affected: match self.request.method {
                Method::Patch | Method::Delete => self.request.prefer.bound(),
                _ => None,
            },
        })
    }

    fn insert(&self, relation: &Relation, payload: &Payload) -> Result<Change, Error> {
        let json = json(payload)?;
        Ok(Change::Insert {
            columns: self.written_columns(relation, json)?,
            rows: self.rows(json),
            conflict: self.conflict(relation)?,
            key: None,
        })
    }

    /// PUT is an upsert of the one row that the URL names by its whole key.
    fn put(&self, relation: &Relation, payload: &Payload) -> Result<Change, Error> {
        let query = &self.request.query;
        let mut key = Vec::new();
        for filter in &query.filters {
            let (column, value) = equality(relation, filter).ok_or(Error::PutFilters)?;
            key.push((written(column, false), value.to_owned()));
        }
        let all = relation.primary_key.iter();
        let covered = all
            .clone()
            .all(|name| key.iter().any(|(column, _)| column.name == *name));
        // A visible tenant column may be named, and names nothing more.
        let names = key.iter().map(|(column, _)| &column.name);
        let named = names.filter(|name| {
            relation.primary_key.contains(name) || relation.tenant_column() != Some(*name)
        });
        let fits = all.len() > 0 && named.count() == all.len() && covered;
        if !fits || !query.logic.is_empty() {
            return Err(Error::PutFilters);
        }
        let json = json(payload)?;
        let columns = self.written_columns(relation, json)?;
        let given = |name: &Ident| columns.iter().any(|column| column.name == *name);
        if !key.iter().all(|(column, _)| given(&column.name)) {
            return Err(Error::PutMismatch);
        }
        Ok(Change::Insert {
            columns,
            rows: self.rows(json),
            conflict: Some(Conflict {
                target: with_tenant(relation, relation.primary_key.clone()),
                update: true,
            }),
            key: Some(key),
        })
    }

    fn update(&self, relation: &Relation, payload: &Payload) -> Result<Change, Error> {
        let json = json(payload)?;
        Ok(Change::Update {
            columns: self.written_columns(relation, json)?,
            rows: self.rows(json),
        })
    }

    fn rows(&self, json: &Json) -> Rows {
        Rows {
            text: json.text.clone(),
            array: json.array,
            binary: self.request.prefer.missing == Some(Missing::Default),
        }
    }

    fn written_columns(
        &self,
        relation: &Relation,
        json: &Json,
    ) -> Result<Vec<WrittenColumn>, Error> {
        let default = self.request.prefer.missing == Some(Missing::Default);
        let columns = self.request.query.columns.as_ref();
        let columns = columns.filter(|_| !json.complete);
        let names = columns.unwrap_or(&json.keys);
        let columns = names.iter().map(|name| match relation.column(name) {
            Some(column) => Ok(written(column, default)),
            None => Err(Error::NoWrittenColumn {
                column: name.clone(),
                relation: relation.name.name.as_str().to_owned(),
            }),
        });
        columns.collect()
    }

    /// The unique columns are those that `on_conflict` names, or the key's.
    fn conflict(&self, relation: &Relation) -> Result<Option<Conflict>, Error> {
        let Some(resolution) = self.request.prefer.resolution else {
            return Ok(None);
        };
        let target = match &self.request.query.on_conflict {
            Some(names) => {
                let columns = names.iter().map(|name| match relation.column(name) {
                    Some(column) => Ok(column.name.clone()),
                    None => Err(Error::NoTargetColumn(name.clone())),
                });
                columns.collect::<Result<Vec<_>, _>>()?
            }
            None => relation.primary_key.clone(),
        };
        if target.is_empty() {
            return Ok(None);
        }
        Ok(Some(Conflict {
            target: with_tenant(relation, target),
            update: resolution == Resolution::Merge,
        }))
    }

    fn write_conditions(&mut self, relation: &'a Relation) -> Result<Level, Error> {
        let query = &self.request.query;
        // Embeds are built for what conditions say of them.
        let node = self.level(
            RowType::Relation(relation),
            Source::of(relation),
            &query.select,
            Wants::of(query).without_orders(),
        )?;
        let own = node.conditions.len() - inner_embeds(&query.select);
        let skipped = node.conditions.len() - own;
        Ok(Level {
            conditions: node.conditions.into_iter().skip(skipped).collect(),
            embeds: node.embeds,
        })
    }

    /// A tag is compared with the row that the URL names by its whole key.
    fn precondition(&mut self, relation: &'a Relation) -> Result<Option<Precondition>, Error> {
        let request = self.request;
        let Some(if_match) = &request.if_match else {
            return Ok(None);
        };
        if !matches!(request.method, Method::Patch | Method::Delete) {
            return Err(Error::Precondition("the method is not PATCH or DELETE"));
        }
        let rows = match if_match {
            IfMatch::Any => return Ok(Some(Precondition::Exists)),
            IfMatch::Rows(rows) => rows,
        };
        let query = &request.query;
        let equal = |name: &Ident| {
            let filters = query.filters.iter();
            let mut columns = filters.filter_map(|filter| equality(relation, filter));
            columns.any(|(column, _)| column.name == *name)
        };
        let key = &relation.primary_key;
        if key.is_empty() || !key.iter().all(equal) {
            return Err(Error::Precondition(
                "the query string does not name the row's whole primary key by eq",
            ));
        }
        let node = self.level(
            RowType::Relation(relation),
            Source::of(relation),
            &query.select,
            Wants::of(query).without_own_conditions(),
        )?;
        let shape = tag::shape(&relation.name, &node).ok_or(Error::Precondition(
            "select holds more than the row's own columns",
        ))?;
        let same = rows.iter().filter(|row| row.shape == shape);
        let states: Vec<String> = same.map(|row| row.state.clone()).collect();
        if states.is_empty() {
            return Err(Error::PreconditionFailed);
        }
        let node = Box::new(node);
        Ok(Some(Precondition::State { node, states }))
    }

    fn returning(&mut self, relation: &'a Relation) -> Result<Returning, Error> {
        match self.request.prefer.returning {
            None | Some(Return::Minimal) => return Ok(Returning::Count),
            Some(Return::HeadersOnly) => {
                let keyed = self.request.method == Method::Post;
                return Ok(match relation.primary_key.as_slice() {
                    key if keyed && !key.is_empty() => Returning::Location(key.to_vec()),
                    _ => Returning::Count,
                });
            }
            Some(Return::Representation) => {}
        }
        let query = &self.request.query;
        let node = self.level(
            RowType::Relation(relation),
            Source::Produced,
            &query.select,
            Wants::of(query).without_own_conditions(),
        )?;
        let mut columns = Vec::new();
        let whole_row = referenced(&node, &mut columns);
        Ok(Returning::Rows {
            node: Box::new(node),
            columns,
            whole_row,
        })
    }
}

/// `column=eq.value` on the relation itself.
fn equality<'a>(relation: &'a Relation, filter: &'a Filter) -> Option<(&'a Column, &'a str)> {
    let Test::Compare {
        operator: Operator::Eq,
        quantifier: None,
        value,
    } = &filter.operation.test
    else {
        return None;
    };
    let plain = filter.path.is_empty() && filter.field.path.is_empty() && !filter.operation.negated;
    let column = relation.column(&filter.field.name).filter(|_| plain)?;
    Some((column, value.as_str()))
}

fn inner_embeds(items: &[crate::request::select::Item]) -> usize {
    use crate::request::select::Item;
    let inner = items
        .iter()
        .filter(|item| matches!(item, Item::Embed(embed) if embed.inner));
    inner.count()
}

/// What a level reads of its own rows; true where it needs the whole row.
fn referenced(node: &Node, columns: &mut Vec<ColumnRef>) -> bool {
    let mut whole_row = false;
    let mut add = |column: &ColumnRef| {
        whole_row |= matches!(column, ColumnRef::Computed(_));
        if !columns.contains(column) {
            columns.push(column.clone());
        }
    };
    for output in &node.outputs {
        if let Value::Field { field, .. } = &output.value {
            add(&field.column);
        }
    }
    for OrderTerm { embed, field, .. } in &node.order {
        if embed.is_none() {
            add(&field.column);
        }
    }
    for embed in &node.embeds {
        let pairs = match &embed.link {
            super::Link::Columns(pairs) => pairs.as_slice(),
            super::Link::Junction { parent, .. } => parent,
            super::Link::Computed => &[],
        };
        for (own, _) in pairs {
            add(&ColumnRef::Column(own.clone()));
        }
    }
    let mut links = node.embeds.iter().map(|embed| &embed.link);
    whole_row || links.any(|link| matches!(link, super::Link::Computed))
}

fn written(column: &schema::catalog::Column, default: bool) -> WrittenColumn {
    let usable = default && !column.generated;
    WrittenColumn {
        name: column.name.clone(),
        type_name: column.type_name.clone(),
        default: column.default.clone().filter(|_| usable),
        from_json: column
            .representation
            .as_ref()
            .and_then(|shown| shown.from_json.clone()),
    }
}

/// Unique indexes of a distributed table start with its tenant column.
fn with_tenant(relation: &Relation, columns: Vec<Ident>) -> Vec<Ident> {
    match relation.tenant_column() {
        Some(tenant) if !columns.contains(tenant) => {
            std::iter::once(tenant.clone()).chain(columns).collect()
        }
        _ => columns,
    }
}

fn json(payload: &Payload) -> Result<&Json, Error> {
    match payload {
        Payload::Json(json) => Ok(json),
        Payload::None | Payload::Raw { .. } => Err(Error::Body("Empty or invalid json".into())),
    }
}
