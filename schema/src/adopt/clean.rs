//! The text of a schema's dump as a migration: without what a shard has or
//! decides itself, and with what is left out said.

use std::collections::BTreeSet;

use squawk_syntax::ast::AstNode;

use super::Cleaned;
use crate::migration::{line_of, start_of, too_deep};
use squawk_syntax::SourceFile;

/// What begins a statement that is left out, and why a reader should know.
const LEFT_OUT: &[(&str, Option<&str>)] = &[
    ("SET ", None),
    ("SELECT PG_CATALOG.SET_CONFIG", None),
    ("SELECT PG_CATALOG.SETVAL", None),
    ("CREATE SCHEMA PUBLIC", None),
    ("COMMENT ON SCHEMA PUBLIC", None),
    ("COMMENT ON EXTENSION", None),
    ("ALTER DEFAULT PRIVILEGES", None),
    ("GRANT ", None),
    ("REVOKE ", None),
    ("CREATE PUBLICATION", Some("publications are the worker's")),
    ("ALTER PUBLICATION", Some("publications are the worker's")),
    (
        "CREATE SUBSCRIPTION",
        Some("subscriptions are the worker's"),
    ),
    (
        "CREATE EVENT TRIGGER",
        Some("event triggers need a superuser on every shard"),
    ),
    (
        "CREATE EXTENSION",
        Some("extensions are installed on every shard beforehand"),
    ),
    ("BEGIN", None),
    ("COMMIT", None),
];

/// Schemas of Supabase's services: they stay where they are.
const SERVICES: &[&str] = &[
    "auth.",
    "storage.",
    "realtime.",
    "vault.",
    "graphql.",
    "supabase_functions.",
];

/// Functions that policies of Supabase's applications call, by the claims that
/// a request carries.
const SUPABASE: &str = "\
create schema if not exists auth;
create or replace function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}')::jsonb
$$;
create or replace function auth.uid() returns uuid language sql stable as $$
  select nullif(auth.jwt() ->> 'sub', '')::uuid
$$;
create or replace function auth.role() returns text language sql stable as $$
  select auth.jwt() ->> 'role'
$$;
create or replace function auth.email() returns text language sql stable as $$
  select auth.jwt() ->> 'email'
$$;
grant usage on schema auth to anon, authenticated, service_role;

";

/// Keeps what makes the application's objects.
pub(super) fn clean(dump: &str) -> Cleaned {
    // psql's own lines, such as \restrict, are no SQL.
    let dump: String = dump
        .lines()
        .filter(|line| !line.starts_with('\\'))
        .map(|line| format!("{line}\n"))
        .collect();
    if let Some(at) = too_deep(&dump) {
        let line = line_of(&dump, at);
        return Cleaned {
            sql: String::new(),
            remarks: Vec::new(),
            problem: Some(format!("line {line}: nested too deep")),
        };
    }
    let parsed = SourceFile::parse(&dump);
    let mut sql = String::new();
    let mut remarks = Vec::new();
    let mut services = BTreeSet::new();
    for stmt in parsed.tree().stmts() {
        let node = stmt.syntax();
        let range = node.text_range();
        let own = &dump[start_of(node)..range.end().into()];
        let own = own.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        let words = own.split_whitespace().collect::<Vec<_>>().join(" ");
        let upper = words.to_uppercase();
        let short: String = words.chars().take(90).collect();
        if let Some((_, why)) = LEFT_OUT.iter().find(|(start, _)| upper.starts_with(start)) {
            remarks.extend(why.map(|why| format!("left out `{short}`: {why}")));
            continue;
        }
        if upper.starts_with("ALTER ") && upper.contains(" OWNER TO ") {
            continue;
        }
        if let Some(service) = SERVICES.iter().find(|service| is_of(&upper, service)) {
            services.insert(*service);
            continue;
        }
        if let Some(service) = SERVICES.iter().find(|service| refers(&upper, service)) {
            remarks.push(format!(
                "left out `{short}`: {service}* is a service's, and is not on the shards"
            ));
            continue;
        }
        sql.push_str(own);
        sql.push_str(";\n\n");
    }
    remarks.extend(services.iter().map(|service| {
        format!("left out what is in {service}*: it is a service's, and is not on the shards")
    }));
    let calls = ["auth.uid(", "auth.jwt(", "auth.role(", "auth.email("];
    if calls.iter().any(|call| sql.contains(call)) {
        sql.insert_str(0, SUPABASE);
    }
    // Functions may read tables that come after them.
    sql.insert_str(0, "set local check_function_bodies = false;\n\n");
    let problem = parsed.errors().into_iter().next().map(|error| {
        let line = line_of(&dump, error.range().start().into());
        format!("line {line}: {}", error.message())
    });
    Cleaned {
        sql,
        remarks,
        problem,
    }
}

/// A statement that makes or changes what is in a service's schema, or that schema.
fn is_of(upper: &str, service: &str) -> bool {
    let service = service.to_uppercase();
    let schema = service.trim_end_matches('.');
    let plain = upper.replace('"', "");
    // Such as CREATE OR REPLACE FUNCTION auth.uid(): further on, others are named.
    let mut words = plain.split(' ').take(5);
    words.any(|word| word.starts_with(&service))
        || plain == format!("CREATE SCHEMA {schema}")
        || plain == format!("CREATE SCHEMA IF NOT EXISTS {schema}")
        || plain.starts_with(&format!("COMMENT ON SCHEMA {schema} "))
}

/// A statement that refers to a service's table.
fn refers(upper: &str, service: &str) -> bool {
    let service = service.to_uppercase();
    [" REFERENCES ", "TABLE ", "TABLE ONLY ", " ON ", "INTO "]
        .iter()
        .any(|before| upper.contains(&format!("{before}{service}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shard_decides_is_left_out() {
        let cleaned = clean(
            "\\restrict abc\nSET statement_timeout = 0;\nSELECT pg_catalog.set_config('search_path', '', false);\n\
             CREATE SCHEMA public;\nCREATE TABLE public.people (id integer NOT NULL, owner uuid DEFAULT auth.uid());\n\
             ALTER TABLE public.people OWNER TO app;\nGRANT ALL ON TABLE public.people TO anon;\n\
             ALTER TABLE ONLY public.people ADD CONSTRAINT people_owner FOREIGN KEY (owner) REFERENCES auth.users(id);\n\
             CREATE PUBLICATION supabase_realtime;\nCREATE SCHEMA auth;\n\
             CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql AS $$ select null $$;\nCREATE TABLE auth.users (id uuid);\n",
        );
        insta::assert_snapshot!(format!(
            "{}\n{}\n{:?}",
            cleaned.sql,
            cleaned.remarks.join("\n"),
            cleaned.problem
        ));
    }
}
