//! What can't be moved, and why. Pure, except that the values were read.

use std::collections::BTreeMap;

use schema::tenant_tables::TenantTable;

/// Releases before these lose rows at a publication's switch.
const SOUND: [(i32, i32); 3] = [(15, 13), (16, 9), (17, 5)];

/// Why a server of this `server_version_num` can't take part.
pub(super) fn of_version(shard: &str, version: i32) -> Option<String> {
    let (major, minor) = (version / 10_000, version % 10_000);
    let least = SOUND.iter().find(|(sound, _)| *sound == major)?.1;
    (minor < least).then(|| {
        format!(
            "shard {shard} runs PostgreSQL {major}.{minor}, which loses rows when a publication is switched; {major}.{least} does not"
        )
    })
}

/// How the tables of two shards differ; none: they are alike.
pub(super) fn of_schemas(
    from: (&str, &[TenantTable]),
    to: (&str, &[TenantTable]),
) -> Option<String> {
    let (there, here) = (by_name(from.1), by_name(to.1));
    for (name, table) in &there {
        let Some(other) = here.get(name) else {
            return Some(format!(
                "table {name} of shard {} is not on {}",
                from.0, to.0
            ));
        };
        if let Some(what) = differ(table, other) {
            return Some(format!(
                "table {name} differs between shards {} and {}: {what}",
                from.0, to.0
            ));
        }
    }
    let more = here.keys().find(|name| !there.contains_key(*name))?;
    Some(format!(
        "table {more} of shard {} is not on {}",
        to.0, from.0
    ))
}

/// A migration file that a shard has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Directory and file.
    pub(super) name: String,
    /// All its statements are done.
    pub(super) is_done: bool,
}

/// Why the schema of the second shard is behind, or that of one is being changed;
/// none: neither is.
pub(super) fn of_histories(from: (&str, &[File]), to: (&str, &[File])) -> Option<String> {
    for (shard, files) in [from, to] {
        if let Some(file) = files.iter().find(|file| !file.is_done) {
            return Some(format!(
                "shard {shard} has a part of {} only: `ringfence migrate apply` first",
                file.name
            ));
        }
    }
    let lacks = from.1.iter().find(|file| !to.1.contains(file))?;
    Some(format!(
        "shard {} has not got {} of shard {}: `ringfence migrate apply` first",
        to.0, lacks.name, from.0
    ))
}

fn by_name(tables: &[TenantTable]) -> BTreeMap<String, &TenantTable> {
    tables
        .iter()
        .map(|table| (table.name.to_string(), table))
        .collect()
}

/// Columns may stand in another order: replication goes by their names.
fn differ(one: &TenantTable, other: &TenantTable) -> Option<String> {
    if one.tenant_column != other.tenant_column {
        return Some("the tenant's column".into());
    }
    if one.key != other.key {
        return Some("the primary key".into());
    }
    for column in &one.columns {
        let same = other.columns.iter().find(|c| c.name == column.name);
        match same {
            None => return Some(format!("column {} is missing on one", column.name)),
            Some(same) if same.type_name != column.type_name => {
                return Some(format!(
                    "column {} is {} and {}",
                    column.name, column.type_name, same.type_name
                ));
            }
            Some(same) if same.generated != column.generated => {
                return Some(format!("column {} is generated on one only", column.name));
            }
            Some(_) => {}
        }
    }
    match one.columns.len() == other.columns.len() {
        true => None,
        false => Some("the number of columns".into()),
    }
}

#[cfg(test)]
mod tests {
    use schema::ident::QualifiedName;
    use schema::tenant_tables::TenantColumn;

    use super::*;

    fn table(name: &str, columns: &[(&str, &str)]) -> TenantTable {
        TenantTable {
            name: QualifiedName::new("public", name),
            tenant_column: "tenant_id".into(),
            columns: columns
                .iter()
                .map(|(name, type_name)| TenantColumn {
                    name: (*name).into(),
                    type_name: (*type_name).into(),
                    generated: false,
                    optional: false,
                    sequence: None,
                })
                .collect(),
            key: vec!["id".into()],
            leaves: Vec::new(),
            foreign_keys: Vec::new(),
            rows_estimate: 0,
        }
    }

    #[test]
    fn versions_that_lose_rows() {
        assert!(of_version("s1", 150_012).is_some());
        assert_eq!(of_version("s1", 150_013), None);
        assert!(of_version("s1", 170_004).is_some());
        assert_eq!(of_version("s1", 180_000), None);
    }

    #[test]
    fn a_shard_that_is_behind_takes_nobody() {
        let file = |name: &str, is_done| File {
            name: name.into(),
            is_done,
        };
        let (one, two) = (file("app/001_a.sql", true), file("app/002_b.sql", true));
        let both = [one.clone(), two];
        let half = [one.clone(), file("app/002_b.sql", false)];
        let one = [one];
        assert_eq!(of_histories(("s1", &one), ("s2", &one)), None);
        // What only the target has is its own business: tables are compared, too.
        assert_eq!(of_histories(("s1", &one), ("s2", &both)), None);
        insta::assert_snapshot!(
            of_histories(("s1", &both), ("s2", &one)).unwrap(),
            @"shard s2 has not got app/002_b.sql of shard s1: `ringfence migrate apply` first"
        );
        assert!(of_histories(("s1", &one), ("s2", &half)).is_some());
        assert!(of_histories(("s1", &half), ("s2", &half)).is_some());
    }

    #[test]
    fn schemas_are_compared_by_name() {
        let a = [table("a", &[("id", "bigint"), ("x", "text")])];
        let turned = [table("a", &[("x", "text"), ("id", "bigint")])];
        assert_eq!(of_schemas(("s1", &a), ("s2", &turned)), None);
        let wider = [table(
            "a",
            &[("id", "bigint"), ("x", "text"), ("y", "text")],
        )];
        assert!(of_schemas(("s1", &a), ("s2", &wider)).is_some());
        let other = [table("a", &[("id", "integer"), ("x", "text")])];
        insta::assert_snapshot!(
            of_schemas(("s1", &a), ("s2", &other)).unwrap(),
            @r#"table "public"."a" differs between shards s1 and s2: column "id" is bigint and integer"#
        );
        assert!(of_schemas(("s1", &a), ("s2", &[])).is_some());
        assert!(of_schemas(("s1", &[]), ("s2", &a)).is_some());
    }
}
