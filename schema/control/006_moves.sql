-- What someone wants of a job that runs for long: written by the API, read by
-- the job's next step.
alter table ringfence.job add column wish text;

-- A stream moves many tenants: none of them has another open job either.
create function ringfence.refuse_second_job() returns trigger
language plpgsql as $$
begin
  if exists (
    select from ringfence.job j, jsonb_array_elements(j.state -> 'plan' -> 'tenants') t
    where j.kind = 'move' and not j.done and j.tenant is null and (t ->> 'id')::uuid = new.tenant) then
    raise exception using errcode = 'unique_violation', message = 'the tenant has an open job';
  end if;
  return new;
end
$$;
create trigger refuse_second_job before insert on ringfence.job
  for each row when (new.tenant is not null) execute function ringfence.refuse_second_job();

create trigger notify_job_wish after update of wish on ringfence.job
  for each row execute function ringfence.notify_job();
