//! Content-Location and Location.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schema::ident::Ident;

use crate::config::Api;
use crate::request::{ApiRequest, Target};

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// A path's segment may also hold these.
const IN_PATH: &AsciiSet = &ENCODED
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Where the same rows can be read again.
pub(super) fn content(config: &Api, request: &ApiRequest) -> String {
    let name = match &request.target {
        Target::Root => "",
        Target::Relation(name) | Target::Function(name) => name,
    };
    let mut text = config.rest_prefix.clone();
    text.push('/');
    text.extend(utf8_percent_encode(name, IN_PATH));
    if !request.canonical_query.is_empty() {
        text.push('?');
        text.push_str(&request.canonical_query);
    }
    text
}

/// Where a new row can be read.
pub(super) fn of_row(
    config: &Api,
    relation: &str,
    key: &[Ident],
    values: Option<&str>,
) -> Option<String> {
    let values: Vec<Option<String>> = serde_json::from_str(values?).ok()?;
    let mut text = config.rest_prefix.clone();
    text.push('/');
    text.extend(utf8_percent_encode(relation, IN_PATH));
    for (index, (column, value)) in key.iter().zip(values).enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.extend(utf8_percent_encode(column.as_str(), ENCODED));
        match value {
            Some(value) => {
                text.push_str("=eq.");
                text.extend(utf8_percent_encode(&value, ENCODED));
            }
            None => text.push_str("=is.null"),
        }
    }
    Some(text)
}
