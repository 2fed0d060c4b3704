//! The control database's SQL: numbered files, each applied once, in order.

use tokio_postgres::Client;

use crate::ident::Literal;

const FILES: [(i32, &str, &str); 10] = [
    (1, "control", include_str!("../control/001_control.sql")),
    (2, "member", include_str!("../control/002_member.sql")),
    (3, "jobs", include_str!("../control/003_jobs.sql")),
    (
        4,
        "migrations",
        include_str!("../control/004_migrations.sql"),
    ),
    (5, "limits", include_str!("../control/005_limits.sql")),
    (6, "moves", include_str!("../control/006_moves.sql")),
    (7, "rebalance", include_str!("../control/007_rebalance.sql")),
    (
        8,
        "one_rebalance",
        include_str!("../control/008_one_rebalance.sql"),
    ),
    (9, "importing", include_str!("../control/009_importing.sql")),
    (
        10,
        "audit_always",
        include_str!("../control/010_audit_always.sql"),
    ),
];

/// Key of the advisory lock that upgrades queue for.
const UPGRADE_LOCK: i64 = 0x7269_6e67_0002;

/// Why the control database could not be upgraded.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It holds a number that this program doesn't know: a newer one has been here.
    #[error("the control database is at version {found}, newer than this program's {known}")]
    Newer {
        /// The database's version.
        found: i32,
        /// The newest that this program knows.
        known: i32,
    },
    /// A file differs from what was applied under its number.
    #[error("{0} was changed after it was applied")]
    Changed(&'static str),
    /// A file failed; nothing of this upgrade was kept.
    #[error("{file} could not be applied to the control database")]
    File {
        /// The file's name.
        file: &'static str,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// The connection, or a statement around the files, failed.
    #[error("the control database could not be upgraded")]
    Postgres(#[from] tokio_postgres::Error),
}

/// Applies what is missing, in one transaction; several may run at once and queue.
///
/// `client` is a connection of the database's owner that may create roles.
/// `router_password`, where given, becomes that of the role `ringfence_router`.
pub async fn upgrade(
    client: &mut Client,
    router_password: Option<&str>,
) -> Result<(), UpgradeError> {
    let transaction = client.transaction().await?;
    transaction
        .execute("select pg_advisory_xact_lock($1)", &[&UPGRADE_LOCK])
        .await?;
    transaction
        .batch_execute(
            "create schema if not exists ringfence;
             create table if not exists ringfence.upgrade (
               number integer primary key, name text not null, digest text not null,
               at timestamptz not null default now())",
        )
        .await?;
    let known = FILES.len() as i32;
    let found: i32 = transaction
        .query_one(
            "select coalesce(max(number), 0) from ringfence.upgrade",
            &[],
        )
        .await?
        .get(0);
    if found > known {
        return Err(UpgradeError::Newer { found, known });
    }
    for (number, file, sql) in FILES {
        let applied = transaction
            .query_opt(
                "select digest = encode(sha256(convert_to($2, 'UTF8')), 'hex') from ringfence.upgrade where number = $1",
                &[&number, &sql],
            )
            .await?;
        match applied.map(|row| row.get::<_, bool>(0)) {
            Some(true) => continue,
            Some(false) => return Err(UpgradeError::Changed(file)),
            None => {}
        }
        transaction
            .batch_execute(sql)
            .await
            .map_err(|source| UpgradeError::File { file, source })?;
        transaction
            .execute(
                "insert into ringfence.upgrade (number, name, digest)
                 values ($1, $2, encode(sha256(convert_to($3, 'UTF8')), 'hex'))",
                &[&number, &file, &sql],
            )
            .await?;
    }
    if let Some(password) = router_password {
        let password = Literal(password);
        transaction
            .batch_execute(&format!("alter role ringfence_router password {password}"))
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}
