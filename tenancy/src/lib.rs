//! Who a tenant is, where it lives, and who may speak for it.
//!
//! This crate must not know HTTP, nor the SQL of tenants' data. Modules in
//! reading order.

pub mod auth;
pub mod control;
pub mod id;
pub mod placement;
pub mod ring;
pub mod snapshot;
pub mod watch;
