-- The application's migration files with their text, so that any worker goes
-- on where another stopped, and a new shard gets all of them.

alter table ringfence.migration
  add column text text not null default '',
  -- All shards have it: from now on it can't be changed, and new shards get it.
  add column applied boolean not null default false;

-- Two runs at once would get into each other's way on every shard.
create unique index job_one_open_migration on ringfence.job (kind) where kind = 'migrate' and not done;
