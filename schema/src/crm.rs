//! The CRM that examples, tests and the local cluster use: plain single-tenant
//! SQL, one file that distributes it, and data that looks real.

use tokio_postgres::{Client, Error};
use uuid::Uuid;

use crate::ident::Literal;

/// The files, in order, by name. The last one alone knows of tenants.
pub const FILES: [(&str, &str); 3] = [
    ("001_tables", include_str!("../crm/001_tables.sql")),
    ("002_functions", include_str!("../crm/002_functions.sql")),
    ("003_distribute", include_str!("../crm/003_distribute.sql")),
];

/// Slugs of the tenants that have data of their own.
pub const DEMO_TENANTS: [&str; 3] = ["acme", "globex", "initech"];

/// Tables of the CRM that hold tenants' rows, referenced ones first.
pub const TABLES: [&str; 7] = [
    "companies",
    "contacts",
    "leads",
    "deals",
    "deal_contacts",
    "activities",
    "notes",
];

/// Tables of the CRM with the same rows for all.
pub const REFERENCE_TABLES: [&str; 2] = ["countries", "pipeline_stages"];

/// Ids of generated rows start after this where hand-written rows come before them.
const DEMO_IDS: u32 = 1000;

/// Key of the advisory lock that installers of one shard queue for.
const INSTALL_LOCK: i64 = 0x7269_6e67_0002;

/// Makes the CRM on a prepared shard, in one transaction, as `ringfence_owner`.
///
/// `client` is a superuser's or the migrator's connection. False where the CRM
/// is there already. Several may do this at once; they queue.
pub async fn install(client: &mut Client) -> Result<bool, Error> {
    let transaction = client.transaction().await?;
    transaction
        .execute("select pg_advisory_xact_lock($1)", &[&INSTALL_LOCK])
        .await?;
    let there = transaction
        .query_one("select to_regclass('public.companies') is not null", &[])
        .await?;
    if there.get(0) {
        return Ok(false);
    }
    transaction
        .batch_execute("set local role ringfence_owner")
        .await?;
    for (_, sql) in FILES {
        transaction.batch_execute(sql).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// One transaction that gives a tenant its data; run again, it adds nothing.
///
/// The hand-written rows where `slug` is one of [`DEMO_TENANTS`], and `rows`
/// generated contacts with what belongs to them: 0.2 companies, 0.5 leads and
/// deals, 2 activities and a note for each. The rows depend on the tenant's id
/// and their number alone.
///
/// For a connection that passes row security: a superuser's or the migrator's.
pub fn seed_sql(tenant: Uuid, slug: &str, rows: u32) -> String {
    let written = match slug {
        "acme" => include_str!("../crm/seed/acme.sql"),
        "globex" => include_str!("../crm/seed/globex.sql"),
        "initech" => include_str!("../crm/seed/initech.sql"),
        _ => "",
    };
    let first = if written.is_empty() { 0 } else { DEMO_IDS };
    let tenant = tenant.to_string();
    let mut sql = format!(
        "begin;
         set local search_path = pg_catalog;
         set local ringfence.tenant_id = {tenant};
         set local crm.first = {first};
         set local crm.rows = {rows};\n",
        tenant = Literal(&tenant),
    );
    sql.push_str(written);
    if rows > 0 {
        sql.push_str(include_str!("../crm/seed/generate.sql"));
    }
    sql.push_str(include_str!("../crm/seed/sequences.sql"));
    sql.push_str("commit;\n");
    sql
}

/// Runs [`seed_sql`]. Where it fails nothing is kept, and the connection is
/// usable again.
pub async fn seed(client: &Client, tenant: Uuid, slug: &str, rows: u32) -> Result<(), Error> {
    let seeded = client.batch_execute(&seed_sql(tenant, slug, rows)).await;
    if seeded.is_err() {
        client.batch_execute("rollback").await?;
    }
    seeded
}
