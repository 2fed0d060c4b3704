insert into public.companies (id, name, domain, industry, employees, annual_revenue, country_code, parent_id, address, tags, description, created_at) values
  (1, 'Contoso Energy', 'contoso.example', 'Energy', 5400, 2100000000, 'NL', null, '{"street": "Wilhelminakade 3", "city": "Rotterdam"}', '{customer,enterprise}', 'Offshore wind and storage.', '2025-02-03 08:00+00'),
  (2, 'Contoso Storage', 'storage.contoso.example', 'Energy', 320, 88000000, 'DK', 1, '{"city": "Esbjerg"}', '{customer}', null, '2025-02-17 08:00+00'),
  (3, 'Northwind Traders', 'northwind.example', 'Wholesale', 240, 58200000, 'GB', null, '{"city": "Bristol"}', '{prospect}', 'Cold stores; asked about energy contracts.', '2025-08-25 13:00+00'),
  (4, 'Wide World Importers', 'wwi.example', 'Logistics', 890, 190000000, 'SG', null, '{"city": "Singapore"}', '{customer,priority}', null, '2025-05-30 03:30+00')
on conflict do nothing;

insert into public.contacts (id, company_id, first_name, last_name, email, phone, title, birthday, tags, custom, created_at) values
  (1, 1, 'Maarten', 'de Vries', 'm.devries@contoso.example', '+31 10 555 0120', 'Chief Procurement Officer', '1971-02-14', '{decision-maker}', '{}', '2025-02-03 08:15+00'),
  (2, 2, 'Freja', 'Holm', 'freja.holm@storage.contoso.example', '+45 75 55 01 33', 'Operations Lead', null, '{}', '{"prefers": "email"}', '2025-02-17 08:20+00'),
  (3, 3, 'Jordan', 'Lee', 'jordan.lee@northwind.example', '+44 117 555 0102', 'IT Manager', null, '{}', '{}', '2025-08-25 13:10+00'),
  (4, 4, 'Wei Ling', 'Tan', 'weiling.tan@wwi.example', '+65 5550 0177', 'Head of Supply Chain', null, '{decision-maker}', '{"language": "en"}', '2025-05-30 03:45+00')
on conflict do nothing;

insert into public.leads (id, name, email, company_name, source, status, score, created_at) values
  (1, 'Hugo Lambert', 'hugo@voltage.example', 'Voltage SA', 'partner', 'qualified', 77, '2025-12-15 10:00+00'),
  (2, 'Nadia Osei', 'nadia.osei@accraport.example', 'Accra Port Services', 'event', 'new', 55, '2026-01-10 09:40+00'),
  (3, 'Kenji Mori', 'k.mori@hikari.example', 'Hikari Cells', 'advertisement', 'contacted', 39, '2026-01-06 02:15+00')
on conflict do nothing;

insert into public.deals (id, title, company_id, contact_id, stage_id, amount, currency, expected_close, closed_at, owner, created_at) values
  (1, 'Grid balancing, five years', 1, 1, 4, 1250000, 'EUR', '2026-06-30', null, 'hank', '2025-07-01 08:00+00'),
  (2, 'Battery park Esbjerg', 2, 2, 5, 430000, 'EUR', '2025-12-15', '2025-12-12 14:05+00', 'hank', '2025-06-10 08:00+00'),
  (3, 'Cold-store tariffs', 3, 3, 1, 22000, 'GBP', '2026-05-01', null, 'rosa', '2025-09-01 08:00+00'),
  (4, 'Yard electrification', 4, 4, 3, 310000, 'SGD', '2026-04-10', null, 'rosa', '2025-10-14 08:00+00')
on conflict do nothing;

insert into public.deal_contacts (deal_id, contact_id, role) values
  (1, 1, 'decision maker'), (1, 2, 'technical'), (2, 2, 'decision maker'), (3, 3, 'technical'), (4, 4, 'decision maker')
on conflict do nothing;

insert into public.activities (id, kind, subject, deal_id, contact_id, due_at, done_at, minutes, created_at) values
  (1, 'meeting', 'Term sheet review', 1, 1, '2026-01-22 09:00+00', null, 90, '2026-01-12 08:00+00'),
  (2, 'call', 'Handover to delivery', 2, 2, '2025-12-16 10:00+00', '2025-12-16 10:40+00', 40, '2025-12-12 15:00+00'),
  (3, 'task', 'Collect load profiles', 4, 4, '2026-01-30 00:00+00', null, null, '2026-01-11 08:00+00')
on conflict do nothing;

insert into public.notes (id, body, company_id, contact_id, deal_id, pinned, author, created_at) values
  (1, 'Legal asks for a price cap tied to the day-ahead market.', null, null, 1, true, 'hank', '2026-01-12 09:15+00'),
  (2, 'Second site near Aarhus planned for 2027.', 2, null, null, false, 'hank', '2025-12-16 11:00+00'),
  (3, 'Yard runs three shifts; charging windows are short.', null, null, 4, false, 'rosa', '2025-11-03 04:00+00')
on conflict do nothing;
