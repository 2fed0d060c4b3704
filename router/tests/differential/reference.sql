-- Rows that all tenants share.
insert into kinds values ('play', 'Play'), ('opera', 'Opera, or the like'), ('dance', 'Dance');
