//! Entity ids: 41 bits of milliseconds since 2025, 6 bits of node, 6 bits of sequence.
//!
//! So ids are positive, below 2^53 (clients hold them in doubles), in time order, and unique without coordination: an
//! instance holds its node number exclusively while its [`Lease`] lasts, and generates no id at or after the lease's
//! last millisecond. The next holder starts at that millisecond, regardless of its clock.

use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;
use vidlog_service_kit::clock::Clock;

/// 2025-01-01 UTC, milliseconds since 1970. Changing it would repeat or reorder ids.
const EPOCH_MS: i64 = 1_735_689_600_000;
/// The first millisecond that does not fit into 41 bits: in the year 2094.
const END_MS: i64 = EPOCH_MS + (1 << 41);
const NODE_BITS: u32 = 6;
const SEQUENCE_BITS: u32 = 6;
const MAX_SEQUENCE: i64 = (1 << SEQUENCE_BITS) - 1;

/// Maximum number of instances that generate ids concurrently.
pub const NODES: i32 = 1 << NODE_BITS;

/// Exclusive use of a node number for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The node number, below [`NODES`].
    pub node: i32,
    /// First millisecond that the previous holder can't have used.
    pub from_ms: i64,
    /// First millisecond that this holder must not use.
    pub expires_ms: i64,
}

/// Why no id is available. The command can be retried later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    /// The instance holds no node number.
    #[error("no node number is leased")]
    NoLease,
    /// The lease was not renewed in time, or its ids are used up.
    #[error("the lease of the node number has expired")]
    Expired,
    /// The clock is before 2025 or after 2094.
    #[error("the clock is out of range")]
    ClockOutOfRange,
}

/// Generates entity ids. Clones share the lease and the sequence.
#[derive(Clone, Debug)]
pub struct IdGenerator {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Millisecond of the latest id. Never decreases, so it is ahead of a clock that was set back.
    last_ms: i64,
    sequence: i64,
    lease: Option<Lease>,
}

impl IdGenerator {
    /// A generator without a lease.
    pub fn new(clock: Clock) -> Self {
        let state = State { last_ms: 0, sequence: MAX_SEQUENCE, lease: None };
        Self { clock, state: Arc::new(Mutex::new(state)) }
    }

    /// Generates an id above all earlier ids of this generator.
    pub fn next(&self) -> Result<i64, IdError> {
        let now_ms = self.clock.now_ms();
        self.state.lock().next(now_ms)
    }

    /// Starts a lease.
    pub fn start_lease(&self, lease: Lease) {
        let mut state = self.state.lock();
        // Skips the rest of the last millisecond: a lower node number would yield lower ids in it.
        *state = State {
            last_ms: state.last_ms.max(lease.from_ms - 1),
            sequence: MAX_SEQUENCE,
            lease: Some(lease),
        };
    }

    /// Extends the lease.
    pub fn extend_lease(&self, expires_ms: i64) {
        if let Some(lease) = &mut self.state.lock().lease {
            lease.expires_ms = lease.expires_ms.max(expires_ms);
        }
    }

    /// Ends the lease; returns the first millisecond that the next holder may use.
    pub fn end_lease(&self) -> Option<i64> {
        let mut state = self.state.lock();
        state.lease.take().map(|_| state.last_ms + 1)
    }

    /// The clock's time, or that of the latest id if it is ahead of the clock.
    pub(crate) fn now_ms(&self) -> i64 {
        let now_ms = self.clock.now_ms();
        self.state.lock().last_ms.max(now_ms)
    }

    /// Whether an id is available now.
    pub(crate) fn is_ready(&self) -> bool {
        let now_ms = self.now_ms();
        self.state.lock().lease.is_some_and(|lease| now_ms < lease.expires_ms)
    }
}

impl State {
    fn next(&mut self, now_ms: i64) -> Result<i64, IdError> {
        let lease = self.lease.ok_or(IdError::NoLease)?;
        let (ms, sequence) = if now_ms > self.last_ms {
            (now_ms, 0)
        } else if self.sequence < MAX_SEQUENCE {
            (self.last_ms, self.sequence + 1)
        } else {
            (self.last_ms + 1, 0)
        };
        if ms >= lease.expires_ms {
            return Err(IdError::Expired);
        }
        if !(EPOCH_MS + 1..END_MS).contains(&ms) {
            return Err(IdError::ClockOutOfRange);
        }
        (self.last_ms, self.sequence) = (ms, sequence);
        let node = i64::from(lease.node);
        Ok((((ms - EPOCH_MS) << NODE_BITS | node) << SEQUENCE_BITS) | sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = EPOCH_MS + 1_000_000;

    fn lease(node: i32, from_ms: i64, expires_ms: i64) -> Lease {
        Lease { node, from_ms, expires_ms }
    }

    fn generator(clock: &Clock, lease: Lease) -> IdGenerator {
        let ids = IdGenerator::new(clock.clone());
        ids.start_lease(lease);
        ids
    }

    fn take(ids: &IdGenerator, count: usize) -> Vec<i64> {
        (0..count).map(|_| ids.next().unwrap()).collect()
    }

    #[test]
    fn ids_ascend_and_fit_into_a_double() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(NODES - 1, 0, i64::MAX));
        let mut taken = take(&ids, 200);
        clock.set(END_MS - 1);
        taken.extend(take(&ids, 64));
        assert!(taken.is_sorted_by(|one, next| one < next));
        assert!(taken.iter().all(|id| (1..1 << 53).contains(id)));
        assert_eq!(ids.next(), Err(IdError::ClockOutOfRange));
    }

    #[test]
    fn stalled_or_reset_clock_repeats_no_id() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(0, 0, NOW + 1000));
        let mut taken = take(&ids, 64 * 3);
        clock.set(NOW - 500);
        taken.extend(take(&ids, 64 * 3));
        assert!(taken.is_sorted_by(|one, next| one < next));
        assert_eq!(ids.now_ms(), NOW + 5);
    }

    #[test]
    fn expired_lease_yields_no_ids() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(0, 0, NOW + 2));
        take(&ids, 128);
        assert_eq!(ids.next(), Err(IdError::Expired));
        ids.extend_lease(NOW + 3);
        take(&ids, 64);
        assert_eq!(ids.next(), Err(IdError::Expired));
        assert!(ids.is_ready());
        clock.set(NOW + 3);
        assert!(!ids.is_ready());
    }

    #[test]
    fn next_holder_starts_at_the_previous_expiry() {
        let before = generator(&Clock::fixed(NOW), lease(5, 0, NOW + 10));
        // The next holder's clock is far behind, so its own time would repeat ids.
        let after = generator(&Clock::fixed(NOW - 900_000), lease(5, NOW + 10, NOW + 20));
        let last = take(&before, 640).pop();
        assert_eq!(before.next(), Err(IdError::Expired));
        assert!(last < take(&after, 1).pop());
    }

    #[test]
    fn ended_lease_yields_no_ids() {
        let ids = generator(&Clock::fixed(NOW), lease(0, 0, NOW + 10));
        take(&ids, 65);
        assert_eq!(ids.end_lease(), Some(NOW + 2));
        assert_eq!(ids.next(), Err(IdError::NoLease));
        assert_eq!(ids.end_lease(), None);
    }

    #[test]
    fn ids_ascend_across_leases() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(9, 0, NOW + 10));
        let before = take(&ids, 100).pop();
        ids.end_lease();
        clock.set(NOW - 5);
        ids.start_lease(lease(1, 0, NOW + 10));
        assert!(before < take(&ids, 1).pop());
    }

    #[test]
    fn clock_before_the_epoch_is_out_of_range() {
        let ids = generator(&Clock::fixed(EPOCH_MS), lease(0, 0, i64::MAX));
        assert_eq!(ids.next(), Err(IdError::ClockOutOfRange));
    }
}
