//! `ringfence cache`.

use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use super::Answer;
use crate::admin::Admin;
use crate::error::{Error, Result};
use crate::output::{Column, Output, show};

/// What can be done with the routers' caches.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What each router's cache holds, and whether it may answer from it.
    Stats,
    /// Have every router forget what it and Redis hold. Never needed for right
    /// answers: what has changed is not answered from a cache.
    Purge(Purge),
}

/// What is forgotten; neither tenant nor table means everything.
#[derive(Debug, Args)]
pub struct Purge {
    /// This tenant's answers.
    #[arg(long)]
    tenant: Option<String>,
    /// Answers made of this table, `schema.table` or a table of `public`.
    #[arg(long)]
    table: Option<String>,
}

const STATS: &[Column] = &[
    ("router", |r| show(&r["name"])),
    ("enabled", |r| show(&r["enabled"])),
    ("entries", |r| show(&r["entries"])),
    ("MiB", |r| mib(&r["bytes"])),
    ("of MiB", |r| mib(&r["bytes_max"])),
    ("redis", |r| match r["redis"].as_bool() {
        Some(true) => "connected".into(),
        Some(false) => "not reached".into(),
        None => "none".into(),
    }),
    ("workers heard", |r| show(&r["workers"])),
    ("shards with lease", |r| {
        let shards = r["shards"].as_array().map_or(&[][..], Vec::as_slice);
        let leased = shards.iter().filter(|shard| shard["leased"] == true);
        format!("{} of {}", leased.count(), shards.len())
    }),
    ("error", |r| show(&r["error"])),
];

const PURGED: &[Column] = &[
    ("router", |r| show(&r["name"])),
    ("status", |r| match r["error"].is_null() {
        true => "purged".into(),
        false => "FAILED".into(),
    }),
    ("removed from Redis", |r| show(&r["redis_removed"])),
    ("error", |r| show(&r["error"])),
];

/// Longest wait for one router.
const ANSWER_MAX: Duration = Duration::from_secs(3);

impl Command {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        match self {
            Self::Stats => {
                let routers = all(admin, "/cache").await?;
                Ok(Output::list(routers, STATS))
            }
            Self::Purge(purge) => {
                let asked = json!({ "tenant": purge.tenant, "table": purge.table });
                let mut answer = admin.post("/cache/purge", &asked).await?;
                let routers = admin.items(&mut answer, "POST /cache/purge")?;
                // What was not purged still answers right, but whoever purges to be
                // rid of something must know.
                let left = routers.iter().filter(|r| !r["error"].is_null()).count();
                let all = routers.len();
                let why = (left > 0).then(|| format!("{left} of {all} routers were not purged"));
                Ok(Output::list(routers, PURGED).failed(why))
            }
        }
    }
}

/// Asks every live router at its own admin port; one that does not answer has
/// an `error` instead.
async fn all(admin: &Admin, path: &str) -> Result<Vec<Value>> {
    let mut page = admin.get("/members", &[]).await?;
    let members = admin.items(&mut page, "GET /members")?;
    let client = Client::builder()
        .timeout(ANSWER_MAX)
        .no_proxy()
        .build()
        .map_err(|source| Error::Unreachable {
            url: path.to_owned(),
            source,
        })?;
    let routers = members.iter().filter(|member| member["kind"] == "router");
    let asked = routers.map(|router| {
        let client = client.clone();
        async move {
            let url = show(&router["admin_url"]);
            let url = format!("{}{path}", url.trim_end_matches('/'));
            let mut answer = ask(client.get(url)).await;
            answer["name"] = router["name"].clone();
            answer
        }
    });
    Ok(join_all(asked).await)
}

async fn ask(request: RequestBuilder) -> Value {
    let answer = async {
        let answer = request.send().await?;
        match answer.error_for_status_ref() {
            Ok(_) => answer.json().await,
            Err(error) => {
                let said = answer.text().await?;
                Ok(json!({ "error": format!("{error}: {}", said.trim()) }))
            }
        }
    };
    let answer: reqwest::Result<Value> = answer.await;
    answer.unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

fn mib(bytes: &Value) -> String {
    bytes
        .as_f64()
        .map_or("-".into(), |bytes| format!("{:.1}", bytes / 1_048_576.0))
}
