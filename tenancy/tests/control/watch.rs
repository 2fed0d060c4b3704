//! Snapshots follow the control database, and outlive it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tenancy::control::{Actor, Control, NewKey, NewNode, NewShard, NewTenant, Observation, Seen};
use tenancy::id::{Epoch, KeyId, TenantId};
use tenancy::placement::TenantState;
use tenancy::snapshot::Snapshot;
use tenancy::tls::Tls;
use tenancy::watch::{Placements, Source, WatchError};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::support::{Server, connect};

/// Half of what passes between two polls.
const QUICK: Duration = Duration::from_millis(500);
/// Nothing takes longer, but for a server that starts.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control database with the shards `s1` and `s2`, and who writes to it.
struct Fixture {
    server: Server,
    dsn: String,
    control: Control,
    actor: Actor,
}

impl Fixture {
    async fn new() -> Self {
        let server = Server::start().await;
        let dsn = server.control("control").await;
        let fixture = Self {
            control: new_control(&dsn),
            actor: Actor("test".into()),
            server,
            dsn,
        };
        fixture.add_shard("s1").await;
        fixture.add_shard("s2").await;
        fixture
    }

    /// Returns how many tenants are off the ring by it.
    async fn add_shard(&self, id: &str) -> u64 {
        let number: u16 = id.trim_start_matches('s').parse().unwrap();
        let shard = NewShard {
            id: id.into(),
            region: None,
            weight: None,
            nodes: vec![NewNode {
                name: format!("{id}-primary"),
                host: "127.0.0.1".into(),
                port: number,
            }],
        };
        self.control
            .insert_shard(&self.actor, &shard)
            .await
            .unwrap();
        let moved = self.control.activate_shard(&self.actor, id).await;
        moved.unwrap()
    }

    async fn add_tenant(&self, slug: &str) -> TenantId {
        let tenant = NewTenant {
            id: None,
            slug: slug.into(),
            name: None,
            region: None,
        };
        let (tenant, _) = self
            .control
            .insert_tenant(&self.actor, &tenant)
            .await
            .unwrap();
        self.control.activate_tenants(&[tenant.id]).await.unwrap();
        TenantId(tenant.id)
    }

    async fn suspend(&self, slug: &str, suspended: bool) {
        let done = self
            .control
            .set_suspended(&self.actor, slug, suspended)
            .await;
        done.unwrap();
    }

    async fn see(&self, node: &str, timeline: i32) {
        let seen = Seen {
            primary: true,
            system_id: "7".into(),
            timeline,
            lsn: 0,
            lag_bytes: None,
        };
        let observation = Observation {
            node: node.into(),
            seen: Ok(seen),
        };
        self.control.observe(&[observation]).await.unwrap();
    }

    async fn version(&self) -> i64 {
        let client = connect(&self.dsn).await;
        let row = client
            .query_one("select version from ringfence.version", &[])
            .await;
        row.unwrap().get(0)
    }

    async fn follow(&self, file: Option<PathBuf>) -> Follower {
        self.try_follow(file).await.unwrap()
    }

    async fn try_follow(&self, file: Option<PathBuf>) -> Result<Follower, WatchError> {
        let stop = CancellationToken::new();
        let source = Source {
            dsn: self.dsn.clone(),
            tls: Tls::disabled().unwrap(),
            file,
            me: None,
        };
        let placements = Placements::start(source, stop.clone()).await?;
        Ok(Follower {
            placements,
            _stop: stop.drop_guard(),
        })
    }

    /// What a router that has just started knows.
    async fn started_anew(&self) -> Arc<Snapshot> {
        self.follow(None).await.now()
    }
}

fn new_control(dsn: &str) -> Control {
    Control::new(dsn, &Tls::disabled().unwrap()).unwrap()
}

/// Placements that are followed as long as this lives.
struct Follower {
    placements: Arc<Placements>,
    _stop: DropGuard,
}

impl Follower {
    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.placements.load())
    }

    /// The snapshot once it is of that version or a later one.
    async fn at(&self, version: i64) -> Arc<Snapshot> {
        let mut versions = self.placements.versions();
        let reached = versions.wait_for(|now| *now >= version);
        timeout(PATIENCE, reached).await.unwrap().unwrap();
        self.now()
    }

    async fn connected(&self, wanted: bool) {
        let mut connections = self.placements.connections();
        let reached = connections.wait_for(|now| *now == wanted);
        timeout(PATIENCE, reached).await.unwrap().unwrap();
    }

    fn state(&self, tenant: TenantId) -> TenantState {
        self.now().place(tenant).unwrap().state
    }
}

/// A file name in a folder that is removed at the end.
struct TempFile(PathBuf);

impl TempFile {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("ringfence-test-{}", Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder.join("snapshot.json"))
    }

    /// Waits until the file holds that version or a later one.
    async fn holds(&self, version: i64) {
        let started = Instant::now();
        while file_version(&self.0).is_none_or(|written| written < version) {
            assert!(started.elapsed() < PATIENCE, "the file copy is not written");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(folder) = self.0.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn file_version(path: &Path) -> Option<i64> {
    let text = std::fs::read(path).ok()?;
    let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
    file["version"].as_i64()
}

fn assert_same(one: &Snapshot, other: &Snapshot) {
    assert_eq!(one.version(), other.version());
    assert_eq!(one.fleet(), other.fleet());
    assert_eq!(one.revoked(), other.revoked());
    assert_eq!(one.exceptions().len(), other.exceptions().len());
    for exception in one.exceptions().iter() {
        let tenant = exception.tenant;
        assert_eq!(one.place(tenant), other.place(tenant));
        assert!(other.exceptions().get(tenant).is_some(), "{tenant}");
    }
}

/// Five changes, each made when the last has arrived: with the poll alone, each
/// but the first would take a second. A machine may stand still during some.
#[tokio::test]
async fn a_change_is_heard_of_at_once() {
    let fixture = Fixture::new().await;
    let tenant = fixture.add_tenant("acme").await;
    let follower = fixture.follow(None).await;
    let mut quickest = Duration::MAX;
    for round in 0..5 {
        let suspended = round % 2 == 0;
        fixture.suspend("acme", suspended).await;
        let changed = Instant::now();
        follower.at(fixture.version().await).await;
        if round > 0 {
            quickest = quickest.min(changed.elapsed());
        }
        let expected = match suspended {
            true => TenantState::Suspended,
            false => TenantState::Active,
        };
        assert_eq!(follower.state(tenant), expected);
    }
    assert!(quickest < QUICK, "{quickest:?}");
}

#[tokio::test]
async fn a_change_without_a_notification_is_found_by_the_poll() {
    let fixture = Fixture::new().await;
    let tenant = fixture.add_tenant("acme").await;
    let follower = fixture.follow(None).await;
    let client = connect(&fixture.dsn).await;
    client
        .batch_execute(
            "begin;
             update ringfence.version set version = version + 1;
             update ringfence.tenant set state = 'suspended', exceptional = true,
               version = (select version from ringfence.version);
             commit",
        )
        .await
        .unwrap();
    follower.at(fixture.version().await).await;
    assert_eq!(follower.state(tenant), TenantState::Suspended);
}

#[tokio::test]
async fn a_revoked_key_and_a_new_shard_arrive() {
    let fixture = Fixture::new().await;
    fixture.add_tenant("acme").await;
    let follower = fixture.follow(None).await;
    let key = NewKey {
        role: "authenticated".into(),
        name: None,
        expires_in_seconds: None,
    };
    let key = fixture
        .control
        .insert_key(&fixture.actor, "acme", &key)
        .await
        .unwrap();
    fixture
        .control
        .revoke_key(&fixture.actor, key.id)
        .await
        .unwrap();
    fixture.add_shard("s3").await;
    let now = follower.at(fixture.version().await).await;
    assert!(now.revoked().contains(&KeyId(key.id)));
    let shards: Vec<&str> = now.fleet().shards.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(shards, ["s1", "s2", "s3"]);
}

/// More exceptions than a page holds, as a delta and from scratch.
#[tokio::test]
async fn a_delta_of_several_pages_equals_a_fresh_start() {
    let fixture = Fixture::new().await;
    let follower = fixture.follow(None).await;
    fixture
        .control
        .insert_tenants(&fixture.actor, "t", 40_000)
        .await
        .unwrap();
    // A third of them now belongs elsewhere, and stays where it is.
    let moved = fixture.add_shard("s3").await;
    assert!(moved > 10_000, "{moved}");
    let followed = follower.at(fixture.version().await).await;
    assert_eq!(followed.exceptions().len() as u64, moved);
    assert_same(&followed, &*fixture.started_anew().await);

    let client = connect(&fixture.dsn).await;
    let rows = client
        .query("select id, shard from ringfence.tenant", &[])
        .await
        .unwrap();
    assert_eq!(rows.len(), 40_000);
    for row in rows {
        let placement = followed.place(TenantId(row.get(0))).unwrap();
        assert_eq!(placement.shard.as_str(), row.get::<_, &str>(1));
        assert_eq!(placement.epoch, Epoch::FIRST);
    }
}

/// What workers do, in any order, and a move's last step.
#[derive(Clone, Debug)]
enum Step {
    AddShard,
    AddTenants(u32),
    Suspend(usize),
    Resume(usize),
    Move(usize),
    RevokeKey(usize),
    /// The follower catches up; without it, changes come to it as one delta.
    CatchUp,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => Just(Step::AddShard),
        2 => (1_u32..40).prop_map(Step::AddTenants),
        4 => any::<usize>().prop_map(Step::Suspend),
        3 => any::<usize>().prop_map(Step::Resume),
        4 => any::<usize>().prop_map(Step::Move),
        2 => any::<usize>().prop_map(Step::RevokeKey),
        3 => Just(Step::CatchUp),
    ];
    prop::collection::vec(step, 10..40)
}

impl Fixture {
    async fn take(&self, step: &Step, follower: &Follower) {
        let page = self.control.tenants("", "", 1_000).await.unwrap();
        let pick = |n: usize| &page.items[n % page.items.len()];
        match step {
            Step::AddShard => {
                let shards = self.control.shards().await.unwrap().len();
                self.add_shard(&format!("s{}", shards + 1)).await;
            }
            Step::AddTenants(count) => {
                let prefix = format!("t{}", page.items.len());
                let added = self.control.insert_tenants(&self.actor, &prefix, *count);
                added.await.unwrap();
                let waiting = self.control.unfinished_tenants(1_000).await.unwrap();
                let ids: Vec<Uuid> = waiting.into_iter().map(|(id, _, _)| id).collect();
                self.control.activate_tenants(&ids).await.unwrap();
            }
            Step::Suspend(n) => self.suspend(&pick(*n).slug, true).await,
            Step::Resume(n) => self.suspend(&pick(*n).slug, false).await,
            Step::Move(n) => {
                // As cut-over (f) writes it, to whichever shard comes next.
                let mut client = connect(&self.dsn).await;
                let change = client.transaction().await.unwrap();
                let sql = "update ringfence.tenant t
                           set shard = coalesce((select min(s.id) from ringfence.shard s where s.id > t.shard), 's1'),
                             epoch = epoch + 1, exceptional = true,
                             version = ringfence.next_version(false)
                           where t.id = $1";
                change.execute(sql, &[&pick(*n).id]).await.unwrap();
                change.commit().await.unwrap();
            }
            Step::RevokeKey(n) => {
                let key = NewKey {
                    role: "authenticated".into(),
                    name: None,
                    expires_in_seconds: None,
                };
                let key = self
                    .control
                    .insert_key(&self.actor, &pick(*n).slug, &key)
                    .await;
                let id = key.unwrap().id;
                self.control.revoke_key(&self.actor, id).await.unwrap();
            }
            Step::CatchUp => {
                follower.at(self.version().await).await;
            }
        }
    }
}

/// However changes come together into deltas, the snapshot is what a router
/// that starts now would read, and every tenant is where its row says.
#[tokio::test]
async fn deltas_equal_a_start_whatever_happens() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..4 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let fixture = Fixture::new().await;
        fixture.add_tenant("acme").await;
        let follower = fixture.follow(None).await;
        for step in &steps {
            fixture.take(step, &follower).await;
        }
        let followed = follower.at(fixture.version().await).await;
        assert_same(&followed, &*fixture.started_anew().await);
        for row in fixture.control.tenants("", "", 1_000).await.unwrap().items {
            let placement = followed.place(TenantId(row.id)).unwrap();
            let found = (
                placement.shard.as_str(),
                placement.epoch,
                placement.state.name(),
            );
            let expected = (row.shard.as_str(), Epoch(row.epoch), row.state.as_str());
            assert_eq!(found, expected, "{} after {steps:?}", row.slug);
        }
    }
}

#[tokio::test]
async fn placements_outlive_the_control_database() {
    let mut fixture = Fixture::new().await;
    let acme = fixture.add_tenant("acme").await;
    let follower = fixture.follow(None).await;
    let before = follower.now().place(acme);
    assert!(before.is_some());

    fixture.server.kill();
    follower.connected(false).await;
    assert!(!follower.placements.connected());
    assert_eq!(follower.now().place(acme), before);

    fixture.server.resume().await;
    follower.connected(true).await;
    // The pool's connections died with the server.
    fixture.control = new_control(&fixture.dsn);
    fixture.suspend("acme", true).await;
    follower.at(fixture.version().await).await;
    assert_eq!(follower.state(acme), TenantState::Suspended);
}

#[tokio::test]
async fn a_start_without_the_control_database_uses_the_file() {
    let mut fixture = Fixture::new().await;
    let acme = fixture.add_tenant("acme").await;
    fixture.suspend("acme", true).await;
    let file = TempFile::new();
    let written = {
        let follower = fixture.follow(Some(file.0.clone())).await;
        // What routers see for themselves is no news, but for a newer timeline: one
        // that starts later may see the old primary alone.
        let before = fixture.version().await;
        fixture.see("s1-primary", 1).await;
        assert_eq!(fixture.version().await, before);
        fixture.see("s2-primary", 2).await;
        let now = follower.at(before + 1).await;
        let newest = now.fleet().shards.iter();
        let newest: Vec<i32> = newest.map(|shard| shard.timelines.newest("7")).collect();
        assert_eq!(newest, [1, 2]);
        fixture.see("s2-primary", 2).await;
        file.holds(before + 1).await;
        assert_eq!(fixture.version().await, before + 1);
        follower.now()
    };
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&file.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds issuers' secrets");

    fixture.server.kill();
    let follower = fixture.follow(Some(file.0.clone())).await;
    assert_same(&follower.now(), &written);
    assert!(!follower.placements.connected());
    assert_eq!(follower.state(acme), TenantState::Suspended);

    fixture.server.resume().await;
    follower.connected(true).await;
    fixture.control = new_control(&fixture.dsn);
    fixture.suspend("acme", false).await;
    follower.at(fixture.version().await).await;
    assert_eq!(follower.state(acme), TenantState::Active);
}

/// It takes connections, and answers none of the questions.
#[tokio::test]
async fn a_start_beside_a_broken_control_database_uses_the_file() {
    let fixture = Fixture::new().await;
    let acme = fixture.add_tenant("acme").await;
    let file = TempFile::new();
    {
        let _follower = fixture.follow(Some(file.0.clone())).await;
        file.holds(fixture.version().await).await;
    }
    let client = connect(&fixture.dsn).await;
    let hide = "alter table ringfence.version rename to version_elsewhere";
    client.batch_execute(hide).await.unwrap();
    let follower = fixture.follow(Some(file.0.clone())).await;
    assert_eq!(follower.state(acme), TenantState::Active);
}

#[tokio::test]
async fn a_start_without_database_and_file_fails() {
    let mut fixture = Fixture::new().await;
    fixture.server.kill();
    assert!(fixture.try_follow(None).await.is_err());
    let file = TempFile::new();
    assert!(fixture.try_follow(Some(file.0.clone())).await.is_err());
    std::fs::write(&file.0, "{ damaged").unwrap();
    assert!(fixture.try_follow(Some(file.0.clone())).await.is_err());
}

/// After a restore from a backup versions count lower, and what came after the
/// backup is not so any longer.
#[tokio::test]
async fn a_restored_control_database_is_followed_from_its_start() {
    let fixture = Fixture::new().await;
    let acme = fixture.add_tenant("acme").await;
    let backup = fixture.version().await;
    fixture.suspend("acme", true).await;
    let follower = fixture.follow(None).await;
    assert_eq!(follower.state(acme), TenantState::Suspended);

    let client = connect(&fixture.dsn).await;
    client
        .batch_execute(&format!(
            "begin;
             update ringfence.tenant set state = 'active', exceptional = false, version = {backup};
             update ringfence.version set version = {backup};
             notify ringfence_placement;
             commit"
        ))
        .await
        .unwrap();
    let mut versions = follower.placements.versions();
    let restored = versions.wait_for(|version| *version == backup);
    timeout(PATIENCE, restored).await.unwrap().unwrap();
    assert_eq!(follower.state(acme), TenantState::Active);
    assert!(follower.now().exceptions().is_empty());
}

#[tokio::test]
async fn who_stops_leaves_no_connection() {
    let fixture = Fixture::new().await;
    let client = connect(&fixture.dsn).await;
    let listeners = async || -> i64 {
        let sql = "select count(*) from pg_stat_activity
                   where query ~ 'ringfence.version' and pid <> pg_backend_pid()
                     and application_name = 'ringfence-placements'";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let become_so_many = async |wanted: i64| {
        let since = Instant::now();
        while listeners().await != wanted {
            assert!(since.elapsed() < PATIENCE, "not {wanted}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let follower = fixture.follow(None).await;
    become_so_many(1).await;
    drop(follower);
    become_so_many(0).await;
}
