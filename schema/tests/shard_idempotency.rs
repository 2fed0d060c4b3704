//! `ringfence.claim`, `keep` and `kept`: answers that are kept for a key.

use std::time::Duration;

use crate::support::{ACME, GLOBEX, Session, Shard};

/// As a request: enters, claims, writes, keeps, commits.
async fn write(api: &Session, tenant: uuid::Uuid, key: &str, print: &str, body: &str) {
    api.run(&format!(
        "begin read write;
         select ringfence.claim(ringfence.enter('{tenant}', 1, 'write', ''), '{key}', '{print}', 1000000);
         select ringfence.keep('{key}', '{print}', 60, 10,
           jsonb_build_object('page', 1, 'inserted', 1, 'body', '{body}'));
         commit"
    ))
    .await;
}

fn claim(key: &str, print: &str) -> String {
    format!("select ringfence.claim(ringfence.tenant_id(), '{key}', '{print}', 1000000)")
}

fn kept(key: &str, print: &str) -> String {
    format!("select page, body, inserted, total from ringfence.kept('{key}', '{print}')")
}

#[tokio::test]
async fn an_answer_is_kept_for_its_request_alone() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    write(&api, ACME, "k", "\\x01", "[1]").await;
    assert_eq!(
        api.rows_as(ACME, &kept("k", "\\x01")).await,
        ["1|[1]|1|"],
        "total was not answered"
    );
    assert_eq!(api.rows_as(ACME, &kept("k", "\\x02")).await, ["|||"]);
    assert_eq!(api.rows_as(GLOBEX, &kept("k", "\\x01")).await, ["|||"]);
    let again = api.refused_as(ACME, &claim("k", "\\x01")).await;
    assert_eq!(again.code, "RF035");
    insta::assert_debug_snapshot!(api.refused_as(ACME, &claim("k", "\\x02")).await, @r#"
    RF031: This Idempotency-Key belongs to another request
    DETAIL: Method, path, query, body, the headers that shape the answer, or who asks differ from those of the request that used it first.
    HINT: Send a new key with each new write, and the same one only with the very same request.
    "#);
    // Another tenant's key of the same name is another key.
    write(&api, GLOBEX, "k", "\\x02", "[2]").await;
}

#[tokio::test]
async fn a_key_under_way_is_refused_at_once_and_free_after_a_rollback() {
    let shard = Shard::new().await;
    let (one, other) = (shard.api().await, shard.api().await);
    one.enter(ACME).await;
    one.run(&claim("k", "\\x01")).await;
    let claiming = claim("k", "\\x01");
    let busy = other.refused_as(ACME, &claiming);
    let busy = tokio::time::timeout(Duration::from_secs(20), busy).await;
    assert_eq!(busy.unwrap().code, "RF032");
    other.run_as(ACME, &claim("l", "\\x01")).await;
    other.run_as(GLOBEX, &claim("k", "\\x01")).await;
    one.run("rollback").await;
    other.run_as(ACME, &claim("k", "\\x02")).await;
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    let keep = "select ringfence.keep('k', '\\x01', 60, 10, '{\"body\": \"12345678901\"}')";
    insta::assert_debug_snapshot!(api.refused_as(ACME, keep).await, @r#"
    RF034: The answer is too large to be kept for an Idempotency-Key
    DETAIL: It has 11 bytes; at most 10 are kept. Nothing was written.
    HINT: Ask for less: Prefer: return=minimal, or a shorter select.
    "#);
}

#[tokio::test]
async fn a_tenant_has_no_more_keys_than_it_may() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    let admin = shard.admin().await;
    let fill = |tenant, count| {
        format!(
            "insert into ringfence.idempotency
             select '{tenant}', 'k' || n, '', '{{}}', null, now() + interval '1 hour', true
             from generate_series(1, {count}) n"
        )
    };
    admin.run(&fill(ACME, 1_000)).await;
    admin.run(&fill(GLOBEX, 999)).await;
    let refused = api.refused_as(ACME, &claim("new", "\\x01")).await;
    assert_eq!(refused.code, "RF033");
    api.run_as(GLOBEX, &claim("new", "\\x01")).await;
    // Expired ones don't count.
    admin
        .run("update ringfence.idempotency set expires_at = now() where key = 'k1'")
        .await;
    api.run_as(ACME, &claim("new", "\\x01")).await;
}

#[tokio::test]
async fn expired_keys_are_as_new_and_go_in_bounded_steps() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    let admin = shard.admin().await;
    for key in ["a", "b", "c"] {
        write(&api, ACME, key, "\\x01", "1").await;
        write(&api, GLOBEX, key, "\\x01", "1").await;
    }
    admin
        .run("update ringfence.idempotency set expires_at = now() - interval '1 s'")
        .await;
    assert_eq!(api.rows_as(ACME, &kept("a", "\\x01")).await, ["|||"]);
    write(&api, ACME, "a", "\\x02", "2").await;
    assert_eq!(api.rows_as(ACME, &kept("a", "\\x02")).await, ["1|2|1|"]);

    // A tenant under way to another shard keeps its rows until it is there.
    admin
        .run(&format!(
            "update ringfence.fence set state = 'fenced' where tenant_id = '{GLOBEX}'"
        ))
        .await;
    let worker = shard.connect("ringfence_worker").await;
    let forget = "select ringfence.forget_expired_keys(1)";
    assert_eq!(worker.value(forget).await, "1");
    assert_eq!(worker.value(forget).await, "1");
    assert_eq!(worker.value(forget).await, "0");
    let left = "select count(*) from ringfence.idempotency";
    assert_eq!(admin.value(left).await, "4");
}

/// A role of the API reaches the answers through the three functions alone, and
/// what finds the tables of a tenant finds this one.
#[tokio::test]
async fn answers_are_a_tenants_own() {
    let shard = Shard::new().await;
    let api = shard.api().await;
    write(&api, ACME, "k", "\\x01", "1").await;
    for sql in [
        "select from ringfence.idempotency",
        "delete from ringfence.idempotency",
        "update ringfence.idempotency set body = ''",
        "insert into ringfence.idempotency values ((select ringfence.tenant_id()), 'f', '', '{}', '', now(), false)",
        "select ringfence.forget_expired_keys(1)",
    ] {
        assert_eq!(api.refused_as(ACME, sql).await.code, "42501", "{sql}");
    }
    // Without a tenant nothing is kept nor found; a claim for another one than
    // was entered is stopped by row security.
    let refused = api.refused("select ringfence.keep('f', '\\x01', 60, 10, '{}')");
    assert_eq!(refused.await.code, "RF000");
    let theirs = format!("select ringfence.claim('{ACME}', 'k', '\\x01', 1000)");
    api.run_as(GLOBEX, &theirs).await;
    let admin = shard.admin().await;
    let listed = "select kind, tenant_column from ringfence.relation
        where relid = 'ringfence.idempotency'::regclass";
    assert_eq!(admin.value(listed).await, "distributed|tenant_id");
    assert_eq!(
        admin.refused("truncate ringfence.idempotency").await.code,
        "RF010"
    );
}
