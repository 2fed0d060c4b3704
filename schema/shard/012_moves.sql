-- Moves of tenants between shards, by logical replication. A publication wants
-- the owner of its tables and a subscription wants a superuser: the functions
-- here are the installer's, and do just that for the mover, under names of moves.

-- Rows that are written on one side and looked for on the other: all that was
-- committed before one has arrived when it has.
create table if not exists ringfence.move_marker (
  id  uuid primary key,
  job uuid not null,
  -- Each direction sees its own only: nothing goes in a circle.
  way text not null check (way in ('forward', 'back')),
  at  timestamptz not null default now()
);
grant select, insert, delete on ringfence.move_marker to ringfence_mover;

-- The name of a move's publication, subscription or slot; no other is touched.
create or replace function ringfence.move_name(name text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if name !~ '^ringfence_move_[0-9a-f]{32}(_b?[0-9]{1,3})?(_back)?(_mark)?$' then
    raise exception using errcode = 'RF014', message = format('"%s" is no name of a move', name);
  end if;
  return name;
end
$$;

-- What of tenants' rows is published: everything, or nothing.
create or replace function ringfence.move_published(is_on boolean) returns text
language sql immutable as $$
  -- Never TRUNCATE: it would empty the other tenants' tables on the other side.
  select case when is_on then 'insert, update, delete' else '' end
$$;

-- Publishes some tenants' rows of all tables. One publication for all of them: each
-- costs every session that writes a little, and a stream's making a lot.
drop function if exists ringfence.move_publish(text, uuid, boolean);
create or replace function ringfence.move_publish(name text, tenants uuid[], is_on boolean) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  wanted text := case when cardinality(tenants) = 1 then format('%L::uuid', tenants[1])
    else format('any (%L::uuid[])', tenants) end;
  tables text := (
    select string_agg(format('%s where (%I = %s)', r.relid::regclass, r.tenant_column, wanted), ', ' order by r.relid)
    from ringfence.relation r where r.kind = 'distributed');
begin
  if exists (select from pg_publication p where p.pubname = ringfence.move_name(move_publish.name)) then
    return;
  end if;
  execute format('create publication %I%s with (publish = %L, publish_via_partition_root = true)',
    name, coalesce(' for table ' || tables, ''), ringfence.move_published(is_on));
end
$$;

-- Publishes a move's markers of one direction.
create or replace function ringfence.move_publish_markers(name text, job uuid, way text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from pg_publication p where p.pubname = ringfence.move_name(move_publish_markers.name)) then
    return;
  end if;
  execute format('create publication %I for table ringfence.move_marker where (job = %L::uuid and way = %L) with (publish = %L)',
    name, job, way, 'insert');
end
$$;

-- Switches a publication of tenants on or off; waits behind no other session.
create or replace function ringfence.move_switch(name text, is_on boolean) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  execute format('alter publication %I set (publish = %L)', ringfence.move_name(name), ringfence.move_published(is_on));
end
$$;

-- Removes a publication, in two calls with a pause in between: at first its
-- tables leave it. Dropped at once, it would fail whoever writes to one of them
-- just then ("cache lookup failed for publication"), whatever their tenant.
-- True once it is gone.
create or replace function ringfence.move_unpublish(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  tables text := (
    select string_agg(r.prrelid::regclass::text, ', ' order by r.prrelid)
    from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
    where p.pubname = ringfence.move_name(move_unpublish.name));
begin
  if tables is not null then
    execute format('alter publication %I drop table %s', name, tables);
    return false;
  end if;
  if exists (select from pg_publication p where p.pubname = move_unpublish.name) then
    execute format('drop publication %I', name);
  end if;
  return true;
end
$$;

-- Receives what publications of another shard send, through the slot of the same
-- name, which is there already.
create or replace function ringfence.move_subscribe(name text, conninfo text, publications text[], copies boolean)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  -- From 16 a subscription can run as its owner, whom row level security lets
  -- pass, and leave out what came from elsewhere. Before, it always does the first.
  newer text := case when current_setting('server_version_num')::int >= 160000
    then ', run_as_owner = true, origin = none' else '' end;
begin
  if exists (select from pg_subscription s
      where s.subname = ringfence.move_name(move_subscribe.name)
        and s.subdbid = (select d.oid from pg_database d where d.datname = current_database())) then
    return;
  end if;
  execute format(
    'create subscription %I connection %L publication %s with (create_slot = false, slot_name = %L, copy_data = %s, streaming = on%s)',
    name, conninfo, (select string_agg(quote_ident(p), ', ') from unnest(publications) p), name,
    case when copies then 'true' else 'false' end, newer);
end
$$;

-- Ends a subscription; its slot on the other shard is dropped there.
create or replace function ringfence.move_unsubscribe(name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from pg_subscription s
      where s.subname = ringfence.move_name(move_unsubscribe.name)
        and s.subdbid = (select d.oid from pg_database d where d.datname = current_database())) then
    execute format('alter subscription %I disable', name);
    execute format('alter subscription %I set (slot_name = none)', name);
    execute format('drop subscription %I', name);
  end if;
end
$$;

-- Halts a subscription, or has it go on.
create or replace function ringfence.move_enable(name text, is_on boolean) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  execute format('alter subscription %I %s', ringfence.move_name(name), case when is_on then 'enable' else 'disable' end);
end
$$;

-- What is called often, or while requests are held, is plpgsql: it keeps its plans, SQL
-- makes them anew with each call.

-- How far a subscription is: its tables, how many of them are copied, rows copied
-- by those under way, and errors so far.
create or replace function ringfence.move_progress(
  name text, out tables bigint, out ready bigint, out rows bigint, out errors bigint
) language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  select count(r.srrelid), count(*) filter (where r.srsubstate = 'r'),
    coalesce(sum((select sum(c.tuples_processed) from pg_stat_progress_copy c
      where c.relid = r.srrelid and c.datname = current_database())), 0)::bigint,
    coalesce(max(e.apply_error_count + e.sync_error_count), 0)
  into tables, ready, rows, errors
  from pg_subscription s
  left join pg_subscription_rel r on r.srsubid = s.oid
  left join pg_stat_subscription_stats e on e.subid = s.oid
  where s.subname = move_progress.name
    and s.subdbid = (select d.oid from pg_database d where d.datname = current_database());
end
$$;

-- Where all sequences of the application are, that have given a number.
create or replace function ringfence.move_sequences() returns table (name text, last bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select format('%I.%I', n.nspname, c.relname), l.number
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    cross join lateral pg_sequence_last_value(c.oid) l(number)
    where c.relkind = 'S' and c.relpersistence = 'p' and l.number is not null
      and n.nspname not in ('pg_catalog', 'information_schema', 'ringfence');
end
$$;

-- What the cut-over asks of a primary. `writers`: transactions that began to
-- write more than 200 ms ago: replication would wait for their end.
drop function if exists ringfence.move_look();
create or replace function ringfence.move_look(
  out version integer, out writers bigint, out slots_left bigint, out captured boolean, out bypasses boolean,
  out system text, out timeline integer, out lsn bigint, out workers_left bigint
) language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  select current_setting('server_version_num')::integer,
    (select count(*) from pg_stat_activity a
      where a.backend_type = 'client backend' and a.backend_xid is not null
        and clock_timestamp() - a.xact_start > interval '200 milliseconds'),
    current_setting('max_replication_slots')::bigint - (select count(*) from pg_replication_slots),
    exists (select from pg_replication_slots s where s.slot_name = 'ringfence_capture'),
    (select r.rolbypassrls and r.rolreplication from pg_roles r where r.rolname = 'ringfence_mover'),
    (select c.system_identifier from pg_control_system() c)::text,
    ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer,
    (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint,
    -- Each subscription that is on has one, of whatever database.
    least(current_setting('max_logical_replication_workers')::bigint, current_setting('max_worker_processes')::bigint)
      - (select count(*) from pg_subscription s where s.subenabled)
  into version, writers, slots_left, captured, bypasses, system, timeline, lsn, workers_left;
end
$$;

-- How busy a primary is: bytes that the slowest of its standbys has still to
-- replay, and the capture to publish; sessions that are at work.
create or replace function ringfence.move_load(out standby_lag bigint, out capture_lag bigint, out busy bigint)
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select
    coalesce((select max(pg_current_wal_lsn() - r.replay_lsn) from pg_stat_replication r
      where r.state = 'streaming'
        and not exists (select from pg_replication_slots s where s.active_pid = r.pid and s.slot_type = 'logical')), 0)::bigint,
    coalesce((select pg_current_wal_lsn() - s.confirmed_flush_lsn from pg_replication_slots s
      where s.slot_name = 'ringfence_capture' and s.active), 0)::bigint,
    (select count(*) from pg_stat_activity a
      where a.backend_type = 'client backend' and a.state = 'active' and a.pid <> pg_backend_pid())
$$;

-- Steps of a cut-over, for all tenants of a group: each is one transaction, on disk
-- once it is answered, whatever the server's default is. Their settings are local
-- to it: none has a SET clause, which would undo them. A wait is at least 1 ms: 0
-- would be for ever.

create or replace function ringfence.move_durable() returns void
language plpgsql as $$
begin
  if current_setting('synchronous_commit') in ('off', 'local') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end
$$;

-- All fences were changed, or none is.
create or replace function ringfence.move_require(changed bigint, tenants uuid[]) returns void
language plpgsql as $$
begin
  if changed <> cardinality(tenants) then
    raise exception using errcode = 'RF015', message = 'a fence was changed meanwhile';
  end if;
end
$$;

-- Holds the requests of tenants that are active at these epochs, or were held
-- already. Their writes under way end first, waited for so long at most; a marker is
-- written behind all of them.
create or replace function ringfence.move_close(
  tenants uuid[], epochs bigint[], marker uuid, job uuid, way text, wait_ms integer
) returns void
language plpgsql as $$
declare
  changed bigint;
begin
  perform ringfence.move_durable();
  perform set_config('lock_timeout', wait_ms::text, true);
  -- New writes don't queue behind this: they are told to try again.
  perform pg_advisory_xact_lock(uuid_hash_extended(t, 0)) from unnest(tenants) t;
  update ringfence.fence f set state = 'fenced', changed_at = now()
  from unnest(tenants, epochs) u (tenant, epoch)
  where f.tenant_id = u.tenant and f.epoch = u.epoch and f.state in ('active', 'fenced');
  get diagnostics changed = row_count;
  perform ringfence.move_require(changed, tenants);
  insert into ringfence.move_marker (id, job, way) values (marker, move_close.job, move_close.way);
end
$$;

-- Names the shard that has the tenants from the next epoch on, and sends nothing more.
create or replace function ringfence.move_leave(
  tenants uuid[], epochs bigint[], target text, publications text[]
) returns void
language plpgsql as $$
declare
  changed bigint;
begin
  perform ringfence.move_durable();
  update ringfence.fence f set state = 'moved', epoch = u.epoch + 1, target_shard = target,
    target_epoch = u.epoch + 1, changed_at = now()
  from unnest(tenants, epochs) u (tenant, epoch)
  where f.tenant_id = u.tenant and f.epoch = u.epoch and f.state = 'fenced';
  get diagnostics changed = row_count;
  perform ringfence.move_require(changed, tenants);
  perform ringfence.move_switch(p, false) from unnest(publications) p;
end
$$;

-- Serves tenants whose fences were prepared at these epochs, and sends what they write.
create or replace function ringfence.move_activate(
  tenants uuid[], epochs bigint[], suspended boolean[], publications text[]
) returns void
language plpgsql as $$
declare
  changed bigint;
begin
  perform ringfence.move_durable();
  perform ringfence.move_switch(p, true) from unnest(publications) p;
  update ringfence.fence f set state = 'active', suspended = u.suspended, changed_at = now()
  from unnest(tenants, epochs, move_activate.suspended) u (tenant, epoch, suspended)
  where f.tenant_id = u.tenant and f.epoch = u.epoch and f.state = 'fenced';
  get diagnostics changed = row_count;
  perform ringfence.move_require(changed, tenants);
end
$$;

-- Waits until a marker has come in, so long at most; false: it has not.
create or replace function ringfence.move_arrived(marker uuid, wait_ms integer) returns boolean
language plpgsql volatile as $$
declare
  began timestamptz := clock_timestamp();
  waited double precision;
begin
  loop
    if exists (select from ringfence.move_marker m where m.id = marker) then
      return true;
    end if;
    waited := extract(epoch from clock_timestamp() - began);
    if waited * 1000 >= wait_ms then
      return false;
    end if;
    -- The longer it takes, the less often it looks.
    perform pg_sleep(least(greatest(waited / 20, 0.0005), 0.05));
  end loop;
end
$$;

-- Up to where all physical standbys that stream have the log on disk; null: there are
-- none.
drop function if exists ringfence.standbys_behind(pg_lsn);
create or replace function ringfence.move_standbys() returns pg_lsn
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return (select min(coalesce(r.flush_lsn, '0/0'::pg_lsn)) from pg_stat_replication r
    where r.state = 'streaming'
      and not exists (select from pg_replication_slots s where s.active_pid = r.pid and s.slot_type = 'logical'));
end
$$;

-- Rows that came in are on disk some time after they are there; where standbys wait
-- for them, at once.
create or replace function ringfence.move_flush() returns void
language plpgsql as $$
begin
  if ringfence.move_standbys() is not null then
    perform ringfence.move_durable();
    perform pg_logical_emit_message(true, 'ringfence', 'flush');
  end if;
end
$$;

-- Waits until all streaming standbys have on disk what is on disk here by now, so
-- long at most; false: one has not.
create or replace function ringfence.move_on_standbys(wait_ms integer) returns boolean
language plpgsql volatile as $$
declare
  lsn pg_lsn := pg_current_wal_flush_lsn();
  began timestamptz := clock_timestamp();
begin
  while ringfence.move_standbys() < lsn loop
    if clock_timestamp() - began >= wait_ms * interval '1 millisecond' then
      return false;
    end if;
    perform pg_sleep(0.0005);
  end loop;
  return true;
end
$$;

-- Why a table can't be moved row by row, for each that can't.
create or replace function ringfence.move_refusals() returns table (relation text, reason text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with leaf as (
    select r.relid as root, r.tenant_column, c.oid, c.relreplident, c.relpersistence
    from ringfence.relation r
    join pg_class root on root.oid = r.relid
    cross join lateral (
      select p.relid::oid as oid from pg_partition_tree(r.relid) p where root.relkind = 'p' and p.isleaf
      union all select r.relid::oid where root.relkind <> 'p') l
    join pg_class c on c.oid = l.oid
    where r.kind = 'distributed'
  ), identity as (
    select l.*, i.indexrelid, i.indkey, i.indnkeyatts,
      exists (select from unnest(i.indkey::int2[]) k(num)
        join pg_attribute a on a.attrelid = l.oid and a.attnum = k.num where a.attname = l.tenant_column) as has_tenant
    from leaf l
    left join pg_index i on i.indrelid = l.oid and i.indisvalid
      and case l.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident else false end
  )
  select i.oid::regclass::text, 'its rows can''t be told apart: it has no replica identity'
  from identity i where i.relreplident = 'n' or (i.relreplident in ('d', 'i') and i.indexrelid is null)
  union all
  select i.oid::regclass::text, 'its replica identity leaves out the tenant'
  from identity i where i.indexrelid is not null and not i.has_tenant
  union all
  select l.oid::regclass::text, 'its rows can''t be compared: it has no primary key'
  from leaf l where not exists (select from pg_index p where p.indrelid = l.oid and p.indisprimary)
  union all
  -- Of a deleted row the log brings the identity's columns only.
  select i.oid::regclass::text, 'its replica identity has other columns than its primary key'
  from identity i join pg_index p on p.indrelid = i.oid and p.indisprimary
  where i.indexrelid is not null
    and not (p.indkey::int2[])[0:p.indnkeyatts - 1] <@ (i.indkey::int2[])[0:i.indnkeyatts - 1]
  union all
  select l.oid::regclass::text, 'it is not logged' from leaf l where l.relpersistence <> 'p'
  union all
  select l.oid::regclass::text, format('its trigger "%s" also fires for replicated rows', g.tgname)
  from leaf l join pg_trigger g on g.tgrelid = l.oid and not g.tgisinternal and g.tgenabled in ('A', 'R')
  union all
  select l.root::regclass::text, format('its column "%s" can name large objects, which are not replicated', a.attname)
  from leaf l join pg_attribute a on a.attrelid = l.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid and (t.oid = 'oid'::regtype or t.typname = 'lo')
$$;

revoke all on function ringfence.move_publish(text, uuid[], boolean), ringfence.move_publish_markers(text, uuid, text),
  ringfence.move_switch(text, boolean), ringfence.move_unpublish(text), ringfence.move_subscribe(text, text, text[], boolean),
  ringfence.move_unsubscribe(text), ringfence.move_enable(text, boolean), ringfence.move_progress(text), ringfence.move_sequences(), ringfence.move_look(), ringfence.move_load(),
  ringfence.move_durable(), ringfence.move_require(bigint, uuid[]),
  ringfence.move_close(uuid[], bigint[], uuid, uuid, text, integer), ringfence.move_leave(uuid[], bigint[], text, text[]),
  ringfence.move_activate(uuid[], bigint[], boolean[], text[]), ringfence.move_arrived(uuid, integer),
  ringfence.move_flush(), ringfence.move_on_standbys(integer),
  ringfence.move_standbys(), ringfence.move_refusals(), ringfence.move_name(text), ringfence.move_published(boolean)
  from public;
grant execute on function ringfence.move_publish(text, uuid[], boolean), ringfence.move_publish_markers(text, uuid, text),
  ringfence.move_switch(text, boolean), ringfence.move_unpublish(text), ringfence.move_subscribe(text, text, text[], boolean),
  ringfence.move_unsubscribe(text), ringfence.move_enable(text, boolean), ringfence.move_progress(text), ringfence.move_sequences(), ringfence.move_look(), ringfence.move_load(),
  ringfence.move_durable(), ringfence.move_require(bigint, uuid[]),
  ringfence.move_close(uuid[], bigint[], uuid, uuid, text, integer), ringfence.move_leave(uuid[], bigint[], text, text[]),
  ringfence.move_activate(uuid[], bigint[], boolean[], text[]), ringfence.move_arrived(uuid, integer),
  ringfence.move_flush(), ringfence.move_on_standbys(integer),
  ringfence.move_standbys(), ringfence.move_refusals()
  to ringfence_mover;
