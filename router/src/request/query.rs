//! The query string: parameters into selection, conditions, order and pages.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::bounds;
use super::cursor::Cursor;
use super::filter::{self, Filter, Operation, Place};
use super::logic::{self, Join, Logic, Tree};
use super::name::{self, Field, Quoted};
use super::order::{self, Order};
use super::page::{self, Page};
use super::select::{self, Item};
use crate::error::Error;

/// A query string, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What is wanted of each row.
    pub select: Vec<Item>,
    /// Conditions, all of which must hold.
    pub filters: Vec<Filter>,
    /// Logic trees, all of which must hold too.
    pub logic: Vec<Logic>,
    /// Orders by level.
    pub order: Vec<Order>,
    /// Pages by level; the empty path is the request's own.
    pub pages: BTreeMap<Vec<String>, Page>,
    /// Columns that a write sets.
    pub columns: Option<Vec<String>>,
    /// Columns whose conflict an upsert resolves.
    pub on_conflict: Option<Vec<String>>,
    /// Arguments of a function called by GET, in order.
    pub arguments: Vec<(String, String)>,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            select: vec![Item::All],
            filters: Vec::new(),
            logic: Vec::new(),
            order: Vec::new(),
            pages: BTreeMap::new(),
            columns: None,
            on_conflict: None,
            arguments: Vec::new(),
        }
    }
}

/// Unreserved characters of RFC 3986 stay as they are.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

impl Query {
    /// Reads a query string; `arguments` says that parameters which are not
    /// conditions are a function's arguments.
    pub fn parse(text: &str, arguments: bool) -> Result<Self, Error> {
        if text.len() > bounds::QUERY_BYTES_MAX {
            return Err(Error::UrlTooLong {
                max: bounds::QUERY_BYTES_MAX,
            });
        }
        let mut query = Self::default();
        let mut selected = false;
        let parameters = decoded_pairs(text);
        bounds::at_most("parameters", parameters.len(), bounds::PARAMETERS_MAX)?;
        for (key, value) in &parameters {
            match key.as_str() {
                "select" => {
                    if !selected {
                        query.select = select::items(value)?;
                        selected = true;
                    }
                }
                "columns" => first(&mut query.columns, "columns parameter", value)?,
                "on_conflict" => first(&mut query.on_conflict, "on_conflict parameter", value)?,
                _ => query.take(key, value, arguments)?,
            }
        }
        query.check()?;
        Ok(query)
    }

    /// The page of the request's own relation.
    pub fn page(&self) -> Page {
        self.pages.get(&[][..]).copied().unwrap_or_default()
    }

    fn take(&mut self, key: &str, value: &str, arguments: bool) -> Result<(), Error> {
        let (prefix, last) = key.rsplit_once('.').unwrap_or(("", key));
        match last {
            "order" => {
                let path = path(prefix)?;
                let terms = order::terms(value)?;
                self.order.push(Order { path, terms });
            }
            "limit" | "offset" => {
                let page = self.pages.entry(path(prefix)?).or_default();
                let number = page::number(value);
                if last == "limit" {
                    page.limit = number.or(page.limit);
                } else {
                    page.offset = number.or(page.offset);
                }
            }
            "and" | "or" => {
                let join = if last == "and" { Join::And } else { Join::Or };
                let (prefix, negated) = match prefix {
                    "not" => ("", true),
                    _ => match prefix.strip_suffix(".not") {
                        Some(prefix) => (prefix, true),
                        None => (prefix, false),
                    },
                };
                let path = path(prefix)?;
                let tree = logic::root(join, negated, value)?;
                self.logic.push(Logic { path, tree });
            }
            _ => return self.condition(key, value, arguments),
        }
        Ok(())
    }

    fn condition(&mut self, key: &str, value: &str, arguments: bool) -> Result<(), Error> {
        match operation(value) {
            Ok(operation) => {
                let (path, field) = filter_key(key)?;
                self.filters.push(Filter {
                    path,
                    field,
                    operation,
                });
                Ok(())
            }
            Err(_) if arguments => {
                self.arguments.push((key.to_owned(), value.to_owned()));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn check(&mut self) -> Result<(), Error> {
        let in_trees: usize = self.logic.iter().map(|logic| logic.tree.leaves()).sum();
        let conditions = self.filters.len() + in_trees;
        bounds::at_most("filters", conditions, bounds::FILTERS_MAX)?;
        for page in self.pages.values() {
            page.check()?;
        }
        self.pages.retain(|_, page| !page.is_whole());
        Ok(())
    }
}

fn first(slot: &mut Option<Vec<String>>, kind: &'static str, value: &str) -> Result<(), Error> {
    if slot.is_none() {
        *slot = Some(names(kind, value)?);
    }
    Ok(())
}

/// Decoded pairs; keys without `=` are left out.
pub(super) fn decoded_pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    if !text.contains(['+', '%']) {
        return text.to_owned();
    }
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

fn operation(value: &str) -> Result<Operation, Error> {
    let mut cursor = Cursor::new("filter", value);
    let operation = filter::operation(&mut cursor, Place::Parameter)?;
    cursor.end()?;
    Ok(operation)
}

fn filter_key(key: &str) -> Result<(Vec<String>, Field), Error> {
    let mut cursor = Cursor::new("tree path", key);
    let mut path = Vec::new();
    loop {
        let name = name::name(&mut cursor)?;
        if cursor.eat(".") {
            path.push(name);
            bounds::depth(path.len())?;
            continue;
        }
        let field = Field {
            name,
            path: name::json_path(&mut cursor)?,
        };
        cursor.end()?;
        return Ok((path, field));
    }
}

fn path(text: &str) -> Result<Vec<String>, Error> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut cursor = Cursor::new("tree path", text);
    let mut path = Vec::new();
    loop {
        path.push(name::name(&mut cursor)?);
        bounds::depth(path.len())?;
        if !cursor.eat(".") {
            cursor.end()?;
            return Ok(path);
        }
    }
}

fn names(kind: &'static str, value: &str) -> Result<Vec<String>, Error> {
    let mut cursor = Cursor::new(kind, value);
    let mut names = Vec::new();
    loop {
        let name = name::name(&mut cursor)?;
        if !names.contains(&name) {
            names.push(name);
        }
        bounds::at_most("columns", names.len(), bounds::ITEMS_MAX)?;
        if !cursor.eat(",") {
            cursor.end()?;
            return Ok(names);
        }
    }
}

/// The parameters sorted by key and encoded anew, for Content-Location.
pub(super) fn canonical(text: &str) -> String {
    let mut parameters = decoded_pairs(text);
    parameters.sort_by(|a, b| a.0.cmp(&b.0));
    let mut canonical = String::with_capacity(text.len());
    for (key, value) in &parameters {
        push_parameter(&mut canonical, key, value);
    }
    canonical
}

fn push_parameter(text: &mut String, key: &str, value: &str) {
    if !text.is_empty() {
        text.push('&');
    }
    text.extend(utf8_percent_encode(key, ENCODED));
    text.push('=');
    text.extend(utf8_percent_encode(value, ENCODED));
}

/// Prints a query string that reads back as the same query.
impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut value = String::new();
        select::print_items(&mut value, &self.select)?;
        push_parameter(&mut text, "select", &value);
        for (key, names) in [
            ("columns", &self.columns),
            ("on_conflict", &self.on_conflict),
        ] {
            if let Some(names) = names {
                let quoted: Vec<String> = names.iter().map(|n| Quoted(n).to_string()).collect();
                push_parameter(&mut text, key, &quoted.join(","));
            }
        }
        for filter in &self.filters {
            let mut value = String::new();
            filter.operation.print(&mut value, Place::Parameter)?;
            let key = key(&filter.path, &filter.field.to_string());
            push_parameter(&mut text, &key, &value);
        }
        for logic in &self.logic {
            self.print_logic(&mut text, logic)?;
        }
        for order in &self.order {
            let terms: Vec<String> = order.terms.iter().map(ToString::to_string).collect();
            push_parameter(&mut text, &key(&order.path, "order"), &terms.join(","));
        }
        for (path, page) in &self.pages {
            for (name, number) in [("limit", page.limit), ("offset", page.offset)] {
                if let Some(number) = number {
                    push_parameter(&mut text, &key(path, name), &number.to_string());
                }
            }
        }
        for (key, value) in &self.arguments {
            push_parameter(&mut text, key, value);
        }
        f.write_str(&text)
    }
}

impl Query {
    fn print_logic(&self, text: &mut String, logic: &Logic) -> fmt::Result {
        let Tree::Group { negated, join, .. } = &logic.tree else {
            return Ok(());
        };
        let mut value = String::new();
        logic.tree.print_items(&mut value)?;
        let not = if *negated { "not." } else { "" };
        let word = format!("{not}{}", join.word());
        push_parameter(text, &key(&logic.path, &word), &value);
        Ok(())
    }
}

fn key(path: &[String], last: &str) -> String {
    let mut key = String::new();
    for name in path {
        // Writing to a String can't fail.
        let _ = write!(key, "{}.", Quoted(name));
    }
    key.push_str(last);
    key
}
