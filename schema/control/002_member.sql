-- Live routers and workers: each writes its row once a second, and reads all
-- of them with the same statement. Who has stopped doing so is gone. None of
-- it is worth the log, and no change of it takes a version: routers would
-- fetch their placements anew each second.
create unlogged table ringfence.member (
  -- One run of a process.
  instance   uuid primary key,
  kind       text not null check (kind in ('router', 'worker')),
  name       text not null check (length(name) between 1 and 63),
  -- Where it runs; null means the default region.
  region     text check (length(region) <= 63),
  -- Base address of its admin listener.
  admin_url  text not null check (length(admin_url) <= 255),
  -- Where a worker serves the stream of changes.
  stream_url text check (length(stream_url) <= 255),
  version    text not null check (length(version) <= 63),
  started_at timestamptz not null default clock_timestamp(),
  seen_at    timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- Says that a process lives, and who else was seen in the last ten minutes.
create function ringfence.heartbeat(
  kind text, instance uuid, name text, region text, admin_url text, stream_url text, version text
) returns table (
  member_instance uuid, member_kind text, member_name text, member_region text,
  member_admin_url text, member_stream_url text, member_version text, seen_seconds_ago double precision
) language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update ringfence.member m
    set seen_at = clock_timestamp(), region = heartbeat.region, admin_url = heartbeat.admin_url,
      stream_url = heartbeat.stream_url
    where m.instance = heartbeat.instance and m.kind = heartbeat.kind;
  if not found then
    -- Whoever holds a router's password must not fill the disk with rows.
    if (select count(*) from ringfence.member m where m.kind = heartbeat.kind) >= 2000 then
      raise 'there are too many members of kind %', heartbeat.kind;
    end if;
    insert into ringfence.member (instance, kind, name, region, admin_url, stream_url, version)
      values (instance, kind, name, region, admin_url, stream_url, version);
  end if;
  -- Skipping locked rows, two that clean up at once don't wait for each other.
  delete from ringfence.member m where m.instance in (
    select o.instance from ringfence.member o
    where o.seen_at < clock_timestamp() - interval '10 minutes' for update skip locked);
  return query
    select m.instance, m.kind, m.name, m.region, m.admin_url, m.stream_url, m.version,
      extract(epoch from clock_timestamp() - m.seen_at)::double precision
    from ringfence.member m;
end
$$;

-- The end of a process that ends in order.
create function ringfence.leave(kind text, instance uuid) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  delete from ringfence.member m where m.instance = leave.instance and m.kind = leave.kind
$$;

-- Routers write nothing here but rows of their own kind.
create function ringfence.router_heartbeat(
  instance uuid, name text, region text, admin_url text, version text
) returns table (
  member_instance uuid, member_kind text, member_name text, member_region text,
  member_admin_url text, member_stream_url text, member_version text, seen_seconds_ago double precision
) language sql security definer set search_path = pg_catalog, pg_temp as $$
  select * from ringfence.heartbeat('router', instance, name, region, admin_url, null, version)
$$;

create function ringfence.router_leave(instance uuid) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select ringfence.leave('router', instance)
$$;

revoke execute on function ringfence.router_heartbeat, ringfence.router_leave from public;
grant execute on function ringfence.router_heartbeat, ringfence.router_leave to ringfence_router;
grant select, insert, update, delete on ringfence.member to ringfence_worker;
