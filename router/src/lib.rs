//! The data plane: tenants' HTTP requests, answered from the right shard.
//!
//! This crate must not know jobs, nor the `shard-worker` crate. Modules in
//! reading order; the path of a request is [`pipeline`].

pub mod admin;
pub mod app;
pub mod breaker;
pub mod cache;
pub mod coherence;
pub mod config;
pub mod error;
pub mod event;
pub mod execute;
pub mod freshness;
pub mod gate;
pub mod guard;
pub mod hold;
pub mod http;
pub mod idempotency;
pub mod issuers;
pub mod nodes;
pub mod pipeline;
pub mod placement;
pub mod plan;
pub mod pool;
pub mod quota;
pub mod replica;
pub mod request;
pub mod response;
pub mod retry;
pub mod shards;
pub mod sql;
pub mod tag;
pub mod tenant;
pub mod threads;
pub mod timeline;
pub mod token;
pub mod wire;
