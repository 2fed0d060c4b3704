//! The SQL that every shard carries: roles, fence and guard, and what turns
//! single-tenant tables into distributed ones.
//!
//! Each file can be run again, and is whenever its text changed; what was run
//! is recorded by digest in `ringfence.installed`.

use tokio_postgres::{Client, IsolationLevel};

use crate::ident::{Ident, Literal};

/// The files, in order.
const FILES: &[(&str, &str)] = &[
    ("001_roles", include_str!("../shard/001_roles.sql")),
    ("002_fence", include_str!("../shard/002_fence.sql")),
    ("003_changes", include_str!("../shard/003_changes.sql")),
    (
        "004_distribute",
        include_str!("../shard/004_distribute.sql"),
    ),
    ("005_node", include_str!("../shard/005_node.sql")),
    ("006_position", include_str!("../shard/006_position.sql")),
    ("007_capture", include_str!("../shard/007_capture.sql")),
    ("008_jobs", include_str!("../shard/008_jobs.sql")),
    ("009_migration", include_str!("../shard/009_migration.sql")),
    (
        "010_idempotency",
        include_str!("../shard/010_idempotency.sql"),
    ),
    (
        "011_capture_look",
        include_str!("../shard/011_capture_look.sql"),
    ),
    ("012_moves", include_str!("../shard/012_moves.sql")),
    ("013_archive", include_str!("../shard/013_archive.sql")),
    ("020_api", include_str!("../shard/020_api.sql")),
    ("090_mover", include_str!("../shard/090_mover.sql")),
];

/// Key of the advisory lock that installers of one shard queue for.
const INSTALL_LOCK: i64 = 0x7269_6e67_0001;

/// Rows of `ringfence.schema_change` that are kept.
const CHANGES_KEPT: i64 = 10_000;

/// Passwords of the login roles; a role without one keeps what it has.
#[derive(Clone, Debug, Default)]
pub struct RolePasswords {
    /// `ringfence_router`.
    pub router: Option<String>,
    /// `ringfence_worker`.
    pub worker: Option<String>,
    /// `ringfence_migrator`.
    pub migrator: Option<String>,
    /// `ringfence_mover`, and `ringfence_reader`: who has it may do more already.
    pub mover: Option<String>,
}

/// What an installation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Names of the files that were run; empty where the shard had them all.
    pub files: Vec<&'static str>,
}

/// Why a shard could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The server is too old.
    #[error("the shard runs PostgreSQL {0}; 15 or newer is needed")]
    TooOld(i32),
    /// One file failed; nothing of this installation was kept.
    #[error("{file} could not be run on the shard")]
    File {
        /// The file's name.
        file: &'static str,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// The connection, or a statement around the files, failed.
    #[error("the shard could not be prepared")]
    Postgres(#[from] tokio_postgres::Error),
}

/// Prepares a shard, or brings it up to date, in one transaction.
///
/// `client` is a superuser's connection to the application's database: only a
/// superuser may create roles that pass row level security, and event triggers.
/// Several installers may run at once; they queue.
pub async fn install(
    client: &mut Client,
    passwords: &RolePasswords,
) -> Result<Installed, InstallError> {
    let version: i32 = client
        .query_one(
            "select current_setting('server_version_num')::int / 10000",
            &[],
        )
        .await?
        .get(0);
    if version < 15 {
        return Err(InstallError::TooOld(version));
    }
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::ReadCommitted)
        .start()
        .await?;
    transaction
        .execute("select pg_advisory_xact_lock($1)", &[&INSTALL_LOCK])
        .await?;
    transaction
        .batch_execute(
            // DDL that changes nothing would still have routers reload the schema.
            "do $$ begin
               if to_regclass('ringfence.installed') is null then
                 create schema if not exists ringfence;
                 create table ringfence.installed (
                   file text primary key, digest text not null, at timestamptz not null default now());
               end if;
             end $$",
        )
        .await?;
    let mut files = Vec::new();
    for &(file, sql) in FILES {
        let current = transaction
            .query_opt(
                "select from ringfence.installed where file = $1 and digest = encode(sha256(convert_to($2, 'UTF8')), 'hex')",
                &[&file, &sql],
            )
            .await?;
        if current.is_some() {
            continue;
        }
        transaction
            .batch_execute(sql)
            .await
            .map_err(|source| InstallError::File { file, source })?;
        transaction
            .execute(
                "insert into ringfence.installed (file, digest) values ($1, encode(sha256(convert_to($2, 'UTF8')), 'hex'))
                 on conflict (file) do update set digest = excluded.digest, at = now()",
                &[&file, &sql],
            )
            .await?;
        files.push(file);
    }
    // Rights on the database are not in its dump, nor copied from a template:
    // what is recorded as run may still lack them.
    transaction
        .batch_execute(
            "do $$ begin
               execute format('revoke temporary, create on database %I from public', current_database());
             end $$",
        )
        .await?;
    for (role, password) in passwords.each() {
        let (role, password) = (Ident::new(role), Literal(password));
        transaction
            .batch_execute(&format!("alter role {role} password {password}"))
            .await?;
    }
    if !files.is_empty() {
        transaction
            .execute(
                "delete from ringfence.schema_change
                 where id < (select max(id) from ringfence.schema_change) - $1",
                &[&CHANGES_KEPT],
            )
            .await?;
    }
    transaction.commit().await?;
    Ok(Installed { files })
}

impl RolePasswords {
    fn each(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("ringfence_router", &self.router),
            ("ringfence_worker", &self.worker),
            ("ringfence_migrator", &self.migrator),
            ("ringfence_mover", &self.mover),
            ("ringfence_reader", &self.mover),
        ]
        .into_iter()
        .filter_map(|(role, password)| Some((role, password.as_deref()?)))
    }
}
