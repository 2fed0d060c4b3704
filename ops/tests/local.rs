//! `ringfence local` as a person uses it: up, failures, down, and up again.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A data folder of its own; what runs from it ends with it.
struct Folder {
    path: PathBuf,
    port_base: u16,
}

impl Folder {
    fn new() -> Self {
        let name = uuid::Uuid::new_v4();
        Self {
            path: std::env::temp_dir().join(format!("ringfence-{}", name.simple())),
            port_base: port_base(name.as_u128()),
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .arg("local")
            .args(args)
            .arg("--data-dir")
            .arg(&self.path)
            .output()
            .unwrap()
    }

    fn up(&self, args: &[&str]) -> Output {
        let base = self.port_base.to_string();
        let common = ["up", "--detach", "--no-fsync", "--port-base", &base];
        self.run(&[&common, args].concat())
    }

    /// States of the nodes, by name.
    fn states(&self) -> Vec<(String, String)> {
        let output = self.run(&["status", "--output", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let nodes = status.as_array().or(status["items"].as_array());
        let nodes = nodes.or(status["nodes"].as_array()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let states = nodes.iter().map(|n| (text(&n["name"]), text(&n["state"])));
        states.collect()
    }

    fn state(&self, node: &str) -> String {
        let states = self.states();
        states.into_iter().find(|(name, _)| name == node).unwrap().1
    }

    fn env(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path.join("local.env")).unwrap();
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.run(&["down"]);
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A base of which the first ports are free.
fn port_base(seed: u128) -> u16 {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (0..100)
        .map(|n| 2_000 + 500 * u16::try_from((seed + n) % 18).unwrap())
        .find(|base| [0, 100, 200, 300, 310].iter().all(|n| free(base + n)))
        .unwrap()
}

fn succeeded(output: &Output) {
    let out = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{out}\n{errors}");
}

/// Exit code and message.
fn refused(output: &Output) -> (i32, String) {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), out + &errors)
}

#[test]
fn up_breaks_recovers_and_comes_back_with_its_data() {
    let folder = Folder::new();
    let small = ["--shards", "1", "--replicas", "0", "--routers", "1"];
    succeeded(&folder.up(&small));
    assert!(folder.states().iter().all(|(_, state)| state == "up"));
    let key = folder.env("RINGFENCE_KEY_ACME").unwrap();
    assert!(key.starts_with("rf_"));

    let (code, message) = refused(&folder.up(&[]));
    assert_eq!(code, 1);
    assert!(message.contains("already running"), "{message}");

    succeeded(&folder.run(&["kill", "router-1"]));
    assert_eq!(folder.state("router-1"), "down");
    succeeded(&folder.run(&["start", "router-1"]));
    assert_eq!(folder.state("router-1"), "up");
    succeeded(&folder.run(&["stop", "s1-primary"]));
    assert_eq!(folder.state("s1-primary"), "stopped");
    succeeded(&folder.run(&["cont", "s1-primary"]));
    assert_eq!(folder.state("s1-primary"), "up");
    assert_eq!(refused(&folder.run(&["kill", "s9-primary"])).0, 3);
    let logs = folder.run(&["logs", "s1-primary"]);
    let log = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(log.contains("ready to accept connections"), "{log}");

    succeeded(&folder.run(&["down"]));
    assert_eq!(refused(&folder.run(&["status"])).0, 4);
    succeeded(&folder.run(&["down"]));

    // Another program took a port meanwhile.
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, folder.port_base + 310)).unwrap();
    let (code, message) = refused(&folder.up(&[]));
    assert_eq!(code, 1);
    assert!(message.contains("s1-primary is in use"), "{message}");
    drop(other);

    // As before, without saying so again: control database, primary, router,
    // worker, and the six nodes of Redis Cluster.
    succeeded(&folder.up(&[]));
    assert_eq!(folder.states().len(), 10);
    assert_eq!(folder.env("RINGFENCE_KEY_ACME"), Some(key));
}
