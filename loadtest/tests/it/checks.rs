//! The checker against services that are wrong in one precise way each: every
//! fault is caught, with a history that shows it, and nothing else is.

use std::time::Duration;

use loadtest::check::{CheckReport, Kind};
use loadtest::report::Report;
use loadtest::run::{self, Options};
use loadtest::scenario::Scenario;
use tokio_util::sync::CancellationToken;

use crate::support::{Fault, Server};

const SCENARIO: &str = r#"
    name = "checked"
    [load]
    timeout = "20s"
    [population]
    tenants = ["acme", "globex"]
    [checks]
    table = "notes"
    column = "body"
    row = { kind = "{{choice call|mail}}" }
    registers = 4
    pause = "10ms"
    staleness = "50ms"
    [[stage]]
    kind = "constant"
    duration = "2s"
    level = 100
    [[operation]]
    name = "list"
    path = "/notes?limit=20"
    [[operation]]
    name = "add"
    method = "POST"
    path = "/notes"
    body = { body = "{{canary}} {{words 3}}" }
    [[operation]]
    name = "add many"
    method = "POST"
    weight = 0.2
    rows = 5
    path = "/contacts"
    body = { name = "{{name}}", note = "{{canary}}" }
"#;

fn drive(server: &Server) -> Report {
    let scenario = Scenario::parse("checked.toml", SCENARIO).unwrap();
    let environment = server.environment(&["acme", "globex"]);
    let options = Options {
        check: true,
        quiet: true,
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let prepared = run::prepare(&scenario, &environment, &options)
            .await
            .unwrap();
        run::drive(prepared, &environment, &options, CancellationToken::new())
            .await
            .unwrap()
    })
}

fn kinds(checks: &CheckReport) -> Vec<Kind> {
    checks.counts.keys().copied().collect()
}

/// Drives a faulty service; the faults found must be among those allowed, and
/// the first must be there.
fn caught(fault: Fault, allowed: &[Kind], exit_code: u8) -> CheckReport {
    let report = drive(&Server::start(fault));
    let checks = report.checks.clone().unwrap();
    let found = kinds(&checks);
    assert!(found.contains(&allowed[0]), "{fault:?}: found {found:?}");
    assert!(
        found.iter().all(|kind| allowed.contains(kind)),
        "{fault:?}: found {:#?}",
        checks.violations
    );
    assert!(
        checks
            .violations
            .iter()
            .all(|violation| !violation.history.is_empty())
    );
    assert_eq!(report.exit_code(), exit_code);
    checks
}

#[test]
fn a_right_service_passes() {
    let report = drive(&Server::start(Fault::None));
    let checks = report.checks.as_ref().unwrap();
    assert_eq!(checks.violations, []);
    assert!(checks.complete() && report.exit_code() == 0, "{checks:?}");
    assert!(
        checks.reads > 100 && checks.registers >= 4 && checks.acknowledged > 100,
        "{checks:?}"
    );
    assert_eq!((checks.failed, checks.indeterminate), (0, 0));
    assert_eq!(checks.audits.len(), 2);
    // Every journaled row and every row left by a writer was audited.
    assert!(
        checks.audits.iter().all(|audit| audit.rows > 100),
        "{:?}",
        checks.audits
    );
}

#[test]
fn a_lost_insert_is_caught() {
    let checks = caught(
        Fault::LoseInsert(20),
        &[Kind::Lost, Kind::ReadYourWrites, Kind::Stale],
        80,
    );
    let lost = checks
        .violations
        .iter()
        .find(|violation| violation.kind == Kind::Lost)
        .unwrap();
    assert_eq!(lost.history.len(), 2, "{lost:?}");
    assert!(lost.history[0].contains("acknowledged (201)"), "{lost:?}");
}

#[test]
fn a_lost_update_is_caught() {
    let checks = caught(
        Fault::LoseUpdate(5),
        &[
            Kind::ReadYourWrites,
            Kind::Lost,
            Kind::Stale,
            Kind::Monotonic,
        ],
        80,
    );
    let unseen = checks
        .violations
        .iter()
        .find(|violation| violation.kind == Kind::ReadYourWrites)
        .unwrap();
    assert_eq!(unseen.history.len(), 2);
    assert!(
        unseen.history[0].contains("update to version")
            && unseen.history[1].contains("read: version")
    );
}

#[test]
fn a_deletion_that_is_not_done_is_caught() {
    caught(
        Fault::KeepDeleted,
        &[Kind::ReadYourWrites, Kind::Phantom, Kind::Stale],
        80,
    );
}

#[test]
fn a_doubled_insert_is_caught() {
    let checks = caught(Fault::Double(20), &[Kind::Doubled], 80);
    assert!(
        checks
            .violations
            .iter()
            .any(|violation| violation.summary.contains("is there 2 times"))
    );
}

#[test]
fn a_refused_write_that_is_there_is_caught() {
    caught(Fault::Phantom(20), &[Kind::Phantom], 80);
}

#[test]
fn a_leak_is_caught_and_outweighs_everything() {
    let checks = caught(Fault::Leak(7), &[Kind::Leak], 81);
    let leak = &checks.violations[0];
    assert!(
        leak.summary == "acme was shown a row of globex"
            || leak.summary == "globex was shown a row of acme"
    );
    assert!(
        leak.history
            .last()
            .unwrap()
            .contains("the answer holds rfc~"),
        "{leak:?}"
    );
}

#[test]
fn a_stale_router_is_caught() {
    let stale = Duration::from_millis(150);
    caught(
        Fault::StaleRouter(stale),
        &[Kind::ReadYourWrites, Kind::Stale, Kind::Monotonic],
        80,
    );
}

/// Answers that are younger than declared are right for others, and wrong for
/// the writer, and for a session that has seen newer ones.
#[test]
fn reads_that_go_back_in_time_are_caught() {
    let young = Duration::from_millis(30);
    caught(
        Fault::StaleRead(3, young),
        &[Kind::Monotonic, Kind::ReadYourWrites],
        80,
    );
}

#[test]
fn unknown_outcomes_are_counted_and_are_no_violation() {
    let report = drive(&Server::start(Fault::Cut(10)));
    let checks = report.checks.as_ref().unwrap();
    assert_eq!(checks.violations, []);
    assert!(checks.indeterminate > 10, "{checks:?}");
    assert_eq!(report.exit_code(), 0);
}

#[test]
fn a_dead_service_is_no_violation_but_no_success_either() {
    let mut server = Server::start(Fault::None);
    let killing = server.killer();
    std::thread::spawn(killing);
    let report = drive(&server);
    let checks = report.checks.as_ref().unwrap();
    assert_eq!(checks.violations, []);
    assert!(!checks.complete());
    assert!(
        checks.audits.iter().all(|audit| audit.problem.is_some()),
        "{:?}",
        checks.audits
    );
    assert_eq!(report.exit_code(), 99);
}
