//! The control database and those who follow it, on real servers.

// Clippy's leave for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod members;
mod support;
mod tenants;
mod upgrade;
mod watch;
