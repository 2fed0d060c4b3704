//! `ringfence migrate`.

mod plan;
mod status;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use schema::lint::{Finding, Known, Level, lint, passes};
use schema::migration::{Migration, read_directory};
use serde_json::{Value, json};

use super::{Answer, job};
use crate::admin::{Admin, segment};
use crate::error::{self, Error, Result};
use crate::output::{Column, Output, show};
use crate::safety::confirm;

/// Changes of the schema, on all shards.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the next numbered file, empty but for its header.
    New {
        /// What it does: lower-case letters, digits and underscores.
        name: String,
        /// Where the files are.
        #[command(flatten)]
        directory: Directory,
        /// It removes what nobody reads any longer.
        #[arg(long)]
        contract: bool,
    },
    /// Look for what would reach across tenants, block requests or break
    /// running versions. Needs no server.
    Lint {
        /// Where the files are.
        #[command(flatten)]
        directory: Directory,
    },
    /// Show what apply would run, on which shards, about how long, and what would
    /// stop it. Changes nothing; exit code 1 where apply would be stopped, 4 where
    /// a shard can't be reached.
    Plan {
        /// Where the files are.
        #[command(flatten)]
        directory: Directory,
    },
    /// Apply the files to all shards: one first, then several at a time, none
    /// further once one has failed. Called again, it goes on from there.
    Apply {
        /// Where the files are.
        #[command(flatten)]
        directory: Directory,
        /// How they are applied.
        #[command(flatten)]
        run: Run,
    },
    /// Show what each shard has, where shards differ, and what the folder has that
    /// they lack.
    Status {
        /// Where the files are.
        #[command(flatten)]
        directory: Directory,
    },
    /// Check that all shards have exactly these files and equal schemas; exit
    /// code 1 where not.
    Verify {
        /// Where the files are.
        #[command(flatten)]
        directory: Directory,
    },
    /// Record the files as applied without running them: shards hold already
    /// what they make.
    Baseline {
        /// Where the files are.
        #[command(flatten)]
        directory: Directory,
        /// Show progress until it is over.
        #[arg(long)]
        wait: bool,
    },
}

/// Where the files are.
#[derive(Debug, Args)]
pub struct Directory {
    /// Folder of the files NNN_name.sql.
    #[arg(long, default_value = "migrations")]
    dir: PathBuf,
    /// The name under which shards know the folder [default: the folder's own].
    #[arg(long, value_name = "NAME")]
    r#as: Option<String>,
}

/// How files are applied.
#[derive(Debug, Args)]
pub struct Run {
    /// Shards changed at once, after the first [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: Option<u16>,
    /// The shard that goes first [default: the one with the fewest tenants].
    #[arg(long, value_name = "SHARD")]
    canary: Option<String>,
    /// Apply files of the contract phase, too: no application uses any longer
    /// what they remove. Else all before the first of them.
    #[arg(long)]
    contract: bool,
    /// Show progress until it is over.
    #[arg(long)]
    wait: bool,
}

const FINDINGS: &[Column] = &[
    ("file", |f| show(&f["file"])),
    ("line", |f| show(&f["line"])),
    ("level", |f| show(&f["level"])),
    ("rule", |f| show(&f["rule"])),
    ("what", |f| show(&f["what"])),
];

const RAN: &[Column] = &[
    ("shard", |s| show(&s["shard"])),
    ("files applied", |s| show(&s["applied"])),
    ("left at", |s| show(&s["file"])),
    ("remark", |s| show(&s["note"])),
];

/// The admin API's code where nothing but files of the contract phase is left.
const WAITS_FOR_CONTRACT: &str = "RF518";

impl Command {
    /// `admin` is called by those that need a server.
    pub(super) async fn run(self, admin: impl Fn() -> Result<Admin>, no_input: bool) -> Answer {
        match self {
            Self::New {
                name,
                directory,
                contract,
            } => new(&directory.dir, &name, contract),
            Self::Lint { directory } => {
                let files = directory.files()?;
                let findings = lint(&files, Known::new());
                let output = findings_output(&files, &findings);
                match passes(&findings) {
                    true => Ok(output),
                    false => Ok(output.failed(Some("the files break rules; none was run".into()))),
                }
            }
            Self::Plan { directory } => plan::plan(&admin()?, &directory).await,
            Self::Apply { directory, run } => apply(&admin()?, &directory, run, no_input).await,
            Self::Status { directory } => status::show_status(&admin()?, &directory).await,
            Self::Verify { directory } => status::verify(&admin()?, &directory).await,
            Self::Baseline { directory, wait } => {
                let files = directory.files()?;
                let question = format!(
                    "Record {} files as applied on all shards, without running them?",
                    files.len()
                );
                confirm(&question, no_input)?;
                let body = json!({"files": bodies(&files), "baseline": true});
                let admin = admin()?;
                let started = admin.post(&directory.path("/apply")?, &body).await?;
                Ok(ran(job::started(&admin, started, wait).await?))
            }
        }
    }
}

impl Directory {
    fn files(&self) -> Result<Vec<Migration>> {
        Ok(read_directory(&self.dir)?)
    }

    /// What shards know it by.
    fn name(&self) -> Result<String> {
        if let Some(name) = &self.r#as {
            return Ok(name.clone());
        }
        let full = self
            .dir
            .canonicalize()
            .map_err(error::io(format!("read {}", self.dir.display())))?;
        match full.file_name() {
            Some(name) => Ok(name.to_string_lossy().into_owned()),
            None => Err(Error::Usage("name the folder with --as NAME".into())),
        }
    }

    fn path(&self, rest: &str) -> Result<String> {
        Ok(format!("/migrations/{}{rest}", segment(&self.name()?)))
    }

    /// As it was named, to be typed again.
    fn options(&self) -> String {
        let name = self.r#as.as_ref().map(|name| format!(" --as {name}"));
        format!(" --dir {}{}", self.dir.display(), name.unwrap_or_default())
    }

    /// What shards have of these files, and what would stop a run.
    async fn planned(&self, admin: &Admin, files: &[Migration]) -> Result<Value> {
        let body = json!({ "files": bodies(files) });
        admin.post(&self.path("/plan")?, &body).await
    }

    async fn status(&self, admin: &Admin) -> Result<Value> {
        admin.get(&self.path("")?, &[]).await
    }
}

/// Makes the next file.
fn new(folder: &Path, name: &str, contract: bool) -> Answer {
    std::fs::create_dir_all(folder).map_err(error::io(format!("make {}", folder.display())))?;
    let next = read_directory(folder)?
        .last()
        .map_or(1, |file| file.number + 1);
    let file = format!("{next:03}_{name}.sql");
    let phase = if contract {
        "-- ringfence: phase contract\n"
    } else {
        ""
    };
    let text = format!(
        "{phase}-- Plain SQL, run once on every shard in one transaction.\n\
         -- Other headers: no-transaction, lock-timeout 500ms, statement-timeout 10min,\n\
         -- allow RULE because REASON; above an UPDATE or DELETE: backfill rows 1000.\n\n"
    );
    // A name that can't be one is refused before there is a file of it.
    Migration::parse(&file, &text)?;
    let path = folder.join(&file);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(error::io(format!("make {}", path.display())))?;
    let path = path.display().to_string();
    Ok(Output {
        text: format!("{path}\n"),
        json: json!({ "file": path }),
        note: None,
        failed: None,
    })
}

async fn apply(admin: &Admin, directory: &Directory, run: Run, no_input: bool) -> Answer {
    let files = directory.files()?;
    let name = directory.name()?;
    let question = format!("Apply {name} ({} files) to all shards?", files.len());
    confirm(&question, no_input)?;
    let body = json!({
        "files": bodies(&files),
        "parallel": run.parallel,
        "canary": run.canary,
        "contract": run.contract,
    });
    let started = match admin.post(&directory.path("/apply")?, &body).await {
        // The same command again, as a release's script says it, is no failure.
        Err(Error::Api { code, message, .. }) if code == WAITS_FOR_CONTRACT => {
            let then = format!(
                "{message}: once no application uses it any longer: `ringfence migrate apply{} --contract`",
                directory.options()
            );
            return Ok(Output {
                text: "nothing was to be done\n".into(),
                json: json!({ "code": code, "message": message }),
                note: Some(then),
                failed: None,
            });
        }
        started => started?,
    };
    let held = started["held"].as_array().cloned().unwrap_or_default();
    let output = ran(job::started(admin, started, run.wait).await?);
    Ok(match held.first() {
        None => output,
        Some(_) => output.note(waits_for_contract(&held, directory)),
    })
}

/// A run's job, and what it did shard by shard once it is over.
fn ran(job: Value) -> Output {
    let shards = job["result"]["shards"].as_array().cloned();
    let mut shown = job.clone();
    shown["result"] = Value::Null;
    let mut output = job::record(shown).with_json(job);
    if let Some(shards) = shards {
        output.text.push('\n');
        output.text.push_str(&Output::list(shards, RAN).text);
    }
    output
}

/// What shards say of a folder's files.
pub(super) async fn planned(admin: &Admin, folder: &Path, files: &[Migration]) -> Result<Value> {
    let directory = Directory {
        dir: folder.to_owned(),
        r#as: None,
    };
    directory.planned(admin, files).await
}

/// What is left out until someone says that nobody uses it, and how to say it.
fn waits_for_contract(held: &[Value], directory: &Directory) -> String {
    let files: Vec<String> = held.iter().map(show).collect();
    format!(
        "left for later: {}. Once no application uses what the contract phase removes: `ringfence migrate apply{} --contract`",
        files.join(", "),
        directory.options(),
    )
}

fn findings_output(files: &[Migration], findings: &[Finding]) -> Output {
    let items: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut item = json!(finding);
            item["why"] = json!(finding.rule.why());
            item["instead"] = json!(finding.rule.instead());
            item
        })
        .collect();
    if items.is_empty() {
        return Output {
            text: format!("{} files, nothing found.\n", files.len()),
            json: json!([]),
            note: None,
            failed: None,
        };
    }
    let mut output = Output::list(items, FINDINGS);
    let mut rules: Vec<_> = findings.iter().map(|finding| finding.rule).collect();
    rules.sort_by_key(|rule| rule.id());
    rules.dedup();
    for rule in rules {
        output.text.push_str(&format!(
            "\n{rule}: {}\n  instead: {}\n",
            rule.why(),
            rule.instead()
        ));
    }
    let errors = findings.iter().filter(|f| f.level == Level::Error).count();
    output.text.push_str(&format!(
        "\n{errors} errors, {} warnings\n",
        findings.len() - errors
    ));
    output
}

fn bodies(files: &[Migration]) -> Vec<Value> {
    let files = files.iter();
    files
        .map(|file| json!({"file": file.file(), "text": file.text}))
        .collect()
}
