//! Functions: which overload, which arguments, what comes back.

use bytes::Bytes;
use schema::catalog::{Function, Parameter, Shape, Volatility};
use schema::ident::{Ident, QualifiedName};

use super::field::RowType;
use super::read::Wants;
use super::write::Rows;
use super::{Form, Node, Planner, Source, suggest, types};
use crate::error::{Error, Unrelated};
use crate::request::Method;
use crate::request::body::{Json, Payload, RawKind};
use crate::request::page::Page;
use crate::request::select::Item;

/// A call of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The function.
    pub function: QualifiedName,
    /// What it gets.
    pub arguments: Arguments,
    /// Its result is many rows or values.
    pub set: bool,
    /// What is read of its rows; none where it returns values or nothing.
    pub node: Option<Node>,
    /// The window over the values of a set; of rows it is the node's.
    pub page: Page,
    /// It returns nothing.
    pub void: bool,
    /// Its one value is of a domain that is named as this media type.
    pub media: Option<String>,
    /// The relation whose rows it returns.
    pub relation: Option<QualifiedName>,
    /// At most as many rows may come back, or nothing was done.
    pub max_affected: Option<i64>,
    /// Settings of the function that hold for the whole transaction.
    pub settings: Vec<(String, String)>,
}

/// What a function gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// Named members of one JSON object: (name, type, variadic).
    Json {
        /// Which parameters.
        parameters: Vec<(Ident, Box<str>, bool)>,
        /// The document.
        rows: Rows,
    },
    /// Named values.
    Named(Vec<Value>),
    /// The one unnamed parameter of this type.
    Unnamed {
        /// Its type.
        type_name: Box<str>,
        /// Its value, as Postgres reads it.
        value: Bytes,
    },
}

/// A named argument, as Postgres reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The parameter.
    pub name: Ident,
    /// Its type; of a variadic one the array's.
    pub type_name: Box<str>,
    /// It takes an array of all further ones.
    pub variadic: bool,
    /// The value.
    pub text: String,
}

impl<'a> Planner<'a> {
    pub(super) fn call(&mut self, name: &str, payload: &Payload) -> Result<(Call, Form), Error> {
        self.opaque = true;
        let reads = self.request.method.reads();
        let given = self.given(payload);
        let (function, unnamed) = self.choose(name, &given, payload)?;
        let arguments = match (unnamed, payload) {
            (Some(parameter), payload) => unnamed_argument(parameter, payload),
            (
                None,
                Payload::Json(Json {
                    form: Some(pairs), ..
                }),
            ) => Arguments::Named(named_arguments(function, pairs)),
            (None, Payload::Json(json)) if !reads => {
                let parameters = function.parameters.iter();
                let named = parameters.filter(|p| given.iter().any(|g| *g == p.name.as_str()));
                Arguments::Json {
                    parameters: named
                        .map(|p| (p.name.clone(), p.type_name.clone(), p.variadic))
                        .collect(),
                    rows: Rows {
                        text: json.text.clone(),
                        array: json.array,
                        binary: false,
                    },
                }
            }
            (None, _) => Arguments::Named(named_arguments(function, &self.request.query.arguments)),
        };
        let shape = &function.returns.shape;
        let bound = self.request.prefer.bound();
        if bound.is_some() && !function.returns.set {
            return Err(Error::MaxAffectedFunction);
        }
        let call = Call {
            function: function.name.clone(),
            arguments,
            set: function.returns.set,
            node: self.result(function)?,
            page: self.call_page(function),
            void: matches!(shape, Shape::Void),
            media: match shape {
                Shape::Scalar(name) if !function.returns.set => types::media(name),
                _ => None,
            },
            relation: match shape {
                Shape::Relation(name) => Some(name.clone()),
                _ => None,
            },
            max_affected: bound,
            settings: self.hoisted(function),
        };
        let form = match (function.volatility, reads) {
            (Volatility::Volatile, true) => Form::ReadOnlyTransaction,
            (Volatility::Volatile, false) => Form::Write,
            // Constant to Postgres, so it may be called while the statement is
            // planned, which must not be before the guard has run.
            (Volatility::Immutable, _) => Form::ReadOnlyTransaction,
            // A limit on time must be set before the statement that it limits.
            (Volatility::Stable, _) if !call.settings.is_empty() => Form::ReadOnlyTransaction,
            (Volatility::Stable, _) => Form::Read,
        };
        Ok((call, form))
    }

    fn hoisted(&self, function: &Function) -> Vec<(String, String)> {
        let settings = function.settings.iter();
        let hoisted = settings.filter(|(name, _)| self.config.hoisted_settings.contains(name));
        hoisted.cloned().collect()
    }

    /// Methods of a function: reading ones only where it can't write.
    pub(super) fn function_methods(
        &self,
        name: &str,
        payload: &Payload,
    ) -> Result<Vec<&'static str>, Error> {
        let given = self.given(payload);
        let (function, _) = self.choose(name, &given, payload)?;
        Ok(match function.volatility {
            Volatility::Volatile => vec!["OPTIONS", "POST"],
            Volatility::Stable | Volatility::Immutable => vec!["OPTIONS", "GET", "HEAD", "POST"],
        })
    }

    /// The names of the arguments.
    fn given<'b>(&'b self, payload: &'b Payload) -> Vec<&'b str> {
        let query = &self.request.query;
        let mut names: Vec<&str> = match (payload, &query.columns) {
            (_, _) if self.request.method.reads() => query
                .arguments
                .iter()
                .map(|(name, _)| name.as_str())
                .collect(),
            (Payload::Json(json), Some(columns)) if !json.complete => {
                columns.iter().map(String::as_str).collect()
            }
            (Payload::Json(json), _) => json.keys.iter().map(String::as_str).collect(),
            (Payload::Raw { .. } | Payload::None, _) => Vec::new(),
        };
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The one overload that takes exactly these arguments, or one that takes
    /// the whole body as its single unnamed parameter.
    fn choose(
        &self,
        name: &str,
        given: &[&str],
        payload: &Payload,
    ) -> Result<(&'a Function, Option<&'a Parameter>), Error> {
        let wanted = QualifiedName::new(self.request.schema.as_str(), name);
        let model = self.model;
        let overloads = model.catalog().functions.get(&wanted);
        let overloads: Vec<&Function> = overloads
            .into_iter()
            .flatten()
            .filter(|function| callable(function))
            .collect();
        let raw = matches!(payload, Payload::Raw { .. });
        let reads = self.request.method.reads();
        let fits = |function: &&&Function| {
            !raw && takes(function, given) && !(reads && unnamed(function).is_some())
        };
        let by_name: Vec<&Function> = overloads.iter().filter(fits).copied().collect();
        match by_name.as_slice() {
            [one] => return Ok((one, unnamed(one))),
            [] => {}
            several => return Err(ambiguous(several)),
        }
        let whole = |function: &&&Function| {
            self.request.method == Method::Post && whole_body(function, payload).is_some()
        };
        let by_body: Vec<&Function> = overloads.iter().filter(whole).copied().collect();
        match by_body.as_slice() {
            [one] => Ok((one, unnamed(one))),
            [] => Err(self.no_function(name, given, payload, &overloads)),
            several => Err(ambiguous(several)),
        }
    }

    fn result(&mut self, function: &'a Function) -> Result<Option<Node>, Error> {
        let rows = match &function.returns.shape {
            Shape::Void | Shape::Scalar(_) | Shape::Record => {
                self.embeds_nothing(&function.name)?;
                return Ok(None);
            }
            Shape::Composite(columns) => RowType::Columns {
                name: function.name.name.as_str(),
                columns,
            },
            Shape::Relation(name) => {
                let relation = self.model.catalog().relations.get(name);
                let relation = relation.ok_or_else(|| Error::Internal {
                    why: format!("{name} is returned and not in the catalog"),
                })?;
                self.touch(relation);
                RowType::Relation(relation)
            }
        };
        let query = &self.request.query;
        let wants = Wants::of(query);
        wants.check_paths(&query.select)?;
        let mut node = self.level(rows, Source::Produced, &query.select, wants)?;
        node.page = self.call_page(function);
        Ok(Some(node))
    }

    /// What returns no rows has no relationships.
    fn embeds_nothing(&self, function: &QualifiedName) -> Result<(), Error> {
        let mut items = self.request.query.select.iter();
        let embed = items.find_map(|item| match item {
            Item::Embed(embed) => Some(embed),
            _ => None,
        });
        match embed {
            Some(embed) => Err(Error::NoRelationship(Box::new(Unrelated {
                origin: function.name.as_str().to_owned(),
                target: embed.target.clone(),
                schema: self.request.schema.clone(),
                hint: embed.hint.clone(),
                similar: suggest::embed(self.model, function, &embed.target),
            }))),
            None => Ok(()),
        }
    }

    /// What a set is cut to; what may have written is not cut unasked.
    fn call_page(&self, function: &Function) -> Page {
        let page = self.request.page;
        let reads = self.request.method.reads() || function.volatility != Volatility::Volatile;
        match (function.returns.set, reads) {
            (false, _) => Page::default(),
            (true, true) => page.capped(self.config.rows_max),
            (true, false) => page,
        }
    }

    fn no_function(
        &self,
        name: &str,
        given: &[&str],
        payload: &Payload,
        overloads: &[&Function],
    ) -> Error {
        let schema = &self.request.schema;
        let full = format!("{schema}.{name}");
        let with = match given {
            [] => " without parameters".to_owned(),
            [one] => format!(" with parameter {one}"),
            several => format!(" with parameters {}", several.join(", ")),
        };
        let (signature, with) = match (payload, given) {
            // Such a body is the one argument, whatever the function's name for it.
            (Payload::Raw { kind, .. }, _) => {
                let only = match kind {
                    RawKind::Text => "text",
                    RawKind::Xml => "xml",
                    RawKind::Bytes => "bytea",
                };
                (
                    full.clone(),
                    format!(" with a single unnamed {only} parameter"),
                )
            }
            (Payload::Json(_) | Payload::None, []) => (format!("{full} without parameters"), with),
            (Payload::Json(_) | Payload::None, several) => {
                (format!("{full}({})", several.join(", ")), with)
            }
        };
        let body = match payload {
            Payload::Json(json) if self.request.method == Method::Post && !json.complete => {
                " or with a single unnamed json/jsonb parameter"
            }
            Payload::Json(_) | Payload::Raw { .. } | Payload::None => "",
        };
        Error::NoFunction {
            message: format!("Could not find the function {signature} in the schema cache"),
            details: format!(
                "Searched for the function {full}{with}{body}, but no matches were found in the \
                 schema cache."
            ),
            similar: match payload {
                Payload::Raw { .. } => None,
                Payload::Json(_) | Payload::None => self.similar_function(name, given, overloads),
            },
        }
    }

    /// Another overload, or where there is none, another function.
    fn similar_function(
        &self,
        name: &str,
        given: &[&str],
        overloads: &[&Function],
    ) -> Option<String> {
        let schema = self.request.schema.as_str();
        if overloads.is_empty() {
            let functions = self.model.catalog().functions.iter();
            let names = functions
                .filter(|(other, found)| {
                    other.schema.as_str() == schema && found.iter().any(callable)
                })
                .map(|(other, _)| other.name.as_str());
            return suggest::function(names, name).map(|found| format!("{schema}.{found}"));
        }
        let lists: Vec<String> = overloads
            .iter()
            .map(|function| {
                let parameters = function.parameters.iter();
                parameter_list(parameters.map(|p| p.name.as_str()).collect())
            })
            .collect();
        let wanted = parameter_list(given.to_vec());
        let found = suggest::function(lists.iter().map(String::as_str), &wanted)?;
        Some(format!("{schema}.{name}{found}"))
    }
}

/// The arguments of a query string or a form.
fn named_arguments(function: &Function, given: &[(String, String)]) -> Vec<Value> {
    let values = |name: &Ident| {
        let mine = given.iter().filter(|(key, _)| key == name.as_str());
        mine.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    let named = function.parameters.iter().filter_map(|parameter| {
        let values = values(&parameter.name);
        let last = *values.last()?;
        let text = match parameter.variadic {
            true => array_literal(&values),
            false => last.to_owned(),
        };
        Some(Value {
            name: parameter.name.clone(),
            type_name: parameter.type_name.clone(),
            variadic: parameter.variadic,
            text,
        })
    });
    named.collect()
}

/// `(a, b)`, in the order of the alphabet.
fn parameter_list(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    format!("({})", names.join(", "))
}

fn ambiguous(functions: &[&Function]) -> Error {
    let mut functions = functions.to_vec();
    functions.sort_by_key(|function| {
        let parameters = function.parameters.iter();
        let list: Vec<(&str, &str)> = parameters
            .map(|p| (p.name.as_str(), &*p.type_name))
            .collect();
        (list.len(), list)
    });
    let signatures: Vec<String> = functions.iter().map(|f| signature(f)).collect();
    Error::AmbiguousFunction(signatures.join(", "))
}

/// All its parameters have names, or the only one takes a whole body.
fn callable(function: &Function) -> bool {
    let nameless = |p: &&Parameter| p.name.as_str().is_empty();
    !function.parameters.iter().any(|p| nameless(&p))
        || unnamed(function)
            .is_some_and(|p| matches!(&*p.base_type, "json" | "jsonb" | "text" | "xml" | "bytea"))
}

/// Its only parameter, where that has no name.
fn unnamed(function: &Function) -> Option<&Parameter> {
    match function.parameters.as_slice() {
        [only] if only.name.as_str().is_empty() => Some(only),
        _ => None,
    }
}

/// Required ⊆ given ⊆ all of them.
fn takes(function: &Function, given: &[&str]) -> bool {
    let parameters = &function.parameters;
    let required = parameters.iter().filter(|p| p.required);
    let mut required = required.map(|p| p.name.as_str());
    let known = |name: &&str| parameters.iter().any(|p| p.name.as_str() == *name);
    required.all(|name| given.contains(&name)) && given.iter().all(known)
}

/// The single unnamed parameter, where the body is of its type.
fn whole_body<'a>(function: &'a Function, payload: &Payload) -> Option<&'a Parameter> {
    let [parameter] = function.parameters.as_slice() else {
        return None;
    };
    let fits = match payload {
        // Not what was made into JSON here.
        Payload::Json(json) => !json.complete && matches!(&*parameter.base_type, "json" | "jsonb"),
        Payload::Raw { kind, .. } => match kind {
            RawKind::Text => &*parameter.base_type == "text",
            RawKind::Xml => &*parameter.base_type == "xml",
            RawKind::Bytes => &*parameter.base_type == "bytea",
        },
        Payload::None => false,
    };
    (fits && parameter.name.as_str().is_empty()).then_some(parameter)
}

fn unnamed_argument(parameter: &Parameter, payload: &Payload) -> Arguments {
    let value = match payload {
        Payload::Json(json) => json.text.clone(),
        Payload::Raw {
            value,
            kind: RawKind::Bytes,
        } => hex(value),
        Payload::Raw { value, .. } => value.clone(),
        Payload::None => Bytes::new(),
    };
    Arguments::Unnamed {
        type_name: parameter.type_name.clone(),
        value,
    }
}

/// `bytea` in the text format.
fn hex(value: &[u8]) -> Bytes {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 + value.len() * 2);
    text.push_str("\\x");
    for byte in value {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

/// An array as Postgres reads it, every element quoted.
pub(crate) fn array_literal<T: AsRef<str>>(elements: &[T]) -> String {
    let mut text = String::from("{");
    for (index, element) in elements.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push('"');
        for c in element.as_ref().chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    text
}

fn signature(function: &Function) -> String {
    let parameters = function.parameters.iter();
    let list = parameters.map(|p| format!("{} => {}", p.name.as_str(), p.type_name));
    let list: Vec<String> = list.collect();
    format!(
        "{}.{}({})",
        function.name.schema.as_str(),
        function.name.name.as_str(),
        list.join(", ")
    )
}
