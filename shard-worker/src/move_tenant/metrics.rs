//! The moves' metrics.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::Ended;

/// Handles.
pub struct MoveMetrics {
    began: Counter,
    crossed: Counter,
    undone: Counter,
    pause: Histogram,
    done: Counter,
    rolled_back: Counter,
    cancelled: Counter,
    failed: Counter,
}

impl MoveMetrics {
    /// Describes and makes them; the recorder must be installed.
    pub fn new() -> Self {
        metrics::describe_counter!(
            "ringfence_move_begun_total",
            "Moves that were found possible."
        );
        metrics::describe_counter!(
            "ringfence_move_cut_overs_total",
            "Cut-overs of a tenant that were completed, forward or back."
        );
        metrics::describe_counter!(
            "ringfence_move_cut_overs_undone_total",
            "Cut-overs that took too long and were undone."
        );
        metrics::describe_histogram!(
            "ringfence_move_pause_seconds",
            metrics::Unit::Seconds,
            "How long a tenant's requests were held by a cut-over."
        );
        metrics::describe_counter!("ringfence_move_ended_total", "Moves that ended, by how.");
        let ended =
            |how: &'static str| metrics::counter!("ringfence_move_ended_total", "how" => how);
        Self {
            began: metrics::counter!("ringfence_move_begun_total"),
            crossed: metrics::counter!("ringfence_move_cut_overs_total"),
            undone: metrics::counter!("ringfence_move_cut_overs_undone_total"),
            pause: metrics::histogram!("ringfence_move_pause_seconds"),
            done: ended("done"),
            rolled_back: ended("rolled_back"),
            cancelled: ended("cancelled"),
            failed: ended("failed"),
        }
    }

    pub(super) fn began(&self) {
        self.began.increment(1);
    }

    pub(super) fn crossed(&self, pause: Option<Duration>) {
        self.crossed.increment(1);
        if let Some(pause) = pause {
            self.pause.record(pause.as_secs_f64());
        }
    }

    pub(super) fn undone(&self) {
        self.undone.increment(1);
    }

    pub(super) fn ended(&self, why: &Ended) {
        let counter = match why {
            Ended::Done => &self.done,
            Ended::RolledBack => &self.rolled_back,
            Ended::Cancelled => &self.cancelled,
            Ended::Failed(_) => &self.failed,
        };
        counter.increment(1);
    }
}

impl Default for MoveMetrics {
    fn default() -> Self {
        Self::new()
    }
}
