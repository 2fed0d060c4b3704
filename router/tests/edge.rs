//! A router and a worker behind Nginx, seen from outside: what they tell of
//! themselves, and what they make of requests that mean to deceive or to wait.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic as tests do"
)]

#[path = "edge/faults.rs"]
mod faults;
#[path = "edge/front.rs"]
mod front;
#[path = "edge/profiles.rs"]
mod profiles;
#[path = "../../ops/telemetry/tests/receiver/mod.rs"]
mod receiver;
#[path = "edge/slow.rs"]
mod slow;
#[path = "edge/smuggling.rs"]
mod smuggling;
#[path = "edge/stage.rs"]
mod stage;
#[path = "edge/traces.rs"]
mod traces;

use stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_and_what_is_refused() {
    let mut stage = Stage::start().await;
    let dawdlers = slow::begin(&stage).await;
    traces::a_callers_trace_goes_on_to_the_shard(&mut stage).await;
    traces::postgres_knows_whose_trace_it_works_for(&stage).await;
    traces::a_job_has_a_trace_of_its_own(&mut stage).await;
    faults::only_our_own_are_reported_and_nothing_of_the_request(&mut stage).await;
    traces::a_slow_request_says_what_it_did(&stage).await;
    front::what_may_be_shared_is_kept_and_asked_for_by_its_tag(&stage).await;
    front::a_flood_is_cut_off_before_the_routers(&stage).await;
    profiles::show_where_the_time_goes(&stage).await;
    smuggling::over_http1(&stage).await;
    smuggling::over_http2(&stage).await;
    slow::a_slow_body_is_cut_off(&stage).await;
    slow::answers_that_nobody_takes_are_bounded_together(&stage).await;
    slow::end(dawdlers).await;
    traces::the_last_ones_are_sent_at_the_end(&mut stage).await;
    stage.down().await;
}
