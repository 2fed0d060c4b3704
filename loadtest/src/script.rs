//! A scenario's operations made ready for the hot path: constant parts are
//! built once, lists are numbers, and rendering only appends.

use std::collections::HashMap;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use crate::lists::Lists;
use crate::scenario::{self, Body, Scenario};
use crate::template::{Generator, Part, Surroundings, Template};
use crate::token::{PREFIX, Tag};

/// What generated parts of a path may hold unencoded.
const URL_SAFE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// All operations, and how often each is chosen.
#[derive(Debug)]
pub struct Script {
    /// The operations, in the scenario's order.
    pub operations: Vec<Operation>,
    /// How many lists of saved values there are.
    pub lists: usize,
    /// For each list the operation that fills it.
    fillers: Vec<usize>,
    cumulative: Vec<f64>,
}

/// One kind of request.
#[derive(Debug)]
pub struct Operation {
    /// Its name in reports.
    pub name: String,
    /// The method.
    pub method: Method,
    path: Path,
    headers: Vec<(HeaderName, Header)>,
    body: Payload,
    expect: Vec<u16>,
    /// Which fields of answers go into which lists.
    pub saves: Vec<(usize, String)>,
    needs: Vec<usize>,
    /// Where its canaries end up; its inserts are journaled.
    pub journal: Option<Column>,
    /// How often it runs for each tenant before the clock starts.
    pub prepare: u32,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Column {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
}

#[derive(Debug)]
enum Path {
    Constant(Uri),
    Pieces(Vec<Piece>),
}

#[derive(Debug)]
enum Header {
    Constant(HeaderValue),
    Pieces(Vec<Piece>),
}

#[derive(Debug)]
enum Payload {
    None,
    Constant(Bytes),
    Pieces {
        pieces: Vec<Piece>,
        rows: Option<u32>,
    },
}

#[derive(Debug, Clone)]
enum Piece {
    Literal(String),
    Value(Generator, Escape),
    Saved {
        list: usize,
        take: bool,
        escape: Escape,
    },
    Canary,
}

/// How a value is written so that it stays one value where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    /// As it is.
    Raw,
    /// Percent-encoded.
    Url,
    /// Inside a JSON text.
    JsonText,
    /// As a whole JSON value.
    JsonValue,
}

/// A rendered request, without what belongs to tenant and target.
#[derive(Debug)]
pub struct Rendered {
    /// Path and query with the target's prefix.
    pub uri: Uri,
    /// The operation's headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Bytes,
    /// How many canaries it carries; they are numbered upwards from the
    /// number that the context began with.
    pub canaries: u32,
}

/// What rendering draws from.
#[derive(Debug)]
pub struct Context<'a> {
    /// For the generators.
    pub surroundings: Surroundings<'a>,
    /// Saved values.
    pub lists: &'a mut Lists,
    /// The tenant's place in the population.
    pub tenant: usize,
    /// The tenant's tag.
    pub tag: Tag,
    /// The run's name.
    pub run: &'a str,
    /// The number of the next canary, and by how much it rises.
    pub canary: &'a mut u64,
    /// The step between two canaries of a thread.
    pub canary_step: u64,
}

impl Script {
    /// Compiles a checked scenario for targets whose paths begin with
    /// `prefix`.
    pub fn compile(scenario: &Scenario, prefix: &str) -> Self {
        let mut names: HashMap<&str, usize> = HashMap::new();
        for operation in &scenario.operations {
            for list in operation.get_ref().save.keys() {
                let next = names.len();
                names.entry(list).or_insert(next);
            }
        }
        let operations: Vec<Operation> = scenario
            .operations
            .iter()
            .map(|operation| compile(operation.get_ref(), prefix, &names))
            .collect();
        let total: f64 = scenario
            .operations
            .iter()
            .map(|operation| *operation.get_ref().weight.get_ref())
            .sum();
        let mut sum = 0.0;
        let cumulative = scenario
            .operations
            .iter()
            .map(|operation| {
                sum += *operation.get_ref().weight.get_ref() / total;
                sum
            })
            .collect();
        Script {
            fillers: fillers(&operations, names.len()),
            operations,
            lists: names.len(),
            cumulative,
        }
    }

    /// The operations of a replayed log: paths come from the log.
    pub fn of_log(operations: Vec<(String, Method)>) -> Self {
        let operations = operations
            .into_iter()
            .map(|(name, method)| Operation {
                name,
                method,
                path: Path::Constant(Uri::from_static("/")),
                headers: Vec::new(),
                body: Payload::None,
                // A replayed request may well have been refused then, too;
                // only failures of the server are errors.
                expect: (200..500).collect(),
                saves: Vec::new(),
                needs: Vec::new(),
                journal: None,
                prepare: 0,
            })
            .collect();
        Script {
            operations,
            lists: 0,
            fillers: Vec::new(),
            cumulative: Vec::new(),
        }
    }

    /// Draws an operation.
    pub fn draw(&self, random: &mut fastrand::Rng) -> usize {
        let at = random.f64();
        self.cumulative
            .partition_point(|share| *share <= at)
            .min(self.operations.len().saturating_sub(1))
    }

    /// The operation itself, or the one that must come first because a list
    /// that it takes from is still empty for this tenant.
    pub fn ready(&self, operation: usize, tenant: usize, lists: &Lists) -> usize {
        let mut operation = operation;
        // Each step goes to an operation that was filled earlier in
        // `fillers`, so this ends.
        while let Some(list) = self.operations[operation]
            .needs
            .iter()
            .find(|list| lists.is_empty(tenant, **list))
        {
            operation = self.fillers[*list];
        }
        operation
    }
}

/// For each list the first operation that can fill it without needing a list
/// that is filled later; validation has made sure that there is one.
fn fillers(operations: &[Operation], lists: usize) -> Vec<usize> {
    let mut fillers: Vec<Option<usize>> = vec![None; lists];
    for _ in 0..lists {
        let known: Vec<bool> = fillers.iter().map(Option::is_some).collect();
        for (place, operation) in operations.iter().enumerate() {
            if operation.needs.iter().all(|list| known[*list]) {
                for (list, _) in &operation.saves {
                    fillers[*list].get_or_insert(place);
                }
            }
        }
    }
    fillers.into_iter().map(Option::unwrap_or_default).collect()
}

fn compile(
    operation: &scenario::Operation,
    prefix: &str,
    names: &HashMap<&str, usize>,
) -> Operation {
    let path = operation.path.get_ref();
    let constant = path
        .constant()
        .and_then(|text| format!("{prefix}{text}").parse().ok());
    let path = match constant {
        Some(uri) => Path::Constant(uri),
        None => {
            let mut pieces = vec![Piece::Literal(prefix.to_owned())];
            append(&mut pieces, path, Escape::Url, names);
            Path::Pieces(pieces)
        }
    };
    let mut headers: Vec<(HeaderName, Header)> = operation
        .headers
        .iter()
        .filter_map(|(name, value)| {
            Some((
                HeaderName::try_from(name.as_str()).ok()?,
                header(value.get_ref(), names),
            ))
        })
        .collect();
    if operation.body.is_some() && !headers.iter().any(|(name, _)| name == CONTENT_TYPE) {
        headers.push((
            CONTENT_TYPE,
            Header::Constant(HeaderValue::from_static("application/json")),
        ));
    }
    let body = payload(
        operation.body.as_ref(),
        operation.rows.as_ref().map(|rows| *rows.get_ref()),
        names,
    );
    let mut needs: Vec<usize> = Vec::new();
    let mut need = |pieces: &[Piece]| {
        needs.extend(pieces.iter().filter_map(|piece| match piece {
            Piece::Saved { list, .. } => Some(*list),
            Piece::Literal(_) | Piece::Value(..) | Piece::Canary => None,
        }));
    };
    if let Path::Pieces(pieces) = &path {
        need(pieces);
    }
    if let Payload::Pieces { pieces, .. } = &body {
        need(pieces);
    }
    for (_, value) in &headers {
        if let Header::Pieces(pieces) = value {
            need(pieces);
        }
    }
    Operation {
        name: operation.name.clone(),
        method: Method::from_bytes(operation.method.get_ref().as_bytes()).unwrap_or_default(),
        path,
        headers,
        body,
        expect: operation.expect.clone(),
        saves: operation
            .save
            .iter()
            .map(|(list, field)| (names[list.as_str()], field.clone()))
            .collect(),
        needs,
        journal: operation
            .table()
            .zip(operation.canary_column())
            .map(|(table, column)| Column {
                table: table.to_owned(),
                column: column.to_owned(),
            }),
        prepare: operation.prepare,
    }
}

fn header(template: &Template, names: &HashMap<&str, usize>) -> Header {
    if let Some(value) = template
        .constant()
        .and_then(|text| HeaderValue::from_str(text).ok())
    {
        return Header::Constant(value);
    }
    let mut pieces = Vec::new();
    append(&mut pieces, template, Escape::Raw, names);
    Header::Pieces(pieces)
}

fn payload(body: Option<&Body>, rows: Option<u32>, names: &HashMap<&str, usize>) -> Payload {
    let mut pieces = Vec::new();
    match body {
        None => return Payload::None,
        Some(Body::Text(template)) => append(&mut pieces, template, Escape::Raw, names),
        Some(value) => append_json(&mut pieces, value, names),
    }
    if rows.is_none()
        && pieces
            .iter()
            .all(|piece| matches!(piece, Piece::Literal(_)))
    {
        let text: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => text.as_str(),
                Piece::Value(..) | Piece::Saved { .. } | Piece::Canary => "",
            })
            .collect();
        return Payload::Constant(Bytes::from(text));
    }
    Payload::Pieces { pieces, rows }
}

fn append_json(pieces: &mut Vec<Piece>, body: &Body, names: &HashMap<&str, usize>) {
    match body {
        Body::Number(number) => literal(pieces, &number.to_string()),
        Body::Bool(truth) => literal(pieces, if *truth { "true" } else { "false" }),
        Body::Text(template) => match template.parts() {
            [Part::Value(_) | Part::Saved { .. }] => {
                append(pieces, template, Escape::JsonValue, names)
            }
            _ => {
                literal(pieces, "\"");
                append(pieces, template, Escape::JsonText, names);
                literal(pieces, "\"");
            }
        },
        Body::Array(items) => {
            literal(pieces, "[");
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    literal(pieces, ",");
                }
                append_json(pieces, item, names);
            }
            literal(pieces, "]");
        }
        Body::Object(fields) => {
            literal(pieces, "{");
            for (place, (name, value)) in fields.iter().enumerate() {
                if place > 0 {
                    literal(pieces, ",");
                }
                let mut text = String::from("\"");
                escape_json(name, &mut text);
                text.push_str("\":");
                literal(pieces, &text);
                append_json(pieces, value, names);
            }
            literal(pieces, "}");
        }
    }
}

fn append(
    pieces: &mut Vec<Piece>,
    template: &Template,
    escape: Escape,
    names: &HashMap<&str, usize>,
) {
    for part in template.parts() {
        match part {
            Part::Literal(text) if escape == Escape::JsonText => {
                let mut escaped = String::new();
                escape_json(text, &mut escaped);
                literal(pieces, &escaped);
            }
            Part::Literal(text) => literal(pieces, text),
            Part::Value(generator) => pieces.push(Piece::Value(generator.clone(), escape)),
            Part::Saved { list, take } => pieces.push(Piece::Saved {
                list: names[list.as_str()],
                take: *take,
                escape,
            }),
            Part::Canary => pieces.push(Piece::Canary),
        }
    }
}

/// Appends a literal, to the one before it if there is one.
fn literal(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        Some(Piece::Literal(last)) => last.push_str(text),
        _ => pieces.push(Piece::Literal(text.to_owned())),
    }
}

fn escape_json(text: &str, out: &mut String) {
    // Serializing a text cannot fail; the quotes around it are dropped.
    let quoted = serde_json::to_string(text).unwrap_or_default();
    out.push_str(
        quoted
            .get(1..quoted.len().saturating_sub(1))
            .unwrap_or_default(),
    );
}

impl Operation {
    /// Whether a status is an answer rather than an error.
    pub fn expects(&self, status: u16) -> bool {
        if self.expect.is_empty() {
            return (200..300).contains(&status) || status == 304;
        }
        self.expect.contains(&status)
    }

    /// Whether it can change rows.
    pub fn writes(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS)
    }

    /// Renders a request; `None` when a generated value makes a path or
    /// header that HTTP cannot carry.
    pub fn render(&self, context: &mut Context<'_>) -> Option<Rendered> {
        let mut canaries = 0;
        let uri = match &self.path {
            Path::Constant(uri) => uri.clone(),
            Path::Pieces(pieces) => {
                Uri::from_maybe_shared(Bytes::from(write(pieces, context, &mut canaries))).ok()?
            }
        };
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let value = match value {
                Header::Constant(value) => value.clone(),
                Header::Pieces(pieces) => HeaderValue::from_maybe_shared(Bytes::from(write(
                    pieces,
                    context,
                    &mut canaries,
                )))
                .ok()?,
            };
            headers.push((name.clone(), value));
        }
        let body = match &self.body {
            Payload::None => Bytes::new(),
            Payload::Constant(body) => body.clone(),
            Payload::Pieces { pieces, rows: None } => {
                Bytes::from(write(pieces, context, &mut canaries))
            }
            Payload::Pieces {
                pieces,
                rows: Some(rows),
            } => {
                let mut text = String::from("[");
                for row in 0..*rows {
                    if row > 0 {
                        text.push(',');
                    }
                    text.push_str(&write(pieces, context, &mut canaries));
                }
                text.push(']');
                Bytes::from(text)
            }
        };
        Some(Rendered {
            uri,
            headers,
            body,
            canaries,
        })
    }
}

/// The other columns of a watched row; values only from generators.
#[derive(Debug)]
pub struct RowTemplate(Vec<Piece>);

impl RowTemplate {
    /// Compiles a table of columns.
    pub fn compile(row: Option<&Body>) -> Self {
        let mut pieces = Vec::new();
        if let Some(row) = row {
            append_json(&mut pieces, row, &HashMap::new());
        }
        RowTemplate(pieces)
    }

    /// A row.
    pub fn render(&self, surroundings: &mut Surroundings<'_>) -> Map<String, Value> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Value(generator, escape) => {
                    let mut value = String::new();
                    generator.write(surroundings, &mut value);
                    push_escaped(
                        &value,
                        *escape,
                        *escape == Escape::JsonValue && generator.is_text(),
                        &mut text,
                    );
                }
                // Refused where the scenario is read.
                Piece::Saved { .. } | Piece::Canary => {}
            }
        }
        serde_json::from_str(&text).unwrap_or_default()
    }
}

fn write(pieces: &[Piece], context: &mut Context<'_>, canaries: &mut u32) -> String {
    let mut out = String::with_capacity(128);
    for piece in pieces {
        match piece {
            Piece::Literal(text) => out.push_str(text),
            Piece::Value(generator, Escape::Raw) => {
                generator.write(&mut context.surroundings, &mut out)
            }
            Piece::Value(generator, escape) => {
                let mut value = String::new();
                generator.write(&mut context.surroundings, &mut value);
                let quoted = *escape == Escape::JsonValue && generator.is_text();
                push_escaped(&value, *escape, quoted, &mut out);
            }
            Piece::Saved { list, take, escape } => {
                let value =
                    context
                        .lists
                        .draw(context.tenant, *list, *take, context.surroundings.random);
                push_saved(value.as_deref().unwrap_or("null"), *escape, &mut out);
            }
            Piece::Canary => {
                let Context {
                    tag, run, canary, ..
                } = context;
                out.push_str(PREFIX);
                out.push_str(tag.as_str());
                out.push('~');
                out.push_str(run);
                out.push_str("~m");
                out.push_str(&canary.to_string());
                out.push('~');
                **canary += context.canary_step;
                *canaries += 1;
            }
        }
    }
    out
}

fn push_escaped(value: &str, escape: Escape, quoted: bool, out: &mut String) {
    match escape {
        Escape::Raw => out.push_str(value),
        Escape::Url => out.extend(utf8_percent_encode(value, URL_SAFE)),
        Escape::JsonText => escape_json(value, out),
        Escape::JsonValue if quoted => {
            out.push('"');
            escape_json(value, out);
            out.push('"');
        }
        Escape::JsonValue => out.push_str(value),
    }
}

/// Writes a saved value, which is kept as the JSON that it came as.
fn push_saved(json: &str, escape: Escape, out: &mut String) {
    if escape == Escape::JsonValue {
        out.push_str(json);
        return;
    }
    let text: Option<String> = serde_json::from_str(json).ok();
    push_escaped(text.as_deref().unwrap_or(json), escape, false, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIO: &str = r#"
        name = "t"
        [[stage]]
        kind = "constant"
        duration = "1s"
        level = 1
        [[operation]]
        name = "list"
        path = "/contacts?limit=5"
        save = { contact = "id" }
        [[operation]]
        name = "change"
        method = "PATCH"
        path = "/contacts?id=eq.{{pick contact}}&q={{choice a b&c}}"
        body = { note = "say \"{{choice x\"y}}\"", n = "{{int 3 3}}", who = "{{tenant}}", id = "{{pick contact}}" }
        [[operation]]
        name = "insert"
        method = "POST"
        path = "/notes"
        rows = 2
        body = { body = "{{canary}} {{words 1}}" }
    "#;

    fn render(script: &Script, operation: usize, lists: &mut Lists, canary: &mut u64) -> Rendered {
        let mut context = Context {
            surroundings: Surroundings {
                random: &mut fastrand::Rng::with_seed(1),
                fresh: &mut fastrand::Rng::with_seed(1),
                sequence: &mut 0,
                run: "r",
                tenant: "acme",
                now: 0,
            },
            lists,
            tenant: 0,
            tag: Tag::of("acme"),
            run: "run1",
            canary,
            canary_step: 4,
        };
        script.operations[operation].render(&mut context).unwrap()
    }

    #[test]
    fn values_stay_one_value_wherever_they_stand() {
        let script = Script::compile(&Scenario::parse("t", SCENARIO).unwrap(), "/rest/v1");
        let mut lists = Lists::new(1, script.lists);
        assert_eq!(script.ready(1, 0, &lists), 0, "the list is filled first");
        lists.keep(0, 0, "\"a&b\"".to_owned());
        assert_eq!(script.ready(1, 0, &lists), 1);
        let rendered = render(&script, 1, &mut lists, &mut 0);
        assert_eq!(
            rendered.uri.to_string(),
            "/rest/v1/contacts?id=eq.a%26b&q=a%20b%26c"
        );
        let body: serde_json::Value = serde_json::from_slice(&rendered.body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({ "note": "say \"x\"y\"", "n": 3, "who": "acme", "id": "a&b" })
        );
        assert_eq!(rendered.headers[0].0, CONTENT_TYPE);
    }

    #[test]
    fn rows_carry_numbered_canaries() {
        let script = Script::compile(&Scenario::parse("t", SCENARIO).unwrap(), "");
        assert_eq!(
            script.operations[2].journal,
            Some(Column {
                table: "notes".to_owned(),
                column: "body".to_owned()
            })
        );
        let mut canary = 3;
        let rendered = render(&script, 2, &mut Lists::new(1, script.lists), &mut canary);
        assert_eq!((rendered.canaries, canary), (2, 11));
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&rendered.body).unwrap();
        let tag = Tag::of("acme");
        assert!(
            rows[1]["body"]
                .as_str()
                .unwrap()
                .starts_with(&format!("rfc~{tag}~run1~m7~ ")),
            "{rows:?}"
        );
    }

    #[test]
    fn choices_follow_weights() {
        let text = SCENARIO.replace("name = \"list\"", "name = \"list\"\nweight = 2");
        let script = Script::compile(&Scenario::parse("t", &text).unwrap(), "");
        let mut random = fastrand::Rng::with_seed(1);
        let drawn = (0..10_000)
            .filter(|_| script.draw(&mut random) == 0)
            .count();
        assert!((4_800..5_200).contains(&drawn), "{drawn}");
    }
}
