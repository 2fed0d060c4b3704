//! The text of a schema's dump as a migration: without what a shard has or
//! decides itself, and with what is left out said.

use std::collections::{BTreeMap, BTreeSet};

use squawk_syntax::SourceFile;
use squawk_syntax::ast::{self, AstNode};

use super::Cleaned;
use super::names::{bodies, plain, qualified, without_psql};
use crate::migration::{Lines, start_of, text, too_deep};

/// What begins a statement that is left out, and why a reader should know.
const LEFT_OUT: &[(&str, Option<&str>)] = &[
    ("SET ", None),
    ("RESET ", None),
    ("SELECT PG_CATALOG.SET_CONFIG", None),
    ("SELECT PG_CATALOG.SETVAL", None),
    ("COMMENT ON SCHEMA PUBLIC ", None),
    ("COMMENT ON EXTENSION", None),
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
    ("BEGIN", None),
    ("COMMIT", None),
];

/// Schemas of Supabase's services: they stay where they are.
const SERVICES: &[&str] = &[
    "auth.",
    "storage.",
    "realtime.",
    "_realtime.",
    "vault.",
    "pgsodium.",
    "graphql.",
    "graphql_public.",
    "supabase_functions.",
    "supabase_migrations.",
    "cron.",
    "net.",
];

/// What of them a shard has: see [`SUPABASE`].
const OF_SERVICES: &[&str] = &["auth.uid", "auth.jwt", "auth.role", "auth.email"];

/// Roles that requests come in; what they may, the schema's authors say.
const API: &[&str] = &["anon", "authenticated", "service_role", "public"];

/// Roles of those who run a server: they own what they may.
const OPERATORS: &[&str] = &[
    "postgres",
    "pg_database_owner",
    "supabase_admin",
    "supabase_auth_admin",
    "supabase_storage_admin",
    "supabase_functions_admin",
    "supabase_realtime_admin",
    "supabase_read_only_user",
    "dashboard_user",
];

/// Extensions of Postgres' own that need no superuser.
const TRUSTED: &[&str] = &[
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "fuzzystrmatch",
    "hstore",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "pg_trgm",
    "pgcrypto",
    "seg",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "uuid-ossp",
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
    let dump = without_psql(dump);
    if let Some(at) = too_deep(&dump) {
        let line = Lines::of(&dump).line(at);
        return Cleaned {
            sql: String::new(),
            remarks: Vec::new(),
            problem: Some(format!("line {line}: nested too deep")),
        };
    }
    let parsed = SourceFile::parse(&dump);
    let mut sql = String::new();
    let mut cleaner = Cleaner::default();
    for stmt in parsed.tree().stmts() {
        let start = start_of(stmt.syntax());
        let own = &dump[start..stmt.syntax().text_range().end().into()];
        let own = own.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        if let Some(kept) = cleaner.kept(&stmt, own, start) {
            sql.push_str(&kept);
            sql.push_str(";\n\n");
        }
    }
    let mut remarks = cleaner.remarks;
    remarks.extend(cleaner.services.iter().map(|service| {
        format!("left out what is in {service}*: it is a service's, and is not on the shards")
    }));
    remarks.extend(cleaner.strangers.iter().map(|(role, times)| {
        format!("left out {times} rights of role {role}: requests come as anon, authenticated or service_role")
    }));
    if cleaner.defaults > 0 {
        remarks.push(format!(
            "left out {} default privileges: a table that a later file makes is opened to requests by ringfence.distribute(), unless rights on it were given before",
            cleaner.defaults
        ));
    }
    let calls = ["auth.uid(", "auth.jwt(", "auth.role(", "auth.email("];
    if calls.iter().any(|call| sql.contains(call)) {
        sql.insert_str(0, SUPABASE);
    }
    // Functions may read tables that come after them.
    sql.insert_str(0, "set local check_function_bodies = false;\n\n");
    let problem = parsed.errors().into_iter().next().map(|error| {
        let line = Lines::of(&dump).line(error.range().start().into());
        format!("line {line}: {}", error.message())
    });
    Cleaned {
        sql,
        remarks,
        problem,
    }
}

/// What is known of the statements before.
#[derive(Default)]
struct Cleaner {
    remarks: Vec<String>,
    /// Services whose own objects were left out.
    services: BTreeSet<&'static str>,
    /// Views and functions that were left out: nothing can refer to them.
    gone: BTreeSet<String>,
    /// Roles that shards don't have, with their grants and revokes.
    strangers: BTreeMap<String, u32>,
    /// Schemas that are made already.
    schemas: BTreeSet<String>,
    /// Default privileges that were left out.
    defaults: u32,
}

impl Cleaner {
    /// A statement as it is kept; `start` is where `own` begins in the dump.
    fn kept(&mut self, stmt: &ast::Stmt, own: &str, start: usize) -> Option<String> {
        let words = own.split_whitespace().collect::<Vec<_>>().join(" ");
        let upper = words.to_uppercase();
        let short: String = words.chars().take(90).collect();
        match stmt {
            ast::Stmt::Grant(grant) => {
                let objects = grant.on_privilege_objects_clause();
                self.of_public(&objects, &upper, &short);
                return self.rights(grant.role_ref_list(), objects, own, start);
            }
            ast::Stmt::Revoke(revoke) => {
                let objects = revoke.on_privilege_objects_clause();
                self.of_public(&objects, &upper, &short);
                return self.rights(revoke.role_ref_list(), objects, own, start);
            }
            ast::Stmt::CreateSchema(create) if create.schema_elements().next().is_none() => {
                return self.schema(create);
            }
            ast::Stmt::CreateExtension(create) => return self.extension(create, &short),
            _ => {}
        }
        if let Some((_, why)) = LEFT_OUT.iter().find(|(start, _)| upper.starts_with(start)) {
            let remark = why.map(|why| format!("left out `{short}`: {why}"));
            self.remarks.extend(remark);
            return None;
        }
        if upper.starts_with("ALTER DEFAULT PRIVILEGES") {
            self.defaults += 1;
            return None;
        }
        if upper.starts_with("ALTER ") && upper.contains(" OWNER TO ") {
            return None;
        }
        if let Some(service) = SERVICES.iter().find(|service| is_of(&upper, service)) {
            self.services.insert(service);
            return None;
        }
        // Without a policy that narrows, more would be seen: it is tried, and fails.
        let narrows = matches!(stmt, ast::Stmt::CreatePolicy(policy)
        if policy.as_policy_type().is_some_and(|of| {
            text(of.syntax()).to_lowercase().ends_with("restrictive")
        }));
        let names = qualified(own);
        let why = match names.iter().find_map(|name| service_of(name)) {
            Some(service) => Some(format!(
                "{service}* is a service's, and is not on the shards"
            )),
            None => {
                let gone = names.iter().find(|name| self.gone.contains(*name));
                gone.map(|name| format!("{name} is left out"))
            }
        };
        if let Some(why) = why.filter(|_| !narrows) {
            self.remarks.push(format!("left out `{short}`: {why}"));
            if let ast::Stmt::CreateView(_)
            | ast::Stmt::CreateMaterializedView(_)
            | ast::Stmt::CreateFunction(_) = stmt
            {
                // A dump names first what a statement makes.
                self.gone.extend(names.into_iter().next());
            }
            return None;
        }
        if let ast::Stmt::CreateFunction(_) = stmt {
            // Of several functions of a name, one is there.
            names.first().map(|name| self.gone.remove(name));
            let read = bodies(own).into_iter().flat_map(qualified);
            if let Some(read) = read.into_iter().find(|name| service_of(name).is_some()) {
                let name = names.first().map_or("a function", String::as_str);
                self.remarks.push(format!(
                    "{name} names {read}, which is a service's: it fails where it comes to it"
                ));
            }
        }
        Some(own.to_owned())
    }

    /// Says which rights on the schema public are not as the dump has them: it is every
    /// application's on a shard, and no migration's to change.
    fn of_public(
        &mut self,
        objects: &Option<ast::OnPrivilegeObjectsClause>,
        upper: &str,
        short: &str,
    ) {
        let objects = objects.as_ref().and_then(|on| on.privilege_objects());
        let schemas = objects.map(|objects| schemas_of(&objects));
        let schemas = schemas.unwrap_or_default();
        let as_it_is = schemas.len() == 1 && upper.starts_with("GRANT USAGE ON SCHEMA ");
        if schemas.iter().any(|schema| schema == "public") && !as_it_is {
            self.remarks.push(format!(
                "left out `{short}`: on shards anon, authenticated and service_role may use the schema public, and migrations alone make anything in it; what requests may do is said by rights on its tables and functions"
            ));
        }
    }

    /// GRANT and REVOKE for those who come by the API.
    fn rights(
        &mut self,
        roles: Option<ast::RoleRefList>,
        objects: Option<ast::OnPrivilegeObjectsClause>,
        own: &str,
        start: usize,
    ) -> Option<String> {
        let (roles, objects) = (roles?, objects?.privilege_objects()?);
        let of_shards =
            |schema: &String| schema == "public" || service_of(&format!("{schema}.")).is_some();
        if schemas_of(&objects).iter().any(of_shards) {
            return None;
        }
        let names = qualified(&text(objects.syntax()));
        let left = |name: &String| service_of(name).is_some() || self.gone.contains(name);
        if names.iter().any(left) {
            return None;
        }
        let mut kept = Vec::new();
        for role in roles.role_refs() {
            let role = text(role.syntax());
            let known = plain(&role);
            if API.contains(&known.as_str()) {
                kept.push(role);
            } else if !OPERATORS.contains(&known.as_str()) {
                *self.strangers.entry(known).or_default() += 1;
            }
        }
        let list = usize::from(roles.syntax().text_range().start());
        let before = own.get(..list.checked_sub(start)?)?;
        // Neither GRANTED BY nor WITH GRANT OPTION: nobody gives on here.
        (!kept.is_empty()).then(|| format!("{} {}", before.trim_end(), kept.join(", ")))
    }

    fn schema(&mut self, create: &ast::CreateSchema) -> Option<String> {
        let Some(ast::CreateSchemaTarget::NamedSchema(named)) = create.create_schema_target()
        else {
            return None;
        };
        let name = text(named.schema()?.syntax());
        let known = plain(&name);
        if let Some(service) = service_of(&format!("{known}.")) {
            self.services.insert(service);
            return None;
        }
        (known != "public" && self.schemas.insert(known))
            .then(|| format!("create schema if not exists {name}"))
    }

    fn extension(&mut self, create: &ast::CreateExtension, short: &str) -> Option<String> {
        let name = create.extension()?.ident_token()?.text().to_owned();
        let known = plain(&name);
        if known == "plpgsql" {
            return None;
        }
        if !TRUSTED.contains(&known.as_str()) {
            self.remarks.push(format!(
                "left out `{short}`: it needs a superuser; install it on every shard beforehand"
            ));
            return None;
        }
        let schema = create.extension_schema().and_then(|of| of.schema_ref());
        let schema = schema.map_or("public".into(), |schema| text(schema.syntax()));
        let mut kept = String::new();
        if plain(&schema) != "public" {
            if self.schemas.insert(plain(&schema)) {
                kept = format!("create schema if not exists {schema};\n");
            }
            // Requests name its types.
            kept.push_str(&format!(
                "grant usage on schema {schema} to anon, authenticated, service_role;\n"
            ));
        }
        Some(format!(
            "{kept}create extension if not exists {name} with schema {schema}"
        ))
    }
}

/// Schemas on which rights are given or taken.
fn schemas_of(objects: &ast::PrivilegeObjects) -> Vec<String> {
    let ast::PrivilegeObjects::PrivilegeSchema(of) = objects else {
        return Vec::new();
    };
    let names = of.schema_refs().map(|schema| text(schema.syntax()));
    names.map(|name| plain(&name)).collect()
}

/// The service that a name belongs to, where shards don't have it.
fn service_of(name: &str) -> Option<&'static str> {
    let service = SERVICES
        .iter()
        .find(|service| name.starts_with(**service))?;
    (!OF_SERVICES.contains(&name)).then_some(*service)
}

/// A statement that makes or changes what is in a service's schema, or that schema.
fn is_of(upper: &str, service: &str) -> bool {
    let service = service.to_uppercase();
    let schema = service.trim_end_matches('.');
    let plain = upper.replace('"', "");
    // Such as CREATE OR REPLACE FUNCTION auth.uid(): further on, others are named.
    let mut words = plain.split(' ').take(5);
    words.any(|word| word.starts_with(&service))
        || plain.starts_with(&format!("COMMENT ON SCHEMA {schema} "))
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

    /// What is kept of a dump, and what is said of the rest.
    fn cleaned(dump: &str) -> (String, String) {
        let cleaned = clean(dump);
        assert_eq!(cleaned.problem, None);
        let (_, sql) = cleaned.sql.split_once(";\n\n").unwrap();
        (sql.trim_end().to_owned(), cleaned.remarks.join("\n"))
    }

    #[test]
    fn rights_of_those_who_come_by_the_api_are_kept() {
        let (sql, remarks) = cleaned(
            "REVOKE ALL ON FUNCTION public.reset() FROM PUBLIC;\nGRANT ALL ON FUNCTION public.reset() TO postgres;\n\
             GRANT SELECT(id),UPDATE(id) ON TABLE public.people TO \"anon\", app WITH GRANT OPTION;\n\
             GRANT SELECT ON public.people TO reports;\nGRANT USAGE ON SCHEMA app TO authenticated GRANTED BY postgres;\n\
             GRANT USAGE ON SCHEMA public TO anon;\nGRANT USAGE ON SCHEMA auth TO anon;\n\
             REVOKE USAGE ON SCHEMA public FROM PUBLIC;\nGRANT ALL ON SCHEMA public TO authenticated;\n\
             ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT ALL ON TABLES TO anon;\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE storage.objects TO anon;\nRESET SESSION AUTHORIZATION;",
        );
        insta::assert_snapshot!(sql, @r#"
        REVOKE ALL ON FUNCTION public.reset() FROM PUBLIC;

        GRANT SELECT(id),UPDATE(id) ON TABLE public.people TO "anon";

        GRANT USAGE ON SCHEMA app TO authenticated;
        "#);
        insta::assert_snapshot!(remarks, @r"
        left out `REVOKE USAGE ON SCHEMA public FROM PUBLIC`: on shards anon, authenticated and service_role may use the schema public, and migrations alone make anything in it; what requests may do is said by rights on its tables and functions
        left out `GRANT ALL ON SCHEMA public TO authenticated`: on shards anon, authenticated and service_role may use the schema public, and migrations alone make anything in it; what requests may do is said by rights on its tables and functions
        left out 1 rights of role app: requests come as anon, authenticated or service_role
        left out 1 rights of role reports: requests come as anon, authenticated or service_role
        left out 1 default privileges: a table that a later file makes is opened to requests by ringfence.distribute(), unless rights on it were given before
        ");
    }

    #[test]
    fn schemas_and_extensions_that_need_no_superuser_are_made() {
        let (sql, remarks) = cleaned(
            "CREATE SCHEMA app;\nCREATE SCHEMA public_too;\nCREATE SCHEMA graphql;\n\
             CREATE EXTENSION IF NOT EXISTS plpgsql WITH SCHEMA pg_catalog;\n\
             CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;\n\
             CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA extensions;\n\
             CREATE EXTENSION IF NOT EXISTS postgis WITH SCHEMA extensions;\nCREATE SCHEMA extensions;",
        );
        insta::assert_snapshot!(sql, @r#"
        create schema if not exists app;

        create schema if not exists public_too;

        create extension if not exists citext with schema public;

        create schema if not exists extensions;
        grant usage on schema extensions to anon, authenticated, service_role;
        create extension if not exists "uuid-ossp" with schema extensions;
        "#);
        insta::assert_snapshot!(remarks, @r"
        left out `CREATE EXTENSION IF NOT EXISTS postgis WITH SCHEMA extensions`: it needs a superuser; install it on every shard beforehand
        left out what is in graphql.*: it is a service's, and is not on the shards
        ");
    }

    #[test]
    fn what_reads_a_service_is_left_out_with_what_reads_that() {
        let (sql, remarks) = cleaned(
            "CREATE FUNCTION public.note() RETURNS text LANGUAGE sql AS $_$ select '\n\\path'\n from \"auth\".users $_$;\n\
             CREATE VIEW public.emails AS SELECT u.email FROM (public.people p JOIN auth.users u ON ((u.id = p.id)));\n\
             CREATE VIEW public.more AS SELECT 'auth.users' AS t FROM public.emails;\n\
             CREATE VIEW public.mine AS SELECT people.id FROM public.people WHERE (people.id = auth.uid());\n\
             GRANT ALL ON TABLE public.emails TO anon;\n\
             CREATE TRIGGER made AFTER INSERT ON auth.users FOR EACH ROW EXECUTE FUNCTION public.note();\n\
             CREATE POLICY some ON public.people USING ((EXISTS (SELECT 1 FROM auth.users)));\n\
             CREATE POLICY only ON public.people AS RESTRICTIVE USING ((EXISTS (SELECT 1 FROM auth.users)));",
        );
        let kept = "CREATE FUNCTION public.note() RETURNS text LANGUAGE sql AS $_$ select '\n\\path'\n from \"auth\".users $_$;";
        let (_, sql) = sql.split_once("service_role;\n\n").unwrap();
        assert_eq!(sql.get(..kept.len()), Some(kept));
        insta::assert_snapshot!(sql[kept.len()..].trim(), @r"
        CREATE VIEW public.mine AS SELECT people.id FROM public.people WHERE (people.id = auth.uid());

        CREATE POLICY only ON public.people AS RESTRICTIVE USING ((EXISTS (SELECT 1 FROM auth.users)));
        ");
        insta::assert_snapshot!(remarks, @r"
        public.note names auth.users, which is a service's: it fails where it comes to it
        left out `CREATE VIEW public.emails AS SELECT u.email FROM (public.people p JOIN auth.users u ON ((u`: auth.* is a service's, and is not on the shards
        left out `CREATE VIEW public.more AS SELECT 'auth.users' AS t FROM public.emails`: public.emails is left out
        left out `CREATE TRIGGER made AFTER INSERT ON auth.users FOR EACH ROW EXECUTE FUNCTION public.note()`: auth.* is a service's, and is not on the shards
        left out `CREATE POLICY some ON public.people USING ((EXISTS (SELECT 1 FROM auth.users)))`: auth.* is a service's, and is not on the shards
        ");
    }
}
