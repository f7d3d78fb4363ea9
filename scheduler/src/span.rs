//! Spans of time as people write them in the configuration file: `250ms`, `30s`, `5m`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use muster_core::time::Millis;
use serde::{Deserialize, Deserializer, de};

/// Longest span that is accepted: a week. A longer one is a slip of the keyboard.
pub const SPAN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A span of time with millisecond resolution, at most [`SPAN_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Why a text is no span of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no span of time: {limit}")]
pub struct InvalidSpan {
    text: String,
    limit: &'static str,
}

impl Span {
    /// A span of whole seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The span in the core's unit.
    pub fn millis(self) -> Millis {
        Millis(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX))
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |limit| InvalidSpan {
            text: text.chars().take(64).collect(),
            limit,
        };
        const FORM: &str = "write numbers with units h, m, s or ms, for example 30s or 1h30m";
        let mut rest = text.trim();
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(invalid(FORM));
        }
        while !rest.is_empty() {
            let digits = rest.chars().take_while(char::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| invalid(FORM))?;
            let (unit_ms, tail) = if let Some(tail) = tail.strip_prefix("ms") {
                (1, tail)
            } else if let Some(tail) = tail.strip_prefix('s') {
                (1_000, tail)
            } else if let Some(tail) = tail.strip_prefix('m') {
                (60_000, tail)
            } else if let Some(tail) = tail.strip_prefix('h') {
                (3_600_000, tail)
            } else {
                return Err(invalid(FORM));
            };
            total = total.saturating_add(Duration::from_millis(number.saturating_mul(unit_ms)));
            rest = tail;
        }
        if total > SPAN_MAX {
            return Err(invalid("at most 168h"));
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1000) {
            write!(f, "{}s", ms / 1000)
        } else {
            write!(f, "{ms}ms")
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a span of time with its unit, for example 30s")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up_and_a_missing_unit_is_an_error() {
        let ms = |text: &str| text.parse::<Span>().map(|span| span.0.as_millis());
        assert_eq!(ms("250ms"), Ok(250));
        assert_eq!(ms("30s"), Ok(30_000));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        for bad in [
            "",
            "30",
            "s",
            "3x",
            "-1s",
            "1.5s",
            "99999999999999999999s",
            "9999h",
        ] {
            assert!(ms(bad).is_err(), "{bad}");
        }
    }
}
