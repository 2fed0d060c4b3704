//! The command line against a real worker, its control database and a shard.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::process::{Command, Output};

use ops::local::{Cluster, Content, Options};
use serde_json::Value;

/// The program, told of one cluster and of nothing else.
struct Cli {
    url: String,
    token: String,
}

impl Cli {
    fn of(cluster: &Cluster) -> Self {
        Self {
            url: cluster.admin_url(),
            token: cluster.admin_token().to_owned(),
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(args)
            .arg("--no-input")
            .env("RINGFENCE_ADMIN_URL", &self.url)
            .env("RINGFENCE_ADMIN_TOKEN", &self.token)
            .output()
            .unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--output", "json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Exit code and message of a command that fails.
    fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(output.stdout.is_empty(), "{args:?} printed a result");
        let errors = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), errors)
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_keys_and_fleet() {
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(0),
        content: Content::Services,
        ..Options::default()
    })
    .await
    .unwrap();
    let cli = Cli::of(&cluster);

    // Creating twice is creating once.
    let acme = cli.json(&["tenant", "create", "acme", "--name", "Acme Corporation"]);
    assert_eq!(
        (&acme["shard"], &acme["epoch"], &acme["state"]),
        (&"s1".into(), &1.into(), &"active".into())
    );
    assert_eq!(cli.json(&["tenant", "create", "acme"])["id"], acme["id"]);
    let by_id = cli.json(&["tenant", "show", acme["id"].as_str().unwrap()]);
    assert_eq!(by_id["slug"], "acme");

    // The fence on the shard follows what the command line says.
    let suspended = cli.json(&["tenant", "suspend", "acme"]);
    assert_eq!(suspended["state"], "suspended");
    assert!(fence_is_suspended(&cluster).await);
    assert_eq!(cli.json(&["tenant", "resume", "acme"])["state"], "active");
    assert!(!fence_is_suspended(&cluster).await);

    // Pages are joined.
    for slug in ["globex", "initech"] {
        cli.json(&["tenant", "create", slug]);
    }
    assert_eq!(items(&cli.json(&["tenant", "list"])).len(), 3);
    let two = cli.json(&["tenant", "list", "--limit", "2"]);
    assert_eq!(items(&two).len(), 2);
    let rest = cli.json(&["tenant", "list", "--after", "globex"]);
    assert_eq!(items(&rest)[0]["slug"], "initech");
    let found = cli.json(&["tenant", "list", "--search", "corpora"]);
    assert_eq!(items(&found)[0]["slug"], "acme");

    // A key is shown once, and stays listed when it is revoked.
    let key = cli.json(&["key", "create", "acme", "--expires-in", "30d"]);
    assert!(key["key"].as_str().unwrap().starts_with("rf_"));
    let id = key["id"].to_string();
    assert!(cli.json(&["key", "revoke", &id])["revoked_at"].is_string());
    let keys = cli.json(&["key", "list", "acme"]);
    assert_eq!(items(&keys).len(), 1);
    assert!(keys[0]["revoked_at"].is_string());
    assert!(keys[0]["key"].is_null());

    let shards = cli.json(&["shard", "list"]);
    assert_eq!(
        (&shards[0]["id"], &shards[0]["tenants"]),
        (&"s1".into(), &3.into())
    );
    assert_eq!(cli.json(&["node", "list"])[0]["name"], "s1-primary");
    assert_eq!(cli.json(&["ring", "show"])[0]["share"], 1.0);
    let is_ok = || {
        let status = cli.json(&["status"]);
        status["shards"][0]["status"] == "ok" && status["workers"][0]["status"] == "ok"
    };
    let seen = (0..60).any(|_| {
        is_ok() || {
            std::thread::sleep(std::time::Duration::from_millis(250));
            false
        }
    });
    assert!(seen, "{:#}", cli.json(&["status"]));

    // What a script can tell apart.
    let (code, message) = cli.refused(&["tenant", "show", "nobody"]);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("there is no tenant nobody"), "{message}");
    assert_eq!(cli.refused(&["tenant", "create", "Not A Slug"]).0, 1);
    assert_eq!(cli.refused(&["tenant", "list", "--limit", "0"]).0, 2);
    assert_eq!(cli.refused(&["tenant", "list", "--token", "wrong"]).0, 5);

    // Without the control database nothing is changed, and that is said.
    cluster.kill("control").await.unwrap();
    for args in [
        &["tenant", "create", "late"][..],
        &["key", "create", "acme"],
        &["tenant", "suspend", "acme"],
        &["status"],
    ] {
        let (code, message) = cli.refused(args);
        assert_eq!(code, 4, "{args:?}: {message}");
        let said = message.contains("RF410") && message.contains("hint: Nothing was changed");
        assert!(said, "{args:?}: {message}");
    }
    cluster.start_node("control").await.unwrap();
    let (code, message) = cli.refused(&["tenant", "show", "late"]);
    assert_eq!(code, 3, "{message}");
    assert_eq!(cli.json(&["tenant", "create", "late"])["state"], "active");

    cluster.kill("worker-1").await.unwrap();
    let (code, message) = cli.refused(&["tenant", "list"]);
    assert_eq!(code, 4, "{message}");
    assert!(!message.contains(&cli.token), "the token was printed");
    cluster.down().await;
}

async fn fence_is_suspended(cluster: &Cluster) -> bool {
    let dsn = cluster.shard_dsn("s1-primary").unwrap();
    let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let row = client
        .query_one("select suspended from ringfence.fence", &[])
        .await
        .unwrap();
    row.get(0)
}
