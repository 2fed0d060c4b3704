-- The control database: what there is (regions, shards, nodes, tenants), who
-- may come in (keys, issuers), and what is being done (jobs, migrations, audit).

create schema if not exists ringfence;
revoke all on schema ringfence from public;

-- Every change that routers must see takes its number here. One row, updated:
-- numbers are given in commit order, so a router that has seen n misses none below it.
create table ringfence.version (
  single  boolean primary key default true check (single),
  version bigint not null,
  -- The number of the last change to anything but tenants and keys.
  fleet   bigint not null
);
insert into ringfence.version values (true, 1, 1);

create function ringfence.next_version(fleet_changed boolean) returns bigint
language plpgsql as $$
declare
  taken bigint;
begin
  update ringfence.version v
    set version = v.version + 1, fleet = case when fleet_changed then v.version + 1 else v.fleet end
    returning v.version into taken;
  -- Only the number: what changed is fetched by whoever wants it.
  perform pg_notify('ringfence_placement', taken::text);
  return taken;
end
$$;

create table ringfence.region (
  id         text primary key check (id ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  is_default boolean not null default false
);
create unique index region_one_default on ringfence.region (is_default) where is_default;
insert into ringfence.region values ('local', true);

create table ringfence.shard (
  id         text primary key check (id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  region     text not null references ringfence.region,
  -- Share of the ring: 256 virtual nodes each.
  weight     double precision not null default 1 check (weight > 0 and weight <= 100),
  -- 'preparing' shards are not on the ring yet.
  state      text not null default 'preparing' check (state in ('preparing', 'active', 'draining')),
  created_at timestamptz not null default now()
);

create table ringfence.node (
  name      text primary key check (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  shard     text not null references ringfence.shard on delete cascade,
  host      text not null,
  port      integer not null check (port between 1 and 65535),
  -- What workers saw last; never configured.
  role      text check (role in ('primary', 'replica')),
  system_id text,
  timeline  integer,
  replay_lsn pg_lsn,
  lag_bytes bigint,
  seen_at   timestamptz,
  error     text,
  unique (host, port)
);
create index node_by_shard on ringfence.node (shard);

create table ringfence.tenant (
  id         uuid primary key,
  slug       text not null unique check (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  name       text not null,
  region     text not null references ringfence.region,
  shard      text not null references ringfence.shard,
  epoch      bigint not null default 1 check (epoch > 0),
  -- What the ring says; differs from shard where the tenant is pinned or not moved yet.
  ring_shard text not null references ringfence.shard,
  state      text not null default 'creating' check (state in ('creating', 'active', 'suspended', 'deleted')),
  plan       text not null default 'default',
  limits     jsonb,
  version    bigint not null,
  -- Was ever anything but (ring's shard, epoch 1, default region, active): only
  -- then have routers heard of it, and must hear of its changes.
  exceptional boolean not null default false,
  created_at timestamptz not null default now()
);
create index tenant_by_version on ringfence.tenant (version, id) where exceptional;
create index tenant_by_shard on ringfence.tenant (shard);
create index tenant_unfinished on ringfence.tenant (created_at) where state = 'creating';

create table ringfence.api_key (
  id         bigint generated always as identity primary key,
  tenant     uuid not null references ringfence.tenant,
  role       text not null,
  name       text,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  revoked_at timestamptz,
  version    bigint not null
);
create index api_key_by_tenant on ringfence.api_key (tenant);
create index api_key_revoked on ringfence.api_key (version) where revoked_at is not null;

create table ringfence.jwt_issuer (
  -- The token's `iss`.
  name        text primary key,
  -- Either an HS256 secret or a JWKS document.
  secret      text,
  jwks        jsonb,
  audience    text,
  -- Tenants that it may name; null means all.
  tenants     uuid[],
  created_at  timestamptz not null default now(),
  check ((secret is null) <> (jwks is null))
);

create table ringfence.plan (
  id     text primary key,
  limits jsonb not null default '{}'
);
insert into ringfence.plan values ('default');

create table ringfence.job (
  id         uuid primary key default gen_random_uuid(),
  kind       text not null,
  -- The state with its progress, as the job's own enum writes it.
  state      jsonb not null,
  done       boolean not null default false,
  attempt    integer not null default 0,
  lease_owner text,
  lease_until timestamptz,
  -- For compare-and-set.
  revision   bigint not null default 1,
  created_at timestamptz not null default now(),
  changed_at timestamptz not null default now()
);
create index job_open on ringfence.job (created_at) where not done;

create table ringfence.migration (
  directory  text not null,
  number     integer not null,
  name       text not null,
  checksum   text not null,
  phase      text not null default 'expand' check (phase in ('expand', 'contract')),
  created_at timestamptz not null default now(),
  primary key (directory, number)
);

create table ringfence.audit (
  id     bigint generated always as identity primary key,
  at     timestamptz not null default now(),
  actor  text not null,
  action text not null,
  object text not null,
  before jsonb,
  after  jsonb,
  result text not null
);
create index audit_by_object on ringfence.audit (object, id desc);

-- Work that one worker does at a time, e.g. watching nodes.
create table ringfence.lease (
  name  text primary key,
  owner text not null,
  until timestamptz not null
);

do $$
declare
  role text;
begin
  foreach role in array array['ringfence_router', 'ringfence_worker'] loop
    if not exists (select from pg_roles r where r.rolname = role) then
      execute format('create role %I login', role);
    end if;
  end loop;
end
$$;

grant usage on schema ringfence to ringfence_router, ringfence_worker;
-- Routers read placements and revocations, nothing else.
grant select on ringfence.version, ringfence.region, ringfence.shard, ringfence.node,
  ringfence.tenant, ringfence.api_key, ringfence.jwt_issuer, ringfence.plan to ringfence_router;
grant select, insert, update, delete on all tables in schema ringfence to ringfence_worker;
-- The audit log only grows, whoever writes it.
revoke update, delete, truncate on ringfence.audit from ringfence_worker;
