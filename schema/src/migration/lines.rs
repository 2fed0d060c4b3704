//! The lines of a text, found once: a file may have as many statements as lines.

/// Where each line of a text begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lines(Vec<usize>);

impl Lines {
    pub(crate) fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(
            std::iter::once(0)
                .chain(ends.map(|(at, _)| at + 1))
                .collect(),
        )
    }

    /// The line, from 1, of a place in the text.
    pub(crate) fn line(&self, at: usize) -> u32 {
        self.0.partition_point(|begin| *begin <= at) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_on_the_line_whose_end_comes_next() {
        for text in ["", "a", "\n", "a\n", "a\n\nbc\nd", "\n\n\u{e9}\n"] {
            let lines = Lines::of(text);
            for at in 0..=text.len() {
                let before = text.as_bytes()[..at].iter();
                let counted = before.filter(|byte| **byte == b'\n').count() as u32 + 1;
                assert_eq!(lines.line(at), counted, "{text:?} {at}");
            }
        }
    }
}
