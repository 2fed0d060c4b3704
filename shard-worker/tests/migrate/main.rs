//! Changes of the schema on real shards: all of them or named ones, whatever
//! fails, blocks or dies in between.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../life/stage.rs"]
#[allow(dead_code, reason = "shared with the tests of tenants' lives")]
mod stage;

mod apply;
mod broken;
