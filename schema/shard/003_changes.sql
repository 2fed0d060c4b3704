-- How routers learn of a changed schema within a second: every DDL command
-- leaves a row and a notification. Rows, and not one counter, so that two
-- sessions' DDL never wait for each other; the sum of the ids differs after
-- every change, in whatever order they commit.

create table if not exists ringfence.schema_change (
  id bigint generated always as identity primary key,
  at timestamptz not null default now()
);

create or replace view ringfence.schema_version as
  select coalesce(sum(c.id), 0)::bigint as version from ringfence.schema_change c;

grant select on ringfence.schema_version to ringfence_router, ringfence_worker;

create or replace function ringfence.note_schema_change() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  -- A move makes and switches many of these; they are no part of a schema.
  if tg_tag like any (array['% PUBLICATION', '% SUBSCRIPTION']) then
    return;
  end if;
  insert into ringfence.schema_change default values;
  perform pg_notify('ringfence_schema', '');
end
$$;

drop event trigger if exists ringfence_schema_changed;
create event trigger ringfence_schema_changed on ddl_command_end
  execute function ringfence.note_schema_change();
drop event trigger if exists ringfence_schema_dropped;
create event trigger ringfence_schema_dropped on sql_drop
  execute function ringfence.note_schema_change();
