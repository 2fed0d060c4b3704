//! `ringfence status`: shards, nodes, routers and workers on one screen.

use std::io::{Write, stdout};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::Answer;
use super::node::lag;
use crate::admin::Admin;
use crate::output::{Column, Format, Output, show};

/// Options of `ringfence status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it anew every second, until interrupted.
    #[arg(long)]
    watch: bool,
}

/// How often `--watch` looks.
const AGAIN: Duration = Duration::from_secs(1);

/// A node that workers have not seen for so long counts as down, in seconds:
/// several of their rounds.
const UNSEEN_MAX: f64 = 10.0;

/// From the top left corner, with what was there before cleared.
const CLEAR_SCREEN: &[u8] = b"\x1b[2J\x1b[H";

const SHARDS: &[Column] = &[
    ("shard", |s| show(&s["shard"])),
    ("region", |s| show(&s["region"])),
    ("tenants", |s| show(&s["tenants"])),
    ("primary", |s| show(&s["primary"])),
    ("timeline", |s| show(&s["timeline"])),
    ("replicas", |s| {
        format!("{} of {}", s["replicas_up"], s["replicas"])
    }),
    ("most lag", lag),
    ("status", |s| show(&s["status"])),
    ("why", |s| show(&s["why"])),
];

const NODES: &[Column] = &[
    ("node", |n| show(&n["name"])),
    ("shard", |n| show(&n["shard"])),
    ("role", |n| show(&n["role"])),
    ("timeline", |n| show(&n["timeline"])),
    ("replay lsn", |n| show(&n["replay_lsn"])),
    ("lag", lag),
    ("seen", ago),
    ("error", |n| show(&n["error"])),
];

const MEMBERS: &[Column] = &[
    ("", |m| show(&m["kind"])),
    ("name", |m| show(&m["name"])),
    ("region", |m| show(&m["region"])),
    ("address", |m| show(&m["admin_url"])),
    ("version", |m| show(&m["version"])),
    ("up for", |m| duration(&m["started_seconds_ago"])),
    ("seen", ago),
    ("status", |m| show(&m["status"])),
];

/// More nodes than this are too many for a screen: then only those in trouble
/// are listed.
const NODES_MAX: usize = 40;

/// A router or worker without a heartbeat for so long counts as lost, in
/// seconds: what other members wait (`tenancy::members`).
const SILENT_MAX: f64 = 6.0;

impl Status {
    pub(super) async fn run(self, admin: &Admin, format: Format) -> Answer {
        if !self.watch {
            return look(admin).await;
        }
        let mut output = look(admin).await?;
        loop {
            if format == Format::Table {
                // A terminal that went away ends the command at the next print.
                let _ = stdout().write_all(CLEAR_SCREEN);
            }
            output.print(format)?;
            tokio::time::sleep(AGAIN).await;
            // Who watches wants to see the end of what is wrong, too: what was seen
            // last stays, with the reason below.
            output = loop {
                match look(admin).await {
                    Ok(output) => break output,
                    Err(error) => eprintln!("not seen: {}", error.chain()),
                }
                tokio::time::sleep(AGAIN).await;
            };
        }
    }
}

async fn look(admin: &Admin) -> Answer {
    let mut shards = admin.get("/shards", &[]).await?;
    let mut nodes = admin.get("/nodes", &[]).await?;
    let mut members = admin.get("/members", &[]).await?;
    Ok(screen(
        &admin.items(&mut shards, "GET /shards")?,
        admin.items(&mut nodes, "GET /nodes")?,
        admin.items(&mut members, "GET /members")?,
    ))
}

fn screen(shards: &[Value], nodes: Vec<Value>, mut members: Vec<Value>) -> Output {
    let states: Vec<Value> = shards.iter().map(|shard| state(shard, &nodes)).collect();
    let well = states.iter().filter(|s| s["status"] == "ok").count();
    let note = format!("{well} of {} shards are ok", states.len());
    for member in &mut members {
        let seen = member["seen_seconds_ago"].as_f64();
        let alive = seen.is_some_and(|seconds| seconds <= SILENT_MAX);
        member["status"] = json!(if alive { "ok" } else { "lost" });
    }
    let of_kind = |kind| -> Vec<Value> {
        let own = members.iter().filter(|member| member["kind"] == kind);
        own.cloned().collect()
    };
    let json = json!({
        "shards": states,
        "nodes": nodes,
        "routers": of_kind("router"),
        "workers": of_kind("worker"),
    });
    let listed: Vec<Value> = match nodes.len() {
        0..=NODES_MAX => nodes,
        _ => nodes.into_iter().filter(|node| !is_up(node)).collect(),
    };
    let tables = [
        Output::list(states, SHARDS).text,
        Output::list(listed, NODES).text,
        Output::list(members, MEMBERS).text,
    ];
    Output {
        json,
        text: tables.join("\n"),
        note: Some(note),
        failed: None,
    }
}

/// How long ago something was seen.
fn ago(item: &Value) -> String {
    match item["seen_seconds_ago"].as_f64() {
        None => "never".into(),
        Some(seconds) => format!("{seconds:.1} s ago"),
    }
}

fn duration(seconds: &Value) -> String {
    match seconds.as_f64() {
        None => "-".into(),
        Some(seconds) if seconds < 120.0 => format!("{seconds:.0} s"),
        Some(seconds) if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        Some(seconds) if seconds < 172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        Some(seconds) => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// What a shard's nodes say of it: `ok`, `degraded` when a replica is missing,
/// or `down` when nothing takes its writes; with the reason.
fn state(shard: &Value, nodes: &[Value]) -> Value {
    let of_shard: Vec<&Value> = nodes.iter().filter(|n| n["shard"] == shard["id"]).collect();
    // A primary that came back stays on its old timeline: the newest one rules, also
    // while none that is up is on it.
    let newest = of_shard
        .iter()
        .filter(|n| n["role"] == "primary" && is_up(n))
        .max_by_key(|n| n["timeline"].as_u64());
    let replaced_at = newest.and_then(|node| {
        let of_server = of_shard
            .iter()
            .filter(|n| n["system_id"] == node["system_id"]);
        let seen = of_server.filter_map(|n| n["timeline"].as_u64()).max();
        seen.filter(|seen| Some(*seen) > node["timeline"].as_u64())
    });
    let primary = newest.filter(|_| replaced_at.is_none());
    let name = primary.map(|p| &p["name"]);
    let others = of_shard.iter().filter(|n| Some(&n["name"]) != name);
    let (up, missing): (Vec<&Value>, Vec<&Value>) = others.partition(|n| follows(n, primary));
    let (status, why) = match (primary, missing.first()) {
        (None, _) => match newest.zip(replaced_at) {
            Some((old, timeline)) => {
                let why = format!("{}, and {timeline} was seen", trouble(old));
                ("down", Some(why))
            }
            None => ("down", Some("no primary is seen".to_owned())),
        },
        (Some(_), Some(node)) => ("degraded", Some(trouble(node))),
        (Some(_), None) => ("ok", None),
    };
    json!({
        "shard": shard["id"],
        "region": shard["region"],
        "tenants": shard["tenants"],
        "primary": name,
        "timeline": primary.map(|p| &p["timeline"]),
        "replicas": up.len() + missing.len(),
        "replicas_up": up.len(),
        "lag_bytes": up.iter().filter_map(|n| n["lag_bytes"].as_u64()).max(),
        "status": status,
        "why": why,
    })
}

fn is_up(node: &Value) -> bool {
    let seen = node["seen_seconds_ago"].as_f64();
    node["error"].is_null() && seen.is_some_and(|seconds| seconds <= UNSEEN_MAX)
}

/// A replica that is up and on its primary's timeline.
fn follows(node: &Value, primary: Option<&&Value>) -> bool {
    let timeline = primary.map(|p| &p["timeline"]);
    is_up(node) && node["role"] == "replica" && timeline.is_none_or(|t| node["timeline"] == *t)
}

/// Why a node is no replica that follows.
fn trouble(node: &Value) -> String {
    let name = show(&node["name"]);
    match node["seen_seconds_ago"].as_f64() {
        _ if !node["error"].is_null() => format!("{name}: {}", show(&node["error"])),
        None => format!("{name}: never seen"),
        Some(seconds) if seconds > UNSEEN_MAX => format!("{name}: not seen for {seconds:.0} s"),
        Some(_) => format!(
            "{name}: {} on timeline {}",
            show(&node["role"]),
            show(&node["timeline"])
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: &str, timeline: u64) -> Value {
        json!({
            "name": name, "shard": &name[..2], "role": role, "timeline": timeline,
            "lag_bytes": (role == "replica").then_some(20_480),
            "seen_seconds_ago": 0.5, "error": null,
        })
    }

    /// A well shard, one whose old primary came back, one with a replica that
    /// does not answer, one without a primary, one never looked at, and one whose
    /// new primary is down while the old one came back.
    #[test]
    fn states() {
        let mut lost = node("s3-replica1", "replica", 1);
        lost["error"] = json!("connection refused");
        let mut gone = node("s4-primary", "primary", 1);
        gone["seen_seconds_ago"] = json!(60.0);
        let mut promoted = node("s6-replica1", "primary", 2);
        promoted["error"] = json!("connection refused");
        let nodes = [
            node("s1-primary", "primary", 1),
            node("s1-replica1", "replica", 1),
            node("s2-primary", "primary", 1),
            node("s2-replica1", "primary", 2),
            node("s3-primary", "primary", 1),
            lost,
            gone,
            node("s4-replica1", "replica", 1),
            json!({"name": "s5-primary", "shard": "s5"}),
            node("s6-primary", "primary", 1),
            promoted,
        ];
        let shards = ["s1", "s2", "s3", "s4", "s5", "s6"];
        let shards = shards.map(|id| json!({"id": id, "region": "local", "tenants": 7}));
        let member = |kind: &str, name: &str, seen: f64| {
            json!({
                "kind": kind, "name": name, "region": null, "admin_url": format!("http://{name}:7500"),
                "version": "0.1.0", "started_seconds_ago": 7_000.0, "seen_seconds_ago": seen,
            })
        };
        let members = [
            member("router", "router-1", 0.4),
            member("router", "router-2", 40.0),
            member("worker", "worker-1", 1.0),
        ];
        let screen = screen(&shards, nodes.to_vec(), members.to_vec());
        assert_eq!(screen.json["routers"][1]["status"], "lost");
        insta::assert_snapshot!(screen.text);
    }
}
