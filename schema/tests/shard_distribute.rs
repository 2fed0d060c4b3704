//! `ringfence.distribute` and `ringfence.reference`: what is kept of a
//! single-tenant table, and what is refused.

use std::fmt::Write;

use crate::support::{ACME, GLOBEX, Session, Shard};

/// Keys and foreign keys, then indexes, as Postgres prints them.
async fn definitions(admin: &Session) -> String {
    let mut all = admin
        .rows(
            "select concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) from pg_constraint
             where connamespace = 'public'::regnamespace and contype in ('p', 'u', 'f') order by 1",
        )
        .await;
    let indexes = "select indexdef from pg_indexes where schemaname = 'public' order by 1";
    all.extend(admin.rows(indexes).await);
    all.join("\n")
}

/// Tables with everything that keys, foreign keys and indexes can say.
const FAMILY: &str = "
create table parent (id int primary key, code text unique);
create table child (
  id int primary key,
  parent_id int default 7 references parent on delete set null,
  code text references parent (code) on delete set default deferrable initially deferred,
  self int references child on delete cascade on update cascade,
  a int, b int, unique nulls not distinct (a, b) include (code) deferrable);
create unique index child_partial on child (lower(code)) where id > 5;
create index child_descending on child (id desc nulls last) include (code);
create unique index child_not_distinct on child (parent_id) nulls not distinct;
alter table child cluster on child_descending;
comment on constraint child_pkey on child is 'a key';
comment on index child_partial is 'an index'";

#[tokio::test]
async fn keys_and_indexes_are_kept_in_whatever_order_tables_are_distributed() {
    let mut results = Vec::new();
    for order in [["child", "parent"], ["parent", "child"]] {
        let shard = Shard::new().await;
        let admin = shard.with(FAMILY).await;
        for table in order {
            admin
                .run(&format!("select ringfence.distribute('{table}')"))
                .await;
        }
        assert_eq!(
            admin
                .value("select count(*) from ringfence.pending_foreign_key")
                .await,
            "0"
        );
        results.push(definitions(&admin).await);
        let rest = "select (select indexrelid::regclass from pg_index where indisclustered and indrelid = 'child'::regclass),
            obj_description('child_partial'::regclass), obj_description(oid, 'pg_constraint')
            from pg_constraint where conname = 'child_pkey'";
        assert_eq!(admin.rows(rest).await, ["child_descending|an index|a key"]);
    }
    assert_eq!(results[0], results[1]);
    insta::assert_snapshot!(results[0]);
}

#[tokio::test]
async fn a_foreign_key_stays_within_the_tenant_and_never_clears_it() {
    let shard = Shard::new().await;
    shard
        .with(&format!(
            "{FAMILY}; select ringfence.distribute('child'), ringfence.distribute('parent')"
        ))
        .await;
    let api = shard.api().await;
    api.run_as(
        ACME,
        "insert into parent values (1, 'x'); insert into child values (1, 1, 'x')",
    )
    .await;
    assert_eq!(
        api.refused_as(GLOBEX, "insert into child values (1, 1)")
            .await
            .code,
        "23503"
    );
    // The other tenant may have the same unique values.
    api.run_as(GLOBEX, "insert into parent values (1, 'x')")
        .await;
    api.run_as(ACME, "update child set code = null; delete from parent")
        .await;
    let left = format!("{ACME}|1|");
    assert_eq!(
        api.rows_as(ACME, "select tenant_id, id, parent_id from child")
            .await,
        [left]
    );
    assert_eq!(api.rows_as(GLOBEX, "select id from parent").await, ["1"]);
}

#[tokio::test]
async fn a_foreign_key_not_yet_validated_stays_so() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table parent (id int primary key); create table child (p int); insert into child values (99);
             alter table child add constraint nv foreign key (p) references parent not valid;
             select ringfence.distribute('parent')",
        )
        .await;
    admin
        .run(&format!("select ringfence.distribute('child', '{ACME}')"))
        .await;
    let key = "select pg_get_constraintdef(oid) from pg_constraint where conname = 'nv'";
    let expected = "FOREIGN KEY (tenant_id, p) REFERENCES parent(tenant_id, id) NOT VALID";
    assert_eq!(admin.value(key).await, expected);
}

#[tokio::test]
async fn existing_rows_become_the_named_tenants_and_triggers_keep_their_state() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table t (id int primary key); insert into t values (1), (2);
             create function never() returns trigger language plpgsql as 'begin raise ''fired''; end';
             create trigger off before update on t for each row execute function never();
             create trigger on_ before update on t for each row execute function never();
             create trigger always before update on t for each row execute function never();
             alter table t disable trigger off; alter table t enable always trigger always",
        )
        .await;
    admin
        .run(&format!("select ringfence.distribute('t', '{ACME}')"))
        .await;
    assert_eq!(
        shard.api().await.rows_as(ACME, "select id from t").await,
        ["1", "2"]
    );
    let states = "select tgname, tgenabled from pg_trigger
        where tgrelid = 't'::regclass and tgname not like 'ringfence%' order by 1";
    assert_eq!(admin.rows(states).await, ["always|A", "off|D", "on_|O"]);
}

#[tokio::test]
async fn the_second_call_does_nothing() {
    let shard = Shard::new().await;
    let admin = shard
        .with(&format!("{FAMILY}; create table same (id int primary key);
            select ringfence.distribute('parent'), ringfence.distribute('child'), ringfence.reference('same')"))
        .await;
    let before = definitions(&admin).await;
    let version = admin
        .value("select version from ringfence.schema_version")
        .await;
    admin.run("select ringfence.distribute('parent'), ringfence.distribute('child'), ringfence.reference('same')").await;
    assert_eq!(definitions(&admin).await, before);
    assert_eq!(
        admin
            .value("select version from ringfence.schema_version")
            .await,
        version
    );
}

#[tokio::test]
async fn the_second_call_mends_what_was_taken_away() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table open (id int primary key); create table closed (id int primary key);
             create table same (id int primary key); alter table closed enable row level security;
             select ringfence.distribute('open'), ringfence.distribute('closed'), ringfence.reference('same')",
        )
        .await;
    let again = "select ringfence.distribute('open'), ringfence.distribute('closed'), ringfence.reference('same')";
    let api = shard.api().await;
    for broken in [
        "alter table {table} disable row level security",
        "alter policy ringfence_tenant on {table} using (true) with check (true)",
        "drop policy ringfence_tenant on {table}",
        "alter table {table} disable trigger ringfence_refuse_truncate",
        "drop trigger ringfence_refuse_tenant_change on {table}",
    ] {
        for table in ["open", "closed"] {
            admin.run(&broken.replace("{table}", table)).await;
        }
        admin.run("grant insert on same to authenticated").await;
        admin.run(again).await;
        api.run_as(ACME, "delete from open; insert into open values (1)")
            .await;
        assert_eq!(api.rows_as(GLOBEX, "select from open").await, [""; 0]);
        for table in ["closed", "same"] {
            let insert = format!("insert into {table} values (1)");
            assert_eq!(
                api.refused_as(ACME, &insert).await.code,
                "42501",
                "{broken}"
            );
        }
        assert_eq!(admin.refused("truncate open").await.code, "RF010");
        let give = format!("update open set tenant_id = '{GLOBEX}'");
        assert_eq!(admin.refused(&give).await.code, "RF011", "{broken}");
    }
}

#[tokio::test]
async fn a_tenant_column_of_the_authors_is_adopted_and_stays_visible() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table parent (tenant_id uuid, id int, primary key (tenant_id, id));
             create table child (tenant_id uuid, id int primary key,
               foreign key (tenant_id, id) references parent on delete set null);
             select ringfence.distribute('child'), ringfence.distribute('parent')",
        )
        .await;
    assert_eq!(
        admin
            .value("select bool_or(hidden) from ringfence.relation")
            .await,
        "f"
    );
    let expected = "child child_tenant_id_id_fkey FOREIGN KEY (tenant_id, id) REFERENCES parent(tenant_id, id) ON DELETE SET NULL (id)";
    assert!(definitions(&admin).await.contains(expected));
}

#[tokio::test]
async fn replica_identity_is_the_smallest_that_works() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table with_key (id int primary key);
             create table with_index (id int not null unique, other int unique);
             create table with_nothing (id int unique);
             create table late (id int primary key deferrable);
             select ringfence.distribute(t) from unnest(array['with_key', 'with_index', 'with_nothing', 'late']::regclass[]) t",
        )
        .await;
    let found = "select relname, relreplident from pg_class
        where relname in ('with_key', 'with_index', 'with_nothing', 'late') order by 1";
    assert_eq!(
        admin.rows(found).await,
        ["late|f", "with_index|i", "with_key|d", "with_nothing|f"]
    );
}

#[tokio::test]
async fn partitions_made_and_attached_later_are_protected() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table ev (id int, at date, body text, primary key (id, at)) partition by range (at);
             create table ev1 partition of ev for values from ('2020-01-01') to ('2021-01-01');
             create index on ev (body);
             grant select on ev1 to authenticated;
             select ringfence.distribute('ev');
             create table ev2 partition of ev for values from ('2021-01-01') to ('2022-01-01');
             create table ev3 (tenant_id uuid not null, id int not null, at date not null, body text);
             grant all on ev3 to authenticated;
             alter table ev attach partition ev3 for values from ('2022-01-01') to ('2023-01-01')",
        )
        .await;
    let api = shard.api().await;
    for (part, year) in [("ev1", 2020), ("ev2", 2021), ("ev3", 2022)] {
        api.run_as(ACME, &format!("insert into ev values (1, '{year}-05-05')"))
            .await;
        assert_eq!(api.rows_as(GLOBEX, "select from ev").await, [""; 0]);
        assert_eq!(
            api.refused_as(ACME, &format!("select from {part}"))
                .await
                .code,
            "42501"
        );
        // Who may name it is bound by its own policy, and can't empty it.
        admin
            .run(&format!("grant select on {part} to service_role"))
            .await;
        api.run("set role service_role").await;
        assert_eq!(
            api.rows_as(GLOBEX, &format!("select from {part}")).await,
            [""; 0]
        );
        api.run("set role authenticated").await;
        assert_eq!(
            admin.refused(&format!("truncate {part}")).await.code,
            "RF010"
        );
    }
    assert_eq!(api.rows_as(ACME, "select id from ev").await.len(), 3);
    insta::assert_snapshot!(definitions(&admin).await);
}

#[tokio::test]
async fn reference_tables_are_read_by_all_and_written_by_none() {
    let shard = Shard::new().await;
    shard
        .with(
            "create table country (code text primary key); insert into country values ('no');
             grant all on country to authenticated, public; select ringfence.reference('country');
             create table person (id int primary key, country text references country);
             select ringfence.distribute('person')",
        )
        .await;
    let api = shard.api().await;
    for sql in [
        "insert into country values ('de')",
        "update country set code = 'x'",
        "delete from country",
        "truncate country cascade",
    ] {
        assert_eq!(api.refused_as(ACME, sql).await.code, "42501", "{sql}");
    }
    assert_eq!(api.rows_as(ACME, "select code from country").await, ["no"]);
    api.run_as(ACME, "insert into person values (1, 'no')")
        .await;
    assert_eq!(
        api.refused_as(ACME, "insert into person values (2, 'xx')")
            .await
            .code,
        "23503"
    );
}

#[tokio::test]
async fn refusals() {
    let cases = [
        ("create table t (r int4range, exclude using gist (r with &&))", "distribute"),
        ("create table base (id int); create table t () inherits (base)", "distribute"),
        ("create unlogged table t (id int primary key)", "distribute"),
        ("create table p (id int) partition by list (id); create table t partition of p default", "distribute"),
        ("create table o (x int, y int, primary key (x, y)); select ringfence.distribute('o');
          create table t (tenant_id uuid, x int, y int, foreign key (tenant_id, x, y) references o match full)", "distribute"),
        ("create table o (id int primary key); select ringfence.distribute('o');
          create table t (tenant_id uuid, o int, foreign key (tenant_id, o) references o on update set null)", "distribute"),
        ("create table t (tenant_id text)", "distribute"),
        ("create table t (id int); insert into t values (1)", "distribute"),
        ("create view t as select 1", "distribute"),
        ("create table t (id int); select ringfence.reference('t')", "distribute"),
        ("create table t (id int primary key); create table r (id int references t); select ringfence.reference('r')", "distribute"),
        ("create table t (id int); select ringfence.distribute('t')", "reference"),
        ("create table t (id int) partition by list (id)", "reference"),
        ("create table o (id int primary key); create table t (o int references o); select ringfence.distribute('o')", "reference"),
    ];
    let mut texts = String::new();
    for (tables, function) in cases {
        let shard = Shard::new().await;
        let admin = shard.with(tables).await;
        let refusal = admin
            .refused(&format!("select ringfence.{function}('t')"))
            .await;
        assert_eq!(refusal.code, "RF012", "{tables}");
        writeln!(texts, "{refusal:?}\n").unwrap();
    }
    insta::assert_snapshot!(texts);
}
