//! What every request of the admin API and every task shares.

use tenancy::auth::KeyRing;
use tenancy::control::Control;

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
    /// Mints API keys.
    pub keys: KeyRing,
}
