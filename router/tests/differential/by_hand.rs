//! Requests written by hand, out of `by_hand.http`.

use crate::case::{Case, Section};

const METHODS: [&str; 7] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];

pub(crate) fn cases() -> Vec<Case> {
    let text = include_str!("by_hand.http");
    let lines = text.lines().filter(|line| !line.starts_with("# "));
    let lines: Vec<&str> = lines.collect();
    let requests = lines.split(|line| *line == "###");
    requests.map(read).collect()
}

fn read(lines: &[&str]) -> Case {
    let mut lines = lines.iter().skip_while(|line| line.is_empty());
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut case = Case::get(path);
    case.section = Section::ByHand;
    case.method = METHODS.iter().find(|known| **known == method).unwrap();
    let params = query.split('&').filter(|part| !part.is_empty());
    let params = params.map(|part| part.split_once('=').unwrap());
    case.params = params.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        case.header(name, value);
    }
    let body: Vec<&str> = lines.copied().collect();
    if !body.is_empty() {
        case.body = Some(body.join("\n").trim_end().to_owned());
    }
    let called = path.starts_with("/rpc/") && path != "/rpc/f_add_label";
    case.commits = case.writes() && !called && !case.has_header("Prefer", "tx=rollback");
    case.ordered = case.param("order").is_some();
    case
}
