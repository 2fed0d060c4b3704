-- Two plans at once would move the same tenants.
create unique index job_one_open_rebalance on ringfence.job (kind) where kind = 'rebalance' and not done;

-- No tenant is imported by itself.
alter table ringfence.tenant drop constraint tenant_state_check,
  add constraint tenant_state_check check (state in ('creating', 'active', 'suspended', 'deleted'));
