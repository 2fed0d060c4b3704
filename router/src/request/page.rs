//! `limit`, `offset` and the Range header.

use http::HeaderMap;
use http::header::RANGE;

use crate::error::{Error, RangeProblem};

/// A window over the rows of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Page {
    /// Rows at most; none means all.
    pub limit: Option<i64>,
    /// Rows that are skipped.
    pub offset: Option<i64>,
}

impl Page {
    /// Nothing was asked for.
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// The number of the first row.
    pub fn first(&self) -> i64 {
        self.offset.unwrap_or(0)
    }

    /// With at most `max` rows.
    pub fn capped(self, max: Option<u64>) -> Self {
        let max = max.map(|max| i64::try_from(max).unwrap_or(i64::MAX));
        let limit = match (self.limit, max) {
            (Some(limit), Some(max)) => Some(limit.min(max)),
            (limit, max) => limit.or(max),
        };
        Self { limit, ..self }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if self.limit.is_some_and(|limit| limit < 0) {
            return Err(Error::Range(RangeProblem::NegativeLimit));
        }
        Ok(())
    }

    /// The rows that are in both, this being the parameters' page and the other
    /// one the header's. A limit of zero is legal without an offset, and then the
    /// header does not count.
    pub(super) fn intersect(self, other: Self) -> Result<Self, Error> {
        if self.limit == Some(0) && self.first() == 0 {
            return Ok(self);
        }
        if self.limit == Some(0) {
            return Err(Error::Range(RangeProblem::NegativeLimit));
        }
        let first = self.first().max(other.first());
        let end = |page: Self| page.limit.map(|limit| page.first().saturating_add(limit));
        let end = match (end(self), end(other)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if end.is_some_and(|end| end <= first) {
            return Err(Error::Range(RangeProblem::NegativeLimit));
        }
        Ok(Self {
            limit: end.map(|end| end - first),
            offset: Some(first).filter(|first| *first > 0),
        })
    }
}

/// The value of a `limit` or `offset` parameter; what is no number is ignored.
pub(super) fn number(value: &str) -> Option<i64> {
    value.trim().parse().ok()
}

/// The Range header: `0-9`, `10-`. Malformed ones are ignored.
pub(super) fn header(headers: &HeaderMap) -> Result<Page, Error> {
    let text = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let Some((first, last)) = text.and_then(|text| text.split_once('-')) else {
        return Ok(Page::default());
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if first.is_empty() || !digits(first) || !digits(last) {
        return Ok(Page::default());
    }
    let offset = number(first);
    let last = number(last);
    if let (Some(first), Some(last)) = (offset, last)
        && first > last
    {
        return Err(Error::Range(RangeProblem::Reversed));
    }
    Ok(Page {
        limit: last.map(|last| (last - offset.unwrap_or(0)).saturating_add(1)),
        offset,
    })
}
