//! `ringfence schema`.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use ::schema::adopt::{self, Adoption, Proposal, Role};
use ::schema::apply::{Limits, advance};
use ::schema::lint::{Finding, Known, Level, Rule, lint};
use ::schema::migration::Migration;
use ::schema::shard::{RolePasswords, install};
use clap::Subcommand;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

use super::Answer;
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

impl Command {
    pub(super) async fn run(self) -> Answer {
        match self {
            Self::Adopt { from, dir } => adopt(&from, &dir).await,
        }
    }
}

async fn adopt(from: &str, folder: &Path) -> Answer {
    std::fs::create_dir_all(folder).map_err(error::io(format!("make {}", folder.display())))?;
    if !::schema::migration::read_directory(folder)?.is_empty() {
        return Err(Error::Usage(format!(
            "{} holds files already: name another folder with --dir",
            folder.display()
        )));
    }
    let dump = read(from)?;
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
    let tried = on_scratch(&scratch, &cleaned.sql, folder, &mut remarks).await;
    scratch.down().await;
    let adoption = tried?;
    let items: Vec<Value> = adoption.tables.iter().map(|table| json!(table)).collect();
    let mut text = Output::list(items, PROPOSALS).text;
    if !remarks.is_empty() {
        text.push('\n');
    }
    for remark in &remarks {
        text.push_str(&format!("note: {remark}\n"));
    }
    let files = [MAKE, DISTRIBUTE].map(|file| folder.join(file).display().to_string());
    text.push_str(&format!(
        "\nwrote {} and {}: read them, then `ringfence migrate apply --dir {}`\n",
        files[0],
        files[1],
        folder.display()
    ));
    Ok(Output {
        text,
        json: json!({ "tables": adoption.tables, "remarks": remarks, "files": files }),
        note: None,
        failed: None,
    })
}

/// The dump's text, from its file or by pg_dump.
fn read(from: &str) -> Result<String> {
    let is_dsn = from.starts_with("postgres://")
        || from.starts_with("postgresql://")
        || (from.contains('=') && !Path::new(from).exists());
    if !is_dsn {
        return std::fs::read_to_string(from).map_err(error::io(format!("read {from}")));
    }
    let dump = Process::new("pg_dump")
        .args(["--schema-only", "--no-owner"])
        .args(["--dbname", from])
        .output()
        .map_err(error::io("run pg_dump"))?;
    match dump.status.success() {
        true => Ok(String::from_utf8_lossy(&dump.stdout).into_owned()),
        false => Err(Error::Supervisor(format!(
            "pg_dump failed: {}",
            String::from_utf8_lossy(&dump.stderr).trim()
        ))),
    }
}

/// Makes the schema on a scratch shard, writes the files, and applies them.
async fn on_scratch(
    scratch: &Cluster,
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
    let facts = adopt::facts(&client)
        .await
        .map_err(failed("to read its schema"))?;
    let adoption = adopt::propose(&facts);
    remarks.extend(adoption.remarks.iter().cloned());
    let distribute = Migration::parse(DISTRIBUTE, &adoption.sql)?;
    write(folder, DISTRIBUTE, &adoption.sql)?;
    apply(&mut client, &distribute).await?;
    let schemas = facts.schemas();
    let schemas: Vec<&str> = schemas.iter().map(String::as_str).collect();
    let catalog = ::schema::introspect::load(&client, &schemas)
        .await
        .map_err(|error| Error::Supervisor(format!("the scratch server: {error}")))?;
    let served = catalog.relations.len();
    remarks.push(format!(
        "tried on a scratch server: the API would serve {served} tables and views, by routers whose schemas are {}",
        schemas.join(", ")
    ));
    // Tables are new on every shard: what locks them holds nobody up.
    let with_permissions = permitted(&make, &distribute, &adoption);
    write(folder, MAKE, &format!("{with_permissions}{sql}"))?;
    Ok(adoption)
}

/// Header lines for the rules that only matter where a table has rows already,
/// and for each table that the proposal leaves out: whichever else is left
/// unscoped stops the lint.
fn permitted(make: &Migration, distribute: &Migration, adoption: &Adoption) -> String {
    let findings = lint(&[make.clone(), distribute.clone()], Known::new());
    let mut rules: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.level == Level::Error && finding.file == MAKE)
        .map(|finding| finding.rule.id())
        .filter(|rule| OF_ROWS.contains(rule))
        .collect();
    rules.sort_unstable();
    rules.dedup();
    let mut lines: String = rules
        .iter()
        .map(|rule| format!("-- ringfence: allow {rule} because the tables are new\n"))
        .collect();
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
