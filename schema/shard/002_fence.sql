-- The fence: whether this shard serves a tenant, and at which epoch.
-- Nothing that a router believes is trusted: every request passes enter().

create table if not exists ringfence.fence (
  tenant_id    uuid primary key,
  epoch        bigint not null check (epoch > 0),
  state        text not null default 'active' check (state in ('active', 'fenced', 'moved')),
  suspended    boolean not null default false,
  -- Where a moved tenant lives now.
  target_shard text,
  target_epoch bigint,
  changed_at   timestamptz not null default now(),
  check (state <> 'moved' or (target_shard is not null and target_epoch is not null))
);

grant select, insert, update, delete on ringfence.fence to ringfence_worker;
-- FOR SHARE asks for UPDATE.
grant select, update on ringfence.fence to ringfence_guard;

-- The tenant that this transaction has entered for; raises where there is none.
-- STABLE, and called in policies as a sub-select, so that a statement evaluates it once.
create or replace function ringfence.tenant_id() returns pg_catalog.uuid
language plpgsql stable parallel safe as $$
declare
  -- Every name is qualified: it runs with its caller's search_path.
  entered pg_catalog.text := pg_catalog.current_setting('ringfence.tenant_id', true);
begin
  -- A setting that was local to an earlier transaction reads as '' afterwards.
  if entered is null or entered operator(pg_catalog.=) '' then
    raise exception using
      errcode = 'RF000',
      message = 'no tenant has been entered in this transaction',
      hint = 'Call ringfence.enter() first, in the same transaction.';
  end if;
  return entered::pg_catalog.uuid;
end
$$;

-- The guard: refuses, or makes this transaction the tenant's.
--
-- p_mode: 'read'; 'write' takes the tenant's advisory lock, shared, before it
-- reads the fence, without ever queueing behind a cut-over that holds it
-- exclusively. Above READ COMMITTED it also locks the fence's row, since its
-- snapshot may be older than the fence; 'write_strict' always does. A fence that
-- is being changed is waited for, 500 ms at most.
--
-- plpgsql and VOLATILE on purpose: so it reads the fence in a snapshot of its
-- own, taken after the lock was granted. SECURITY DEFINER, so that API roles
-- can't read the fence; without a SET clause, which would undo set_config and
-- cost time, and therefore with every name qualified.
create or replace function ringfence.enter(
  p_tenant uuid, p_epoch bigint, p_mode text, p_claims text, p_settings text[] default null
) returns uuid
language plpgsql volatile security definer parallel unsafe as $$
declare
  fence ringfence.fence;
  ignored pg_catalog.text;
  waits pg_catalog.text;
begin
  if p_mode operator(pg_catalog.=) 'read' then
    null;
  elsif p_mode operator(pg_catalog.=) 'write' or p_mode operator(pg_catalog.=) 'write_strict' then
    if not pg_catalog.pg_try_advisory_xact_lock_shared(pg_catalog.uuid_hash_extended(p_tenant, 0)) then
      raise exception using
        errcode = 'RF005', message = 'the tenant is being cut over', hint = 'Hold the request and try again.';
    end if;
    -- Rule 7: a commit that others see and a crash takes back is one that no log tells
    -- of: answers that were read meanwhile would stay in routers' caches.
    if pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.=) 'off' then
      ignored := pg_catalog.set_config('synchronous_commit', 'on', true);
    end if;
  else
    raise exception using
      errcode = '22023', message = 'the mode is ''read'', ''write'' or ''write_strict''';
  end if;

  if p_mode operator(pg_catalog.=) 'write_strict' or p_mode operator(pg_catalog.=) 'write'
     and pg_catalog.current_setting('transaction_isolation') operator(pg_catalog.<>) 'read committed' then
    waits := pg_catalog.current_setting('lock_timeout');
    begin
      ignored := pg_catalog.set_config('lock_timeout', '500ms', true);
      select f.* into fence from ringfence.fence f
        where f.tenant_id operator(pg_catalog.=) p_tenant for share;
      ignored := pg_catalog.set_config('lock_timeout', waits, true);
    exception when lock_not_available then
      raise exception using
        errcode = 'RF005', message = 'the tenant is being cut over', hint = 'Hold the request and try again.';
    end;
  else
    select f.* into fence from ringfence.fence f
      where f.tenant_id operator(pg_catalog.=) p_tenant;
  end if;

  if fence.state operator(pg_catalog.=) 'active'
     and fence.epoch operator(pg_catalog.=) p_epoch
     and not fence.suspended then
    if p_settings is not null then
      for i in 1 .. pg_catalog.cardinality(p_settings) by 2 loop
        ignored := pg_catalog.set_config(p_settings[i], p_settings[i operator(pg_catalog.+) 1], true);
      end loop;
    end if;
    -- Last, so that no setting can name another tenant or other claims.
    ignored := pg_catalog.set_config('request.jwt.claims', p_claims, true);
    ignored := pg_catalog.set_config('ringfence.tenant_id', p_tenant::pg_catalog.text, true);
    return p_tenant;
  end if;

  if fence.tenant_id is null then
    raise exception using errcode = 'RF001', message = 'the tenant is not on this shard';
  elsif fence.state operator(pg_catalog.=) 'moved' then
    raise exception using
      errcode = 'RF004', message = 'the tenant has moved to another shard',
      detail = pg_catalog.json_build_object('shard', fence.target_shard, 'epoch', fence.target_epoch)::pg_catalog.text;
  elsif fence.state operator(pg_catalog.=) 'fenced' then
    raise exception using
      errcode = 'RF003', message = 'the tenant is fenced', hint = 'Hold the request and try again.';
  elsif (fence.epoch operator(pg_catalog.=) p_epoch) is not true then
    raise exception using
      errcode = 'RF002', message = 'the placement is out of date',
      detail = pg_catalog.json_build_object('epoch', fence.epoch)::pg_catalog.text;
  else
    raise exception using errcode = 'RF006', message = 'the tenant is suspended';
  end if;
end
$$;

alter function ringfence.enter(uuid, bigint, text, text, text[]) owner to ringfence_guard;
revoke all on function ringfence.enter(uuid, bigint, text, text, text[]) from public;
grant execute on function ringfence.enter(uuid, bigint, text, text, text[])
  to ringfence_api, ringfence_router, ringfence_migrator;
