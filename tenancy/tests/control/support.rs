//! A throw-away PostgreSQL server for one test, on a free port of 127.0.0.1.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};

const PASSWORD: &str = "only for this test";

/// Stopped and removed when it is dropped; killed should its test die first.
pub(crate) struct Server {
    folder: PathBuf,
    port: u16,
    running: Option<Child>,
}

impl Server {
    /// An empty server that answers.
    pub(crate) async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("ringfence-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let mut server = Self {
            folder,
            port: 0,
            running: None,
        };
        let password = server.folder.join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        if let Some(owner) = account() {
            chown(&server.folder, Some(owner), None).unwrap();
            chown(&password, Some(owner), None).unwrap();
        }
        let made = server
            .command("initdb")
            .args(["--no-sync", "--auth=scram-sha-256", "--username=postgres"])
            .arg("--pwfile")
            .arg(&password)
            .arg(server.folder.join("data"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb: {said}");
        // At the last moment, for others look for one, too.
        server.port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        server.resume().await;
        server
    }

    /// Starts it (again) with its data, and waits until it answers.
    pub(crate) async fn resume(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let started = Instant::now();
        loop {
            if self.running.as_mut().is_none_or(has_ended) {
                // After a kill the old backends may hold the shared memory a moment longer.
                let mut command = self.command("postgres");
                command
                    .arg("-D")
                    .arg(self.folder.join("data"))
                    .args(["-p", &self.port.to_string()])
                    .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k"])
                    .arg(&self.folder)
                    .stdout(Stdio::null())
                    .stderr(log.try_clone().unwrap());
                self.running = Some(command.spawn().unwrap());
            }
            if self.try_connect("postgres").await.is_ok() {
                return;
            }
            if started.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                panic!("the server did not start: {log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it as a power cut would: kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.running.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Connection string of a database, as superuser.
    pub(crate) fn dsn(&self, database: &str) -> String {
        self.dsn_as("postgres", PASSWORD, database)
    }

    /// Connection string of a database, as another role.
    pub(crate) fn dsn_as(&self, user: &str, password: &str, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={user} password='{password}' dbname={database}",
            self.port
        )
    }

    /// A new, empty database's connection string.
    pub(crate) async fn database(&self, name: &str) -> String {
        let client = connect(&self.dsn("postgres")).await;
        client
            .batch_execute(&format!("create database {name}"))
            .await
            .unwrap();
        self.dsn(name)
    }

    /// A new control database's connection string.
    pub(crate) async fn control(&self, name: &str) -> String {
        let dsn = self.database(name).await;
        let mut client = connect(&dsn).await;
        schema::control::upgrade(&mut client, None).await.unwrap();
        dsn
    }

    async fn try_connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        try_connect(&self.dsn(database)).await
    }

    /// A program of the newest PostgreSQL here; as root, run by its own account.
    fn command(&self, program: &str) -> Command {
        let program = programs().join(program);
        let mut command = Command::new("setpriv");
        // The server must not outlive a test that is killed.
        command.args(["--pdeathsig", "KILL"]);
        if let Some(owner) = account() {
            command.args(["--reuid", &owner.to_string(), "--clear-groups"]);
        }
        command.arg(program).current_dir(&self.folder);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.running.take() {
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::QUIT);
            }
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A connection that lives as long as its client.
pub(crate) async fn connect(dsn: &str) -> Client {
    try_connect(dsn).await.unwrap()
}

pub(crate) async fn try_connect(dsn: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn has_ended(process: &mut Child) -> bool {
    process.try_wait().unwrap().is_some()
}

/// The account that runs PostgreSQL, which refuses to run as root; none where
/// this process is not root.
fn account() -> Option<u32> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("as root, an account postgres is needed");
    line.split(':').nth(2)?.parse().ok()
}

/// The folder of the newest PostgreSQL's programs.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = versions
        .filter_map(|version| Some(version.ok()?.path()))
        .filter(|path| {
            path.join("bin/postgres")
                .metadata()
                .is_ok_and(|m| m.size() > 0)
        })
        .max_by_key(|path| number(path));
    newest.expect("PostgreSQL is not installed").join("bin")
}

fn number(path: &Path) -> u32 {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok()).unwrap_or(0)
}
