insert into public.companies (id, name, domain, industry, employees, annual_revenue, country_code, parent_id, address, tags, description, created_at) values
  (1, 'Northwind Traders', 'northwind.example', 'Wholesale', 240, 58200000, 'GB', null, '{"street": "12 Harbour Road", "city": "Bristol", "zip": "BS1 5DB"}', '{customer,priority}', 'Imports speciality food; three warehouses.', '2025-03-11 09:20+00'),
  (2, 'Northwind Ireland', 'ie.northwind.example', 'Wholesale', 35, 6100000, 'IE', 1, '{"street": "4 Quay Street", "city": "Cork"}', '{customer}', null, '2025-04-02 10:05+00'),
  (3, 'Fabrikam Robotics', 'fabrikam.example', 'Manufacturing', 1200, 310000000, 'DE', null, '{"street": "Industriestr. 88", "city": "Stuttgart", "zip": "70565"}', '{prospect,enterprise}', 'Packaging robots, looking for a field-service tool.', '2025-06-19 14:41+00'),
  (4, 'Bluebird Coffee', 'bluebird.example', 'Retail', 58, 4300000, 'PT', null, '{"city": "Lisbon"}', '{customer}', null, '2025-07-07 08:12+00'),
  (5, 'Tailspin Toys', 'tailspin.example', 'Retail', 410, 72000000, 'US', null, '{"city": "Portland", "state": "OR"}', '{churned}', 'Left after the 2024 price change; worth another call.', '2025-01-22 17:30+00')
on conflict do nothing;

insert into public.contacts (id, company_id, first_name, last_name, email, phone, title, birthday, tags, custom, created_at) values
  (1, 1, 'Amelia', 'Hart', 'amelia.hart@northwind.example', '+44 117 555 0101', 'Head of Purchasing', '1984-05-02', '{decision-maker}', '{"prefers": "phone"}', '2025-03-11 09:31+00'),
  (2, 1, 'Jordan', 'Lee', 'jordan.lee@northwind.example', '+44 117 555 0102', 'IT Manager', null, '{}', '{}', '2025-03-12 11:02+00'),
  (3, 2, 'Ciara', 'Byrne', 'ciara.byrne@ie.northwind.example', '+353 21 555 0110', 'Office Manager', null, '{}', '{}', '2025-04-02 10:20+00'),
  (4, 3, 'Jonas', 'Weber', 'j.weber@fabrikam.example', '+49 711 555 0144', 'VP Service', '1977-11-23', '{decision-maker}', '{"language": "de"}', '2025-06-19 15:00+00'),
  (5, 4, 'Inês', 'Carvalho', 'ines@bluebird.example', null, 'Founder', null, '{founder}', '{}', '2025-07-07 08:30+00'),
  (6, 5, 'Marcus', 'O''Neil', 'marcus.oneil@tailspin.example', '+1 503 555 0187', 'COO', null, '{}', '{}', '2025-01-22 17:45+00')
on conflict do nothing;

insert into public.leads (id, name, email, company_name, source, status, score, created_at) values
  (1, 'Priya Raman', 'priya@lumen-labs.example', 'Lumen Labs', 'website', 'new', 62, '2026-01-12 07:55+00'),
  (2, 'Tom Eriksen', 'tom.eriksen@fjordline.example', 'Fjordline', 'event', 'contacted', 48, '2026-01-08 13:10+00'),
  (3, 'Sofia Conti', 'sofia@contistudio.example', 'Conti Studio', 'referral', 'qualified', 81, '2025-12-19 09:00+00'),
  (4, 'Unknown caller', null, null, 'cold_call', 'unqualified', 5, '2025-12-02 16:20+00')
on conflict do nothing;

insert into public.deals (id, title, company_id, contact_id, stage_id, amount, currency, expected_close, closed_at, owner, created_at) values
  (1, 'Warehouse rollout', 1, 1, 4, 84000, 'GBP', '2026-03-31', null, 'dana', '2025-10-06 09:00+00'),
  (2, 'Cork office licences', 2, 3, 5, 9600, 'EUR', '2025-11-30', '2025-11-27 15:30+00', 'dana', '2025-09-15 09:00+00'),
  (3, 'Field-service pilot', 3, 4, 3, 145000, 'EUR', '2026-05-15', null, 'luis', '2025-11-20 09:00+00'),
  (4, 'Loyalty programme', 4, 5, 2, 12500, 'EUR', '2026-04-20', null, 'luis', '2026-01-05 09:00+00'),
  (5, 'Renewal 2025', 5, 6, 6, 38000, 'USD', '2025-02-28', '2025-03-04 18:00+00', 'dana', '2025-01-23 09:00+00')
on conflict do nothing;

insert into public.deal_contacts (deal_id, contact_id, role) values
  (1, 1, 'decision maker'), (1, 2, 'technical'), (2, 3, 'decision maker'), (3, 4, 'decision maker'), (4, 5, 'decision maker'), (5, 6, 'decision maker')
on conflict do nothing;

insert into public.activities (id, kind, subject, deal_id, contact_id, due_at, done_at, minutes, created_at) values
  (1, 'meeting', 'Site visit Bristol', 1, 1, '2025-11-04 10:00+00', '2025-11-04 12:30+00', 150, '2025-10-20 09:00+00'),
  (2, 'call', 'Security questionnaire', 1, 2, '2026-01-20 14:00+00', null, 45, '2026-01-09 09:00+00'),
  (3, 'demo', 'Offline mode on tablets', 3, 4, '2025-12-11 09:00+00', '2025-12-11 10:00+00', 60, '2025-12-01 09:00+00'),
  (4, 'email', 'Send loyalty examples', 4, 5, '2026-01-16 12:00+00', null, null, '2026-01-13 09:00+00')
on conflict do nothing;

insert into public.notes (id, body, company_id, contact_id, deal_id, pinned, author, created_at) values
  (1, 'Budget is approved for the first two warehouses; the third waits for the new fiscal year in April.', null, null, 1, true, 'dana', '2025-11-05 08:10+00'),
  (2, 'Amelia prefers phone calls before ten.', null, 1, null, false, 'dana', '2025-03-14 09:00+00'),
  (3, 'Their service technicians work without network for hours: offline mode decides this one.', null, null, 3, true, 'luis', '2025-12-11 10:20+00'),
  (4, 'Opening two more shops in Porto this summer.', 4, null, null, false, 'luis', '2026-01-05 11:45+00')
on conflict do nothing;
