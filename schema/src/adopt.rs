//! Proposes how an ordinary single-tenant schema becomes a distributed one:
//! for each table tenant, reference or ignore, with the reason, and everything
//! that will not be served as it was. Pure, but for reading the facts.

mod clean;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;
use tokio_postgres::{Client, Error};

use crate::ident::{Literal, QualifiedName};

/// What is known of a table, view or function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Tables, with partitioned ones, without their partitions.
    pub tables: Vec<TableFacts>,
    /// Views that run with their owner's rights.
    pub owner_views: Vec<QualifiedName>,
    /// Materialized views.
    pub materialized: Vec<QualifiedName>,
    /// Foreign tables.
    pub foreign: Vec<QualifiedName>,
    /// `SECURITY DEFINER` functions with their arguments.
    pub definers: Vec<String>,
}

/// What is known of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Its name.
    pub name: QualifiedName,
    /// Rows, where they were counted; no further than matters here.
    pub rows: Option<i64>,
    /// A column that is named as what a person has, or a secret.
    pub personal: Option<String>,
    /// It has a primary key.
    pub keyed: bool,
    /// Its key is drawn from a sequence, or a UUID, which nobody writes by hand.
    pub generated_key: bool,
    /// It is neither temporary nor unlogged.
    pub logged: bool,
    /// Policies of its own.
    pub policies: Vec<String>,
    /// Row security is on: without policies, nobody but who passes it sees a row.
    pub row_security: bool,
    /// Some role that requests come in has rights on it.
    pub granted: bool,
    /// It is partitioned.
    pub partitioned: bool,
    /// Tables that its foreign keys refer to.
    pub parents: Vec<QualifiedName>,
    /// Its exclusion constraints.
    pub exclusions: Vec<Exclusion>,
}

/// An exclusion constraint: as it is, it would hold across tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// Its name, quoted where it must be.
    pub name: String,
    /// As Postgres prints it: `EXCLUDE USING gist (during WITH &&)`.
    pub definition: String,
}

impl Exclusion {
    /// The same within a tenant.
    fn by_tenant(&self) -> String {
        self.definition.replacen('(', "(tenant_id WITH =, ", 1)
    }
}

/// What a table becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Each row belongs to a tenant.
    Tenant,
    /// The same rows for all.
    Reference,
    /// Neither: it stays closed to the API.
    Ignore,
}

/// A proposal for one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// The table.
    pub table: String,
    /// What it becomes.
    pub role: Role,
    /// Why.
    pub reason: String,
}

/// A proposal for a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Adoption {
    /// Every table; referenced ones first.
    pub tables: Vec<Proposal>,
    /// What will not be as it was, or must be looked at.
    pub remarks: Vec<String>,
    /// The migration that does it.
    pub sql: String,
}

/// A dump as a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// What makes the application's objects.
    pub sql: String,
    /// What was left out, where a reader should know.
    pub remarks: Vec<String>,
    /// Why it can't be read whole.
    pub problem: Option<String>,
}

/// A dump without what a shard has or decides itself.
pub fn clean(dump: &str) -> Cleaned {
    clean::clean(dump)
}

impl Facts {
    /// The application's schemas.
    pub fn schemas(&self) -> Vec<String> {
        let tables = self.tables.iter();
        let mut schemas: Vec<String> = tables
            .map(|table| table.name.schema.as_str().to_owned())
            .collect();
        schemas.sort();
        schemas.dedup();
        schemas
    }

    /// A query for each table's rows, in order, to be asked where they are.
    pub fn counting(&self) -> Option<String> {
        let enough = REFERENCE_ROWS_MAX + 1;
        let counts = self.tables.iter().map(|table| {
            let name = &table.name;
            format!("(select count(*) from (select from {name} limit {enough}) rows)")
        });
        let counts: Vec<String> = counts.collect();
        let wanted = !counts.is_empty();
        wanted.then(|| format!("select unnest(array[{}])", counts.join(", ")))
    }

    /// Takes its answer, a number a line.
    pub fn counted(&mut self, answer: &str) {
        let counts = answer.lines().map(|line| line.trim().parse().ok());
        for (table, rows) in self.tables.iter_mut().zip(counts) {
            table.rows = rows;
        }
    }
}

/// Tables in which tools keep which of their files have run.
const BOOKKEEPING: &[&str] = &[
    "schema_migrations",
    "ar_internal_metadata",
    "_prisma_migrations",
    "flyway_schema_history",
    "knex_migrations",
    "knex_migrations_lock",
    "django_migrations",
    "alembic_version",
    "__efmigrationshistory",
    "goose_db_version",
    "sqlx_migrations",
    "_sqlx_migrations",
];

/// More rows than that are nobody's list of countries.
const REFERENCE_ROWS_MAX: i64 = 10_000;

/// Decides for every table; none is left out.
pub fn propose(facts: &Facts) -> Adoption {
    let mut roles: BTreeMap<&QualifiedName, (Role, String)> = BTreeMap::new();
    let referenced: BTreeSet<&QualifiedName> = facts
        .tables
        .iter()
        .flat_map(|table| table.parents.iter().filter(|parent| **parent != table.name))
        .collect();
    for table in &facts.tables {
        let name = table.name.name.as_str().to_lowercase();
        if BOOKKEEPING.contains(&name.as_str()) {
            let reason = "a tool's own list of what it has run";
            roles.insert(&table.name, (Role::Ignore, reason.into()));
        } else if !table.logged {
            let reason = "unlogged: it is not replicated and can't be moved";
            roles.insert(&table.name, (Role::Ignore, reason.into()));
        }
    }
    // A reference table refers to reference tables alone: taken away until none is left.
    let mut shared: BTreeSet<&QualifiedName> = facts
        .tables
        .iter()
        .filter(|table| !roles.contains_key(&table.name))
        .filter(|table| is_like_a_list(table, &referenced))
        .map(|table| &table.name)
        .collect();
    loop {
        let wrong: Vec<&QualifiedName> = facts
            .tables
            .iter()
            .filter(|table| shared.contains(&table.name))
            .filter(|table| table.parents.iter().any(|parent| !shared.contains(parent)))
            .map(|table| &table.name)
            .collect();
        if wrong.is_empty() {
            break;
        }
        for name in wrong {
            shared.remove(name);
        }
    }
    for table in &facts.tables {
        let place = roles.entry(&table.name);
        place.or_insert_with(|| match shared.contains(&table.name) {
            true => {
                let rows = match table.rows {
                    Some(rows) => format!("{rows} rows"),
                    None => "its rows were not counted".into(),
                };
                let reason = format!("others refer to it, its keys are written by hand, {rows}");
                (Role::Reference, reason)
            }
            false => (Role::Tenant, tenant_reason(table)),
        });
    }
    let order = in_order(&facts.tables);
    let tables = order
        .iter()
        .filter_map(|table| {
            let (role, reason) = roles.get(&table.name)?;
            Some(Proposal {
                table: table.name.to_string(),
                role: *role,
                reason: reason.clone(),
            })
        })
        .collect::<Vec<_>>();
    let remarks = remarks(facts, &roles);
    let sql = sql(&tables, facts, &remarks);
    Adoption {
        tables,
        remarks,
        sql,
    }
}

fn is_like_a_list(table: &TableFacts, referenced: &BTreeSet<&QualifiedName>) -> bool {
    referenced.contains(&table.name)
        && table.keyed
        && !table.generated_key
        && !table.partitioned
        && table.policies.is_empty()
        && !table.row_security
        && table.personal.is_none()
        && table.rows.is_none_or(|rows| rows <= REFERENCE_ROWS_MAX)
}

fn tenant_reason(table: &TableFacts) -> String {
    let mut reasons = Vec::new();
    if table.generated_key {
        reasons.push("rows are added under generated keys".to_owned());
    }
    if !table.parents.is_empty() {
        reasons.push(format!("refers to {} tables", table.parents.len()));
    }
    if let Some(column) = &table.personal {
        reasons.push(format!("{column} may be a person's, or a secret"));
    }
    if table.rows.is_some_and(|rows| rows > REFERENCE_ROWS_MAX) {
        reasons.push(format!("has more than {REFERENCE_ROWS_MAX} rows"));
    }
    if !table.policies.is_empty() {
        reasons.push(format!("has policies: {}", table.policies.join(", ")));
    } else if table.row_security {
        reasons.push("row security closes it".to_owned());
    }
    match reasons.is_empty() {
        // When in doubt rows are kept apart: the other way round they would be shown.
        true => "nothing says that all tenants share it".into(),
        false => reasons.join("; "),
    }
}

/// Referenced tables first; those of a cycle in the order of names.
fn in_order(tables: &[TableFacts]) -> Vec<&TableFacts> {
    let mut left: Vec<&TableFacts> = tables.iter().collect();
    left.sort_by(|a, b| a.name.cmp(&b.name));
    let mut order: Vec<&TableFacts> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let ready = left.iter().position(|table| {
            let mut parents = table.parents.iter();
            parents.all(|parent| {
                *parent == table.name || !left.iter().any(|other| other.name == *parent)
            })
        });
        order.push(left.remove(ready.unwrap_or(0)));
    }
    order
}

fn remarks(facts: &Facts, roles: &BTreeMap<&QualifiedName, (Role, String)>) -> Vec<String> {
    let mut remarks = Vec::new();
    for table in &facts.tables {
        let role = roles.get(&table.name).map(|(role, _)| *role);
        if role == Some(Role::Reference) {
            remarks.push(format!(
                "{}: ALL TENANTS SEE ITS ROWS; if they are not everybody's, distribute it instead",
                table.name
            ));
        }
        if !table.keyed && role == Some(Role::Tenant) {
            remarks.push(format!(
                "{} has no primary key: it can't be moved nor back-filled; add one",
                table.name
            ));
        }
        if !table.policies.is_empty() {
            remarks.push(format!(
                "{}: its policies stay, and can only narrow what its tenant sees: {}",
                table.name,
                table.policies.join(", ")
            ));
        } else if table.row_security && role == Some(Role::Tenant) {
            remarks.push(format!(
                "{}: row security is on, without a policy: as before, only service keys and functions of its owner see its rows",
                table.name
            ));
        }
        if closed(facts, table) && role != Some(Role::Ignore) {
            remarks.push(format!(
                "{}: no API role has rights on it, as before: grant what requests may do",
                table.name
            ));
        }
        for Exclusion { name, .. } in &table.exclusions {
            if role == Some(Role::Tenant) {
                remarks.push(format!(
                    "{}: the exclusion constraint {name} is made anew, within each tenant",
                    table.name
                ));
            }
        }
        if table.partitioned {
            remarks.push(format!(
                "{} is partitioned: its partitions are served through it alone",
                table.name
            ));
        }
    }
    for view in &facts.owner_views {
        remarks.push(format!(
            "view {view} ran with its owner's rights: it is made to run with its caller's"
        ));
    }
    for view in &facts.materialized {
        remarks.push(format!(
            "materialized view {view} holds all tenants' rows: it is hidden from the API"
        ));
    }
    for table in &facts.foreign {
        remarks.push(format!(
            "foreign table {table} is not scoped: it is hidden from the API"
        ));
    }
    for function in &facts.definers {
        remarks.push(format!(
            "function {function} runs with its owner's rights: look at what it reads; it is hidden from the API where its owner passes row security"
        ));
    }
    remarks
}

/// The authors gave rights on other tables to API roles, and none on this one.
fn closed(facts: &Facts, table: &TableFacts) -> bool {
    !table.granted && facts.tables.iter().any(|table| table.granted)
}

fn sql(tables: &[Proposal], facts: &Facts, remarks: &[String]) -> String {
    let mut sql = String::from(
        "-- Proposed by `ringfence schema adopt`: read it, change what is wrong, then\n\
         -- `ringfence migrate apply`. Each table's rows become tenants', or are shared.\n",
    );
    if tables.iter().any(|proposal| proposal.role == Role::Ignore) {
        sql.push_str(
            "-- Tables that are left out stay closed to the API, and don't move with a tenant.\n",
        );
    }
    for remark in remarks {
        let _ = writeln!(sql, "-- NOTE {remark}");
    }
    sql.push('\n');
    if facts
        .tables
        .iter()
        .any(|table| !table.exclusions.is_empty())
    {
        sql.push_str(
            "-- Exclusion constraints within a tenant compare its id, too.\n\
             create schema if not exists extensions;\n\
             create extension if not exists btree_gist with schema extensions;\n",
        );
    }
    for proposal in tables {
        let call = match proposal.role {
            Role::Tenant => "select ringfence.distribute",
            Role::Reference => "select ringfence.reference",
            Role::Ignore => "-- ignored:",
        };
        let name = Literal(&proposal.table);
        let table = |table: &&TableFacts| table.name.to_string() == proposal.table;
        let table = facts.tables.iter().find(table);
        let exclusions = table.filter(|_| proposal.role == Role::Tenant);
        let exclusions = exclusions.map_or(&[][..], |table| &table.exclusions);
        let _ = writeln!(sql, "-- {}", proposal.reason);
        for Exclusion { name, .. } in exclusions {
            let _ = writeln!(
                sql,
                "alter table {} drop constraint {name};",
                proposal.table
            );
        }
        let _ = writeln!(sql, "{call}({name});");
        for exclusion in exclusions {
            let (name, definition) = (&exclusion.name, exclusion.by_tenant());
            let table = &proposal.table;
            let _ = writeln!(
                sql,
                "alter table {table} add constraint {name} {definition};"
            );
        }
        // What is not scoped is closed to functions and views, too; and distributing
        // a table opens it where nobody has rights.
        if table.is_some_and(|table| match proposal.role {
            Role::Ignore => table.granted,
            Role::Tenant | Role::Reference => closed(facts, table),
        }) {
            let _ = writeln!(sql, "revoke all on {} from {API};", proposal.table);
        }
    }
    for unscoped in facts.materialized.iter().chain(&facts.foreign) {
        let _ = writeln!(sql, "revoke all on {unscoped} from {API};");
    }
    for view in &facts.owner_views {
        let _ = writeln!(sql, "alter view {view} set (security_invoker = true);");
    }
    sql
}

/// Whom requests come as.
const API: &str = "public, anon, authenticated, service_role";

/// Schemas that are not the application's.
const NOT_THE_APPLICATIONS: &str = "n.nspname !~ '^pg_' and n.nspname not in (
    'information_schema', 'ringfence', 'auth', 'storage', 'realtime', '_realtime', 'extensions', 'graphql',
    'graphql_public', 'vault', 'pgsodium', 'supabase_functions', 'supabase_migrations', 'cron', 'net')";

/// Names of columns that no list for all has: a word of these, between underscores.
const PERSONAL: &str = "'(^|_)(e?mail|password|passwd|pass|secret|token|hash|salt|otp|phone|mobile|fax|iban|ssn\
    |birth(day|date)?|first_?name|last_?name|sur_?name|user_?name|login|address|street)s?(_|$)'";

/// Reads the facts of the application's schemas: all but Postgres' own, those of
/// Supabase's services, and what extensions bring. How many rows there are is asked
/// elsewhere ([`Facts::counting`]).
pub async fn facts(client: &Client) -> Result<Facts, Error> {
    let own = NOT_THE_APPLICATIONS;
    let relations = format!(
        "select n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 'p' as logged,
           (select min(a.attname::text) from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
               and a.attname ~* {PERSONAL}) as personal,
           exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary) as keyed,
           exists (select from pg_index i, unnest(i.indkey::int2[]) k join pg_attribute a on a.attnum = k
             left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
             where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid
               and (a.attidentity <> '' or a.atttypid = 'uuid'::regtype or pg_get_expr(d.adbin, d.adrelid) ~* 'nextval|uuid|random')) as generated,
           array(select p.polname::text from pg_policy p where p.polrelid = c.oid order by 1) as policies,
           c.relrowsecurity as row_security, ringfence.is_granted(c.oid) as granted,
           (select coalesce(jsonb_agg(distinct jsonb_build_array(pn.nspname, pc.relname)), '[]')
             from pg_constraint k join pg_class pc on pc.oid = k.confrelid
             join pg_namespace pn on pn.oid = pc.relnamespace
             where k.conrelid = c.oid and k.contype = 'f') as parents,
           (select coalesce(jsonb_agg(jsonb_build_array(quote_ident(k.conname), pg_get_constraintdef(k.oid)) order by k.conname), '[]')
             from pg_constraint k where k.conrelid = c.oid and k.contype = 'x') as exclusions,
           coalesce((select o.option_value::boolean from pg_options_to_table(c.reloptions) o
             where o.option_name = 'security_invoker'), false) as invoker
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where {own} and c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
           and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
         order by 1, 2"
    );
    let mut facts = Facts::default();
    for row in client.query(&relations, &[]).await? {
        let name = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        match row.get::<_, &str>("relkind") {
            "v" if !row.get::<_, bool>("invoker") => facts.owner_views.push(name),
            "v" => {}
            "m" => facts.materialized.push(name),
            "f" => facts.foreign.push(name),
            kind => {
                let parents: serde_json::Value = row.get("parents");
                let parents = parents.as_array().into_iter().flatten();
                let exclusions: serde_json::Value = row.get("exclusions");
                let exclusions = exclusions.as_array().into_iter().flatten();
                facts.tables.push(TableFacts {
                    name,
                    rows: None,
                    personal: row.get("personal"),
                    keyed: row.get("keyed"),
                    generated_key: row.get("generated"),
                    logged: row.get("logged"),
                    policies: row.get("policies"),
                    row_security: row.get("row_security"),
                    granted: row.get("granted"),
                    partitioned: kind == "p",
                    parents: parents
                        .filter_map(|parent| {
                            Some(QualifiedName::new(parent[0].as_str()?, parent[1].as_str()?))
                        })
                        .collect(),
                    exclusions: exclusions
                        .filter_map(|of| {
                            Some(Exclusion {
                                name: of[0].as_str()?.to_owned(),
                                definition: of[1].as_str()?.to_owned(),
                            })
                        })
                        .collect(),
                });
            }
        }
    }
    let definers = format!(
        "select format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where {own} and p.prosecdef
           and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
         order by 1"
    );
    let rows = client.query(&definers, &[]).await?;
    facts.definers = rows.iter().map(|row| row.get(0)).collect();
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, parents: &[&str], change: impl Fn(&mut TableFacts)) -> TableFacts {
        let mut table = TableFacts {
            name: QualifiedName::new("public", name),
            rows: Some(5),
            personal: None,
            keyed: true,
            generated_key: true,
            logged: true,
            policies: Vec::new(),
            row_security: false,
            granted: false,
            partitioned: false,
            parents: parents
                .iter()
                .map(|parent| QualifiedName::new("public", *parent))
                .collect(),
            exclusions: Vec::new(),
        };
        change(&mut table);
        table
    }

    #[test]
    fn every_table_gets_a_role_and_a_reason() {
        let facts = Facts {
            tables: vec![
                table("orders", &["people", "currencies"], |_| {}),
                table("people", &["people"], |t| {
                    t.policies = vec!["own rows".into()]
                }),
                table("currencies", &["regions"], |t| t.generated_key = false),
                table("regions", &[], |t| t.generated_key = false),
                // Keys by hand, but it refers to what is a tenant's.
                table("badges", &["people"], |t| t.generated_key = false),
                table("holders", &["badges"], |t| t.keyed = false),
                table("schema_migrations", &[], |t| t.generated_key = false),
                table("cache", &[], |t| t.logged = false),
                // Like a list, were it not closed.
                table("plans", &[], |t| {
                    (t.generated_key, t.row_security) = (false, true)
                }),
                table("subscriptions", &["plans"], |_| {}),
                // Nor is who logs in, by whatever key, nor what is long.
                table("accounts", &[], |t| {
                    (t.generated_key, t.personal) = (false, Some("email".into()))
                }),
                table("places", &[], |t| {
                    (t.generated_key, t.rows) = (false, Some(10_001))
                }),
                table("units", &[], |t| (t.generated_key, t.rows) = (false, None)),
                table("visits", &["accounts", "places", "units"], |_| {}),
            ],
            owner_views: vec![QualifiedName::new("public", "totals")],
            definers: vec!["public.secret(integer)".into()],
            ..Facts::default()
        };
        let adoption = propose(&facts);
        assert_eq!(adoption.tables.len(), facts.tables.len());
        insta::assert_snapshot!(adoption.sql);
    }

    #[test]
    fn api_roles_get_no_rights_that_they_did_not_have() {
        let facts = Facts {
            tables: vec![
                table("notes", &[], |t| t.granted = true),
                table("schema_migrations", &[], |t| t.granted = true),
                table("secrets", &[], |_| {}),
            ],
            materialized: vec![QualifiedName::new("public", "sums")],
            ..Facts::default()
        };
        let adoption = propose(&facts);
        let statements = adoption.sql.lines().filter(|line| !line.starts_with("--"));
        let statements: Vec<&str> = statements.filter(|line| !line.is_empty()).collect();
        insta::assert_snapshot!(statements.join("\n"), @r#"
        select ringfence.distribute('"public"."notes"');
        revoke all on "public"."schema_migrations" from public, anon, authenticated, service_role;
        select ringfence.distribute('"public"."secrets"');
        revoke all on "public"."secrets" from public, anon, authenticated, service_role;
        revoke all on "public"."sums" from public, anon, authenticated, service_role;
        "#);
        let secrets = "\"public\".\"secrets\": no API role has rights on it";
        assert!(
            adoption
                .remarks
                .iter()
                .any(|remark| remark.starts_with(secrets))
        );
        // A dump without rights says nothing of them.
        let plain = Facts {
            tables: vec![table("secrets", &[], |_| {})],
            ..Facts::default()
        };
        assert!(!propose(&plain).sql.contains("revoke"));
    }
}
