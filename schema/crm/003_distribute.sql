-- All that makes the CRM multi-tenant.
select ringfence.reference('public.countries');
select ringfence.reference('public.pipeline_stages');
select ringfence.distribute('public.companies');
select ringfence.distribute('public.contacts');
select ringfence.distribute('public.leads');
select ringfence.distribute('public.deals');
select ringfence.distribute('public.deal_contacts');
select ringfence.distribute('public.activities');
select ringfence.distribute('public.notes');
