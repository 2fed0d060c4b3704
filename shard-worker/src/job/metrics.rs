//! The jobs' metrics: one struct a kind, whose fields' comments are the help texts.

use metrics::{Counter, Gauge};

use super::{End, Kind};

/// Handles of all kinds.
pub struct JobMetrics {
    kinds: [KindMetrics; Kind::ALL.len()],
}

/// Handles of one kind.
pub struct KindMetrics {
    /// Jobs that this worker runs.
    pub running: Gauge,
    /// Steps done.
    pub steps: Counter,
    /// Leases that this worker lost under a job.
    pub leases_lost: Counter,
    /// Jobs that ended here, by how.
    done: Counter,
    failed: Counter,
    cancelled: Counter,
}

impl JobMetrics {
    /// Describes and makes them; the recorder must be installed.
    pub fn new() -> Self {
        metrics::describe_gauge!("ringfence_jobs_running", "Jobs that this worker runs.");
        metrics::describe_counter!("ringfence_job_steps_total", "Steps of jobs done.");
        metrics::describe_counter!(
            "ringfence_job_leases_lost_total",
            "Leases that this worker lost under a job."
        );
        metrics::describe_counter!("ringfence_jobs_ended_total", "Jobs that ended, by how.");
        let of = |kind: Kind| {
            let kind = kind.name();
            let ended = |how: &'static str| metrics::counter!("ringfence_jobs_ended_total", "kind" => kind, "how" => how);
            KindMetrics {
                running: metrics::gauge!("ringfence_jobs_running", "kind" => kind),
                steps: metrics::counter!("ringfence_job_steps_total", "kind" => kind),
                leases_lost: metrics::counter!("ringfence_job_leases_lost_total", "kind" => kind),
                done: ended("done"),
                failed: ended("failed"),
                cancelled: ended("cancelled"),
            }
        };
        Self {
            kinds: Kind::ALL.map(of),
        }
    }

    /// Those of one kind.
    pub fn of(&self, kind: Kind) -> &KindMetrics {
        &self.kinds[kind as usize]
    }
}

impl Default for JobMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl KindMetrics {
    /// Counts a job's end.
    pub fn ended(&self, end: &End) {
        match end {
            End::Done => self.done.increment(1),
            End::Failed(_) => self.failed.increment(1),
            End::Cancelled => self.cancelled.increment(1),
        }
    }
}
