//! One JSON line a request, written by a thread of its own so that a slow
//! disk or pipe never slows a request: when its queue is full, lines are
//! dropped and counted.

use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::RequestDone;

const QUEUE_LINES: usize = 65_536;
/// Lines are written at most this often.
const PAUSE: Duration = Duration::from_millis(20);

/// The log of requests.
pub struct AccessLog {
    lines: SyncSender<String>,
}

impl AccessLog {
    /// Starts the writing thread; it ends when the log is dropped.
    pub fn start() -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE_LINES);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&queue))?;
        Ok(Self { lines })
    }

    /// Queues a line; false where the queue is full.
    pub fn write(&self, done: &RequestDone<'_>) -> bool {
        self.lines.try_send(line(done)).is_ok()
    }
}

fn write_lines(queue: &Receiver<String>) {
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout());
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(line) = next {
            // A closed pipe must not end the router: there is nowhere to say it.
            let _ = out.write_all(line.as_bytes());
            next = queue.try_recv().ok();
        }
        let _ = out.flush();
        // Under load lines gather meanwhile: waking up for each would cost the
        // requests more than the lines are worth.
        std::thread::sleep(PAUSE);
    }
}

fn line(done: &RequestDone<'_>) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut text = String::with_capacity(320);
    let _ = write!(
        text,
        "{{\"time\":{}.{:03},\"level\":\"INFO\",\"message\":\"request\",\"request_id\":{},\"tenant\":",
        now.as_secs(),
        now.subsec_millis(),
        json(done.id),
    );
    match done.tenant {
        Some(tenant) => {
            let _ = write!(text, "\"{tenant}\"");
        }
        None => text.push_str("null"),
    }
    let _ = writeln!(
        text,
        ",\"shard\":{},\"method\":{},\"path\":{},\"status\":{},\"code\":{},\"duration_ms\":{:.3},\"bytes\":{}}}",
        done.shard.map_or("null".into(), json),
        json(done.method.as_str()),
        json(done.path),
        done.status.as_u16(),
        done.code.map_or("null".into(), json),
        done.took.as_secs_f64() * 1e3,
        done.bytes,
    );
    text
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Route;

    #[test]
    fn a_line_is_one_json_object_whatever_the_path_holds() {
        let text = line(&RequestDone {
            id: "r-1",
            tenant: None,
            shard: Some("s1"),
            method: &http::Method::GET,
            path: "/a\"b\nc",
            route: Route::Relation,
            status: http::StatusCode::NOT_FOUND,
            code: Some("PGRST205"),
            took: Duration::from_micros(1500),
            bytes: 12,
        });
        assert_eq!(text.matches('\n').count(), 1);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["path"], "/a\"b\nc");
        assert_eq!(parsed["duration_ms"], 1.5);
        assert_eq!(parsed["tenant"], serde_json::Value::Null);
    }
}
