//! `ringfence doctor`.

use clap::Args;
use serde_json::{Value, json};

use super::Answer;
use crate::admin::Admin;
use crate::output::{Column, Output, show};
use crate::safety::confirm;

/// Looks at every shard: at what moves left behind, at fences that say something
/// else than the control database, at rows that nobody serves, and at what the
/// API hides. Changes nothing without `--fix`. Exit code 1 where something was found.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Leave out what the API hides: it may be meant so.
    #[arg(long)]
    without_hidden: bool,
    /// Delete rows of tenants that another shard serves and no job is about.
    #[arg(long)]
    fix: bool,
}

const FIXED: &[Column] = &[
    ("shard", |f| show(&f["shard"])),
    ("tenant", |f| show(&f["name"])),
    ("rows deleted", |f| show(&f["rows"])),
    ("left, for", |f| show(&f["why"])),
];

const FINDINGS: &[Column] = &[
    ("shard", |f| show(&f["shard"])),
    ("kind", |f| show(&f["kind"])),
    ("name", |f| show(&f["name"])),
    ("why", |f| show(&f["why"])),
    ("then", |f| show(&f["then"])),
];

impl Doctor {
    pub(super) async fn run(self, admin: &Admin, no_input: bool) -> Answer {
        if self.fix {
            return fix(admin, no_input).await;
        }
        let mut report = admin.get("/doctor", &[]).await?;
        if self.without_hidden
            && let Some(findings) = report["findings"].as_array_mut()
        {
            findings.retain(|finding| finding["kind"] != "hidden");
        }
        let (output, trouble) = told(report);
        Ok(output.failed(trouble))
    }
}

async fn fix(admin: &Admin, no_input: bool) -> Answer {
    let question = "Delete the rows of tenants on shards that do not serve them?";
    confirm(question, no_input)?;
    let fixed = admin.post("/doctor/fix", &json!({})).await?;
    let of = |field: &str| fixed[field].as_array().cloned().unwrap_or_default();
    let (deleted, left) = (of("deleted"), of("left"));
    let trouble = (!left.is_empty()).then(|| format!("{} things were left", left.len()));
    let all = [deleted, left].concat();
    let note = all.is_empty().then_some("There is nothing to delete.");
    let mut output = Output::list(all, FIXED).with_json(fixed);
    if let Some(note) = note {
        output = output.note(note.to_owned());
    }
    Ok(output.failed(trouble))
}

/// The report, and in one line what is wrong. Things hidden are no trouble.
fn told(report: Value) -> (Output, Option<String>) {
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let errors = report["errors"].as_array().cloned().unwrap_or_default();
    let wrong = findings.iter().filter(|f| f["kind"] != "hidden").count();
    let mut notes: Vec<String> = errors
        .iter()
        .map(|error| {
            format!(
                "shard {} could not be looked at: {}",
                show(&error["shard"]),
                show(&error["message"])
            )
        })
        .collect();
    if report["truncated"] == true {
        notes.push("A shard has more than is listed.".into());
    }
    let trouble = match (wrong, errors.len()) {
        (0, 0) => None,
        (wrong, 0) => Some(format!("{wrong} things are not as they should be")),
        (wrong, unseen) => Some(format!(
            "{wrong} things are not as they should be; {unseen} shards could not be looked at"
        )),
    };
    if trouble.is_none() {
        notes.push(format!(
            "{} shards are as they should be.",
            show(&report["shards"])
        ));
    }
    let mut output = Output::list(findings, FINDINGS).with_json(report);
    if !notes.is_empty() {
        output = output.note(notes.join("\n"));
    }
    (output, trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_trouble_and_what_is_hidden_is_none() {
        let finding = |kind: &str| {
            json!({ "shard": "s1", "kind": kind, "name": "x", "why": "no open move owns it",
                    "then": "It is removed by itself within a minute." })
        };
        let report = json!({ "findings": [finding("slot"), finding("hidden")], "shards": 2,
            "errors": [{ "shard": "s2", "message": "no primary" }], "truncated": false });
        let (output, trouble) = told(report);
        insta::assert_snapshot!(output.text, @r"
        SHARD  KIND    NAME  WHY                   THEN
        s1     slot    x     no open move owns it  It is removed by itself within a minute.
        s1     hidden  x     no open move owns it  It is removed by itself within a minute.
        ");
        assert_eq!(
            trouble.unwrap(),
            "1 things are not as they should be; 1 shards could not be looked at"
        );
        let hidden = json!({ "findings": [finding("hidden")], "shards": 2, "errors": [] });
        assert_eq!(told(hidden).1, None);
    }
}
