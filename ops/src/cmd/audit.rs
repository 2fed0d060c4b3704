//! `ringfence audit`.

use clap::Args;
use serde_json::Value;

use super::Answer;
use crate::admin::Admin;
use crate::output::{Column, Output, show};

/// Which lines of the audit log.
#[derive(Debug, Args)]
pub struct Audit {
    /// Only what was done to this, such as a tenant's slug.
    #[arg(long)]
    object: Option<String>,
    /// Only actions that begin so, such as `tenant.` or `refused`.
    #[arg(long)]
    action: Option<String>,
    /// Only lines before this number.
    #[arg(long, value_name = "ID")]
    before: Option<u64>,
    /// At most so many.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

const LIST: &[Column] = &[
    ("id", |a| show(&a["id"])),
    ("at", |a| show(&a["at"])),
    ("actor", |a| show(&a["actor"])),
    ("action", |a| show(&a["action"])),
    ("object", |a| show(&a["object"])),
    ("result", |a| show(&a["result"])),
    ("changed", changed),
];

impl Audit {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        let (limit, before) = (self.limit.to_string(), self.before.map(|id| id.to_string()));
        let mut query = vec![("limit", limit.as_str())];
        query.extend(self.object.as_deref().map(|object| ("object", object)));
        query.extend(self.action.as_deref().map(|action| ("action", action)));
        query.extend(before.as_deref().map(|id| ("before", id)));
        let mut log = admin.get("/audit", &query).await?;
        let items = admin.items(&mut log, "GET /audit")?;
        Ok(Output::list(items, LIST))
    }
}

/// Properties that differ between before and after.
fn changed(line: &Value) -> String {
    let (before, after) = (&line["before"], &line["after"]);
    let (Some(was), Some(is)) = (before.as_object(), after.as_object()) else {
        return String::new();
    };
    let differ = is
        .iter()
        .filter(|(name, value)| was.get(*name) != Some(*value));
    let told = differ.map(|(name, value)| {
        let was = was.get(name).map(show).unwrap_or_default();
        format!("{name}: {was} -> {}", show(value))
    });
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_what_changed() {
        let line = json!({
            "id": 7, "at": "2026-01-02T03:04:05.678Z", "actor": "admin", "action": "tenant.suspend",
            "object": "acme", "result": "done",
            "before": { "slug": "acme", "state": "active" },
            "after": { "slug": "acme", "state": "suspended" },
        });
        insta::assert_snapshot!(Output::list(vec![line], LIST).text, @r"
        ID  AT                        ACTOR  ACTION          OBJECT  RESULT  CHANGED
        7   2026-01-02T03:04:05.678Z  admin  tenant.suspend  acme    done    state: active -> suspended
        ");
    }
}
