//! Whether two replies say the same.

use serde_json::Value;

use crate::case::Case;
use crate::known;
use crate::pair::Reply;

/// How two replies compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Byte for byte, or but for an order that nothing asks for.
    Same,
    /// They differ as the named difference says.
    Known(&'static str),
    /// They differ.
    Different(String),
}

pub(crate) fn compare(case: &Case, ours: &Reply, theirs: &Reply) -> Verdict {
    let Some(why) = difference(case, ours, theirs) else {
        return Verdict::Same;
    };
    let mut expected = theirs.clone();
    let mut name = "";
    for known in known::DIFFERENCES {
        if let Some(other) = (known.expected)(case, ours, &expected)
            && other != expected
        {
            (expected, name) = (other, known.name);
        }
    }
    if difference(case, ours, &expected).is_none() {
        return Verdict::Known(name);
    }
    Verdict::Different(why)
}

fn difference(case: &Case, ours: &Reply, theirs: &Reply) -> Option<String> {
    if ours.status != theirs.status {
        return Some(format!("status {} for {}", ours.status, theirs.status));
    }
    for (name, value) in &theirs.headers {
        if ours.header(name) != Some(value) {
            return Some(format!("{name}: {:?} for {value:?}", ours.header(name)));
        }
    }
    let more = ours
        .headers
        .iter()
        .find(|(name, _)| theirs.header(name).is_none());
    if let Some((name, value)) = more {
        return Some(format!("{name}: {value:?} for none"));
    }
    if ours.body == theirs.body || !case.ordered && unordered(&ours.body) == unordered(&theirs.body)
    {
        return None;
    }
    // Objects have no order of keys.
    if json(&ours.body).is_some() && json(&ours.body) == json(&theirs.body) {
        return None;
    }
    Some("body".to_owned())
}

fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

/// A body as the multiset of its rows: every array sorted.
pub(crate) fn unordered(body: &str) -> String {
    let Some(mut value) = json(body) else {
        let mut lines: Vec<&str> = body.split('\n').collect();
        lines.sort_unstable();
        return lines.join("\n");
    };
    sort(&mut value);
    value.to_string()
}

fn sort(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.iter_mut().for_each(sort);
            items.sort_by_key(ToString::to_string);
        }
        Value::Object(members) => {
            members.values_mut().for_each(sort);
            members.sort_keys();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
