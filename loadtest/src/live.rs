//! What is shown while a run goes: a block that is drawn anew on a terminal,
//! plain lines elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use crate::answer::Origin;
use crate::record::Interval;
use crate::report::terminal::{count, millis, percent};

/// Tenants shown as the worst of a second.
const WORST: usize = 3;
/// The height of the rate's history.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Its length in seconds.
const HISTORY: usize = 60;

/// Draws seconds as they come.
#[derive(Debug)]
pub struct Live {
    terminal: bool,
    drawn_lines: usize,
    seconds: f64,
    rates: Vec<u64>,
    tenants: Vec<String>,
}

impl Live {
    /// A view of a run of so many seconds.
    pub fn new(seconds: f64, tenants: Vec<String>) -> Self {
        Live {
            terminal: std::io::stdout().is_terminal(),
            drawn_lines: 0,
            seconds,
            rates: Vec::new(),
            tenants,
        }
    }

    /// Shows a second.
    pub fn show(&mut self, interval: &Interval) {
        self.rates.push(interval.tally.expected);
        let text = if self.terminal {
            let mut text = String::new();
            if self.drawn_lines > 0 {
                // Back to the block's first line, and everything below erased.
                let _ = write!(text, "\x1b[{}A\x1b[J", self.drawn_lines);
            }
            let block = self.block(interval);
            self.drawn_lines = block.lines().count();
            text.push_str(&block);
            text
        } else {
            line(interval, &self.tenants)
        };
        // A closed pipe is no reason to end a run.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn block(&self, interval: &Interval) -> String {
        let history = &self.rates[self.rates.len().saturating_sub(HISTORY)..];
        let highest = history.iter().copied().max().unwrap_or(0).max(1);
        let bars: String = history
            .iter()
            .map(|rate| BARS[(*rate * (BARS.len() as u64 - 1) / highest) as usize])
            .collect();
        let mut out = format!(
            "{:>4} of {:.0} s  {bars}\n",
            interval.second + 1,
            self.seconds
        );
        let _ = writeln!(
            out,
            "  rate     {} answers/s, {} due",
            count(interval.tally.expected),
            count(interval.due)
        );
        let _ = writeln!(out, "  latency  {}", percentiles(interval));
        let _ = writeln!(
            out,
            "  trouble  {} errors, {} late, {} dropped, {} waiting",
            count(interval.tally.errors()),
            count(interval.late),
            count(interval.dropped),
            count(interval.backlog)
        );
        let _ = writeln!(
            out,
            "  answers  {}",
            origins(interval).unwrap_or_else(|| "origin not told".to_owned())
        );
        let _ = writeln!(out, "  slowest  {}", worst(interval, &self.tenants));
        out
    }
}

/// One second in one line.
pub fn line(interval: &Interval, tenants: &[String]) -> String {
    let mut out = format!(
        "{:>4} s  {}/s (due {}), {}, {} errors, {} late, {} dropped",
        interval.second + 1,
        count(interval.tally.expected),
        count(interval.due),
        percentiles(interval),
        count(interval.tally.errors()),
        count(interval.late),
        count(interval.dropped)
    );
    if let Some(origins) = origins(interval) {
        let _ = write!(out, "; {origins}");
    }
    if interval.tenants.len() > 1 {
        let _ = write!(out, "; slowest {}", worst(interval, tenants));
    }
    out.push('\n');
    out
}

fn percentiles(interval: &Interval) -> String {
    let latency = &interval.tally.latency;
    if latency.is_empty() {
        return "no answers".to_owned();
    }
    let at = |quantile| millis(latency.value_at_quantile(quantile) as f64 / 1_000.0);
    format!(
        "p50 {}, p90 {}, p99 {}, max {}",
        at(0.5),
        at(0.9),
        at(0.99),
        millis(latency.max() as f64 / 1_000.0)
    )
}

fn origins(interval: &Interval) -> Option<String> {
    let counts = &interval.tally.origins;
    let known: u64 = counts.iter().sum::<u64>() - counts[Origin::Unknown.place()];
    if known == 0 {
        return None;
    }
    let parts: Vec<String> = Origin::ALL
        .iter()
        .zip(counts)
        .filter(|(origin, count)| **count > 0 && **origin != Origin::Unknown)
        .map(|(origin, count)| {
            format!(
                "{} {}",
                origin.name(),
                percent(*count as f64 / known as f64)
            )
        })
        .collect();
    Some(parts.join(", "))
}

fn worst(interval: &Interval, tenants: &[String]) -> String {
    let mut slowest: Vec<_> = interval.tenants.iter().collect();
    slowest.sort_by_key(|(_, second)| std::cmp::Reverse(second.slowest_us));
    let parts: Vec<String> = slowest
        .iter()
        .take(WORST)
        .map(|(tenant, second)| {
            let name = tenants.get(**tenant as usize).map_or("?", String::as_str);
            let errors = if second.errors > 0 {
                format!(" ({} errors)", second.errors)
            } else {
                String::new()
            };
            format!(
                "{name} {}{errors}",
                millis(second.slowest_us as f64 / 1_000.0)
            )
        })
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TenantSecond;

    #[test]
    fn a_second_in_one_line() {
        let mut interval = Interval::new(4, false);
        interval.due = 1_200;
        interval.tally.expected = 1_199;
        interval.tally.faults[4] = 1;
        interval.tally.origins = [600, 200, 0, 200, 199];
        for latency in 1..=1_000 {
            interval.tally.latency.record(latency * 10).unwrap();
        }
        interval.tenants.insert(
            0,
            TenantSecond {
                ended: 5,
                errors: 0,
                slowest_us: 900,
            },
        );
        interval.tenants.insert(
            1,
            TenantSecond {
                ended: 5,
                errors: 1,
                slowest_us: 20_000,
            },
        );
        assert_eq!(
            line(&interval, &["acme".to_owned(), "globex".to_owned()]),
            "   5 s  1,199/s (due 1,200), p50 5.00 ms, p90 9.01 ms, p99 9.90 ms, max 10.0 ms, 1 errors, 0 late, 0 dropped; \
             L1 60.0 %, L2 20.0 %, primary 20.0 %; slowest globex 20.0 ms (1 errors), acme 900 µs\n"
        );
        let live = Live {
            terminal: true,
            drawn_lines: 0,
            seconds: 30.0,
            rates: vec![0, 5, 10],
            tenants: vec![],
        };
        assert!(
            live.block(&interval)
                .starts_with("   5 of 30 s  ▁▄█\n  rate     1,199 answers/s")
        );
    }
}
