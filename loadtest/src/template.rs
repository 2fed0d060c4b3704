//! Texts with generated parts: `Call {{name}} on {{date 0 30}}`.

mod generate;
mod words;

use std::borrow::Cow;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

pub use generate::{Generator, Surroundings};

/// A text with generated parts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template {
    parts: Vec<Part>,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text as it stands.
    Literal(String),
    /// `{{int 1 100}}` and the like: a value of the generator's own.
    Value(Generator),
    /// `{{pick contact}}`, `{{take contact}}`: a value saved from an earlier
    /// answer; `take` also removes it, so that it is used once.
    Saved {
        /// The list that an operation's `save` fills.
        list: String,
        /// Whether the value leaves the list.
        take: bool,
    },
    /// `{{canary}}`: a token that is unique to this row and names its tenant.
    Canary,
}

impl Template {
    /// Its parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The lists that it takes values from.
    pub fn lists(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Saved { list, .. } => Some(list.as_str()),
            Part::Literal(_) | Part::Value(_) | Part::Canary => None,
        })
    }

    /// Whether it carries a canary.
    pub fn has_canary(&self) -> bool {
        self.parts.contains(&Part::Canary)
    }

    /// The text, when nothing of it is generated.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find("{{") {
            if open > 0 {
                parts.push(Part::Literal(rest[..open].to_owned()));
            }
            let inner = &rest[open + 2..];
            let close = inner
                .find("}}")
                .ok_or_else(|| format!("\"{{{{\" without \"}}}}\" in {text:?}"))?;
            parts.push(part(inner[..close].trim())?);
            rest = &inner[close + 2..];
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Template { parts })
    }
}

fn part(text: &str) -> Result<Part, String> {
    let (name, argument) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let list = || match argument.trim() {
        "" => Err(format!("{{{{{name}}}}} needs the name of a list")),
        list => Ok(list.to_owned()),
    };
    match name {
        "canary" => Ok(Part::Canary),
        "pick" => Ok(Part::Saved {
            list: list()?,
            take: false,
        }),
        "take" => Ok(Part::Saved {
            list: list()?,
            take: true,
        }),
        _ => Generator::parse(name, argument.trim()).map(Part::Value),
    }
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": format!(
                "A text; these parts are replaced: {{{{canary}}}}, {{{{pick LIST}}}}, {{{{take LIST}}}}, {}.",
                Generator::FORMS.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_into_parts() {
        let template: Template = "/contacts?id=eq.{{pick contact}}&n={{ int 1 9 }}"
            .parse()
            .unwrap();
        assert_eq!(
            template.parts(),
            [
                Part::Literal("/contacts?id=eq.".to_owned()),
                Part::Saved {
                    list: "contact".to_owned(),
                    take: false
                },
                Part::Literal("&n=".to_owned()),
                Part::Value(Generator::Int(1, 9)),
            ]
        );
        assert_eq!(template.lists().collect::<Vec<_>>(), ["contact"]);
        assert_eq!(template.constant(), None);
        assert_eq!(
            "plain".parse::<Template>().unwrap().constant(),
            Some("plain")
        );
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for (text, said) in [
            ("{{nmae}}", "nmae"),
            ("{{int 5}}", "int MIN MAX"),
            ("{{int 9 1}}", "above"),
            ("{{name", "without"),
            ("{{pick}}", "list"),
            ("{{name x}}", "no argument"),
        ] {
            let error = text.parse::<Template>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
