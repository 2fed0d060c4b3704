//! Locks that would hold up requests: found by squawk's linter, told in our
//! words. Tables that the same transaction makes are nobody's yet.

use squawk_linter::{Linter, Rule as Squawk};
use squawk_syntax::{Parse, SourceFile};

use super::{Finding, Rule};
use crate::migration::{Migration, StatementKind};

/// What squawk finds, and the rule that it is to us.
const RULES: [(Squawk, Rule); 16] = [
    (
        Squawk::RequireConcurrentIndexCreation,
        Rule::IndexBlocksWrites,
    ),
    (
        Squawk::RequireConcurrentIndexDeletion,
        Rule::IndexDropBlocks,
    ),
    (Squawk::RequireConcurrentReindex, Rule::ReindexBlocks),
    (Squawk::RequireConcurrentPartitionDetach, Rule::DetachBlocks),
    (Squawk::ChangingColumnType, Rule::ColumnTypeRewrite),
    (Squawk::AddingNotNullableField, Rule::SetNotNull),
    (Squawk::AddingFieldWithDefault, Rule::DefaultRewrites),
    (Squawk::AddingRequiredField, Rule::RequiredColumn),
    (Squawk::ConstraintMissingNotValid, Rule::ConstraintScans),
    (Squawk::DisallowedUniqueConstraint, Rule::KeyBlocks),
    (Squawk::AddingSerialPrimaryKeyField, Rule::KeyBlocks),
    (Squawk::AddingForeignKeyConstraint, Rule::ForeignKeyBlocks),
    (Squawk::TransactionNesting, Rule::TransactionControl),
    (Squawk::BanUncommittedTransaction, Rule::TransactionControl),
    (Squawk::IdentifierTooLong, Rule::NameTooLong),
    (Squawk::BanDropDatabase, Rule::DropDatabase),
];

/// Runs squawk over a file.
pub(super) fn find(file: &Migration, tree: &Parse<SourceFile>) -> Vec<Finding> {
    let mut linter = Linter::from(RULES.map(|(squawk, _)| squawk));
    linter.settings.assume_in_transaction = file.header.transaction;
    let violations = linter.lint(tree, &file.text);
    let mut findings: Vec<Finding> = violations
        .into_iter()
        .filter_map(|violation| {
            let (_, rule) = RULES.iter().find(|(squawk, _)| *squawk == violation.code)?;
            let range = violation.text_range;
            let found = file.text.get(range.start().into()..range.end().into());
            let line = file.line_of(range.start().into());
            Some(finding(
                file,
                *rule,
                line,
                snippet(found.unwrap_or_default()),
            ))
        })
        .collect();
    for statement in &file.statements {
        let outside = matches!(
            statement.kind,
            StatementKind::ConcurrentIndex { .. } | StatementKind::OutsideTransaction
        );
        // REINDEX without CONCURRENTLY has a rule of its own.
        if outside && file.header.transaction && concurrently(&statement.text) {
            let what = snippet(&statement.text);
            let rule = Rule::ConcurrentlyInTransaction;
            findings.push(finding(file, rule, statement.line, what));
        }
        if matches!(
            &statement.kind,
            StatementKind::ConcurrentIndex { index: None }
        ) {
            let what = snippet(&statement.text);
            findings.push(finding(file, Rule::IndexUnnamed, statement.line, what));
        }
    }
    once(findings)
}

/// Several of squawk's rules can be one of ours, and what is said of a key need
/// not be said of it as a constraint.
fn once(findings: Vec<Finding>) -> Vec<Finding> {
    let mut kept: Vec<Finding> = Vec::with_capacity(findings.len());
    for finding in &findings {
        let same = |other: &Finding| other.line == finding.line && other.rule == finding.rule;
        let said = finding.rule == Rule::ConstraintScans
            && findings.iter().any(|other| {
                other.line == finding.line
                    && matches!(other.rule, Rule::KeyBlocks | Rule::ForeignKeyBlocks)
            });
        if !said && !kept.iter().any(same) {
            kept.push(finding.clone());
        }
    }
    kept
}

fn concurrently(statement: &str) -> bool {
    let mut words = statement.split_whitespace();
    words.any(|word| word.eq_ignore_ascii_case("concurrently"))
}

fn finding(file: &Migration, rule: Rule, line: u32, what: String) -> Finding {
    Finding {
        file: file.file(),
        line,
        rule,
        level: rule.level(),
        what,
    }
}

/// A statement or a part of it on one line, cut where it is long.
fn snippet(text: &str) -> String {
    let words: Vec<&str> = text.trim_end_matches(';').split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(80) {
        Some((end, _)) => format!("`{}…`", &line[..end]),
        None => format!("`{line}`"),
    }
}
