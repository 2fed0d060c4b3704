//! Connections to a real node: what must never be handed to the next tenant,
//! what must be noticed, and what is bounded.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ops::local::{Cluster, Content, Options};
use router::execute::{self, Access, Answer, ExecuteError, Guard};
use router::gate::{Claim, Refused, Waiting};
use router::pool::{Identity, Leased, NodeAddress, PoolError, PoolSettings, Pools};
use router::token::Generation;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(10);
/// Waited out by a test: a full node stays full.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const STATEMENTS_MAX: usize = 8;

struct Node {
    cluster: Cluster,
    admin: Client,
    address: NodeAddress,
    identity: Identity,
}

impl Node {
    async fn open() -> Self {
        let cluster = Cluster::start(Options {
            shards: Some(1),
            replicas: Some(0),
            routers: Some(0),
            content: Content::Servers,
            ..Options::default()
        });
        let cluster = cluster.await.unwrap();
        let dsn = cluster.shard_dsn("s1-primary").unwrap();
        let (mut admin, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        let passwords = schema::shard::RolePasswords {
            router: Some("router".into()),
            ..Default::default()
        };
        schema::shard::install(&mut admin, &passwords)
            .await
            .unwrap();
        let asked = admin.query_one("select system_id, timeline from ringfence.node()", &[]);
        let said = asked.await.unwrap();
        let parsed: tokio_postgres::Config = dsn.parse().unwrap();
        Self {
            identity: Identity {
                generation: Generation {
                    system: said.get::<_, &str>(0).parse().unwrap(),
                    timeline: said.get::<_, i32>(1).cast_unsigned(),
                },
                primary: true,
            },
            address: NodeAddress {
                host: "127.0.0.1".into(),
                port: parsed.get_ports()[0],
            },
            admin,
            cluster,
        }
    }

    fn pools(&self, size_max: usize, idle_max: Duration) -> Pools {
        Pools::new(PoolSettings {
            search_path: "public".into(),
            settings: vec![("app.settings.region".into(), "far north".into())],
            application: "test".into(),
            tls: tenancy::tls::Tls::disabled().unwrap(),
            user: "ringfence_router".into(),
            password: Some("router".into()),
            database: "app".into(),
            size_max,
            node_max: size_max,
            waiting: Waiting {
                max: 10,
                tenant_max: 10,
                tenant_share: 20,
                standing: Duration::from_millis(100),
            },
            wait_max: WAIT,
            connect_max: CONNECT_MAX,
            idle_max,
            statements_max: NonZeroUsize::new(STATEMENTS_MAX).unwrap(),
        })
    }

    async fn lease(&self, pools: &Pools) -> Leased {
        let leased = pools.get(&self.address, claim("authenticated"), self.identity, WAIT);
        leased.await.unwrap()
    }

    /// The same for another tenant: none gets the last connection of several.
    async fn lease_other(&self, pools: &Pools) -> Leased {
        let other = Claim {
            tenant: Uuid::from_u128(2),
            ..claim("authenticated")
        };
        let leased = pools.get(&self.address, other, self.identity, WAIT);
        leased.await.unwrap()
    }

    /// A tenant that the shard serves, and what its requests use.
    async fn serve_a_tenant(&self) {
        let tenant = TENANT;
        let setup = format!(
            "insert into ringfence.fence (tenant_id, epoch) values ('{tenant}', 1);
             create table public.things (v int);
             grant all on public.things to authenticated, anon;
             create function public.meddle() returns int language plpgsql stable as $$
             begin
               perform set_config('role', 'service_role', false);
               perform set_config('search_path', 'pg_temp', false);
               perform set_config('app.left_behind', 'yes', false);
               perform pg_advisory_lock(42);
               return 1;
             end $$;"
        );
        self.admin.batch_execute(&setup).await.unwrap();
    }

    async fn transact(
        &self,
        pools: &Pools,
        access: Access,
        text: &str,
        within: Duration,
    ) -> Result<Answer, ExecuteError> {
        let leased = self.lease(pools).await;
        let deadline = tokio::time::Instant::now() + within;
        execute::transact(leased, guard(), access, text.into(), Vec::new(), deadline).await
    }

    async fn set_standbys(&self, names: &str) {
        let set = format!("alter system set synchronous_standby_names = '{names}'");
        self.admin.batch_execute(&set).await.unwrap();
        let reload = "select pg_reload_conf()";
        self.admin.batch_execute(reload).await.unwrap();
        let set = format!(
            "select count(*) from pg_settings
             where name = 'synchronous_standby_names' and setting = '{names}'"
        );
        self.until(&set, 1).await;
    }

    async fn count(&self, question: &str) -> i64 {
        self.admin.query_one(question, &[]).await.unwrap().get(0)
    }

    async fn until(&self, question: &str, wanted: i64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.count(question).await;
            if found == wanted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{question}: {found}, not {wanted}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

const TENANT: Uuid = Uuid::from_u128(1);

fn guard() -> Guard {
    Guard {
        tenant: TENANT,
        epoch: 1,
        claims: "{}".into(),
        before: None,
        settings: None,
        claim: None,
    }
}

fn claim(role: &str) -> Claim {
    Claim {
        tenant: TENANT,
        role: role.into(),
    }
}

/// A question of one answer; the connection is idle again then.
async fn ask(leased: &mut Leased, question: &str) -> String {
    let session = leased.start().unwrap();
    session.add_query(question).unwrap();
    session.send().await.unwrap();
    let said = session.answer().await.unwrap();
    leased.finished();
    let first = said.done.first().and_then(|rows| rows.first());
    first
        .and_then(|row| row.text(0))
        .unwrap_or_default()
        .to_owned()
}

async fn pid(leased: &mut Leased) -> String {
    ask(leased, "select pg_backend_pid()").await
}

const SESSIONS: &str = "select count(*) from pg_stat_activity where application_name = 'test'";

#[tokio::test]
async fn what_a_request_leaves_behind_reaches_nobody() {
    let node = Node::open().await;
    let pools = node.pools(1, WAIT);

    // Given back in order, it is the next one's.
    let mut leased = node.lease(&pools).await;
    let first = pid(&mut leased).await;
    drop(leased);
    let mut leased = node.lease(&pools).await;
    assert_eq!(pid(&mut leased).await, first);

    // An open transaction.
    ask(&mut leased, "begin").await;
    leased.start().unwrap();
    drop(leased);
    let mut leased = node.lease(&pools).await;
    let second = pid(&mut leased).await;
    assert_ne!(second, first);

    // A statement in flight: it is stopped, and nobody waits for it.
    {
        let sleep = ask(&mut leased, "select pg_sleep(60)");
        assert!(
            tokio::time::timeout(Duration::from_millis(300), sleep)
                .await
                .is_err()
        );
    }
    drop(leased);
    let since = Instant::now();
    let mut leased = node.lease(&pools).await;
    assert_ne!(pid(&mut leased).await, second);
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    let sleeping = "select count(*) from pg_stat_activity
        where wait_event = 'PgSleep' and application_name = 'test'";
    node.until(sleeping, 0).await;

    // A session that the server has ended meanwhile.
    let third = pid(&mut leased).await;
    drop(leased);
    let end = format!("select pg_terminate_backend({third})");
    node.admin.batch_execute(&end).await.unwrap();
    node.until(SESSIONS, 0).await;
    let mut leased = node.lease(&pools).await;
    assert_ne!(pid(&mut leased).await, third);

    // Read-only, in its role, and without the router's own rights.
    assert_eq!(
        ask(&mut leased, "show default_transaction_read_only").await,
        "on"
    );
    assert_eq!(
        ask(&mut leased, "select current_user").await,
        "authenticated"
    );
    drop(leased);
    node.cluster.down().await;
}

const INSERT: &str = "with w as (insert into public.things values (1) returning 1)
    select count(*) as page from w";
const SLEEP: &str = "select 1::bigint as page from pg_sleep(60)";
const IN_COMMIT: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";

#[tokio::test]
async fn what_was_cancelled_or_changed_its_session_reaches_nobody() {
    let node = Node::open().await;
    node.serve_a_tenant().await;
    // What its role is set to holds for a session, but for what the guard rests on.
    let settings = "alter role authenticated set statement_timeout = '11min';
        alter role authenticated set row_security = off;
        alter role authenticated set log_statement = 'none';
        alter role authenticated set app.note = 'of all';
        alter role authenticated in database app set app.note = 'a b\\c'";
    node.admin.batch_execute(settings).await.unwrap();
    let pools = node.pools(1, WAIT);

    // What the functions of a read or of a transaction did to the session is undone.
    let first = pid(&mut node.lease(&pools).await).await;
    let meddle = "select public.meddle()::bigint as page";
    for form in [None, Some(Access::ReadOnly), Some(Access::Write)] {
        let done = match form {
            Some(access) => node.transact(&pools, access, meddle, WAIT).await,
            // Its text is another one, as a planned read's is.
            None => {
                let meddle = "select public.meddle()::bigint as page where g.tenant is not null";
                let mut leased = node.lease(&pools).await;
                let deadline = tokio::time::Instant::now() + WAIT;
                execute::read(&mut leased, &guard(), meddle, &[], true, deadline).await
            }
        };
        assert_eq!(done.unwrap().number("page"), Some(1));
        let mut leased = node.lease(&pools).await;
        assert_eq!(pid(&mut leased).await, first, "{form:?}");
        let state = "select concat_ws(' ', current_user, current_setting('search_path'),
            nullif(current_setting('app.left_behind', true), ''),
            (select count(*) from pg_locks where locktype = 'advisory'))";
        assert_eq!(ask(&mut leased, state).await, "authenticated public 0");
        let own = "select concat_ws('; ', current_setting('statement_timeout'),
            current_setting('row_security'), current_setting('app.note'),
            current_setting('app.settings.region'))";
        assert_eq!(ask(&mut leased, own).await, "11min; on; a b\\c; far north");
    }

    // A request to cancel was sent for it, and might meet the next statement.
    let short = Duration::from_millis(200);
    let done = node.transact(&pools, Access::Write, SLEEP, short).await;
    assert!(matches!(done, Err(ExecuteError::Deadline)), "{done:?}");
    assert_ne!(pid(&mut node.lease(&pools).await).await, first);

    too_much_is_not_read(&node, &pools).await;

    // A role that the node lacks is the request's fault, and no other's.
    let unknown = pools.get(&node.address, claim("nobody"), node.identity, WAIT);
    let refused = unknown.await.err().unwrap();
    assert!(matches!(refused, PoolError::Session { .. }), "{refused}");
    node.cluster.down().await;
}

/// A row larger than wanted is refused by its header, and its sender stopped.
async fn too_much_is_not_read(node: &Node, pools: &Pools) {
    let deadline = tokio::time::Instant::now() + WAIT;
    let body = |bytes: u32| format!("select repeat('x', {bytes}) as body");
    // More than any socket's buffers hold.
    let large = body(64 << 20);
    for access in [None, Some(Access::ReadOnly)] {
        let mut leased = node.lease(pools).await;
        leased.bound_rows(2_000);
        let done = match access {
            Some(access) => {
                let text = large.clone();
                execute::transact(leased, guard(), access, text, Vec::new(), deadline).await
            }
            None => {
                let done = execute::read(&mut leased, &guard(), &large, &[], false, deadline).await;
                let waits = "select count(*) from pg_stat_activity
                    where application_name = 'test' and wait_event = 'ClientWrite'";
                node.until(waits, 1).await;
                drop(leased);
                done
            }
        };
        assert!(matches!(done, Err(ExecuteError::TooLarge)), "{done:?}");
        node.until(SESSIONS, 0).await;
    }
    let mut leased = node.lease(pools).await;
    leased.bound_rows(2_000);
    let fits = execute::read(&mut leased, &guard(), &body(1_900), &[], false, deadline).await;
    assert_eq!(fits.unwrap().text("body").unwrap().len(), 1_900);
    let session = pid(&mut leased).await;
    drop(leased);
    // The bound was that lease's own.
    let mut leased = node.lease(pools).await;
    assert_eq!(pid(&mut leased).await, session);
    let fits = execute::read(&mut leased, &guard(), &body(2_100), &[], false, deadline).await;
    assert_eq!(fits.unwrap().text("body").unwrap().len(), 2_100);
}

/// Postgres answers such a COMMIT as if it were done.
#[tokio::test]
async fn a_commit_that_did_not_wait_for_its_standbys_is_of_unknown_outcome() {
    let node = Node::open().await;
    node.serve_a_tenant().await;
    let pools = node.pools(2, WAIT);
    node.set_standbys("nobody").await;
    // Long enough for a slow machine to come to the COMMIT.
    let short = Duration::from_secs(2);
    let done = node.transact(&pools, Access::Write, INSERT, short).await;
    assert!(matches!(done, Err(ExecuteError::Unknown)), "{done:?}");
    node.until(IN_COMMIT, 0).await;

    // Somebody else cancels it, long before the request's deadline.
    let cancel = async {
        node.until(IN_COMMIT, 1).await;
        let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity
            where wait_event = 'SyncRep'";
        assert_eq!(node.count(cancel).await, 1);
    };
    let write = node.transact(&pools, Access::Write, INSERT, WAIT);
    let (done, ()) = tokio::join!(write, cancel);
    assert!(matches!(done, Err(ExecuteError::Unknown)), "{done:?}");

    node.set_standbys("").await;
    let done = node.transact(&pools, Access::Write, INSERT, WAIT).await;
    assert!(done.unwrap().position.is_some());
    assert_eq!(node.count("select count(*) from things").await, 3);
    node.cluster.down().await;
}

#[tokio::test]
async fn another_server_at_the_same_address_is_noticed() {
    let node = Node::open().await;
    let pools = node.pools(2, WAIT);
    drop(node.lease(&pools).await);
    let promoted = Identity {
        generation: Generation {
            timeline: node.identity.generation.timeline + 1,
            ..node.identity.generation
        },
        ..node.identity
    };
    let other = pools.get(&node.address, claim("authenticated"), promoted, WAIT);
    assert!(matches!(other.await, Err(PoolError::Changed { .. })));
    node.until(SESSIONS, 0).await;
    drop(node.lease(&pools).await);
    node.cluster.down().await;
}

/// As a router's threads have; a connection is quicker on the one that made it.
#[tokio::test]
async fn each_runtime_has_connections_of_its_own_within_one_bound() {
    let node = Node::open().await;
    let pools = Arc::new(node.pools(2, WAIT));
    let mut other = tokio::runtime::Builder::new_multi_thread();
    let other = other.worker_threads(1).enable_all().build().unwrap();
    let elsewhere = || {
        let (pools, address, identity) = (pools.clone(), node.address.clone(), node.identity);
        other.spawn(async move {
            let leased = pools.get(&address, claim("authenticated"), identity, WAIT);
            pid(&mut leased.await.unwrap()).await
        })
    };
    let here = pid(&mut node.lease(&pools).await).await;
    let there = elsewhere().await.unwrap();
    assert_ne!(there, here);
    assert_eq!(pid(&mut node.lease(&pools).await).await, here);
    assert_eq!(elsewhere().await.unwrap(), there);

    // More there may not be: the second is the other's.
    let mut two = (node.lease(&pools).await, node.lease_other(&pools).await);
    assert_eq!(pid(&mut two.0).await, here);
    assert_eq!(pid(&mut two.1).await, there);
    drop(two);
    other.shutdown_background();
    node.cluster.down().await;
}

#[tokio::test]
async fn connections_and_statements_are_bounded_and_idle_ones_closed() {
    let node = Node::open().await;
    let pools = node.pools(2, Duration::from_secs(1));

    // One role's idle connections make room for another's.
    let both = (node.lease(&pools).await, pools.usage(&node.address).open);
    assert_eq!(both.1, 1);
    drop(both);
    for role in ["anon", "service_role", "authenticated", "anon"] {
        let leased = pools.get(&node.address, claim(role), node.identity, WAIT);
        drop(leased.await.unwrap());
        assert!(pools.usage(&node.address).open <= 2);
    }

    // Half of them, when another router comes.
    pools.share_with(2);
    let one = node.lease(&pools).await;
    let short = Duration::from_millis(50);
    let other = pools.get(&node.address, claim("anon"), node.identity, short);
    assert!(matches!(other.await, Err(PoolError::Busy(_))));
    drop(one);
    pools.share_with(1);

    // The last one that was used is used again, so what is not needed stays idle.
    let mut two = (node.lease(&pools).await, node.lease_other(&pools).await);
    let last = pid(&mut two.1).await;
    drop(two.0);
    drop(two.1);
    for _ in 0..4 {
        assert_eq!(pid(&mut node.lease(&pools).await).await, last);
    }

    // What is beyond a share that falls is closed: idle ones at once, the other
    // when it is given back.
    assert_eq!(pools.usage(&node.address).open, 2);
    let one = node.lease(&pools).await;
    pools.share_with(2);
    assert_eq!(pools.usage(&node.address).open, 1);
    pools.share_with(1);
    let other = node.lease_other(&pools).await;
    pools.share_with(2);
    assert_eq!(pools.usage(&node.address).open, 2);
    drop((one, other));
    assert_eq!(pools.usage(&node.address).open, 1);
    pools.share_with(1);

    // Texts are the tenants' choice: what is no longer kept is gone on the server, too.
    let mut leased = node.lease(&pools).await;
    for n in 0..5 * STATEMENTS_MAX {
        let text = format!("select {n}");
        leased.prepare(&text, &[], || text.clone()).await.unwrap();
    }
    let kept = ask(&mut leased, "select count(*) from pg_prepared_statements").await;
    assert_eq!(kept.parse::<usize>().unwrap(), STATEMENTS_MAX);
    drop(leased);

    let closing = pools.close_idle();
    tokio::select! {
        () = closing => {}
        () = node.until(SESSIONS, 0) => {}
    }
    no_place_is_taken_twice(&node).await;
    a_full_node_serves_those_who_are_in(&node).await;
    node.cluster.down().await;
}

/// Four hold idle connections, and four come for others of another role, all at once.
async fn no_place_is_taken_twice(node: &Node) {
    let pools = node.pools(4, WAIT);
    for role in ["authenticated", "anon"] {
        let each = (1..=4).map(|tenant| {
            let claim = Claim {
                tenant: Uuid::from_u128(tenant),
                role: role.into(),
            };
            pools.get(&node.address, claim, node.identity, WAIT)
        });
        let leased = futures_util::future::try_join_all(each).await.unwrap();
        node.until(SESSIONS, 4).await;
        drop(leased);
    }
}

async fn a_full_node_serves_those_who_are_in(node: &Node) {
    let pools = node.pools(3, WAIT);
    let mut first = node.lease(&pools).await;
    let session = pid(&mut first).await;
    let limit = async |sessions: i32| {
        let set = format!("alter role ringfence_router connection limit {sessions}");
        node.admin.batch_execute(&set).await.unwrap();
    };
    limit(1).await;
    let second = pools.get(&node.address, claim("authenticated"), node.identity, WAIT);
    let refused = second.await.err().unwrap();
    assert!(
        matches!(refused, PoolError::Busy(Refused::ByNode)),
        "{refused}"
    );
    // Who waits for one is served by one that is given back.
    let third = pools.get(&node.address, claim("authenticated"), node.identity, WAIT);
    let (mut third, ()) = tokio::join!(async { third.await.unwrap() }, async { drop(first) });
    assert_eq!(pid(&mut third).await, session);
    limit(-1).await;
}
