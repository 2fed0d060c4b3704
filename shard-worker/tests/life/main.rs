//! Jobs and tenants' lives on real servers, with workers that die.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod archive;
mod delete;
mod import;
mod stage;
