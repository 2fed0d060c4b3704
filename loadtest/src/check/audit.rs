//! The final audit: what is there now against what was acknowledged. Once
//! through every router, as the tenants see it, and once on the shards'
//! primaries, where no cache and no routing can hide anything.

mod primaries;
mod routers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::register::Register;
use super::{Audit, Findings, Kind, Violation, entry_line};
use crate::engine::Plan;
use crate::environment::Environment;
use crate::journal::{Entry, Fate, Journal};
use crate::scenario::Checks;
use crate::script::Column;
use crate::token::Write;

/// Beyond the declared staleness, so that answers may be expected to be new.
const SETTLE: Duration = Duration::from_millis(500);

/// What must be there, by tenant and column.
#[derive(Debug, Default)]
struct Expected<'a> {
    /// Journaled inserts by their canaries' numbers.
    marks: BTreeMap<u64, &'a Entry>,
    /// Watched rows by their numbers.
    registers: BTreeMap<u32, &'a Register>,
}

type Places<'a> = BTreeMap<(usize, Column), Expected<'a>>;

/// What is there: how often each write was found.
type Found = HashMap<Write, u32>;

/// Audits every router and every shard that is known.
pub(super) async fn audit(
    plan: &Plan,
    checks: &Checks,
    journal: &Journal,
    registers: &[Register],
    environment: &Environment,
    findings: &mut Findings,
) -> Vec<Audit> {
    tokio::time::sleep(checks.staleness.duration() + SETTLE).await;
    let places = expected(plan, checks, journal, registers);
    let mut audits = Vec::new();
    // What one place has shown to be wrong, the others need not show again.
    let mut told = BTreeSet::new();
    for target in &plan.targets {
        audits.push(routers::audit(plan, target, &places, findings, &mut told).await);
    }
    if !environment.shards.is_empty() {
        audits.extend(primaries::audit(plan, environment, &places, findings, &mut told).await);
    }
    audits
}

fn expected<'a>(
    plan: &Plan,
    checks: &Checks,
    journal: &'a Journal,
    registers: &'a [Register],
) -> Places<'a> {
    let mut places = Places::new();
    for entry in journal.entries() {
        let Some(column) = &plan.script.operations[entry.operation as usize].journal else {
            continue;
        };
        let expected = places
            .entry((entry.tenant as usize, column.clone()))
            .or_default();
        for row in 0..u64::from(entry.rows) {
            expected
                .marks
                .insert(entry.first + row * journal.step, entry);
        }
    }
    let column = Column {
        table: checks.table.clone(),
        column: checks.column.clone(),
    };
    for register in registers {
        let expected = places.entry((register.tenant, column.clone())).or_default();
        expected.registers.insert(register.number, register);
    }
    places
}

/// Compares what a place shows of one tenant's column with what must be
/// there. `place` completes the sentence "… is not there".
fn compare(
    plan: &Plan,
    place: &str,
    expected: &Expected<'_>,
    found: &Found,
    findings: &mut Findings,
    told: &mut BTreeSet<Write>,
) {
    for (number, entry) in &expected.marks {
        let write = Write::Mark(*number);
        let count = found.get(&write).copied().unwrap_or_default();
        let (kind, what) = match (entry.fate, count) {
            (_, 2..) => (Kind::Doubled, format!("is there {count} times")),
            (Fate::Acknowledged, 0) => {
                (Kind::Lost, "was acknowledged, and is not there".to_owned())
            }
            (Fate::Failed, 1) => (Kind::Phantom, "was refused, and is there".to_owned()),
            (Fate::Acknowledged, _) | (Fate::Failed, _) | (Fate::Indeterminate, _) => continue,
        };
        if told.insert(write) {
            let operation = &plan.script.operations[entry.operation as usize].name;
            let tenant = &plan.population.tenants[entry.tenant as usize].slug;
            let summary = format!("a row of {operation:?} of {tenant} {what}");
            let audit = format!("audit of {place}: row m{number}: found {count} times");
            findings.add(Violation {
                kind,
                summary,
                history: vec![entry_line(plan, entry), audit],
            });
        }
    }
    for (number, register) in &expected.registers {
        compare_register(place, *number, register, found, findings, told);
    }
}

fn compare_register(
    place: &str,
    number: u32,
    register: &Register,
    found: &Found,
    findings: &mut Findings,
    told: &mut BTreeSet<Write>,
) {
    let versions: Vec<(u32, u32)> = (1..register.next_version())
        .filter_map(|version| {
            let count = found.get(&Write::Register {
                register: number,
                version,
            })?;
            Some((version, *count))
        })
        .collect();
    let rows: u32 = versions.iter().map(|(_, count)| count).sum();
    let there = versions.last().map_or(0, |(version, _)| *version);
    let allowed = register.final_versions();
    let must = allowed.first().copied().unwrap_or_default();
    let (kind, what) = if rows > 1 {
        (Kind::Doubled, format!("has {rows} rows"))
    } else if allowed.contains(&there) {
        return;
    } else if there == 0 || there < must {
        (
            Kind::Lost,
            format!("should be at version {must}, and is {}", describe(there)),
        )
    } else {
        (
            Kind::Phantom,
            format!("should be {}, and is {}", describe(must), describe(there)),
        )
    };
    // The version that the row had before the run ended names it.
    if told.insert(Write::Register {
        register: number,
        version: 0,
    }) {
        let shown = if must > 0 {
            must
        } else {
            register.next_version() - 1
        };
        let history = vec![
            register.write_line(shown as usize),
            format!("audit of {place}: found {}", describe(there)),
        ];
        let tenant = register.tenant_name();
        findings.add(Violation {
            kind,
            summary: format!("watched row {number} of {tenant} {what}"),
            history,
        });
    }
}

fn describe(version: u32) -> String {
    if version == 0 {
        "absent".to_owned()
    } else {
        format!("at version {version}")
    }
}
