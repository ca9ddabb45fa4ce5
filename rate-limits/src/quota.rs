//! Quotas as an operator writes them: `300/10m`.

use std::{fmt, num::NonZeroU32, str::FromStr};

/// A number of calls per window, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota(Option<Rate>);

/// A number of calls per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) calls: NonZeroU32,
    pub(crate) window_s: NonZeroU32,
}

/// A text that is no quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "give a quota of the form calls/window, such as 300/10m, with a window in s, m, h or d up to 30d; or off"
)]
pub struct QuotaError;

const UNITS: [(&str, u32); 4] = [("d", 24 * 60 * 60), ("h", 60 * 60), ("m", 60), ("s", 1)];
/// Redis keeps the count of a caller for up to a window.
const MAX_WINDOW_S: u32 = 30 * 24 * 60 * 60;

impl Quota {
    /// No limit.
    pub const OFF: Self = Self(None);

    /// A number of calls per window in seconds; no limit if one of them is 0.
    pub const fn per(calls: u32, window_s: u32) -> Self {
        match (NonZeroU32::new(calls), NonZeroU32::new(window_s)) {
            (Some(calls), Some(window_s)) => Self(Some(Rate { calls, window_s })),
            _ => Self::OFF,
        }
    }

    pub(crate) const fn rate(self) -> Option<Rate> {
        self.0
    }
}

impl Rate {
    /// Microseconds in which a caller regains one call.
    pub(crate) fn interval_us(self) -> i64 {
        (i64::from(self.window_s.get()) * 1_000_000).div_euclid(i64::from(self.calls.get())).max(1)
    }

    /// Microseconds in which a caller regains the whole quota.
    pub(crate) fn limit_us(self) -> i64 {
        self.interval_us() * i64::from(self.calls.get())
    }
}

impl FromStr for Quota {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let (calls, window) = text.split_once('/').ok_or(QuotaError)?;
        let (number, seconds) = UNITS
            .iter()
            .find_map(|(unit, seconds)| Some((window.strip_suffix(unit)?, *seconds)))
            .ok_or(QuotaError)?;
        let calls = parse(calls).ok_or(QuotaError)?;
        let window_s = parse(number)
            .and_then(|number| number.get().checked_mul(seconds))
            .filter(|window_s| *window_s <= MAX_WINDOW_S)
            .and_then(NonZeroU32::new)
            .ok_or(QuotaError)?;
        Ok(Self(Some(Rate { calls, window_s })))
    }
}

fn parse(number: &str) -> Option<NonZeroU32> {
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Rate { calls, window_s }) = self.0 else { return f.write_str("off") };
        let window_s = window_s.get();
        let (unit, seconds) =
            UNITS.iter().find(|(_, seconds)| window_s.is_multiple_of(*seconds)).unwrap_or(&("s", 1));
        write!(f, "{calls}/{}{unit}", window_s / seconds)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quota_round_trips_as_text(calls in any::<u32>(), window_s in 0..=MAX_WINDOW_S) {
            let quota = Quota::per(calls, window_s);
            prop_assert_eq!(quota.to_string().parse(), Ok(quota));
        }

        #[test]
        fn any_text_is_a_quota_or_an_error(text in "[0-9]{0,12}/?[0-9+-]{0,12}[smhdx ]?|\\PC{0,20}") {
            if let Ok(quota) = text.parse::<Quota>() {
                prop_assert_eq!(quota.to_string().parse(), Ok(quota));
            }
        }
    }

    #[test]
    fn only_positive_quotas_have_a_form() {
        assert_eq!("300/10m".parse(), Ok(Quota::per(300, 600)));
        assert_eq!(Quota::per(2000, 86_400).to_string(), "2000/1d");
        for text in
            ["", "/", "300", "300/", "300/m", "0/1m", "1/0s", "-1/1m", "+1/1m", "1/31d", "1/1w", "OFF"]
        {
            assert_eq!(text.parse::<Quota>(), Err(QuotaError), "{text}");
        }
    }
}
