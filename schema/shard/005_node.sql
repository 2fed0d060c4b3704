-- What routers ask each node several times a second: whether it is the primary,
-- which server it is, on which timeline, and how far it is. A standby shows what
-- it receives to members of pg_monitor only, hence SECURITY DEFINER. Also the
-- first question on each pooled connection, by then in an API role.
create or replace function ringfence.node(
  out is_primary boolean, out system_id text, out timeline integer, out lsn text
)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select not pg_is_in_recovery(),
    (select system_identifier from pg_control_system())::text,
    case when pg_is_in_recovery()
      -- One that receives nothing is on the timeline of its last restart point.
      then coalesce((select received_tli from pg_stat_get_wal_receiver()),
                    (select timeline_id from pg_control_checkpoint()))
      else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end,
    (case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), '0/0')
      else pg_current_wal_lsn() end - '0/0'::pg_lsn)::text
$$;
alter function ringfence.node() owner to ringfence_worker;
revoke all on function ringfence.node() from public;
grant execute on function ringfence.node() to ringfence_api, ringfence_router, ringfence_worker;
