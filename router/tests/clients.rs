//! The official clients, unmodified, on a started cluster; and what happens to
//! their requests while a shard's schema changes.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ops::local::{Cluster, Options};
use tokio_postgres::NoTls;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

async fn cluster() -> Cluster {
    let options = Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        ..Options::default()
    };
    Cluster::start(options).await.unwrap()
}

/// Runs a client's story to its end.
fn tell(cluster: &Cluster, program: &Path, story: &str) {
    let told = Command::new(program)
        .arg(story)
        .current_dir(FOLDER)
        .env("RINGFENCE_URL", cluster.router_url(0))
        .env("RINGFENCE_KEY", cluster.key("acme").unwrap())
        .env("OTHER_KEY", cluster.key("globex").unwrap())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let (said, complained) = (
        String::from_utf8_lossy(&told.stdout),
        String::from_utf8_lossy(&told.stderr),
    );
    assert!(told.status.success(), "{story}\n{said}{complained}");
    assert!(said.contains("went well"), "{story}\n{said}{complained}");
}

/// What `install_clients` of ops/install.sh puts into place.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(FOLDER).join(path);
    assert!(
        path.exists(),
        "{} is missing: run ./ops/test once, or `source ops/install.sh && install_clients`",
        path.display()
    );
    path
}

#[tokio::test]
async fn supabase_js_and_postgrest_py_tell_their_stories() {
    installed("node_modules/@supabase/supabase-js");
    let python = installed("../../../.tools/clients/bin/python");
    let cluster = cluster().await;
    tell(&cluster, Path::new("node"), "crm.mjs");
    tell(&cluster, &python, "crm.py");
    cluster.down().await;
}

/// How soon a change of the schema must be served, unless the machine stands still.
const SOON: Duration = Duration::from_secs(1);
/// Changes.
const ROUNDS: usize = 5;

#[tokio::test]
async fn a_schema_change_is_served_within_a_second_and_blocks_no_request() {
    let cluster = Arc::new(cluster().await);
    let http = reqwest::Client::new();
    let get = {
        let (cluster, http) = (cluster.clone(), http.clone());
        move |path: &str| {
            let url = format!("{}/rest/v1/{path}", cluster.router_url(0));
            let request = http.get(url).header("apikey", cluster.key("acme").unwrap());
            async move { request.send().await.unwrap().status().as_u16() }
        }
    };
    let dsn = cluster.shard_dsn("s1-primary").unwrap();
    let (admin, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);

    // Requests go on all the while.
    let done = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let traffic = {
        let (get, done, served) = (get.clone(), done.clone(), served.clone());
        tokio::spawn(async move {
            let mut long = 0;
            while !done.load(Ordering::Relaxed) || served.load(Ordering::Relaxed) <= 20 {
                let started = Instant::now();
                assert_eq!(get("companies?select=id,name&order=id&limit=5").await, 200);
                long += usize::from(started.elapsed() >= SOON);
                served.fetch_add(1, Ordering::Relaxed);
            }
            long
        })
    };
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let column = format!("extra_{round}");
        assert_eq!(get(&format!("contacts?select={column}")).await, 400);
        admin
            .batch_execute(&format!("alter table contacts add column {column} int"))
            .await
            .unwrap();
        let changed = Instant::now();
        while get(&format!("contacts?select={column}&limit=1")).await != 200 {
            assert!(changed.elapsed() < 60 * SOON, "it is not served");
        }
        took.push(changed.elapsed());
    }
    done.store(true, Ordering::Relaxed);
    let long = traffic.await.unwrap();
    took.sort();
    assert!(took[ROUNDS / 2] < SOON, "served after {took:?}");
    // What held up requests would have held up one at each change.
    assert!(long < ROUNDS, "{long} requests took long");
    drop(get);
    Arc::into_inner(cluster).unwrap().down().await;
}
