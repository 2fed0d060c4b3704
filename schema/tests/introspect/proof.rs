//! Only what is proven to show one tenant is in the model.

use schema::catalog::{Catalog, HiddenReason, Uncacheable};
use schema::ident::QualifiedName;

use crate::support::{ROLES, Shard};

const TABLES: &str = "
    create table t (id int primary key, body text);
    create table codes (code text primary key);
    select ringfence.distribute('t');
    select ringfence.reference('codes')";

fn reason(catalog: &Catalog, name: &str) -> Option<HiddenReason> {
    let name = QualifiedName::new("public", name);
    let mut hidden = catalog.hidden.iter();
    let found = hidden.find(|hidden| hidden.name == name);
    // Hidden is hidden: never both.
    let exposed = catalog.relations.contains_key(&name) || catalog.functions.contains_key(&name);
    assert_eq!(found.is_none(), exposed, "{name}");
    found.map(|hidden| hidden.reason)
}

/// Each way to take the proof away, and what the model then says of `t` or `codes`.
const TAMPERING: [(&str, &str, HiddenReason); 12] = [
    ("alter table t disable row level security", "t", HiddenReason::PolicyMissing),
    ("alter table t no force row level security", "t", HiddenReason::PolicyMissing),
    ("drop policy ringfence_tenant on t", "t", HiddenReason::PolicyMissing),
    ("alter policy ringfence_tenant on t rename to other", "t", HiddenReason::PolicyMissing),
    ("alter policy ringfence_tenant on t using (true)", "t", HiddenReason::PolicyMissing),
    ("alter policy ringfence_tenant on t with check (true)", "t", HiddenReason::PolicyMissing),
    ("alter policy ringfence_tenant on t to anon", "t", HiddenReason::PolicyMissing),
    (
        "drop policy ringfence_tenant on t;
         create policy ringfence_tenant on t for all to public
           using (tenant_id = (select ringfence.tenant_id())) with check (tenant_id = (select ringfence.tenant_id()))",
        "t",
        HiddenReason::PolicyMissing,
    ),
    (
        "drop policy ringfence_tenant on t;
         create policy ringfence_tenant on t as restrictive for select to public
           using (tenant_id = (select ringfence.tenant_id()))",
        "t",
        HiddenReason::PolicyMissing,
    ),
    // An operator of that name that always says yes.
    (
        "create function yes(uuid, uuid) returns boolean language sql immutable as 'select true';
         create operator public.= (leftarg = uuid, rightarg = uuid, function = yes);
         alter policy ringfence_tenant on t using (tenant_id operator(public.=) (select ringfence.tenant_id()))",
        "t",
        HiddenReason::PolicyMissing,
    ),
    ("create rule r as on insert to t do also delete from codes", "t", HiddenReason::Rule),
    ("grant update on codes to authenticated", "codes", HiddenReason::PolicyMissing),
];

#[tokio::test]
async fn tampering_takes_a_table_out_of_the_model() {
    let shard = Shard::with(TABLES).await;
    let router = shard.router().await;
    let untouched = shard.load().await;
    assert_eq!(reason(&untouched, "t"), None);
    assert_eq!(reason(&untouched, "codes"), None);
    for (sql, name, expected) in TAMPERING {
        shard.run(sql).await;
        let catalog = schema::introspect::load(&router, &["public"])
            .await
            .unwrap();
        assert_eq!(reason(&catalog, name), Some(expected), "{sql}");
        assert_ne!(catalog.fingerprint, untouched.fingerprint, "{sql}");
        // The model is another session's read, so nothing here can be rolled back.
        shard
            .run("drop table t, codes; drop operator if exists public.= (uuid, uuid)")
            .await;
        shard.run(TABLES).await;
    }
}

#[tokio::test]
async fn what_is_not_scoped_is_hidden_with_its_reason() {
    let shard = Shard::with(TABLES).await;
    shard
        .run(
            "create table plain (id int primary key);
             create table parted (id int, at date, primary key (id, at)) partition by range (at);
             create table parted_2026 partition of parted for values from ('2026-01-01') to ('2027-01-01');
             select ringfence.distribute('parted');
             create table parted_2027 partition of parted for values from ('2027-01-01') to ('2028-01-01');
             create materialized view stored as select 1 as one;
             create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;
             create foreign table far (id int) server nowhere;
             create sequence counter;
             create function all_rows() returns bigint language sql stable security definer as 'select count(*) from public.t';
             create function owners_rows() returns bigint language sql stable security definer as 'select count(*) from public.t';
             alter function owners_rows() owner to ringfence_owner;
             create view as_owner as select * from t;
             create view fine with (security_invoker = on) as select t.* from t, codes;
             create view over_fine with (security_invoker = true) as select * from fine;
             create view over_plain with (security_invoker = true) as select * from plain;
             create view in_a_subselect with (security_invoker = true) as select (select count(*) from plain) from t;
             create view over_as_owner with (security_invoker = true) as select * from as_owner;
             create view over_partition with (security_invoker = true) as select * from parted_2026;
             create view over_stored with (security_invoker = true) as select * from stored;
             create view over_catalog with (security_invoker = true) as select relname, reltuples from pg_catalog.pg_class;
             create view over_counter with (security_invoker = true) as select last_value from counter;
             create view calls_all_rows with (security_invoker = true) as select all_rows() from t",
        )
        .await;
    let catalog = shard.load().await;
    for name in ["t", "codes", "parted", "fine", "over_fine", "owners_rows"] {
        assert_eq!(reason(&catalog, name), None, "{name}");
    }
    for (name, expected) in [
        ("plain", HiddenReason::NotDistributed),
        ("parted_2026", HiddenReason::Partition),
        ("parted_2027", HiddenReason::Partition),
        ("stored", HiddenReason::MaterializedView),
        ("far", HiddenReason::ForeignTable),
        ("all_rows", HiddenReason::DefinerBypassesRowSecurity),
        ("as_owner", HiddenReason::NotSecurityInvoker),
        ("over_plain", HiddenReason::ViewOverUnscoped),
        ("in_a_subselect", HiddenReason::ViewOverUnscoped),
        ("over_as_owner", HiddenReason::ViewOverUnscoped),
        ("over_partition", HiddenReason::ViewOverUnscoped),
        ("over_stored", HiddenReason::ViewOverUnscoped),
        ("over_catalog", HiddenReason::ViewOverUnscoped),
        ("over_counter", HiddenReason::ViewOverUnscoped),
        ("calls_all_rows", HiddenReason::ViewOverUnscoped),
    ] {
        assert_eq!(reason(&catalog, name), Some(expected), "{name}");
    }
}

#[tokio::test]
async fn a_role_that_could_pass_row_security_is_not_offered() {
    let shard = Shard::with("").await;
    let _roles = ROLES.lock().await;
    shard
        .run(
            "create role introspect_plain; create role introspect_bypass bypassrls; create role introspect_member;
             grant introspect_bypass to introspect_member;
             grant introspect_plain, introspect_bypass, introspect_member to ringfence_router",
        )
        .await;
    let roles = shard.load().await.roles;
    shard
        .run("drop role introspect_plain, introspect_bypass, introspect_member")
        .await;
    let own = |role: &&str| role.starts_with("introspect") || role.starts_with("ringfence");
    let offered: Vec<&str> = roles.iter().map(|role| &**role).filter(own).collect();
    assert_eq!(offered, ["introspect_plain"]);
    assert!(
        ["anon", "authenticated", "service_role"]
            .iter()
            .all(|known| roles.iter().any(|role| &**role == *known))
    );
}

/// Cached answers are named by the fingerprint, and routers keep a model whose
/// fingerprint has not changed: whatever tells callers apart must be in it.
#[tokio::test]
async fn policies_that_read_claims_are_another_model() {
    let shard = Shard::with(TABLES).await;
    let plain = shard.load().await;
    assert!(!plain.reads_claims);
    shard
        .run(
            "create policy own on t as restrictive for select
               using (body = current_setting('request.jwt.claims')::json ->> 'sub')",
        )
        .await;
    let by_claims = shard.load().await;
    assert!(by_claims.reads_claims);
    assert_ne!(by_claims.fingerprint, plain.fingerprint);
    shard.run("drop policy own on t").await;
    assert_eq!(shard.load().await.fingerprint, plain.fingerprint);
}

/// What a policy may look at, without its answers being of one moment only.
const POLICIES: [(&str, Option<Uncacheable>); 11] = [
    ("for select using (body = 'a')", None),
    ("for select using (lower(body) = 'a')", None),
    (
        "for select using (body = current_setting('app.body', true))",
        None,
    ),
    ("for insert with check (random() < 0.5)", None),
    (
        "for select using (random() < 0.5)",
        Some(Uncacheable::Policy),
    ),
    (
        "for all using (now() > '2020-01-01')",
        Some(Uncacheable::Policy),
    ),
    (
        "for select using (current_date > '2020-01-01')",
        Some(Uncacheable::Policy),
    ),
    (
        "for select using (current_user = body)",
        Some(Uncacheable::Policy),
    ),
    (
        "for select using (body::date > '2020-01-01')",
        Some(Uncacheable::Policy),
    ),
    (
        "for select using (exists (select from codes where code = body))",
        Some(Uncacheable::Policy),
    ),
    ("for select using (mine(body))", Some(Uncacheable::Policy)),
];

#[tokio::test]
async fn answers_under_policies_of_more_than_the_row_are_not_kept() {
    let shard = Shard::with(TABLES).await;
    let mine = "create function mine(text) returns boolean language sql stable as 'select true'";
    shard.run(mine).await;
    for (policy, expected) in POLICIES {
        shard
            .run(&format!("create policy own on t as restrictive {policy}"))
            .await;
        let catalog = shard.load().await;
        let table = &catalog.relations[&QualifiedName::new("public", "t")];
        assert_eq!(table.uncacheable, expected, "{policy}");
        shard.run("drop policy own on t").await;
    }
}
