//! Removals belong into the contract phase: what is dropped or renamed, the
//! version before still reads.

use squawk_syntax::ast::{self, AstNode};
use squawk_syntax::{Parse, SourceFile, SyntaxNode};

use super::{Report, Rule};
use crate::migration::{Migration, Phase, text};

/// Looks for removals in a file of the expand phase.
pub(super) fn find(file: &Migration, tree: &Parse<SourceFile>, report: &mut Report<'_>) {
    if file.header.phase == Phase::Contract {
        return;
    }
    for stmt in tree.tree().stmts() {
        match stmt {
            ast::Stmt::AlterTable(alter) => {
                for action in alter.actions() {
                    match &action {
                        ast::AlterTableAction::DropColumn(_)
                        | ast::AlterTableAction::RenameColumn(_)
                        | ast::AlterTableAction::TableRenameTo(_)
                        | ast::AlterTableAction::SetSchema(_) => removal(action.syntax(), report),
                        _ => {}
                    }
                }
            }
            ast::Stmt::DropTable(_)
            | ast::Stmt::DropView(_)
            | ast::Stmt::DropMaterializedView(_)
            | ast::Stmt::DropFunction(_)
            | ast::Stmt::DropRoutine(_)
            | ast::Stmt::DropType(_)
            | ast::Stmt::DropDomain(_)
            | ast::Stmt::DropSchema(_)
            | ast::Stmt::DropSequence(_) => removal(stmt.syntax(), report),
            _ => {}
        }
    }
}

fn removal(node: &SyntaxNode, report: &mut Report<'_>) {
    let what = text(node);
    let what = what.trim_end_matches(';').split_whitespace();
    let what = what.collect::<Vec<_>>().join(" ");
    report.add(
        Rule::ContractDrop,
        node,
        format!("`{what}` in the expand phase"),
    );
}
