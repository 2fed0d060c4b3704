//! `select=id,name:full_name,tasks!inner(*),...client(name)`.

use std::fmt;

use super::bounds;
use super::cursor::Cursor;
use super::name::{self, Field, Quoted};
use crate::error::Error;

/// One item of a select list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// `*`.
    All,
    /// A column, a place in its JSON value, or an aggregate of it.
    Field {
        /// The key in the result.
        alias: Option<String>,
        /// What; none for `count()`.
        field: Option<Field>,
        /// `::type` of the field.
        cast: Option<String>,
        /// `.sum()`.
        aggregate: Option<Aggregate>,
        /// `::type` behind the aggregate.
        aggregate_cast: Option<String>,
    },
    /// Another relation's rows.
    Embed(Embed),
}

/// `alias:rel!hint!inner(…)`, `...rel(…)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Embed {
    /// The key in the result.
    pub alias: Option<String>,
    /// Relation, constraint or column, as written.
    pub target: String,
    /// What tells one relationship from another.
    pub hint: Option<String>,
    /// `!inner`: only rows that have some.
    pub inner: bool,
    /// `...`: its columns become the parent's.
    pub spread: bool,
    /// May be empty: for filtering only.
    pub items: Vec<Item>,
}

/// An aggregate function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aggregate {
    /// `sum()`
    Sum,
    /// `avg()`
    Avg,
    /// `count()`
    Count,
    /// `max()`
    Max,
    /// `min()`
    Min,
}

impl Aggregate {
    /// Its name, also in SQL.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Avg => "avg",
            Self::Count => "count",
            Self::Max => "max",
            Self::Min => "min",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Sum, Self::Avg, Self::Count, Self::Max, Self::Min]
            .into_iter()
            .find(|aggregate| aggregate.word() == word)
    }
}

/// Reads the value of `select=`; empty means `*`.
pub(super) fn items(value: &str) -> Result<Vec<Item>, Error> {
    if value.is_empty() {
        return Ok(vec![Item::All]);
    }
    let mut reader = Reader::default();
    let mut cursor = Cursor::new("select parameter", value);
    let items = reader.list(&mut cursor, 0)?;
    cursor.end()?;
    Ok(items)
}

/// Counts what it has read, for the bounds.
#[derive(Default)]
struct Reader {
    items: usize,
    embeds: usize,
}

impl Reader {
    fn list(&mut self, cursor: &mut Cursor<'_>, depth: usize) -> Result<Vec<Item>, Error> {
        bounds::depth(depth)?;
        let mut found = Vec::new();
        loop {
            cursor.skip_blanks();
            found.push(self.item(cursor, depth)?);
            self.items += 1;
            bounds::at_most("selected items", self.items, bounds::ITEMS_MAX)?;
            cursor.skip_blanks();
            if !cursor.eat(",") {
                return Ok(found);
            }
        }
    }

    fn item(&mut self, cursor: &mut Cursor<'_>, depth: usize) -> Result<Item, Error> {
        if cursor.eat("*") {
            return Ok(Item::All);
        }
        if cursor.eat("...") {
            let target = name::name(cursor)?;
            return self.embed(cursor, depth, None, target, true);
        }
        let start = cursor.clone();
        let first = name::name(cursor).map_err(|error| match cursor.rest() == start.rest() {
            true => start.error("\"...\", field name (* or [a..z0..9_$]), \"*\" or \"count()\""),
            false => error,
        })?;
        let (alias, name) = if is_alias(cursor) {
            cursor.expect(":")?;
            (Some(first), name::name(cursor)?)
        } else {
            (None, first)
        };
        let count = name == "count";
        if cursor.peek() == Some('!') || (cursor.peek() == Some('(') && !count) {
            return self.embed(cursor, depth, alias, name, false);
        }
        if count && cursor.eat("()") {
            return Ok(Item::Field {
                alias,
                field: None,
                cast: None,
                aggregate: Some(Aggregate::Count),
                aggregate_cast: cast(cursor)?,
            });
        }
        let path = name::json_path(cursor)?;
        let field_cast = cast(cursor)?;
        let aggregate = aggregate(cursor)?;
        let aggregate_cast = match aggregate {
            Some(_) => cast(cursor)?,
            None => None,
        };
        Ok(Item::Field {
            alias,
            field: Some(Field { name, path }),
            cast: field_cast,
            aggregate,
            aggregate_cast,
        })
    }

    fn embed(
        &mut self,
        cursor: &mut Cursor<'_>,
        depth: usize,
        alias: Option<String>,
        target: String,
        spread: bool,
    ) -> Result<Item, Error> {
        self.embeds += 1;
        bounds::at_most("embedded resources", self.embeds, bounds::EMBEDS_MAX)?;
        let mut hint = None;
        let mut inner = None;
        while cursor.eat("!") {
            let word = name::name(cursor)?;
            match word.as_str() {
                "inner" if inner.is_none() => inner = Some(true),
                "left" if inner.is_none() => inner = Some(false),
                _ if hint.is_none() => hint = Some(word),
                _ => return Err(cursor.error("\"(\"")),
            }
        }
        cursor.expect("(")?;
        cursor.skip_blanks();
        let items = if cursor.eat(")") {
            Vec::new()
        } else {
            let items = self.list(cursor, depth + 1)?;
            cursor.expect(")")?;
            items
        };
        Ok(Item::Embed(Embed {
            alias,
            target,
            hint,
            inner: inner.unwrap_or(false),
            spread,
            items,
        }))
    }
}

/// `:` but not `::`.
fn is_alias(cursor: &Cursor<'_>) -> bool {
    cursor.rest().starts_with(':') && !cursor.rest().starts_with("::")
}

fn cast(cursor: &mut Cursor<'_>) -> Result<Option<String>, Error> {
    if !cursor.eat("::") {
        return Ok(None);
    }
    let wanted = |c: char| c.is_alphanumeric() || matches!(c, '_' | ' ' | '$');
    let name = cursor.take_while(wanted).trim();
    if name.is_empty() {
        return Err(cursor.error("letter, digit, \"_\" or \"$\""));
    }
    Ok(Some(name.to_owned()))
}

fn aggregate(cursor: &mut Cursor<'_>) -> Result<Option<Aggregate>, Error> {
    if !cursor.eat(".") {
        return Ok(None);
    }
    let mut ahead = cursor.clone();
    let word = ahead.take_while(|c| c.is_ascii_alphabetic());
    let Some(found) = Aggregate::of(word) else {
        return Err(cursor.error("sum(), avg(), count(), max() or min()"));
    };
    *cursor = ahead;
    cursor.expect("()")?;
    Ok(Some(found))
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Embed(embed) => write!(f, "{embed}"),
            Self::Field {
                alias,
                field,
                cast,
                aggregate,
                aggregate_cast,
            } => {
                if let Some(alias) = alias {
                    write!(f, "{}:", Quoted(alias))?;
                }
                match (field, aggregate) {
                    (Some(field), _) => write!(f, "{field}")?,
                    (None, _) => f.write_str("count()")?,
                }
                if let Some(cast) = cast {
                    write!(f, "::{cast}")?;
                }
                if let (Some(_), Some(aggregate)) = (field, aggregate) {
                    write!(f, ".{}()", aggregate.word())?;
                }
                match aggregate_cast {
                    Some(cast) => write!(f, "::{cast}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Embed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.spread {
            f.write_str("...")?;
        }
        if let Some(alias) = &self.alias {
            write!(f, "{}:", Quoted(alias))?;
        }
        write!(f, "{}", Quoted(&self.target))?;
        if self.inner {
            f.write_str("!inner")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "!{}", Quoted(hint))?;
        }
        f.write_str("(")?;
        print_items(f, &self.items)?;
        f.write_str(")")
    }
}

pub(super) fn print_items(f: &mut impl fmt::Write, items: &[Item]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        write!(f, "{comma}{item}")?;
    }
    Ok(())
}
