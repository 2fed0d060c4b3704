//! Values that occur, that could, and that can't.

use schema::catalog::{Column, Relation};
use serde_json::{Value, json};

use super::Grammar;

impl<'a> Grammar<'a> {
    /// A value of the column as text, mostly one that occurs.
    pub(super) fn raw(&mut self, relation: &Relation, column: &Column) -> String {
        let samples = self.world.samples(relation, column);
        if !samples.is_empty() && self.chance(80) {
            return self.pick(samples).clone();
        }
        if self.chance(15) {
            return (self.word(&[
                "", "nonsense", "a,b", "(x)", "\"q\"", "{}", "null", "%", "1 ", "ß", "'",
            ]))
            .to_owned();
        }
        self.plausible(column).to_owned()
    }

    fn plausible(&mut self, column: &Column) -> &'static str {
        match &*column.base_type {
            "bigint" | "integer" => self.word(&["0", "3", "-1", "50", "1000"]),
            "numeric" | "double precision" => self.word(&["0", "9.99", "12.5", "-3e2"]),
            "boolean" => self.word(&["true", "f", "0"]),
            "date" => self.word(&["1980-05-06", "2000-01-01"]),
            "timestamp with time zone" | "timestamp without time zone" => {
                self.word(&["2001-02-03T04:05:06Z", "2010-10-10 10:10:10+02"])
            }
            "jsonb" | "json" => self.word(&["{}", "{\"cast\": {}}", "[1]", "null"]),
            "int4range" => self.word(&["[1,20)", "(5,6]", "empty"]),
            "daterange" => self.word(&["[2020-01-01,2021-01-01)", "(,)"]),
            "text[]" => self.word(&["{voice}", "{}", "{\"two words\",x}"]),
            "integer[]" => self.word(&["{1}", "{1,2,3,4}", "{}"]),
            "uuid" => "11111111-1111-4111-8111-111111111111",
            _ => self.word(&["Dog", "Old Hall", "x", "Ada"]),
        }
    }

    /// A value behind an operator; in a tree it is quoted where it must be.
    pub(super) fn value(&mut self, value: &str, in_tree: bool) -> String {
        let special = value.contains([',', '(', ')', '"', '\\', '{', '}', ' ']) || value.is_empty();
        if in_tree && (special || self.chance(15)) {
            return quote(value);
        }
        value.to_owned()
    }

    /// An element of `in.(…)`.
    pub(super) fn element(&mut self, value: &str) -> String {
        let special = value.contains([',', '(', ')', '"', '\\']) || value.is_empty();
        if special || self.chance(25) {
            quote(value)
        } else {
            value.to_owned()
        }
    }

    /// A JSON value for a column, mostly one that it takes.
    pub(super) fn json_value(&mut self, relation: &Relation, column: &Column) -> Value {
        if self.chance(8) {
            return Value::Null;
        }
        let text = self.raw(relation, column);
        match &*column.base_type {
            "bigint" | "integer" | "numeric" | "double precision" if self.chance(85) => {
                match text.parse::<i64>() {
                    Ok(number) => json!(number),
                    Err(_) => text
                        .parse::<f64>()
                        .map_or(json!(text), |number| json!(number)),
                }
            }
            "boolean" => json!(text.starts_with('t')),
            "json" | "jsonb" => serde_json::from_str(&text).unwrap_or(json!(text)),
            "text[]" if self.chance(50) => json!(["voice", "a b", null]),
            "integer[]" if self.chance(50) => json!([1, 2]),
            "price_note" if self.chance(50) => json!({"amount": 1.5, "currency": "SEK"}),
            _ => json!(text),
        }
    }
}

fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}
