-- Gives the control database to a role that is no superuser, `ringfence_owner`, as
-- whom workers then log in. For a superuser, in that database; safe to run again.
-- What was made by somebody else before becomes its own.
do $$
declare
  found record;
begin
  if not exists (select from pg_roles where rolname = 'ringfence_owner') then
    -- Makes the roles that routers and workers are; no others come of it. It could
    -- make itself as much as a superuser on PostgreSQL 15; from 16 on it can't.
    create role ringfence_owner login createrole;
  end if;
  execute format('alter database %I owner to ringfence_owner', current_database());
  if to_regnamespace('ringfence') is null then
    return;
  end if;
  alter schema ringfence owner to ringfence_owner;
  -- Sequences go with their tables.
  for found in
    select oid::regclass as name from pg_class
    where relnamespace = 'ringfence'::regnamespace and relkind in ('r', 'v')
  loop
    execute format('alter table %s owner to ringfence_owner', found.name);
  end loop;
  for found in select oid::regprocedure as name from pg_proc where pronamespace = 'ringfence'::regnamespace loop
    execute format('alter function %s owner to ringfence_owner', found.name);
  end loop;
  grant ringfence_router, ringfence_worker to ringfence_owner with admin option;
end
$$;
