//! Postgres servers: where the programs are, how a data folder is made, how a
//! server is started.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use super::authority::Authority;
use super::config::{PG_HBA_CONF, PG_HBA_TLS_CONF, POSTGRESQL_CONF, SERVER_CA};
use super::folder::{Folder, append, log_end};
use super::layout::Node;
use super::process::{Identity, Nursery, command};
use crate::error::{Error, Result, io};

/// Oldest version that has what Ringfence needs.
const OLDEST: u32 = 15;
/// `initdb` takes 0.6 s, copying an empty server less; disks may be slow.
const MAKE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(2);

/// The installed server programs, and the user that they run as.
#[derive(Debug)]
pub(crate) struct Postgres {
    bin: PathBuf,
    pub(crate) identity: Identity,
}

impl Postgres {
    /// Finds the newest installed version. `RINGFENCE_PG_BIN` names another.
    pub(crate) fn find() -> Result<Self> {
        let bin = find_bin().ok_or_else(|| Error::Missing {
            what: format!("PostgreSQL {OLDEST} or newer"),
            advice: "install it (on Debian 12: ./ops/up does, or apt-get install postgresql-15), \
                     or name its bin folder in RINGFENCE_PG_BIN"
                .into(),
        })?;
        let identity = if rustix::process::geteuid().is_root() {
            postgres_user()?
        } else {
            Identity::Own
        };
        Ok(Self { bin, identity })
    }

    /// Makes a node's folder, empty, for the servers' user only.
    fn make_folder(&self, dir: &Path) -> Result<()> {
        let make = || -> std::io::Result<()> {
            if dir.exists() {
                fs::remove_dir_all(dir)?;
            }
            fs::DirBuilder::new().mode(0o700).create(dir)?;
            self.hand_over(dir)
        };
        make().map_err(io(format!("make the folder {}", dir.display())))
    }

    fn hand_over(&self, path: &Path) -> std::io::Result<()> {
        match self.identity {
            Identity::Own => Ok(()),
            Identity::User { uid, gid, .. } => chown(path, Some(uid), Some(gid)),
        }
    }

    /// Is there a data folder that was completed?
    pub(crate) fn is_made(folder: &Folder, node: &Node) -> bool {
        folder.node(&node.name).join("made").exists()
    }

    /// Makes the data folder of a server of its own.
    ///
    /// Each runs `initdb` itself: a copied folder would share the system
    /// identifier, by which shards tell each other's servers apart.
    pub(crate) async fn make_primary(
        &self,
        nursery: &Nursery,
        folder: &Folder,
        node: &Node,
        password: &str,
    ) -> Result<()> {
        let dir = folder.node(&node.name);
        self.make_folder(&dir)?;
        let password_file = dir.join("password");
        self.write(&password_file, password)?;
        let mut initdb = self.program("initdb", &dir);
        initdb
            .args(["--pgdata", "data", "--username", "postgres"])
            .args(["--auth", "scram-sha-256", "--pwfile", "password"])
            .args(["--encoding", "UTF8", "--locale", "C.UTF-8"])
            .args(["--data-checksums", "--no-instructions"])
            // The folder counts only once `made` exists.
            .arg("--no-sync");
        self.run(nursery, folder, node, initdb, "initdb").await?;
        self.write(&dir.join("data/postgresql.conf"), POSTGRESQL_CONF)?;
        self.write(&dir.join("data/pg_hba.conf"), PG_HBA_CONF)?;
        fs::remove_file(&password_file)
            .map_err(io(format!("remove {}", password_file.display())))?;
        self.write(&dir.join("made"), "")
    }

    /// Makes the data folder of a server that follows `primary`, with a
    /// replication slot of its own.
    pub(crate) async fn make_replica(
        &self,
        nursery: &Nursery,
        folder: &Folder,
        node: &Node,
        primary: &Node,
        password: &str,
    ) -> Result<()> {
        let dir = folder.node(&node.name);
        self.make_folder(&dir)?;
        let slot = slot_name(node);
        let client = connect(primary, "postgres", password).await?;
        // A half-made replica of an earlier run may have left its slot.
        client
            .execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                 where slot_name = $1 and not active",
                &[&slot],
            )
            .await
            .map_err(failed(primary, "dropping a half-made replica's slot"))?;
        let port = primary.port.to_string();
        let mut copy = self.program("pg_basebackup", &dir);
        copy.env("PGPASSWORD", password)
            .args(["--pgdata", "data", "--host", "127.0.0.1", "--port", &port])
            .args(["--username", "postgres", "--no-password"])
            .args(["--create-slot", "--slot", &slot, "--wal-method", "stream"])
            .args(["--checkpoint", "fast", "--write-recovery-conf", "--no-sync"]);
        self.run(nursery, folder, node, copy, "pg_basebackup")
            .await?;
        self.write(&dir.join("made"), "")
    }

    /// The command that serves a node's data folder.
    ///
    /// Whether it speaks TLS is said here, as is who may connect: a kept folder
    /// may be served with it today and without it tomorrow.
    pub(crate) fn serve(
        &self,
        folder: &Folder,
        node: &Node,
        fsync: bool,
        tls: Option<&Authority>,
    ) -> Result<Command> {
        let data = folder.node(&node.name).join("data");
        let rules = match tls {
            Some(_) => PG_HBA_TLS_CONF,
            None => PG_HBA_CONF,
        };
        self.write(&data.join("pg_hba.conf"), rules)?;
        let mut server = self.program("postgres", &folder.node(&node.name));
        let port = node.own_port.to_string();
        server.args(["-D", "data", "-p", &port, "-c"]);
        server.arg(format!("cluster_name={}", node.name));
        if !fsync {
            server.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        if let Some(authority) = tls {
            let (certificate, key) = authority.issue("127.0.0.1")?;
            self.write(&data.join("server.crt"), &certificate)?;
            self.write(&data.join("server.key"), &key)?;
            // Shards verify each other when tenants move.
            let ca = fs::read_to_string(authority.file()).map_err(io("read the authority"))?;
            self.write(&data.join(SERVER_CA), &ca)?;
            server.args(["-c", "ssl=on"]);
        }
        Ok(server)
    }

    fn program(&self, name: &str, dir: &Path) -> Command {
        command(&self.identity, &self.bin.join(name), dir)
    }

    async fn run(
        &self,
        nursery: &Nursery,
        folder: &Folder,
        node: &Node,
        mut command: Command,
        what: &str,
    ) -> Result<()> {
        let log = folder.log(&node.name);
        let output = append(&log)?;
        let errors = output.try_clone().map_err(io("share a log file"))?;
        command.stdout(output).stderr(errors);
        let reason = match nursery.run(command, MAKE).await {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => format!("could not be made: {what} ended with {status}"),
            Err(error) => format!("could not be made: {what}: {error}"),
        };
        Err(Error::Node {
            node: node.name.clone(),
            reason,
            end: log_end(&log),
            log,
        })
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
            .and_then(|()| self.hand_over(path))
            .map_err(io(format!("write {}", path.display())))
    }
}

/// The physical slot of a replica on the server that it was copied from.
fn slot_name(node: &Node) -> String {
    node.name.replace('-', "_")
}

/// The superuser's connection string.
pub(crate) fn dsn(user: &str, password: &str, node: &Node, database: &str) -> String {
    let port = node.port;
    format!("postgresql://{user}:{password}@127.0.0.1:{port}/{database}")
}

/// A superuser's connection, driven until it is dropped.
pub(crate) async fn connect(node: &Node, database: &str, password: &str) -> Result<Client> {
    let (client, connection) = Config::new()
        .host("127.0.0.1")
        // Past a proxy: what a network does to others must not stop this.
        .port(node.own_port)
        .user("postgres")
        .password(password)
        .dbname(database)
        .application_name("ringfence local")
        .connect_timeout(CONNECT)
        .connect(NoTls)
        .await
        .map_err(failed(node, "connecting"))?;
    // Ends with its client; its errors reach the client's own calls.
    tokio::spawn(connection);
    Ok(client)
}

/// Promotes `node`, and points those of its `siblings` at it that follow a primary.
pub(crate) async fn promote(node: &Node, siblings: &[&Node], password: &str) -> Result<()> {
    let client = connect(node, "postgres", password).await?;
    if !recovers(&client, node).await? {
        let what = format!("{} is a primary already: nothing was changed", node.name);
        return Err(Error::Usage(what));
    }
    let promoted = client
        .query_one("select pg_promote(true, 60)", &[])
        .await
        .map_err(failed(node, "promoting"))?;
    if !promoted.get::<_, bool>(0) {
        return Err(Error::Supervisor(format!(
            "{} did not become a primary within 60 s",
            node.name
        )));
    }
    for sibling in siblings {
        let sibling_client = connect(sibling, "postgres", password).await?;
        // Not a former primary that is back.
        if !recovers(&sibling_client, sibling).await? {
            continue;
        }
        let slot = slot_name(sibling);
        client
            .execute(
                "select pg_create_physical_replication_slot($1) where not exists
                   (select from pg_replication_slots where slot_name = $1)",
                &[&slot],
            )
            .await
            .map_err(failed(node, "making a replica's slot"))?;
        let follow = format!(
            "alter system set primary_conninfo =
               'host=127.0.0.1 port={} user=postgres password={password}'",
            node.port
        );
        for statement in [&*follow, "select pg_reload_conf()"] {
            sibling_client
                .batch_execute(statement)
                .await
                .map_err(failed(sibling, "following the new primary"))?;
        }
    }
    Ok(())
}

/// Whether it follows a primary.
async fn recovers(client: &Client, node: &Node) -> Result<bool> {
    let row = client
        .query_one("select pg_is_in_recovery()", &[])
        .await
        .map_err(failed(node, "promoting"))?;
    Ok(row.get(0))
}

/// For `map_err`: a statement or connection that failed.
pub(crate) fn failed(
    node: &Node,
    what: &'static str,
) -> impl FnOnce(tokio_postgres::Error) -> Error {
    let node = node.name.clone();
    move |source| Error::Postgres { node, what, source }
}

fn find_bin() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("RINGFENCE_PG_BIN") {
        return Some(PathBuf::from(named)).filter(|bin| bin.join("postgres").exists());
    }
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            (version >= OLDEST && bin.join("postgres").exists()).then_some((version, bin))
        })
        .max()
        .map(|(_, bin)| bin);
    debian.or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .find(|dir| dir.join("postgres").exists() && dir.join("initdb").exists())
    })
}

fn postgres_user() -> Result<Identity> {
    let id = |flag: &str| {
        Command::new("id")
            .args([flag, "postgres"])
            .stderr(Stdio::null())
            .output()
            .ok()
            .and_then(|output| String::from_utf8(output.stdout).ok()?.trim().parse().ok())
    };
    match (id("-u"), id("-g")) {
        (Some(uid), Some(gid)) => Ok(Identity::User {
            name: "postgres".into(),
            uid,
            gid,
        }),
        _ => Err(Error::Missing {
            what: "the user postgres".into(),
            advice: "Postgres refuses to run as root, so root runs it as this user; \
                     Debian's package makes it (apt-get install postgresql-15)"
                .into(),
        }),
    }
}
