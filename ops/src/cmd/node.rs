//! `ringfence node`.

use clap::Subcommand;
use serde_json::Value;

use super::Answer;
use crate::admin::Admin;
use crate::output::{Column, Output, show};

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the shards' Postgres servers as workers last saw them.
    List,
}

const LIST: &[Column] = &[
    ("node", |n| show(&n["name"])),
    ("shard", |n| show(&n["shard"])),
    ("address", |n| {
        format!("{}:{}", show(&n["host"]), show(&n["port"]))
    }),
    ("role", |n| show(&n["role"])),
    ("timeline", |n| show(&n["timeline"])),
    ("replay lsn", |n| show(&n["replay_lsn"])),
    ("lag", lag),
    ("seen", seen),
    ("error", |n| show(&n["error"])),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        match self {
            Self::List => {
                let mut page = admin.get("/nodes", &[]).await?;
                Ok(Output::list(admin.items(&mut page, "GET /nodes")?, LIST))
            }
        }
    }
}

/// Bytes of log that a replica has not replayed yet.
pub(super) fn lag(node: &Value) -> String {
    match node["lag_bytes"].as_f64() {
        None => "-".into(),
        Some(bytes) if bytes < 1_024.0 => format!("{bytes} B"),
        Some(bytes) if bytes < 1_048_576.0 => format!("{:.1} KiB", bytes / 1_024.0),
        Some(bytes) => format!("{:.1} MiB", bytes / 1_048_576.0),
    }
}

fn seen(node: &Value) -> String {
    match node["seen_seconds_ago"].as_f64() {
        None => "never".into(),
        Some(seconds) => format!("{seconds:.1} s ago"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn list() {
        let nodes = vec![
            json!({
                "name": "s1-primary", "shard": "s1", "host": "127.0.0.1", "port": 7710,
                "role": "primary", "system_id": "1", "timeline": 1, "replay_lsn": "0/3000060",
                "lag_bytes": null, "seen_seconds_ago": 0.21, "error": null,
            }),
            json!({
                "name": "s1-replica1", "shard": "s1", "host": "127.0.0.1", "port": 7711,
                "role": "replica", "system_id": "1", "timeline": 1, "replay_lsn": "0/3000000",
                "lag_bytes": 20_480, "seen_seconds_ago": 4.0, "error": "connection refused",
            }),
            json!({"name": "s2-primary", "shard": "s2", "host": "127.0.0.1", "port": 7720}),
        ];
        insta::assert_snapshot!(Output::list(nodes, LIST).text);
    }
}
