//! `or=(a.eq.1,and(b.gt.2,not.or(…)))`.

use std::fmt;

use super::bounds;
use super::cursor::Cursor;
use super::filter::{self, Operation, Place};
use super::name::{self, Field};
use crate::error::Error;

/// A logic tree of the embedded resource at `path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Logic {
    /// Names of embedded resources.
    pub path: Vec<String>,
    /// The tree.
    pub tree: Tree,
}

/// A condition that joins others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tree {
    /// `and(…)`, `or(…)`.
    Group {
        /// `not.`
        negated: bool,
        /// How its items are joined.
        join: Join,
        /// At least one.
        items: Vec<Tree>,
    },
    /// One condition.
    Leaf {
        /// What is tested.
        field: Field,
        /// How.
        operation: Operation,
    },
}

/// `and` or `or`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Join {
    /// All must hold.
    And,
    /// One must hold.
    Or,
}

impl Join {
    /// As the client writes it, and SQL too.
    pub fn word(self) -> &'static str {
        match self {
            Self::And => "and",
            Self::Or => "or",
        }
    }
}

/// Reads the value of an `and=` or `or=` parameter.
pub(super) fn root(join: Join, negated: bool, value: &str) -> Result<Tree, Error> {
    // PostgREST reads the key's last words with it.
    let before = join.word().len() + if negated { "not.".len() } else { 0 };
    let mut cursor = Cursor::new("logic tree", value).behind(before);
    cursor.skip_blanks();
    let items = items(&mut cursor, 1)?;
    cursor.end()?;
    Ok(Tree::Group {
        negated,
        join,
        items,
    })
}

fn items(cursor: &mut Cursor<'_>, depth: usize) -> Result<Vec<Tree>, Error> {
    bounds::depth(depth)?;
    cursor.expect("(")?;
    let mut found = Vec::new();
    loop {
        cursor.skip_blanks();
        found.push(item(cursor, depth)?);
        cursor.skip_blanks();
        if cursor.eat(",") {
            continue;
        }
        if !cursor.eat(")") {
            return Err(cursor.error("\",\" or \")\""));
        }
        cursor.skip_blanks();
        return Ok(found);
    }
}

fn item(cursor: &mut Cursor<'_>, depth: usize) -> Result<Tree, Error> {
    let mut ahead = cursor.clone();
    let negated = ahead.eat("not.");
    for join in [Join::And, Join::Or] {
        let mut group = ahead.clone();
        if group.eat(join.word()) {
            group.skip_blanks();
            if group.peek() == Some('(') {
                *cursor = group;
                let items = items(cursor, depth + 1)?;
                return Ok(Tree::Group {
                    negated,
                    join,
                    items,
                });
            }
        }
    }
    let start = cursor.clone();
    let field = name::field(cursor).map_err(|error| match cursor.rest() == start.rest() {
        true => start.error(
            "field name (* or [a..z0..9_$]), negation operator (not) or logic operator (and, or)",
        ),
        false => error,
    })?;
    cursor.expect(".")?;
    let operation = filter::operation(cursor, Place::Tree)?;
    Ok(Tree::Leaf { field, operation })
}

impl Tree {
    /// Conditions in it.
    pub fn leaves(&self) -> usize {
        match self {
            Self::Group { items, .. } => items.iter().map(Self::leaves).sum(),
            Self::Leaf { .. } => 1,
        }
    }

    pub(super) fn print_items(&self, f: &mut String) -> fmt::Result {
        use fmt::Write;
        match self {
            Self::Group { items, .. } => {
                f.push('(');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        f.push(',');
                    }
                    item.print(f)?;
                }
                f.push(')');
                Ok(())
            }
            Self::Leaf { field, operation } => {
                write!(f, "{field}.")?;
                operation.print(f, Place::Tree)
            }
        }
    }

    fn print(&self, f: &mut String) -> fmt::Result {
        if let Self::Group { negated, join, .. } = self {
            if *negated {
                f.push_str("not.");
            }
            f.push_str(join.word());
        }
        self.print_items(f)
    }
}
