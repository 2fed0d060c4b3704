//! Migration files: ordered plain SQL with `-- ringfence:` headers, read and
//! checked without a database.
//!
//! A directory holds files `NNN_name.sql`, numbered from 1 without gaps. Above
//! its first statement a file may say
//!
//! ```sql
//! -- ringfence: phase contract
//! -- ringfence: no-transaction
//! -- ringfence: lock-timeout 500ms
//! -- ringfence: statement-timeout 10min
//! -- ringfence: allow set-not-null because the check on it is validated
//! -- ringfence: allow table-unscoped for jobs because workers alone read it
//! ```
//!
//! and right above an UPDATE or DELETE, `-- ringfence: backfill rows 500`: that
//! statement is then run in chunks by primary key.

mod header;
mod lines;
mod nesting;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use squawk_syntax::ast::{self, AstNode};
use squawk_syntax::{Parse, SourceFile};

pub use header::Allowed;
pub(crate) use lines::Lines;
pub(crate) use nesting::too_deep;

/// Largest file, in bytes: a migration is a change of the schema, not a load of data.
const BYTES_MAX: u64 = 4 << 20;
/// Most files of a directory.
const FILES_MAX: usize = 10_000;

/// Longest wait for a lock that a file may ask for: behind a waiting DDL
/// command all other work on the table waits, too.
pub const LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(1);
/// The wait for a lock where a file names none.
pub const LOCK_TIMEOUT: Duration = Duration::from_millis(250);
/// The time for one statement of a transaction where a file names none.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);
/// Rows of a back-fill's chunk where its header names none.
pub const CHUNK_ROWS: u32 = 1_000;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Its place in the order, from 1.
    pub number: u32,
    /// What stands behind the number.
    pub name: String,
    /// SHA-256 of the text, in hexadecimal.
    pub checksum: String,
    /// What its header says.
    pub header: Header,
    /// The whole text.
    pub text: String,
    /// Its statements, in order.
    pub statements: Vec<Statement>,
    tree: Parse<SourceFile>,
    lines: Lines,
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which of the two phases it belongs to.
    pub phase: Phase,
    /// All its statements commit together; else each alone, in its own transaction.
    pub transaction: bool,
    /// Longest wait for each lock.
    pub lock_timeout: Duration,
    /// Longest run of each statement; none means without end.
    pub statement_timeout: Option<Duration>,
    /// Rules that may be broken here, and why.
    pub allowed: Vec<Allowed>,
}

/// Routers and applications of two versions run at once while a schema changes:
/// what the old one reads goes only after it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Adds; what is there stays readable.
    #[default]
    Expand,
    /// Removes what nobody reads any longer.
    Contract,
}

impl Phase {
    /// As it stands in headers and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expand => "expand",
            Self::Contract => "contract",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One statement of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its text, without the semicolon.
    pub text: String,
    /// The line of the file that it starts on, from 1.
    pub line: u32,
    /// What kind of statement it is, as far as running it differs.
    pub kind: StatementKind,
}

/// How a statement is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatementKind {
    /// Changes the schema, as the owner of its tables.
    Ddl,
    /// Reads or changes rows of all tenants, as the migrator, whom row security
    /// does not stop: an owner's own back-fill would update nothing.
    Dml,
    /// `CREATE INDEX CONCURRENTLY` of this name: what a broken build leaves
    /// behind is invalid, and must go before it is built again.
    ConcurrentIndex {
        /// The index's schema and name as the statement spells them, if it has one.
        index: Option<String>,
    },
    /// `DROP INDEX CONCURRENTLY` or another statement that can't be run in a transaction.
    OutsideTransaction,
    /// An UPDATE or DELETE that is run in chunks.
    Backfill(Backfill),
}

/// An UPDATE or DELETE in chunks by primary key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backfill {
    /// The table as the statement spells it.
    pub table: String,
    /// What the statement calls the table's rows: its alias, or its name.
    pub row: String,
    /// The statement up to the chunk's condition: `… WHERE (condition) AND ` or
    /// `… WHERE `, on lines of their own.
    pub before: String,
    /// Rows at most of one chunk.
    pub rows: u32,
}

/// Why a directory or a file can't be used. Nothing was run.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The directory or a file can't be read.
    #[error("{} can't be read", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not named `NNN_name.sql`.
    #[error("{0} is not named like 001_add_owner.sql")]
    Name(String),
    /// Two files have one number.
    #[error("{0} and {1} have the same number")]
    Duplicate(String, String),
    /// A number is missing.
    #[error("there is no file number {0:03}")]
    Gap(u32),
    /// A file is larger than a schema change can be.
    #[error("{0} is larger than 4 MiB: load data by other means")]
    TooLarge(String),
    /// More files than can be.
    #[error("there are more than 10,000 files")]
    TooMany,
    /// A text that would overflow a parser's stack.
    #[error("{file}, line {line}: nested too deep, or too long a chain of operators")]
    Nested {
        /// The file.
        file: String,
        /// Its line.
        line: u32,
    },
    /// A file's header says what is not known.
    #[error("{file}, line {line}: {problem}")]
    Header {
        /// The file.
        file: String,
        /// Its line.
        line: u32,
        /// What is wrong.
        problem: String,
    },
}

impl Migration {
    /// A file by its name, such as `007_add_owner.sql`, and its text.
    ///
    /// Text that Postgres would not parse is kept: [`crate::lint`] reports it.
    ///
    /// # Errors
    /// [`MigrationError::Name`], [`MigrationError::TooLarge`],
    /// [`MigrationError::Nested`], [`MigrationError::Header`].
    pub fn parse(file: &str, text: &str) -> Result<Self, MigrationError> {
        let (number, name) = split_name(file)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(MigrationError::TooLarge(file.to_owned()));
        }
        let lines = Lines::of(text);
        if let Some(at) = too_deep(text) {
            let line = lines.line(at);
            let file = file.to_owned();
            return Err(MigrationError::Nested { file, line });
        }
        let tree = SourceFile::parse(text);
        let stems: Vec<ast::Stmt> = tree.tree().stmts().collect();
        let first = stems
            .first()
            .map_or(text.len(), |stmt| start_of(stmt.syntax()));
        let header = header::parse(file, &text[..first])?;
        let mut statements = Vec::with_capacity(stems.len());
        let mut end_before = 0;
        for stmt in &stems {
            let start = start_of(stmt.syntax());
            let line = lines.line(start);
            let above = text.get(end_before..start).unwrap_or_default();
            let backfill = header::backfill(file, lines.line(end_before), above, first == start)?;
            let kind = match backfill {
                None => kind(stmt),
                Some(rows) => {
                    StatementKind::Backfill(backfill_of(stmt, rows).map_err(|problem| {
                        MigrationError::Header {
                            file: file.to_owned(),
                            line,
                            problem: problem.to_owned(),
                        }
                    })?)
                }
            };
            let range = stmt.syntax().text_range();
            statements.push(Statement {
                text: text[start..range.end().into()]
                    .trim_end_matches(|c: char| c == ';' || c.is_whitespace())
                    .to_owned(),
                line,
                kind,
            });
            end_before = range.end().into();
        }
        let chunks = |s: &Statement| matches!(s.kind, StatementKind::Backfill(_));
        if header.transaction && statements.iter().any(chunks) {
            return Err(MigrationError::Header {
                file: file.to_owned(),
                line: 1,
                problem: "a back-fill commits chunk by chunk: add `-- ringfence: no-transaction`"
                    .into(),
            });
        }
        Ok(Self {
            number,
            name: name.to_owned(),
            checksum: checksum(text),
            header,
            text: text.to_owned(),
            statements,
            tree,
            lines,
        })
    }

    /// Its file's name.
    pub fn file(&self) -> String {
        format!("{:03}_{}.sql", self.number, self.name)
    }

    /// Tables that its statements change or go through, as `schema.table`.
    pub fn tables(&self) -> Vec<String> {
        let stmts = self.tree.tree().stmts();
        let mut tables: Vec<String> = stmts.filter_map(|stmt| table_of(&stmt)).collect();
        tables.sort();
        tables.dedup();
        tables
    }

    /// The line, from 1, of a place in its text.
    pub(crate) fn line_of(&self, at: usize) -> u32 {
        self.lines.line(at)
    }

    /// Tables that its back-fills go through, as `schema.table`, one for each.
    pub fn filled(&self) -> Vec<String> {
        let filled = self.statements.iter().filter_map(|statement| {
            let StatementKind::Backfill(backfill) = &statement.kind else {
                return None;
            };
            Some(crate::lint::canonical(&backfill.table))
        });
        filled.collect()
    }

    /// Its syntax tree.
    pub(crate) fn tree(&self) -> &Parse<SourceFile> {
        &self.tree
    }
}

/// Whether a statement looks through all rows for a constraint.
pub(crate) fn validates(stmt: &ast::Stmt) -> bool {
    let ast::Stmt::AlterTable(alter) = stmt else {
        return false;
    };
    let validates = |action| matches!(action, ast::AlterTableAction::ValidateConstraint(_));
    alter.actions().any(validates)
}

/// The table that a statement changes or goes through, as `schema.table`.
pub(crate) fn table_of(stmt: &ast::Stmt) -> Option<String> {
    let name = match stmt {
        ast::Stmt::AlterTable(alter) => altered(alter)?,
        ast::Stmt::CreateIndex(index) => {
            text(index.table_relation_name()?.table_name_ref()?.syntax())
        }
        ast::Stmt::Update(update) => named(update.relation_name()?)?,
        ast::Stmt::Delete(delete) => named(delete.relation_name()?)?,
        _ => return None,
    };
    Some(crate::lint::canonical(&name))
}

/// The table that ALTER TABLE names, as it is spelled, without ONLY and `*`.
pub(crate) fn altered(alter: &ast::AlterTable) -> Option<String> {
    Some(text(
        alter.table_relation_name()?.table_name_ref()?.syntax(),
    ))
}

fn named(relation: ast::RelationName) -> Option<String> {
    Some(text(relation.relation_name_ref()?.syntax()))
}

/// All files of a directory, in order. Files that don't end in `.sql`, and
/// folders, are passed over.
///
/// # Errors
/// Every [`MigrationError`].
pub fn read_directory(directory: &Path) -> Result<Vec<Migration>, MigrationError> {
    let Folder { files, problems } = survey(directory)?;
    problems.into_iter().next().map_or(Ok(files), Err)
}

/// A directory as it is.
#[derive(Debug)]
pub struct Folder {
    /// The files that can be read, in order.
    pub files: Vec<Migration>,
    /// All that is wrong with it.
    pub problems: Vec<MigrationError>,
}

/// Looks through a directory, and goes on where something is wrong with a file.
///
/// # Errors
/// [`MigrationError::Io`] where the directory can't be read,
/// [`MigrationError::TooMany`].
pub fn survey(directory: &Path) -> Result<Folder, MigrationError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| MigrationError::Io { path, source }
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io(directory))? {
        let path = entry.map_err(io(directory))?.path();
        if path.extension().is_none_or(|ending| ending != "sql") || path.is_dir() {
            continue;
        }
        if names.len() == FILES_MAX {
            return Err(MigrationError::TooMany);
        }
        names.push(path);
    }
    names.sort();
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if std::fs::metadata(path).map_err(io(path))?.len() > BYTES_MAX {
            return Err(MigrationError::TooLarge(name.into_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(io(path))?;
        Migration::parse(&name, &text)
    };
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for path in &names {
        match read(path) {
            Ok(file) => files.push(file),
            Err(problem) => problems.push(problem),
        }
    }
    files.sort_by_key(|file| file.number);
    // Where a file can't be read, its number is no gap.
    if problems.is_empty() {
        problems = disorder(&files);
    }
    Ok(Folder { files, problems })
}

/// Puts files in order, and refuses gaps and duplicates.
///
/// # Errors
/// [`MigrationError::Gap`], [`MigrationError::Duplicate`].
pub fn ordered(mut files: Vec<Migration>) -> Result<Vec<Migration>, MigrationError> {
    files.sort_by_key(|file| file.number);
    let problem = disorder(&files).into_iter().next();
    problem.map_or(Ok(files), Err)
}

/// Duplicates and gaps among files that are sorted by number.
fn disorder(files: &[Migration]) -> Vec<MigrationError> {
    let mut problems = Vec::new();
    for pair in files.windows(2) {
        if let [a, b] = pair
            && a.number == b.number
        {
            problems.push(MigrationError::Duplicate(a.file(), b.file()));
        }
    }
    let mut before = 0;
    for file in files {
        if file.number > before + 1 {
            problems.push(MigrationError::Gap(before + 1));
        }
        before = file.number;
    }
    problems
}

/// The SHA-256 of a text, in hexadecimal.
pub fn checksum(text: &str) -> String {
    let bytes = digest(&SHA256, text.as_bytes());
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn split_name(file: &str) -> Result<(u32, &str), MigrationError> {
    let bad = || MigrationError::Name(file.to_owned());
    let stem = file.strip_suffix(".sql").ok_or_else(bad)?;
    let (number, name) = stem.split_once('_').ok_or_else(bad)?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let digits = number.len() >= 3 && number.bytes().all(|b| b.is_ascii_digit());
    if !digits || name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
        return Err(bad());
    }
    match number.parse() {
        Ok(number) if number > 0 => Ok((number, name)),
        _ => Err(bad()),
    }
}

/// Where a node's own text starts: comments above it belong to nobody.
pub(crate) fn start_of(node: &squawk_syntax::SyntaxNode) -> usize {
    let own = node
        .descendants_with_tokens()
        .filter_map(|element| element.into_token())
        .find(|token| !token.kind().is_trivia());
    own.map_or(node.text_range().start(), |token| {
        token.text_range().start()
    })
    .into()
}

fn kind(stmt: &ast::Stmt) -> StatementKind {
    match stmt {
        ast::Stmt::Insert(_)
        | ast::Stmt::Update(_)
        | ast::Stmt::Delete(_)
        | ast::Stmt::Merge(_)
        | ast::Stmt::Values(_) => StatementKind::Dml,
        ast::Stmt::CreateIndex(index) if index.concurrently_token().is_some() => {
            let table = index.table_relation_name().map(|t| text(t.syntax()));
            let schema = table
                .as_deref()
                .and_then(|table| table.rsplit_once('.'))
                .map(|(schema, _)| format!("{schema}."));
            let name = index.index().map(|index| text(index.syntax()));
            StatementKind::ConcurrentIndex {
                index: name.map(|name| format!("{}{name}", schema.unwrap_or_default())),
            }
        }
        ast::Stmt::DropIndex(drop)
            if text(drop.syntax()).to_lowercase().contains("concurrently") =>
        {
            StatementKind::OutsideTransaction
        }
        ast::Stmt::Reindex(_) | ast::Stmt::Vacuum(_) => StatementKind::OutsideTransaction,
        _ => StatementKind::Ddl,
    }
}

fn backfill_of(stmt: &ast::Stmt, rows: u32) -> Result<Backfill, &'static str> {
    const KIND: &str = "a back-fill is an UPDATE or a DELETE of one table";
    let (node, table, alias, condition, returning, with) = match stmt {
        ast::Stmt::Update(update) => (
            update.syntax(),
            update.relation_name(),
            update.alias().map(|alias| text(alias.syntax())),
            update.where_clause_or_current_of(),
            update.returning_clause().is_some(),
            update.with_clause().is_some(),
        ),
        ast::Stmt::Delete(delete) => (
            delete.syntax(),
            delete.relation_name(),
            delete.alias().map(|alias| text(alias.syntax())),
            delete.where_clause_or_current_of(),
            delete.returning_clause().is_some(),
            delete.with_clause().is_some(),
        ),
        _ => return Err(KIND),
    };
    if returning || with {
        return Err("a back-fill takes neither WITH nor RETURNING");
    }
    let table = table.and_then(named).ok_or(KIND)?;
    let row = match alias {
        None => last_part(&table).to_owned(),
        Some(alias) => {
            let alias = alias.trim();
            let named = alias
                .get(..3)
                .filter(|word| word.eq_ignore_ascii_case("as "));
            named.map_or(alias, |_| &alias[3..]).trim().to_owned()
        }
    };
    let whole = text(node);
    let whole = whole.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    // On lines of their own: what stands before may end in a comment.
    let before = match condition {
        None => format!("{whole}\nWHERE "),
        Some(ast::WhereClauseOrCurrentOf::WhereClause(clause)) => {
            let expression = clause.expr().ok_or(KIND)?;
            let at = start_of(clause.syntax()) - start_of(node);
            let condition = text(expression.syntax());
            format!("{}WHERE ({condition}\n) AND ", &whole[..at])
        }
        Some(_) => return Err("a back-fill has no cursor"),
    };
    if !ends_in_its_condition(&before) {
        return Err("its WHERE can't be narrowed to a chunk: write it plainer");
    }
    Ok(Backfill {
        table,
        row,
        before,
        rows,
    })
}

/// Whether what is added to the text narrows the one statement's WHERE: a
/// chunk that is not narrowed would be the whole table.
fn ends_in_its_condition(before: &str) -> bool {
    const ADDED: &str = "ringfence_chunk.a <= 1";
    let parsed = SourceFile::parse(&format!("{before}{ADDED}"));
    let mut stmts = parsed.tree().stmts();
    let condition = match (stmts.next(), stmts.next()) {
        (Some(ast::Stmt::Update(update)), None) => update.where_clause_or_current_of(),
        (Some(ast::Stmt::Delete(delete)), None) => delete.where_clause_or_current_of(),
        _ => None,
    };
    let Some(ast::WhereClauseOrCurrentOf::WhereClause(clause)) = condition else {
        return false;
    };
    parsed.errors().is_empty() && text(clause.syntax()).ends_with(ADDED)
}

/// `"a.b"` of `public."a.b"`.
pub(crate) fn last_part(name: &str) -> &str {
    let mut quoted = false;
    let dot = name.char_indices().filter(|(_, c)| {
        quoted ^= *c == '"';
        *c == '.' && !quoted
    });
    dot.last().map_or(name, |(at, _)| name[at + 1..].trim())
}

/// A node's text, without what surrounds it.
pub(crate) fn text(node: &squawk_syntax::SyntaxNode) -> String {
    node.text().to_string().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Migration {
        Migration::parse("001_test.sql", text).unwrap()
    }

    fn refused(text: &str) -> String {
        Migration::parse("001_test.sql", text)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn names_carry_the_order() {
        for bad in [
            "1_a.sql",
            "001.sql",
            "001_.sql",
            "001_A.sql",
            "000_a.sql",
            "001_a.txt",
            "x01_a.sql",
        ] {
            assert!(Migration::parse(bad, "").is_err(), "{bad}");
        }
        let file = |number: u32| Migration::parse(&format!("{number:03}_a.sql"), "").unwrap();
        assert!(ordered(vec![file(2), file(1)]).is_ok());
        assert!(matches!(
            ordered(vec![file(1), file(3)]),
            Err(MigrationError::Gap(2))
        ));
        assert!(matches!(
            ordered(vec![file(1), file(1)]),
            Err(MigrationError::Duplicate(..))
        ));
        // All that is wrong is told at once.
        let wrong = disorder(&[file(2), file(4), file(4), file(5)]);
        let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        assert_eq!(
            wrong,
            [
                "004_a.sql and 004_a.sql have the same number",
                "there is no file number 001",
                "there is no file number 003",
            ]
        );
    }

    #[test]
    fn headers_stand_above_the_first_statement() {
        let file = parse(
            "-- Two steps.\n-- ringfence: phase contract\n-- ringfence: lock-timeout 500ms\n\
             -- ringfence: statement-timeout 2min\n-- ringfence: allow contract-drop because nobody reads it\n\
             alter table a drop column b;\n",
        );
        assert_eq!(file.header.phase, Phase::Contract);
        assert_eq!(file.header.lock_timeout, Duration::from_millis(500));
        assert_eq!(
            file.header.statement_timeout,
            Some(Duration::from_secs(120))
        );
        assert_eq!(file.header.allowed[0].rule, "contract-drop");
        assert_eq!(file.header.allowed[0].reason, "nobody reads it");
        assert!(file.header.transaction);
        assert_eq!(file.statements.len(), 1);
        assert_eq!(file.statements[0].line, 6);
        assert_eq!(file.statements[0].text, "alter table a drop column b");
    }

    #[test]
    fn wrong_headers_are_refused_with_their_line() {
        assert_eq!(
            refused("\n-- ringfence: fase expand\nselect 1;"),
            "001_test.sql, line 2: `fase` is not known; there are phase, no-transaction, lock-timeout, \
             statement-timeout, allow, and above a statement backfill"
        );
        for bad in [
            "-- ringfence: phase both",
            "-- ringfence: lock-timeout 2s",
            "-- ringfence: lock-timeout",
            "-- ringfence: allow set-not-null",
            "-- ringfence: no-transaction please",
            "select 1;\n-- ringfence: phase contract\nselect 2;",
            "-- ringfence: backfill\nupdate a set b = 1;",
            "-- ringfence: no-transaction\n-- ringfence: backfill rows 0\nupdate a set b = 1;",
            "-- ringfence: no-transaction\n-- ringfence: backfill\ncreate table a ();",
            "-- ringfence: no-transaction\n-- ringfence: backfill\nupdate a set b = 1 returning b;",
        ] {
            assert!(refused(bad).contains("line"), "{bad}");
        }
    }

    #[test]
    fn statements_are_told_apart() {
        let file = parse(
            "-- ringfence: no-transaction\ncreate index concurrently by_name on app.people (name);\n\
             drop index concurrently old;\ninsert into a values (1);\n\
             -- ringfence: backfill rows 50\nupdate app.people p set n = lower(name) where n is null or n = '';\n\
             -- ringfence: backfill\ndelete from logs;\n$$;",
        );
        let kinds: Vec<_> = file.statements.iter().map(|s| s.kind.clone()).collect();
        assert_eq!(
            kinds[0],
            StatementKind::ConcurrentIndex {
                index: Some("app.by_name".into())
            }
        );
        assert_eq!(kinds[1], StatementKind::OutsideTransaction);
        assert_eq!(kinds[2], StatementKind::Dml);
        assert_eq!(
            kinds[3],
            StatementKind::Backfill(Backfill {
                table: "app.people".into(),
                row: "p".into(),
                before:
                    "update app.people p set n = lower(name) WHERE (n is null or n = ''\n) AND "
                        .into(),
                rows: 50,
            })
        );
        assert_eq!(
            kinds[4],
            StatementKind::Backfill(Backfill {
                table: "logs".into(),
                row: "logs".into(),
                before: "delete from logs\nWHERE ".into(),
                rows: CHUNK_ROWS,
            })
        );
    }

    #[test]
    fn a_chunks_condition_is_no_part_of_a_comment() {
        let before = |statement: &str| {
            let text = format!("-- ringfence: no-transaction\n-- ringfence: backfill\n{statement}");
            let file = parse(&text);
            match &file.statements[0].kind {
                StatementKind::Backfill(backfill) => {
                    (backfill.before.clone(), backfill.row.clone())
                }
                kind => panic!("{kind:?}"),
            }
        };
        for (statement, expected) in [
            (
                "delete from logs -- all of them\n;",
                "delete from logs -- all of them\nWHERE ",
            ),
            (
                "update only \"a.b\" set n = 1 -- why\n where n > 1 -- old\n or n < 0 -- new\n;",
                "update only \"a.b\" set n = 1 -- why\n WHERE (n > 1 -- old\n or n < 0\n) AND ",
            ),
        ] {
            assert_eq!(before(statement).0, expected);
        }
        assert_eq!(before("update only app.\"a.b\" set n = 1").1, "\"a.b\"");
    }

    #[test]
    fn tables_are_named_whole() {
        let file = parse(
            "alter table People add column a int;\ncreate index i on app.logs (a);\n\
             update only people set a = 1;\ncreate table other (id int);",
        );
        assert_eq!(file.tables(), ["app.logs", "public.people"]);
    }

    #[test]
    fn function_bodies_are_one_statement() {
        let file = parse(
            "create function f() returns int language plpgsql as $$ begin; return 1; end $$;\nselect f();",
        );
        assert_eq!(file.statements.len(), 2);
        assert_eq!(file.statements[1].line, 2);
    }
}
