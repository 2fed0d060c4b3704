//! What is wrong with a scenario, and where.

use std::fmt;
use std::ops::Range;

/// A problem in a scenario file: place, message and the line itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong, in one sentence.
    pub message: String,
    excerpt: String,
    width: usize,
}

impl Problem {
    /// The problem at a byte range of the text; without one, at its begin.
    pub(crate) fn at(file: &str, text: &str, span: Option<Range<usize>>, message: &str) -> Self {
        let span = span.unwrap_or(0..0);
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let line_begin = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..]
            .find('\n')
            .map_or(text.len(), |newline| start + newline);
        Problem {
            file: file.to_owned(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_begin..start].chars().count() + 1,
            // The parser's message may span lines; the first says it.
            message: message.lines().collect::<Vec<_>>().join("; "),
            excerpt: text[line_begin..line_end].trim_end().to_owned(),
            width: text[start..end.min(line_end).max(start)]
                .chars()
                .count()
                .max(1),
        }
    }
}

fn floor_boundary(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem {
            file,
            line,
            column,
            message,
            excerpt,
            width,
        } = self;
        writeln!(f, "{file}:{line}:{column}: {message}")?;
        writeln!(f, "{line:>5} | {excerpt}")?;
        write!(
            f,
            "      | {}{}",
            " ".repeat(column - 1),
            "^".repeat(*width)
        )
    }
}
