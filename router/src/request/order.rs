//! `order=a.desc.nullslast,rel(b)`.

use std::fmt;

use super::bounds;
use super::cursor::Cursor;
use super::name::{self, Field, Quoted};
use crate::error::Error;

/// The order of the embedded resource at `path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// Names of embedded resources.
    pub path: Vec<String>,
    /// The first matters most.
    pub terms: Vec<Term>,
}

/// One term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    /// A to-one embed whose field it is.
    pub relation: Option<String>,
    /// What is ordered by.
    pub field: Field,
    /// None is Postgres' default.
    pub direction: Option<Direction>,
    /// None is Postgres' default.
    pub nulls: Option<Nulls>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Smallest first.
    Asc,
    /// Largest first.
    Desc,
}

/// Where NULLs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nulls {
    /// Before all.
    First,
    /// Behind all.
    Last,
}

/// Reads the value of an `order=` parameter.
pub(super) fn terms(value: &str) -> Result<Vec<Term>, Error> {
    let mut cursor = Cursor::new("order", value);
    let mut terms = Vec::new();
    loop {
        terms.push(term(&mut cursor)?);
        bounds::at_most("order terms", terms.len(), bounds::ORDER_TERMS_MAX)?;
        if cursor.eat(",") {
            continue;
        }
        cursor.end()?;
        return Ok(terms);
    }
}

fn term(cursor: &mut Cursor<'_>) -> Result<Term, Error> {
    let mut field = name::field(cursor)?;
    let mut relation = None;
    if field.path.is_empty() && cursor.eat("(") {
        relation = Some(field.name);
        field = name::field(cursor)?;
        cursor.expect(")")?;
    }
    let mut direction = None;
    let mut nulls = None;
    while cursor.peek() == Some('.') && nulls.is_none() {
        cursor.next();
        let mut ahead = cursor.clone();
        let word = ahead.take_while(|c| c.is_ascii_alphabetic());
        match word {
            "asc" if direction.is_none() => direction = Some(Direction::Asc),
            "desc" if direction.is_none() => direction = Some(Direction::Desc),
            "nullsfirst" => nulls = Some(Nulls::First),
            "nullslast" => nulls = Some(Nulls::Last),
            _ => return Err(cursor.error("\"asc\", \"desc\", \"nullsfirst\" or \"nullslast\"")),
        }
        *cursor = ahead;
    }
    cursor.skip_blanks();
    Ok(Term {
        relation,
        field,
        direction,
        nulls,
    })
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.relation {
            Some(relation) => write!(f, "{}({})", Quoted(relation), self.field)?,
            None => write!(f, "{}", self.field)?,
        }
        f.write_str(match self.direction {
            Some(Direction::Asc) => ".asc",
            Some(Direction::Desc) => ".desc",
            None => "",
        })?;
        f.write_str(match self.nulls {
            Some(Nulls::First) => ".nullsfirst",
            Some(Nulls::Last) => ".nullslast",
            None => "",
        })
    }
}
