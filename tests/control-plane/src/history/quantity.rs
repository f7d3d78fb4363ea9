//! Kubernetes quantities as exact integers in thousandths.

/// Reads a quantity such as `500m`, `2`, `1.5Gi`, `1e3` as thousandths, rounded up as Kubernetes does; nothing for text that is none or
/// does not fit.
pub(crate) fn milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let digits_end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let (multiplier, divisor) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value: i128 = 0;
    let mut fraction_scale: i128 = 1;
    for digit in whole.chars().chain(fraction.chars()) {
        value = value
            .checked_mul(10)?
            .checked_add(i128::from(digit.to_digit(10)?))?;
    }
    for _ in fraction.chars() {
        fraction_scale = fraction_scale.checked_mul(10)?;
    }
    let numerator = value.checked_mul(multiplier)?.checked_mul(1_000)?;
    let denominator = fraction_scale.checked_mul(divisor)?;
    let rounded = numerator
        .checked_add(denominator.checked_sub(1)?)?
        .checked_div(denominator)?;
    Some(if negative {
        rounded.checked_neg()?
    } else {
        rounded
    })
}

/// Multiplier and divisor of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let pair = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs())?;
            if power >= 0 { (factor, 1) } else { (1, factor) }
        }
    };
    Some(pair)
}

#[cfg(test)]
mod tests {
    use super::milli;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, expected) in [
            ("0", 0),
            ("2", 2_000),
            ("500m", 500),
            ("1.5", 1_500),
            ("1e3", 1_000_000),
            ("5E-1", 500),
            ("1Ki", 1_024_000),
            ("0.5Gi", 536_870_912_000),
            ("100u", 1),
            ("-1", -1_000),
            ("3E", 3_000_000_000_000_000_000_000),
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "m", ".", "1x", "1ee3", "1e99", "--1", "1.2.3"] {
            assert_eq!(milli(text), None, "{text}");
        }
    }
}
