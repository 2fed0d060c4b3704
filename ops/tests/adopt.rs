//! A single-tenant application's dump becomes everyone's: adopted, applied to
//! all shards, used by two tenants.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ops::local::{Cluster, Content, Options};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Longest wait for what must happen; slow machines take long.
const SOON: Duration = Duration::from_secs(90);

fn run(cluster: &Cluster, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(args)
        .args(["--no-input", "--output", "json"])
        .env("RINGFENCE_ADMIN_URL", cluster.admin_url())
        .env("RINGFENCE_ADMIN_TOKEN", cluster.admin_token())
        .output()
        .unwrap()
}

fn done(cluster: &Cluster, args: &[&str]) -> Value {
    let output = run(cluster, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applications_dump_becomes_everyones() {
    let cluster = Cluster::start(Options {
        shards: Some(2),
        replicas: Some(0),
        routers: Some(1),
        content: Content::Services,
        ..Options::default()
    })
    .await
    .unwrap();
    let folder = cluster.path().join("adopted");
    let dir = folder.to_str().unwrap();
    let dump = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adopt.sql");
    let adopted = done(&cluster, &["schema", "adopt", "--from", dump, "--dir", dir]);
    let roles: Vec<String> = adopted["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| {
            let text = |field: &str| table[field].as_str().unwrap().replace('"', "");
            format!("{} {}", text("table"), text("role"))
        })
        .collect();
    assert_eq!(
        roles,
        [
            "public.countries reference",
            "public.events tenant",
            "public.profiles tenant",
            "public.projects tenant",
            "public.notes tenant",
            "public.schema_migrations ignore",
        ]
    );
    let remarks = adopted["remarks"].to_string();
    for wanted in [
        "note_counts",
        "all_notes",
        "auth.*",
        "partitioned",
        "policies stay",
        "project_notes",
    ] {
        assert!(remarks.contains(wanted), "{wanted}: {remarks}");
    }
    // What it wrote is not overwritten, and passes the lint.
    let again = run(&cluster, &["schema", "adopt", "--from", dump, "--dir", dir]);
    assert_eq!(again.status.code(), Some(2));
    done(&cluster, &["migrate", "lint", "--dir", dir]);
    assert!(
        !run(&cluster, &["migrate", "verify", "--dir", dir])
            .status
            .success()
    );
    done(&cluster, &["migrate", "apply", "--dir", dir, "--wait"]);
    let verified = done(&cluster, &["migrate", "verify", "--dir", dir]);
    assert_eq!(verified["verified"], true);

    let mut keys = Vec::new();
    for tenant in ["red", "blue"] {
        done(&cluster, &["tenant", "create", tenant]);
        let key = done(&cluster, &["key", "create", tenant]);
        keys.push(key["key"].as_str().unwrap().to_owned());
    }
    let http = reqwest::Client::new();
    let url = |path: &str| format!("{}/rest/v1/{path}", cluster.router_url(0));
    let projects =
        json!([{"title": "first", "seen": "team"}, {"title": "second", "seen": "private"}]);
    let deadline = Instant::now() + SOON;
    loop {
        let request = http.post(url("projects")).header("apikey", &keys[0]);
        let answer = request.json(&projects).send().await.unwrap();
        if answer.status() == StatusCode::CREATED {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{}",
            answer.text().await.unwrap()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let event = json!({"id": 1, "at": "2026-05-01T00:00:00Z", "what": "began"});
    let request = http.post(url("events")).header("apikey", &keys[0]);
    let answer = request.json(&event).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let read = async |key: &str, path: &str| {
        let answer = http
            .get(url(path))
            .header("apikey", key)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        (status, answer.json::<Value>().await.unwrap())
    };
    let (_, own) = read(&keys[0], "projects?select=title,seen&order=title").await;
    assert_eq!(
        own,
        json!([{"title": "first", "seen": "team"}, {"title": "second", "seen": "private"}])
    );
    for table in ["projects", "events", "profiles", "notes", "project_notes"] {
        let (status, rows) = read(&keys[1], table).await;
        assert_eq!((status, rows), (StatusCode::OK, json!([])), "{table}");
    }
    for hidden in ["note_counts", "schema_migrations", "events_2026"] {
        let (status, _) = read(&keys[0], hidden).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{hidden}");
    }
    cluster.down().await;
}
