//! Requests that failed for a fault of our own, as reports.

use telemetry::fault::{Fault, Faults};

use super::RequestDone;

/// Reports the request, if it failed for something that must not be.
pub(super) fn report(faults: &Faults, done: &RequestDone<'_>) {
    let Some(what) = done.fault else { return };
    let tenant = done.tenant.map(|tenant| tenant.to_string());
    let place = format!("{} {}", done.method, done.route.name());
    let status = done.status.as_str();
    faults.report(&Fault {
        code: done.code.unwrap_or_default(),
        what,
        place: &place,
        tags: &[
            ("tenant", tenant.as_deref().unwrap_or_default()),
            ("shard", done.shard.unwrap_or_default()),
            ("request_id", done.id),
            ("status", status),
        ],
        trace: done.trace,
    });
}
