//! Stage 9: rows to HTTP. Pure.
//!
//! The body comes from Postgres as it is sent; here are status and headers.

pub mod cors;
mod explain;
mod location;
mod openapi;
mod settings;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, LOCATION, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::config::Api;
use crate::error::{Error, RangeProblem};
use crate::execute::Answer;
use crate::plan::{Action, Call, Change, Plan, Returning, Write};
use crate::request::prefer::{Count, Missing, Resolution};
use crate::request::{ApiRequest, Method, Target};
use crate::tag;

/// The row that every statement answers; see the contract in [`crate::sql`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Rows that fit without the page.
    pub total: Option<i64>,
    /// Rows of the answer, or rows affected.
    pub page: i64,
    /// The body.
    pub body: Bytes,
    /// What `response.headers` was set to.
    pub headers: Option<String>,
    /// What `response.status` was set to.
    pub status: Option<String>,
    /// Rows that an upsert really inserted.
    pub inserted: Option<i64>,
    /// The one new row's key, as a JSON array of texts.
    pub location: Option<String>,
}

impl Row {
    /// It has only what a plain read answers, which is all that a cache keeps.
    pub fn is_plain(&self) -> bool {
        let odd = [&self.headers, &self.status, &self.location];
        odd.iter().all(|part| part.is_none()) && self.inserted.is_none()
    }

    /// Takes over what Postgres answered.
    pub fn read(answer: &Answer) -> Self {
        let text = |column| {
            let bytes = answer.text(column)?;
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        };
        Self {
            total: answer.number("total"),
            page: answer.number("page").unwrap_or(0),
            body: match answer.explanation() {
                Some(lines) => lines,
                None => Bytes::copy_from_slice(answer.text("body").unwrap_or_default()),
            },
            headers: text("headers"),
            status: text("status"),
            inserted: answer.number("inserted"),
            location: text("location"),
        }
    }
}

/// Request headers that shape an answer; the content coding is added with it.
const VARIES: HeaderValue = HeaderValue::from_static("Accept, Prefer, Range");

/// The answer to a request whose statement gave `row`.
///
/// # Errors
/// A page beyond the last row, not exactly one row where one was asked for, and
/// response settings that can't be read.
pub fn build(
    config: &Api,
    request: &ApiRequest,
    plan: &Plan,
    row: Row,
) -> Result<Response<Bytes>, Error> {
    let mut answer = Draft::new();
    if let Some(explain) = &plan.explain {
        answer.header(CONTENT_TYPE, &explain.content_type());
        if plan.body {
            answer.body = explain::shown(explain, config.plan_figures, row.body);
        }
        if config.schemas.len() > 1 || request.schema_named {
            answer.header_name("content-profile", &request.schema);
        }
        // A plan is of this moment: nobody is to keep it.
        answer.header(CACHE_CONTROL, "no-store");
        answer.headers.insert(VARY, VARIES);
        return Ok(answer.finish());
    }
    match &plan.action {
        Action::Read(_) => {
            singular(plan, &row)?;
            answer.status = read_status(request, &row);
            answer.header(CONTENT_RANGE, &content_range(request, &row));
            answer.header(CONTENT_LOCATION, &location::content(config, request));
            answer.content(plan, &row);
            answer.refuse_range(plan, request, &row);
        }
        Action::Call(call) => call_answer(&mut answer, request, plan, call, &row)?,
        Action::Write(write) => write_answer(&mut answer, config, request, plan, write, &row),
        Action::Options(methods) => {
            answer.header(ALLOW, &methods.join(","));
            answer.header(ACCESS_CONTROL_ALLOW_ORIGIN, "*");
            return Ok(answer.finish());
        }
        Action::Describe(described) => {
            let privileges = described.by_privileges.then_some(&row.body);
            let row = Row {
                body: openapi::document(config, described, privileges).into(),
                ..row
            };
            answer.content(plan, &row);
            if config.schemas.len() > 1 || request.schema_named {
                answer.header_name("content-profile", &request.schema);
            }
            answer.headers.insert(VARY, VARIES);
            tagged(&mut answer, request, plan, &row);
            return Ok(answer.finish());
        }
    }
    if let Some(applied) = applied(config, request, plan) {
        answer.header_name("preference-applied", &applied);
    }
    let negotiated = config.schemas.len() > 1 || request.schema_named;
    if negotiated && answer.headers.contains_key(CONTENT_TYPE) {
        answer.header_name("content-profile", &request.schema);
    }
    answer.headers.insert(VARY, VARIES);
    settings::apply(&mut answer.status, &mut answer.headers, &row)?;
    tagged(&mut answer, request, plan, &row);
    if plan.body && answer.status != StatusCode::NO_CONTENT {
        let length = HeaderValue::from(answer.body.len());
        answer.headers.insert(CONTENT_LENGTH, length);
    }
    Ok(answer.finish())
}

/// The answer to a request that needs no statement.
///
/// # Errors
/// As [`build`].
pub fn without_rows(
    config: &Api,
    request: &ApiRequest,
    plan: &Plan,
) -> Result<Response<Bytes>, Error> {
    build(config, request, plan, Row::default())
}

/// Names the state of what is answered, unless a function did so itself. An
/// answer may be kept by its client alone, who has to ask whether it still holds.
fn tagged(answer: &mut Draft, request: &ApiRequest, plan: &Plan, row: &Row) {
    if !answer.status.is_success() || answer.headers.contains_key(ETAG) {
        return;
    }
    if let Some(tag) = tag::of(request, plan, row) {
        answer.headers.insert(ETAG, tag);
    }
    if request.method == Method::Get {
        let private = HeaderValue::from_static("private, no-cache");
        answer.headers.entry(CACHE_CONTROL).or_insert(private);
    }
}

/// A response under construction.
struct Draft {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Draft {
    fn new() -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    fn header(&mut self, name: http::HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
    }

    fn header_name(&mut self, name: &'static str, value: &str) {
        self.header(http::HeaderName::from_static(name), value);
    }

    fn content(&mut self, plan: &Plan, row: &Row) {
        self.header(CONTENT_TYPE, &plan.media.content_type());
        if plan.body {
            self.body = row.body.clone();
        }
    }

    /// A page behind the last row: the error is the body of an answer that
    /// otherwise says what it would have said, the total above all.
    fn refuse_range(&mut self, plan: &Plan, request: &ApiRequest, row: &Row) {
        if let (StatusCode::RANGE_NOT_SATISFIABLE, Some(total)) = (self.status, row.total) {
            let offset = request.page.first();
            let error = Error::Range(RangeProblem::OutOfBounds { offset, total });
            if plan.body {
                self.body = error.response(false).into_body();
            }
        }
    }

    fn finish(self) -> Response<Bytes> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

fn call_answer(
    answer: &mut Draft,
    request: &ApiRequest,
    plan: &Plan,
    call: &Call,
    row: &Row,
) -> Result<(), Error> {
    if call.set {
        singular(plan, row)?;
    }
    answer.status = read_status(request, row);
    answer.header(CONTENT_RANGE, &content_range(request, row));
    if call.void {
        answer.status = StatusCode::NO_CONTENT;
    } else {
        answer.content(plan, row);
        answer.refuse_range(plan, request, row);
    }
    Ok(())
}

fn write_answer(
    answer: &mut Draft,
    config: &Api,
    request: &ApiRequest,
    plan: &Plan,
    write: &Write,
    row: &Row,
) {
    let represented = matches!(write.returning, Returning::Rows { .. });
    if represented {
        answer.content(plan, row);
    }
    answer.status = match request.method {
        Method::Post if row.inserted == Some(0) => StatusCode::OK,
        Method::Post => StatusCode::CREATED,
        Method::Put if represented && row.inserted.is_some_and(|n| n > 0) => StatusCode::CREATED,
        _ if represented => StatusCode::OK,
        _ => StatusCode::NO_CONTENT,
    };
    let total = match request.prefer.count {
        Some(Count::Exact | Count::Estimated) => row.page.to_string(),
        Some(Count::Planned) | None => "*".to_owned(),
    };
    let range = match request.method {
        Method::Patch if row.page > 0 => Some(format!("0-{}/{total}", row.page - 1)),
        Method::Put => None,
        _ => Some(format!("*/{total}")),
    };
    if let Some(range) = range {
        answer.header(CONTENT_RANGE, &range);
    }
    if let Returning::Location(key) = &write.returning {
        let relation = write.relation.name.as_str();
        let values = row.location.as_deref();
        if let Some(at) = location::of_row(config, relation, key, values) {
            answer.header(LOCATION, &at);
        }
    }
}

/// Reads have nothing to undo, so the rows may come first and be refused here.
fn singular(plan: &Plan, row: &Row) -> Result<(), Error> {
    match plan.singular() {
        true if row.page != 1 => Err(Error::NotSingular { rows: row.page }),
        _ => Ok(()),
    }
}

fn read_status(request: &ApiRequest, row: &Row) -> StatusCode {
    match row.total {
        None => StatusCode::OK,
        Some(total) if request.page.first() > total => StatusCode::RANGE_NOT_SATISFIABLE,
        Some(total) if row.page < total => StatusCode::PARTIAL_CONTENT,
        Some(_) => StatusCode::OK,
    }
}

fn content_range(request: &ApiRequest, row: &Row) -> String {
    let total = row.total.map_or("*".to_owned(), |total| total.to_string());
    if row.page == 0 || row.total == Some(0) {
        return format!("*/{total}");
    }
    let first = request.page.first();
    format!("{first}-{}/{total}", first + row.page - 1)
}

/// Preferences that had an effect, in PostgREST's order.
fn applied(config: &Api, request: &ApiRequest, plan: &Plan) -> Option<String> {
    let prefer = &request.prefer;
    let written = match &plan.action {
        Action::Write(write) => Some(write),
        _ => None,
    };
    let resolved = written.is_some_and(|write| {
        request.method == Method::Post
            && matches!(
                &write.change,
                Change::Insert {
                    conflict: Some(_),
                    ..
                }
            )
    });
    let fills = matches!(request.method, Method::Post | Method::Patch) && written.is_some();
    let bounds = matches!(request.method, Method::Patch | Method::Delete)
        || matches!(request.target, Target::Function(_));
    let tokens = [
        prefer
            .resolution
            .filter(|_| resolved)
            .map(Resolution::token),
        prefer.missing.filter(|_| fills).map(Missing::token),
        prefer
            .returning
            .filter(|_| written.is_some())
            .map(|r| r.token()),
        prefer.count.map(|count| count.token()),
        prefer
            .transaction
            .filter(|_| config.tx_rollback)
            .map(|t| t.token()),
        prefer.handling.map(|handling| handling.token()),
    ];
    let mut tokens: Vec<String> = tokens.into_iter().flatten().map(str::to_owned).collect();
    if let Some(zone) = &prefer.timezone {
        tokens.push(format!("timezone={zone}"));
    }
    if let Some(bound) = prefer.bound().filter(|_| bounds) {
        tokens.push(format!("max-affected={bound}"));
    }
    (!tokens.is_empty()).then(|| tokens.join(", "))
}
