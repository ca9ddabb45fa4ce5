//! Parsing of numbers as clients write them.
//!
//! Some clients hold every number in a double and print it as such: `4.5e+15`, `1700000000000.0`. A `+` in a query
//! arrives as a space, so `4.5e 15` is the same number.

/// The largest exponent. No number of the contract has as many digits, so a larger one only costs time.
const MAX_EXPONENT: usize = 40;

/// Parses a whole number exactly; `None` if the text is none or it does not fit.
pub(crate) fn integral(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = [whole, fraction].concat();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // The exponent must cover the digits after the point, or the number is not whole.
    let zeros = exponent.checked_sub(fraction.len())?;
    let magnitude: i64 = format!("{digits}{}", "0".repeat(zeros)).parse().ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// Parses a number and truncates it to an `i64`, saturating; `None` if the text is no number.
pub(crate) fn rounded(text: &str) -> Option<i64> {
    if let Some(number) = integral(text) {
        return Some(number);
    }
    let number: f64 = text.replacen("e ", "e+", 1).replacen("E ", "e+", 1).parse().ok()?;
    // `parse` accepts "inf" and "nan".
    let is_number = number.is_finite() || text.bytes().any(|byte| byte.is_ascii_digit());
    #[expect(clippy::cast_possible_truncation, reason = "a cast from a double saturates")]
    is_number.then_some(number as i64)
}

fn parse_exponent(text: &str) -> Option<usize> {
    let digits = text.strip_prefix(['+', ' ']).unwrap_or(text);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|exponent| *exponent <= MAX_EXPONENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_parse_exactly_in_every_notation() {
        for (text, number) in [
            ("7", 7),
            ("007", 7),
            ("-7", -7),
            ("4.5e+15", 4_500_000_000_000_000),
            ("4.5e 15", 4_500_000_000_000_000),
            ("4.5E15", 4_500_000_000_000_000),
            ("9.007199254740991e15", 9_007_199_254_740_991),
            ("1e0", 1),
            ("12.0", 12),
            ("1.50e1", 15),
        ] {
            assert_eq!(integral(text), Some(number), "{text}");
        }
    }

    #[test]
    fn other_text_is_no_whole_number() {
        for text in [
            "",
            " ",
            "1.5",
            "4.55e1",
            "1e-1",
            "1e",
            "1e99",
            "1e999999999999",
            "e5",
            ".",
            "0x1",
            "1 ",
            "９",
            "inf",
        ] {
            assert_eq!(integral(text), None, "{text:?}");
        }
    }

    #[test]
    fn fractions_are_truncated() {
        assert_eq!(rounded("1.5"), Some(1));
        assert_eq!(rounded("1.7e 12"), Some(1_700_000_000_000));
        assert_eq!(rounded("99999999999999999999"), Some(i64::MAX));
        assert_eq!(rounded("1e400"), Some(i64::MAX));
        assert_eq!(rounded("inf"), None);
        assert_eq!(rounded("nan"), None);
        assert_eq!(rounded("tomorrow"), None);
    }
}
