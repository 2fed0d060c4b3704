//! `ringfence migrate`.

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
    /// Show what apply would run, on which shards.
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
    /// Show what each shard has, and where shards differ.
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
    /// Shards changed at once, after the first.
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

const SHARDS: &[Column] = &[
    ("shard", |s| show(&s["shard"])),
    ("state", |s| show(&s["state"])),
    ("files", |s| show(&s["files"])),
    ("next", |s| show(&s["next"])),
    ("statements done", |s| show(&s["step"])),
    ("rows", |s| match s["rows_total"].as_i64() {
        Some(total) => format!("{} of about {total}", s["rows"]),
        None => show(&s["rows"]),
    }),
    ("fingerprint", |s| show(&s["fingerprint"])),
    ("remark", |s| match &s["problem"] {
        Value::Null => show(&s["progress"]),
        problem => show(problem),
    }),
];

const PLAN: &[Column] = &[
    ("file", |f| show(&f["file"])),
    ("phase", |f| show(&f["phase"])),
    ("statements", |f| show(&f["statements"])),
    ("transaction", |f| show(&f["transaction"])),
    ("largest table", |f| match f["largest"]["bytes"].as_i64() {
        Some(bytes) => format!(
            "{} on {}: {} rows, {} MiB",
            show(&f["largest"]["table"]),
            show(&f["largest"]["shard"]),
            f["largest"]["rows"],
            (bytes >> 20).max(1)
        ),
        None => "-".into(),
    }),
    ("shards", |f| match f["shards"].as_array() {
        Some(shards) => shards.iter().map(show).collect::<Vec<_>>().join(" "),
        None => "-".into(),
    }),
];

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
            Self::Plan { directory } => plan(&admin()?, &directory).await,
            Self::Apply { directory, run } => apply(&admin()?, &directory, run, no_input).await,
            Self::Status { directory } => {
                let status = directory.status(&admin()?).await?;
                Ok(status_output(status))
            }
            Self::Verify { directory } => verify(&admin()?, &directory).await,
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
                Ok(job::record(job::started(&admin, started, wait).await?))
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

async fn plan(admin: &Admin, directory: &Directory) -> Answer {
    let files = directory.files()?;
    let body = json!({ "files": bodies(&files) });
    let status = admin.post(&directory.path("/plan")?, &body).await?;
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    let has = |shard: &Value| shard["files"].as_u64().unwrap_or(0);
    let mut planned = Vec::new();
    for file in &files {
        let lacking: Vec<&Value> = shards
            .iter()
            .filter(|shard| has(shard) < u64::from(file.number))
            .map(|shard| &shard["shard"])
            .collect();
        if !lacking.is_empty() {
            planned.push(json!({
                "file": file.file(),
                "phase": file.header.phase,
                "statements": file.statements.len(),
                "transaction": file.header.transaction,
                "shards": lacking,
                "largest": largest(file, &shards),
            }));
        }
    }
    let findings = status["findings"].as_array().cloned().unwrap_or_default();
    let passes = findings.iter().all(|finding| finding["level"] != "error");
    let text = match planned.is_empty() {
        true => format!(
            "All {} shards have all {} files.\n",
            shards.len(),
            files.len()
        ),
        false => Output::list(planned.clone(), PLAN).text,
    };
    let problems = problems(&status);
    let output = Output {
        text,
        json: json!({ "files": planned, "findings": findings, "shards": shards }),
        note: None,
        failed: None,
    };
    Ok(match problems.is_empty() && passes {
        true => output,
        false => {
            let mut notes = problems;
            if !passes {
                notes.push("The files break rules: `ringfence migrate lint` shows them.".into());
            }
            output.note(notes.join("\n"))
        }
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
    let started = admin.post(&directory.path("/apply")?, &body).await?;
    Ok(job::record(job::started(admin, started, run.wait).await?))
}

async fn verify(admin: &Admin, directory: &Directory) -> Answer {
    let files = directory.files()?;
    let status = directory.status(admin).await?;
    let mut wrong = problems(&status);
    let known = status["files"].as_array().cloned().unwrap_or_default();
    for file in &files {
        let found = known.iter().find(|known| known["number"] == file.number);
        match found {
            None => wrong.push(format!("{} was never applied", file.file())),
            Some(known) if known["checksum"] != file.checksum.as_str() => {
                wrong.push(format!("{} differs from what was applied", file.file()));
            }
            Some(known) if known["applied"] != true => {
                wrong.push(format!("{} is not on all shards", file.file()));
            }
            Some(_) => {}
        }
    }
    for known in &known {
        if !files.iter().any(|file| known["number"] == file.number) {
            wrong.push(format!("{} is not in the folder", show(&known["file"])));
        }
    }
    let shards = status["shards"].as_array().map_or(0, Vec::len);
    let output = Output {
        text: match wrong.is_empty() {
            true => format!(
                "{shards} shards have exactly these {} files.\n",
                files.len()
            ),
            false => wrong.iter().map(|line| format!("{line}\n")).collect(),
        },
        json: json!({ "verified": wrong.is_empty(), "problems": wrong, "status": status }),
        note: None,
        failed: None,
    };
    match wrong.is_empty() {
        true => Ok(output),
        false => Ok(output.failed(Some("the shards are not as these files say".into()))),
    }
}

/// The largest table that a file goes through, on whichever shard.
fn largest(file: &Migration, shards: &[Value]) -> Value {
    let names = file.tables();
    let tables = shards
        .iter()
        .filter_map(|shard| Some((shard, shard["tables"].as_array()?)));
    let sizes = tables.flat_map(|(shard, tables)| tables.iter().map(move |size| (shard, size)));
    let own = sizes.filter(|(_, size)| {
        let name = size["table"].as_str();
        name.is_some_and(|name| names.iter().any(|own| own == name))
    });
    let largest = own.max_by_key(|(_, size)| size["bytes"].as_i64());
    largest.map_or(Value::Null, |(shard, size)| {
        json!({
            "table": size["table"],
            "shard": shard["shard"],
            "rows": size["rows"],
            "bytes": size["bytes"],
        })
    })
}

/// What is wrong on shards, and where they differ.
fn problems(status: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for shard in status["shards"].as_array().into_iter().flatten() {
        let problem = match (shard["state"].as_str(), shard["problem"].as_str()) {
            (_, Some(problem)) => problem.to_owned(),
            (Some("half"), None) => format!("has a part of {}", show(&shard["next"])),
            _ => continue,
        };
        found.push(format!("shard {}: {problem}", show(&shard["shard"])));
    }
    for difference in status["drift"].as_array().into_iter().flatten() {
        found.push(difference_line(difference));
    }
    found
}

/// `column public.people.name differs: s1 s2 | s3 lacks it`.
fn difference_line(difference: &Value) -> String {
    let variants = difference["variants"].as_array().into_iter().flatten();
    let variants: Vec<String> = variants
        .map(|variant| {
            let who = variant[1].as_array().into_iter().flatten();
            let who = who.map(show).collect::<Vec<_>>().join(" ");
            match variant[0].as_str() {
                None => format!("{who} without it"),
                Some(text) => {
                    let short: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
                    let short: String = short.chars().take(60).collect();
                    format!("{who} `{short}`")
                }
            }
        })
        .collect();
    format!(
        "{} differs: {}",
        show(&difference["object"]),
        variants.join(" | ")
    )
}

fn status_output(status: Value) -> Output {
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    let files = status["files"].as_array().cloned().unwrap_or_default();
    let mut text = Output::list(shards, SHARDS).text;
    let applied = files.iter().filter(|file| file["applied"] == true).count();
    text.push_str(&format!(
        "\n{} files, {applied} of them on all shards\n",
        files.len()
    ));
    for difference in status["drift"].as_array().into_iter().flatten() {
        text.push_str(&format!("{}\n", difference_line(difference)));
    }
    if let Some(id) = status["job"]["id"].as_str() {
        text.push_str(&format!(
            "last run: job {id}, {}, {}\n",
            show(&status["job"]["status"]),
            show(&status["job"]["phase"])
        ));
        if let Some(message) = status["job"]["problem"]["message"].as_str() {
            text.push_str(&format!(
                "{}: {message}\nhint: {}\n",
                show(&status["job"]["problem"]["code"]),
                show(&status["job"]["problem"]["advice"])
            ));
        }
    }
    Output {
        text,
        json: status,
        note: None,
        failed: None,
    }
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
