//! What one tenant can do to another: nothing, whatever the application's
//! authors wrote and whichever role asks.

use crate::support::{ACME, GLOBEX, Session, Shard, mutation};

const NOTES: &str = "
create table notes (id int primary key, body text);
select ringfence.distribute('notes')";

/// A shard where each tenant has a note with id 1.
async fn with_notes() -> (Shard, Session) {
    let shard = Shard::new().await;
    let admin = shard.with(NOTES).await;
    let api = shard.api().await;
    api.run_as(ACME, "insert into notes values (1, 'acme')")
        .await;
    api.run_as(GLOBEX, "insert into notes values (1, 'globex')")
        .await;
    (shard, admin)
}

const ALL: &str = "select body from notes order by body";

#[tokio::test]
async fn each_tenant_sees_and_changes_its_own_rows() {
    let (shard, admin) = with_notes().await;
    let api = shard.api().await;
    assert_eq!(api.rows_as(ACME, ALL).await, ["acme"]);
    assert_eq!(api.rows_as(GLOBEX, ALL).await, ["globex"]);
    api.enter(ACME).await;
    assert_eq!(api.count("update notes set body = 'new'").await, 1);
    assert_eq!(api.count("delete from notes").await, 1);
    api.run("commit").await;
    assert_eq!(admin.rows(ALL).await, ["globex"]);
}

#[tokio::test]
async fn a_row_cannot_be_written_for_another_tenant() {
    let (shard, _) = with_notes().await;
    let api = shard.api().await;
    for sql in [
        format!("insert into notes (tenant_id, id) values ('{GLOBEX}', 2)"),
        format!("update notes set tenant_id = '{GLOBEX}'"),
        format!(
            "insert into notes (id) values (1) on conflict (tenant_id, id) do update set tenant_id = '{GLOBEX}'"
        ),
        format!("copy notes (tenant_id, id) from program 'echo {GLOBEX} 2'"),
    ] {
        assert_eq!(api.refused_as(ACME, &sql).await.code, "42501", "{sql}");
    }
}

#[tokio::test]
async fn without_a_tenant_nothing_is_read_or_written() {
    let (shard, _) = with_notes().await;
    let api = shard.api().await;
    for sql in [
        "select from notes",
        "update notes set body = ''",
        "delete from notes",
        "insert into notes values (2)",
    ] {
        assert_eq!(api.refused(sql).await.code, "RF000", "{sql}");
    }
}

#[tokio::test]
async fn the_owner_is_bound_like_everyone() {
    let (shard, admin) = with_notes().await;
    admin
        .run("alter table notes owner to ringfence_owner")
        .await;
    admin.run("set role ringfence_owner").await;
    assert_eq!(admin.refused("select from notes").await.code, "RF000");
    admin
        .run(&format!("begin; set local ringfence.tenant_id = '{ACME}'"))
        .await;
    assert_eq!(admin.rows(ALL).await, ["acme"]);
    admin.run("commit").await;
    // The migrator's back-fill reaches all rows.
    let migrator = shard.connect("ringfence_migrator").await;
    assert_eq!(
        migrator
            .count("update public.notes set body = 'filled'")
            .await,
        2
    );
}

#[tokio::test]
async fn the_authors_policies_open_nothing_and_still_bind() {
    let shard = Shard::new().await;
    shard
        .with(
            "create table notes (id int primary key, body text, secret bool default false);
             create policy everything on notes using (true) with check (true);
             alter table notes enable row level security;
             select ringfence.distribute('notes');
             create policy anything_later on notes for select to authenticated using (true);
             create table private (id int primary key, owner text);
             create policy mine on private using (owner = current_setting('request.jwt.claims', true));
             alter table private enable row level security;
             select ringfence.distribute('private')",
        )
        .await;
    let api = shard.api().await;
    api.run_as(GLOBEX, "insert into notes values (1, 'globex')")
        .await;
    assert_eq!(api.rows_as(ACME, ALL).await, [""; 0]);
    let foreign = format!("insert into notes (tenant_id, id) values ('{GLOBEX}', 2)");
    assert_eq!(api.refused_as(ACME, &foreign).await.code, "42501");
    // A table with policies of its own does not get the open one.
    api.run_as(ACME, "insert into private values (1, '')").await;
    assert_eq!(
        api.refused_as(ACME, "insert into private values (2, 'you')")
            .await
            .code,
        "42501"
    );
}

#[tokio::test]
async fn a_table_that_row_security_closed_stays_closed_but_to_those_who_passed_it() {
    let shard = Shard::new().await;
    shard
        .with(
            "create table secrets (id int primary key);
             alter table secrets enable row level security; grant all on secrets to anon;
             create table private (id int primary key, owner text);
             create policy mine on private using (owner = 'me');
             alter table private enable row level security;
             create table forced (id int primary key);
             alter table forced enable row level security, force row level security;
             create function as_owner() returns setof int language sql security definer
               as 'select id from public.secrets union all select id from public.private union all select id from public.forced';
             alter function as_owner() owner to ringfence_owner;
             select ringfence.distribute(t) from unnest(array['secrets', 'private', 'forced']::regclass[]) t;
             grant all on secrets to authenticated, service_role;
             alter table secrets owner to ringfence_owner; alter table private owner to ringfence_owner;
             alter table forced owner to ringfence_owner",
        )
        .await;
    let api = shard.api().await;
    api.run("set role service_role").await;
    api.run_as(
        ACME,
        "insert into secrets values (1); insert into private values (2, 'you'); insert into forced values (3)",
    )
    .await;
    assert_eq!(api.rows_as(GLOBEX, "select from secrets").await, [""; 0]);
    api.run("set role authenticated").await;
    let insert = "insert into secrets values (2)";
    assert_eq!(api.refused_as(ACME, insert).await.code, "42501");
    for table in ["secrets", "private", "forced"] {
        let all = format!("select id from {table}");
        assert_eq!(api.rows_as(ACME, &all).await, [""; 0], "{table}");
    }
    // Functions of the owner pass policies that did not bind it, and see one tenant.
    assert_eq!(api.rows_as(ACME, "select as_owner()").await, ["1", "2"]);
    assert_eq!(api.rows_as(GLOBEX, "select as_owner()").await, [""; 0]);
}

#[tokio::test]
async fn rights_on_columns_are_rights_too() {
    let shard = Shard::new().await;
    shard
        .with(
            "create table people (id int primary key, name text, secret text);
             grant select (id, name) on people to authenticated; select ringfence.distribute('people');
             create table kinds (id int primary key, name text);
             grant insert (id) on kinds to authenticated; select ringfence.reference('kinds')",
        )
        .await;
    let api = shard.api().await;
    assert_eq!(api.rows_as(ACME, "select name from people").await, [""; 0]);
    for sql in [
        "select secret from people",
        "insert into people (id) values (1)",
        "insert into kinds (id) values (1)",
    ] {
        assert_eq!(api.refused_as(ACME, sql).await.code, "42501", "{sql}");
    }
}

#[tokio::test]
async fn policies_that_were_switched_off_stay_off() {
    let shard = Shard::new().await;
    shard
        .with(
            "create table notes (id int primary key, body text);
             create policy nothing on notes as restrictive using (false);
             select ringfence.distribute('notes')",
        )
        .await;
    // Row security was off, so the authors' policy did not bind; it does now.
    let api = shard.api().await;
    assert_eq!(
        api.refused_as(ACME, "insert into notes values (1)")
            .await
            .code,
        "42501"
    );
}

#[tokio::test]
async fn a_temporary_table_cannot_shadow_a_tenants_table() {
    let (shard, _) = with_notes().await;
    for role in ["anon", "authenticated", "service_role", "ringfence_router"] {
        let session = shard.connect("ringfence_router").await;
        session.run(&format!("set role {role}")).await;
        for sql in [
            "create temporary table notes (id int)",
            "create temporary view notes as select 1",
            "select 1 as id into temporary notes",
            "create table public.shadow (id int)",
            "create schema mine",
        ] {
            assert_eq!(session.refused(sql).await.code, "42501", "{role}: {sql}");
        }
    }
}

#[tokio::test]
async fn truncate_is_refused_to_everyone() {
    let (shard, admin) = with_notes().await;
    let api = shard.api().await;
    assert_eq!(api.refused_as(ACME, "truncate notes").await.code, "42501");
    // The superuser passes row security and rights, not the trigger.
    insta::assert_debug_snapshot!(admin.refused("truncate notes").await);
    admin
        .run("alter table notes owner to ringfence_owner; set role ringfence_owner")
        .await;
    assert_eq!(admin.refused("truncate notes").await.code, "RF010");
}

#[tokio::test]
async fn a_grant_of_truncate_before_distributing_is_taken_back() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table notes (id int primary key);
             grant all on notes to authenticated, public; grant all on notes to ringfence_worker;
             select ringfence.distribute('notes')",
        )
        .await;
    let left = "select count(*) from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'notes'::regclass and a.grantee <> c.relowner
          and a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER')";
    assert_eq!(admin.value(left).await, "0");
}

#[tokio::test]
async fn nobody_gives_a_row_to_another_tenant() {
    let (shard, admin) = with_notes().await;
    let give = format!("update notes set tenant_id = '{GLOBEX}', id = 3 where body = 'acme'");
    insta::assert_debug_snapshot!(admin.refused(&give).await);
    // The migrator passes the policy, and not the trigger.
    let migrator = shard.connect("ringfence_migrator").await;
    admin.run("grant all on notes to ringfence_migrator").await;
    assert_eq!(migrator.refused(&give).await.code, "RF011");
    // A BEFORE trigger that changes it after the policy's USING is caught, too.
    admin
        .run(&format!(
            "create function give() returns trigger language plpgsql as
               $$ begin new.tenant_id := '{GLOBEX}'; new.id := 4; return new; end $$;
             create trigger zzz before update on notes for each row execute function give()"
        ))
        .await;
    let by_trigger = "update notes set body = 'x' where body = 'acme'";
    assert_eq!(admin.refused(by_trigger).await.code, "RF011");
    let api = shard.api().await;
    assert_eq!(api.refused_as(ACME, by_trigger).await.code, "42501");
}

#[tokio::test]
async fn a_definer_function_of_the_owner_is_bound_too() {
    let (shard, admin) = with_notes().await;
    admin
        .run(
            "alter table notes owner to ringfence_owner;
             create function all_notes() returns setof text language sql security definer as 'select body from public.notes';
             alter function all_notes() owner to ringfence_owner",
        )
        .await;
    let api = shard.api().await;
    assert_eq!(api.rows_as(ACME, "select all_notes()").await, ["acme"]);
}

#[tokio::test]
async fn errors_of_a_key_show_nothing_of_another_tenant() {
    let (shard, _) = with_notes().await;
    let api = shard.api().await;
    // The same id as the other tenant's is free.
    api.run_as(ACME, "insert into notes values (2, 'same id')")
        .await;
    api.run_as(GLOBEX, "insert into notes values (2, 'same id')")
        .await;
    let twice = api.refused_as(ACME, "insert into notes values (2)").await;
    assert_eq!(twice.code, "23505");
    assert!(!format!("{twice:?}").contains(&GLOBEX.to_string()));
}

#[tokio::test]
async fn the_read_of_one_statement_enters_before_it_reads() {
    let (shard, _) = with_notes().await;
    let api = shard.api().await;
    let read = |epoch: i32| {
        format!(
            "with g as materialized (select ringfence.enter('{ACME}', {epoch}, 'read', '') as tenant)
             select q.body from g, lateral (select body from notes where tenant_id = g.tenant offset 0) q"
        )
    };
    assert_eq!(api.rows(&read(1)).await, ["acme"]);
    assert_eq!(api.refused(&read(2)).await.code, "RF002");
}

/// Mutation check: what the tests above rely on is what they would notice.
#[tokio::test]
async fn without_its_parts_the_fence_does_not_hold() {
    let on_notes = |sql: &str| sql.replace("{table}", "public.notes");
    for broken in [mutation::DROP_POLICY, mutation::DISABLE_ROW_SECURITY] {
        let (shard, admin) = with_notes().await;
        let api = shard.api().await;
        admin.run(&on_notes(broken)).await;
        assert_eq!(api.rows_as(ACME, ALL).await, ["acme", "globex"], "{broken}");
        admin.run(&on_notes(mutation::PROTECT_AGAIN)).await;
        assert_eq!(api.rows_as(ACME, ALL).await, ["acme"], "{broken}");
    }
    let (shard, admin) = with_notes().await;
    let api = shard.api().await;

    admin
        .run("alter table notes owner to ringfence_owner")
        .await;
    admin.run(&on_notes(mutation::DO_NOT_FORCE)).await;
    let owner = shard.connect("postgres").await;
    owner.run("set role ringfence_owner").await;
    assert_eq!(owner.rows(ALL).await, ["acme", "globex"]);

    admin
        .run("update ringfence.fence set state = 'fenced'")
        .await;
    admin.run(mutation::OPEN_GUARD).await;
    assert_eq!(api.rows_as(ACME, ALL).await, ["acme"]);
    admin.run(mutation::ENTER_BY_DEFAULT).await;
    assert_eq!(api.rows(ALL).await, [""; 0]);
    admin.run(mutation::INSTALL_AGAIN).await;
    let mut client = shard.admin().await.0;
    schema::shard::install(&mut client, &Default::default())
        .await
        .unwrap();
    assert_eq!(api.refused(ALL).await.code, "RF000");
    let enter = format!("select ringfence.enter('{ACME}', 1, 'read', '')");
    assert_eq!(api.refused(&enter).await.code, "RF003");

    admin.run(&on_notes(mutation::ALLOW_TENANT_CHANGE)).await;
    admin
        .run(&format!(
            "update notes set tenant_id = '{GLOBEX}', id = 9 where body = 'acme'"
        ))
        .await;
    admin.run(&on_notes(mutation::ALLOW_TRUNCATE)).await;
    admin.run("truncate notes").await;
}
