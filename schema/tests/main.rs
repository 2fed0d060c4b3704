//! What every shard carries, on a real Postgres: the guard, `distribute` and
//! `reference`, isolation, and the schema model read back.
//!
//! One server for the whole binary, one fresh database for each test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic as tests do"
)]

mod support;

mod shard_apply;
mod shard_distribute;
mod shard_guard;
mod shard_idempotency;
mod shard_install;
mod shard_isolation;
mod shard_sequences;
