//! What files would make that a shard has already: told before any of it is run.

use std::collections::BTreeSet;

use serde::Serialize;
use squawk_syntax::ast::{self, AstNode};

use crate::lint::canonical;
use crate::migration::{Migration, line_of, start_of, text};
use crate::removal::{self, Found};

/// A table, view, sequence or type that a file makes.
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
/// themselves, and all behind a statement that nobody can look into.
pub fn made<'a>(files: impl IntoIterator<Item = &'a Migration>) -> Vec<Made> {
    let mut made: Vec<Made> = Vec::new();
    let mut room = BTreeSet::new();
    for file in files {
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
            let Some(name) = name(&stmt).map(|name| canonical(&name)) else {
                continue;
            };
            if !room.contains(&name) && !made.iter().any(|made| made.name == name) {
                made.push(Made {
                    name,
                    file: file.file(),
                    line: line_of(&file.text, start_of(stmt.syntax())),
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
        let made: Vec<String> = made(&files)
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
}
