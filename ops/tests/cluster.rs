//! The local cluster on real servers: replication, failures, and that nothing
//! outlives its parent.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ops::Error;
use ops::local::{Cluster, Content, NodeState, Options};
use tokio_postgres::{Client, NoTls};

fn servers(shards: u16, replicas: u16) -> Options {
    Options {
        shards: Some(shards),
        replicas: Some(replicas),
        routers: Some(0),
        content: Content::Servers,
        ..Options::default()
    }
}

async fn connect(cluster: &Cluster, node: &str) -> Client {
    let dsn = cluster.shard_dsn(node).unwrap();
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn state(cluster: &Cluster, name: &str) -> NodeState {
    let status = cluster.status();
    status.iter().find(|node| node.name == name).unwrap().state
}

/// Waits until a replica shows what its primary has.
async fn replicated(replica: &Client, rows: i64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = replica.query_one("select count(*) from t", &[]).await;
        if found.is_ok_and(|row| row.get::<_, i64>(0) == rows) {
            return;
        }
        assert!(Instant::now() < deadline, "not replicated");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nodes_replicate_and_survive_what_is_done_to_them() {
    let cluster = Cluster::start(servers(1, 1)).await.unwrap();
    let primary = connect(&cluster, "s1-primary").await;
    let settings = primary
        .query_one(
            "select current_setting('wal_level'), current_setting('track_commit_timestamp'),
                    (select count(*) from pg_replication_slots where slot_name = 's1_replica1')",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(settings.get::<_, &str>(0), "logical");
    assert_eq!(settings.get::<_, &str>(1), "on");
    assert_eq!(settings.get::<_, i64>(2), 1);

    primary
        .batch_execute("create table t (id int); insert into t values (1)")
        .await
        .unwrap();
    replicated(&connect(&cluster, "s1-replica1").await, 1).await;

    // A frozen node keeps its connections, and answers none of them.
    cluster.stop("s1-primary").unwrap();
    assert_eq!(state(&cluster, "s1-primary"), NodeState::Stopped);
    let quick = Duration::from_millis(200);
    let frozen = primary.query_one("select 1", &[]);
    tokio::pin!(frozen);
    assert!(tokio::time::timeout(quick, &mut frozen).await.is_err());
    cluster.cont("s1-primary").unwrap();
    frozen.await.unwrap();

    // A killed one comes back with its data, and its replica follows again.
    cluster.kill("s1-primary").await.unwrap();
    assert_eq!(state(&cluster, "s1-primary"), NodeState::Down);
    let again = cluster.kill("s1-primary").await;
    assert!(matches!(again, Err(Error::NodeState { state: "down", .. })));
    cluster.start_node("s1-primary").await.unwrap();
    let primary = connect(&cluster, "s1-primary").await;
    primary
        .batch_execute("insert into t values (2)")
        .await
        .unwrap();
    replicated(&connect(&cluster, "s1-replica1").await, 2).await;

    // So does a killed replica.
    cluster.kill("s1-replica1").await.unwrap();
    primary
        .batch_execute("insert into t values (3)")
        .await
        .unwrap();
    cluster.start_node("s1-replica1").await.unwrap();
    replicated(&connect(&cluster, "s1-replica1").await, 3).await;

    let path = cluster.path().to_owned();
    cluster.down().await;
    assert!(!path.exists(), "{} was left behind", path.display());
}

#[tokio::test]
async fn shards_have_identities_of_their_own() {
    let cluster = Cluster::start(servers(2, 0)).await.unwrap();
    let mut identities = Vec::new();
    for node in ["s1-primary", "s2-primary"] {
        let row = connect(&cluster, node)
            .await
            .query_one("select system_identifier from pg_control_system()", &[])
            .await
            .unwrap();
        identities.push(row.get::<_, i64>(0));
    }
    assert_ne!(identities[0], identities[1]);
}

#[tokio::test]
async fn unknown_nodes_are_named_with_those_that_exist() {
    let cluster = Cluster::prepare(servers(1, 0)).unwrap();
    let Err(Error::UnknownNode { known, .. }) = cluster.kill("s9-primary").await else {
        panic!("there is no s9");
    };
    assert_eq!(known, "control, s1-primary, worker-1");
}

/// Processes of a cluster: those that work in one of its nodes' folders.
fn processes(folder: &Path) -> usize {
    let of_cluster = |pid: &str| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|dir| dir.starts_with(folder))
            && !std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|s| s.contains(") Z "))
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|name| name.parse::<u32>().is_ok() && of_cluster(name))
        .count()
}

/// Started by the next test as a process of its own, to be killed.
#[tokio::test]
#[ignore = "a part of nothing_outlives_a_killed_parent"]
async fn parent_with_a_frozen_node() {
    let cluster = Cluster::start(servers(1, 1)).await.unwrap();
    cluster.stop("s1-primary").unwrap();
    println!("{}", cluster.path().display());
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[test]
fn nothing_outlives_a_killed_parent() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "parent_with_a_frozen_node",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let folder = lines
        .map(|line| PathBuf::from(line.unwrap()))
        .find(|line| line.is_absolute())
        .unwrap();
    assert!(processes(&folder) > 10);
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while processes(&folder) > 0 {
        assert!(Instant::now() < deadline, "processes were left behind");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn redis_survives_the_loss_of_a_master() {
    let mut options = servers(1, 0);
    options.redis = Some(3);
    let cluster = Cluster::start(options).await.unwrap();
    assert_eq!(cluster.redis_urls().len(), 6);
    let ask = |n: usize, command: &str| {
        let port = cluster.redis_urls()[n - 1]
            .rsplit_once(':')
            .unwrap()
            .1
            .to_owned();
        let output = Command::new("redis-cli")
            .args([
                "-p",
                &port,
                "--no-auth-warning",
                "-a",
                cluster.redis_password(),
            ])
            .args(command.split(' '))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // Slot 0 is the first master's, and its replica is the fourth node.
    assert_eq!(ask(1, "SET {06S} kept").trim(), "OK");
    assert_eq!(ask(1, "WAIT 1 10000").trim(), "1");
    for end in ["kill", "stop"] {
        let (master, replica) = match end {
            "kill" => (1, 4),
            _ => (4, 1),
        };
        let name = format!("redis-{master}");
        match end {
            "kill" => cluster.kill(&name).await.unwrap(),
            _ => cluster.stop(&name).unwrap(),
        }
        let deadline = Instant::now() + Duration::from_secs(90);
        while !ask(replica, "ROLE").starts_with("master") {
            assert!(Instant::now() < deadline, "not taken over");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It has the others' agreement a moment later, where they are slow.
        while ask(replica, "GET {06S}").trim() != "kept" {
            assert!(Instant::now() < deadline, "not kept");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        match end {
            "kill" => cluster.start_node(&name).await.unwrap(),
            _ => cluster.cont(&name).unwrap(),
        }
        // It comes back as the replica of the other.
        while !ask(master, "INFO replication").contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "not followed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    cluster.down().await;
}
