//! What files would make that a shard has already: told before any of it is run.

use std::collections::BTreeSet;

use serde::Serialize;
use squawk_syntax::ast::{self, AstNode};

use crate::lint::canonical;
use crate::migration::{Migration, last_part, start_of, text};
use crate::removal::{self, Found};

/// A table, view, sequence, index or type that a file makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Its name, `schema.name`.
    pub name: String,
    /// The file.
    pub file: String,
    /// The statement's line.
    pub line: u32,
}

/// What the files, which are in order, make and may not be there before. Left out is what
/// would pass by one that is there (`if not exists`, `or replace`), what they make room for
/// themselves, and all behind a statement that nobody can look into. Of what the file
/// makes that is `begun`, a part is there already.
pub fn made<'a>(
    begun: Option<&'a Migration>,
    files: impl IntoIterator<Item = &'a Migration>,
) -> Vec<Made> {
    let mut made: Vec<Made> = Vec::new();
    let mut names = BTreeSet::new();
    let mut room = BTreeSet::new();
    let mut indexes_go = false;
    let files = files.into_iter().map(|file| (file, true));
    for (file, is_told) in begun.map(|file| (file, false)).into_iter().chain(files) {
        for stmt in file.tree().tree().stmts() {
            if is_unseen(&stmt) {
                return made;
            }
            for found in removal::of(&stmt) {
                if let Found::Named(_, removals) = found {
                    let whole = removals.into_iter().filter(|r| r.column.is_none());
                    room.extend(whole.filter_map(|r| Some(canonical(&r.relation?))));
                }
            }
            // They go with what they are of, which does not name them.
            indexes_go |= takes_indexes(&stmt);
            let index = || index_name(&stmt).filter(|_| !indexes_go);
            let Some(name) = name(&stmt).or_else(index) else {
                continue;
            };
            let name = canonical(&name);
            if !room.contains(&name) && names.insert(name.clone()) && is_told {
                made.push(Made {
                    name,
                    file: file.file(),
                    line: file.line_of(start_of(stmt.syntax())),
                });
            }
        }
    }
    made
}

/// What the statement makes, where it fails on one that is there.
fn name(stmt: &ast::Stmt) -> Option<String> {
    let (name, passes_by) = match stmt {
        // It is in a schema of the session's own.
        _ if is_temporary(stmt) => return None,
        ast::Stmt::CreateTable(create) => (
            text(create.table_name()?.syntax()),
            create.if_not_exists().is_some(),
        ),
        ast::Stmt::CreateTableAs(create) => (
            text(create.table_name()?.syntax()),
            create.if_not_exists().is_some(),
        ),
        ast::Stmt::CreateView(create) => {
            (text(create.view()?.syntax()), create.or_replace().is_some())
        }
        ast::Stmt::CreateMaterializedView(create) => (
            text(create.view()?.syntax()),
            create.if_not_exists().is_some(),
        ),
        ast::Stmt::CreateSequence(create) => (
            text(create.sequence()?.syntax()),
            create.if_not_exists().is_some(),
        ),
        ast::Stmt::CreateType(create) => (text(create.type_name()?.syntax()), false),
        ast::Stmt::CreateDomain(create) => (text(create.domain()?.syntax()), false),
        _ => return None,
    };
    (!passes_by).then_some(name)
}

/// The index that the statement makes, where it fails on one that is there. It is in its
/// table's schema.
fn index_name(stmt: &ast::Stmt) -> Option<String> {
    let ast::Stmt::CreateIndex(create) = stmt else {
        return None;
    };
    let table = text(create.table_relation_name()?.table_name_ref()?.syntax());
    let schema = table.strip_suffix(last_part(&table))?;
    let name = text(create.index()?.syntax());
    (create.if_not_exists().is_none()).then(|| format!("{schema}{name}"))
}

/// Whether an index that is there may go, or get another name.
fn takes_indexes(stmt: &ast::Stmt) -> bool {
    use ast::AlterTableAction as Action;
    match stmt {
        ast::Stmt::DropIndex(_)
        | ast::Stmt::AlterIndex(_)
        | ast::Stmt::DropTable(_)
        | ast::Stmt::DropMaterializedView(_) => true,
        ast::Stmt::AlterTable(alter) => alter.actions().any(|action| {
            matches!(
                action,
                Action::DropColumn(_)
                    | Action::DropConstraint(_)
                    | Action::RenameConstraint(_)
                    | Action::SetSchema(_)
            ) || gives_its_name(&action)
        }),
        _ => false,
    }
}

/// Whether a constraint takes an index that is there, which then has its name.
fn gives_its_name(action: &ast::AlterTableAction) -> bool {
    let ast::AlterTableAction::AddConstraint(add) = action else {
        return false;
    };
    let mut nodes = add.syntax().descendants();
    nodes.any(|node| ast::UsingIndexName::can_cast(node.kind()))
}

fn is_temporary(stmt: &ast::Stmt) -> bool {
    let persistence = match stmt {
        ast::Stmt::CreateTable(create) => create.persistence(),
        ast::Stmt::CreateTableAs(create) => create.persistence(),
        ast::Stmt::CreateView(create) => create.persistence(),
        ast::Stmt::CreateSequence(create) => create.persistence(),
        _ => None,
    };
    matches!(persistence, Some(ast::Persistence::Temp(_)))
}

/// What it makes or removes can't be told from the statement.
fn is_unseen(stmt: &ast::Stmt) -> bool {
    matches!(
        stmt,
        ast::Stmt::Do(_)
            | ast::Stmt::DropSchema(_)
            | ast::Stmt::DropType(_)
            | ast::Stmt::DropDomain(_)
            | ast::Stmt::DropSequence(_)
            | ast::Stmt::AlterSchema(_)
            | ast::Stmt::AlterType(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_there_is_named_once_and_where() {
        let files: Vec<Migration> = (1..)
            .zip([
                "create table a (id int);\ncreate table if not exists b (id int);\n\
                 create type app.mood as enum ('good');\ncreate or replace view v as select 1;\n\
                 create view \"W\" as select 1;\ncreate temp table x (id int);\n\
                 create temporary table y as select 1 as id;\ncreate temp view z as select 1;\n\
                 create temp sequence q;",
                "-- ringfence: phase contract\ndrop table c;\nalter table d rename to e;\n\
                 create table c (id int);\ncreate table d (id int);\ncreate table a (id int);",
                "create sequence s;\ndo $$ begin null; end $$;\ncreate table f (id int);",
            ])
            .map(|(n, text)| Migration::parse(&format!("{n:03}_t.sql"), text).unwrap())
            .collect();
        let made: Vec<String> = made(None, &files)
            .iter()
            .map(|made| format!("{} {}:{}", made.name, made.file, made.line))
            .collect();
        assert_eq!(
            made,
            [
                "public.a 001_t.sql:1",
                "app.mood 001_t.sql:3",
                "public.W 001_t.sql:5",
                "public.s 003_t.sql:1",
            ]
        );
    }

    #[test]
    fn an_index_may_not_be_there_unless_one_may_have_gone() {
        let names = |text: &str| {
            let file = Migration::parse("001_t.sql", text).unwrap();
            let names = made(None, [&file]).into_iter().map(|made| made.name);
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            names(
                "create index a on t (x);\ncreate unique index \"B\" on app.t (x);\n\
                 create index if not exists c on t (x);\ncreate index on t (x);\n\
                 alter table t add constraint k unique (x);\n\
                 create index d on only \"a.b\" (x);"
            ),
            "public.a app.B public.d"
        );
        for gone in [
            "drop index a",
            "alter index a rename to b",
            "alter table t drop constraint a",
            "alter table t drop column x",
            "alter table t add constraint k unique using index a",
            "drop table t",
        ] {
            let text = format!("-- ringfence: phase contract\n{gone};\ncreate index a on t (x);");
            assert_eq!(names(&text), "", "{gone}");
        }
    }
}
