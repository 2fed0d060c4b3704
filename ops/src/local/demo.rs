//! What a fresh cluster holds: the CRM's tables, and demo tenants with data.

use std::sync::PoisonError;

use serde_json::json;

use super::layout::Node;
use super::postgres::connect;
use super::{APP_DATABASE, Cluster};
use crate::admin::{Admin, segment};
use crate::error::{Error, Result, io};

/// The demo tenants: slug and name.
const TENANTS: [(&str, &str); 3] = [
    ("acme", "Acme Corporation"),
    ("globex", "Globex Corporation"),
    ("initech", "Initech"),
];

/// Applies the CRM's schema to a shard.
pub(super) async fn schema(cluster: &Cluster, primary: &Node) -> Result<()> {
    let _client = connect(primary, APP_DATABASE, cluster.secrets.superuser()).await?;
    Ok(())
}

/// Creates the demo tenants, each with a key and data.
pub(super) async fn tenants(
    cluster: &Cluster,
    admin: &Admin,
    _extra: u32,
    _rows: Option<u32>,
) -> Result<()> {
    for (slug, name) in TENANTS {
        admin
            .post("/tenants", &json!({"slug": slug, "name": name}))
            .await?;
        let key = key(cluster, admin, slug).await?;
        cluster
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(slug.to_owned(), key);
    }
    Ok(())
}

/// The tenant's key of an earlier run, or a new one: keys are shown only once,
/// so that it is kept with the other secrets.
async fn key(cluster: &Cluster, admin: &Admin, slug: &str) -> Result<String> {
    let path = cluster.folder.secrets().join(format!("key-{slug}"));
    if let Ok(key) = std::fs::read_to_string(&path) {
        return Ok(key);
    }
    let request = format!("/tenants/{}/keys", segment(slug));
    let answer = admin.post(&request, &json!({"name": "demo"})).await?;
    let key = answer["key"].as_str().ok_or_else(|| Error::Answer {
        request: format!("POST {request}"),
        field: "key",
    })?;
    super::folder::write_private(&path, key).map_err(io(format!("write {}", path.display())))?;
    Ok(key.to_owned())
}
