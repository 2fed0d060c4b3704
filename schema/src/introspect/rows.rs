//! The system catalogs' rows, as they come.

use tokio_postgres::types::Oid;
use tokio_postgres::{Client, Row};

use super::Error;

/// All rows of one read.
pub(super) struct Raw {
    pub(super) server_major: u32,
    pub(super) relations: Vec<RawRelation>,
    pub(super) columns: Vec<RawColumn>,
    pub(super) keys: Vec<RawKey>,
    pub(super) foreign_keys: Vec<RawForeignKey>,
    pub(super) views: Vec<RawView>,
    pub(super) functions: Vec<RawFunction>,
    pub(super) composites: Vec<RawAttribute>,
    pub(super) handlers: Vec<RawHandler>,
    pub(super) schema_comments: Vec<(String, String)>,
    pub(super) roles: Vec<String>,
    pub(super) reads_request_settings: bool,
    pub(super) reads_claims: bool,
}

pub(super) struct RawRelation {
    pub(super) oid: Oid,
    pub(super) row_type: Oid,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) kind: i8,
    pub(super) is_partition: bool,
    pub(super) declared: Option<String>,
    pub(super) tenant_column: Option<String>,
    pub(super) hidden: bool,
    pub(super) forced: bool,
    pub(super) policy: bool,
    pub(super) writable: bool,
    /// It has rewrite rules besides a view's own.
    pub(super) rules: bool,
    pub(super) security_invoker: bool,
    pub(super) updatable: i32,
    pub(super) logged: bool,
    pub(super) published: bool,
    /// A policy for reading is not a function of the row, the role and the claims.
    pub(super) moody_policy: bool,
    pub(super) comment: Option<String>,
}

pub(super) struct RawColumn {
    pub(super) relation: Oid,
    pub(super) number: i16,
    pub(super) name: String,
    pub(super) type_name: String,
    pub(super) base_type: String,
    pub(super) nullable: bool,
    pub(super) default: Option<String>,
    pub(super) generated: bool,
    pub(super) enum_labels: Vec<String>,
    pub(super) max_length: Option<i32>,
    pub(super) comment: Option<String>,
    /// Functions of casts as (schema, name).
    pub(super) to_json: Option<Vec<String>>,
    pub(super) from_json: Option<Vec<String>>,
    pub(super) from_text: Option<Vec<String>>,
}

/// A primary key or a plain unique index.
pub(super) struct RawKey {
    pub(super) relation: Oid,
    pub(super) name: String,
    pub(super) primary: bool,
    pub(super) columns: Vec<i16>,
}

pub(super) struct RawForeignKey {
    pub(super) name: String,
    pub(super) relation: Oid,
    pub(super) columns: Vec<i16>,
    pub(super) foreign: Oid,
    pub(super) foreign_columns: Vec<i16>,
}

pub(super) struct RawView {
    pub(super) oid: Oid,
    pub(super) rule: String,
    pub(super) reads: Vec<Oid>,
    /// It calls a function that runs as an owner who passes row security.
    pub(super) calls_bypassing: bool,
}

pub(super) struct RawFunction {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) arg_names: Vec<String>,
    pub(super) arg_types: Vec<Oid>,
    pub(super) arg_type_names: Vec<String>,
    pub(super) arg_base_types: Vec<String>,
    pub(super) arg_modes: Vec<i8>,
    pub(super) defaults: i16,
    pub(super) set: bool,
    pub(super) one_row: bool,
    pub(super) return_type: Oid,
    pub(super) return_type_name: String,
    pub(super) return_kind: i8,
    pub(super) return_relation: Oid,
    pub(super) volatility: i8,
    pub(super) settings: Vec<String>,
    pub(super) definer_bypasses: bool,
    pub(super) comment: Option<String>,
}

/// An aggregate that makes a media type.
pub(super) struct RawHandler {
    pub(super) media: String,
    pub(super) schema: String,
    pub(super) name: String,
    /// None where it takes any rows.
    pub(super) relation: Option<Oid>,
}

/// An attribute of a composite type that is not a relation of the model.
pub(super) struct RawAttribute {
    pub(super) relation: Oid,
    pub(super) name: String,
    pub(super) type_name: String,
}

pub(super) async fn read(client: &Client, exposed: &[&str]) -> Result<Raw, Error> {
    let schemas = &[&exposed as &(dyn tokio_postgres::types::ToSql + Sync)];
    // Over thousands of tables these look costly enough to be compiled, which
    // takes longer than they do.
    client.batch_execute("set jit = off").await?;
    let (
        server,
        relations,
        columns,
        keys,
        foreign_keys,
        views,
        functions,
        composites,
        handlers,
        rest,
    ) = tokio::try_join!(
        client.query_one(SERVER, &[]),
        client.query(RELATIONS, schemas),
        client.query(COLUMNS, schemas),
        client.query(KEYS, schemas),
        client.query(FOREIGN_KEYS, schemas),
        client.query(VIEWS, schemas),
        client.query(FUNCTIONS, schemas),
        client.query(COMPOSITES, schemas),
        client.query(HANDLERS, schemas),
        client.query_one(REST, schemas),
    )?;
    let comments: Vec<String> = rest.try_get("comments")?;
    let commented: Vec<String> = rest.try_get("commented")?;
    Ok(Raw {
        server_major: server.try_get::<_, i32>(0)? as u32,
        relations: relations.iter().map(relation).collect::<Result<_, _>>()?,
        columns: columns.iter().map(column).collect::<Result<_, _>>()?,
        keys: keys
            .iter()
            .map(|row| {
                Ok(RawKey {
                    relation: row.try_get("relation")?,
                    name: row.try_get("name")?,
                    primary: row.try_get("primary")?,
                    columns: row.try_get("columns")?,
                })
            })
            .collect::<Result<_, tokio_postgres::Error>>()?,
        foreign_keys: foreign_keys
            .iter()
            .map(|row| {
                Ok(RawForeignKey {
                    name: row.try_get("name")?,
                    relation: row.try_get("relation")?,
                    columns: row.try_get("columns")?,
                    foreign: row.try_get("foreign")?,
                    foreign_columns: row.try_get("foreign_columns")?,
                })
            })
            .collect::<Result<_, tokio_postgres::Error>>()?,
        views: views
            .iter()
            .map(|row| {
                Ok(RawView {
                    oid: row.try_get("oid")?,
                    rule: row.try_get("rule")?,
                    reads: row.try_get("reads")?,
                    calls_bypassing: row.try_get("calls_bypassing")?,
                })
            })
            .collect::<Result<_, tokio_postgres::Error>>()?,
        functions: functions.iter().map(function).collect::<Result<_, _>>()?,
        composites: composites
            .iter()
            .map(|row| {
                Ok(RawAttribute {
                    relation: row.try_get("relation")?,
                    name: row.try_get("name")?,
                    type_name: row.try_get("type_name")?,
                })
            })
            .collect::<Result<_, tokio_postgres::Error>>()?,
        handlers: handlers
            .iter()
            .map(|row| {
                Ok(RawHandler {
                    media: row.try_get("media")?,
                    schema: row.try_get("schema")?,
                    name: row.try_get("name")?,
                    relation: row.try_get("relation")?,
                })
            })
            .collect::<Result<_, tokio_postgres::Error>>()?,
        schema_comments: commented.into_iter().zip(comments).collect(),
        roles: rest.try_get("roles")?,
        reads_request_settings: rest.try_get("reads_request_settings")?,
        reads_claims: rest.try_get("reads_claims")?,
    })
}

fn relation(row: &Row) -> Result<RawRelation, tokio_postgres::Error> {
    Ok(RawRelation {
        oid: row.try_get("oid")?,
        row_type: row.try_get("row_type")?,
        schema: row.try_get("schema")?,
        name: row.try_get("name")?,
        kind: row.try_get("kind")?,
        is_partition: row.try_get("is_partition")?,
        declared: row.try_get("declared")?,
        tenant_column: row.try_get("tenant_column")?,
        hidden: row.try_get("hidden")?,
        forced: row.try_get("forced")?,
        policy: row.try_get("policy")?,
        writable: row.try_get("writable")?,
        rules: row.try_get("rules")?,
        security_invoker: row.try_get("security_invoker")?,
        updatable: row.try_get("updatable")?,
        logged: row.try_get("logged")?,
        published: row.try_get("published")?,
        moody_policy: row.try_get("moody_policy")?,
        comment: row.try_get("comment")?,
    })
}

fn column(row: &Row) -> Result<RawColumn, tokio_postgres::Error> {
    Ok(RawColumn {
        relation: row.try_get("relation")?,
        number: row.try_get("number")?,
        name: row.try_get("name")?,
        type_name: row.try_get("type_name")?,
        base_type: row.try_get("base_type")?,
        nullable: row.try_get("nullable")?,
        default: row.try_get("default")?,
        generated: row.try_get("generated")?,
        enum_labels: row.try_get("enum_labels")?,
        max_length: row.try_get("max_length")?,
        comment: row.try_get("comment")?,
        to_json: row.try_get("to_json")?,
        from_json: row.try_get("from_json")?,
        from_text: row.try_get("from_text")?,
    })
}

fn function(row: &Row) -> Result<RawFunction, tokio_postgres::Error> {
    Ok(RawFunction {
        schema: row.try_get("schema")?,
        name: row.try_get("name")?,
        arg_names: row.try_get("arg_names")?,
        arg_types: row.try_get("arg_types")?,
        arg_type_names: row.try_get("arg_type_names")?,
        arg_base_types: row.try_get("arg_base_types")?,
        arg_modes: row.try_get("arg_modes")?,
        defaults: row.try_get("defaults")?,
        set: row.try_get("set")?,
        one_row: row.try_get("one_row")?,
        return_type: row.try_get("return_type")?,
        return_type_name: row.try_get("return_type_name")?,
        return_kind: row.try_get("return_kind")?,
        return_relation: row.try_get("return_relation")?,
        volatility: row.try_get("volatility")?,
        settings: row.try_get("settings")?,
        definer_bypasses: row.try_get("definer_bypasses")?,
        comment: row.try_get("comment")?,
    })
}

const SERVER: &str = "select current_setting('server_version_num')::int / 10000";

/// The policy's text is compared with what Postgres prints of the one that
/// `distribute` makes: any other text is another policy.
///
/// What a policy calls stands in its node tree (`pg_depend` leaves out what
/// can't be dropped). Kept answers are safe where it calls what is immutable, or
/// `current_setting`, whose values are in the cache's key; where it makes no
/// date of a text, which might say "now"; and reads no table. (In a node tree a
/// space within a name is escaped, so no name can look like a field.)
const RELATIONS: &str = r"
select c.oid, c.reltype as row_type, n.nspname::text as schema, c.relname::text as name,
  c.relkind as kind, c.relispartition as is_partition,
  r.kind as declared, r.tenant_column::text as tenant_column, coalesce(r.hidden, false) as hidden,
  c.relrowsecurity and c.relforcerowsecurity as forced,
  exists (
    select from pg_catalog.pg_policy p
    where p.polrelid = c.oid and p.polname = 'ringfence_tenant' and not p.polpermissive
      and p.polcmd = '*' and p.polroles = '{0}'
      and pg_catalog.pg_get_expr(p.polqual, p.polrelid) = '(tenant_id = ( SELECT ringfence.tenant_id() AS tenant_id))'
      and pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) = '(tenant_id = ( SELECT ringfence.tenant_id() AS tenant_id))'
  ) as policy,
  coalesce(r.kind, '') = 'reference' and exists (
    select from pg_catalog.pg_roles a
    where pg_catalog.pg_has_role('ringfence_router', a.oid, 'MEMBER') and not a.rolsuper
      and (pg_catalog.has_table_privilege(a.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
        or pg_catalog.has_any_column_privilege(a.oid, c.oid, 'INSERT, UPDATE'))
  ) as writable,
  exists (select from pg_catalog.pg_rewrite w
    where w.ev_class = c.oid and w.rulename <> '_RETURN') as rules,
  coalesce((select o.option_value::boolean from pg_catalog.pg_options_to_table(c.reloptions) o
    where o.option_name = 'security_invoker'), false) as security_invoker,
  -- Tables always are; to ask of a foreign table fails where its wrapper is broken.
  case c.relkind when 'v' then pg_catalog.pg_relation_is_updatable(c.oid, true)
    when 'r' then 28 when 'p' then 28 else 0 end as updatable,
  c.relpersistence = 'p' as logged,
  exists (
    select from pg_catalog.pg_publication_rel m join pg_catalog.pg_publication b on b.oid = m.prpubid
    where b.pubname = 'ringfence_capture' and m.prrelid = c.oid) as published,
  exists (
    select from pg_catalog.pg_policy p
    cross join lateral (select p.polqual::text as tree) q
    where p.polrelid = c.oid and p.polcmd in ('*', 'r') and p.polname <> 'ringfence_tenant' and (
      q.tree ~ ':relid [1-9]' or q.tree ~ 'SQLVALUEFUNCTION|NEXTVALUEEXPR'
      or q.tree ~ 'COERCEVIAIO' and q.tree ~ ':resulttype (1082|1083|1114|1184|1266) '
      or exists (
        select from pg_catalog.regexp_matches(q.tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') m
        left join pg_catalog.pg_proc f on f.oid = m[1]::oid
        where f.provolatile is distinct from 'i'
          and f.oid is distinct from 'pg_catalog.current_setting(text)'::regprocedure
          and f.oid is distinct from 'pg_catalog.current_setting(text, boolean)'::regprocedure
          and f.oid is distinct from 'ringfence.tenant_id()'::regprocedure))) as moody_policy,
  pg_catalog.obj_description(c.oid, 'pg_class') as comment
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join ringfence.relation r on r.relid = c.oid
where n.nspname = any($1) and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and not exists (select from ringfence.retired t where t.relid = c.oid and t.number = 0)
order by n.nspname, c.relname";

/// Types are printed with the modifier -1, and not NULL, which would make
/// `char(n)` "character": that is `char(1)`, and cuts what is cast to it.
const COLUMNS: &str = "
with recursive base (oid, base, typmod, required) as (
  select t.oid, t.oid, -1, false from pg_catalog.pg_type t where t.typtype <> 'd'
  union all
  select t.oid, b.base, case when t.typtypmod >= 0 then t.typtypmod else b.typmod end, b.required or t.typnotnull
  from pg_catalog.pg_type t join base b on b.oid = t.typbasetype where t.typtype = 'd'
),
-- Functions of implicit casts that run with their caller's rights.
cast_function (source, target, name) as (
  select k.castsource, k.casttarget, array[f.nspname::text, p.proname::text]
  from pg_catalog.pg_cast k
  join pg_catalog.pg_proc p on p.oid = k.castfunc
  join pg_catalog.pg_namespace f on f.oid = p.pronamespace
  join pg_catalog.pg_roles o on o.oid = p.proowner
  where k.castcontext = 'i' and k.castmethod = 'f' and f.nspname <> 'pg_catalog'
    and not (p.prosecdef and (o.rolsuper or o.rolbypassrls))
)
select a.attrelid as relation, a.attnum as number, a.attname::text as name,
  pg_catalog.format_type(a.atttypid, a.atttypmod) as type_name,
  pg_catalog.format_type(b.base, -1) as base_type,
  not (a.attnotnull or b.required) as nullable,
  -- Not pg_get_serial_sequence, which fails without USAGE on the schema.
  case when a.attidentity <> '' then (select pg_catalog.format('nextval(%L::regclass)', s.objid::regclass)
      from pg_catalog.pg_depend s where s.classid = 'pg_catalog.pg_class'::regclass and s.deptype = 'i'
        and s.refclassid = s.classid and s.refobjid = a.attrelid and s.refobjsubid = a.attnum)
    when a.attgenerated = '' then coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), t.typdefault) end as \"default\",
  a.attgenerated <> '' or a.attidentity = 'a' as generated,
  array(select e.enumlabel::text from pg_catalog.pg_enum e where e.enumtypid = b.base order by e.enumsortorder) as enum_labels,
  case when b.base in ('pg_catalog.bpchar'::regtype, 'pg_catalog.varchar'::regtype)
    then nullif(greatest(a.atttypmod, b.typmod), -1) - 4 end as max_length,
  pg_catalog.col_description(a.attrelid, a.attnum) as comment,
  case when t.typtype = 'd' then (select m.name from cast_function m
    where m.source = t.oid and m.target = 'pg_catalog.json'::regtype) end as to_json,
  case when t.typtype = 'd' then (select m.name from cast_function m
    where m.source = 'pg_catalog.json'::regtype and m.target = t.oid) end as from_json,
  case when t.typtype = 'd' then (select m.name from cast_function m
    where m.source = 'pg_catalog.text'::regtype and m.target = t.oid) end as from_text
from pg_catalog.pg_attribute a
join pg_catalog.pg_class c on c.oid = a.attrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_type t on t.oid = a.atttypid
join base b on b.oid = a.atttypid
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where n.nspname = any($1) and c.relkind in ('r', 'p', 'v') and not c.relispartition
  and a.attnum > 0 and not a.attisdropped
  and not exists (select from ringfence.retired t where t.relid = a.attrelid and t.number = a.attnum)
order by a.attrelid, a.attnum";

const KEYS: &str = "
select i.indrelid as relation, x.relname::text as name, i.indisprimary as primary,
  (i.indkey::int2[])[0:i.indnkeyatts - 1] as columns
from pg_catalog.pg_index i
join pg_catalog.pg_class x on x.oid = i.indexrelid
join pg_catalog.pg_class c on c.oid = i.indrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = any($1) and c.relkind in ('r', 'p') and not c.relispartition
  and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
order by i.indrelid, not i.indisprimary, columns";

const FOREIGN_KEYS: &str = "
select k.conname::text as name, k.conrelid as relation, k.conkey as columns,
  k.confrelid as foreign, k.confkey as foreign_columns
from pg_catalog.pg_constraint k
join pg_catalog.pg_class c on c.oid = k.conrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = any($1) and k.contype = 'f' and k.conparentid = 0 and not c.relispartition
order by k.conrelid, k.conname";

/// `pg_depend` leaves out what can't be dropped, such as the system catalogs;
/// the rule itself names all relations and functions. (In its text a space
/// within a name is escaped, so no name can look like a field.)
const VIEWS: &str = r"
select c.oid, w.ev_action::text as rule,
  array(select d.refobjid from pg_catalog.pg_depend d
    where d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = w.oid
      and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid <> c.oid
    union
    select m[1]::oid from pg_catalog.regexp_matches(w.ev_action::text, ':relid (\d+)', 'g') m
    where m[1] <> '0' and m[1]::oid <> c.oid) as reads,
  exists (
    select from pg_catalog.regexp_matches(w.ev_action::text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') m
    join pg_catalog.pg_proc p on p.oid = m[1]::oid
    join pg_catalog.pg_roles o on o.oid = p.proowner
    where p.prosecdef and (o.rolsuper or o.rolbypassrls)) as calls_bypassing
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_rewrite w on w.ev_class = c.oid and w.rulename = '_RETURN'
where n.nspname = any($1) and c.relkind = 'v'";

const FUNCTIONS: &str = "
with recursive domain (oid, base) as (
  select t.oid, t.typbasetype from pg_catalog.pg_type t where t.typtype = 'd'
  union all
  select d.oid, t.typbasetype from domain d join pg_catalog.pg_type t on t.oid = d.base and t.typtype = 'd'
),
base (oid, base) as (
  select d.oid, d.base from domain d join pg_catalog.pg_type t on t.oid = d.base and t.typtype <> 'd'
)
select n.nspname::text as schema, p.proname::text as name,
  coalesce(p.proargnames, '{}')::text[] as arg_names,
  args.oids as arg_types, args.names as arg_type_names, args.bases as arg_base_types,
  coalesce(p.proargmodes, array_fill('i'::\"char\", array[p.pronargs])) as arg_modes,
  p.pronargdefaults as defaults, p.proretset as set, p.prorows = 1 as one_row,
  t.oid as return_type, pg_catalog.format_type(t.oid, -1) as return_type_name,
  bt.typtype as return_kind, bt.typrelid as return_relation,
  p.provolatile as volatility, coalesce(p.proconfig, '{}') as settings,
  p.prosecdef and (o.rolsuper or o.rolbypassrls) as definer_bypasses,
  pg_catalog.obj_description(p.oid, 'pg_proc') as comment
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_roles o on o.oid = p.proowner
join pg_catalog.pg_type t on t.oid = p.prorettype
left join base rb on rb.oid = t.oid
join pg_catalog.pg_type bt on bt.oid = coalesce(rb.base, t.oid)
cross join lateral (
  select coalesce(array_agg(a.oid order by a.n), '{}') as oids,
    coalesce(array_agg(pg_catalog.format_type(a.oid, -1) order by a.n), '{}') as names,
    coalesce(array_agg(pg_catalog.format_type(coalesce(b.base, a.oid), -1) order by a.n), '{}') as bases
  from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality a(oid, n)
  left join base b on b.oid = a.oid
) args
where n.nspname = any($1) and p.prokind = 'f'
  and t.oid not in ('pg_catalog.trigger'::regtype, 'pg_catalog.event_trigger'::regtype)
  and not exists (select from pg_catalog.pg_depend d
    where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
  and not exists (select from ringfence.retired r where r.relid = p.oid and r.number = -1)
order by n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)";

const COMPOSITES: &str = "
select a.attrelid as relation, a.attname::text as name,
  pg_catalog.format_type(a.atttypid, a.atttypmod) as type_name
from pg_catalog.pg_attribute a
where a.attnum > 0 and not a.attisdropped and a.attrelid in (
  select t.typrelid from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  join pg_catalog.pg_type t on t.oid = p.prorettype
  where n.nspname = any($1) and t.typrelid <> 0)
order by a.attrelid, a.attnum";

/// Aggregates of one argument, any row or a relation's, whose result is a domain
/// that is named as a media type, and which run with their caller's rights.
const HANDLERS: &str = r"
select pg_catalog.lower(t.typname) as media, n.nspname::text as schema, p.proname::text as name,
  c.oid as relation
from pg_catalog.pg_type t
join pg_catalog.pg_proc p on p.prorettype = t.oid
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_aggregate a on a.aggfnoid = p.oid
left join pg_catalog.pg_class c on c.reltype = p.proargtypes[0]
where n.nspname = any($1) and t.typtype = 'd' and p.pronargs = 1 and a.aggkind = 'n'
  and (t.typname ~* '^[a-z0-9.-]+/[a-z0-9.+-]+$' or t.typname = '*/*')
  and (c.oid is not null or p.proargtypes[0] = 'pg_catalog.anyelement'::regtype)
  and not exists (select from pg_catalog.pg_proc f join pg_catalog.pg_roles o on o.oid = f.proowner
    where f.oid in (a.aggtransfn, a.aggfinalfn, a.aggcombinefn) and f.prosecdef and (o.rolsuper or o.rolbypassrls))
order by 1, 2, 3";

const REST: &str = r"
select
  array(select n.nspname::text from pg_catalog.pg_namespace n where n.nspname = any($1)
    and pg_catalog.obj_description(n.oid, 'pg_namespace') is not null order by 1) as commented,
  array(select pg_catalog.obj_description(n.oid, 'pg_namespace') from pg_catalog.pg_namespace n
    where n.nspname = any($1) and pg_catalog.obj_description(n.oid, 'pg_namespace') is not null order by n.nspname) as comments,
  array(select r.rolname::text from pg_catalog.pg_roles r
    where pg_catalog.pg_has_role('ringfence_router', r.oid, 'MEMBER') and r.rolname !~ '^ringfence_'
      -- Nor one that could become a role that passes row security, or owns the tables.
      and not exists (select from pg_catalog.pg_roles b
        where (b.rolsuper or b.rolbypassrls or b.rolname = 'ringfence_owner')
          and pg_catalog.pg_has_role(r.oid, b.oid, 'MEMBER')) order by 1) as roles,
  exists (
    select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema', 'ringfence')
      and p.prosrc ~ 'request\.(headers?|method|path|cookies?)')
  or exists (
    select from pg_catalog.pg_policy p
    where concat(pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
      ~ 'request\.(headers?|method|path|cookies?)')
  or exists (
    select from pg_catalog.pg_attrdef d
    where pg_catalog.pg_get_expr(d.adbin, d.adrelid) ~ 'request\.(headers?|method|path|cookies?)')
  or exists (
    select from pg_catalog.pg_views v
    where v.schemaname not in ('pg_catalog', 'information_schema')
      and v.definition ~ 'request\.(headers?|method|path|cookies?)') as reads_request_settings,
  exists (
    select from pg_catalog.pg_policy p where p.polname <> 'ringfence_tenant'
      and pg_catalog.pg_get_expr(p.polqual, p.polrelid) <> 'true') as reads_claims";
