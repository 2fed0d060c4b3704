//! The data plane: tenants' HTTP requests, answered from the right shard.
//!
//! This crate must not know jobs, nor the `shard-worker` crate. Modules in
//! reading order; the path of a request is [`pipeline`].

pub mod config;
pub mod error;
pub mod execute;
pub mod plan;
pub mod pool;
pub mod request;
pub mod response;
pub mod sql;
