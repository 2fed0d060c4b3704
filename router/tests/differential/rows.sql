insert into people (id, name, born, mentor_id, mail, nick, data, tags) values
  (1, 'Ada', '1970-01-02', null, 'ada@x.org', 'A', '{"city": {"name": "Oslo", "zip": 12}, "years": [1, 2, 3], "ok": true}', '{voice,"two words"}'),
  (2, 'Bo', '1980-05-06', 1, 'bo@x.org', null, '{"city": {"name": "Rome"}, "years": []}', '{drums}'),
  (3, 'Cy', null, 1, null, 'cee', '{}', '{}'),
  (4, 'Dé "D" Ö', '1999-12-31', 2, null, 'd,d', '{"a.b": 1, "ok": null}', '{voice,drums}'),
  (5, 'Eve (1)', '1980-05-06', null, 'eve@y.org', '', '[1, {"deep": [true]}]', '{"a,b"}');
insert into venues (id, name, city, opened, seats, rate, ratio, active, mood, ages, season, facts, numbers, uid, raw, long, at, stamp, moment, address, fee, place) values
  (1, 'Old Hall', 'Oslo', '1901-02-03', 300, 12.50, 0.5, true, 'calm', '[3,99)', '[2020-01-01,2020-06-01)', '{"b": 1, "a": [1, 2]}', '{1,2,3}', '11111111-1111-4111-8111-111111111111', '\x0102ff', '1 day 02:03:04', '19:30', '2020-01-02 03:04:05+00', '2020-01-02 03:04:05.678', '10.0.0.1', '(3.50,EUR)', '(1,2)'),
  (2, 'Barn', 'Rome', null, 40, null, 'NaN', false, 'wild', '[18,)', null, null, '{}', '22222222-2222-4222-8222-222222222222', null, null, null, null, null, null, null, null),
  (3, 'Box, The', null, '2001-01-01', 0, 0.00, -1e10, null, null, 'empty', '(,2019-01-01)', '"text"', null, '33333333-3333-4333-8333-333333333333', '\x', '-3 mons', '00:00', '1999-12-31 23:59:59+00', 'infinity', '::1/64', '(,)', '(0,0)'),
  (4, 'Old Hall', 'Rome', '1950-07-08', 1000, 99.99, 1, true, 'bitter sweet', '[0,1)', '[2024-01-01,)', '[]', '{7}', '44444444-4444-4444-8444-444444444444', '\xabcd', '00:00:01', '23:59:59.5', '2024-02-29 12:00:00+00', '2024-02-29 12:00:00', '192.168.1.0/24', '(1,"a ""b""")', '(-1.5,2e3)');
insert into rooms (venue_id, number, title, grade) values
  (1, 1, 'Main', 5), (1, 2, 'Cellar', 3), (2, 1, 'Stable', null), (4, 1, 'Main', 1);
insert into shows (id, title, kind, venue_id, room, director_id, author_id, price, sold, mood, data, premiere) values
  (1, 'The Dawn', 'play', 1, 1, 1, 2, 8.50, 100, 'calm', '{"cast": {"size": 3}, "reviews": [{"stars": 5}, {"stars": 2}]}', '2001-02-03 04:05:06+00'),
  (2, 'Running Dogs', 'play', 1, 2, 1, 1, 12.00, 20, 'wild', '{"cast": {"size": 10}}', '2003-01-01 00:00:00+00'),
  (3, 'A Night', 'opera', 2, 1, 2, null, 20.00, null, 'wild', '{}', null),
  (4, 'Rest & Silence', null, null, null, null, 3, 5.00, 1, null, '{"reviews": []}', null),
  (5, 'Dogs at Night', 'dance', 4, 1, 3, 3, 9.99, 20, 'bitter sweet', '{"cast": null}', '2020-06-07 08:09:10.5+00'),
  (6, 'Dawn, again', 'play', 1, 1, 2, 1, 30.25, 0, 'calm', '{"n": 1e3, "s": "x"}', '2021-01-01 00:00:00+00');
insert into posters (show_id, url, colors) values (1, 'dawn.png', '{red,blue}'), (3, 'night.png', null), (5, 'dogs?.png', '{}');
insert into casting (show_id, person_id, role) values
  (1, 1, 'Sun'), (1, 2, 'Moon'), (2, 4, 'Dog'), (2, 5, 'Dog'), (3, 1, 'Owl'), (5, 2, 'Dog'), (5, 3, 'Moon'), (6, 1, 'Sun');
insert into labels (id, name) values (1, 'new'), (2, 'loud'), (3, 'for "kids"');
insert into show_labels (show_id, label_id) values (1, 1), (1, 3), (2, 2), (3, 2), (5, 1), (5, 2);
insert into notes (at, text, weight) values
  ('2020-01-01 00:00:00+00', 'first', 1), (null, 'second', 2), ('2021-05-05 05:05:05+00', null, null);
insert into "Großer Saal" ("Id", "Schöner Name", "select", "日本", "show-id") values
  (1, 'Eins', 10, '東京', 1), (2, 'Zwei', null, null, 3), (3, null, 30, 'x', null);
insert into counts (show_id, day, visitors) values
  (1, '2019-05-05', 10), (1, '2021-05-05', 20), (3, '2020-01-01', 0), (5, '2022-02-02', 7);
insert into archive.boxes (id, label, parent_id) values (1, 'root', null), (2, 'left', 1), (3, 'right', 1);
insert into archive.shows (id, box_id, title) values (1, 2, 'Lost'), (2, null, 'Found');
select setval(pg_get_serial_sequence(t, 'id'), 100) from unnest(array['people', 'venues', 'shows', 'archive.boxes']) t;
