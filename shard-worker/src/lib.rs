//! Shard workers: what is done to shards and tenants, and the admin API that asks for it.
//!
//! This crate must not know how tenants' requests are handled: that is the
//! `router` crate's. Modules in reading order.

pub mod admins;
pub mod api;
pub mod app;
pub mod archive;
pub mod capture;
pub mod config;
pub mod doctor;
pub mod error;
pub mod failpoint;
pub mod fleet_query;
pub mod forget;
pub mod job;
pub mod migrate;
pub mod move_tenant;
pub mod nodes;
pub mod purge;
pub mod rebalance;
pub mod reconcile;
pub mod shard;
pub mod tenant_delete;
pub mod tenant_import;
pub mod tenant_restore;
pub mod traced;
