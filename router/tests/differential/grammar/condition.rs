//! Filters and logic trees.

use schema::catalog::{Column, Relation};

use super::Grammar;
use super::select::Level;
use crate::case::{Case, Section};
use crate::world::quoted;

impl<'a> Grammar<'a> {
    pub(super) fn conditions(&mut self, section: Section, levels: &[Level<'a>], case: &mut Case) {
        for level in levels {
            let top = level.path.is_empty();
            let filters = match (section, top) {
                (Section::Filters, true) => self.rng.usize(1..4),
                (Section::Embeds, false) => self.rng.usize(0..2),
                _ if self.chance(25) => 1,
                _ => 0,
            };
            for _ in 0..filters {
                let (field, test) = self.filter(level.relation);
                case.params.push((level.key(&field), test));
            }
            let trees = match (section, top) {
                (Section::Logic, true) => self.rng.usize(1..3),
                _ if self.chance(6) => 1,
                _ => 0,
            };
            for _ in 0..trees {
                let key = self.word(&["or", "and", "not.or", "not.and"]);
                let items = self.tree(level.relation, 0);
                case.params.push((level.key(key), items));
            }
            let above = levels.iter().find(|other| {
                other.path.len() + 1 == level.path.len() && level.path.starts_with(&other.path)
            });
            if let Some(above) = above
                && self.chance(10)
            {
                let name = level.path.last().map_or("", String::as_str);
                let test = self.word(&["is.null", "not.is.null"]);
                case.params.push((above.key(name), test.to_owned()));
            }
        }
    }

    fn filter(&mut self, relation: &'a Relation) -> (String, String) {
        let mut column = self.pick(&relation.columns);
        if column.name.as_str() == "select" {
            // A parameter of that name is another one.
            column = &relation.columns[0];
        }
        let mut field = quoted(column.name.as_str());
        let json = matches!(&*column.base_type, "json" | "jsonb");
        if json && self.chance(70) {
            let path = self.json_path();
            field += path;
            let test = self.json_test(path.contains("->>"), false);
            return (field, test);
        }
        let test = self.test(relation, column, false);
        (field, test)
    }

    fn tree(&mut self, relation: &'a Relation, depth: usize) -> String {
        let mut items = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            if depth < 2 && self.chance(25) {
                let word = self.word(&["or", "and", "not.or", "not.and"]);
                items.push(format!("{word}{}", self.tree(relation, depth + 1)));
                continue;
            }
            let column = self.pick(&relation.columns);
            let mut field = quoted(column.name.as_str());
            let json = matches!(&*column.base_type, "json" | "jsonb");
            let test = if json && self.chance(70) {
                let path = self.json_path();
                field += path;
                self.json_test(path.contains("->>"), true)
            } else {
                self.test(relation, column, true)
            };
            items.push(format!("{field}.{test}"));
        }
        let blank = if self.chance(10) { " " } else { "" };
        format!("({})", items.join(&format!(",{blank}")))
    }

    fn json_test(&mut self, text: bool, in_tree: bool) -> String {
        let value = match text {
            true => self.word(&["Oslo", "Rome", "3", "true", "x", "5"]),
            false => self.word(&["\"Oslo\"", "3", "null", "[]", "1", "{}"]),
        };
        let not = if self.chance(15) { "not." } else { "" };
        match self.rng.u8(0..6) {
            0 => format!("{not}is.null"),
            1 if text => format!("{not}like.*{}*", &value[..1]),
            2 => format!("{not}in.({value},\"x,y\")"),
            3 => format!("{not}gt.{}", self.value(value, in_tree)),
            _ => format!("{not}eq.{}", self.value(value, in_tree)),
        }
    }

    /// `[not.]op.value` that fits the column, mostly.
    fn test(&mut self, relation: &'a Relation, column: &'a Column, in_tree: bool) -> String {
        let not = if self.chance(15) { "not." } else { "" };
        let base = &*column.base_type;
        let operators: &[&str] = match base {
            _ if self.chance(6) => &[
                "like", "cs", "sl", "match", "fts", "ov", "adj", "is", "imatch",
            ],
            "tsvector" => &[
                "fts",
                "plfts",
                "phfts",
                "wfts",
                "fts(english)",
                "wfts(german)",
            ],
            base if base.ends_with("[]") => &["cs", "cd", "ov", "eq", "neq", "gt", "is", "in"],
            base if base.ends_with("range") => &[
                "cs", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj", "eq", "is",
            ],
            "jsonb" => &["cs", "cd", "eq", "is", "neq"],
            "json" => &["is", "is", "eq"],
            "boolean" => &["is", "eq", "neq", "in", "is"],
            "text" | "character varying" => &[
                "eq",
                "neq",
                "like",
                "ilike",
                "match",
                "imatch",
                "in",
                "is",
                "gt",
                "lte",
                "like(any)",
                "like(all)",
                "ilike(any)",
                "eq(any)",
                "match(any)",
                "isdistinct",
                "fts",
                "plfts",
            ],
            _ => &[
                "eq",
                "neq",
                "gt",
                "gte",
                "lt",
                "lte",
                "in",
                "is",
                "eq(any)",
                "gt(all)",
                "isdistinct",
                "lt(any)",
            ],
        };
        let operator = self.word(operators);
        let value = match operator {
            "is" => {
                let words: &[&str] = match base {
                    "boolean" => &["null", "true", "false", "unknown", "NULL"],
                    _ => &["null", "Null", "null", "true"],
                };
                (self.word(words)).to_owned()
            }
            "in" => {
                let count = self.rng.usize(0..4);
                let values: Vec<String> = (0..count)
                    .map(|_| {
                        let value = self.raw(relation, column);
                        self.element(&value)
                    })
                    .collect();
                format!("({})", values.join(","))
            }
            operator if operator.contains("(a") => {
                let count = self.rng.usize(0..3);
                let values: Vec<String> = (0..count)
                    .map(|_| {
                        let value = self.raw(relation, column);
                        let value = if operator.contains("like") {
                            self.pattern(&value)
                        } else if in_tree {
                            // There the first brace that closes ends the value.
                            value.replace(['{', '}'], "")
                        } else {
                            value
                        };
                        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
                    })
                    .collect();
                format!("{{{}}}", values.join(","))
            }
            operator if operator.contains("fts") => {
                let query = self.word(&[
                    "dawn",
                    "dog",
                    "dog & night",
                    "running dogs",
                    "dog -night",
                    "!dawn",
                    "night | dawn",
                    "the",
                    "",
                ]);
                self.value(query, in_tree)
            }
            "like" | "ilike" | "match" | "imatch" => {
                let value = self.raw(relation, column);
                let value = match operator {
                    "like" | "ilike" => self.pattern(&value),
                    _ => value
                        .chars()
                        .filter(|c| c.is_alphanumeric() || *c == ' ')
                        .take(3)
                        .collect(),
                };
                self.value(&value, in_tree)
            }
            _ => {
                let value = self.raw(relation, column);
                self.value(&value, in_tree)
            }
        };
        format!("{not}{operator}.{value}")
    }

    /// A pattern that a value fits.
    fn pattern(&mut self, value: &str) -> String {
        let chars: Vec<char> = value.chars().collect();
        let from = self.rng.usize(0..chars.len() + 1);
        let part: String = chars[from..].iter().take(4).collect();
        match self.rng.u8(0..5) {
            0 => format!("*{part}*"),
            1 => format!("{part}*"),
            2 => format!("%{part}%"),
            3 => format!("*{part}"),
            _ => value.to_owned(),
        }
    }
}
