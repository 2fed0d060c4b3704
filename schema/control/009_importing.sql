-- A tenant whose rows are being imported is nobody's to serve yet.
alter table ringfence.tenant drop constraint tenant_state_check,
  add constraint tenant_state_check check (state in ('creating', 'active', 'suspended', 'deleted', 'importing'));
