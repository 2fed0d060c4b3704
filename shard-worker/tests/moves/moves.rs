//! The whole way: there under writes, back under writes, and what is left then.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stage::{SOON, Stage};
use crate::writers::Writers;

pub(crate) fn other(shard: &str) -> &'static str {
    match shard {
        "s1" => "s2",
        _ => "s1",
    }
}

/// Starts a move, and returns its job.
pub(crate) async fn start(stage: &Stage, tenants: &[&str], to: &str) -> String {
    let body = json!({ "tenants": tenants, "to": to, "budget_ms": 1_000 });
    let (status, moves) = stage.send(Method::POST, "moves", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{moves}");
    moves["items"][0]["id"].as_str().unwrap().to_owned()
}

pub(crate) async fn wish(stage: &Stage, id: &str, verb: &str) {
    let path = format!("moves/{id}/{verb}");
    let (status, body) = stage.send(Method::POST, &path, Some(json!({}))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

pub(crate) async fn phase(stage: &Stage, id: &str, phase: &str) -> Value {
    stage
        .job(id, |job| {
            assert!(
                job["status"] != "stuck" && (job["done"] != true || job["phase"] == phase),
                "{job}"
            );
            // The last step leads to its phase, and ends the job behind it.
            job["phase"] == phase && (phase != "done" || job["done"] == true)
        })
        .await
}

/// A move, once `wanted` is true of it.
pub(crate) async fn seen(stage: &Stage, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let seen = stage.get(&format!("moves/{id}")).await;
        if wanted(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{seen}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Has a move believe that the source was another server when rows were compared: what
/// a failover leaves behind.
async fn failed_over(stage: &Stage, id: &str) {
    let control = stage.control().await;
    let deadline = Instant::now() + SOON;
    // While nobody works on it.
    let sql = "update ringfence.job set state = jsonb_set(state, '{servers,source,1}', '99')
        where id = $1::text::uuid and lease_until is null";
    while control.execute(sql, &[&id]).await.unwrap() == 0 {
        assert!(Instant::now() < deadline, "it is always worked on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Nothing of moves is left on any shard.
pub(crate) async fn assert_nothing_left(stage: &Stage) {
    for shard in ["s1", "s2"] {
        let left = stage
            .shard(shard)
            .await
            .query_one(
                "select array(select pubname::text from pg_publication where pubname like 'ringfence_move%'
                   union all select subname from pg_subscription
                   union all select slot_name from pg_replication_slots where slot_name like 'ringfence_move%' or slot_name like 'pg_%sync%'
                   union all select 'marker ' || id from ringfence.move_marker
                   union all select 'mark ' || item from ringfence.job_mark)",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(
            left.get::<_, Vec<String>>(0),
            Vec::<String>::new(),
            "{shard}"
        );
    }
}

/// A write under a key that may have been sent before: its status, and whether it
/// was answered then.
async fn keyed(stage: &Stage, key: &str) -> (StatusCode, bool) {
    let url = format!("{}/rest/v1/companies", stage.cluster.router_url(0));
    let sent = reqwest::Client::new()
        .post(url)
        .header("apikey", key)
        .header("idempotency-key", "kept-over-moves")
        .json(&json!({ "name": "Kept once" }));
    let answer = sent.send().await.unwrap();
    let replayed = answer.headers().contains_key("idempotency-replayed");
    (answer.status(), replayed)
}

/// Exactly one shard serves the tenant: this one.
pub(crate) async fn assert_served_by(stage: &Stage, tenant: Uuid, shard: &str, epoch: i64) {
    for name in ["s1", "s2"] {
        let fence = stage
            .shard(name)
            .await
            .query_opt(
                "select epoch from ringfence.fence where tenant_id = $1 and state = 'active'",
                &[&tenant],
            )
            .await
            .unwrap();
        let expected = (name == shard).then_some(epoch);
        assert_eq!(fence.map(|row| row.get::<_, i64>(0)), expected, "{name}");
    }
    let info = stage.get(&format!("tenants/{tenant}")).await;
    assert_eq!(
        (&info["shard"], &info["epoch"]),
        (&json!(shard), &json!(epoch))
    );
}

/// A tenant's rows of `events`, each as text.
async fn events(stage: &Stage, tenant: Uuid, shard: &str) -> Vec<String> {
    let sql = "select tableoid::regclass || ' ' || concat_ws(' ', id, at, note, md5(body), size)
        from events where tenant_id = $1 order by id";
    let rows = stage.shard(shard).await.query(sql, &[&tenant]).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_there_and_back_while_it_is_used() {
    let stage = Stage::start(300).await;
    let (acme, home) = stage.tenant("acme").await;
    let away = other(&home);
    stage.fill(&home, acme, 20_000).await;
    // Partitions, a column that is computed, and values that are kept apart: what an
    // update leaves as it was is not sent again.
    for shard in [&home, away] {
        let sql = "create table events (id int, at date, note text, body text,
              size int generated always as (length(body)) stored, primary key (id, at)) partition by range (at);
            create table events_old partition of events for values from (minvalue) to ('2026-01-01');
            create table events_new partition of events for values from ('2026-01-01') to (maxvalue);
            select ringfence.distribute('events')";
        stage.shard(shard).await.batch_execute(sql).await.unwrap();
    }
    let rows = format!(
        "set session_replication_role = replica;
         insert into events (tenant_id, id, at, note, body)
         select '{acme}', n, date '2025-12-29' + n, 'a',
           (select string_agg(md5((n * m)::text), '') from generate_series(1, 400) m)
         from generate_series(1, 4) n"
    );
    stage.shard(&home).await.batch_execute(&rows).await.unwrap();
    let events = events(&stage, acme, &home).await;
    let (globex, globex_home) = stage.tenant("globex").await;
    let neighbour = stage.rows(&globex_home, globex).await;
    let key = stage.cluster.key("acme").unwrap();
    let writers = Writers::start(
        &stage.cluster.router_url(0),
        &key,
        4,
        Duration::from_millis(3),
    );
    writers.more(50).await;
    assert_eq!(keyed(&stage, &key).await, (StatusCode::CREATED, false));

    // What can't be done is refused, with the reason, and leaves nothing.
    for (body, status) in [
        (
            json!({ "tenants": ["acme"], "to": home }),
            StatusCode::CONFLICT,
        ),
        (
            json!({ "tenants": ["acme"], "to": "s9" }),
            StatusCode::NOT_FOUND,
        ),
        (
            json!({ "tenants": [], "to": away }),
            StatusCode::BAD_REQUEST,
        ),
        (
            json!({ "tenants": ["acme"], "to": away, "budget_ms": 5_000 }),
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let (answer, body) = stage.send(Method::POST, "moves", Some(body)).await;
        assert_eq!(answer, status, "{body}");
    }

    let id = start(&stage, &["acme"], away).await;
    let again = json!({ "tenants": ["acme"], "to": away });
    let (status, _) = stage.send(Method::POST, "moves", Some(again)).await;
    assert_eq!(status, StatusCode::CONFLICT);
    phase(&stage, &id, "retained").await;
    // Changing the schema of one side would break the way back: what to do is said.
    let file = json!({ "file": "001_a.sql", "text": "create table a (id int primary key);\nselect ringfence.distribute('a');" });
    let body = json!({ "files": [file] });
    let (status, body) = stage
        .send(Method::POST, "migrations/app/apply", Some(body))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");
    assert!(body["message"].as_str().unwrap().contains("move complete"));
    assert_served_by(&stage, acme, away, 2).await;
    assert_eq!(keyed(&stage, &key).await, (StatusCode::CREATED, true));
    writers.more(100).await;
    assert_eq!(self::events(&stage, acme, away).await, events);
    // One of them goes to another partition.
    let update = "update events set note = note || 'b',
          at = case id when 1 then date '2026-02-01' else at end where tenant_id = $1";
    let there = stage.shard(away).await;
    there.execute(update, &[&acme]).await.unwrap();
    let events = self::events(&stage, acme, away).await;

    // Nor is there a way back for the rows of a table that came by hand meanwhile.
    for shard in [&home, away] {
        let late = "create table late (id int primary key); select ringfence.distribute('late')";
        stage.shard(shard).await.batch_execute(late).await.unwrap();
    }
    // It may have been seen by now, and is refused then.
    let path = format!("moves/{id}/rollback");
    stage.send(Method::POST, &path, Some(json!({}))).await;
    let gone = seen(&stage, &id, |m| m["way_back_gone"].is_string()).await;
    let why = gone["way_back_gone"].as_str().unwrap();
    assert!(why.contains("table late"), "{gone}");
    let (status, refused) = stage.send(Method::POST, &path, Some(json!({}))).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    for shard in [&home, away] {
        let client = stage.shard(shard).await;
        client.batch_execute("drop table late").await.unwrap();
    }
    let look = "update ringfence.job set due_at = now() where id = $1::text::uuid";
    stage.control().await.execute(look, &[&id]).await.unwrap();
    seen(&stage, &id, |m| m["way_back_gone"] == Value::Null).await;

    // Back, lossless, with all that was written there.
    wish(&stage, &id, "rollback").await;
    phase(&stage, &id, "rolled_back").await;
    assert_served_by(&stage, acme, &home, 3).await;
    assert_nothing_left(&stage).await;
    assert!(stage.rows(away, acme).await.is_empty());
    assert_eq!(keyed(&stage, &key).await, (StatusCode::CREATED, true));
    assert_eq!(self::events(&stage, acme, &home).await, events);
    writers.more(50).await;

    // There for good.
    let id = start(&stage, &["acme"], away).await;
    phase(&stage, &id, "retained").await;
    writers.more(50).await;
    wish(&stage, &id, "complete").await;
    let done = phase(&stage, &id, "done").await;
    assert_eq!(done["status"], "done", "{done}");
    assert_served_by(&stage, acme, away, 4).await;
    assert_nothing_left(&stage).await;
    writers.more(50).await;

    assert_eq!(keyed(&stage, &key).await, (StatusCode::CREATED, true));
    let once = "select count(*) from companies where tenant_id = $1 and name = 'Kept once'";
    let once = stage.shard(away).await.query_one(once, &[&acme]).await;
    assert_eq!(once.unwrap().get::<_, i64>(0), 1);

    let ledgers = writers.finish(&stage.shard(away).await, acme).await;
    for ledger in &ledgers {
        assert!(ledger.failed.is_empty(), "{:?}", ledger.failed);
        assert!(ledger.stale.is_empty(), "{:?}", ledger.stale);
    }
    let slowest = ledgers.iter().map(|ledger| ledger.slowest).max().unwrap();
    let moves = stage.get("moves").await;
    eprintln!(
        "slowest answer {slowest:?}; pauses of the cut-overs: {}",
        moves["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["tenants"][0]["pauses_ms"].to_string())
            .collect::<String>()
    );
    assert!(stage.rows(&home, acme).await.is_empty());
    assert!(stage.rows(away, acme).await["public.activities"] >= 20_000);
    assert_eq!(stage.rows(&globex_home, globex).await, neighbour);
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_cancelled_or_refused_and_leaves_the_source_serving() {
    let stage = Stage::start(300).await;
    let (acme, home) = stage.tenant("acme").await;
    let away = other(&home);
    let before = stage.rows(&home, acme).await;

    // A table that is not there yet.
    stage
        .shard(&home)
        .await
        .batch_execute(
            "create table more (id int primary key); select ringfence.distribute('more')",
        )
        .await
        .unwrap();
    let id = start(&stage, &["acme"], away).await;
    let refused = stage.over(&id).await;
    assert_eq!(refused["status"], "failed");
    let why = refused["problem"]["message"].as_str().unwrap();
    assert!(why.contains("more") && why.contains(away), "{why}");
    // Tables whose rows could not be compared, or not where they were deleted.
    for (makes, wanted) in [
        (
            "alter table more drop constraint more_pkey; alter table more replica identity full",
            "no primary key",
        ),
        (
            "alter table more add primary key (tenant_id, id), add column code text not null;
             create unique index more_code on more (tenant_id, code);
             alter table more replica identity using index more_code",
            "other columns than its primary key",
        ),
    ] {
        for shard in [&home, away] {
            let sql = match (shard == home, makes.starts_with("alter table more drop")) {
                (false, true) => format!(
                    "create table more (id int primary key); select ringfence.distribute('more'); {makes}"
                ),
                _ => makes.to_owned(),
            };
            stage.shard(shard).await.batch_execute(&sql).await.unwrap();
        }
        let id = start(&stage, &["acme"], away).await;
        let refused = stage.over(&id).await;
        assert_eq!(refused["status"], "failed");
        let why = refused["problem"]["message"].as_str().unwrap();
        assert!(why.contains("more") && why.contains(wanted), "{why}");
    }
    for shard in [&home, away] {
        let client = stage.shard(shard).await;
        client.batch_execute("drop table more").await.unwrap();
    }

    // What the target's tables can't take, and a schema that is behind.
    let file = "insert into ringfence.migration (directory, number, name, checksum, phase, state)
        values ('app', 1, 'a', 'x', 'expand', ";
    for (shard, makes, wanted, undoes) in [
        (
            away,
            "create function nothing() returns trigger language plpgsql as 'begin return new; end';
             create trigger always before insert on activities for each row execute function nothing();
             alter table activities enable always trigger always"
                .to_owned(),
            format!("of shard {away} can't be moved: its trigger \"always\""),
            "drop function nothing() cascade",
        ),
        (
            &home,
            format!("{file} 'done')"),
            format!("shard {away} has not got app/001_a.sql of shard {home}"),
            "delete from ringfence.migration",
        ),
        (
            away,
            format!("{file} 'running')"),
            format!("shard {away} has a part of app/001_a.sql only"),
            "delete from ringfence.migration",
        ),
    ] {
        let client = stage.shard(shard).await;
        client.batch_execute(&makes).await.unwrap();
        let id = start(&stage, &["acme"], away).await;
        let refused = stage.over(&id).await;
        let why = refused["problem"]["message"].as_str().unwrap();
        assert!(why.contains(&wanted), "{why}");
        client.batch_execute(undoes).await.unwrap();
    }

    // A table that comes while a move waits for its cut-over, which is never in time.
    let body = json!({ "tenants": ["acme"], "to": away, "budget_ms": 1 });
    let (_, moves) = stage.send(Method::POST, "moves", Some(body)).await;
    let id = moves["items"][0]["id"].as_str().unwrap().to_owned();
    seen(&stage, &id, |m| m["state"]["tries"].as_u64() >= Some(1)).await;
    for shard in [&home, away] {
        let late = "create table late (id int primary key); select ringfence.distribute('late')";
        stage.shard(shard).await.batch_execute(late).await.unwrap();
    }
    let refused = stage.over(&id).await;
    let why = refused["problem"]["message"].as_str().unwrap();
    assert!(why.contains("late"), "{why}");
    for shard in [&home, away] {
        let client = stage.shard(shard).await;
        client.batch_execute("drop table late").await.unwrap();
    }
    // As many epochs as cut-overs that were undone late.
    let epoch = stage.get("tenants/acme").await["epoch"].as_i64().unwrap();

    // A long transaction keeps it from being cut over; then it is cancelled.
    let long = stage.shard(&home).await;
    long.batch_execute("begin; insert into ringfence.job_mark values (gen_random_uuid(), 'x')")
        .await
        .unwrap();
    let id = start(&stage, &["acme"], away).await;
    phase(&stage, &id, "preparing").await;
    wish(&stage, &id, "pause").await;
    long.batch_execute("rollback").await.unwrap();
    phase(&stage, &id, "copying").await;
    let (status, _) = stage
        .send(
            Method::POST,
            &format!("moves/{id}/rollback"),
            Some(json!({})),
        )
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    wish(&stage, &id, "resume").await;
    wish(&stage, &id, "pause").await;
    wish(&stage, "acme", "cancel").await;
    let over = stage.over(&id).await;
    if over["status"] == "cancelled" {
        assert_served_by(&stage, acme, &home, epoch).await;
        assert_eq!(stage.rows(&home, acme).await, before);
        assert!(stage.rows(away, acme).await.is_empty());
    }
    assert_nothing_left(&stage).await;
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_differs_stops_the_move_and_is_named() {
    let stage = Stage::start(100).await;
    let (acme, home) = stage.tenant("acme").await;
    let away = other(&home);
    stage.fill(&home, acme, 9_000).await;
    // One row a tenant: nothing but the tenant names it.
    for shard in [&home, away] {
        let sql = "create table only_one (tenant_id uuid primary key, note text);
                   select ringfence.distribute('only_one')";
        stage.shard(shard).await.batch_execute(sql).await.unwrap();
    }
    let one = format!(
        "set session_replication_role = replica; insert into only_one values ('{acme}', 'x')"
    );
    stage.shard(&home).await.batch_execute(&one).await.unwrap();
    let key = stage.cluster.key("acme").unwrap();
    let url = stage.cluster.router_url(0);
    let writers = Writers::start(&url, &key, 3, Duration::from_millis(5));
    writers.more(20).await;

    // The worker dies when all rows are there and none has been compared yet.
    stage.fail_at(&["verifying"]);
    let id = start(&stage, &["acme"], away).await;
    stage.worker_is_dead().await;
    let damaged = stage
        .shard(away)
        .await
        .query_one(
            "update activities set minutes = minutes + 1000 where tenant_id = $1
               and id = (select max(id) from activities where tenant_id = $1 and subject like 'No. 9%')
             returning id",
            &[&acme],
        )
        .await
        .unwrap();
    stage.revive_worker().await;
    let failed = stage.over(&id).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    let why = failed["problem"]["message"].as_str().unwrap();
    let named = format!("({})", damaged.get::<_, i64>(0));
    assert!(why.contains("1 rows") && why.contains(&named), "{why}");
    assert_served_by(&stage, acme, &home, 1).await;
    assert!(stage.rows(away, acme).await.is_empty());
    assert_nothing_left(&stage).await;

    // A row that goes astray after all were compared, and is written to then,
    // is found before the tenant is on the target: no cut-over is in time here.
    let body = json!({ "tenants": ["acme"], "to": away, "budget_ms": 1 });
    let (_, moves) = stage.send(Method::POST, "moves", Some(body)).await;
    let id = moves["items"][0]["id"].as_str().unwrap().to_owned();
    let deadline = std::time::Instant::now() + crate::stage::SOON;
    loop {
        let now = stage.get(&format!("moves/{id}")).await;
        if now["state"]["tries"].as_u64() >= Some(1) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{now}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let astray = damaged.get::<_, i64>(0);
    let there = stage.shard(away).await;
    there
        .batch_execute(&format!(
            "set session_replication_role = replica;
             delete from activities where tenant_id = '{acme}' and id = {astray}"
        ))
        .await
        .unwrap();
    let touch = "update activities set minutes = minutes + 1 where tenant_id = $1 and id = $2";
    let here = stage.shard(&home).await;
    here.execute(touch, &[&acme, &astray]).await.unwrap();
    // Whoever holds it for longer than a comparison waits only puts that off.
    here.batch_execute(&format!(
        "begin; select from activities where tenant_id = '{acme}' and id = {astray} for update"
    ))
    .await
    .unwrap();
    loop {
        let now = stage.get(&format!("moves/{id}")).await;
        let problem = now["problem"]["message"].as_str().unwrap_or_default();
        if problem.contains("lock timeout") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{now}");
        assert_eq!(now["done"], false, "{now}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    here.batch_execute("rollback").await.unwrap();
    let failed = stage.over(&id).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    let why = failed["problem"]["message"].as_str().unwrap();
    assert!(why.contains("1 rows") && why.contains(&named), "{why}");
    assert_eq!(stage.tenant("acme").await.1, home);
    assert!(stage.rows(away, acme).await.is_empty());
    assert_nothing_left(&stage).await;

    // Of a row that a server lost by a failover nobody knows: all are compared again.
    let body = json!({ "tenants": ["acme"], "to": away, "budget_ms": 1 });
    let (_, moves) = stage.send(Method::POST, "moves", Some(body)).await;
    let id = moves["items"][0]["id"].as_str().unwrap().to_owned();
    seen(&stage, &id, |m| m["state"]["tries"].as_u64() >= Some(1)).await;
    let lose = format!(
        "set session_replication_role = replica;
         delete from activities where tenant_id = '{acme}' and id = {astray}"
    );
    stage.shard(away).await.batch_execute(&lose).await.unwrap();
    failed_over(&stage, &id).await;
    let failed = stage.over(&id).await;
    let why = failed["problem"]["message"].as_str().unwrap_or_default();
    assert!(why.contains(&named), "{failed}");
    assert_nothing_left(&stage).await;

    // Undamaged it moves; all rows are compared before, and again when asked.
    let id = start(&stage, &["acme"], away).await;
    phase(&stage, &id, "retained").await;
    let before = stage.get(&format!("moves/{id}")).await;
    assert!(
        before["checked"]["rows"].as_u64().unwrap() > 9_000,
        "{before}"
    );
    wish(&stage, &id, "verify").await;
    let rows = |body: &Value| body["checked"]["rows"].as_u64();
    let deadline = std::time::Instant::now() + crate::stage::SOON;
    loop {
        let now = stage.get(&format!("moves/{id}")).await;
        if rows(&now) != rows(&before) && now["phase"] == "retained" {
            assert_eq!(now["checked"]["differ"], Value::Null);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{now}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        writers.more(1).await;
    }

    // On the way back, too: it stays where it is until someone has mended the row.
    let set_aside = format!(
        "set session_replication_role = replica;
         create table aside as select * from activities where tenant_id = '{acme}' and id = {astray};
         delete from activities where tenant_id = '{acme}' and id = {astray}"
    );
    stage
        .shard(&home)
        .await
        .batch_execute(&set_aside)
        .await
        .unwrap();
    let there = stage.shard(away).await;
    let writes = tokio::spawn(async move {
        loop {
            there.execute(touch, &[&acme, &astray]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    wish(&stage, &id, "rollback").await;
    let deadline = std::time::Instant::now() + crate::stage::SOON;
    loop {
        let now = stage.get(&format!("moves/{id}")).await;
        let why = now["checked"]["differ"].as_str().unwrap_or_default();
        if why.contains(&named) && now["phase"] == "retained" {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{now}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(stage.tenant("acme").await.1, away);
    writes.abort();
    for ledger in writers.finish(&stage.shard(away).await, acme).await {
        assert!(ledger.failed.is_empty(), "{:?}", ledger.failed);
    }
    no_way_back(&stage, &id, (acme, &home, away), astray).await;
    stage.cluster.down().await;
}

/// A failover of the source, and one of the target, while a move is retained.
async fn no_way_back(stage: &Stage, id: &str, (acme, home, away): (Uuid, &str, &str), astray: i64) {
    // The row that was set aside is there again, and another one is lost.
    let (here, there) = (stage.shard(home).await, stage.shard(away).await);
    here.batch_execute(
        "set session_replication_role = replica;
         insert into activities select * from aside; drop table aside",
    )
    .await
    .unwrap();
    let touch = "update activities set minutes = 7 where tenant_id = $1 and id = $2";
    there.execute(touch, &[&acme, &astray]).await.unwrap();
    let deadline = Instant::now() + SOON;
    let read = "select minutes from activities where tenant_id = $1 and id = $2";
    let minutes = async || -> i32 {
        let row = here.query_one(read, &[&acme, &astray]).await.unwrap();
        row.get(0)
    };
    while minutes().await != 7 {
        assert!(Instant::now() < deadline, "nothing comes back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lost: i64 = here
        .query_one(
            "delete from activities where tenant_id = $1 and id = (
               select min(id) from activities where tenant_id = $1 and subject like 'No. 8%') returning id",
            &[&acme],
        )
        .await
        .unwrap()
        .get(0);
    failed_over(stage, id).await;
    wish(stage, id, "rollback").await;
    let named = format!("({lost})");
    let differs = seen(stage, id, |m| {
        let why = m["checked"]["differ"].as_str().unwrap_or_default();
        why.contains(&named) && m["phase"] == "retained"
    });
    assert_eq!(differs.await["wish"], Value::Null);
    assert_eq!(stage.tenant("acme").await.1, away);

    // Mended, it could be rolled back; but then the slot of what comes back is gone.
    let restore = "select a from activities a where tenant_id = $1 and id = $2";
    let row = format!("select ({restore})::text").replace("$1", &format!("'{acme}'"));
    let row = row.replace("$2", &lost.to_string());
    let row: String = there.query_one(&row, &[]).await.unwrap().get(0);
    let restore = "insert into activities select (($1::text)::activities).*";
    here.execute(restore, &[&row]).await.unwrap();
    wish(stage, id, "verify").await;
    seen(stage, id, |m| {
        m["checked"]["rows"].as_u64() > Some(0) && m["phase"] == "retained"
    })
    .await;
    let slot = format!("ringfence_move_{}_back", id.replace('-', ""));
    let end = "select pg_terminate_backend(active_pid) from pg_replication_slots
        where slot_name = $1 and active_pid is not null";
    let drop =
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1";
    let deadline = Instant::now() + SOON;
    loop {
        there.execute(end, &[&slot]).await.unwrap();
        if there.execute(drop, &[&slot]).await.is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "the slot is always in use");
    }
    // It may have been seen by now, and is refused then.
    let path = format!("moves/{id}/rollback");
    stage.send(Method::POST, &path, Some(json!({}))).await;
    let gone = seen(stage, id, |m| {
        m["way_back_gone"].is_string() && m["phase"] == "retained"
    })
    .await;
    let why = gone["way_back_gone"].as_str().unwrap();
    assert!(why.contains("lost the slot"), "{gone}");
    for verb in ["rollback", "verify", "pause"] {
        let path = format!("moves/{id}/{verb}");
        let (status, body) = stage.send(Method::POST, &path, Some(json!({}))).await;
        assert_eq!(status, StatusCode::CONFLICT, "{body}");
    }
    wish(stage, id, "complete").await;
    phase(stage, id, "done").await;
    assert_eq!(stage.tenant("acme").await.1, away);
    assert!(stage.rows(home, acme).await.is_empty());
    assert_nothing_left(stage).await;
}
