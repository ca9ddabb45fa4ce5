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
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
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
    format!("{sign}{digits}{}", "0".repeat(zeros)).parse().ok()
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
    use proptest::prelude::*;

    use super::*;

    /// A whole number with the point moved to the left, and the exponent that moves it back.
    fn with_exponent(number: i64, places: usize, exponent_mark: &str) -> String {
        let sign = if number < 0 { "-" } else { "" };
        let digits = format!("{:0>width$}", number.unsigned_abs(), width = places + 1);
        let (whole, fraction) = digits.split_at(digits.len() - places);
        let point = if places == 0 { "" } else { "." };
        format!("{sign}{whole}{point}{fraction}{exponent_mark}{places}")
    }

    #[expect(clippy::cast_possible_truncation, reason = "saturates, as it must")]
    fn truncate(double: f64) -> i64 {
        double as i64
    }

    /// Compares whole numbers as a client does. Above 2^53 a double has several decimal forms.
    #[expect(clippy::cast_precision_loss, reason = "rounds, as the client does")]
    fn to_double(number: i64) -> f64 {
        number as f64
    }

    /// The value by schoolbook arithmetic: shifts the digits one by one.
    fn model(sign: &str, whole: &str, fraction: &str, exponent: Option<usize>) -> Option<i64> {
        let mut fraction: std::collections::VecDeque<char> = fraction.chars().collect();
        let mut digits = whole.to_owned();
        for _ in 0..exponent.unwrap_or(0) {
            digits.push(fraction.pop_front().unwrap_or('0'));
        }
        let is_whole = fraction.iter().all(|digit| *digit == '0');
        let add = |sum: Option<i128>, digit: char| {
            sum?.checked_mul(10)?.checked_add(i128::from(digit.to_digit(10)?))
        };
        let magnitude = digits.chars().fold(Some(0), add).filter(|_| is_whole)?;
        i64::try_from(if sign == "-" { -magnitude } else { magnitude }).ok()
    }

    proptest! {
        #[test]
        fn every_notation_of_a_number_is_that_number(
            number in prop_oneof![any::<i64>(), -1000..1000_i64],
            places in 0..=MAX_EXPONENT,
            mark in prop::sample::select(&["e", "E", "e+", "e ", "E+"][..]),
            zeros in "\\.0{0,5}",
        ) {
            prop_assert_eq!(integral(&number.to_string()), Some(number));
            prop_assert_eq!(integral(&format!("{number}{zeros}")), Some(number), "{}", zeros);
            let text = with_exponent(number, places, mark);
            prop_assert_eq!(integral(&text), Some(number), "{}", text);
            prop_assert_eq!(rounded(&text), Some(number), "{}", text);
        }

        #[test]
        fn number_agrees_with_schoolbook_arithmetic(
            sign in "-?",
            whole in "[0-9]{1,22}",
            fraction in prop::option::of("[0-9]{0,6}0{0,3}"),
            exponent in prop::option::of(0..=MAX_EXPONENT),
        ) {
            let point = fraction.as_ref().map(|digits| format!(".{digits}")).unwrap_or_default();
            let power = exponent.map(|exponent| format!("e{exponent}")).unwrap_or_default();
            let expected = model(&sign, &whole, &fraction.unwrap_or_default(), exponent);
            let text = format!("{sign}{whole}{point}{power}");
            prop_assert_eq!(integral(&text), expected, "{}", text);
        }

        #[test]
        fn double_is_truncated_however_it_is_printed(bits in any::<u64>(), exact in any::<i32>()) {
            let double = f64::from_bits(bits);
            prop_assume!(double.is_finite());
            for double in [double, f64::from(exact) / 8.0] {
                let exponent = format!("{double:e}");
                let with_plus = format!("{double:E}").replace('E', "E+").replace("+-", "-");
                for text in [exponent, with_plus, format!("{double:?}")] {
                    prop_assert_eq!(rounded(&text).map(to_double), Some(to_double(truncate(double))), "{}", text);
                }
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC{0,30}|[-+]?[0-9.eE +-]{0,60}") {
            if let Some(number) = integral(&text) {
                prop_assert_eq!(rounded(&text), Some(number));
                prop_assert!(text.bytes().all(|byte| byte.is_ascii_digit() || b"-+.eE ".contains(&byte)), "{}", text);
            }
            _ = rounded(&text);
        }
    }

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
