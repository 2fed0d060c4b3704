-- Views and functions of the CRM. All run with their caller's rights.

create view public.open_deals with (security_invoker = true) as
  select
    d.id, d.title, d.amount, d.currency, d.expected_close, d.owner,
    d.company_id, c.name as company, c.country_code,
    d.contact_id,
    d.stage_id, s.name as stage, round(d.amount * s.probability, 2) as weighted_amount
  from public.deals d
  join public.companies c on c.id = d.company_id
  join public.pipeline_stages s on s.id = d.stage_id
  where not (s.is_won or s.is_lost);
grant select on public.open_deals to authenticated, service_role;
comment on view public.open_deals is 'Deals that are neither won nor lost, with their company and stage';

-- Computed field: select=full_name
create function public.full_name(public.contacts) returns text
language sql stable as $$ select $1.first_name || ' ' || $1.last_name $$;

-- Computed relationships.
create function public.latest_activity(public.deals) returns setof public.activities
language sql stable rows 1 as $$
  select a.* from public.activities a where a.deal_id = $1.id order by a.created_at desc, a.id desc limit 1
$$;

create function public.open_activities(public.contacts) returns setof public.activities
language sql stable as $$
  select a.* from public.activities a where a.contact_id = $1.id and a.done_at is null order by a.due_at, a.id
$$;

create function public.pipeline_summary(owner text default null)
returns table (stage text, deals bigint, amount numeric, weighted_amount numeric)
language sql stable as $$
  select s.name, count(d.id), coalesce(sum(d.amount), 0), coalesce(round(sum(d.amount * s.probability), 2), 0)
  from public.pipeline_stages s
  left join public.deals d
    on d.stage_id = s.id and (pipeline_summary.owner is null or d.owner = pipeline_summary.owner)
  group by s.id, s.name, s.position
  order by s.position
$$;
comment on function public.pipeline_summary(text) is 'Deals and their amounts by stage, of one owner or of all';

create function public.search_contacts(query text) returns setof public.contacts
language sql stable as $$
  select c.* from public.contacts c
  where c.first_name || ' ' || c.last_name ilike '%' || query || '%' or c.email ilike '%' || query || '%'
  order by c.last_name, c.first_name, c.id
$$;
comment on function public.search_contacts(text) is 'Contacts whose name or address contains a text';

create function public.move_deal(deal bigint, stage smallint) returns public.deals
language plpgsql volatile as $$
declare
  moved public.deals;
begin
  update public.deals d
  set stage_id = s.id,
    closed_at = case when s.is_won or s.is_lost then coalesce(d.closed_at, now()) end
  from public.pipeline_stages s
  where d.id = move_deal.deal and s.id = move_deal.stage
  returning d.* into moved;
  if moved.id is null then
    raise exception using errcode = 'P0002', message = 'no such deal or stage';
  end if;
  return moved;
end
$$;
comment on function public.move_deal(bigint, smallint) is 'Puts a deal into a stage, and closes or opens it again accordingly';

create function public.convert_lead(lead bigint, company bigint default null) returns public.contacts
language plpgsql volatile as $$
declare
  found public.leads;
  made public.contacts;
begin
  select l.* into found from public.leads l where l.id = convert_lead.lead for update;
  if found.id is null or found.email is null or found.status = 'converted' then
    raise exception using errcode = 'P0002', message = 'no such lead, or it can''t be converted',
      hint = 'It needs an address, and must not have been converted before.';
  end if;
  insert into public.contacts (company_id, first_name, last_name, email)
  values (convert_lead.company, split_part(found.name, ' ', 1),
    coalesce(nullif(substr(found.name, length(split_part(found.name, ' ', 1)) + 2), ''), '-'), found.email)
  returning * into made;
  update public.leads l set status = 'converted', converted_contact_id = made.id where l.id = found.id;
  return made;
end
$$;
comment on function public.convert_lead(bigint, bigint) is 'Makes a contact of a lead';
