//! `ringfence tenant top` and `usage`: who uses what.

use clap::ValueEnum;
use serde_json::Value;

use super::Answer;
use crate::admin::Admin;
use crate::output::{Column, Output, show};

/// What tenants are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Requests a second.
    #[default]
    Requests,
    /// Requests refused for the tenant's limits.
    Refused,
    /// Rows read and written.
    Rows,
    /// Bytes of answers.
    Bytes,
    /// Time of statements on shards.
    Busy,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Refused => "refused",
            Self::Rows => "rows",
            Self::Bytes => "bytes",
            Self::Busy => "busy",
        }
    }
}

const TOP: &[Column] = &[
    ("tenant", tenant),
    ("shard", |t| show(&t["shard"])),
    ("requests/s", |t| rate(t, "requests")),
    ("refused/s", |t| rate(t, "refused")),
    ("failed/s", |t| rate(t, "failed")),
    ("rows/s", |t| rate(t, "rows")),
    ("bytes/s", |t| rate(t, "bytes")),
    ("connections", connections),
    ("in flight", |t| show(&t["in_flight"])),
    ("cached", |t| size(&t["cached_bytes"])),
];

const RECORD: &[Column] = &[
    ("tenant", |t| show(&t["slug"])),
    ("shard", |t| show(&t["shard"])),
    ("rows stored", |t| show(&t["rows"])),
    ("bytes stored", |t| show(&t["bytes"])),
    ("requests/s", |t| rate(&t["usage"], "requests")),
    ("refused/s", |t| rate(&t["usage"], "refused")),
    ("failed/s", |t| rate(&t["usage"], "failed")),
    ("rows/s", |t| rate(&t["usage"], "rows")),
    ("bytes/s", |t| rate(&t["usage"], "bytes")),
    ("connections", |t| connections(&t["usage"])),
    ("cached", |t| size(&t["usage"]["cached_bytes"])),
    ("tables", tables),
];

pub(super) async fn top(admin: &Admin, by: By, limit: u64) -> Answer {
    let limit = limit.to_string();
    let query = [("by", by.name()), ("limit", &limit)];
    let mut top = admin.get("/usage", &query).await?;
    let mut items = admin.items(&mut top, "GET /usage")?;
    items.iter_mut().for_each(|item| spread(item, &top));
    Ok(warned(Output::list(items, TOP), &top))
}

pub(super) async fn of_tenant(admin: &Admin, path: &str) -> Answer {
    let mut usage = admin.get(path, &[]).await?;
    let whole = usage.clone();
    spread(&mut usage["usage"], &whole);
    Ok(warned(Output::record(usage, RECORD), &whole))
}

/// Counts of a few seconds as rates.
fn spread(usage: &mut Value, whole: &Value) {
    let seconds = whole["recent_seconds"].as_f64().unwrap_or(0.0).max(1.0);
    let recent = usage["recent"].as_object().cloned().unwrap_or_default();
    for (name, count) in recent {
        let rate = count.as_f64().unwrap_or(0.0) / seconds;
        usage["per_second"][name] = Value::from(rate);
    }
}

fn warned(output: Output, whole: &Value) -> Output {
    let silent = whole["silent"].as_array().map_or(&[][..], Vec::as_slice);
    if silent.is_empty() {
        return output;
    }
    let names: Vec<String> = silent.iter().map(show).collect();
    output.note(format!(
        "Without what these routers know: {}",
        names.join(", ")
    ))
}

fn tenant(usage: &Value) -> String {
    let slug = &usage["slug"];
    show(if slug.is_null() {
        &usage["tenant"]
    } else {
        slug
    })
}

fn rate(usage: &Value, name: &str) -> String {
    match usage["per_second"][name].as_f64() {
        Some(rate) if rate >= 10.0 => format!("{rate:.0}"),
        Some(rate) if rate > 0.0 => format!("{rate:.1}"),
        _ => "-".to_owned(),
    }
}

/// Bytes as people read them.
fn size(bytes: &Value) -> String {
    match bytes.as_u64() {
        None | Some(0) => "-".to_owned(),
        Some(bytes @ ..10_240) => format!("{bytes} B"),
        Some(bytes @ ..10_485_760) => format!("{} KiB", bytes >> 10),
        Some(bytes) => format!("{} MiB", bytes >> 20),
    }
}

/// A shard's connections that it keeps busy, in the mean.
fn connections(usage: &Value) -> String {
    match usage["per_second"]["busy_us"].as_f64() {
        Some(busy) if busy > 0.0 => format!("{:.2}", busy / 1e6),
        _ => "-".to_owned(),
    }
}

fn tables(usage: &Value) -> String {
    let tables = usage["tables"].as_array().into_iter().flatten();
    let lines = tables.map(|t| format!("{} {} rows", show(&t["table"]), show(&t["rows"])));
    lines.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_become_rates() {
        let whole = json!({ "recent_seconds": 5, "silent": ["router-2"] });
        let mut busy = json!({
            "tenant": "0192f0c1-0000-7000-8000-000000000001", "slug": "acme", "shard": "s1",
            "in_flight": 3, "cached_bytes": 34_000,
            "recent": { "requests": 500, "refused": 2, "failed": 0, "rows": 7_000, "bytes": 90_000, "busy_us": 1_500_000 },
        });
        spread(&mut busy, &whole);
        let top = warned(Output::list(vec![busy], TOP), &whole);
        insta::assert_snapshot!(top.text, @r"
        TENANT  SHARD  REQUESTS/S  REFUSED/S  FAILED/S  ROWS/S  BYTES/S  CONNECTIONS  IN FLIGHT  CACHED
        acme    s1     100         0.4        -         1400    18000    0.30         3          33 KiB
        ");
        assert_eq!(
            top.note.unwrap(),
            "Without what these routers know: router-2"
        );
    }
}
