//! Migration files on one shard: `schema::apply`, `schema::history`,
//! `schema::retire`.

use std::time::Duration;

use schema::apply::{Advance, ApplyError, Limits, advance};
use schema::history::{self, baseline};
use schema::migration::Migration;
use schema::{drift, retire};

use crate::support::{ACME, GLOBEX, Session, Shard};

const PEOPLE: &str = "set role ringfence_owner;
  create table people (id int primary key, name text, n int not null default 0, title text);
  select ringfence.distribute('people');
  reset role";

fn file(name: &str, text: &str) -> Migration {
    Migration::parse(name, text).unwrap()
}

/// One statement or chunk a call.
const BIT_BY_BIT: Limits = Limits {
    slice: Duration::ZERO,
    lag_max: 1 << 40,
};

async fn migrator(shard: &Shard) -> Session {
    shard.connect("ringfence_migrator").await
}

async fn run(session: &mut Session, file: &Migration) -> Result<Advance, ApplyError> {
    advance(&mut session.0, "app", file, &Limits::default()).await
}

#[tokio::test]
async fn a_transactions_file_is_there_whole_or_not_at_all() {
    let shard = Shard::new().await;
    let mut session = migrator(&shard).await;
    let good = file(
        "001_people.sql",
        "create table people (id int primary key, name text);\nselect ringfence.distribute('people');",
    );
    assert!(run(&mut session, &good).await.unwrap().done);
    assert!(run(&mut session, &good).await.unwrap().done);
    let admin = shard.admin().await;
    assert_eq!(
        admin
            .value("select relowner::regrole from pg_class where oid = 'people'::regclass")
            .await,
        "ringfence_owner"
    );

    let bad = file(
        "002_bad.sql",
        "create table orders (id int);\nselect 1 / 0;\ncreate table more (id int);",
    );
    let error = run(&mut session, &bad).await.unwrap_err();
    assert_eq!(error.to_string(), "002_bad.sql, line 2");
    assert_eq!(admin.value("select to_regclass('orders')").await, "");
    let entries = history::read(&session.0, "app").await.unwrap();
    assert_eq!(entries.len(), 1);
    assert!(entries[0].done);

    // What is there already is recorded, not run.
    let files = [good, bad];
    let written = baseline(&session.0, "app", &files).await.unwrap();
    assert_eq!(written, 1);
    assert_eq!(admin.value("select to_regclass('orders')").await, "");
    // So is what was begun; a text that is not the one which was begun is not.
    let begun = "update ringfence.migration set state = 'running', step = 1 where number = 2";
    admin.run(begun).await;
    assert_eq!(baseline(&session.0, "app", &files).await.unwrap(), 1);
    let entries = history::read(&session.0, "app").await.unwrap();
    assert_eq!(history::next(&files, &entries), Ok(None));
    assert_eq!(entries[1].step, 3);
    admin
        .run(&format!(
            "{begun}; update ringfence.migration set checksum = 'other' where number = 2"
        ))
        .await;
    assert_eq!(baseline(&session.0, "app", &files).await.unwrap(), 0);
}

#[tokio::test]
async fn a_table_that_no_rule_could_see_must_be_scoped() {
    let shard = Shard::new().await;
    let mut session = migrator(&shard).await;
    let made = "do $$ begin create table unseen (id int primary key); end $$;";
    for header in ["", "-- ringfence: no-transaction\n"] {
        let bad = file("001_t.sql", &format!("{header}{made}"));
        let error = run(&mut session, &bad).await.unwrap_err();
        assert!(matches!(error, ApplyError::Unscoped { .. }), "{error:?}");
        assert_eq!(history::read(&session.0, "app").await.unwrap(), []);
    }
    for (number, good) in [
        format!("{made}\nselect ringfence.distribute('unseen');"),
        format!(
            "-- ringfence: allow table-unscoped for other because workers alone read it\n{}",
            made.replace("unseen", "other")
        ),
        // Scoped by a later file, as far as the rules can tell.
        "create table later (id int primary key);".into(),
        "select ringfence.distribute('later');".into(),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("{:03}_t.sql", number + 1);
        assert!(run(&mut session, &file(&name, good)).await.unwrap().done);
    }
}

#[tokio::test]
async fn a_file_of_which_a_shard_has_nothing_may_be_mended() {
    let shard = Shard::new().await;
    let mut session = migrator(&shard).await;
    for bad in [
        "update nobody set n = 1;",
        "create index concurrently nowhere on nobody (n);",
        "-- ringfence: backfill\nupdate nobody set n = 1;",
    ] {
        let bad = file(
            "001_t.sql",
            &format!("-- ringfence: no-transaction\n{bad}\nselect 1;"),
        );
        run(&mut session, &bad).await.unwrap_err();
        assert_eq!(history::read(&session.0, "app").await.unwrap(), []);
    }
    let half = "-- ringfence: no-transaction\nselect 1;\nselect 1 / 0;";
    run(&mut session, &file("001_t.sql", half))
        .await
        .unwrap_err();
    let mended = file("001_t.sql", "-- ringfence: no-transaction\nselect 1;");
    let error = run(&mut session, &mended).await.unwrap_err();
    assert!(matches!(error, ApplyError::Changed(_)), "{error:?}");
}

#[tokio::test]
async fn a_back_fill_meets_each_row_of_every_tenant_once_however_often_it_stops() {
    let shard = Shard::new().await;
    shard.with(PEOPLE).await;
    let admin = shard.admin().await;
    // 2 comes before 10, as numbers do.
    for tenant in [ACME, GLOBEX] {
        admin
            .run(&format!(
                "insert into people (tenant_id, id, name) select '{tenant}', n, 'p' from generate_series(1, 25) n"
            ))
            .await;
    }
    let fill = file(
        "001_fill.sql",
        "-- ringfence: no-transaction\n-- ringfence: backfill rows 4\n\
         update people p set n = n + 1 where name = 'p';\n\
         insert into people (tenant_id, id, name) select distinct tenant_id, 100, 'new' from people;",
    );
    let mut calls = 0;
    loop {
        // Each call is a new session: the one before died.
        let mut session = migrator(&shard).await;
        match advance(&mut session.0, "app", &fill, &BIT_BY_BIT).await {
            Ok(advanced) => {
                calls += 1;
                if advanced.done {
                    break;
                }
            }
            // The server has not seen the end of the session before yet.
            Err(ApplyError::Busy) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    // 13 chunks, the look that finds none left, and the other statement.
    assert_eq!(calls, 15);
    assert_eq!(
        admin
            .rows("select name, n, count(*) from people group by 1, 2 order by 1")
            .await,
        ["new|0|2", "p|1|50"]
    );
    assert_eq!(
        admin.value("select rows from ringfence.migration").await,
        "50"
    );
}

#[tokio::test]
async fn a_back_fill_takes_half_of_the_time_at_most() {
    let shard = Shard::new().await;
    shard
        .with(&format!(
            "{PEOPLE};
             insert into people (tenant_id, id) select '{ACME}', n from generate_series(1, 6) n;
             create function slow() returns trigger language plpgsql as $$
               begin perform pg_sleep(0.05); return new; end $$;
             create trigger slow before update on people for each row execute function slow()"
        ))
        .await;
    let fill = file(
        "001_fill.sql",
        "-- ringfence: no-transaction\n-- ringfence: backfill rows 1\nupdate people set n = 1;",
    );
    let mut session = migrator(&shard).await;
    let begun = std::time::Instant::now();
    while !run(&mut session, &fill).await.unwrap().done {}
    // 300 ms of work: a slower shard is given longer pauses.
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(600), "{took:?}");
}

#[tokio::test]
async fn what_a_broken_index_build_left_is_built_again() {
    let shard = Shard::new().await;
    shard.with(PEOPLE).await;
    let admin = shard.admin().await;
    admin
        .run(&format!(
            "insert into people (tenant_id, id, name) values ('{ACME}', 1, 'a'), ('{ACME}', 2, 'a')"
        ))
        .await;
    let unique = file(
        "001_index.sql",
        "-- ringfence: no-transaction\ncreate unique index concurrently people_name on people (tenant_id, name);",
    );
    let mut session = migrator(&shard).await;
    let error = run(&mut session, &unique).await.unwrap_err();
    assert!(matches!(error, ApplyError::Statement { .. }), "{error:?}");
    let index = "select indisvalid from pg_index where indexrelid = to_regclass('people_name')";
    assert_eq!(admin.rows(index).await, [""; 0]);

    // One that a worker which died has left behind.
    admin.run("set role ringfence_owner").await;
    let left = admin
        .refused("create unique index concurrently people_name on people (tenant_id, name)")
        .await;
    assert_eq!(admin.value(index).await, "f", "{left:?}");
    admin
        .run("reset role; delete from people where id = 2")
        .await;
    assert!(run(&mut session, &unique).await.unwrap().done);
    assert_eq!(admin.value(index).await, "t");

    // Built, but not recorded: it is not built twice.
    admin
        .run("update ringfence.migration set state = 'running', step = 0, begun = 0")
        .await;
    assert!(run(&mut session, &unique).await.unwrap().done);
    // Another's index of that name is not taken for it.
    admin
        .run("update ringfence.migration set state = 'running', step = 0, begun = null")
        .await;
    let error = run(&mut session, &unique).await.unwrap_err();
    assert!(matches!(error, ApplyError::Statement { .. }), "{error:?}");
}

#[tokio::test]
async fn what_a_broken_rebuild_left_is_dropped() {
    let shard = Shard::new().await;
    shard.with(PEOPLE).await;
    let admin = shard.admin().await;
    admin
        .run(&format!(
            "create index people_name on people (tenant_id, name); alter index people_name owner to ringfence_owner;
             insert into people (tenant_id, id, name) values ('{ACME}', 1, 'a'), ('{ACME}', 2, 'a')"
        ))
        .await;
    // An invalid index of the name that a rebuild gives.
    admin.run("set role ringfence_owner").await;
    admin
        .refused("create unique index concurrently people_name_ccnew on people (tenant_id, name)")
        .await;
    let invalid = "select indexrelid::regclass from pg_index where not indisvalid";
    assert_eq!(admin.rows(invalid).await, ["people_name_ccnew"]);
    let rebuild = file(
        "001_rebuild.sql",
        "-- ringfence: no-transaction\nreindex index concurrently people_name;",
    );
    let mut session = migrator(&shard).await;
    assert!(run(&mut session, &rebuild).await.unwrap().done);
    assert_eq!(admin.rows(invalid).await, [""; 0]);
}

#[tokio::test]
async fn a_partition_that_was_half_detached_is_detached() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "set role ringfence_owner; create table ev (id int) partition by list (id);
             create table ev1 partition of ev for values in (1); reset role",
        )
        .await;
    let detach = file(
        "001_detach.sql",
        "-- ringfence: no-transaction\nalter table ev detach partition ev1 concurrently;",
    );
    // Someone reads, so it waits between its halves, where it is ended.
    let reader = shard.admin().await;
    reader.run("begin; select from ev").await;
    let ended = shard.admin().await;
    let pid = ended.value("select pg_backend_pid()").await;
    let half = tokio::spawn(async move {
        ended
            .refused("alter table ev detach partition ev1 concurrently")
            .await
            .code
    });
    let pending = "select count(*) from pg_inherits where inhdetachpending";
    while admin.value(pending).await == "0" {
        assert!(!half.is_finished());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    admin.run(&format!("select pg_cancel_backend({pid})")).await;
    assert_eq!(half.await.unwrap(), "57014");
    reader.run("commit").await;
    assert_eq!(admin.value(pending).await, "1");
    let mut session = migrator(&shard).await;
    assert!(run(&mut session, &detach).await.unwrap().done);
    assert_eq!(admin.value("select count(*) from pg_inherits").await, "0");

    // Detached, but not recorded.
    admin
        .run("update ringfence.migration set state = 'running', step = 0, begun = 0")
        .await;
    assert!(run(&mut session, &detach).await.unwrap().done);
}

#[tokio::test]
async fn a_lock_is_waited_for_shortly_and_its_holder_named() {
    let shard = Shard::new().await;
    shard.with(PEOPLE).await;
    let change = file("001_more.sql", "alter table people add column more text;");
    let holder = shard.admin().await;
    holder
        .run("set application_name = 'report'; begin; select from people")
        .await;
    // Older than the lock is waited for: only such are named.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut session = migrator(&shard).await;
    let error = run(&mut session, &change).await.unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, ApplyError::Locked { .. }), "{error:?}");
    assert!(message.contains("report"), "{message}");
    // Two change a shard at once: the second is told.
    let mut second = migrator(&shard).await;
    let busy = run(&mut second, &change).await.unwrap_err();
    assert!(matches!(busy, ApplyError::Busy), "{busy:?}");
    holder.run("rollback").await;
    assert!(run(&mut session, &change).await.unwrap().done);
}

#[tokio::test]
async fn what_is_retired_is_in_no_model_and_can_be_shown_again() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table teams (id int primary key, name text unique);
             create table people (id int primary key, title text, team int references teams);
             create index on people (team);
             select ringfence.distribute('teams'), ringfence.distribute('people')",
        )
        .await;
    let contract = file(
        "001_less.sql",
        "-- ringfence: phase contract\nalter table people drop column title, drop column \"team\";\n\
         alter table teams drop column name;",
    );
    let session = migrator(&shard).await;
    let columns = async || {
        let catalog = schema::introspect::load(&admin.0, &["public"])
            .await
            .unwrap();
        let mut columns: Vec<String> = catalog
            .relations
            .values()
            .flat_map(|relation| {
                let name = relation.name.name.as_str();
                let columns = relation.columns.iter();
                columns.map(move |column| format!("{name}.{}", column.name.as_str()))
            })
            .collect();
        columns.sort();
        (columns.join(" "), catalog.foreign_keys.len())
    };
    let all = "people.id people.team people.title teams.id teams.name";
    assert_eq!(columns().await, (all.into(), 1));
    let before = schema::introspect::version(&admin.0).await.unwrap();
    let removals = retire::removals(&contract);
    let version = retire::hide(&session.0, &removals).await.unwrap();
    assert!(version > before);
    assert_eq!(retire::hide(&session.0, &removals).await.unwrap(), version);
    assert_eq!(columns().await, ("people.id teams.id".into(), 0));

    // A router says what it has loaded.
    let router = shard.connect("ringfence_router").await;
    let instance = uuid::Uuid::from_u128(5);
    let live = [instance.simple().to_string()];
    let readers = retire::readers(&session.0).await.unwrap();
    assert_eq!(retire::behind(&readers, &live, version), live);
    for (loaded, behind) in [(version - 1, 1), (version, 0)] {
        let name = retire::session_name(&instance, loaded);
        router
            .run(&format!("set application_name = '{name}'"))
            .await;
        let readers = retire::readers(&session.0).await.unwrap();
        assert_eq!(retire::behind(&readers, &live, version).len(), behind);
    }
    retire::show(&session.0).await.unwrap();
    assert_eq!(columns().await, (all.into(), 1));
    assert!(schema::introspect::version(&admin.0).await.unwrap() > version);
}

#[tokio::test]
async fn views_and_functions_are_retired_with_what_goes_by_cascade() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            "create table people (id int primary key, title text, age int);
             select ringfence.distribute('people');
             create view titled with (security_invoker = true) as select id, title from people;
             create view aged with (security_invoker = true) as select id, age from people;
             create view above with (security_invoker = true) as select id from titled;
             create function f(a int) returns int language sql stable as 'select a';
             create function f(a text) returns int language sql stable as 'select 1';
             create function g() returns int language sql stable as 'select 2';
             create function h() returns setof titled language sql stable as 'select * from titled'",
        )
        .await;
    let session = migrator(&shard).await;
    let left = async || {
        let catalog = schema::introspect::load(&admin.0, &["public"])
            .await
            .unwrap();
        let relations = catalog.relations.values().map(|r| r.name.name.as_str());
        let functions = catalog
            .functions
            .values()
            .flatten()
            .map(|f| f.name.name.as_str());
        let mut left: Vec<&str> = relations.chain(functions).collect();
        left.sort_unstable();
        left.join(" ")
    };
    assert_eq!(left().await, "above aged f f g h people titled");
    for (statement, expected) in [
        ("drop view aged;", "above f f g h people titled"),
        ("drop function f(a text);", "above aged f g h people titled"),
        (
            "drop function g, if_not_there;",
            "above aged f f h people titled",
        ),
        (
            "alter function f(int) rename to k;",
            "above aged f g h people titled",
        ),
        (
            "alter view above rename to below;",
            "aged f f g h people titled",
        ),
        (
            "alter table only people drop column title cascade;",
            "aged f f g people",
        ),
        ("drop view titled;", "aged f f g h people"),
        (
            "drop function f(no_such_type);",
            "above aged f f g h people titled",
        ),
    ] {
        let text = format!("-- ringfence: phase contract\n{statement}");
        let removals = retire::removals(&file("001_less.sql", &text));
        retire::hide(&session.0, &removals).await.unwrap();
        assert_eq!(left().await, expected, "{statement}");
        retire::show(&session.0).await.unwrap();
    }
}

#[tokio::test]
async fn equal_schemas_have_equal_fingerprints_and_others_name_what_differs() {
    let (one, two) = (Shard::new().await, Shard::new().await);
    let more = format!(
        "{PEOPLE}; create function f() returns int language sql as 'select 1'; create type pair as (a int, b text);
         create domain positive as int check (value > 0)"
    );
    one.with(&more).await;
    two.with(&more).await;
    let (a, b) = (one.admin().await, two.admin().await);
    let first = drift::objects(&a.0).await.unwrap();
    let second = drift::objects(&b.0).await.unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    b.run(
        "alter table people alter name set not null; create index people_n on people (tenant_id, n);
         revoke execute on function f() from public; alter type pair alter attribute b type int;
         alter domain positive set default 1; grant select (title) on people to anon;
         create statistics names on name, n from people",
    )
    .await;
    let second = drift::objects(&b.0).await.unwrap();
    let shards = [("one".to_owned(), first), ("two".into(), second)];
    let named: Vec<String> = drift::differences(&shards, 10)
        .into_iter()
        .map(|difference| difference.object)
        .collect();
    assert_eq!(
        named,
        [
            "column public.people.name",
            "column public.people.title",
            "function public.f()",
            "index public.people_n",
            "statistics public.names",
            "type public.pair",
            "type public.positive"
        ]
    );
    b.run("alter function f() owner to ringfence_owner; grant execute on function f() to public")
        .await;
    let second = drift::objects(&b.0).await.unwrap();
    let first = drift::objects(&a.0).await.unwrap();
    assert_ne!(
        first.0["function public.f()"],
        second.0["function public.f()"]
    );
}
