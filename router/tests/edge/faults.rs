//! Reports to Sentry.

use crate::stage::Stage;

const TRACE: &str = "000000000000000000000000000000b1";

pub(crate) async fn only_our_own_are_reported_and_nothing_of_the_request(stage: &mut Stage) {
    // A damaged page, as far as a router can tell; and what clients do wrong.
    stage
        .sql
        .batch_execute(
            "create function damaged(word text) returns text language plpgsql stable as $$ begin
               raise exception 'a row of secrets: %', word
                 using errcode = 'XX001', detail = 'secret detail', hint = 'secret hint';
             end $$;
             create function misused(word text) returns text language plpgsql stable as $$ begin
               raise exception 'a misuse: %', word; end $$;",
        )
        .await
        .unwrap();
    stage
        .until(|| stage.get("rpc/misused?word=secret"), 400)
        .await;
    let damaged = || {
        let request = stage.get("rpc/damaged?word=secret");
        request
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .header("x-request-id", "damaged-1")
    };
    stage.until(damaged, 500).await;
    let (event, all) = stage.sentry.next().await;
    let exception = &event["exception"]["values"][0];
    assert_eq!(exception["type"], "XX001");
    assert_eq!(event["transaction"], "GET rpc");
    assert_eq!(event["server_name"], "router-1");
    assert_eq!(event["tags"]["shard"], "s1");
    assert_eq!(event["tags"]["request_id"], "damaged-1");
    assert_eq!(event["contexts"]["trace"]["trace_id"], TRACE);
    let key = stage.cluster.key("acme").unwrap();
    for hidden in ["secret", "word", &key] {
        assert!(!all.contains(hidden), "{hidden} in {all}");
    }
    // Neither what clients do wrong nor what was answered is there.
    stage.until(|| stage.get("nothing"), 404).await;
    stage.until(|| stage.get("companies?limit=1"), 200).await;
    // Reports keep their order, so what comes next says what did not come.
    let again = || {
        stage
            .get("rpc/damaged?word=secret")
            .header("x-request-id", "damaged-2")
    };
    stage.until(again, 500).await;
    let (event, _) = stage.sentry.next().await;
    assert_eq!(event["tags"]["request_id"], "damaged-2");
}
