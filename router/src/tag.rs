//! Entity tags: `"<state>-<shape>"`, and what requests say about them. Pure.
//!
//! *State* is a hash of what was read. Of one row's own columns it is a hash
//! that Postgres can make too (SHA-256, halved): a later `If-Match` is compared
//! inside the UPDATE or DELETE, on the row's newest version. Of anything else
//! it is BLAKE3 of the body, which is quicker and nobody else needs.
//!
//! *Shape* is a hash of which columns were read of which relation, so a tag is
//! only compared where the same ones are read again. What else tells two
//! representations apart follows: `-object`, the total where rows were counted,
//! and the content coding (see `http.rs`).

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use schema::ident::QualifiedName;

use crate::error::Error;
use crate::plan::{Action, ColumnRef, Node, Plan, Returning, Source, Value};
use crate::request::accept::MediaType;
use crate::request::name::JsonKey;
use crate::request::{ApiRequest, Method, Target};
use crate::response::Row;

/// Content codings that mark the tags of what they encode.
pub const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];
/// Tags that one header may list.
const TAGS_MAX: usize = 50;
/// Hexadecimal digits of a state.
const STATE_DIGITS: usize = 32;
/// Hexadecimal digits of a shape.
const SHAPE_DIGITS: usize = 8;

/// `If-Match` of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// `*`: there is such a row.
    Any,
    /// The row is in one of these states.
    Rows(Vec<RowTag>),
}

/// What a tag says of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowTag {
    /// The row's hash.
    pub state: String,
    /// What was read of it.
    pub shape: String,
}

impl IfMatch {
    /// Reads the headers; tags that are not ours, or weak, match nothing.
    ///
    /// # Errors
    /// Where they are no list of tags.
    pub fn parse(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        if !headers.contains_key(IF_MATCH) {
            return Ok(None);
        }
        let bad = Error::Precondition("the header is no list of entity tags");
        let mut rows = Vec::new();
        let mut any = false;
        for value in headers.get_all(IF_MATCH) {
            let text = value.to_str().map_err(|_| bad.clone())?;
            if text.trim() == "*" {
                any = true;
                continue;
            }
            for tag in tags(text).ok_or_else(|| bad.clone())? {
                rows.extend(tag.strong.then(|| RowTag::parse(tag.opaque)).flatten());
            }
        }
        if rows.len() > TAGS_MAX {
            return Err(Error::Precondition("the header lists too many entity tags"));
        }
        Ok(Some(if any { Self::Any } else { Self::Rows(rows) }))
    }
}

impl RowTag {
    fn parse(opaque: &str) -> Option<Self> {
        let mut parts = opaque.split('-');
        let mut part = |digits| {
            let part = parts.next()?;
            let hexadecimal = part.bytes().all(|b| b.is_ascii_hexdigit());
            (part.len() == digits && hexadecimal).then(|| part.to_owned())
        };
        Some(Self {
            state: part(STATE_DIGITS)?,
            shape: part(SHAPE_DIGITS)?,
        })
    }
}

/// The shape of rows of `relation`; none where what is read of them is not
/// their own alone.
pub fn shape(relation: &QualifiedName, node: &Node) -> Option<String> {
    if node.grouped() || !node.embeds.is_empty() {
        return None;
    }
    let mut hash = blake3::Hasher::new();
    // Each part with its length, so that none can run into the next.
    let mut part = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    part(relation.schema.as_str());
    part(relation.name.as_str());
    for output in &node.outputs {
        let Value::Field { field, cast } = &output.value else {
            return None;
        };
        part(output.key.as_str());
        match &field.column {
            ColumnRef::Column(name) => part(name.as_str()),
            ColumnRef::Computed(function) => {
                part(function.schema.as_str());
                part(function.name.as_str());
            }
        }
        for step in &field.path {
            part(if step.text { "->>" } else { "->" });
            match &step.key {
                JsonKey::Name(name) => part(name),
                JsonKey::Index(index) => part(&index.to_string()),
            }
        }
        part(cast.as_ref().map_or("", |cast| &cast.0));
    }
    Some(hexadecimal(hash.finalize().as_bytes(), SHAPE_DIGITS))
}

/// The tag of an answer; none where it has nothing to tag.
pub(crate) fn of(request: &ApiRequest, plan: &Plan, row: &Row) -> Option<HeaderValue> {
    if !plan.body {
        return None;
    }
    let own = match &plan.action {
        Action::Read(node) => match &node.source {
            Source::Relation { name, .. } => shape(name, node),
            Source::Produced | Source::Computed { .. } => None,
        },
        Action::Write(write) => match &write.returning {
            Returning::Rows { node, .. } => shape(&write.relation, node),
            Returning::Count | Returning::Location(_) => None,
        },
        Action::Call(_) | Action::Options(_) | Action::Describe(_) => None,
    };
    let single = own.filter(|_| row.page == 1 && plan.handler.is_none());
    let single = single.zip(one_row(plan, row));
    let mut text = match single {
        Some((shape, row)) => {
            let state = hexadecimal(digest(&SHA256, row).as_ref(), STATE_DIGITS);
            let object = match plan.media {
                MediaType::Object { .. } => "-object",
                _ => "",
            };
            format!("\"{state}-{shape}{object}")
        }
        None if request.method == Method::Get => whole(request, plan, row),
        None => return None,
    };
    if let Some(total) = row.total {
        text.push_str(&format!("-{total}"));
    }
    text.push('"');
    HeaderValue::try_from(text).ok()
}

/// A result that is not one row's own columns.
fn whole(request: &ApiRequest, plan: &Plan, row: &Row) -> String {
    let mut shape = blake3::Hasher::new();
    let name = match &request.target {
        Target::Root => "",
        Target::Relation(name) | Target::Function(name) => name,
    };
    for part in [
        &*request.schema,
        name,
        &plan.media.content_type(),
        &request.canonical_query,
    ] {
        shape.update(&(part.len() as u64).to_le_bytes());
        shape.update(part.as_bytes());
    }
    let state = hexadecimal(blake3::hash(&row.body).as_bytes(), STATE_DIGITS);
    let shape = hexadecimal(shape.finalize().as_bytes(), SHAPE_DIGITS);
    format!("\"{state}-{shape}")
}

/// The one row's object, as Postgres printed it.
fn one_row<'a>(plan: &Plan, row: &'a Row) -> Option<&'a [u8]> {
    match &plan.media {
        MediaType::Json => row.body.strip_prefix(b"[")?.strip_suffix(b"]"),
        MediaType::Object { stripped: false } => Some(&row.body),
        _ => None,
    }
}

/// 304 where the client's copy is still good; the answer as it is otherwise.
pub fn conditional(
    method: &http::Method,
    request: &HeaderMap,
    response: Response<Bytes>,
) -> Response<Bytes> {
    let fresh = matches!(
        response.status(),
        StatusCode::OK | StatusCode::PARTIAL_CONTENT
    );
    if *method != http::Method::GET || !fresh || !request.contains_key(IF_NONE_MATCH) {
        return response;
    }
    let tag = response.headers().get(ETAG).and_then(|t| t.to_str().ok());
    let Some(tag) = tag.and_then(|tag| tags(tag)?.into_iter().next()) else {
        return response;
    };
    let values = request.get_all(IF_NONE_MATCH).iter();
    let mut held = values.filter_map(|value| value.to_str().ok());
    let matching = held.find_map(|value| {
        if value.trim() == "*" {
            return Some(None);
        }
        let same = |held: &Tag<'_>| without_coding(held.opaque) == tag.opaque;
        Some(Some(tags(value)?.into_iter().find(same)?.text.to_owned()))
    });
    let Some(matching) = matching else {
        return response;
    };
    let mut response = response;
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = Bytes::new();
    let headers = response.headers_mut();
    headers.remove(CONTENT_TYPE);
    headers.remove(CONTENT_LENGTH);
    // The tag of the copy that it has, with its content coding.
    if let Some(Ok(tag)) = matching.map(HeaderValue::try_from) {
        headers.insert(ETAG, tag);
    }
    response
}

/// The tag of the same content in a content coding.
pub fn coded(tag: &HeaderValue, coding: &str) -> Option<HeaderValue> {
    let inner = tag.to_str().ok()?.strip_suffix('"')?;
    HeaderValue::try_from(format!("{inner}-{coding}\"")).ok()
}

fn without_coding(opaque: &str) -> &str {
    let coding = opaque.rsplit_once('-');
    match coding {
        Some((rest, coding)) if CODINGS.contains(&coding) => rest,
        Some(_) | None => opaque,
    }
}

/// One tag of a list.
struct Tag<'a> {
    /// As it stands there.
    text: &'a str,
    /// Between the quotes.
    opaque: &'a str,
    strong: bool,
}

/// A list of entity tags (RFC 9110, 8.8.3); none where it is none.
fn tags(text: &str) -> Option<Vec<Tag<'_>>> {
    let mut tags = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (strong, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (false, quoted),
            None => (true, rest),
        };
        let inner = quoted.strip_prefix('"')?;
        let (opaque, after) = inner.split_once('"')?;
        let length = rest.len() - after.len();
        tags.push(Tag {
            text: rest.get(..length)?,
            opaque,
            strong,
        });
        rest = after.trim_start();
        if !rest.is_empty() {
            rest = rest.strip_prefix(',')?.trim_start();
        }
    }
    (!tags.is_empty()).then_some(tags)
}

/// The first digits of a hash.
fn hexadecimal(bytes: &[u8], digits: usize) -> String {
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digit = |nibble| char::from_digit(u32::from(nibble), 16);
    let mut text = String::with_capacity(digits);
    text.extend(nibbles.filter_map(digit).take(digits));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "0123456789abcdef0123456789abcdef";

    fn if_match(value: &str) -> Result<Option<IfMatch>, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, value.parse().unwrap());
        IfMatch::parse(&headers)
    }

    fn states(value: &str) -> Vec<String> {
        match if_match(value).unwrap().unwrap() {
            IfMatch::Any => vec!["*".into()],
            IfMatch::Rows(rows) => rows.into_iter().map(|row| row.shape).collect(),
        }
    }

    #[test]
    fn if_match_takes_strong_tags_of_rows() {
        assert_eq!(IfMatch::parse(&HeaderMap::new()).unwrap(), None);
        assert_eq!(states("*"), ["*"]);
        let one = format!("\"{STATE}-00000001\"");
        assert_eq!(states(&one), ["00000001"]);
        let several = format!("{one} , \"{STATE}-00000002-object-gzip\",\"{STATE}-00000003-12\"");
        assert_eq!(states(&several), ["00000001", "00000002", "00000003"]);
        for nothing in [
            format!("W/{one}"),
            "\"\"".into(),
            "\"x-y\"".into(),
            format!("\"{STATE}\""),
            format!("\"{STATE}-0000000g\""),
        ] {
            assert!(states(&nothing).is_empty(), "{nothing}");
        }
        for bad in ["", "x", "\"a\" \"b\"", "\"a", "\"a\",x", "w/\"a\""] {
            assert!(if_match(bad).is_err(), "{bad}");
        }
    }

    fn answer(if_none_match: &str) -> (u16, String, usize) {
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, if_none_match.parse().unwrap());
        let response = Response::builder()
            .header(ETAG, "\"a-1\"")
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from_static(b"[]"))
            .unwrap();
        let answered = conditional(&http::Method::GET, &headers, response);
        assert_eq!(
            answered.headers().contains_key(CONTENT_TYPE),
            answered.status() == 200
        );
        let tag = answered.headers()[ETAG].to_str().unwrap().to_owned();
        (answered.status().as_u16(), tag, answered.body().len())
    }

    #[test]
    fn a_copy_that_is_still_good_is_not_sent_again() {
        let same = |given: &str| assert_eq!(answer(given), (304, given.to_owned(), 0));
        same("\"a-1\"");
        same("W/\"a-1\"");
        same("\"a-1-gzip\"");
        assert_eq!(answer("\"x\", \"a-1-br\""), (304, "\"a-1-br\"".into(), 0));
        assert_eq!(answer("*"), (304, "\"a-1\"".into(), 0));
        for other in ["\"a\"", "\"a-1-lz4\"", "\"a-2\"", "a-1", "x, \"a-1\""] {
            assert_eq!(answer(other), (200, "\"a-1\"".into(), 2), "{other}");
        }
    }

    #[test]
    fn a_coding_makes_a_tag_of_its_own() {
        let coded = coded(&HeaderValue::from_static("\"a-1\""), "zstd").unwrap();
        assert_eq!(coded, "\"a-1-zstd\"");
        assert_eq!(without_coding("a-1-zstd"), "a-1");
    }
}
