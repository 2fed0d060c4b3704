//! `ringfence.enter`: who is let in, who is refused and with what.

use std::time::Duration;

use crate::support::{ACME, GLOBEX, Refusal, Session, Shard};

/// Generous: what must not wait at all has this long.
const AT_ONCE: Duration = Duration::from_secs(20);

fn enter(epoch: i64, mode: &str) -> String {
    format!("select ringfence.enter('{ACME}', {epoch}, '{mode}', '')")
}

/// What `enter` at epoch 1 answers, for each mode the same, after `sql` ran.
async fn refused_after(sql: &str) -> Refusal {
    let shard = Shard::new().await;
    shard.with(sql).await;
    let api = shard.api().await;
    let refusal = api.refused(&enter(1, "read")).await;
    for mode in ["write", "write_strict"] {
        assert_eq!(api.refused(&enter(1, mode)).await, refusal);
    }
    refusal
}

#[tokio::test]
async fn every_mode_lets_an_active_tenant_in() {
    let shard = Shard::new().await;
    for role in ["anon", "authenticated", "service_role"] {
        let session = shard.connect("ringfence_router").await;
        session.run(&format!("set role {role}")).await;
        for mode in ["read", "write", "write_strict"] {
            assert_eq!(session.value(&enter(1, mode)).await, ACME.to_string());
        }
    }
}

#[tokio::test]
async fn rf000_without_a_tenant_tenant_id_raises() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    let refusal = api.refused("select ringfence.tenant_id()").await;
    assert_eq!(refusal.code, "RF000");
    // After a transaction that had entered the setting reads as '', not as NULL.
    api.run_as(ACME, "select ringfence.tenant_id()").await;
    assert_eq!(
        api.value("select current_setting('ringfence.tenant_id')")
            .await,
        ""
    );
    assert_eq!(api.refused("select ringfence.tenant_id()").await, refusal);
    insta::assert_debug_snapshot!(refusal);
}

#[tokio::test]
async fn rf001_an_unknown_tenant() {
    insta::assert_debug_snapshot!(refused_after("delete from ringfence.fence").await, @r#"RF001: the tenant is not on this shard"#);
}

#[tokio::test]
async fn rf002_an_older_or_newer_epoch() {
    insta::assert_debug_snapshot!(refused_after("update ringfence.fence set epoch = 2").await, @r#"
    RF002: the placement is out of date
    DETAIL: {"epoch" : 2}
    "#);
    let shard = Shard::new().await;
    let api = shard.api().await;
    let newer = api.refused(&enter(7, "write")).await;
    assert_eq!(
        (newer.code.as_str(), newer.detail.as_deref()),
        ("RF002", Some("{\"epoch\" : 1}"))
    );
}

#[tokio::test]
async fn rf003_a_fenced_tenant() {
    insta::assert_debug_snapshot!(refused_after("update ringfence.fence set state = 'fenced'").await, @r#"
    RF003: the tenant is fenced
    HINT: Hold the request and try again.
    "#);
}

#[tokio::test]
async fn rf004_a_moved_tenant_names_where_it_went() {
    let moved = "update ringfence.fence set state = 'moved', epoch = 2, target_shard = 's\"2', target_epoch = 2";
    let refusal = refused_after(moved).await;
    let detail: serde_json::Value =
        serde_json::from_str(refusal.detail.as_deref().unwrap()).unwrap();
    assert_eq!(detail, serde_json::json!({"shard": "s\"2", "epoch": 2}));
    insta::assert_debug_snapshot!(refusal, @r#"
    RF004: the tenant has moved to another shard
    DETAIL: {"shard" : "s\"2", "epoch" : 2}
    "#);
}

#[tokio::test]
async fn rf004_needs_a_target() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    let refusal = admin
        .refused("update ringfence.fence set state = 'moved'")
        .await;
    assert_eq!(refusal.code, "23514");
}

#[tokio::test]
async fn rf006_a_suspended_tenant() {
    insta::assert_debug_snapshot!(refused_after("update ringfence.fence set suspended = true").await, @r#"RF006: the tenant is suspended"#);
}

#[tokio::test]
async fn a_suspended_tenant_that_moved_is_followed() {
    let moved = "update ringfence.fence
        set suspended = true, state = 'moved', target_shard = 's2', target_epoch = 2";
    assert_eq!(refused_after(moved).await.code, "RF004");
}

#[tokio::test]
async fn an_unknown_mode_is_refused() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    for mode in ["'Write'", "''", "null"] {
        let refusal = api
            .refused(&format!("select ringfence.enter('{ACME}', 1, {mode}, '')"))
            .await;
        assert_eq!(refusal.code, "22023", "{mode}");
    }
}

#[tokio::test]
async fn nulls_let_nobody_in() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    assert_eq!(
        api.refused("select ringfence.enter(null, 1, 'read', '')")
            .await
            .code,
        "RF001"
    );
    let no_epoch = format!("select ringfence.enter('{ACME}', null, 'read', '')");
    assert_eq!(api.refused(&no_epoch).await.code, "RF002");
}

#[tokio::test]
async fn rf005_under_a_cut_over_writes_are_refused_at_once_and_reads_pass() {
    let shard = Shard::new().await;
    let mover = shard.admin().await;
    mover
        .run(&format!(
            "begin; select pg_advisory_xact_lock(uuid_hash_extended('{ACME}', 0))"
        ))
        .await;
    let api = shard.api().await;
    for mode in ["write", "write_strict"] {
        let refusal = tokio::time::timeout(AT_ONCE, api.refused(&enter(1, mode))).await;
        assert_eq!(refusal.expect("it waited").code, "RF005");
    }
    assert_eq!(api.value(&enter(1, "read")).await, ACME.to_string());
    // Other tenants write.
    api.run_as(GLOBEX, "select").await;
    mover.run("commit").await;
    assert_eq!(api.value(&enter(1, "write")).await, ACME.to_string());
}

#[tokio::test]
async fn rf005_a_cut_over_that_queues_refuses_new_writes_but_waits_for_old_ones() {
    let shard = Shard::new().await;
    let writer = shard.api().await;
    writer.enter(ACME).await;
    let mover = shard.admin().await;
    let lock = format!(
        "begin; set local lock_timeout = '10s';
        select pg_advisory_xact_lock(uuid_hash_extended('{ACME}', 0))"
    );
    let queued = mover.run(&lock);
    let meanwhile = async {
        let admin = shard.admin().await;
        until(
            &admin,
            "select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted
            and database = (select oid from pg_database where datname = current_database())",
        )
        .await;
        let refusal = shard.api().await.refused(&enter(1, "write")).await;
        assert_eq!(refusal.code, "RF005");
        writer.run("commit").await;
    };
    tokio::join!(queued, meanwhile);
}

/// Waits for something that only another session can say has happened.
async fn until(session: &Session, condition: &str) {
    for _ in 0..10_000 {
        if session.value(condition).await == "t" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {condition}");
}

#[tokio::test]
async fn a_fence_that_commits_between_begin_and_enter_is_seen() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    let api = shard.api().await;
    api.run("begin").await;
    admin.run("update ringfence.fence set epoch = 2").await;
    assert_eq!(api.refused(&enter(1, "write")).await.code, "RF002");
}

#[tokio::test]
async fn a_fence_that_commits_within_the_statement_that_enters_is_seen() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    // The statement's snapshot is older than the fence: it sleeps before it enters.
    admin
        .run(
            "create function pause() returns int language plpgsql volatile as
              $$ begin perform pg_advisory_xact_lock(42); return 1; end $$",
        )
        .await;
    let api = shard.api().await;
    admin.run("select pg_advisory_lock(42)").await;
    let statement = format!(
        "with first as materialized (select pause() as one)
         select ringfence.enter('{ACME}', one, 'write', '') from first"
    );
    let fence = async {
        until(
            &admin,
            "select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted
            and database = (select oid from pg_database where datname = current_database())",
        )
        .await;
        admin.run("update ringfence.fence set epoch = 2").await;
        admin.run("select pg_advisory_unlock(42)").await;
    };
    let (refusal, ()) = tokio::join!(api.refused(&statement), fence);
    assert_eq!(refusal.code, "RF002");
}

#[tokio::test]
async fn write_strict_sees_a_fence_that_an_older_snapshot_does_not() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    let api = shard.api().await;
    for level in ["repeatable read", "serializable"] {
        admin.run("update ringfence.fence set epoch = 1").await;
        api.run(&format!("begin isolation level {level}; select 1"))
            .await;
        admin.run("update ringfence.fence set epoch = 2").await;
        for mode in ["write", "write_strict"] {
            api.run("savepoint s").await;
            let refusal = api.refused(&enter(1, mode)).await;
            assert_eq!(refusal.code, "40001", "{level} {mode}");
            api.run("rollback to s").await;
        }
        api.run("rollback").await;
    }
}

#[tokio::test]
async fn write_strict_keeps_a_fence_from_committing_under_it() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    let api = shard.api().await;
    api.run(&format!(
        "begin isolation level repeatable read; {}",
        enter(1, "write_strict")
    ))
    .await;
    let fence = format!(
        "set lock_timeout = '50ms';
        update ringfence.fence set state = 'fenced' where tenant_id = '{ACME}'"
    );
    assert_eq!(admin.refused(&fence).await.code, "55P03");
    api.run("commit").await;
    admin.run(&fence).await;
}

#[tokio::test]
async fn a_fence_that_is_being_changed_is_waited_for_within_a_bound() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    let api = shard.api().await;
    admin
        .run("begin; update ringfence.fence set state = 'fenced'")
        .await;
    for level in ["repeatable read", "serializable"] {
        api.run(&format!("begin isolation level {level}")).await;
        let began = std::time::Instant::now();
        let enter = enter(1, "write");
        let refused = tokio::time::timeout(Duration::from_secs(60), api.refused(&enter));
        assert_eq!(refused.await.unwrap().code, "RF005");
        let waited = began.elapsed().as_millis();
        assert!(waited >= 400, "{waited} ms");
        api.run("rollback").await;
    }
    admin.run("rollback").await;
    api.run("begin isolation level serializable; set local lock_timeout = '7s'")
        .await;
    api.value(&enter(1, "write")).await;
    assert_eq!(
        api.value("select current_setting('lock_timeout')").await,
        "7s"
    );
    api.run("commit").await;
}

#[tokio::test]
async fn settings_end_with_the_transaction() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    api.run("begin").await;
    api.run(&format!(
        "select ringfence.enter('{ACME}', 1, 'read', '{{\"sub\":\"it''s\"}}',
           array['request.method', 'GET', 'request.path', '/x', 'search_path', 'pg_catalog'])"
    ))
    .await;
    let read = "select current_setting('ringfence.tenant_id', true),
        current_setting('request.jwt.claims', true)::text, current_setting('request.method', true),
        current_setting('request.path', true), current_setting('search_path')";
    assert_eq!(
        api.rows(read).await,
        [format!("{ACME}|{{\"sub\":\"it's\"}}|GET|/x|pg_catalog")]
    );
    api.run("commit").await;
    assert_eq!(api.rows(read).await, ["||||\"$user\", public"]);
    // Outside a transaction block `enter` is undone before the next statement.
    api.run(&enter(1, "read")).await;
    assert_eq!(api.rows(read).await, ["||||\"$user\", public"]);
}

#[tokio::test]
async fn settings_cannot_name_another_tenant_or_other_claims() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    api.run("begin").await;
    api.run(&format!(
        "select ringfence.enter('{ACME}', 1, 'read', 'mine',
           array['ringfence.tenant_id', '{GLOBEX}', 'request.jwt.claims', 'theirs'])"
    ))
    .await;
    let tenant = api.value("select ringfence.tenant_id()").await;
    let claims = api
        .value("select current_setting('request.jwt.claims')")
        .await;
    assert_eq!((tenant, claims), (ACME.to_string(), "mine".into()));
}

#[tokio::test]
async fn settings_cannot_change_the_role() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    for setting in ["role", "session_authorization", "session_replication_role"] {
        let refusal = api
            .refused(&format!(
                "select ringfence.enter('{ACME}', 1, 'read', '', array['{setting}', 'postgres'])"
            ))
            .await;
        assert_eq!(refusal.code, "42501", "{setting}");
    }
}

#[tokio::test]
async fn settings_may_be_empty_or_absent() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    for settings in ["'{}'", "null", "default_of_the_function"] {
        let argument = match settings {
            "default_of_the_function" => String::new(),
            given => format!(", {given}"),
        };
        api.run(&format!(
            "select ringfence.enter('{ACME}', 1, 'read', ''{argument})"
        ))
        .await;
    }
}

#[tokio::test]
async fn a_refusal_enters_for_nobody() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    api.enter(GLOBEX).await;
    api.run("savepoint s").await;
    api.refused(&enter(9, "read")).await;
    api.run("rollback to s").await;
    assert_eq!(
        api.value("select ringfence.tenant_id()").await,
        GLOBEX.to_string()
    );
}

#[tokio::test]
async fn the_callers_search_path_changes_nothing_in_the_guard() {
    let shard = Shard::new().await;
    let admin = shard
        .with("create schema evil; grant usage on schema evil to public;
               create function evil.equal(text, text) returns bool language sql as 'select true';
               create operator evil.= (leftarg = text, rightarg = text, function = evil.equal);
               create function evil.equal(bigint, bigint) returns bool language sql as 'select true';
               create operator evil.= (leftarg = bigint, rightarg = bigint, function = evil.equal);
               create function evil.not_equal(text, text) returns bool language sql as 'select false';
               create operator evil.<> (leftarg = text, rightarg = text, function = evil.not_equal);
               create domain evil.uuid as text; create domain evil.text as int;
               create table evil.fence (tenant_id uuid)")
        .await;
    admin
        .run("update ringfence.fence set epoch = 2, state = 'fenced'")
        .await;
    let api = shard.api().await;
    api.run("set search_path = evil, pg_catalog").await;
    assert_eq!(api.refused(&enter(1, "write")).await.code, "RF003");
    assert_eq!(
        api.refused("select ringfence.tenant_id()").await.code,
        "RF000"
    );
}

#[tokio::test]
async fn the_fence_is_the_guards_and_the_workers_alone() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    for sql in [
        "select from ringfence.fence",
        "delete from ringfence.fence",
        "select from ringfence.relation",
    ] {
        assert_eq!(api.refused(sql).await.code, "42501", "{sql}");
    }
    let worker = shard.connect("ringfence_worker").await;
    worker
        .run("update ringfence.fence set suspended = true")
        .await;
    assert_eq!(worker.refused(&enter(1, "read")).await.code, "42501");
}

#[tokio::test]
async fn a_write_is_on_disk_before_it_is_acknowledged() {
    let shard = Shard::new().await;
    let admin = shard.admin().await;
    let setting = "select current_setting('synchronous_commit')";
    for (configured, expected) in [("off", "on"), ("local", "local")] {
        let set = format!(
            "alter database {} set synchronous_commit = {configured}",
            shard.name()
        );
        admin.run(&set).await;
        let api = shard.api().await;
        for (mode, expected) in [
            ("read", configured),
            ("write", expected),
            ("write_strict", expected),
        ] {
            api.run("begin read write").await;
            api.value(&enter(1, mode)).await;
            assert_eq!(api.value(setting).await, expected, "{mode}");
            api.run("commit").await;
        }
        assert_eq!(api.value(setting).await, configured);
    }
}

#[tokio::test]
async fn a_place_in_the_log_is_behind_what_was_committed_on_disk_or_not() {
    let shard = Shard::new().await;
    let admin = shard.with("create table note (id bigint)").await;
    admin.run("set synchronous_commit = off").await;
    let number = |text: String| text.parse::<u64>().unwrap();
    for n in 0..20 {
        admin.run(&format!("insert into note values ({n})")).await;
        let inserted = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint::text";
        let inserted = number(admin.value(inserted).await);
        let position = "select lsn::text from ringfence.position()";
        let position = number(admin.value(position).await);
        assert!(position >= inserted, "{position} is before {inserted}");
    }
}
