//! The rules about tenants, one statement after another: what a table is
//! declared to be decides what its keys must look like.

use squawk_syntax::SyntaxNode;
use squawk_syntax::ast::{self, AstNode};

use super::known::canonical;
use super::{Known, RelationKind, Report, Rule};
use crate::migration::{altered, start_of, text};

const TENANT: &str = "tenant_id";

/// What a statement breaks; `known` is as it leaves the tables.
pub(super) fn find(stmt: &ast::Stmt, known: &mut Known, report: &mut Report<'_>) {
    let node = stmt.syntax();
    match stmt {
        ast::Stmt::CreateTable(create) => {
            if let Some(table) = create.table_name().map(|name| text(name.syntax())) {
                create_table(create, &table, known, report);
            }
        }
        ast::Stmt::CreateTableAs(create) => {
            if let Some(table) = create.table_name().map(|name| text(name.syntax())) {
                let line = report.file.line_of(start_of(node));
                known.create(&table, &report.file.file(), line);
                not_logged(create.persistence(), node, &table, report);
            }
        }
        ast::Stmt::SelectInto(select) => {
            let into = select.into_clause();
            let name = into.as_ref().and_then(|into| into.table_name());
            if let Some(table) = name.map(|name| text(name.syntax())) {
                let line = report.file.line_of(start_of(node));
                known.create(&table, &report.file.file(), line);
                not_logged(
                    into.and_then(|into| into.persistence()),
                    node,
                    &table,
                    report,
                );
            }
        }
        ast::Stmt::AlterTable(alter) => {
            if let Some(table) = altered(alter) {
                alter_table(alter, &table, known, report);
            }
        }
        ast::Stmt::CreateIndex(index) if index.unique_token().is_some() => {
            unique_index(index, known, report);
        }
        ast::Stmt::DropTable(drop) => {
            for table in drop.table_name_refs() {
                known.drop(&text(table.syntax()));
            }
        }
        ast::Stmt::Truncate(_) => {
            report.add(Rule::Truncate, node, "TRUNCATE".into());
        }
        ast::Stmt::DropPolicy(drop) => {
            if let Some(policy) = drop.policy_ref() {
                own_name(&text(policy.syntax()), node, report);
            }
        }
        ast::Stmt::AlterPolicy(alter) => {
            if let Some(policy) = alter.policy_ref() {
                own_name(&text(policy.syntax()), node, report);
            }
        }
        ast::Stmt::DropTrigger(_) | ast::Stmt::AlterTrigger(_) => {
            own_name(&text(node), node, report);
        }
        _ => {}
    }
    declarations(node, known, report);
    if !matches!(stmt, ast::Stmt::Select(_)) && names_ringfence_first(node) {
        let what = "it changes an object of the schema ringfence".into();
        report.add(Rule::RingfenceObject, node, what);
    }
}

/// Calls of `ringfence.distribute` and `ringfence.reference`, wherever they stand.
fn declarations(node: &SyntaxNode, known: &mut Known, report: &mut Report<'_>) {
    for call in node.descendants().filter_map(ast::CallExpr::cast) {
        let Some(function) = call.expr() else {
            continue;
        };
        let kind = match canonical(&text(function.syntax())).as_str() {
            "ringfence.distribute" => RelationKind::Distributed,
            "ringfence.reference" => RelationKind::Reference,
            _ => continue,
        };
        let first = call.arg_list().and_then(|list| list.args().next());
        let argument = first.map(|first| text(first.syntax())).unwrap_or_default();
        let literal = argument.split("::").next().unwrap_or_default().trim();
        match literal
            .strip_prefix('\'')
            .and_then(|rest| rest.strip_suffix('\''))
        {
            Some(table) => {
                let table = table.replace("''", "'");
                if kind == RelationKind::Distributed && known.excludes(&table) {
                    let what = format!("{table} has an exclusion constraint");
                    report.add(Rule::ExclusionAcrossTenants, call.syntax(), what);
                }
                known.declare(&table, kind);
            }
            None => {
                let what =
                    format!("`{argument}` does not say which table, so nothing is known of it");
                report.add(Rule::TableUnscoped, call.syntax(), what);
            }
        }
    }
}

fn create_table(
    create: &ast::CreateTable,
    table: &str,
    known: &mut Known,
    report: &mut Report<'_>,
) {
    let node = create.syntax();
    // A partition is what its table is.
    if create.partition_of().is_none() {
        let line = report.file.line_of(start_of(node));
        known.create(table, &report.file.file(), line);
    }
    not_logged(create.persistence(), node, table, report);
    let arguments = create.table_arg_list();
    for argument in arguments.into_iter().flat_map(|list| list.args()) {
        match argument {
            ast::TableArg::Column(column) => {
                for reference in column
                    .syntax()
                    .descendants()
                    .filter_map(ast::ReferencesConstraint::cast)
                {
                    column_reference(&reference, table, known, report);
                }
            }
            ast::TableArg::TableConstraint(ast::TableConstraint::ForeignKeyConstraint(key)) => {
                foreign_key(&key, table, known, report);
            }
            ast::TableArg::TableConstraint(ast::TableConstraint::ExcludeConstraint(exclude)) => {
                known.exclude(table, constraint_name(&exclude).as_deref());
            }
            _ => {}
        }
    }
}

fn alter_table(alter: &ast::AlterTable, table: &str, known: &mut Known, report: &mut Report<'_>) {
    for action in alter.actions() {
        let node = action.syntax().clone();
        match action {
            ast::AlterTableAction::AddConstraint(add) => match add.constraint() {
                Some(ast::Constraint::ForeignKeyConstraint(key)) => {
                    foreign_key(&key, table, known, report);
                }
                Some(ast::Constraint::ExcludeConstraint(exclude)) => {
                    exclusion(&exclude, &node, table, known, report);
                }
                Some(ast::Constraint::UniqueConstraint(key)) => {
                    key_columns(key.index_parameters(), &node, table, known, report);
                }
                Some(ast::Constraint::PrimaryKeyConstraint(key)) => {
                    key_columns(key.index_parameters(), &node, table, known, report);
                }
                _ => {}
            },
            ast::AlterTableAction::AddColumn(add) => {
                for constraint in add.constraints() {
                    match constraint {
                        ast::Constraint::ReferencesConstraint(reference) => {
                            column_reference(&reference, table, known, report);
                        }
                        ast::Constraint::UniqueConstraint(_)
                        | ast::Constraint::PrimaryKeyConstraint(_)
                            if known.kind(table) == RelationKind::Distributed =>
                        {
                            let what = format!("a unique column of {table}");
                            report.add(Rule::TenantFirst, &node, what);
                        }
                        _ => {}
                    }
                }
            }
            ast::AlterTableAction::DropConstraint(drop) => {
                if let Some(constraint) = drop.constraint_name_ref() {
                    known.drop_constraint(table, &text(constraint.syntax()));
                }
            }
            ast::AlterTableAction::DropColumn(drop) => {
                let column = drop.column_name_ref().map(|column| text(column.syntax()));
                tenant_column(column, &node, table, known, report);
            }
            ast::AlterTableAction::RenameColumn(rename) => {
                let column = rename.column_name_ref().map(|column| text(column.syntax()));
                tenant_column(column, &node, table, known, report);
            }
            ast::AlterTableAction::AlterColumn(alter) => {
                let column = alter.column_name_ref().map(|column| text(column.syntax()));
                tenant_column(column, &node, table, known, report);
            }
            ast::AlterTableAction::DisableRls(_) | ast::AlterTableAction::NoForceRls(_)
                if known.kind(table) == RelationKind::Distributed =>
            {
                report.add(
                    Rule::RowSecurityOff,
                    &node,
                    format!("row security of {table}"),
                );
            }
            ast::AlterTableAction::DisableTrigger(disable) => {
                let which = disable.trigger_target().map(|target| text(target.syntax()));
                let which = which.unwrap_or_default().to_lowercase();
                if which.contains("ringfence_") || which == "all" || which == "user" {
                    let what = format!("it turns off triggers that protect {table}");
                    report.add(Rule::RingfenceObject, &node, what);
                }
            }
            ast::AlterTableAction::SetUnlogged(_) => {
                report.add(
                    Rule::NotLogged,
                    &node,
                    format!("{table} would not be logged"),
                );
            }
            ast::AlterTableAction::AttachPartition(attach) => {
                // A partition is what its table is.
                if let Some(partition) = attach.table_name_ref() {
                    known.attach(&text(partition.syntax()));
                }
            }
            ast::AlterTableAction::TableRenameTo(rename) => {
                if let Some(name) = rename.table_name() {
                    known.rename(table, &text(name.syntax()));
                }
            }
            _ => {}
        }
    }
}

fn tenant_column(
    column: Option<String>,
    node: &SyntaxNode,
    table: &str,
    known: &Known,
    report: &mut Report<'_>,
) {
    let distributed = known.kind(table) == RelationKind::Distributed;
    if distributed && column.is_some_and(|column| is_tenant(&column)) {
        let what = format!("it changes the column tenant_id of {table}");
        report.add(Rule::RingfenceObject, node, what);
    }
}

fn unique_index(index: &ast::CreateIndex, known: &Known, report: &mut Report<'_>) {
    let table = index
        .table_relation_name()
        .and_then(|name| name.table_name_ref());
    let Some(table) = table.map(|table| text(table.syntax())) else {
        return;
    };
    let first = index
        .partition_item_list()
        .and_then(|list| list.partition_items().next());
    let first = first.and_then(|item| item.expr()).map(|e| text(e.syntax()));
    let first = first.unwrap_or_default();
    if known.kind(&table) == RelationKind::Distributed && !is_tenant(&first) {
        let what = format!("a unique index of {table} begins with {first}");
        report.add(Rule::TenantFirst, index.syntax(), what);
    }
}

fn key_columns(
    parameters: Option<ast::IndexParameters>,
    node: &SyntaxNode,
    table: &str,
    known: &Known,
    report: &mut Report<'_>,
) {
    // USING INDEX names an index that was looked at where it was made.
    let Some(columns) = parameters.and_then(|parameters| parameters.column_list()) else {
        return;
    };
    let first = columns.column_name_refs().next();
    let first = first.map(|first| text(first.syntax())).unwrap_or_default();
    if known.kind(table) == RelationKind::Distributed && !is_tenant(&first) {
        let what = format!("a key of {table} begins with {first}");
        report.add(Rule::TenantFirst, node, what);
    }
}

fn constraint_name(exclude: &ast::ExcludeConstraint) -> Option<String> {
    let name = exclude.constraint_name_clause()?.constraint_name()?;
    Some(text(name.syntax()))
}

fn exclusion(
    exclude: &ast::ExcludeConstraint,
    node: &SyntaxNode,
    table: &str,
    known: &mut Known,
    report: &mut Report<'_>,
) {
    let elements = exclude.constraint_exclusion_list();
    let by_tenant = elements
        .into_iter()
        .flat_map(|list| list.constraint_exclusions())
        .any(|element| {
            let column = element.expr().map(|column| text(column.syntax()));
            let operator = element.op().map(|operator| text(operator.syntax()));
            column.is_some_and(|column| is_tenant(&column)) && operator.as_deref() == Some("=")
        });
    match known.kind(table) {
        RelationKind::Distributed if !by_tenant => {
            let what = format!("an exclusion constraint of {table}");
            report.add(Rule::ExclusionAcrossTenants, node, what);
        }
        // Before it is distributed there is no tenant to name.
        RelationKind::Plain => known.exclude(table, constraint_name(exclude).as_deref()),
        RelationKind::Distributed | RelationKind::Reference => {}
    }
}

fn foreign_key(
    key: &ast::ForeignKeyConstraint,
    table: &str,
    known: &Known,
    report: &mut Report<'_>,
) {
    let Some(parent) = key.table_name_ref().map(|parent| text(parent.syntax())) else {
        return;
    };
    let first = |list: Option<ast::ForeignKeyColumnList>| {
        let first = list.and_then(|list| list.column_name_refs().next());
        first.is_some_and(|column| is_tenant(&text(column.syntax())))
    };
    // Without a list, the parent's primary key is meant, which begins with the tenant.
    let to = key.to_columns().is_none() || first(key.to_columns());
    let with_tenant = first(key.from_columns()) && to;
    across(&parent, table, with_tenant, key.syntax(), known, report);
}

fn column_reference(
    reference: &ast::ReferencesConstraint,
    table: &str,
    known: &Known,
    report: &mut Report<'_>,
) {
    if let Some(parent) = reference.table() {
        let parent = text(parent.syntax());
        across(&parent, table, false, reference.syntax(), known, report);
    }
}

/// A foreign key to `parent`, where that may not be.
fn across(
    parent: &str,
    table: &str,
    with_tenant: bool,
    node: &SyntaxNode,
    known: &Known,
    report: &mut Report<'_>,
) {
    // Tables that are distributed together are distributed after their keys are made.
    if known.kind(parent) != RelationKind::Distributed || canonical(parent) == canonical(table) {
        return;
    }
    let what = match known.kind(table) {
        RelationKind::Reference => {
            format!("{table}, a reference table, refers to rows of tenants in {parent}")
        }
        RelationKind::Distributed if with_tenant => return,
        RelationKind::Distributed | RelationKind::Plain => {
            format!("{table} refers to {parent} without the tenant")
        }
    };
    report.add(Rule::ForeignKeyAcrossTenants, node, what);
}

fn not_logged(
    persistence: Option<ast::Persistence>,
    node: &SyntaxNode,
    table: &str,
    report: &mut Report<'_>,
) {
    match persistence {
        Some(ast::Persistence::Temp(_)) => {
            report.add(Rule::NotLogged, node, format!("{table} is temporary"));
        }
        Some(ast::Persistence::Unlogged(_)) => {
            report.add(Rule::NotLogged, node, format!("{table} is unlogged"));
        }
        None => {}
    }
}

fn own_name(name: &str, node: &SyntaxNode, report: &mut Report<'_>) {
    if name.to_lowercase().contains("ringfence_") {
        let what = "it changes a policy or trigger that keeps tenants apart".into();
        report.add(Rule::RingfenceObject, node, what);
    }
}

/// The first name of a statement is that of the object it makes or changes.
fn names_ringfence_first(node: &SyntaxNode) -> bool {
    let path = node.descendants().find_map(|inner| {
        let path = ast::Path::cast(inner.clone()).map(|path| text(path.syntax()));
        path.or_else(|| ast::PathRef::cast(inner).map(|path| text(path.syntax())))
    });
    path.is_some_and(|path| canonical(&path).starts_with("ringfence."))
}

fn is_tenant(column: &str) -> bool {
    canonical(column) == canonical(TENANT)
}
