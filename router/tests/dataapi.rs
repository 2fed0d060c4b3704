//! The data API on a real shard: every request goes through parsing, planning,
//! SQL and a guarded execution on Postgres.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "dataapi/shop.rs"]
mod shop;

use shop::Shop;

/// Each file of `dataapi/cases` is a list of requests, run in order; what they
/// answer is the snapshot of that name. A request is a line `METHOD path`, then
/// lines `Header: value`, then the body; requests are parted by blank lines.
#[tokio::test]
async fn cases() {
    let shop = Shop::open().await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dataapi/cases");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("dataapi/answers");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for file in files {
        let cases = std::fs::read_to_string(&file).unwrap();
        let mut shown = String::new();
        for case in cases.split("\n\n").filter(|case| !case.trim().is_empty()) {
            shown.push_str(&format!("{}\n", run(&shop, case).await));
        }
        let name = file.file_stem().unwrap().to_str().unwrap();
        settings.bind(|| insta::assert_snapshot!(name, shown));
    }
    shop.cluster.down().await;
}

async fn run(shop: &Shop, case: &str) -> String {
    let mut lines = case.lines().filter(|line| !line.starts_with('#'));
    let first = lines.next().unwrap();
    let (method, path) = first.split_once(' ').unwrap();
    let mut headers = Vec::new();
    let mut body = Vec::new();
    for line in lines {
        match line.split_once(": ") {
            Some((name, value)) if body.is_empty() && !line.starts_with(['{', '[']) => {
                headers.push((name, value));
            }
            _ => body.push(line),
        }
    }
    let reply = shop.send(method, path, &headers, &body.join("\n")).await;
    let shown_headers: Vec<String> = headers
        .iter()
        .map(|(n, v)| format!(" [{n}: {v}]"))
        .collect();
    format!(">>> {first}{}\n{}\n", shown_headers.concat(), reply.show())
}
