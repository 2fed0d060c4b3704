//! What a worker does on a shard itself: prepares it, and writes fences.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schema::shard::{InstallError, Installed, RolePasswords};
use schema::tenant_tables::tenant_tables;
use serde::Serialize;
use tenancy::control::{NodeInfo, ShardInfo};
use tenancy::timelines::Timelines;
use tenancy::tls::{Tls, TlsMode};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_postgres::config::TargetSessionAttrs;
use uuid::Uuid;

/// Longest wait for a connection to a node.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A silent connection is asked whether it lives after this, so often, so many times.
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
pub(crate) const KEEPALIVE_RETRIES: u32 = 3;
/// What was sent and not acknowledged for so long never arrived.
pub(crate) const UNSENT_MAX: Duration = Duration::from_secs(20);
/// Longest wait for a fence to be written.
const FENCE_MAX: Duration = Duration::from_secs(10);
/// Longest statement of a mover.
pub(crate) const STATEMENT_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a shard to be prepared.
const INSTALL_MAX: Duration = Duration::from_secs(120);

/// Keys that are removed by one statement.
const FORGET_ROWS_MAX: i32 = 1_000;
/// Statements at most, one after another.
const FORGET_STEPS_MAX: usize = 100;

/// Longest wait for a count of a tenant's rows.
const SIZES_MAX: Duration = Duration::from_secs(30);

/// What a tenant has in a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSize {
    /// Its schema and name.
    pub table: String,
    /// Rows of the tenant.
    pub rows: i64,
    /// Their bytes, without indexes.
    pub bytes: i64,
}

/// Why a shard did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// None of its nodes is a reachable primary.
    #[error("shard {shard} has no reachable primary: {reason}")]
    NoPrimary {
        /// The shard.
        shard: String,
        /// What the last node said.
        reason: String,
    },
    /// Routers are not told of this server.
    #[error("{host}:{port} can't be node {node} of shard {shard}: {reason}")]
    NotTaken {
        /// The shard.
        shard: String,
        /// The node's name.
        node: String,
        /// Where it would listen.
        host: String,
        /// TCP port.
        port: u16,
        /// What speaks against it.
        reason: String,
    },
    /// It refused a statement.
    #[error("the shard refused a statement")]
    Postgres(#[from] tokio_postgres::Error),
    /// Its own SQL can't be installed.
    #[error("the shard can't be prepared")]
    Install(#[from] InstallError),
    /// A fence is not as it was a moment before.
    #[error("the fence of tenant {tenant} on shard {shard} was changed meanwhile")]
    Changed {
        /// The shard.
        shard: String,
        /// The tenant.
        tenant: Uuid,
    },
    /// No answer in time.
    #[error("the shard did not answer in time")]
    Slow,
}

/// How to log in to shards' nodes.
#[derive(Clone)]
pub struct Logins {
    /// How nodes are connected to.
    pub tls: Tls,
    /// What shards verify each other against, where the file is another one there.
    pub server_ca_file: Option<PathBuf>,
    /// Database name.
    pub database: String,
    /// Superuser's name.
    pub superuser: String,
    /// Superuser's password.
    pub superuser_password: Option<String>,
    /// Passwords that roles get, and that `ringfence_worker` logs in with.
    pub roles: RolePasswords,
}

/// A node's address.
#[derive(Clone, Debug)]
pub struct Address {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Its shard's newest timelines: below them it is no primary.
    pub timelines: Arc<Timelines>,
}

impl Logins {
    /// Prepares the shard's primary, or brings it up to date.
    pub async fn prepare(&self, shard: &str, nodes: &[Address]) -> Result<Installed, ShardError> {
        let mut client = self
            .primary(
                shard,
                nodes,
                &self.superuser,
                self.superuser_password.as_deref(),
            )
            .await?;
        let installed = schema::shard::install(&mut client, &self.roles);
        Ok(timeout(INSTALL_MAX, installed)
            .await
            .map_err(|_| ShardError::Slow)??)
    }

    /// Writes the fences of new tenants, active at these epochs. A tenant whose
    /// fence is there already keeps it.
    pub async fn admit(
        &self,
        shard: &str,
        nodes: &[Address],
        tenants: &[(Uuid, i64)],
    ) -> Result<(), ShardError> {
        let ids: Vec<Uuid> = tenants.iter().map(|(id, _)| *id).collect();
        let epochs: Vec<i64> = tenants.iter().map(|(_, epoch)| *epoch).collect();
        let client = self.as_worker(shard, nodes).await?;
        in_time(client.execute(
            "insert into ringfence.fence (tenant_id, epoch)
             select * from unnest($1::uuid[], $2::bigint[]) on conflict (tenant_id) do nothing",
            &[&ids, &epochs],
        ))
        .await?;
        Ok(())
    }

    /// What a tenant has in each table of the shard that holds rows of it.
    /// Reads all of them, so it takes its time for a large one.
    pub async fn tenant_sizes(
        &self,
        shard: &str,
        nodes: &[Address],
        tenant: Uuid,
    ) -> Result<Vec<TableSize>, ShardError> {
        let client = self.as_mover(shard, nodes).await?;
        let sizes = async {
            let limit = format!("set statement_timeout = {}", SIZES_MAX.as_millis());
            client.batch_execute(&limit).await?;
            let mut sizes = Vec::new();
            for table in tenant_tables(&client).await? {
                let (name, column) = (&table.name, &table.tenant_column);
                let counted = format!(
                    "select count(*), coalesce(sum(pg_column_size(t)), 0)::bigint
                     from {name} t where t.{column} = $1"
                );
                let row = client.query_one(&counted, &[&tenant]).await?;
                sizes.push(TableSize {
                    table: format!("{}.{}", name.schema.as_str(), name.name.as_str()),
                    rows: row.get(0),
                    bytes: row.get(1),
                });
            }
            Ok::<_, tokio_postgres::Error>(sizes)
        };
        let mut sizes = timeout(SIZES_MAX, sizes)
            .await
            .map_err(|_| ShardError::Slow)??;
        sizes.retain(|size| size.rows > 0);
        Ok(sizes)
    }

    /// Sets or clears the fence's `suspended`.
    pub async fn suspend(
        &self,
        shard: &str,
        nodes: &[Address],
        tenant: Uuid,
        suspended: bool,
    ) -> Result<(), ShardError> {
        let client = self.as_worker(shard, nodes).await?;
        in_time(client.execute(
            "update ringfence.fence set suspended = $2, changed_at = now()
             where tenant_id = $1 and suspended <> $2",
            &[&tenant, &suspended],
        ))
        .await?;
        Ok(())
    }

    /// Makes the fences of exactly these tenants say `suspended`; returns how
    /// many had to change.
    pub async fn suspend_exactly(
        &self,
        shard: &str,
        nodes: &[Address],
        suspended: &[Uuid],
    ) -> Result<u64, ShardError> {
        let client = self.as_worker(shard, nodes).await?;
        in_time(client.execute(
            "update ringfence.fence set suspended = not suspended, changed_at = now()
             where suspended <> (tenant_id = any($1))
               and (suspended or tenant_id = any($1))",
            &[&suspended],
        ))
        .await
    }

    /// A session on the primary that may take and delete any tenant's rows. The
    /// server ends a statement that takes longer than a minute, also when who
    /// asked for it has gone.
    pub async fn as_mover(&self, shard: &str, nodes: &[Address]) -> Result<Client, ShardError> {
        Ok(self.mover_primary(shard, nodes).await?.0)
    }

    /// The same, with the address of the node that is the primary.
    pub async fn mover_primary(
        &self,
        shard: &str,
        nodes: &[Address],
    ) -> Result<(Client, Address), ShardError> {
        let password = self.roles.mover.as_deref();
        let (client, node) = self
            .primary_node(shard, nodes, "ringfence_mover", password)
            .await?;
        let limit = format!("set statement_timeout = {}", STATEMENT_MAX.as_millis());
        in_time(client.batch_execute(&limit)).await?;
        Ok((client, node))
    }

    /// Removes keys that expired, a bounded number of them; returns how many.
    pub async fn forget_expired_keys(
        &self,
        shard: &str,
        nodes: &[Address],
    ) -> Result<u64, ShardError> {
        let client = self.as_worker(shard, nodes).await?;
        let mut forgotten = 0;
        for _ in 0..FORGET_STEPS_MAX {
            let step = client.query_one(
                "select ringfence.forget_expired_keys($1)",
                &[&FORGET_ROWS_MAX],
            );
            let count: i64 = in_time(step).await?.get(0);
            forgotten += count.unsigned_abs();
            if count < i64::from(FORGET_ROWS_MAX) {
                break;
            }
        }
        Ok(forgotten)
    }

    /// How another shard's Postgres connects to this one's primary, as the mover.
    pub fn mover_conninfo(&self, nodes: &[Address]) -> String {
        let list = |part: fn(&Address) -> String| {
            let parts: Vec<String> = nodes.iter().map(part).collect();
            quoted(&parts.join(","))
        };
        let password = self.roles.mover.as_deref().unwrap_or_default();
        let settings = self.tls.settings();
        let mode = match settings.mode {
            TlsMode::Disable => "prefer",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        };
        // Read by the receiving server, relative to its data folder.
        let authorities = self.server_ca_file.as_ref().or(settings.ca_file.as_ref());
        let authorities = match authorities.filter(|_| self.tls.is_encrypted()) {
            Some(file) => format!(" sslrootcert={}", quoted(&file.display().to_string())),
            None => String::new(),
        };
        // Whichever of them is the primary, also after a failover.
        format!(
            "host={} port={} dbname={} user=ringfence_mover password={} sslmode={mode}{authorities} \
             connect_timeout=5 target_session_attrs=read-write application_name=ringfence-move",
            list(|node| node.host.clone()),
            list(|node| node.port.to_string()),
            quoted(&self.database),
            quoted(password),
        )
    }

    /// A session of the mover on a replica that has replayed what the primary
    /// had written when this was asked; none where there is none such in time.
    pub async fn as_mover_on_replica(
        &self,
        shard: &str,
        nodes: &[Address],
        wait_max: Duration,
    ) -> Result<Option<Client>, ShardError> {
        let primary = self.as_mover(shard, nodes).await?;
        let look = primary.query_one(
            "select (system_identifier)::text, pg_current_wal_insert_lsn()::text from pg_control_system()",
            &[],
        );
        let look = in_time(look).await?;
        let (system, lsn): (String, String) = (look.get(0), look.get(1));
        let until = Instant::now() + wait_max;
        for node in nodes {
            let password = self.roles.mover.as_deref();
            let any = TargetSessionAttrs::Any;
            let connected = self.connect(node, "ringfence_mover", password, any).await;
            let Ok(client) = connected else {
                continue;
            };
            // A copy of another server, or the primary itself, has nothing to wait for.
            let same = "select pg_is_in_recovery() and system_identifier::text = $1 from pg_control_system()";
            match in_time(client.query_one(same, &[&system])).await {
                Ok(row) if row.get(0) => {}
                Ok(_) | Err(_) => continue,
            }
            let fresh = "select coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)";
            loop {
                match in_time(client.query_one(fresh, &[&lsn])).await {
                    Ok(row) if row.get(0) => return Ok(Some(client)),
                    Ok(_) if Instant::now() < until => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Ok(_) | Err(_) => break,
                }
            }
        }
        Ok(None)
    }

    /// A session on the primary that may change the application's schema.
    pub async fn as_migrator(&self, shard: &str, nodes: &[Address]) -> Result<Client, ShardError> {
        let password = self.roles.migrator.as_deref();
        self.primary(shard, nodes, "ringfence_migrator", password)
            .await
    }

    /// A session on the primary that may read what is observed of it.
    pub async fn as_worker(&self, shard: &str, nodes: &[Address]) -> Result<Client, ShardError> {
        let password = self.roles.worker.as_deref();
        self.primary(shard, nodes, "ringfence_worker", password)
            .await
    }

    /// A session of `ringfence_reader` on this very node, primary or not. It logs
    /// in as itself: a statement that gives its role up is left with the same one.
    pub async fn as_reader(&self, node: &Address) -> Result<Client, ShardError> {
        let password = self.roles.mover.as_deref();
        self.connect(node, "ringfence_reader", password, TargetSessionAttrs::Any)
            .await
    }

    /// A connection to the shard's primary, whichever node that is.
    async fn primary(
        &self,
        shard: &str,
        nodes: &[Address],
        user: &str,
        password: Option<&str>,
    ) -> Result<Client, ShardError> {
        Ok(self.primary_node(shard, nodes, user, password).await?.0)
    }

    async fn primary_node(
        &self,
        shard: &str,
        nodes: &[Address],
        user: &str,
        password: Option<&str>,
    ) -> Result<(Client, Address), ShardError> {
        let mut reason = "it has no nodes but replaced primaries".to_owned();
        for node in nodes {
            let connected = async {
                let wanted = TargetSessionAttrs::ReadWrite;
                let client = self.connect(node, user, password, wanted).await?;
                let old = old_timeline(&client, &node.timelines).await?;
                Ok::<_, ShardError>((client, old))
            };
            let said = match connected.await {
                Ok((client, None)) => return Ok((client, node.clone())),
                Ok((_, Some(old))) => format!("a primary of the old timeline {old}"),
                Err(error) => tenancy::chain(&error),
            };
            reason = format!("{}:{}: {said}", node.host, node.port);
        }
        Err(ShardError::NoPrimary {
            shard: shard.to_owned(),
            reason,
        })
    }

    async fn connect(
        &self,
        node: &Address,
        user: &str,
        password: Option<&str>,
        wanted: TargetSessionAttrs,
    ) -> Result<Client, ShardError> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&node.host)
            .port(node.port)
            .user(user)
            .dbname(&self.database)
            .application_name("ringfence-worker")
            .connect_timeout(CONNECT_MAX)
            // A statement may run for hours; a server that is gone must not be waited for so long.
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(UNSENT_MAX)
            .target_session_attrs(wanted);
        if let Some(password) = password {
            config.password(password);
        }
        let (client, connection) = timeout(CONNECT_MAX * 2, self.tls.connect(&config))
            .await
            .map_err(|_| ShardError::Slow)??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a shard ended");
            }
        });
        Ok(client)
    }
}

/// The newest timelines that were seen of a shard.
pub fn timelines(shard: &ShardInfo) -> Timelines {
    let nodes = shard.nodes.iter();
    Timelines::of(nodes.map(|node| (node.system_id.as_deref(), node.timeline)))
}

/// Whether a node was last seen as a primary that had been replaced: back from wherever
/// it was, it takes itself for one still.
pub fn was_replaced(node: &NodeInfo, timelines: &Timelines) -> bool {
    let server = node.system_id.as_deref().zip(node.timeline);
    let old = server.is_some_and(|(system, timeline)| timeline < timelines.newest(system));
    old && node.role.as_deref() == Some("primary")
}

/// The timeline of a primary that was connected to, if it was replaced.
async fn old_timeline(client: &Client, known: &Timelines) -> Result<Option<i32>, ShardError> {
    if known.is_empty() {
        return Ok(None);
    }
    let asked = client.query_one(
        "select (select system_identifier from pg_control_system())::text,
           ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int",
        &[],
    );
    let row = in_time(asked).await?;
    let (system, timeline): (&str, i32) = (row.try_get(0)?, row.try_get(1)?);
    Ok((timeline < known.newest(system)).then_some(timeline))
}

async fn in_time<T>(
    statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, ShardError> {
    Ok(timeout(FENCE_MAX, statement)
        .await
        .map_err(|_| ShardError::Slow)??)
}

/// A value of a connection string.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
