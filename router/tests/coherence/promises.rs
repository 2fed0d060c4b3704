//! What must hold in every state; and, last, what must be possible at all.

use super::world::*;
use super::*;

pub(super) fn all() -> Vec<Property<Rules>> {
    vec![
        Property::always(
            "a hit has every acknowledged write",
            hits_have_the_acknowledged,
        ),
        Property::always("so has a node's answer", nodes_have_the_acknowledged),
        Property::always(
            "no hit is older than its lease",
            nothing_older_than_the_lease,
        ),
        Property::always("a token finds its write", tokens_find_their_write),
        Property::always("nothing stays old for ever", nothing_stays_old),
        Property::always("a read by steps is right", |_: &Rules, world: &World| {
            !world.wrong
        }),
        Property::always("a hit can be had again", a_hit_can_be_had_again),
        Property::sometimes("can hit after all was written", a_useful_hit),
    ]
}

fn here<'a>(rules: &Rules, world: &'a World) -> &'a View {
    &world.views[rules.placements()[world.believed]]
}

fn leased(rules: &Rules, view: &View) -> bool {
    view.lease.is_some() || !rules.keeps(R6NoLeaseNeeded)
}

/// Rules 6, 8 and 11.
fn hits_have_the_acknowledged(rules: &Rules, world: &World) -> bool {
    let lacks = |(answer, _, question): (Set, Lsn, Set)| {
        rules.owed(world, world.acknowledged, question) & !answer != 0
    };
    !leased(rules, here(rules, world)) || !rules.hits(world).any(lacks)
}

/// Rules 5, 10 and 11: the primary's, or under a lease a standby's.
fn nodes_have_the_acknowledged(rules: &Rules, world: &World) -> bool {
    let line = rules.line_of(rules.placements()[world.believed]);
    let view = here(rules, world);
    let whole = |seen: Set| rules.owed(world, world.acknowledged, 3) & !seen == 0;
    let primary = world.snapshot(line);
    let asked = rules.serves(world, line) && rules.admits(world.believed, primary, false);
    if asked && !whole(primary) {
        return false;
    }
    let leased = view.lease.is_some() || !rules.keeps(R10ReplicaWithoutLease);
    let mut far = (view.watermark..=world.end(line))
        .map(|lsn| world.replayed(line, lsn))
        .filter(|seen| rules.admits(world.believed, *seen, true));
    !rules.replicas || !leased || far.all(whole)
}

/// Rule 4: what was visible when the ping left, acknowledged or not.
fn nothing_older_than_the_lease(rules: &Rules, world: &World) -> bool {
    let known = match rules.keeps(R6NoLeaseNeeded) {
        true => here(rules, world).lease.map(|lease| lease.knows),
        false => Some(world.snapshot(rules.line_of(rules.placements()[world.believed]))),
    };
    known.is_none_or(|known| {
        let mut hits = rules.hits(world);
        hits.all(|(answer, _, question)| rules.owed(world, known, question) & !answer == 0)
    })
}

/// Rule 9: an entry at or behind a token has its write, also one that was lost.
fn tokens_find_their_write(rules: &Rules, world: &World) -> bool {
    if here(rules, world).lease.is_none() {
        return true;
    }
    let line = rules.line_of(rules.placements()[world.believed]);
    rules.hits(world).all(|(answer, stamp, question)| {
        (0..WRITES).all(|i| {
            let fits = match world.writes[i] {
                Write::Visible(l, lsn) if l == line || !rules.keeps(R9OtherTimeline) => {
                    stamp >= lsn || !rules.keeps(R9TokenNotCompared)
                }
                _ => false,
            };
            let asked = !rules.is_the_jobs(i) && rules.touches[i] & question != 0;
            !fits || !asked || answer & bit(i) != 0
        })
    })
}

/// Rules 2 and 5: once all is told, no hit is old, with or without a lease.
fn nothing_stays_old(rules: &Rules, world: &World) -> bool {
    let line = rules.line_of(rules.placements()[world.believed]);
    let all_shown = world.those(|w| matches!(w, Write::Logged(l, _) if l == line)) == 0;
    let all_told = here(rules, world).watermark == world.end(line);
    if !all_shown || !all_told || rules.deposed(world, line) {
        return true;
    }
    let now = world.snapshot(line);
    let mut hits = rules.hits(world);
    hits.all(|(answer, _, question)| rules.owed(world, now, question) & !answer == 0)
}

/// Liveness: from wherever the world is, steps that nothing prevents lead to a
/// hit under a lease. (A world whose two workers have both come and gone waits
/// for a third.)
fn a_hit_can_be_had_again(rules: &Rules, world: &World) -> bool {
    let mut world = world.clone();
    for _ in 0..HELP_MAX {
        let view = here(rules, &world);
        if view.lease.is_some() && rules.hits(&world).next().is_some() {
            return true;
        }
        let gone = |worker: &Worker| worker.runs && worker.cut_off_at.is_some();
        if rules.story == Story::Unattended && world.workers[..2].iter().all(gone) {
            return true;
        }
        let Some(step) = rules.helpful(&world) else {
            return false;
        };
        rules.take(&mut world, step);
        rules.fill(&mut world);
    }
    false
}

/// Steps that help, at most.
const HELP_MAX: usize = 80;

/// The rules do not only forbid.
fn a_useful_hit(rules: &Rules, world: &World) -> bool {
    let all = (0..rules.writes).map(bit).sum::<Set>() & !world.lost;
    let last = rules.placements().len() - 1;
    let over = match rules.story {
        Story::Quiet => true,
        Story::Takeover => world.followed == 1,
        Story::Unattended => world.vouched & all == all,
        _ => world.believed == last,
    };
    let answered = |(answer, ..): (Set, Lsn, Set)| answer & all == all;
    over && all != 0
        && world.acknowledged & all == all
        && here(rules, world).lease.is_some()
        && rules.hits(world).any(answered)
}
