//! What a shard's schema is: identifiers, the introspected catalog, and the
//! SQL that every shard and the control database carry.
//!
//! This crate must not know HTTP, Redis or jobs.

pub mod adopt;
pub mod apply;
pub mod archive;
pub mod catalog;
pub mod clash;
pub mod control;
pub mod crm;
pub mod drift;
pub mod estimate;
pub mod history;
pub mod ident;
pub mod introspect;
pub mod key_range;
pub mod lint;
pub mod migration;
pub mod refused;
mod removal;
pub mod retire;
pub mod sequences;
pub mod shard;
pub mod tenant_tables;
