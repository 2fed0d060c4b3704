//! Names of columns and relations, and paths into JSON values.

use std::fmt;

use super::bounds;
use super::cursor::Cursor;
use crate::error::Error;

/// A column, or a place inside its JSON value: `data->a->>b`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// The column as the client names it.
    pub name: String,
    /// Steps into its value.
    pub path: Vec<JsonStep>,
}

/// `->key`, `->>key`, `->0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JsonStep {
    /// `->>`: the result is text.
    pub text: bool,
    /// Where it goes.
    pub key: JsonKey,
}

/// What a step selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum JsonKey {
    /// A key of an object.
    Name(String),
    /// An index of an array; from the end when negative.
    Index(i32),
}

impl Field {
    /// A column of that name.
    pub fn column(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            path: Vec::new(),
        }
    }

    /// The key of the value in the result: the last key of the path. After
    /// indexes only, the last key before them.
    pub fn output_name(&self) -> &str {
        self.path
            .iter()
            .rev()
            .find_map(|step| match &step.key {
                JsonKey::Name(name) => Some(name.as_str()),
                JsonKey::Index(_) => None,
            })
            .unwrap_or(&self.name)
    }
}

/// Reads `name` or `"name"`.
pub(super) fn name(cursor: &mut Cursor<'_>) -> Result<String, Error> {
    cursor.skip_blanks();
    if cursor.peek() == Some('"') {
        let name = quoted(cursor)?;
        cursor.skip_blanks();
        return Ok(name);
    }
    let mut name = String::new();
    loop {
        name.push_str(cursor.take_while(is_name_char));
        // `a-b` is a name, `a->b` a path.
        let rest = cursor.rest();
        if name.is_empty() || !rest.starts_with('-') || rest.starts_with("->") {
            break;
        }
        let joined = rest[1..].chars().next().is_some_and(is_name_char);
        if !joined {
            break;
        }
        cursor.next();
        name.push('-');
    }
    let trimmed = name.trim_matches(' ');
    if trimmed.is_empty() {
        return Err(cursor.error("field name (* or [a..z0..9_$])"));
    }
    Ok(trimmed.to_owned())
}

/// Reads `name->path`.
pub(super) fn field(cursor: &mut Cursor<'_>) -> Result<Field, Error> {
    let name = name(cursor)?;
    let path = json_path(cursor)?;
    Ok(Field { name, path })
}

/// Reads `->a->>b`, which may be empty.
pub(super) fn json_path(cursor: &mut Cursor<'_>) -> Result<Vec<JsonStep>, Error> {
    let mut path = Vec::new();
    while cursor.eat("->") {
        let text = cursor.eat(">");
        let key = json_key(cursor)?;
        path.push(JsonStep { text, key });
        bounds::at_most("JSON path steps", path.len(), bounds::PATH_STEPS_MAX)?;
    }
    Ok(path)
}

fn json_key(cursor: &mut Cursor<'_>) -> Result<JsonKey, Error> {
    if cursor.peek() == Some('"') {
        return Ok(JsonKey::Name(quoted(cursor)?));
    }
    if let Some(index) = json_index(cursor) {
        return Ok(JsonKey::Index(index));
    }
    let mut key = cursor.take_while(is_json_key_char).to_owned();
    while cursor.rest().starts_with('-') && !cursor.rest().starts_with("->") {
        let after = cursor.rest()[1..].chars().next();
        if key.is_empty() || !after.is_some_and(is_json_key_char) {
            break;
        }
        cursor.next();
        key.push('-');
        key.push_str(cursor.take_while(is_json_key_char));
    }
    if key.is_empty() {
        return Err(cursor.error("any non reserved character different from: .,>()"));
    }
    Ok(JsonKey::Name(key))
}

fn json_index(cursor: &mut Cursor<'_>) -> Option<i32> {
    let mut ahead = cursor.clone();
    let sign = if ahead.eat("-") { -1 } else { 1 };
    let digits = ahead.take_while(|c| c.is_ascii_digit());
    let ends = matches!(ahead.peek(), None | Some(':' | '.' | ',' | ')' | '-'));
    let index = digits.parse::<i32>().ok().filter(|_| ends)?;
    if ahead.peek() == Some('-') && !ahead.rest().starts_with("->") {
        return None;
    }
    *cursor = ahead;
    Some(sign * index)
}

/// Reads `"…"` with backslash escapes.
pub(super) fn quoted(cursor: &mut Cursor<'_>) -> Result<String, Error> {
    cursor.expect("\"")?;
    let mut text = String::new();
    loop {
        match cursor.next() {
            Some('"') => return Ok(text),
            Some('\\') => match cursor.next() {
                Some(escaped) => text.push(escaped),
                None => return Err(cursor.error("any character")),
            },
            Some(c) => text.push(c),
            None => return Err(cursor.error("\"\\\"\"")),
        }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | ' ' | '$')
}

fn is_json_key_char(c: char) -> bool {
    !matches!(c, '(' | '-' | ':' | '.' | ',' | '>' | ')')
}

/// Reads back as the same key without quotes.
fn is_plain_key(key: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    key.chars().all(letter) && !key.chars().all(|c| c.is_ascii_digit())
}

/// Prints a name so that it reads back as the same one.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Quoted(&self.name))?;
        for step in &self.path {
            let arrow = if step.text { "->>" } else { "->" };
            match &step.key {
                JsonKey::Name(name) if is_plain_key(name) => write!(f, "{arrow}{name}")?,
                JsonKey::Name(name) => write!(f, "{arrow}{}", Quoted(name))?,
                JsonKey::Index(index) => write!(f, "{arrow}{index}")?,
            }
        }
        Ok(())
    }
}
