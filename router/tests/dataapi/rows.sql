insert into artists (id, name, born, mentor_id, tags, data) values
  (1, 'Ada', '1970-01-02', null, '{piano,voice}', '{"city": {"name": "Oslo"}, "years": [1, 2]}'),
  (2, 'Bo', '1980-05-06', 1, '{drums}', '{"city": {"name": "Rome"}}'),
  (3, 'Cy', null, 1, '{}', '{}');
insert into albums (id, artist_id, genre, title, price, rating, mood, released) values
  (1, 1, 'jazz', 'Dawn', 8.50, 5, 'calm', '2001-02-03 04:05:06+00'),
  (2, 1, 'rock', 'Dusk', 12.00, 3, 'loud', '2003-01-01 00:00:00+00'),
  (3, 2, 'rock', 'Beat', 20.00, null, 'loud', null),
  (4, 2, null, 'Rest', 5.00, 1, null, null);
insert into covers values (1, 'dawn.png'), (3, 'beat.png');
insert into playlists (id, title) values (1, 'Morning'), (2, 'Night');
insert into playlist_albums values (1, 1, 1), (1, 4, 2), (2, 2, 1), (2, 3, 2), (2, 1, 3);
insert into shipments (id, sender_id, receiver_id, note) values (1, 1, 2, 'parcel');
insert into crews (id, name, above_id) values (1, 'Ship', null), (2, 'Deck', 1);
insert into sailors (id, crew_id, name) values (1, 2, 'Ann'), (2, 1, 'Ben');
select setval(pg_get_serial_sequence(t, 'id'), 100) from unnest(array['artists', 'albums', 'playlists', 'shipments']) t;
