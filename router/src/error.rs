//! Everything that can go wrong with a tenant's request, and what it is told.
//!
//! Each variant answers the same questions in [`Error::report`]: status, code,
//! message, details, hint, headers; and [`Error::retry`] whether asking again
//! can help. Codes are PostgREST's where it has one, else SQLSTATEs, else `RF…`.

mod postgres;

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tenancy::auth::AuthError;

use crate::quota::{self, Limited, RateNow};
use crate::timeline::lsn_text;

pub use postgres::{Hidden, Refusal};

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The query string can't be read.
    #[error("{message}")]
    Query {
        /// What was read and where it stopped.
        message: String,
        /// What was found and what was expected.
        details: String,
    },
    /// A bound on what one request may ask for.
    #[error("The request has too many {what}")]
    TooMuch {
        /// In words, e.g. `filters`.
        what: &'static str,
        /// As many are allowed.
        max: usize,
    },
    /// The URL is longer than allowed.
    #[error("The query string is longer than {max} bytes")]
    UrlTooLong {
        /// In bytes.
        max: usize,
    },
    /// A function called by a method that it can't be called by.
    #[error("Cannot use the {0} method on RPC")]
    MethodOnFunction(String),
    /// The body can't be used.
    #[error("{0}")]
    Body(String),
    /// Limit or Range can't be satisfied.
    #[error("Requested range not satisfiable")]
    Range(RangeProblem),
    /// PUT's filters are not its key's columns.
    #[error("Filters must include all and only primary key columns with 'eq' operators")]
    PutFilters,
    /// The profile header names a schema that is not exposed.
    #[error("Invalid schema: {schema}")]
    Schema {
        /// What was asked for.
        schema: String,
        /// What there is.
        exposed: Vec<String>,
    },
    /// No acceptable media type.
    #[error("None of these media types are available: {0}")]
    MediaType(String),
    /// A filter, order or limit on something that is not embedded.
    #[error("'{0}' is not an embedded resource in this request")]
    NotEmbedded(String),
    /// PUT with limit or offset.
    #[error("limit/offset querystring parameters are not allowed for PUT")]
    PutRange,
    /// PUT's body does not hold the key that its URL names.
    #[error("Payload values do not match URL in primary key column(s)")]
    PutMismatch,
    /// One object was asked for, and there is not exactly one.
    #[error("Cannot coerce the result to a single JSON object")]
    NotSingular {
        /// How many there are.
        rows: i64,
    },
    /// A method that relations don't have.
    #[error("Unsupported HTTP method: {0}")]
    Method(String),
    /// Order by a relation of many rows.
    #[error("A related order on '{target}' is not possible")]
    RelatedOrder {
        /// Where the order stands.
        origin: String,
        /// What it names.
        target: String,
    },
    /// `handling=strict`, and preferences that are not known.
    #[error("Invalid preferences given with handling=strict")]
    Preferences(Vec<String>),
    /// Aggregates are switched off.
    #[error("Use of aggregate functions is not allowed")]
    Aggregates,
    /// `max-affected` on a function of one row.
    #[error(
        "Function must return SETOF or TABLE when max-affected preference is used with handling=strict"
    )]
    MaxAffectedFunction,
    /// No such path.
    #[error("Invalid path specified in request URL")]
    Path,
    /// The root describes nothing.
    #[error("Root endpoint metadata is disabled")]
    NoDescription,
    /// A combination that is not there.
    #[error("Feature not implemented")]
    NotImplemented(&'static str),
    /// No relationship between two relations.
    #[error(
        "Could not find a relationship between '{}' and '{}' in the schema cache",
        .0.origin, .0.target
    )]
    NoRelationship(Box<Unrelated>),
    /// Several relationships between two relations.
    #[error(
        "Could not embed because more than one relationship was found for '{}' and '{}'",
        .0.origin, .0.target
    )]
    AmbiguousRelationship(Box<Ambiguous>),
    /// No function of that name and those arguments.
    #[error("{message}")]
    NoFunction {
        /// With the searched signature.
        message: String,
        /// What was searched.
        details: String,
        /// A similar one.
        similar: Option<String>,
    },
    /// Several functions fit.
    #[error("Could not choose the best candidate function between: {0}")]
    AmbiguousFunction(String),
    /// A written column that is not there.
    #[error("Could not find the '{column}' column of '{relation}' in the schema cache")]
    NoWrittenColumn {
        /// The column.
        column: String,
        /// The relation.
        relation: String,
    },
    /// A relation that is not there.
    #[error("Could not find the table '{name}' in the schema cache")]
    NoRelation {
        /// Qualified name.
        name: String,
        /// A similar one.
        similar: Option<String>,
    },
    /// A read column that is not there; told as Postgres tells it.
    #[error("column {relation}.{column} does not exist")]
    NoColumn {
        /// The relation.
        relation: String,
        /// The column.
        column: String,
        /// At most two similar ones.
        similar: Vec<String>,
    },
    /// A conflict target that is not there; told as Postgres tells it.
    #[error("column \"{0}\" does not exist")]
    NoTargetColumn(String),
    /// Two embeds of one name; told as Postgres tells it of PostgREST's statement.
    #[error("table name \"{0}\" specified more than once")]
    EmbeddedTwice(String),
    /// A cast to a type that is not there; told as Postgres tells it.
    #[error("type \"{0}\" does not exist")]
    NoType(String),
    /// `response.headers` is not a JSON array of one-key objects.
    #[error(
        "response.headers guc must be a JSON array composed of objects with a single key and a string value"
    )]
    ResponseHeaders,
    /// `response.status` is not a status.
    #[error("response.status guc must be a valid status code")]
    ResponseStatus,
    /// Postgres refused the statement.
    #[error("{}", .0.message)]
    Postgres(Box<Refusal>),
    /// The key or token, or the lack of one.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// No such tenant, or none any longer.
    #[error("There is no such tenant")]
    NoTenant,
    /// The tenant may not be served now.
    #[error("This tenant is suspended")]
    Suspended,
    /// The tenant is being moved and the hold ran out, or no node of its shard answers.
    #[error("The tenant's shard can't be reached")]
    Unavailable {
        /// What could not be done, for operators; never names hosts.
        why: &'static str,
    },
    /// No connection became free in time, or too many requests are waiting.
    #[error("Too many requests wait for this shard")]
    Overloaded,
    /// The request's time ran out; nothing was written.
    #[error("The request took longer than allowed")]
    Deadline,
    /// COMMIT was sent and its answer lost.
    #[error("The connection was lost during COMMIT: it may have been written or not")]
    OutcomeUnknown,
    /// The header Ringfence-Token is not one.
    #[error("The header Ringfence-Token can't be read")]
    Token,
    /// The write that the token names was lost in a failover.
    #[error("The write that Ringfence-Token names is not known to have survived a failover")]
    LostWrite {
        /// The timeline that it was on.
        timeline: u32,
        /// Its LSN.
        lsn: u64,
        /// Up to where that timeline was kept.
        left_at: u64,
    },
    /// The schema of the tenant's shard is not known yet.
    #[error("Could not query the database for the schema cache. Retrying.")]
    NoSchema,
    /// The body is larger than allowed.
    #[error("The request body is larger than {max} bytes")]
    BodyTooLarge {
        /// In bytes.
        max: usize,
    },
    /// The body did not arrive in time.
    #[error("The request body did not arrive in time")]
    BodyTooSlow,
    /// The header Idempotency-Key holds no key.
    #[error("The Idempotency-Key header is not a key")]
    IdempotencyKey {
        /// Longest key, in bytes.
        max: usize,
    },
    /// The first request with this Idempotency-Key takes longer than others wait for it.
    #[error("A request with this Idempotency-Key is still being answered")]
    SameKey,
    /// The row is not in the state that If-Match names.
    #[error("The row is not as If-Match says")]
    PreconditionFailed,
    /// If-Match on something that can't be compared with a row.
    #[error("If-Match can't be kept here")]
    Precondition(&'static str),
    /// The tenant asks more often than it may.
    #[error("Too many requests a second")]
    TooManyRequests(RateNow),
    /// The tenant asks for more at once than it may.
    #[error("Too many requests at once")]
    TooManyAtOnce {
        /// On all routers together.
        quota: u32,
        /// On this router.
        max: u32,
    },
    /// The tenant's statements have taken more of the shards' time than they may.
    #[error("Too much time on the shard")]
    TooMuchTime {
        /// Milliseconds in a second.
        quota: u32,
        /// Seconds until one may begin again.
        reset: u32,
    },
    /// What was read is larger than the tenant may read at once.
    #[error("The answer is larger than {max} bytes")]
    AnswerTooLarge {
        /// In bytes.
        max: usize,
    },
    /// A fault of the router's own.
    #[error("Internal error")]
    Internal {
        /// For the log only.
        why: String,
    },
}

/// Two names that no relationship joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrelated {
    /// From.
    pub origin: String,
    /// To, as written.
    pub target: String,
    /// Schema that was searched.
    pub schema: String,
    /// The `!hint`, if any.
    pub hint: Option<String>,
    /// A similar name, and the one that it would stand for.
    pub similar: Option<(String, String)>,
}

/// Two names that several relationships join.
#[derive(Clone, Debug, PartialEq)]
pub struct Ambiguous {
    /// From.
    pub origin: String,
    /// To, as written.
    pub target: String,
    /// The candidates, as JSON.
    pub candidates: Value,
    /// What could be written instead.
    pub choices: Vec<String>,
}

/// What is wrong with a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeProblem {
    /// `limit` below zero.
    NegativeLimit,
    /// The lower bound is above the upper one.
    Reversed,
    /// Beyond the last row.
    OutOfBounds {
        /// The first row that was asked for.
        offset: i64,
        /// As many there are.
        total: i64,
    },
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code.
    pub code: Cow<'static, str>,
    /// In words.
    pub message: String,
    /// More of it; any JSON.
    pub details: Value,
    /// What to do about it.
    pub hint: Option<String>,
    /// Headers beside the usual ones.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// In PostgREST's order, which is the alphabet's.
#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    details: &'a Value,
    hint: &'a Option<String>,
    message: &'a str,
}

impl Report {
    fn new(status: u16, code: impl Into<Cow<'static, str>>, error: &Error) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code: code.into(),
            message: error.to_string(),
            details: Value::Null,
            hint: None,
            headers: Vec::new(),
        }
    }

    fn details(self, details: impl Into<Value>) -> Self {
        Self {
            details: details.into(),
            ..self
        }
    }

    fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self {
            hint: hint.into(),
            ..self
        }
    }

    fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// The answer; `head` leaves the body out.
    pub fn response(&self, head: bool) -> Response<Bytes> {
        let body = serde_json::to_vec(&Body {
            code: &self.code,
            details: &self.details,
            hint: &self.hint,
            message: &self.message,
        })
        .unwrap_or_default();
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        // Clients of HEAD requests have no body to read the code from.
        if let Ok(value) = HeaderValue::from_str(&format!("PostgREST; error={}", self.code)) {
            headers.insert("proxy-status", value);
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        if !head {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            *response.body_mut() = Bytes::from(body);
        }
        response
    }
}

impl From<Limited> for Error {
    fn from(limited: Limited) -> Self {
        match limited {
            Limited::Rate(rate) => Self::TooManyRequests(rate),
            Limited::Concurrency { quota, max } => Self::TooManyAtOnce { quota, max },
            Limited::Time { quota, reset } => Self::TooMuchTime { quota, reset },
        }
    }
}

impl Error {
    /// Status, code and texts, as the client gets them.
    pub fn report(&self) -> Report {
        let report = |status, code| Report::new(status, code, self);
        match self {
            Self::Query { details, .. } => report(400, "PGRST100").details(details.clone()),
            Self::TooMuch { max, .. } => {
                report(400, "PGRST100").details(format!("At most {max} are allowed"))
            }
            Self::UrlTooLong { .. } => report(414, "PGRST100"),
            Self::MethodOnFunction(_) => report(405, "PGRST101"),
            Self::Body(_) => report(400, "PGRST102"),
            Self::Range(problem) => report(416, "PGRST103").details(problem.to_string()),
            Self::PutFilters => report(405, "PGRST105"),
            Self::Schema { exposed, .. } => report(406, "PGRST106").hint(format!(
                "Only the following schemas are exposed: {}",
                exposed.join(", ")
            )),
            Self::MediaType(_) => report(406, "PGRST107"),
            Self::NotEmbedded(name) => report(400, "PGRST108").hint(format!(
                "Verify that '{name}' is included in the 'select' query parameter."
            )),
            Self::PutRange => report(400, "PGRST114"),
            Self::PutMismatch => report(400, "PGRST115"),
            Self::NotSingular { rows } => {
                report(406, "PGRST116").details(format!("The result contains {rows} rows"))
            }
            Self::Method(_) => report(405, "PGRST117"),
            Self::RelatedOrder { origin, target } => report(400, "PGRST118").details(format!(
                "'{origin}' and '{target}' do not form a many-to-one or one-to-one relationship"
            )),
            Self::Preferences(unknown) => report(400, "PGRST122")
                .details(format!("Invalid preferences: {}", unknown.join(", "))),
            Self::Aggregates => report(400, "PGRST123"),
            Self::MaxAffectedFunction => report(400, "PGRST128"),
            Self::Path => report(404, "PGRST125"),
            Self::NotImplemented(what) => report(400, "PGRST127").details(*what),
            Self::NoRelationship(names) => names.report(self),
            Self::AmbiguousRelationship(names) => report(300, "PGRST201")
                .details(names.candidates.clone())
                .hint(format!(
                    "Try changing '{}' to one of the following: {}. Find the desired \
                     relationship in the 'details' key.",
                    names.target,
                    names.choices.join(", ")
                )),
            Self::NoFunction {
                details, similar, ..
            } => report(404, "PGRST202").details(details.clone()).hint(
                similar
                    .as_ref()
                    .map(|name| format!("Perhaps you meant to call the function {name}")),
            ),
            Self::AmbiguousFunction(_) => report(300, "PGRST203").hint(
                "Try renaming the parameters or the function itself in the database so function \
                 overloading can be resolved"
                    .to_owned(),
            ),
            Self::NoWrittenColumn { .. } => report(400, "PGRST204"),
            Self::NoRelation { similar, .. } => report(404, "PGRST205").hint(
                similar
                    .as_ref()
                    .map(|name| format!("Perhaps you meant the table '{name}'")),
            ),
            Self::NoDescription => report(404, "PGRST126"),
            Self::NoColumn {
                relation, similar, ..
            } => {
                let columns = similar.iter();
                let columns = columns.map(|name| format!("the column \"{relation}.{name}\""));
                let columns = columns.collect::<Vec<_>>().join(" or ");
                report(400, "42703").hint(
                    (!columns.is_empty())
                        .then(|| format!("Perhaps you meant to reference {columns}.")),
                )
            }
            Self::NoTargetColumn(_) => report(400, "42703"),
            Self::EmbeddedTwice(_) => report(400, "42712"),
            Self::NoType(_) => report(400, "42704"),
            Self::ResponseHeaders => report(500, "PGRST111"),
            Self::ResponseStatus => report(500, "PGRST112"),
            Self::Postgres(refusal) => refusal.report(self),
            Self::Auth(error) => {
                let status = match error {
                    AuthError::NoIssuer => 500,
                    _ => 401,
                };
                report(status, error.code())
                    .hint(error.hint().map(str::to_owned))
                    .header(WWW_AUTHENTICATE, &error.challenge())
            }
            Self::NoTenant => report(404, "RF001"),
            Self::Suspended => report(403, "RF006"),
            Self::Unavailable { .. } => report(503, "PGRST000").header(RETRY_AFTER, "1"),
            Self::Overloaded => report(503, "PGRST003").header(RETRY_AFTER, "1"),
            Self::Deadline => report(504, "57014"),
            Self::OutcomeUnknown => report(500, "08007").hint(
                "Read before you write again, or send an Idempotency-Key with each write"
                    .to_owned(),
            ),
            Self::Token => report(400, "RF021").hint(
                "Send back what a write's answer had in that header, or leave it out".to_owned(),
            ),
            Self::LostWrite {
                timeline,
                lsn,
                left_at,
            } => report(412, "RF020")
                .details(format!(
                    "Timeline {timeline} was kept up to {}, the write was acknowledged at {}",
                    lsn_text(*left_at),
                    lsn_text(*lsn)
                ))
                .hint(
                    "Read without the token to see what is there, and write again what is missing"
                        .to_owned(),
                ),
            Self::NoSchema => report(503, "PGRST002").header(RETRY_AFTER, "1"),
            Self::BodyTooSlow => report(408, "RF022").header(CONNECTION, "close"),
            Self::BodyTooLarge { .. } => report(413, "PGRST102"),
            Self::IdempotencyKey { max } => report(400, "RF030").details(format!(
                "It takes one value of 1 to {max} characters, ASCII and printable"
            )),
            Self::SameKey => report(409, "RF032")
                .hint("Ask again in a moment.".to_owned())
                .header(RETRY_AFTER, "1"),
            Self::PreconditionFailed => report(412, "RF040")
                .details("The tag was made for other columns, or not for one row".to_owned())
                .hint("Read the row anew, with the same select.".to_owned()),
            Self::Precondition(why) => report(400, "RF041").details(*why).hint(
                "It takes the tag of one row, on a PATCH or DELETE that names the row's whole key."
                    .to_owned(),
            ),
            Self::TooManyRequests(rate) => report(429, "RF050")
                .details(format!(
                    "The tenant has {} requests in {} s",
                    rate.quota, rate.window
                ))
                .header(RETRY_AFTER, &rate.reset.to_string())
                .header(quota::POLICY, &rate.policy())
                .header(quota::LIMIT, &rate.limit()),
            Self::TooManyAtOnce { quota, max } => report(429, "RF051")
                .details(format!("{max} of the tenant's are being answered here"))
                .header(RETRY_AFTER, "1")
                .header(
                    quota::POLICY,
                    &format!("\"concurrency\";q={quota};qu=\"concurrent-requests\""),
                )
                .header(quota::LIMIT, "\"concurrency\";r=0;t=1"),
            Self::TooMuchTime { quota, reset } => report(429, "RF053")
                .details(format!("Statements may begin again in {reset} s"))
                .header(RETRY_AFTER, &reset.to_string())
                .header(
                    quota::POLICY,
                    &format!("\"shard-time\";q={quota};qu=\"milliseconds\";w=1"),
                )
                .header(quota::LIMIT, &format!("\"shard-time\";r=0;t={reset}")),
            Self::AnswerTooLarge { .. } => report(422, "RF052")
                .hint("Ask for fewer rows or columns: limit, select.".to_owned()),
            Self::Internal { .. } => report(500, "XX000"),
        }
    }

    /// Whether the shard refused the statement itself, so that nothing was written.
    pub fn is_the_shards(&self) -> bool {
        matches!(self, Self::Postgres(refusal) if !refusal.sqlstate.starts_with("57"))
    }

    /// What must not happen, in words without anything of the request; none where
    /// it can be expected: what clients do wrong, what a server's loss brings about.
    pub fn fault(&self) -> Option<&'static str> {
        if let Self::Postgres(refusal) = self {
            return refusal.fault();
        }
        let internal = matches!(self, Self::Internal { .. });
        internal.then_some("The router contradicts itself")
    }

    /// Whether the same request may well succeed in a moment, having written nothing.
    pub fn retry(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Overloaded
                | Self::NoSchema
                | Self::SameKey
                | Self::TooManyRequests(_)
                | Self::TooManyAtOnce { .. }
                | Self::TooMuchTime { .. }
        )
    }

    /// The answer; `head` leaves the body out.
    pub fn response(&self, head: bool) -> Response<Bytes> {
        self.report().response(head)
    }
}

impl Unrelated {
    fn report(&self, error: &Error) -> Report {
        let with_hint = self
            .hint
            .as_ref()
            .map(|hint| format!(" using the hint '{hint}'"))
            .unwrap_or_default();
        let target = &self.target;
        Report::new(400, "PGRST200", error)
            .details(format!(
                "Searched for a foreign key relationship between '{}' and '{target}'{with_hint} \
                 in the schema '{}', but no matches were found.",
                self.origin, self.schema
            ))
            .hint(
                self.similar.as_ref().map(|(name, wanted)| {
                    format!("Perhaps you meant '{name}' instead of '{wanted}'.")
                }),
            )
    }
}

impl std::fmt::Display for RangeProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NegativeLimit => {
                f.write_str("Limit should be greater than or equal to zero.")
            }
            Self::Reversed => {
                f.write_str("The lower boundary must be lower than or equal to the upper boundary in the Range header.")
            }
            Self::OutOfBounds { offset, total } => write!(
                f,
                "An offset of {offset} was requested, but there are only {total} rows."
            ),
        }
    }
}

/// One candidate of [`Error::AmbiguousRelationship`].
pub fn candidate(cardinality: &str, embedding: String, relationship: String) -> Value {
    json!({
        "cardinality": cardinality,
        "embedding": embedding,
        "relationship": relationship,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_is_away_is_told_with_when_to_come_back() {
        let lost = Error::Unavailable {
            why: "the shard has no primary",
        };
        for (error, code) in [(lost, "PGRST000"), (Error::NoSchema, "PGRST002")] {
            let response = error.response(false);
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()[RETRY_AFTER], "1");
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["code"], code);
            assert!(error.retry());
        }
    }
}
