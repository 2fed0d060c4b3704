//! A scratch Postgres for the whole test binary, and a fresh shard for each test.

pub(crate) mod mutation;
mod refusal;
mod server;
mod shard;

pub(crate) use refusal::{Refusal, refusal};
pub(crate) use server::server;
pub(crate) use shard::{ACME, GLOBEX, Session, Shard};
