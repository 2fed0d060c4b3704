//! How to break a running shard on purpose: each of these makes a shard unsafe,
//! so a test of isolation that still passes after it tests nothing.
//!
//! Plain SQL, run by a superuser; `{table}` stands for a qualified table name.
//! A shard that was broken is thrown away, or mended by `INSTALL_AGAIN` and
//! `PROTECT_AGAIN`.

/// The table shows every tenant's rows to whoever has entered for one.
pub(crate) const DROP_POLICY: &str = "drop policy ringfence_tenant on {table}";

/// The same, by switching row security off.
pub(crate) const DISABLE_ROW_SECURITY: &str = "alter table {table} disable row level security";

/// The table's owner passes the policy.
pub(crate) const DO_NOT_FORCE: &str = "alter table {table} no force row level security";

/// The guard lets everyone in: any tenant, any epoch, fenced or not.
pub(crate) const OPEN_GUARD: &str = "
create or replace function ringfence.enter(
  p_tenant uuid, p_epoch bigint, p_mode text, p_claims text, p_settings text[] default null
) returns uuid
language plpgsql volatile security definer parallel unsafe as $$
begin
  perform pg_catalog.set_config('ringfence.tenant_id', p_tenant::text, true);
  perform pg_catalog.set_config('request.jwt.claims', p_claims, true);
  return p_tenant;
end
$$";

/// Where no tenant was entered, policies see this one instead of an error.
pub(crate) const ENTER_BY_DEFAULT: &str = "
create or replace function ringfence.tenant_id() returns uuid
language sql stable parallel safe as $$
  select coalesce(nullif(pg_catalog.current_setting('ringfence.tenant_id', true), ''),
    '00000000-0000-0000-0000-000000000000')::uuid
$$";

/// Rows can be given to another tenant by whoever passes the policy.
pub(crate) const ALLOW_TENANT_CHANGE: &str =
    "drop trigger ringfence_refuse_tenant_change on {table}";

/// TRUNCATE empties every tenant.
pub(crate) const ALLOW_TRUNCATE: &str = "drop trigger ringfence_refuse_truncate on {table}";

/// Mends the functions: the next `schema::shard::install` runs every file again.
pub(crate) const INSTALL_AGAIN: &str = "delete from ringfence.installed";

/// Mends policy, row security and the TRUNCATE trigger of one table.
pub(crate) const PROTECT_AGAIN: &str = "select ringfence.protect('{table}', false)";
