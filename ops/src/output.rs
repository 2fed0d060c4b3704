//! What commands print: tables for people, the admin API's own JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::Value;

use crate::error::{self, Error, Result};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON value; lists are arrays.
    Json,
}

/// A command's result in both forms.
#[derive(Debug)]
pub struct Output {
    /// What programs read.
    pub json: Value,
    /// What people read.
    pub text: String,
    /// Said beside the result, on standard error; in table form only.
    pub note: Option<String>,
    /// What makes it a failure all the same, once it has been printed.
    pub failed: Option<Error>,
}

/// One column of a table, or one line of a record: its title, and what it
/// shows of an item.
pub type Column = (&'static str, fn(&Value) -> String);

impl Output {
    /// A list, one line an item.
    pub fn list(items: Vec<Value>, columns: &[Column]) -> Self {
        Self {
            text: table(&items, columns),
            json: Value::Array(items),
            note: None,
            failed: None,
        }
    }

    /// One thing, one line a property.
    pub fn record(item: Value, columns: &[Column]) -> Self {
        Self {
            text: record(&item, columns),
            json: item,
            note: None,
            failed: None,
        }
    }

    /// With another value for programs.
    #[must_use]
    pub fn with_json(mut self, json: Value) -> Self {
        self.json = json;
        self
    }

    /// With a remark for people.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// A result that is printed, and that the command fails with.
    #[must_use]
    pub fn failed(mut self, why: Option<String>) -> Self {
        self.failed = why.map(Error::Checked);
        self
    }

    /// Prints it. A reader that has gone away (`… | head`) is no error.
    ///
    /// # Errors
    /// Where standard output can't be written.
    pub fn print(&self, format: Format) -> Result<()> {
        let written = match format {
            Format::Table => {
                if let Some(note) = &self.note {
                    eprintln!("{note}");
                }
                io::stdout().write_all(self.text.as_bytes())
            }
            Format::Json => writeln!(io::stdout(), "{:#}", self.json),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(error::io("write to standard output")),
        }
    }
}

/// A value as people read it; `-` where there is none.
pub fn show(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

fn table(items: &[Value], columns: &[Column]) -> String {
    let titles: Vec<String> = columns
        .iter()
        .map(|(title, _)| (*title).to_owned())
        .collect();
    let lines = items
        .iter()
        .map(|item| columns.iter().map(|(_, cell)| cell(item)).collect());
    table_of(&titles, lines)
}

/// A table whose columns are not known beforehand.
pub(crate) fn table_of(titles: &[String], lines: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(titles.iter().map(|title| title.to_uppercase()));
    for line in lines {
        table.add_row(line);
    }
    // The first column starts at the margin, and nothing is padded at the end.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(table.lines())
}

fn record(item: &Value, columns: &[Column]) -> String {
    let width = columns.iter().map(|(title, _)| title.len()).max();
    let width = width.unwrap_or(0);
    trimmed(
        columns
            .iter()
            .map(|(title, value)| format!("{title:width$}  {}", value(item))),
    )
}

fn trimmed(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Names come from other people: none may steer the reader's terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COLUMNS: &[Column] = &[
        ("slug", |t| show(&t["slug"])),
        ("long title", |t| show(&t["name"])),
        ("epoch", |t| show(&t["epoch"])),
    ];

    #[test]
    fn tables_and_records() {
        let items = vec![
            json!({"slug": "acme", "name": "Acme Corporation", "epoch": 1}),
            json!({"slug": "a-much-longer-slug", "name": null, "epoch": 12}),
        ];
        insta::assert_snapshot!(table(&items, COLUMNS), @r"
        SLUG                LONG TITLE        EPOCH
        acme                Acme Corporation  1
        a-much-longer-slug  -                 12
        ");
        insta::assert_snapshot!(record(&items[0], COLUMNS), @r"
        slug        acme
        long title  Acme Corporation
        epoch       1
        ");
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(show(&json!("a\u{1b}[2Jb\nc")), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
