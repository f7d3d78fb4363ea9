//! Kubernetes quantities: `500m`, `2Gi`, `1e0`, `1.5`.
//!
//! A quantity is `digits x 10^e x 2^b`. It is kept as those three numbers and only turned into
//! units or thousandths at the end, rounding up as Kubernetes does: a request is never read as
//! less than it is. An amount above what fits in 64 bits becomes `u64::MAX`, which fits nowhere.

use thiserror::Error;

/// Most significant digits that are kept; further ones count as "a little more".
const DIGITS_MAX: u32 = 20;
/// Largest exponent looked at; beyond it an amount is either nothing or more than anything.
const EXPONENT_MAX: i32 = 1_000;
/// Longest text that is looked at, bytes.
const TEXT_MAX: usize = 256;

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// There is no text.
    #[error("must be a quantity, for example 500m or 2Gi, and is empty")]
    Empty,
    /// The text is longer than any quantity.
    #[error("must be a quantity of at most 256 characters")]
    TooLong,
    /// Not a number with a known suffix.
    #[error("must be a quantity, for example 500m or 2Gi")]
    Malformed,
    /// Below zero.
    #[error("must not be negative")]
    Negative,
}

/// A non-negative amount, exact to 20 significant digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// Significant digits, below `10^DIGITS_MAX`.
    mantissa: u128,
    /// Digits other than zero were cut off behind the mantissa.
    more: bool,
    exponent10: i32,
    exponent2: u32,
}

impl Quantity {
    /// Reads a quantity. Below zero is an error, because nothing here may be below zero.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Empty);
        }
        if text.len() > TEXT_MAX {
            return Err(QuantityError::TooLong);
        }
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (exponent10, exponent2) = suffix_of(suffix).ok_or(QuantityError::Malformed)?;
        let mut quantity = digits_of(number).ok_or(QuantityError::Malformed)?;
        quantity.exponent10 = quantity.exponent10.saturating_add(exponent10);
        quantity.exponent2 = exponent2;
        if negative && !quantity.is_zero() {
            return Err(QuantityError::Negative);
        }
        Ok(quantity)
    }

    /// Whether the amount is nothing at all.
    pub fn is_zero(self) -> bool {
        self.mantissa == 0 && !self.more
    }

    /// Whole units, rounded up; `u64::MAX` when there are more.
    pub fn units(self) -> u64 {
        self.scaled(0)
    }

    /// Thousandths of a unit, rounded up; `u64::MAX` when there are more.
    pub fn milli(self) -> u64 {
        self.scaled(3)
    }

    /// The amount times `10^scale`, rounded up, saturating.
    fn scaled(self, scale: i32) -> u64 {
        if self.is_zero() {
            return 0;
        }
        // Below 10^20 x 2^60, so it fits in 128 bits.
        let Some(whole) = self.mantissa.checked_shl(self.exponent2) else {
            return u64::MAX;
        };
        let exponent = self.exponent10.saturating_add(scale);
        let power = 10_u128.checked_pow(exponent.unsigned_abs());
        let amount = match (exponent >= 0, power) {
            (true, Some(power)) => whole.checked_mul(power),
            (true, None) => (whole == 0).then_some(0),
            (false, Some(power)) => Some(whole.div_ceil(power)),
            (false, None) => Some(u128::from(whole > 0)),
        };
        // Digits that were cut off count as one more where the division left nothing over.
        let exact = exponent >= 0
            || power.is_some_and(|power| whole.checked_rem(power).is_some_and(|rest| rest == 0));
        amount
            .and_then(|amount| amount.checked_add(u128::from(self.more && exact)))
            .and_then(|amount| u64::try_from(amount).ok())
            .unwrap_or(u64::MAX)
    }
}

/// Digits with at most one point: mantissa and the exponent that the point stands for.
fn digits_of(number: &str) -> Option<Quantity> {
    let mut mantissa: u128 = 0;
    let mut kept: u32 = 0;
    let mut more = false;
    let mut exponent10: i32 = 0;
    let mut seen = false;
    let mut behind_point = false;
    for c in number.bytes() {
        if c == b'.' {
            if behind_point {
                return None;
            }
            behind_point = true;
            continue;
        }
        seen = true;
        let digit = c.checked_sub(b'0')?;
        if kept < DIGITS_MAX {
            mantissa = mantissa.checked_mul(10)?.checked_add(u128::from(digit))?;
            if mantissa > 0 {
                kept = kept.saturating_add(1);
            }
            if behind_point {
                exponent10 = exponent10.saturating_sub(1);
            }
        } else {
            more |= digit > 0;
            if !behind_point {
                exponent10 = exponent10.saturating_add(1);
            }
        }
    }
    seen.then_some(Quantity {
        mantissa,
        more,
        exponent10,
        exponent2: 0,
    })
}

/// Exponents of ten and of two that a suffix stands for.
fn suffix_of(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let (negative, digits) = match exponent.as_bytes().first()? {
                b'-' => (true, exponent.get(1..)?),
                b'+' => (false, exponent.get(1..)?),
                _ => (false, exponent),
            };
            if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                return None;
            }
            let size = digits
                .parse::<i32>()
                .unwrap_or(EXPONENT_MAX)
                .min(EXPONENT_MAX);
            (
                if negative {
                    size.saturating_neg()
                } else {
                    size
                },
                0,
            )
        }
    })
}

/// Whole units of a quantity, rounded up; `u64::MAX` for more than 64 bits hold.
pub fn units(text: &str) -> Result<u64, QuantityError> {
    Quantity::parse(text).map(Quantity::units)
}

/// Thousandths of a quantity, rounded up; `u64::MAX` for more than 64 bits hold.
pub fn milli(text: &str) -> Result<u64, QuantityError> {
    Quantity::parse(text).map(Quantity::milli)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_quantities() {
        let cases: &[(&str, u64, u64)] = &[
            ("0", 0, 0),
            ("-0", 0, 0),
            ("+1", 1, 1000),
            ("1e0", 1, 1000),
            ("1.0", 1, 1000),
            (".5", 1, 500),
            ("5.", 5, 5000),
            ("100m", 1, 100),
            ("1n", 1, 1),
            ("1u", 1, 1),
            ("1500u", 1, 2),
            ("1k", 1000, 1_000_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("2Gi", 2_147_483_648, 2_147_483_648_000),
            ("8Ei", 9_223_372_036_854_775_808, u64::MAX),
            ("16Ei", u64::MAX, u64::MAX),
            ("1E", 1_000_000_000_000_000_000, u64::MAX),
            ("1E3", 1000, 1_000_000),
            ("12e-1", 2, 1200),
            ("1e999999999999", u64::MAX, u64::MAX),
            ("1e-999999999999", 1, 1),
            ("0e99999", 0, 0),
            ("18446744073709551615", u64::MAX, u64::MAX),
            ("9999999999999999999999", u64::MAX, u64::MAX),
            ("0.00000000000000000000000000001", 1, 1),
            ("4.00000000000000000000000000001", 5, 4001),
            ("000000000000000000000000000000007", 7, 7000),
        ];
        for (text, units_expected, milli_expected) in cases {
            assert_eq!(units(text), Ok(*units_expected), "units of {text}");
            assert_eq!(milli(text), Ok(*milli_expected), "milli of {text}");
        }
    }

    #[test]
    fn texts_that_are_no_quantity() {
        let long = "1".repeat(300);
        let cases: &[(&str, QuantityError)] = &[
            ("", QuantityError::Empty),
            ("-1", QuantityError::Negative),
            ("-1n", QuantityError::Negative),
            (".", QuantityError::Malformed),
            ("Gi", QuantityError::Malformed),
            ("1.2.3", QuantityError::Malformed),
            ("1 Gi", QuantityError::Malformed),
            ("1gi", QuantityError::Malformed),
            ("1K", QuantityError::Malformed),
            ("1e", QuantityError::Malformed),
            ("1e+", QuantityError::Malformed),
            ("1e1.5", QuantityError::Malformed),
            ("--1", QuantityError::Malformed),
            ("eight", QuantityError::Malformed),
            ("\u{661}", QuantityError::Malformed),
            (&long, QuantityError::TooLong),
        ];
        for (text, expected) in cases {
            assert_eq!(units(text), Err(*expected), "{text:?}");
        }
    }

    /// Numbers of which a suffix is the quotient; `None` for what is none.
    fn factor_of(suffix: &str) -> Option<(u128, u128)> {
        let names = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if let Some(at) = names.iter().position(|name| *name == suffix) {
            let at = at as u32;
            return Some((
                10_u128.pow(3 * at.saturating_sub(3)),
                10_u128.pow(3 * 3_u32.saturating_sub(at)),
            ));
        }
        let names = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        if let Some(at) = names.iter().position(|name| *name == suffix) {
            return Some((1 << (10 * (at + 1)), 1));
        }
        let exponents = [
            ("e3", (1000, 1)),
            ("E+2", (100, 1)),
            ("e-4", (1, 10_000)),
            ("e0", (1, 1)),
        ];
        let mut known = exponents.into_iter();
        known
            .find(|(name, _)| *name == suffix)
            .map(|(_, factor)| factor)
    }

    /// What a text stands for, in thousandths, by its parts and in fractions.
    fn expected(
        sign: &str,
        whole: &str,
        behind: Option<&str>,
        suffix: &str,
    ) -> Result<(u128, u128), QuantityError> {
        let digits = [whole, behind.unwrap_or_default()].concat();
        let (times, by) = factor_of(suffix).ok_or(QuantityError::Malformed)?;
        let number: u128 = digits.parse().map_err(|_| QuantityError::Malformed)?;
        if sign == "-" && number > 0 {
            return Err(QuantityError::Negative);
        }
        let decimals = behind.unwrap_or_default().len() as u32;
        Ok((number * times * 1000, by * 10_u128.pow(decimals)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn f28_any_text_is_the_amount_that_it_says_or_is_refused(
            sign in prop::sample::select(vec!["", "", "", "+", "-", "--"]),
            whole in "[0-9]{0,9}",
            behind in prop::option::of("[0-9]{0,5}"),
            suffix in prop::sample::select(vec![
                "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E+2",
                "e-4", "e0", "K", "ki", "mm", "e", "e+", "i", " ", "B", "_",
            ]),
        ) {
            let point = if behind.is_some() { "." } else { "" };
            let text = [sign, &whole, point, behind.as_deref().unwrap_or_default(), suffix].concat();
            if text.is_empty() {
                prop_assert_eq!(units(&text), Err(QuantityError::Empty));
                return Ok(());
            }
            let expected = match sign {
                "--" => Err(QuantityError::Malformed),
                _ => expected(sign, &whole, behind.as_deref(), suffix),
            };
            let capped = |amount: u128| u64::try_from(amount).unwrap_or(u64::MAX);
            prop_assert_eq!(milli(&text), expected.map(|(all, by)| capped(all.div_ceil(by))));
            prop_assert_eq!(units(&text), expected.map(|(all, by)| capped(all.div_ceil(by * 1000))));
        }

        #[test]
        fn any_text_gets_an_answer(text in ".{0,40}") {
            match (units(&text), milli(&text)) {
                // Thousandths rounded up are never less than units rounded up, in thousandths, less one unit.
                (Ok(units), Ok(milli)) => prop_assert_eq!(units, match milli {
                    u64::MAX => units,
                    milli => milli.div_ceil(1000),
                }),
                (units, milli) => prop_assert_eq!(units.unwrap_err(), milli.unwrap_err()),
            }
        }

        #[test]
        fn whole_numbers_are_themselves(n in any::<u64>()) {
            prop_assert_eq!(units(&n.to_string()), Ok(n));
            prop_assert_eq!(milli(&n.to_string()), Ok(n.saturating_mul(1000)));
            prop_assert_eq!(milli(&format!("{n}m")), Ok(n));
            prop_assert_eq!(units(&format!("{n}m")), Ok(n.div_ceil(1000)));
        }

        #[test]
        fn binary_suffixes_multiply(n in 0_u64..1 << 20, power in 1_u32..=6) {
            let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power as usize];
            let expected = u128::from(n) << (10 * power);
            prop_assert_eq!(
                units(&format!("{n}{suffix}")),
                Ok(u64::try_from(expected).unwrap_or(u64::MAX))
            );
        }

        #[test]
        fn fractions_round_up(whole in 0_u64..1_000_000, thousandths in 0_u64..1000) {
            let text = format!("{whole}.{thousandths:03}");
            prop_assert_eq!(milli(&text), Ok(whole * 1000 + thousandths));
            prop_assert_eq!(units(&text), Ok(whole + u64::from(thousandths > 0)));
        }

        #[test]
        fn exponents_agree_with_suffixes(n in any::<u32>()) {
            for (suffix, exponent) in [("n", "e-9"), ("u", "e-6"), ("m", "e-3"), ("k", "e3"), ("M", "E6"), ("G", "e+9")] {
                prop_assert_eq!(units(&format!("{n}{suffix}")), units(&format!("{n}{exponent}")));
                prop_assert_eq!(milli(&format!("{n}{suffix}")), milli(&format!("{n}{exponent}")));
            }
        }
    }
}
