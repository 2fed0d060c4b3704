//! Tenants', shards' and keys' rows: idempotence, conflicts, pages, states.

use serde_json::{Value, json};
use tenancy::control::{
    Actor, Control, ControlError, NewKey, NewNode, NewShard, NewTenant, TenantInfo,
};
use uuid::Uuid;

use crate::support::{Server, connect};

struct Fixture {
    _server: Server,
    dsn: String,
    control: Control,
    actor: Actor,
}

impl Fixture {
    /// A control database with the shard `s1`.
    async fn new() -> Self {
        let server = Server::start().await;
        let dsn = server.control("control").await;
        let fixture = Self {
            control: Control::new(&dsn, &tenancy::tls::Tls::disabled().unwrap()).unwrap(),
            actor: Actor("test".into()),
            _server: server,
            dsn,
        };
        fixture.insert_shard("s1", 1).await.unwrap();
        let activated = fixture.control.activate_shard(&fixture.actor, "s1").await;
        assert_eq!(activated.unwrap(), 0);
        fixture
    }

    async fn insert_shard(&self, id: &str, port: u16) -> Result<(), ControlError> {
        let node = NewNode {
            name: format!("{id}-primary"),
            host: "127.0.0.1".into(),
            port,
        };
        let shard = NewShard {
            id: id.into(),
            region: None,
            weight: None,
            nodes: vec![node],
        };
        self.control.insert_shard(&self.actor, &shard).await
    }

    async fn insert(
        &self,
        slug: &str,
        id: Option<Uuid>,
    ) -> Result<(TenantInfo, bool), ControlError> {
        let tenant = NewTenant {
            id,
            slug: slug.into(),
            name: None,
            region: None,
        };
        self.control.insert_tenant(&self.actor, &tenant).await
    }

    async fn audited(&self, object: &str) -> Vec<String> {
        let client = connect(&self.dsn).await;
        let sql = "select action from ringfence.audit where object = $1 order by id";
        let rows = client.query(sql, &[&object]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn creation_is_idempotent() {
    let fixture = Fixture::new().await;
    let (first, new) = fixture.insert("acme", None).await.unwrap();
    assert!(new);
    assert_eq!((first.state.as_str(), first.epoch), ("creating", 1));
    assert_eq!(
        (first.shard.as_str(), first.ring_shard.as_str()),
        ("s1", "s1")
    );

    for id in [None, Some(first.id)] {
        let (again, new) = fixture.insert("acme", id).await.unwrap();
        assert!(!new);
        assert_eq!(again, first);
    }
    let other_id = fixture.insert("acme", Some(Uuid::new_v4())).await;
    assert!(matches!(other_id, Err(ControlError::Conflict(_))));
    let other_slug = fixture.insert("globex", Some(first.id)).await;
    assert!(matches!(other_slug, Err(ControlError::Conflict(_))));

    assert_eq!(
        fixture.control.activate_tenants(&[first.id]).await.unwrap(),
        1
    );
    assert_eq!(
        fixture.control.activate_tenants(&[first.id]).await.unwrap(),
        0
    );
    assert_eq!(fixture.audited("acme").await, ["tenant.create"]);
}

/// A tenant is named by slug or id, so no slug may look like an id.
#[tokio::test]
async fn slugs_that_cannot_name_a_tenant_are_refused() {
    let fixture = Fixture::new().await;
    let (acme, _) = fixture.insert("acme", None).await.unwrap();
    let long = "a".repeat(64);
    let id = acme.id.to_string();
    let plain_id = acme.id.simple().to_string();
    for slug in [
        "", "-a", "A", "a_b", "a.b", "ü", "a b", "a'b", &long, &id, &plain_id,
    ] {
        let refused = fixture.insert(slug, None).await;
        assert!(matches!(refused, Err(ControlError::Invalid(_))), "{slug}");
    }
    assert_eq!(fixture.control.tenant(&id).await.unwrap().id, acme.id);
    assert_eq!(fixture.control.tenant("acme").await.unwrap().id, acme.id);
    let missing = fixture.control.tenant("nobody").await;
    assert!(matches!(missing, Err(ControlError::NotFound { .. })));
}

/// Each version wakes every router: a worker with nothing to do must take none.
#[tokio::test]
async fn activating_nobody_is_no_change() {
    let fixture = Fixture::new().await;
    let client = connect(&fixture.dsn).await;
    let version = async || -> i64 {
        let sql = "select version from ringfence.version";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let before = version().await;
    assert_eq!(fixture.control.activate_tenants(&[]).await.unwrap(), 0);
    assert_eq!(version().await, before);
}

#[tokio::test]
async fn two_nodes_at_one_address_are_a_conflict() {
    let fixture = Fixture::new().await;
    fixture.insert_shard("s1", 1).await.unwrap();
    let error = fixture.insert_shard("s2", 1).await.unwrap_err();
    assert!(matches!(error, ControlError::Conflict(_)), "{error:?}");
    let shards = fixture.control.shards().await.unwrap();
    assert_eq!(shards.len(), 1, "nothing of the refused shard is kept");
}

#[tokio::test]
async fn a_tenant_is_suspended_and_resumed() {
    let fixture = Fixture::new().await;
    let (acme, _) = fixture.insert("acme", None).await.unwrap();
    let set = async |suspended| {
        let set = fixture
            .control
            .set_suspended(&fixture.actor, "acme", suspended);
        set.await.map(|(tenant, changed)| (tenant.state, changed))
    };
    assert!(matches!(set(true).await, Err(ControlError::Conflict(_))));
    fixture.control.activate_tenants(&[acme.id]).await.unwrap();
    assert_eq!(set(false).await.unwrap(), ("active".into(), false));
    assert_eq!(set(true).await.unwrap(), ("suspended".into(), true));
    assert_eq!(set(true).await.unwrap(), ("suspended".into(), false));
    assert_eq!(set(false).await.unwrap(), ("active".into(), true));
    let expected = ["tenant.create", "tenant.suspend", "tenant.resume"];
    assert_eq!(fixture.audited("acme").await, expected);
}

#[tokio::test]
async fn many_tenants_are_listed_in_pages() {
    let fixture = Fixture::new().await;
    let many = async || {
        let inserted = fixture.control.insert_tenants(&fixture.actor, "t", 250);
        inserted.await.unwrap()
    };
    assert_eq!(many().await, 250);
    assert_eq!(many().await, 0, "those that exist are left as they are");

    let (mut slugs, mut after) = (Vec::new(), String::new());
    loop {
        let page = fixture.control.tenants("", &after, 100).await.unwrap();
        slugs.extend(page.items.into_iter().map(|tenant| tenant.slug));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(slugs.len(), 250);
    assert!(slugs.is_sorted());

    let found = fixture.control.tenants("t-25", "", 100).await.unwrap();
    let found: Vec<String> = found.items.into_iter().map(|tenant| tenant.slug).collect();
    assert_eq!(found, ["t-25", "t-250"]);
    let none = fixture.control.tenants("%", "", 100).await.unwrap();
    assert!(none.items.is_empty(), "a search is no pattern");
}

#[tokio::test]
async fn a_key_is_revoked_once() {
    let fixture = Fixture::new().await;
    fixture.insert("acme", None).await.unwrap();
    let new = |life| NewKey {
        role: "authenticated".into(),
        name: Some("ci".into()),
        expires_in_seconds: life,
    };
    let insert = async |life| {
        let new = new(life);
        fixture
            .control
            .insert_key(&fixture.actor, "acme", &new)
            .await
    };
    for life in [0, -1, i64::MAX] {
        let refused = insert(Some(life)).await;
        assert!(matches!(refused, Err(ControlError::Invalid(_))), "{life}");
    }
    let key = insert(Some(60)).await.unwrap();
    assert!(key.expires_epoch.is_some() && key.revoked_at.is_none());
    let revoke = async |id| fixture.control.revoke_key(&fixture.actor, id).await;
    let first = revoke(key.id).await.unwrap();
    assert!(first.revoked_at.is_some());
    assert_eq!(revoke(key.id).await.unwrap(), first);
    let missing = revoke(key.id + 1).await;
    assert!(matches!(missing, Err(ControlError::NotFound { .. })));
    assert_eq!(fixture.control.keys("acme").await.unwrap(), [first]);
}

#[tokio::test]
async fn the_audit_log_has_what_was_before() {
    let fixture = Fixture::new().await;
    let (control, actor) = (&fixture.control, &fixture.actor);
    fixture.insert("acme", None).await.unwrap();
    control.pin(actor, "acme", true).await.unwrap();
    control.pin(actor, "acme", false).await.unwrap();
    fixture.insert_shard("s1", 7).await.unwrap();
    fixture.insert_shard("s2", 2).await.unwrap();
    control.activate_shard(actor, "s2").await.unwrap();
    control.drain_shard(actor, "s2").await.unwrap();
    control.remove_shard(actor, "s2").await.unwrap();

    let sql = "select action, before, after from ringfence.audit
               where action ~ '^(tenant.(un)?pin|shard.(add|drain|remove))$' order by id";
    let rows = connect(&fixture.dsn).await.query(sql, &[]).await.unwrap();
    let said: Vec<(String, Option<Value>, Option<Value>)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let shard = |id: &str, state: &str, port: u16| {
        Some(json!({
            "id": id, "region": "local", "weight": 1, "state": state,
            "nodes": [{ "name": format!("{id}-primary"), "host": "127.0.0.1", "port": port }],
        }))
    };
    let pinned = |pinned: bool| Some(json!({ "shard": "s1", "pinned": pinned }));
    let drained = json!({ "state": "draining", "tenants_of_other_shards_now": 0 });
    let mut expected = vec![
        ("shard.add", None, shard("s1", "preparing", 1)),
        ("tenant.pin", pinned(false), pinned(true)),
        ("tenant.unpin", pinned(true), pinned(false)),
        (
            "shard.add",
            shard("s1", "active", 1),
            shard("s1", "active", 7),
        ),
        ("shard.add", None, shard("s2", "preparing", 2)),
        (
            "shard.drain",
            Some(json!({ "state": "active" })),
            Some(drained),
        ),
        ("shard.remove", shard("s2", "draining", 2), None),
    ];
    // How many tenants the ring gave the second shard is chance, as ids are.
    let affected = said[5]
        .2
        .as_ref()
        .map(|after| &after["tenants_of_other_shards_now"]);
    expected[5].2.as_mut().unwrap()["tenants_of_other_shards_now"] = affected.unwrap().clone();
    let said: Vec<_> = said
        .iter()
        .map(|(action, before, after)| (action.as_str(), before.clone(), after.clone()))
        .collect();
    assert_eq!(said, expected);
}
