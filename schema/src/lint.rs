//! What is refused, or warned of, before any of a migration runs: keys and
//! tables that would reach across tenants, locks that would hold up requests,
//! and removals of what a running version still reads.
//!
//! Parsed by squawk's grammar of PostgreSQL; its linter finds what locks too
//! long, the rules about tenants are Ringfence's. Pure: what shards hold
//! already, as far as the caller knows it, comes in as [`Known`].

mod contract;
mod hold;
mod known;
mod locks;
mod owner;
mod rule;
mod scope;

use std::collections::BTreeSet;

use serde::Serialize;
use squawk_syntax::SyntaxNode;

use crate::migration::{Migration, start_of};

pub(crate) use known::canonical;
pub use known::{Known, RelationKind};
use owner::Owners;
pub use rule::{Level, Rule};

/// What a rule has to say of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file's name.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The rule.
    pub rule: Rule,
    /// Whether it stops the run.
    pub level: Level,
    /// What was found.
    pub what: String,
}

/// Looks at files in the order in which they would be applied, on shards that
/// hold what `known` says.
pub fn lint(files: &[Migration], known: Known) -> Vec<Finding> {
    let (mut known, mut owners) = (known, Owners::default());
    let mut by_file: Vec<Vec<Finding>> = files
        .iter()
        .map(|file| lint_file(file, &mut known, &mut owners))
        .collect();
    for left in owners.left() {
        let mut places = files.iter().zip(&mut by_file);
        if let Some((_, found)) = places.find(|(file, _)| file.file() == left.file) {
            found.push(left);
        }
    }
    let mut findings = Vec::new();
    for (file, found) in files.iter().zip(&mut by_file) {
        suppress(file, found);
        found.sort_by_key(|finding| finding.line);
        findings.append(found);
    }
    // A table may be distributed in a later file than the one that makes it.
    for (table, file, line) in known.unscoped() {
        let left = Finding {
            file: file.to_owned(),
            line,
            rule: Rule::TableUnscoped,
            level: Rule::TableUnscoped.level(),
            what: format!("{table} is neither distributed nor a reference table"),
        };
        let allowed = files
            .iter()
            .any(|migration| migration.file() == left.file && may_be_unscoped(migration, table));
        if !allowed {
            findings.push(left);
        }
    }
    findings
}

/// Whether a run may start with these findings.
pub fn passes(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.level != Level::Error)
}

/// What rules about locks and rewrites find in one file, whatever its header allows.
pub(crate) fn unpermitted(file: &Migration) -> Vec<Finding> {
    lint_file(file, &mut Known::new(), &mut Owners::default())
}

fn lint_file(file: &Migration, known: &mut Known, owners: &mut Owners) -> Vec<Finding> {
    let tree = file.tree();
    let errors = tree.errors();
    if !errors.is_empty() {
        // What can't be parsed can't be judged by any other rule.
        let finding = |error: &squawk_syntax::syntax_error::SyntaxError| Finding {
            file: file.file(),
            line: file.line_of(error.range().start().into()),
            rule: Rule::Syntax,
            level: Level::Error,
            what: error.message().to_owned(),
        };
        return errors.iter().take(10).map(finding).collect();
    }
    let mut report = Report {
        file,
        findings: locks::find(file, tree),
    };
    contract::find(file, tree, &mut report);
    let mut held = hold::Held::default();
    for stmt in tree.tree().stmts() {
        held.find(&stmt, known, &mut report);
        scope::find(&stmt, known, &mut report);
        owners.find(&stmt, &report);
    }
    report.findings
}

/// Tables that are named where a file's statements make or declare them, as
/// `schema.table`: any other that it makes was never judged.
pub(crate) fn judged(file: &Migration) -> BTreeSet<String> {
    let mut known = Known::new();
    let mut report = Report {
        file,
        findings: Vec::new(),
    };
    let mut judged = BTreeSet::new();
    for stmt in file.tree().tree().stmts() {
        scope::find(&stmt, &mut known, &mut report);
        judged.extend(known.names().cloned());
    }
    judged
}

/// Whether a file's header lets `table`, `schema.table`, be left unscoped.
pub(crate) fn may_be_unscoped(file: &Migration, table: &str) -> bool {
    file.header.allowed.iter().any(|allowed| {
        let named = allowed.table.as_deref();
        allowed.rule == Rule::TableUnscoped.id()
            && named.is_none_or(|name| canonical(name) == table)
    })
}

/// Drops what the file's header allows; says of each permission that it names
/// no rule, or that nothing needed it.
fn suppress(file: &Migration, findings: &mut Vec<Finding>) {
    let mut remarks = Vec::new();
    for allowed in &file.header.allowed {
        let rule = Rule::of_id(&allowed.rule);
        let needed = findings.iter().any(|found| Some(found.rule) == rule);
        let what = match rule {
            None => format!("there is no rule `{}` to allow", allowed.rule),
            // Judged for all files together, at the end.
            Some(Rule::TableUnscoped) => continue,
            Some(_) if needed => continue,
            Some(_) => format!("nothing here breaks `{}`", allowed.rule),
        };
        remarks.push(Finding {
            file: file.file(),
            line: 1,
            rule: Rule::UselessAllow,
            level: Rule::UselessAllow.level(),
            what,
        });
    }
    let allowed = |rule: Rule| {
        let mut header = file.header.allowed.iter();
        header.any(|a| a.rule == rule.id() && a.table.is_none())
    };
    findings.retain(|found| found.rule == Rule::Syntax || !allowed(found.rule));
    findings.append(&mut remarks);
}

/// Where rules put what they find.
struct Report<'a> {
    file: &'a Migration,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(&mut self, rule: Rule, node: &SyntaxNode, what: String) {
        self.findings.push(self.finding(rule, node, what));
    }

    fn finding(&self, rule: Rule, node: &SyntaxNode, what: String) -> Finding {
        Finding {
            file: self.file.file(),
            line: self.file.line_of(start_of(node)),
            rule,
            level: rule.level(),
            what,
        }
    }
}

#[cfg(test)]
mod tests;
