//! `ringfence schema`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use ::schema::adopt::{self, Adoption, Facts, Proposal, Role};
use ::schema::apply::{Limits, advance};
use ::schema::lint::{Finding, Known, Level, Rule, lint};
use ::schema::migration::{Migration, read_directory};
use ::schema::shard::{RolePasswords, install};
use clap::Subcommand;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

use super::{Answer, migrate};
use crate::admin::Admin;
use crate::error::{self, Error, Result};
use crate::local::{Cluster, Content, Options};
use crate::output::{Column, Output, show};

/// An application's schema as it is.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Propose how a single-tenant schema becomes a distributed one: writes
    /// migration files to read, and tries them on a scratch server.
    Adopt {
        /// A dump by pg_dump --schema-only, or the address of its database,
        /// such as postgres://user@host/database.
        #[arg(long, value_name = "DUMP|DSN")]
        from: String,
        /// Folder for the files; it must hold none yet.
        #[arg(long, default_value = "migrations")]
        dir: PathBuf,
    },
}

const PROPOSALS: &[Column] = &[
    ("table", |t| show(&t["table"])),
    ("becomes", |t| show(&t["role"])),
    ("because", |t| show(&t["reason"])),
];

/// Rules that matter where a table has rows.
const OF_ROWS: &[&str] = &[
    "column-type-rewrite",
    "constraint-scans",
    "default-rewrites",
    "foreign-key-blocks",
    "index-blocks-writes",
    "key-blocks",
    "required-column",
    "set-not-null",
];

const MAKE: &str = "001_schema.sql";
const DISTRIBUTE: &str = "002_distribute.sql";
const SHARED: &str = "003_shared_rows.sql";

impl Command {
    /// Of `admin` it is asked whether shards have such tables; without one it goes on.
    pub(super) async fn run(self, admin: impl Fn() -> Result<Admin>) -> Answer {
        match self {
            Self::Adopt { from, dir } => adopt(&from, &dir, admin()).await,
        }
    }
}

async fn adopt(from: &str, folder: &Path, admin: Result<Admin>) -> Answer {
    std::fs::create_dir_all(folder).map_err(error::io(format!("make {}", folder.display())))?;
    if !read_directory(folder)?.is_empty() {
        return Err(Error::Usage(format!(
            "{} holds files already: name another folder with --dir",
            folder.display()
        )));
    }
    let source = Source::of(from);
    let dump = source.schema()?;
    let cleaned = adopt::clean(&dump);
    if let Some(problem) = cleaned.problem {
        return Err(Error::Usage(format!(
            "the dump can't be read, {problem}; make it with pg_dump --schema-only"
        )));
    }
    let mut remarks = cleaned.remarks;
    // What it says is tried before anyone reads it.
    let scratch = Cluster::start(Options {
        shards: Some(1),
        replicas: Some(0),
        routers: Some(1),
        content: Content::Servers,
        ..Options::default()
    })
    .await?;
    let tried = on_scratch(&scratch, &source, &cleaned.sql, folder, &mut remarks).await;
    scratch.down().await;
    let adoption = tried?;
    let clashes = match clashes(admin, folder).await {
        Ok(clashes) => clashes,
        Err(error) => {
            remarks.push(format!(
                "whether shards have such tables already was not asked ({}): `ringfence migrate plan --dir {}` does",
                error.chain(),
                folder.display()
            ));
            Vec::new()
        }
    };
    let items: Vec<Value> = adoption.tables.iter().map(|table| json!(table)).collect();
    let mut text = Output::list(items, PROPOSALS).text;
    if !remarks.is_empty() {
        text.push('\n');
    }
    for remark in &remarks {
        text.push_str(&format!("note: {remark}\n"));
    }
    for clash in &clashes {
        text.push_str(&format!("IN THE WAY: {clash}\n"));
    }
    let written = read_directory(folder)?;
    let written = written.iter().map(|file| folder.join(file.file()));
    let files: Vec<String> = written.map(|file| file.display().to_string()).collect();
    text.push_str(&format!(
        "\nwrote {}: read them, then `ringfence migrate apply --dir {} --wait`\n",
        files.join(", "),
        folder.display()
    ));
    let output = Output {
        text,
        json: json!({ "tables": adoption.tables, "remarks": remarks, "clashes": clashes, "files": files }),
        note: None,
        failed: None,
    };
    Ok(match clashes.is_empty() {
        true => output,
        false => output.failed(Some(
            "shards have already what the files would make: rename it in the dump or in the files, or drop it there".into(),
        )),
    })
}

/// What shards have already and the files would make, shard by shard.
async fn clashes(admin: Result<Admin>, folder: &Path) -> Result<Vec<String>> {
    let files = read_directory(folder)?;
    let status = migrate::planned(&admin?, folder, &files).await?;
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for shard in status["shards"].as_array().into_iter().flatten() {
        for made in shard["clashes"].as_array().into_iter().flatten() {
            let (name, file, line) = (show(&made["name"]), show(&made["file"]), &made["line"]);
            let what = format!("{file}, line {line} would make {name}, which is there already");
            let shard = show(&shard["shard"]);
            match found.iter_mut().find(|(known, _)| *known == what) {
                Some((_, shards)) => shards.push(shard),
                None => found.push((what, vec![shard])),
            }
        }
    }
    let line = |(what, shards): (String, Vec<String>)| format!("{what} on {}", shards.join(", "));
    Ok(found.into_iter().map(line).collect())
}

/// Where a schema comes from.
enum Source<'a> {
    /// A dump's file.
    File(&'a Path),
    /// A database's address.
    Database(&'a str),
}

impl<'a> Source<'a> {
    fn of(from: &'a str) -> Self {
        let is_dsn = from.starts_with("postgres://")
            || from.starts_with("postgresql://")
            || (from.contains('=') && !Path::new(from).exists());
        match is_dsn {
            true => Self::Database(from),
            false => Self::File(Path::new(from)),
        }
    }

    /// The schema's dump.
    fn schema(&self) -> Result<String> {
        match self {
            Self::File(file) => {
                std::fs::read_to_string(file).map_err(error::io(format!("read {}", file.display())))
            }
            Self::Database(dsn) => dump(dsn, &["--schema-only", "--no-owner"]),
        }
    }

    /// Counts each table's rows, where they are to be had.
    fn count(&self, facts: &mut Facts) -> Result<()> {
        let (Self::Database(dsn), Some(query)) = (self, facts.counting()) else {
            return Ok(());
        };
        let answer = ran(
            Process::new("psql").args(["-XAtq", "--dbname", dsn, "--command", &query]),
            "psql",
        )?;
        facts.counted(&answer);
        Ok(())
    }

    /// Rows of the tables that all tenants share, as statements; none of a dump's file,
    /// which has the schema alone.
    fn rows(&self, tables: &[&str]) -> Result<Option<String>> {
        let Self::Database(dsn) = self else {
            return Ok(None);
        };
        let mut arguments = vec!["--data-only", "--column-inserts"];
        for table in tables {
            arguments.extend(["--table", table]);
        }
        Ok(Some(dump(dsn, &arguments)?))
    }
}

fn dump(dsn: &str, arguments: &[&str]) -> Result<String> {
    let mut dump = Process::new("pg_dump");
    ran(dump.args(arguments).args(["--dbname", dsn]), "pg_dump")
}

/// What one of Postgres' own clients has printed.
fn ran(client: &mut Process, name: &str) -> Result<String> {
    let done = client.output().map_err(error::io(format!("run {name}")))?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(Error::Supervisor(format!(
            "{name} failed: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        ))),
    }
}

/// Writes and tries the rows that all tenants share: an import brings one tenant's, and
/// those refer to them.
async fn share_rows(
    client: &mut Client,
    source: &Source<'_>,
    adoption: &Adoption,
    folder: &Path,
    remarks: &mut Vec<String>,
) -> Result<()> {
    let tables = adoption.tables.iter();
    let tables: Vec<&str> = tables
        .filter(|table| table.role == Role::Reference)
        .map(|table| table.table.as_str())
        .collect();
    if tables.is_empty() {
        return Ok(());
    }
    let all = tables.join(", ");
    let Some(rows) = source.rows(&tables)? else {
        remarks.push(format!(
            "rows of {all} are all tenants': bring them by a further file of inserts, before a tenant's rows that refer to them are imported"
        ));
        return Ok(());
    };
    let rows = adopt::clean(&rows);
    let text = format!("-- Rows that all tenants share: {all}.\n\n{}", rows.sql);
    let file = Migration::parse(SHARED, &text)?;
    write(folder, SHARED, &text)?;
    apply(client, &file).await
}

/// Makes the schema on a scratch shard, writes the files, and applies them.
async fn on_scratch(
    scratch: &Cluster,
    source: &Source<'_>,
    sql: &str,
    folder: &Path,
    remarks: &mut Vec<String>,
) -> Result<Adoption> {
    let dsn = scratch.shard_dsn("s1-primary")?;
    let failed = |what: &'static str| {
        move |source| Error::Postgres {
            node: "the scratch server".into(),
            what,
            source,
        }
    };
    let (mut client, connection) = tokio_postgres::connect(&dsn, NoTls)
        .await
        .map_err(failed("to connect"))?;
    tokio::spawn(connection);
    install(&mut client, &RolePasswords::default())
        .await
        .map_err(|error| Error::Supervisor(format!("the scratch server: {error}")))?;
    let make = Migration::parse(MAKE, sql)?;
    write(folder, MAKE, sql)?;
    apply(&mut client, &make).await?;
    let mut facts = adopt::facts(&client)
        .await
        .map_err(failed("to read its schema"))?;
    source.count(&mut facts)?;
    let adoption = adopt::propose(&facts);
    remarks.extend(adoption.remarks.iter().cloned());
    let distribute = Migration::parse(DISTRIBUTE, &adoption.sql)?;
    write(folder, DISTRIBUTE, &adoption.sql)?;
    // Tables are new on every shard: what locks them holds nobody up.
    let findings = lint(&[make, distribute.clone()], Known::new());
    let ignored = left_out(&adoption, &findings);
    for (file, text, more) in [(MAKE, sql, &*ignored), (DISTRIBUTE, &adoption.sql, "")] {
        let header = of_new_tables(&findings, file);
        write(folder, file, &format!("{header}{more}{text}"))?;
    }
    apply(&mut client, &distribute).await?;
    share_rows(&mut client, source, &adoption, folder, remarks).await?;
    let schemas = facts.schemas();
    let schemas: Vec<&str> = schemas.iter().map(String::as_str).collect();
    let catalog = ::schema::introspect::load(&client, &schemas)
        .await
        .map_err(|error| Error::Supervisor(format!("the scratch server: {error}")))?;
    let names: BTreeSet<String> = catalog.relations.keys().map(ToString::to_string).collect();
    for Proposal { table, role, .. } in &adoption.tables {
        if *role != Role::Ignore && !names.contains(table) {
            remarks.push(format!(
                "{table} would not be served: once the files are applied, `ringfence doctor` says why"
            ));
        }
    }
    let served = names.len();
    remarks.push(format!(
        "tried on a scratch server: the API would serve {served} tables and views, by routers whose `api.schemas` are {}",
        schemas.join(", ")
    ));
    Ok(adoption)
}

/// Header lines for the rules that only matter where a table has rows already.
fn of_new_tables(findings: &[Finding], file: &str) -> String {
    let mut rules: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.level == Level::Error && finding.file == file)
        .map(|finding| finding.rule.id())
        .filter(|rule| OF_ROWS.contains(rule))
        .collect();
    rules.sort_unstable();
    rules.dedup();
    let line = |rule: &&str| format!("-- ringfence: allow {rule} because the tables are new\n");
    rules.iter().map(line).collect()
}

/// Header lines for each table that the proposal leaves out: whichever else is left
/// unscoped stops the lint.
fn left_out(adoption: &Adoption, findings: &[Finding]) -> String {
    let mut lines = String::new();
    let ignored = adoption.tables.iter().filter(|of| of.role == Role::Ignore);
    for Proposal { table, reason, .. } in ignored {
        lines.push_str(&format!(
            "-- ringfence: allow table-unscoped for {table} because {reason}\n"
        ));
    }
    let unlogged = |finding: &Finding| finding.rule == Rule::NotLogged;
    if findings.iter().any(unlogged) {
        lines.push_str("-- ringfence: allow not-logged because 002 leaves such tables out\n");
    }
    lines
}

async fn apply(client: &mut Client, file: &Migration) -> Result<()> {
    match advance(client, "adopt", file, &Limits::default()).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error::chain(&error);
            Err(Error::Checked(format!(
                "tried on a scratch server, the files fail: {text}; they are written, to be mended by hand"
            )))
        }
    }
}

fn write(folder: &Path, file: &str, text: &str) -> Result<()> {
    let path = folder.join(file);
    std::fs::write(&path, text).map_err(error::io(format!("write {}", path.display())))
}
