//! A scratch Postgres for this test binary, and a database for each test.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use schema::catalog::Catalog;
use schema::shard::{RolePasswords, install};
use tokio_postgres::{Client, Config, NoTls};

/// Serves until its standard input ends, which it does with the test process.
const SCRIPT: &str = r#"
set -eu
bin=${RINGFENCE_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
"$bin/initdb" -D data -U postgres -A trust -E UTF8 --locale C.UTF-8 -N >log 2>&1 || { cat log >&2; exit 1; }
"$bin/postgres" -D data -k "$dir" -c listen_addresses= -c fsync=off -c autovacuum=off \
  -c max_locks_per_transaction=1024 >log 2>&1 &
for _ in $(seq 500); do "$bin/pg_isready" -q -h "$dir" && break; sleep 0.02; done
echo "$dir"
read -r ended || true
kill -QUIT $!
wait $! || true
"#;

struct Server {
    folder: String,
    /// Its standard input keeps the server alive.
    _script: Child,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        // Postgres refuses to run as root.
        let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        let words: &[&str] = match root {
            true => &[
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                "sh",
            ],
            false => &["sh"],
        };
        let mut script = Command::new(words[0])
            .args(&words[1..])
            .args(["-c", SCRIPT])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut folder = String::new();
        BufReader::new(script.stdout.take().unwrap())
            .read_line(&mut folder)
            .unwrap();
        assert!(!folder.is_empty(), "the server did not start");
        Server {
            folder: folder.trim_end().to_owned(),
            _script: script,
        }
    })
}

async fn connect(user: &str, database: &str) -> Client {
    let mut config = Config::new();
    config
        .host_path(&server().folder)
        .user(user)
        .dbname(database);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Roles are the server's, and part of every model: whoever adds some, or
/// compares the models of two databases, holds this meanwhile.
pub(crate) static ROLES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A database that `install` prepared.
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) admin: Client,
}

impl Shard {
    /// A new one, on which the superuser then ran `sql`.
    pub(crate) async fn with(sql: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // Roles belong to the server: shards are made one after the other.
        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _one = ONE.lock().await;
        connect("postgres", "postgres")
            .await
            .batch_execute(&format!("create database {name} template template0"))
            .await
            .unwrap();
        let mut admin = connect("postgres", &name).await;
        install(&mut admin, &RolePasswords::default())
            .await
            .unwrap();
        let shard = Self { name, admin };
        shard.run(sql).await;
        shard
    }

    pub(crate) async fn run(&self, sql: &str) {
        if let Err(error) = self.admin.batch_execute(sql).await {
            panic!("{sql}: {error:?}");
        }
    }

    /// A router's connection.
    pub(crate) async fn router(&self) -> Client {
        connect("ringfence_router", &self.name).await
    }

    /// The model, as a router loads it.
    pub(crate) async fn load(&self) -> Catalog {
        schema::introspect::load(&self.router().await, &["public"])
            .await
            .unwrap()
    }
}
