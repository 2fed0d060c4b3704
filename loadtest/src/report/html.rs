//! The report as one HTML file without anything external: no scripts, no
//! fonts, no images but inline SVG. It can be mailed, archived and diffed.

use std::fmt::Write as _;

use super::svg::{Plot, Scale, escape};
use super::terminal::{count, millis, percent};
use super::{Point, Report, Row};
use crate::answer::Origin;
use crate::record::Fault;

const STYLE: &str = include_str!("style.css");
const ORIGIN_CLASSES: [&str; 5] = ["o-l1", "o-l2", "o-replica", "o-primary", "o-unknown"];
const FAULT_CLASSES: [&str; 6] = [
    "f-refused",
    "f-timeout",
    "f-cut",
    "f-4xx",
    "f-5xx",
    "f-other",
];
const LATENCY_CLASSES: [(&str, &str); 4] = [
    ("p50", "p50"),
    ("p90", "p90"),
    ("p99", "p99"),
    ("max", "max"),
];
/// Tenants shown as bars.
const TENANT_BARS: usize = 24;

/// The whole page.
pub fn render(report: &Report) -> String {
    let name = escape(&report.scenario);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{name}: load test of {started}</title><style>{STYLE}</style></head><body><main>\n",
        started = escape(&report.started)
    );
    header(&mut out, report);
    tiles(&mut out, report);
    gates(&mut out, report);
    checks(&mut out, report);
    latency(&mut out, report);
    heat(&mut out, report);
    rate(&mut out, report);
    errors(&mut out, report);
    origins(&mut out, report);
    tenants(&mut out, report);
    marks(&mut out, report);
    operations(&mut out, report);
    out.push_str("</main></body></html>\n");
    out
}

fn header(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        "<header><h1>{}</h1><p>{}</p><p class=\"facts\">{} · {} model · {} of {} s · {} tenants · {} threads · run {} · {}</p></header>",
        escape(&report.scenario),
        escape(&report.description),
        escape(&report.started),
        escape(&report.model),
        report.seconds.round(),
        report.planned_seconds.round(),
        count(report.tenants as u64),
        report.threads,
        escape(&report.run),
        escape(&report.targets.join(", ")),
    );
    if report.interrupted {
        out.push_str(
            "<p class=\"bad banner\">Interrupted: this is what was measured until then.</p>\n",
        );
    }
    if report.arrivals.tester_lag_p99_ms > 5.0 {
        let _ = writeln!(
            out,
            "<p class=\"bad banner\">The tester itself was {} late (p99): its machine was too busy, \
             so latencies are partly its own.</p>",
            millis(report.arrivals.tester_lag_p99_ms)
        );
    }
}

fn tiles(out: &mut String, report: &Report) {
    let total = &report.total;
    out.push_str("<section class=\"tiles\">");
    let mut tile = |name: &str, value: String, bad: bool| {
        let class = if bad { " bad" } else { "" };
        let _ = write!(
            out,
            "<div class=\"tile{class}\"><b>{value}</b><span>{name}</span></div>"
        );
    };
    tile(
        "answers per second",
        count(total.per_second.round() as u64),
        false,
    );
    tile("p50", millis(total.latency_ms.p50), false);
    tile("p99", millis(total.latency_ms.p99), false);
    tile("p99.9", millis(total.latency_ms.p999), false);
    tile("slowest", millis(total.latency_ms.max), false);
    tile("requests", count(total.requests), false);
    tile(
        "errors",
        format!(
            "{} ({})",
            count(total.errors),
            percent(report.error_ratio())
        ),
        total.errors > 0,
    );
    if report.model != "closed" {
        let lost = report.arrivals.dropped + report.arrivals.unsent;
        tile("sent late", count(report.arrivals.late), false);
        tile("dropped or never sent", count(lost), lost > 0);
    }
    if let Some(hits) = total.hit_ratio() {
        tile("from cache", percent(hits), false);
    }
    out.push_str("</section>\n");
}

fn gates(out: &mut String, report: &Report) {
    if report.gates.is_empty() {
        return;
    }
    out.push_str("<h2>Thresholds</h2><table><tr><th>threshold</th><th class=\"n\">measured</th><th></th></tr>");
    for gate in &report.gates {
        let value = gate
            .value
            .map_or("not measured".to_owned(), |value| format!("{value:.3}"));
        let (class, word) = if gate.passed {
            ("good", "passed")
        } else {
            ("bad", "missed")
        };
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{value}</td><td class=\"{class}\">{word}</td></tr>",
            escape(&gate.gate)
        );
    }
    out.push_str("</table>\n");
}

fn checks(out: &mut String, report: &Report) {
    let Some(checks) = &report.checks else { return };
    out.push_str("<h2>Checks</h2>");
    let verdict = if !checks.violations.is_empty() {
        format!(
            "<p class=\"bad banner\">{} violations</p>",
            checks.violations.len()
        )
    } else if checks.complete() {
        "<p class=\"good banner\">Nothing lost, doubled, stale, going back in time or leaked.</p>"
            .to_owned()
    } else {
        "<p class=\"bad banner\">No violation was seen, but the final audit is incomplete.</p>"
            .to_owned()
    };
    out.push_str(&verdict);
    out.push_str("<ul>");
    for line in checks.lines() {
        let _ = write!(out, "<li>{}</li>", escape(&line));
    }
    out.push_str("</ul>");
    for violation in &checks.violations {
        let _ = write!(
            out,
            "<h3>{}</h3><pre>{}</pre>",
            escape(&violation.summary),
            escape(&violation.history.join("\n"))
        );
    }
}

fn end_of(report: &Report) -> f64 {
    let last = report
        .points
        .last()
        .map_or(0, |point| point.at + report.point_seconds);
    f64::from(last).max(report.seconds)
}

/// The moment at which a point's value is drawn: its middle.
fn middle(report: &Report, point: &Point) -> f64 {
    f64::from(point.at) + f64::from(report.point_seconds) / 2.0
}

fn figure(out: &mut String, title: &str, about: &str, legend: &[(&str, &str)], plot: String) {
    let _ = write!(
        out,
        "<h2>{}</h2><p class=\"about\">{}</p><figure>{plot}",
        escape(title),
        escape(about)
    );
    if !legend.is_empty() {
        out.push_str("<figcaption>");
        for (class, name) in legend {
            let _ = write!(out, "<span class=\"key {class}\">{}</span>", escape(name));
        }
        out.push_str("</figcaption>");
    }
    out.push_str("</figure>\n");
}

/// Marks and floods belong into every plot over time.
fn over_time(report: &Report, scale: Scale, unit: &'static str) -> Plot {
    let mut plot = Plot::new(end_of(report), scale, unit);
    let mut flooded = report.points.iter().filter(|point| point.flood > 0);
    if let Some(first) = flooded.next() {
        let last = flooded.next_back().unwrap_or(first);
        plot.window((
            f64::from(first.at),
            f64::from(last.at + report.point_seconds),
        ));
    }
    plot
}

fn latency(out: &mut String, report: &Report) {
    let values = || report.points.iter().filter_map(|point| point.latency_ms);
    let low = values().map(|l| l.p50).fold(f64::INFINITY, f64::min);
    let high = values().map(|l| l.max).fold(0.0, f64::max);
    let mut plot = over_time(report, Scale::log(low.min(high), high), " ms");
    for (place, (class, _)) in LATENCY_CLASSES.iter().enumerate().rev() {
        plot.line(
            class,
            report.points.iter().map(|point| {
                let value = point
                    .latency_ms
                    .map(|l| [l.p50, l.p90, l.p99, l.max][place]);
                (middle(report, point), value)
            }),
        );
    }
    plot.marks(&report.marks);
    let about = match report.model.as_str() {
        "closed" => {
            "From sending to the whole answer. Closed model: while the target stalls, nothing is sent."
        }
        _ => {
            "From the moment a request was due to the whole answer: waiting for a free connection counts."
        }
    };
    figure(
        out,
        "Latency over time",
        about,
        &LATENCY_CLASSES,
        plot.finish("latency percentiles over time"),
    );
}

fn heat(out: &mut String, report: &Report) {
    let edges = &report.heat.edges_ms;
    let used: Vec<usize> = (0..edges.len())
        .filter(|row| report.heat.columns.iter().any(|column| column[*row] > 0))
        .collect();
    let (Some(first), Some(last)) = (used.first(), used.last()) else {
        return;
    };
    let low = |row: usize| {
        if row == 0 {
            edges[0] / 2.0
        } else {
            edges[row - 1]
        }
    };
    let mut plot = over_time(report, Scale::log(low(*first), edges[*last]), " ms");
    for (point, column) in report.points.iter().zip(&report.heat.columns) {
        let fullest = column.iter().copied().max().unwrap_or(0).max(1);
        for (row, cell) in column.iter().enumerate().filter(|(_, cell)| **cell > 0) {
            let (from, to) = (
                f64::from(point.at),
                f64::from(point.at + report.point_seconds),
            );
            // The square root keeps the rare slow ones visible.
            let heat = (*cell as f64 / fullest as f64).sqrt().max(0.1);
            let title = format!(
                "{} answers of {} to {}",
                count(*cell),
                millis(low(row)),
                millis(edges[row])
            );
            plot.cell((from, to), (low(row), edges[row]), heat, &title);
        }
    }
    plot.marks(&report.marks);
    figure(
        out,
        "Latency heat map",
        "Each column is a moment, each cell how many of its answers took that long.",
        &[],
        plot.finish("heat map of latencies over time"),
    );
}

fn rate(out: &mut String, report: &Report) {
    let width = f64::from(report.point_seconds);
    let highest = report
        .points
        .iter()
        .map(|point| point.due.max(point.expected))
        .max()
        .unwrap_or(0) as f64
        / width;
    let mut plot = over_time(report, Scale::linear(highest), "/s");
    let mut line = |class: &str, value: &dyn Fn(&Point) -> u64| {
        plot.line(
            class,
            report
                .points
                .iter()
                .map(|point| (middle(report, point), Some(value(point) as f64 / width))),
        );
    };
    line("due", &|point| point.due);
    line("ok", &|point| point.expected);
    plot.marks(&report.marks);
    figure(
        out,
        "Rate",
        "Requests that fell due, and answers as expected.",
        &[("due", "due"), ("ok", "answered")],
        plot.finish("requests and answers per second over time"),
    );
}

fn errors(out: &mut String, report: &Report) {
    if report.total.errors + report.arrivals.dropped == 0 {
        return;
    }
    let width = f64::from(report.point_seconds);
    let highest = report
        .points
        .iter()
        .map(|point| point.errors() + point.dropped)
        .max()
        .unwrap_or(0) as f64
        / width;
    let mut plot = over_time(report, Scale::linear(highest), "/s");
    let points: Vec<(f64, Vec<f64>)> = report
        .points
        .iter()
        .map(|point| {
            let counts = point.faults.iter().chain([&point.dropped]);
            (
                middle(report, point),
                counts.map(|count| *count as f64 / width).collect(),
            )
        })
        .collect();
    let classes: Vec<&str> = FAULT_CLASSES.into_iter().chain(["f-dropped"]).collect();
    plot.stack(&classes, &points);
    plot.marks(&report.marks);
    let legend: Vec<(&str, &str)> = FAULT_CLASSES
        .into_iter()
        .zip(Fault::ALL.map(Fault::name))
        .chain([("f-dropped", "dropped")])
        .collect();
    figure(
        out,
        "Errors",
        "Requests that failed, by how.",
        &legend,
        plot.finish("errors per second over time"),
    );
}

fn origins(out: &mut String, report: &Report) {
    if report.total.hit_ratio().is_none() {
        return;
    }
    let width = f64::from(report.point_seconds);
    let highest = report
        .points
        .iter()
        .map(|point| point.origins.iter().sum::<u64>())
        .max()
        .unwrap_or(0) as f64
        / width;
    let mut plot = over_time(report, Scale::linear(highest), "/s");
    let points: Vec<(f64, Vec<f64>)> = report
        .points
        .iter()
        .map(|point| {
            (
                middle(report, point),
                point
                    .origins
                    .iter()
                    .map(|count| *count as f64 / width)
                    .collect(),
            )
        })
        .collect();
    plot.stack(&ORIGIN_CLASSES, &points);
    plot.marks(&report.marks);
    let legend: Vec<(&str, &str)> = ORIGIN_CLASSES
        .into_iter()
        .zip(Origin::ALL.map(Origin::name))
        .collect();
    figure(
        out,
        "Who answered",
        "From Cache-Status and Server-Timing.",
        &legend,
        plot.finish("answers per second by cache level or node over time"),
    );
}

fn tenants(out: &mut String, report: &Report) {
    if report.by_tenant.len() < 2 {
        return;
    }
    let highest = report
        .by_tenant
        .iter()
        .map(|tenant| tenant.p99_ms)
        .fold(f64::MIN_POSITIVE, f64::max);
    out.push_str("<h2>Tenants</h2><p class=\"about\">p99 of each, the slowest first.");
    if let Some(fairness) = report.fairness_ratio {
        let _ = write!(out, " The slowest has {fairness:.1} × the median tenant's.");
    }
    if let Some(bystanders) = report.bystanders {
        let _ = write!(
            out,
            " Tenants that do not flood: {} outside floods, {} during them ({:.2} ×).",
            millis(bystanders.quiet_p99_ms),
            millis(bystanders.flooded_p99_ms),
            bystanders.ratio
        );
    }
    out.push_str("</p><table class=\"bars\"><tr><th>tenant</th><th class=\"n\">requests</th><th class=\"n\">errors</th><th class=\"n\">p50</th><th class=\"n\">p99</th><th></th></tr>");
    for tenant in report.by_tenant.iter().take(TENANT_BARS) {
        let _ = write!(
            out,
            "<tr><td>{}{}</td><td class=\"n\">{}</td><td class=\"n{}\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"bar\"><i style=\"width:{:.1}%\"></i></td></tr>",
            escape(&tenant.tenant),
            if tenant.flooded {
                " <em>floods</em>"
            } else {
                ""
            },
            count(tenant.requests),
            if tenant.errors > 0 { " bad" } else { "" },
            count(tenant.errors),
            millis(tenant.p50_ms),
            millis(tenant.p99_ms),
            100.0 * tenant.p99_ms / highest
        );
    }
    out.push_str("</table>\n");
    if report.by_tenant.len() > TENANT_BARS || report.tenants > report.by_tenant.len() {
        let _ = writeln!(
            out,
            "<p class=\"about\">{} tenants in all.</p>",
            count(report.tenants as u64)
        );
    }
}

fn marks(out: &mut String, report: &Report) {
    if report.marks.is_empty() {
        return;
    }
    out.push_str("<h2>What happened meanwhile</h2><ol>");
    for mark in &report.marks {
        let _ = write!(out, "<li>{:.1} s: {}</li>", mark.at, escape(&mark.text));
    }
    out.push_str("</ol>\n");
}

fn operations(out: &mut String, report: &Report) {
    out.push_str("<h2>Operations</h2><table><tr><th>operation</th>");
    for column in [
        "requests", "per s", "errors", "mean", "p50", "p90", "p99", "p99.9", "max",
    ] {
        let _ = write!(out, "<th class=\"n\">{column}</th>");
    }
    out.push_str("<th>statuses</th></tr>");
    let mut row = |row: &Row, class: &str| {
        let l = row.latency_ms;
        let statuses: Vec<String> = row
            .statuses
            .iter()
            .map(|(status, n)| format!("{status}: {}", count(*n)))
            .collect();
        let _ = write!(
            out,
            "<tr class=\"{class}\"><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.1}</td><td class=\"n{}\">{}</td>",
            escape(&row.name),
            count(row.requests),
            row.per_second,
            if row.errors > 0 { " bad" } else { "" },
            count(row.errors)
        );
        for value in [l.mean, l.p50, l.p90, l.p99, l.p999, l.max] {
            let _ = write!(out, "<td class=\"n\">{}</td>", millis(value));
        }
        let _ = write!(out, "<td>{}</td></tr>", statuses.join(", "));
    };
    report
        .operations
        .iter()
        .for_each(|operation| row(operation, ""));
    row(&report.total, "total");
    report.floods.iter().for_each(|flood| row(flood, "flood"));
    out.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_stands_alone_and_escapes_names() {
        let page = super::render(&crate::report::sample());
        for outside in ["http-equiv", "<script", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("A made-up run &lt;of 30 s&gt;."));
        for plot in [
            "Latency over time",
            "heat map",
            "Rate",
            "Errors",
            "Who answered",
            "Tenants",
            "meanwhile",
        ] {
            assert!(page.contains(plot), "{plot}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
