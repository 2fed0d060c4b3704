//! When each request of the open model is due. Pure: a profile of the rate
//! over time goes in, the moments come out, and no clock is looked at, so a
//! slow target can never slow the schedule down.

/// A stretch of time in which the level (requests per second, or clients)
/// goes linearly from one value to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// How long, in seconds; above zero.
    pub seconds: f64,
    /// The level when it begins.
    pub from: f64,
    /// The level when it ends.
    pub to: f64,
}

impl Segment {
    /// How many arrivals fall into its first `seconds`.
    fn arrivals(&self, seconds: f64) -> f64 {
        let slope = (self.to - self.from) / self.seconds;
        (self.from + slope * seconds / 2.0) * seconds
    }

    /// The moment, in seconds from its begin, of its `n`th arrival.
    fn moment(&self, n: f64) -> f64 {
        if n <= 0.0 {
            return 0.0;
        }
        let slope = (self.to - self.from) / self.seconds;
        // The positive root of slope/2·t² + from·t = n, in the form that stays
        // exact where the slope is zero or tiny.
        let root = (self.from * self.from + 2.0 * slope * n).max(0.0).sqrt();
        2.0 * n / (self.from + root)
    }
}

/// The level over a whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile(Vec<Segment>);

impl Profile {
    /// The profile made of these stretches, one after the other.
    pub fn new(segments: Vec<Segment>) -> Self {
        Profile(segments)
    }

    /// How long the run is, in seconds.
    pub fn seconds(&self) -> f64 {
        self.0.iter().map(|segment| segment.seconds).sum()
    }

    /// How many arrivals the open model has in all.
    pub fn total(&self) -> f64 {
        self.0
            .iter()
            .map(|segment| segment.arrivals(segment.seconds))
            .sum()
    }

    /// The highest level that is ever reached.
    pub fn peak(&self) -> f64 {
        self.0
            .iter()
            .fold(0.0, |peak, segment| segment.from.max(segment.to).max(peak))
    }

    /// The level at `seconds` from the begin; 0 outside the run.
    pub fn level(&self, seconds: f64) -> f64 {
        let mut left = seconds;
        for segment in &self.0 {
            if left < segment.seconds {
                return segment.from + (segment.to - segment.from) * left / segment.seconds;
            }
            left -= segment.seconds;
        }
        0.0
    }

    /// The same shape, stretched or compressed to last `seconds`.
    pub fn lasting(&self, seconds: f64) -> Profile {
        let factor = seconds / self.seconds();
        Profile(
            self.0
                .iter()
                .map(|s| Segment {
                    seconds: s.seconds * factor,
                    ..*s
                })
                .collect(),
        )
    }

    /// The same shape with every level multiplied by `factor`.
    pub fn scaled(&self, factor: f64) -> Profile {
        Profile(
            self.0
                .iter()
                .map(|s| Segment {
                    from: s.from * factor,
                    to: s.to * factor,
                    ..*s
                })
                .collect(),
        )
    }
}

/// How the open model spaces its arrivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Evenly, as wrk2 and k6 do.
    #[default]
    Even,
    /// As independent users come: exponentially distributed gaps.
    Poisson,
}

/// One thread's share of a schedule: an iterator over the moments, in seconds
/// from the begin of the run, ascending.
#[derive(Debug)]
pub struct Pacer {
    profile: Profile,
    random: Option<fastrand::Rng>,
    threads: f64,
    /// The next arrival's place in the whole schedule.
    place: f64,
    segment: usize,
    segment_begin: f64,
    segment_place: f64,
}

impl Pacer {
    /// The share of `thread` among `threads` that work on the same profile.
    /// Even shares interleave; Poisson shares are independent and add up to
    /// a Poisson process again.
    pub fn new(
        profile: &Profile,
        spacing: Spacing,
        seed: u64,
        thread: usize,
        threads: usize,
    ) -> Self {
        let threads_f = threads as f64;
        let (random, place) = match spacing {
            Spacing::Even => (None, thread as f64),
            Spacing::Poisson => {
                let mut random = fastrand::Rng::with_seed(
                    seed ^ (thread as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                );
                let first = gap(&mut random) * threads_f;
                (Some(random), first)
            }
        };
        Pacer {
            profile: profile.clone(),
            random,
            threads: threads_f,
            place,
            segment: 0,
            segment_begin: 0.0,
            segment_place: 0.0,
        }
    }
}

/// An exponentially distributed gap of mean 1.
fn gap(random: &mut fastrand::Rng) -> f64 {
    -(1.0 - random.f64()).ln()
}

impl Iterator for Pacer {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        loop {
            let segment = self.profile.0.get(self.segment)?;
            let arrivals = segment.arrivals(segment.seconds);
            let within = self.place - self.segment_place;
            if within < arrivals {
                let due = self.segment_begin + segment.moment(within);
                self.place += self.threads * self.random.as_mut().map_or(1.0, gap);
                return Some(due);
            }
            self.segment_place += arrivals;
            self.segment_begin += segment.seconds;
            self.segment += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(seconds: f64, rate: f64) -> Profile {
        Profile::new(vec![Segment {
            seconds,
            from: rate,
            to: rate,
        }])
    }

    #[test]
    fn even_arrivals_are_evenly_spaced_and_shares_interleave() {
        let profile = constant(2.0, 4.0);
        let mut all: Vec<f64> = (0..3)
            .flat_map(|thread| Pacer::new(&profile, Spacing::Even, 1, thread, 3))
            .collect();
        all.sort_by(f64::total_cmp);
        assert_eq!(all, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]);
    }

    #[test]
    fn a_ramp_has_as_many_arrivals_as_its_area_and_they_get_denser() {
        let profile = Profile::new(vec![
            Segment {
                seconds: 10.0,
                from: 0.0,
                to: 100.0,
            },
            Segment {
                seconds: 1.0,
                from: 100.0,
                to: 0.0,
            },
        ]);
        let due: Vec<f64> = Pacer::new(&profile, Spacing::Even, 1, 0, 1).collect();
        assert_eq!(due.len(), 550);
        // Half of the first segment's area lies before 10/√2.
        let before = due.iter().filter(|t| **t < 10.0 / 2f64.sqrt()).count();
        assert!((249..=251).contains(&before), "{before}");
        assert!(due.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(due[549] < 11.0);
    }

    #[test]
    fn a_silent_segment_has_no_arrivals() {
        let profile = Profile::new(vec![
            Segment {
                seconds: 1.0,
                from: 0.0,
                to: 0.0,
            },
            Segment {
                seconds: 1.0,
                from: 2.0,
                to: 2.0,
            },
        ]);
        let due: Vec<f64> = Pacer::new(&profile, Spacing::Even, 1, 0, 1).collect();
        assert_eq!(due, [1.0, 1.5]);
    }

    #[test]
    fn poisson_shares_add_up_to_the_rate_and_repeat_with_the_seed() {
        let profile = constant(100.0, 50.0);
        let draw = |seed| -> Vec<f64> {
            let mut all: Vec<f64> = (0..4)
                .flat_map(|thread| Pacer::new(&profile, Spacing::Poisson, seed, thread, 4))
                .collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let due = draw(7);
        // 5,000 expected with a standard deviation of 71: five of them.
        assert!((4_645..=5_355).contains(&due.len()), "{}", due.len());
        // The gaps of a Poisson process have a coefficient of variation of 1.
        let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!(
            (0.9..1.1).contains(&(variance.sqrt() / mean)),
            "{}",
            variance.sqrt() / mean
        );
        assert_eq!(due, draw(7));
        assert_ne!(due, draw(8));
    }

    #[test]
    fn stretching_keeps_levels_and_scaling_keeps_time() {
        let profile = constant(2.0, 4.0).lasting(10.0);
        assert_eq!(profile.seconds(), 10.0);
        assert_eq!(profile.level(9.9), 4.0);
        assert_eq!(profile.level(10.0), 0.0);
        assert_eq!(profile.scaled(2.0).total(), 80.0);
    }
}
