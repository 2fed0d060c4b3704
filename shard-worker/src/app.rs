//! What every request of the admin API and every task shares.

use std::sync::Arc;

use tenancy::auth::KeyRing;
use tenancy::control::Control;
use tenancy::members::Members;
use tokio::sync::watch;

use crate::shard::Logins;

/// Shared handles.
pub struct App {
    /// This worker's name.
    pub name: String,
    /// Bearer token of the admin API.
    pub admin_token: String,
    /// The control database.
    pub control: Control,
    /// Shards' logins.
    pub logins: Logins,
    /// The live routers and workers.
    pub members: watch::Receiver<Arc<Members>>,
    /// Mints API keys.
    pub keys: KeyRing,
}
