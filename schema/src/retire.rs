//! Before something is removed, nobody may read it any longer. What a contract
//! file removes is first hidden from the schema model ("retired"); routers load
//! the model without it, and each says on its own session which version it has
//! loaded. Once all have, the removal changes nothing for them.

use serde_json::json;
use tokio_postgres::{Client, Error};

use crate::migration::{Migration, Phase};
pub use crate::removal::Removal;
use crate::removal::{Found, of};

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
    let found = file.tree().tree().stmts().flat_map(|stmt| of(&stmt));
    found
        .flat_map(|found| match found {
            Found::Named(_, removals) => removals,
            // The lint asked for a reason.
            Found::Unseen(_) => Vec::new(),
        })
        .collect()
}

/// Hides what is to be removed. Returns the version from which on a loaded
/// model is without it. Called again, it changes nothing.
pub async fn hide(client: &Client, removals: &[Removal]) -> Result<i64, Error> {
    let row = client
        .query_one("select ringfence.retire($1)", &[&json!(removals)])
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
            alter table only app.people drop column \"Name\", drop column if exists age, add column b int;\n\
            alter table people * rename column x to y;\nalter table old rename to older;\n\
            drop table if exists a, b.c cascade;\ndrop view v;\nalter view w rename to w2;\n\
            alter view w rename column k to l;\ndrop materialized view m;\n\
            drop function f(a int, out b text, varchar(3)), g;\nalter function h() rename to i;\n\
            drop routine r(int);\ndrop type t;\nalter view w set (security_invoker = true);\n";
        let file = Migration::parse("001_a.sql", text).unwrap();
        let line = |removal: Removal| {
            let name = removal.relation.or(removal.function).unwrap_or_default();
            let column = removal.column.map(|column| format!(".{column}"));
            let arguments = removal.arguments.map(|of| format!("({})", of.join(",")));
            let cascade = if removal.cascade { " cascade" } else { "" };
            format!(
                "{name}{}{}{cascade}",
                column.unwrap_or_default(),
                arguments.unwrap_or_default()
            )
        };
        let found: Vec<String> = removals(&file).into_iter().map(line).collect();
        assert_eq!(
            found,
            [
                "app.people.\"Name\"",
                "app.people.age",
                "people.x",
                "old",
                "a cascade",
                "b.c cascade",
                "v",
                "w",
                "w.k",
                "m",
                "f(int,varchar(3))",
                "g",
                "h()",
                "r(int)",
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
