//! Rows that were deleted by mistake come back: out of a copy of the shard as it
//! was before, through an archive, as a tenant beside the other.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use common::done;
use ops::local::{Cluster, Content, Options};
use tokio_postgres::{Client, NoTls};

/// Longest wait for what must happen; slow machines take long.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_comes_back_as_it_was_before_a_mistake() {
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        content: Content::Demo {
            extra: 0,
            rows: Some(40),
        },
        ..Options::default()
    })
    .await
    .unwrap();
    let dsn = cluster.shard_dsn("s1-primary").unwrap();
    let shard = connect(&dsn).await;
    let folder = cluster.path().join("backup");
    let (folder, copy) = (folder.to_str().unwrap(), cluster.path().join("copy"));

    // The log is kept from now on; then a base backup.
    let log = Follow(
        backup(&["follow", "--from", &dsn, "--folder", folder])
            .spawn()
            .unwrap(),
    );
    until(
        &shard,
        "exists (select from pg_stat_replication where application_name = 'pg_receivewal')",
    )
    .await;
    succeeded(
        &backup(&["base", "--from", &dsn, "--folder", folder])
            .output()
            .unwrap(),
    );

    // What was written after it is there as well: the log has it.
    let tenant = done(&cluster, &["tenant", "show", "acme"]);
    let acme = tenant["id"].as_str().unwrap();
    let count = format!("select count(*) from companies where tenant_id = '{acme}'");
    let late =
        format!("insert into companies (tenant_id, name) values ('{acme}', 'Written Late Ltd')");
    // Base backups are told apart by whole seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    set(&shard, &late).await;
    let before: i64 = shard.query_one(&count, &[]).await.unwrap().get(0);
    let moment = "select clock_timestamp()::text";
    let moment: String = shard.query_one(moment, &[]).await.unwrap().get(0);

    // The mistake.
    tokio::time::sleep(Duration::from_millis(20)).await;
    set(
        &shard,
        &format!("delete from activities where tenant_id = '{acme}'"),
    )
    .await;
    set(
        &shard,
        &format!("delete from companies where tenant_id = '{acme}'"),
    )
    .await;
    assert_eq!(
        shard.query_one(&count, &[]).await.unwrap().get::<_, i64>(0),
        0
    );
    let written = "flush_lsn >= pg_current_wal_insert_lsn() from pg_stat_replication where application_name = 'pg_receivewal'";
    until(&shard, written).await;

    // A copy as of before, read-only; the tenant out of it, and in again.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (to, number) = (copy.to_str().unwrap(), port.to_string());
    let args = [
        "restore", "--folder", folder, "--at", &moment, "--to", to, "--port", &number,
    ];
    succeeded(&backup(&args).output().unwrap());
    let at = Copy(&copy);
    let restored = with_port(&dsn, port);
    let read_only = connect(&restored)
        .await
        .batch_execute("create table t ()")
        .await;
    assert_eq!(read_only.unwrap_err().code().unwrap().code(), "25006");
    let archive = cluster.path().join("acme.tar.zst");
    let file = archive.to_str().unwrap();
    let exported = done(
        &cluster,
        &[
            "tenant", "export", "acme", "--to", file, "--from", &restored,
        ],
    );
    assert!(exported["rows"].as_i64().unwrap() >= before);
    drop(at);
    assert!(!copy.exists());
    let imported = done(
        &cluster,
        &["tenant", "import", file, "--as", "acme-restored"],
    );
    let result = &imported["result"];
    let companies = result["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["table"] == "public.companies");
    assert_eq!(companies.unwrap()["rows"], before, "{result}");
    let back = format!(
        "select count(*) from companies where name = 'Written Late Ltd' and tenant_id = '{}'",
        result["tenant"].as_str().unwrap()
    );
    assert_eq!(
        shard.query_one(&back, &[]).await.unwrap().get::<_, i64>(0),
        1
    );

    // The log's end is said as such, and so is a time before any backup.
    let later = [
        "restore",
        "--folder",
        folder,
        "--at",
        "2999-01-01",
        "--to",
        to,
        "--port",
        &number,
    ];
    assert!(said(&backup(&later).output().unwrap()).contains("ends before"));
    succeeded(&backup(&["discard", "--to", to]).output().unwrap());
    let earlier = [
        "restore",
        "--folder",
        folder,
        "--at",
        "2001-01-01",
        "--to",
        to,
    ];
    assert!(said(&backup(&earlier).output().unwrap()).contains("no base backup"));
    // What is no time is not handed to Postgres.
    let quoted = [
        "restore",
        "--folder",
        folder,
        "--at",
        "2999-01-01' #",
        "--to",
        to,
    ];
    assert!(said(&backup(&quoted).output().unwrap()).contains("--at is no time"));
    succeeded(
        &backup(&["prune", "--folder", folder, "--keep", "1"])
            .output()
            .unwrap(),
    );
    drop(log);
    cluster.down().await;
}

/// The process that keeps the log.
struct Follow(Child);

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A restored server, which is not of the cluster.
struct Copy<'a>(&'a Path);

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        let _ = backup(&["discard", "--to", self.0.to_str().unwrap_or_default()]).output();
    }
}

fn backup(args: &[&str]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/backup"));
    command.args(args);
    command
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// As the mistake is made: past the service, by a superuser.
async fn set(shard: &Client, sql: &str) {
    let sql = format!("begin; set local session_replication_role = replica; {sql}; commit");
    shard.batch_execute(&sql).await.unwrap();
}

async fn until(shard: &Client, condition: &str) {
    let deadline = Instant::now() + SOON;
    let sql = format!("select {condition}");
    loop {
        let row = shard.query_opt(&sql, &[]).await.unwrap();
        if row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true)) {
            return;
        }
        assert!(Instant::now() < deadline, "{condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn with_port(dsn: &str, port: u16) -> String {
    let was: tokio_postgres::Config = dsn.parse().unwrap();
    let was = was.get_ports()[0].to_string();
    assert_eq!(dsn.matches(&was).count(), 1, "{dsn}");
    dsn.replace(&was, &port.to_string())
}

async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
