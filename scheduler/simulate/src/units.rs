//! Spans of time for people.

/// A unit of time that suits a span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    /// Seconds.
    pub(crate) seconds: f64,
}

impl Unit {
    /// The largest unit of which the span has some.
    pub(crate) fn of(seconds: f64) -> Self {
        let (name, seconds) = match seconds {
            s if s >= 4.0 * 86_400.0 => ("days", 86_400.0),
            s if s >= 4.0 * 3_600.0 => ("hours", 3_600.0),
            s if s >= 4.0 * 60.0 => ("minutes", 60.0),
            _ => ("seconds", 1.0),
        };
        Self { name, seconds }
    }
}

/// A number as people write it: at most `digits` after the point, no zeros at the end.
pub(crate) fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if !text.contains('.') {
        return text;
    }
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    match trimmed {
        "-0" | "" => "0".into(),
        trimmed => trimmed.into(),
    }
}

/// A span of time in a unit that suits it.
pub(crate) fn span(seconds: f64) -> String {
    let unit = Unit::of(seconds);
    format!("{} {}", number(seconds / unit.seconds, 1), unit.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit_that_suits_them() {
        let spans = [0.0, 239.0, 240.0, 5400.0, 86_400.0, 864_000.0].map(span);
        assert_eq!(
            spans,
            [
                "0 seconds",
                "239 seconds",
                "4 minutes",
                "90 minutes",
                "24 hours",
                "10 days"
            ]
        );
        assert_eq!(number(0.600_000_000_000_000_1, 3), "0.6");
        assert_eq!(number(-0.001, 1), "0");
        assert_eq!(number(1200.0, 0), "1200");
    }
}
