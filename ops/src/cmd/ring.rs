//! `ringfence ring`.

use clap::Subcommand;
use serde_json::Value;

use super::Answer;
use crate::admin::Admin;
use crate::output::{Column, Output, show};

/// What can be done with the ring.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show each shard's share of its region's ring, and the tenants it has.
    Show,
}

const LIST: &[Column] = &[
    ("region", |m| show(&m["region"])),
    ("shard", |m| show(&m["shard"])),
    ("weight", |m| show(&m["weight"])),
    ("share", share),
    ("tenants", |m| show(&m["tenants"])),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        match self {
            Self::Show => {
                let mut page = admin.get("/ring", &[]).await?;
                Ok(Output::list(admin.items(&mut page, "GET /ring")?, LIST))
            }
        }
    }
}

fn share(member: &Value) -> String {
    match member["share"].as_f64() {
        Some(share) => format!("{:.1} %", share * 100.0),
        None => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn show() {
        let members = vec![
            json!({"region": "local", "shard": "s1", "weight": 1.0, "share": 0.25, "tenants": 1}),
            json!({"region": "local", "shard": "s2", "weight": 3.0, "share": 0.75, "tenants": 2}),
        ];
        insta::assert_snapshot!(Output::list(members, LIST).text, @r"
        REGION  SHARD  WEIGHT  SHARE   TENANTS
        local   s1     1.0     25.0 %  1
        local   s2     3.0     75.0 %  2
        ");
    }
}
