//! Which tenants should live elsewhere: from sizes, weights, pins and regions to
//! moves. Pure, and quick enough for a million tenants on a thousand shards.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Largest weighted size over the smallest, that is left alone.
pub const SPREAD: f64 = 1.10;

/// A shard, as plans see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// Its name.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Its share.
    pub weight: f64,
    /// It may get tenants.
    pub open: bool,
}

/// A tenant, as plans see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: Uuid,
    /// Number of its shard.
    pub shard: usize,
    /// Number of the shard that the ring says.
    pub ring: usize,
    /// Its size in bytes.
    pub bytes: u64,
    /// It stays where it is.
    pub pinned: bool,
}

/// What a plan aims at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "policy")]
pub enum Policy {
    /// Each tenant where the ring says.
    Ring,
    /// No shard with more than 1.10 of another's bytes, by weight; few bytes moved.
    Load,
    /// Nothing on this shard; where the ring says, else where there is room.
    Drain {
        /// The shard.
        shard: String,
    },
    /// A tenant has a shard for itself: it goes to one that is empty; where there is
    /// none the others leave.
    Isolate {
        /// The tenant.
        tenant: Uuid,
    },
}

impl Policy {
    /// Who is pinned stays.
    pub fn heeds_pins(&self) -> bool {
        match self {
            Self::Ring | Self::Load => true,
            Self::Drain { .. } | Self::Isolate { .. } => false,
        }
    }
}

/// A tenant that should move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Planned {
    /// From this shard's number.
    pub from: usize,
    /// To this one's.
    pub to: usize,
    /// The tenant.
    pub tenant: Uuid,
    /// Its size.
    pub bytes: u64,
}

/// What a plan does and what comes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The moves, in order of their shards.
    pub moves: Vec<Planned>,
    /// Bytes by shard now.
    pub before: Vec<u64>,
    /// Bytes by shard then.
    pub after: Vec<u64>,
}

impl Proposal {
    /// Bytes that are moved.
    pub fn bytes(&self) -> u64 {
        self.moves.iter().map(|planned| planned.bytes).sum()
    }
}

/// The moves that a policy asks for.
pub fn propose(shards: &[Shard], tenants: &[Tenant], policy: &Policy) -> Proposal {
    let mut sizes = vec![0_u64; shards.len()];
    for tenant in tenants {
        sizes[tenant.shard] += tenant.bytes;
    }
    let before = sizes.clone();
    let mut moves = match policy {
        Policy::Ring => by_ring(shards, tenants),
        Policy::Load => {
            let mut regions: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for (number, shard) in shards.iter().enumerate().filter(|(_, shard)| shard.open) {
                regions.entry(&shard.region).or_default().push(number);
            }
            let mut moves = Vec::new();
            for region in regions.values() {
                moves.extend(level(shards, tenants, region, &sizes));
            }
            moves
        }
        Policy::Drain { shard } => {
            let leaving = |tenant: &Tenant| shards[tenant.shard].id == *shard;
            empty(shards, tenants, &sizes, leaving)
        }
        Policy::Isolate { tenant } => {
            let one = tenants.iter().find(|t| t.id == *tenant);
            one.map_or_else(Vec::new, |one| isolate(shards, tenants, &sizes, one))
        }
    };
    moves.sort();
    for planned in &moves {
        sizes[planned.from] -= planned.bytes;
        sizes[planned.to] += planned.bytes;
    }
    Proposal {
        moves,
        before,
        after: sizes,
    }
}

fn by_ring(shards: &[Shard], tenants: &[Tenant]) -> Vec<Planned> {
    tenants
        .iter()
        .filter(|tenant| tenant.ring != tenant.shard && !tenant.pinned && shards[tenant.ring].open)
        .map(|tenant| planned(tenant, tenant.ring))
        .collect()
}

/// Everybody who leaves goes where the ring says, or where there is most room.
/// Pins count for nothing: the shard is to be empty.
fn empty(
    shards: &[Shard],
    tenants: &[Tenant],
    sizes: &[u64],
    leaving: impl Fn(&Tenant) -> bool,
) -> Vec<Planned> {
    let mut sizes = sizes.to_vec();
    let mut leavers: Vec<&Tenant> = tenants.iter().filter(|tenant| leaving(tenant)).collect();
    leavers.sort_by_key(|tenant| (Reverse(tenant.bytes), tenant.id));
    let mut moves = Vec::with_capacity(leavers.len());
    for tenant in leavers {
        let fits = |number: &usize| {
            *number != tenant.shard
                && shards[*number].open
                && shards[*number].region == shards[tenant.shard].region
        };
        let to = match fits(&tenant.ring) {
            true => Some(tenant.ring),
            false => (0..shards.len()).filter(fits).min_by(|a, b| {
                let full = |number: usize| sizes[number] as f64 / shards[number].weight;
                full(*a).total_cmp(&full(*b))
            }),
        };
        let Some(to) = to else { continue };
        sizes[tenant.shard] -= tenant.bytes;
        sizes[to] += tenant.bytes;
        moves.push(planned(tenant, to));
    }
    moves
}

/// To an empty shard, where there is one; else the others leave.
fn isolate(shards: &[Shard], tenants: &[Tenant], sizes: &[u64], one: &Tenant) -> Vec<Planned> {
    let mut residents = vec![0_usize; shards.len()];
    for tenant in tenants {
        residents[tenant.shard] += 1;
    }
    let is_free = |number: &usize| {
        let shard = &shards[*number];
        shard.open && residents[*number] == 0 && shard.region == shards[one.shard].region
    };
    let lighter = |a: &usize, b: &usize| shards[*a].weight.total_cmp(&shards[*b].weight);
    match (0..shards.len()).filter(is_free).max_by(lighter) {
        _ if residents[one.shard] == 1 => Vec::new(),
        Some(free) => vec![planned(one, free)],
        None => empty(shards, tenants, sizes, |t| {
            t.shard == one.shard && t.id != one.id
        }),
    }
}

/// Takes from shards above the band just what is above, and gives it to those
/// with most room; then fills those below it from the fullest.
fn level(shards: &[Shard], tenants: &[Tenant], region: &[usize], sizes: &[u64]) -> Vec<Planned> {
    let total: u64 = region.iter().map(|number| sizes[*number]).sum();
    let weights: f64 = region.iter().map(|number| shards[*number].weight).sum();
    if region.len() < 2 || total == 0 {
        return Vec::new();
    }
    // A band whose ends are SPREAD apart, around each shard's fair share.
    let half = SPREAD.sqrt();
    let fair = |number: usize| total as f64 * shards[number].weight / weights;
    let mut sizes = sizes.to_vec();
    let mut residents: BTreeMap<usize, Vec<&Tenant>> = BTreeMap::new();
    for tenant in tenants
        .iter()
        .filter(|tenant| !tenant.pinned && tenant.bytes > 0)
    {
        residents.entry(tenant.shard).or_default().push(tenant);
    }
    for list in residents.values_mut() {
        list.sort_by_key(|tenant| (Reverse(tenant.bytes), tenant.id));
    }
    let mut room = Room::new(region, |number| fair(number) * half - sizes[number] as f64);
    let mut moves: Vec<Planned> = Vec::new();
    let mut give = |tenant: &Tenant, to: usize, sizes: &mut Vec<u64>| {
        sizes[tenant.shard] -= tenant.bytes;
        sizes[to] += tenant.bytes;
        moves.push(planned(tenant, to));
    };
    for &donor in region {
        let list = residents.remove(&donor).unwrap_or_default();
        let mut kept = Vec::with_capacity(list.len());
        let high = fair(donor) * half;
        let mut waiting: Vec<&Tenant> = list;
        // Twice: what is too large for the excess at first may be all that is left.
        for exact in [true, false] {
            let mut later = Vec::new();
            // The smallest that is enough, where nothing fits exactly.
            if !exact {
                waiting.reverse();
            }
            for tenant in waiting {
                let excess = sizes[donor] as f64 - high;
                let size = tenant.bytes as f64;
                let goes = excess > 0.0
                    && if exact {
                        size <= excess
                    } else {
                        size >= excess && size < 2.0 * excess.max(fair(donor) * 0.02)
                    };
                match goes.then(|| room.take(donor, size)).flatten() {
                    Some(to) => give(tenant, to, &mut sizes),
                    None => later.push(tenant),
                }
            }
            waiting = later;
        }
        kept.append(&mut waiting);
        kept.sort_by_key(|tenant| (Reverse(tenant.bytes), tenant.id));
        residents.insert(donor, kept);
    }
    // Those that are still below the band.
    let mut hungry: Vec<usize> = region
        .iter()
        .copied()
        .filter(|number| (sizes[*number] as f64) < fair(*number) / half)
        .collect();
    hungry.sort_by(|a, b| {
        let need = |number: usize| fair(number) / half - sizes[number] as f64;
        need(*b).total_cmp(&need(*a))
    });
    let mut full: BinaryHeap<(u64, usize)> = region
        .iter()
        .map(|number| (fullness(sizes[*number], fair(*number)), *number))
        .collect();
    for taker in hungry {
        let low = fair(taker) / half;
        let mut aside = Vec::new();
        while (sizes[taker] as f64) < low {
            let Some((_, donor)) = full.pop() else { break };
            let need = low - sizes[taker] as f64;
            let spare = sizes[donor] as f64 - fair(donor) / half;
            let list = residents.get_mut(&donor);
            // As large as is needed, but not so large that the giver falls below.
            let found = list.and_then(|list| {
                let limit = spare.min(need.max(fair(taker) * 0.04));
                let first = list.partition_point(|tenant| tenant.bytes as f64 > limit);
                (donor != taker && first < list.len()).then(|| list.remove(first))
            });
            match found {
                Some(tenant) => {
                    give(tenant, taker, &mut sizes);
                    full.push((fullness(sizes[donor], fair(donor)), donor));
                }
                None => aside.push(donor),
            }
        }
        full.extend(
            aside
                .into_iter()
                .map(|number| (fullness(sizes[number], fair(number)), number)),
        );
    }
    moves
}

/// Millionths of the fair share.
fn fullness(size: u64, fair: f64) -> u64 {
    (size as f64 / fair * 1e6) as u64
}

/// How much shards can still take, the emptiest first.
struct Room {
    heap: BinaryHeap<(i64, usize)>,
}

impl Room {
    fn new(region: &[usize], room: impl Fn(usize) -> f64) -> Self {
        let heap = region.iter().map(|number| (room(*number) as i64, *number));
        Self {
            heap: heap.filter(|(room, _)| *room > 0).collect(),
        }
    }

    /// The shard with most room, if it has enough.
    fn take(&mut self, donor: usize, size: f64) -> Option<usize> {
        let (room, number) = self.heap.pop()?;
        let left = room - size as i64;
        if number == donor || left < 0 {
            self.heap.push((room, number));
            return None;
        }
        self.heap.push((left, number));
        Some(number)
    }
}

fn planned(tenant: &Tenant, to: usize) -> Planned {
    Planned {
        from: tenant.shard,
        to,
        tenant: tenant.id,
        bytes: tenant.bytes,
    }
}

/// Largest weighted size over the smallest, of the shards that may get tenants.
pub fn spread(shards: &[Shard], sizes: &[u64]) -> f64 {
    let weighted = || {
        let both = shards.iter().zip(sizes).filter(|(shard, _)| shard.open);
        both.map(|(shard, size)| *size as f64 / shard.weight)
    };
    let (least, most) = (
        weighted().fold(f64::MAX, f64::min),
        weighted().fold(0.0, f64::max),
    );
    match least > 0.0 && least < f64::MAX {
        true => most / least,
        false => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn shards(count: usize) -> Vec<Shard> {
        (0..count)
            .map(|number| Shard {
                id: format!("s{number}"),
                region: "local".into(),
                weight: 1.0,
                open: true,
            })
            .collect()
    }

    /// Bytes that any plan must move: what is above the band, or below it.
    fn least(shards: &[Shard], sizes: &[u64]) -> f64 {
        let total: u64 = sizes.iter().sum();
        let weights: f64 = shards.iter().map(|shard| shard.weight).sum();
        // The band may lie anywhere: a shard's bound is the widest that holds the mean.
        let (mut above, mut below) = (0.0, 0.0);
        for (shard, size) in shards.iter().zip(sizes) {
            let fair = total as f64 * shard.weight / weights;
            above += (*size as f64 - fair * SPREAD.sqrt()).max(0.0);
            below += (fair / SPREAD.sqrt() - *size as f64).max(0.0);
        }
        f64::max(above, below)
    }

    /// As services' tenants are: many small ones, few large ones.
    fn skewed(count: usize, shards: usize) -> Vec<Tenant> {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        (0..count)
            .map(|number| {
                let uniform = (next() >> 11) as f64 / (1_u64 << 53) as f64;
                let bytes = (1e4 / (uniform + 1e-6).powf(0.8)).min(2e6) as u64;
                // The first tenth of the shards is fuller than the others.
                let crowded = next() % 5 == 0;
                let shard = match crowded {
                    true => next() as usize % (shards / 10).max(1),
                    false => next() as usize % shards,
                };
                Tenant {
                    id: Uuid::from_u128(number as u128),
                    shard,
                    ring: next() as usize % shards,
                    bytes,
                    pinned: false,
                }
            })
            .collect()
    }

    #[test]
    fn a_million_tenants_on_a_thousand_shards() {
        let (shards, tenants) = (shards(1_000), skewed(1_000_000, 1_000));
        let began = Instant::now();
        let proposal = propose(&shards, &tenants, &Policy::Load);
        let took = began.elapsed();
        let least = least(&shards, &proposal.before);
        eprintln!(
            "{} moves in {took:?}; max/min {:.2} -> {:.3}; bytes {:.3} of the least",
            proposal.moves.len(),
            spread(&shards, &proposal.before),
            spread(&shards, &proposal.after),
            proposal.bytes() as f64 / least,
        );
        assert!(spread(&shards, &proposal.after) <= SPREAD + 1e-6);
        assert!(proposal.bytes() as f64 <= 1.2 * least);
    }

    #[test]
    fn a_drained_shard_is_empty_and_nobody_leaves_its_region() {
        let mut fleet = shards(6);
        fleet[4].region = "other".into();
        fleet[5].region = "other".into();
        fleet[0].open = false;
        let tenants = skewed(2_000, 4);
        let policy = Policy::Drain { shard: "s0".into() };
        let proposal = propose(&fleet, &tenants, &policy);
        assert_eq!(proposal.after[0], 0);
        assert_eq!((proposal.after[4], proposal.after[5]), (0, 0));
    }

    #[test]
    fn isolating_leaves_one() {
        let (fleet, tenants) = (shards(4), skewed(400, 4));
        let one = tenants[7];
        let policy = Policy::Isolate { tenant: one.id };
        let proposal = propose(&fleet, &tenants, &policy);
        assert_eq!(proposal.after[one.shard], one.bytes);
        // There is an empty one.
        let proposal = propose(&shards(5), &tenants, &policy);
        assert_eq!(proposal.moves, [planned(&one, 4)]);
        // It is alone already.
        let proposal = propose(&fleet, &[one], &policy);
        assert_eq!(proposal.moves, []);
    }

    fn fleet() -> impl Strategy<Value = (Vec<Shard>, Vec<Tenant>)> {
        (2_usize..8, 0_usize..200, any::<u64>()).prop_map(|(count, tenants, seed)| {
            let mut fleet = shards(count);
            for (number, shard) in fleet.iter_mut().enumerate() {
                shard.weight = 1.0 + (seed >> number & 1) as f64;
            }
            let mut tenants = skewed(tenants, count);
            for (number, tenant) in tenants.iter_mut().enumerate() {
                tenant.pinned = (seed >> (number % 60) & 3) == 3;
            }
            (fleet, tenants)
        })
    }

    proptest! {
        #[test]
        fn plans_are_sound((shards, tenants) in fleet()) {
            let by_id: HashMap<Uuid, &Tenant> = tenants.iter().map(|t| (t.id, t)).collect();
            for policy in [Policy::Ring, Policy::Load, Policy::Drain { shard: "s0".into() }] {
                let proposal = propose(&shards, &tenants, &policy);
                prop_assert_eq!(proposal.before.iter().sum::<u64>(), proposal.after.iter().sum::<u64>());
                let mut seen = std::collections::HashSet::new();
                for planned in &proposal.moves {
                    prop_assert!(seen.insert(planned.tenant), "a tenant moves once");
                    let tenant = by_id[&planned.tenant];
                    prop_assert_eq!(tenant.shard, planned.from);
                    prop_assert!(planned.from != planned.to);
                    let may_go = !tenant.pinned || matches!(policy, Policy::Drain { .. });
                    prop_assert!(may_go);
                }
                if policy == Policy::Load {
                    let (was, is) = (spread(&shards, &proposal.before), spread(&shards, &proposal.after));
                    prop_assert!(is <= was.max(SPREAD) * 1.000_001, "{was} became {is}");
                }
            }
        }
    }
}
