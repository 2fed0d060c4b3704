-- Jobs: work of many steps, done by whichever worker holds the row's lease.
-- What is known of one is its row; a worker that dies leaves nothing else.

alter table ringfence.job
  -- What it is done to, for people: a tenant's slug, a shard.
  add column object text not null default '',
  -- A tenant has one open job at most: they would get into each other's way.
  add column tenant uuid,
  -- Shards that it works on: bounds what runs on one at a time.
  add column shards text[] not null default '{}',
  add column actor  text not null default '',
  -- 'stuck' waits for a person; the last three are ends.
  add column status text not null default 'open'
    check (status in ('open', 'stuck', 'done', 'failed', 'cancelled')),
  -- The state's name and how far it is, for people.
  add column phase    text not null default '',
  add column progress jsonb,
  -- Not before; tries after an error wait longer and longer.
  add column due_at   timestamptz not null default now(),
  add column cancel_requested boolean not null default false,
  -- The last error: code, message, advice. Cleared by the next step that succeeds.
  add column problem  jsonb,
  add column result   jsonb,
  add constraint job_done_is_an_end check (done = (status in ('done', 'failed', 'cancelled')));
create unique index job_one_open_a_tenant on ringfence.job (tenant) where not done;
create index job_by_age on ringfence.job (created_at desc, id);

-- Who watches is told of each transition; a lease's renewal is none.
create function ringfence.notify_job() returns trigger
language plpgsql as $$
begin
  perform pg_notify('ringfence_job', new.id::text);
  return null;
end
$$;
create trigger notify_job after insert or update of revision, cancel_requested on ringfence.job
  for each row execute function ringfence.notify_job();

-- The audit log only grows, also for the owner of the database.
create function ringfence.refuse_audit_change() returns trigger
language plpgsql as $$
begin
  raise exception using errcode = 'RF013', message = 'the audit log can only be added to';
end
$$;
create trigger refuse_audit_change before update or delete or truncate on ringfence.audit
  for each statement execute function ringfence.refuse_audit_change();
create index audit_by_time on ringfence.audit (at desc, id desc);

-- A tenant whose rows are being imported is nobody's to serve yet.
alter table ringfence.tenant drop constraint tenant_state_check,
  add constraint tenant_state_check check (state in ('creating', 'active', 'suspended', 'deleted', 'importing'));
