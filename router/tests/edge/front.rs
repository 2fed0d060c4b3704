//! What Nginx does itself: it keeps what may be shared, and cuts off a flood.

use std::time::{Duration, Instant};

use reqwest::RequestBuilder;
use reqwest::header::HeaderMap;

use crate::stage::{SOON, Stage};

/// As `ops/nginx/nginx.conf` has it, and as it is here for a while: three requests
/// from an address, and one a minute.
const FLOOD: [(&str, &str); 2] = [("rate=5000r/s", "rate=1r/m"), ("burst=2000", "burst=2")];

/// A function of the schema says that its answer may be shared, and for how long.
pub(crate) async fn what_may_be_shared_is_kept_and_asked_for_by_its_tag(stage: &Stage) {
    stage
        .sql
        .batch_execute(
            "create function shared(seconds text) returns text language plpgsql stable as $$ begin
               perform set_config('response.headers',
                 format('[{\"Cache-Control\": \"public, max-age=%s\"}]', seconds), true);
               return (select name from companies where id = 1); end $$;",
        )
        .await
        .unwrap();
    let name = async |tenant: &str, name: &str| {
        let url = format!("{}/rest/v1/companies?id=eq.1", stage.cluster.router_url(0));
        let request = stage.http.patch(url);
        let request = request.header("apikey", stage.cluster.key(tenant).unwrap());
        let request = request.body(format!("{{\"name\": \"{name}\"}}"));
        let answer = request.header("content-type", "application/json").send();
        assert_eq!(answer.await.unwrap().status(), 204);
    };
    let by = |tenant: &str, seconds: u32| {
        let (_, _, http) = stage.cluster.nginx().unwrap();
        let request = stage
            .http
            .get(format!("{http}/rest/v1/rpc/shared?seconds={seconds}"));
        request.header("apikey", stage.cluster.key(tenant).unwrap())
    };
    name("acme", "First").await;
    name("globex", "Another").await;
    stage.until(|| by("acme", 3_600), 200).await;

    // Kept for an hour, whatever becomes of it; for this credential alone.
    let kept = until(|| by("acme", 3_600), "\"First\"", Some("nginx; hit")).await;
    name("acme", "Second").await;
    until(|| by("acme", 3_600), "\"First\"", Some("nginx; hit")).await;
    until(|| by("globex", 3_600), "\"Another\"", None).await;
    // Who asks for a fresh one gets it, and who has a copy is told by a router.
    let fresh = || by("acme", 3_600).header("cache-control", "no-cache");
    until(fresh, "\"Second\"", None).await;
    let copy = by("acme", 3_600).header("if-none-match", &kept["etag"]);
    assert_eq!(copy.send().await.unwrap().status(), 200);

    // Kept for a second, it is asked for by its tag then, and goes once it is another.
    let again = Some("nginx; fwd=stale; fwd-status=304");
    until(|| by("acme", 1), "\"Second\"", again).await;
    name("acme", "Third").await;
    until(|| by("acme", 1), "\"Third\"", None).await;
    until(|| by("acme", 1), "\"Third\"", Some("nginx; hit")).await;
}

/// Asks until it is answered so, by Nginx' own cache or not.
async fn until(
    request: impl Fn() -> RequestBuilder,
    body: &str,
    by_nginx: Option<&str>,
) -> HeaderMap {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = request().send().await.unwrap();
        let headers = answer.headers().clone();
        let got = answer.text().await.unwrap();
        let said = headers.get_all("cache-status").iter();
        let nginx =
            { said }.find_map(|value| value.to_str().ok().filter(|s| s.starts_with("nginx")));
        if got == body && nginx == by_nginx {
            return headers;
        }
        assert!(
            Instant::now() < deadline,
            "{got:?} by {nginx:?}, not {body} by {by_nginx:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn a_flood_is_cut_off_before_the_routers(stage: &Stage) {
    let conf = stage.cluster.path().join("nodes/nginx/nginx.conf");
    let whole = std::fs::read_to_string(&conf).unwrap();
    let mut flood = whole.clone();
    for (usual, here) in FLOOD {
        assert!(flood.contains(usual), "{usual}");
        flood = flood.replace(usual, here);
    }
    let ask = || {
        let (_, _, http) = stage.cluster.nginx().unwrap();
        let request = stage.http.get(format!("{http}/rest/v1/companies?limit=1"));
        request.header("apikey", stage.cluster.key("acme").unwrap())
    };
    std::fs::write(&conf, flood).unwrap();
    stage.cluster.direct(&[], 0).await.unwrap();
    let deadline = Instant::now() + SOON;
    let refused = loop {
        let answer = ask().header("x-request-id", "flood").send().await.unwrap();
        match answer.status().as_u16() {
            429 => break answer,
            status => assert_eq!(status, 200),
        }
        assert!(Instant::now() < deadline, "a flood comes through");
    };
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(!refused.headers().contains_key("ringfence-cache"));
    std::fs::write(&conf, whole).unwrap();
    stage.cluster.direct(&[], 0).await.unwrap();
    stage.until(ask, 200).await;
}
