//! `ringfence tenant export` and `import`: a tenant as one file.

use std::fs::File;
use std::io::{IsTerminal, Read, Write, stderr};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schema::archive::dump::{self, Wanted};
use schema::archive::manifest::ArchivedTenant;
use schema::archive::read::{self, Piece};
use schema::archive::{ArchiveError, Digests, Manifest};
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::config::{Host, SslMode};
use uuid::Uuid;

use super::{Answer, job};
use crate::admin::{Admin, Upload, segment};
use crate::error::{Error, Result, io};
use crate::output::{Column, Output, show};

/// Longest wait for the next bytes of an archive.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Longest wait for a server that is exported from without a worker.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// An export is begun so often, before it is given up.
const EXPORT_TRIES: u32 = 4;
/// An import is given up after so many tries in which nothing more came in.
const IMPORT_TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes that are read from the file at once.
const CHUNK: usize = 256 << 10;

const EXPORTED: &[Column] = &[
    ("file", |e| show(&e["file"])),
    ("tenant", |e| show(&e["tenant"])),
    ("taken at", |e| show(&e["taken_at"])),
    ("rows", |e| show(&e["rows"])),
    ("bytes of rows", |e| show(&e["bytes"])),
    ("bytes of file", |e| show(&e["file_bytes"])),
    ("took", job::took),
];

/// Writes a tenant into a file, which is there once it is whole.
pub(super) async fn export(admin: &Admin, tenant: &str, to: &Path, from: Option<&str>) -> Answer {
    if to.exists() {
        return Err(Error::Usage(format!(
            "{} is there already: choose another file",
            to.display()
        )));
    }
    let began = Instant::now();
    let partial = Partial::beside(to);
    let written = async {
        match from {
            Some(dsn) => from_server(admin, tenant, dsn, &partial).await,
            None => from_worker(admin, tenant, &partial).await,
        }?;
        check(&partial.path).await
    };
    let (manifest, digests) = tokio::select! {
        written = written => written?,
        _ = tokio::signal::ctrl_c() => return Err(Error::Checked("interrupted: no file was written".into())),
    };
    let file_bytes = partial.keep(to)?;
    let tables: Vec<Value> = manifest
        .rows_by_table(&digests)
        .into_iter()
        .filter(|(_, rows)| *rows > 0)
        .map(|(table, rows)| json!({ "table": table, "rows": rows }))
        .collect();
    let slug = manifest.tenant.slug.clone();
    let exported = json!({
        "file": to.display().to_string(),
        "tenant": slug.unwrap_or_else(|| manifest.tenant.id.to_string()),
        "id": manifest.tenant.id,
        "taken_at": manifest.taken_at,
        "rows": digests.rows,
        "bytes": digests.bytes,
        "file_bytes": file_bytes,
        "tables": tables,
        "seconds": began.elapsed().as_secs_f64(),
    });
    Ok(Output::record(exported, EXPORTED))
}

/// The file that becomes the archive; gone, unless it is kept.
struct Partial {
    path: PathBuf,
    compress: bool,
}

impl Partial {
    fn beside(to: &Path) -> Self {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        Self {
            path: to.with_file_name(name),
            compress: to
                .extension()
                .is_some_and(|end| end == "zst" || end == "tzst"),
        }
    }

    fn create(&self) -> Result<File> {
        // A tenant's whole data: nobody else reads it, nor chooses by a link where
        // it goes. Begun anew, it is another file.
        let _ = std::fs::remove_file(&self.path);
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&self.path);
        file.map_err(io(format!("write {}", self.path.display())))
    }

    /// Gives it its name, once it is on disk.
    fn keep(&self, to: &Path) -> Result<u64> {
        let keep = || {
            let file = File::open(&self.path)?;
            file.sync_all()?;
            // Refuses to replace a file that came meanwhile.
            std::fs::hard_link(&self.path, to)?;
            Ok(file.metadata()?.len())
        };
        keep().map_err(io(format!("write {}", to.display())))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Through a worker: begun anew where it breaks off, from the primary then.
async fn from_worker(admin: &Admin, tenant: &str, partial: &Partial) -> Result<()> {
    let compression = if partial.compress { "zstd" } else { "none" };
    let path = format!("/tenants/{}/export", segment(tenant));
    let mut tried = 0;
    loop {
        tried += 1;
        let from = if tried == 1 { "any" } else { "primary" };
        let query = [("compression", compression), ("from", from)];
        let copied = copy(admin, tenant, &path, &query, partial).await;
        match copied {
            Err(error) if tried < EXPORT_TRIES && may_pass(&error) => {
                eprintln!("the export broke off, it is begun anew: {}", error.chain());
                tokio::time::sleep(PAUSE * tried * tried).await;
            }
            copied => return copied,
        }
    }
}

async fn copy(
    admin: &Admin,
    tenant: &str,
    path: &str,
    query: &[(&str, &str)],
    partial: &Partial,
) -> Result<()> {
    let mut file = partial.create()?;
    let mut download = admin.download(path, query).await?;
    let expected = download.number("ringfence-bytes-estimate");
    let expected = expected.filter(|_| !partial.compress).unwrap_or(0);
    let mut screen = Progress::of("export", tenant, expected);
    loop {
        let chunk = timeout(SILENCE_MAX, download.chunk()).await;
        let silent = || Error::Archive {
            file: partial.path.clone(),
            source: ArchiveError::Slow("sent"),
        };
        match chunk.map_err(|_| silent())?? {
            Some(bytes) => {
                let written = file.write_all(&bytes);
                written.map_err(io(format!("write {}", partial.path.display())))?;
                screen.more(bytes.len());
            }
            None => return Ok(()),
        }
    }
}

/// Whether the same may succeed when it is tried again.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } => true,
        Error::Api { status, code, .. } => {
            status.is_server_error()
                || status.as_u16() == 408
                // On the move just now.
                || code == "RF436"
        }
        Error::Archive { source, .. } => !source.is_final(),
        _ => false,
    }
}

/// From a server that is not in the fleet, such as a restored copy of a shard.
async fn from_server(admin: &Admin, tenant: &str, dsn: &str, partial: &Partial) -> Result<()> {
    let tenant = known(admin, tenant).await?;
    let failed = |what: &'static str| {
        move |source| Error::Postgres {
            node: "the server of --from".into(),
            what,
            source,
        }
    };
    let mut config: tokio_postgres::Config = dsn
        .parse()
        .map_err(|error| Error::Usage(format!("--from is no connection string: {error}")))?;
    refuse_in_clear(&config)?;
    if config.get_password().is_none()
        && let Ok(password) = std::env::var("PGPASSWORD")
    {
        config.password(password);
    }
    config
        .connect_timeout(CONNECT_MAX)
        .application_name("ringfence-export");
    let (mut client, connection) = config.connect(NoTls).await.map_err(failed("connecting"))?;
    let connection = tokio::spawn(connection);
    let wanted = Wanted {
        tenant,
        compress: partial.compress,
    };
    let expected = match partial.compress {
        true => 0,
        false => dump::estimate(&client, wanted.tenant.id)
            .await
            .map_err(failed("looking at the tables"))?,
    };
    let mut file = partial.create()?;
    let (out, mut packed) = channel::<Vec<u8>>(1);
    let name = wanted.tenant.slug.clone();
    let name = name.unwrap_or_else(|| wanted.tenant.id.to_string());
    let mut screen = Progress::of("export", &name, expected);
    let write = async {
        let mut written = Ok(());
        while let Some(bytes) = packed.recv().await {
            written = file.write_all(&bytes);
            if written.is_err() {
                break;
            }
            screen.more(bytes.len());
        }
        drop(packed);
        written
    };
    let dump = async {
        let dumped = dump::dump(&mut client, &wanted, &out).await;
        drop(out);
        dumped
    };
    let (dumped, written) = tokio::join!(dump, write);
    connection.abort();
    written.map_err(io(format!("write {}", partial.path.display())))?;
    dumped.map(|_| ()).map_err(|source| Error::Archive {
        file: partial.path.clone(),
        source,
    })
}

/// What goes over a network without TLS, the password's check included, was
/// asked for.
fn refuse_in_clear(config: &tokio_postgres::Config) -> Result<()> {
    let is_near = match config.get_hostaddrs() {
        [] => config.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            }
        }),
        addresses => addresses.iter().all(IpAddr::is_loopback),
    };
    match is_near || config.get_ssl_mode() == SslMode::Disable {
        true => Ok(()),
        false => Err(Error::Usage(
            "--from is read without TLS: name a server on this host, or a tunnel to it; on a network that you trust, say sslmode=disable"
                .into(),
        )),
    }
}

/// Who a tenant is; shards know ids only.
async fn known(admin: &Admin, tenant: &str) -> Result<ArchivedTenant> {
    let id = Uuid::parse_str(tenant).ok();
    let found = admin
        .get(&format!("/tenants/{}", segment(tenant)), &[])
        .await;
    match (found, id) {
        (Ok(found), _) => {
            let text = |field: &str| found[field].as_str().map(str::to_owned);
            let id = text("id").and_then(|id| Uuid::parse_str(&id).ok());
            Ok(ArchivedTenant {
                id: id.ok_or_else(|| Error::Answer {
                    request: "GET /tenants".into(),
                    field: "id",
                })?,
                slug: text("slug"),
                name: text("name"),
            })
        }
        // A tenant that was deleted has no name any longer.
        (Err(_), Some(id)) => Ok(ArchivedTenant {
            id,
            slug: None,
            name: None,
        }),
        (Err(Error::Api { status, .. }), None) if status.as_u16() == 404 => {
            Err(Error::Usage(format!(
                "there is no tenant {tenant} any longer: name it by its id; `ringfence audit --object {tenant}` has it"
            )))
        }
        (Err(error), None) => Err(error),
    }
}

/// Reads an archive from end to end: it is whole, or why not.
async fn check(file: &Path) -> Result<(Manifest, Digests)> {
    let path = file.to_owned();
    let failed = |source| Error::Archive {
        file: file.to_owned(),
        source,
    };
    let checked = tokio::task::spawn_blocking(move || {
        let mut manifest = None;
        let digests = read::read(File::open(path)?, |piece| {
            if let Piece::Manifest(known, _) = piece {
                manifest = Some(*known);
            }
            Ok(())
        })?;
        let manifest = manifest.ok_or_else(|| ArchiveError::Format("it is empty".into()))?;
        Ok((manifest, digests))
    });
    let checked = checked.await.map_err(std::io::Error::other);
    checked
        .map_err(|error| failed(ArchiveError::Io(error)))?
        .map_err(failed)
}

/// How an archive is taken in.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) slug: Option<String>,
    pub(super) id: Option<Uuid>,
    pub(super) shard: Option<String>,
}

/// Makes a tenant of a file. Where it breaks off, it goes on.
pub(super) async fn import(admin: &Admin, file: &Path, intake: Intake) -> Answer {
    let (manifest, digests) = check(file).await?;
    let slug = intake.slug.or_else(|| manifest.tenant.slug.clone());
    let slug = slug.ok_or_else(|| {
        Error::Usage("the archive has no name of its tenant: say --as NAME".into())
    })?;
    let last = newest(admin, &slug).await?.map(|job| show(&job["id"]));
    refuse_taken(admin, &slug).await?;
    let mut query = vec![("as", slug.clone())];
    query.extend(intake.id.map(|id| ("id", id.to_string())));
    query.extend(intake.shard.map(|shard| ("shard", shard)));
    let query: Vec<(&str, &str)> = query.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let (mut tried, mut seen) = (0, 0);
    loop {
        let sent = send(admin, &query, file, &slug, &digests).await;
        let error = match sent {
            Ok(job) => return Ok(job::record(job::started(admin, job, true).await?)),
            Err(error) => error,
        };
        let job = newest(admin, &slug).await;
        if let Ok(Some(job)) = job
            && Some(show(&job["id"])) != last
        {
            if job["done"] == true || job["status"] == "stuck" {
                return Ok(job::record(job::started(admin, job, true).await?));
            }
            let bytes = job["progress"]["done"].as_u64().unwrap_or(0);
            if bytes > seen {
                (tried, seen) = (0, bytes);
            }
        }
        tried += 1;
        if tried > IMPORT_TRIES || !may_pass(&error) {
            return Err(error);
        }
        eprintln!("the import broke off, it goes on: {}", error.chain());
        tokio::time::sleep(PAUSE * tried.min(6)).await;
    }
}

/// A name that is in use is refused before a byte is sent.
async fn refuse_taken(admin: &Admin, slug: &str) -> Result<()> {
    match admin.get(&format!("/tenants/{}", segment(slug)), &[]).await {
        Ok(found) if found["state"] == "importing" => Ok(()),
        Ok(_) => Err(Error::Usage(format!(
            "there is a tenant {slug} already: an import makes a new one, choose its name by --as"
        ))),
        Err(Error::Api { status, .. }) if status.as_u16() == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

async fn newest(admin: &Admin, slug: &str) -> Result<Option<Value>> {
    let query = [("kind", "tenant_restore"), ("limit", "200")];
    let mut page = admin.get("/jobs", &query).await?;
    let jobs = admin.items(&mut page, "GET /jobs")?;
    Ok(jobs.into_iter().find(|job| job["object"] == slug))
}

async fn send(
    admin: &Admin,
    query: &[(&str, &str)],
    file: &Path,
    slug: &str,
    digests: &Digests,
) -> Result<Value> {
    let unreadable = format!("read {}", file.display());
    let mut source = File::open(file).map_err(io(unreadable.clone()))?;
    let length = source.metadata().map_err(io(unreadable))?.len();
    let (chunks, body) = channel(2);
    let mut screen = Progress::of("import", slug, length);
    let reader = tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = source.read(&mut chunk);
            let is_end = matches!(read, Ok(0));
            let chunk = read.map(|length| {
                chunk.truncate(length);
                screen.more(length);
                chunk
            });
            let is_last = is_end || chunk.is_err();
            if (!is_end && chunks.blocking_send(chunk).is_err()) || is_last {
                return;
            }
        }
    });
    let body: Receiver<std::io::Result<Vec<u8>>> = body;
    let upload = Upload::new(body, length);
    let answer = admin.upload("/tenants:import", query, upload).await;
    reader.abort();
    if answer.is_ok() && !stderr().is_terminal() {
        eprintln!("{} rows sent", digests.rows);
    }
    answer
}

/// One line that changes, where someone looks.
struct Progress {
    what: String,
    done: u64,
    total: u64,
    began: Instant,
    shown: Instant,
}

impl Progress {
    fn of(verb: &str, tenant: &str, total: u64) -> Self {
        let now = Instant::now();
        Self {
            what: format!("{verb} {}", show(&Value::from(tenant))),
            done: 0,
            total,
            began: now,
            shown: now,
        }
    }

    fn more(&mut self, bytes: usize) {
        const EVERY: Duration = Duration::from_millis(200);
        self.done += bytes as u64;
        if self.shown.elapsed() >= EVERY && stderr().is_terminal() {
            self.shown = Instant::now();
            eprint!("\r\x1b[K{}", self.line(self.began.elapsed().as_secs_f64()));
        }
    }

    fn line(&self, seconds: f64) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let of = match self.total {
            0 => String::new(),
            // The planner may have expected less.
            total => format!(" of about {:.1}", mb(total.max(self.done))),
        };
        let rate = mb(self.done) / seconds.max(0.001);
        format!("{}: {:.1}{of} MB, {rate:.1} MB/s", self.what, mb(self.done))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress() {
        let mut progress = Progress::of("export", "acme", 200_000_000);
        progress.done = 50_000_000;
        assert_eq!(
            progress.line(2.0),
            "export acme: 50.0 of about 200.0 MB, 25.0 MB/s"
        );
        progress.total = 0;
        assert_eq!(progress.line(2.0), "export acme: 50.0 MB, 25.0 MB/s");
    }

    #[test]
    fn another_hosts_rows_come_in_clear_only_where_that_was_said() {
        for (dsn, is_taken) in [
            ("host=127.0.0.1 user=postgres", true),
            ("postgres://postgres@[::1]/app", true),
            ("host=localhost,/run/postgresql user=postgres", true),
            ("host=db.example user=postgres", false),
            ("host=localhost hostaddr=192.0.2.1 user=postgres", false),
            ("host=localhost,192.0.2.1 user=postgres", false),
            ("host=db.example sslmode=require", false),
            ("host=db.example sslmode=disable", true),
        ] {
            let taken = refuse_in_clear(&dsn.parse().unwrap());
            assert_eq!(taken.is_ok(), is_taken, "{dsn}");
        }
    }

    #[test]
    fn a_partial_file_stands_beside_its_own() {
        let plain = Partial::beside(Path::new("/tmp/a/acme.tar"));
        assert_eq!(plain.path.parent(), Some(Path::new("/tmp/a")));
        assert!(!plain.compress);
        assert!(Partial::beside(Path::new("acme.tar.zst")).compress);
    }
}
