-- Functions of every shape that can be called, for the requests by hand.

create function f_defaults(a int, b text default 'bee', c boolean default true) returns json language sql immutable as
  $$ select json_build_object('a', a, 'b', b, 'c', c) $$;
create function f_all_defaults(a int default 1, b int default 2) returns int language sql immutable as $$ select a * 10 + b $$;
create function f_void_stable() returns void language plpgsql stable as $$ begin end $$;
create function f_ints(up_to int) returns setof int language sql immutable as $$ select generate_series(1, up_to) $$;
create function f_table(n int) returns table (id int, span int4range, tags text[], note jsonb) language sql immutable as
  $$ select i, int4range(i, i + 3), array['t' || i, null], jsonb_build_object('i', i) from generate_series(1, n) i $$;
create function f_one_column() returns table (only_one text) language sql immutable as $$ values ('a'), ('b') $$;
create function f_out_one(out n int) language sql immutable as $$ select 7 $$;
create function f_out_two(a int, out b int, out c text) language sql immutable as $$ select a + 1, 'c' || a $$;
create function f_inout(inout a int) language sql immutable as $$ select a * 2 $$;
create function f_out_set(n int, out b int, out c text) returns setof record language sql immutable as
  $$ select i, 'c' || i from generate_series(1, n) i $$;
create function f_no_row() returns shows language sql stable as $$ select * from public.shows where id = -1 $$;
create function f_array() returns int[] language sql immutable as $$ select array[1, null, 3] $$;
create function f_arrays() returns setof text[] language sql immutable as $$ values (array['a', 'b']), (array['c,d']), (null) $$;
create function f_range() returns daterange language sql immutable as $$ select '[2020-01-01,2020-02-01)'::daterange $$;
create function f_composite(a numeric default 1.5) returns price_note language sql immutable as $$ select (a, 'SEK')::public.price_note $$;
create function f_composites() returns setof price_note language sql immutable as
  $$ values ((1, 'EUR')::public.price_note), ((2.25, null)::public.price_note) $$;
create function f_take_composite(p price_note) returns text language sql immutable as $$ select p.currency || p.amount $$;
create function f_enums() returns setof mood language sql immutable as $$ values ('calm'::public.mood), ('bitter sweet') $$;
create function f_domain(m email) returns email language sql immutable as $$ select m $$;
create function f_big() returns numeric language sql immutable as $$ select 12345678901234567890.123456789 $$;
create function f_bigint() returns bigint language sql immutable as $$ select 9223372036854775807 $$;
create function f_float() returns float8 language sql immutable as $$ select 'Infinity'::float8 $$;
create function f_bytea() returns bytea language sql immutable as $$ select '\x0001ff'::bytea $$;
create function f_stamp() returns timestamptz language sql stable as $$ select '2020-06-01 12:00:00+00'::timestamptz $$;
create function f_interval() returns interval language sql immutable as $$ select interval '1 day 2 hours' $$;
create function f_bool() returns boolean language sql immutable as $$ select false $$;
create function f_json_null() returns json language sql immutable as $$ select 'null'::json $$;
create function f_jsonb(doc jsonb) returns jsonb language sql immutable as $$ select doc || '{"seen": true}' $$;
create function f_json_set() returns setof json language sql immutable as $$ values ('{"a":1}'::json), ('[2]'), ('null') $$;
create function f_raw_jsonb(jsonb) returns jsonb language sql immutable as $$ select $1 $$;
create function f_raw_xml(xml) returns xml language sql immutable as $$ select $1 $$;
create function f_raw_bytes(bytea) returns int language sql immutable as $$ select length($1) $$;
create function f_raw_bytes_back(bytea) returns bytea language sql immutable as $$ select $1 $$;
create function f_texts(variadic words text[]) returns text language sql immutable as $$ select array_to_string(words, '|') $$;
create function f_variadic_default(variadic words text[] default array['none']) returns text language sql immutable as
  $$ select array_to_string(words, '|') $$;
create function f_array_arg(a int[]) returns int language sql immutable as $$ select coalesce(cardinality(a), -1) $$;
create function "f Quoted-Näme"("An Argument" text) returns text language sql immutable as $$ select "An Argument" $$;
create function f_char(a char(3), b varchar(2)) returns text language sql immutable as $$ select a || b $$;
create function f_dates(d date, t timestamptz default null) returns text language sql immutable as $$ select d::text $$;
create function f_uuid(u uuid) returns uuid language sql immutable as $$ select u $$;
create function f_strict(a int) returns int language sql immutable strict as $$ select 1 $$;
create function f_same_name(id int) returns setof labels language sql stable as
  $$ select * from public.labels l where l.id >= f_same_name.id $$;
create function f_labels() returns setof labels language sql stable as $$ select * from public.labels $$;
create function f_add_label(id int, name text) returns labels language sql volatile as
  $$ insert into public.labels values (id, name) returning labels.* $$;
create function f_overload_default(a int) returns text language sql immutable as $$ select 'one' $$;
create function f_overload_default(a int, b int default 1) returns text language sql immutable as $$ select 'two' $$;
create function f_overload_json(json) returns text language sql immutable as $$ select 'json' $$;
create function f_overload_json(a int) returns text language sql immutable as $$ select 'a' $$;

create function f_setting(name text) returns text language sql stable as $$ select current_setting(name, true) $$;
create function f_header(name text) returns text language sql stable as
  $$ select current_setting('request.headers', true)::json ->> name $$;
create function f_cookie(name text) returns text language sql stable as
  $$ select current_setting('request.cookies', true)::json ->> name $$;
create function f_claim(name text) returns text language sql stable as
  $$ select current_setting('request.jwt.claims', true)::json ->> name $$;
create function f_status(code text, headers text default null) returns text language plpgsql volatile as $$
begin
  perform set_config('response.status', code, true);
  if headers is not null then perform set_config('response.headers', headers, true); end if;
  return 'done';
end $$;
create function f_raise_pgrst(message text, detail text) returns void language plpgsql volatile as $$
begin
  raise sqlstate 'PGRST' using message = f_raise_pgrst.message, detail = f_raise_pgrst.detail;
end $$;
create function f_raise(code text, message text) returns void language plpgsql volatile as $$
begin
  raise exception using errcode = code, message = f_raise.message;
end $$;
create function f_assert() returns void language plpgsql volatile as $$ begin assert false, 'must not be'; end $$;
create function f_divide(a int, b int) returns int language sql immutable as $$ select a / b $$;
create procedure work_done_quietly() language sql as $$ select 1 $$;
create function on_change_hook() returns trigger language plpgsql as $$ begin return new; end $$;
create function f_two_unnamed(int, int) returns int language sql immutable as $$ select 1 $$;
create function lone_number(int) returns int language sql immutable as $$ select 1 $$;
create aggregate f_aggregate(int) (sfunc = int4pl, stype = int, initcond = '0');
