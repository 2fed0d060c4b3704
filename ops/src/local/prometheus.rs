//! Prometheus, with the rules that production uses.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::folder::{Folder, write_private};
use super::layout::Node;
use super::process::{Identity, command, on_path};
use crate::error::{Error, Result, io};

const CONF: &str = include_str!("../../prometheus/prometheus.yml");
const RULES: [(&str, &str); 2] = [
    (
        "recording.yml",
        include_str!("../../prometheus/recording.yml"),
    ),
    ("alerts.yml", include_str!("../../prometheus/alerts.yml")),
];

/// Makes sure that it is installed.
pub(crate) fn require() -> Result<()> {
    let found = on_path("prometheus", None);
    found.map(drop).ok_or_else(|| Error::Missing {
        what: "prometheus".into(),
        advice:
            "install it (on Debian 12: ./ops/up --prometheus does, or apt-get install prometheus)"
                .into(),
    })
}

/// The command that serves the node; writes its configuration. `routers` and
/// `workers` are the addresses of their metrics.
pub(crate) fn serve(
    folder: &Folder,
    node: &Node,
    routers: &[String],
    workers: &[String],
) -> Result<Command> {
    let dir = folder.node(&node.name);
    let write = |path: &Path, text: &str| write_private(path, text);
    let targets = |job: &str, addresses: &[String]| {
        let list = json!([{ "targets": addresses, "labels": { "job": job } }]);
        write(
            &dir.join("targets").join(format!("{job}.json")),
            &list.to_string(),
        )
    };
    // A laptop's graphs should move at once.
    let conf = CONF
        .replace("scrape_interval: 15s", "scrape_interval: 1s")
        .replace("evaluation_interval: 15s", "evaluation_interval: 1s")
        .replace("scrape_timeout: 10s", "scrape_timeout: 1s");
    fs::create_dir_all(dir.join("targets"))
        .and_then(|()| fs::create_dir_all(dir.join("rules")))
        .and_then(|()| write(&dir.join("prometheus.yml"), &conf))
        .and_then(|()| {
            RULES
                .iter()
                .try_for_each(|(name, text)| write(&dir.join("rules").join(name), text))
        })
        .and_then(|()| targets("router", routers))
        .and_then(|()| targets("worker", workers))
        .map_err(io(format!("write {}", dir.display())))?;
    let mut server = command(&Identity::Own, "prometheus".as_ref(), &dir);
    server
        .arg("--config.file=prometheus.yml")
        .arg("--storage.tsdb.path=data")
        .arg("--storage.tsdb.retention.time=2d")
        .arg("--storage.tsdb.retention.size=512MB")
        .arg(format!("--web.listen-address=127.0.0.1:{}", node.port));
    Ok(server)
}
