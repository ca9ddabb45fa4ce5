//! Times of the contract. Internally, all are milliseconds since 1970, UTC.

use time::{OffsetDateTime, UtcOffset};

use crate::numbers::rounded;

/// The largest time in seconds; a larger one is in milliseconds. 1e11 s is the year 5138, 1e11 ms is 1973.
const LARGEST_SECONDS: i64 = 100_000_000_000;

/// Parses `latest_time` or `pre_msg_time`; `None` if it is missing, empty, "0" or not a number.
///
/// A future time is compared like any other: no video is published after it unless a clock is ahead, and then the
/// comparison keeps the pages disjoint.
pub fn parse(text: Option<&str>) -> Option<i64> {
    let number = rounded(text?)?;
    match number {
        0 => None,
        ms if ms > LARGEST_SECONDS => Some(ms),
        seconds => Some(seconds.saturating_mul(1000)),
    }
}

/// Formats the date of a comment, "mm-dd".
pub fn month_and_day(time_ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .to_offset(UtcOffset::UTC);
    format!("{:02}-{:02}", u8::from(time.month()), time.day())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The order of times is the order of the numbers of one unit.
        #[test]
        fn unit_depends_only_on_the_size(ms in LARGEST_SECONDS + 1..=i64::MAX, seconds in 1..=LARGEST_SECONDS) {
            prop_assert_eq!(parse(Some(&ms.to_string())), Some(ms));
            prop_assert_eq!(parse(Some(&seconds.to_string())), Some(seconds * 1000));
            prop_assert_eq!(parse(Some(&format!("{seconds}.9"))), Some(seconds * 1000));
        }

        #[test]
        fn any_text_is_a_time_or_none(text in "\\PC{0,30}|-?[0-9]{0,25}(\\.[0-9]{0,5})?([eE][+ -]?[0-9]{0,4})?") {
            if let Some(time) = parse(Some(&text)) {
                prop_assert!(time != 0 && text.bytes().any(|byte| byte.is_ascii_digit()), "{}", text);
            }
        }

        #[test]
        fn comment_date_has_a_month_and_a_day(ms in any::<i64>()) {
            let date = month_and_day(ms);
            let (month, day) = date.split_once('-').unwrap();
            prop_assert!(date.len() == 5 && (1..=12).contains(&month.parse().unwrap()));
            prop_assert!((1..=31).contains(&day.parse().unwrap()));
        }
    }

    #[test]
    fn text_without_a_time_is_none() {
        for text in [None, Some(""), Some("0"), Some("0.0"), Some("now"), Some("NaN"), Some("12:00")] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn small_times_are_seconds_large_ones_milliseconds() {
        assert_eq!(parse(Some("1700000000")), Some(1_700_000_000_000));
        assert_eq!(parse(Some("1700000000123")), Some(1_700_000_000_123));
        assert_eq!(parse(Some("1.700000000123E12")), Some(1_700_000_000_123));
        assert_eq!(parse(Some("100000000000")), Some(100_000_000_000_000));
        assert_eq!(parse(Some("100000000001")), Some(100_000_000_001));
    }

    #[test]
    fn future_time_is_kept() {
        assert_eq!(parse(Some("9007199254740991")), Some(9_007_199_254_740_991));
        assert_eq!(parse(Some("99999999999999999999999")), Some(i64::MAX));
        assert_eq!(parse(Some("-5")), Some(-5000));
    }

    #[test]
    fn comment_date_is_month_and_day() {
        assert_eq!(month_and_day(1_700_000_000_000), "11-14");
        assert_eq!(month_and_day(0), "01-01");
        assert_eq!(month_and_day(i64::MAX), "01-01");
    }
}
