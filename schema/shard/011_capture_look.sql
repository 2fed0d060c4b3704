-- Whether a worker has the capture's slot, and how often it was acquired: a write
-- on a shard that no worker captures need not wait for routers' leases.
create or replace function ringfence.capture_look(out free boolean, out term bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select not exists (
      select from pg_replication_slots s where s.slot_name = 'ringfence_capture' and s.active),
    (select c.term from ringfence.capture c)
$$;
revoke all on function ringfence.capture_look() from public;
grant execute on function ringfence.capture_look() to ringfence_api, ringfence_router, ringfence_worker;
