//! How much one request may ask for. All of it is far beyond what the official
//! clients send, and keeps parsing, planning and the SQL text small.

use crate::error::Error;

/// Bytes of the query string. Below what hyper takes for a URL, 64 KiB, so that
/// the answer says what is wrong.
pub const QUERY_BYTES_MAX: usize = 60 << 10;
/// Parameters of the query string.
pub const PARAMETERS_MAX: usize = 500;
/// Conditions, counting those inside logic trees.
pub const FILTERS_MAX: usize = 300;
/// Embedded resources.
pub const EMBEDS_MAX: usize = 50;
/// Selected items, at all levels.
pub const ITEMS_MAX: usize = 1_000;
/// Nesting of logic trees, and of embedded resources.
pub const DEPTH_MAX: usize = 20;
/// Order terms of one level.
pub const ORDER_TERMS_MAX: usize = 50;
/// Steps of one JSON path.
pub const PATH_STEPS_MAX: usize = 50;

pub(super) fn depth(depth: usize) -> Result<(), Error> {
    at_most("nested levels", depth, DEPTH_MAX)
}

pub(super) fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), Error> {
    if found > max {
        return Err(Error::TooMuch { what, max });
    }
    Ok(())
}
