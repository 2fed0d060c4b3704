-- Imports of tenants under way on this shard: what has come in, written in the
-- transaction that put the rows there. A part that is noted is not put twice;
-- none is put once the import is closed. Removed when the import's job ends.

create table if not exists ringfence.import (
  job      uuid primary key,
  tenant   uuid not null,
  state    text not null default 'open' check (state in ('open', 'complete', 'closed')),
  -- The archive's own, as it came, and its digest: only the same one goes on.
  manifest jsonb not null,
  digest   bytea not null,
  -- Why the archive can't be used, where it can't.
  problem  jsonb,
  began_at timestamptz not null default now()
);

create table if not exists ringfence.import_part (
  job    uuid not null,
  path   text not null,
  -- The table's place in the manifest.
  item   integer not null,
  rows   bigint not null,
  bytes  bigint not null,
  digest bytea not null,
  at     timestamptz not null default clock_timestamp(),
  primary key (job, path)
);

grant select, insert, update, delete on ringfence.import, ringfence.import_part to ringfence_mover;
