-- Roles, and what nobody but the owner may do. Passwords are set by the installer.
-- Every file here may be run again: the installer runs it whenever its text changes.

do $$
declare
  role record;
begin
  for role in
    select * from (values
      -- Holds what every API role needs; `anon` and the others are its members.
      ('ringfence_api',      'nologin'),
      ('anon',               'nologin'),
      ('authenticated',      'nologin'),
      ('service_role',       'nologin'),
      -- Owns the application's tables.
      ('ringfence_owner',    'nologin'),
      -- Owns enter(): may read the fence, nothing else.
      ('ringfence_guard',    'nologin'),
      -- An owner's own back-fill under FORCE ROW LEVEL SECURITY would update nothing.
      ('ringfence_migrator', 'login bypassrls'),
      ('ringfence_router',   'login noinherit'),
      -- Without BYPASSRLS the initial copy of a move is silently empty.
      ('ringfence_mover',    'login replication bypassrls'),
      -- What people ask of all shards (`ringfence query`): reads, nothing else. It
      -- logs in by itself: what another role had set it to would be undone by
      -- `set_config('role', 'none')`, inside of any query.
      ('ringfence_reader',   'login bypassrls'),
      -- It reads the change capture's slot.
      ('ringfence_worker',   'login replication')
    ) as wanted (name, options)
  loop
    if not exists (select from pg_catalog.pg_roles r where r.rolname = role.name) then
      execute format('create role %I %s', role.name, role.options);
    end if;
  end loop;
  -- Where they are from before they could. Looked at first: databases of one server
  -- that are installed at once would write the same rows.
  if not (select r.rolreplication from pg_catalog.pg_roles r where r.rolname = 'ringfence_worker') then
    alter role ringfence_worker replication;
  end if;
  if not (select r.rolcanlogin from pg_catalog.pg_roles r where r.rolname = 'ringfence_reader') then
    alter role ringfence_reader login;
  end if;
  if exists (select from pg_catalog.pg_auth_members m
      where m.roleid = 'pg_monitor'::regrole and m.member = 'ringfence_reader'::regrole) then
    revoke pg_monitor from ringfence_reader;
  end if;
end
$$;

grant ringfence_api to anon, authenticated, service_role;
grant anon, authenticated, service_role to ringfence_router;
grant ringfence_owner to ringfence_migrator;
grant pg_monitor to ringfence_worker, ringfence_mover;
-- Not pg_monitor, which also reads settings: a standby's hold the password that it
-- replicates with.
grant pg_read_all_stats, pg_stat_scan_tables to ringfence_reader;
-- Workers of the release before log in as the mover, and become the reader.
grant ringfence_reader to ringfence_mover;

-- A temporary table would shadow a tenant table for the connection's next user.
do $$
begin
  execute format('revoke temporary, create on database %I from public', current_database());
  execute format('grant connect on database %I to ringfence_router, ringfence_worker, ringfence_migrator, ringfence_mover, ringfence_reader', current_database());
end
$$;

revoke create on schema public from public;
grant usage on schema public to ringfence_api, ringfence_router, ringfence_mover, ringfence_reader, ringfence_worker;
grant usage, create on schema public to ringfence_owner, ringfence_migrator;

-- Tables are opened to API roles by distribute() and reference() alone, so that
-- no function or view reaches a table that is not scoped yet.
do $$
declare
  creator text;
begin
  foreach creator in array array[current_user, 'ringfence_owner', 'ringfence_migrator'] loop
    execute format('alter default privileges for role %I in schema public grant usage, select on sequences to authenticated, service_role', creator);
  end loop;
end
$$;

create schema if not exists ringfence;
revoke all on schema ringfence from public;
grant usage on schema ringfence
  to ringfence_api, ringfence_router, ringfence_worker, ringfence_guard, ringfence_owner, ringfence_migrator, ringfence_mover, ringfence_reader;
