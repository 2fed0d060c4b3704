//! Removals belong into the contract phase: what is dropped or renamed, the
//! version before still reads. There, they must be told from the statements.

use squawk_syntax::ast::{self, AstNode};
use squawk_syntax::{Parse, SourceFile, SyntaxNode};

use super::{Report, Rule};
use crate::migration::{Migration, Phase, text};
use crate::removal::{Found, of};

/// Looks for removals in a file of the expand phase, and in one of the contract
/// phase for those that can't be hidden first.
pub(super) fn find(file: &Migration, tree: &Parse<SourceFile>, report: &mut Report<'_>) {
    for stmt in tree.tree().stmts() {
        for found in of(&stmt) {
            match (file.header.phase, found) {
                (Phase::Expand, Found::Named(node, _) | Found::Unseen(node)) => {
                    let what = format!("`{}` in the expand phase", short(&node));
                    report.add(Rule::ContractDrop, &node, what);
                }
                (Phase::Contract, Found::Unseen(node)) => unseen(&node, report),
                (Phase::Contract, Found::Named(..)) => {}
            }
        }
        if let (Phase::Contract, ast::Stmt::Do(block)) = (file.header.phase, &stmt) {
            unseen(block.syntax(), report);
        }
    }
}

fn unseen(node: &SyntaxNode, report: &mut Report<'_>) {
    let what = format!("`{}` does not say what readers lose", short(node));
    report.add(Rule::ContractUnseen, node, what);
}

fn short(node: &SyntaxNode) -> String {
    let what = text(node);
    let what = what.trim_end_matches(';').split_whitespace();
    let what: String = what.collect::<Vec<_>>().join(" ");
    what.chars().take(120).collect()
}
