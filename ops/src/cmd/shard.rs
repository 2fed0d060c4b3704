//! `ringfence shard`.

use std::str::FromStr;

use clap::Subcommand;
use serde_json::{Value, json};

use super::Answer;
use crate::admin::{Admin, segment};
use crate::error::Error;
use crate::output::{Column, Output, show};

/// What can be done with shards.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List shards.
    List,
    /// Prepare a shard's Postgres and put it on its region's ring.
    Add {
        /// Its name, such as s4.
        id: String,
        /// One of its servers; once for each. Which of them is the primary is observed.
        #[arg(long = "node", value_name = "NAME=HOST:PORT", required = true)]
        nodes: Vec<Node>,
        /// Its region [default: the deployment's].
        #[arg(long)]
        region: Option<String>,
        /// Its share of new tenants, against 1 of an ordinary shard.
        #[arg(long)]
        weight: Option<f64>,
    },
    /// Take a shard off the ring: new tenants go elsewhere. A plan of policy drain empties it.
    Drain {
        /// Its name.
        id: String,
    },
    /// Forget an empty shard; its servers are left as they are.
    Remove {
        /// Its name.
        id: String,
        /// The same once more.
        #[arg(long, value_name = "SHARD")]
        confirm: String,
    },
}

/// A Postgres server, as `NAME=HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    name: String,
    host: String,
    port: u16,
}

impl FromStr for Node {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not of the form NAME=HOST:PORT");
        let (name, address) = text.split_once('=').ok_or_else(wrong)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        // An IPv6 address is written in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if name.is_empty() || host.is_empty() {
            return Err(wrong());
        }
        let port = port.parse().map_err(|_| wrong())?;
        Ok(Self {
            name: name.into(),
            host: host.into(),
            port,
        })
    }
}

const LIST: &[Column] = &[
    ("shard", |s| show(&s["id"])),
    ("region", |s| show(&s["region"])),
    ("weight", |s| show(&s["weight"])),
    ("state", |s| show(&s["state"])),
    ("tenants", |s| show(&s["tenants"])),
    ("nodes", nodes),
];

impl Command {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        match self {
            Self::List => {
                let mut page = admin.get("/shards", &[]).await?;
                Ok(Output::list(admin.items(&mut page, "GET /shards")?, LIST))
            }
            Self::Add {
                id,
                nodes,
                region,
                weight,
            } => {
                let nodes: Vec<Value> = nodes
                    .into_iter()
                    .map(|n| json!({"name": n.name, "host": n.host, "port": n.port}))
                    .collect();
                let body = json!({"id": id, "region": region, "weight": weight, "nodes": nodes});
                let shard = admin.post("/shards", &body).await?;
                Ok(Output::list(vec![shard.clone()], LIST).with_json(shard))
            }
            Self::Drain { id } => {
                let path = format!("/shards/{}/drain", segment(&id));
                let shard = admin.post(&path, &json!({})).await?;
                let next = format!("Next: ringfence rebalance plan --policy drain --shard {id}");
                Ok(Output::list(vec![shard.clone()], LIST)
                    .with_json(shard)
                    .note(next))
            }
            Self::Remove { id, confirm } => {
                if confirm != id {
                    return Err(Error::Usage(format!(
                        "to remove shard {id}, say --confirm {id}"
                    )));
                }
                let path = format!("/shards/{}", segment(&id));
                let gone = admin.delete(&path, &[]).await?;
                Ok(Output::list(Vec::new(), LIST).with_json(gone))
            }
        }
    }
}

/// Names of a shard's nodes, the primary first, marked.
fn nodes(shard: &Value) -> String {
    let nodes = shard["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let primary = |node: &&Value| node["role"] == "primary";
    let marked = nodes
        .iter()
        .filter(primary)
        .map(|n| format!("{}*", show(&n["name"])));
    let others = nodes
        .iter()
        .filter(|n| !primary(n))
        .map(|n| show(&n["name"]));
    marked.chain(others).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_parsed() {
        let node: Node = "s4-primary=db.example:5432".parse().unwrap();
        assert_eq!((node.host.as_str(), node.port), ("db.example", 5432));
        let node: Node = "a=[::1]:5432".parse().unwrap();
        assert_eq!(node.host, "::1");
        for bad in ["", "a", "a=b", "a=:1", "=b:1", "a=b:x", "a=b:70000"] {
            assert!(bad.parse::<Node>().is_err(), "{bad}");
        }
    }

    #[test]
    fn list() {
        let shard = json!({
            "id": "s1", "region": "local", "weight": 1.0, "state": "active", "tenants": 3,
            "nodes": [{"name": "s1-replica1", "role": "replica"}, {"name": "s1-primary", "role": "primary"}],
        });
        insta::assert_snapshot!(Output::list(vec![shard], LIST).text, @r"
        SHARD  REGION  WEIGHT  STATE   TENANTS  NODES
        s1     local   1.0     active  3        s1-primary* s1-replica1
        ");
    }
}
