//! What the API hides because row security does not hold for its reader: views and
//! functions that run with their owner's rights, materialized views. As all files
//! together leave them: what a later statement opens, or drops, is not hidden.

use std::collections::BTreeMap;

use squawk_syntax::SyntaxNode;
use squawk_syntax::ast::{self, AstNode};

use super::known::canonical;
use super::{Finding, Report, Rule};
use crate::migration::text;

/// A function's name, and its arguments as they are spelled.
type Signature = (String, String);

/// What is hidden up to now.
#[derive(Default)]
pub(super) struct Owners {
    views: BTreeMap<String, Finding>,
    functions: BTreeMap<Signature, Finding>,
}

impl Owners {
    /// Looks at the next statement.
    pub(super) fn find(&mut self, stmt: &ast::Stmt, report: &Report<'_>) {
        let node = stmt.syntax();
        match stmt {
            ast::Stmt::CreateView(create) => {
                let Some(name) = create.view().map(|view| text(view.syntax())) else {
                    return;
                };
                let options = create.with_params().map(|options| text(options.syntax()));
                if options.is_some_and(|options| invoker(&options)) {
                    self.views.remove(&canonical(&name));
                } else {
                    let what = format!("view {name} runs with its owner's rights");
                    self.view(&name, report.finding(Rule::ViewRunsAsOwner, node, what));
                }
            }
            ast::Stmt::AlterView(alter) => {
                if let Some(name) = alter.view_ref().map(|view| text(view.syntax())) {
                    self.alter_view(&name, alter, report);
                }
            }
            ast::Stmt::DropView(drop) => {
                for view in drop.view_refs() {
                    self.views.remove(&canonical(&text(view.syntax())));
                }
            }
            ast::Stmt::CreateMaterializedView(create) => {
                if let Some(name) = create.view().map(|view| text(view.syntax())) {
                    let what = format!("materialized view {name}");
                    self.view(&name, report.finding(Rule::MaterializedView, node, what));
                }
            }
            ast::Stmt::DropMaterializedView(drop) => {
                for view in drop.view_refs() {
                    self.views.remove(&canonical(&text(view.syntax())));
                }
            }
            ast::Stmt::CreateFunction(create) => {
                let name = create.name().map(|name| text(name.syntax()));
                let Some(name) = name else { return };
                let place = (canonical(&name), arguments(create.param_list()));
                if is_definer(create.option_list()) == Some(true) {
                    let what = format!("function {name} is SECURITY DEFINER");
                    let found = report.finding(Rule::FunctionRunsAsOwner, node, what);
                    self.functions.insert(place, found);
                } else {
                    self.functions.remove(&place);
                }
            }
            ast::Stmt::AlterFunction(alter) => {
                let Some(ast::AlterFunctionAction::FuncOptionList(options)) = alter.action() else {
                    return;
                };
                let (Some(is_definer), Some(signature)) =
                    (is_definer(Some(options)), alter.function_sig())
                else {
                    return;
                };
                self.forget(&signature);
                if let (true, Some(name)) = (is_definer, signature.function_name_ref()) {
                    let name = text(name.syntax());
                    let what = format!("function {name} would be SECURITY DEFINER");
                    let place = (canonical(&name), arguments(signature.param_list()));
                    let found = report.finding(Rule::FunctionRunsAsOwner, node, what);
                    self.functions.insert(place, found);
                }
            }
            ast::Stmt::DropFunction(drop) => {
                let signatures = drop.function_sig_list();
                for signature in signatures.into_iter().flat_map(|l| l.function_sigs()) {
                    self.forget(&signature);
                }
            }
            _ => {}
        }
    }

    /// What is left at the end of all files.
    pub(super) fn left(self) -> impl Iterator<Item = Finding> {
        self.views.into_values().chain(self.functions.into_values())
    }

    fn view(&mut self, name: &str, found: Finding) {
        self.views.insert(canonical(name), found);
    }

    fn alter_view(&mut self, name: &str, alter: &ast::AlterView, report: &Report<'_>) {
        let mentions = |node: &SyntaxNode| text(node).to_lowercase().contains("security_invoker");
        let opens = match alter.action() {
            Some(ast::AlterViewAction::SetOptions(set)) if mentions(set.syntax()) => {
                invoker(&text(set.syntax()))
            }
            Some(ast::AlterViewAction::ResetOptions(reset)) if mentions(reset.syntax()) => false,
            Some(ast::AlterViewAction::ViewRenameTo(rename)) => {
                let to = rename.view().map(|view| text(view.syntax()));
                let from = canonical(name);
                if let (Some(to), Some(found)) = (to, self.views.remove(&from)) {
                    let schema = from.split_once('.').map_or("public", |(schema, _)| schema);
                    self.view(&format!("\"{schema}\".{to}"), found);
                }
                return;
            }
            _ => return,
        };
        if opens {
            self.views.remove(&canonical(name));
        } else {
            let what = format!("view {name} would run with its owner's rights");
            let found = report.finding(Rule::ViewRunsAsOwner, alter.syntax(), what);
            self.view(name, found);
        }
    }

    /// Without arguments, a name means the one function that has it.
    fn forget(&mut self, signature: &ast::FunctionSig) {
        let Some(name) = signature.function_name_ref() else {
            return;
        };
        let name = canonical(&text(name.syntax()));
        match signature.param_list() {
            None => self.functions.retain(|(known, _), _| *known != name),
            some => {
                self.functions.remove(&(name, arguments(some)));
            }
        }
    }
}

/// Types of the arguments by which functions of one name differ.
fn arguments(parameters: Option<ast::ParamList>) -> String {
    let inputs = parameters.into_iter().flat_map(|list| {
        let input = |p: &ast::Param| !matches!(p.mode(), Some(ast::ParamMode::ParamOut(_)));
        list.params().filter(input).collect::<Vec<_>>()
    });
    let types = inputs.filter_map(|parameter| parameter.func_type());
    let plain = |of: ast::FuncType| match text(of.syntax()).to_lowercase().as_str() {
        "int" | "int4" => "integer".to_owned(),
        "int8" => "bigint".to_owned(),
        "bool" => "boolean".to_owned(),
        other => other.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    types.map(plain).collect::<Vec<_>>().join(", ")
}

/// Which of the two the options say; none where they say neither.
fn is_definer(options: Option<ast::FuncOptionList>) -> Option<bool> {
    let options = options.into_iter().flat_map(|list| list.options());
    let said = options.filter_map(|option| match option {
        ast::FuncOption::SecurityDefinerFuncOption(_) => Some(true),
        ast::FuncOption::SecurityInvokerFuncOption(_) => Some(false),
        _ => None,
    });
    said.last()
}

/// `with (security_invoker)`, `= true`, `= on`, `= 1`.
fn invoker(options: &str) -> bool {
    let plain: String = options.to_lowercase().split_whitespace().collect();
    let Some((_, rest)) = plain.split_once("security_invoker") else {
        return false;
    };
    let value = rest.trim_start_matches('=').trim_start_matches('\'');
    let on = ["true", "on", "1", "yes"];
    rest.starts_with([',', ')']) || on.iter().any(|word| value.starts_with(word))
}
