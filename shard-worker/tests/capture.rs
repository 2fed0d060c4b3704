//! Change capture on a real shard, with a client of the routers' stream.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic as tests do"
)]

#[path = "capture/client.rs"]
mod client;

use std::time::{Duration, Instant};

use ops::local::{Cluster, Content, Options};
use tenancy::changes::{Cell, CellSet, FromRouter, FromWorker, HOLDING, TableHash};
use tenancy::id::TenantId;
use uuid::Uuid;

use self::client::{Router, Shard, eventually};

const T: TableHash = TableHash::of("public", "t");

async fn cluster(replicas: u16, workers: u16) -> Cluster {
    Cluster::start(Options {
        shards: Some(1),
        replicas: Some(replicas),
        routers: Some(0),
        workers: Some(workers),
        content: Content::Services,
        ..Options::default()
    })
    .await
    .unwrap()
}

/// Tenants that a test writes for: each a cell of its own.
fn tenant(n: u128) -> TenantId {
    TenantId(Uuid::from_u128(n))
}

#[tokio::test]
async fn writes_arrive_in_order_exactly_once_whatever_is_killed() {
    let cluster = cluster(1, 1).await;
    let mut shard = Shard::connect(&cluster, "s1-primary").await;
    shard.make_table().await;
    let mut router = Router::open(&cluster, 0).await;
    router.follow().await;
    let first = router.generation();

    for n in 0..50 {
        shard.insert(tenant(n)).await;
    }
    router.catch_up(shard.position().await).await;
    for n in 0..50 {
        assert_eq!(router.times_raised(Cell::rows(tenant(n), T)), 1, "{n}");
    }
    // What rolls back is not told, one commit of many rows is told once.
    shard
        .run("begin; insert into t (tenant_id) values (gen_random_uuid()); rollback")
        .await;
    let told = router.changes();
    shard
        .run(
            "insert into t (tenant_id) select ('00000000-0000-0000-0000-0000000001' || lpad(to_hex(n), 2, '0'))::uuid
             from generate_series(0, 99) n, generate_series(1, 5)",
        )
        .await;
    router.catch_up(shard.position().await).await;
    assert_eq!(router.changes(), told + 1);
    for n in 0..100 {
        assert_eq!(
            router.times_raised(Cell::rows(tenant(256 + n), T)),
            1,
            "{n}"
        );
    }

    // A worker that comes back sends what was written meanwhile: the router
    // goes on where it was.
    cluster.kill("worker-1").await.unwrap();
    for n in 1_000..1_020 {
        shard.insert(tenant(n)).await;
    }
    cluster.start_node("worker-1").await.unwrap();
    router.reopen(&cluster, 0).await;
    router.follow().await;
    assert!(router.resumed, "the slot goes back further than the router");
    router.catch_up(shard.position().await).await;
    for n in (0..50).chain(1_000..1_020) {
        assert_eq!(router.times_raised(Cell::rows(tenant(n), T)), 1, "{n}");
    }

    // So it is with a primary that was killed: the slot is on its disk.
    shard.insert(tenant(2_000)).await;
    cluster.kill("s1-primary").await.unwrap();
    cluster.start_node("s1-primary").await.unwrap();
    shard = Shard::connect(&cluster, "s1-primary").await;
    shard.insert(tenant(2_001)).await;
    router.follow_again().await;
    router.catch_up(shard.position().await).await;
    assert_eq!(router.generation(), first);
    for n in 2_000..2_002 {
        assert_eq!(router.times_raised(Cell::rows(tenant(n), T)), 1, "{n}");
    }

    // A promotion is another generation: routers begin anew.
    cluster.kill("s1-primary").await.unwrap();
    cluster.promote("s1-replica1").await.unwrap();
    shard = Shard::connect(&cluster, "s1-replica1").await;
    router.follow_again().await;
    let second = router.generation();
    assert!(
        first.is_older_than(&second) && second.timeline == 2,
        "{second}"
    );
    assert!(!router.resumed);
    shard.insert(tenant(3_000)).await;
    router.catch_up(shard.position().await).await;
    assert_eq!(router.times_raised(Cell::rows(tenant(3_000), T)), 1);
    a_replaced_primary_gets_no_fence(&cluster).await;
    cluster.down().await;
}

/// It returns, takes itself for the primary, and its name comes first.
async fn a_replaced_primary_gets_no_fence(cluster: &Cluster) {
    cluster.start_node("s1-primary").await.unwrap();
    let control = Shard::open(&cluster.control_dsn()).await;
    let seen = "select role = 'primary' and timeline = 2 from ringfence.node
        where name = 's1-replica1'";
    eventually(async || control.value::<Option<bool>>(seen).await == Some(true)).await;
    let url = format!("{}/admin/v1/tenants", cluster.admin_url());
    let request = reqwest::Client::new().post(url);
    let request = request.bearer_auth(cluster.admin_token());
    let request = request.json(&serde_json::json!({ "slug": "acme" }));
    assert_eq!(request.send().await.unwrap().status(), 201);
    for (node, fences) in [("s1-primary", 0), ("s1-replica1", 1)] {
        let shard = Shard::connect(cluster, node).await;
        assert!(!shard.value::<bool>("select pg_is_in_recovery()").await);
        let found = shard.value::<i64>("select count(*) from ringfence.fence");
        assert_eq!(found.await, fences, "{node}");
    }
}

#[tokio::test]
async fn a_commit_is_told_when_it_is_visible_and_not_before() {
    let cluster = cluster(0, 1).await;
    let shard = Shard::connect(&cluster, "s1-primary").await;
    shard.make_table().await;
    let mut router = Router::open(&cluster, 0).await;
    router.follow().await;
    router.catch_up(shard.position().await).await;

    // In the log, and waiting for a standby that does not exist.
    shard
        .run("alter system set synchronous_standby_names = 'nobody'")
        .await;
    shard.run("select pg_reload_conf()").await;
    let writer = Shard::connect(&cluster, "s1-primary").await;
    eventually(async || writer.show("synchronous_standby_names").await == "nobody").await;
    let before = shard.position().await;
    let waiting = tokio::spawn(async move { writer.insert(tenant(1)).await });
    eventually(async || {
        let waits = "select exists (select from pg_stat_activity where wait_event = 'SyncRep')";
        shard.value::<bool>(waits).await
    })
    .await;
    assert!(shard.position().await > before);
    assert_eq!(shard.value::<i64>("select count(*) from t").await, 0);

    // Neither it, nor what came behind it, nor a lease.
    router.ping(1).await;
    assert_eq!(router.quiet_for(Duration::from_millis(500)).await, None);
    assert_eq!(router.times_raised(Cell::rows(tenant(1), T)), 0);

    shard
        .run("alter system reset synchronous_standby_names")
        .await;
    shard.run("select pg_reload_conf()").await;
    let lease = router.lease(1).await;
    waiting.await.unwrap();
    assert!(router.watermark() >= lease);
    assert_eq!(router.times_raised(Cell::rows(tenant(1), T)), 1);
    assert_eq!(shard.value::<i64>("select count(*) from t").await, 1);
    cluster.down().await;
}

#[tokio::test]
async fn a_lost_slot_is_another_generation() {
    let cluster = cluster(0, 1).await;
    let shard = Shard::connect(&cluster, "s1-primary").await;
    shard.make_table().await;
    let mut router = Router::open(&cluster, 0).await;
    router.follow().await;
    let first = router.generation();

    // The log outgrows what a slot may hold back, while nobody reads it.
    cluster.kill("worker-1").await.unwrap();
    shard
        .run("alter system set max_slot_wal_keep_size = '1MB'")
        .await;
    shard.run("alter system set wal_keep_size = 0").await;
    shard.run("select pg_reload_conf()").await;
    eventually(async || {
        shard.run("select pg_logical_emit_message(false, 'test', repeat('x', 1000000)) from generate_series(1, 17)").await;
        shard.run("select pg_switch_wal()").await;
        shard.run("checkpoint").await;
        shard.value::<bool>("select wal_status = 'lost' from pg_replication_slots where slot_name = 'ringfence_capture'").await
    })
    .await;
    shard.insert(tenant(1)).await;

    // A transaction that is open keeps the new slot waiting, and is not missed.
    let open = Shard::connect(&cluster, "s1-primary").await;
    open.run("begin").await;
    open.insert(tenant(2)).await;
    cluster.start_node("worker-1").await.unwrap();
    router.reopen(&cluster, 0).await;
    assert_eq!(router.quiet_for(Duration::from_millis(700)).await, None);
    open.run("commit").await;
    router.follow().await;
    let second = router.generation();
    assert!(first.is_older_than(&second) && second.timeline == first.timeline);
    assert!(!router.resumed);
    shard.insert(tenant(3)).await;
    router.catch_up(shard.position().await).await;
    assert_eq!(router.times_raised(Cell::rows(tenant(3), T)), 1);
    cluster.down().await;
}

#[tokio::test]
async fn a_standby_takes_over_in_less_than_two_seconds() {
    let cluster = cluster(0, 2).await;
    let shard = Shard::connect(&cluster, "s1-primary").await;
    shard.make_table().await;
    let mut routers = [
        Router::open(&cluster, 0).await,
        Router::open(&cluster, 1).await,
    ];
    let mut holder = client::whoever_captures(&mut routers).await;
    let mut written = 0;
    // Either way twice, and once of them the machine does not stand still meanwhile.
    let mut quickest = [Duration::MAX; 2];
    for end in ["kill", "freeze", "freeze", "kill"] {
        let node = format!("worker-{}", holder + 1);
        let other = 1 - holder;
        routers[holder].catch_up(shard.position().await).await;
        let (generation, watermark) = (routers[holder].generation(), routers[holder].watermark());
        let before = Instant::now();
        match end {
            "kill" => cluster.kill(&node).await.unwrap(),
            _ => cluster.stop(&node).unwrap(),
        }
        written += 1;
        shard.insert(tenant(written)).await;
        routers[other].take_over(generation, watermark).await;
        let took = before.elapsed();
        println!("taken over after {end}: {took:?}");
        let best = &mut quickest[usize::from(end == "freeze")];
        *best = took.min(*best);
        assert_eq!(routers[other].generation(), generation, "the same slot");
        assert!(routers[other].resumed);
        routers[other].catch_up(shard.position().await).await;
        assert_eq!(
            routers[other].times_raised(Cell::rows(tenant(written), T)),
            1
        );

        // Thawed, the old holder answers no ping and no barrier: it sees that
        // the slot is gone.
        match end {
            "kill" => {
                // Its start changes nothing on the shard, so it costs no cache.
                cluster.start_node(&node).await.unwrap();
                routers[holder].reopen(&cluster, holder).await;
            }
            _ => {
                // Written after the slot changed hands: the old holder can't
                // have seen it.
                shard.insert(tenant(1_000 + written)).await;
                routers[holder].ping(77).await;
                routers[holder].barrier(78, shard.position().await).await;
                cluster.cont(&node).unwrap();
                routers[holder].wait_until_gone(77, 78).await;
            }
        }
        holder = other;
    }
    let max = Duration::from_secs(2);
    assert!(quickest.iter().all(|took| *took < max), "{quickest:?}");
    cluster.down().await;
}

#[tokio::test]
async fn leases_and_barriers_wait_for_what_they_promise() {
    let cluster = cluster(0, 1).await;
    let shard = Shard::connect(&cluster, "s1-primary").await;
    shard.make_table().await;
    let mut a = Router::open(&cluster, 0).await;
    let mut b = Router::open(&cluster, 0).await;
    a.follow().await;
    b.follow().await;
    tokio::time::sleep(HOLDING).await;

    // A lease's position is behind all that was visible when the ping came.
    shard.insert(tenant(1)).await;
    let visible = shard.position().await;
    b.ping(5).await;
    let lease = b.lease(5).await;
    assert!(lease >= visible, "{lease} < {visible}");

    // b holds one, and keeps silent about what it has applied: a's barrier is
    // done when b's time is over, and not sooner.
    b.silent = true;
    shard.insert(tenant(2)).await;
    let held = Instant::now();
    b.ping(6).await;
    b.lease(6).await;
    shard.insert(tenant(3)).await;
    let lsn = shard.position().await;
    a.barrier(1, lsn).await;
    a.barrier_done(1, lsn).await;
    assert!(held.elapsed() >= HOLDING, "{:?}", held.elapsed());

    // When it says so, the barrier is done at once.
    b.silent = false;
    let mut quickest = Duration::MAX;
    for n in 10..30 {
        b.ping(n).await;
        b.lease(n).await;
        shard.insert(tenant(n.into())).await;
        let (lsn, before) = (shard.position().await, Instant::now());
        a.barrier(n, lsn).await;
        b.catch_up(lsn).await;
        a.barrier_done(n, lsn).await;
        a.catch_up(lsn).await;
        quickest = quickest.min(before.elapsed());
    }
    println!("quickest barrier: {quickest:?}");
    assert!(quickest < HOLDING / 2, "{quickest:?}");

    // Another server's or timeline's writes are not vouched for.
    let (system, timeline) = (a.generation().system, a.generation().timeline);
    for (id, system, timeline) in [(100, system + 1, timeline), (101, system, timeline + 1)] {
        let shard = "s1".into();
        let lsn = shard_position(&cluster).await;
        a.send(FromRouter::Barrier {
            shard,
            id,
            system,
            timeline,
            lsn,
        })
        .await;
    }
    assert_eq!(a.quiet_for(Duration::from_millis(400)).await, None);
    cluster.down().await;
}

async fn shard_position(cluster: &Cluster) -> tenancy::changes::Lsn {
    Shard::connect(cluster, "s1-primary").await.position().await
}

#[tokio::test]
async fn whatever_changes_answers_raises_a_cell() {
    let cluster = cluster(0, 1).await;
    let shard = Shard::connect(&cluster, "s1-primary").await;
    shard.make_table().await;
    shard
        .run("create table r (code text primary key); select ringfence.reference('r')")
        .await;
    let mut router = Router::open(&cluster, 0).await;
    router.follow().await;
    router.catch_up(shard.position().await).await;
    let acme = tenant(1);
    shard.insert(acme).await;
    router.catch_up(shard.position().await).await;
    let fence = Cell::rows(acme, TableHash::of("ringfence", "fence"));
    let (rows, table) = (Cell::rows(acme, T), Cell::table(T));
    for (sql, cells) in [
        (
            format!("insert into ringfence.fence (tenant_id, epoch) values ('{acme}', 1)"),
            vec![fence],
        ),
        (
            format!("update ringfence.fence set state = 'fenced' where tenant_id = '{acme}'"),
            vec![fence],
        ),
        (
            format!("update t set note = 'b' where tenant_id = '{acme}'"),
            vec![rows],
        ),
        (
            format!("delete from t where tenant_id = '{acme}'"),
            vec![rows],
        ),
        (
            "insert into r values ('de')".into(),
            vec![Cell::table(TableHash::of("public", "r"))],
        ),
        (
            "alter table t disable trigger ringfence_refuse_truncate".into(),
            vec![],
        ),
        ("truncate t".into(), vec![table]),
    ] {
        let told = router.raised.len();
        shard.run(&sql).await;
        router.catch_up(shard.position().await).await;
        let raised: Vec<_> = router.raised[told..]
            .iter()
            .filter(|set| !set.is_empty())
            .collect();
        let expected = match cells.is_empty() {
            true => CellSet::All,
            false => CellSet::Some(cells),
        };
        assert_eq!(raised, [&expected], "{sql}");
    }
    // Others' publications change no answer.
    let told = router.raised.len();
    shard.run("create publication p").await;
    shard.run("alter publication p add table t").await;
    shard.run("drop publication p").await;
    router.catch_up(shard.position().await).await;
    assert!(router.raised[told..].iter().all(CellSet::is_empty));

    // A table without an identity is not published, and its UPDATEs work.
    shard
        .run(
            "create table k (id int primary key); select ringfence.distribute('k');
             insert into k (tenant_id, id) values ('00000000-0000-0000-0000-000000000001', 1);",
        )
        .await;
    let published = "select exists (select from pg_publication_tables where pubname = 'ringfence_capture' and tablename = 'k')";
    assert!(shard.value::<bool>(published).await);
    shard.run("alter table k drop constraint k_pkey").await;
    assert!(!shard.value::<bool>(published).await);
    shard.run("update k set id = 2").await;
    shard
        .run("alter table k add primary key (tenant_id, id)")
        .await;
    assert!(shard.value::<bool>(published).await);
    shard.run("alter table k alter column id type bigint").await;
    cluster.down().await;
}

#[tokio::test]
async fn strangers_are_turned_away_and_slow_routers_hold_up_nobody() {
    let cluster = cluster(0, 1).await;
    let shard = Shard::connect(&cluster, "s1-primary").await;
    shard.make_table().await;
    assert_eq!(client::status_of(&cluster, Some("guess")).await, 401);
    assert_eq!(client::status_of(&cluster, None).await, 401);
    let mut stranger = Router::open(&cluster, 0).await;
    stranger.send_raw(vec![1, 99, 99]).await;
    stranger.wait_until_closed().await;

    // One that does not read: the other gets all, and it gets the rest merged.
    let mut slow = Router::open(&cluster, 0).await;
    slow.follow().await;
    let mut quick = Router::open(&cluster, 0).await;
    quick.follow().await;
    shard
        .run(
            "do $$ begin for n in 1 .. 3000 loop
               insert into t (tenant_id) select gen_random_uuid() from generate_series(1, 20); commit;
             end loop; end $$",
        )
        .await;
    quick.catch_up(shard.position().await).await;
    slow.catch_up(shard.position().await).await;
    assert!(quick.changes() > 0 && slow.changes() > 0);

    let FromWorker::Gone { .. } = quick.ask_for("nowhere").await else {
        panic!("a shard that does not exist");
    };
    cluster.down().await;
}
