//! Ranges of a table's primary key, by which long work is cut into chunks. Pure:
//! texts of SQL.

use serde::{Deserialize, Serialize};

use crate::ident::{Ident, Literal};

/// A column of a primary key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyColumn {
    /// Its name.
    pub name: Ident,
    /// `format_type()`.
    pub type_name: String,
}

/// Asks for the last key of the next chunk, as texts: of `rows` rows of `table`
/// behind the key `after`, or from the table's beginning. No row: nothing is left.
pub fn upper_sql(table: &str, key: &[KeyColumn], after: Option<&[String]>, rows: u32) -> String {
    let names = joined(key, |column| column.name.to_string());
    let texts = joined(key, |column| format!("{}::text", column.name));
    // Qualified: the bare name would be the output's, and sorted as text.
    let last = joined(key, |column| format!("chunk.{} desc", column.name));
    let beyond = match after {
        Some(after) => format!("where ({names}) > {}", values(key, after)),
        None => String::new(),
    };
    format!(
        "select {texts} from (select {names} from {table} {beyond} order by {names} limit {rows}) chunk
         order by {last} limit 1",
    )
}

/// A key's values as a row of their types.
pub fn values(key: &[KeyColumn], values: &[String]) -> String {
    let typed = key.iter().zip(values);
    let typed: Vec<String> = typed
        .map(|(column, value)| format!("{}::{}", Literal(value), column.type_name))
        .collect();
    format!("({})", typed.join(", "))
}

/// What `text` says of each of its columns, as a list.
pub fn joined(key: &[KeyColumn], text: impl Fn(&KeyColumn) -> String) -> String {
    key.iter().map(text).collect::<Vec<_>>().join(", ")
}
