//! The sole joiner of SQL text.
//!
//! Text comes in as `&'static str`, as identifiers and type names of the
//! catalog, or as a parameter. There is no way to add a request's text.

use std::fmt::{Display, Write};

use bytes::Bytes;
use schema::ident::{Ident, Literal, QualifiedName};

use crate::idempotency::Keep;
use crate::plan::TypeName;

/// Parameters before the first of a statement's own.
const GUARD_PARAMS: usize = 4;

/// SQL text under construction, with its parameters.
pub(super) struct Fragment {
    text: String,
    params: Vec<Option<Bytes>>,
    aliases: usize,
    guarded: bool,
    keep: Option<Keep>,
    body_bytes_max: Option<usize>,
}

/// The name of a level's rows in SQL: `t`, `t1`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    letter: char,
    number: usize,
}

impl Alias {
    /// The rows of the outermost level.
    pub(super) const ROOT: Self = Self {
        letter: 't',
        number: 0,
    };
}

impl Display for Alias {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_char(self.letter)?;
        match self.number {
            0 => Ok(()),
            number => write!(f, "{number}"),
        }
    }
}

impl Fragment {
    /// `guarded` where the guard's row stands beside the statement as `g`.
    pub(super) fn new(guarded: bool) -> Self {
        Self {
            text: String::with_capacity(512),
            params: Vec::new(),
            aliases: 0,
            guarded,
            keep: None,
            body_bytes_max: None,
        }
    }

    /// What the statement answers as `body` is refused where it is larger.
    pub(super) fn bounded(mut self, bytes: usize) -> Self {
        self.body_bytes_max = Some(bytes);
        self
    }

    /// What the statement answers is kept for an Idempotency-Key.
    pub(super) fn keeping(mut self, keep: &Keep) -> Self {
        self.keep = Some(keep.clone());
        self
    }

    /// Begins the select that makes the answer's one row.
    pub(super) fn answer(&mut self) {
        self.push("select ");
        if !self.is_wrapped() {
            return;
        }
        self.push("a.*");
        if let Some(bytes) = self.body_bytes_max {
            self.push(", ringfence.require_bytes(pg_catalog.pg_column_size(a.body), ");
            self.param(bytes.to_string());
            self.push("::bigint) as bounded");
        }
        if let Some(keep) = self.keep.clone() {
            self.push(", ringfence.keep(");
            self.param(keep.key);
            self.push("::text, ");
            self.param(keep.fingerprint);
            self.push("::bytea, ");
            self.param(keep.seconds.to_string());
            self.push("::integer, ");
            self.param(keep.body_bytes_max.to_string());
            self.push("::integer, pg_catalog.to_jsonb(a)) as kept");
        }
        self.push(" from (select ");
    }

    fn is_wrapped(&self) -> bool {
        self.keep.is_some() || self.body_bytes_max.is_some()
    }

    /// Ends it.
    pub(super) fn end_answer(&mut self) {
        if self.is_wrapped() {
            self.push(") a");
        }
    }

    pub(super) fn finish(self) -> (String, Vec<Option<Bytes>>) {
        (self.text, self.params)
    }

    pub(super) fn guarded(&self) -> bool {
        self.guarded
    }

    /// Fixed text.
    pub(super) fn push(&mut self, text: &'static str) {
        self.text.push_str(text);
    }

    /// A new name for rows: `t1` for a relation's, `j2` for a junction's, …
    pub(super) fn alias(&mut self, letter: char) -> Alias {
        self.aliases += 1;
        Alias {
            letter,
            number: self.aliases,
        }
    }

    fn print(&mut self, what: impl Display) {
        // Writing to a String can't fail.
        let _ = write!(self.text, "{what}");
    }

    pub(super) fn ident(&mut self, name: &Ident) {
        self.print(name);
    }

    pub(super) fn name(&mut self, name: &QualifiedName) {
        self.print(name);
    }

    pub(super) fn rows(&mut self, alias: Alias) {
        self.print(alias);
    }

    /// `alias."column"`.
    pub(super) fn column(&mut self, alias: Alias, name: &Ident) {
        self.print(format_args!("{alias}.{name}"));
    }

    /// The column of that number where columns have no names: `c0`.
    pub(super) fn numbered(&mut self, number: usize) {
        self.print(format_args!("c{number}"));
    }

    /// A position in a select list, from 1.
    pub(super) fn position(&mut self, position: usize) {
        self.print(position);
    }

    /// A number that stays in the text.
    pub(super) fn number(&mut self, number: i64) {
        self.print(number);
    }

    /// A type's name as the catalog prints it.
    pub(super) fn type_name(&mut self, name: &str) {
        self.text.push_str(name);
    }

    pub(super) fn cast(&mut self, name: &TypeName) {
        self.type_name(&name.0);
    }

    /// A default's expression as the catalog prints it.
    pub(super) fn expression(&mut self, expression: &str) {
        self.text.push_str(expression);
    }

    /// A name of the catalog, or text made of such, as a string.
    pub(super) fn literal(&mut self, text: &str) {
        self.print(Literal(text));
    }

    /// A value of the request.
    pub(super) fn param(&mut self, value: impl Into<Bytes>) {
        self.params.push(Some(value.into()));
        let number = GUARD_PARAMS + self.params.len();
        self.print(format_args!("${number}"));
    }

    /// The tenant.
    pub(super) fn tenant(&mut self) {
        self.text.push_str("$1");
    }

    /// `what` for each item, `separator` between them.
    pub(super) fn list<T>(
        &mut self,
        separator: &'static str,
        items: impl IntoIterator<Item = T>,
        mut what: impl FnMut(&mut Self, T),
    ) {
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.push(separator);
            }
            what(self, item);
        }
    }
}
