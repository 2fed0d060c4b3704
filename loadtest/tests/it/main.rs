//! The instrument against services whose behaviour is known.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod checks;
mod cli;
mod engine;
mod scenarios;
mod support;
