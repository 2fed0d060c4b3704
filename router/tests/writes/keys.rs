//! Idempotency-Key: a write that is sent again is answered, not done, again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use crate::service::{Reply, Service, reply};

const REPRESENTED: (&str, &str) = ("prefer", "return=representation");

fn key(key: &str) -> (&str, &str) {
    ("idempotency-key", key)
}

/// Everything but what differs between any two answers.
fn comparable(reply: &Reply) -> Reply {
    let mut reply = reply.clone();
    for name in [
        "date",
        "server-timing",
        "x-request-id",
        "idempotency-replayed",
        // It says how far the log was when that was answered.
        "ringfence-token",
    ] {
        reply.headers.remove(name);
    }
    reply
}

fn replayed(reply: &Reply) -> bool {
    reply.header("idempotency-replayed") == "true"
}

pub(crate) async fn first_answers_are_given_again(service: &Service) {
    let body = r#"{"name": "Once"}"#;
    let headers = [key("k-1"), REPRESENTED];
    let first = service
        .send("POST", "companies?select=id,name", &headers, body)
        .await;
    assert_eq!((first.status, replayed(&first)), (201, false), "{first:?}");
    for _ in 0..2 {
        let again = service
            .send("POST", "companies?select=id,name", &headers, body)
            .await;
        assert!(replayed(&again));
        assert_eq!(comparable(&again), comparable(&first));
    }
    assert_eq!(service.companies("Once").await, 1);
    let first_body = first.body;

    // Location, and what the database says, are part of the answer.
    let headers = [key("k-2"), ("prefer", "return=headers-only")];
    let first = service.send("POST", "companies", &headers, body).await;
    let again = service.send("POST", "companies", &headers, body).await;
    assert!(first.header("location").contains("/companies?id=eq."));
    assert_eq!(comparable(&again), comparable(&first));
    assert_eq!(service.companies("Once").await, 2);

    // Without a key, or as another tenant, it is another write.
    service.send("POST", "companies", &[], body).await;
    assert_eq!(service.companies("Once").await, 3);
    let theirs = service
        .http
        .post(format!("{}/rest/v1/companies", service.url));
    let theirs = theirs.header("apikey", service.cluster.key("globex").unwrap());
    let theirs = theirs
        .header("idempotency-key", "k-2")
        .body(r#"{"name": "Theirs"}"#);
    let theirs = reply(theirs).await;
    assert_eq!((theirs.status, replayed(&theirs)), (201, false));

    // Imported as another tenant, a tenant finds its answers there.
    let import = "insert into ringfence.idempotency
         select t.tenant_id, i.key, i.fingerprint, i.answer, i.body, i.expires_at, i.sampled
         from ringfence.idempotency i, companies t where i.key = 'k-1' and t.name = 'Theirs'";
    assert_eq!(service.sql.execute(import, &[]).await.unwrap(), 1);
    let imported = service
        .http
        .post(format!("{}/rest/v1/companies?select=id,name", service.url))
        .header("apikey", service.cluster.key("globex").unwrap())
        .header("idempotency-key", "k-1")
        .header(REPRESENTED.0, REPRESENTED.1)
        .body(body);
    let imported = reply(imported).await;
    assert!(replayed(&imported), "{imported:?}");
    assert_eq!(imported.body, first_body);
}

pub(crate) async fn another_request_is_refused(service: &Service) {
    let send = async |method, path, prefer, body| {
        let headers = [key("k-other"), ("prefer", prefer)];
        service.send(method, path, &headers, body).await
    };
    let first = send(
        "POST",
        "companies",
        "return=minimal",
        r#"{"name": "Other"}"#,
    )
    .await;
    assert_eq!(first.status, 201);
    for other in [
        send(
            "POST",
            "companies",
            "return=minimal",
            r#"{"name": "Another"}"#,
        )
        .await,
        send(
            "POST",
            "companies?columns=name",
            "return=minimal",
            r#"{"name": "Other"}"#,
        )
        .await,
        send(
            "POST",
            "companies",
            "return=representation",
            r#"{"name": "Other"}"#,
        )
        .await,
        send(
            "PATCH",
            "companies",
            "return=minimal",
            r#"{"name": "Other"}"#,
        )
        .await,
        send("DELETE", "companies?name=eq.Other", "return=minimal", "").await,
    ] {
        assert_eq!((other.status, &*other.code()), (422, "RF031"), "{other:?}");
    }
    assert_eq!(service.companies("Other").await, 1);

    // Nor does somebody else of the same tenant get the answer; a renewed token does.
    let tenant = service.sql.query_one(
        "select tenant_id::text from companies where name = 'Other'",
        &[],
    );
    let tenant: String = tenant.await.unwrap().get(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let send = async |subject: &str, end: u64| {
        let claims = json!({ "tenant_id": tenant, "role": "authenticated", "sub": subject, "exp": now + end });
        let secret = EncodingKey::from_secret(service.cluster.jwt_secret().as_bytes());
        let token = encode(&Header::default(), &claims, &secret).unwrap();
        let request = service
            .http
            .post(format!("{}/rest/v1/companies", service.url));
        let request = request
            .bearer_auth(token)
            .header("idempotency-key", "k-person");
        reply(request.body(r#"{"name": "Personal"}"#)).await
    };
    assert_eq!(send("ann", 100).await.status, 201);
    assert!(replayed(&send("ann", 200).await));
    assert_eq!(send("bob", 100).await.code(), "RF031");
}

pub(crate) async fn what_was_refused_can_be_sent_again(service: &Service) {
    let send = async |body| {
        service
            .send("POST", "companies", &[key("k-refused")], body)
            .await
    };
    let refused = send(r#"{"name": ""}"#).await;
    assert_eq!((refused.status, &*refused.code()), (400, "23514"));
    assert_eq!(send(r#"{"name": ""}"#).await.status, 400);
    let mended = send(r#"{"name": "Mended"}"#).await;
    assert_eq!((mended.status, replayed(&mended)), (201, false));
}

pub(crate) async fn no_keys_at_all_are_refused(service: &Service) {
    let long = "k".repeat(256);
    for bad in ["", &long] {
        let refused = service
            .send("POST", "companies", &[key(bad)], r#"{"name": "No key"}"#)
            .await;
        assert_eq!((refused.status, &*refused.code()), (400, "RF030"));
    }
    let twice = [key("a"), key("b")];
    let refused = service
        .send("DELETE", "companies?id=eq.0", &twice, "")
        .await;
    assert_eq!(refused.code(), "RF030");
    assert_eq!(service.companies("No key").await, 0);
    // What only reads takes no notice of one.
    let read = service
        .send("GET", "companies?limit=1", &[key(&long)], "")
        .await;
    assert_eq!(read.status, 200);
}

pub(crate) async fn every_kind_of_write_takes_one(service: &Service) {
    service
        .sql
        .batch_execute(
            "create table if not exists public.counters (id int primary key, n int not null);
             select ringfence.distribute('public.counters');
             create function public.count_up(which int) returns int language sql as
               $$ update public.counters set n = n + 1 where id = which returning n $$;
             create function public.count_rows(which int) returns setof public.counters language sql as
               $$ update public.counters set n = n + 1 where id = which returning * $$",
        )
        .await
        .unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while service.send("GET", "counters", &[], "").await.status != 200
        || service
            .send("POST", "rpc/count_up", &[], r#"{"which": 0}"#)
            .await
            .status
            == 404
        || service
            .send("POST", "rpc/count_rows", &[], r#"{"which": 0}"#)
            .await
            .status
            == 404
    {
        assert!(
            std::time::Instant::now() < deadline,
            "the new schema is not seen"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counted = ("prefer", "return=representation, count=exact");
    let merged = (
        "prefer",
        "resolution=merge-duplicates, return=representation",
    );
    let csv = ("content-type", "text/csv");
    for (number, (method, path, header, body, answer)) in [
        (
            "PUT",
            "counters?id=eq.1",
            REPRESENTED,
            r#"{"id": 1, "n": 5}"#,
            r#"[{"id":1,"n":5}]"#,
        ),
        (
            "POST",
            "counters",
            merged,
            r#"[{"id": 1, "n": 7}]"#,
            r#"[{"id":1,"n":7}]"#,
        ),
        ("POST", "counters", csv, "id,n\n2,2\n3,3", ""),
        (
            "PATCH",
            "counters?id=eq.1&select=name:n",
            REPRESENTED,
            r#"{"n": 8}"#,
            r#"[{"name":8}]"#,
        ),
        ("POST", "rpc/count_up", REPRESENTED, r#"{"which": 1}"#, "9"),
        (
            "POST",
            "rpc/count_rows",
            counted,
            r#"{"which": 1}"#,
            r#"[{"id":1,"n":10}]"#,
        ),
        (
            "POST",
            "rpc/count_rows?select=m:n",
            ("prefer", ""),
            r#"{"which": 1}"#,
            r#"[{"m":11}]"#,
        ),
        (
            "DELETE",
            "counters?id=eq.1",
            REPRESENTED,
            "",
            r#"[{"id":1,"n":11}]"#,
        ),
        (
            "DELETE",
            "counters?id=eq.2",
            ("prefer", "count=exact"),
            "",
            "",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("k-kind-{number}");
        let headers = [key(&name), header, ("accept", "application/json")];
        let first = service.send(method, path, &headers, body).await;
        assert!(first.status < 300, "{method} {path}: {first:?}");
        assert_eq!(first.body, answer, "{method} {path}");
        let again = service.send(method, path, &headers, body).await;
        assert!(
            replayed(&again) && !replayed(&first),
            "{method} {path}: {again:?}"
        );
        assert_eq!(comparable(&again), comparable(&first), "{method} {path}");
    }
}

pub(crate) async fn at_once_they_write_once(service: &Service) {
    slow_names(service, "Slow", "0.3").await;
    let headers = [key("k-at-once"), REPRESENTED];
    let send = || {
        service.send(
            "POST",
            "companies?select=id",
            &headers,
            r#"{"name": "Slow"}"#,
        )
    };
    let replies = futures_util::future::join_all((0..8).map(|_| send())).await;
    for one in &replies {
        assert_eq!(one.status, 201, "{one:?}");
        assert_eq!(one.body, replies[0].body);
    }
    assert_eq!(replies.iter().filter(|one| !replayed(one)).count(), 1);
    assert_eq!(service.companies("Slow").await, 1);
}

pub(crate) async fn large_answers_are_refused(service: &Service) {
    let headers = [key("k-large"), REPRESENTED];
    let refused = service
        .send("POST", "companies", &headers, r#"{"name": "Large"}"#)
        .await;
    assert_eq!(
        (refused.status, &*refused.code()),
        (422, "RF034"),
        "{refused:?}"
    );
    assert_eq!(service.companies("Large").await, 0);
    let small = service.send(
        "POST",
        "companies?select=name",
        &headers,
        r#"{"name": "Large"}"#,
    );
    assert_eq!(small.await.status, 201);
}

pub(crate) async fn a_dry_run_keeps_nothing(service: &Service) {
    let send = async |prefer| {
        let headers = [key("k-dry"), ("prefer", prefer)];
        service
            .send("POST", "companies", &headers, r#"{"name": "Dry"}"#)
            .await
    };
    assert_eq!(send("tx=rollback").await.status, 201);
    assert_eq!(service.companies("Dry").await, 0);
    let real = send("tx=commit").await;
    assert_eq!((real.status, replayed(&real)), (201, false));
    assert!(replayed(&send("tx=commit").await));
    assert_eq!(service.companies("Dry").await, 1);
}

pub(crate) async fn who_waits_too_long_is_told_to_come_back(service: &Service) {
    // The first is under way until the second has been answered.
    service
        .sql
        .batch_execute(
            "create or replace function held() returns trigger language plpgsql as
               $$ begin perform pg_advisory_xact_lock_shared(77); return new; end $$;
             create trigger held before insert on companies for each row
               when (new.name = 'Slower') execute function held();
             select pg_advisory_lock(77)",
        )
        .await
        .unwrap();
    let headers = [key("k-wait")];
    let send = || service.send("POST", "companies", &headers, r#"{"name": "Slower"}"#);
    let (first, second) = tokio::join!(send(), async {
        service
            .until("select count(*) > 0 from pg_locks where objid = 77 and not granted")
            .await;
        let second = send().await;
        let unlock = "select pg_advisory_unlock(77)";
        service.sql.batch_execute(unlock).await.unwrap();
        second
    });
    assert_eq!(first.status, 201);
    assert_eq!((second.status, &*second.code()), (409, "RF032"));
    assert_eq!(second.header("retry-after"), "1");
    assert!(replayed(&send().await));
    assert_eq!(service.companies("Slower").await, 1);
}

pub(crate) async fn a_tenant_has_a_share_of_keys(service: &Service) {
    service
        .sql
        .batch_execute(
            "insert into ringfence.idempotency
             select distinct tenant_id, 'sample', '\\x'::bytea, '{}'::jsonb, null, now() + interval '1 hour', true
             from companies where name = 'Dry'",
        )
        .await
        .unwrap();
    let send = |headers| service.send("POST", "companies", headers, r#"{"name": "Shared"}"#);
    let (share, none) = ([key("k-share")], []);
    let refused = send(&share[..]).await;
    assert_eq!((refused.status, &*refused.code()), (429, "RF033"));
    assert_eq!(send(&none[..]).await.status, 201);
    assert_eq!(service.companies("Shared").await, 1);
}

/// Inserting a company of that name takes so many seconds.
async fn slow_names(service: &Service, name: &str, seconds: &str) {
    let trigger = format!(
        "create or replace function slow() returns trigger language plpgsql as
           $$ begin perform pg_sleep({seconds}); return new; end $$;
         create or replace trigger slow before insert on companies for each row
           when (new.name = '{name}') execute function slow()"
    );
    service.sql.batch_execute(&trigger).await.unwrap();
}
