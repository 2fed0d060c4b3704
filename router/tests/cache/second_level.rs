//! What Redis holds is found by a router that has nothing itself, is gone where it
//! is to be forgotten, and found again wherever its slots go.

use super::*;

impl Service {
    /// Names of a tenant's entries, on the masters that the cluster began with.
    pub(super) async fn names_of(&self, tenant: &str) -> BTreeSet<String> {
        let prefix = format!("rf1:{}:", tenant.replace('-', ""));
        let mut names = BTreeSet::new();
        for url in &self.cluster.redis_urls()[..3] {
            names.extend(self.names_on(url).await);
        }
        names.retain(|name| name.starts_with(&prefix));
        names
    }

    /// Reads the same through both routers, each by its memory at the end, until
    /// Redis has an entry of the tenant as well.
    async fn kept_everywhere(&self, key: &str, tenant: &str) {
        let begun = Instant::now();
        for n in 0.. {
            let path = format!("companies?select=id,name&order=id&limit={}", 200 + n);
            for router in [0, 1] {
                let read = async || {
                    let request = self.get_by(key, router, &path);
                    taken(request.send().await.unwrap()).await.0
                };
                while read().await != "l1" {
                    assert!(begun.elapsed() < PATIENCE, "not cached");
                }
            }
            if !self.names_of(tenant).await.is_empty() {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing comes to Redis");
        }
    }

    fn get_by(&self, key: &str, router: usize, path: &str) -> RequestBuilder {
        let url = format!("{}/rest/v1/{path}", self.cluster.router_url(router));
        self.http.get(url).header("apikey", key)
    }

    /// Bytes of a tenant's answers in a router's memory.
    async fn cached_bytes(&self, router: usize, tenant: &str) -> u64 {
        let admin = self.cluster.router_admin_url(router);
        let url = format!("{admin}/usage?tenant={tenant}");
        let usage: Value = self
            .http
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        usage["tenants"][0]["cached_bytes"].as_u64().unwrap()
    }

    /// What the worker's admin API answers.
    async fn admin(&self, method: reqwest::Method, path: &str) -> Value {
        let url = format!("{}/admin/v1/{path}", self.cluster.admin_url());
        let request = self.http.request(method, url);
        let answer = request.bearer_auth(self.cluster.admin_token()).send();
        answer.await.unwrap().json().await.unwrap()
    }

    /// Reads through both routers until the second finds what the first has put on
    /// that node, into a slot that is `wanted`.
    async fn found_on(&self, url: &str, from: u32, wanted: impl Fn(u16) -> bool) {
        let begun = Instant::now();
        let mut node = self.redis_node(url).await;
        for n in from.. {
            let path = format!("companies?select=id&id=eq.{n}");
            let before = self.names_on(url).await;
            // Twice: what is never asked again is not worth a fill.
            self.read(0, &path).await;
            self.read(0, &path).await;
            if self.read(1, &path).await.0 == "l2" {
                for name in self.names_on(url).await.difference(&before) {
                    let command = redis::cmd("CLUSTER").arg("KEYSLOT").arg(name).clone();
                    let slot: u16 = command.query_async(&mut node).await.unwrap();
                    if wanted(slot) {
                        return;
                    }
                }
            }
            assert!(begun.elapsed() < 2 * PATIENCE, "{url} is not used");
        }
    }
}

pub(crate) async fn old_answers_are_found_by_a_router_that_never_had_them(service: &Service) {
    let begun = Instant::now();
    for n in 0.. {
        let path = format!("companies?select=id&name=eq.Elsewhere&limit={}", 500 + n);
        let before = count(&service.cached(0, &path).await);
        service.insert(0, "Elsewhere").await;
        let request = service
            .get(1, &path)
            .header("cache-control", "max-age=3600");
        let answer = request.send().await.unwrap();
        let status = answer.headers()["cache-status"]
            .to_str()
            .unwrap()
            .to_owned();
        let (from, body) = taken(answer).await;
        if from == "l2" {
            assert!(status.contains("l2-old"), "{status}");
            assert_eq!(count(&body), before);
            assert_eq!(count(&service.read(1, &path).await.1), before + 1);
            break;
        }
        // It had not come to Redis yet.
        assert_eq!(count(&body), before + 1);
        assert!(
            begun.elapsed() < PATIENCE,
            "Redis' old answers are not used"
        );
    }
}

/// A request that was planned before is not planned again for what Redis has, and
/// sees what was written since.
pub(crate) async fn a_plan_that_is_known_finds_what_another_router_has_filled(service: &Service) {
    let begun = Instant::now();
    for n in 0.. {
        let path = format!("companies?select=id&name=eq.Refilled&limit={}", 600 + n);
        let before = count(&service.cached(1, &path).await);
        service.insert(0, "Refilled").await;
        service.cached(0, &path).await;
        let answer = service.get(1, &path).send().await.unwrap();
        let timing = answer.headers()["server-timing"].to_str().unwrap();
        let planned = timing.contains("plan;");
        let (from, body) = taken(answer).await;
        assert_eq!(count(&body), before + 1);
        if from == "l2" && !planned {
            break;
        }
        // It had not come to Redis yet, or there was no lease just then.
        assert!(
            begun.elapsed() < PATIENCE,
            "a known plan asks Redis nothing"
        );
    }
}

pub(crate) async fn what_is_purged_is_gone(service: &Service) {
    let tenant = service.tenant().await;
    let key = service.cluster.key("acme").unwrap();
    service.kept_everywhere(&key, &tenant).await;
    let path = "companies?select=id,name&order=id&limit=7";
    for router in [0, 1] {
        service.cached(router, path).await;
    }
    // A router takes it from workers alone.
    let url = format!("{}/cache/purge", service.cluster.router_admin_url(0));
    let request = service
        .http
        .post(url)
        .bearer_auth(service.cluster.admin_token());
    let refused = request.send().await.unwrap().status();
    assert_eq!(refused, reqwest::StatusCode::UNAUTHORIZED);
    assert!(service.cached_bytes(0, &tenant).await > 0);
    let url = format!("{}/admin/v1/cache/purge", service.cluster.admin_url());
    let request = service.http.post(url).json(&json!({ "tenant": "acme" }));
    let request = request.bearer_auth(service.cluster.admin_token());
    let purged: Value = request.send().await.unwrap().json().await.unwrap();
    let routers = purged["items"].as_array().unwrap();
    assert_eq!(routers.len(), 2, "{purged}");
    let removed = |router: &Value| router["redis_removed"].as_u64().unwrap_or(0);
    assert!(routers.iter().map(removed).sum::<u64>() > 0, "{purged}");
    assert!(routers.iter().all(|r| r["error"].is_null()), "{purged}");
    let log = "audit?action=cache.purge&object=acme";
    let log = service.admin(reqwest::Method::GET, log).await;
    assert_eq!(log["items"][0]["result"], "done", "{log}");
    assert_eq!(log["items"][0]["after"]["routers"], 2, "{log}");
    assert_eq!(service.names_of(&tenant).await, BTreeSet::new());
    for router in [0, 1] {
        assert_eq!(service.cached_bytes(router, &tenant).await, 0);
    }
    let (from, _) = service.read(1, path).await;
    assert!(from == "fill" || from == "miss", "{from}");
}

pub(crate) async fn a_deleted_tenant_leaves_no_answer(service: &Service) {
    let globex = service.admin(reqwest::Method::GET, "tenants/globex").await;
    let tenant = globex["id"].as_str().unwrap();
    let key = service.cluster.key("globex").unwrap();
    service.kept_everywhere(&key, tenant).await;
    let deletion = "tenants/globex?confirm=globex";
    let mut job = service.admin(reqwest::Method::DELETE, deletion).await;
    let path = format!("jobs/{}", job["id"].as_str().unwrap());
    let begun = Instant::now();
    while job["done"] != true {
        assert!(begun.elapsed() < 3 * PATIENCE, "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        job = service.admin(reqwest::Method::GET, &path).await;
    }
    let caches = &job["result"]["caches"];
    assert_eq!(caches["routers"], 2, "{job}");
    assert_eq!(caches["left"], json!([]), "{job}");
    assert!(caches["redis_entries"].as_u64() > Some(0), "{job}");
    assert_eq!(service.names_of(tenant).await, BTreeSet::new());
    for router in [0, 1] {
        assert_eq!(service.cached_bytes(router, tenant).await, 0);
    }
}

/// A master that froze for good is replaced, all entries are lost, slots change
/// their master: Redis is used again each time, by itself.
pub(crate) async fn slots_are_used_wherever_they_go(service: &Service) {
    let urls = service.cluster.redis_urls();
    let [first, second, _, _, _, heir] = &urls[..] else {
        panic!("three masters and their replicas: {urls:?}");
    };
    service.cluster.stop("redis-3").unwrap();
    let mut node = service.redis_node(heir).await;
    let begun = Instant::now();
    loop {
        let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(&mut node).await.unwrap();
        let role: String = redis::from_redis_value_ref(&role[0]).unwrap();
        if role == "master" {
            break;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "the frozen master is not replaced"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.found_on(heir, 100_000, |_| true).await;
    service.cluster.cont("redis-3").unwrap();

    let mut masters = Vec::new();
    for url in [first, second, heir] {
        masters.push(service.redis_node(url).await);
    }
    for node in &mut masters {
        let _: String = redis::cmd("FLUSHALL").query_async(node).await.unwrap();
    }
    service.found_on(first, 200_000, |_| true).await;

    const MOVED: u16 = 2_000;
    for node in &mut masters {
        let _: String = redis::cmd("FLUSHALL").query_async(node).await.unwrap();
    }
    let cluster = |words: &[&str]| redis::cmd("CLUSTER").arg(words).clone();
    let id: String = cluster(&["MYID"])
        .query_async(&mut masters[1])
        .await
        .unwrap();
    let bumped = cluster(&["BUMPEPOCH"]);
    let _: String = bumped.query_async(&mut masters[1]).await.unwrap();
    for node in [1, 0, 2] {
        for slot in 0..MOVED {
            let command = cluster(&["SETSLOT", &slot.to_string(), "NODE", &id]);
            // One that just got a key again stays where it is.
            let _: redis::RedisResult<String> = command.query_async(&mut masters[node]).await;
        }
    }
    service.found_on(second, 300_000, |slot| slot < MOVED).await;
}
