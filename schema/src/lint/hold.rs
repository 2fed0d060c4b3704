//! What holds tables up for long and squawk's linter does not see, and what can't
//! be seen at all.

use std::collections::BTreeSet;

use squawk_syntax::SyntaxNode;
use squawk_syntax::ast::{self, AstNode};

use super::known::canonical;
use super::{Known, Report, Rule};
use crate::migration::{Phase, altered, start_of, text};

/// Types of columns that are filled row by row.
const SERIAL: &[&str] = &[
    "serial",
    "serial2",
    "serial4",
    "serial8",
    "smallserial",
    "bigserial",
];

/// What a file's statements up to now have done.
#[derive(Default)]
pub(super) struct Held {
    /// Tables that it makes: nobody waits for them.
    made: BTreeSet<String>,
    /// A table that was there, and that its transaction locks.
    locked: Option<String>,
    /// Constraints that it validates, with their tables.
    validated: Vec<(String, String)>,
}

impl Held {
    /// Looks at a file's next statement; `known` is as the one before left it.
    pub(super) fn find(&mut self, stmt: &ast::Stmt, known: &mut Known, report: &mut Report<'_>) {
        let node = stmt.syntax();
        let expand = report.file.header.phase == Phase::Expand;
        match stmt {
            // In the contract phase another rule says so.
            ast::Stmt::Do(_) if expand => {
                report.add(Rule::StatementsUnseen, node, "a DO block".into());
            }
            ast::Stmt::CreateSchema(create) if create.schema_elements().next().is_some() => {
                let what = "statements within CREATE SCHEMA".into();
                report.add(Rule::StatementsUnseen, node, what);
            }
            ast::Stmt::Lock(_) => report.add(Rule::LockTable, node, "LOCK TABLE".into()),
            ast::Stmt::Cluster(_) => report.add(Rule::TableRewrites, node, "CLUSTER".into()),
            ast::Stmt::Vacuum(vacuum) if is_full(vacuum) => {
                report.add(Rule::TableRewrites, node, "VACUUM FULL".into());
            }
            ast::Stmt::AlterTable(alter) => {
                if let Some(table) = altered(alter) {
                    for action in alter.actions() {
                        self.action(&table, &action, known, report);
                    }
                }
            }
            _ => {}
        }
        if let Some(locked) = self
            .locked
            .as_ref()
            .filter(|_| report.file.header.transaction)
            && let Some(rows) = many_rows(stmt)
        {
            let what =
                format!("rows are changed while {locked}, which was altered before, is locked");
            report.add(Rule::RowsBehindLock, &rows, what);
        }
        if let Some(table) = made(stmt) {
            self.made.insert(canonical(&table));
        }
        if self.locked.is_none() {
            self.locked = locks(stmt).filter(|table| self.is_old(table));
        }
    }

    fn is_old(&self, table: &str) -> bool {
        !self.made.contains(&canonical(table))
    }

    fn action(
        &mut self,
        table: &str,
        action: &ast::AlterTableAction,
        known: &mut Known,
        report: &mut Report<'_>,
    ) {
        let node = action.syntax();
        match action {
            ast::AlterTableAction::AddColumn(add) if self.is_old(table) => {
                let of_type = add.ty().map(|of| text(of.syntax()).to_lowercase());
                if let Some(of_type) = of_type.filter(|of| SERIAL.contains(&of.as_str())) {
                    let what = format!("a column of type {of_type}");
                    report.add(Rule::DefaultRewrites, node, what);
                }
            }
            ast::AlterTableAction::SetAccessMethod(_)
            | ast::AlterTableAction::SetLogged(_)
            | ast::AlterTableAction::SetTablespace(_)
                if self.is_old(table) =>
            {
                report.add(Rule::TableRewrites, node, format!("all of {table}"));
            }
            ast::AlterTableAction::AddConstraint(add) => {
                if let Some(ast::Constraint::CheckConstraint(check)) = add.constraint()
                    && let Some(column) = check.expr().and_then(|e| not_null(&text(e.syntax())))
                    && let Some(name) = check
                        .constraint_name_clause()
                        .and_then(|c| c.constraint_name())
                {
                    known.check(table, &text(name.syntax()), &column);
                }
            }
            ast::AlterTableAction::ValidateConstraint(validate) => {
                if let Some(name) = validate.constraint_name_ref() {
                    let name = text(name.syntax());
                    self.validated.push((canonical(table), name));
                }
            }
            ast::AlterTableAction::AlterColumn(alter) => {
                if let (Some(ast::AlterColumnOption::SetNotNull(_)), Some(column)) =
                    (alter.option(), alter.column_name_ref())
                {
                    let column = text(column.syntax());
                    self.set_not_null(table, &column, node, known, report);
                }
            }
            _ => {}
        }
    }

    /// Squawk takes any constraint that is validated before for one on the column.
    fn set_not_null(
        &self,
        table: &str,
        column: &str,
        node: &SyntaxNode,
        known: &Known,
        report: &mut Report<'_>,
    ) {
        let of_table = canonical(table);
        let of_table = self.validated.iter().filter(|(of, _)| *of == of_table);
        let checked: Vec<Option<&str>> = of_table
            .map(|(_, constraint)| known.checked(table, constraint))
            .collect();
        // Of one that was made elsewhere nothing is known.
        let may_be = |checked: &Option<&str>| {
            checked.is_none_or(|other| canonical(other) == canonical(column))
        };
        let line = report.file.line_of(start_of(node));
        let said = |found: &super::Finding| found.rule == Rule::SetNotNull && found.line == line;
        if !checked.is_empty() && !checked.iter().any(may_be) && !report.findings.iter().any(said) {
            let what = format!("what is validated before does not check {column}");
            report.add(Rule::SetNotNull, node, what);
        }
    }
}

/// The table that a statement makes, also as a partition or by a new name.
fn made(stmt: &ast::Stmt) -> Option<String> {
    let name = match stmt {
        ast::Stmt::CreateTable(create) => create.table_name(),
        ast::Stmt::CreateTableAs(create) => create.table_name(),
        ast::Stmt::SelectInto(select) => select.into_clause()?.table_name(),
        _ => None,
    };
    Some(text(name?.syntax()))
}

/// The table that a statement locks against readers or writers until the
/// transaction's end.
fn locks(stmt: &ast::Stmt) -> Option<String> {
    let of_table = |on: Option<ast::OnTable>| Some(text(on?.table_name_ref()?.syntax()));
    let of_relation = |on: Option<ast::OnRelation>| Some(text(on?.relation_name_ref()?.syntax()));
    match stmt {
        ast::Stmt::AlterTable(alter) => {
            let mut actions = alter.actions();
            let harmless = actions.all(|action| {
                matches!(
                    action,
                    ast::AlterTableAction::ValidateConstraint(_)
                        | ast::AlterTableAction::SetOptions(_)
                        | ast::AlterTableAction::ResetOptions(_)
                )
            });
            altered(alter).filter(|_| !harmless)
        }
        ast::Stmt::CreateTrigger(create) => of_relation(create.on_relation()),
        ast::Stmt::DropTrigger(drop) => of_relation(drop.on_relation()),
        ast::Stmt::CreatePolicy(create) => of_table(create.on_table()),
        ast::Stmt::AlterPolicy(alter) => of_table(alter.on_table()),
        ast::Stmt::DropPolicy(drop) => of_table(drop.on_table()),
        _ => None,
    }
}

/// Where a statement changes rows that nobody has counted.
fn many_rows(stmt: &ast::Stmt) -> Option<SyntaxNode> {
    if let ast::Stmt::CreateFunction(_) | ast::Stmt::CreateProcedure(_) | ast::Stmt::CreateRule(_) =
        stmt
    {
        return None;
    }
    stmt.syntax().descendants().find(|node| {
        let inserts = |insert: ast::Insert| match insert.insert_source() {
            Some(ast::InsertSource::SelectVariant(from)) => {
                !matches!(from, ast::SelectVariant::Values(_))
            }
            Some(ast::InsertSource::DefaultValues(_)) | None => false,
        };
        ast::Update::can_cast(node.kind())
            || ast::Delete::can_cast(node.kind())
            || ast::Merge::can_cast(node.kind())
            || ast::Insert::cast(node.clone()).is_some_and(inserts)
    })
}

fn is_full(vacuum: &ast::Vacuum) -> bool {
    let options = vacuum.vacuum_option_list();
    let options = options.map(|list| text(list.syntax()).to_lowercase());
    let full = |options: String| {
        let mut options = options.split(|c: char| !c.is_alphanumeric());
        options.any(|word| word == "full")
    };
    vacuum.full_token().is_some() || options.is_some_and(full)
}

/// The column of `(x is not null)`.
fn not_null(expression: &str) -> Option<String> {
    let plain = expression.trim_matches(|c: char| matches!(c, '(' | ')') || c.is_whitespace());
    let words: Vec<&str> = plain.split_whitespace().collect();
    match words[..] {
        [column, is, not, null]
            if is.eq_ignore_ascii_case("is")
                && not.eq_ignore_ascii_case("not")
                && null.eq_ignore_ascii_case("null") =>
        {
            Some(column.to_owned())
        }
        _ => None,
    }
}
