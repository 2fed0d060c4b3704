-- What Supabase's services bring to a project, and rows of its own, for adopt.sql.
INSERT INTO auth.users VALUES ('00000000-0000-4000-8000-000000000001'), ('00000000-0000-4000-8000-000000000002');
INSERT INTO public.countries VALUES ('GB', 'England'), ('FR', 'France');
INSERT INTO public.profiles (id, username, country) VALUES
  ('00000000-0000-4000-8000-000000000001', 'ada', 'GB'),
  ('00000000-0000-4000-8000-000000000002', 'bob', NULL);
INSERT INTO public.projects (owner, title, seen) VALUES
  ('00000000-0000-4000-8000-000000000001', 'Engine', 'team'),
  ('00000000-0000-4000-8000-000000000002', 'Notes', 'private');
INSERT INTO public.notes (project_id, body) VALUES (1, 'first'), (1, 'second');
INSERT INTO public.events VALUES
  (1, '2026-01-01 00:00:00+00', 'began'), (2, '2026-02-03 04:05:06.789+00', NULL), (3, '2026-12-31 23:59:59+00', E'tab\there');
INSERT INTO public.schema_migrations VALUES ('20260101');
INSERT INTO public.api_keys (secret) VALUES ('service keys alone see it');
