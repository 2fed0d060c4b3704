//! From rows to the model: decides what is proven scoped, takes the tenant column
//! out of keys and, where it is hidden, out of columns, and gives views the keys of
//! their tables. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use aws_lc_rs::digest;
use serde::Serialize;
use tokio_postgres::types::Oid;

use super::Error;
use super::functions::{RowTypes, function, relationship};
use super::rows::{Raw, RawColumn, RawForeignKey, RawKey, RawRelation};
use super::view::{Origin, origins};
use crate::catalog::{
    Catalog, Column, Fingerprint, ForeignKey, Function, Hidden, HiddenReason, MediaHandler,
    Relation, RelationKind, Representation, Scope, Uncacheable, UniqueKey,
};
use crate::ident::{Ident, QualifiedName};

/// An exposed relation with what is needed to trace views through it.
struct Exposed {
    relation: Relation,
    /// Visible columns by number.
    names: HashMap<i16, Ident>,
    /// Key columns by number, without the tenant.
    primary_key: Vec<i16>,
    /// The tenant column.
    tenant_column: Option<i16>,
    /// It, where it is hidden.
    hidden_column: Option<i16>,
    /// Of a view: where its columns come from, down to the tables.
    origins: Vec<Origin>,
}

pub(super) fn catalog(raw: Raw) -> Result<Catalog, Error> {
    let mut hidden = Vec::new();
    let mut exposed = tables(&raw, &mut hidden);
    views(&raw, &mut exposed, &mut hidden)?;

    let foreign_keys = foreign_keys(&raw, &exposed);
    let mut functions: HashMap<QualifiedName, Vec<Function>> = HashMap::new();
    let mut computed_relationships = Vec::new();
    let types = row_types(&raw, &exposed);
    for raw_function in &raw.functions {
        let made = function(raw_function, &types, &raw.composites);
        if raw_function.definer_bypasses {
            hidden.push(Hidden {
                name: made.name,
                reason: HiddenReason::DefinerBypassesRowSecurity,
            });
            continue;
        }
        computed_relationships.extend(relationship(raw_function, &types));
        functions.entry(made.name.clone()).or_default().push(made);
    }
    let media_handlers = media_handlers(&raw, &exposed);
    let mut catalog = Catalog {
        fingerprint: Fingerprint("".into()),
        server_major: raw.server_major,
        relations: exposed
            .into_values()
            .map(|e| (e.relation.name.clone(), e.relation))
            .collect(),
        foreign_keys,
        functions,
        computed_relationships,
        media_handlers,
        schema_comments: raw
            .schema_comments
            .into_iter()
            .map(|(schema, comment)| (Ident::new(schema), comment))
            .collect(),
        roles: raw.roles.into_iter().map(Into::into).collect(),
        reads_request_settings: raw.reads_request_settings,
        reads_claims: raw.reads_claims,
        hidden,
    };
    catalog.fingerprint = fingerprint(&catalog);
    Ok(catalog)
}

fn tables(raw: &Raw, hidden: &mut Vec<Hidden>) -> BTreeMap<Oid, Exposed> {
    let mut columns: HashMap<Oid, Vec<&RawColumn>> = HashMap::new();
    for column in &raw.columns {
        columns.entry(column.relation).or_default().push(column);
    }
    let mut exposed = BTreeMap::new();
    for relation in raw.relations.iter().filter(|r| r.kind as u8 != b'v') {
        match scope(relation) {
            Ok(scope) => {
                let own = columns.remove(&relation.oid).unwrap_or_default();
                exposed.insert(relation.oid, table(raw, relation, scope, &own));
            }
            Err(reason) => hidden.push(Hidden {
                name: name(relation),
                reason,
            }),
        }
    }
    exposed
}

/// How a table is proven to show one tenant's rows, or why it is hidden.
fn scope(relation: &RawRelation) -> Result<Scope, HiddenReason> {
    match relation.kind as u8 {
        b'm' => return Err(HiddenReason::MaterializedView),
        b'f' => return Err(HiddenReason::ForeignTable),
        _ if relation.is_partition => return Err(HiddenReason::Partition),
        _ if relation.rules => return Err(HiddenReason::Rule),
        _ => {}
    }
    match (relation.declared.as_deref(), &relation.tenant_column) {
        (Some("distributed"), Some(column)) if relation.forced && relation.policy => {
            Ok(Scope::Distributed {
                tenant_column: Ident::new(column.as_str()),
                hidden: relation.hidden,
            })
        }
        (Some("distributed"), _) => Err(HiddenReason::PolicyMissing),
        (Some("reference"), _) if !relation.writable => Ok(Scope::Reference),
        (Some(_), _) => Err(HiddenReason::PolicyMissing),
        (None, _) => Err(HiddenReason::NotDistributed),
    }
}

fn table(raw: &Raw, relation: &RawRelation, scope: Scope, columns: &[&RawColumn]) -> Exposed {
    let (tenant_column, hidden_column) = match &scope {
        Scope::Distributed {
            tenant_column,
            hidden,
        } => {
            let mut columns = columns.iter();
            let found = columns.find(|column| column.name == tenant_column.as_str());
            let found = found.map(|column| column.number);
            (found, found.filter(|_| *hidden))
        }
        Scope::Reference | Scope::View => (None, None),
    };
    let visible: Vec<&&RawColumn> = columns
        .iter()
        .filter(|column| Some(column.number) != hidden_column)
        .collect();
    let names: HashMap<i16, Ident> = visible
        .iter()
        .map(|column| (column.number, Ident::new(column.name.as_str())))
        .collect();
    let keys: Vec<(&RawKey, Vec<i16>)> = raw
        .keys
        .iter()
        .filter(|key| key.relation == relation.oid)
        .map(|key| {
            let all = key.columns.iter().copied();
            let own = all.filter(|number| Some(*number) != tenant_column);
            let own: Vec<i16> = own.collect();
            // One row a tenant: where its column is visible, that is the key.
            let alone = own.is_empty() && hidden_column.is_none();
            (key, if alone { key.columns.clone() } else { own })
        })
        .collect();
    let primary_key = keys
        .iter()
        .find(|(key, _)| key.primary)
        .map(|(_, columns)| columns.clone())
        .unwrap_or_default();
    let read_only = matches!(scope, Scope::Reference);
    let can = |bit: i32| !read_only && relation.updatable & bit != 0;
    Exposed {
        relation: Relation {
            name: name(relation),
            kind: RelationKind::Table,
            columns: visible.iter().map(|column| model_column(column)).collect(),
            primary_key: named(&primary_key, &names),
            unique_keys: keys
                .iter()
                .map(|(key, columns)| UniqueKey {
                    name: Ident::new(key.name.as_str()),
                    columns: named(columns, &names),
                })
                .filter(|key| !key.columns.is_empty())
                .collect(),
            insertable: can(INSERT),
            updatable: can(UPDATE),
            deletable: can(DELETE),
            comment: relation.comment.clone(),
            uncacheable: uncacheable(relation),
            scope,
        },
        names,
        primary_key,
        tenant_column,
        hidden_column,
        origins: Vec::new(),
    }
}

fn uncacheable(table: &RawRelation) -> Option<Uncacheable> {
    let reasons = [
        (!table.logged, Uncacheable::Unlogged),
        (!table.published, Uncacheable::NotPublished),
        (table.moody_policy, Uncacheable::Policy),
    ];
    reasons
        .iter()
        .find(|(holds, _)| *holds)
        .map(|(_, why)| *why)
}

/// Bits of `pg_relation_is_updatable`: 1 << CmdType.
const UPDATE: i32 = 1 << 2;
const INSERT: i32 = 1 << 3;
const DELETE: i32 = 1 << 4;

/// Views over exposed relations, those over other views after them.
fn views(
    raw: &Raw,
    exposed: &mut BTreeMap<Oid, Exposed>,
    hidden: &mut Vec<Hidden>,
) -> Result<(), Error> {
    let mut waiting: Vec<&RawRelation> = Vec::new();
    for view in raw.relations.iter().filter(|r| r.kind as u8 == b'v') {
        let mut hide = |reason| {
            hidden.push(Hidden {
                name: name(view),
                reason,
            });
        };
        if !view.security_invoker {
            hide(HiddenReason::NotSecurityInvoker);
        } else if view.rules {
            hide(HiddenReason::Rule);
        } else {
            waiting.push(view);
        }
    }
    loop {
        let before = waiting.len();
        let mut later = Vec::new();
        for view in waiting {
            let rule = raw.views.iter().find(|rule| rule.oid == view.oid);
            let Some(rule) = rule.filter(|rule| {
                !rule.calls_bypassing && rule.reads.iter().all(|oid| exposed.contains_key(oid))
            }) else {
                later.push(view);
                continue;
            };
            let direct =
                origins(&rule.rule).ok_or_else(|| Error::ViewRule(name(view).to_string()))?;
            let made = self::view(raw, view, &direct, exposed);
            exposed.insert(view.oid, made);
        }
        waiting = later;
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    hidden.extend(waiting.into_iter().map(|view| Hidden {
        name: name(view),
        reason: HiddenReason::ViewOverUnscoped,
    }));
    Ok(())
}

fn view(
    raw: &Raw,
    view: &RawRelation,
    direct: &[Origin],
    exposed: &BTreeMap<Oid, Exposed>,
) -> Exposed {
    // A column of a view below is traced on to where that one comes from.
    let origins: Vec<Origin> = direct
        .iter()
        .filter_map(|origin| {
            let below = exposed.get(&origin.relation)?;
            if below.relation.kind == RelationKind::Table {
                return Some(*origin);
            }
            let deeper = below.origins.iter().find(|o| o.column == origin.number)?;
            Some(Origin {
                column: origin.column,
                ..*deeper
            })
        })
        .collect();
    let shows_tenant = |column: &RawColumn| {
        origins.iter().any(|origin| {
            origin.column == column.number
                && exposed
                    .get(&origin.relation)
                    .is_some_and(|table| table.hidden_column == Some(origin.number))
        })
    };
    let visible: Vec<&RawColumn> = raw
        .columns
        .iter()
        .filter(|column| column.relation == view.oid && !shows_tenant(column))
        .collect();
    let names: HashMap<i16, Ident> = visible
        .iter()
        .map(|column| (column.number, Ident::new(column.name.as_str())))
        .collect();
    let primary_key = view_key(&origins, exposed);
    let can = |bit: i32| view.updatable & bit != 0;
    Exposed {
        relation: Relation {
            name: name(view),
            kind: RelationKind::View,
            scope: Scope::View,
            uncacheable: Some(Uncacheable::View),
            columns: visible.iter().map(|column| model_column(column)).collect(),
            primary_key: named(&primary_key, &names),
            unique_keys: Vec::new(),
            insertable: can(INSERT),
            updatable: can(UPDATE),
            deletable: can(DELETE),
            comment: view.comment.clone(),
        },
        names,
        primary_key,
        tenant_column: None,
        hidden_column: None,
        origins,
    }
}

/// The view's columns that are the whole keys of its tables, as far as they are in it.
fn view_key(origins: &[Origin], exposed: &BTreeMap<Oid, Exposed>) -> Vec<i16> {
    let mut seen = HashSet::new();
    let mut keys = Vec::new();
    for origin in origins {
        let Some(table) = exposed.get(&origin.relation) else {
            continue;
        };
        if table.primary_key.is_empty() || !seen.insert(origin.relation) {
            continue;
        }
        let key = in_view(origins, origin.relation, &table.primary_key);
        keys.extend(key.into_iter().flatten());
    }
    keys
}

/// A table's columns as a view's columns, if the view has all of them.
fn in_view(origins: &[Origin], table: Oid, columns: &[i16]) -> Option<Vec<i16>> {
    let find = |number: &i16| {
        let found = origins
            .iter()
            .find(|o| o.relation == table && o.number == *number);
        found.map(|origin| origin.column)
    };
    columns.iter().map(find).collect()
}

/// One side of a foreign key: a relation and its columns.
struct Side<'a> {
    exposed: &'a Exposed,
    columns: Vec<Ident>,
    is_view: bool,
}

/// The constraint's own table first, then the views that show its columns.
fn sides<'a>(exposed: &'a BTreeMap<Oid, Exposed>, table: Oid, columns: &[i16]) -> Vec<Side<'a>> {
    let mut sides = Vec::new();
    for (oid, candidate) in exposed {
        let is_view = candidate.relation.kind == RelationKind::View;
        let own = match is_view {
            false if *oid == table => Some(columns.to_vec()),
            false => None,
            true => in_view(&candidate.origins, table, columns),
        };
        let named: Option<Vec<Ident>> = own.and_then(|columns| {
            let names = columns.iter().map(|number| candidate.names.get(number));
            names.map(Option::<&Ident>::cloned).collect()
        });
        if let Some(columns) = named {
            sides.push(Side {
                exposed: candidate,
                columns,
                is_view,
            });
        }
    }
    sides
}

fn foreign_keys(raw: &Raw, exposed: &BTreeMap<Oid, Exposed>) -> Vec<ForeignKey> {
    let mut keys = Vec::new();
    for key in &raw.foreign_keys {
        let (Some(table), Some(foreign)) = (exposed.get(&key.relation), exposed.get(&key.foreign))
        else {
            continue;
        };
        let pairs = pairs(key, table, foreign);
        let own: Vec<i16> = pairs.iter().map(|(own, _)| *own).collect();
        let other: Vec<i16> = pairs.iter().map(|(_, other)| *other).collect();
        let own_names: HashSet<&Ident> = own.iter().filter_map(|n| table.names.get(n)).collect();
        let one_to_one = table
            .relation
            .unique_keys
            .iter()
            .any(|unique| unique.columns.iter().collect::<HashSet<_>>() == own_names);
        let referenced = sides(exposed, key.foreign, &other);
        for side in sides(exposed, key.relation, &own) {
            for foreign_side in &referenced {
                keys.push(ForeignKey {
                    name: Ident::new(key.name.as_str()),
                    table: side.exposed.relation.name.clone(),
                    columns: side.columns.clone(),
                    foreign_table: foreign_side.exposed.relation.name.clone(),
                    foreign_columns: foreign_side.columns.clone(),
                    one_to_one,
                    through_view: side.is_view || foreign_side.is_view,
                });
            }
        }
    }
    let order = |key: &ForeignKey| {
        (
            key.table.clone(),
            key.name.clone(),
            key.foreign_table.clone(),
        )
    };
    keys.sort_by_cached_key(order);
    keys
}

/// Which columns refer to which, but for the two tenants' columns, which say nothing
/// within a tenant; unless there is nothing else that is visible.
fn pairs(key: &RawForeignKey, table: &Exposed, foreign: &Exposed) -> Vec<(i16, i16)> {
    let all = key.columns.iter().copied();
    let all = all.zip(key.foreign_columns.iter().copied());
    let visible = all.filter(|(own, other)| {
        Some(*own) != table.hidden_column && Some(*other) != foreign.hidden_column
    });
    let (tenants, own): (Vec<_>, Vec<_>) = visible.partition(|(own, other)| {
        Some(*own) == table.tenant_column && Some(*other) == foreign.tenant_column
    });
    if own.is_empty() { tenants } else { own }
}

fn row_types<'a>(raw: &Raw, exposed: &'a BTreeMap<Oid, Exposed>) -> RowTypes<'a> {
    let known = || {
        let relations = raw.relations.iter();
        relations.filter_map(|r| exposed.get(&r.oid).map(|e| (r, &e.relation.name)))
    };
    RowTypes {
        by_type: known().map(|(r, name)| (r.row_type, name)).collect(),
        by_relation: known().map(|(r, name)| (r.oid, name)).collect(),
    }
}

fn model_column(raw: &RawColumn) -> Column {
    Column {
        name: Ident::new(raw.name.as_str()),
        type_name: raw.type_name.as_str().into(),
        base_type: raw.base_type.as_str().into(),
        nullable: raw.nullable,
        default: raw.default.clone(),
        generated: raw.generated,
        enum_labels: raw.enum_labels.clone(),
        max_length: raw.max_length,
        comment: raw.comment.clone(),
        representation: representation(raw),
    }
}

fn representation(raw: &RawColumn) -> Option<Box<Representation>> {
    let function = |name: &Option<Vec<String>>| match name.as_deref() {
        Some([schema, name]) => Some(QualifiedName::new(schema.as_str(), name.as_str())),
        _ => None,
    };
    let found = Representation {
        to_json: function(&raw.to_json),
        from_json: function(&raw.from_json),
        from_text: function(&raw.from_text),
    };
    (found != Representation::default()).then(|| Box::new(found))
}

fn media_handlers(raw: &Raw, exposed: &BTreeMap<Oid, Exposed>) -> Vec<MediaHandler> {
    let handlers = raw.handlers.iter().filter_map(|handler| {
        let relation = match handler.relation {
            Some(oid) => Some(exposed.get(&oid)?.relation.name.clone()),
            None => None,
        };
        Some(MediaHandler {
            media: handler.media.as_str().into(),
            aggregate: QualifiedName::new(handler.schema.as_str(), handler.name.as_str()),
            relation,
        })
    });
    handlers.collect()
}

fn named(numbers: &[i16], names: &HashMap<i16, Ident>) -> Vec<Ident> {
    // A key with a column that is not visible is no key of the visible relation.
    let all: Option<Vec<Ident>> = numbers.iter().map(|n| names.get(n).cloned()).collect();
    all.unwrap_or_default()
}

fn name(relation: &RawRelation) -> QualifiedName {
    QualifiedName::new(relation.schema.as_str(), relation.name.as_str())
}

/// A digest over the model in a fixed order, without oids: shards of one schema
/// version agree on it. Every field is in it: routers share one model among
/// shards of equal fingerprint, keep it over a reload that brings the same, and
/// name cached answers by it.
fn fingerprint(catalog: &Catalog) -> Fingerprint {
    #[derive(Serialize)]
    struct Ordered<'a> {
        server_major: u32,
        relations: BTreeMap<String, &'a Relation>,
        foreign_keys: &'a [ForeignKey],
        functions: BTreeMap<String, &'a Vec<Function>>,
        computed: &'a [crate::catalog::ComputedRelationship],
        media_handlers: &'a [MediaHandler],
        comments: BTreeMap<String, &'a String>,
        roles: &'a [Box<str>],
        reads_request_settings: bool,
        reads_claims: bool,
        hidden: &'a [Hidden],
    }
    // Without `..`: a field that is added must be dealt with here.
    let Catalog {
        fingerprint: _,
        server_major,
        relations,
        foreign_keys,
        functions,
        computed_relationships,
        media_handlers,
        schema_comments,
        roles,
        reads_request_settings,
        reads_claims,
        hidden,
    } = catalog;
    let ordered = Ordered {
        server_major: *server_major,
        relations: relations
            .iter()
            .map(|(name, relation)| (name.to_string(), relation))
            .collect(),
        foreign_keys,
        functions: functions
            .iter()
            .map(|(name, overloads)| (name.to_string(), overloads))
            .collect(),
        computed: computed_relationships,
        media_handlers,
        comments: schema_comments
            .iter()
            .map(|(schema, comment)| (schema.to_string(), comment))
            .collect(),
        roles,
        reads_request_settings: *reads_request_settings,
        reads_claims: *reads_claims,
        hidden,
    };
    let text = serde_json::to_vec(&ordered).unwrap_or_default();
    let digest = digest::digest(&digest::SHA256, &text);
    let hex: String = digest.as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Fingerprint(hex.into())
}
