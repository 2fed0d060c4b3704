//! Entity tags: copies that need not be sent again, and writes to a row that
//! nobody changed meanwhile.

use std::sync::Arc;

use crate::service::{Reply, Service};

async fn get(service: &Service, path: &str, headers: &[(&str, &str)]) -> Reply {
    service.send("GET", path, headers, "").await
}

async fn tag(service: &Service, path: &str) -> String {
    let reply = get(service, path, &[]).await;
    assert!(reply.headers.contains_key("etag"), "{path}: {reply:?}");
    reply.header("etag").to_owned()
}

pub(crate) async fn copies_that_hold_are_not_sent_again(service: &Service) {
    for path in [
        "companies?order=id&limit=3",
        "companies?select=name,contacts(email)&order=id&limit=2",
        "companies?id=eq.1",
        "companies?select=id.count()",
        "companies?id=eq.0",
        "",
    ] {
        let first = get(service, path, &[]).await;
        if path.contains("count()") {
            // Aggregates are off here: errors have no tag.
            assert_eq!((first.status, first.header("etag")), (400, ""));
            continue;
        }
        let etag = first.header("etag");
        assert!(
            etag.len() > 40 && !etag.starts_with("W/"),
            "{path}: {first:?}"
        );
        assert_eq!(first.header("cache-control"), "private, no-cache");
        let same = get(service, path, &[("if-none-match", etag)]).await;
        assert_eq!((same.status, &*same.body), (304, ""), "{path}");
        assert_eq!(same.header("etag"), etag);
        let varies = |reply: &Reply| {
            let values = reply.headers.get_all("vary").iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let told = varies(&same);
        assert!(
            varies(&first).iter().all(|value| told.contains(value)),
            "{same:?}"
        );
        assert_eq!(
            same.header("content-location"),
            first.header("content-location")
        );
        assert_eq!(same.header("content-type"), "");
        let listed = format!("\"other\", W/{etag}");
        assert_eq!(
            get(service, path, &[("if-none-match", &listed)])
                .await
                .status,
            304
        );
        let other = get(service, path, &[("if-none-match", "\"other\"")]).await;
        assert_eq!((other.status, &other.body), (200, &first.body));
    }
}

pub(crate) async fn what_is_read_otherwise_has_another_tag(service: &Service) {
    let base = tag(service, "companies?id=eq.1").await;
    let object = ("accept", "application/vnd.pgrst.object+json");
    let csv = ("accept", "text/csv");
    let counted = ("prefer", "count=exact");
    let mut tags = vec![base.clone()];
    for (path, header) in [
        ("companies?id=eq.1", object),
        ("companies?id=eq.1", csv),
        ("companies?id=eq.1", counted),
        ("companies?id=eq.1&select=id,name", ("accept", "*/*")),
        ("companies?id=eq.1&select=name,id", ("accept", "*/*")),
        ("companies?id=eq.1&select=id,who:name", ("accept", "*/*")),
        ("companies?id=eq.2", ("accept", "*/*")),
    ] {
        let reply = get(service, path, &[header]).await;
        tags.push(reply.header("etag").to_owned());
        // Never answered by another one's tag.
        let asked = [header, ("if-none-match", &base)];
        assert_eq!(
            get(service, path, &asked).await.status,
            200,
            "{path} {header:?}"
        );
    }
    let mut distinct = tags.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), tags.len(), "{tags:?}");
    // The row is the same one, however it is wrapped.
    assert_eq!(tags[1], format!("{}-object\"", base.trim_end_matches('"')));

    // HEAD reads no body, so it knows no tag.
    let head = service
        .send("HEAD", "companies?id=eq.1", &[("if-none-match", "*")], "")
        .await;
    assert_eq!((head.status, head.header("etag")), (200, ""));
    // A page that is the same while the whole grew is not the same answer.
    let counted = [("prefer", "count=exact"), ("range", "0-0")];
    let before = get(service, "companies?order=id", &counted).await;
    service
        .send("POST", "companies", &[], r#"{"name": "One more"}"#)
        .await;
    let headers = [
        counted[0],
        counted[1],
        ("if-none-match", before.header("etag")),
    ];
    let after = get(service, "companies?order=id", &headers).await;
    assert_eq!((before.status, after.status), (206, 206));
    assert_eq!(before.body, after.body);
}

pub(crate) async fn compressed_bytes_have_a_tag_of_their_own(service: &Service) {
    let path = "companies?order=id&limit=20";
    let plain = tag(service, path).await;
    for coding in ["gzip", "br", "zstd"] {
        let asks = ("accept-encoding", coding);
        let coded = get(service, path, &[asks]).await;
        assert_eq!(coded.header("content-encoding"), coding);
        let tag = coded.header("etag");
        assert_eq!(tag, format!("{}-{coding}\"", plain.trim_end_matches('"')));
        let varies: Vec<_> = coded.headers.get_all("vary").iter().collect();
        assert!(
            varies.iter().any(|vary| *vary == "accept-encoding"),
            "{varies:?}"
        );
        let same = get(service, path, &[asks, ("if-none-match", tag)]).await;
        assert_eq!((same.status, same.header("etag")), (304, tag));
        assert_eq!(same.header("content-encoding"), "");
        assert_eq!(same.body, "");
    }
    // A row's tag holds for writes, whichever coding it was read in.
    service
        .send(
            "POST",
            "companies",
            &[],
            &format!(
                r#"{{"name": "Coded", "description": "{}"}}"#,
                "x".repeat(2_000)
            ),
        )
        .await;
    let coded = get(
        service,
        "companies?name=eq.Coded",
        &[("accept-encoding", "br")],
    )
    .await;
    assert!(coded.header("etag").ends_with("-br\""));
    let id = service
        .sql
        .query_one("select id from companies where name = 'Coded'", &[])
        .await;
    let row = format!("companies?id=eq.{}", id.unwrap().get::<_, i64>(0));
    let matched = [("if-match", coded.header("etag"))];
    assert_eq!(
        service
            .send("PATCH", &row, &matched, r#"{"industry": "Coding"}"#)
            .await
            .status,
        204
    );
}

pub(crate) async fn a_row_that_changed_is_not_written(service: &Service) {
    service
        .send(
            "POST",
            "companies",
            &[],
            r#"{"id": 9001, "name": "Tagged"}"#,
        )
        .await;
    let row = "companies?id=eq.9001";
    let send = async |method: &str, path: &str, tag: &str, body: &str| {
        service.send(method, path, &[("if-match", tag)], body).await
    };
    let old = tag(service, row).await;
    let changed = send("PATCH", row, &old, r#"{"industry": "One"}"#).await;
    assert_eq!(changed.status, 204);
    let refused = send("PATCH", row, &old, r#"{"industry": "Two"}"#).await;
    assert_eq!((refused.status, &*refused.code()), (412, "RF040"));
    assert_eq!(send("DELETE", row, &old, "").await.status, 412);
    let new = tag(service, row).await;
    assert_ne!(new, old);
    // Weakened by some proxy it compares no more; in a list it does.
    assert_eq!(
        send("PATCH", row, &format!("W/{new}"), r#"{"industry": "Two"}"#)
            .await
            .status,
        412
    );
    let several = format!("{old}, {new}");
    assert_eq!(
        send("PATCH", row, &several, r#"{"industry": "Two"}"#)
            .await
            .status,
        204
    );

    // The tag of a part says nothing of the rest: nor does another select's.
    let part = format!("{row}&select=id,who:name");
    let part_tag = tag(service, &part).await;
    assert_eq!(
        send("PATCH", row, &part_tag, r#"{"industry": "No"}"#)
            .await
            .status,
        412
    );
    assert_eq!(
        send("PATCH", &part, &part_tag, r#"{"industry": "Three"}"#)
            .await
            .status,
        204
    );
    assert_eq!(
        send("PATCH", &part, &part_tag, r#"{"name": "Renamed"}"#)
            .await
            .status,
        204
    );
    assert_eq!(
        send("PATCH", &part, &part_tag, r#"{"name": "Again"}"#)
            .await
            .status,
        412
    );

    // What a write returns can be written again at once.
    let represented = [("prefer", "return=representation"), ("if-match", "*")];
    let mut reply = service
        .send("PATCH", row, &represented, r#"{"employees": 1}"#)
        .await;
    assert_eq!(reply.header("etag"), tag(service, row).await);
    for employees in 2..5 {
        let headers = [represented[0], ("if-match", reply.header("etag"))];
        let body = format!(r#"{{"employees": {employees}}}"#);
        reply = service.send("PATCH", row, &headers, &body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    // A row of its own object is the same row.
    let object = ("accept", "application/vnd.pgrst.object+json");
    let single = get(service, row, &[object]).await;
    assert_eq!(
        send("DELETE", row, single.header("etag"), "").await.status,
        204
    );
    assert_eq!(
        send("DELETE", row, single.header("etag"), "").await.status,
        412
    );
    assert_eq!(
        send("PATCH", row, "*", r#"{"name": "Gone"}"#).await.status,
        412
    );
}

pub(crate) async fn preconditions_that_cannot_be_kept_are_refused(service: &Service) {
    let tag = tag(service, "companies?id=eq.1").await;
    let send = async |method: &str, path: &str, tag: &str| {
        let reply = service
            .send(method, path, &[("if-match", tag)], r#"{"name": "Never"}"#)
            .await;
        (reply.status, reply.code())
    };
    let refused = (400, "RF041".to_owned());
    assert_eq!(send("POST", "companies", &tag).await, refused);
    let put = [("if-match", tag.as_str())];
    let put = service
        .send(
            "PUT",
            "companies?id=eq.1",
            &put,
            r#"{"id": 1, "name": "Never"}"#,
        )
        .await;
    assert_eq!((put.status, put.code()), refused);
    assert_eq!(send("PATCH", "companies", &tag).await, refused);
    assert_eq!(send("PATCH", "companies?name=eq.x", &tag).await, refused);
    assert_eq!(send("PATCH", "companies?id=in.(1)", &tag).await, refused);
    assert_eq!(send("PATCH", "companies?id=not.eq.1", &tag).await, refused);
    assert_eq!(send("PATCH", "companies?id=eq.1", "tag").await, refused);
    let embeds = "companies?id=eq.1&select=id,contacts(id)";
    assert_eq!(send("PATCH", embeds, &tag).await, refused);
    assert_eq!(service.companies("Never").await, 0);
}

/// Everybody reads, adds one, and writes under the tag: no addition is lost.
pub(crate) async fn no_update_is_lost(service: &Arc<Service>) {
    const CLIENTS: usize = 6;
    const ROUNDS: usize = 10;
    let row = "companies?id=eq.9002&select=employees";
    service
        .send(
            "POST",
            "companies",
            &[],
            r#"{"id": 9002, "name": "Sum", "employees": 0}"#,
        )
        .await;
    let client = |service: Arc<Service>| async move {
        let mut conflicts = 0;
        for _ in 0..ROUNDS {
            loop {
                let read = get(&service, row, &[]).await;
                let sum = read.json()[0]["employees"].as_i64().unwrap() + 1;
                let matched = [("if-match", read.header("etag"))];
                let body = format!(r#"{{"employees": {sum}}}"#);
                match service.send("PATCH", row, &matched, &body).await.status {
                    204 => break,
                    412 => conflicts += 1,
                    other => panic!("{other}"),
                }
            }
        }
        conflicts
    };
    let clients = (0..CLIENTS).map(|_| tokio::spawn(client(service.clone())));
    let conflicts: Vec<usize> = futures_util::future::join_all(clients)
        .await
        .into_iter()
        .map(|done| done.unwrap())
        .collect();
    let sum = get(service, row, &[]).await.json()[0]["employees"].clone();
    assert_eq!(sum, CLIENTS * ROUNDS);
    assert!(
        conflicts.iter().sum::<usize>() > 0,
        "nobody was in anybody's way"
    );
}
