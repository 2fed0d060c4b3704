-- Change capture: what the worker's slot decodes, so that routers know when a
-- cached answer is out of date.

-- One row: which slot is the current one, and who has it. A slot's loss, a
-- promotion or a restored server begin another incarnation.
create table if not exists ringfence.capture (
  only_row    boolean primary key default true check (only_row),
  -- Rises with every slot that is made.
  incarnation bigint not null default 0,
  state       text not null default 'none' check (state in ('none', 'creating', 'ready')),
  system_id   text,
  timeline    integer,
  -- Rises, committed, each time a worker has acquired the slot, and before it
  -- counts a router's ping.
  term        bigint not null default 0,
  worker      text,
  changed_at  timestamptz not null default now()
);
insert into ringfence.capture default values on conflict do nothing;
grant select, update on ringfence.capture to ringfence_worker;
grant select on ringfence.capture to ringfence_router;

-- Whether a table's every change can be decoded: it is logged, and has (as have
-- all its partitions) a replica identity. What has none is not published, hence
-- not cached; publishing it would make its UPDATEs fail.
create or replace function ringfence.can_be_captured(t regclass) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(bool_and(c.relpersistence = 'p' and case c.relreplident
    when 'f' then true
    when 'd' then exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indisvalid)
    when 'i' then exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident and i.indisvalid)
    else false end), false)
  from (select t as relid union select p.relid from pg_partition_tree(t) p) member
  join pg_class c on c.oid = member.relid
  where c.relkind = 'r'
$$;

do $$
begin
  if not exists (select from pg_publication where pubname = 'ringfence_capture') then
    create publication ringfence_capture with (publish_via_partition_root = true);
  end if;
end
$$;

-- Makes the publication hold exactly what can be captured, of these tables or of
-- all, in the transaction that changed it.
create or replace function ringfence.capture_tables(only_of oid[] default null) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  item record;
begin
  for item in
    with wanted as (
      select r.relid::oid as relid
      from ringfence.relation r join pg_class c on c.oid = r.relid
      where (only_of is null or r.relid::oid = any (only_of))
        and ringfence.can_be_captured(r.relid)
        and c.relnamespace <> 'ringfence'::regnamespace
        -- Which tenant a row is of is told by this column.
        and (r.kind = 'distributed' or not exists (
          select from pg_attribute a where a.attrelid = r.relid and a.attname = 'tenant_id' and not a.attisdropped))
      union all
      select 'ringfence.fence'::regclass
      where only_of is null or 'ringfence.fence'::regclass = any (only_of)
    ), present as (
      select p.prrelid as relid
      from pg_publication_rel p join pg_publication b on b.oid = p.prpubid
      where b.pubname = 'ringfence_capture' and (only_of is null or p.prrelid = any (only_of))
    )
    select coalesce(w.relid, p.relid)::regclass as t, w.relid is not null as wanted
    from wanted w full join present p on p.relid = w.relid
    where p.relid is null or w.relid is null
    order by 1
  loop
    if item.wanted then
      -- A transaction that wrote before is not decoded: none may commit after.
      execute format('lock table %s in share row exclusive mode', item.t);
      execute format('alter publication ringfence_capture add table %s', item.t);
    else
      execute format('alter publication ringfence_capture drop table %s', item.t);
    end if;
  end loop;
end
$$;
revoke all on function ringfence.capture_tables(oid[]) from public;
grant execute on function ringfence.capture_tables(oid[]) to ringfence_owner, ringfence_migrator, ringfence_worker;

-- A table that loses its key leaves in the same transaction: else its UPDATEs
-- would fail. Looks at what the command touched alone: a schema has thousands of
-- tables. A dropped index no longer tells whose it was.
create or replace function ringfence.keep_capture() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  touched oid[];
begin
  if tg_tag <> 'DROP INDEX' then
    select coalesce(array_agg(distinct coalesce(pg_partition_root(t.relid)::oid, t.relid)), '{}') into touched
    from pg_event_trigger_ddl_commands() d
    left join pg_index i on i.indexrelid = d.objid
    cross join lateral (select coalesce(i.indrelid, d.objid) as relid) t
    where d.classid = 'pg_class'::regclass;
  end if;
  perform ringfence.capture_tables(touched);
end
$$;
drop event trigger if exists ringfence_zz_keep_capture;
create event trigger ringfence_zz_keep_capture on ddl_command_end
  when tag in ('CREATE TABLE', 'ALTER TABLE', 'CREATE INDEX', 'DROP INDEX')
  execute function ringfence.keep_capture();

-- DDL makes every cached answer of the shard suspect. Not the switches of
-- others' publications and subscriptions: a move makes many.
create or replace function ringfence.note_ddl() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  matters boolean;
begin
  -- What was dropped is sql_drop's to tell, and a command that found nothing to
  -- do (IF NOT EXISTS) lists nothing. DROP OWNED also revokes, and lists nothing.
  if tg_event = 'sql_drop' then
    select bool_or(not (d.object_type like any (array['publication%', 'subscription%'])
        and d.object_identity not like '%ringfence_capture'))
      into matters from pg_event_trigger_dropped_objects() d;
  else
    select bool_or(not (c.object_type like any (array['publication%', 'subscription%'])
        and c.object_identity not like '%ringfence_capture'))
      into matters from pg_event_trigger_ddl_commands() c;
  end if;
  if matters or tg_tag = 'DROP OWNED' then
    perform pg_logical_emit_message(true, 'ringfence.ddl', '');
  end if;
end
$$;
drop event trigger if exists ringfence_zz_note_ddl;
create event trigger ringfence_zz_note_ddl on ddl_command_end execute function ringfence.note_ddl();
drop event trigger if exists ringfence_zz_note_drop;
create event trigger ringfence_zz_note_drop on sql_drop execute function ringfence.note_ddl();

select ringfence.capture_tables();
