//! `schema::shard::install`.

use schema::shard::{Installed, RolePasswords, install};

use crate::support::{Shard, server};

/// Every file of the folder, in the order of their numbers.
fn files() -> Vec<String> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shard")).unwrap();
    let stem =
        |entry: std::fs::DirEntry| entry.path().file_stem().unwrap().to_str().unwrap().into();
    let mut files: Vec<String> = folder.map(|entry| stem(entry.unwrap())).collect();
    files.sort();
    files
}

async fn run(shard: &Shard) -> Installed {
    let mut client = shard.admin().await.0;
    install(&mut client, &RolePasswords::default())
        .await
        .unwrap()
}

#[tokio::test]
async fn the_second_time_nothing_is_run() {
    let shard = Shard::bare("install_twice").await;
    assert_eq!(run(&shard).await.files, files());
    assert_eq!(run(&shard).await.files, [""; 0]);
}

#[tokio::test]
async fn a_file_whose_text_changed_is_run_again_and_breaks_nothing() {
    let shard = Shard::new().await;
    let admin = shard
        .with("create table t (id int primary key); select ringfence.distribute('t')")
        .await;
    admin
        .run("update ringfence.installed set digest = 'older'")
        .await;
    assert_eq!(run(&shard).await.files, files());
    assert_eq!(
        admin
            .value("select kind from ringfence.relation where relid = 't'::regclass")
            .await,
        "distributed"
    );
    assert_eq!(
        admin.value("select count(*) from ringfence.fence").await,
        "2"
    );
}

#[tokio::test]
async fn eight_installers_at_once_queue() {
    let shard = Shard::bare("install_at_once").await;
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = shard.admin().await.0;
        runs.spawn(async move { install(&mut client, &RolePasswords::default()).await });
    }
    let done = runs.join_all().await;
    let worked = done.into_iter().map(Result::unwrap);
    assert_eq!(worked.filter(|run| !run.files.is_empty()).count(), 1);
}

#[tokio::test]
async fn roles_have_what_they_need_and_no_more() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    let roles = admin
        .rows(
            "select rolname,
               concat_ws(' ', case when rolcanlogin then 'login' end, case when not rolinherit then 'noinherit' end,
                 case when rolbypassrls then 'bypassrls' end, case when rolreplication then 'replication' end,
                 case when rolsuper or rolcreaterole or rolcreatedb then 'MORE' end),
               array(select m.roleid::regrole::text from pg_auth_members m where m.member = r.oid order by 1)
             from pg_roles r
             where rolname like 'ringfence%' or rolname in ('anon', 'authenticated', 'service_role') order by 1",
        )
        .await;
    insta::assert_snapshot!(roles.join("\n"));
}

#[tokio::test]
async fn passwords_are_set_where_given_and_kept_where_not() {
    let shard = Shard::new().await;
    let mut client = shard.admin().await.0;
    // No other test logs in with a password: the server trusts its folder.
    let passwords = RolePasswords {
        mover: Some("it's \\ secret".into()),
        ..RolePasswords::default()
    };
    install(&mut client, &passwords).await.unwrap();
    let admin = shard.admin().await;
    let set = "select left(rolpassword, 14) from pg_authid where rolname = 'ringfence_mover'";
    assert_eq!(admin.value(set).await, "SCRAM-SHA-256$");
    run(&shard).await;
    assert_eq!(admin.value(set).await, "SCRAM-SHA-256$");
    let router = "select rolpassword is null from pg_authid where rolname = 'ringfence_router'";
    assert_eq!(admin.value(router).await, "t");
}

#[tokio::test]
async fn an_installation_that_fails_leaves_nothing() {
    let shard = Shard::bare("install_fails").await;
    // The view's name is taken by something that `create or replace view` can't replace.
    shard
        .with("create schema ringfence; create table ringfence.schema_version ()")
        .await;
    let mut client = server().connect("postgres", shard.name()).await;
    let error = install(&mut client, &RolePasswords::default())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "003_changes could not be run on the shard"
    );
    let admin = shard.admin().await;
    assert_eq!(
        admin.value("select to_regclass('ringfence.fence')").await,
        ""
    );
    assert_eq!(
        admin
            .value("select to_regclass('ringfence.installed')")
            .await,
        ""
    );
}
