//! The schema model: what a shard's API schemas hold, as immutable values.
//!
//! Only what is *proven scoped* is in here: distributed tables, reference
//! tables, and `security_invoker` views over them. The tenant column is already
//! taken out of keys and foreign keys, and out of columns where
//! `ringfence.distribute` added it, so that everything downstream sees the
//! single-tenant schema that the application's authors wrote;
//! [`Relation::tenant_column`] remembers it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::ident::{Ident, QualifiedName};

/// A digest of the whole model: equal fingerprints mean equal models, so that
/// shards of one schema version share one [`Catalog`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub Box<str>);

/// Everything that requests are planned against.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Catalog {
    /// Digest of all below.
    pub fingerprint: Fingerprint,
    /// Postgres major version of the shard, e.g. 15.
    pub server_major: u32,
    /// Tables and views by name.
    pub relations: HashMap<QualifiedName, Relation>,
    /// Foreign keys among `relations`, without the tenant column, including
    /// those that views inherit from the tables they select from.
    pub foreign_keys: Vec<ForeignKey>,
    /// Functions by name; several when overloaded.
    pub functions: HashMap<QualifiedName, Vec<Function>>,
    /// Functions of one row-type argument that return another relation's rows.
    pub computed_relationships: Vec<ComputedRelationship>,
    /// Aggregates that make an answer of a media type of their own.
    pub media_handlers: Vec<MediaHandler>,
    /// Comment of each exposed schema, for OpenAPI.
    pub schema_comments: HashMap<Ident, String>,
    /// Names of roles that exist on the shard and that `router` may take.
    pub roles: Vec<Box<str>>,
    /// Whether any policy, view, default or function reads `request.method`,
    /// `request.path`, `request.headers` or `request.cookies`: only then are
    /// they sent with each request.
    pub reads_request_settings: bool,
    /// Whether any policy could read `request.jwt.claims`: only then can two
    /// requests of one role see different rows.
    pub reads_claims: bool,
    /// What was left out, and why; `ringfence doctor` lists it.
    pub hidden: Vec<Hidden>,
}

/// A table or view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// Its name.
    pub name: QualifiedName,
    /// Table or view.
    pub kind: RelationKind,
    /// How it is proven to show one tenant only.
    pub scope: Scope,
    /// Why an answer made of its rows can't be kept; none where it can.
    pub uncacheable: Option<Uncacheable>,
    /// Visible columns, in attribute order.
    pub columns: Vec<Column>,
    /// Primary key columns without the tenant column, unless a visible one is all
    /// of it; of a view, the columns that carry its tables' keys. Empty where there
    /// is none.
    pub primary_key: Vec<Ident>,
    /// Column sets (without the tenant column) that are unique for a tenant,
    /// from primary keys, unique constraints and plain unique indexes.
    pub unique_keys: Vec<UniqueKey>,
    /// INSERT is possible.
    pub insertable: bool,
    /// UPDATE is possible.
    pub updatable: bool,
    /// DELETE is possible.
    pub deletable: bool,
    /// `COMMENT ON`.
    pub comment: Option<String>,
}

impl Relation {
    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name.as_str() == name)
    }

    /// The tenant column to scope scans by, where the relation has one.
    pub fn tenant_column(&self) -> Option<&Ident> {
        match &self.scope {
            Scope::Distributed { tenant_column, .. } => Some(tenant_column),
            Scope::Reference | Scope::View => None,
        }
    }
}

/// Columns that are unique for a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueKey {
    /// The index's name, which is the constraint's where there is one.
    pub name: Ident,
    /// The columns without the tenant's.
    pub columns: Vec<Ident>,
}

/// Kinds of relations that are exposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelationKind {
    /// An ordinary or partitioned table.
    Table,
    /// A `security_invoker` view.
    View,
}

/// Why a relation can show only one tenant's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Forced row level security with the restrictive tenant policy.
    Distributed {
        /// The tenant column's name.
        tenant_column: Ident,
        /// Whether the API hides it: true where `distribute` added it. Where
        /// false it is also in `columns`.
        hidden: bool,
    },
    /// The same rows for all, read-only to tenants.
    Reference,
    /// A view that runs with its caller's rights over scoped relations.
    View,
}

/// Why an answer made of a relation's rows can't be kept: it could change
/// without a change of rows that capture hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Uncacheable {
    /// An unlogged table leaves no trace in the log.
    Unlogged,
    /// The table is not in the publication that capture reads.
    NotPublished,
    /// A policy reads other tables, the clock, or calls what might.
    Policy,
    /// A view: what it reads and calls is not proven.
    View,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: Ident,
    /// `format_type()` with modifiers, e.g. `character varying(20)`; safe to
    /// put into SQL as it is.
    pub type_name: Box<str>,
    /// The base type below domains, without modifiers, e.g. `text`.
    pub base_type: Box<str>,
    /// NULL is allowed.
    pub nullable: bool,
    /// The default as SQL text; of an identity column the `nextval` call.
    pub default: Option<String>,
    /// GENERATED ALWAYS AS (…) STORED, or GENERATED ALWAYS AS IDENTITY: a client can't write it.
    pub generated: bool,
    /// Labels of an enum type, else empty.
    pub enum_labels: Vec<String>,
    /// Length limit of char types.
    pub max_length: Option<i32>,
    /// `COMMENT ON`.
    pub comment: Option<String>,
    /// How clients see it and write it, where its domain says so.
    pub representation: Option<Box<Representation>>,
}

/// How values of a domain are shown and read: functions of implicit casts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Representation {
    /// From the domain to json, for answers.
    pub to_json: Option<QualifiedName>,
    /// From json to the domain, for payloads.
    pub from_json: Option<QualifiedName>,
    /// From text to the domain, for filters.
    pub from_text: Option<QualifiedName>,
}

/// An aggregate whose result type is a domain named as a media type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaHandler {
    /// The domain's name in lower case, e.g. `text/xml`, or `*/*`.
    pub media: Box<str>,
    /// The aggregate.
    pub aggregate: QualifiedName,
    /// The relation whose whole rows it takes; none where it takes any rows.
    pub relation: Option<QualifiedName>,
}

/// A foreign key between two relations of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// The constraint's name.
    pub name: Ident,
    /// The referencing relation.
    pub table: QualifiedName,
    /// Referencing columns, in order.
    pub columns: Vec<Ident>,
    /// The referenced relation.
    pub foreign_table: QualifiedName,
    /// Referenced columns, in the same order.
    pub foreign_columns: Vec<Ident>,
    /// The referencing columns equal a primary key or unique constraint's
    /// column set, so the relationship is one-to-one.
    pub one_to_one: bool,
    /// `table` or `foreign_table` is a view that stands for the constraint's
    /// own table: constraint and column names do not resolve to it as targets.
    pub through_view: bool,
}

/// A function that can be called through `/rpc/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: QualifiedName,
    /// Input parameters in order (IN, INOUT, VARIADIC).
    pub parameters: Vec<Parameter>,
    /// What it returns.
    pub returns: Returns,
    /// `IMMUTABLE`, `STABLE` or `VOLATILE`.
    pub volatility: Volatility,
    /// Settings of the function (`SET name = value`) by lower-case name.
    pub settings: Vec<(String, String)>,
    /// `COMMENT ON`.
    pub comment: Option<String>,
}

/// A function's parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Name; empty where it has none.
    pub name: Ident,
    /// `format_type()`; safe to put into SQL as it is.
    pub type_name: Box<str>,
    /// The base type below domains.
    pub base_type: Box<str>,
    /// It has no default.
    pub required: bool,
    /// It takes all remaining arguments as an array.
    pub variadic: bool,
}

/// What a function returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returns {
    /// More than one row may come (`SETOF`, `TABLE`).
    pub set: bool,
    /// The shape of a row.
    pub shape: Shape,
}

/// The shape of a function's result row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// `void`.
    Void,
    /// One value of this type.
    Scalar(Box<str>),
    /// Rows of a relation of the model.
    Relation(QualifiedName),
    /// Rows of the named columns: OUT parameters, `TABLE (…)`, or a composite type.
    Composite(Vec<(Ident, Box<str>)>),
    /// `record` without a column list.
    Record,
}

/// A function's volatility.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Volatility {
    /// Same answer for ever.
    Immutable,
    /// Same answer within a statement; can't write.
    Stable,
    /// May write.
    Volatile,
}

/// A relationship that a function computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputedRelationship {
    /// The function; its name is the embed target.
    pub function: QualifiedName,
    /// The relation whose row it takes.
    pub table: QualifiedName,
    /// The relation whose rows it returns.
    pub foreign_table: QualifiedName,
    /// At most one row (`ROWS 1` or not a set).
    pub to_one: bool,
}

/// Something that is there on the shard and not exposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden {
    /// Its name.
    pub name: QualifiedName,
    /// Why.
    pub reason: HiddenReason,
}

/// Why something is not exposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HiddenReason {
    /// A table that is neither distributed nor a reference table.
    NotDistributed,
    /// Marked as distributed, but row security is off, not forced, or its policy was changed.
    PolicyMissing,
    /// A view without `security_invoker`.
    NotSecurityInvoker,
    /// A view over something that is itself not scoped.
    ViewOverUnscoped,
    /// A partition, reachable by its own name.
    Partition,
    /// A materialized view.
    MaterializedView,
    /// A foreign table.
    ForeignTable,
    /// A SECURITY DEFINER function whose owner passes row security.
    DefinerBypassesRowSecurity,
    /// It has rewrite rules, which run with their owner's rights.
    Rule,
}
