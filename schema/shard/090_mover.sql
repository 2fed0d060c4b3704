-- What `ringfence_mover` may do: take a tenant's rows as they are and give
-- them back, wherever they are. It passes row level security, so every
-- statement of its names the tenant.

-- Rows are copied and deleted whole: neither triggers nor foreign keys fire.
do $$
begin
  -- Of the whole server: two databases that are prepared at once must not both write it.
  if not has_parameter_privilege('ringfence_mover', 'session_replication_role', 'set') then
    grant set on parameter session_replication_role to ringfence_mover;
  end if;
end
$$;
grant usage on schema ringfence to ringfence_mover;
grant select, insert, update, delete on ringfence.fence to ringfence_mover;
grant select on ringfence.schema_version, ringfence.retired to ringfence_mover;
grant select on ringfence.fence to ringfence_reader;

-- Tables that were distributed before they were opened to it.
do $$
declare
  t regclass;
begin
  for t in
    select r.relid from ringfence.relation r
    union
    select p.relid from ringfence.relation r join pg_class c on c.oid = r.relid and c.relkind = 'p',
      pg_partition_tree(r.relid) p
  loop
    perform ringfence.open_to_mover(t);
  end loop;
end
$$;
