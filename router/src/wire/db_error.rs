//! What Postgres says when it refuses a statement (Postgres' protocol, "Error and
//! Notice Message Fields").

use std::fmt;
use std::io;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::error::{DbError as LoginError, SqlState};

/// An error, or a notice.
#[derive(Clone, Debug)]
pub struct DbError {
    severity: String,
    code: SqlState,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    table: Option<String>,
    constraint: Option<String>,
    routine: Option<String>,
}

impl DbError {
    pub(super) fn read(mut fields: ErrorFields<'_>) -> io::Result<Self> {
        let mut read = Self {
            severity: String::new(),
            code: SqlState::INTERNAL_ERROR,
            message: String::new(),
            detail: None,
            hint: None,
            table: None,
            constraint: None,
            routine: None,
        };
        while let Some(field) = fields.next()? {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' => read.severity = text,
                b'C' => read.code = SqlState::from_code(&text),
                b'M' => read.message = text,
                b'D' => read.detail = Some(text),
                b'H' => read.hint = Some(text),
                b't' => read.table = Some(text),
                b'n' => read.constraint = Some(text),
                b'R' => read.routine = Some(text),
                _ => {}
            }
        }
        Ok(read)
    }

    /// The SQLSTATE.
    pub fn code(&self) -> &SqlState {
        &self.code
    }

    /// The primary message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// DETAIL.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// HINT.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The table whose row it is about.
    pub fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    /// The constraint that it is about.
    pub fn constraint(&self) -> Option<&str> {
        self.constraint.as_deref()
    }

    /// The function of Postgres' source that it comes from.
    pub fn routine(&self) -> Option<&str> {
        self.routine.as_deref()
    }
}

/// As a login was refused.
impl From<&LoginError> for DbError {
    fn from(error: &LoginError) -> Self {
        Self {
            severity: error.severity().to_owned(),
            code: error.code().clone(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            table: error.table().map(str::to_owned),
            constraint: error.constraint().map(str::to_owned),
            routine: error.routine().map(str::to_owned),
        }
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(out, "\nDETAIL: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(out, "\nHINT: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for DbError {}
