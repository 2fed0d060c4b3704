-- ringfence.distribute(t) turns an ordinary single-tenant table into one that
-- holds many tenants' rows; ringfence.reference(t) marks one that holds the
-- same rows for all. Both are one transaction, and the second time mend only what
-- was taken from the table since.

-- What each table was declared to be. The API trusts only what pg_policy and
-- pg_class prove, and reads from here whether the tenant column is hidden.
create table if not exists ringfence.relation (
  relid         regclass primary key,
  kind          text not null check (kind in ('distributed', 'reference')),
  tenant_column name,
  hidden        boolean not null default false,
  check ((kind = 'distributed') = (tenant_column is not null))
);

-- Foreign keys that wait for their other side to be distributed.
create table if not exists ringfence.pending_foreign_key (
  child      regclass not null,
  name       name not null,
  definition jsonb not null,
  primary key (child, name)
);

grant select on ringfence.relation to ringfence_router, ringfence_worker, ringfence_migrator, ringfence_mover;
grant select on ringfence.pending_foreign_key to ringfence_worker;
grant select, insert, update, delete on ringfence.relation, ringfence.pending_foreign_key to ringfence_owner;

create or replace function ringfence.refuse_truncate() returns trigger
language plpgsql as $$
begin
  -- Row level security does not stop TRUNCATE: it would empty every tenant.
  raise exception using
    errcode = 'RF010',
    message = format('TRUNCATE would remove the rows of every tenant in "%s"', tg_table_name),
    hint = 'DELETE removes the rows of the tenant that was entered.';
end
$$;

create or replace function ringfence.refuse_tenant_change() returns trigger
language plpgsql as $$
begin
  -- A row that moves into a move's row filter would arrive without its TOAST values.
  raise exception using
    errcode = 'RF011',
    message = format('a row of "%s" can''t be given to another tenant', tg_table_name),
    hint = 'Insert it for the other tenant, then delete it here.';
end
$$;

-- Row security, triggers and revokes of one table or partition. With `own_policies`,
-- row security was on already: what the authors' policies, or that there are none,
-- keep from API roles stays kept from them. Whom they did not bind they don't bind
-- now: service keys (Supabase's service_role has BYPASSRLS), and functions that run
-- as the tables' owner, unless row security was forced on it.
create or replace function ringfence.protect(t regclass, own_policies boolean) returns void
language plpgsql set client_min_messages = warning as $$
declare
  opened text := case
    when not own_policies then 'public'
    when (select c.relforcerowsecurity from pg_class c where c.oid = t) then 'service_role'
    else 'service_role, ringfence_owner' end;
  grantee record;
begin
  -- Restrictive: policies of the table's authors are ANDed with it, so that not
  -- even `using (true)` opens another tenant's rows.
  execute format('drop policy if exists ringfence_tenant on %s', t);
  execute format($policy$
    create policy ringfence_tenant on %s as restrictive for all to public
      using (tenant_id = (select ringfence.tenant_id()))
      with check (tenant_id = (select ringfence.tenant_id()))$policy$, t);
  if not exists (select from pg_policy p where p.polrelid = t and p.polname = 'ringfence_open') then
    execute format('create policy ringfence_open on %s as permissive for all to %s using (true) with check (true)', t, opened);
  end if;
  -- After the policy: each ALTER TABLE lets keep_relations() look for partitions without one.
  execute format('alter table %s enable row level security, force row level security', t);
  execute format('drop trigger if exists ringfence_refuse_truncate on %s', t);
  execute format('create trigger ringfence_refuse_truncate before truncate on %s for each statement execute function ringfence.refuse_truncate()', t);

  for grantee in
    select distinct coalesce(r.rolname, 'public') as name
    from pg_class c, aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
    where c.oid = t and a.grantee <> c.relowner
  loop
    execute format('revoke truncate, references, trigger on %s from %s', t,
      case grantee.name when 'public' then 'public' else quote_ident(grantee.name) end);
  end loop;
end
$$;

-- The same of a distributed table with its partitions.
create or replace function ringfence.protect_whole(t regclass, own_policies boolean) returns void
language plpgsql set client_min_messages = warning as $$
declare
  part regclass;
begin
  perform ringfence.protect(t, own_policies);
  execute format('drop trigger if exists ringfence_refuse_tenant_change on %s', t);
  -- AFTER, so that it sees what other triggers made of the row.
  execute format('create trigger ringfence_refuse_tenant_change after update on %s for each row when (old.tenant_id is distinct from new.tenant_id) execute function ringfence.refuse_tenant_change()', t);
  for part in select p.relid from pg_partition_tree(t) p where p.relid <> t loop
    perform ringfence.protect_partition(part);
  end loop;
end
$$;

-- Whether a distributed table is still as protect_whole() left it.
create or replace function ringfence.is_protected(t regclass) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select c.relrowsecurity and c.relforcerowsecurity
    and exists (
      select from pg_policy p
      where p.polrelid = t and p.polname = 'ringfence_tenant' and not p.polpermissive
        and p.polcmd = '*' and p.polroles = '{0}'
        and pg_get_expr(p.polqual, t) = '(tenant_id = ( SELECT ringfence.tenant_id() AS tenant_id))'
        and pg_get_expr(p.polwithcheck, t) = '(tenant_id = ( SELECT ringfence.tenant_id() AS tenant_id))')
    and exists (select from pg_policy p where p.polrelid = t and p.polname = 'ringfence_open')
    and 2 = (
      select count(*) from pg_trigger g
      where g.tgrelid = t and g.tgname in ('ringfence_refuse_truncate', 'ringfence_refuse_tenant_change')
        and g.tgenabled in ('O', 'A'))
  from pg_class c where c.oid = t
$$;

-- Whether the authors gave an API role rights on a table or view, or on columns of it.
create or replace function ringfence.is_granted(t regclass) returns boolean
language sql stable as $$
  select exists (
    select from (
      select c.relacl from pg_class c where c.oid = t
      union all select a.attacl from pg_attribute a where a.attrelid = t and not a.attisdropped) u (acl),
      aclexplode(u.acl) g join pg_roles r on r.oid = g.grantee
    where r.rolname in ('anon', 'authenticated', 'service_role', 'ringfence_api'))
$$;

-- The mover's rights on one table or partition: it copies tenants' rows, and
-- deletes those of a tenant that is gone. Whoever asks all shards may read it.
create or replace function ringfence.open_to_mover(t regclass) returns void
language plpgsql set client_min_messages = warning as $$
declare
  home name := (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = t);
begin
  if exists (select from ringfence.relation r where r.relid = t and r.kind = 'reference') then
    execute format('grant select on %s to ringfence_mover', t);
  else
    execute format('grant select, insert, update, delete on %s to ringfence_mover', t);
  end if;
  execute format('grant select on %s to ringfence_reader', t);
  if not (has_schema_privilege('ringfence_mover', home, 'usage') and has_schema_privilege('ringfence_reader', home, 'usage')) then
    execute format('grant usage on schema %I to ringfence_mover, ringfence_reader', home);
  end if;
end
$$;

-- A foreign key as a value: enough to make it again, with or without the tenant.
create or replace function ringfence.foreign_keys_of(t regclass)
returns setof jsonb
language sql stable as $$
  select jsonb_build_object(
      'name', k.conname,
      'child', k.conrelid::oid::bigint,
      'parent', k.confrelid::oid::bigint,
      'columns', (select jsonb_agg(a.attname order by c.n)
        from unnest(k.conkey) with ordinality c(num, n)
        join pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.num),
      'foreign_columns', (select jsonb_agg(a.attname order by c.n)
        from unnest(k.confkey) with ordinality c(num, n)
        join pg_attribute a on a.attrelid = k.confrelid and a.attnum = c.num),
      'set_columns', (select jsonb_agg(a.attname order by c.n)
        from unnest(k.confdelsetcols) with ordinality c(num, n)
        join pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.num),
      'on_update', k.confupdtype, 'on_delete', k.confdeltype, 'match', k.confmatchtype,
      'deferrable', k.condeferrable, 'deferred', k.condeferred, 'validated', k.convalidated,
      'comment', obj_description(k.oid, 'pg_constraint'))
  from pg_constraint k
  where k.contype = 'f' and k.conparentid = 0 and t in (k.conrelid, k.confrelid)
$$;

create or replace function ringfence.oid_of(definition jsonb, side text) returns regclass
language sql immutable as $$ select (definition ->> side)::oid::regclass $$;

-- The ALTER TABLE that makes a foreign key again, with the tenant in front.
create or replace function ringfence.tenant_foreign_key_sql(definition jsonb) returns text
language plpgsql stable as $$
declare
  columns text[] := array(select jsonb_array_elements_text(definition -> 'columns'));
  foreign_columns text[] := array(select jsonb_array_elements_text(definition -> 'foreign_columns'));
  set_columns text[] := coalesce(
    nullif(array(select jsonb_array_elements_text(nullif(definition -> 'set_columns', 'null'))), '{}'), columns);
  on_delete text := definition ->> 'on_delete';
  action constant jsonb := '{"a": "no action", "r": "restrict", "c": "cascade", "n": "set null", "d": "set default"}';
begin
  if definition ->> 'on_update' in ('n', 'd') then
    raise exception using
      errcode = 'RF012',
      message = format('foreign key "%s" says ON UPDATE SET %s, which would also clear the tenant',
        definition ->> 'name', case definition ->> 'on_update' when 'n' then 'NULL' else 'DEFAULT' end),
      hint = 'Make it NO ACTION, RESTRICT or CASCADE before distributing the table.';
  end if;
  if definition ->> 'match' = 'f' and cardinality(columns) > 1 then
    raise exception using
      errcode = 'RF012',
      message = format('foreign key "%s" is MATCH FULL over several columns', definition ->> 'name'),
      hint = 'With a tenant that is never null it could not hold: make it MATCH SIMPLE and add a CHECK.';
  end if;
  set_columns := array_remove(set_columns, 'tenant_id');
  if not 'tenant_id' = any(columns) then
    columns := array['tenant_id'] || columns;
    foreign_columns := array['tenant_id'] || foreign_columns;
  end if;
  return format('alter table %s add constraint %I foreign key (%s) references %s (%s) on update %s on delete %s%s%s%s',
    ringfence.oid_of(definition, 'child'),
    definition ->> 'name',
    (select string_agg(quote_ident(c), ', ' order by n) from unnest(columns) with ordinality u(c, n)),
    ringfence.oid_of(definition, 'parent'),
    (select string_agg(quote_ident(c), ', ' order by n) from unnest(foreign_columns) with ordinality u(c, n)),
    action ->> (definition ->> 'on_update'),
    action ->> on_delete,
    -- Without the column list SET NULL would clear the tenant, too.
    case when on_delete in ('n', 'd')
      then (select format(' (%s)', string_agg(quote_ident(c), ', ' order by n)) from unnest(set_columns) with ordinality u(c, n))
      else '' end,
    case when (definition ->> 'deferrable')::boolean
      then ' deferrable initially ' || case when (definition ->> 'deferred')::boolean then 'deferred' else 'immediate' end
      else '' end,
    case when (definition ->> 'validated')::boolean then '' else ' not valid' end);
end
$$;

-- Makes primary key, unique constraints, unique and btree indexes start with the tenant.
create or replace function ringfence.rebuild_keys(t regclass) returns void
language plpgsql as $$
declare
  key record;
  index record;
  start text;
  relation text := (select format('%I.%I', n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = t);
  clustered name := (select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
    where i.indrelid = t and i.indisclustered);
begin
  for key in
    select k.oid, k.conname, k.contype, k.condeferrable, k.condeferred, i.indnullsnotdistinct,
      obj_description(k.oid, 'pg_constraint') as comment,
      (select string_agg(quote_ident(a.attname), ', ' order by c.n) filter (where c.n <= i.indnkeyatts and a.attname <> 'tenant_id')
        from unnest(i.indkey::int2[]) with ordinality c(num, n)
        join pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.num) as columns,
      (select string_agg(quote_ident(a.attname), ', ' order by c.n) filter (where c.n > i.indnkeyatts)
        from unnest(i.indkey::int2[]) with ordinality c(num, n)
        join pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.num) as included
    from pg_constraint k
    join pg_index i on i.indexrelid = k.conindid
    join pg_attribute first on first.attrelid = k.conrelid and first.attnum = i.indkey[0]
    where k.conrelid = t and k.contype in ('p', 'u') and k.conparentid = 0 and first.attname <> 'tenant_id'
    order by k.contype
  loop
    execute format('alter table %s drop constraint %I', t, key.conname);
    execute format('alter table %s add constraint %I %s%s (tenant_id, %s)%s%s', t, key.conname,
      case key.contype when 'p' then 'primary key' else 'unique' end,
      case when key.indnullsnotdistinct then ' nulls not distinct' else '' end,
      key.columns,
      coalesce(' include (' || key.included || ')', ''),
      case when key.condeferrable
        then ' deferrable initially ' || case when key.condeferred then 'deferred' else 'immediate' end
        else '' end);
    if key.comment is not null then
      execute format('comment on constraint %I on %s is %L', key.conname, t, key.comment);
    end if;
  end loop;

  for index in
    select ic.relname, ic.relkind, i.indexrelid, i.indisunique, am.amname,
      pg_get_indexdef(i.indexrelid) as definition,
      obj_description(i.indexrelid, 'pg_class') as comment
    from pg_index i
    join pg_class ic on ic.oid = i.indexrelid
    join pg_am am on am.oid = ic.relam
    left join pg_attribute first on first.attrelid = i.indrelid and first.attnum = i.indkey[0]
    where i.indrelid = t
      -- Other access methods can't take a uuid without an extension.
      and am.amname = 'btree'
      and first.attname is distinct from 'tenant_id'
      and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
  loop
    start := format('CREATE %sINDEX %I ON %s%s USING %I (',
      case when index.indisunique then 'UNIQUE ' else '' end,
      index.relname,
      case index.relkind when 'I' then 'ONLY ' else '' end,
      relation, index.amname);
    if not starts_with(index.definition, start) then
      raise exception using
        errcode = 'RF012', message = format('index "%s" can''t be rebuilt', index.relname),
        detail = index.definition, hint = 'Drop it before, and make it again after distributing the table.';
    end if;
    execute format('drop index %s', index.indexrelid::regclass);
    execute format('CREATE %sINDEX %I ON %s USING btree (tenant_id, ',
        case when index.indisunique then 'UNIQUE ' else '' end, index.relname, relation)
      || substr(index.definition, length(start) + 1);
    if index.comment is not null then
      execute format('comment on index %I.%I is %L',
        (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = t),
        index.relname, index.comment);
    end if;
  end loop;
  if clustered is not null then
    execute format('alter table %s cluster on %I', t, clustered);
  end if;
end
$$;

-- UPDATE and DELETE must be replicable: by primary key, else by a unique index
-- over columns that can't be null, else by the whole row.
create or replace function ringfence.set_replica_identity(t regclass) returns void
language plpgsql as $$
declare
  part record;
  usable name;
begin
  for part in
    select c.oid::regclass as relid from pg_class c
    where c.relkind = 'r' and (c.oid = t or c.oid in (select p.relid from pg_partition_tree(t) p))
  loop
    if exists (select from pg_index i where i.indrelid = part.relid and i.indisprimary and i.indimmediate) then
      execute format('alter table %s replica identity default', part.relid);
      continue;
    end if;
    select ic.relname into usable
    from pg_index i join pg_class ic on ic.oid = i.indexrelid
    where i.indrelid = part.relid and i.indisunique and i.indimmediate and i.indpred is null and i.indexprs is null
      and not exists (select from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) c(num)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = c.num where not a.attnotnull)
    order by i.indnkeyatts, ic.relname limit 1;
    if usable is null then
      execute format('alter table %s replica identity full', part.relid);
    else
      execute format('alter table %s replica identity using index %I', part.relid, usable);
    end if;
  end loop;
end
$$;

-- Views over a distributed table run with their caller's rights from now on: with
-- their owner's they would not be served, for row security might not hold in them.
create or replace function ringfence.adopt_views(t regclass) returns void
language plpgsql as $$
declare
  adopted regclass;
begin
  for adopted in
    with recursive above (oid) as (
      select t::oid
      union
      select w.ev_class
      from above a
      join pg_depend d on d.refobjid = a.oid and d.refclassid = 'pg_class'::regclass
        and d.classid = 'pg_rewrite'::regclass
      join pg_rewrite w on w.oid = d.objid
    )
    select c.oid::regclass
    from above a
    join pg_class c on c.oid = a.oid and c.relkind = 'v'
    join pg_namespace n on n.oid = c.relnamespace and n.nspname <> 'ringfence'
    where pg_has_role(c.relowner, 'USAGE')
      and not coalesce((select o.option_value::boolean from pg_options_to_table(c.reloptions) o
        where o.option_name = 'security_invoker'), false)
      and not exists (select from pg_depend e
        where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
  loop
    execute format('alter view %s set (security_invoker = true)', adopted);
    raise notice 'view % runs with its caller''s rights from now on', adopted;
    if not ringfence.is_granted(adopted) then
      execute format('grant select, insert, update, delete on %s to authenticated, service_role', adopted);
    end if;
  end loop;
end
$$;

create or replace function ringfence.refuse_unless_distributable(t regclass) returns void
language plpgsql as $$
declare
  relation pg_class;
  problem text;
  advice text;
begin
  select * into relation from pg_class c where c.oid = t;
  if relation.relkind not in ('r', 'p') then
    problem := 'is not a table';
    advice := 'Views follow their tables: make them with (security_invoker = true).';
  elsif relation.relispartition then
    problem := 'is a partition';
    advice := 'Distribute the partitioned table; its partitions follow.';
  elsif relation.relpersistence <> 'p' then
    problem := 'is not logged, so it could not be moved to another shard';
    advice := 'ALTER TABLE … SET LOGGED first.';
  elsif relation.relkind = 'r' and exists (select from pg_inherits i where t in (i.inhrelid, i.inhparent)) then
    problem := 'takes part in inheritance';
    advice := 'Use partitions, or one table.';
  elsif exists (select from pg_constraint k where k.conrelid = t and k.contype = 'x') then
    problem := 'has an exclusion constraint, which would hold across tenants';
    advice := 'Drop it, distribute the table, and make it again with "tenant_id with =" (extension btree_gist).';
  elsif exists (select from ringfence.relation r where r.relid = t and r.kind = 'reference') then
    problem := 'is a reference table';
  elsif exists (
    select from pg_constraint k join ringfence.relation r on r.relid = k.conrelid
    where k.contype = 'f' and k.confrelid = t and r.kind = 'reference') then
    problem := 'is referenced by a reference table, whose rows belong to no tenant';
    advice := 'Drop that foreign key first.';
  elsif exists (
    select from pg_attribute a where a.attrelid = t and a.attname = 'tenant_id' and not a.attisdropped
      and a.atttypid <> 'uuid'::regtype) then
    problem := 'has a column tenant_id that is not a uuid';
    advice := 'Rename it, or change its type.';
  end if;
  if problem is not null then
    raise exception using
      errcode = 'RF012', message = format('%s %s', t, problem), hint = coalesce(advice, '');
  end if;
end
$$;

-- Turns an ordinary table into a distributed one. Rows that are there already
-- become those of the tenant `existing_rows`; without it the table must be empty
-- (or already have a uuid column tenant_id, which is adopted and stays visible).
-- Of a table that is distributed already, what keeps tenants apart is made again
-- where it was changed.
create or replace function ringfence.distribute(t regclass, existing_rows uuid default null) returns void
language plpgsql as $$
declare
  adopted boolean;
  filled boolean;
  rls boolean;
  fires text[];
  fire text;
  keys jsonb[];
  key jsonb;
  child regclass;
  owned regclass;
begin
  execute format('lock table %s in access exclusive mode', t);
  if exists (select from ringfence.relation r where r.relid = t and r.kind = 'distributed') then
    -- Whether it was open to all API roles is told by its policy; without that it is closed.
    if not ringfence.is_protected(t) then
      perform ringfence.protect_whole(t, true);
    end if;
    return;
  end if;
  perform ringfence.refuse_unless_distributable(t);
  adopted := exists (
    select from pg_attribute a where a.attrelid = t and a.attname = 'tenant_id' and not a.attisdropped);
  select c.relrowsecurity into rls from pg_class c where c.oid = t;

  if not adopted then
    execute format('select exists (select from %s)', t) into filled;
    if filled and existing_rows is null then
      raise exception using
        errcode = 'RF012', message = format('%s has rows, and no tenant was named for them', t),
        hint = format('select ringfence.distribute(%L, existing_rows => ''<tenant id>'')', t);
    end if;
    -- The default comes after the column: ADD COLUMN would evaluate it, and no tenant is entered.
    execute format('alter table %s add column tenant_id uuid', t);
    if filled then
      -- As the table's owner under FORCE ROW LEVEL SECURITY this would update nothing.
      execute format('alter table %s disable row level security', t);
      -- Each trigger gets back the state that it had: some may have been off.
      fires := array(
        select format('alter table %s enable %s trigger %I', t,
          case g.tgenabled when 'A' then 'always' when 'R' then 'replica' else '' end, g.tgname)
        from pg_trigger g where g.tgrelid = t and not g.tgisinternal and g.tgenabled <> 'D');
      execute format('alter table %s disable trigger user', t);
      execute format('update %s set tenant_id = %L', t, existing_rows);
      foreach fire in array fires loop
        execute fire;
      end loop;
    end if;
  end if;
  execute format('alter table %s alter column tenant_id set default ringfence.tenant_id(), alter column tenant_id set not null', t);

  -- Both directions: keys that reference t rest on the key that is rebuilt now.
  keys := array(
    select f.key from ringfence.foreign_keys_of(t) f(key)
    where ringfence.oid_of(f.key, 'parent') = t
      or exists (select from ringfence.relation r where r.relid = ringfence.oid_of(f.key, 'parent') and r.kind = 'distributed'));
  foreach key in array keys loop
    perform ringfence.tenant_foreign_key_sql(key);
    execute format('alter table %s drop constraint %I', ringfence.oid_of(key, 'child'), key ->> 'name');
  end loop;

  perform ringfence.rebuild_keys(t);
  insert into ringfence.relation values (t, 'distributed', 'tenant_id', not adopted);

  keys := keys || array(select p.definition from ringfence.pending_foreign_key p where p.child = t);
  delete from ringfence.pending_foreign_key p where p.child = t;
  foreach key in array keys loop
    child := ringfence.oid_of(key, 'child');
    if exists (select from ringfence.relation r where r.relid = child and r.kind = 'distributed') then
      execute ringfence.tenant_foreign_key_sql(key);
      if key ->> 'comment' is not null then
        execute format('comment on constraint %I on %s is %L', key ->> 'name', child, key ->> 'comment');
      end if;
    else
      insert into ringfence.pending_foreign_key values (child, key ->> 'name', key);
      raise notice 'foreign key "%" of % is made again once that table is distributed', key ->> 'name', child;
    end if;
  end loop;

  perform ringfence.protect_whole(t, rls);
  perform ringfence.open_to_mover(t);
  perform ringfence.set_replica_identity(t);
  perform ringfence.open_schema_of(t);

  if not ringfence.is_granted(t) then
    execute format('grant select, insert, update, delete on %s to authenticated, service_role', t);
    for owned in
      select d.objid::regclass from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
      where d.refobjid = t and d.refclassid = 'pg_class'::regclass and d.classid = 'pg_class'::regclass
        and d.deptype = 'a'
    loop
      execute format('grant usage, select on sequence %s to authenticated, service_role', owned);
    end loop;
  end if;
  perform ringfence.capture_tables(array[t::oid]);
  perform ringfence.adopt_views(t);
  -- The tenant column has no statistics yet, and a small table that was never
  -- looked at is read through an index, in another order than it was.
  execute format('analyze %s', t);
end
$$;

-- The API's roles may name what is in the schema of t; only what was granted
-- there is open to them.
create or replace function ringfence.open_schema_of(t regclass) returns void
language plpgsql as $$
declare
  grantee text;
  space text;
begin
  select n.nspname into space from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = t;
  foreach grantee in array array['ringfence_api', 'ringfence_router', 'ringfence_mover', 'ringfence_reader', 'ringfence_worker'] loop
    if not has_schema_privilege(grantee, space, 'usage') then
      execute format('grant usage on schema %I to %I', space, grantee);
    end if;
  end loop;
end
$$;

-- A partition answers to its own name without its parent's policies: it gets
-- its own, and no API role may name it.
create or replace function ringfence.protect_partition(part regclass) returns void
language plpgsql as $$
begin
  perform ringfence.protect(part, false);
  perform ringfence.open_to_mover(part);
  execute format('revoke all on %s from anon, authenticated, service_role, ringfence_api, public', part);
end
$$;

-- Takes all rights but that to read from everybody but the owner, with those on columns.
create or replace function ringfence.read_only(t regclass) returns void
language plpgsql as $$
declare
  grantee record;
begin
  for grantee in
    select distinct coalesce(quote_ident(r.rolname), 'public') as name
    from (
      select c.relowner, c.relacl from pg_class c where c.oid = t
      union all
      select c.relowner, a.attacl from pg_class c join pg_attribute a on a.attrelid = c.oid
      where c.oid = t and not a.attisdropped) u (owner, acl),
      aclexplode(u.acl) g left join pg_roles r on r.oid = g.grantee
    where g.grantee <> u.owner
      and g.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER')
  loop
    execute format('revoke insert, update, delete, truncate, references, trigger on %s from %s', t, grantee.name);
  end loop;
end
$$;

-- Marks a table that holds the same rows on every shard, read-only to tenants; of one
-- that is marked already, rights that were given since are taken back.
create or replace function ringfence.reference(t regclass) returns void
language plpgsql as $$
begin
  execute format('lock table %s in access exclusive mode', t);
  if exists (select from ringfence.relation r where r.relid = t and r.kind = 'reference') then
    perform ringfence.read_only(t);
    return;
  end if;
  if exists (select from ringfence.relation r where r.relid = t) then
    raise exception using errcode = 'RF012', message = format('%s is distributed', t);
  end if;
  if not exists (select from pg_class c where c.oid = t and c.relkind = 'r' and not c.relispartition) then
    raise exception using errcode = 'RF012', message = format('%s is not an ordinary table', t);
  end if;
  if exists (
    select from pg_constraint k join ringfence.relation r on r.relid = k.confrelid
    where k.contype = 'f' and k.conrelid = t and r.kind = 'distributed')
    or exists (select from ringfence.pending_foreign_key p where p.child = t) then
    raise exception using
      errcode = 'RF012', message = format('%s references a distributed table, whose rows belong to tenants', t),
      hint = 'Drop that foreign key, or distribute this table, too.';
  end if;
  insert into ringfence.relation values (t, 'reference', null, false);
  if not ringfence.is_granted(t) then
    execute format('grant select on %s to authenticated, service_role', t);
  end if;
  perform ringfence.open_to_mover(t);
  perform ringfence.read_only(t);
  perform ringfence.open_schema_of(t);
  perform ringfence.capture_tables(array[t::oid]);
end
$$;

-- Partitions that are added later are protected in the same transaction, and
-- what was dropped is forgotten.
create or replace function ringfence.keep_relations() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, ringfence, pg_temp as $$
declare
  part regclass;
begin
  delete from ringfence.relation r where not exists (select from pg_class c where c.oid = r.relid);
  delete from ringfence.pending_foreign_key p where not exists (select from pg_class c where c.oid = p.child);
  if tg_event = 'ddl_command_end' then
    for part in
      select p.relid
      from pg_class root
      join ringfence.relation r on r.relid = root.oid and r.kind = 'distributed',
        pg_partition_tree(root.oid) p
      where root.relkind = 'p' and p.relid <> root.oid
        and not exists (select from pg_policy l where l.polrelid = p.relid and l.polname = 'ringfence_tenant')
    loop
      perform ringfence.protect_partition(part);
      perform ringfence.set_replica_identity(part);
    end loop;
  end if;
end
$$;

drop event trigger if exists ringfence_keep_relations;
create event trigger ringfence_keep_relations on ddl_command_end
  when tag in ('CREATE TABLE', 'ALTER TABLE', 'CREATE TABLE AS')
  execute function ringfence.keep_relations();
drop event trigger if exists ringfence_forget_relations;
create event trigger ringfence_forget_relations on sql_drop
  execute function ringfence.keep_relations();

revoke all on function ringfence.distribute(regclass, uuid), ringfence.reference(regclass), ringfence.open_to_mover(regclass),
  ringfence.protect(regclass, boolean), ringfence.protect_whole(regclass, boolean), ringfence.is_protected(regclass),
  ringfence.is_granted(regclass), ringfence.read_only(regclass), ringfence.protect_partition(regclass), ringfence.adopt_views(regclass), ringfence.rebuild_keys(regclass),
  ringfence.set_replica_identity(regclass), ringfence.foreign_keys_of(regclass), ringfence.oid_of(jsonb, text),
  ringfence.tenant_foreign_key_sql(jsonb), ringfence.refuse_unless_distributable(regclass),
  ringfence.open_schema_of(regclass) from public;
grant execute on function ringfence.distribute(regclass, uuid), ringfence.reference(regclass), ringfence.open_to_mover(regclass),
  ringfence.protect(regclass, boolean), ringfence.protect_whole(regclass, boolean), ringfence.is_protected(regclass),
  ringfence.is_granted(regclass), ringfence.read_only(regclass), ringfence.protect_partition(regclass), ringfence.adopt_views(regclass), ringfence.rebuild_keys(regclass),
  ringfence.set_replica_identity(regclass), ringfence.foreign_keys_of(regclass), ringfence.oid_of(jsonb, text),
  ringfence.tenant_foreign_key_sql(jsonb), ringfence.refuse_unless_distributable(regclass),
  ringfence.open_schema_of(regclass)
  to ringfence_owner, ringfence_migrator;
