//! What happens while something else is under way: a fill, a reload of the
//! schema, a wait for Redis.

use std::time::SystemTime;

use jsonwebtoken::{EncodingKey, Header, encode};
use ops::local::Condition;
use tokio::task::JoinSet;

use super::*;

impl Service {
    /// A session that holds a lock, until it is told to roll back.
    async fn locker(&self, lock: &str) -> tokio_postgres::Client {
        let dsn = self.cluster.shard_dsn("s1-primary").unwrap();
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let lock = format!("begin; lock table {lock} in access exclusive mode");
        client.batch_execute(&lock).await.unwrap();
        client
    }

    /// Returns once so many of a router's statements wait for a lock.
    async fn waiting_for_a_lock(&self, wanted: i64) {
        let text = "select count(*) from pg_stat_activity
                    where wait_event_type = 'Lock' and application_name like 'ringfence-router%'";
        let begun = Instant::now();
        while self
            .shard
            .query_one(text, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            < wanted
        {
            assert!(begun.elapsed() < PATIENCE, "nobody waits for the lock");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Changes something by SQL, and returns once the first router answers so
    /// from its memory: then it has applied all that was committed until now,
    /// for the answer from before was there as well and had to be dropped. (A
    /// first fill could see the change before the router hears of it.)
    async fn applied(&self, change: &str, path: &str, seen: impl Fn(&Value) -> bool) {
        assert!(!seen(&self.cached(0, path).await));
        self.shard.batch_execute(change).await.unwrap();
        let begun = Instant::now();
        while !seen(&self.cached(0, path).await) {
            assert!(begun.elapsed() < PATIENCE, "an old answer stays");
        }
    }

    /// A request of somebody with a token.
    fn get_as(&self, tenant: &str, subject: &str, path: &str) -> RequestBuilder {
        let end = SystemTime::now() + Duration::from_secs(600);
        let end = end
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        // The same for each of its requests, as a session's token is.
        let end = end / 1_000 * 1_000 + 1_000;
        let claims =
            json!({ "tenant_id": tenant, "role": "authenticated", "sub": subject, "exp": end });
        let secret = EncodingKey::from_secret(self.cluster.jwt_secret().as_bytes());
        let token = encode(&Header::default(), &claims, &secret).unwrap();
        let url = format!("{}/rest/v1/{path}", self.cluster.router_url(0));
        self.http.get(url).bearer_auth(token)
    }
}

/// Milliseconds of a stage, by `Server-Timing`.
fn spent(answer: &Response, stage: &str) -> f64 {
    let timing = answer.headers()["server-timing"].to_str().unwrap();
    let stages = timing.split(", ");
    let of = |part: &str| {
        Some(
            part.strip_prefix(stage)?
                .strip_prefix(";dur=")?
                .parse()
                .unwrap(),
        )
    };
    stages.filter_map(of).next().unwrap_or(0.0)
}

fn from(answer: &Response) -> String {
    answer.headers()["ringfence-cache"]
        .to_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn policies_by_claims_keep_users_apart_also_before_routers_know_of_them() {
    let service = Service::start(None).await;
    let tenant = service.tenant().await;
    let setup = format!(
        "create table owned (id bigint primary key, who text not null);
         select ringfence.distribute('owned');
         insert into owned (tenant_id, id, who) values ('{tenant}', 1, 'ann'), ('{tenant}', 2, 'bob');
         create view held_up with (security_invoker = true) as select 1 as one"
    );
    service.shard.batch_execute(&setup).await.unwrap();
    let path = "owned?select=who&order=id";
    let read = async |who: &str| service.get_as(&tenant, who, path).send().await.unwrap();
    let all = json!([{ "who": "ann" }, { "who": "bob" }]);
    let begun = Instant::now();
    loop {
        let answer = read("ann").await;
        if answer.status() == StatusCode::OK && from(&answer) == "l1" {
            assert_eq!(answer.json::<Value>().await.unwrap(), all);
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the new table is not cached");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Both get the same answer, so they share it: unless there is no lease just then.
    let begun = Instant::now();
    let mut bobs = from(&read("bob").await);
    while bobs == "miss" {
        assert!(begun.elapsed() < PATIENCE, "there is no lease");
        bobs = from(&read("bob").await);
    }
    assert_eq!(bobs, "l1");

    // From here on they don't, and the routers' new model waits for this lock.
    let locker = service.locker("held_up").await;
    let policy = "create policy own on owned as restrictive for select
                  using (who = current_setting('request.jwt.claims')::json ->> 'sub')";
    service.shard.batch_execute(policy).await.unwrap();
    let own = |who: &str| json!([{ "who": who }]);
    let begun = Instant::now();
    loop {
        let answer = read("ann").await.json::<Value>().await.unwrap();
        if answer == own("ann") {
            break;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "the policy is not seen: {answer}"
        );
    }
    for _ in 0..20 {
        for who in ["ann", "bob"] {
            let answer = read(who).await.json::<Value>().await.unwrap();
            assert_eq!(answer, own(who), "{who} is shown what is not {who}'s");
        }
    }
    locker.batch_execute("rollback").await.unwrap();
    let begun = Instant::now();
    loop {
        let (anns, bobs) = (read("ann").await, read("bob").await);
        let cached = from(&anns) == "l1" && from(&bobs) == "l1";
        assert_eq!(anns.json::<Value>().await.unwrap(), own("ann"));
        assert_eq!(bobs.json::<Value>().await.unwrap(), own("bob"));
        if cached {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is cached again");
    }
}

#[tokio::test]
async fn those_who_wait_for_an_answer_that_changes_meanwhile_share_the_next() {
    let service = Service::start(None).await;
    let tenant = service.tenant().await;
    for trial in 0..20 {
        if they_share_the_next(&service, &tenant, trial).await {
            return;
        }
    }
    panic!("no lease lasted for as long as the requests");
}

/// Whether it was a trial: on a busy machine a lease may end meanwhile, and then
/// nothing is shared (rule 10).
async fn they_share_the_next(service: &Service, tenant: &str, trial: usize) -> bool {
    let contacts = "contacts?select=title&order=id&limit=1";
    service.cached(0, contacts).await;
    let before = service.shard_answers().await.leases_missed;
    let locker = service.locker("companies").await;
    let mut asked = JoinSet::new();
    for _ in 0..40 {
        let limit = 77 + trial;
        let path = format!("companies?select=id,contacts(id)&order=id&limit={limit}");
        asked.spawn(service.get(0, &path).send());
    }
    service.waiting_for_a_lock(1).await;
    let held = Instant::now();
    let title = format!("Changed meanwhile {trial}");
    let change = format!(
        "update contacts set title = '{title}' where (tenant_id, id) =
         (select tenant_id, min(id) from contacts where tenant_id = '{tenant}' group by 1)"
    );
    let seen = |body: &Value| body[0]["title"] == title;
    service.applied(&change, contacts, seen).await;
    let held = held.elapsed();
    locker.batch_execute("rollback").await.unwrap();
    let mut queries = 0;
    let mut longest: f64 = 0.0;
    while let Some(answer) = asked.join_next().await {
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        queries += usize::from(from(&answer) != "l1");
        longest = longest.max(spent(&answer, "transaction"));
    }
    if service.shard_answers().await.leases_missed > before {
        return false;
    }
    assert!(queries <= 4, "{queries} queries of 40");
    // What it cost the shard is on the account of who began it.
    let held = held.as_secs_f64() * 1e3;
    assert!(longest > held / 2.0, "{longest} ms of {held} ms");
    true
}

/// What a router answers to who takes old answers, when its connection to the shard is
/// lost while the read waits for a lock; and who holds the lock.
async fn answer_without_a_connection(
    service: &Service,
    router: usize,
    path: &str,
) -> (tokio_postgres::Client, reqwest::Response) {
    let locker = service.locker("companies").await;
    let request = service
        .get(router, path)
        .header("cache-control", "stale-if-error=3600");
    let asked = tokio::spawn(request.send());
    service.waiting_for_a_lock(1).await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                where wait_event_type = 'Lock' and application_name like 'ringfence-router%'";
    service.shard.query(kill, &[]).await.unwrap();
    let Ok(answer) = tokio::time::timeout(PATIENCE, asked).await else {
        panic!("it waits for the lock again");
    };
    (locker, answer.unwrap().unwrap())
}

#[tokio::test]
async fn an_old_answer_stands_in_for_a_connection_that_is_lost() {
    let service = Service::start(None).await;
    let tenant = service.tenant().await;
    let (path, other) = (
        "companies?select=id,name&order=id&limit=3",
        "companies?select=name&order=id&limit=1",
    );
    let old = service.cached(0, path).await;
    let change = format!(
        "update companies set name = 'Changed' where (tenant_id, id) =
         (select tenant_id, min(id) from companies where tenant_id = '{tenant}' group by 1)"
    );
    service
        .applied(&change, other, |body| body[0]["name"] == "Changed")
        .await;
    let answer = service.get(0, other).send().await.unwrap();
    let tag = answer.headers()["etag"].clone();
    unchanged_without_the_shard(&service, other, &tag).await;
    let (locker, answer) = answer_without_a_connection(&service, 0, path).await;
    let status = answer.headers()["cache-status"].to_str().unwrap();
    assert!(status.contains("l1-old"), "{status}");
    assert_eq!(taken(answer).await, ("l1".to_owned(), old));
    locker.batch_execute("rollback").await.unwrap();
}

/// The same out of Redis, through a router that never had it.
pub(crate) async fn an_old_answer_of_redis_stands_in_for_a_connection_that_is_lost(
    service: &Service,
) {
    let tenant = service.tenant().await;
    let begun = Instant::now();
    let mut asked = 0;
    let (path, old) = loop {
        let before = service.names_of(&tenant).await;
        asked += 1;
        let path = format!(
            "companies?select=id,name&order=id&limit=2&id=lt.{}",
            100 + asked
        );
        let body = service.cached(0, &path).await;
        // It comes there soon, or not at all; and not after the next one is asked for.
        let since = Instant::now();
        let mut came = false;
        while !came && since.elapsed() < Duration::from_secs(2) {
            came = !service.names_of(&tenant).await.is_subset(&before);
        }
        if came {
            break (path, body);
        }
        assert!(begun.elapsed() < PATIENCE, "nothing comes to Redis");
    };
    service.insert(0, "Newest").await;
    let (locker, answer) = answer_without_a_connection(service, 1, &path).await;
    let status = answer.headers()["cache-status"].to_str().unwrap();
    assert!(status.contains("l2-old"), "{status}");
    assert!(answer.headers().contains_key("age"));
    assert_eq!(taken(answer).await, ("l2".to_owned(), old));
    locker.batch_execute("rollback").await.unwrap();
}

/// A 304 comes from memory: the shard would wait for a lock.
async fn unchanged_without_the_shard(
    service: &Service,
    path: &str,
    tag: &reqwest::header::HeaderValue,
) {
    let begun = Instant::now();
    loop {
        let locker = service.locker("companies").await;
        let request = service.get(0, path).header("if-none-match", tag);
        let answer = request.timeout(Duration::from_secs(1)).send().await;
        locker.batch_execute("rollback").await.unwrap();
        match answer {
            Ok(answer) => return assert_eq!(answer.status(), StatusCode::NOT_MODIFIED),
            // It had no lease just then, and asked the shard.
            Err(_) => assert!(begun.elapsed() < PATIENCE, "a 304 needs the shard"),
        }
    }
}

/// The stream of changes is cut, and nobody is told: what is written then is seen
/// by each read that begins 250 ms later, and 3 ms for the clocks' drift.
pub(crate) async fn a_router_that_hears_nothing_answers_nothing_old(service: &Service) {
    let tenant = service.tenant().await;
    let path = "companies?select=id&name=eq.Unheard";
    let insert = format!("insert into companies (tenant_id, name) values ('{tenant}', 'Unheard')");
    for router in [0, 1] {
        assert_eq!(count(&service.cached(router, path).await), 0);
    }
    let worker = |condition| service.cluster.set_network("worker-1", condition).unwrap();
    worker(Condition::Cut);
    service.shard.batch_execute(&insert).await.unwrap();
    tokio::time::sleep(Duration::from_millis(253)).await;
    for _ in 0..20 {
        for router in [0, 1] {
            assert_eq!(count(&service.read(router, path).await.1), 1);
        }
    }
    worker(Condition::Well);
    assert_eq!(count(&service.cached(0, path).await), 1);
}

/// Who finds another router's fill under way waits for it, and asks the shard nothing.
pub(crate) async fn two_routers_share_a_fill(service: &Service) {
    let begun = Instant::now();
    let awaited = async || service.metric(1, "ringfence_cache_awaited_total").await[""];
    for n in 60_000.. {
        let path = format!("companies?select=id&id=eq.{n}");
        let (before, queries) = (awaited().await, service.shard_answers().await.queries);
        let locker = service.locker("companies").await;
        let first = tokio::spawn(service.get(0, &path).send());
        service.waiting_for_a_lock(1).await;
        let second = tokio::spawn(service.get(1, &path).send());
        tokio::time::sleep(Duration::from_millis(5)).await;
        locker.batch_execute("rollback").await.unwrap();
        let second = second.await.unwrap().unwrap();
        assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
        // It waits for 43 ms at most, and the first may be slower on a busy machine:
        // then both ask.
        if awaited().await > before {
            assert_eq!(from(&second), "l2");
            assert_eq!(service.shard_answers().await.queries, queries + 1.0);
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "no router waits for another's fill"
        );
    }
}

/// All three masters frozen: a request waits for its answer once, however many
/// commands it has for them.
pub(crate) async fn a_redis_that_stands_still_is_waited_for_once(service: &Service) {
    for redis in ["redis-1", "redis-2", "redis-3"] {
        service.cluster.stop(redis).unwrap();
    }
    let mut waits = Vec::new();
    for n in 0..8 {
        let path = format!("companies?select=id&id=eq.{}", 70_000 + n);
        let answer = service.get(0, &path).send().await.unwrap();
        if from(&answer) == "fill" {
            waits.push(spent(&answer, "cache"));
        }
    }
    for redis in ["redis-1", "redis-2", "redis-3"] {
        service.cluster.cont(redis).unwrap();
    }
    waits.sort_by(f64::total_cmp);
    assert!(
        waits.last().is_some_and(|longest| *longest >= 45.0),
        "{waits:?}"
    );
    // 50 ms, and what a busy machine adds; twice that would be two waits.
    assert!(waits[0] < 90.0, "{waits:?}");
}
