//! `ringfence key`.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::Answer;
use crate::admin::{Admin, segment};
use crate::output::{Column, Output, show};
use crate::safety::confirm;

/// What can be done with API keys.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a key. It is shown this once, and stored nowhere.
    Create {
        /// The tenant's slug or id.
        tenant: String,
        /// Role of its requests [default: authenticated].
        #[arg(long)]
        role: Option<String>,
        /// What it is for.
        #[arg(long)]
        name: Option<String>,
        /// When it expires: 90s, 30m, 12h, 30d [default: never].
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires_in: Option<Duration>,
    },
    /// List a tenant's keys, newest first; the keys themselves are not known.
    List {
        /// The tenant's slug or id.
        tenant: String,
    },
    /// Refuse a key for ever, within a second on every router.
    Revoke {
        /// The key's number, from `key list`.
        id: i64,
    },
}

const CREATED: &[Column] = &[
    ("key", |k| show(&k["key"])),
    ("id", |k| show(&k["id"])),
    ("tenant", |k| show(&k["tenant"])),
    ("role", |k| show(&k["role"])),
    ("name", |k| show(&k["name"])),
    ("expires", |k| show(&k["expires_at"])),
];

const LIST: &[Column] = &[
    ("id", |k| show(&k["id"])),
    ("role", |k| show(&k["role"])),
    ("name", |k| show(&k["name"])),
    ("created", |k| show(&k["created_at"])),
    ("expires", |k| show(&k["expires_at"])),
    ("revoked", |k| show(&k["revoked_at"])),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin, no_input: bool) -> Answer {
        match self {
            Self::Create {
                tenant,
                role,
                name,
                expires_in,
            } => {
                let body = json!({
                    "role": role,
                    "name": name,
                    "expires_in_seconds": expires_in.map(|time| time.as_secs()),
                });
                let key = admin.post(&path(&tenant), &body).await?;
                Ok(Output::record(key, CREATED).note("Keep the key: it is not shown again."))
            }
            Self::List { tenant } => {
                let mut page = admin.get(&path(&tenant), &[]).await?;
                let keys = admin.items(&mut page, "GET keys")?;
                Ok(Output::list(keys, LIST))
            }
            Self::Revoke { id } => {
                let question = format!("Revoke key {id}? Requests that carry it are refused.");
                confirm(&question, no_input)?;
                let revoked: Value = admin
                    .post(&format!("/keys/{id}/revoke"), &json!({}))
                    .await?;
                Ok(Output::list(vec![revoked.clone()], LIST).with_json(revoked))
            }
        }
    }
}

fn path(tenant: &str) -> String {
    format!("/tenants/{}/keys", segment(tenant))
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("give a number and one of s, m, h, d, such as 30d".into()),
    };
    let number: u32 = number
        .parse()
        .map_err(|_| format!("{number:?} is not a number of {unit}"))?;
    if number == 0 {
        return Err("a key that has expired already is of no use".into());
    }
    Ok(Duration::from_secs(seconds * u64::from(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(2_592_000)));
        for bad in [
            "",
            "d",
            "3",
            "0d",
            "-1d",
            "1.5h",
            "5 m",
            "9é",
            "99999999999d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
