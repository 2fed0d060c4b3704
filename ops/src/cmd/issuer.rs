//! `ringfence issuer`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Answer;
use crate::admin::{Admin, segment};
use crate::error::{Error, Result};
use crate::output::{Column, Output, show};
use crate::safety::confirm;

/// What can be done with issuers of tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List those that are registered; secrets are not shown.
    List,
    /// Register one, or replace it. Routers know within a second.
    Put {
        /// What its tokens' `iss` says.
        name: String,
        /// What its tokens are verified by.
        #[command(flatten)]
        keys: Keys,
        /// Audience that its tokens must name.
        #[arg(long)]
        audience: Option<String>,
        /// The id of a tenant that it may name; several by repeating it
        /// [default: all].
        #[arg(long = "tenant", value_name = "ID")]
        tenants: Vec<uuid::Uuid>,
    },
    /// Forget one: its tokens are refused.
    Delete {
        /// What its tokens' `iss` says.
        name: String,
    },
}

/// What its tokens are verified by.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Keys {
    /// Where it publishes its public keys (JWKS). Routers read it every few
    /// minutes, and when a token names a new key.
    #[arg(long, value_name = "URL")]
    jwks_url: Option<String>,
    /// A file with its public keys (JWKS).
    #[arg(long, value_name = "FILE")]
    jwks_file: Option<PathBuf>,
    /// A file with its HS256 secret.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

const LIST: &[Column] = &[
    ("issuer", |i| show(&i["name"])),
    ("keys", keys),
    ("audience", |i| show(&i["audience"])),
    ("tenants", |i| match i["tenants"].as_array() {
        None => "all".into(),
        Some(tenants) => tenants.len().to_string(),
    }),
];

fn keys(issuer: &Value) -> String {
    match (&issuer["jwks_url"], &issuer["secret"]) {
        (Value::String(url), _) => url.clone(),
        (_, Value::String(_)) => "a secret".into(),
        _ => match issuer["jwks"]["keys"].as_array() {
            Some(keys) => format!("{} public", keys.len()),
            None => "none".into(),
        },
    }
}

impl Command {
    pub(super) async fn run(self, admin: &Admin, no_input: bool) -> Answer {
        match self {
            Self::List => list(admin).await,
            Self::Put {
                name,
                keys,
                audience,
                tenants,
            } => {
                let secret = keys.secret_file.as_deref().map(read).transpose()?;
                let body = json!({
                    "name": name,
                    "secret": secret.as_deref().map(str::trim_end),
                    "jwks": keys.jwks_file.as_deref().map(document).transpose()?,
                    "jwks_url": keys.jwks_url,
                    "audience": audience,
                    "tenants": (!tenants.is_empty()).then_some(tenants),
                });
                admin.post("/issuers", &body).await?;
                list(admin).await
            }
            Self::Delete { name } => {
                let question = format!("Forget issuer {name}? Its tokens are refused.");
                confirm(&question, no_input)?;
                let path = format!("/issuers/{}", segment(&name));
                admin.delete(&path, &[]).await?;
                list(admin).await
            }
        }
    }
}

async fn list(admin: &Admin) -> Answer {
    let mut page = admin.get("/issuers", &[]).await?;
    Ok(Output::list(admin.items(&mut page, "GET /issuers")?, LIST))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(crate::error::io(format!("read {}", path.display())))
}

fn document(path: &Path) -> Result<Value> {
    serde_json::from_str(&read(path)?)
        .map_err(|error| Error::Usage(format!("{} is no JSON document: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list() {
        let issuers = vec![
            json!({"name": "https://login.example.org", "secret": null, "jwks": null,
                "jwks_url": "https://login.example.org/keys", "audience": "crm", "tenants": null}),
            json!({"name": "own", "secret": "***", "jwks": null, "jwks_url": null,
                "audience": null, "tenants": ["a", "b"]}),
            json!({"name": "file", "secret": null, "jwks": {"keys": [{}]}, "jwks_url": null,
                "audience": null, "tenants": []}),
        ];
        insta::assert_snapshot!(Output::list(issuers, LIST).text);
    }
}
