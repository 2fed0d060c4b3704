//! Nginx before the routers, from the files in `ops/nginx`, which are the ones
//! that production uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::authority::Authority;
use super::folder::{Folder, write_private};
use super::layout::{Node, Role};
use super::process::{self, Identity, POLL, command, on_path};
use crate::error::{Error, Result, io};

const CONF: &str = include_str!("../../nginx/nginx.conf");
/// Longest wait until all goes by a new configuration.
const RELOAD_MAX: Duration = Duration::from_secs(5);

/// How Nginx chooses a router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Balance {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastConn,
    /// One for each client address.
    IpHash,
    /// One for each tenant.
    TenantHash,
}

impl Balance {
    fn template(self) -> &'static str {
        match self {
            Self::RoundRobin => include_str!("../../nginx/balance/round-robin.conf"),
            Self::LeastConn => include_str!("../../nginx/balance/least-conn.conf"),
            Self::IpHash => include_str!("../../nginx/balance/ip-hash.conf"),
            Self::TenantHash => include_str!("../../nginx/balance/tenant-hash.conf"),
        }
    }

    /// Whether Nginx takes servers that have requests only while all others fail.
    fn has_backups(self) -> bool {
        match self {
            Self::RoundRobin | Self::LeastConn => true,
            Self::IpHash | Self::TenantHash => false,
        }
    }
}

/// Which tenants go to which routers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Routers of the new release.
    pub(crate) canary: BTreeSet<String>,
    /// Tenants of a hundred that go there.
    pub(crate) percent: u8,
}

/// Makes sure that it is installed.
pub(crate) fn require() -> Result<()> {
    program().map(drop)
}

/// Where it is: not on everybody's PATH.
fn program() -> Result<PathBuf> {
    on_path("nginx", Some(Path::new("/usr/sbin"))).ok_or_else(|| Error::Missing {
        what: "nginx".into(),
        advice: "install it (on Debian 12: ./ops/up --nginx does, or apt-get install nginx)".into(),
    })
}

/// The command that serves the node; writes its configuration.
pub(crate) fn serve(
    folder: &Folder,
    node: &Node,
    routers: &BTreeMap<String, u16>,
    balance: Balance,
    traffic: &Traffic,
) -> Result<Command> {
    let Role::Nginx { http_port } = node.role else {
        return Err(Error::Usage(format!("{} is no Nginx", node.name)));
    };
    let dir = folder.node(&node.name);
    fs::create_dir_all(dir.join("site"))
        .and_then(|()| fs::create_dir_all(dir.join("tmp")))
        .and_then(|()| fs::create_dir_all(dir.join("out")))
        .and_then(|()| write_private(&dir.join("nginx.conf"), CONF))
        .map_err(io(format!("write {}", dir.display())))?;
    for name in routers.keys() {
        let _ = fs::remove_file(out_file(folder, node, name));
    }
    certify(&dir)?;
    // Debian's Nginx closes idle connections the moment it is reloaded, also those on
    // which a request is on its way (`keepalive_min_timeout` came with 1.27.4): none
    // is kept.
    let listen = format!(
        "listen 127.0.0.1:{} ssl http2 backlog=4096;\nlisten 127.0.0.1:{http_port} backlog=4096;\n\
         ssl_certificate site/server.pem;\nssl_certificate_key site/server.key;\n\
         access_log access.log replay;\nkeepalive_timeout 0;\n",
        node.port
    );
    let mut out = String::from("set $ringfence_routers $ringfence_release;\n");
    for name in routers.keys() {
        let file = out_file(folder, node, name);
        let _ = writeln!(
            out,
            "if (-f {}) {{ set $ringfence_routers ${{ringfence_release}}_without_{name}; }}",
            file.display()
        );
    }
    let site = dir.join("site");
    write_private(&site.join("listen.conf"), &listen)
        .and_then(|()| write_private(&site.join("out.conf"), &out))
        .and_then(|()| write_private(&site.join("resolver.conf"), "# Routers have addresses.\n"))
        .map_err(io(format!("write {}", site.display())))?;
    direct(folder, node, routers, balance, traffic)?;
    let mut server = command(&Identity::Own, &program()?, &dir);
    // Its workers must be able to read the folder, as root can.
    let user = match rustix::process::geteuid().is_root() {
        true => "user root;",
        false => "",
    };
    server
        .arg("-p")
        .arg(&dir)
        .arg("-c")
        .arg(dir.join("nginx.conf"))
        .args(["-g", &format!("daemon off; {user}")]);
    Ok(server)
}

/// Writes who gets which tenants; Nginx reads it when it starts or is told to.
pub(crate) fn direct(
    folder: &Folder,
    node: &Node,
    routers: &BTreeMap<String, u16>,
    balance: Balance,
    traffic: &Traffic,
) -> Result<()> {
    let site = folder.node(&node.name).join("site");
    write_private(
        &site.join("routers.conf"),
        &upstreams(routers, balance, traffic),
    )
    .and_then(|()| write_private(&site.join("release.conf"), &release(traffic.percent)))
    .map_err(io(format!("write {}", site.display())))
}

/// Has a running Nginx read its configuration again. Former workers end what they have
/// begun by the old one, and are waited for, [`RELOAD_MAX`] at most: some answers are long.
pub(crate) async fn reload(master: u32) {
    let former = process::children(master);
    process::signal(master, Signal::HUP);
    let deadline = Instant::now() + RELOAD_MAX;
    let is_former = |worker: &u32| former.contains(worker);
    while process::children(master).iter().any(is_former) && Instant::now() < deadline {
        sleep(POLL).await;
    }
}

/// While this file is there, the router gets no requests.
pub(crate) fn out_file(folder: &Folder, node: &Node, router: &str) -> PathBuf {
    folder.node(&node.name).join("out").join(router)
}

/// An authority of its own each time; its certificate is beside the server's.
fn certify(dir: &Path) -> Result<()> {
    let authority = Authority::new(&dir.join("ca.pem"))?;
    let (certificate, key) = authority.issue("127.0.0.1")?;
    let site = dir.join("site");
    write_private(&site.join("server.pem"), &certificate)
        .and_then(|()| write_private(&site.join("server.key"), &key))
        .map_err(io(format!("write {}", site.display())))
}

/// The upstreams of both releases, whole and without each router. Nginx refuses
/// one without any server.
fn upstreams(routers: &BTreeMap<String, u16>, balance: Balance, traffic: &Traffic) -> String {
    let mut text = String::new();
    for (release, of_canary) in [("stable", false), ("canary", true)] {
        let members: Vec<_> = routers
            .iter()
            .filter(|(name, _)| traffic.canary.contains(*name) == of_canary)
            .collect();
        let members: Vec<_> = match members.is_empty() {
            true => routers.iter().collect(),
            false => members,
        };
        let mut upstream = |name: &str, without: Option<&str>| {
            let others = |all: &[(&String, &u16)]| -> Vec<u16> {
                let left = all
                    .iter()
                    .filter(|(router, _)| Some(router.as_str()) != without);
                left.map(|(_, port)| **port).collect()
            };
            // Where a release has no other router, the other release's serve its
            // tenants for as long; where there is none at all, itself.
            let all: Vec<_> = routers.iter().collect();
            let left = [
                others(&members),
                others(&all),
                all.iter().map(|(_, port)| **port).collect(),
            ];
            let left = left
                .into_iter()
                .find(|left| !left.is_empty())
                .unwrap_or_default();
            // Should all of a release fail, the other one serves its tenants.
            let mut backups = others(&all);
            backups.retain(|port| balance.has_backups() && !left.contains(port));
            let server = |kind: &'static str| {
                move |port: &u16| {
                    format!("  server 127.0.0.1:{port} max_fails=2 fail_timeout=5s{kind};")
                }
            };
            let own = left.iter().map(server(""));
            let servers: Vec<String> = own.chain(backups.iter().map(server(" backup"))).collect();
            let block = balance.template().replace("@NAME@", name);
            text.push_str(&block.replace("@SERVERS@", &servers.join("\n")));
        };
        upstream(release, None);
        for name in routers.keys() {
            upstream(&format!("{release}_without_{name}"), Some(name));
        }
    }
    text
}

/// The same tenants whenever the same share is asked for.
fn release(percent: u8) -> String {
    match percent {
        0 => "map $ringfence_tenant $ringfence_release { default stable; }\n".into(),
        100.. => "map $ringfence_tenant $ringfence_release { default canary; }\n".into(),
        _ => format!(
            "split_clients $ringfence_tenant $ringfence_release {{\n  {percent}% canary;\n  * stable;\n}}\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routers() -> BTreeMap<String, u16> {
        BTreeMap::from([("router-1".into(), 7400), ("router-2".into(), 7401)])
    }

    #[test]
    fn every_release_has_its_routers_and_one_less_of_each() {
        let traffic = Traffic {
            canary: BTreeSet::from(["router-2".into()]),
            percent: 10,
        };
        let text = upstreams(&routers(), Balance::LeastConn, &traffic);
        let blocks: Vec<(String, usize, usize)> = text
            .split("upstream ")
            .skip(1)
            .map(|block| {
                let name = block.split_whitespace().next().unwrap();
                let backups = block.matches(" backup;").count();
                let own = block.matches("server 127").count() - backups;
                (name.to_owned(), own, backups)
            })
            .collect();
        // Without its only router a release is served by the other's, as it is when
        // that one fails.
        let expected = [
            ("stable", 1, 1),
            ("stable_without_router-1", 1, 0),
            ("stable_without_router-2", 1, 0),
            ("canary", 1, 1),
            ("canary_without_router-1", 1, 0),
            ("canary_without_router-2", 1, 0),
        ];
        let expected = expected.map(|(name, own, backups)| (name.to_owned(), own, backups));
        assert_eq!(blocks, expected);
        assert!(text.contains("least_conn;"));
        let both = upstreams(&routers(), Balance::RoundRobin, &Traffic::default());
        assert_eq!(both.matches("7400 ").count(), 4);
        // Nginx has none where it hashes.
        let hashed = upstreams(&routers(), Balance::TenantHash, &traffic);
        assert!(!both.contains("backup") && !hashed.contains("backup"));
    }

    #[test]
    fn a_share_of_the_tenants_is_split_off() {
        assert!(release(0).contains("default stable"));
        assert!(release(10).contains("10% canary"));
        assert!(release(100).contains("default canary"));
    }
}
