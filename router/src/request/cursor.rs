//! Reads a decoded query-string value from left to right.

use crate::error::Error;

/// A place in a text.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    kind: &'static str,
    /// Characters in front of the text that columns count from.
    before: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the beginning of `text`, which is a `kind` (for error texts).
    pub(super) fn new(kind: &'static str, text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            kind,
            before: 0,
        }
    }

    /// Columns count from so many characters in front of it.
    pub(super) fn behind(self, before: usize) -> Self {
        Self { before, ..self }
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next character, which stays unread.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Nothing is left.
    pub(super) fn at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    /// Reads the next character.
    pub(super) fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    /// Reads `token` if it comes next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Reads `token`, or fails.
    pub(super) fn expect(&mut self, token: &'static str) -> Result<(), Error> {
        if self.eat(token) {
            return Ok(());
        }
        Err(self.error(&format!("\"{token}\"")))
    }

    /// Reads characters for as long as `wanted` holds.
    pub(super) fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// Reads blanks.
    pub(super) fn skip_blanks(&mut self) {
        self.take_while(|c| c == ' ');
    }

    /// Fails unless everything was read.
    pub(super) fn end(&self) -> Result<(), Error> {
        if self.at_end() {
            return Ok(());
        }
        Err(self.error("end of input"))
    }

    /// A syntax error here.
    pub(super) fn error(&self, expected: &str) -> Error {
        let column = self.before + self.text[..self.at].chars().count() + 1;
        let found = match self.peek() {
            Some(c) => format!("\"{c}\""),
            None => "end of input".to_owned(),
        };
        Error::Query {
            message: format!(
                "\"failed to parse {} ({})\" (line 1, column {column})",
                self.kind, self.text
            ),
            details: format!("unexpected {found} expecting {expected}"),
        }
    }
}
