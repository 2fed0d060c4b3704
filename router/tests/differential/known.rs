//! What may differ from PostgREST 12.0.2, and why: a closed list. Each entry
//! says, from the request and what PostgREST answered, what the router must
//! answer instead; whatever it leaves as it came must be equal.

use serde_json::{Value, json};

use crate::case::Case;
use crate::compare::unordered;
use crate::pair::Reply;

/// A difference that is meant.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    /// What the router is expected to answer; none where the difference can't
    /// be the cause. It may look at the router's answer for what no rule can
    /// foresee, such as a parser's words.
    pub(crate) expected: fn(&Case, &Reply, &Reply) -> Option<Reply>,
}

/// Applied one after the other: several may meet in one request.
pub(crate) const DIFFERENCES: &[Known] = &[
    Known {
        name: "syntax errors are told in other words, with the same code",
        expected: |_, ours, theirs| {
            both(ours, theirs, "PGRST100")?;
            with_texts(theirs, ours, &["message", "details"])
        },
    },
    Known {
        name: "v13: an unknown table is PGRST205",
        expected: |case, ours, theirs| {
            let unknown = theirs.code().as_deref() == Some("42P01") || theirs.body == "{}";
            let between = format!("relationship between '{}' and", &case.path[1..]);
            let unknown = unknown || theirs.body.contains(&between);
            unknown.then(|| refused(ours, 404, "PGRST205"))?
        },
    },
    Known {
        name: "v13: no acceptable media type is 406",
        expected: |case, _, theirs| {
            let named = case.method == "HEAD" || theirs.code()? == "PGRST107";
            let refused = theirs.status == 415 && named;
            refused.then(|| Reply {
                status: 406,
                ..theirs.clone()
            })
        },
    },
    Known {
        name: "v13: PGRST116 in other words",
        expected: |_, _, theirs| {
            let old = "JSON object requested, multiple (or no) rows returned";
            let new = "Cannot coerce the result to a single JSON object";
            theirs.body.contains(old).then(|| Reply {
                body: theirs.body.replace(old, new),
                ..theirs.clone()
            })
        },
    },
    Known {
        name: "v13: spreads of many rows",
        expected: |case, ours, theirs| {
            let spread = case.param("select")?.contains("...");
            (spread && theirs.code()? == "PGRST119").then(|| rows(case, ours))?
        },
    },
    Known {
        name: "v13: a path that leads nowhere is PGRST125",
        expected: |case, ours, theirs| {
            let deep = case.path.matches('/').count() > 1 && !case.path.starts_with("/rpc/");
            (deep && theirs.status == 404).then(|| refused(ours, 404, "PGRST125"))?
        },
    },
    Known {
        name: "v13 and v14: PGRST106 in other words",
        expected: |_, ours, theirs| {
            both(ours, theirs, "PGRST106")?;
            with_texts(theirs, ours, &["message", "hint"])
        },
    },
    Known {
        name: "v14: a misspelled function is suggested only if it is similar",
        expected: |_, ours, theirs| {
            both(ours, theirs, "PGRST202")?;
            let none = value(ours)?["hint"].is_null();
            none.then(|| with_texts(theirs, ours, &["hint"]))?
        },
    },
    Known {
        name: "Content-Location: names in UTF-8 once, and keys repeated, so that it can be followed",
        expected: |case, _, theirs| {
            let written = theirs.header("content-location")?;
            let Some((path, query)) = written.split_once('?') else {
                let path = encoded_path(written);
                return Some(with_header(theirs, "content-location", &path));
            };
            if query != latin(&case.params) {
                return None;
            }
            let mut params = case.params.clone();
            params.sort_by(|a, b| a.0.cmp(&b.0));
            let query: Vec<String> = params
                .iter()
                .map(|(key, value)| format!("{}={}", encoded(key), encoded(value)))
                .collect();
            let written = format!("{}?{}", encoded_path(path), query.join("&"));
            Some(with_header(theirs, "content-location", &written))
        },
    },
    Known {
        name: "messages name a column by another alias, or another clause",
        expected: |_, ours, theirs| {
            let same = ["42703", "42803", "42804"].contains(&theirs.code()?.as_str());
            let (own, other) = (message(ours)?, message(theirs)?);
            let same =
                same && ours.code() == theirs.code() && unqualified(&own) == unqualified(&other);
            same.then(|| with_texts(theirs, ours, &["message", "hint"]))?
        },
    },
    Known {
        name: "v13: what a function returns may be filtered and ordered by what is not selected",
        expected: |case, ours, theirs| {
            let message = message(theirs)?;
            let told = case.path.starts_with("/rpc/") && theirs.code()? == "42703";
            let column = message
                .strip_prefix("column ")?
                .strip_suffix(" does not exist")?;
            let (_, column) = column.split_once('.')?;
            let path = format!("{column}->");
            let ordered = case
                .param("order")
                .is_some_and(|order| order.contains(column));
            let filtered = |(key, _): &(String, String)| key == column || key.starts_with(&path);
            let used = ordered || case.params.iter().any(filtered);
            (told && used).then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "of several values that a cast refuses another one is told",
        expected: |_, ours, theirs| {
            let refused = ["22P02", "22007", "22008", "22023"].contains(&theirs.code()?.as_str());
            (refused && ours.code() == theirs.code()).then_some(())?;
            let (own, other) = (message(ours)?, message(theirs)?);
            let kind = |text: &str| {
                let text = ["object", "array", "string", "null"]
                    .iter()
                    .fold(text.to_owned(), |text, kind| {
                        text.replace(&format!("jsonb {kind} to"), "jsonb to")
                    });
                text.split(": ").next().map(str::to_owned)
            };
            (kind(&own) == kind(&other))
                .then(|| with_texts(theirs, ours, &["message", "details"]))?
        },
    },
    Known {
        name: "equal names in spreads are no ambiguity",
        expected: |case, ours, theirs| {
            let spread = case.param("select")?.contains("...");
            (spread && theirs.code()? == "42702").then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "v13: searches make texts of what is none",
        expected: |case, ours, theirs| {
            let message = message(theirs)?;
            let searched =
                message.starts_with("operator does not exist:") && message.ends_with(" @@ tsquery");
            searched.then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "v13: PGRST204 in other words",
        expected: |_, ours, theirs| {
            both(ours, theirs, "PGRST204")?;
            with_texts(theirs, ours, &["message"])
        },
    },
    Known {
        name: "v13: an argument by GET is read as its type, not as a JSON string of it",
        expected: |case, ours, theirs| {
            let Value::String(text) = value(theirs)? else {
                return None;
            };
            let same = serde_json::from_str::<Value>(&text).ok()? == value(ours)?;
            let called = case.method == "GET" && case.path.starts_with("/rpc/");
            (called && same).then(|| Reply {
                body: ours.body.clone(),
                ..theirs.clone()
            })
        },
    },
    Known {
        name: "CSV: an embed that a parameter names does not come first",
        expected: |case, ours, theirs| {
            let csv = theirs.header("content-type")?.starts_with("text/csv");
            let several = case.param("select")?.matches('(').count() > 1;
            let sorted = |reply: &Reply| {
                let mut bytes = reply.body.clone().into_bytes();
                bytes.sort_unstable();
                bytes
            };
            (csv && several && sorted(ours) == sorted(theirs)).then(|| Reply {
                body: ours.body.clone(),
                ..theirs.clone()
            })
        },
    },
    Known {
        name: "v16: without a page the answer's own rows are the exact count, groups too",
        expected: |case, ours, theirs| {
            let counted = case.has_header("Prefer", "count=exact")
                && unordered(&ours.body) == unordered(&theirs.body);
            let select = case.param("select")?;
            let groups = select.contains("count") || select.contains("()");
            let range = ours.header("content-range")?;
            (counted && groups && ours.status == 200 && theirs.status < 300).then(|| Reply {
                status: 200,
                ..with_header(theirs, "content-range", range)
            })
        },
    },
    Known {
        name: "Location: names are encoded",
        expected: |_, _, theirs| {
            let written = theirs.header("location")?;
            let (path, query) = written.split_once('?')?;
            let location = format!("{}?{query}", encoded_path(path));
            Some(with_header(theirs, "location", &location))
        },
    },
    Known {
        name: "broken CSV is told in other words",
        expected: |_, ours, theirs| {
            both(ours, theirs, "PGRST102")?;
            let told =
                |reply: &Reply| message(reply).is_some_and(|m| m.starts_with("parse error ("));
            (told(ours) && told(theirs)).then(|| with_texts(theirs, ours, &["message"]))?
        },
    },
    Known {
        name: "v13: PGRST121 says what is wrong",
        expected: |_, ours, theirs| {
            both(ours, theirs, "PGRST121")?;
            with_texts(theirs, ours, &["message", "details", "hint"])
        },
    },
    Known {
        name: "v16: a time zone that there is none of is refused",
        expected: |case, ours, theirs| {
            let zone = case.has_header("Prefer", "timezone=Nowhere");
            (zone && theirs.status < 300).then(|| refused(ours, 400, "22023"))?
        },
    },
    Known {
        name: "an index that ends an embed's path is one",
        expected: |case, ours, theirs| {
            let select = case.param("select")?;
            let mut ends = select.match_indices(')').map(|(at, _)| &select[..at]);
            let index = |path: &str| {
                let (rest, last) = path.rsplit_once('>').unwrap_or((path, ""));
                let digits = last.trim_start_matches('-');
                let digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                digits && rest.ends_with(['-', '>'])
            };
            (ends.any(index) && theirs.status < 300).then(|| rows(case, ours))?
        },
    },
    Known {
        name: "v13: SQLSTATE 21000 is 500",
        expected: |_, ours, theirs| {
            both(ours, theirs, "21000")?;
            Some(Reply {
                status: 500,
                ..theirs.clone()
            })
        },
    },
    Known {
        name: "rows may be ordered by what an embed does not select",
        expected: |case, ours, theirs| {
            let related = case
                .params
                .iter()
                .any(|(key, value)| key.ends_with("order") && value.contains('('));
            let told = ["42703", "42702"].contains(&theirs.code()?.as_str());
            (related && told).then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "values and conditions of embeds that no row shows are not looked at",
        expected: |case, ours, theirs| {
            let select = case.param("select")?;
            let is_embed = |key: &str| {
                let shapes = ["(", "!", ":"].map(|end| format!("{key}{end}"));
                shapes.iter().any(|shape| select.contains(shape))
            };
            let mut params = case.params.iter();
            let unseen = params.any(|(key, value)| value.ends_with("is.null") && is_embed(key));
            let hidden = select.contains("()") || unseen;
            (hidden && theirs.code()?.len() == 5).then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "a value that no row takes is not looked at",
        expected: |case, ours, theirs| {
            let refused = ["22P02", "22007", "23514"].contains(&theirs.code()?.as_str());
            let none = matches!(ours.header("content-range"), Some("*/*" | "*/0"));
            (case.method == "PATCH" && refused && none).then(|| rows(case, ours))?
        },
    },
    Known {
        name: "that not exactly one row was written is told before its foreign keys",
        expected: |case, ours, theirs| {
            let one = case.has_header("Accept", "object") && case.writes();
            (one && theirs.code()? == "23503").then(|| refused(ours, 406, "PGRST116"))?
        },
    },
    Known {
        name: "CSV of a write: the header names what is selected",
        expected: |case, ours, theirs| {
            let csv = case.writes() && theirs.header("content-type")?.starts_with("text/csv");
            let (_, rows) = theirs.body.split_once('\n')?;
            let (header, own) = ours.body.split_once('\n')?;
            let same = rows == own || !case.ordered && unordered(rows) == unordered(own);
            (csv && same).then(|| Reply {
                body: format!("{header}\n{own}"),
                ..theirs.clone()
            })
        },
    },
    Known {
        name: "v14: a body is a function's one argument only if that has no name",
        expected: |case, ours, theirs| {
            let called = case.method == "POST" && case.path.starts_with("/rpc/");
            (called && theirs.code()? == "42883").then(|| refused(ours, 404, "PGRST202"))?
        },
    },
    Known {
        name: "values of embedded rows that are not shown are not made",
        expected: |case, ours, theirs| {
            let cast = case.param("select")?.contains("::");
            let refused = ["22P02", "22007", "22008", "22023", "22003"];
            let refused = refused.contains(&theirs.code()?.as_str());
            (cast && refused).then(|| rows(case, ours))?
        },
    },
    Known {
        name: "of what a write and its answer are refused for another thing is told",
        expected: |case, ours, theirs| {
            let cast = case.writes() && case.param("select")?.contains("::");
            let (own, other) = (ours.code()?, theirs.code()?);
            let key = |code: &str| ["23503", "23505"].contains(&code);
            let either =
                key(&other) && own.starts_with("22") || key(&own) && other.starts_with("22");
            (cast && either).then(|| why(ours))?
        },
    },
    Known {
        name: "of several foreign keys that are violated another one is told",
        expected: |_, ours, theirs| {
            both(ours, theirs, "23503")?;
            with_texts(theirs, ours, &["message", "details"])
        },
    },
    Known {
        name: "of several rows that are refused another one is told",
        expected: |case, ours, theirs| {
            let refused = |reply: &Reply| {
                let code = reply.code()?;
                (code.starts_with("22") || code.starts_with("23")).then_some(())
            };
            refused(ours)?;
            refused(theirs)?;
            let rows = case
                .body
                .as_deref()
                .is_some_and(|body| body.starts_with('['));
            (case.writes() && rows).then(|| why(ours))?
        },
    },
    Known {
        name: "a write that changes nothing must select what is there, too",
        expected: |case, ours, theirs| {
            let nothing = case.method == "PATCH" && case.body.as_deref() == Some("{}");
            (nothing && theirs.status < 300).then(|| refused(ours, 400, "42703"))?
        },
    },
    Known {
        name: "v13: pages do not limit writes",
        expected: |case, ours, theirs| {
            let paged = case.writes() && theirs.code()? == "PGRST109";
            let body = || refused(ours, 400, "PGRST102").or_else(|| refused(ours, 400, "PGRST204"));
            paged.then(|| rows_or_why(case, ours).or_else(body))?
        },
    },
    Known {
        name: "v13: written rows may be ordered, so an order must be one",
        expected: |case, ours, theirs| {
            let mut params = case.params.iter();
            let related = |(key, value): &(String, String)| {
                key.ends_with(".order") || key == "order" && value.contains('(')
            };
            let ordered = case.writes() && params.any(related);
            let later = theirs.status < 300 || theirs.code()? == "PGRST105";
            (ordered && later).then(|| refused(ours, 400, "PGRST108"))?
        },
    },
    Known {
        name: "a select list is read to its end",
        expected: |_, ours, theirs| {
            let select = message(ours)?.starts_with("\"failed to parse select parameter (");
            let body: Value = serde_json::from_str(&ours.body).ok()?;
            let details = body["details"].as_str()?;
            let told = details.ends_with("expecting end of input");
            let read = theirs.code().as_deref() != Some("PGRST100");
            (select && told && read).then(|| refused(ours, 400, "PGRST100"))?
        },
    },
    Known {
        name: "OPTIONS of a function looks at nothing but the function",
        expected: |case, ours, theirs| {
            let called = case.method == "OPTIONS" && case.path.starts_with("/rpc/");
            let methods = ours.status == 200 && ours.header("allow").is_some();
            (called && methods && theirs.code()? == "PGRST200").then(|| ours.clone())
        },
    },
    Known {
        name: "computed relationships lead on from what an embed made",
        expected: |case, ours, theirs| {
            let told = theirs.code()? == "42846"
                && message(theirs)?.starts_with("cannot cast type jsonb to ");
            told.then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "rows joined to groups are counted as they are shown",
        expected: |case, ours, theirs| {
            let select = case.param("select")?;
            let mut tests = case.params.iter().map(|(_, value)| value);
            let joined = select.contains("!inner") || tests.any(|v| v.ends_with("is.null"));
            let groups = joined && select.contains("count");
            let counted = groups && case.has_header("Prefer", "count=exact");
            let ranged = [theirs.status, ours.status]
                .iter()
                .all(|s| [200, 206, 416].contains(s));
            let range = ours.header("content-range")?;
            let both = ours.status != 416 && theirs.status != 416;
            (counted && ranged).then(|| Reply {
                status: ours.status,
                // Beyond the last row there is an error in place of rows.
                body: if both { &theirs.body } else { &ours.body }.clone(),
                ..with_header(theirs, "content-range", range)
            })
        },
    },
    Known {
        name: "reference tables are read only",
        expected: |case, _, theirs| {
            let reference = case.method == "OPTIONS" && case.path == "/kinds";
            reference.then(|| with_header(theirs, "allow", "OPTIONS,GET,HEAD"))
        },
    },
    Known {
        name: "the columns of an embed that is named by its key have their types",
        expected: |case, ours, theirs| {
            let mut params = case.params.iter();
            let paths = params.any(|(key, value)| key.contains("->") || value.contains("->"));
            let told = ours.code()? == "42883"
                && message(ours)?.starts_with("operator does not exist: json ");
            let other = theirs.status < 300 || theirs.code()? == "42883";
            (paths && told && other).then(|| refused(ours, 404, "42883"))?
        },
    },
    Known {
        name: "an array in a tree may hold braces in quotes",
        expected: |case, ours, theirs| {
            let mut trees = case
                .params
                .iter()
                .filter(|(_, value)| value.starts_with('('));
            let braces = trees.any(|(_, value)| value.contains("{\""));
            (braces && theirs.code()? == "PGRST100").then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "embeds in a spread may be joined for filtering only",
        expected: |case, ours, theirs| {
            let select = case.param("select")?;
            let spread = select.contains("...") && select.contains("()");
            (spread && theirs.code()? == "42703").then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "groups may be formed by JSON paths",
        expected: |case, ours, theirs| {
            let paths = case.param("select")?.contains("->");
            (paths && theirs.code()? == "42803").then(|| rows_or_why(case, ours))?
        },
    },
    Known {
        name: "row security: no values in the DETAIL of a key's violation",
        expected: |_, ours, theirs| {
            let violated = ["23505", "23503", "23514", "23502"].contains(&theirs.code()?.as_str());
            let own = value(ours)?;
            let left_out = own["details"]
                .as_str()
                .is_none_or(|details| !details.contains('('));
            (violated && left_out && ours.code() == theirs.code())
                .then(|| with_texts(theirs, ours, &["details"]))?
        },
    },
];

/// A path as the router writes it, of one whose bytes PostgREST took for characters.
fn encoded_path(written: &str) -> String {
    let parts: Vec<String> = written
        .split('/')
        .map(|part| encoded(&part_of_latin(part)))
        .collect();
    parts.join("/")
}

/// A function's value, out of JSON or CSV.
fn value(reply: &Reply) -> Option<Value> {
    match reply.body.strip_prefix("pgrst_scalar\n") {
        Some(cell) => {
            let quoted = cell
                .strip_prefix('"')
                .and_then(|cell| cell.strip_suffix('"'));
            let text = quoted.map(|cell| cell.replace("\"\"", "\"").replace("\\\\", "\\"));
            serde_json::from_str(text.as_deref().unwrap_or(cell)).ok()
        }
        None => serde_json::from_str(&reply.body).ok(),
    }
}

/// The router's answer, where it is this error and nothing else.
fn refused(ours: &Reply, status: u16, code: &str) -> Option<Reply> {
    let json = ours.header("content-type") == Some("application/json; charset=utf-8");
    (json && ours.status == status && ours.code()? == code).then(|| ours.clone())
}

/// The router's answer, where it is an error of Postgres, or that there is not
/// exactly one row, with the status that belongs to it.
fn why(ours: &Reply) -> Option<Reply> {
    let code = ours.code()?;
    let status = match code.as_str() {
        "PGRST116" => 406,
        code if code.len() != 5 => return None,
        "23503" | "23505" => 409,
        "42501" => 403,
        "42883" | "42P01" => 404,
        "25006" => 405,
        "21000" => 500,
        _ => 400,
    };
    refused(ours, status, &code)
}

/// The router's answer, where it has the form of what was asked for: as many rows
/// as it says there are, with as many values as were selected.
fn rows(case: &Case, ours: &Reply) -> Option<Reply> {
    let status = match case.method {
        "GET" | "HEAD" => [200, 206].contains(&ours.status),
        _ => [200, 201, 204].contains(&ours.status),
    };
    let fits = match ours.header("content-type") {
        None => ours.body.is_empty(),
        Some(kind) if kind.starts_with("application/json") && case.method != "HEAD" => {
            match serde_json::from_str(&ours.body).ok()? {
                Value::Array(rows) => in_range(case, ours, &rows) && as_selected(case, &rows),
                _ => case.path.starts_with("/rpc/"),
            }
        }
        Some(kind) => case.has_header("Accept", kind.split(';').next()?) || case.method == "HEAD",
    };
    (status && fits).then(|| ours.clone())
}

fn rows_or_why(case: &Case, ours: &Reply) -> Option<Reply> {
    rows(case, ours).or_else(|| why(ours))
}

fn in_range(case: &Case, ours: &Reply, rows: &[Value]) -> bool {
    let Some(range) = ours.header("content-range") else {
        return case.writes();
    };
    let range = range
        .split('/')
        .next()
        .and_then(|rows| rows.split_once('-'));
    let ends = range.and_then(|(a, b)| Some((a.parse::<usize>().ok()?, b.parse::<usize>().ok()?)));
    match ends {
        Some((first, last)) => last + 1 - first == rows.len(),
        None => case.writes() || rows.is_empty(),
    }
}

fn as_selected(case: &Case, rows: &[Value]) -> bool {
    let select = case.param("select").unwrap_or("*");
    let open = ["*", "...", "()", "\""]
        .iter()
        .any(|part| select.contains(part));
    if open || case.path.starts_with("/rpc/") {
        return true;
    }
    let mut depth = 0_i32;
    let mut items = 1;
    for c in select.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => items += 1,
            _ => {}
        }
    }
    // Equal keys are one to the parser.
    let keys = |row: &Value| row.as_object().map(serde_json::Map::len);
    rows.iter()
        .all(|row| keys(row).is_some_and(|keys| (1..=items).contains(&keys)))
}

fn message(reply: &Reply) -> Option<String> {
    let body: Value = serde_json::from_str(&reply.body).ok()?;
    Some(body.get("message")?.as_str()?.to_owned())
}

/// A message without what stands before a column's dot, and without the clause.
fn unqualified(message: &str) -> String {
    let words = message.split(' ').map(|word| match word {
        "WHERE" | "AND" | "NOT" | "OR" => "CLAUSE",
        word => word
            .rsplit_once('.')
            .map_or(word, |(_, column)| column)
            .trim_start_matches('"'),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn both(ours: &Reply, theirs: &Reply, code: &str) -> Option<()> {
    (theirs.code()? == code && ours.code()? == code).then_some(())
}

fn with_header(reply: &Reply, name: &str, value: &str) -> Reply {
    let mut reply = reply.clone();
    for (known, old) in &mut reply.headers {
        if known == name {
            *old = value.to_owned();
        }
    }
    reply
}

/// `theirs` with members of the error object taken from `ours`.
fn with_texts(theirs: &Reply, ours: &Reply, members: &[&str]) -> Option<Reply> {
    let mut body: Value = serde_json::from_str(&theirs.body).ok()?;
    let own: Value = serde_json::from_str(&ours.body).ok()?;
    for member in members {
        body[*member] = own.get(*member).cloned().unwrap_or(json!(null));
    }
    Some(Reply {
        body: body.to_string(),
        ..theirs.clone()
    })
}

/// A text whose bytes PostgREST took for characters.
fn part_of_latin(part: &str) -> String {
    let bytes: Option<Vec<u8>> = part
        .chars()
        .map(|c| u8::try_from(u32::from(c)).ok())
        .collect();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.unwrap_or_else(|| part.to_owned())
}

/// The query as PostgREST writes it: each byte encoded as a character, and the
/// values of a repeated key behind its first one.
fn latin(params: &[(String, String)]) -> String {
    let twice = |text: &str| {
        let characters: String = text.bytes().map(char::from).collect();
        encoded(&characters)
    };
    let mut sorted = params.to_vec();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in &sorted {
        let value = twice(value);
        match parts.iter_mut().find(|(known, _)| known == key) {
            Some((_, values)) => *values += &format!(",{value}"),
            None => parts.push((key.clone(), value)),
        }
    }
    let parts = parts
        .iter()
        .map(|(key, value)| format!("{}={value}", twice(key)));
    parts.collect::<Vec<_>>().join("&")
}

fn encoded(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~');
    utf8_percent_encode(text, ENCODED).to_string()
}
