//! Names of what a move makes on shards. Whatever bears one is a move's, and
//! says of which job.

use uuid::Uuid;

use super::Way;

/// How all of them begin.
pub const PREFIX: &str = "ringfence_move_";

/// The subscription on the receiving shard, and the slot on the sending one.
pub fn stream(job: Uuid, way: Way) -> String {
    format!("{PREFIX}{}{}", job.simple(), suffix(way))
}

/// The publication of the stream's markers, on the sending shard.
pub fn markers(job: Uuid, way: Way) -> String {
    format!("{}_mark", stream(job, way))
}

/// The publication of a bundle of so many tenants' rows, on the sending shard. One of
/// several has a name that the version before bundles does not ask for: it would take
/// it for a single tenant's.
pub fn bundle(job: Uuid, number: usize, tenants: usize, way: Way) -> String {
    let mark = if tenants > 1 { "b" } else { "" };
    format!("{PREFIX}{}_{mark}{number}{}", job.simple(), suffix(way))
}

/// The temporary slot of what is written meanwhile; each watch has its own.
pub fn watch(job: Uuid, watch: Uuid) -> String {
    let watch = watch.simple().to_string();
    format!("{PREFIX}{}_w{}", job.simple(), &watch[..8])
}

/// The word in `ringfence.move_marker`.
pub fn way(way: Way) -> &'static str {
    match way {
        Way::Forward => "forward",
        Way::Back => "back",
    }
}

fn suffix(way: Way) -> &'static str {
    match way {
        Way::Forward => "",
        Way::Back => "_back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_fits_a_name_of_postgres() {
        let job = Uuid::max();
        let longest = [
            stream(job, Way::Back),
            markers(job, Way::Back),
            bundle(job, 999, 2, Way::Back),
            watch(job, job),
        ];
        assert!(longest.iter().all(|name| name.len() <= 63), "{longest:?}");
    }

    #[test]
    fn a_bundle_is_never_taken_for_a_single_tenant() {
        let name = |tenants| bundle(Uuid::nil(), 7, tenants, Way::Back);
        assert!(name(1).ends_with("_7_back"), "{}", name(1));
        assert!(name(2).ends_with("_b7_back"), "{}", name(2));
    }
}
