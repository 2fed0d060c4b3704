//! W3C Trace Context: who called, as it says itself. Pure.

use http::HeaderMap;
use opentelemetry::trace::{SpanId, TraceId, TraceState};

/// Longest `tracestate` that is passed on, in bytes.
const STATE_MAX: usize = 512;

/// The span of a caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Parent {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) sampled: bool,
    pub(super) state: TraceState,
}

impl Parent {
    /// Out of the headers `traceparent` and `tracestate`; none where there is no
    /// valid one, as if it had not been sent.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let parent = headers.get("traceparent")?.to_str().ok()?;
        let state = headers.get("tracestate").and_then(|s| s.to_str().ok());
        Self::parse(parent, state)
    }

    /// Out of the headers' values.
    pub fn parse(parent: &str, state: Option<&str>) -> Option<Self> {
        let bytes = parent.as_bytes();
        let (version, rest) = parent.split_at_checked(2)?;
        if !is_hex(version) || version == "ff" {
            return None;
        }
        // Later versions may add something behind a further dash.
        let ends = bytes.len() == 55 || version != "00" && bytes.get(55) == Some(&b'-');
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        if !ends || !dashes {
            return None;
        }
        let (trace, span, flags) = (rest.get(1..33)?, rest.get(34..50)?, rest.get(51..53)?);
        if ![trace, span, flags].into_iter().all(is_hex) {
            return None;
        }
        let state = state.filter(|state| state.len() <= STATE_MAX);
        let found = Self {
            trace: TraceId::from_hex(trace).ok()?,
            span: SpanId::from_hex(span).ok()?,
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
            state: state
                .and_then(|state| state.parse().ok())
                .filter(has_keys)
                .unwrap_or_default(),
        };
        let zero = found.trace == TraceId::INVALID || found.span == SpanId::INVALID;
        (!zero).then_some(found)
    }
}

/// Which the parser does not ask for.
fn has_keys(state: &TraceState) -> bool {
    let header = state.header();
    !header.split(',').any(|member| member.starts_with('='))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn what_the_standard_allows_is_read() {
        for (text, sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-00"), false),
            // Flags that are not known, a later version.
            (format!("00-{TRACE}-{SPAN}-fe"), false),
            (format!("cc-{TRACE}-{SPAN}-03"), true),
            (format!("cc-{TRACE}-{SPAN}-01-more"), true),
        ] {
            let parent = Parent::parse(&text, Some("a=1,b=2")).unwrap();
            assert_eq!(parent.trace.to_string(), TRACE);
            assert_eq!(parent.span.to_string(), SPAN);
            assert_eq!(parent.sampled, sampled, "{text}");
            assert_eq!(parent.state.header(), "a=1,b=2");
        }
    }

    #[test]
    fn anything_else_counts_as_not_sent() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "é".repeat(30),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{TRACE}{SPAN}--01"),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01."),
        ] {
            assert_eq!(Parent::parse(&text, None), None, "{text}");
        }
        // A state that can't be read is left out, the parent is not.
        let text = format!("00-{TRACE}-{SPAN}-01");
        for state in ["=", &"a=1,".repeat(200)] {
            let parent = Parent::parse(&text, Some(state)).unwrap();
            assert_eq!(parent.state.header(), "");
        }
    }
}
