//! Stages that decide and do nothing, tested without a server.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod fuzz;
mod made_of;
mod model;
mod request;
mod statements;
