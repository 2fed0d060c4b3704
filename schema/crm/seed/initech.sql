insert into public.companies (id, name, domain, industry, employees, annual_revenue, country_code, parent_id, address, tags, description, created_at) values
  (1, 'Chotchkie''s Restaurants', 'chotchkies.example', 'Hospitality', 950, 41000000, 'US', null, '{"city": "Austin", "state": "TX"}', '{customer}', 'Wants its reports on one page.', '2025-04-14 15:00+00'),
  (2, 'Litware Insurance', 'litware.example', 'Insurance', 2600, 870000000, 'CA', null, '{"city": "Toronto", "province": "ON"}', '{prospect,enterprise}', null, '2025-09-08 15:00+00'),
  (3, 'Proseware Schools', 'proseware.example', 'Education', 140, 9800000, 'US', null, '{"city": "Dallas", "state": "TX"}', '{customer}', null, '2025-10-01 15:00+00')
on conflict do nothing;

insert into public.contacts (id, company_id, first_name, last_name, email, phone, title, birthday, tags, custom, created_at) values
  (1, 1, 'Stan', 'Keller', 'stan@chotchkies.example', '+1 512 555 0115', 'Regional Manager', null, '{}', '{"pieces": 15}', '2025-04-14 15:10+00'),
  (2, 2, 'Geneviève', 'Roy', 'g.roy@litware.example', '+1 416 555 0161', 'CIO', '1969-09-30', '{decision-maker}', '{"language": "fr"}', '2025-09-08 15:10+00'),
  (3, 3, 'Darnell', 'Price', 'dprice@proseware.example', '+1 214 555 0139', 'Registrar', null, '{}', '{}', '2025-10-01 15:10+00')
on conflict do nothing;

insert into public.leads (id, name, email, company_name, source, status, score, created_at) values
  (1, 'Joanna Mills', 'joanna@flairgoods.example', 'Flair Goods', 'referral', 'contacted', 70, '2026-01-03 16:00+00'),
  (2, 'Ravi Shah', 'ravi.shah@penetrode.example', 'Penetrode', 'website', 'new', 44, '2026-01-11 18:25+00')
on conflict do nothing;

insert into public.deals (id, title, company_id, contact_id, stage_id, amount, currency, expected_close, closed_at, owner, created_at) values
  (1, 'Reporting suite', 1, 1, 5, 27500, 'USD', '2025-08-31', '2025-08-29 20:00+00', 'peter', '2025-05-02 15:00+00'),
  (2, 'Claims migration', 2, 2, 3, 520000, 'CAD', '2026-07-31', null, 'peter', '2025-09-22 15:00+00'),
  (3, 'Enrolment portal', 3, 3, 2, 36000, 'USD', '2026-03-15', null, 'samir', '2025-11-10 15:00+00')
on conflict do nothing;

insert into public.deal_contacts (deal_id, contact_id, role) values
  (1, 1, 'decision maker'), (2, 2, 'decision maker'), (3, 3, 'technical')
on conflict do nothing;

insert into public.activities (id, kind, subject, deal_id, contact_id, due_at, done_at, minutes, created_at) values
  (1, 'demo', 'Claims import, live data', 2, 2, '2026-01-27 16:00+00', null, 60, '2026-01-12 15:00+00'),
  (2, 'call', 'Semester dates', 3, 3, '2025-12-03 17:00+00', '2025-12-03 17:20+00', 20, '2025-11-28 15:00+00')
on conflict do nothing;

insert into public.notes (id, body, company_id, contact_id, deal_id, pinned, author, created_at) values
  (1, 'Every report needs a cover sheet. Every one.', 1, null, null, true, 'peter', '2025-05-05 15:00+00'),
  (2, 'Mainframe stays until the last claim of 2024 is closed.', null, null, 2, false, 'samir', '2025-10-02 15:00+00')
on conflict do nothing;
