//! The DBA's command line, and the local cluster that tests use too.
//!
//! This crate must not know the internals of router and worker: it speaks the
//! admin API, and to Postgres servers only where it started them itself.

pub mod admin;
pub mod cmd;
pub mod error;
pub mod local;
pub mod output;
pub mod safety;
pub mod target;

pub use error::{Error, Exit, Result};
