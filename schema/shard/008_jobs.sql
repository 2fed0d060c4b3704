-- What a job has done on this shard, written in the transaction that did it:
-- so that work which was committed is neither done nor counted twice, whatever
-- the job's row in the control database says. Removed when the job ends.

create table if not exists ringfence.job_mark (
  job  uuid not null,
  item text not null,
  rows bigint not null default 0,
  at   timestamptz not null default now(),
  primary key (job, item)
);

-- Raises a sequence so that it gives no number up to `past` any longer. Others
-- draw from it meanwhile, and it must never go back: a few numbers are drawn;
-- only a gap that nobody can draw in the meantime is jumped.
create or replace function ringfence.raise_sequence(s regclass, past bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  last bigint;
  step bigint := (select q.seqincrement from pg_sequence q where q.seqrelid = s);
begin
  if step <= 0 then
    return;
  end if;
  execute format('select case when is_called then last_value else last_value - 1 end from %s', s) into last;
  if last >= past then
    return;
  end if;
  if past - last > 1000000 * step then
    perform setval(s, past);
  else
    loop
      exit when nextval(s) >= past;
    end loop;
  end if;
end
$$;
revoke all on function ringfence.raise_sequence(regclass, bigint) from public;

grant select, insert, update, delete on ringfence.job_mark to ringfence_mover, ringfence_worker;
grant execute on function ringfence.raise_sequence(regclass, bigint) to ringfence_mover;
