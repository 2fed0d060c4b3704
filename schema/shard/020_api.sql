-- What the data API's statements raise by themselves, so that the transaction
-- they are in writes nothing. SQLSTATE 'PGRST' carries the whole answer: the
-- message is the body, DETAIL status and headers.

create or replace function ringfence.refuse(status int, code text, message text, details text)
returns void
language plpgsql as $$
begin
  raise sqlstate 'PGRST' using
    message = pg_catalog.json_build_object('code', code, 'message', message, 'details', details, 'hint', null),
    detail = pg_catalog.json_build_object('status', status, 'headers', pg_catalog.json_build_object());
end
$$;

-- Exactly one row was asked for (`Accept: application/vnd.pgrst.object+json`).
create or replace function ringfence.require_one(affected bigint) returns bigint
language plpgsql as $$
begin
  if affected operator(pg_catalog.<>) 1 then
    perform ringfence.refuse(406, 'PGRST116', 'Cannot coerce the result to a single JSON object',
      pg_catalog.format('The result contains %s rows', affected));
  end if;
  return affected;
end
$$;

-- At most `bound` rows may be affected (`Prefer: handling=strict, max-affected=n`).
create or replace function ringfence.require_at_most(affected bigint, bound bigint) returns bigint
language plpgsql as $$
begin
  if affected operator(pg_catalog.>) bound then
    perform ringfence.refuse(400, 'PGRST124', 'Query result exceeds max-affected preference constraint',
      pg_catalog.format('The query affects %s rows', affected));
  end if;
  return affected;
end
$$;

-- What an entity tag says of a row: half a SHA-256 of its JSON, in hexadecimal.
-- The router makes the same of what it has read (router/src/tag.rs).
create or replace function ringfence.row_state(json text) returns text
language sql immutable strict parallel safe as $$
  select pg_catalog."left"(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(json, 'UTF8')), 'hex'), 32)
$$;

-- The row must be there, and as `If-Match` says: else no row was written.
create or replace function ringfence.require_match(affected bigint) returns bigint
language plpgsql as $$
begin
  if affected operator(pg_catalog.=) 0 then
    perform ringfence.refuse(412, 'RF040', 'The row is not as If-Match says',
      'It was changed or deleted since it was read, or can''t be seen.');
  end if;
  return affected;
end
$$;

-- PUT's body must hold the key that its URL names, and nothing else.
create or replace function ringfence.require_key(affected bigint) returns bigint
language plpgsql as $$
begin
  if affected operator(pg_catalog.<>) 1 then
    perform ringfence.refuse(400, 'PGRST115', 'Payload values do not match URL in primary key column(s)', null);
  end if;
  return affected;
end
$$;

-- What a write answers is held in the router's memory until it is sent: one that would
-- answer more is undone. Bytes as they are here, that is about as they are sent.
create or replace function ringfence.require_bytes(bytes integer, bound bigint) returns void
language plpgsql as $$
begin
  if bytes operator(pg_catalog.>) bound then
    perform ringfence.refuse(422, 'RF052', pg_catalog.format('The answer is larger than %s bytes', bound),
      'Nothing was written. Ask for less: Prefer: return=minimal, or a shorter select.');
  end if;
end
$$;

grant execute on function
  ringfence.refuse(int, text, text, text),
  ringfence.row_state(text),
  ringfence.require_match(bigint),
  ringfence.require_bytes(integer, bigint),
  ringfence.require_one(bigint),
  ringfence.require_at_most(bigint, bigint),
  ringfence.require_key(bigint)
to ringfence_api;
