//! What Postgres answered instead of a result.

use std::fmt;

/// An error of the server, as far as clients rely on it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

/// The server's answer; any other failure is the test's.
pub(crate) fn refusal(error: tokio_postgres::Error) -> Refusal {
    let Some(answer) = error.as_db_error() else {
        panic!("not an answer of the server: {error:?}");
    };
    Refusal {
        code: answer.code().code().to_owned(),
        message: answer.message().to_owned(),
        detail: answer.detail().map(str::to_owned),
        hint: answer.hint().map(str::to_owned),
    }
}

/// As psql prints it.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, "\nDETAIL: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nHINT: {hint}")?;
        }
        Ok(())
    }
}
