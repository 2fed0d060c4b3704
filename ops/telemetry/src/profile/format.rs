//! The pprof format: google/pprof's `profile.proto`, as much of it as we fill. Pure.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pprof::Report;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub(super) time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub(super) duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
}

/// A report as the format's bytes.
pub(super) fn encode(
    report: &Report,
    frequency: i32,
    started: SystemTime,
    time: Duration,
) -> Vec<u8> {
    let stacks = report.data.iter().map(|(frames, count)| Stack {
        thread: &frames.thread_name,
        functions: {
            let symbols = frames.frames.iter().flatten();
            symbols.map(|symbol| symbol.name()).collect()
        },
        count: i64::try_from(*count).unwrap_or(i64::MAX),
    });
    let period = 1_000_000_000 / i64::from(frequency.max(1));
    let mut profile = of(stacks, period);
    let since = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    profile.time_nanos = nanos(since);
    profile.duration_nanos = nanos(time);
    profile.encode_to_vec()
}

struct Stack<'a> {
    thread: &'a str,
    /// Innermost first.
    functions: Vec<String>,
    count: i64,
}

fn of<'a>(stacks: impl Iterator<Item = Stack<'a>>, period: i64) -> Profile {
    let mut texts = Texts::default();
    // The format's first text is the empty one.
    texts.index("");
    let samples = ValueType {
        r#type: texts.index("samples"),
        unit: texts.index("count"),
    };
    let cpu = ValueType {
        r#type: texts.index("cpu"),
        unit: texts.index("nanoseconds"),
    };
    let key = texts.index("thread");
    let mut profile = Profile {
        sample_type: vec![samples, cpu],
        period_type: Some(cpu),
        period,
        ..Profile::default()
    };
    let mut known: HashMap<i64, u64> = HashMap::new();
    for stack in stacks {
        let mut location_id = Vec::with_capacity(stack.functions.len());
        for function in &stack.functions {
            let name = texts.index(function);
            let next = known.len() as u64 + 1;
            let id = *known.entry(name).or_insert_with(|| {
                profile.function.push(Function {
                    id: next,
                    name,
                    system_name: name,
                });
                profile.location.push(Location {
                    id: next,
                    line: vec![Line { function_id: next }],
                });
                next
            });
            location_id.push(id);
        }
        profile.sample.push(Sample {
            location_id,
            value: vec![stack.count, stack.count.saturating_mul(period)],
            label: vec![Label {
                key,
                text: texts.index(stack.thread),
            }],
        });
    }
    profile.string_table = texts.all;
    profile
}

/// Each text once.
#[derive(Default)]
struct Texts {
    all: Vec<String>,
    known: HashMap<String, i64>,
}

impl Texts {
    fn index(&mut self, text: &str) -> i64 {
        if let Some(index) = self.known.get(text) {
            return *index;
        }
        let index = self.all.len() as i64;
        self.all.push(text.to_owned());
        self.known.insert(text.to_owned(), index);
        index
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_texts_are_there_once() {
        let stacks = [("a", vec!["leaf", "main"], 3), ("b", vec!["main"], 2)];
        let stacks = stacks.map(|(thread, functions, count)| Stack {
            thread,
            functions: functions.into_iter().map(str::to_owned).collect(),
            count,
        });
        let profile = of(stacks.into_iter(), 10);
        let profile = Profile::decode(&*profile.encode_to_vec()).unwrap();
        assert_eq!(profile.string_table[0], "");
        assert_eq!((profile.function.len(), profile.location.len()), (2, 2));
        assert_eq!(profile.sample[0].value, [3, 30]);
        let name = |id: u64| {
            let function = profile.function.iter().find(|f| f.id == id).unwrap();
            profile.string_table[function.name as usize].as_str()
        };
        let stack: Vec<_> = profile.sample[0]
            .location_id
            .iter()
            .map(|id| name(*id))
            .collect();
        assert_eq!(stack, ["leaf", "main"]);
        assert_eq!(
            profile.sample[1].location_id,
            [profile.sample[0].location_id[1]]
        );
    }
}
