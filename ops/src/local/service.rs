//! Worker and routers: their binaries, configuration files and readiness.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::authority::Authority;
use super::folder::{Folder, write_private};
use super::layout::{Node, Role};
use super::postgres::dsn;
use super::process::{Identity, command};
use super::secrets::Secrets;
use super::{CONTROL_DATABASE, config, nginx, prometheus, redis};
use crate::error::{Error, Result, io};

/// A router is idle when it was seen so at so many looks, so far apart.
const QUIET: u32 = 5;
const LOOK: Duration = Duration::from_millis(50);
/// In the node's own folder, where it runs.
const PEER_CERTIFICATE: &str = "peer.pem";
const PEER_KEY: &str = "peer.key";
/// Longest wait for one look's answer.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// The command that serves a router or worker; writes its configuration.
pub(crate) fn serve(
    folder: &Folder,
    node: &Node,
    control: &Node,
    told: &config::RouterOptions,
    tls: Option<&Authority>,
    secrets: &Secrets,
) -> Result<Command> {
    let dir = folder.node(&node.name);
    fs::create_dir_all(&dir).map_err(io(format!("make {}", dir.display())))?;
    let tls = tls
        .map(|authority| peer(&dir, node, authority))
        .transpose()?;
    let owner_dsn = || {
        dsn(
            "ringfence_owner",
            secrets.owner(),
            control,
            CONTROL_DATABASE,
        )
    };
    let router_dsn = || {
        dsn(
            "ringfence_router",
            secrets.router(),
            control,
            CONTROL_DATABASE,
        )
    };
    let (program, text) = match node.role {
        Role::Router { admin_port } => (
            "ringfence-router",
            config::router(
                &node.name,
                node.own_port,
                admin_port,
                router_dsn(),
                told,
                tls.as_ref(),
                secrets,
            ),
        ),
        Role::Worker { stream_port } => (
            "ringfence-worker",
            config::worker(node, owner_dsn(), stream_port, tls.as_ref(), secrets),
        ),
        _ => return Err(Error::Usage(format!("{} is no service of ours", node.name))),
    };
    let text = text.map_err(|e| Error::Usage(format!("{}: {e}", node.name)))?;
    let path = dir.join("config.toml");
    write_private(&path, &text).map_err(io(format!("write {}", path.display())))?;
    let mut service = command(&Identity::Own, &find(program)?, &dir);
    // What the caller's shell has sourced is another cluster's.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("RINGFENCE_") && name_text != "RINGFENCE_LOG" {
            service.env_remove(name);
        }
    }
    service.arg("--config").arg(path);
    Ok(service)
}

/// What a router or worker shows the others, newly issued.
fn peer(dir: &Path, node: &Node, authority: &Authority) -> Result<config::Peer> {
    let name = match node.role {
        Role::Router { .. } => "ringfence-router",
        _ => "ringfence-worker",
    };
    let (certificate, key) = authority.issue(name)?;
    for (file, text) in [(PEER_CERTIFICATE, certificate), (PEER_KEY, key)] {
        let path = dir.join(file);
        write_private(&path, &text).map_err(io(format!("write {}", path.display())))?;
    }
    Ok(config::Peer {
        ca_file: authority.file().to_owned(),
        cert_file: PEER_CERTIFICATE,
        key_file: PEER_KEY,
    })
}

/// Makes sure that a node's program is there, if it is one of ours.
pub(crate) fn require(node: &Node) -> Result<()> {
    match node.role {
        Role::Redis { .. } => return redis::require(),
        Role::Nginx { .. } => return nginx::require(),
        Role::Prometheus => return prometheus::require(),
        _ => {}
    }
    match program(&node.role) {
        Some(program) => find(program).map(drop),
        None => Ok(()),
    }
}

fn program(role: &Role) -> Option<&'static str> {
    match role {
        Role::Control
        | Role::Primary { .. }
        | Role::Replica { .. }
        | Role::Redis { .. }
        | Role::Nginx { .. }
        | Role::Prometheus => None,
        Role::Worker { .. } => Some("ringfence-worker"),
        Role::Router { .. } => Some("ringfence-router"),
    }
}

/// Where a node that speaks HTTP says that it is ready.
pub(crate) fn ready_url(node: &Node) -> String {
    match node.role {
        Role::Router { admin_port } => format!("http://127.0.0.1:{admin_port}/ready"),
        Role::Nginx { http_port } => format!("http://127.0.0.1:{http_port}/nginx/live"),
        Role::Prometheus => format!("http://127.0.0.1:{}/-/ready", node.own_port),
        _ => format!("http://127.0.0.1:{}/ready", node.own_port),
    }
}

/// Asks nodes. To make one takes longer than most answers.
pub(crate) fn client() -> Result<reqwest::Client> {
    let client = reqwest::Client::builder().no_proxy();
    let client = client.pool_max_idle_per_host(0).build();
    client.map_err(|error| Error::Usage(format!("no HTTP client can be made: {error}")))
}

/// Waits until a router has had no request in flight for a moment.
pub(crate) async fn idle(client: &reqwest::Client, admin_port: u16, within: Duration) {
    let deadline = Instant::now() + within;
    let url = format!("http://127.0.0.1:{admin_port}/metrics");
    let in_flight = || async {
        let text = client.get(&url).timeout(LOOK_MAX).send().await.ok()?;
        let text = text.text().await.ok()?;
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix("ringfence_requests_in_flight "));
        line?.parse::<f64>().ok()
    };
    // A request that was on its way when the router was left out has arrived.
    let mut quiet = 0;
    while quiet < QUIET && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        quiet = match in_flight().await {
            Some(0.0) => quiet + 1,
            _ => 0,
        };
    }
}

/// A program of this workspace: in `RINGFENCE_BIN_DIR`, beside the running
/// one, or, for tests in `target/release/deps`, one folder up.
fn find(program: &str) -> Result<PathBuf> {
    let named = std::env::var_os("RINGFENCE_BIN_DIR").map(PathBuf::from);
    let own = std::env::current_exe().unwrap_or_default();
    let dirs = [
        named.as_deref(),
        own.parent(),
        own.parent().and_then(Path::parent),
    ];
    dirs.into_iter()
        .flatten()
        .map(|dir| dir.join(program))
        .find(|path| path.exists())
        .ok_or_else(|| Error::Missing {
            what: program.to_owned(),
            advice: "build it (cargo build --release --workspace), or name its folder in \
                     RINGFENCE_BIN_DIR"
                .into(),
        })
}
