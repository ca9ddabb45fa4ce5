//! The generic cell rate algorithm (GCRA).
//!
//! The state of a caller is one time, at which it has regained its whole quota. A call moves that time by the quota's
//! interval, and is refused if the time would then be more than the quota's window ahead.

use std::time::Duration;

use crate::quota::Rate;

/// [`charge`] in Redis, by the clock of its server. The key expires when the state is that of a new caller.
pub(crate) const SCRIPT: &str = "
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local interval, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
    local full = tonumber(redis.call('GET', KEYS[1]) or '0')
    full = math.min(math.max(full, now), now + limit)
    local admitted = full + interval - now <= limit
    if admitted then
        full = full + interval
        redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
    end
    return {admitted and 1 or 0, full - now}";

/// Whether a call is within a quota, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the call may proceed.
    pub is_admitted: bool,
    /// Microseconds until the caller has regained its whole quota.
    pub(crate) ahead_us: i64,
}

/// Charges one call to a caller, whose whole quota is available at `full_us`. Returns the new value of that time.
pub(crate) fn charge(rate: Rate, full_us: i64, now_us: i64) -> (i64, Decision) {
    let (interval, limit) = (rate.interval_us(), rate.limit_us());
    // The upper bound applies after the clock was set back or the quota was lowered.
    let full_us = full_us.clamp(now_us, now_us + limit);
    let is_admitted = full_us + interval - now_us <= limit;
    let full_us = if is_admitted { full_us + interval } else { full_us };
    (full_us, Decision { is_admitted, ahead_us: full_us - now_us })
}

impl Decision {
    /// Returns the decision that the script replied.
    pub fn from_reply((admitted, ahead_us): (i64, i64)) -> Self {
        Self { is_admitted: admitted == 1, ahead_us }
    }

    /// How long a refused caller stays refused.
    pub(crate) fn refused_for(self, rate: Rate) -> Duration {
        let us = self.ahead_us + rate.interval_us() - rate.limit_us();
        Duration::from_micros(us.try_into().unwrap_or_default())
    }

    /// Calls that the caller may send at once.
    pub(crate) fn remaining(self, rate: Rate) -> i64 {
        (rate.limit_us() - self.ahead_us).max(0) / rate.interval_us()
    }

    /// Seconds until the caller has regained its whole quota.
    pub(crate) fn reset_s(self) -> i64 {
        whole_seconds(self.ahead_us)
    }

    /// Seconds until a refused caller is admitted again, at least 1.
    pub(crate) fn retry_after_s(self, rate: Rate) -> i64 {
        whole_seconds(self.ahead_us + rate.interval_us() - rate.limit_us()).max(1)
    }
}

fn whole_seconds(us: i64) -> i64 {
    us.max(0).div_euclid(1_000_000) + i64::from(us.max(0) % 1_000_000 > 0)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn rates() -> impl Strategy<Value = Rate> {
        (1..50_u32, 1..100_u32).prop_map(|(calls, window_s)| Rate {
            calls: NonZeroU32::new(calls).unwrap(),
            window_s: NonZeroU32::new(window_s).unwrap(),
        })
    }

    proptest! {
        #[test]
        fn whole_quota_is_admitted_at_once(rate in rates(), now in 0..1_i64 << 50) {
            let mut full = 0;
            for left in (0..i64::from(rate.calls.get())).rev() {
                let decision;
                (full, decision) = charge(rate, full, now);
                prop_assert!(decision.is_admitted);
                prop_assert_eq!(decision.remaining(rate), left);
            }
            let (unchanged, refused) = charge(rate, full, now);
            prop_assert!(!refused.is_admitted);
            prop_assert_eq!((unchanged, refused.remaining(rate)), (full, 0));
            // A refused caller that retries after the given time is admitted.
            let later = now + refused.retry_after_s(rate) * 1_000_000;
            prop_assert!(charge(rate, full, later).1.is_admitted);
        }

        /// In any window a caller gets at most its quota at once and the quota that it regains.
        #[test]
        fn admitted_calls_are_bounded(rate in rates(), pauses in prop::collection::vec(0..3_000_000_i64, 1..300)) {
            let (mut full, mut now, mut admitted) = (0, 1 << 40, Vec::new());
            for pause in pauses {
                now += pause;
                let decision;
                (full, decision) = charge(rate, full, now);
                if decision.is_admitted {
                    admitted.push(now);
                }
            }
            for (index, start) in admitted.iter().enumerate() {
                let within = admitted[index..].iter().filter(|time| *time - start < rate.limit_us()).count();
                prop_assert!(within <= 2 * rate.calls.get() as usize);
            }
        }

        /// A clock that was set back delays a caller by at most a window.
        #[test]
        fn state_of_the_future_is_bounded(rate in rates(), full in any::<i64>(), now in 0..1_i64 << 50) {
            let (full, decision) = charge(rate, full, now);
            prop_assert!((now..=now + rate.limit_us()).contains(&full));
            prop_assert!(decision.retry_after_s(rate) <= i64::from(rate.window_s.get()) + 1);
        }
    }
}
