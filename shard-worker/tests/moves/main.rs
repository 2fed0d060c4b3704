//! Tenants move between real servers while they are being used, and back, with
//! workers that die on the way.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod care;
mod kill;
mod moves;
mod rebalance;
#[allow(dead_code, reason = "shared with the tests of other jobs")]
#[path = "../life/stage.rs"]
mod stage;
mod writers;
