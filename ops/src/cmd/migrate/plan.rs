//! `ringfence migrate plan`: what apply would run where, what it costs, and what
//! would stop it.

use schema::estimate::{Does, Size, Work, works};
use schema::migration::Migration;
use serde_json::{Value, json};

use super::status::{difference_line, refusals, refused};
use super::{Admin, Answer, Directory, waits_for_contract};
use crate::output::{Column, Output, show};

const PLAN: &[Column] = &[
    ("file", |f| show(&f["file"])),
    ("phase", |f| show(&f["phase"])),
    ("statements", |f| show(&f["statements"])),
    ("transaction", |f| show(&f["transaction"])),
    ("a shard", |f| time(f["seconds"].as_f64().unwrap_or(0.0))),
    ("shards", |f| match f["shards"].as_array() {
        Some(shards) => shards.iter().map(show).collect::<Vec<_>>().join(" "),
        None => "-".into(),
    }),
];

pub(super) async fn plan(admin: &Admin, directory: &Directory) -> Answer {
    let files = directory.files()?;
    let status = directory.planned(admin, &files).await?;
    Ok(output(&files, status, directory))
}

fn output(files: &[Migration], status: Value, directory: &Directory) -> Output {
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    // What one that is down has, nobody can say.
    let there: Vec<&Value> = shards.iter().filter(|s| s["state"] != "down").collect();
    let has = |shard: &Value| shard["files"].as_u64().unwrap_or(0);
    let mut planned = Vec::new();
    let mut by_shard = vec![0.0; there.len()];
    for file in files {
        let lacks = |shard: &&Value| has(shard) < u64::from(file.number);
        let lacking: Vec<&Value> = there.iter().copied().filter(lacks).collect();
        if lacking.is_empty() {
            continue;
        }
        let works = works(file);
        let mut slowest: f64 = 0.0;
        for (place, shard) in there.iter().enumerate().filter(|(_, shard)| lacks(shard)) {
            let seconds: f64 = works.iter().map(|work| cost(work, shard)).sum();
            by_shard[place] += seconds;
            slowest = slowest.max(seconds);
        }
        let works = works.iter().filter_map(|work| worked(work, &lacking));
        planned.push(json!({
            "file": file.file(),
            "phase": file.header.phase,
            "statements": file.statements.len(),
            "transaction": file.header.transaction,
            "shards": lacking.iter().map(|shard| &shard["shard"]).collect::<Vec<_>>(),
            "seconds": slowest,
            "work": works.collect::<Vec<_>>(),
        }));
    }
    let parallel = status["parallel"].as_u64().unwrap_or(1).max(1);
    let seconds = whole(&by_shard, parallel);
    let (answered, all, number) = (there.len(), shards.len(), files.len());
    let mut text = match (planned.is_empty(), answered == all) {
        (true, true) => format!("All {all} shards have all {number} files.\n"),
        (true, false) => {
            format!("{answered} of {all} shards answered; they have all {number} files.\n")
        }
        (false, _) => Output::list(planned.clone(), PLAN).text,
    };
    for file in &planned {
        for work in file["work"].as_array().into_iter().flatten() {
            text.push_str(&format!("{}, {}\n", show(&file["file"]), line(work)));
        }
    }
    if !planned.is_empty() {
        text.push_str(&format!(
            "{} in all, by the tables' sizes: one shard first, then {parallel} at once\n",
            time(seconds)
        ));
    }
    let held = status["held"].as_array().cloned().unwrap_or_default();
    if !held.is_empty() {
        text.push_str(&format!("{}\n", waits_for_contract(&held, directory)));
    }
    for difference in status["drift"].as_array().into_iter().flatten() {
        text.push_str(&format!("{}\n", difference_line(difference)));
    }
    text.push_str(&refusals(&status));
    Output {
        text,
        json: json!({
            "files": planned,
            "seconds": seconds,
            "held": held,
            "findings": status["findings"],
            "refusals": status["refusals"],
            "drift": status["drift"],
            "shards": shards,
        }),
        note: None,
        failed: refused(&status),
    }
}

/// Sizes of a work's table on one shard; none where the table is not there.
fn size(work: &Work, shard: &Value) -> Option<(Size, i64)> {
    let tables = shard["tables"].as_array()?;
    let table = tables.iter().find(|size| size["table"] == work.table)?;
    let number = |field: &str| table[field].as_i64().unwrap_or(0);
    let size = Size {
        heap: number("heap_bytes"),
        total: number("bytes"),
    };
    Some((size, number("rows")))
}

fn cost(work: &Work, shard: &Value) -> f64 {
    size(work, shard).map_or(0.0, |(size, _)| work.does.seconds(size))
}

/// A work with what it goes through; none where no shard has the table yet.
fn worked(work: &Work, shards: &[&Value]) -> Option<Value> {
    let sizes = shards
        .iter()
        .filter_map(|shard| Some((shard, size(work, shard)?)));
    let bytes = |size: Size| match work.does {
        Does::Scans | Does::Builds => size.heap,
        Does::Rewrites | Does::Fills | Does::Changes => size.total,
    };
    let all: i64 = sizes.clone().map(|(_, (size, _))| bytes(size)).sum();
    let (shard, (largest, rows)) = sizes.max_by_key(|(_, (size, _))| bytes(*size))?;
    let mut value = json!(work);
    value["bytes"] = json!(all);
    value["largest"] = json!({
        "shard": shard["shard"], "bytes": bytes(largest), "rows": rows,
        "seconds": work.does.seconds(largest),
    });
    Some(value)
}

fn line(work: &Value) -> String {
    let does = match work["does"].as_str() {
        Some("scans") => "reads all of",
        Some("builds") => "builds an index of",
        Some("rewrites") => "writes anew all of",
        Some("fills") => "changes in chunks rows of",
        _ => "changes rows of",
    };
    let waits = match work["blocks"].as_str() {
        Some("nobody") => "nobody waits",
        Some("rows") => "who writes the same rows waits",
        Some("writes") => "ALL WRITES WAIT",
        _ => "ALL REQUESTS WAIT",
    };
    let largest = &work["largest"];
    format!(
        "line {}: {does} {}, {} in all, at most {} on {} ({} rows): {}; {waits}",
        work["line"],
        show(&work["table"]),
        size_of(&work["bytes"]),
        size_of(&largest["bytes"]),
        show(&largest["shard"]),
        largest["rows"],
        time(largest["seconds"].as_f64().unwrap_or(0.0)),
    )
}

/// One shard alone, the slowest, then the others side by side.
fn whole(by_shard: &[f64], parallel: u64) -> f64 {
    let slowest = by_shard.iter().copied().fold(0.0, f64::max);
    let rest = by_shard.iter().sum::<f64>() - slowest;
    slowest + rest / parallel.max(1) as f64
}

fn size_of(bytes: &Value) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes.as_f64().unwrap_or(0.0) / 1024.0;
    let mut units = UNITS.iter().peekable();
    while let Some(unit) = units.next() {
        if size < 1024.0 || units.peek().is_none() {
            return format!("{size:.0} {unit}");
        }
        size /= 1024.0;
    }
    String::new()
}

/// Roughly: by sizes nothing better can be said.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "a moment".into(),
        s if s < 120.0 => format!("about {s:.0} s"),
        s if s < 7_200.0 => format!("about {:.0} min", s / 60.0),
        s => format!("about {:.0} h", s / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> Directory {
        Directory {
            dir: "app".into(),
            r#as: None,
        }
    }

    fn file(name: &str, text: &str) -> Migration {
        Migration::parse(name, text).unwrap()
    }

    #[test]
    fn costs_refusals_and_shards_that_are_down_are_shown() {
        let files = [
            file("001_a.sql", "create table people (id int);"),
            file(
                "002_b.sql",
                "-- ringfence: no-transaction\nalter table people add column a int;\n\
                 -- ringfence: backfill\nupdate people set a = 1;\n\
                 create index concurrently i on people (tenant_id, a);",
            ),
            file("003_c.sql", "-- ringfence: phase contract\ndrop table old;"),
        ];
        let table = |mib: i64| json!([{ "table": "public.people", "rows": mib * 10_000, "bytes": mib << 20, "heap_bytes": mib << 19 }]);
        let status = json!({
            "shards": [
                { "shard": "s1", "state": "behind", "files": 1, "tables": table(40) },
                { "shard": "s2", "state": "behind", "files": 1, "tables": table(800) },
                { "shard": "s3", "state": "down", "files": 0, "tables": [], "problem": "no answer" },
            ],
            "findings": [], "drift": [], "held": ["003_c.sql"], "parallel": 4,
            "refusals": [{ "code": "RF516", "message": "shard s3 can't be reached: no answer", "advice": "Start the shard." }],
        });
        let output = output(&files, status, &directory());
        insta::assert_snapshot!(output.text, @r"
        FILE       PHASE     STATEMENTS  TRANSACTION  A SHARD      SHARDS
        002_b.sql  expand    3           false        about 4 min  s1 s2
        003_c.sql  contract  1           true         a moment     s1 s2
        002_b.sql, line 4: changes in chunks rows of public.people, 840 MiB in all, at most 800 MiB on s2 (8000000 rows): about 3 min; nobody waits
        002_b.sql, line 5: builds an index of public.people, 420 MiB in all, at most 400 MiB on s2 (8000000 rows): about 20 s; nobody waits
        about 4 min in all, by the tables' sizes: one shard first, then 4 at once
        left for later: 003_c.sql. Once no application uses what the contract phase removes: `ringfence migrate apply --dir app --contract`
        RF516: shard s3 can't be reached: no answer
        hint: Start the shard.
        ");
        let failed = output.failed.unwrap();
        assert_eq!(failed.exit(), crate::error::Exit::Unreachable);
    }

    #[test]
    fn times_are_rough() {
        assert_eq!(time(0.3), "a moment");
        assert_eq!(time(90.0), "about 90 s");
        assert_eq!(time(7_000.0), "about 117 min");
        assert_eq!(whole(&[1.0, 10.0, 3.0], 4), 11.0);
        assert_eq!(whole(&[], 4), 0.0);
    }
}
