//! Which media type an answer has, and what makes its body.
//!
//! As in PostgREST, an application adds media types by domains named as such: a
//! function that returns one answers it as it is, and an aggregate that returns
//! one makes it of rows, of one relation's or of any.

use schema::ident::QualifiedName;

use super::{Action, Planner, Returning, Source};
use crate::error::Error;
use crate::request::accept::MediaType;
use crate::request::select::Item;

/// What makes the body of a media type that is the application's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// The function's value is the body.
    Value,
    /// An aggregate over the selected rows.
    Rows(QualifiedName),
    /// An aggregate over the relation's own rows.
    WholeRows(QualifiedName),
}

/// What any of them accepts, and what an answer to that is called.
const ANY: &str = "*/*";
const BYTES: &str = "application/octet-stream";

/// What the answer is made by, or what would have made it had it a body.
type Choice = (MediaType, Option<Handler>);

impl Planner<'_> {
    /// The first of the accepted media types that there is.
    pub(super) fn negotiate(&self, action: &Action) -> Result<Choice, Error> {
        let mut accepted = self.request.accept.iter();
        let found = accepted.find_map(|media| match media {
            MediaType::StrippedArray | MediaType::Object { .. } => Some((media.clone(), None)),
            MediaType::Plan(_) => self.config.plans.then(|| (media.clone(), None)),
            _ => self.made_by_application(media, action).or(match media {
                MediaType::Any | MediaType::Json => Some((MediaType::Json, None)),
                MediaType::Csv | MediaType::GeoJson => Some((media.clone(), None)),
                _ => None,
            }),
        });
        found.ok_or_else(|| self.nothing_acceptable())
    }

    fn made_by_application(&self, wanted: &MediaType, action: &Action) -> Option<Choice> {
        let handlers = &self.model.catalog().media_handlers;
        let valued = matches!(action, Action::Call(call) if call.media.is_some());
        if handlers.is_empty() && !valued {
            return None;
        }
        let name = essence(wanted);
        let whole = self.request.query.select == [Item::All];
        if let Action::Call(call) = action {
            let own = call.media.as_deref().filter(|_| whole);
            if own == Some(ANY) {
                return Some((MediaType::Other(BYTES.to_owned()), Some(Handler::Value)));
            }
            if own == Some(&*name) {
                return Some((wanted.clone(), Some(Handler::Value)));
            }
        }
        let relation = rows_of(action).filter(|_| whole);
        let of = |relation: Option<&QualifiedName>, media: &str| {
            let mut handlers = handlers.iter();
            handlers.find(|found| found.relation.as_ref() == relation && &*found.media == media)
        };
        let own = relation.and_then(|relation| {
            let any = of(Some(relation), ANY);
            let any = any.map(|found| (MediaType::Other(BYTES.to_owned()), found));
            any.or_else(|| Some((wanted.clone(), of(Some(relation), &name)?)))
        });
        if let Some((media, found)) = own {
            return match shows_rows(action) {
                // What a write returns are no rows of the relation's type.
                Some(true) => None,
                Some(false) => Some((media, Some(Handler::WholeRows(found.aggregate.clone())))),
                None => Some((media, None)),
            };
        }
        let found = of(None, &name).filter(|_| has_rows(action))?;
        Some((wanted.clone(), Some(Handler::Rows(found.aggregate.clone()))))
    }
}

/// The media type's name without parameters, in lower case.
fn essence(media: &MediaType) -> String {
    let text = match media {
        MediaType::Any => ANY.to_owned(),
        MediaType::Other(text) => text.clone(),
        media => media.content_type(),
    };
    let name = text.split(';').next().unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

/// The relation whose rows are answered.
fn rows_of(action: &Action) -> Option<&QualifiedName> {
    match action {
        Action::Read(node) => match &node.source {
            Source::Relation { name, .. } => Some(name),
            Source::Produced | Source::Computed { .. } => None,
        },
        Action::Call(call) => call.relation.as_ref(),
        Action::Write(write) => Some(&write.relation),
        Action::Options(_) | Action::Describe(_) => None,
    }
}

/// Whether a write answers rows; none where it answers nothing, false for a read.
fn shows_rows(action: &Action) -> Option<bool> {
    match action {
        Action::Write(write) => match write.returning {
            Returning::Rows { .. } => Some(true),
            Returning::Count | Returning::Location(_) => None,
        },
        Action::Read(_) | Action::Call(_) | Action::Options(_) | Action::Describe(_) => Some(false),
    }
}

fn has_rows(action: &Action) -> bool {
    match action {
        Action::Read(_) | Action::Write(_) => true,
        Action::Call(call) => call.node.is_some(),
        Action::Options(_) | Action::Describe(_) => false,
    }
}
