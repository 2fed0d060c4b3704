//! One JSON line a request, written by a thread of its own so that a slow
//! disk or pipe never slows a request: when its queue is full, lines are
//! dropped and counted.

use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{RequestDone, Slow};

const QUEUE_LINES: usize = 65_536;
/// So much of a slow request's statement is logged.
const STATEMENT_BYTES_MAX: usize = 4_096;
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
    let mut text = String::with_capacity(384);
    let (level, message) = match done.slow {
        None => ("INFO", "request"),
        Some(_) => ("WARN", "slow request"),
    };
    text.push_str("{\"time\":");
    add_thousandths(&mut text, now.as_secs(), now.subsec_millis());
    add(&mut text, "level", Some(level));
    add(&mut text, "message", Some(message));
    add(&mut text, "request_id", Some(done.id));
    let mut id = uuid::Uuid::encode_buffer();
    let tenant = done.tenant.map(uuid::Uuid::hyphenated);
    let tenant = tenant.map(|tenant| &*tenant.encode_lower(&mut id));
    add(&mut text, "tenant", tenant);
    if let Some(place) = done.trace {
        let _ = write!(text, ",\"trace_id\":\"{}\"", place.trace_id());
    }
    add(&mut text, "shard", done.shard);
    add(&mut text, "method", Some(done.method.as_str()));
    add(&mut text, "path", Some(done.path));
    text.push_str(",\"status\":");
    text.push_str(done.status.as_str());
    add(&mut text, "code", done.code);
    text.push_str(",\"duration_ms\":");
    add_milliseconds(&mut text, done.took);
    text.push_str(",\"bytes\":");
    text.push_str(itoa::Buffer::new().format(done.bytes));
    if let Some(slow) = &done.slow {
        add_slow(&mut text, slow);
    }
    text.push_str("}\n");
    text
}

/// Where the time went, and in which statement.
fn add_slow(text: &mut String, slow: &Slow<'_>) {
    text.push_str(",\"stages_ms\":{");
    for (n, (stage, spent)) in slow.stages.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        let _ = write!(text, "{comma}\"{stage}\":");
        add_milliseconds(text, *spent);
    }
    text.push('}');
    let statement = slow.statement.map(|whole| {
        let end = whole.floor_char_boundary(STATEMENT_BYTES_MAX);
        &whole[..end]
    });
    add(text, "statement", statement);
}

/// A member of the line's object.
fn add(text: &mut String, name: &str, value: Option<&str>) {
    for part in [",\"", name, "\":"] {
        text.push_str(part);
    }
    match value {
        None => text.push_str("null"),
        Some(value) if value.bytes().all(is_itself_in_json) => {
            text.push('"');
            text.push_str(value);
            text.push('"');
        }
        Some(value) => text.push_str(&serde_json::Value::from(value).to_string()),
    }
}

fn is_itself_in_json(byte: u8) -> bool {
    byte >= b' ' && byte != b'"' && byte != b'\\'
}

/// In whole microseconds.
pub(crate) fn add_milliseconds(text: &mut String, time: Duration) {
    let whole = time.as_secs() * 1_000 + u64::from(time.subsec_millis());
    add_thousandths(text, whole, time.subsec_micros() % 1_000);
}

/// A number with three decimals. Each request writes some eight of them, and
/// formatting by `write!` is slow.
fn add_thousandths(text: &mut String, whole: u64, thousandths: u32) {
    text.push_str(itoa::Buffer::new().format(whole));
    text.push('.');
    for digit in [thousandths / 100, thousandths / 10 % 10, thousandths % 10] {
        text.extend(char::from_digit(digit, 10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Route, Source};

    #[test]
    fn a_line_is_one_json_object_whatever_the_path_holds() {
        let text = line(&RequestDone {
            id: "r-1",
            tenant: None,
            shard: Some("s1"),
            method: &http::Method::GET,
            path: "/a\"b\nc",
            route: Route::Relation,
            from: Source::Router,
            status: http::StatusCode::NOT_FOUND,
            code: Some("PGRST205"),
            took: Duration::from_micros(1500),
            bytes: 12,
            slow: None,
            trace: None,
            did: &[],
            statement: None,
            fault: None,
        });
        assert_eq!(text.matches('\n').count(), 1);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["path"], "/a\"b\nc");
        assert_eq!(parsed["duration_ms"], 1.5);
        assert_eq!(parsed["tenant"], serde_json::Value::Null);
        assert_eq!(parsed["level"], "INFO");
        assert!(parsed.get("statement").is_none());
    }

    #[test]
    fn a_slow_request_says_where_its_time_went() {
        let statement = format!("select \"{}\"", "é".repeat(4_000));
        let text = line(&RequestDone {
            id: "r-1",
            tenant: None,
            shard: Some("s1"),
            method: &http::Method::GET,
            path: "/deals",
            route: Route::Relation,
            from: Source::Router,
            status: http::StatusCode::OK,
            code: None,
            took: Duration::from_secs(2),
            bytes: 2,
            trace: None,
            did: &[],
            statement: None,
            fault: None,
            slow: Some(Slow {
                statement: Some(&statement),
                stages: vec![
                    ("pool", Duration::from_millis(500)),
                    ("transaction", Duration::from_millis(1_500)),
                ],
            }),
        });
        assert_eq!(text.matches('\n').count(), 1);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["level"], "WARN");
        assert_eq!(parsed["stages_ms"]["transaction"], 1_500.0);
        let logged = parsed["statement"].as_str().unwrap();
        assert!(logged.starts_with("select \"é") && logged.len() <= STATEMENT_BYTES_MAX);
    }
}
