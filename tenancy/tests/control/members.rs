//! Who is here, as all others hear of it.

use std::sync::Arc;
use std::time::Duration;

use tenancy::members::{Kind, Me, Member, Members, follow};
use tenancy::tls::Tls;
use tenancy::watch::{Placements, Source};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Server, connect};

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn worker(name: &str) -> Me {
    let mut me = Me::new(Kind::Worker, name, None, format!("http://{name}:7600"));
    me.member.stream_url = Some(format!("http://{name}:7700"));
    me
}

fn router(name: &str) -> Me {
    let region = Some("local".to_owned());
    Me::new(Kind::Router, name, region, format!("http://{name}:7500"))
}

/// Writes heartbeats as long as the guard lives.
fn join(dsn: &str, me: Me) -> (watch::Receiver<Arc<Members>>, DropGuard) {
    let members = watch::Sender::default();
    let seen = members.subscribe();
    let stop = CancellationToken::new();
    let config = dsn.parse().unwrap();
    let tls = Tls::disabled().unwrap();
    tokio::spawn(follow(config, tls, me, members, stop.clone()));
    (seen, stop.drop_guard())
}

/// Waits until the names of routers and workers are these.
async fn become_known(
    seen: &mut watch::Receiver<Arc<Members>>,
    routers: &[&str],
    workers: &[&str],
) {
    let names = |list: &[Member]| -> Vec<String> { list.iter().map(|m| m.name.clone()).collect() };
    let now = seen.wait_for(|now| names(&now.routers) == routers && names(&now.workers) == workers);
    let reached = timeout(PATIENCE, now).await.map(|now| now.map(drop));
    let now = seen.borrow().clone();
    reached.unwrap_or_else(|_| panic!("{now:?}")).unwrap();
}

#[tokio::test]
async fn members_come_and_go_without_a_new_version() {
    let server = Server::start().await;
    let dsn = server.database("control").await;
    let mut owner = connect(&dsn).await;
    schema::control::upgrade(&mut owner, Some("secret"))
        .await
        .unwrap();
    let router_dsn = server.dsn_as("ringfence_router", "secret", "control");

    let (mut seen, _one) = join(&router_dsn, router("r1"));
    become_known(&mut seen, &["r1"], &[]).await;
    let (second, two) = join(&router_dsn, router("r2"));
    let (_, work) = join(&dsn, worker("w1"));
    become_known(&mut seen, &["r1", "r2"], &["w1"]).await;
    let known = seen.borrow().clone();
    assert_eq!(known.sharers(), 2);
    let worker = &known.workers[0];
    assert_eq!(worker.stream_url.as_deref(), Some("http://w1:7700"));
    assert_eq!(known.routers[0].region.as_deref(), Some("local"));
    drop(second);

    // Others that were killed: their rows stay a while, and then go.
    owner
        .batch_execute(
            "insert into ringfence.member (instance, kind, name, admin_url, version, seen_at) values
               (gen_random_uuid(), 'router', 'lost', 'http://x', '1', now() - interval '9 seconds'),
               (gen_random_uuid(), 'router', 'long-lost', 'http://x', '1', now() - interval '11 minutes')",
        )
        .await
        .unwrap();
    drop(two);
    become_known(&mut seen, &["r1"], &["w1"]).await;
    drop(work);
    become_known(&mut seen, &["r1"], &[]).await;

    let sql = "select version, (select string_agg(name, ' ' order by name) from ringfence.member)
               from ringfence.version";
    let row = owner.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1, "heartbeats take no version");
    assert_eq!(row.get::<_, &str>(1), "lost r1");
}

/// A router that is started while the control database is down knows the
/// workers from its file; they stay known when the database is back without
/// any heartbeat, as after a crash.
#[tokio::test]
async fn members_outlive_the_control_database() {
    let mut server = Server::start().await;
    let dsn = server.control("control").await;
    let folder = std::env::temp_dir().join(format!("ringfence-test-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("snapshot");
    let source = |me| Source {
        dsn: dsn.clone(),
        tls: Tls::disabled().unwrap(),
        file: Some(file.clone()),
        me: Some(me),
    };
    let (_, _work) = join(&dsn, worker("w1"));
    let stop = CancellationToken::new();
    let first = Placements::start(source(router("r1")), stop.clone())
        .await
        .unwrap();
    become_known(&mut first.members(), &["r1"], &["w1"]).await;
    let written = async {
        let holds = |text: String| text.contains("http://w1:7700");
        while !std::fs::read_to_string(&file).is_ok_and(holds) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, written).await.unwrap();

    server.kill();
    stop.cancel();
    let stop = CancellationToken::new();
    let second = Placements::start(source(router("r2")), stop.clone())
        .await
        .unwrap();
    let mut seen = second.members();
    become_known(&mut seen, &["r1", "r2"], &["w1"]).await;

    server.resume().await;
    become_known(&mut seen, &["r2"], &["w1"]).await;
    stop.cancel();
    std::fs::remove_dir_all(&folder).unwrap();
}
