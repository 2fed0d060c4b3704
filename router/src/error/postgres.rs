//! Postgres' own errors: SQLSTATE to status, and what their texts may not show.

use http::header::{HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::{Error, Report};
use crate::wire::DbError;

/// An error as Postgres reported it, for a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Five characters.
    pub sqlstate: String,
    /// Primary message.
    pub message: String,
    /// DETAIL.
    pub detail: Option<String>,
    /// HINT.
    pub hint: Option<String>,
    /// The request ran as the role of requests without credentials, so a lack
    /// of privilege is a lack of credentials.
    pub anonymous: bool,
}

/// What an error's text must not show: the tenant column that the API hides.
#[derive(Clone, Copy, Debug)]
pub struct Hidden<'a> {
    /// Its name.
    pub column: &'a str,
    /// The request's tenant, as Postgres prints it.
    pub tenant: &'a str,
}

impl Refusal {
    /// Takes over what Postgres said, without the hidden column.
    pub fn new(error: &DbError, anonymous: bool, hidden: Option<Hidden<'_>>) -> Self {
        let detail = error.detail().map(str::to_owned);
        Self {
            sqlstate: error.code().code().to_owned(),
            message: unqualified(error.code().code(), error.message()),
            detail: match hidden {
                Some(hidden) => detail.and_then(|text| hidden.take_from(&text)),
                None => detail,
            },
            hint: error.hint().map(str::to_owned),
            anonymous,
        }
    }

    /// With another DETAIL, where there is one.
    pub fn with_detail(self, detail: Option<String>) -> Self {
        Self {
            detail: detail.or(self.detail),
            ..self
        }
    }

    pub(super) fn report(&self, error: &Error) -> Report {
        if self.sqlstate == "PGRST" {
            return self.raised().unwrap_or_else(|bad| bad.report(error));
        }
        let mut report =
            Report::new(self.status(), self.sqlstate.clone(), error).hint(self.hint.clone());
        if let Some(detail) = &self.detail {
            report.details = Value::String(detail.clone());
        }
        if report.status == StatusCode::UNAUTHORIZED {
            report = report.header(WWW_AUTHENTICATE, "Bearer");
        }
        if self.sqlstate == "RF032" {
            report = report.header(RETRY_AFTER, "1");
        }
        report
    }

    /// Where the server itself is broken, in words.
    pub(super) fn fault(&self) -> Option<&'static str> {
        match self.sqlstate.get(..2)? {
            "XX" => Some("Postgres contradicts itself, or found its data corrupted"),
            "58" => Some("Postgres could not use its files"),
            "F0" => Some("Postgres could not use its configuration"),
            _ => None,
        }
    }

    /// First match wins, so the order of arms matters.
    fn status(&self) -> u16 {
        let state = self.sqlstate.as_str();
        if let Some(number) = state.strip_prefix("PT") {
            return match number.parse() {
                Ok(status @ 100..=599) => status,
                Ok(_) | Err(_) => 500,
            };
        }
        let class = state.get(..2).unwrap_or_default();
        match (state, class) {
            ("23503" | "23505", _) => 409,
            ("25006", _) => 405,
            ("21000", _) if self.message.ends_with("requires a WHERE clause") => 400,
            ("21000", _) => 500,
            ("22023", _) if self.unknown_role() => 401,
            ("53400", _) => 500,
            ("57P01", _) => 503,
            ("P0001", _) => 400,
            ("42883", _) if self.message.starts_with("function xmlagg(") => 406,
            ("42883" | "42P01", _) => 404,
            ("42P17", _) => 500,
            ("42501", _) if self.anonymous => 401,
            ("42501", _) => 403,
            // Idempotency-Key: in use, too many, another request's, answer too large.
            ("RF032", _) => 409,
            ("RF033", _) => 429,
            ("RF031" | "RF034", _) => 422,
            (_, "08" | "53") => 503,
            // Above all the stack's depth: a value of the request is nested too deeply.
            (_, "54") => 413,
            (_, "0L" | "0P" | "28") => 403,
            (_, "09" | "25" | "2D" | "38" | "39" | "3B" | "40" | "55" | "57" | "58") => 500,
            (_, "F0" | "HV" | "P0" | "XX") => 500,
            _ => 400,
        }
    }

    fn unknown_role(&self) -> bool {
        self.message.starts_with("role ") && self.message.ends_with(" does not exist")
    }

    /// `RAISE SQLSTATE 'PGRST'`: the message is the body, DETAIL status and headers.
    fn raised(&self) -> Result<Report, BadRaise> {
        let body: Raised = serde_json::from_str(&self.message)
            .map_err(|_| BadRaise::Message(self.message.clone()))?;
        let detail = self.detail.as_deref().ok_or(BadRaise::NoDetail)?;
        let bad = || BadRaise::Detail(detail.to_owned());
        let answer: RaisedAnswer = serde_json::from_str(detail).map_err(|_| bad())?;
        let headers = answer.headers.into_iter().filter_map(|(name, value)| {
            let name = HeaderName::try_from(name).ok()?;
            Some((name, HeaderValue::try_from(value).ok()?))
        });
        Ok(Report {
            status: StatusCode::from_u16(answer.status).map_err(|_| bad())?,
            code: body.code.into(),
            message: body.message,
            details: body.details,
            hint: body.hint,
            headers: headers.collect(),
        })
    }
}

/// Why what a function raised is no answer.
enum BadRaise {
    Message(String),
    Detail(String),
    NoDetail,
}

impl BadRaise {
    fn report(&self, error: &Error) -> Report {
        let mut report = Report::new(500, "PGRST121", error);
        report.message = "Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error".into();
        let (details, hint) = match self {
            Self::Message(text) => (
                format!("Invalid JSON value for MESSAGE: '{text}'"),
                "MESSAGE must be a JSON object with obligatory keys: 'code', 'message' and \
                 optional keys: 'details', 'hint'.",
            ),
            Self::Detail(text) => (
                format!("Invalid JSON value for DETAIL: '{text}'"),
                BAD_DETAIL,
            ),
            Self::NoDetail => (
                "DETAIL is missing in the RAISE statement".to_owned(),
                BAD_DETAIL,
            ),
        };
        report.details(details).hint(hint.to_owned())
    }
}

const BAD_DETAIL: &str = "DETAIL must be a JSON object with obligatory keys: 'status', 'headers' \
     and optional key: 'status_text'.";

#[derive(Deserialize)]
struct Raised {
    code: String,
    message: String,
    #[serde(default)]
    details: Value,
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Deserialize)]
struct RaisedAnswer {
    status: u16,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
}

/// The statement qualifies what users write without a schema, so Postgres does
/// too where it names the statement's own functions (class 42). Other messages
/// are the application's.
fn unqualified(sqlstate: &str, message: &str) -> String {
    match sqlstate.starts_with("42") {
        true => message.replace("pg_catalog.", ""),
        false => message.to_owned(),
    }
}

impl Hidden<'_> {
    /// DETAIL without the hidden column; none where nothing is left to say.
    ///
    /// `Key (tenant_id, email)=(…, x) already exists.` loses both elements;
    /// `Failing row contains (…)` loses the tenant's value.
    fn take_from(&self, detail: &str) -> Option<String> {
        let Some(rest) = detail.strip_prefix("Key (") else {
            return Some(without(detail, self.tenant));
        };
        let Some((columns, values)) = rest.split_once(")=(") else {
            return Some(without(detail, self.tenant));
        };
        let quoted = format!("\"{}\"", self.column);
        let mut names: Vec<&str> = columns.split(", ").collect();
        names.retain(|name| *name != self.column && *name != quoted);
        if names.is_empty() {
            return None;
        }
        Some(format!(
            "Key ({})=({}",
            names.join(", "),
            without(values, self.tenant)
        ))
    }
}

/// `list` without its element `value`.
fn without(list: &str, value: &str) -> String {
    let leading = format!("{value}, ");
    if let Some(at) = list.find(&leading) {
        return format!("{}{}", &list[..at], &list[at + leading.len()..]);
    }
    list.replacen(&format!(", {value}"), "", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: Hidden<'static> = Hidden {
        column: "tenant_id",
        tenant: "5a3c0b1e-0000-4000-8000-000000000001",
    };

    fn refusal(sqlstate: &str, message: &str) -> Refusal {
        Refusal {
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: None,
            hint: None,
            anonymous: false,
        }
    }

    #[test]
    fn statuses_follow_the_table() {
        for (sqlstate, message, status) in [
            ("23505", "", 409),
            ("22P02", "", 400),
            ("42P01", "", 404),
            ("42501", "", 403),
            ("25006", "", 405),
            ("21000", "UPDATE requires a WHERE clause", 400),
            ("21000", "x", 500),
            ("22023", "role \"x\" does not exist", 401),
            ("PT402", "", 402),
            ("PTabc", "", 500),
            ("53300", "", 503),
            ("40001", "", 500),
            ("54001", "", 413),
            ("P0001", "", 400),
            ("P0002", "", 500),
        ] {
            assert_eq!(refusal(sqlstate, message).status(), status, "{sqlstate}");
        }
    }

    #[test]
    fn only_the_statements_own_names_lose_their_schema() {
        let message = "function pg_catalog.sum(text) does not exist";
        assert_eq!(
            unqualified("42883", message),
            "function sum(text) does not exist"
        );
        assert_eq!(unqualified("P0001", message), message);
    }

    #[test]
    fn a_lack_of_privilege_without_credentials_is_401() {
        let anonymous = Refusal {
            anonymous: true,
            ..refusal("42501", "permission denied for table t")
        };
        let report = Error::Postgres(Box::new(anonymous)).report();
        assert_eq!(report.status, 401);
        assert_eq!(report.headers.len(), 1);
    }

    #[test]
    fn the_hidden_column_is_taken_out_of_details() {
        let key =
            "Key (tenant_id, email)=(5a3c0b1e-0000-4000-8000-000000000001, x@y) already exists.";
        assert_eq!(
            HIDDEN.take_from(key).as_deref(),
            Some("Key (email)=(x@y) already exists.")
        );
        let row = "Failing row contains (1, null, 5a3c0b1e-0000-4000-8000-000000000001).";
        assert_eq!(
            HIDDEN.take_from(row).as_deref(),
            Some("Failing row contains (1, null).")
        );
        let only =
            "Key (tenant_id)=(5a3c0b1e-0000-4000-8000-000000000001) is not present in table \"x\".";
        assert_eq!(HIDDEN.take_from(only), None);
    }

    #[test]
    fn a_function_may_raise_its_own_answer() {
        let raised = Refusal {
            detail: Some(r#"{"status":418,"headers":{"X-Why":"tea"}}"#.into()),
            ..refusal("PGRST", r#"{"code":"T1","message":"no coffee"}"#)
        };
        let report = Error::Postgres(Box::new(raised)).report();
        assert_eq!((report.status.as_u16(), &*report.code), (418, "T1"));
        assert_eq!(report.headers[0].1, "tea");
        let bad = Error::Postgres(Box::new(refusal("PGRST", "no json"))).report();
        assert_eq!(bad.code, "PGRST121");
    }
}
