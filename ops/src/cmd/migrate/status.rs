//! `ringfence migrate status` and `verify`: what shards have, beside what the folder has.

use schema::migration::{Folder, Migration, survey};
use serde_json::{Value, json};

use super::{Admin, Answer, Directory};
use crate::error::Error;
use crate::output::{Column, Output, show};

const SHARDS: &[Column] = &[
    ("shard", |s| show(&s["shard"])),
    ("state", |s| show(&s["state"])),
    // What one that is down has, nobody can say.
    ("files", |s| match s["state"].as_str() {
        Some("down") => "-".into(),
        _ => show(&s["files"]),
    }),
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

/// What a folder has that shards don't, and the other way round.
#[derive(Debug, Default)]
struct Compared {
    /// In the folder alone, or not on all shards yet.
    pending: Vec<String>,
    /// Neither is as the other says.
    wrong: Vec<String>,
}

pub(super) async fn show_status(admin: &Admin, directory: &Directory) -> Answer {
    let known = directory.status(admin).await?;
    // By `--as` a folder can be asked for that is not here.
    if !directory.dir.exists() {
        return Ok(status_output(known, &Compared::default()));
    }
    let Folder { files, problems } = survey(&directory.dir)?;
    let mut compared = compare(&files, &known);
    let problems = problems.iter().map(|problem| format!("{problem} (RF512)"));
    compared.wrong.extend(problems);
    // What a run would find, where there could be one.
    let mut status = known;
    if compared.wrong.is_empty() && !files.is_empty() {
        let planned = directory.planned(admin, &files).await?;
        status["shards"] = planned["shards"].clone();
        status["drift"] = planned["drift"].clone();
    }
    Ok(status_output(status, &compared))
}

fn compare(files: &[Migration], status: &Value) -> Compared {
    let mut compared = Compared::default();
    let known = status["files"].as_array().cloned().unwrap_or_default();
    for file in files {
        let found = known.iter().find(|known| known["number"] == file.number);
        match found {
            Some(known) if known["applied"] == true && known["file"] != file.file().as_str() => {
                let was = show(&known["file"]);
                compared
                    .wrong
                    .push(format!("{} was applied as {was} (RF510)", file.file()));
            }
            Some(known)
                if known["checksum"] != file.checksum.as_str() && known["applied"] == true =>
            {
                compared.wrong.push(format!(
                    "{} was changed after it was applied (RF510)",
                    file.file()
                ));
            }
            Some(known) if known["applied"] == true => {}
            _ => compared.pending.push(file.file()),
        }
    }
    for known in known.iter().filter(|known| known["applied"] == true) {
        if !files.iter().any(|file| known["number"] == file.number) {
            compared.wrong.push(format!(
                "{} is on all shards, but not in the folder (RF511)",
                show(&known["file"])
            ));
        }
    }
    compared
}

pub(super) async fn verify(admin: &Admin, directory: &Directory) -> Answer {
    let files = directory.files()?;
    let status = directory.status(admin).await?;
    let mut wrong = problems(&status);
    let compared = compare(&files, &status);
    wrong.extend(compared.wrong);
    let not_everywhere = |file: String| format!("{file} is not on all shards");
    wrong.extend(compared.pending.into_iter().map(not_everywhere));
    let shards = status["shards"].as_array().map_or(0, Vec::len);
    let output = Output {
        text: match wrong.is_empty() {
            true => format!(
                "{shards} shards have exactly these {} files.\n",
                files.len()
            ),
            false => wrong.iter().map(|line| format!("{line}\n")).collect(),
        },
        json: json!({ "verified": wrong.is_empty(), "problems": wrong, "status": &status }),
        note: None,
        failed: None,
    };
    let asked = status["shards"].as_array().into_iter().flatten();
    let down = asked.filter(|shard| shard["state"] == "down").count();
    Ok(match wrong.len() {
        0 => output,
        _ if wrong.len() == down => Output {
            failed: Some(Error::ShardsDown),
            ..output
        },
        _ => output.failed(Some("the shards are not as these files say".into())),
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
        let name = format!("shard {}", show(&shard["shard"]));
        found.push(match problem.starts_with(&name) {
            true => problem,
            false => format!("{name}: {problem}"),
        });
    }
    for difference in status["drift"].as_array().into_iter().flatten() {
        found.push(difference_line(difference));
    }
    found
}

/// `column public.people.name differs: s1 s2 | s3 lacks it`.
pub(super) fn difference_line(difference: &Value) -> String {
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

/// What would stop a run, each with what to do.
pub(super) fn refusals(status: &Value) -> String {
    let refusals = status["refusals"].as_array().into_iter().flatten();
    let lines = refusals.map(|refusal| {
        let hint = match refusal["advice"].as_str() {
            None | Some("") => String::new(),
            Some(hint) => format!("\nhint: {hint}"),
        };
        format!(
            "{}: {}{hint}\n",
            show(&refusal["code"]),
            show(&refusal["message"])
        )
    });
    lines.collect()
}

/// The failure that these refusals are; none where there is none.
pub(super) fn refused(status: &Value) -> Option<Error> {
    let refusals = status["refusals"].as_array()?;
    let is_down = |refusal: &Value| refusal["code"] == "RF516";
    match (refusals.first(), refusals.iter().all(is_down)) {
        (None, _) => None,
        (Some(_), true) => Some(Error::ShardsDown),
        (Some(_), false) => Some(Error::Checked("apply would be stopped".into())),
    }
}

fn status_output(mut status: Value, folder: &Compared) -> Output {
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    let files = status["files"].as_array().cloned().unwrap_or_default();
    let mut text = Output::list(shards, SHARDS).text;
    let applied = files.iter().filter(|file| file["applied"] == true).count();
    text.push_str(&format!(
        "\n{} files, {applied} of them on all shards\n",
        files.len()
    ));
    if !folder.pending.is_empty() {
        text.push_str(&format!("not applied yet: {}\n", folder.pending.join(", ")));
    }
    for wrong in &folder.wrong {
        text.push_str(&format!("in the folder: {wrong}\n"));
    }
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
    status["folder"] = json!({ "pending": folder.pending, "problems": folder.wrong });
    Output {
        text,
        json: status,
        note: None,
        failed: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_compared_with_what_was_applied() {
        let file = |name: &str, text: &str| Migration::parse(name, text).unwrap();
        let files = [
            file("001_a.sql", "select 1;"),
            file("002_b.sql", "select 'changed';"),
            file("003_renamed.sql", "select 3;"),
            file("004_d.sql", "select 4;"),
            file("005_e.sql", "select 5;"),
        ];
        let known = |name: &str, text: &str, applied: bool| {
            let file = file(name, text);
            json!({ "number": file.number, "file": name, "checksum": file.checksum, "applied": applied })
        };
        let status = json!({ "files": [
            known("001_a.sql", "select 1;", true),
            known("002_b.sql", "select 2;", true),
            known("003_c.sql", "select 3;", true),
            known("004_d.sql", "select 'another';", false),
            known("006_f.sql", "select 6;", true),
        ] });
        let compared = compare(&files, &status);
        assert_eq!(compared.pending, ["004_d.sql", "005_e.sql"]);
        assert_eq!(
            compared.wrong,
            [
                "002_b.sql was changed after it was applied (RF510)",
                "003_renamed.sql was applied as 003_c.sql (RF510)",
                "006_f.sql is on all shards, but not in the folder (RF511)",
            ]
        );
    }
}
