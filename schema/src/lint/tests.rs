use super::*;

/// One line a finding: where, which, what.
fn show(findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let level = match f.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        format!("{}:{} {level} {}: {}\n", f.file, f.line, f.rule, f.what)
    };
    findings.iter().map(line).collect()
}

fn check(files: &[&str]) -> String {
    let shards = Known::new()
        .with("companies", RelationKind::Distributed)
        .with("people", RelationKind::Distributed)
        .with("countries", RelationKind::Reference);
    let files: Vec<Migration> = (1..)
        .zip(files)
        .map(|(n, text)| Migration::parse(&format!("{n:03}_t.sql"), text).unwrap())
        .collect();
    show(&lint(&files, shards))
}

fn snapshot(name: &str, findings: String) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, findings));
}

fn clean(text: &str) {
    assert_eq!(check(&[text]), "", "{text}");
}

#[test]
fn every_rule_says_why_and_what_instead() {
    let mut ids: Vec<_> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), Rule::ALL.len());
    for rule in Rule::ALL {
        assert_eq!(Rule::of_id(rule.id()), Some(*rule));
        assert!(rule.why().len() > 20 && rule.instead().len() > 10, "{rule}");
    }
}

#[test]
fn the_crm_passes() {
    let files: Vec<Migration> = crate::crm::FILES
        .iter()
        .map(|(name, sql)| Migration::parse(&format!("{name}.sql"), sql).unwrap())
        .collect();
    let findings = lint(&files, Known::new());
    assert!(passes(&findings), "{}", show(&findings));
}

#[test]
fn safe_changes_pass() {
    clean("alter table people add column nickname text;");
    clean("alter table people add column born date not null default '2000-01-01';");
    clean(
        "-- ringfence: no-transaction\ncreate index concurrently people_by_name on people (tenant_id, name);",
    );
    clean(
        "-- ringfence: no-transaction\ncreate unique index concurrently people_email on people (tenant_id, email);",
    );
    clean(
        "create table t (id bigint primary key, n text unique);\nselect ringfence.distribute('t');",
    );
    clean(
        "create table t (id int, at date, primary key (id, at)) partition by range (at);\n\
         create table t_1 (id int, at date);\nalter table only t attach partition t_1 default;\n\
         alter table only t_1 add constraint t_1_key unique (id, at);\nselect ringfence.distribute('t');",
    );
    clean("create table public.\"T\" (id int);\nselect ringfence.reference('\"T\"'::regclass);");
    clean(
        "alter table people add constraint p foreign key (tenant_id, c) references companies (tenant_id, id) not valid;",
    );
    clean(
        "alter table people add constraint p foreign key (country) references countries (code) not valid;",
    );
    clean("alter table people add constraint p check (name <> '') not valid;");
    clean("-- ringfence: phase contract\nalter table people drop column nickname;");
    clean("create view v with (security_invoker = true) as select 1;");
    clean("create view v with (security_barrier, security_invoker) as select 1;");
    clean("create policy own on people for select using (true);");
    clean(
        "-- ringfence: no-transaction\n-- ringfence: backfill\nupdate people set name = '' where name is null;",
    );
}

#[test]
fn tables_keys_and_foreign_keys_stay_within_a_tenant() {
    snapshot(
        "tenants",
        check(&[
            "create table a (id bigint primary key);\ncreate table b (id bigint primary key);\nselect ringfence.distribute('a');",
            "alter table people add constraint one unique (email);\n\
         alter table people add column code text unique;\n\
         alter table people add primary key (id);",
            "-- ringfence: no-transaction\ncreate unique index concurrently x on people (lower(email), tenant_id);",
            "alter table people add constraint two foreign key (c) references companies (id) not valid;\n\
         alter table people add column d bigint references companies;\n\
         alter table countries add constraint three foreign key (c) references companies (id) not valid;\n\
         create table c (id bigint primary key, p bigint references people (id));\nselect ringfence.distribute('c');",
            "do $$ begin perform ringfence.distribute('b'); end $$;",
            "select ringfence.distribute(x) from y;",
        ]),
    );
}

#[test]
fn what_keeps_tenants_apart_is_left_alone() {
    snapshot(
        "guard",
        check(&[
            "alter table people disable row level security;\nalter table people no force row level security;",
            "drop policy ringfence_tenant on people;\nalter policy ringfence_tenant on people using (true);",
            "alter table people disable trigger all;\ndrop trigger ringfence_refuse_truncate on people;",
            "-- ringfence: phase contract\nalter table people drop column tenant_id;",
            "alter table people alter column tenant_id drop not null;",
            "update ringfence.fence set epoch = 1;\ndrop function ringfence.enter;",
            "create table ringfence.mine (a int);",
            "truncate people;",
            "create temp table t (a int);\ncreate unlogged table u (a int);\nalter table people set unlogged;",
            "create view v as select 1;\ncreate view w with (security_invoker = false) as select 1;",
            "create materialized view m as select 1;",
            "create function f() returns int language sql security definer as 'select 1';",
        ]),
    );
}

#[test]
fn what_a_later_file_opens_or_drops_is_not_hidden() {
    let made = "create view v as select 1;\ncreate view w as select 1;\ncreate view x as select 1;\n\
         create materialized view m as select 1;\n\
         create function f(a int) returns int language sql security definer as 'select 1';\n\
         create function f(a text) returns int language sql security definer as 'select 1';";
    let opened = "alter view v set (security_invoker = true);\ndrop materialized view m;\n\
         alter function public.f(a integer) security invoker;";
    let later = "-- ringfence: phase contract\ndrop view w;";
    assert_eq!(
        check(&[made, opened, later])
            .lines()
            .filter(|line| !line.contains("contract"))
            .collect::<Vec<_>>(),
        [
            "001_t.sql:3 warning view-runs-as-owner: view x runs with its owner's rights",
            "001_t.sql:6 warning function-runs-as-owner: function f is SECURITY DEFINER",
        ]
    );
    let closed = "create view v with (security_invoker) as select 1;";
    let reset = "alter view v reset (security_invoker);";
    assert_eq!(
        check(&[closed, reset]),
        "002_t.sql:1 warning view-runs-as-owner: view v would run with its owner's rights\n"
    );
}

#[test]
fn locks_that_hold_up_requests_are_refused() {
    snapshot(
        "locks",
        check(&[
            "create index by_name on people (name);",
            "drop index by_name;",
            "create index concurrently by_name on people (name);",
            "-- ringfence: no-transaction\ncreate index concurrently on people (name);",
            "reindex table people;",
            "alter table people alter column age type bigint;",
            "alter table people alter column name set not null;",
            "alter table people add column at timestamptz default clock_timestamp();",
            "alter table people add column n int not null;",
            "alter table people add constraint c check (age > 0);",
            "alter table people add constraint k unique (tenant_id, email);",
            "alter table people add constraint f foreign key (tenant_id, c) references companies (tenant_id, id);",
            "begin;\nselect 1;\ncommit;",
            "alter table people detach partition p1;",
        ]),
    );
}

#[test]
fn what_holds_a_table_for_long_or_goes_unseen_is_refused() {
    let findings = check(&[
        "alter table people add column x int;\nupdate people set x = 1;",
        "create table t (id int primary key);\nalter table t add column n bigserial;\n\
         insert into t select 1;\nselect ringfence.distribute('t');",
        "alter table people add column n bigserial;",
        "vacuum (verbose, full) people;",
        "cluster people;\nlock table people;\nalter table people set tablespace other;",
        "create schema a create table t (id int);",
        "do $$ begin null; end $$;",
        "alter table people add constraint c check (name is not null) not valid,\n\
           add constraint d check ((email is not null)) not valid;",
        "alter table people validate constraint c;\nalter table people alter column email set not null;",
        "alter table people validate constraint d;\nalter table people alter column email set not null;",
        "alter table people validate constraint made_elsewhere;\nalter table people alter column age set not null;",
    ]);
    insta::assert_snapshot!(findings, @r"
    001_t.sql:2 error rows-behind-lock: rows are changed while people, which was altered before, is locked
    003_t.sql:1 error default-rewrites: a column of type bigserial
    004_t.sql:1 error table-rewrites: VACUUM FULL
    005_t.sql:1 error table-rewrites: CLUSTER
    005_t.sql:2 error lock-table: LOCK TABLE
    005_t.sql:3 error table-rewrites: all of people
    006_t.sql:1 error statements-unseen: statements within CREATE SCHEMA
    007_t.sql:1 error statements-unseen: a DO block
    009_t.sql:2 error set-not-null: what is validated before does not check email
    ");
    clean("alter table people add column x int;\ninsert into countries values ('a');");
    clean(
        "-- ringfence: no-transaction\nalter table people add column x int;\n\
         -- ringfence: backfill\nupdate people set x = 1;",
    );
}

#[test]
fn removals_wait_for_the_contract_phase() {
    snapshot(
        "removals",
        check(&[
            "alter table people drop column name, rename column a to b;\nalter table people rename to persons;",
            "drop table people;\ndrop view v;\ndrop function f(int);\ndrop type t;",
            "alter view v rename to w;\nalter view v rename column a to b;\nalter function f() rename to g;\n\
             alter table only people drop column name;\nalter type t rename to u;",
            "-- ringfence: phase contract\ndrop schema app cascade;\ndrop type t cascade;\ndrop type u;\n\
             drop view v cascade;\ndo $$ begin drop table people; end $$;\nalter type t rename value 'a' to 'b';",
        ]),
    );
}

#[test]
fn no_way_of_making_a_table_or_a_key_goes_unseen() {
    snapshot(
        "ways",
        check(&[
            "create table a as select 1 as id;\nselect 1 as id into b;\nselect 2 as id into unlogged c;",
            "create table d (id int primary key, at tstzrange, exclude using gist (at with &&));\n\
             select ringfence.distribute('d');",
            "alter table people add constraint e exclude using gist (at with &&);\n\
             alter table people add constraint f exclude using gist (tenant_id with =, at with &&);",
            "alter view v set (security_invoker = false);\nalter view w reset (security_invoker);\n\
             alter view x set (security_invoker = true);",
        ]),
    );
}

#[test]
fn a_file_may_break_a_rule_and_says_why() {
    clean("-- ringfence: allow contract-drop because nobody used it\ndrop view v;");
    clean(
        "-- ringfence: allow table-unscoped because workers alone read it\ncreate table t (a int);",
    );
    clean(
        "-- ringfence: allow table-unscoped for \"T\" because workers alone read it\ncreate table \"T\" (a int);",
    );
    // What is allowed for one table is not allowed for another.
    assert_eq!(
        check(&[
            "-- ringfence: allow table-unscoped for t because workers alone read it\n\
             create table t (a int);\ncreate table u (a int);"
        ]),
        "001_t.sql:3 error table-unscoped: public.u is neither distributed nor a reference table\n"
    );
    snapshot(
        "allowed",
        check(&[
            "-- ringfence: allow truncate because I like it\nselect 1;",
            "-- ringfence: allow tuncate because I like it\ntruncate people;",
            "-- ringfence: allow syntax because I like it\nalter tabel people;",
        ]),
    );
}
