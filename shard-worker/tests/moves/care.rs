//! What a DBA meets beside moves that go well: streams that stand still, wrong
//! certificates, tenants that are busy, workers that are told to end, leftovers.

use std::time::{Duration, Instant};

use ops::local::{Authority, Options};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::moves::{assert_nothing_left, assert_served_by, other, phase, seen, start, wish};
use crate::stage::{SOON, Stage};

async fn post(stage: &Stage, path: &str, body: Value) -> (StatusCode, Value) {
    stage.send(Method::POST, path, Some(body)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_on_the_way_is_waited_out_or_told() {
    let stage = Stage::of(Options {
        tls: true,
        ..Stage::usual(100)
    })
    .await;
    let (acme, home) = stage.tenant("acme").await;
    let away = other(&home);
    leave_behind(&stage).await;

    // Shards verify whom they receive from.
    let trusted = stage
        .cluster
        .path()
        .join(format!("nodes/{away}-primary/data/ca.pem"));
    let right = std::fs::read(&trusted).unwrap();
    let wrong = stage.cluster.path().join("wrong.pem");
    Authority::new(&wrong).unwrap();
    std::fs::write(&trusted, std::fs::read(&wrong).unwrap()).unwrap();
    let id = start(&stage, &["acme"], away).await;
    let refused = seen(&stage, &id, |m| m["problem"]["message"].is_string()).await;
    let why = refused["problem"]["message"].as_str().unwrap();
    assert!(why.contains("SSL error"), "{why}");
    // However often it has been tried, it goes on being tried.
    let control = stage.control().await;
    let tried = "update ringfence.job set attempt = 900 where id = $1::text::uuid";
    control.execute(tried, &[&id]).await.unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        let job = stage.get(&format!("jobs/{id}")).await;
        let attempt = job["attempt"].as_i64().unwrap();
        if attempt < 900 {
            assert!(attempt >= 100, "{job}");
            break;
        }
        assert!(Instant::now() < deadline, "{job}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    std::fs::write(&trusted, right).unwrap();
    let soon = "update ringfence.job set attempt = 1, due_at = now() where id = $1::text::uuid";
    control.execute(soon, &[&id]).await.unwrap();
    phase(&stage, &id, "retained").await;
    assert_served_by(&stage, acme, away, 2).await;
    let plain: i64 = stage
        .shard(&home)
        .await
        .query_one(
            "select count(*) from pg_stat_replication r join pg_stat_ssl s using (pid) where not s.ssl",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(plain, 0, "streams that are not encrypted");

    // A plan passes over who has another job, and comes to its end.
    let (_, plan) = post(&stage, "rebalance/plan", json!({ "policy": "ring" })).await;
    assert_eq!(plan["tenants"], 1, "{plan}");
    assert!(plan["bytes"].as_u64().unwrap() > 0, "{plan}");
    let body = json!({ "hash": plan["hash"] });
    let ((one, first), (two, second)) = tokio::join!(
        post(&stage, "rebalance/apply", body.clone()),
        post(&stage, "rebalance/apply", body.clone())
    );
    let accepted = [one, two]
        .iter()
        .filter(|s| **s == StatusCode::ACCEPTED)
        .count();
    let job = if one == StatusCode::ACCEPTED {
        &first
    } else {
        &second
    };
    assert!(accepted >= 1, "{first} {second}");
    let over = stage.over(job["id"].as_str().unwrap()).await;
    assert_eq!(over["status"], "done", "{over}");
    let failed = over["result"]["failed"].to_string();
    assert!(failed.contains("tenant acme has another job"), "{failed}");
    let status = stage.get("rebalance").await;
    assert_eq!(status["done"], true, "{status}");
    // Both may have been accepted, one after the other; never at once.
    let twice = "insert into ringfence.job (kind, object, actor, state, phase)
        select kind, object, actor, state, phase
        from (select * from ringfence.job where kind = 'rebalance' limit 1) j, generate_series(1, 2)";
    let refused = control.execute(twice, &[]).await.unwrap_err();
    let constraint = refused.as_db_error().and_then(|error| error.constraint());
    assert_eq!(constraint, Some("job_one_open_rebalance"), "{refused:?}");
    let (none, _) = post(&stage, "rebalance/pause", json!({})).await;
    assert_eq!(none, StatusCode::NOT_FOUND);

    // What comes back stands still: nobody is held for it, and it is tried again.
    let locked = stage.shard(&home).await;
    locked
        .batch_execute("begin; lock table ringfence.move_marker in exclusive mode")
        .await
        .unwrap();
    wish(&stage, &id, "rollback").await;
    let tried = seen(&stage, &id, |m| m["state"]["tries"].as_u64() >= Some(1)).await;
    assert_eq!(tried["problem"], Value::Null, "{tried}");
    let why = tried["state"]["why"].as_str().unwrap();
    assert!(why.contains("does not arrive"), "{tried}");
    assert_served_by(&stage, acme, away, 2).await;
    // And the control database says something else than the shards.
    let place = "update ringfence.tenant set epoch = $2 where id = $1";
    control.execute(place, &[&acme, &77_i64]).await.unwrap();
    locked.batch_execute("rollback").await.unwrap();
    let stuck = seen(&stage, &id, |m| m["status"] == "stuck").await;
    assert_eq!(stuck["phase"], "rolling_back", "{stuck}");
    control.execute(place, &[&acme, &2_i64]).await.unwrap();
    let (status, retried) = post(&stage, &format!("jobs/{id}/retry"), json!({})).await;
    assert_eq!(status, StatusCode::OK, "{retried}");
    phase(&stage, &id, "rolled_back").await;
    assert_served_by(&stage, acme, &home, 3).await;
    leftovers_are_gone(&stage).await;
    assert_nothing_left(&stage).await;

    looks(&stage, away).await;
    stage.cluster.down().await;
}

/// What a move prepared and did not come back for: a fence, and the slot of a table's
/// copy whose subscription is gone.
async fn leave_behind(stage: &Stage) {
    let (globex, home) = stage.tenant("globex").await;
    let receives = stage.shard(other(&home)).await;
    let fence = "insert into ringfence.fence (tenant_id, epoch, state, changed_at)
        values ($1, 9, 'fenced', now() - interval '1 hour')";
    receives.execute(fence, &[&globex]).await.unwrap();
    let system = "select system_identifier::text from pg_control_system()";
    let system: String = receives.query_one(system, &[]).await.unwrap().get(0);
    let sends = stage.shard(&home).await;
    let slot = format!(
        "select pg_create_logical_replication_slot('pg_4000000000_sync_1_{system}', 'pgoutput')"
    );
    sends.batch_execute(&slot).await.unwrap();
}

/// The janitor has come by.
async fn leftovers_are_gone(stage: &Stage) {
    let deadline = Instant::now() + SOON;
    for shard in ["s1", "s2"] {
        let client = stage.shard(shard).await;
        let left = "select (select count(*) from ringfence.fence where epoch = 9)
            + (select count(*) from pg_replication_slots where slot_name like 'pg\\_4000000000\\_%')";
        while client.query_one(left, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            assert!(
                Instant::now() < deadline,
                "what is nobody's stays on {shard}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The doctor, and queries that only read.
async fn looks(stage: &Stage, shard: &str) {
    let kinds = |report: &Value| -> Vec<String> {
        let findings = report["findings"].as_array().unwrap().iter();
        findings
            .map(|f| f["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    let clean = stage.get("doctor").await;
    assert_eq!(clean["errors"], json!([]), "{clean}");
    assert!(kinds(&clean).iter().all(|kind| kind == "hidden"), "{clean}");

    let client = stage.shard(shard).await;
    let nobody = "00000000-0000-4000-8000-00000000dead";
    client
        .batch_execute(&format!(
            "set session_replication_role = replica;
             insert into companies (tenant_id, name) values ('{nobody}', 'Leftover');
             insert into ringfence.fence (tenant_id, epoch) values ('{nobody}', 1);
             update ringfence.fence set state = 'moved', target_shard = 's9', target_epoch = 2
               where tenant_id = '{nobody}';
             create materialized view everything as select * from companies;
             select ringfence.move_publish('ringfence_move_00000000000040008000000000000009_0', array['{nobody}'::uuid], true)"
        ))
        .await
        .unwrap();
    client
        .batch_execute("select pg_create_logical_replication_slot('forgotten', 'pgoutput')")
        .await
        .unwrap();
    let report = stage.get("doctor").await;
    for (kind, name) in [
        ("rows", nobody),
        (
            "publication",
            "ringfence_move_00000000000040008000000000000009_0",
        ),
        ("slot", "forgotten"),
        ("hidden", "public.everything"),
    ] {
        let findings = report["findings"].as_array().unwrap();
        let found = findings
            .iter()
            .any(|f| f["shard"] == *shard && f["kind"] == kind && f["name"] == name);
        assert!(found, "{kind} {name}: {report}");
    }

    // Of a tenant that another shard serves they go where someone asks for it; whose
    // they are must be known.
    let (globex, home) = stage.tenant("globex").await;
    let not_home = stage.shard(other(&home)).await;
    let left = format!(
        "set session_replication_role = replica;
         insert into companies (tenant_id, name) values ('{globex}', 'Left behind')"
    );
    not_home.batch_execute(&left).await.unwrap();
    let (status, fixed) = post(stage, "doctor/fix", json!({})).await;
    assert_eq!(status, StatusCode::OK, "{fixed}");
    let deleted = json!([{ "shard": other(&home), "name": "globex", "rows": 1 }]);
    assert_eq!(fixed["deleted"], deleted, "{fixed}");
    let log = stage.get("audit?action=doctor.fix").await["items"].clone();
    let log = log.as_array().unwrap().iter().rev();
    let log: Vec<_> = log
        .map(|line| (&line["object"], &line["result"], &line["after"]["rows"]))
        .collect();
    let (globex, begun, done) = (json!("globex"), json!("begun"), json!("done"));
    assert_eq!(
        log,
        [(&globex, &begun, &Value::Null), (&globex, &done, &json!(1))]
    );
    let left = &fixed["left"][0];
    assert_eq!(
        (&left["shard"], &left["name"]),
        (&json!(shard), &json!(nobody))
    );

    let ask = |sql: &str| {
        let body = json!({ "sql": sql, "rows_max": 2 });
        async move { post(stage, &format!("shards/{shard}/query"), body).await }
    };
    let (status, answer) =
        ask("select name, tenant_id from companies where name = 'Leftover' -- all").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["columns"], json!(["name", "tenant_id"]));
    assert_eq!(
        answer["rows"],
        json!([{ "name": "Leftover", "tenant_id": nobody }])
    );
    let (_, many) = ask("select n from generate_series(1, 9) n;").await;
    assert_eq!(
        (&many["truncated"], many["rows"].as_array().unwrap().len()),
        (&json!(true), 2)
    );
    // A row that is larger than an answer may be is not sent.
    let large = "select n, repeat('x', n * 10000000) as x from generate_series(0, 1) n";
    let (status, some) = ask(large).await;
    assert_eq!(status, StatusCode::OK, "{some}");
    assert_eq!(
        (&some["truncated"], &some["rows"]),
        (&json!(true), &json!([{ "n": 0, "x": "" }]))
    );
    for refused in [
        "delete from companies returning id",
        "with gone as (delete from companies returning id) select * from gone",
        "select nextval('companies_id_seq')",
        "select 1; select 2",
        "select ringfence.move_switch('ringfence_move_00000000000040008000000000000009_0', false)",
        "select subconninfo from pg_subscription",
        // Nobody is behind its role, nor shown what standbys log in with.
        "select set_config('role', 'none', true), pg_drop_replication_slot('forgotten')",
        "select current_setting('primary_conninfo')",
        "select name from companies where name = $1",
        "select pg_sleep(1) from generate_series(1, 3) n; rollback",
    ] {
        let (status, answer) = ask(refused).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}: {answer}");
    }
    let slow = json!({ "sql": "select pg_sleep(20)", "seconds_max": 1 });
    let (status, answer) = post(stage, &format!("shards/{shard}/query"), slow).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert!(
        answer["message"].as_str().unwrap().contains("57014"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_told_to_end_gives_its_jobs_away() {
    let stage = Stage::of(Options {
        workers: Some(2),
        ..Stage::usual(50)
    })
    .await;
    let (acme, home) = stage.tenant("acme").await;
    let away = other(&home);
    stage.fill(&home, acme, 60_000).await;
    let control = stage.control().await;
    let owner = async || -> Option<String> {
        let sql = "select lease_owner from ringfence.job where lease_until > now() and not done";
        let row = control.query_opt(sql, &[]).await.unwrap()?;
        row.get(0)
    };
    let id = start(&stage, &["acme"], away).await;
    let deadline = Instant::now() + SOON;
    let first = loop {
        match owner().await {
            Some(owner) => break owner,
            None => assert!(Instant::now() < deadline, "nobody takes the move"),
        }
    };
    // Who takes a job whose lease was not given back has waited for its end.
    let waits = "create table public.waited_out (owner text);
         create function public.note() returns trigger language plpgsql security definer as
           $$ begin insert into public.waited_out values (old.lease_owner); return null; end $$;
         create trigger note after update on ringfence.job for each row
           when (old.lease_owner <> new.lease_owner and old.lease_until is not null)
           execute function public.note()";
    control.batch_execute(waits).await.unwrap();
    let name = first.split('/').next().unwrap();
    let taken_over = async {
        loop {
            if owner().await.is_some_and(|owner| owner != first) {
                return;
            }
            assert!(Instant::now() < deadline, "nobody takes it over");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ((), ended) = tokio::join!(taken_over, stage.cluster.shut_down(name));
    ended.unwrap();
    let waited = "select count(*) from public.waited_out";
    let waited: i64 = control.query_one(waited, &[]).await.unwrap().get(0);
    assert_eq!(waited, 0, "leases that were waited out");
    stage.cluster.start_node(name).await.unwrap();
    phase(&stage, &id, "retained").await;
    assert_served_by(&stage, acme, away, 2).await;
    stage.cluster.down().await;
}
