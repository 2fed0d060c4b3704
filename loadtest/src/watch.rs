//! Notices moves and failovers while a run goes, by asking the admin API, and
//! marks them in the report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::admin::AdminClient;
use crate::environment::Admin;
use crate::exposition::Exposition;

const PERIOD: Duration = Duration::from_millis(500);
/// Of so many tenants moves are noticed, the most frequent first.
const TENANTS: usize = 20;

/// Watches until it is dropped. What the API does not tell is not marked.
pub async fn watch(admin: Admin, tenants: Vec<String>, exposition: Arc<Exposition>) {
    let Ok(mut client) = AdminClient::new(&admin) else {
        return;
    };
    let mut seen = Seen::default();
    loop {
        if let Ok(nodes) = client.nodes().await {
            seen.nodes(&nodes)
                .iter()
                .for_each(|text| exposition.mark(text));
        }
        for slug in tenants.iter().take(TENANTS) {
            if let Ok(tenant) = client.tenant(slug).await {
                seen.tenant(slug, &tenant)
                    .iter()
                    .for_each(|text| exposition.mark(text));
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// What was seen last; nothing is a change the first time.
#[derive(Debug, Default)]
struct Seen {
    /// The primary's name and timeline, by shard.
    primaries: BTreeMap<String, (String, String)>,
    /// Shard, epoch and state, by tenant.
    tenants: BTreeMap<String, (String, String, String)>,
}

impl Seen {
    fn nodes(&mut self, nodes: &[Value]) -> Vec<String> {
        let mut changes = Vec::new();
        for node in nodes.iter().filter(|node| text(&node["role"]) == "primary") {
            let (shard, name) = (text(&node["shard"]), text(&node["name"]));
            let now = (name.clone(), text(&node["timeline"]));
            match self.primaries.insert(shard.clone(), now.clone()) {
                Some(before) if before.0 != now.0 => {
                    changes.push(format!("{shard}: {name} is primary now, not {}", before.0))
                }
                Some(before) if before.1 != now.1 => {
                    changes.push(format!("{shard}: timeline {} begins", now.1))
                }
                Some(_) | None => {}
            }
        }
        changes
    }

    fn tenant(&mut self, slug: &str, tenant: &Value) -> Vec<String> {
        let now = (
            text(&tenant["shard"]),
            text(&tenant["epoch"]),
            text(&tenant["state"]),
        );
        let mut changes = Vec::new();
        if let Some(before) = self.tenants.insert(slug.to_owned(), now.clone()) {
            if before.0 != now.0 {
                changes.push(format!(
                    "{slug} moved from {} to {} (epoch {})",
                    before.0, now.0, now.1
                ));
            } else if before.1 != now.1 {
                changes.push(format!("{slug} is at epoch {}", now.1));
            }
            if before.2 != now.2 {
                changes.push(format!("{slug} is {}", now.2));
            }
        }
        changes
    }
}

/// A scalar as text; empty for anything else.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(
        || value.as_i64().map_or_else(String::new, |n| n.to_string()),
        str::to_owned,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_are_told_once() {
        let mut seen = Seen::default();
        let nodes = |primary: &str, timeline: i64| {
            vec![
                json!({ "shard": "s1", "name": primary, "role": "primary", "timeline": timeline }),
                json!({ "shard": "s1", "name": "other", "role": "replica", "timeline": timeline }),
            ]
        };
        assert!(seen.nodes(&nodes("s1-primary", 1)).is_empty());
        assert_eq!(
            seen.nodes(&nodes("s1-replica1", 2)),
            ["s1: s1-replica1 is primary now, not s1-primary"]
        );
        assert!(seen.nodes(&nodes("s1-replica1", 2)).is_empty());
        let tenant =
            |shard: &str, epoch: i64| json!({ "shard": shard, "epoch": epoch, "state": "active" });
        assert!(seen.tenant("acme", &tenant("s1", 1)).is_empty());
        assert_eq!(
            seen.tenant("acme", &tenant("s2", 2)),
            ["acme moved from s1 to s2 (epoch 2)"]
        );
    }
}
