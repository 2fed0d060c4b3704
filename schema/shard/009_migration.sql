-- What this shard has of the application's migration files, each row written in
-- the transaction that did the work: so nothing that is committed runs twice,
-- and nothing that is recorded is missing, whatever other databases say.

create table if not exists ringfence.migration (
  -- The files' directory, by name.
  directory  text not null,
  number     integer not null check (number > 0),
  name       text not null,
  -- SHA-256 of the file's text.
  checksum   text not null,
  phase      text not null check (phase in ('expand', 'contract')),
  -- 'running' files have some statements done and others not.
  state      text not null check (state in ('running', 'done')),
  -- Statements done.
  step       integer not null default 0,
  -- The statement that was begun, where it can't be part of a transaction: what
  -- is found of it afterwards is this file's.
  begun      integer,
  -- How far the present back-fill is: the last key done, and its rows.
  after_key  text[],
  rows       bigint not null default 0,
  -- It was declared to be there already, not run.
  baseline   boolean not null default false,
  started_at timestamptz not null default now(),
  changed_at timestamptz not null default now(),
  primary key (directory, number)
);

-- Bytes that the slowest follower of this server has still to replay; null
-- without followers. What fills tables waits for it.
create or replace function ringfence.follower_lag() returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select max(pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(r.replay_lsn, r.flush_lsn)))::bigint
  from pg_stat_replication r where r.state in ('streaming', 'catchup')
$$;
revoke all on function ringfence.follower_lag() from public;

-- The oldest transactions but the caller's own: they are what a change of the
-- schema mostly waits for.
create or replace function ringfence.old_transactions(older interval) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select string_agg(format('pid %s (%s, %s) for %s s', a.pid, a.usename,
    coalesce(nullif(a.application_name, ''), 'unnamed'), round(extract(epoch from clock_timestamp() - a.xact_start))), '; ')
  from (select * from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
      and xact_start < clock_timestamp() - older
    order by xact_start limit 3) a
$$;
revoke all on function ringfence.old_transactions(interval) from public;

-- What is about to be removed: the schema model leaves it out already, so that
-- no router reads it once it has loaded the model anew. Number 0 is a whole
-- relation; -1 says that it is a function.
create table if not exists ringfence.retired (
  relid  oid not null,
  number smallint not null,
  primary key (relid, number)
);

-- A function by its name and its arguments' types; where these are not said,
-- the only one of that name, as DROP FUNCTION takes it.
create or replace function ringfence.function_named(name text, arguments text[]) returns oid
language plpgsql stable set search_path = pg_catalog, public, pg_temp as $$
begin
  if arguments is null then
    return to_regproc(name);
  end if;
  return to_regprocedure(name || '(' || array_to_string(arguments, ', ') || ')');
exception when syntax_error or undefined_object or invalid_parameter_value then
  -- Of a type that is not there any longer there is no function either.
  return null;
end
$$;

-- Hides columns, relations where the column is null, and functions, and what
-- goes with them by CASCADE; returns the version of the schema from which on
-- they are hidden.
drop function if exists ringfence.retire(text[], text[]);
create or replace function ringfence.retire(removals jsonb) returns bigint
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
  added bigint;
begin
  delete from ringfence.retired t where case t.number
    when -1 then not exists (select from pg_proc p where p.oid = t.relid)
    else not exists (
      select from pg_class c left join pg_attribute a on a.attrelid = c.oid and a.attnum = t.number and not a.attisdropped
      where c.oid = t.relid and (t.number = 0 or a.attnum is not null)) end;
  with recursive named as (
    select c.oid, coalesce(a.attnum, 0) as number, r.cascade
    from jsonb_to_recordset(removals) r (relation text, "column" text, cascade boolean)
    join pg_class c on c.oid = to_regclass(r.relation)
    left join pg_attribute a on a.attrelid = c.oid and a.attname = (parse_ident(r.column))[1] and not a.attisdropped
    where r.column is null or a.attnum is not null
    union all
    select p.oid, -1, r.cascade
    from jsonb_to_recordset(removals) r (function text, arguments jsonb, cascade boolean)
    join pg_proc p on p.oid = ringfence.function_named(r.function,
      case when jsonb_typeof(r.arguments) = 'array' then array(select jsonb_array_elements_text(r.arguments)) end)
    where r.function is not null
  ), dependent (oid, number) as (
    select n.oid, n.number::int from named n where n.cascade
    union
    select coalesce(w.ev_class, d.objid), case when w.oid is null then -1 else 0 end
    from dependent g
    join pg_depend d on case g.number
      when -1 then d.refclassid = 'pg_proc'::regclass and d.refobjid = g.oid
      else d.refclassid = 'pg_class'::regclass and d.refobjid = g.oid and (g.number = 0 or d.refobjsubid = g.number)
        or g.number = 0 and d.refclassid = 'pg_type'::regclass
          and d.refobjid = (select c.reltype from pg_class c where c.oid = g.oid) end
    left join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
    where w.ev_class <> g.oid or d.classid = 'pg_proc'::regclass
  ), wanted as (
    select n.oid, n.number::int as number from named n
    union
    select d.oid, d.number from dependent d
  ), inserted as (
    insert into ringfence.retired (relid, number) select w.oid, w.number from wanted w on conflict do nothing returning relid
  )
  select count(*) into added from inserted;
  if added > 0 then
    insert into ringfence.schema_change default values;
    perform pg_notify('ringfence_schema', '');
  end if;
  return (select v.version from ringfence.schema_version v);
end
$$;

-- Shows what is hidden again.
create or replace function ringfence.unretire() returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  shown bigint;
begin
  delete from ringfence.retired;
  get diagnostics shown = row_count;
  if shown > 0 then
    insert into ringfence.schema_change default values;
    perform pg_notify('ringfence_schema', '');
  end if;
  return shown;
end
$$;

-- Routers' sessions that follow the schema: who, and what version each has loaded.
create or replace function ringfence.schema_readers() returns table (instance text, loaded bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select split_part(a.application_name, ' ', 2), split_part(a.application_name, ' ', 3)::bigint
  from pg_stat_activity a
  where a.datname = current_database() and a.usename = 'ringfence_router'
    and a.application_name ~ '^ringfence-router [0-9a-f]{32} [0-9]{1,18}$'
$$;
revoke all on function ringfence.function_named(text, text[]), ringfence.retire(jsonb), ringfence.unretire(), ringfence.schema_readers() from public;
grant execute on function ringfence.retire(jsonb), ringfence.unretire(), ringfence.schema_readers() to ringfence_migrator;
grant select on ringfence.retired to ringfence_router, ringfence_worker;

-- Schemas and trusted extensions are part of an application's schema, too.
do $$
begin
  execute format('grant create on database %I to ringfence_owner', current_database());
end
$$;
grant select, insert, update, delete on ringfence.migration to ringfence_migrator;
grant select on ringfence.migration to ringfence_worker, ringfence_router, ringfence_mover;
grant execute on function ringfence.old_transactions(interval) to ringfence_migrator;
grant execute on function ringfence.follower_lag() to ringfence_migrator, ringfence_worker, ringfence_mover;
