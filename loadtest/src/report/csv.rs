//! The run over time as CSV, one line a point.

use std::fmt::Write as _;

use super::Report;
use crate::answer::Origin;
use crate::record::Fault;

/// The report's points; the first line names the columns.
pub fn render(report: &Report) -> String {
    let mut out = String::from(
        "second,due,expected,errors,mean_ms,p50_ms,p90_ms,p95_ms,p99_ms,p999_ms,max_ms",
    );
    for name in Fault::ALL
        .map(Fault::name)
        .iter()
        .chain(&Origin::ALL.map(Origin::name))
    {
        let _ = write!(out, ",{}", name.to_lowercase().replace(' ', "_"));
    }
    out.push_str(",late,dropped,backlog,flood\n");
    for point in &report.points {
        let _ = write!(
            out,
            "{},{},{},{}",
            point.at,
            point.due,
            point.expected,
            point.errors()
        );
        match point.latency_ms {
            Some(l) => {
                for value in [l.mean, l.p50, l.p90, l.p95, l.p99, l.p999, l.max] {
                    let _ = write!(out, ",{value:.3}");
                }
            }
            None => out.push_str(",,,,,,,"),
        }
        for count in point.faults.iter().chain(&point.origins) {
            let _ = write!(out, ",{count}");
        }
        let _ = writeln!(
            out,
            ",{},{},{},{}",
            point.late, point.dropped, point.backlog, point.flood
        );
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_line_has_the_columns_of_the_first() {
        let text = super::render(&crate::report::sample());
        let columns: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns.len(), 1 + crate::report::sample().points.len());
        assert!(
            columns.iter().all(|count| *count == columns[0]),
            "{columns:?}"
        );
    }
}
