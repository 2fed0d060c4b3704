//! Two runs side by side: how much each figure differs, and whether that is
//! more than noise.
//!
//! Noise is judged from the runs themselves: each is cut into windows of equal
//! length, and a figure differs when the Mann-Whitney test says that its
//! values in the windows of one run tend to lie above the other's. The test
//! assumes no distribution, so a few slow windows do not decide. It cannot
//! know what differs between one run and the next of the same thing (another
//! placement, a busier machine); for that, run each side more than once.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::terminal::millis;
use super::{Point, Report, median};

/// Windows a run is cut into; consecutive seconds resemble each other, longer
/// windows less.
const WINDOWS: usize = 15;
/// Fewer windows than this cannot show anything.
const WINDOWS_MIN: usize = 6;
/// The probability of calling noise a difference.
const ALPHA: f64 = 0.01;
/// Differences below this are not worth a word.
const SMALLEST: f64 = 0.02;

/// How a figure differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// More than noise, to the better.
    Better,
    /// More than noise, to the worse.
    Worse,
    /// No more than noise.
    Noise,
    /// The runs are too short to say.
    TooShort,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Noise => "within noise",
            Verdict::TooShort => "too short to say",
        }
    }
}

/// One figure of both runs.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// The first run's.
    pub before: f64,
    /// The second run's.
    pub after: f64,
    /// The probability of a difference at least as large by chance.
    pub p: f64,
    /// The judgement.
    pub verdict: Verdict,
    is_latency: bool,
}

/// Compares two runs.
pub fn compare(before: &Report, after: &Report) -> Vec<Line> {
    let latency = |pick: fn(&super::Latency) -> f64| {
        move |window: &[Point]| -> Option<f64> {
            let values: Vec<f64> = window
                .iter()
                .filter_map(|point| point.latency_ms.as_ref().map(pick))
                .collect();
            (!values.is_empty()).then(|| median(&values))
        }
    };
    let per_second = |count: fn(&Point) -> u64, width: u32| {
        move |window: &[Point]| -> Option<f64> {
            let sum: u64 = window.iter().map(count).sum();
            Some(sum as f64 / (window.len() as f64 * f64::from(width)))
        }
    };
    let line = |name, is_latency, figures: (f64, f64), windows: (Vec<f64>, Vec<f64>)| {
        judge(name, is_latency, figures, &windows.0, &windows.1)
    };
    let (b, a) = (&before.total.latency_ms, &after.total.latency_ms);
    let both = |figure: &dyn Fn(&[Point]) -> Option<f64>| {
        (windows(before, figure), windows(after, figure))
    };
    let rate = |report: &Report| {
        windows(
            report,
            &per_second(|point| point.expected, report.point_seconds),
        )
    };
    let errors =
        |report: &Report| windows(report, &per_second(Point::errors, report.point_seconds));
    let error_rate =
        |report: &Report| report.total.errors as f64 / report.seconds.max(f64::MIN_POSITIVE);
    vec![
        line(
            "answers per second",
            false,
            (before.total.per_second, after.total.per_second),
            (rate(before), rate(after)),
        ),
        line("p50", true, (b.p50, a.p50), both(&latency(|l| l.p50))),
        line("p90", true, (b.p90, a.p90), both(&latency(|l| l.p90))),
        line("p99", true, (b.p99, a.p99), both(&latency(|l| l.p99))),
        line("p99.9", true, (b.p999, a.p999), both(&latency(|l| l.p999))),
        line(
            "errors per second",
            true,
            (error_rate(before), error_rate(after)),
            (errors(before), errors(after)),
        ),
    ]
}

/// A figure's value in each window of a run. The first and the last point
/// are left out: seconds that are not whole would look like a difference.
fn windows(report: &Report, figure: &dyn Fn(&[Point]) -> Option<f64>) -> Vec<f64> {
    let points = match report.points.as_slice() {
        [_, inner @ .., _] if inner.len() >= WINDOWS_MIN => inner,
        points => points,
    };
    let length = points.len().div_ceil(WINDOWS).max(1);
    points.chunks_exact(length).filter_map(figure).collect()
}

fn judge(
    name: &'static str,
    is_latency: bool,
    (before, after): (f64, f64),
    windows_before: &[f64],
    windows_after: &[f64],
) -> Line {
    let p = mann_whitney(windows_before, windows_after);
    let (middle_before, middle_after) = (median(windows_before), median(windows_after));
    let change = relative(middle_before, middle_after);
    let verdict = if windows_before.len().min(windows_after.len()) < WINDOWS_MIN {
        Verdict::TooShort
    } else if p >= ALPHA || change.abs() < SMALLEST {
        Verdict::Noise
    } else if (change > 0.0) == is_latency {
        Verdict::Worse
    } else {
        Verdict::Better
    };
    Line {
        name,
        before,
        after,
        p,
        verdict,
        is_latency: is_latency && name.starts_with('p'),
    }
}

fn relative(before: f64, after: f64) -> f64 {
    if before == after {
        0.0
    } else if before == 0.0 {
        f64::INFINITY
    } else {
        after / before - 1.0
    }
}

/// The two-sided p of the Mann-Whitney test, by its normal approximation with
/// ties and continuity corrected; 1 when either side is empty.
fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let (n, m) = (a.len() as f64, b.len() as f64);
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let mut all: Vec<(f64, bool)> = a
        .iter()
        .map(|value| (*value, true))
        .chain(b.iter().map(|value| (*value, false)))
        .collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (mut rank_sum, mut ties, mut begin) = (0.0, 0.0, 0);
    while begin < all.len() {
        let end = begin
            + all[begin..]
                .iter()
                .take_while(|item| item.0 == all[begin].0)
                .count();
        let rank = (begin + end + 1) as f64 / 2.0;
        rank_sum += rank * all[begin..end].iter().filter(|item| item.1).count() as f64;
        let tied = (end - begin) as f64;
        ties += tied.powi(3) - tied;
        begin = end;
    }
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)).max(1.0));
    if variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - n * m / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    2.0 * upper_tail(z)
}

/// The probability that a standard normal variable lies above `z` ≥ 0
/// (Abramowitz and Stegun 26.2.17; the error is below 10⁻⁷).
fn upper_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let poly = t
        * (0.319_381_530
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    poly * (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The comparison as a table.
pub fn render(before: &Report, after: &Report) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["", "before", "after", "difference", "p", ""]);
    for line in compare(before, after) {
        let value = |value: f64| {
            if line.is_latency {
                millis(value)
            } else {
                format!("{value:.2}")
            }
        };
        let change = relative(line.before, line.after);
        let change = if change.is_finite() {
            format!("{:+.1} %", change * 100.0)
        } else {
            "new".to_owned()
        };
        table.add_row([
            line.name.to_owned(),
            value(line.before),
            value(line.after),
            change,
            format!("{:.4}", line.p),
            line.verdict.words().to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut out = format!(
        "before: {} of {}, run {}\nafter:  {} of {}, run {}\n{table}\n",
        before.scenario, before.started, before.run, after.scenario, after.started, after.run
    );
    if before.scenario != after.scenario || before.model != after.model {
        out.push_str("note: these are runs of different scenarios\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_agrees_with_published_values() {
        assert!((upper_tail(1.959_964) - 0.025).abs() < 1e-6);
        // Twelve against twelve without overlap.
        let low: Vec<f64> = (0..12).map(f64::from).collect();
        let high: Vec<f64> = (12..24).map(f64::from).collect();
        let p = mann_whitney(&low, &high);
        assert!((p - 3.66e-5).abs() < 0.1e-5, "{p}");
        assert!(mann_whitney(&low, &low) > 0.97);
        assert_eq!(mann_whitney(&[1.0; 5], &[1.0; 5]), 1.0);
    }

    #[test]
    fn a_run_does_not_differ_from_itself_but_from_a_slower_one() {
        let run = crate::report::sample();
        assert!(
            compare(&run, &run)
                .iter()
                .all(|line| line.verdict == Verdict::Noise)
        );
        let mut slower = run.clone();
        for point in &mut slower.points {
            if let Some(latency) = &mut point.latency_ms {
                latency.p50 *= 1.5;
            }
        }
        let lines = compare(&run, &slower);
        let verdict = |name| {
            lines
                .iter()
                .find(|line| line.name == name)
                .map(|line| line.verdict)
        };
        assert_eq!(
            (verdict("p50"), verdict("p99")),
            (Some(Verdict::Worse), Some(Verdict::Noise))
        );
        let lines = compare(&slower, &run);
        assert_eq!(lines[1].verdict, Verdict::Better);
        let mut short = run.clone();
        short.points.truncate(4);
        assert!(
            compare(&short, &run)
                .iter()
                .all(|line| line.verdict == Verdict::TooShort)
        );
    }

    /// Random runs without a difference are called different as rarely as the
    /// level says.
    #[test]
    fn noise_is_rarely_called_a_difference() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut draw = || -> Vec<f64> { (0..WINDOWS).map(|_| random.f64()).collect() };
        let wrong = (0..2_000)
            .filter(|_| mann_whitney(&draw(), &draw()) < ALPHA)
            .count();
        assert!(wrong <= 40, "{wrong} of 2,000");
    }
}
