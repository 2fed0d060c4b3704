//! The request body: JSON as it came, or turned into JSON.
//!
//! Postgres reads the values; here only the shape is looked at: that it is
//! JSON, and which keys its objects have. No tree is built.

mod csv;

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Map;

use super::{ApiRequest, Method, Target};
use crate::error::Error;

/// What a request brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    None,
    /// JSON rows or arguments.
    Json(Json),
    /// One value for a function's single unnamed parameter.
    Raw {
        /// As it came.
        value: Bytes,
        /// What it is.
        kind: RawKind,
    },
}

/// A JSON document that is an object or an array of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json {
    /// As it came.
    pub text: Bytes,
    /// An array rather than an object.
    pub array: bool,
    /// Keys of its objects, sorted; none where the request's `columns`
    /// parameter makes them irrelevant.
    pub keys: Vec<String>,
    /// The keys are what is written, whatever the `columns` parameter says: it
    /// is for bodies that come as JSON.
    pub complete: bool,
    /// The pairs of a form, in order, which may repeat a key.
    pub form: Option<Vec<(String, String)>>,
}

impl Json {
    fn new(text: Bytes, array: bool, keys: Vec<String>) -> Self {
        Self {
            text,
            array,
            keys,
            complete: false,
            form: None,
        }
    }
}

/// Content types that a single unnamed parameter can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RawKind {
    /// `text/plain`
    Text,
    /// `text/xml`
    Xml,
    /// `application/octet-stream`
    Bytes,
}

/// Reads the body of `request`.
pub fn parse(
    request: &ApiRequest,
    content_type: Option<&str>,
    body: Bytes,
) -> Result<Payload, Error> {
    let call = matches!(request.target, Target::Function(_));
    match request.method {
        Method::Post | Method::Patch | Method::Put => {}
        // postgrest-py sends `{}` with DELETE.
        Method::Get | Method::Head | Method::Delete | Method::Options => {
            return Ok(Payload::None);
        }
    }
    let content_type = content_type.unwrap_or("application/json");
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "application/json" | "" => json(request, call, body),
        "text/csv" => {
            let text = csv::to_json(&body)?;
            Ok(Payload::Json(Json {
                complete: true,
                ..inspect(Bytes::from(text))?
            }))
        }
        "application/x-www-form-urlencoded" => {
            let pairs = super::query::decoded_pairs(&String::from_utf8_lossy(&body));
            let text = Bytes::from(form_to_json(&pairs));
            Ok(Payload::Json(Json {
                complete: true,
                form: Some(pairs),
                ..inspect(text)?
            }))
        }
        "text/plain" if call => Ok(raw(body, RawKind::Text)),
        "text/xml" | "application/xml" if call => Ok(raw(body, RawKind::Xml)),
        "application/octet-stream" if call => Ok(raw(body, RawKind::Bytes)),
        _ => Err(Error::Body(format!(
            "Content-Type not acceptable: {essence}"
        ))),
    }
}

fn raw(value: Bytes, kind: RawKind) -> Payload {
    Payload::Raw { value, kind }
}

fn json(request: &ApiRequest, call: bool, body: Bytes) -> Result<Payload, Error> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    // Postgres says what is wrong with it.
    if request.query.columns.is_some() {
        let array = first == Some(&b'[');
        return Ok(Payload::Json(Json::new(body, array, Vec::new())));
    }
    if call && first.is_none() {
        let empty = Bytes::from_static(b"{}");
        return Ok(Payload::Json(Json::new(empty, false, Vec::new())));
    }
    inspect(body).map(Payload::Json)
}

fn inspect(text: Bytes) -> Result<Json, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(&text);
    let shape = deserializer
        .deserialize_any(Document)
        .and_then(|shape| deserializer.end().map(|()| shape))
        .map_err(|_| Error::Body("Empty or invalid json".into()))?;
    Ok(match shape {
        Shape::Object(keys) => Json::new(text, false, keys.into_iter().collect()),
        Shape::Rows(keys) => Json::new(text, true, keys.into_iter().collect()),
        // What is neither rows nor a row counts as no rows.
        Shape::Scalar => Json::new(Bytes::from_static(b"[]"), true, Vec::new()),
        Shape::Mixed => return Err(Error::Body("All object keys must match".into())),
    })
}

enum Shape {
    Object(BTreeSet<String>),
    Rows(BTreeSet<String>),
    Mixed,
    Scalar,
}

struct Document;

impl<'de> Visitor<'de> for Document {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            keys.insert(key);
        }
        Ok(Shape::Object(keys))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Shape, A::Error> {
        let mut keys: Option<BTreeSet<String>> = None;
        let mut mixed = false;
        // Read to the end whatever comes: broken JSON is the first error.
        while let Some(row) = rows.next_element::<Row>()? {
            match (row.0, &keys) {
                (Some(found), None) => keys = Some(found),
                (Some(found), Some(keys)) if found == *keys => {}
                (Some(_) | None, _) => mixed = true,
            }
        }
        Ok(match mixed {
            true => Shape::Mixed,
            false => Shape::Rows(keys.unwrap_or_default()),
        })
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }
}

/// The keys of an element; none where it is no object.
struct Row(Option<BTreeSet<String>>);

impl<'de> serde::Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Element)
    }
}

struct Element;

impl<'de> Visitor<'de> for Element {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Row, A::Error> {
        match Document.visit_map(map)? {
            Shape::Object(keys) => Ok(Row(Some(keys))),
            Shape::Rows(_) | Shape::Mixed | Shape::Scalar => Ok(Row(None)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Row, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Row(None))
    }

    fn visit_unit<E>(self) -> Result<Row, E> {
        Ok(Row(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Row, E> {
        Ok(Row(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Row, E> {
        Ok(Row(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Row, E> {
        Ok(Row(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Row, E> {
        Ok(Row(None))
    }

    fn visit_str<E>(self, _: &str) -> Result<Row, E> {
        Ok(Row(None))
    }
}

/// `a=1&b=x` as one row of texts.
fn form_to_json(pairs: &[(String, String)]) -> String {
    let mut row = Map::new();
    for (key, value) in pairs {
        row.insert(key.clone(), value.as_str().into());
    }
    serde_json::Value::Object(row).to_string()
}
