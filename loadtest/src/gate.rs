//! Thresholds: whether a run was good enough, decided from its report alone.

use serde::{Deserialize, Serialize};

use crate::report::{Report, Row, ratio};
use crate::scenario::{Gate, Metric};

/// A threshold and how the run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateResult {
    /// The threshold in words.
    pub gate: String,
    /// What was measured; none when the run did not produce it.
    pub value: Option<f64>,
    /// Whether it passed. A metric that could not be measured did not.
    pub passed: bool,
}

/// Judges every gate.
pub fn judge<'a>(gates: impl IntoIterator<Item = &'a Gate>, report: &Report) -> Vec<GateResult> {
    gates.into_iter().map(|gate| result(gate, report)).collect()
}

fn result(gate: &Gate, report: &Report) -> GateResult {
    let operation = gate.operation.as_ref().map(|name| name.get_ref().as_str());
    let row = match operation {
        None => Some(&report.total),
        Some(name) => report.operations.iter().find(|row| row.name == name),
    };
    let value = row.and_then(|row| measure(gate.metric, row, report));
    let passed = value.is_some_and(|value| {
        gate.max.is_none_or(|max| value <= max) && gate.min.is_none_or(|min| value >= min)
    });
    GateResult {
        gate: describe(gate, operation),
        value,
        passed,
    }
}

fn measure(metric: Metric, row: &Row, report: &Report) -> Option<f64> {
    let latency = |value: f64| (row.latency_ms.max > 0.0).then_some(value);
    match metric {
        Metric::P50Ms => latency(row.latency_ms.p50),
        Metric::P90Ms => latency(row.latency_ms.p90),
        Metric::P95Ms => latency(row.latency_ms.p95),
        Metric::P99Ms => latency(row.latency_ms.p99),
        Metric::P999Ms => latency(row.latency_ms.p999),
        Metric::MaxMs => latency(row.latency_ms.max),
        Metric::MeanMs => latency(row.latency_ms.mean),
        Metric::ErrorRatio => (row.requests > 0).then(|| ratio(row.errors, row.requests)),
        Metric::DroppedRatio => Some(report.dropped_ratio()),
        Metric::LateRatio => Some(ratio(report.arrivals.late, report.arrivals.due)),
        Metric::RatePerS => Some(row.per_second),
        Metric::HitRatio => row.hit_ratio(),
        Metric::FairnessRatio => report.fairness_ratio,
        Metric::BystanderP99Ratio => report.bystanders.map(|bystanders| bystanders.ratio),
    }
}

fn describe(gate: &Gate, operation: Option<&str>) -> String {
    let name = serde_json::to_value(gate.metric).ok();
    let mut text = name
        .as_ref()
        .and_then(|name| name.as_str())
        .unwrap_or_default()
        .to_owned();
    if let Some(operation) = operation {
        text.push_str(&format!(" of {operation:?}"));
    }
    if let Some(min) = gate.min {
        text.push_str(&format!(" ≥ {min}"));
    }
    if let Some(max) = gate.max {
        text.push_str(&format!(" ≤ {max}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(metric: Metric, max: Option<f64>, min: Option<f64>) -> Gate {
        Gate {
            metric,
            max,
            min,
            operation: None,
        }
    }

    #[test]
    fn gates_pass_and_miss_by_the_report() {
        let report = crate::report::sample();
        let gates = [
            gate(Metric::P50Ms, Some(5.0), None),
            gate(Metric::P99Ms, Some(5.0), None),
            gate(Metric::RatePerS, None, Some(100.0)),
            gate(Metric::ErrorRatio, Some(0.0), None),
        ];
        let passed: Vec<bool> = judge(&gates, &report)
            .iter()
            .map(|result| result.passed)
            .collect();
        assert_eq!(passed, [true, false, true, false]);
        assert_eq!(judge(&gates, &report)[0].gate, "p50_ms ≤ 5");
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        let mut report = crate::report::sample();
        report.bystanders = None;
        let result = &judge(&[gate(Metric::BystanderP99Ratio, Some(1.2), None)], &report)[0];
        assert_eq!((result.value, result.passed), (None, false));
    }
}
