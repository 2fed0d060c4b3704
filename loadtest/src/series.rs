//! The run over time: seconds from all threads, added up, and coarsened so
//! that a soak of days takes no more memory than a run of minutes.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::record::{Interval, histogram};

/// At most about so many points, whatever the run's length.
const POINTS: u32 = 600;
/// The live view needs only the last seconds in full.
const RECENT: u32 = 5;

/// All points so far.
#[derive(Debug)]
pub struct Series {
    /// How many seconds a point covers.
    pub width: u32,
    /// The points by their place; seconds in which nothing ended may lack.
    pub points: BTreeMap<u32, Interval>,
    recent: BTreeMap<u32, Interval>,
    flood_windows: Vec<(f64, f64)>,
    /// Latency of tenants that do not flood, outside and during floods.
    quiet: Histogram<u64>,
    flooded: Histogram<u64>,
}

impl Series {
    /// A series for a run of so many seconds with floods in these windows.
    pub fn new(seconds: f64, flood_windows: Vec<(f64, f64)>) -> Self {
        Series {
            width: (seconds as u32).div_ceil(POINTS).max(1),
            points: BTreeMap::new(),
            recent: BTreeMap::new(),
            flood_windows,
            quiet: histogram(3),
            flooded: histogram(3),
        }
    }

    /// Adds a thread's second.
    pub fn add(&mut self, interval: &Interval) {
        if let Some(bystanders) = &interval.bystanders {
            let (begin, end) = (f64::from(interval.second), f64::from(interval.second) + 1.0);
            let within = self
                .flood_windows
                .iter()
                .any(|(from, to)| *from <= begin && end <= *to);
            let touched = self
                .flood_windows
                .iter()
                .any(|(from, to)| *from < end && begin < *to);
            // A second that a flood only touches belongs to neither side.
            if within {
                let _ = self.flooded.add(bystanders);
            } else if !touched {
                let _ = self.quiet.add(bystanders);
            }
        }
        merge(&mut self.recent, interval.second, interval);
        while self.recent.len() > RECENT as usize {
            self.recent.pop_first();
        }
        let mut light = interval.clone();
        light.tenants.clear();
        merge(&mut self.points, interval.second / self.width, &light);
    }

    /// The last few seconds in full, oldest first, but for the newest
    /// `unsure`.
    pub fn recent(&self, unsure: usize) -> impl Iterator<Item = &Interval> {
        self.recent
            .values()
            .take(self.recent.len().saturating_sub(unsure))
    }

    /// The bystanders' p99 in milliseconds, outside and during floods, when
    /// both were seen.
    pub fn bystander_p99_ms(&self) -> Option<(f64, f64)> {
        let p99 = |histogram: &Histogram<u64>| {
            (!histogram.is_empty()).then(|| histogram.value_at_quantile(0.99) as f64 / 1_000.0)
        };
        Some((p99(&self.quiet)?, p99(&self.flooded)?))
    }
}

fn merge(into: &mut BTreeMap<u32, Interval>, place: u32, interval: &Interval) {
    into.entry(place)
        .or_insert_with(|| Interval::new(interval.second, interval.bystanders.is_some()))
        .merge(interval);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_coarsened() {
        let mut series = Series::new(6_000.0, vec![]);
        for second in 0..6_000 {
            let mut interval = Interval::new(second, false);
            interval.due = 2;
            series.add(&interval);
        }
        assert_eq!((series.width, series.points.len()), (10, 600));
        assert!(series.points.values().all(|point| point.due == 20));
        let recent: Vec<u32> = series.recent(1).map(|interval| interval.second).collect();
        assert_eq!(recent, [5_995, 5_996, 5_997, 5_998]);
    }

    #[test]
    fn bystanders_are_compared_within_and_outside_floods() {
        let mut series = Series::new(10.0, vec![(2.5, 6.0)]);
        for (second, latency) in [
            (0, 1_000),
            (1, 1_000),
            (2, 50_000),
            (3, 2_000),
            (5, 2_000),
            (6, 1_000),
        ] {
            let mut interval = Interval::new(second, true);
            interval
                .bystanders
                .as_mut()
                .unwrap()
                .record(latency)
                .unwrap();
            series.add(&interval);
        }
        let (quiet, flooded) = series.bystander_p99_ms().unwrap();
        assert!(
            (quiet - 1.0).abs() < 0.01 && (flooded - 2.0).abs() < 0.01,
            "{quiet} {flooded}"
        );
    }
}
