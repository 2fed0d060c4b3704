//! Who a tenant is, where it lives, and who may speak for it.
//!
//! This crate must not know HTTP, nor the SQL of tenants' data. Modules in
//! reading order.

pub mod auth;
pub mod changes;
pub mod control;
pub mod id;
pub mod members;
pub mod peer;
pub mod placement;
pub mod quota;
pub mod ring;
pub mod settings;
pub mod snapshot;
pub mod socket;
pub mod timelines;
pub mod tls;
pub mod usage;
pub mod watch;

/// An error and its causes, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
