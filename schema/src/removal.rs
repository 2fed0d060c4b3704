//! What statements take away from those who read it: dropped or renamed
//! tables, columns, views and functions.

use serde::Serialize;
use squawk_syntax::SyntaxNode;
use squawk_syntax::ast::{self, AstNode};

use crate::migration::{altered, text};

/// What a statement removes or renames, as it spells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// The table or view; none where it is a function.
    pub relation: Option<String>,
    /// Its column; none where it is the whole relation.
    pub column: Option<String>,
    /// The function.
    pub function: Option<String>,
    /// Types of the function's arguments; none where the statement names none.
    pub arguments: Option<Vec<String>>,
    /// What depends on it goes, too.
    pub cascade: bool,
}

/// A statement that removes, or may.
pub(crate) enum Found {
    /// What routers can be told to read no longer.
    Named(SyntaxNode, Vec<Removal>),
    /// What can't be said: routers may read it up to the end.
    Unseen(SyntaxNode),
}

impl Removal {
    fn relation(name: String, cascade: bool) -> Self {
        Self {
            relation: Some(name),
            cascade,
            ..Self::default()
        }
    }

    fn column(relation: String, column: Option<String>, cascade: bool) -> Self {
        Self {
            column,
            ..Self::relation(relation, cascade)
        }
    }
}

/// What one statement takes away.
pub(crate) fn of(stmt: &ast::Stmt) -> Vec<Found> {
    let node = stmt.syntax().clone();
    let cascades = |behavior: Option<ast::DropBehavior>| {
        matches!(behavior, Some(ast::DropBehavior::Cascade(_)))
    };
    match stmt {
        ast::Stmt::AlterTable(alter) => {
            let name = altered(alter).unwrap_or_default();
            let actions = alter.actions();
            actions
                .filter_map(|action| of_table(&name, &action))
                .collect()
        }
        ast::Stmt::AlterView(alter) => {
            let name = alter.view_ref().map(|view| text(view.syntax()));
            let name = name.unwrap_or_default();
            let removal = match alter.action() {
                Some(ast::AlterViewAction::RenameColumn(rename)) => renamed(&name, &rename),
                Some(
                    ast::AlterViewAction::ViewRenameTo(_) | ast::AlterViewAction::SetSchema(_),
                ) => Removal::relation(name, false),
                _ => return Vec::new(),
            };
            vec![Found::Named(node, vec![removal])]
        }
        ast::Stmt::DropTable(drop) => {
            let cascade = cascades(drop.drop_behavior());
            let names = drop.table_name_refs().map(|name| text(name.syntax()));
            named(node, names, cascade)
        }
        ast::Stmt::DropView(drop) => {
            let cascade = cascades(drop.drop_behavior());
            let names = drop.view_refs().map(|name| text(name.syntax()));
            named(node, names, cascade)
        }
        // No model has them; what depends on them may be in one.
        ast::Stmt::DropMaterializedView(drop) => {
            let cascade = cascades(drop.drop_behavior());
            let names = drop.view_refs().map(|name| text(name.syntax()));
            named(node, names, cascade)
        }
        ast::Stmt::DropFunction(drop) => {
            let cascade = cascades(drop.drop_behavior());
            let signatures = drop.function_sig_list();
            let signatures = signatures.into_iter().flat_map(|l| l.function_sigs());
            let removals = signatures.map(|s| function(&s, cascade)).collect();
            vec![Found::Named(node, removals)]
        }
        ast::Stmt::AlterFunction(alter) => match (alter.action(), alter.function_sig()) {
            (
                Some(
                    ast::AlterFunctionAction::FunctionRenameTo(_)
                    | ast::AlterFunctionAction::SetSchema(_),
                ),
                Some(signature),
            ) => vec![Found::Named(node, vec![function(&signature, false)])],
            _ => Vec::new(),
        },
        ast::Stmt::DropRoutine(drop) => {
            let cascade = cascades(drop.drop_behavior());
            let signatures = drop.routine_sig_list();
            let signatures = signatures.into_iter().flat_map(|l| l.routine_sigs());
            let removal = |s: ast::RoutineSig| {
                let name = s.routine_name_ref().map(|name| text(name.syntax()));
                called(name, s.param_list(), cascade)
            };
            vec![Found::Named(node, signatures.map(removal).collect())]
        }
        ast::Stmt::AlterRoutine(alter) => match (alter.action(), alter.routine_sig()) {
            (
                Some(
                    ast::AlterRoutineAction::RoutineRenameTo(_)
                    | ast::AlterRoutineAction::SetSchema(_),
                ),
                Some(s),
            ) => {
                let name = s.routine_name_ref().map(|name| text(name.syntax()));
                let removal = called(name, s.param_list(), false);
                vec![Found::Named(node, vec![removal])]
            }
            _ => Vec::new(),
        },
        // No model has them.
        ast::Stmt::DropProcedure(drop) if !cascades(drop.drop_behavior()) => {
            vec![Found::Named(node, Vec::new())]
        }
        // Without CASCADE nothing that is read depends on them.
        ast::Stmt::DropType(drop) if !cascades(drop.drop_behavior()) => {
            vec![Found::Named(node, Vec::new())]
        }
        ast::Stmt::DropDomain(drop) if !cascades(drop.drop_behavior()) => {
            vec![Found::Named(node, Vec::new())]
        }
        ast::Stmt::DropSchema(drop) if !cascades(drop.drop_behavior()) => {
            vec![Found::Named(node, Vec::new())]
        }
        ast::Stmt::DropSequence(drop) if !cascades(drop.drop_behavior()) => {
            vec![Found::Named(node, Vec::new())]
        }
        ast::Stmt::AlterType(alter) => match alter.action() {
            Some(
                ast::AlterTypeAction::AlterTypeAttributeActionList(_)
                | ast::AlterTypeAction::RenameAttribute(_)
                | ast::AlterTypeAction::RenameValue(_)
                | ast::AlterTypeAction::SetSchema(_)
                | ast::AlterTypeAction::TypeRenameTo(_),
            ) => vec![Found::Unseen(node)],
            _ => Vec::new(),
        },
        ast::Stmt::AlterSchema(alter) => match alter.action() {
            Some(ast::AlterSchemaAction::SchemaRenameTo(_)) => vec![Found::Unseen(node)],
            _ => Vec::new(),
        },
        ast::Stmt::AlterDomain(alter) => match alter.action() {
            Some(
                ast::AlterDomainAction::DomainRenameTo(_) | ast::AlterDomainAction::SetSchema(_),
            ) => {
                vec![Found::Unseen(node)]
            }
            _ => Vec::new(),
        },
        ast::Stmt::AlterForeignTable(_)
        | ast::Stmt::AlterMaterializedView(_)
        | ast::Stmt::DropForeignTable(_) => Vec::new(),
        ast::Stmt::DropProcedure(_)
        | ast::Stmt::DropType(_)
        | ast::Stmt::DropDomain(_)
        | ast::Stmt::DropSchema(_)
        | ast::Stmt::DropSequence(_)
        | ast::Stmt::DropAggregate(_)
        | ast::Stmt::DropCast(_)
        | ast::Stmt::DropOperator(_)
        | ast::Stmt::DropExtension(_)
        | ast::Stmt::DropOwned(_) => vec![Found::Unseen(node)],
        _ => Vec::new(),
    }
}

fn of_table(table: &str, action: &ast::AlterTableAction) -> Option<Found> {
    let removal = match action {
        ast::AlterTableAction::DropColumn(drop) => {
            let cascade = matches!(drop.drop_behavior(), Some(ast::DropBehavior::Cascade(_)));
            let column = drop.column_name_ref().map(|column| text(column.syntax()));
            Removal::column(table.to_owned(), column, cascade)
        }
        ast::AlterTableAction::RenameColumn(rename) => renamed(table, rename),
        ast::AlterTableAction::TableRenameTo(_) | ast::AlterTableAction::SetSchema(_) => {
            Removal::relation(table.to_owned(), false)
        }
        _ => return None,
    };
    Some(Found::Named(action.syntax().clone(), vec![removal]))
}

fn renamed(relation: &str, rename: &ast::RenameColumn) -> Removal {
    let column = rename.column_name_ref().map(|column| text(column.syntax()));
    Removal::column(relation.to_owned(), column, false)
}

fn named(node: SyntaxNode, names: impl Iterator<Item = String>, cascade: bool) -> Vec<Found> {
    let removals = names.map(|name| Removal::relation(name, cascade));
    vec![Found::Named(node, removals.collect())]
}

fn function(signature: &ast::FunctionSig, cascade: bool) -> Removal {
    let name = signature.function_name_ref();
    let name = name.map(|name| text(name.syntax()));
    called(name, signature.param_list(), cascade)
}

fn called(name: Option<String>, parameters: Option<ast::ParamList>, cascade: bool) -> Removal {
    let inputs = parameters.map(|list| {
        let inputs = list
            .params()
            .filter(|parameter| !matches!(parameter.mode(), Some(ast::ParamMode::ParamOut(_))));
        let types = inputs.filter_map(|parameter| parameter.func_type());
        types.map(|of| text(of.syntax())).collect()
    });
    Removal {
        function: Some(name.unwrap_or_default()),
        arguments: inputs,
        cascade,
        ..Removal::default()
    }
}
