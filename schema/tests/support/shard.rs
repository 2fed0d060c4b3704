//! A shard of a test's own.

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};

use schema::shard::{RolePasswords, install};
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use uuid::Uuid;

use super::server;

/// A tenant that every [`Shard`] serves at epoch 1.
pub(crate) const ACME: Uuid = Uuid::from_u128(0xacae_0000_0000_4000_8000_0000_0000_0001);
/// Another one.
pub(crate) const GLOBEX: Uuid = Uuid::from_u128(0x610b_0000_0000_4000_8000_0000_0000_0002);

/// A database on which `schema::shard::install` ran, with two tenants.
pub(crate) struct Shard {
    name: String,
}

impl Shard {
    /// A copy of the template that the first caller made.
    pub(crate) async fn new() -> Self {
        static TEMPLATE: OnceCell<()> = OnceCell::const_new();
        static NEXT: AtomicU32 = AtomicU32::new(1);
        TEMPLATE.get_or_init(make_template).await;
        let shard = Self {
            name: format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        };
        let name = &shard.name;
        let admin = server().connect("postgres", "postgres").await;
        // A copy has the default rights on the database itself.
        admin
            .batch_execute(&format!("create database {name} template shard"))
            .await
            .unwrap();
        admin
            .batch_execute(&format!(
                "revoke temporary, create on database {name} from public"
            ))
            .await
            .unwrap();
        shard
    }

    /// An empty database on which nothing was installed.
    pub(crate) async fn bare(name: &str) -> Self {
        let admin = server().connect("postgres", "postgres").await;
        admin
            .batch_execute(&format!("create database {name} template template0"))
            .await
            .unwrap();
        Self { name: name.into() }
    }

    /// A session of a login role.
    pub(crate) async fn connect(&self, user: &str) -> Session {
        Session(server().connect(user, &self.name).await)
    }

    /// A session of the superuser.
    pub(crate) async fn admin(&self) -> Session {
        self.connect("postgres").await
    }

    /// The same after it ran `sql`: mostly a test's tables.
    pub(crate) async fn with(&self, sql: &str) -> Session {
        let admin = self.admin().await;
        admin.run(sql).await;
        admin
    }

    /// A router's session in the role `authenticated`.
    pub(crate) async fn api(&self) -> Session {
        let session = self.connect("ringfence_router").await;
        session.run("set role authenticated").await;
        session
    }

    /// The database's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

async fn make_template() {
    let admin = server().connect("postgres", "postgres").await;
    admin
        .batch_execute("create database shard template template0")
        .await
        .unwrap();
    let mut client = server().connect("postgres", "shard").await;
    install(&mut client, &RolePasswords::default())
        .await
        .unwrap();
    client
        .batch_execute(&format!(
            "insert into ringfence.fence (tenant_id, epoch) values ('{ACME}', 1), ('{GLOBEX}', 1)"
        ))
        .await
        .unwrap();
    drop(client);
    // Copies wait for whoever is still connected.
    admin
        .batch_execute("alter database shard allow_connections false")
        .await
        .unwrap();
}

/// A connection with short words for what tests do most.
pub(crate) struct Session(pub(crate) Client);

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl Session {
    /// Statements that must succeed.
    pub(crate) async fn run(&self, sql: &str) {
        if let Err(error) = self.0.batch_execute(sql).await {
            panic!("{sql}\n{:?}", super::refusal(error));
        }
    }

    /// Statements that must fail; what they fail with.
    pub(crate) async fn refused(&self, sql: &str) -> super::Refusal {
        match self.0.batch_execute(sql).await {
            Ok(()) => panic!("not refused: {sql}"),
            Err(error) => super::refusal(error),
        }
    }

    /// The one value, as text, of the statement's one row.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.into_iter().next().unwrap()
    }

    /// Each row's columns as text, joined by `|`; NULL is empty.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        let messages = match self.0.simple_query(sql).await {
            Ok(messages) => messages,
            Err(error) => panic!("{sql}\n{:?}", super::refusal(error)),
        };
        let rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| {
            let values: Vec<&str> = (0..row.len()).map(|n| row.get(n).unwrap_or("")).collect();
            values.join("|")
        })
        .collect()
    }

    /// How many rows the statement wrote.
    pub(crate) async fn count(&self, sql: &str) -> u64 {
        match self.0.execute(sql, &[]).await {
            Ok(count) => count,
            Err(error) => panic!("{sql}\n{:?}", super::refusal(error)),
        }
    }

    /// Begins a transaction and enters for a tenant at epoch 1, to write.
    pub(crate) async fn enter(&self, tenant: Uuid) {
        self.run(&format!(
            "begin; select ringfence.enter('{tenant}', 1, 'write', '')"
        ))
        .await;
    }

    /// Statements as a tenant's one committed transaction.
    pub(crate) async fn run_as(&self, tenant: Uuid, sql: &str) {
        self.enter(tenant).await;
        self.run(sql).await;
        self.run("commit").await;
    }

    /// Rows that a tenant sees in a transaction of its own.
    pub(crate) async fn rows_as(&self, tenant: Uuid, sql: &str) -> Vec<String> {
        self.enter(tenant).await;
        let rows = self.rows(sql).await;
        self.run("commit").await;
        rows
    }

    /// What a tenant's statement fails with.
    pub(crate) async fn refused_as(&self, tenant: Uuid, sql: &str) -> super::Refusal {
        self.enter(tenant).await;
        let refusal = self.refused(sql).await;
        self.run("rollback").await;
        refusal
    }
}
