//! Functions: which overload, which arguments, what comes back.

use bytes::Bytes;
use schema::catalog::{Function, Parameter, Shape, Volatility};
use schema::ident::{Ident, QualifiedName};

use super::field::RowType;
use super::read::Wants;
use super::write::Rows;
use super::{Form, Node, Planner, Source, suggest};
use crate::error::Error;
use crate::request::Method;
use crate::request::body::{Payload, RawKind};
use crate::request::page::Page;

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
    /// At most as many rows may come back, or nothing was done.
    pub max_affected: Option<i64>,
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
            (None, _) => Arguments::Named(self.named_arguments(function)),
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
            max_affected: bound,
        };
        let form = match (function.volatility, reads) {
            (Volatility::Volatile, true) => Form::ReadOnlyTransaction,
            (Volatility::Volatile, false) => Form::Write,
            (Volatility::Stable | Volatility::Immutable, _) => Form::Read,
        };
        Ok((call, form))
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
            (Payload::Json(_), Some(columns)) => columns.iter().map(String::as_str).collect(),
            (Payload::Json(json), None) => json.keys.iter().map(String::as_str).collect(),
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
        let overloads = overloads.map_or(&[][..], Vec::as_slice);
        let raw = matches!(payload, Payload::Raw { .. });
        let by_name: Vec<&Function> = overloads
            .iter()
            .filter(|function| !raw && takes(function, given))
            .collect();
        match by_name.as_slice() {
            [one] => return Ok((one, None)),
            [] => {}
            several => {
                let signatures = several.iter().map(|function| signature(function));
                let signatures: Vec<String> = signatures.collect();
                return Err(Error::AmbiguousFunction(signatures.join(", ")));
            }
        }
        let by_body = overloads.iter().find_map(|function| {
            let parameter = whole_body(function, payload)?;
            Some((function, Some(parameter)))
        });
        by_body
            .filter(|_| self.request.method == Method::Post)
            .ok_or_else(|| self.no_function(name, given))
    }

    fn named_arguments(&self, function: &Function) -> Vec<Value> {
        let given = &self.request.query.arguments;
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

    fn result(&mut self, function: &'a Function) -> Result<Option<Node>, Error> {
        let rows = match &function.returns.shape {
            Shape::Void | Shape::Scalar(_) | Shape::Record => return Ok(None),
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

    fn no_function(&self, name: &str, given: &[&str]) -> Error {
        let schema = &self.request.schema;
        let full = format!("{schema}.{name}");
        let with = match given {
            [] => " without parameters".to_owned(),
            [one] => format!(" with parameter {one}"),
            several => format!(" with parameters {}", several.join(", ")),
        };
        let body = match self.request.method {
            Method::Post => " or with a single unnamed json/jsonb parameter",
            _ => "",
        };
        let signature = match given {
            [] => format!("{full} without parameters"),
            several => format!("{full}({})", several.join(", ")),
        };
        let functions = self.model.catalog().functions.keys();
        let names = functions.filter(|function| function.schema.as_str() == schema);
        let similar = suggest::function(names.map(|function| function.name.as_str()), name);
        Error::NoFunction {
            message: format!("Could not find the function {signature} in the schema cache"),
            details: format!(
                "Searched for the function {full}{with}{body}, but no matches were found in the \
                 schema cache."
            ),
            similar: similar.and_then(|found| self.similar_signature(found)),
        }
    }

    fn similar_signature(&self, name: &str) -> Option<String> {
        let found = QualifiedName::new(self.request.schema.as_str(), name);
        let overloads = self.model.catalog().functions.get(&found)?;
        let parameters = overloads.first()?.parameters.iter();
        let names: Vec<&str> = parameters.map(|p| p.name.as_str()).collect();
        Some(format!(
            "{}.{name}({})",
            self.request.schema,
            names.join(", ")
        ))
    }
}

/// Required ⊆ given ⊆ all of them.
fn takes(function: &Function, given: &[&str]) -> bool {
    let parameters = &function.parameters;
    let named = parameters.iter().all(|p| !p.name.as_str().is_empty());
    let required = parameters.iter().filter(|p| p.required);
    let mut required = required.map(|p| p.name.as_str());
    let known = |name: &&str| parameters.iter().any(|p| p.name.as_str() == *name);
    (named || given.is_empty() && parameters.is_empty())
        && required.all(|name| given.contains(&name))
        && given.iter().all(known)
}

/// The single unnamed parameter, where the body is of its type.
fn whole_body<'a>(function: &'a Function, payload: &Payload) -> Option<&'a Parameter> {
    let [parameter] = function.parameters.as_slice() else {
        return None;
    };
    let fits = match payload {
        Payload::Json(_) => matches!(&*parameter.base_type, "json" | "jsonb"),
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
