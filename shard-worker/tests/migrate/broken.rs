//! Shards that refuse, block or are away, and workers that die.

use std::time::{Duration, Instant};

use ops::local::Options;
use reqwest::{Method, StatusCode};

use crate::apply::GADGETS;
use crate::stage::Stage;

fn shards(states: &[&str]) -> Vec<(String, String)> {
    let numbered = (1..).zip(states);
    numbered
        .map(|(n, state)| (format!("s{n}"), (*state).to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_shard_refuses_stops_the_run_and_the_next_goes_on() {
    let stage = Stage::with(3, 5).await;
    // Someone made the table by hand, on one shard only.
    let meddler = stage.shard("s2").await;
    meddler
        .batch_execute("create table public.gadgets (id int)")
        .await
        .unwrap();
    let job = stage.apply(&[GADGETS]).await;
    // It is known before.
    let planned = stage.plan(&[GADGETS]).await;
    let refusals = planned["refusals"].as_array().unwrap();
    assert_eq!(refusals.len(), 1, "{planned}");
    assert_eq!(
        refusals[0]["message"],
        "shard s2 has already public.gadgets (001_gadgets.sql, line 1)"
    );
    assert_eq!(job["status"], "failed", "{job}");
    assert_eq!(job["problem"]["code"], "RF514");
    let message = job["problem"]["message"].as_str().unwrap();
    // The canary has the file: it can't be mended any longer.
    let advice = job["problem"]["advice"].as_str().unwrap();
    assert!(advice.contains("it can't be changed"), "{advice}");
    assert!(
        message.contains("s2") && message.contains("001_gadgets.sql, line 1"),
        "{message}"
    );
    assert_eq!(job["result"]["shards"][0]["done"], true);
    let states = stage.states().await;
    assert_eq!(states[0].1, "current", "{states:?}");
    assert_eq!(states[1].1, "behind", "{states:?}");

    meddler
        .batch_execute("drop table public.gadgets")
        .await
        .unwrap();
    let job = stage.apply(&[GADGETS]).await;
    assert_eq!(job["status"], "done", "{job}");
    assert_eq!(stage.states().await, shards(&["current"; 3]));

    // A shard that is down: nothing is begun anywhere.
    let more = ("002_more.sql", "alter table gadgets add column more text;");
    stage.cluster.kill("s3-primary").await.unwrap();
    let planned = stage.plan(&[GADGETS, more]).await;
    let refusal = &planned["refusals"][0];
    assert_eq!(refusal["code"], "RF516", "{planned}");
    let wanted = "shard s3 can't be reached: ";
    assert!(refusal["message"].as_str().unwrap().starts_with(wanted));
    let id = stage.begin(&[GADGETS, more]).await;
    let job = stage.over(&id).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert_eq!(job["problem"]["code"], "RF516");
    let message = job["problem"]["message"].as_str().unwrap();
    assert!(message.starts_with(wanted), "{message}");
    assert_eq!(stage.states().await, shards(&["behind", "behind", "down"]));
    stage.cluster.start_node("s3-primary").await.unwrap();
    let job = stage.apply(&[GADGETS, more]).await;
    assert_eq!(job["status"], "done", "{job}");
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_waits_for_a_lock_holds_nobody_up() {
    let stage = Stage::with(2, 5).await;
    let job = stage.apply(&[GADGETS]).await;
    assert_eq!(job["status"], "done", "{job}");
    let key = stage.cluster.key("acme").unwrap();
    let (_, shard) = stage.tenant("acme").await;
    // A report that reads for long.
    let reader = stage.shard(&shard).await;
    reader
        .batch_execute("begin; select count(*) from companies")
        .await
        .unwrap();
    let file = (
        "002_remark.sql",
        "alter table companies add column remark text;",
    );
    let id = stage.begin(&[GADGETS, file]).await;
    let waits = |job: &serde_json::Value| {
        let blocked = job["state"]["shards"].as_array().into_iter().flatten();
        blocked
            .filter_map(|shard| shard["tries"].as_u64())
            .any(|tries| tries >= 3)
    };
    let deadline = Instant::now() + crate::stage::SOON;
    let mut long = Vec::new();
    loop {
        let begun = Instant::now();
        assert_eq!(stage.read(&key).await, StatusCode::OK);
        let took = begun.elapsed();
        long.extend((took >= Duration::from_secs(2)).then_some(took));
        let job = stage.control().await;
        let row = job
            .query_one(
                "select jsonb_build_object('state', state, 'done', done) from ringfence.job where id::text = $1",
                &[&id],
            )
            .await
            .unwrap();
        let job: serde_json::Value = row.get(0);
        assert_eq!(job["done"], false, "{job}");
        if waits(&job) {
            break;
        }
        assert!(Instant::now() < deadline, "{job}");
    }
    // Behind a change that waits for long, one would wait as long at each try.
    assert!(long.len() < 3, "{long:?}");

    // A second operator is told so.
    let (status, body) = stage.ask(&[GADGETS, file]).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &"RF413".into()),
        "{body}"
    );
    // And no tenant moves meanwhile.
    let other = if shard == "s1" { "s2" } else { "s1" };
    let body = serde_json::json!({ "tenants": ["acme"], "to": other });
    let (status, body) = stage.send(Method::POST, "moves", Some(body)).await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");

    reader.batch_execute("rollback").await.unwrap();
    let job = stage.over(&id).await;
    assert_eq!(job["status"], "done", "{job}");
    assert_eq!(stage.states().await, shards(&["current"; 2]));

    // An index that is being built is shown, and what it waits for.
    reader
        .batch_execute("begin; update companies set name = name")
        .await
        .unwrap();
    let index = (
        "003_remarks.sql",
        "-- ringfence: no-transaction\n\
         create index concurrently companies_remark on companies (tenant_id, remark);\n",
    );
    let id = stage.begin(&[GADGETS, file, index]).await;
    let deadline = Instant::now() + crate::stage::SOON;
    loop {
        let status = stage.get("migrations/app").await;
        let of = status["shards"].as_array().unwrap().iter();
        let shown: Vec<&str> = of.filter_map(|shard| shard["progress"].as_str()).collect();
        if let [shown] = shown[..]
            && shown.contains("waiting for")
        {
            let begins = "CREATE INDEX CONCURRENTLY of companies_remark: ";
            assert!(shown.starts_with(begins), "{shown}");
            // That it waits, and for how many, Postgres says one after the other.
            if shown.ends_with("0 of 1 transactions waited for") {
                break;
            }
        }
        assert!(Instant::now() < deadline, "{status}");
    }
    assert_eq!(stage.read(&key).await, StatusCode::OK);
    reader.batch_execute("commit").await.unwrap();
    let job = stage.over(&id).await;
    assert_eq!(job["status"], "done", "{job}");
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_die_leave_nothing_undone_or_done_twice() {
    let stage = Stage::with(2, 5).await;
    let (acme, shard) = stage.tenant("acme").await;
    stage.fill(&shard, acme, 40_000).await;
    let file = (
        "001_score.sql",
        "-- ringfence: no-transaction\n\
         alter table activities add column score int not null default 0;\n\
         -- ringfence: backfill rows 500\n\
         update activities set score = score + 1;\n\
         create index concurrently activities_score on activities (tenant_id, score);\n\
         insert into countries (code, name, region, currency) values ('QQ', 'Nowhere', 'None', 'QQQ');\n",
    );
    let id = stage.begin(&[file]).await;
    let client = stage.shard(&shard).await;
    let mut seen: i64 = 0;
    for _ in 0..3 {
        let deadline = Instant::now() + crate::stage::SOON;
        loop {
            let rows = client
                .query_opt(
                    "select rows from ringfence.migration where directory = 'app'",
                    &[],
                )
                .await
                .unwrap();
            let rows = rows.map_or(0, |row| row.get(0));
            if rows > seen {
                seen = rows;
                break;
            }
            let over = stage.get(&format!("jobs/{id}")).await["done"] == true;
            if over {
                break;
            }
            assert!(Instant::now() < deadline, "no progress beyond {seen}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stage.cluster.kill("worker-1").await.unwrap();
        stage.worker_died().await;
    }
    assert!(seen > 0);
    let job = stage.over(&id).await;
    assert_eq!(job["status"], "done", "{job}");
    for shard in ["s1", "s2"] {
        let client = stage.shard(shard).await;
        let row = client
            .query_one(
                "select count(*) filter (where score = 1), count(*),
                   (select indisvalid from pg_index where indexrelid = 'activities_score'::regclass),
                   (select count(*) from countries where code = 'QQ'),
                   (select rows from ringfence.migration where directory = 'app')
                 from activities",
                &[],
            )
            .await
            .unwrap();
        let (once, all): (i64, i64) = (row.get(0), row.get(1));
        assert_eq!(once, all, "{shard}");
        assert!(row.get::<_, bool>(2), "{shard}");
        assert_eq!(row.get::<_, i64>(3), 1, "{shard}");
        assert_eq!(row.get::<_, i64>(4), all, "{shard}");
    }
    stage.cluster.down().await;
}

/// Files whose every statement takes a while, and would be seen to have been
/// done twice.
const SLOW: [(&str, &str); 3] = [
    (
        "001_slow.sql",
        "create table public.slow (id bigint generated by default as identity primary key);\n\
         select ringfence.distribute('public.slow');\n\
         insert into countries (code, name, region, currency)\n\
           select 'QA', 'Whole', 'None', 'QQQ' from pg_sleep(0.3);\n",
    ),
    (
        "002_slower.sql",
        "-- ringfence: no-transaction\n\
         alter table activities add column tally int not null default 0;\n\
         insert into countries (code, name, region, currency)\n\
           select 'QB', 'Alone', 'None', 'QQQ' from pg_sleep(0.3);\n\
         -- ringfence: backfill rows 500\n\
         update activities set tally = tally + 1;\n\
         create index concurrently activities_tally on activities (tenant_id, tally);\n\
         create index concurrently activities_subject on activities (tenant_id, subject, tally);\n",
    ),
    (
        "003_slowest.sql",
        "insert into countries (code, name, region, currency)\n\
           select 'QC', 'Last', 'None', 'QQQ' from pg_sleep(0.3);\n",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_die_at_any_moment_leave_nothing_undone_or_done_twice() {
    let stage = Stage::with(2, 5).await;
    let (acme, shard) = stage.tenant("acme").await;
    stage.fill(&shard, acme, 10_000).await;
    // The last file waits for somebody else's row until three have died.
    let other = stage.shard("s2").await;
    other
        .batch_execute(
            "begin; insert into countries (code, name, region, currency)
               values ('QC', 'Mine', 'None', 'QQQ')",
        )
        .await
        .unwrap();
    let id = stage.begin(&SLOW).await;
    let mut random = fastrand::Rng::new();
    let mut killed = Vec::new();
    // Until five have died with work under way, or all is done.
    while killed.len() < 5 {
        if killed.len() == 3 {
            other.batch_execute("rollback").await.unwrap();
        }
        let after = Duration::from_millis(random.u64(0..900));
        tokio::time::sleep(after).await;
        if stage.get(&format!("jobs/{id}")).await["done"] == true {
            break;
        }
        stage.cluster.kill("worker-1").await.unwrap();
        stage.worker_died().await;
        killed.push(after);
    }
    let job = stage.over(&id).await;
    assert_eq!(job["status"], "done", "{killed:?}: {job}");
    assert!(killed.len() > 2, "{killed:?}");
    for shard in ["s1", "s2"] {
        let client = stage.shard(shard).await;
        let row = client
            .query_one(
                "select count(*) filter (where tally = 1) = count(*),
                   (select string_agg(code, ' ' order by code) from countries where currency = 'QQQ'),
                   (select bool_and(indisvalid) from pg_index
                    where indexrelid in ('activities_tally'::regclass, 'activities_subject'::regclass)),
                   (select string_agg(state, ' ') from ringfence.migration where directory = 'app')
                 from activities",
                &[],
            )
            .await
            .unwrap();
        let whole = (row.get(0), row.get(1), row.get(2), row.get(3));
        let wanted = (true, "QA QB QC", true, "done done done");
        assert_eq!(whole, wanted, "{shard}: {killed:?}");
        // Nothing invalid is left of builds that did not end.
        let invalid = "select count(*) from pg_index where not indisvalid";
        let invalid: i64 = client.query_one(invalid, &[]).await.unwrap().get(0);
        assert_eq!(invalid, 0, "{shard}: {killed:?}");
    }
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_removed_while_a_live_router_reads_it() {
    let stage = Stage::with(2, 5).await;
    let file = (
        "001_without_title.sql",
        "-- ringfence: phase contract\nalter table contacts drop column title;\n",
    );
    let key = stage.cluster.key("acme").unwrap();
    // Nobody has said that applications are ready.
    let (status, body) = stage.ask(&[file]).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &"RF518".into()),
        "{body}"
    );
    assert!(body["hint"].as_str().unwrap().contains("--contract"));
    let begin = async || {
        let mut body = crate::apply::body(&[file]);
        body["contract"] = true.into();
        let (_, job) = stage
            .send(Method::POST, "migrations/app/apply", Some(body))
            .await;
        job["id"].as_str().unwrap().to_owned()
    };
    // It lives, and can't be told.
    stage.cluster.stop("router-1").unwrap();
    let job = stage.over(&begin().await).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert_eq!(job["problem"]["code"], "RF517", "{job}");
    for shard in ["s1", "s2"] {
        let client = stage.shard(shard).await;
        let row = client
            .query_one(
                "select (select count(*) from pg_attribute where attrelid = 'contacts'::regclass and attname = 'title'),
                   (select count(*) from ringfence.retired)",
                &[],
            )
            .await
            .unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 0));
    }
    // Cancelled while it waits for the router: nothing stays hidden.
    let id = begin().await;
    let hidden = async |shard: &str| {
        let client = stage.shard(shard).await;
        let row = client
            .query_one("select count(*) from ringfence.retired", &[])
            .await
            .unwrap();
        row.get::<_, i64>(0)
    };
    let deadline = Instant::now() + crate::stage::SOON;
    while hidden("s1").await == 0 {
        assert!(Instant::now() < deadline);
    }
    stage
        .send(
            Method::POST,
            &format!("jobs/{id}/cancel"),
            Some(serde_json::json!({})),
        )
        .await;
    assert_eq!(stage.over(&id).await["status"], "cancelled");
    assert_eq!((hidden("s1").await, hidden("s2").await), (0, 0));
    stage.cluster.cont("router-1").unwrap();

    // Requests for all columns go on through the removal.
    let url = format!("{}/rest/v1/contacts?limit=1", stage.cluster.router_url(0));
    let id = begin().await;
    let http = reqwest::Client::new();
    loop {
        let answer = http.get(&url).header("apikey", &key).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let job = stage.get(&format!("jobs/{id}")).await;
        if job["done"] == true {
            assert_eq!(job["status"], "done", "{job}");
            break;
        }
    }
    let answer = http.get(&url).header("apikey", &key).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(!answer.text().await.unwrap().contains("title"));
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_back_fill_waits_for_followers() {
    let stage = Stage::of(Options {
        shards: Some(1),
        replicas: Some(1),
        ..Stage::usual(5)
    })
    .await;
    let client = stage.shard("s1").await;
    let (acme, shard) = stage.tenant("acme").await;
    stage.fill(&shard, acme, 2_000).await;
    let waiting = async |is_behind: bool| {
        let deadline = Instant::now() + crate::stage::SOON;
        loop {
            let lag = client
                .query_one("select coalesce(ringfence.follower_lag(), -1)", &[])
                .await
                .unwrap();
            let lag: i64 = lag.get(0);
            if lag >= 0 && (lag > 16 << 20) == is_behind {
                return;
            }
            assert!(Instant::now() < deadline, "{lag}");
        }
    };
    waiting(false).await;
    // It lives, and replays nothing.
    stage.cluster.stop("s1-replica1").unwrap();
    client
        .batch_execute(
            "select pg_logical_emit_message(false, 'test', repeat('x', 1000000)) from generate_series(1, 24) n",
        )
        .await
        .unwrap();
    waiting(true).await;
    let file = (
        "001_minutes.sql",
        "-- ringfence: no-transaction\n-- ringfence: backfill rows 100\n\
         update activities set minutes = minutes + 1;\n",
    );
    let id = stage.begin(&[file]).await;
    let deadline = Instant::now() + crate::stage::SOON;
    loop {
        let state = stage
            .control()
            .await
            .query_one(
                "select state::text from ringfence.job where id::text = $1",
                &[&id],
            )
            .await
            .unwrap();
        let state: String = state.get(0);
        if state.contains("waits for a follower") {
            break;
        }
        assert!(Instant::now() < deadline, "{state}");
    }
    // What it has done, of how much.
    client.batch_execute("analyze activities").await.unwrap();
    let status = stage.get("migrations/app").await;
    let rows = &status["shards"][0]["rows_total"];
    assert!(rows.as_i64().is_some_and(|rows| rows >= 2_000), "{status}");
    let filled = "select coalesce(max(rows), 0) from ringfence.migration";
    let filled: i64 = client.query_one(filled, &[]).await.unwrap().get(0);
    assert_eq!(filled, 0);
    stage.cluster.cont("s1-replica1").unwrap();
    assert_eq!(stage.over(&id).await["status"], "done");
    stage.cluster.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_by_hand_is_recorded_though_a_file_was_begun() {
    let stage = Stage::with(2, 5).await;
    let file = (
        "001_two.sql",
        "-- ringfence: no-transaction\nalter table notes add column one int;\nalter table notes add column two int;\n",
    );
    let meddler = stage.shard("s1").await;
    meddler
        .batch_execute("alter table notes add column two int")
        .await
        .unwrap();
    let job = stage.apply(&[file]).await;
    assert_eq!(job["problem"]["code"], "RF514", "{job}");
    assert_eq!(stage.states().await[0].1, "half");
    for shard in ["s1", "s2"] {
        let client = stage.shard(shard).await;
        client
            .batch_execute("alter table notes add column if not exists one int, add column if not exists two int")
            .await
            .unwrap();
    }
    let mut body = crate::apply::body(&[file]);
    body["baseline"] = true.into();
    let (status, job) = stage
        .send(Method::POST, "migrations/app/apply", Some(body))
        .await;
    assert_eq!(status, StatusCode::ACCEPTED, "{job}");
    let job = stage.over(job["id"].as_str().unwrap()).await;
    assert_eq!(job["status"], "done", "{job}");
    assert_eq!(stage.states().await, shards(&["current"; 2]));
    stage.cluster.down().await;
}
