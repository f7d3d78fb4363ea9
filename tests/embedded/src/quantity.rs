//! Kubernetes quantities, read into thousandths.

use serde_json::Value;

/// A quantity such as `8`, `500m`, `2Gi`, `1e3` in thousandths of its unit, rounded up; `None` when it is malformed or
/// does not fit.
#[must_use]
pub fn milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && part.is_empty() || part.contains('.') {
        return None;
    }
    let (factor, divisor) = scale(suffix)?;
    let mantissa: i128 = format!("{whole}{part}").parse().ok()?;
    let places = u32::try_from(part.len()).ok()?;
    let divisor = 10_i128.checked_pow(places)?.checked_mul(divisor)?;
    let product = mantissa.checked_mul(factor)?.checked_mul(1000)?;
    let up = product.checked_add(divisor.checked_sub(1)?)?;
    up.checked_div(divisor)?.checked_mul(sign)
}

/// Factor and divisor of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| 1024_i128.checked_pow(power).map(|f| (f, 1));
    let decimal = |power: u32| 10_i128.checked_pow(power).map(|f| (f, 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let value = 10_i128.checked_pow(power.unsigned_abs())?;
            Some(if power < 0 { (1, value) } else { (value, 1) })
        }
    }
}

/// The quantity in a JSON value: a text, or a plain number.
#[must_use]
pub fn of_value(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => milli(text),
        Value::Number(number) => milli(&number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, wanted) in [
            ("8", 8000),
            ("500m", 500),
            ("1.5", 1500),
            ("2Gi", 2_147_483_648_000),
            ("1e3", 1_000_000),
            ("1e0", 1000),
            ("-2", -2000),
            ("0.0001", 1),
            ("100u", 1),
        ] {
            assert_eq!(milli(text), Some(wanted), "{text}");
        }
        for text in [
            "",
            "x",
            "1.2.3",
            "1Qi",
            "e3",
            "99999999999999999999999999999999999999999E",
        ] {
            assert_eq!(milli(text), None, "{text}");
        }
    }
}
