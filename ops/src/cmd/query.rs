//! `ringfence query`.

use std::io::{IsTerminal, Write, stderr};

use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Map, Value, json};

use super::Answer;
use crate::admin::{Admin, segment};
use crate::error::Result;
use crate::output::{Output, show, table_of};

/// Asks shards by one SQL statement that only reads, on replicas where there are
/// fresh ones; rows of all tenants are seen. Exit code 1 where a shard failed.
#[derive(Debug, Args)]
pub struct Query {
    /// The statement: a SELECT, VALUES or WITH.
    sql: String,
    /// Ask all of them.
    #[arg(long, required_unless_present = "shard", conflicts_with = "shard")]
    all_shards: bool,
    /// Ask this one; may be given more than once.
    #[arg(long, value_name = "SHARD")]
    shard: Vec<String>,
    /// Rows of each shard at most.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    limit: u64,
    /// The statement is stopped after so many seconds.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=50))]
    timeout: u64,
    /// Shards asked at once.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=64))]
    at_once: u64,
    /// Ask primaries only.
    #[arg(long)]
    primary: bool,
}

impl Query {
    pub(super) async fn run(self, admin: &Admin) -> Answer {
        let shards = match self.all_shards {
            false => self.shard.clone(),
            true => {
                let mut page = admin.get("/shards", &[]).await?;
                let shards = admin.items(&mut page, "GET /shards")?;
                let ready = shards.iter().filter(|shard| shard["state"] != "preparing");
                ready.map(|shard| show(&shard["id"])).collect()
            }
        };
        let body = json!({
            "sql": self.sql, "rows_max": self.limit, "seconds_max": self.timeout, "primary": self.primary,
        });
        let ask = |shard: String| {
            let body = &body;
            async move {
                let path = format!("/shards/{}/query", segment(&shard));
                let answer = admin.post(&path, body).await;
                (shard, answer)
            }
        };
        let total = shards.len();
        let mut waiting = shards.into_iter();
        let mut asked: FuturesUnordered<_> = waiting
            .by_ref()
            .take(self.at_once as usize)
            .map(ask)
            .collect();
        let mut answers = Vec::with_capacity(total);
        while let Some(answer) = asked.next().await {
            answers.push(answer);
            progress(answers.len(), total);
            asked.extend(waiting.next().map(ask));
        }
        answers.sort_by(|a, b| a.0.cmp(&b.0));
        let (output, failed) = merged(answers);
        let why = (failed > 0).then(|| format!("{failed} of {total} shards failed"));
        Ok(output.failed(why))
    }
}

fn progress(done: usize, total: usize) {
    if stderr().is_terminal() && total > 1 {
        let end = if done == total { "\r\x1b[K" } else { "" };
        let _ = write!(stderr(), "\r{done} of {total} shards{end}");
    }
}

/// All rows with their shard, what each shard did, and how many failed.
fn merged(answers: Vec<(String, Result<Value>)>) -> (Output, usize) {
    let mut columns: Vec<String> = Vec::new();
    let (mut rows, mut shards, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = 0;
    for (shard, answer) in answers {
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                failed += 1;
                let why = error.chain();
                notes.push(format!("shard {shard} failed: {why}"));
                shards.push(json!({ "shard": shard, "error": why }));
                continue;
            }
        };
        let named = answer["columns"].as_array().into_iter().flatten();
        for column in named.filter_map(Value::as_str) {
            if !columns.iter().any(|known| known == column) {
                columns.push(column.to_owned());
            }
        }
        let Value::Array(own) = answer["rows"].take() else {
            continue;
        };
        if answer["truncated"] == true {
            notes.push(format!(
                "shard {shard} has more rows than the {} that are shown: see --limit",
                own.len()
            ));
        }
        shards.push(json!({
            "shard": shard, "node": answer["node"], "role": answer["role"], "rows": own.len(),
            "truncated": answer["truncated"], "took_ms": answer["took_ms"],
        }));
        rows.extend(own.into_iter().map(|row| (shard.clone(), row)));
    }
    let mut titles = vec!["shard".to_owned()];
    titles.extend(columns.iter().cloned());
    let lines = rows.iter().map(|(shard, row)| {
        let mut line = vec![shard.clone()];
        line.extend(columns.iter().map(|column| show(&row[column])));
        line
    });
    let text = table_of(&titles, lines);
    let items: Vec<Value> = rows
        .into_iter()
        .map(|(shard, row)| {
            let mut item = Map::new();
            item.insert("shard".into(), Value::String(shard));
            item.insert("row".into(), row);
            Value::Object(item)
        })
        .collect();
    let output = Output {
        json: json!({ "columns": columns, "rows": items, "shards": shards }),
        text,
        note: (!notes.is_empty()).then(|| notes.join("\n")),
        failed: None,
    };
    (output, failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn answers_are_merged_and_who_failed_is_named() {
        let answer = |rows: Value, truncated| {
            json!({ "node": "n", "role": "replica", "columns": ["slug", "rows"], "rows": rows,
                    "truncated": truncated, "took_ms": 1.5 })
        };
        let (output, failed) = merged(vec![
            (
                "s1".into(),
                Ok(answer(json!([{ "rows": 3, "slug": "acme" }]), true)),
            ),
            ("s2".into(), Err(Error::Usage("is down".into()))),
            (
                "s3".into(),
                Ok(answer(json!([{ "rows": null, "slug": "globex" }]), false)),
            ),
        ]);
        assert_eq!(failed, 1);
        insta::assert_snapshot!(output.text, @r"
        SHARD  SLUG    ROWS
        s1     acme    3
        s3     globex  -
        ");
        insta::assert_snapshot!(output.note.unwrap(), @r"
        shard s1 has more rows than the 1 that are shown: see --limit
        shard s2 failed: is down
        ");
        assert_eq!(output.json["shards"][1]["error"], "is down");
    }
}
