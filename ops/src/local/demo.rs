//! What a fresh cluster holds: the CRM's tables, and demo tenants with data.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use uuid::Uuid;

use super::layout::Node;
use super::postgres::{connect, failed};
use super::{APP_DATABASE, Cluster};
use crate::admin::{Admin, segment};
use crate::error::{Error, Result, io};

/// The demo tenants: slug and name.
const TENANTS: [(&str, &str); 3] = [
    ("acme", "Acme Corporation"),
    ("globex", "Globex Corporation"),
    ("initech", "Initech"),
];

/// The name of the CRM's directory of files.
const CRM: &str = "crm";

/// Longest wait for it to be recorded, and the pause between looks.
const RECORDED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// Rows of a demo tenant beside its hand-written ones, where no number is given.
const ROWS: u32 = 40;
/// Tenants that are seeded at once.
const SEEDED_AT_ONCE: usize = 4;

/// Applies the CRM's schema to a shard.
pub(super) async fn schema(cluster: &Cluster, primary: &Node) -> Result<()> {
    let mut client = connect(primary, APP_DATABASE, cluster.secrets.superuser()).await?;
    let installed = schema::crm::install(&mut client).await;
    installed.map_err(failed(primary, "make the CRM's tables"))?;
    Ok(())
}

/// Tells the fleet that all shards have the CRM's files: further ones can be
/// applied after them, and a shard that is added gets them all.
pub(super) async fn record(admin: &Admin) -> Result<()> {
    let known = admin.get("/migrations", &[]).await?;
    let known = known["items"].as_array().into_iter().flatten();
    if known
        .into_iter()
        .any(|directory| directory["directory"] == CRM)
    {
        return Ok(());
    }
    let files = schema::crm::FILES.iter();
    let files: Vec<Value> = files
        .map(|(name, text)| json!({"file": format!("{name}.sql"), "text": text}))
        .collect();
    let body = json!({"files": files, "baseline": true});
    let request = format!("/migrations/{CRM}/apply");
    let mut job = admin.post(&request, &body).await?;
    let deadline = Instant::now() + RECORDED;
    while job["status"] != "done" {
        if job["done"] == true || Instant::now() > deadline {
            let why = &job["problem"]["message"];
            return Err(Error::Supervisor(format!("{request} did not end: {why}")));
        }
        tokio::time::sleep(LOOK).await;
        let id = job["id"].as_str().unwrap_or_default();
        job = admin.get(&format!("/jobs/{}", segment(id)), &[]).await?;
    }
    Ok(())
}

/// Creates the demo tenants, each with a key and data.
pub(super) async fn tenants(
    cluster: &Cluster,
    admin: &Admin,
    extra: u32,
    rows: Option<u32>,
) -> Result<()> {
    let mut made = Vec::new();
    for (slug, name) in TENANTS {
        let body = json!({"slug": slug, "name": name});
        made.push(admin.post("/tenants", &body).await?);
        let key = key(cluster, admin, slug).await?;
        cluster
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(slug.to_owned(), key);
    }
    if extra > 0 {
        let body = json!({"prefix": "t", "count": extra});
        admin.post("/tenants:bulk", &body).await?;
        for number in 1..=extra {
            made.push(admin.get(&format!("/tenants/t-{number}"), &[]).await?);
        }
    }
    stream::iter(made)
        .map(|tenant| async move { seed(cluster, &tenant, rows.unwrap_or(ROWS)).await })
        .buffer_unordered(SEEDED_AT_ONCE)
        .try_collect()
        .await
}

/// Gives a tenant its rows, on the shard where it lives; one that has any keeps
/// what it has: rows that someone deleted since don't come back.
async fn seed(cluster: &Cluster, tenant: &Value, rows: u32) -> Result<()> {
    let field = |name: &'static str| {
        tenant[name].as_str().ok_or_else(|| Error::Answer {
            request: "GET /tenants".to_owned(),
            field: name,
        })
    };
    let id = Uuid::parse_str(field("id")?).map_err(|_| Error::Answer {
        request: "GET /tenants".to_owned(),
        field: "id",
    })?;
    let primary = cluster.find(&format!("{}-primary", field("shard")?))?;
    let client = connect(primary, APP_DATABASE, cluster.secrets.superuser()).await?;
    let filled = client
        .query_one(
            "select exists (select from public.companies where tenant_id = $1)",
            &[&id],
        )
        .await
        .map_err(failed(primary, "look for the demo tenants' rows"))?;
    if filled.get(0) {
        return Ok(());
    }
    schema::crm::seed(&client, id, field("slug")?, rows)
        .await
        .map_err(failed(primary, "write the demo tenants' rows"))
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
