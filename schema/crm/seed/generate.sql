-- Any number of rows for the tenant that has been entered, the same ones each
-- time: all that looks random is a hash of the tenant and the row's number.
-- The settings `crm.rows` (contacts) and `crm.first` (ids start after it) say
-- how many; the others follow: a company for 5 contacts, a deal and a lead for
-- 2, two activities and one note for each.

insert into public.companies (id, name, domain, industry, employees, annual_revenue, country_code, address, tags, created_at)
select
  f.first + i,
  p.name || ' ' || (array['Logistics', 'Systems', 'Foods', 'Partners', 'Works', 'Health', 'Media', 'Energy'])[1 + h.b % 8]
    || case when i > 240 then ' ' || i else '' end,
  lower(p.name) || '-' || (f.first + i) || '.example',
  (array['Logistics', 'Software', 'Food', 'Consulting', 'Manufacturing', 'Health', 'Media', 'Energy'])[1 + h.b % 8],
  5 + h.c % 4000,
  ((h.c % 4000 + 5) * (60000 + h.d % 90000))::numeric,
  split_part(p.place, ' ', 1),
  jsonb_build_object('city', split_part(p.place, ' ', 2),
    'street', (1 + h.d % 180) || ' ' || (array['Station Road', 'Market Street', 'Mill Lane', 'Park Avenue'])[1 + h.a % 4]),
  case h.a % 4 when 0 then '{customer}' when 1 then '{prospect}' when 2 then '{customer,priority}' else '{}' end::text[],
  timestamptz '2025-01-06 08:00+00' + i % 360 * interval '1 day' + h.a % 36000 * interval '1 second'
from (select current_setting('crm.first')::bigint as first, current_setting('crm.rows')::bigint as rows,
    current_setting('ringfence.tenant_id') as tenant) f,
  generate_series(1, (f.rows + 4) / 5) i,
  lateral (select
    abs(hashtextextended(f.tenant || i, 11) % 1000000007) as a, abs(hashtextextended(f.tenant || i, 12) % 1000000007) as b,
    abs(hashtextextended(f.tenant || i, 13) % 1000000007) as c, abs(hashtextextended(f.tenant || i, 14) % 1000000007) as d,
    abs(hashtextextended(f.tenant || i, 15) % 1000000007) as e) h,
  lateral (select (array['Alder', 'Birch', 'Cedar', 'Delta', 'Ember', 'Falcon', 'Granite', 'Harbor', 'Iris', 'Juniper', 'Keystone',
    'Larch', 'Meridian', 'Nimbus', 'Orchard', 'Pioneer', 'Quartz', 'Rowan', 'Summit', 'Tamarack', 'Umber', 'Vista', 'Willow',
    'Yarrow'])[1 + h.a % 24] as name,
    -- Half of them near home.
    case when h.d % 2 = 0 then 'DE Berlin'
      else (array['AT Graz', 'BR Recife', 'CA Toronto', 'CH Basel', 'DK Aarhus', 'ES Valencia', 'FR Lyon', 'GB Leeds', 'IN Pune',
        'IT Turin', 'JP Kobe', 'NL Utrecht', 'PL Gdynia', 'PT Porto', 'SE Uppsala', 'US Denver'])[1 + h.e % 16] end as place) p
on conflict do nothing;

insert into public.contacts (id, company_id, first_name, last_name, email, phone, title, subscribed, tags, custom, created_at)
select
  f.first + i, f.first + 1 + (i - 1) / 5, n.first_name, n.last_name,
  lower(n.first_name) || '.' || lower(n.last_name) || '.' || (f.first + i) || '@' || c.domain,
  '+49 30 555 ' || lpad((h.c % 10000)::text, 4, '0'),
  (array['CEO', 'CTO', 'Buyer', 'Office Manager', 'Head of Sales', 'Analyst', 'Engineer', 'Assistant'])[1 + h.d % 8],
  h.c % 5 <> 0,
  case when h.d % 8 < 2 then '{decision-maker}' else '{}' end::text[],
  case h.d % 3 when 0 then '{"prefers": "phone"}' when 1 then '{"prefers": "email"}' else '{}' end::jsonb,
  timestamptz '2025-01-06 09:00+00' + i % 360 * interval '1 day' + h.a % 30000 * interval '1 second'
from (select current_setting('crm.first')::bigint as first, current_setting('crm.rows')::bigint as rows,
    current_setting('ringfence.tenant_id') as tenant) f,
  generate_series(1, f.rows) i,
  lateral (select
    abs(hashtextextended(f.tenant || i, 21) % 1000000007) as a, abs(hashtextextended(f.tenant || i, 22) % 1000000007) as b,
    abs(hashtextextended(f.tenant || i, 23) % 1000000007) as c, abs(hashtextextended(f.tenant || i, 24) % 1000000007) as d) h,
  lateral (select
    (array['Anna', 'Ben', 'Clara', 'David', 'Elena', 'Felix', 'Greta', 'Hugo', 'Ida', 'Jan', 'Kira', 'Liam', 'Maya', 'Noah',
      'Olga', 'Paul', 'Rosa', 'Sam', 'Tara', 'Yusuf'])[1 + h.a % 20] as first_name,
    (array['Adler', 'Brandt', 'Costa', 'Dubois', 'Evans', 'Fischer', 'Garcia', 'Hansen', 'Ivanova', 'Jensen', 'Kowalski',
      'Larsen', 'Moreau', 'Novak', 'Okafor', 'Patel', 'Rossi', 'Silva', 'Tanaka', 'Weber'])[1 + h.b % 20] as last_name) n
join public.companies c on true
where c.tenant_id = f.tenant::uuid and c.id = f.first + 1 + (i - 1) / 5
on conflict do nothing;

insert into public.leads (id, name, email, company_name, source, status, score, created_at)
select
  f.first + i,
  (array['Alex', 'Bianca', 'Chris', 'Dora', 'Emil', 'Fiona'])[1 + h.a % 6] || ' '
    || (array['Becker', 'Chen', 'Diaz', 'Eriksson', 'Ferrari', 'Gupta', 'Haddad'])[1 + h.b % 7],
  'lead.' || (f.first + i) || '@inbound.example',
  (array['Apex', 'Bluefin', 'Corvus', 'Dune', 'Echo'])[1 + h.c % 5] || ' Ltd',
  (enum_range(null::public.lead_source))[1 + h.a % 6],
  (array['new', 'contacted', 'qualified', 'unqualified'])[1 + h.b % 4]::public.lead_status,
  h.c % 101,
  timestamptz '2025-06-02 09:00+00' + i % 220 * interval '1 day' + h.a % 30000 * interval '1 second'
from (select current_setting('crm.first')::bigint as first, current_setting('crm.rows')::bigint as rows,
    current_setting('ringfence.tenant_id') as tenant) f,
  generate_series(1, (f.rows + 1) / 2) i,
  lateral (select
    abs(hashtextextended(f.tenant || i, 31) % 1000000007) as a, abs(hashtextextended(f.tenant || i, 32) % 1000000007) as b,
    abs(hashtextextended(f.tenant || i, 33) % 1000000007) as c) h
on conflict do nothing;

insert into public.deals (id, title, company_id, contact_id, stage_id, amount, currency, expected_close, closed_at, owner, created_at)
select
  f.first + i,
  (array['Rollout', 'Pilot', 'Renewal', 'Extension', 'Migration', 'Training'])[1 + h.a % 6] || ' '
    || (array['2025', '2026', 'phase one', 'phase two', 'headquarters'])[1 + h.b % 5],
  c.company_id, c.id, s.stage, 500 + h.c % 200000, 'EUR',
  t.created::date + 60 + (h.b % 120)::int,
  case when s.stage >= 5 then t.created + (5 + h.c % 50) * interval '1 day' end,
  (array['dana', 'luis', 'hank', 'rosa'])[1 + h.d % 4], t.created
from (select current_setting('crm.first')::bigint as first, current_setting('crm.rows')::bigint as rows,
    current_setting('ringfence.tenant_id') as tenant) f,
  generate_series(1, (f.rows + 1) / 2) i,
  lateral (select
    abs(hashtextextended(f.tenant || i, 41) % 1000000007) as a, abs(hashtextextended(f.tenant || i, 42) % 1000000007) as b,
    abs(hashtextextended(f.tenant || i, 43) % 1000000007) as c, abs(hashtextextended(f.tenant || i, 44) % 1000000007) as d) h,
  lateral (select (1 + h.d % 6)::smallint as stage) s,
  lateral (select timestamptz '2025-02-03 09:00+00' + i % 300 * interval '1 day' as created) t
join public.contacts c on true
where c.tenant_id = f.tenant::uuid and c.id = f.first + 1 + (i - 1) * 2
on conflict do nothing;

insert into public.deal_contacts (deal_id, contact_id, role)
select d.id, d.contact_id, 'decision maker'
from public.deals d
where d.tenant_id = current_setting('ringfence.tenant_id')::uuid and d.contact_id is not null
  and d.id > current_setting('crm.first')::bigint
on conflict do nothing;

insert into public.activities (id, kind, subject, deal_id, contact_id, due_at, done_at, minutes, created_at)
select
  f.first + i,
  k.kind,
  case k.kind when 'call' then 'Follow up' when 'email' then 'Send offer' when 'meeting' then 'Review with team'
    when 'demo' then 'Show the new release' else 'Prepare documents' end,
  d.id, d.contact_id,
  d.created_at + (1 + h.b % 90) * interval '1 day',
  case when h.c % 3 > 0 then d.created_at + (1 + h.b % 90) * interval '1 day' end,
  case when h.c % 3 > 0 then 15 * (1 + h.a % 6) end,
  d.created_at
from (select current_setting('crm.first')::bigint as first, current_setting('crm.rows')::bigint as rows,
    current_setting('ringfence.tenant_id') as tenant) f,
  generate_series(1, f.rows * 2) i,
  lateral (select
    abs(hashtextextended(f.tenant || i, 51) % 1000000007) as a, abs(hashtextextended(f.tenant || i, 52) % 1000000007) as b,
    abs(hashtextextended(f.tenant || i, 53) % 1000000007) as c) h,
  lateral (select (enum_range(null::public.activity_kind))[1 + h.a % 5] as kind) k
join public.deals d on true
where d.tenant_id = f.tenant::uuid and d.id = f.first + 1 + (i - 1) % ((f.rows + 1) / 2)
on conflict do nothing;

insert into public.notes (id, body, contact_id, author, created_at)
select
  f.first + i,
  (array['Asked for references in the same industry.', 'Prefers a yearly invoice.', 'Budget comes free in the third quarter.',
    'Security review is the next step.', 'Happy with support, unhappy with reports.'])[1 + h.a % 5],
  f.first + i, (array['dana', 'luis', 'hank', 'rosa'])[1 + h.b % 4],
  timestamptz '2025-03-03 09:00+00' + i % 300 * interval '1 day'
from (select current_setting('crm.first')::bigint as first, current_setting('crm.rows')::bigint as rows,
    current_setting('ringfence.tenant_id') as tenant) f,
  generate_series(1, f.rows) i,
  lateral (select
    abs(hashtextextended(f.tenant || i, 61) % 1000000007) as a, abs(hashtextextended(f.tenant || i, 62) % 1000000007) as b) h
on conflict do nothing;
