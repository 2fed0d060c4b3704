-- Plans of balance: what was shown is what is applied, by its hash.
create table ringfence.rebalance_plan (
  hash       text primary key,
  plan       jsonb not null,
  created_at timestamptz not null default now()
);
create index rebalance_plan_by_age on ringfence.rebalance_plan (created_at);
grant select, insert, update, delete on ringfence.rebalance_plan to ringfence_worker;

-- Stays where it is, whatever plans of balance say.
alter table ringfence.tenant add column pinned boolean not null default false;
