-- Answers to writes that carried an Idempotency-Key, stored in the write's own
-- transaction: who asks again gets the answer instead of a second write.
--
-- A tenant table like the application's own, so whatever finds a tenant's rows
-- (moves, exports, deletion) finds these in ringfence.relation. API roles have
-- no rights on it: they pass through the two functions below, which know no
-- tenant but the one that was entered.

create table if not exists ringfence.idempotency (
  tenant_id   uuid not null,
  key         text collate "C" not null check (octet_length(key) between 1 and 255),
  -- Digest of the request and of who asked.
  fingerprint bytea not null,
  -- What the statement answered, without its body.
  answer      jsonb not null,
  body        text,
  expires_at  timestamptz not null,
  -- One row in a thousand, drawn by lot: so counting a tenant's keys is cheap.
  sampled     boolean not null,
  primary key (tenant_id, key)
);

select ringfence.distribute('ringfence.idempotency');
revoke all on ringfence.idempotency from anon, authenticated, service_role, ringfence_api, public;
grant select, insert, update on ringfence.idempotency to ringfence_guard;

create index if not exists idempotency_expires_at on ringfence.idempotency (expires_at);
create index if not exists idempotency_sampled on ringfence.idempotency (tenant_id, expires_at) where sampled;

-- The first step of a write with a key, behind enter(), whose result it takes
-- so that it can't run before. Returns only where the write has to be done.
-- The lock ends with the transaction, when its row can be seen or never will
-- be; it is tried and not waited for, so that who waits holds no connection.
create or replace function ringfence.claim(p_tenant uuid, p_key text, p_fingerprint bytea, p_keys_max bigint)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  known bytea;
  samples_max bigint := greatest(p_keys_max / 1000, 1);
  samples bigint;
begin
  -- Two integers: another space of locks than the tenants' own.
  if not pg_try_advisory_xact_lock(uuid_hash(p_tenant), hashtext(p_key)) then
    raise exception using
      errcode = 'RF032', message = 'A request with this Idempotency-Key is still being answered',
      hint = 'Ask again in a moment.';
  end if;
  select i.fingerprint into known from ringfence.idempotency i
    where i.tenant_id = p_tenant and i.key = p_key and i.expires_at > now();
  if known = p_fingerprint then
    raise exception using errcode = 'RF035', message = 'this request was answered already';
  elsif known is not null then
    raise exception using
      errcode = 'RF031', message = 'This Idempotency-Key belongs to another request',
      detail = 'Method, path, query, body, the headers that shape the answer, or who asks differ from those of the request that used it first.',
      hint = 'Send a new key with each new write, and the same one only with the very same request.';
  end if;
  select count(*) into samples from (
    select from ringfence.idempotency i
    where i.tenant_id = p_tenant and i.sampled and i.expires_at > now() limit samples_max) s;
  if samples >= samples_max then
    raise exception using
      errcode = 'RF033', message = 'Too many Idempotency-Keys',
      detail = format('About %s are kept at once, each until it expires.', p_keys_max),
      hint = 'Send keys only with writes that must not happen twice, or write without one.';
  end if;
end
$$;

-- The last step: keeps the answer. An expired row of that key gives way.
create or replace function ringfence.keep(
  p_key text, p_fingerprint bytea, p_seconds integer, p_body_bytes_max integer, p_answer jsonb
) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  body text := p_answer ->> 'body';
begin
  if octet_length(body) > p_body_bytes_max then
    raise exception using
      errcode = 'RF034', message = 'The answer is too large to be kept for an Idempotency-Key',
      detail = format('It has %s bytes; at most %s are kept. Nothing was written.', octet_length(body), p_body_bytes_max),
      hint = 'Ask for less: Prefer: return=minimal, or a shorter select.';
  end if;
  insert into ringfence.idempotency as i (tenant_id, key, fingerprint, answer, body, expires_at, sampled)
    values (ringfence.tenant_id(), p_key, p_fingerprint, p_answer - 'body', body,
      now() + make_interval(secs => p_seconds), random() < 0.001)
    on conflict (tenant_id, key) do update
      set fingerprint = excluded.fingerprint, answer = excluded.answer, body = excluded.body,
        expires_at = excluded.expires_at, sampled = excluded.sampled
      where i.expires_at <= now();
  if not found then
    -- Only a write that did not claim its key gets here.
    raise exception using
      errcode = 'RF032', message = 'A request with this Idempotency-Key is still being answered',
      hint = 'Ask again in a moment.';
  end if;
end
$$;

-- What was answered to the request; all NULL where nothing is kept of it.
-- With the row's lock this transaction writes to the log: where commits wait for
-- synchronous standbys so does this one, and by then they have the write that is
-- told of, too. That write's own wait may have been cut short.
create or replace function ringfence.kept(
  p_key text, p_fingerprint bytea,
  out total bigint, out page bigint, out body text, out headers text, out status text,
  out inserted bigint, out location text
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  select (i.answer ->> 'total')::bigint, (i.answer ->> 'page')::bigint, i.body, i.answer ->> 'headers',
      i.answer ->> 'status', (i.answer ->> 'inserted')::bigint, i.answer ->> 'location'
    into total, page, body, headers, status, inserted, location
    from ringfence.idempotency i
    where i.tenant_id = ringfence.tenant_id() and i.key = p_key
      and i.fingerprint = p_fingerprint and i.expires_at > now()
    for share;
end
$$;

alter function ringfence.claim(uuid, text, bytea, bigint) owner to ringfence_guard;
alter function ringfence.keep(text, bytea, integer, integer, jsonb) owner to ringfence_guard;
alter function ringfence.kept(text, bytea) owner to ringfence_guard;
revoke all on function
  ringfence.claim(uuid, text, bytea, bigint),
  ringfence.keep(text, bytea, integer, integer, jsonb),
  ringfence.kept(text, bytea)
from public;
grant execute on function
  ringfence.claim(uuid, text, bytea, bigint),
  ringfence.keep(text, bytea, integer, integer, jsonb),
  ringfence.kept(text, bytea)
to ringfence_api;

-- Removes at most that many expired rows, of the tenants that this shard
-- serves: a tenant under way would differ between its two shards. It stays
-- the installer's, a superuser's, who passes row security.
create or replace function ringfence.forget_expired_keys(p_rows integer) returns bigint
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with expired as (
    select i.tenant_id, i.key from ringfence.idempotency i
    join ringfence.fence f on f.tenant_id = i.tenant_id and f.state = 'active'
    where i.expires_at <= now()
    order by i.expires_at
    limit p_rows
    for update of i skip locked
  ), gone as (
    delete from ringfence.idempotency i using expired e
    where i.tenant_id = e.tenant_id and i.key = e.key
    returning 1
  )
  select count(*) from gone
$$;
revoke all on function ringfence.forget_expired_keys(integer) from public;
grant execute on function ringfence.forget_expired_keys(integer) to ringfence_worker;
