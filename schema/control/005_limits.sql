-- Limits by plan, with a tenant's own before them (tenancy/src/quota.rs). A
-- change takes a version, so routers hear of it as of any other.

update ringfence.tenant set plan = 'default' where plan not in (select id from ringfence.plan);
alter table ringfence.tenant add constraint tenant_plan foreign key (plan) references ringfence.plan;
alter table ringfence.plan
  add constraint plan_id_check check (id ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  add constraint plan_limits_check check (jsonb_typeof(limits) = 'object');
create index tenant_by_plan on ringfence.tenant (plan);
