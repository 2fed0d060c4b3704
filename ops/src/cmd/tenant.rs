//! `ringfence tenant`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::plan::Limits;
use super::usage::{self, By};
use super::{Answer, archive, job, plan, rebalance};
use crate::admin::{Admin, segment};
use crate::error::Error;
use crate::output::{Column, Output, show};
use crate::safety::confirm;

/// Largest page that the admin API is asked for.
const PAGE: u64 = 1_000;

/// What can be done with tenants.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a tenant; it is served when this returns. Doing it again changes nothing.
    Create {
        /// Short name: lower-case letters, digits and dashes.
        slug: String,
        /// Name for people [default: the slug].
        #[arg(long)]
        name: Option<String>,
        /// Its UUID [default: a new one].
        #[arg(long)]
        id: Option<Uuid>,
        /// Region that keeps its data [default: the deployment's].
        #[arg(long)]
        region: Option<String>,
    },
    /// List tenants by slug.
    List {
        /// Only those with this text in slug or name.
        #[arg(long)]
        search: Option<String>,
        /// Only those after this slug.
        #[arg(long, value_name = "SLUG")]
        after: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Show a tenant and where it lives.
    Show {
        /// Slug or id.
        tenant: String,
    },
    /// Show what a tenant may use, or change it. Routers know at once.
    Limit {
        /// Slug or id.
        tenant: String,
        /// Its plan from now on.
        #[arg(long)]
        plan: Option<String>,
        /// Limits of its own, before the plan's; `none` leaves one to the plan.
        #[command(flatten)]
        limits: Limits,
    },
    /// Show who uses most just now.
    Top {
        /// What they are ordered by.
        #[arg(long, value_enum, default_value_t)]
        by: By,
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=250))]
        limit: u64,
    },
    /// Show what a tenant uses, and what it has stored.
    Usage {
        /// Slug or id.
        tenant: String,
    },
    /// Refuse a tenant's requests until it is resumed; its data stays.
    Suspend {
        /// Slug or id.
        tenant: String,
    },
    /// Serve a suspended tenant again.
    Resume {
        /// Slug or id.
        tenant: String,
    },
    /// Have a tenant stay where it is, whatever plans of balance say.
    Pin {
        /// Slug or id.
        tenant: String,
    },
    /// Let plans of balance move a tenant again.
    Unpin {
        /// Slug or id.
        tenant: String,
    },
    /// Plan to give a tenant a shard alone: an empty one, else the others leave its own. Apply the plan by its hash.
    Isolate {
        /// Slug or id.
        tenant: String,
    },
    /// Write all rows of a tenant, as of one moment, into an archive; it stays as it is.
    Export {
        /// Slug or id.
        tenant: String,
        /// The archive: a tar file of NDJSON, compressed where it ends in .zst.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Read from this Postgres server, which need not be of the fleet, such as a restored copy:
        /// without TLS, so one on this host or behind a tunnel. Its password may stand in PGPASSWORD.
        #[arg(long, value_name = "DSN")]
        from: Option<String>,
    },
    /// Make a new tenant of an archive, or load an existing single-tenant database's
    /// rows as those of a tenant that has none yet: whole, or not at all. What is not
    /// loaded is named.
    Import {
        /// An archive that `export` has written.
        #[arg(required_unless_present = "from", conflicts_with = "from")]
        file: Option<PathBuf>,
        /// The new tenant's slug [default: the archive's].
        #[arg(long = "as", value_name = "NAME", conflicts_with = "from")]
        slug: Option<String>,
        /// Its UUID [default: a new one].
        #[arg(long, conflicts_with = "from")]
        id: Option<Uuid>,
        /// Its shard [default: the ring's].
        #[arg(long, conflicts_with = "from")]
        shard: Option<String>,
        /// The address of a database, as the workers reach it, such as
        /// postgres://user:password@host/database.
        #[arg(long, value_name = "DSN", requires = "tenant")]
        from: Option<String>,
        /// Slug or id of the tenant that gets its rows; it is not served meanwhile.
        #[arg(long, requires = "from")]
        tenant: Option<String>,
        /// Show progress until it is over, then what was loaded.
        #[arg(long, requires = "from")]
        wait: bool,
    },
    /// Delete a tenant and all its data, for good. Its requests get 404 at once.
    Delete {
        /// Slug or id.
        tenant: String,
        /// The same once more.
        #[arg(long, value_name = "TENANT")]
        confirm: String,
        /// Show progress until it is over, then the certificate of what was deleted.
        #[arg(long)]
        wait: bool,
    },
}

const LIST: &[Column] = &[
    ("slug", |t| show(&t["slug"])),
    ("name", |t| show(&t["name"])),
    ("shard", |t| show(&t["shard"])),
    ("epoch", |t| show(&t["epoch"])),
    ("state", |t| show(&t["state"])),
    ("id", |t| show(&t["id"])),
];

const RECORD: &[Column] = &[
    ("id", |t| show(&t["id"])),
    ("slug", |t| show(&t["slug"])),
    ("name", |t| show(&t["name"])),
    ("region", |t| show(&t["region"])),
    ("shard", shard),
    ("epoch", |t| show(&t["epoch"])),
    ("state", |t| show(&t["state"])),
    ("created", |t| show(&t["created_at"])),
];

const LIMITS: &[Column] = &[
    ("tenant", |t| show(&t["slug"])),
    ("plan", |t| show(&t["plan"])),
    ("requests/s", |t| limit_of(t, "requests_per_second")),
    ("burst", |t| limit_of(t, "burst")),
    ("at once", |t| limit_of(t, "concurrency")),
    ("rows", |t| limit_of(t, "rows")),
    ("answer", |t| limit_of(t, "response_bytes")),
    ("body", |t| limit_of(t, "request_bytes")),
    ("statement", |t| limit_of(t, "statement_ms")),
    ("shard time", |t| limit_of(t, "shard_ms_per_second")),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin, no_input: bool) -> Answer {
        match self {
            Self::Create {
                slug,
                name,
                id,
                region,
            } => {
                let body = json!({"slug": slug, "name": name, "id": id, "region": region});
                let tenant = admin.post("/tenants", &body).await?;
                Ok(Output::record(tenant, RECORD))
            }
            Self::List {
                search,
                after,
                limit,
            } => list(admin, search, after, limit).await,
            Self::Show { tenant } => {
                let tenant = admin.get(&path(&tenant, ""), &[]).await?;
                Ok(Output::record(tenant, RECORD))
            }
            Self::Limit {
                tenant,
                plan,
                limits,
            } => limit(admin, &tenant, plan, limits).await,
            Self::Top { by, limit } => usage::top(admin, by, limit).await,
            Self::Usage { tenant } => usage::of_tenant(admin, &path(&tenant, "/usage")).await,
            Self::Suspend { tenant } => {
                let question = format!("Suspend {tenant}? All its requests are refused.");
                confirm(&question, no_input)?;
                change(admin, &tenant, "/suspend").await
            }
            Self::Resume { tenant } => change(admin, &tenant, "/resume").await,
            Self::Pin { tenant } => change(admin, &tenant, "/pin").await,
            Self::Unpin { tenant } => change(admin, &tenant, "/unpin").await,
            Self::Isolate { tenant } => {
                let ask = json!({ "policy": "isolate", "tenant": tenant });
                let mut plan = rebalance::proposed(admin, &ask).await?;
                let then = format!(
                    "That it stays alone: ringfence tenant pin {tenant}, then ringfence shard drain its shard, which takes no new tenants then"
                );
                plan.note = plan.note.map(|next| format!("{next}\n{then}"));
                Ok(plan)
            }
            Self::Export { tenant, to, from } => {
                archive::export(admin, &tenant, &to, from.as_deref()).await
            }
            Self::Import {
                from: Some(from),
                tenant: Some(tenant),
                wait,
                ..
            } => {
                let body = json!({ "from": from });
                let started = admin.post(&path(&tenant, "/import"), &body).await?;
                Ok(job::record(job::started(admin, started, wait).await?))
            }
            Self::Import {
                file,
                slug,
                id,
                shard,
                ..
            } => {
                let file =
                    file.ok_or_else(|| Error::Usage("which archive? Name its file".into()))?;
                archive::import(admin, &file, archive::Intake { slug, id, shard }).await
            }
            Self::Delete {
                tenant,
                confirm,
                wait,
            } => {
                if confirm != tenant {
                    return Err(Error::Usage(format!(
                        "to delete {tenant} and all its data, say --confirm {tenant}"
                    )));
                }
                let job = admin
                    .delete(&path(&tenant, ""), &[("confirm", &confirm)])
                    .await?;
                Ok(job::record(job::started(admin, job, wait).await?))
            }
        }
    }
}

/// Pages through the list until it ends or `limit` is reached.
async fn list(admin: &Admin, search: Option<String>, after: Option<String>, limit: u64) -> Answer {
    let mut items: Vec<Value> = Vec::new();
    let mut next = after;
    loop {
        let wanted = (limit - items.len() as u64).min(PAGE).to_string();
        let mut query = vec![("limit", wanted.as_str())];
        query.extend(search.as_deref().map(|text| ("search", text)));
        query.extend(next.as_deref().map(|slug| ("after", slug)));
        let mut page = admin.get("/tenants", &query).await?;
        items.append(&mut admin.items(&mut page, "GET /tenants")?);
        next = page["next"].as_str().map(str::to_owned);
        match next {
            Some(after) if items.len() as u64 >= limit => {
                let note = format!("There are more: --after {after}, or a larger --limit.");
                return Ok(Output::list(items, LIST).note(note));
            }
            Some(_) => {}
            None => return Ok(Output::list(items, LIST)),
        }
    }
}

/// Shows the limits, changed where there is something to change.
async fn limit(admin: &Admin, tenant: &str, plan: Option<String>, limits: Limits) -> Answer {
    let path = path(tenant, "/limits");
    let changes = limits.changes();
    let limits = match plan.is_some() || !changes.is_empty() {
        true => {
            let body = json!({ "plan": plan, "limits": changes });
            admin.post(&path, &body).await?
        }
        false => admin.get(&path, &[]).await?,
    };
    Ok(Output::record(limits, LIMITS))
}

/// A limit that counts, and whether it is the tenant's own.
fn limit_of(tenant: &Value, name: &str) -> String {
    let own = if tenant["own"][name].is_null() {
        ""
    } else {
        " (its own)"
    };
    format!("{}{own}", plan::of(tenant, name))
}

async fn change(admin: &Admin, tenant: &str, verb: &str) -> Answer {
    let tenant = admin.post(&path(tenant, verb), &json!({})).await?;
    Ok(Output::record(tenant, RECORD))
}

fn path(tenant: &str, rest: &str) -> String {
    format!("/tenants/{}{rest}", segment(tenant))
}

/// The shard, and the ring's where that is another.
fn shard(tenant: &Value) -> String {
    let (shard, ring) = (show(&tenant["shard"]), &tenant["ring_shard"]);
    match ring.as_str() {
        Some(ring) if ring != shard => format!("{shard} (the ring says {ring})"),
        _ => shard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_off_the_ring_says_so() {
        let mut tenant = json!({
            "id": "0192f0c1-0000-7000-8000-000000000001", "slug": "acme",
            "name": "Acme Corporation", "region": "local", "shard": "s2", "ring_shard": "s2",
            "epoch": 1, "state": "active", "created_at": "2026-01-02T03:04:05Z",
        });
        insta::assert_snapshot!(Output::record(tenant.clone(), RECORD).text, @r"
        id       0192f0c1-0000-7000-8000-000000000001
        slug     acme
        name     Acme Corporation
        region   local
        shard    s2
        epoch    1
        state    active
        created  2026-01-02T03:04:05Z
        ");
        tenant["ring_shard"] = json!("s1");
        assert_eq!(shard(&tenant), "s2 (the ring says s1)");
    }

    #[test]
    fn names_are_one_segment_of_the_path() {
        assert_eq!(path("a/../b?c", "/keys"), "/tenants/a%2F..%2Fb%3Fc/keys");
    }
}
