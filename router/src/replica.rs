//! Which replica answers: the tenant's own, as long as it is not too busy. Pure.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998) keeps a tenant on one
//! replica, whose memory then holds its rows, and spreads a lost replica's
//! tenants evenly. Loads are bounded (Mirrokni et al., 2018): a replica with
//! more than 1.25 times the mean in flight passes requests on to the tenant's
//! next one.

use std::hash::{DefaultHasher, Hasher};

use uuid::Uuid;

/// A replica that may answer.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its node's name.
    pub name: &'a str,
    /// Reads in flight there.
    pub in_flight: usize,
}

/// The place of the replica to ask; none where there is none.
pub fn choose(tenant: Uuid, candidates: &[Candidate<'_>]) -> Option<usize> {
    let total: usize = candidates.iter().map(|c| c.in_flight).sum();
    // With the request at hand, rounded up, so that one replica is never over it.
    let bound = ((total + 1) * 5).div_ceil(4 * candidates.len().max(1));
    let score = |c: &Candidate<'_>| {
        let mut hasher = DefaultHasher::new();
        hasher.write(tenant.as_bytes());
        hasher.write(c.name.as_bytes());
        hasher.finish()
    };
    let free = candidates.iter().enumerate();
    let free = free.filter(|(_, c)| c.in_flight < bound);
    free.max_by_key(|(_, c)| score(c)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(loads: &[usize]) -> Vec<Candidate<'static>> {
        const NAMES: [&str; 5] = ["r1", "r2", "r3", "r4", "r5"];
        let named = NAMES.iter().zip(loads);
        named
            .map(|(name, in_flight)| Candidate {
                name,
                in_flight: *in_flight,
            })
            .collect()
    }

    #[test]
    fn tenants_are_spread_and_a_lost_replicas_move_alone() {
        let mut counts = [0; 3];
        for n in 0..3_000 {
            let tenant = Uuid::from_u128(n);
            let all = choose(tenant, &candidates(&[0, 0, 0])).unwrap();
            counts[all] += 1;
            let two = choose(tenant, &candidates(&[0, 0])).unwrap();
            assert!(all == 2 || all == two, "only the third's tenants move");
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
        assert_eq!(choose(Uuid::nil(), &[]), None);
    }

    proptest! {
        #[test]
        fn nobody_gets_much_more_than_the_mean(loads in prop::collection::vec(0_usize..50, 1..5), tenant in any::<u128>()) {
            let chosen = choose(Uuid::from_u128(tenant), &candidates(&loads));
            let chosen = chosen.expect("somebody is below the bound");
            let mean = (loads.iter().sum::<usize>() + 1) as f64 / loads.len() as f64;
            prop_assert!((loads[chosen] as f64) < 1.25 * mean + 1.0);
        }

        #[test]
        fn one_tenants_flood_spreads(count in 2_usize..5, tenant in any::<u128>()) {
            let mut loads = vec![0; count];
            for _ in 0..400 {
                let chosen = choose(Uuid::from_u128(tenant), &candidates(&loads)).unwrap();
                loads[chosen] += 1;
            }
            let max = loads.iter().max().copied().unwrap_or_default();
            prop_assert!(max as f64 <= 1.25 * 401.0 / count as f64 + 1.0, "{:?}", loads);
        }
    }
}
