//! What users saw of a fault, as a small picture: requests that failed in each
//! second, and the 99th percentile of the time that answers took.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 130.0;
/// Room for the axes' labels.
const LEFT: f64 = 34.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 18.0;
/// The p99's axis, by powers of ten, ms.
const LEAST_MS: f64 = 1.0;
const MOST_MS: f64 = 10_000.0;
/// Seconds.
const DAY: u64 = 86_400;
/// Failures in a second that the axis has room for at least.
const FAILED_MIN: f64 = 10.0;

/// The load tester's points, a second each, and when it broke and was mended.
pub(super) fn svg(
    name: &str,
    report: &Value,
    (struck, mended): (SystemTime, SystemTime),
) -> String {
    let started = report["started"].as_str().map_or(0, second_of_day);
    let points: &[Value] = report["points"].as_array().map_or(&[], Vec::as_slice);
    let failed = |point: &Value| -> f64 {
        let faults = point["faults"].as_array().into_iter().flatten();
        faults.filter_map(Value::as_f64).sum()
    };
    let most = points.iter().map(failed).fold(FAILED_MIN, f64::max);
    let x = |second: f64| LEFT + second / (points.len().max(1) as f64) * (WIDTH - LEFT - RIGHT);
    let y = |part: f64| HEIGHT - BOTTOM - part.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM);
    let of_ms = |ms: f64| y((ms / LEAST_MS).max(1.0).log10() / (MOST_MS / LEAST_MS).log10());
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"9\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"{LEFT}\" y=\"13\" font-size=\"11\">{name}</text>"
    );
    // Writing to a String can't fail.
    for (at, what) in [(struck, "breaks"), (mended, "is mended")] {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % DAY;
        let at = x(((since + DAY - started) % DAY) as f64);
        let _ = write!(
            out,
            "<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#999\" stroke-dasharray=\"3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#777\">{what}</text>",
            y(0.0),
            at + 2.0,
            TOP + 7.0
        );
    }
    for (ms, label) in [(1.0, "1 ms"), (100.0, "100"), (MOST_MS, "10 s")] {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#06c\">{label}</text>",
            LEFT - 3.0,
            of_ms(ms) + 3.0
        );
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#c00\">{most:.0}/s</text>\
         <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#777\">{} s</text>",
        WIDTH - RIGHT + 3.0,
        y(1.0) + 3.0,
        WIDTH - RIGHT,
        HEIGHT - 6.0,
        points.len()
    );
    let mut line = String::new();
    for (second, point) in points.iter().enumerate() {
        let (left, right) = (x(second as f64), x(second as f64 + 1.0));
        let failed = failed(point);
        if failed > 0.0 {
            let top = y(failed / most);
            let _ = write!(
                out,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#c00\" opacity=\".6\"/>",
                right - left,
                y(0.0) - top
            );
        }
        if let Some(p99) = point["latency_ms"]["p99"].as_f64() {
            let begin = if line.is_empty() { 'M' } else { 'L' };
            let _ = write!(line, "{begin}{:.1} {:.1}", (left + right) / 2.0, of_ms(p99));
        }
    }
    let _ = writeln!(
        out,
        "<path d=\"{line}\" fill=\"none\" stroke=\"#06c\"/>\
         <path d=\"M{LEFT} {TOP}V{0:.1}H{1:.1}V{TOP}\" fill=\"none\" stroke=\"#333\"/></svg>",
        y(0.0),
        WIDTH - RIGHT
    );
    out
}

/// Of a time such as `2026-01-02T03:04:05Z`.
fn second_of_day(time: &str) -> u64 {
    let clock = time.split(['T', 'Z']).nth(1).unwrap_or_default();
    let parts = clock.split(':').filter_map(|part| part.parse::<u64>().ok());
    parts.fold(0, |seconds, part| seconds * 60 + part) % DAY
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_second_with_failures_has_a_bar_and_each_with_answers_a_point() {
        let point = |failed: u64, p99: Value| json!({ "faults": [0, failed], "latency_ms": p99 });
        let answered = json!({ "p99": 12.0 });
        let report = json!({ "started": "1970-01-01T23:59:58Z", "points": [
            point(0, answered.clone()), point(3, Value::Null), point(0, answered),
        ] });
        let at = |second| UNIX_EPOCH + Duration::from_secs(DAY + second);
        let svg = svg("primary-kill", &report, (at(0), at(1)));
        // Two seconds of three after the begin, over midnight.
        assert!(svg.contains(&format!(
            "M{:.1} ",
            LEFT + 2.0 / 3.0 * (WIDTH - LEFT - RIGHT)
        )));
        assert_eq!(svg.matches("opacity").count(), 1, "{svg}");
        assert_eq!(svg.matches('L').count(), 1, "{svg}");
        assert!(svg.contains(">primary-kill<") && svg.ends_with("</svg>\n"));
    }
}
