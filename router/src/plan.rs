//! Stage 4: a request and the schema model to a [`Plan`]. Pure.
//!
//! Every name of the request is looked up here. What a plan holds are
//! identifiers of the catalog, and values; request text that is neither (the
//! key of a result, a JSON path, a value) is sent as a parameter by `sql`.

mod call;
mod field;
mod media;
mod model;
mod read;
mod relationship;
mod suggest;
mod types;
pub mod violation;
mod write;

use std::sync::Arc;

use schema::catalog::{Catalog, Relation, Representation};
use schema::ident::{Ident, QualifiedName};

use crate::config::{Api, OpenApi};
use crate::error::Error;
use crate::request::accept::{Explain, ExplainOption, MediaType};
use crate::request::body::Payload;
use crate::request::logic::Join;
use crate::request::name::JsonStep;
use crate::request::order::{Direction, Nulls};
use crate::request::page::Page;
use crate::request::prefer::Transaction;
use crate::request::select::Aggregate;
use crate::request::{ApiRequest, Method, Target};

pub(crate) use call::array_literal;
pub use call::{Arguments, Call, Value as ArgumentValue};
pub use media::Handler;
pub use model::{Model, Relationship};
pub use relationship::{Cardinality, Link};
pub use write::{Change, Conflict, Precondition, Returning, Rows, Write, WrittenColumn};

/// What is to be done, with all names resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is to be done.
    pub action: Action,
    /// What the answer is made of.
    pub media: MediaType,
    /// What makes its body, where that is the application's own.
    pub handler: Option<Handler>,
    /// Not the answer is wanted, but how Postgres would come to it.
    pub explain: Option<Explain>,
    /// The body is wanted.
    pub body: bool,
    /// All rows are to be counted.
    pub count: bool,
    /// How the statement is to be run.
    pub form: Form,
    /// Every relation whose rows can matter, each once, sorted.
    pub relations: Vec<QualifiedName>,
    /// A function or a view takes part: it may set `response.headers`, and
    /// what it reads is not in `relations`.
    pub opaque: bool,
}

impl Plan {
    /// The answer is exactly one row, or nothing is done.
    pub fn singular(&self) -> bool {
        self.explain.is_none() && matches!(self.media, MediaType::Object { .. })
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Read rows of a relation.
    Read(Node),
    /// Change rows of a relation.
    Write(Box<Write>),
    /// Call a function.
    Call(Box<Call>),
    /// Say which methods there are; no statement.
    Options(Vec<&'static str>),
    /// Describe the schema.
    Describe(Description),
}

/// What the document at the root describes.
#[derive(Clone, Debug)]
pub struct Description {
    /// All that is exposed.
    pub catalog: Arc<Catalog>,
    /// Which schema of it.
    pub schema: String,
    /// Only what the role may use, which the shard is asked for; otherwise there
    /// is no statement.
    pub by_privileges: bool,
}

impl PartialEq for Description {
    fn eq(&self, other: &Self) -> bool {
        self.catalog.fingerprint == other.catalog.fingerprint
            && self.schema == other.schema
            && self.by_privileges == other.by_privileges
    }
}

/// How a statement is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// One guarded statement.
    Read,
    /// A transaction that can't write: what is called might try to.
    ReadOnlyTransaction,
    /// A transaction.
    Write,
    /// A transaction that is rolled back at its end.
    WriteAndRollBack,
}

impl Form {
    /// It can change rows.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::WriteAndRollBack)
    }
}

/// Rows of one level: the request's own, or an embedded one's.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where the rows come from.
    pub source: Source,
    /// What each row holds, in order.
    pub outputs: Vec<Output>,
    /// Other relations' rows that outputs and conditions refer to by index.
    pub embeds: Vec<Embed>,
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// The first matters most.
    pub order: Vec<OrderTerm>,
    /// The window over the rows.
    pub page: Page,
}

impl Node {
    /// Rows are grouped by whatever is not aggregated.
    pub fn grouped(&self) -> bool {
        self.outputs.iter().any(|output| output.aggregate.is_some())
    }

    /// Rows are aggregated to exactly one, which is there also for none.
    pub fn one_group(&self) -> bool {
        let aggregated =
            |output: &Output| output.aggregate.is_some() || output.value == Value::Rows;
        !self.outputs.is_empty() && self.outputs.iter().all(aggregated)
    }
}

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A table or view.
    Relation {
        /// Its name.
        name: QualifiedName,
        /// The column that scopes it to a tenant.
        tenant: Option<Ident>,
    },
    /// The rows that a write or a call produced, which `sql` names.
    Produced,
    /// A function of the parent's row.
    Computed {
        /// The function.
        function: QualifiedName,
    },
}

impl Source {
    fn of(relation: &Relation) -> Self {
        Self::Relation {
            name: relation.name.clone(),
            tenant: relation.tenant_column().cloned(),
        }
    }
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its key.
    pub key: Key,
    /// The value.
    pub value: Value,
    /// What is made of the values of all rows.
    pub aggregate: Option<AggregateCall>,
}

/// The key of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A name of the catalog: it may stand in SQL.
    Model(Ident),
    /// A text of the request: it may not.
    Request(String),
}

impl Key {
    /// As it stands in the result.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Model(name) => name.as_str(),
            Self::Request(text) => text,
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A field of the row.
    Field {
        /// Which.
        field: FieldRef,
        /// Cast to this type.
        cast: Option<TypeName>,
    },
    /// As many rows there are: `select=count`.
    Rows,
    /// Every row alike: what `count()` counts.
    Row,
    /// An embed's rows, as JSON.
    Embed(usize),
    /// An output of a spread embed.
    Lifted {
        /// The embed.
        embed: usize,
        /// Its output.
        output: usize,
    },
}

/// An aggregate over the rows of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregateCall {
    /// Which.
    pub function: Aggregate,
    /// The result is cast to this type.
    pub cast: Option<TypeName>,
}

/// A type's name, from the catalog or from the list of built-in ones; safe in SQL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TypeName(pub Box<str>);

/// A column or computed field, or a place in its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRef {
    /// The column.
    pub column: ColumnRef,
    /// Its base type, e.g. `jsonb`.
    pub base_type: Box<str>,
    /// How its domain is shown and compared with what clients write.
    pub representation: Option<Box<Representation>>,
    /// Steps into its value.
    pub path: Vec<JsonStep>,
}

/// A column, or what counts as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnRef {
    /// A column.
    Column(Ident),
    /// A function of the row.
    Computed(QualifiedName),
}

/// A condition on a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// A test of a field.
    Test {
        /// Which.
        field: FieldRef,
        /// The test.
        operation: crate::request::filter::Operation,
    },
    /// Conditions, joined.
    Group {
        /// NOT.
        negated: bool,
        /// How.
        join: Join,
        /// At least one.
        items: Vec<Condition>,
    },
    /// The embed has rows.
    Exists {
        /// It has none.
        negated: bool,
        /// Which.
        embed: usize,
    },
}

/// One term of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderTerm {
    /// A to-one embed whose field it is.
    pub embed: Option<usize>,
    /// What is ordered by.
    pub field: FieldRef,
    /// Which way.
    pub direction: Option<Direction>,
    /// Where NULLs go.
    pub nulls: Option<Nulls>,
}

/// Another relation's rows that belong to a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// How they belong to it.
    pub link: Link,
    /// At most one.
    pub to_one: bool,
    /// Its outputs are its parent's.
    pub spread: bool,
    /// The rows.
    pub node: Node,
}

/// Decides what a request does.
///
/// # Errors
/// Whatever the schema model, the configuration or the body does not allow.
pub fn plan(
    model: &Model,
    config: &Api,
    request: &ApiRequest,
    payload: &Payload,
) -> Result<Plan, Error> {
    let mut planner = Planner {
        model,
        config,
        request,
        relations: Vec::new(),
        opaque: false,
    };
    let (action, form) = match (&request.target, request.method) {
        (Target::Root, Method::Options) => {
            (Action::Options(vec!["OPTIONS", "GET", "HEAD"]), Form::Read)
        }
        (Target::Root, _) => {
            return match &config.root_spec {
                Some(function) => planner.described_by(function, payload),
                None => planner.describe(),
            };
        }
        (Target::Relation(name), Method::Options) => {
            let relation = planner.relation(name)?;
            (Action::Options(relation_methods(relation)), Form::Read)
        }
        (Target::Function(name), Method::Options) => (
            Action::Options(planner.function_methods(name, payload)?),
            Form::Read,
        ),
        (Target::Relation(name), Method::Get | Method::Head) => {
            let relation = planner.relation(name)?;
            (Action::Read(planner.read(relation)?), Form::Read)
        }
        (Target::Relation(name), _) => {
            let relation = planner.relation(name)?;
            let write = planner.write(relation, payload)?;
            (Action::Write(Box::new(write)), Form::Write)
        }
        (Target::Function(name), _) => {
            let (call, form) = planner.call(name, payload)?;
            (Action::Call(Box::new(call)), form)
        }
    };
    planner.finish(action, form)
}

struct Planner<'a> {
    model: &'a Model,
    config: &'a Api,
    request: &'a ApiRequest,
    relations: Vec<QualifiedName>,
    opaque: bool,
}

impl<'a> Planner<'a> {
    fn relation(&mut self, name: &str) -> Result<&'a Relation, Error> {
        let wanted = QualifiedName::new(self.request.schema.as_str(), name);
        let model = self.model;
        match model.catalog().relations.get(&wanted) {
            Some(relation) => {
                self.touch(relation);
                Ok(relation)
            }
            None => Err(Error::NoRelation {
                name: format!("{}.{name}", self.request.schema),
                similar: suggest::relation(model.catalog(), &wanted),
            }),
        }
    }

    /// Notes that the rows of `relation` matter.
    fn touch(&mut self, relation: &Relation) {
        self.relations.push(relation.name.clone());
        // A view, or a policy, may call functions of the schema and read other tables.
        self.opaque |= relation.uncacheable.is_some();
    }

    fn describe(self) -> Result<Plan, Error> {
        self.check_description()?;
        let description = Description {
            catalog: self.model.shared(),
            schema: self.request.schema.clone(),
            by_privileges: self.config.openapi == OpenApi::FollowPrivileges,
        };
        Ok(Plan {
            action: Action::Describe(description),
            media: MediaType::OpenApi,
            handler: None,
            explain: None,
            body: self.request.method == Method::Get,
            count: false,
            form: match self.config.pre_request {
                Some(_) => Form::ReadOnlyTransaction,
                None => Form::Read,
            },
            relations: Vec::new(),
            opaque: true,
        })
    }

    /// The application describes itself.
    fn described_by(mut self, function: &str, payload: &Payload) -> Result<Plan, Error> {
        self.check_description()?;
        let (call, _) = self.call(function, payload)?;
        Ok(Plan {
            action: Action::Call(Box::new(call)),
            media: MediaType::OpenApi,
            handler: None,
            explain: None,
            body: self.request.method == Method::Get,
            count: false,
            form: Form::ReadOnlyTransaction,
            relations: self.relations,
            opaque: true,
        })
    }

    fn check_description(&self) -> Result<(), Error> {
        if self.config.openapi == OpenApi::Disabled {
            return Err(Error::NoDescription);
        }
        self.check_preferences()?;
        let wanted = |media: &MediaType| {
            matches!(media, MediaType::Any | MediaType::Json | MediaType::OpenApi)
        };
        match self.request.accept.iter().any(wanted) {
            true => Ok(()),
            false => Err(self.nothing_acceptable()),
        }
    }

    fn finish(mut self, action: Action, form: Form) -> Result<Plan, Error> {
        // Reads negotiate before preferences are judged, writes after.
        let (media, handler) = if self.request.method.reads() {
            let media = self.negotiate(&action)?;
            self.check_preferences()?;
            media
        } else {
            self.check_preferences()?;
            self.negotiate(&action)?
        };
        let (media, explain) = match media {
            MediaType::Plan(explain) => {
                let (media, explain) = self.explained(explain);
                (media, Some(explain))
            }
            media => (media, None),
        };
        self.relations.sort();
        self.relations.dedup();
        let before = self.config.pre_request.is_some();
        let roll_back = self.config.tx_rollback
            && self.request.prefer.transaction == Some(Transaction::Rollback);
        Ok(Plan {
            action,
            form: match (&explain, form) {
                // An explanation changes nothing, whatever it has to run.
                (Some(explain), Form::Write) if explain.runs() => Form::WriteAndRollBack,
                (Some(_), _) => Form::ReadOnlyTransaction,
                (None, Form::Write) if roll_back => Form::WriteAndRollBack,
                (None, Form::Read) if before || handler.is_some() => Form::ReadOnlyTransaction,
                (None, form) => form,
            },
            media,
            explain,
            body: self.request.method != Method::Head,
            count: self.request.prefer.count.is_some(),
            relations: self.relations,
            opaque: self.opaque || before || handler.is_some(),
            handler,
        })
    }

    fn check_preferences(&self) -> Result<(), Error> {
        let prefer = &self.request.prefer;
        if prefer.strict() && !prefer.unknown.is_empty() {
            return Err(Error::Preferences(prefer.unknown.clone()));
        }
        Ok(())
    }

    /// The media type whose statement is explained, and what of the asked is shown.
    /// What ANALYZE finds counts the rows of all tenants of the shard.
    fn explained(&self, mut explain: Explain) -> (MediaType, Explain) {
        if !self.config.plan_figures {
            explain.options.retain(|option| {
                matches!(option, ExplainOption::Verbose | ExplainOption::Settings)
            });
        }
        let media = match explain.of.as_deref().map(MediaType::parse) {
            Some(
                media @ (MediaType::StrippedArray
                | MediaType::Object { .. }
                | MediaType::Csv
                | MediaType::GeoJson),
            ) => media,
            _ => MediaType::Json,
        };
        (media, explain)
    }

    fn nothing_acceptable(&self) -> Error {
        let accepted = self.request.accept.iter();
        let accepted = accepted.map(|media| match media {
            MediaType::Other(text) => text.clone(),
            media => media.content_type().replace("; charset=utf-8", ""),
        });
        Error::MediaType(accepted.collect::<Vec<_>>().join(", "))
    }
}

fn relation_methods(relation: &Relation) -> Vec<&'static str> {
    let keyed = !relation.primary_key.is_empty();
    let possible = [
        ("POST", relation.insertable),
        ("PUT", relation.insertable && relation.updatable && keyed),
        ("PATCH", relation.updatable),
        ("DELETE", relation.deletable),
    ];
    let mut methods = vec!["OPTIONS", "GET", "HEAD"];
    methods.extend(
        possible
            .iter()
            .filter(|(_, yes)| *yes)
            .map(|(name, _)| name),
    );
    methods
}
