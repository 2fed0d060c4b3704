//! Before something is removed, nobody may read it any longer. What a contract
//! file removes is first hidden from the schema model ("retired"); routers load
//! the model without it, and each says on its own session which version it has
//! loaded. Once all have, the removal changes nothing for them.

use squawk_syntax::ast::{self, AstNode};
use tokio_postgres::{Client, Error};

use crate::migration::{Migration, Phase, text};

/// What a file removes or renames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The table or view, as the statement spells it.
    pub relation: String,
    /// The column; none where it is the whole relation.
    pub column: Option<String>,
}

/// A router's session that follows the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// The run of the router: a UUID without dashes.
    pub instance: String,
    /// The schema's version that it has loaded.
    pub loaded: i64,
}

/// What a session that follows the schema calls itself, so that the shard
/// knows who has loaded what.
pub fn session_name(instance: &uuid::Uuid, loaded: i64) -> String {
    format!("ringfence-router {} {loaded}", instance.simple())
}

/// What a contract file takes away; nothing for other files.
pub fn removals(file: &Migration) -> Vec<Removal> {
    if file.header.phase != Phase::Contract {
        return Vec::new();
    }
    let mut found = Vec::new();
    let whole = |relation: String| Removal {
        relation,
        column: None,
    };
    for stmt in file.tree().tree().stmts() {
        match stmt {
            ast::Stmt::AlterTable(alter) => {
                let Some(table) = alter.table_relation_name() else {
                    continue;
                };
                let table = text(table.syntax());
                let table = table.trim_end_matches('*').trim().to_owned();
                for action in alter.actions() {
                    let column = match &action {
                        ast::AlterTableAction::DropColumn(drop) => drop.column_name_ref(),
                        ast::AlterTableAction::RenameColumn(rename) => rename.column_name_ref(),
                        ast::AlterTableAction::TableRenameTo(_)
                        | ast::AlterTableAction::SetSchema(_) => {
                            found.push(whole(table.clone()));
                            continue;
                        }
                        _ => continue,
                    };
                    found.extend(column.map(|column| Removal {
                        relation: table.clone(),
                        column: Some(text(column.syntax())),
                    }));
                }
            }
            ast::Stmt::DropTable(drop) => {
                found.extend(
                    drop.table_name_refs()
                        .map(|name| whole(text(name.syntax()))),
                );
            }
            _ => {}
        }
    }
    found
}

/// Hides what is to be removed. Returns the version from which on a loaded
/// model is without it. Called again, it changes nothing.
pub async fn hide(client: &Client, removals: &[Removal]) -> Result<i64, Error> {
    let relations: Vec<&str> = removals.iter().map(|r| r.relation.as_str()).collect();
    let columns: Vec<Option<&str>> = removals.iter().map(|r| r.column.as_deref()).collect();
    let row = client
        .query_one(
            "select ringfence.retire($1::text[], $2::text[])",
            &[&relations, &columns],
        )
        .await?;
    Ok(row.get(0))
}

/// Shows again whatever is hidden and still there.
pub async fn show(client: &Client) -> Result<(), Error> {
    client
        .query_one("select ringfence.unretire()", &[])
        .await
        .map(drop)
}

/// The routers' sessions that follow this shard's schema.
pub async fn readers(client: &Client) -> Result<Vec<Reader>, Error> {
    let rows = client
        .query(
            "select instance, loaded from ringfence.schema_readers()",
            &[],
        )
        .await?;
    let reader = |row: &tokio_postgres::Row| Reader {
        instance: row.get(0),
        loaded: row.get(1),
    };
    Ok(rows.iter().map(reader).collect())
}

/// Who of the live routers, by instance, may still read what was hidden at
/// `version`: who loaded an earlier one, and who does not say.
pub fn behind(readers: &[Reader], live: &[String], version: i64) -> Vec<String> {
    let old = readers.iter().filter(|reader| reader.loaded < version);
    let mut behind: Vec<String> = old.map(|reader| reader.instance.clone()).collect();
    let silent = live
        .iter()
        .filter(|instance| !readers.iter().any(|reader| reader.instance == **instance));
    behind.extend(silent.cloned());
    behind.sort();
    behind.dedup();
    behind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_found_in_contract_files_alone() {
        let text = "-- ringfence: phase contract\n\
            alter table app.people drop column \"Name\", drop column if exists age, add column b int;\n\
            alter table people rename column x to y;\nalter table old rename to older;\n\
            drop table if exists a, b.c cascade;\n";
        let file = Migration::parse("001_a.sql", text).unwrap();
        let found: Vec<(String, Option<String>)> = removals(&file)
            .into_iter()
            .map(|removal| (removal.relation, removal.column))
            .collect();
        let column = |table: &str, column: &str| (table.to_owned(), Some(column.to_owned()));
        assert_eq!(
            found,
            [
                column("app.people", "\"Name\""),
                column("app.people", "age"),
                column("people", "x"),
                ("old".to_owned(), None),
                ("a".to_owned(), None),
                ("b.c".to_owned(), None),
            ]
        );
        let expand = Migration::parse("001_a.sql", "alter table a drop column b;").unwrap();
        assert!(removals(&expand).is_empty());
    }

    #[test]
    fn who_is_behind_or_silent_still_reads() {
        let reader = |instance: &str, loaded| Reader {
            instance: instance.to_owned(),
            loaded,
        };
        let readers = [reader("a", 7), reader("b", 6), reader("c", 8)];
        let live = ["a".to_owned(), "c".into(), "d".into()];
        assert_eq!(behind(&readers, &live, 7), ["b", "d"]);
        assert!(behind(&readers[..1], &live[..1], 7).is_empty());
    }

    #[test]
    fn a_sessions_name_fits_whole() {
        let name = session_name(&uuid::Uuid::from_u128(7), 9_999_999_999_999);
        assert!(name.len() < 64, "{name}");
    }
}
