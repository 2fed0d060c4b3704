//! Lengths of time as people write them: `250ms`, `10s`, `5m`, `2h`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

const UNITS: [(&str, f64); 5] = [
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3_600.0),
];
const LONGEST: f64 = 30.0 * 24.0 * 3_600.0;

/// A length of time, at most 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(Duration);

impl Period {
    /// So many whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Period(Duration::from_secs(seconds))
    }

    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Period(Duration::from_millis(millis))
    }

    /// As the standard library's type.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// In seconds.
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl std::str::FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!("{text:?} is not a length of time such as \"250ms\", \"10s\", \"5m\" or \"2h\"")
        };
        let text = text.trim();
        let number_end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(refuse)?;
        let (number, unit) = text.split_at(number_end);
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| *name == unit.trim())
            .ok_or_else(refuse)?;
        let seconds = number * factor;
        if seconds > LONGEST {
            return Err(format!("{text:?} is longer than 30 days"));
        }
        Ok(Period(Duration::from_secs_f64(seconds)))
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A length of time: a number and us, ms, s, m or h.",
            "pattern": r"^[0-9.]+\s*(us|ms|s|m|h)$"
        })
    }
}

/// A length of time, or two with `..` between them for a uniform choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Range {
    /// The shortest.
    pub min: Duration,
    /// The longest; equal to the shortest for a fixed length.
    pub max: Duration,
}

impl Range {
    /// No time at all.
    pub const ZERO: Range = Range {
        min: Duration::ZERO,
        max: Duration::ZERO,
    };

    /// Draws a length.
    pub fn draw(self, random: &mut fastrand::Rng) -> Duration {
        self.min + (self.max - self.min).mul_f64(random.f64())
    }
}

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (min, max) = text.split_once("..").unwrap_or((&text, &text));
        let (min, max) = (
            min.parse::<Period>()?.duration(),
            max.parse::<Period>()?.duration(),
        );
        if min > max {
            return Err(format!("{text:?} begins with the longer one"));
        }
        Ok(Range { min, max })
    }
}

impl JsonSchema for Range {
    fn schema_name() -> Cow<'static, str> {
        "Range".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A length of time, or two with \"..\" between them: \"100ms\", \"50ms..200ms\".",
            "pattern": r"^[0-9.]+\s*(us|ms|s|m|h)(\.\.[0-9.]+\s*(us|ms|s|m|h))?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write_and_refuses_the_rest() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("1.5s", 1_500),
            ("5m", 300_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(
                text.parse::<Period>(),
                Ok(Period::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "10", "s", "10 parsecs", "-1s", "1.2.3s", "10000h"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        let range = Range::try_from("50ms..200ms".to_owned()).unwrap();
        assert_eq!(
            (range.min, range.max),
            (Duration::from_millis(50), Duration::from_millis(200))
        );
        assert!(Range::try_from("2s..1s".to_owned()).is_err());
    }
}
