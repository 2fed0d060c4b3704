//! A single-tenant application's database becomes everyone's: its schema is
//! adopted, from a dump and from the database itself, and applied to all shards;
//! its rows become one tenant's; two tenants use it through supabase-js.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{done, ringfence};
use ops::local::{Cluster, Content, Options};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Longest wait for what must happen; slow machines take long.
const SOON: Duration = Duration::from_secs(90);

/// The application as it was before: a database of its own, on a server of the cluster.
async fn database(cluster: &Cluster) -> String {
    let server = cluster.shard_dsn("s2-primary").unwrap();
    run_sql(&server, "create database old_app").await;
    let place = server.rfind('/').unwrap();
    let query = server.find('?').map_or("", |at| &server[at..]);
    let dsn = format!("{}/old_app{query}", &server[..place]);
    run_sql(
        &dsn,
        "drop schema public; create schema extensions; create schema auth; create table auth.users (id uuid primary key);
         create function auth.uid() returns uuid language sql stable as 'select null::uuid'",
    )
    .await;
    let dump = include_str!("adopt.sql");
    let lines = dump
        .lines()
        .filter(|line| !line.starts_with('\\') && !line.contains("OWNER TO"));
    let dump: Vec<&str> = lines.collect();
    run_sql(&dsn, &dump.join("\n")).await;
    run_sql(&dsn, include_str!("adopt_rows.sql")).await;
    dsn
}

async fn run_sql(dsn: &str, sql: &str) {
    let (client, connection) = tokio_postgres::connect(dsn, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client.batch_execute(sql).await.unwrap();
}

/// A token of a user, HS256, as an application's server makes it.
fn token(cluster: &Cluster, tenant: &str, user: &str) -> String {
    let script = "const c = require('crypto'), e = (v) => Buffer.from(v).toString('base64url');
        const [secret, claims] = process.argv.slice(1);
        const text = e('{\"alg\":\"HS256\",\"typ\":\"JWT\"}') + '.' + e(claims);
        console.log(text + '.' + c.createHmac('sha256', secret).update(text).digest('base64url'))";
    let claims = json!({"tenant_id": tenant, "role": "authenticated", "sub": user, "exp": 4_000_000_000_u64});
    let made = Command::new("node")
        .args(["-e", script, cluster.jwt_secret(), &claims.to_string()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// The story that supabase-js tells of the application.
fn tell(cluster: &Cluster, tenant: &str, keys: &[String]) {
    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../router/tests/clients");
    let ada = "00000000-0000-4000-8000-000000000001";
    let told = Command::new("node")
        .arg("adopted.mjs")
        .current_dir(FOLDER)
        .env("RINGFENCE_URL", cluster.router_url(0))
        .env("RINGFENCE_KEY", &keys[0])
        .env("OTHER_KEY", &keys[1])
        .env("SERVICE_KEY", &keys[2])
        .env("USER_TOKEN", token(cluster, tenant, ada))
        .env("ADA", ada)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    let complained = String::from_utf8_lossy(&told.stderr);
    assert!(
        told.status.success() && said.contains("went well"),
        "{said}{complained}"
    );
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
    let source = database(&cluster).await;
    let (by_dump, by_address) = (cluster.path().join("dump"), cluster.path().join("adopted"));
    let dump = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adopt.sql");
    let dir = by_address.to_str().unwrap();
    let adopt = |from: &str, folder: &std::path::Path| {
        let dir = folder.to_str().unwrap();
        ringfence(&cluster, &["schema", "adopt", "--from", from, "--dir", dir])
    };
    let adopted = adopt(&source, &by_address);
    assert!(adopted.status.success(), "{adopted:?}");
    let adopted: Value = serde_json::from_slice(&adopted.stdout).unwrap();
    proposed(&adopted);
    assert_eq!(adopted["clashes"], json!([]));
    // What it wrote is not overwritten, and passes the lint.
    assert_eq!(adopt(dump, &by_address).status.code(), Some(2));
    done(&cluster, &["migrate", "lint", "--dir", dir]);
    assert!(
        !ringfence(&cluster, &["migrate", "verify", "--dir", dir])
            .status
            .success()
    );
    done(&cluster, &["migrate", "apply", "--dir", dir, "--wait"]);
    let verified = done(&cluster, &["migrate", "verify", "--dir", dir]);
    assert_eq!(verified["verified"], true);

    // Adopted again, it says what is in the way, before anything is applied.
    let adopted = adopt(dump, &by_dump);
    assert_eq!(adopted.status.code(), Some(1), "{adopted:?}");
    let adopted: Value = serde_json::from_slice(&adopted.stdout).unwrap();
    proposed(&adopted);
    let clashes = adopted["clashes"].to_string();
    let wanted = "would make public.profiles, which is there already on s1, s2";
    assert!(clashes.contains(wanted), "{clashes}");
    let dir_by_dump = by_dump.to_str().unwrap();
    done(&cluster, &["migrate", "lint", "--dir", dir_by_dump]);
    let planned = ringfence(&cluster, &["migrate", "plan", "--dir", dir_by_dump]);
    assert_eq!(planned.status.code(), Some(1), "{planned:?}");
    // A table that nobody decided on is not let through silently.
    let distribute = by_dump.join("002_distribute.sql");
    let text = std::fs::read_to_string(&distribute).unwrap();
    let less: String = text.lines().filter(|line| !line.contains("notes")).fold(
        String::new(),
        |mut less, line| {
            less.push_str(line);
            less.push('\n');
            less
        },
    );
    std::fs::write(&distribute, less).unwrap();
    let refused = ringfence(&cluster, &["migrate", "lint", "--dir", dir_by_dump]);
    let found = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{found}");
    assert!(found.contains("public.notes is neither"), "{found}");
    assert!(!found.contains("schema_migrations is neither"), "{found}");

    // The rows that all tenants share came with it; more are brought by a further file.
    let more = "insert into countries values ('DE', 'Germany');\n";
    std::fs::write(by_address.join("004_germany.sql"), more).unwrap();
    let status = done(&cluster, &["migrate", "status", "--dir", dir]);
    assert_eq!(status["folder"]["pending"], json!(["004_germany.sql"]));
    assert_eq!(status["shards"][0]["state"], "behind", "{status}");
    done(&cluster, &["migrate", "apply", "--dir", dir, "--wait"]);
    // What waits for its phase is no failure of a release that says the same again.
    let later = "-- ringfence: phase contract\ndrop table bookings;\n";
    std::fs::write(by_address.join("005_later.sql"), later).unwrap();
    let waits = done(&cluster, &["migrate", "apply", "--dir", dir, "--wait"]);
    assert_eq!(waits["code"], "RF518", "{waits}");
    let mut keys = Vec::new();
    let mut tenants = Vec::new();
    for tenant in ["red", "blue"] {
        let made = done(&cluster, &["tenant", "create", tenant]);
        tenants.push(made["id"].as_str().unwrap().to_owned());
        let key = done(&cluster, &["key", "create", tenant]);
        keys.push(key["key"].as_str().unwrap().to_owned());
    }
    let service = ["key", "create", "red", "--role", "service_role"];
    let key = done(&cluster, &service);
    keys.push(key["key"].as_str().unwrap().to_owned());
    let import = [
        "tenant", "import", "--tenant", "red", "--from", &source, "--wait",
    ];
    let imported = done(&cluster, &import);
    assert_eq!(imported["result"]["rows"], 10, "{imported}");
    let left = imported["result"]["not_loaded"].to_string();
    for wanted in ["users", "countries", "schema_migrations", "note_counts"] {
        assert!(left.contains(wanted), "{wanted}: {left}");
    }
    // Served once the router has loaded the schema and heard of the tenant.
    let http = reqwest::Client::new();
    let url = format!("{}/rest/v1/projects?select=id", cluster.router_url(0));
    let deadline = Instant::now() + SOON;
    loop {
        let answers = keys
            .iter()
            .map(|key| http.get(&url).header("apikey", key).send());
        let answers = futures_util::future::join_all(answers).await;
        let served = |answer: &Result<reqwest::Response, _>| {
            answer
                .as_ref()
                .is_ok_and(|answer| answer.status() == StatusCode::OK)
        };
        if answers.iter().all(served) {
            break;
        }
        assert!(Instant::now() < deadline, "{answers:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tell(&cluster, &tenants[0], &keys);
    cluster.down().await;
}

/// Every table has its role, and what will not be as it was is named.
fn proposed(adopted: &Value) {
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
            "internal.audit tenant",
            "public.api_keys tenant",
            "public.bookings tenant",
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
        "user_ids",
        "row security is on, without a policy",
        "no API role has rights",
        "bookings_during_excl is made anew, within each tenant",
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
    ] {
        assert!(remarks.contains(wanted), "{wanted}: {remarks}");
    }
}
