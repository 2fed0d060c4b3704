//! Writes through a router on real servers: keys that make them safe to send
//! again, and preconditions.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "writes/keys.rs"]
mod keys;
#[path = "writes/service.rs"]
mod service;
#[path = "writes/tags.rs"]
mod tags;
#[path = "writes/wire.rs"]
mod wire;

use std::sync::Arc;

use service::Service;

#[tokio::test]
async fn idempotency_keys() {
    let service = Service::start("").await;
    keys::first_answers_are_given_again(&service).await;
    keys::another_request_is_refused(&service).await;
    keys::what_was_refused_can_be_sent_again(&service).await;
    keys::no_keys_at_all_are_refused(&service).await;
    keys::every_kind_of_write_takes_one(&service).await;
    keys::at_once_they_write_once(&service).await;
    service.down().await;
}

#[tokio::test]
async fn bounds_of_idempotency_keys() {
    let service = Service::start(
        "[limits]\nidempotency_body_bytes_max = 60\nidempotency_keys_max = 1000\nhold_ms_max = 300\n\
         [api]\ntx_rollback = true\n",
    )
    .await;
    keys::large_answers_are_refused(&service).await;
    keys::a_dry_run_keeps_nothing(&service).await;
    keys::who_waits_too_long_is_told_to_come_back(&service).await;
    keys::a_tenant_has_a_share_of_keys(&service).await;
    service.down().await;
}

#[tokio::test]
async fn entity_tags() {
    let service = Arc::new(Service::start("").await);
    tags::copies_that_hold_are_not_sent_again(&service).await;
    tags::what_is_read_otherwise_has_another_tag(&service).await;
    tags::compressed_bytes_have_a_tag_of_their_own(&service).await;
    tags::a_row_that_changed_is_not_written(&service).await;
    tags::preconditions_that_cannot_be_kept_are_refused(&service).await;
    tags::no_update_is_lost(&service).await;
    Arc::into_inner(service).unwrap().down().await;
}

#[tokio::test]
async fn bounds_of_requests() {
    let service =
        Service::start("[limits]\nrequest_ms_max = 2500\nbody_bytes_max = 100000\n").await;
    wire::a_deadline_stops_the_query_on_the_server(&service).await;
    wire::slow_bodies_end(&service).await;
    wire::sizes_and_numbers_are_bounded(&service).await;
    wire::deep_values_are_refused(&service).await;
    wire::requests_are_traced(&service).await;
    wire::both_versions_of_http_are_spoken(&service).await;
    service.down().await;
}
