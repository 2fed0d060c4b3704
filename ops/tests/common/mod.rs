//! The command line, as a program sees it.

use std::process::{Command, Output};

use ops::local::Cluster;
use serde_json::Value;

/// `ringfence`, towards this cluster; it asks nothing and answers in JSON.
pub(crate) fn ringfence(cluster: &Cluster, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(args)
        .args(["--no-input", "--output", "json"])
        .env("RINGFENCE_ADMIN_URL", cluster.admin_url())
        .env("RINGFENCE_ADMIN_TOKEN", cluster.admin_token())
        .output()
        .unwrap()
}

/// What it answered, where it must not fail.
pub(crate) fn done(cluster: &Cluster, args: &[&str]) -> Value {
    let output = ringfence(cluster, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}
