-- The same privileges on both sides.
grant usage on schema public, archive to authenticated;
grant select, insert, update, delete on all tables in schema public, archive to authenticated;
revoke insert, update, delete on kinds from authenticated;
revoke all on counts_old, counts_new from authenticated;
grant usage, select on all sequences in schema public, archive to authenticated;
