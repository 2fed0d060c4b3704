-- Where a commit is in the log, for the token that a write's answer carries (rule 7).
-- Asked right behind COMMIT, in the same round trip: what the transaction wrote
-- is at or before it. That is so where the log is inserted; what is on disk is
-- behind it where synchronous_commit is off. Runs with its caller's rights and
-- returns a set, so that it is inlined and costs little.
create or replace function ringfence.position()
returns table (timeline integer, lsn bigint)
language sql stable as $$
  select ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(l.lsn), 1, 8))::bit(32)::integer,
    (l.lsn operator(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::pg_catalog.int8
  from pg_catalog.pg_current_wal_insert_lsn() l(lsn)
$$;
revoke all on function ringfence.position() from public;
grant execute on function ringfence.position() to ringfence_api, ringfence_router, ringfence_worker;

-- The timelines that this primary's own one descends from, each with the LSN up
-- to which it was followed, as the history file has them: a write beyond that
-- point was lost in a failover. Only a superuser may read the file, hence
-- SECURITY DEFINER; it names no file but this one.
create or replace function ringfence.timelines() returns text
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select coalesce(pg_read_file(
    'pg_wal/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || '.history',
    0, 1000000, true), '')
$$;
revoke all on function ringfence.timelines() from public;
grant execute on function ringfence.timelines() to ringfence_router, ringfence_worker;
