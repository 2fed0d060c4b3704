//! What a role may use, for the document at the root.

use super::fragment::Fragment;

/// The body is `{"relations": [[name, select, insert, update, delete], …],
/// "functions": [name, …]}` of one schema, for the session's role.
pub(super) fn privileges(sql: &mut Fragment, schema: &str) {
    sql.push(
        "select 0::bigint as page, pg_catalog.json_build_object('relations', \
         (select coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(c.relname, \
         pg_catalog.has_any_column_privilege(c.oid, 'SELECT'), \
         pg_catalog.has_any_column_privilege(c.oid, 'INSERT'), \
         pg_catalog.has_any_column_privilege(c.oid, 'UPDATE'), \
         pg_catalog.has_table_privilege(c.oid, 'DELETE'))), '[]') \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where c.relkind in ('r', 'p', 'v') and n.nspname = ",
    );
    sql.param(schema.to_owned());
    sql.push(
        "::text), 'functions', (select coalesce(pg_catalog.json_agg(distinct p.proname), '[]') \
         from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
         where pg_catalog.has_function_privilege(p.oid, 'EXECUTE') and n.nspname = ",
    );
    sql.param(schema.to_owned());
    sql.push("::text))::text as body from (select 1) one");
    super::level::Terms::new(sql).guard();
}
