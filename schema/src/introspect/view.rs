//! Which table's column a view's column is, read from the rule that Postgres
//! stores of the view (`pg_rewrite.ev_action`, a node tree as text).

use tokio_postgres::types::Oid;

/// Where a view's column comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The view's column number.
    pub(super) column: i16,
    /// The relation that it comes from: a table, or again a view.
    pub(super) relation: Oid,
    /// The column's number there.
    pub(super) number: i16,
}

/// Origins of the columns that are plain columns of a relation; none where the
/// text is not a rule's.
///
/// Every target entry carries `:resorigtbl` and `:resorigcol`, which Postgres
/// has traced through joins and sub-selects already. Only the entries of the
/// outermost query count: those of sub-selects lie deeper in the braces.
pub(super) fn origins(rule: &str) -> Option<Vec<Origin>> {
    let list = outer_target_list(rule)?;
    let mut origins = Vec::new();
    for entry in entries(list) {
        let number =
            |field: &str| own_field(entry, field).and_then(|text| text.parse::<u32>().ok());
        let (column, relation, origin) = (
            number(":resno")?,
            number(":resorigtbl")?,
            number(":resorigcol")?,
        );
        let junk = own_field(entry, ":resjunk")? == "true";
        if relation != 0 && !junk {
            origins.push(Origin {
                column: i16::try_from(column).ok()?,
                relation,
                number: i16::try_from(origin).ok()?,
            });
        }
    }
    Some(origins)
}

/// What stands in the parentheses behind `:targetList` of the outermost query.
fn outer_target_list(rule: &str) -> Option<&str> {
    let start = at_depth(rule, 1, ":targetList (")? + ":targetList (".len();
    let mut depth = 0_u32;
    for (index, c) in structure(&rule[start..]) {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return Some(&rule[start..start + index]),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The nodes in braces that stand side by side in `list`.
fn entries(list: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0_u32, 0);
    for (index, c) in structure(list) {
        match c {
            '{' => {
                if depth == 0 {
                    start = index;
                }
                depth += 1;
            }
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    found.push(&list[start..=index]);
                }
            }
            _ => {}
        }
    }
    found
}

/// A field's value in a node, not in the nodes within it.
fn own_field<'a>(node: &'a str, field: &str) -> Option<&'a str> {
    let start = at_depth(node, 1, &format!("{field} "))? + field.len() + 1;
    node[start..]
        .split([' ', '}'])
        .next()
        .filter(|text| !text.is_empty())
}

/// Where `text` stands for the first time within exactly `depth` braces.
fn at_depth(tree: &str, depth: u32, text: &str) -> Option<usize> {
    let mut now = 0;
    for (index, c) in structure(tree) {
        match c {
            '{' => now += 1,
            '}' => now -= 1,
            ':' if now == depth && tree[index..].starts_with(text) => return Some(index),
            _ => {}
        }
    }
    None
}

/// Characters with their places, without those that a backslash escapes.
fn structure(tree: &str) -> impl Iterator<Item = (usize, char)> {
    let mut escaped = false;
    tree.char_indices().filter(move |(_, c)| {
        let plain = !escaped;
        escaped = plain && *c == '\\';
        plain && !escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_outermost_entries_count() {
        let rule = "({QUERY :x 1 :rtable ({RTE :subquery {QUERY :targetList ({TARGETENTRY :expr {VAR :varno 1} \
                    :resno 1 :resname z :resorigtbl 9 :resorigcol 9 :resjunk false})}}) \
                    :targetList ({TARGETENTRY :expr {VAR :varno 1} :resno 1 :resname a\\ \\{b :resorigtbl 7 :resorigcol 3 \
                    :resjunk false} {TARGETENTRY :expr {FUNC :args (1 2)} :resno 2 :resname c :resorigtbl 0 :resorigcol 0 \
                    :resjunk false}) :override 0})";
        let expected = Origin {
            column: 1,
            relation: 7,
            number: 3,
        };
        assert_eq!(origins(rule), Some(vec![expected]));
    }

    #[test]
    fn other_text_is_refused() {
        assert_eq!(origins("nonsense"), None);
    }
}
