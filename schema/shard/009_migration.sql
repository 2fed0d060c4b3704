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
