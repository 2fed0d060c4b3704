//! What a file costs on tables that are there: what is read or written anew, who waits
//! meanwhile, and roughly how long it takes. By sizes alone: a disk that is slower, or a
//! shard that has much to do, takes longer.

use serde::Serialize;

use crate::lint::{self, Rule};
use crate::migration::{Migration, StatementKind, table_of, validates};

/// What one statement does to a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// The statement's line.
    pub line: u32,
    /// The table, `schema.table`.
    pub table: String,
    /// What is done.
    pub does: Does,
    /// Who waits meanwhile.
    pub blocks: Blocks,
}

/// What is done to a whole table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Does {
    /// Every row is read.
    Scans,
    /// An index is built of it.
    Builds,
    /// It is written anew, with its indexes.
    Rewrites,
    /// Rows are changed in chunks, half of the time at most.
    Fills,
    /// Rows are changed in one statement.
    Changes,
}

/// Who waits while it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Blocks {
    /// Nobody.
    Nobody,
    /// Who writes rows that it has changed.
    Rows,
    /// Who writes.
    Writes,
    /// Everybody.
    All,
}

/// Bytes of a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// Its rows, without indexes.
    pub heap: i64,
    /// With indexes.
    pub total: i64,
}

impl Does {
    /// About so many seconds, for a table of that size.
    pub fn seconds(self, size: Size) -> f64 {
        // MiB a second, as two cores beside other load do it.
        let (bytes, rate) = match self {
            Self::Scans => (size.heap, 100.0),
            Self::Builds => (size.heap, 20.0),
            Self::Rewrites => (size.total, 20.0),
            Self::Changes => (size.total, 8.0),
            Self::Fills => (size.total, 4.0),
        };
        bytes as f64 / f64::from(1 << 20) / rate
    }
}

/// What a file's statements do to whole tables; what takes a moment is left out.
pub fn works(file: &Migration) -> Vec<Work> {
    let mut broken = lint::unpermitted(file);
    broken.sort_by_key(|found| found.line);
    let mut works = Vec::new();
    let stmts = file.tree().tree().stmts();
    for (place, (statement, stmt)) in file.statements.iter().zip(stmts).enumerate() {
        let next = file.statements.get(place + 1);
        let end = next.map_or(u32::MAX, |next| next.line);
        let Some(table) = table_of(&stmt) else {
            continue;
        };
        let mut add = |does, blocks| {
            works.push(Work {
                line: statement.line,
                table: table.clone(),
                does,
                blocks,
            });
        };
        match &statement.kind {
            StatementKind::ConcurrentIndex { .. } => add(Does::Builds, Blocks::Nobody),
            StatementKind::Backfill(_) => add(Does::Fills, Blocks::Nobody),
            StatementKind::Dml => add(Does::Changes, Blocks::Rows),
            StatementKind::Ddl | StatementKind::OutsideTransaction => {
                let first = broken.partition_point(|found| found.line < statement.line);
                let own = broken.iter().skip(first);
                let worst = own
                    .take_while(|found| found.line < end)
                    .filter_map(|found| of_rule(found.rule))
                    .max_by_key(|(does, _)| *does == Does::Rewrites);
                if let Some((does, blocks)) = worst {
                    add(does, blocks);
                } else if validates(&stmt) {
                    add(Does::Scans, Blocks::Nobody);
                }
            }
        }
    }
    works
}

/// What breaking a rule means for the table; the file may allow it.
fn of_rule(rule: Rule) -> Option<(Does, Blocks)> {
    Some(match rule {
        Rule::ColumnTypeRewrite | Rule::DefaultRewrites | Rule::TableRewrites => {
            (Does::Rewrites, Blocks::All)
        }
        Rule::SetNotNull | Rule::ConstraintScans => (Does::Scans, Blocks::All),
        Rule::KeyBlocks => (Does::Builds, Blocks::All),
        Rule::ForeignKeyBlocks => (Does::Scans, Blocks::Writes),
        Rule::IndexBlocksWrites | Rule::ReindexBlocks => (Does::Builds, Blocks::Writes),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> String {
        let file = Migration::parse("001_t.sql", text).unwrap();
        let line = |work: &Work| {
            format!(
                "{}: {:?} {} {:?}",
                work.line, work.does, work.table, work.blocks
            )
        };
        works(&file).iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn whole_tables_are_told_from_moments() {
        insta::assert_snapshot!(seen(
            "-- ringfence: no-transaction\nalter table people add column a int;\n\
             create index concurrently i on app.people (a);\n\
             -- ringfence: backfill\nupdate people set a = 1;\n\
             delete from people where a = 2;\n\
             alter table people alter column a set not null;\n\
             alter table people validate constraint c;\n\
             alter table people\n  alter column a type bigint;\n\
             create index i on people (a);\n\
             create table other (id int);\n\
             insert into other values (1);"
        ), @r"
        3: Builds app.people Nobody
        5: Fills public.people Nobody
        6: Changes public.people Rows
        7: Scans public.people All
        8: Scans public.people Nobody
        9: Rewrites public.people All
        11: Builds public.people Writes
        ");
    }

    #[test]
    fn time_goes_with_size() {
        let size = Size {
            heap: 100 << 20,
            total: 400 << 20,
        };
        assert_eq!(Does::Scans.seconds(size), 1.0);
        assert_eq!(Does::Rewrites.seconds(size), 20.0);
        assert!(Does::Fills.seconds(size) > Does::Changes.seconds(size));
    }
}
