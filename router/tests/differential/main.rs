//! The router beside a real PostgREST 12.0.2 on the same data: requests of a
//! seeded grammar go to both, and must be answered alike.
//!
//! `RINGFENCE_DIFF_REQUESTS` asks for more of them, `RINGFENCE_DIFF_SEED` for
//! others, `RINGFENCE_DIFF_ONLY` for the one of that number.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod by_hand;
mod case;
mod compare;
mod grammar;
mod known;
mod pair;
mod postgrest;
mod world;

use std::collections::BTreeMap;

use case::{Case, Section};
use compare::{Verdict, compare};
use futures_util::StreamExt;
use grammar::Grammar;
use pair::{Pair, Reply};
use world::World;

/// As many fit into the suite's time.
const REQUESTS: u64 = 3_000;
const SEED: u64 = 12_002;
/// Disagreements that are shown before the run is given up.
const SHOWN_MAX: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_router_answers_as_postgrest_does() {
    let requests = number("RINGFENCE_DIFF_REQUESTS").unwrap_or(REQUESTS);
    let seed = number("RINGFENCE_DIFF_SEED").unwrap_or(SEED);
    if std::env::var_os("RINGFENCE_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .init();
    }
    let pair = Pair::open().await;
    let world = World::look(&pair).await;
    let numbers: Vec<u64> = match number("RINGFENCE_DIFF_ONLY") {
        Some(only) => vec![only],
        None => (0..requests).collect(),
    };
    let generated = numbers
        .iter()
        .map(|number| (*number, Grammar::new(&world, seed, *number).case()));
    // The same ones in every run, their numbers behind all others'.
    let by_hand = (requests..).zip(by_hand::cases());
    let cases = generated.chain(by_hand);
    let (writes, reads): (Vec<_>, Vec<_>) = cases.partition(|(_, case)| case.writes());
    let mut tally = Tally::default();
    let others = pair.other_contents().await;
    {
        // Reads change nothing, so many may be under way.
        let answers = futures_util::stream::iter(reads).map(|(number, case)| {
            let pair = &pair;
            async move {
                let (ours, theirs) = pair.ask(&case).await;
                (number, case, ours, theirs)
            }
        });
        let mut answers = answers.buffered(6);
        while let Some((number, case, ours, theirs)) = answers.next().await {
            tally.take(&pair, number, &case, ours, theirs).await;
            if tally.failures.len() >= SHOWN_MAX {
                break;
            }
        }
    }
    for (number, case) in writes {
        if tally.failures.len() >= SHOWN_MAX {
            break;
        }
        let (ours, theirs) = pair.ask(&case).await;
        // Where only one of them refused it, as a known difference, rows differ.
        let alike = (ours.status < 300) == (theirs.status < 300);
        tally.take(&pair, number, &case, ours, theirs).await;
        if case.commits {
            let (left, right) = pair.contents().await;
            if pair.other_contents().await != others {
                tally
                    .failures
                    .push(format!("#{number} changed the other tenant's rows\n{case}"));
                break;
            }
            if alike && left != right {
                tally.failures.push(format!(
                    "#{number} left other rows\n{case}\n{}",
                    differing(&left, &right)
                ));
            }
            pair.restore().await;
        } else if case.method == "POST" {
            pair.restore_numbers().await;
        }
    }
    println!("seed {seed}, {requests} requests\n{}", tally.table());
    assert!(
        tally.failures.is_empty(),
        "seed {seed}: {} disagreements\n\n{}",
        tally.failures.len(),
        tally.failures.join("\n\n")
    );
    pair.down().await;
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn differing(left: &str, right: &str) -> String {
    let lines = |a: &str, b: &str| {
        let only = a
            .lines()
            .filter(|line| !b.lines().any(|other| other == *line));
        only.collect::<Vec<_>>().join("\n  ")
    };
    format!(
        "router:\n  {}\nPostgREST:\n  {}",
        lines(left, right),
        lines(right, left)
    )
}

/// What came of the requests.
#[derive(Default)]
struct Tally {
    sections: BTreeMap<Section, Counts>,
    known: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
}

#[derive(Default)]
struct Counts {
    requests: u64,
    answered: u64,
    same: u64,
    known: u64,
}

impl Tally {
    async fn take(&mut self, pair: &Pair, number: u64, case: &Case, ours: Reply, theirs: Reply) {
        let counts = self.sections.entry(case.section).or_default();
        counts.requests += 1;
        counts.answered += u64::from(theirs.status < 300);
        match compare(case, &ours, &theirs) {
            Verdict::Same => counts.same += 1,
            Verdict::Known(name) => {
                counts.known += 1;
                *self.known.entry(name).or_default() += 1;
            }
            Verdict::Different(why) => {
                let verdict = self.second_thoughts(pair, case, &ours, &theirs).await;
                if let Some(name) = verdict {
                    counts_known(&mut self.sections, &mut self.known, case.section, name);
                    return;
                }
                let (smallest, why, ours, theirs) =
                    shrink(pair, case.clone(), why, ours, theirs).await;
                self.failures.push(format!(
                    "#{number} {why}\n{smallest}\n--- router\n{}\n--- PostgREST\n{}",
                    show(&ours),
                    show(&theirs)
                ));
            }
        }
    }

    /// Differences that only further requests can explain.
    async fn second_thoughts(
        &self,
        pair: &Pair,
        case: &Case,
        ours: &Reply,
        theirs: &Reply,
    ) -> Option<&'static str> {
        if case.method == "HEAD" && ours.status != theirs.status {
            let case = Case {
                method: "GET",
                ..case.clone()
            };
            let (head_ours, head_theirs) = (ours.status, theirs.status);
            let (ours, theirs) = pair.ask(&case).await;
            if head_theirs != theirs.status {
                return None;
            }
            // HEAD names no errors, so GET has to.
            let told = match compare(&case, &ours, &theirs) {
                Verdict::Known(name) => Some(name),
                Verdict::Same => Some("v13: HEAD does not make the values that GET fails to make"),
                Verdict::Different(_) => {
                    Box::pin(self.second_thoughts(pair, &case, &ours, &theirs)).await
                }
            };
            if head_ours == ours.status {
                return told;
            }
            // It found the rows, says how many there are, and makes nothing of them.
            let counted = [200, 206, 406, 416].contains(&head_ours);
            let postgres = |reply: &Reply| reply.code().is_some_and(|code| code.len() == 5);
            return told.filter(|_| counted && postgres(&ours) && postgres(&theirs));
        }
        // Errors that differ: each side must tell the other's one,
        // too, once what is wrong besides is left out.
        let postgres = |reply: &Reply| {
            let code = reply.code().unwrap_or_default();
            code.len() == 5 || ["PGRST108", "PGRST200", "PGRST201"].contains(&&*code)
        };
        if ours.status < 300 || theirs.status < 300 || !postgres(ours) || !postgres(theirs) {
            return None;
        }
        let tried = case.tried();
        let other_too = told_alone(pair, &tried, ours, false).await;
        let own_too = told_alone(pair, &tried, theirs, true).await;
        (other_too && own_too).then_some("of several errors another one is told")
    }

    fn table(&self) -> String {
        let mut text = "| section | requests | answered 2xx | alike | differ as listed | disagree |\n|---|---|---|---|---|---|\n".to_owned();
        for (section, counts) in &self.sections {
            let Counts {
                requests,
                answered,
                same,
                known,
            } = counts;
            let title = section.title();
            let other = requests - same - known;
            text +=
                &format!("| {title} | {requests} | {answered} | {same} | {known} | {other} |\n");
        }
        for (name, count) in &self.known {
            text += &format!("{count:>6} × {name}\n");
        }
        text
    }
}

fn counts_known(
    sections: &mut BTreeMap<Section, Counts>,
    known: &mut BTreeMap<&'static str, u64>,
    section: Section,
    name: &'static str,
) {
    sections.entry(section).or_default().known += 1;
    *known.entry(name).or_default() += 1;
}

/// Whether a part of `case` makes both sides tell `error`, which is now told by
/// PostgREST or by the router.
async fn told_alone(pair: &Pair, case: &Case, error: &Reply, by_postgrest: bool) -> bool {
    let mut case = case.clone();
    'again: for _ in 0..40 {
        for simpler in case.simpler() {
            let (ours, theirs) = pair.ask(&simpler).await;
            if simpler.method == "POST" {
                pair.restore_numbers().await;
            }
            let (told, other) = if by_postgrest {
                (&theirs, &ours)
            } else {
                (&ours, &theirs)
            };
            if !same_error(told, error) {
                continue;
            }
            if !matches!(compare(&simpler, &ours, &theirs), Verdict::Different(_))
                && (other.status, other.code()) == (told.status, told.code())
            {
                return true;
            }
            case = simpler;
            continue 'again;
        }
        return false;
    }
    false
}

/// Of the same kind, whichever value it names.
fn same_error(one: &Reply, other: &Reply) -> bool {
    let kind = |reply: &Reply| {
        let body: serde_json::Value = serde_json::from_str(&reply.body).ok()?;
        let message = body.get("message")?.as_str()?;
        Some((reply.code()?, message.split(": ").next()?.to_owned()))
    };
    one.body == other.body || kind(one).is_some() && kind(one) == kind(other)
}

/// The smallest request found that still shows a disagreement.
async fn shrink(
    pair: &Pair,
    mut case: Case,
    mut why: String,
    mut ours: Reply,
    mut theirs: Reply,
) -> (Case, String, Reply, Reply) {
    if case.commits {
        return (case, why, ours, theirs);
    }
    'again: for _ in 0..40 {
        for simpler in case.simpler() {
            let (left, right) = pair.ask(&simpler).await;
            if simpler.method == "POST" {
                pair.restore_numbers().await;
            }
            if let Verdict::Different(found) = compare(&simpler, &left, &right)
                && kind(&found) == kind(&why)
            {
                (case, why, ours, theirs) = (simpler, found, left, right);
                continue 'again;
            }
        }
        break;
    }
    (case, why, ours, theirs)
}

/// What differs, without the values.
fn kind(why: &str) -> &str {
    why.split(':').next().unwrap_or(why)
}

fn show(reply: &Reply) -> String {
    let mut text = reply.status.to_string();
    for (name, value) in &reply.headers {
        text += &format!("\n{name}: {value}");
    }
    let body: String = reply.body.chars().take(1_500).collect();
    format!("{text}\n{body}")
}
