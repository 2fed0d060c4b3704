//! What a shard has of a directory's files, and what it lacks.

use serde::{Deserialize, Serialize};
use tokio_postgres::{Error, GenericClient};

use crate::migration::Migration;

/// A file as a shard knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file's number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The checksum of the text that was run.
    pub checksum: String,
    /// All its statements are done.
    pub done: bool,
    /// Statements done.
    pub step: u32,
    /// The statement outside a transaction that was begun.
    pub begun: Option<u32>,
    /// The last key that the present back-fill did.
    pub after_key: Option<Vec<String>>,
    /// Rows that its back-fills changed.
    pub rows: i64,
}

/// Why a directory can't be applied to a shard that holds something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A file's text is not what was run.
    #[error("{file} was changed after it was applied")]
    Changed {
        /// The file.
        file: String,
    },
    /// The shard has a file that the directory lacks.
    #[error("the shard has {file}, which is not among the files")]
    Unknown {
        /// The file.
        file: String,
    },
    /// The shard lacks a file that comes before one that it has.
    #[error("the shard has {later}, but not {missing}, which comes before it")]
    Gap {
        /// What it lacks.
        missing: String,
        /// What it has.
        later: String,
    },
}

/// A directory's files on a shard, in order.
pub async fn read(client: &impl GenericClient, directory: &str) -> Result<Vec<Entry>, Error> {
    let rows = client
        .query(
            "select number, name, checksum, state = 'done' as done, step, begun, after_key, rows
             from ringfence.migration where directory = $1 order by number",
            &[&directory],
        )
        .await?;
    let entry = |row: &tokio_postgres::Row| Entry {
        number: row.get::<_, i32>("number").unsigned_abs(),
        name: row.get("name"),
        checksum: row.get("checksum"),
        done: row.get("done"),
        step: row.get::<_, i32>("step").unsigned_abs(),
        begun: row.get::<_, Option<i32>>("begun").map(i32::unsigned_abs),
        after_key: row.get("after_key"),
        rows: row.get("rows"),
    };
    Ok(rows.iter().map(entry).collect())
}

/// Records files as applied that the shard holds already, without running
/// them: also one that was begun with this text. Returns how many.
pub async fn baseline(
    client: &impl GenericClient,
    directory: &str,
    files: &[Migration],
) -> Result<u64, Error> {
    let mut written = 0;
    for file in files {
        written += client
            .execute(
                "insert into ringfence.migration (directory, number, name, checksum, phase, state, step, baseline)
                 values ($1, $2, $3, $4, $5, 'done', $6, true)
                 on conflict (directory, number) do update
                   set state = 'done', step = excluded.step, begun = null, after_key = null, baseline = true, changed_at = now()
                   where migration.state = 'running' and migration.checksum = excluded.checksum",
                &[
                    &directory,
                    &(file.number as i32),
                    &file.name,
                    &file.checksum,
                    &file.header.phase.as_str(),
                    &(file.statements.len() as i32),
                ],
            )
            .await?;
    }
    Ok(written)
}

/// The first of `files`, which are in order, that the shard has not or has in
/// part; none where it has them all.
///
/// # Errors
/// Every [`HistoryError`]: then nothing must be run.
pub fn next<'a>(
    files: &'a [Migration],
    entries: &[Entry],
) -> Result<Option<&'a Migration>, HistoryError> {
    let mut next = None;
    for file in files {
        let entry = entries.iter().find(|entry| entry.number == file.number);
        match entry {
            Some(entry) if entry.checksum != file.checksum || entry.name != file.name => {
                return Err(HistoryError::Changed { file: file.file() });
            }
            Some(entry) if entry.done && next.is_none() => {}
            _ if next.is_none() => next = Some(file),
            None => {}
            Some(entry) => {
                return Err(HistoryError::Gap {
                    missing: next.map(Migration::file).unwrap_or_default(),
                    later: name(entry),
                });
            }
        }
    }
    let known = |entry: &&Entry| files.iter().any(|file| file.number == entry.number);
    match entries.iter().find(|entry| !known(entry)) {
        Some(entry) => Err(HistoryError::Unknown { file: name(entry) }),
        None => Ok(next),
    }
}

fn name(entry: &Entry) -> String {
    format!("{:03}_{}.sql", entry.number, entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<Migration> {
        ["001_a.sql", "002_b.sql", "003_c.sql"]
            .iter()
            .map(|file| Migration::parse(file, "select 1;").unwrap())
            .collect()
    }

    fn has(numbers: &[u32]) -> Vec<Entry> {
        let entry = |file: Migration| Entry {
            number: file.number,
            name: file.name,
            checksum: file.checksum,
            done: true,
            step: 1,
            begun: None,
            after_key: None,
            rows: 0,
        };
        let wanted = files().into_iter();
        wanted
            .filter(|file| numbers.contains(&file.number))
            .map(entry)
            .collect()
    }

    #[test]
    fn the_next_file_is_the_first_that_is_not_done() {
        let files = files();
        let next_of = |entries: &[Entry]| next(&files, entries).map(|file| file.map(|f| f.number));
        assert_eq!(next_of(&[]), Ok(Some(1)));
        assert_eq!(next_of(&has(&[1])), Ok(Some(2)));
        assert_eq!(next_of(&has(&[1, 2, 3])), Ok(None));
        let mut half = has(&[1, 2]);
        half[1].done = false;
        assert_eq!(next_of(&half), Ok(Some(2)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let files = files();
        let mut changed = has(&[1, 2]);
        changed[0].checksum = "other".into();
        let message = |entries: &[Entry]| next(&files, entries).unwrap_err().to_string();
        assert_eq!(
            message(&changed),
            "001_a.sql was changed after it was applied"
        );
        assert_eq!(
            message(&has(&[1, 3])),
            "the shard has 003_c.sql, but not 002_b.sql, which comes before it"
        );
        let mut unknown = has(&[1, 2, 3]);
        unknown[2].number = 4;
        assert!(message(&unknown).starts_with("the shard has 004_c.sql"));
        let mut half = has(&[1, 2]);
        half[0].done = false;
        assert!(matches!(next(&files, &half), Err(HistoryError::Gap { .. })));
    }
}
