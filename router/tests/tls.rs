//! Encrypted connections: only to servers that prove who they are.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "tls/redis.rs"]
mod redis;
#[path = "tls/streams.rs"]
mod streams;

use std::path::PathBuf;
use std::time::Duration;

use ops::local::{Authority, Cluster, Options};
use reqwest::StatusCode;
use tenancy::tls::{Tls, TlsMode, TlsSettings};
use tokio_postgres::{Config, NoTls};

async fn cluster() -> Cluster {
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(1),
        routers: Some(1),
        tls: true,
        ..Options::default()
    });
    cluster.await.unwrap()
}

fn tls(mode: TlsMode, ca_file: Option<PathBuf>) -> Tls {
    Tls::new(&TlsSettings { mode, ca_file }).unwrap()
}

/// The error and its causes.
async fn refused(tls: &Tls, config: &Config) -> String {
    match tls.connect(config).await {
        Ok(_) => panic!("the connection was made"),
        Err(error) => tenancy::chain(&error),
    }
}

#[tokio::test]
async fn all_services_speak_tls_and_verify_whom_they_speak_to() {
    let cluster = cluster().await;
    let right = cluster.ca_file().map(PathBuf::from);

    // Tenants are served; no service has a connection that is not encrypted.
    let http = reqwest::Client::new();
    let url = format!("{}/rest/v1/companies?limit=1", cluster.router_url(0));
    let request = http
        .get(&url)
        .header("apikey", cluster.key("acme").unwrap());
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    for dsn in [
        cluster.shard_dsn("s1-primary").unwrap(),
        cluster.control_dsn(),
    ] {
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let sql = "select count(*) filter (where s.ssl),
                     string_agg(distinct a.application_name, ', ') filter (where not s.ssl)
                   from pg_stat_activity a join pg_stat_ssl s using (pid)
                   where a.usename like 'ringfence%'
                     or a.application_name ~ '^ringfence-(router|worker|placements|members)'";
        let row = client.query_one(sql, &[]).await.unwrap();
        assert!(row.get::<_, i64>(0) > 0);
        assert_eq!(row.get::<_, Option<&str>>(1), None, "these are plain");
    }

    let router: Config = cluster.router_dsn("s1-primary").unwrap().parse().unwrap();
    let full = tls(TlsMode::VerifyFull, right.clone());
    let (client, connection) = full.connect(&router).await.unwrap();
    tokio::spawn(connection);

    // A cancel request goes the same way.
    let token = client.cancel_token();
    let sleep = client.batch_execute("select pg_sleep(60)");
    // Again and again: the first may come before the statement.
    let cancel = async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            full.cancel(&token).await.unwrap();
        }
    };
    let slept = tokio::select! {
        slept = sleep => slept,
        () = cancel => unreachable!(),
    };
    let code = slept.unwrap_err().code().cloned();
    assert_eq!(code, Some(tokio_postgres::error::SqlState::QUERY_CANCELED));

    // Another authority's certificate is refused, whatever is verified of it.
    let other = cluster.path().join("other-ca.pem");
    Authority::new(&other).unwrap();
    for mode in [TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let error = refused(&tls(mode, Some(other.clone())), &router).await;
        assert!(error.contains("certificate"), "{error}");
    }

    // The certificate is for 127.0.0.1, not for localhost.
    let mut by_name = Config::new();
    by_name
        .host("localhost")
        .hostaddr("127.0.0.1".parse().unwrap())
        .port(router.get_ports()[0])
        .user("ringfence_router")
        .password(router.get_password().unwrap())
        .dbname(router.get_dbname().unwrap());
    let error = refused(&full, &by_name).await;
    assert!(error.contains("not valid for name"), "{error}");
    let authority_only = tls(TlsMode::VerifyCa, right);
    drop(authority_only.connect(&by_name).await.unwrap());

    // Without encryption the server lets no service in.
    let error = refused(&Tls::disabled().unwrap(), &router).await;
    assert!(error.contains("no encryption"), "{error}");
    cluster.down().await;
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_it_is_required() {
    let cluster = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(0),
        content: ops::local::Content::Servers,
        ..Options::default()
    });
    let cluster = cluster.await.unwrap();
    let authority = cluster.path().join("ca.pem");
    Authority::new(&authority).unwrap();
    let config: Config = cluster.shard_dsn("s1-primary").unwrap().parse().unwrap();
    let error = refused(&tls(TlsMode::VerifyFull, Some(authority)), &config).await;
    assert!(error.contains("does not support TLS"), "{error}");
    cluster.down().await;
}
