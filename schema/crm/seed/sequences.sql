-- The rows above name their ids: sequences go on after the highest one. They are
-- the shard's, not the tenant's, and only ever rise; seeds of several tenants
-- take turns from here to their commit.
select pg_advisory_xact_lock(hashtextextended('crm sequences', 0));
select setval(s.name, greatest(
    s.highest,
    (select coalesce(q.last_value, 0) from pg_sequences q
      where format('%I.%I', q.schemaname, q.sequencename)::regclass = s.name::regclass)))
from (
  select pg_get_serial_sequence('public.' || t, 'id') as name,
    current_setting('crm.first')::bigint + 2 * current_setting('crm.rows')::bigint + 1000 as highest
  from unnest(array['companies', 'contacts', 'leads', 'deals', 'activities', 'notes']) t
) s;
