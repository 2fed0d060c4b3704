//! Creating and upgrading the control database, and who may do what in it.

use futures_util::future::join_all;
use schema::control::{UpgradeError, upgrade};
use tokio_postgres::error::SqlState;

use crate::support::{Server, connect, try_connect};

const HISTORY: &str = "select count(*), coalesce(max(number), 0) from ringfence.upgrade";

#[tokio::test]
async fn several_upgrades_at_once_are_one() {
    let server = Server::start().await;
    let dsn = server.database("control").await;
    let upgrades = (0..8).map(|_| async {
        let mut client = connect(&dsn).await;
        upgrade(&mut client, Some("secret")).await
    });
    for result in join_all(upgrades).await {
        result.unwrap();
    }
    let client = connect(&dsn).await;
    let row = client.query_one(HISTORY, &[]).await.unwrap();
    let (applied, newest): (i64, i32) = (row.get(0), row.get(1));
    assert!(applied >= 1);
    assert_eq!(applied, i64::from(newest), "each file was applied once");
    let version: i64 = client
        .query_one("select version from ringfence.version", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(version, 1);
}

#[tokio::test]
async fn a_database_that_does_not_fit_this_program_is_left_alone() {
    let server = Server::start().await;
    let dsn = server.control("control").await;
    let mut client = connect(&dsn).await;

    client
        .batch_execute("insert into ringfence.upgrade values (1000, 'future', '')")
        .await
        .unwrap();
    let error = upgrade(&mut client, None).await.unwrap_err();
    assert!(
        matches!(error, UpgradeError::Newer { found: 1000, .. }),
        "{error}"
    );

    client
        .batch_execute(
            "delete from ringfence.upgrade where number = 1000;
             update ringfence.upgrade set digest = 'edited' where number = 1",
        )
        .await
        .unwrap();
    let error = upgrade(&mut client, None).await.unwrap_err();
    assert!(matches!(error, UpgradeError::Changed(_)), "{error}");
}

#[tokio::test]
async fn routers_read_placements_and_nothing_else() {
    let server = Server::start().await;
    let dsn = server.database("control").await;
    let mut owner = connect(&dsn).await;
    upgrade(&mut owner, Some("it's secret")).await.unwrap();

    let wrong = server.dsn_as("ringfence_router", "wrong", "control");
    let error = try_connect(&wrong).await.map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INVALID_PASSWORD));

    let right = server.dsn_as("ringfence_router", "it\\'s secret", "control");
    let router = connect(&right).await;
    for table in [
        "version",
        "region",
        "shard",
        "node",
        "tenant",
        "api_key",
        "jwt_issuer",
        "plan",
    ] {
        let sql = format!("select * from ringfence.{table}");
        router.query(&sql, &[]).await.unwrap();
    }
    for sql in [
        "select * from ringfence.audit",
        "select * from ringfence.job",
        "update ringfence.version set version = version + 1",
        "update ringfence.tenant set epoch = 2",
        "delete from ringfence.api_key",
        "insert into ringfence.region values ('x')",
        "select ringfence.next_version(true)",
        "create table ringfence.mine ()",
        // Of the members, a router writes only routers' rows, and only through its own functions.
        "select * from ringfence.member",
        "select ringfence.heartbeat('worker', gen_random_uuid(), 'w', null, 'http://x', null, '1')",
        "select ringfence.leave('worker', gen_random_uuid())",
    ] {
        let error = router.batch_execute(sql).await.unwrap_err();
        let refused = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        assert!(refused, "{sql}: {error}");
    }
}

#[tokio::test]
async fn the_audit_log_only_grows() {
    let server = Server::start().await;
    let client = connect(&server.control("control").await).await;
    client
        .batch_execute(
            "set role ringfence_worker;
             insert into ringfence.audit (actor, action, object, result) values ('a', 'b', 'c', 'done')",
        )
        .await
        .unwrap();
    for sql in [
        "update ringfence.audit set actor = 'x'",
        "delete from ringfence.audit",
        "truncate ringfence.audit",
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        let refused = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        assert!(refused, "{sql}: {error}");
    }
    // Nor does its owner change it, whatever the session pretends to be.
    client
        .batch_execute("reset role; set session_replication_role = replica")
        .await
        .unwrap();
    for sql in [
        "update ringfence.audit set actor = 'x'",
        "truncate ringfence.audit",
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(error.code().map(SqlState::code), Some("RF013"), "{sql}");
    }
}
