//! What of a source is loaded into which table, and what is not. Pure, but for
//! reading both sides.

use std::collections::BTreeSet;

use schema::ident::{Ident, QualifiedName};
use schema::key_range::KeyColumn;
use schema::tenant_tables::{TenantTable, tenant_tables};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::source::Source;
use crate::job::JobError;

/// Schemas of Supabase's services.
const SERVICES: &[&str] = &[
    "auth",
    "storage",
    "realtime",
    "_realtime",
    "vault",
    "pgsodium",
    "supabase_functions",
    "supabase_migrations",
    "cron",
    "net",
];

/// What a source has: a table, a partitioned one, a materialized view, a foreign table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// Its name.
    pub name: QualifiedName,
    /// `pg_class.relkind`.
    pub kind: String,
    /// It is neither temporary nor unlogged.
    pub is_logged: bool,
    /// Its columns, in order.
    pub columns: Vec<String>,
    /// Those that Postgres computes.
    pub generated: Vec<String>,
    /// Its primary key.
    pub key: Vec<KeyColumn>,
}

/// A table that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadTable {
    /// Its name, on both sides.
    pub name: QualifiedName,
    /// Columns that both sides have.
    pub columns: Vec<Ident>,
    /// The shard's column that says whose a row is.
    pub tenant_column: Ident,
    /// The source has such a column, too.
    pub source_has_tenant: bool,
    /// The source's primary key; without one the table is copied whole.
    pub key: Vec<KeyColumn>,
}

/// What is not loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// What it is.
    pub object: String,
    /// Why.
    pub why: String,
}

/// A source beside a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is loaded; referenced tables first.
    pub tables: Vec<LoadTable>,
    /// What is not.
    pub left: Vec<Left>,
    /// What must not be left: values would be lost, or rows be refused.
    pub problems: Vec<String>,
}

impl Plan {
    /// Why nothing can be loaded.
    pub fn problem(&self) -> Option<String> {
        match (self.problems.is_empty(), self.tables.is_empty()) {
            (false, _) => Some(self.problems.join("; ")),
            (true, true) => Some(
                "no table of the source is a tenant's on the shards: adopt its schema first (`ringfence schema adopt`)"
                    .into(),
            ),
            (true, false) => None,
        }
    }
}

/// Reads both sides and compares them.
pub async fn read(source: &Source, shard: &Client) -> Result<Plan, JobError> {
    let targets = tenant_tables(shard).await?;
    let rows = shard
        .query(
            "select n.nspname, c.relname from ringfence.relation r
             join pg_class c on c.oid = r.relid join pg_namespace n on n.oid = c.relnamespace
             where r.kind = 'reference'",
            &[],
        )
        .await?;
    let reference = rows
        .iter()
        .map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
        .collect();
    let mut plan = compare(&targets, &reference, &source.tables().await?);
    let objects = source.large_objects().await?;
    if objects > 0 {
        plan.left.push(Left {
            object: format!("{objects} large objects"),
            why: "they belong to no table".into(),
        });
    }
    Ok(plan)
}

/// Decides for every table of the source; none is left out without a word.
fn compare(
    targets: &[TenantTable],
    reference: &BTreeSet<QualifiedName>,
    sources: &[SourceTable],
) -> Plan {
    let mut plan = Plan::default();
    for source in sources {
        let target = targets.iter().find(|target| target.name == source.name);
        let why = match (source.kind.as_str(), target) {
            ("m", _) => "a materialized view holds what is computed",
            ("f", _) => "a foreign table's rows are elsewhere",
            (_, Some(target)) => {
                load(target, source, &mut plan);
                continue;
            }
            _ if reference.contains(&source.name) => {
                "a reference table's rows are the same for all tenants, and not one's to bring"
            }
            _ if SERVICES.contains(&source.name.schema.as_str()) => {
                "it is a service's, which stays where it is"
            }
            _ if !source.is_logged => "an unlogged table does not outlive a crash",
            _ => "no such table is distributed on the shards",
        };
        plan.left.push(Left {
            object: source.name.to_string(),
            why: why.into(),
        });
    }
    let order = in_order(targets);
    let place = |table: &LoadTable| order.iter().position(|name| *name == table.name);
    plan.tables.sort_by_key(place);
    plan
}

fn load(target: &TenantTable, source: &SourceTable, plan: &mut Plan) {
    let name = &target.name;
    let has = |column: &Ident| source.columns.iter().any(|c| c == column.as_str());
    let mut columns = Vec::new();
    for column in target.columns.iter().filter(|column| !column.generated) {
        match (has(&column.name), column.optional) {
            (true, _) => columns.push(column.name.clone()),
            (false, true) => {}
            (false, false) => plan.problems.push(format!(
                "the source's {name} has no column {}, which the shards' must have",
                column.name
            )),
        }
    }
    let source_has_tenant = has(&target.tenant_column);
    for column in &source.columns {
        let known = target.columns.iter().any(|c| c.name.as_str() == column);
        let tenant = target.tenant_column.as_str() == column;
        if !known && !tenant && !source.generated.contains(column) {
            plan.problems.push(format!(
                "the shards' {name} has no column {}: its values would be lost",
                Ident::new(column.as_str())
            ));
        }
    }
    plan.tables.push(LoadTable {
        name: name.clone(),
        columns,
        tenant_column: target.tenant_column.clone(),
        source_has_tenant,
        key: source.key.clone(),
    });
}

/// Referenced tables first: who looks meanwhile understands how far it is.
fn in_order(targets: &[TenantTable]) -> Vec<QualifiedName> {
    let mut left: Vec<&TenantTable> = targets.iter().collect();
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let ready = left.iter().position(|table| {
            let mut parents = table.foreign_keys.iter().map(|key| &key.table);
            parents.all(|parent| {
                *parent == table.name || !left.iter().any(|other| other.name == *parent)
            })
        });
        order.push(left.remove(ready.unwrap_or(0)).name.clone());
    }
    order
}

#[cfg(test)]
mod tests {
    use schema::tenant_tables::{TenantColumn, TenantForeignKey};

    use super::*;

    fn target(name: &str, columns: &[(&str, bool)], parent: Option<&str>) -> TenantTable {
        let named = |name: &str| QualifiedName::new("public", name);
        let column = |(column, optional): &(&str, bool)| TenantColumn {
            name: (*column).into(),
            type_name: "text".into(),
            generated: false,
            optional: *optional,
            sequence: None,
        };
        let key = |parent| TenantForeignKey {
            name: "parent".into(),
            columns: Vec::new(),
            table: named(parent),
            foreign_columns: Vec::new(),
        };
        TenantTable {
            name: named(name),
            tenant_column: "tenant_id".into(),
            columns: columns.iter().map(column).collect(),
            key: Vec::new(),
            leaves: Vec::new(),
            foreign_keys: parent.map(key).into_iter().collect(),
            rows_estimate: 0,
        }
    }

    fn source(name: &str, kind: &str, columns: &[&str]) -> SourceTable {
        let (schema, name) = name.split_once('.').unwrap_or(("public", name));
        SourceTable {
            name: QualifiedName::new(schema, name),
            kind: kind.into(),
            is_logged: true,
            columns: columns.iter().map(|column| (*column).into()).collect(),
            generated: Vec::new(),
            key: Vec::new(),
        }
    }

    #[test]
    fn every_table_is_loaded_or_named() {
        let targets = [
            target("a_notes", &[("id", false), ("extra", true)], Some("people")),
            target("people", &[("id", false), ("name", false)], None),
        ];
        let reference = BTreeSet::from([QualifiedName::new("public", "countries")]);
        let sources = [
            source("a_notes", "r", &["id"]),
            source("auth.users", "r", &["id"]),
            source("counts", "m", &["n"]),
            source("countries", "r", &["code"]),
            source("people", "r", &["id", "name", "tenant_id"]),
            source("schema_migrations", "r", &["version"]),
        ];
        let plan = compare(&targets, &reference, &sources);
        let loaded: Vec<String> = plan.tables.iter().map(|t| t.name.to_string()).collect();
        assert_eq!(loaded, [r#""public"."people""#, r#""public"."a_notes""#]);
        assert!(plan.tables[0].source_has_tenant);
        let left: Vec<&str> = plan.left.iter().map(|left| left.object.as_str()).collect();
        assert_eq!(
            left,
            [
                r#""auth"."users""#,
                r#""public"."counts""#,
                r#""public"."countries""#,
                r#""public"."schema_migrations""#
            ]
        );
        assert_eq!(plan.problem(), None);
    }

    #[test]
    fn columns_are_neither_lost_nor_made_up() {
        let targets = [target("people", &[("id", false), ("name", false)], None)];
        let sources = [source("people", "r", &["id", "age"])];
        let problem = compare(&targets, &BTreeSet::new(), &sources).problem();
        insta::assert_snapshot!(problem.unwrap(), @r#"the source's "public"."people" has no column "name", which the shards' must have; the shards' "public"."people" has no column "age": its values would be lost"#);
        let nothing = compare(&targets, &BTreeSet::new(), &[]).problem();
        assert!(nothing.unwrap().starts_with("no table of the source"));
    }
}
