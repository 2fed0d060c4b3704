//! The server: made in a temporary folder, and gone with this process.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tokio_postgres::{Client, Config, NoTls};

/// Makes a server, prints its folder, and serves until its standard input ends,
/// which it does with the test process, however that ends. Then removes it all.
/// `setpriv` covers the case that this script itself is killed.
const SCRIPT: &str = r#"
set -eu
dir=$(mktemp -d "${TMPDIR:-/tmp}/ringfence-schema.XXXXXX")
trap 'rm -rf "$dir"' EXIT
cd "$dir"
"$PG_BIN/initdb" --pgdata data --username postgres --auth trust --encoding UTF8 \
  --locale C.UTF-8 --no-sync --no-instructions >log 2>&1 || { cat log >&2; exit 1; }
setpriv --pdeathsig KILL "$PG_BIN/postgres" -D data -k "$dir" -c listen_addresses= -c fsync=off \
  -c full_page_writes=off -c wal_level=logical -c max_connections=200 -c autovacuum=off \
  -c max_wal_size=8GB -c max_locks_per_transaction=256 >log 2>&1 &
echo "$dir"
read -r ended || true
kill -QUIT $!
wait $! || true
"#;

/// The one server of this process.
pub(crate) struct Server {
    folder: PathBuf,
    /// Its standard input is what keeps the server alive.
    _script: Child,
}

/// The server, started by the first who asks.
pub(crate) fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

impl Server {
    fn start() -> Self {
        let mut command = if rustix::process::geteuid().is_root() {
            // Postgres refuses to run as root.
            let mut command = Command::new("setpriv");
            command.args([
                "--reuid",
                "postgres",
                "--regid",
                "postgres",
                "--init-groups",
                "sh",
            ]);
            command
        } else {
            Command::new("sh")
        };
        let mut script = command
            .args(["-c", SCRIPT])
            .env("PG_BIN", programs())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C ends the test process, and that the server, in order.
            .process_group(0)
            .spawn()
            .expect("sh and setpriv are installed");
        let mut folder = String::new();
        BufReader::new(script.stdout.take().unwrap())
            .read_line(&mut folder)
            .unwrap();
        assert!(!folder.is_empty(), "initdb failed, see above");
        Self {
            folder: folder.trim_end().into(),
            _script: script,
        }
    }

    /// A connection; waits for a server that is still starting.
    pub(crate) async fn connect(&self, user: &str, database: &str) -> Client {
        let mut config = Config::new();
        config.host_path(&self.folder).user(user).dbname(database);
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error)
                    if error
                        .as_db_error()
                        .is_some_and(|e| e.code().code() != "57P03") =>
                {
                    panic!("{user} can't connect to {database}: {error:?}")
                }
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// Where the newest server programs are; `RINGFENCE_PG_BIN` names others.
fn programs() -> PathBuf {
    if let Some(named) = std::env::var_os("RINGFENCE_PG_BIN") {
        return named.into();
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = installed
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path(),
            ))
        })
        .max();
    match newest {
        Some((_, folder)) => folder.join("bin"),
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path)
                .find(|folder| folder.join("initdb").exists())
                .expect("PostgreSQL 15 or newer is installed")
        }
    }
}
