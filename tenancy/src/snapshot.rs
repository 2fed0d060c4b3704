//! All placements at one version: immutable, so that a request sees one state
//! from its first look to its last.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::{Epoch, KeyId, RegionId, ShardId, TenantId};
use crate::members::Members;
use crate::placement::{Change, Exception, Exceptions, Placement, TenantState};
use crate::quota::{LimitSet, LimitSets, Limits, PlanRow};
use crate::ring::Ring;
use crate::timelines::Timelines;

/// Everything but tenants and keys: small, and replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// Regions; exceptions name them by their place in this list.
    pub regions: Vec<RegionRow>,
    /// Shards; exceptions name them by their place in this list.
    pub shards: Vec<ShardRow>,
    /// Issuers of tokens.
    pub issuers: Vec<IssuerRow>,
    /// Plans; missing in files of earlier versions.
    #[serde(default)]
    pub plans: Vec<PlanRow>,
}

/// A region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionRow {
    /// Its id.
    pub id: RegionId,
    /// Tenants that name none are in it.
    pub is_default: bool,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardRow {
    /// Its id.
    pub id: ShardId,
    /// Its region.
    pub region: RegionId,
    /// Its share of the region's ring.
    pub weight: f64,
    /// On the ring, or not (any longer).
    pub on_ring: bool,
    /// Its nodes, in order of their names.
    pub nodes: Vec<NodeRow>,
    /// Their newest timelines; missing in files of earlier versions.
    #[serde(default)]
    pub timelines: Timelines,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub name: Arc<str>,
    /// Host name or address.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

/// An issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerRow {
    /// What its tokens' `iss` says.
    pub name: String,
    /// An HS256 secret,
    pub secret: Option<String>,
    /// or a JWKS document,
    pub jwks: Option<serde_json::Value>,
    /// or where it publishes one; the control database has it as a JSON text in
    /// the document's place.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// Audience that its tokens must name.
    pub audience: Option<String>,
    /// Tenants that it may name; none means all.
    pub tenants: Option<Vec<Uuid>>,
}

/// A tenant that is, or was once, an exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRow {
    /// Its id.
    pub id: TenantId,
    /// Where it lives.
    pub shard: ShardId,
    /// What the ring says.
    pub ring_shard: ShardId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its region.
    pub region: RegionId,
    /// Its state.
    pub state: TenantState,
    /// What sets its limits.
    #[serde(default)]
    pub limits: LimitSet,
}

/// What changed between two versions.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// The version that it leads to.
    pub version: i64,
    /// The whole fleet, where anything of it changed.
    pub fleet: Option<Fleet>,
    /// Tenants that changed.
    pub tenants: Vec<TenantRow>,
    /// Keys that were revoked.
    pub revoked: Vec<KeyId>,
}

/// All placements at one version.
pub struct Snapshot {
    version: i64,
    fleet: Arc<Fleet>,
    rings: Arc<Vec<RegionRing>>,
    default_region: u16,
    exceptions: Exceptions,
    limits: Arc<LimitSets>,
    revoked: Arc<HashSet<KeyId>>,
}

/// Limit sets that no exception names any longer are kept up to so many.
const UNUSED_SETS_MAX: usize = 1_000;

struct RegionRing {
    ring: Ring,
    /// Places of the ring's members in the fleet's list of shards.
    shards: Vec<u32>,
}

impl Snapshot {
    /// Knows nothing; version 0.
    pub fn empty() -> Self {
        Self {
            version: 0,
            fleet: Arc::default(),
            rings: Arc::default(),
            default_region: 0,
            exceptions: Exceptions::default(),
            limits: Arc::new(LimitSets::new(&[])),
            revoked: Arc::default(),
        }
    }

    /// This snapshot with a delta applied.
    ///
    /// A delta that renumbers shards or regions brings all exceptions along:
    /// they are translated by name.
    pub fn with(&self, delta: Delta) -> Self {
        let (fleet, rings, exceptions) = match delta.fleet {
            Some(fleet) => {
                let rings = rings(&fleet);
                let exceptions = renumber(&self.exceptions, &self.fleet, &fleet);
                (Arc::new(fleet), Arc::new(rings), exceptions)
            }
            None => (
                self.fleet.clone(),
                self.rings.clone(),
                self.exceptions.clone(),
            ),
        };
        let default_region = position(&fleet.regions, |region| region.is_default).unwrap_or(0);
        let limits = limit_sets(&self.limits, &self.fleet, &fleet, &delta.tenants);
        let numbers = Numbers::of(&fleet);
        let changes = delta.tenants.iter().map(|tenant| {
            let limits = limits.known(&tenant.limits).unwrap_or(0);
            numbers.change(tenant, default_region as u16, limits)
        });
        let exceptions = exceptions.with(changes);
        let (exceptions, limits) = match limits.sets().len() > exceptions.len() + UNUSED_SETS_MAX {
            true => repacked(&exceptions, &limits, &fleet.plans),
            false => (exceptions, limits),
        };
        let revoked = if delta.revoked.is_empty() {
            self.revoked.clone()
        } else {
            Arc::new(self.revoked.iter().copied().chain(delta.revoked).collect())
        };
        Self {
            version: delta.version,
            default_region: default_region as u16,
            fleet,
            rings,
            exceptions,
            limits,
            revoked,
        }
    }

    /// Its number.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Regions, shards, nodes and issuers.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// The exceptions to the ring.
    pub fn exceptions(&self) -> &Exceptions {
        &self.exceptions
    }

    /// Keys that were revoked before they expired.
    pub fn revoked(&self) -> &HashSet<KeyId> {
        &self.revoked
    }

    /// Where the tenant lives; none while its region has no shard.
    pub fn place(&self, tenant: TenantId) -> Option<Placement> {
        if let Some(exception) = self.exceptions.get(tenant) {
            return Some(Placement {
                shard: self.fleet.shards.get(exception.shard as usize)?.id.clone(),
                epoch: exception.epoch,
                region: self
                    .fleet
                    .regions
                    .get(usize::from(exception.region))?
                    .id
                    .clone(),
                state: exception.state,
            });
        }
        let region = usize::from(self.default_region);
        let shard = self.ring_shard(region, tenant)?;
        Some(Placement {
            shard: self.fleet.shards[shard].id.clone(),
            epoch: Epoch::FIRST,
            region: self.fleet.regions[region].id.clone(),
            state: TenantState::Active,
        })
    }

    /// What the tenant may use.
    pub fn limits(&self, tenant: TenantId) -> Limits {
        let exception = self.exceptions.get(tenant);
        self.limits.get(exception.map_or(0, |e| e.limits))
    }

    /// What the ring of `region` says, whatever the tenant's exception.
    pub fn ring_says(&self, region: &RegionId, tenant: TenantId) -> Option<&ShardId> {
        let region = position(&self.fleet.regions, |row| row.id == *region)?;
        let shard = self.ring_shard(region, tenant)?;
        Some(&self.fleet.shards[shard].id)
    }

    fn ring_shard(&self, region: usize, tenant: TenantId) -> Option<usize> {
        let ring = self.rings.get(region)?;
        let member = ring.ring.get(tenant)?;
        Some(ring.shards[member] as usize)
    }
}

/// One ring a region, over its shards that are on it.
fn rings(fleet: &Fleet) -> Vec<RegionRing> {
    let of_region = |region: &RegionRow| {
        let shards: Vec<(u32, &ShardRow)> = (0..)
            .zip(&fleet.shards)
            .filter(|(_, shard)| shard.on_ring && shard.region == region.id)
            .collect();
        RegionRing {
            ring: Ring::new(shards.iter().map(|(_, s)| (s.id.as_str(), s.weight))),
            shards: shards.iter().map(|(number, _)| *number).collect(),
        }
    };
    fleet.regions.iter().map(of_region).collect()
}

/// The sets with those of `tenants`, under the plans of `fleet`; shared where
/// nothing changed.
fn limit_sets(
    sets: &Arc<LimitSets>,
    old: &Fleet,
    fleet: &Fleet,
    tenants: &[TenantRow],
) -> Arc<LimitSets> {
    let mut sets = match old.plans == fleet.plans {
        true => sets.clone(),
        false => Arc::new(sets.with_plans(&fleet.plans)),
    };
    for tenant in tenants {
        if sets.known(&tenant.limits).is_none() {
            Arc::make_mut(&mut sets).number(&tenant.limits, &fleet.plans);
        }
    }
    sets
}

/// Only the sets in use, numbered anew.
fn repacked(
    exceptions: &Exceptions,
    sets: &LimitSets,
    plans: &[PlanRow],
) -> (Exceptions, Arc<LimitSets>) {
    let mut packed = LimitSets::new(plans);
    let renumbered: Vec<Change> = exceptions
        .iter()
        .map(|exception| {
            let set = sets.sets().get(exception.limits as usize);
            let limits = set.map_or(0, |set| packed.number(set, plans));
            let renumbered = Exception {
                limits,
                ..*exception
            };
            (exception.tenant, Some(renumbered))
        })
        .collect();
    (Exceptions::default().with(renumbered), Arc::new(packed))
}

/// Places of names in a fleet's lists.
struct Numbers<'a> {
    shards: HashMap<&'a ShardId, u32>,
    regions: HashMap<&'a RegionId, u16>,
}

impl<'a> Numbers<'a> {
    fn of(fleet: &'a Fleet) -> Self {
        Self {
            shards: fleet.shards.iter().map(|s| &s.id).zip(0..).collect(),
            regions: fleet.regions.iter().map(|r| &r.id).zip(0..).collect(),
        }
    }

    fn change(&self, tenant: &TenantRow, default_region: u16, limits: u32) -> Change {
        let numbers = self
            .shards
            .get(&tenant.shard)
            .zip(self.regions.get(&tenant.region));
        let exception = numbers.map(|(shard, region)| Exception {
            tenant: tenant.id,
            epoch: tenant.epoch,
            shard: *shard,
            region: *region,
            state: tenant.state,
            limits,
        });
        let needed = exception.filter(|exception| {
            tenant.shard != tenant.ring_shard
                || exception.epoch != Epoch::FIRST
                || exception.region != default_region
                || exception.state != TenantState::Active
                || exception.limits != 0
        });
        (tenant.id, needed)
    }
}

fn renumber(exceptions: &Exceptions, old: &Fleet, new: &Fleet) -> Exceptions {
    let same = old.shards.iter().map(|s| &s.id).eq(new
        .shards
        .iter()
        .take(old.shards.len())
        .map(|s| &s.id))
        && old.regions.iter().map(|r| &r.id).eq(new
            .regions
            .iter()
            .take(old.regions.len())
            .map(|r| &r.id));
    if same {
        return exceptions.clone();
    }
    let numbers = Numbers::of(new);
    Exceptions::default().with(exceptions.iter().map(|exception| {
        let shard = numbers.shards.get(&old.shards[exception.shard as usize].id);
        let region = numbers
            .regions
            .get(&old.regions[usize::from(exception.region)].id);
        let renumbered = shard.zip(region).map(|(shard, region)| Exception {
            shard: *shard,
            region: *region,
            ..*exception
        });
        (exception.tenant, renumbered)
    }))
}

fn position<T>(list: &[T], wanted: impl FnMut(&T) -> bool) -> Option<usize> {
    list.iter().position(wanted)
}

/// A snapshot, and who was there, as a file holds them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFile {
    version: i64,
    fleet: Fleet,
    exceptions: Vec<(TenantId, Epoch, u32, u16, TenantState)>,
    revoked: Vec<KeyId>,
    /// Limits of the exceptions that have other than the default plan's, by
    /// their places in `limit_sets`. Missing in files of earlier versions.
    #[serde(default)]
    limited: Vec<(TenantId, u32)>,
    #[serde(default)]
    limit_sets: Vec<LimitSet>,
    /// Missing in files of earlier versions.
    #[serde(default)]
    members: Members,
}

impl SnapshotFile {
    /// What the file is to hold.
    pub fn new(snapshot: &Snapshot, members: &Members) -> Self {
        let exceptions = snapshot.exceptions.iter();
        let limited = snapshot.exceptions.iter().filter(|e| e.limits != 0);
        Self {
            limited: limited.map(|e| (e.tenant, e.limits)).collect(),
            limit_sets: snapshot.limits.sets().to_vec(),
            members: members.clone(),
            version: snapshot.version,
            fleet: (*snapshot.fleet).clone(),
            exceptions: exceptions
                .map(|e| (e.tenant, e.epoch, e.shard, e.region, e.state))
                .collect(),
            revoked: snapshot.revoked.iter().copied().collect(),
        }
    }

    /// What the file holds.
    pub fn open(self) -> (Snapshot, Members) {
        let (shards, regions) = (self.fleet.shards.len(), self.fleet.regions.len());
        let mut sets = LimitSets::new(&self.fleet.plans);
        let limited: HashMap<TenantId, u32> = self
            .limited
            .iter()
            .filter_map(|(tenant, place)| {
                let set = self.limit_sets.get(*place as usize)?;
                Some((*tenant, sets.number(set, &self.fleet.plans)))
            })
            .collect();
        let changes = self
            .exceptions
            .into_iter()
            .filter(|(_, _, shard, region, _)| {
                (*shard as usize) < shards && usize::from(*region) < regions
            })
            .map(|(tenant, epoch, shard, region, state)| {
                let exception = Exception {
                    tenant,
                    epoch,
                    shard,
                    region,
                    state,
                    limits: limited.get(&tenant).copied().unwrap_or(0),
                };
                (tenant, Some(exception))
            });
        let exceptions = Exceptions::default().with(changes);
        let empty = Snapshot::empty().with(Delta {
            version: self.version,
            fleet: Some(self.fleet),
            tenants: Vec::new(),
            revoked: self.revoked,
        });
        let snapshot = Snapshot {
            exceptions,
            limits: Arc::new(sets),
            ..empty
        };
        (snapshot, self.members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(shards: &[&str]) -> Fleet {
        Fleet {
            regions: vec![
                RegionRow {
                    id: "eu".into(),
                    is_default: true,
                },
                RegionRow {
                    id: "us".into(),
                    is_default: false,
                },
            ],
            shards: shards
                .iter()
                .map(|id| ShardRow {
                    id: (*id).into(),
                    region: if id.starts_with("us") { "us" } else { "eu" }.into(),
                    weight: 1.0,
                    on_ring: true,
                    nodes: Vec::new(),
                    timelines: Timelines::default(),
                })
                .collect(),
            issuers: Vec::new(),
            plans: Vec::new(),
        }
    }

    fn row(n: u128, shard: &str, epoch: i64) -> TenantRow {
        TenantRow {
            id: TenantId(Uuid::from_u128(n)),
            shard: shard.into(),
            ring_shard: "s1".into(),
            epoch: Epoch(epoch),
            region: "eu".into(),
            state: TenantState::Active,
            limits: LimitSet::default(),
        }
    }

    fn delta(version: i64, fleet: Option<Fleet>, tenants: Vec<TenantRow>) -> Delta {
        Delta {
            version,
            fleet,
            tenants,
            revoked: Vec::new(),
        }
    }

    #[test]
    fn the_ring_answers_unless_there_is_an_exception() {
        let snapshot = Snapshot::empty().with(delta(
            1,
            Some(fleet(&["s1", "us1"])),
            vec![row(7, "us1", 3)],
        ));
        let ordinary = snapshot.place(TenantId(Uuid::from_u128(1))).unwrap();
        assert_eq!(
            (ordinary.shard.as_str(), ordinary.epoch),
            ("s1", Epoch::FIRST)
        );
        let moved = snapshot.place(TenantId(Uuid::from_u128(7))).unwrap();
        assert_eq!((moved.shard.as_str(), moved.epoch), ("us1", Epoch(3)));
    }

    #[test]
    fn an_exception_ends_when_the_tenant_is_ordinary_again() {
        let snapshot =
            Snapshot::empty().with(delta(1, Some(fleet(&["s1", "s2"])), vec![row(7, "s2", 1)]));
        assert_eq!(snapshot.exceptions().len(), 1);
        let snapshot = snapshot.with(delta(2, None, vec![row(7, "s1", 1)]));
        assert!(snapshot.exceptions().is_empty());
        assert_eq!(snapshot.version(), 2);
    }

    #[test]
    fn exceptions_follow_their_shard_when_the_list_changes() {
        let snapshot =
            Snapshot::empty().with(delta(1, Some(fleet(&["s1", "s2"])), vec![row(7, "s2", 2)]));
        let snapshot = snapshot.with(delta(2, Some(fleet(&["s0", "s1", "s2"])), vec![]));
        let placement = snapshot.place(TenantId(Uuid::from_u128(7))).unwrap();
        assert_eq!(placement.shard.as_str(), "s2");
    }

    #[test]
    fn a_file_holds_all_of_it() {
        let mut first = delta(5, Some(fleet(&["s1", "s2", "us1"])), vec![row(7, "s2", 2)]);
        first.revoked = vec![KeyId(3)];
        let snapshot = Snapshot::empty().with(first);
        let members = Members::default();
        let text = serde_json::to_string(&SnapshotFile::new(&snapshot, &members)).unwrap();
        let (read, _) = serde_json::from_str::<SnapshotFile>(&text).unwrap().open();
        assert_eq!(read.version(), 5);
        assert!(read.revoked().contains(&KeyId(3)));
        assert_eq!(read.fleet(), snapshot.fleet());
        for n in 0..50 {
            let tenant = TenantId(Uuid::from_u128(n));
            assert_eq!(read.place(tenant), snapshot.place(tenant));
        }
    }

    fn gold(rate: u32) -> Fleet {
        let limits = Limits {
            requests_per_second: Some(rate),
            ..Limits::default()
        };
        Fleet {
            plans: vec![PlanRow {
                id: "gold".into(),
                limits,
            }],
            ..fleet(&["s1"])
        }
    }

    fn limited(n: u128, plan: &str, rows: Option<u32>) -> TenantRow {
        let own = Limits {
            rows,
            ..Limits::default()
        };
        TenantRow {
            limits: LimitSet {
                plan: plan.into(),
                own,
            },
            ..row(n, "s1", 1)
        }
    }

    #[test]
    fn limits_follow_plans_and_tenants_and_survive_in_a_file() {
        let rows = vec![limited(1, "gold", None), limited(2, "gold", Some(9))];
        let snapshot = Snapshot::empty().with(delta(1, Some(gold(100)), rows));
        let of = |snapshot: &Snapshot, n| {
            let limits = snapshot.limits(TenantId(Uuid::from_u128(n)));
            (limits.requests_per_second, limits.rows)
        };
        assert_eq!(of(&snapshot, 1), (Some(100), None));
        assert_eq!(of(&snapshot, 2), (Some(100), Some(9)));
        assert_eq!(of(&snapshot, 3), (None, None));
        // The plan alone changes, then a tenant alone.
        let snapshot = snapshot.with(delta(2, Some(gold(200)), vec![]));
        assert_eq!(of(&snapshot, 2), (Some(200), Some(9)));
        let snapshot = snapshot.with(delta(3, None, vec![limited(2, "default", None)]));
        assert_eq!(of(&snapshot, 2), (None, None));
        assert_eq!(snapshot.exceptions().len(), 1);

        let text = serde_json::to_string(&SnapshotFile::new(&snapshot, &Members::default()));
        let file: SnapshotFile = serde_json::from_str(&text.unwrap()).unwrap();
        let (read, _) = file.open();
        for n in 1..4 {
            assert_eq!(of(&read, n), of(&snapshot, n));
        }
    }

    #[test]
    fn limits_that_nobody_has_any_longer_are_forgotten() {
        let mut snapshot = Snapshot::empty().with(delta(1, Some(gold(100)), vec![]));
        let other = limited(2, "gold", Some(7));
        snapshot = snapshot.with(delta(1, None, vec![other]));
        for n in 1..3_000 {
            let changed = limited(1, "gold", Some(n));
            snapshot = snapshot.with(delta(i64::from(n), None, vec![changed]));
            assert!(snapshot.limits.sets().len() <= UNUSED_SETS_MAX + 3);
        }
        let rows = |n| snapshot.limits(TenantId(Uuid::from_u128(n))).rows;
        assert_eq!((rows(1), rows(2)), (Some(2_999), Some(7)));
    }
}
