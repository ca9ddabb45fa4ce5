//! Entity ids: 41 bits of milliseconds since 2025, 6 bits of node, 6 bits of sequence.
//!
//! So they are positive, below 2^53 (clients hold them in doubles), in time order, and unique without asking
//! anyone: an instance has its node number to itself for as long as its [`Lease`] lasts, and makes no id of a
//! millisecond at or beyond its end. Whoever has the number next starts at that end, whatever its clock says.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vidlog_service_kit::clock::Clock;

/// 2025-01-01 UTC, milliseconds since 1970. Changing it would repeat or reorder ids.
const EPOCH_MS: i64 = 1_735_689_600_000;
/// The first millisecond that does not fit into 41 bits: in the year 2094.
const END_MS: i64 = EPOCH_MS + (1 << 41);
const NODE_BITS: u32 = 6;
const SEQUENCE_BITS: u32 = 6;
const MAX_SEQUENCE: i64 = (1 << SEQUENCE_BITS) - 1;

/// How many instances can make ids at the same time.
pub const NODES: i32 = 1 << NODE_BITS;

/// The right to make ids with a node number, for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The node number, below [`NODES`].
    pub node: i32,
    /// The first millisecond that the previous holder can't have used.
    pub from_ms: i64,
    /// The first millisecond that this holder must not use.
    pub expires_ms: i64,
}

/// There is no id now. A command that needs one must be tried again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoId {
    /// The instance holds no node number.
    #[error("no node number is leased")]
    NoLease,
    /// The lease was not renewed in time, or all its ids are used up.
    #[error("the lease of the node number has expired")]
    Expired,
    /// The clock tells a time before 2025 or after 2094.
    #[error("the clock tells an impossible time")]
    ImpossibleTime,
}

/// Makes ids. Clones share the lease and the sequence.
#[derive(Clone, Debug)]
pub struct IdGenerator {
    clock: Clock,
    made: Arc<Mutex<Made>>,
}

/// How far ids have come.
#[derive(Clone, Copy, Debug)]
struct Made {
    /// The millisecond of the latest id: never goes back, and runs ahead of a clock that does.
    last_ms: i64,
    sequence: i64,
    lease: Option<Lease>,
}

impl IdGenerator {
    /// A generator that has no lease yet.
    pub fn new(clock: Clock) -> Self {
        let made = Made { last_ms: 0, sequence: MAX_SEQUENCE, lease: None };
        Self { clock, made: Arc::new(Mutex::new(made)) }
    }

    /// The next id, above all before it from this generator.
    pub fn next(&self) -> Result<i64, NoId> {
        let now_ms = self.clock.now_ms();
        self.with(|made| made.next(now_ms))
    }

    /// Begins a lease.
    pub fn begin(&self, lease: Lease) {
        self.with(|made| {
            // The rest of the last millisecond is left out: ids of another node number would not rise in it.
            *made = Made {
                last_ms: made.last_ms.max(lease.from_ms - 1),
                sequence: MAX_SEQUENCE,
                lease: Some(lease),
            };
        });
    }

    /// Makes the lease longer.
    pub fn extend(&self, expires_ms: i64) {
        self.with(|made| {
            if let Some(lease) = &mut made.lease {
                lease.expires_ms = lease.expires_ms.max(expires_ms);
            }
        });
    }

    /// Ends the lease, with the first millisecond that its next holder may use. There are no ids afterwards.
    pub fn end(&self) -> Option<i64> {
        self.with(|made| made.lease.take().map(|_| made.last_ms + 1))
    }

    /// The time as ids have it: the clock's, unless ids are ahead of it.
    pub(crate) fn now_ms(&self) -> i64 {
        let now_ms = self.clock.now_ms();
        self.with(|made| made.last_ms.max(now_ms))
    }

    /// Whether there would be an id now.
    pub(crate) fn is_ready(&self) -> bool {
        let now_ms = self.now_ms();
        self.with(|made| made.lease.is_some_and(|lease| now_ms < lease.expires_ms))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Made) -> T) -> T {
        // What is behind the lock is whole after any panic: each change is one assignment.
        change(&mut self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Made {
    fn next(&mut self, now_ms: i64) -> Result<i64, NoId> {
        let lease = self.lease.ok_or(NoId::NoLease)?;
        let (ms, sequence) = if now_ms > self.last_ms {
            (now_ms, 0)
        } else if self.sequence < MAX_SEQUENCE {
            (self.last_ms, self.sequence + 1)
        } else {
            (self.last_ms + 1, 0)
        };
        if ms >= lease.expires_ms {
            return Err(NoId::Expired);
        }
        if !(EPOCH_MS + 1..END_MS).contains(&ms) {
            return Err(NoId::ImpossibleTime);
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
        ids.begin(lease);
        ids
    }

    fn take(ids: &IdGenerator, count: usize) -> Vec<i64> {
        (0..count).map(|_| ids.next().unwrap()).collect()
    }

    #[test]
    fn ids_are_positive_rise_and_are_exact_in_a_double() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(NODES - 1, 0, i64::MAX));
        let mut taken = take(&ids, 200);
        clock.set(END_MS - 1);
        taken.extend(take(&ids, 64));
        assert!(taken.is_sorted_by(|one, next| one < next));
        assert!(taken.iter().all(|id| (1..1 << 53).contains(id)));
        assert_eq!(ids.next(), Err(NoId::ImpossibleTime));
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_back_repeats_nothing() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(0, 0, NOW + 1000));
        let mut taken = take(&ids, 64 * 3);
        clock.set(NOW - 500);
        taken.extend(take(&ids, 64 * 3));
        assert!(taken.is_sorted_by(|one, next| one < next));
        assert_eq!(ids.now_ms(), NOW + 5);
    }

    #[test]
    fn there_are_no_ids_beyond_the_lease() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(0, 0, NOW + 2));
        take(&ids, 128);
        assert_eq!(ids.next(), Err(NoId::Expired));
        ids.extend(NOW + 3);
        take(&ids, 64);
        assert_eq!(ids.next(), Err(NoId::Expired));
        assert!(ids.is_ready());
        clock.set(NOW + 3);
        assert!(!ids.is_ready());
    }

    #[test]
    fn the_next_holder_starts_where_the_previous_had_to_end() {
        let before = generator(&Clock::fixed(NOW), lease(5, 0, NOW + 10));
        // Its clock is far behind, so that its own time would repeat ids.
        let after = generator(&Clock::fixed(NOW - 900_000), lease(5, NOW + 10, NOW + 20));
        let last = take(&before, 640).pop();
        assert_eq!(before.next(), Err(NoId::Expired));
        assert!(last < take(&after, 1).pop());
    }

    #[test]
    fn an_ended_lease_gives_none() {
        let ids = generator(&Clock::fixed(NOW), lease(0, 0, NOW + 10));
        take(&ids, 65);
        assert_eq!(ids.end(), Some(NOW + 2));
        assert_eq!(ids.next(), Err(NoId::NoLease));
        assert_eq!(ids.end(), None);
    }

    #[test]
    fn ids_rise_from_lease_to_lease() {
        let clock = Clock::fixed(NOW);
        let ids = generator(&clock, lease(9, 0, NOW + 10));
        let before = take(&ids, 100).pop();
        ids.end();
        clock.set(NOW - 5);
        ids.begin(lease(1, 0, NOW + 10));
        assert!(before < take(&ids, 1).pop());
    }

    #[test]
    fn the_time_must_be_possible() {
        let ids = generator(&Clock::fixed(EPOCH_MS), lease(0, 0, i64::MAX));
        assert_eq!(ids.next(), Err(NoId::ImpossibleTime));
    }
}
