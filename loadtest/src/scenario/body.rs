//! The body of an operation as TOML has it. Texts are parsed as templates
//! while they are read, so that a problem is reported at its own line.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::template::Template;

/// A JSON value whose texts are templates.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A text. At the top level it is the body itself, sent as it is.
    Text(Template),
    /// A number.
    Number(serde_json::Number),
    /// A truth value.
    Bool(bool),
    /// An array.
    Array(Vec<Body>),
    /// An object, in the order of the file.
    Object(Vec<(String, Body)>),
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BodyVisitor)
    }
}

struct BodyVisitor;

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, number, truth value, array or table")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Body, E> {
        text.parse().map(Body::Text).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Body, E> {
        Ok(Body::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Body, E> {
        serde_json::Number::from_f64(number)
            .map(Body::Number)
            .ok_or_else(|| E::custom("JSON has no infinite numbers"))
    }

    fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<Body, E> {
        Ok(Body::Bool(truth))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Body, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Body::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, Body>()? {
            if name.starts_with("$__toml_private") {
                return Err(A::Error::custom(
                    "write dates as texts; JSON has no type for them",
                ));
            }
            fields.push((name, value));
        }
        Ok(Body::Object(fields))
    }
}

impl JsonSchema for Body {
    fn schema_name() -> Cow<'static, str> {
        "Body".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A table or array is sent as JSON, its texts are templates; a text is sent as it is.",
            "type": ["object", "array", "string", "number", "boolean"]
        })
    }
}
