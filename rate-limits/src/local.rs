//! What a process remembers of its callers, in bounded memory.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    gcra::{self, Decision},
    limit::Limit,
    quota::Rate,
};

/// Slots per limit. Callers that share one share a quota: rare for a process's callers, and only while Redis is
/// unavailable.
const SLOTS: usize = 16 * 1024;
/// The most refused addresses that are remembered. Those beyond it are refused by Redis.
const MAX_REFUSALS: usize = 4096;

/// The states of callers while Redis is unavailable. A caller's slot is a hash with a random key, so that no caller can
/// choose the slot of another.
pub(crate) struct LocalBuckets {
    start: Instant,
    hasher: RandomState,
    full_us: Mutex<Vec<i64>>,
}

impl LocalBuckets {
    pub(crate) fn new() -> Self {
        let full_us = Mutex::new(vec![0; SLOTS * Limit::ALL.len()]);
        Self { start: Instant::now(), hasher: RandomState::new(), full_us }
    }

    /// Charges one call to a caller.
    pub(crate) fn charge(&self, limit: Limit, rate: Rate, subject: &str) -> Decision {
        let now_us = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX / 2);
        let slot = usize::try_from(self.hasher.hash_one(subject) % SLOTS as u64).unwrap_or_default();
        let mut slots = self.full_us.lock();
        let mut unlimited = 0;
        let full_us = slots.get_mut(limit as usize * SLOTS + slot).unwrap_or(&mut unlimited);
        let decision;
        (*full_us, decision) = gcra::charge(rate, *full_us, now_us);
        decision
    }
}

/// The callers that Redis refused, and until when. They are refused here, so a flood does not reach Redis.
#[derive(Default)]
pub(crate) struct Refusals {
    until: Mutex<HashMap<(Limit, String), Instant>>,
}

impl Refusals {
    /// Returns how long a caller is still refused.
    pub(crate) fn remaining(&self, limit: Limit, subject: &str) -> Option<Duration> {
        let key = (limit, subject.to_owned());
        let until = *self.until.lock().get(&key)?;
        Some(until.saturating_duration_since(Instant::now())).filter(|remaining| !remaining.is_zero())
    }

    /// Remembers a refused caller, unless too many are refused.
    pub(crate) fn add(&self, limit: Limit, subject: &str, duration: Duration) {
        let now = Instant::now();
        let mut until = self.until.lock();
        if until.len() >= MAX_REFUSALS {
            until.retain(|_, until| *until > now);
        }
        if until.len() < MAX_REFUSALS {
            until.insert((limit, subject.to_owned()), now + duration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    #[tokio::test(start_paused = true)]
    async fn callers_have_their_own_quota() {
        let (buckets, rate) = (LocalBuckets::new(), Quota::per(2, 10).rate().unwrap());
        let charge = |subject| buckets.charge(Limit::WriteUser, rate, subject).is_admitted;
        assert_eq!(["a", "a", "a", "b"].map(charge), [true, true, false, true]);
        assert!(buckets.charge(Limit::ReadUser, rate, "a").is_admitted);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(["a", "a"].map(charge), [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_bounded_and_expire() {
        let refusals = Refusals::default();
        for caller in 0..MAX_REFUSALS + 10 {
            refusals.add(Limit::ReadAddress, &caller.to_string(), Duration::from_secs(5));
        }
        assert_eq!(refusals.until.lock().len(), MAX_REFUSALS);
        assert_eq!(refusals.remaining(Limit::ReadAddress, "0"), Some(Duration::from_secs(5)));
        assert_eq!(refusals.remaining(Limit::WriteAddress, "0"), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(refusals.remaining(Limit::ReadAddress, "0"), None);
        refusals.add(Limit::ReadAddress, "new", Duration::from_secs(5));
        assert_eq!(refusals.until.lock().len(), 1);
    }
}
