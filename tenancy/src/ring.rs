//! The consistent hash ring (Karger et al., 1997), over the crate `hashring`.
//!
//! `hashring` hashes through `std::hash::Hash`, whose byte stream differs
//! between types, compilers and platforms. So that a tenant's answer never
//! does, keys and virtual nodes are types of this module that write raw bytes,
//! and a test holds golden vectors.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use hashring::{DefaultHashBuilder, HashRing};

use crate::id::TenantId;

/// Virtual nodes of a member of weight 1: the largest share is then about 1.05
/// of the mean.
const VIRTUAL_NODES: f64 = 256.0;

/// A ring whose members are numbered as they were given.
///
/// `hashring` hashes and orders the points. Its own look-up is a binary search
/// that misses the processor's caches at nearly every step of 256,000 points;
/// hashes are spread evenly, so an index by their leading bits leads to within
/// a point or two of the answer.
pub struct Ring {
    hasher: DefaultHashBuilder,
    /// In order of their hashes.
    places: Box<[Place]>,
    /// For each value of the leading bits, the first place with them or beyond.
    starts: Box<[u32]>,
    /// How far a hash is shifted for its leading bits to remain.
    shift: u32,
}

struct Place {
    hash: u64,
    member: u32,
}

/// One virtual node. Equal bytes give equal places on the ring, so a member
/// keeps its places whatever others come and go.
#[derive(Clone)]
struct Point {
    name: Arc<str>,
    index: u32,
    member: u32,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.name.as_bytes());
        state.write(b"#");
        state.write(&self.index.to_le_bytes());
    }
}

/// What is looked up.
struct Key([u8; 16]);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl Ring {
    /// A ring of named members with their weights (1 is usual); each gets
    /// 256 × weight virtual nodes, one at least.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, f64)>) -> Self {
        let mut ring = HashRing::new();
        // One batch: each single insertion would sort the whole ring again.
        ring.batch_add(points(members));
        Self::of_ordered(ring)
    }

    fn of_ordered(ring: HashRing<Point>) -> Self {
        let hasher = DefaultHashBuilder;
        let places: Box<[Place]> = ring
            .into_iter()
            .map(|point| Place {
                hash: hasher.hash_one(&point),
                member: point.member,
            })
            .collect();
        // About one place for each value; one bit at least, as 64 can't be shifted by.
        let bits = places.len().max(2).next_power_of_two().ilog2();
        let shift = u64::BITS - bits;
        let start = |leading: u64| {
            let first = places.partition_point(|place| place.hash >> shift < leading);
            first as u32
        };
        Self {
            starts: (0..1 << bits).map(start).collect(),
            hasher,
            places,
            shift,
        }
    }

    /// The number of the member that `tenant` falls to; none on an empty ring.
    pub fn get(&self, tenant: TenantId) -> Option<usize> {
        let hash = self.hasher.hash_one(Key(*tenant.0.as_bytes()));
        let start = self.starts[(hash >> self.shift) as usize] as usize;
        let mut following = self.places[start..].iter();
        let place = following.find(|place| place.hash >= hash);
        // Past the last place the ring begins again.
        place
            .or_else(|| self.places.first())
            .map(|place| place.member as usize)
    }
}

/// All virtual nodes of the members.
fn points<'a>(members: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<Point> {
    let mut points = Vec::new();
    for (member, (name, weight)) in members.into_iter().enumerate() {
        let name: Arc<str> = name.into();
        let count = (VIRTUAL_NODES * weight).round().max(1.0) as u32;
        points.extend((0..count).map(|index| Point {
            name: name.clone(),
            index,
            member: member as u32,
        }));
    }
    points
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn tenant(n: u128) -> TenantId {
        // Spread over the whole id, as random ids are.
        TenantId(Uuid::from_u128(
            n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835),
        ))
    }

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("s{n}")).collect()
    }

    fn ring(names: &[String]) -> Ring {
        Ring::new(names.iter().map(|name| (name.as_str(), 1.0)))
    }

    /// If this test turns red, tenants have moved: never change the vectors.
    #[test]
    fn golden_vectors() {
        let names = names(5);
        let ring = ring(&names);
        let answers: Vec<_> = (0..24).map(|n| ring.get(tenant(n)).unwrap() + 1).collect();
        insta::assert_debug_snapshot!(format!("{answers:?}"));
    }

    #[test]
    fn shares_are_balanced() {
        let names = names(8);
        let ring = ring(&names);
        let mut counts = [0_u32; 8];
        for n in 0..200_000 {
            counts[ring.get(tenant(n)).unwrap()] += 1;
        }
        let max = f64::from(*counts.iter().max().unwrap());
        assert!(max / 25_000.0 < 1.12, "{counts:?}");
    }

    #[test]
    fn weights_give_shares() {
        let ring = Ring::new([("a", 1.0), ("b", 3.0)]);
        let b = (0..100_000)
            .filter(|n| ring.get(tenant(*n)) == Some(1))
            .count();
        assert!((70_000..80_000).contains(&b), "{b}");
    }

    #[test]
    fn an_empty_ring_answers_nothing() {
        assert_eq!(Ring::new([]).get(tenant(1)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Adding a shard moves tenants to it only, and about 1/(N+1) of them.
        #[test]
        fn a_new_member_takes_its_share_and_nothing_else(count in 1_usize..20, start in any::<u128>()) {
            let all = names(count + 1);
            let before = ring(&all[..count]);
            let after = ring(&all);
            let mut moved = 0;
            for n in 0..10_000 {
                let tenant = tenant(start.wrapping_add(n));
                let (old, new) = (before.get(tenant).unwrap(), after.get(tenant).unwrap());
                if old != new {
                    prop_assert_eq!(new, count);
                    moved += 1;
                }
            }
            let share = 10_000.0 / (count as f64 + 1.0);
            prop_assert!((moved as f64) < share * 1.35, "{} of {}", moved, share);
        }

        /// The index leads where the crate's own search does.
        #[test]
        fn the_answer_is_hashrings(count in 1_usize..12, weight in 0.001_f64..3.0, start in any::<u128>()) {
            let all = names(count);
            let members = || all.iter().map(|name| (name.as_str(), weight));
            let mut plain = HashRing::new();
            plain.batch_add(points(members()));
            let ring = Ring::new(members());
            for n in 0..500 {
                let tenant = tenant(start.wrapping_add(n));
                let expected = plain.get(&Key(*tenant.0.as_bytes())).map(|p| p.member as usize);
                prop_assert_eq!(ring.get(tenant), expected);
            }
        }

        /// The order in which members are named does not matter.
        #[test]
        fn order_does_not_matter(count in 1_usize..12, n in any::<u128>()) {
            let all = names(count);
            let reversed: Vec<_> = all.iter().rev().cloned().collect();
            let one = ring(&all).get(tenant(n)).unwrap();
            let other = ring(&reversed).get(tenant(n)).unwrap();
            prop_assert_eq!(&all[one], &reversed[other]);
        }
    }
}
