//! CPU profiles on request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prost::Message;
use reqwest::Method;

use crate::stage::{SOON, Stage};

/// As much of google/pprof's `profile.proto` as is looked at.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

const PATH: &str = "/debug/pprof/profile?seconds=2";

pub(crate) async fn show_where_the_time_goes(stage: &Stage) {
    let deadline = Instant::now() + 2 * SOON;
    // On a busy machine the router may have had next to no time.
    loop {
        let profile = profile_under_load(stage).await;
        let samples: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
        let nanos: i64 = profile.sample.iter().map(|sample| sample.value[1]).sum();
        assert_eq!(nanos, samples * profile.period);
        // A stack now and then can't be unwound.
        let known = profile.sample.iter().filter(|s| !s.location_id.is_empty());
        let known = known.count() * 2 > profile.sample.len();
        let names = &profile.string_table;
        if samples >= 5 && known && names.iter().any(|name| name.contains("router::")) {
            break;
        }
        assert!(Instant::now() < deadline, "{samples}, {known}: {names:?}");
    }
    // And afterwards there is another, here of the worker: for those alone who
    // may do the rest.
    let worker = format!("{}{}", stage.cluster.admin_url(), PATH.replace('2', "1"));
    let stranger = stage.http.get(worker).send().await.unwrap();
    assert_eq!(stranger.status(), 401);
    let answer = stage
        .admin(Method::GET, &PATH.replace('2', "1"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let profile = Profile::decode(answer.bytes().await.unwrap()).unwrap();
    assert_eq!(profile.duration_nanos, 1_000_000_000);
}

/// Of the router, for two seconds in which it is busy.
async fn profile_under_load(stage: &Stage) -> Profile {
    let url = format!("{}{PATH}", stage.cluster.router_admin_url(0));
    let over = AtomicBool::new(false);
    let load = async {
        while !over.load(Ordering::Relaxed) {
            // The slightest statement, so that the router is busier than Postgres.
            let some = (0..16).map(|_| stage.get("companies?select=id&limit=1").send());
            for answer in futures_util::future::join_all(some).await {
                assert_eq!(answer.unwrap().status(), 200);
            }
        }
    };
    let profile = async {
        let deadline = Instant::now() + SOON;
        let answer = loop {
            let (one, two) = tokio::join!(stage.http.get(&url).send(), stage.http.get(&url).send());
            let (one, two) = (one.unwrap(), two.unwrap());
            // One at a time.
            match (one.status().as_u16(), two.status().as_u16()) {
                (200, 409) => break one,
                (409, 200) => break two,
                // They have not met.
                both => assert_eq!(both, (200, 200)),
            }
            assert!(Instant::now() < deadline, "they never meet");
        };
        over.store(true, Ordering::Relaxed);
        answer
    };
    let (answer, ()) = tokio::join!(profile, load);
    let profile = Profile::decode(answer.bytes().await.unwrap()).unwrap();
    assert_eq!(profile.duration_nanos, 2_000_000_000);
    profile
}
