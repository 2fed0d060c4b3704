//! The report for a terminal, and how numbers are written for people.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{Report, Row};

/// The summary at the end of a run.
pub fn render(report: &Report) -> String {
    let mut out = format!(
        "\n{}: {} model, {:.1} s of {:.1} s{}, {} tenants, {} threads\n",
        report.scenario,
        report.model,
        report.seconds,
        report.planned_seconds,
        if report.interrupted {
            " (interrupted)"
        } else {
            ""
        },
        count(report.tenants as u64),
        report.threads,
    );
    let _ = writeln!(out, "{}", operations(report));
    arrivals(&mut out, report);
    errors(&mut out, report);
    origins(&mut out, report);
    fairness(&mut out, report);
    for (number, mark) in report.marks.iter().enumerate() {
        let _ = writeln!(out, "mark {}: {:.1} s: {}", number + 1, mark.at, mark.text);
    }
    checks(&mut out, report);
    for gate in &report.gates {
        let value = gate
            .value
            .map_or("not measured".to_owned(), |value| format!("{value:.3}"));
        let word = if gate.passed { "passed" } else { "MISSED" };
        let _ = writeln!(out, "threshold {word}: {} (measured {value})", gate.gate);
    }
    out
}

fn operations(report: &Report) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "operation",
        "requests",
        "per s",
        "errors",
        "mean",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "cache",
    ]);
    let mut add = |row: &Row| {
        let l = row.latency_ms;
        let mut cells = vec![
            row.name.clone(),
            count(row.requests),
            format!("{:.1}", row.per_second),
            count(row.errors),
        ];
        cells.extend([l.mean, l.p50, l.p90, l.p99, l.p999, l.max].map(millis));
        cells.push(row.hit_ratio().map_or_else(|| "-".to_owned(), percent));
        table.add_row(cells);
    };
    report.operations.iter().for_each(&mut add);
    add(&report.total);
    report.floods.iter().for_each(&mut add);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn arrivals(out: &mut String, report: &Report) {
    let a = &report.arrivals;
    if report.model == "closed" {
        return;
    }
    let _ = writeln!(
        out,
        "arrivals: {} due, {} sent late, {} dropped, {} never sent; the tester's own lag p99 {}",
        count(a.due),
        count(a.late),
        count(a.dropped),
        count(a.unsent),
        millis(a.tester_lag_p99_ms)
    );
    if a.tester_lag_p99_ms > 5.0 {
        out.push_str("warning: the tester's machine was too busy; latencies are partly its own\n");
    }
}

fn errors(out: &mut String, report: &Report) {
    if report.total.errors == 0 {
        return;
    }
    let faults: Vec<String> = report
        .total
        .faults
        .iter()
        .map(|(name, n)| format!("{} {name}", count(*n)))
        .collect();
    let _ = writeln!(
        out,
        "errors: {} ({})",
        percent(report.error_ratio()),
        faults.join(", ")
    );
    let statuses: Vec<String> = report
        .total
        .statuses
        .iter()
        .map(|(status, n)| format!("{} × {status}", count(*n)))
        .collect();
    if !statuses.is_empty() {
        let _ = writeln!(out, "statuses: {}", statuses.join(", "));
    }
}

fn origins(out: &mut String, report: &Report) {
    if report.total.hit_ratio().is_none() {
        return;
    }
    let parts: Vec<String> = report
        .total
        .origins
        .iter()
        .map(|(name, n)| format!("{name} {}", count(*n)))
        .collect();
    let _ = writeln!(out, "answered by: {}", parts.join(", "));
}

fn fairness(out: &mut String, report: &Report) {
    if let Some(fairness) = report.fairness_ratio {
        let slowest: Vec<String> = report
            .by_tenant
            .iter()
            .take(3)
            .map(|tenant| format!("{} {}", tenant.tenant, millis(tenant.p99_ms)))
            .collect();
        let _ = writeln!(
            out,
            "tenants: the slowest p99 is {fairness:.1} × the median's ({})",
            slowest.join(", ")
        );
    }
    if let Some(b) = report.bystanders {
        let _ = writeln!(
            out,
            "bystanders: p99 {} outside floods, {} during them ({:.2} ×)",
            millis(b.quiet_p99_ms),
            millis(b.flooded_p99_ms),
            b.ratio
        );
    }
    if let Some(drift) = report.drift {
        let _ = writeln!(
            out,
            "drift: p99 {} in the first fifth, {} in the last",
            millis(drift.first_p99_ms),
            millis(drift.last_p99_ms)
        );
    }
}

fn checks(out: &mut String, report: &Report) {
    let Some(checks) = &report.checks else { return };
    for line in checks.lines() {
        let _ = writeln!(out, "check: {line}");
    }
    for violation in &checks.violations {
        let _ = writeln!(out, "VIOLATION: {}", violation.summary);
        for event in &violation.history {
            let _ = writeln!(out, "    {event}");
        }
    }
    if checks.violations.is_empty() && checks.complete() {
        let _ = writeln!(out, "check: no violation");
    }
}

/// A count with thousands separated.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A length of time given in milliseconds.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1_000.0),
        ms if ms >= 1_000.0 => format!("{:.2} s", ms / 1_000.0),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms if ms >= 1.0 => format!("{ms:.2} ms"),
        ms => format!("{:.0} µs", ms * 1_000.0),
    }
}

/// A ratio in percent.
pub fn percent(ratio: f64) -> String {
    let percent = ratio * 100.0;
    if percent > 0.0 && percent < 0.1 {
        format!("{percent:.3} %")
    } else {
        format!("{percent:.1} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [count(0), count(999), count(1_234_567)],
            ["0", "999", "1,234,567"]
        );
        let written = [0.0421, 1.5, 42.42, 420.4, 1_234.0, 90_000.0].map(millis);
        assert_eq!(
            written,
            ["42 µs", "1.50 ms", "42.4 ms", "420 ms", "1.23 s", "90.0 s"]
        );
        assert_eq!(
            [percent(0.0), percent(0.0001), percent(0.5)],
            ["0.0 %", "0.010 %", "50.0 %"]
        );
    }

    #[test]
    fn the_summary_of_a_run() {
        insta::assert_snapshot!(render(&crate::report::sample()));
    }
}
